"""One principle: every term of a sum gets relevance by value, constants too.

On a network that is linear in pieces LRP-0 is then the gradient times the input; on one with
norms, the same with the deviation held fixed; and a transformer follows AttnLRP.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax

from jaxunlearn.attribution import lrp, starts
from jaxunlearn.attribution.lrp import rules


@pytest.fixture(autouse=True)
def wide_floats():
    # these networks are written as people write them
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        yield


def draw(*shape, seed=0, scale=1.0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape) * scale)


def add_up(r):
    """Returns the relevance of the input and of all entries of the ledger, by example."""
    leaves = jax.tree.leaves(r.input)
    found = sum(jnp.sum(leaf, axis=tuple(range(1, leaf.ndim))) for leaf in leaves)
    return found + sum(entry.total for entry in r.ledger.values())


def layer_norm(x, scale, bias, hold=lax.stop_gradient):
    centred = x - x.mean(-1, keepdims=True)
    return centred / hold(jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)) * scale + bias


def pre_activation(v, x):
    """Batch norm in front of the relus, and concatenation, as in DenseNet."""
    for i in range(2):
        h = jax.nn.relu((x - v["mean"][i][: x.shape[1]]) * 1.3 + v["shift"][i][: x.shape[1]])
        x = jnp.concatenate([x, h @ v["w"][i][: x.shape[1]] + 0.1], axis=1)
    return x @ v["head"]


def normalised_input(v, x):
    return jax.nn.relu((x / 0.5 - 1.0) @ v["w"][0] + 0.2) @ v["head"][:4]


def position(v, x):
    h = jax.nn.relu(x @ v["w"][0]) + v["shift"][0][:4]
    return jax.nn.relu(h + h[:, ::-1]) @ v["head"][:4]


def bounds(v, x):
    h = jnp.clip(x @ v["w"][0], -0.5, 0.5) + jnp.minimum(x @ v["w"][1][:6], 0.3)
    return jnp.abs(h + 0.1) @ v["head"][:4] + jnp.maximum(h, -0.2) @ v["head"][:4]


def bypassed(v, x):
    """A sum of a value and of a function of its own, one constant apart."""
    h = x @ v["w"][0]
    return (h + jax.nn.relu(h + 0.3) + jax.nn.leaky_relu(h - 0.1)) @ v["head"][:4]


def below_the_largest(v, x):
    """``x - max(x)`` inside a network is a difference like any other."""
    h = x.reshape(-1, 3, 2)
    h = (h - h.max(1, keepdims=True)).sum(1) @ v["head"][:2]
    return jax.nn.relu((x - x.max(1, keepdims=True)) @ v["w"][0]) @ v["head"][:4] + jnp.abs(h)


def soft_threshold(v, x):
    h = x @ v["w"][0]
    return (jnp.sign(h) * jax.nn.relu(jnp.abs(h) - 0.3) + h * jnp.floor(h)) @ v["head"][:4]


PIECES = (
    pre_activation, normalised_input, position, bounds, bypassed, below_the_largest, soft_threshold,
)  # fmt: skip


@pytest.fixture
def weights():
    return {
        "mean": draw(2, 16, seed=1),
        "shift": draw(2, 16, seed=2),
        "w": (draw(6, 4, seed=3), draw(10, 4, seed=4)),
        "head": draw(14, 3, seed=5),
    }


@pytest.mark.parametrize("net", PIECES, ids=lambda net: net.__name__)
def test_lrp_0_is_the_gradient_times_the_input_on_networks_linear_in_pieces(net, weights):
    x = draw(5, 6, seed=6)
    r = lrp(net, rules.zero())(weights, x, starts.argmax(times_logit=True))
    logits, back = jax.vjp(lambda x: net(weights, x), x)
    (gradient,) = back(jax.nn.one_hot(logits.argmax(-1), 3))
    np.testing.assert_allclose(r.input, x * gradient, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(add_up(r), logits.max(-1), rtol=1e-10)


@pytest.mark.parametrize("norm", [layer_norm, "group", "flax", "range", "matrix"])
def test_and_on_networks_with_norms_whose_deviation_is_held_fixed(norm):
    v = {"w": draw(6, 8), "scale": draw(8, seed=1), "bias": draw(8, seed=2), "head": draw(8, 3)}

    def net(v, x, hold=lambda deviation: deviation):
        h = x @ v["w"] + 0.3
        if norm == "group":
            h = h.reshape(-1, 2, 4)
            h = layer_norm(h, 1.0, 0.0, hold).reshape(-1, 8) * v["scale"] + v["bias"]
        elif norm == "range":
            h = h / hold(h.max(1, keepdims=True) - h.min(1, keepdims=True)) + v["bias"]
        elif norm == "matrix":
            mean = jnp.full((8, 8), 1 / 8)
            h = (h - h @ mean) / hold(jnp.sqrt(((h - h @ mean) ** 2) @ mean + 1e-6)) + v["bias"]
        elif norm == "flax" and hold is not lax.stop_gradient:
            p = {"params": {"scale": v["scale"], "bias": v["bias"]}}
            h = linen.LayerNorm(use_fast_variance=False).apply(p, h)
        else:
            h = layer_norm(h, v["scale"], v["bias"], hold)
        return jax.nn.relu(h) @ v["head"]

    x = draw(5, 6, seed=7)
    r = lrp(net, rules.zero())(v, x, starts.label(1, times_logit=True))
    gradient = jax.grad(lambda x: net(v, x, lax.stop_gradient)[:, 1].sum())(x)
    np.testing.assert_allclose(r.input, x * gradient, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(add_up(r), r.logits[:, 1], rtol=1e-9)


def transformer(p, x):
    """The network of the reference: patches, a class token, two blocks with norms before them."""

    def dense(name, x):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    def norm(name, x):
        return layer_norm(x, p[f"{name}/scale"], p[f"{name}/bias"], lambda deviation: deviation)

    batch = x.shape[0]
    patches = x.reshape(batch, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(batch, 16, 48)
    token = jnp.broadcast_to(p["cls"], (batch, 1, 24))
    h = jnp.concatenate([token, dense("embed", patches)], axis=1) + p["position"]
    for block in ("block0", "block1"):
        y = norm(f"{block}/norm1", h)
        query, key, value = (
            dense(f"{block}/{name}", y).reshape(batch, 17, 3, 8)
            for name in ("query", "key", "value")
        )
        seen = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", query / np.sqrt(8), key), axis=-1)
        mixed = jnp.einsum("bhts,bshd->bthd", seen, value).reshape(batch, 17, 24)
        h = h + dense(f"{block}/out", mixed)
        y = dense(f"{block}/fc1", norm(f"{block}/norm2", h))
        h = h + dense(f"{block}/fc2", jax.nn.gelu(y))
    return dense("head", norm("norm", h)[:, 0])


def test_a_vision_transformer_follows_attnlrp():
    golden = np.load(Path(__file__).parents[1] / "golden" / "attention" / "vit_token.npz")
    p = {key[2:]: jnp.asarray(golden[key]) for key in golden.files if key.startswith("p/")}
    follow = jax.jit(lrp(transformer, rules.epsilon(1e-12), eps=1e-12))
    r = follow(p, jnp.asarray(golden["x"]), jnp.asarray(golden["seed"]))
    np.testing.assert_allclose(r.logits, golden["logits"], rtol=1e-12)
    found = {
        "input": r.input,
        "embed": r.neurons["embed/kernel"],
        "block0/fc1": r.neurons["block0/fc1/kernel"],
        "block1/fc1": r.neurons["block1/fc1/kernel"],
    }
    for name, values in found.items():
        wanted = golden[f"R/{name}"]
        for one, other in zip(values, wanted, strict=True):
            cosine = np.vdot(one, other) / np.linalg.norm(one) / np.linalg.norm(other)
            # the reference divides by y + 1e-6 behind its layer norms, whatever is asked for
            assert cosine > 1 - 1e-4, (name, cosine)
    np.testing.assert_allclose(add_up(r), golden["seed"].sum(-1), rtol=1e-9)


def column(v, x):
    h = x @ v["w"][0]
    return (h * h[:, :1]) @ v["head"][:4]


def gate_that_is_added(v, x):
    h, gate = x @ v["w"][0], jax.nn.sigmoid(x @ v["w"][0][:, :1])
    return (h * gate + gate) @ v["head"][:4]


def squeeze_and_excitation(v, x):
    h = jax.nn.relu(x.reshape(-1, 2, 3) @ v["w"][0][:3])
    return (h * jax.nn.sigmoid(h.mean(1, keepdims=True) @ v["w"][1][:4])).mean(1) @ v["head"][:4]


def outer_product(v, x):
    h = x @ v["w"][0]
    return (h[:, :, None] * h[:, None, :2]).reshape(-1, 8) @ v["head"][:8]


def temperature(v, x):
    h = x @ v["w"][0]
    return jax.nn.softmax(h / (0.5 + jax.nn.softplus(h[:, 1:2])), axis=-1) @ v["head"][:4]


def mixture_of_experts(v, x):
    weights = jax.nn.softmax(x @ v["w"][0][:, :2], axis=-1)
    experts = jnp.stack([x @ v["w"][0], jnp.tanh(x @ v["w"][1][:6])], axis=1)
    return (weights[:, :, None] * experts).sum(1) @ v["head"][:4]


def largest_of_row_and_column(v, x):
    h = x @ v["w"][0]
    return (jnp.maximum(h, h[:, 2:3]) - h[:, 3:]) @ v["head"][:4]


BROADCAST = (
    column, gate_that_is_added, squeeze_and_excitation, outer_product, temperature,
    mixture_of_experts, largest_of_row_and_column,
)  # fmt: skip


@pytest.mark.parametrize("net", BROADCAST, ids=lambda net: net.__name__)
def test_operands_that_broadcast_get_relevance_of_their_own_shape(net, weights):
    x = draw(5, 6, seed=8)
    r = lrp(net, rules.epsilon(1e-9), eps=1e-9)(weights, x)
    assert r.input.shape == x.shape
    np.testing.assert_allclose(add_up(r), 1, rtol=1e-9)


LOGARITHMS = {
    "log_softmax": jax.nn.log_softmax,
    "minus_logsumexp": lambda z: z - jax.nn.logsumexp(z, axis=-1, keepdims=True),
    "by_hand": lambda z: z - jnp.log(jnp.exp(z).sum(-1, keepdims=True)),
    "log_of_softmax": lambda z: jnp.log(jax.nn.softmax(z)),
    "plus_minus_logsumexp": lambda z: z + (-jax.nn.logsumexp(z, axis=-1, keepdims=True)),
    "log_of_clipped_softmax": lambda z: jnp.log(jnp.clip(jax.nn.softmax(z), 1e-7, 1.0)),
    "log_of_bounded_softmax": lambda z: jnp.log(jnp.maximum(jax.nn.softmax(z), 1e-9)),
    "minus_maximum": lambda z: z - z.max(-1, keepdims=True),
    "linen": linen.log_softmax,
}


@pytest.mark.parametrize("name", LOGARITHMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_log_probabilities_are_logits_up_to_a_shift(name, dtype, weights):
    v, x = jax.tree.map(lambda a: a.astype(dtype), (weights, draw(5, 6, seed=9)))
    end = LOGARITHMS[name]
    logits = lrp(position)(v, x, starts.label(1))
    r = lrp(lambda v, x: end(position(v, x)))(v, x, starts.label(1))
    np.testing.assert_allclose(r.input, logits.input, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(add_up(r), 1, rtol=1e-4)


def test_logsumexp_sends_relevance_by_the_softmax(weights):
    def pooled(v, x):
        return jax.nn.logsumexp(x.reshape(-1, 2, 3), axis=1) @ v["head"][:3]

    x = draw(5, 6, seed=10)
    r = lrp(pooled, rules.zero())(weights, x)
    z = x.reshape(-1, 2, 3)
    total = jax.nn.logsumexp(z, axis=1, keepdims=True)
    share = jax.nn.softmax(z, axis=1) * z / total
    above = lrp(lambda v, h: h @ v["head"][:3], rules.zero())(weights, total[:, 0]).input
    np.testing.assert_allclose(r.input, (share * above[:, None]).reshape(5, 6), rtol=1e-9)
    np.testing.assert_allclose(add_up(r), 1, rtol=1e-9)


def batch_norm(h):
    return (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)


@pytest.mark.parametrize(
    "mix",
    [batch_norm, lambda h: h + h.mean(0), lambda h: h - jnp.max(h, 0), lambda h: jnp.cumsum(h, 0),
     lambda h: h * jnp.prod(h, 0), lambda h: jnp.sort(h, 0), lambda h: jnp.cumprod(h, 0),
     lambda h: h / jnp.sqrt((h**2).mean(0) + 1e-5), lambda h: (h @ h.T) @ h,
     lambda h: h - h.reshape(-1)[:20].reshape(5, 4).sum(0)],
)  # fmt: skip
def test_statistics_over_the_examples_are_refused(mix, weights):
    with pytest.raises(ValueError, match=r"expected outputs that each depend on their own example"):
        lrp(lambda v, x: mix(x @ v["w"][0]) @ v["head"][:4])(weights, draw(5, 6))


def test_the_nodes_of_a_graph_may_see_their_neighbours(weights):
    near = jnp.asarray(np.eye(5) + np.eye(5, k=1) + np.eye(5, k=-1)) / 3
    x = draw(5, 6, seed=15)
    with pytest.warns(UserWarning, match="Examples that see each other"):
        r = lrp(lambda v, x: jax.nn.relu(near @ x @ v["w"][0]) @ v["head"][:4])(weights, x)
    np.testing.assert_allclose(add_up(r).sum(), 5, rtol=1e-3)


def test_of_one_example_nothing_mixes(weights):
    r = lrp(lambda v, x: (x @ v["w"][0] + x.mean(0) @ v["w"][0]) @ v["head"][:4])(
        weights, draw(1, 6)
    )
    np.testing.assert_allclose(add_up(r), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "act",
    [jax.nn.gelu, jax.nn.silu, jax.nn.hard_swish, jax.nn.mish, lambda x: x / (1 + jnp.abs(x)),
     lambda x: 0.5 * x * (1 + jnp.tanh(x)), lambda x: jnp.log(1 + jnp.exp(x)) ** 2,
     lambda x: x * (1 / (1 + jnp.exp(-x)))],
)  # fmt: skip
def test_numbers_inside_a_function_take_nothing(act, weights):
    x = draw(5, 6, seed=11)
    r = lrp(lambda v, x: act(x @ v["w"][0]) @ v["head"][:4], rules.zero())(weights, x)
    linear = {key for key, entry in r.ledger.items() if jnp.any(entry.total != 0)}
    assert linear <= {"w/0", "head"}, linear
    np.testing.assert_allclose(r.neurons["w/0"].sum(-1), 1, rtol=1e-9)


OPEN = {
    "sigmoid": (jax.nn.sigmoid, 0.5),
    "by_hand": (lambda z: 1 / (1 + jnp.exp(-z)), 0.5),
    "of_tanh": (lambda z: 0.5 * (1 + jnp.tanh(z)), 0.5),
    "exp": (jnp.exp, 1.0),
    "softplus": (jax.nn.softplus, np.log(2)),
    "cos": (jnp.cos, 1.0),
    "tanh": (jnp.tanh, 0.0),
    "silu": (jax.nn.silu, 0.0),
}


@pytest.mark.parametrize("name", OPEN)
def test_a_gate_that_is_open_by_itself_scales(name):
    gate, rest = OPEN[name]
    v = {"value": jnp.eye(3), "gate": jnp.eye(3)}
    x = draw(4, 3, seed=12)
    r = lrp(lambda v, x: (x @ v["value"]) * gate(-x @ v["gate"]), rules.zero())(
        v, x, jnp.ones((4, 3))
    )
    moved = (1 - rest / gate(-x)) / 2
    np.testing.assert_allclose(r.neurons["gate"], moved, rtol=1e-9)
    np.testing.assert_allclose(r.neurons["value"], 1 - moved, rtol=1e-9)
    np.testing.assert_allclose(r.input, 1, rtol=1e-9)


def test_of_two_gates_that_are_open_a_constant_is_left():
    v = {"a": jnp.eye(3), "b": jnp.eye(3)}
    x = draw(4, 3, seed=13)
    net = lambda v, x: jax.nn.sigmoid(x @ v["a"]) * jnp.exp(x @ v["b"])  # noqa: E731
    r = lrp(net, rules.zero())(v, x, net(v, x))
    a, b = jax.nn.sigmoid(x) - 0.5, jnp.exp(x) - 1
    np.testing.assert_allclose(r.neurons["a"], a + a * b / 2, rtol=1e-9)
    np.testing.assert_allclose(r.neurons["b"], 0.5 * b + a * b / 2, rtol=1e-9)
    np.testing.assert_allclose(r.ledger["mul"].bias, 0.5 * 3, rtol=1e-9)


def split_sigmoid(v, x):
    """As hybrid transformers write it: one sigmoid, of which parts are values and gates."""
    h = jax.nn.sigmoid(x.reshape(-1, 2, 3) @ v["w"][0][:3])
    value, gate = jnp.split(h, 2, axis=-1)
    seen = jax.nn.softmax(jnp.einsum("bik,bjk->bij", value, value))
    return (jnp.einsum("bij,bjk->bik", seen, value) * gate).reshape(-1, 4) @ v["head"][:4]


def update_gate(v, x):
    z, r = jnp.split(jax.nn.sigmoid(x @ v["w"][0]), 2, axis=-1)
    return ((1 - z) * jnp.tanh(x @ v["w"][1][:6])[:, :2] + z * r) @ v["head"][:2]


def average_of_softplus(v, x):
    return jax.nn.softplus(x.reshape(-1, 2, 3) @ v["w"][0][:3]).mean(1) @ v["head"][:4]


def sum_of_functions(v, x):
    return (jax.nn.sigmoid(x @ v["w"][0]) + jnp.cos(x @ v["w"][1][:6])) @ v["head"][:4]


@pytest.mark.parametrize(
    "net",
    [split_sigmoid, update_gate, average_of_softplus, sum_of_functions],
    ids=lambda net: net.__name__,
)
def test_what_a_function_is_at_zero_is_a_constant_where_no_linear_unit_reads_it(net, weights):
    # nearly nothing in: without it the value near zero in front of the function is divided by
    x = 1e-6 * draw(5, 6, seed=16)
    r = lrp(net, rules.zero())(weights, x)
    np.testing.assert_allclose(add_up(r), 1, rtol=1e-8)
    assert jnp.abs(r.input).sum() < 1e-3
    activation = lrp(lambda v, x: jax.nn.sigmoid(x @ v["w"][0]) @ v["head"][:4], rules.zero())
    np.testing.assert_allclose(activation(weights, x).input.sum(1), 1, rtol=1e-6)


HIDDEN = np.array([True, True, False, True])
MASKED = {
    "minus_a_column": lambda z: jnp.exp(z - z[:, :1]),
    "softmax_of_a_scaling": lambda z: jax.nn.softmax(z * 0.5 + 1.0),
    "bounded": lambda z: jnp.maximum(z, -1.0) + jax.nn.relu(z + z),
}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("added", [True, False])
def test_what_is_masked_by_infinity_leaves_the_ledger_finite(name, added, weights):
    def net(v, x):
        z = x @ v["w"][0]
        masked = z + jnp.where(HIDDEN, 0.0, -jnp.inf) if added else jnp.where(HIDDEN, z, -jnp.inf)
        return MASKED[name](masked) @ v["head"][:4]

    r = lrp(net)(weights, draw(5, 6, seed=17))
    assert np.isfinite(r.input).all()
    np.testing.assert_allclose(add_up(r), 1, rtol=1e-5)


CHOSEN = {
    "by_place": lambda z: jnp.where(jnp.argmax(z, 1)[:, None] > 1, jax.nn.sigmoid(z), 1.0),
    "by_sign": lambda z: jnp.where(z > 0, jnp.exp(z), 0.0),
    "by_truth": lambda z: jnp.tanh(z * (z[:, 1:2] > 0)),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_gates_that_are_chosen(name, weights):
    gate = CHOSEN[name]
    x = draw(5, 6, seed=18)
    r = lrp(lambda v, x: ((x @ v["w"][0]) * gate(x[:, :4])) @ v["head"][:4])(weights, x)
    np.testing.assert_allclose(add_up(r), 1, rtol=1e-5)
