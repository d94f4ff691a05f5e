"""Small functions of every kind: relevance runs and adds up, or is refused with name and line."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxunlearn.attribution.lrp import lrp
from jaxunlearn.attribution.lrp.rules import zero

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 4)) + np.eye(4)
X = RNG.normal(size=(3, 4))
TIME = RNG.normal(size=(3, 5, 4))
IMAGE = RNG.normal(size=(3, 6, 6, 2))
TOKENS = np.array([[1, 2, 0, 0], [3, 1, 2, 0], [5, 4, 3, 1]], np.int32)
TABLE = RNG.normal(size=(6, 4))
EDGES = np.array([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]], np.int32)
KERNEL = RNG.normal(size=(3, 3, 2, 4)) / 3
IDS = np.array([0, 2], np.int32)
SEGMENTS = np.array([0, 1, 0, 2, 1], np.int32)


def array(values, like):
    """A constant of the type that numbers have; of integers as they are."""
    values = np.asarray(values)
    return jnp.asarray(values, like.dtype if values.dtype.kind == "f" else values.dtype)


def norm(h):
    centred = h - h.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)


def attention(w, q, k=None, mask=None):
    k = q if k is None else k
    scores = jnp.einsum("btd,bsd->bts", q @ w, k) / 2
    scores = scores if mask is None else jnp.where(mask, scores, -1e9)
    return jnp.einsum("bts,bsd->btd", jax.nn.softmax(scores), k)


def native(q):
    with jax.numpy_dtype_promotion("standard"):  # it asks for single precision by itself
        return jax.nn.dot_product_attention(q, q, q)


def cell(w, h, row):
    z, r = jax.nn.sigmoid(row @ w), jax.nn.sigmoid(h @ w + row)
    return (1 - z) * h + z * jnp.tanh(row + (r * h) @ w)


def swept(w, x, **options):
    rows = jnp.swapaxes(x, 0, 1)
    first = jnp.zeros_like(x[:, 0])

    def step(h, row):
        h = jnp.tanh(h @ w + row)
        return h, h

    return lax.scan(step, first, rows, **options)


def convolved(x, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, array(KERNEL, x), (1, 1), "SAME", dimension_numbers=numbers, **options
    )


def windowed(x, operation, first, size=(1, 2, 2, 1)):
    return lax.reduce_window(x, array(np.float64(first), x), operation, size, size, "VALID")


def flat(x):
    return x.reshape(x.shape[0], -1)


def masked_mean(table, tokens):
    mask = (tokens != 0).astype(table.dtype)[..., None]
    return jnp.sum(table[tokens] * mask, 1) / jnp.sum(mask, 1)


def message(w, nodes, mean=False):
    """One step along the edges of a graph, of the same edges for each example."""
    sent, received = EDGES

    def one(h):
        total = jax.ops.segment_sum(h[sent] @ w, received, 4)
        count = jax.ops.segment_sum(jnp.ones_like(h[sent, :1]), received, 4)
        return jax.nn.relu(h + (total / jnp.maximum(count, 1) if mean else total))

    return jax.vmap(one)(nodes)


def halting(w, x):
    """A loop that ends when a sum says so."""
    return lax.while_loop(lambda h: jnp.sum(h**2) > 1, lambda h: h / 2 @ w / 4, x)


def energy(w, x):
    return jnp.sum(jnp.tanh(x @ w) ** 2)


def complexes(x, real=1.0, imaginary=1.0):
    return lax.complex(
        x * array(np.float64(real), x), x[..., ::-1] * array(np.float64(imaginary), x)
    )


ARITHMETIC = {
    "linear": lambda w, x: x @ w,
    "bias": lambda w, x: x @ w + w[:1],
    "constant in front": lambda w, x: (x + w[:1]) @ w,
    "scaled and shifted": lambda w, x: (2 * x - 1) / 3 @ w,
    "subtracted from a constant": lambda w, x: (1 - x) @ w,
    "skip": lambda w, x: x + jnp.tanh(x @ w),
    "difference": lambda w, x: jnp.tanh(x @ w) - x,
    "gate": lambda w, x: jax.nn.sigmoid(x @ w) * x,
    "gate of one column": lambda w, x: x * jax.nn.sigmoid(x @ w[:, :1]),
    "quotient": lambda w, x: x / (1 + jnp.exp(x @ w)),
    "outer product": lambda w, x: flat(x[:, :, None] * (x @ w)[:, None, :]),
    "temperature": lambda w, x: jax.nn.softmax(x @ w / jax.nn.softplus(x[:, :1])),
    "powers": lambda w, x: (x**2 + x**3) @ w,
    "power of data": lambda w, x: jnp.abs(x) ** (x @ w),
    "exponential": lambda w, x: jnp.exp(x) @ w,
    "smooth": lambda w, x: (jax.nn.gelu(x) + jnp.sin(x) + jnp.arctan(x)) @ w,
    "gamma functions": lambda w, x: jax.scipy.special.gammaln(jnp.abs(x) + 1) @ w,
    "maximum of two": lambda w, x: jnp.maximum(x, x @ w),
    "clipped": lambda w, x: jnp.clip(x, -0.5, 0.5) @ w,
    "rounded": lambda w, x: jnp.round(x * 4) @ w,
    "product": lambda w, x: jnp.prod(x, 1, keepdims=True) * w[:1],
    "running product": lambda w, x: jnp.cumprod(x, 1) @ w,
    "running sum": lambda w, x: jnp.cumsum(x, 1) @ w,
    "alternating": lambda w, x: lax.cumsum(x, 1, reverse=True) @ w,
    "logsumexp": lambda w, x: jax.nn.logsumexp(x @ w, 1, keepdims=True) * w[:1],
    "log-probabilities": lambda w, x: jax.nn.log_softmax(x @ w),
    "running logsumexp": lambda w, x: lax.cumlogsumexp(x, 1) @ w,
    "two angles": lambda w, x: jnp.arctan2(x, x @ w),
    "a length": lambda w, x: x / jnp.linalg.norm(x, axis=1, keepdims=True) @ w,
}

MOVED = {
    "stack": lambda w, x: jnp.stack([x, jax.nn.relu(x @ w)], 1).sum(1),
    "stack of columns": lambda w, x: jnp.stack([x[:, 0], x[:, 2]], -1) @ w[:2],
    "tile": lambda w, x: jnp.tile(x, (1, 2)) @ jnp.concatenate([w, w**2]),
    "repeat": lambda w, x: jnp.repeat(x, 2, 1) @ jnp.concatenate([w, w**2]),
    "unstack": lambda w, x: sum(h[:, None] for h in jnp.unstack(x, axis=1)) * w[:1],
    "roll": lambda w, x: jnp.roll(x, 1, 1) @ w,
    "pad": lambda w, x: jnp.pad(x, ((0, 0), (1, 1)))[:, 1:-1] @ w,
    "columns": lambda w, x: x[:, IDS] @ w[:2],
    "element of each row": lambda w, x: (x @ w)[jnp.arange(3), jnp.array([1, 0, 3])][:, None],
    "along an axis": lambda w, x: jnp.take_along_axis(x @ w, jnp.array([[0], [3], [1]]), 1),
    "slice at a position": lambda w, x: lax.dynamic_slice(x, (0, 1), (3, 2)) @ w[:2],
    "set": lambda w, x: x.at[:, IDS].set(jax.nn.relu(x[:, 1:3])) @ w,
    "set to a constant": lambda w, x: x.at[:, 0].set(1.0) @ w,
    "set, the last one counts": lambda w, x: x.at[:, np.array([0, 0])].set(x[:, 2:]) @ w,
    "added at positions": lambda w, x: x.at[:, IDS].add(jax.nn.relu(x[:, 1:3])) @ w,
    "taken away at positions": lambda w, x: x.at[:, IDS].subtract(jax.nn.relu(x[:, 1:3])) @ w,
    "multiplied at positions": lambda w, x: x.at[:, IDS].multiply(x[:, 1:3]) @ w,
    "maximum at positions": lambda w, x: x.at[:, IDS].max(x[:, 1:3]) @ w,
    "minimum at positions": lambda w, x: x.at[:, IDS].min(x[:, 1:3]) @ w,
    "slice written": lambda w, x: lax.dynamic_update_slice(x, jax.nn.relu(x[:, :2]), (0, 1)) @ w,
    "sort": lambda w, x: jnp.sort(x, 1) @ w,
    "sort of pairs": lambda w, x: lax.sort((x @ w, x), num_keys=1)[1] @ w,
    "argsort": lambda w, x: jnp.take_along_axis(x, jnp.argsort(x @ w, 1), 1) @ w,
    "largest": lambda w, x: lax.top_k(x, 2)[0] @ w[:2],
    "largest and where": lambda w, x: jnp.take(w[0], lax.top_k(x, 2)[1]) * lax.top_k(x, 2)[0],
    "about the largest": lambda w, x: lax.approx_max_k(x, 2)[0] @ w[:2],
    "median": lambda w, x: jnp.median(x @ w, 1, keepdims=True),
    "running maximum": lambda w, x: lax.cummax(x, 1) @ w,
    "running minimum": lambda w, x: lax.cummin(x, 1, reverse=True) @ w,
    "one-hot of the largest": lambda w, x: x * jax.nn.one_hot(jnp.argmax(x, 1), 4, dtype=x.dtype),
    "histogram by position": lambda w, x: (
        jax.vmap(lambda r: jnp.bincount(IDS, r[:2], length=4))(x) @ w
    ),
    "barrier": lambda w, x: lax.optimization_barrier(jax.device_put(x)) @ w,
}

CONTROL = {
    "cond on data": lambda w, x: lax.cond(x[0, 0] > 0, jnp.tanh, lambda h: h @ w, x) @ w,
    "cond on a weight": lambda w, x: lax.cond(w[0, 0] > 0, jnp.tanh, lambda h: h @ w, x) @ w,
    "cond with a hole": lambda w, x: lax.cond(x[0, 0] > 99, lambda h: 1 / (h - h), jnp.tanh, x) @ w,
    "switch": lambda w, x: lax.switch(jnp.argmax(x[0]), [jnp.tanh, jnp.sin, jnp.abs], x) @ w,
    "switch that is known": lambda w, x: lax.switch(2, [jnp.tanh, jnp.sin, jnp.abs], x) @ w,
    "branch for each row": lambda w, x: jax.vmap(
        lambda r: lax.cond(r[0] > 0, lambda h: h @ w, jnp.tanh, r)
    )(x),
    "by platform": lambda w, x: lax.platform_dependent(x, cpu=jnp.tanh, default=jnp.tanh) @ w,
    "for": lambda w, x: lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ w) + i, x),
    "for with a position": lambda w, x: lax.fori_loop(
        0, 4, lambda i, h: h.at[:, i].multiply(w[i, i]), x
    ),
    "while that counts": lambda w, x: lax.while_loop(
        lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.tanh(s[1] @ w)), (0, x)
    )[1],
    "while on data": halting,
    "where": lambda w, x: jnp.where(x > 0, x @ w, jnp.tanh(x)),
    "where a mask": lambda w, x: jnp.where(jnp.arange(4) > 1, x @ w, 0),
    "map over examples": lambda w, x: lax.map(lambda r: jnp.tanh(r @ w), x),
    "remat": lambda w, x: jax.checkpoint(lambda h: jnp.tanh(h @ w))(x),
    "derivative inside": lambda w, x: jax.vmap(jax.grad(lambda r: energy(w, r[None])))(x),
    "binary": lambda w, x: (x > 0).astype(x.dtype) @ w,
    "relu by a product": lambda w, x: x * (x > 0).astype(x.dtype) @ w,
}

RECURRENT = {
    "recurrent": lambda w, x: swept(w, x)[0],
    "recurrent, all states": lambda w, x: swept(w, x)[1].mean(0),
    "backwards": lambda w, x: swept(w, x, reverse=True)[1][0],
    "gated": lambda w, x: lax.scan(
        lambda h, r: (cell(w, h, r), None), x[:, 0], jnp.swapaxes(x[:, 1:], 0, 1)
    )[0],
    "two directions": lambda w, x: swept(w, x)[0] + swept(w, x, reverse=True)[0],
    "last valid state": lambda w, x: jnp.swapaxes(swept(w, x)[1], 0, 1)[
        jnp.arange(3), jnp.array([2, 0, 1])
    ],
    "associative sum": lambda w, x: lax.associative_scan(jnp.add, x, axis=1)[:, -1] @ w,
    "state space": lambda w, x: lax.associative_scan(
        lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (jax.nn.sigmoid(x @ w), x), axis=1
    )[1].mean(1),
    "linear attention": lambda w, x: jnp.einsum(
        "btd,btde->bte", x, jnp.cumsum(jnp.einsum("btd,bte->btde", jax.nn.relu(x @ w), x), 1)
    ).mean(1),
}

ATTENTION = {
    "attention": lambda w, x: attention(w, x).mean(1),
    "causal": lambda w, x: attention(w, x, mask=jnp.tril(jnp.ones((5, 5), bool))[None])[:, -1],
    "class token": lambda w, x: attention(
        w, jnp.concatenate([jnp.broadcast_to(w[:1], (3, 1, 4)), x], 1)
    )[:, 0],
    "across": lambda w, x: attention(w, x[:, :2], x[:, 2:]).mean(1),
    "heads": lambda w, x: flat(attention(w[:2, :2], x.reshape(3, 10, 2)))[:, :4],
    "jax.nn": lambda w, x: native((x @ w)[:, :, None])[:, 0, 0],
    "positions": lambda w, x: attention(w, x + jnp.concatenate([w, w[:1]])[None]).mean(1),
    "rotary": lambda w, x: attention(
        w, x * array(np.cos(np.arange(20.0).reshape(1, 5, 4)), x) + x[..., ::-1]
    ).mean(1),
    "transformer": lambda w, x: norm(x + jax.nn.gelu(norm(x + attention(w, norm(x))) @ w) @ w).mean(
        1
    ),
    "mixture of experts": lambda w, x: jnp.einsum(
        "btk,btkd->bd", jax.nn.softmax(x @ w[:, :2]), jnp.stack([x @ w, jnp.tanh(x)], 2)
    ),
    "experts by the largest": lambda w, x: (
        jnp.tanh(x @ w) * jax.nn.one_hot(jnp.argmax(x @ w, -1), 4, dtype=x.dtype)
    ).sum(1),
    "ragged": lambda w, x: lax.ragged_dot(
        x[:, 0], jnp.stack([w, w**2]), jnp.array([1, 2], jnp.int32)
    ),
}

NORMS = {
    "layer norm": lambda w, x: norm(x @ w) @ w,
    "layer norm with bias": lambda w, x: (norm(x @ w) * w[:1] + w[1:2]) @ w,
    "rms norm": lambda w, x: x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) @ w,
    "batch norm": lambda w, x: ((x @ w - w[:1]) / jnp.sqrt(w[1:2] ** 2 + 1e-5) + w[2:3]) @ w,
    "softmax": lambda w, x: jax.nn.softmax(x @ w) @ w,
    "standardised": lambda w, x: jax.nn.standardize(x, axis=-1) @ w,
    "over the batch": lambda w, x: (x - x.mean(0, keepdims=True)) @ w,
}

IMAGES = {
    "convolution": lambda w, x: jax.nn.relu(convolved(x)).mean((1, 2)) @ w,
    "dilated": lambda w, x: convolved(x, rhs_dilation=(2, 2)).mean((1, 2)) @ w,
    "max-pool": lambda w, x: flat(windowed(x, lax.max, -np.inf))[:, :4] @ w,
    "min-pool": lambda w, x: flat(windowed(x, lax.min, np.inf))[:, :4] @ w,
    "average pool": lambda w, x: flat(windowed(x, lax.add, 0.0))[:, :4] @ w,
    "product pool": lambda w, x: flat(windowed(x, lax.mul, 1.0))[:, :4] @ w,
    "global maximum": lambda w, x: x.max((1, 2)) @ w[:2],
    "channels weighed": lambda w, x: (
        lambda h: (h * jax.nn.sigmoid(h.mean((1, 2), keepdims=True) @ w)).mean((1, 2))
    )(convolved(x)),
    "resized": lambda w, x: jax.image.resize(x, (3, 3, 3, 2), "bilinear").mean((1, 2)) @ w[:2],
    "patches": lambda w, x: (
        lax.conv_general_dilated_patches(
            x, (2, 2), (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).mean((1, 2))[:, :4]
        @ w
    ),
    "kernel of data": lambda w, x: (
        jax.vmap(lambda r: jnp.convolve(r[0, :, 0], r[1, :3, 0]))(x)[:, :4] @ w
    ),
}

COMPLEX = {
    "spectrum": lambda w, x: jnp.abs(jnp.fft.rfft(x)) @ w[:3],
    "real part of a spectrum": lambda w, x: jnp.fft.fft2(x.reshape(3, 2, 2)).real.reshape(3, 4) @ w,
    "power": lambda w, x: jnp.square(jnp.abs(jnp.fft.fft(x))) @ w,
    "filter": lambda w, x: (
        jnp.fft.irfft(jnp.fft.rfft(x) * lax.complex(w[:1, :3], w[1:2, :3]), 4) @ w
    ),
    "operator": lambda w, x: jnp.fft.irfft(jnp.fft.rfft(x) @ lax.complex(w, w.T)[:3, :3], 4) @ w,
    "convolution by spectra": lambda w, x: jnp.fft.ifft(jnp.fft.fft(x) * jnp.fft.fft(x @ w)).real,
    "autocorrelation": lambda w, x: (lambda z: (z * z.conj()).real)(jnp.fft.fft(x)) @ w,
    "rotation": lambda w, x: jnp.exp(lax.complex(jnp.zeros_like(x), x)).real @ w,
    "parts": lambda w, x: complexes(x).imag @ w + complexes(x, 2.0).real,
    "complex layer": lambda w, x: jnp.abs(complexes(x) @ lax.complex(w, w.T)),
    "complex skip": lambda w, x: jnp.abs(complexes(x) + complexes(jnp.tanh(x @ w))),
    "angle": lambda w, x: jnp.angle(complexes(x)) @ w,
}

ALGEBRA = {
    "solve": lambda w, x: jnp.linalg.solve(w, x.T).T,
    "triangular": lambda w, x: jax.scipy.linalg.solve_triangular(w, x.T, lower=True).T,
    "inverse": lambda w, x: x @ jnp.linalg.inv(w),
    "conjugate gradients": lambda w, x: jax.vmap(
        lambda r: jax.scipy.sparse.linalg.cg(lambda v: w.T @ (w @ v) + v, r)[0]
    )(x),
    "solve for data": lambda w, x: jax.vmap(lambda r: jnp.linalg.solve(w + jnp.diag(r), r))(x),
    "determinant": lambda w, x: jax.vmap(lambda r: jnp.linalg.det(w + jnp.diag(r)))(x)[:, None],
}

GRAPHS = {
    "sum over edges": lambda w, x: message(w, x[:, :4]).mean(1),
    "mean over edges": lambda w, x: message(w, x[:, :4], mean=True).mean(1),
    "two rounds": lambda w, x: message(w, message(w, x[:, :4])).max(1),
    "sum by segment": lambda w, x: (
        jax.ops.segment_sum(jnp.swapaxes(x, 0, 1), SEGMENTS, 3).max(0) @ w
    ),
    "maximum by segment": lambda w, x: (
        jax.vmap(lambda r: jax.ops.segment_max(r, SEGMENTS, 3).sum(0))(x) @ w
    ),
    "attention over edges": lambda w, x: jax.vmap(
        lambda r: jax.ops.segment_sum(
            jax.nn.sigmoid(jnp.sum(r[EDGES[0]] * (r @ w)[EDGES[1]], 1, keepdims=True))
            * r[EDGES[0]],
            EDGES[1],
            4,
        ).sum(0)
    )(x[:, :4]),
    "adjacency": lambda w, x: jnp.einsum("nm,bmd->bnd", jnp.abs(w), x[:, :4]).sum(1) @ w,
}

TEXT = {
    "mean of tokens": lambda e, t: e[t].mean(1),
    "padding left out": masked_mean,
    "padding by where": lambda e, t: jnp.where((t != 0)[..., None], e[t], 0).sum(1),
    "padding in attention": lambda e, t: attention(e[:4], e[t], mask=(t != 0)[:, None]).mean(1),
    "some tokens": lambda e, t: e[t[:, IDS]].sum(1),
    "token and position": lambda e, t: jnp.stack([e, e**2, e**3, -e], 1)[t, jnp.arange(4)].sum(1),
    "positions added": lambda e, t: jnp.tanh(e[t] + e[None, :4]).mean(1),
    "last token": lambda e, t: e[t][jnp.arange(3), jnp.sum(t != 0, 1) - 1],
    "slice of tokens": lambda e, t: e[lax.dynamic_slice(t, (0, 1), (3, 2))].sum(1),
    "bag of words": lambda e, t: (
        jnp.zeros((3, 6), e.dtype).at[jnp.arange(3)[:, None], t].add(1) @ e
    ),
    "one-hot": lambda e, t: (jax.nn.one_hot(t, 6, dtype=e.dtype) @ e).sum(1),
    "pairs of tokens": lambda e, t: (e @ e.T)[t[:, :-1], t[:, 1:]],
    "recurrent reader": lambda e, t: swept(e[:4] / 2, e[t])[0],
}

ROOMS = {
    "arithmetic": (ARITHMETIC, W, X),
    "moved": (MOVED, W, X),
    "control": (CONTROL, W, X),
    "recurrent": (RECURRENT, W / 3, TIME[:, :3]),
    "attention": (ATTENTION, W, TIME),
    "norms": (NORMS, W, X),
    "images": (IMAGES, W, IMAGE),
    "complex": (COMPLEX, W, X),
    "algebra": (ALGEBRA, W, X),
    "graphs": (GRAPHS, W, TIME),
    "text": (TEXT, TABLE, TOKENS),
}

REFUSED = {
    "power of data", "running logsumexp", "two angles", "while on data", "over the batch",
    "product pool", "angle", "solve for data", "determinant",
}  # fmt: skip
"""Functions whose shares nothing says."""
SINGLE = {"jax.nn"}
"""Functions that compute in single precision, whatever they are given."""


def gap(fn, w, x):
    """Relevance at the input and in the ledger less what was started with, the largest.

    And how much arrives, whatever its sign.
    """
    r = lrp(fn)(w, x)
    return jnp.max(jnp.abs(r.gap)), jnp.sum(jnp.abs(r.input))


def arguments(room, dtype):
    kinds = {"f": dtype, "i": np.int32}
    return [jax.device_put(v.astype(kinds[v.dtype.kind])) for v in ROOMS[room][1:]]


@pytest.mark.parametrize("room", ROOMS)
def test_relevance_of_small_functions_adds_up(room):
    functions = {name: fn for name, fn in ROOMS[room][0].items() if name not in REFUSED}

    @jax.jit
    def gaps(*pairs):
        return [{name: gap(fn, *pair) for name, fn in functions.items()} for pair in pairs]

    with jax.enable_x64(True):
        pairs = arguments(room, np.float64), arguments(room, np.float32)
        double, single = jax.device_get(gaps(*pairs))
    for name in functions:
        fine = 1e-4 if name in SINGLE else 1e-9
        assert double[name][0] < fine, (name, double[name])
        assert single[name][0] < 1e-4, (name, single[name])
        assert 0 < double[name][1] < 1e3, (name, double[name])


def test_a_function_that_is_not_covered_is_refused_with_name_and_line():
    refused = []
    for room, (functions, *_) in ROOMS.items():
        for name in set(functions) & REFUSED:
            with pytest.raises((NotImplementedError, ValueError)) as error:
                jax.eval_shape(lrp(functions[name]), *arguments(room, np.float32))
            assert re.search(r"'[\w-]+'.*test_small_functions\.py:\d+", str(error.value)), name
            assert len(str(error.value)) < 500, name
            refused.append(name)
    count = sum(len(functions) for functions, *_ in ROOMS.values())
    assert set(refused) == REFUSED
    assert count >= 100
    assert len(refused) / count <= 0.08


HOMOGENEOUS = {
    "moved": (
        "stack", "tile", "columns", "element of each row", "along an axis", "set",
        "set, the last one counts", "added at positions", "taken away at positions",
        "maximum at positions", "minimum at positions", "slice written", "sort", "sort of pairs",
        "largest", "median", "running maximum", "running minimum",
    ),
    "arithmetic": ("running sum", "alternating", "maximum of two"),
    "complex": ("spectrum", "real part of a spectrum", "filter", "operator", "complex layer"),
    "algebra": ("solve", "triangular", "inverse"),
    "graphs": ("sum over edges", "sum by segment", "maximum by segment", "adjacency"),
}  # fmt: skip
"""Functions that grow as their input does, for which the gradient says what each element adds."""


@pytest.mark.parametrize("room", HOMOGENEOUS)
def test_relevance_of_homogeneous_functions_is_gradient_times_input(room):
    def error(fn, w, x):
        r = lrp(fn, zero(), eps=1e-14)(w, x, start=fn(w, x))
        return jnp.max(jnp.abs(r.input - x * jax.grad(lambda x: jnp.sum(fn(w, x)))(x)))

    @jax.jit
    def errors(w, x):
        return {name: error(ROOMS[room][0][name], w, x) for name in HOMOGENEOUS[room]}

    with jax.enable_x64(True):
        found = jax.device_get(errors(*arguments(room, np.float64)))
    assert {name: value for name, value in found.items() if not value < 1e-9} == {}
