"""Crossings: the way of relevance through a step that is no linear unit.

Sums and products of data, choices, lookups, layout, maxima and softmax. Layer norm needs
nothing here: its normaliser gets no relevance (identity), the subtraction of the mean is a sum
of data. Source of the rules of attention: Achtibat et al. 2024 (AttnLRP).
"""

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution.lrp.rule import Affine, Loss, bind_wide, no_loss, share
from jaxunlearn.jaxprs.primitives import Op
from jaxunlearn.jaxprs.program import Program, varying_axes, where


def gate(
    relevance: jax.Array, operands: list[Any], rests: list[Any]
) -> tuple[list[jax.Array], Loss | None]:
    """Sends relevance of ``a * b``, element by element, half to each.

    But for what is open by itself: a sigmoid of 0 is 1/2, and a gate ``a sigmoid(z)`` is
    ``a / 2``, a scaling by a constant, plus ``a (sigmoid(z) - 1/2)``, the product of two values
    that is shared by halves. With ``a = a0 + da`` and ``b = b0 + db`` relevance goes by value:
    that of ``da b0`` to ``a``, of ``a0 db`` to ``b``, of ``da db`` half to each, and ``a0 b0``
    absorbs. Otherwise a value near zero would get half of the relevance whatever it does, and
    the step in front divides by it.

    Args:
      relevance: of the product.
      operands: ``a``, ``b``.
      rests: ``a0``, ``b0``: each operand where the value that it is a function of is zero;
        ``None`` for 0.

    Source: Achtibat et al. 2024, the uniform rule; what is open by itself, own.
    """
    if all(rest is None for rest in rests):
        return [to_shape(relevance / 2, v.shape) for v in operands], None
    a, b = (moved(v, rest) for v, rest in zip(operands, rests, strict=True))
    sent = [relevance * (a * (1 - b / 2)), relevance * (b * (1 - a / 2))]
    fixed = relevance * ((1 - a) * (1 - b))
    below = [to_shape(r, v.shape) for r, v in zip(sent, operands, strict=True)]
    return below, no_loss(relevance)._replace(bias=fixed)


def moved(value: jax.Array, rest: Any) -> jax.Array:
    """Returns ``1 - rest / value``, 1 where the value is zero or nothing is known at zero.

    The share of a function ``f(z)`` that ``z`` makes: what is there at ``z = 0`` is a constant.
    """
    if rest is None:
        return jnp.ones((), value.dtype)
    known = jnp.isfinite(rest) & (value != 0)
    return jnp.where(known, 1 - rest / jnp.where(value == 0, 1, value), 1)


def at_zero(ops: tuple[Op, ...], program: Program, env: dict[int, Any]) -> Any:
    """Returns a function's value where its argument is zero; ``None`` if that is known to be 0.

    Args:
      ops: the function, of one value and of numbers.
      program: where it stands.
      env: the values of the forward pass.
    """
    made = {v for op in ops for v in op.outs}
    known: dict[int, Any] = {}

    def scalar(value: int) -> Any:
        if value in program.data and value not in made:
            return jnp.zeros((), env[value].dtype)
        return known[value] if value in made else jnp.reshape(env[value], -1)[0]

    # what varies over a mesh is not known now, and a number is made to vary by the program alone
    read = [env[v] for op in ops for v in op.ins if v not in made and v not in program.data]
    now = contextlib.nullcontext if any(map(varying_axes, read)) else jax.ensure_compile_time_eval
    with now():
        for op in ops:
            ins = [scalar(v) for v in op.ins]
            layout = op.row.role == "layout"
            outs = ins * len(op.outs) if layout else bind_wide(op, _varying_alike(ins))
            known.update(zip(op.outs, outs, strict=True))
    found = known[ops[-1].outs[0]] if ops else None
    if found is None or isinstance(found, jax.core.Tracer):
        return found
    return found if float(found) and np.isfinite(float(found)) else None


def _varying_alike(values: list[Any]) -> list[Any]:
    """Returns numbers that vary over the same axes of a mesh, as an operation asks for."""
    every = frozenset().union(*map(varying_axes, values))
    return [
        jax.lax.pcast(v, tuple(every - varying_axes(v)), to="varying")
        if every - varying_axes(v)
        else v
        for v in values
    ]


def matmul(
    op: Op, relevance: jax.Array, z: jax.Array, operands: list[Any], eps: float
) -> tuple[list[jax.Array], Loss]:
    """Sends relevance of a product of two data matrices half to each, by the epsilon rule.

    ``Z = A B``, ``S = R / stab(Z)``; ``R_A = A * (S B') / 2``, ``R_B = B * (A' S) / 2``.

    Source: Achtibat et al. 2024, Prop. 3.3.
    """
    s, loss = share(relevance, z, None, eps, drop=True)
    halves = [
        v * jax.linear_transpose(_in_operand(op, operands, place), v)(s)[0] / 2
        for place, v in enumerate(operands)
    ]
    return halves, loss


def _in_operand(op: Op, operands: list[Any], place: int) -> Callable[[Any], Any]:
    def linear(v: Any) -> Any:
        return bind_wide(op, [v if i == place else other for i, other in enumerate(operands)])[0]

    return linear


def softmax(
    relevance: jax.Array, x: jax.Array, p: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, Loss]:
    """Sends relevance of a softmax ``p`` of ``x`` to it: ``R_x = x * (R - p sum R)``.

    The Taylor expansion of the softmax at ``x``; what its constant term holds is absorbed
    (``bias`` in the ledger). Entries that are masked out (``p = R = 0``) get nothing.

    Args:
      relevance, x, p: of one shape.
      axes: what the softmax runs over.

    Source: Achtibat et al. 2024, Prop. 3.1.
    """
    weight = relevance - p * jnp.sum(relevance, axis=axes, keepdims=True)
    nothing = jnp.zeros_like(weight)
    below = jnp.where(weight == 0, nothing, x.astype(weight.dtype) * weight)
    return below, no_loss(relevance)._replace(bias=relevance - below)


def logsumexp(
    relevance: jax.Array, x: jax.Array, z: jax.Array, axes: tuple[int, ...], eps: float
) -> tuple[jax.Array, Loss]:
    """Sends relevance of ``z = log(sum(exp(x)))`` to ``x``: ``R_x = p x R / stab(z)``.

    ``p`` is the softmax of ``x``: the first-order expansion of ``z`` at ``x``, whose constant
    term, the entropy of ``p``, is absorbed.

    Args:
      relevance, z: of the shape of ``x`` without the axes, or with axes of size 1.
      x: the value.
      axes: what the sum runs over.
      eps: the stabiliser.

    Source: own, after the softmax of Achtibat et al. 2024, Prop. 3.1.
    """
    p = jax.nn.softmax(x, axis=axes)
    contributions = jnp.where(p == 0, 0, p * x)  # what is masked out may be infinite
    linear = jnp.sum(contributions, axis=axes).reshape(z.shape)
    s, loss = share(relevance, linear, z - linear, eps, drop=True)
    return contributions * jnp.expand_dims(s.reshape(_without(x.shape, axes)), axes), loss


def _without(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for d, size in enumerate(shape) if d not in axes)


def passed(relevance: jax.Array, like: Any) -> jax.Array:
    """Passes relevance as it is, summed where one element of the input fed several."""
    relevance = to_shape(relevance, like.shape)
    if jnp.issubdtype(like.dtype, jnp.floating):
        relevance = relevance.astype(like.dtype)
    return relevance


def to_shape(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Sums relevance over what an operand of this shape was broadcast along."""
    values = jnp.sum(values, axis=tuple(range(values.ndim - len(shape))))
    axes = tuple(d for d, size in enumerate(shape) if size != values.shape[d])
    return jnp.sum(values, axis=axes, keepdims=True)


def bounded(value: Any) -> Any:
    """Returns a large number for infinity: what is masked out has no relevance, times infinity."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return value
    value = jnp.asarray(value)
    most = float(jnp.finfo(value.dtype).max) ** 0.5
    return jnp.clip(value, -most, most)


def summed(
    op: Op, relevance: jax.Array, z: jax.Array, operands: list[Any], eps: float
) -> tuple[list[jax.Array], Loss]:
    """Shares out relevance of a sum or difference of data by value: ``R_i = v_i R / stab(z)``.

    Not shared out by halves and not passed to each: relevance would double at every skip.
    What sits on ``z = 0`` is dropped.
    """
    s, loss = share(relevance, z, None, eps, drop=True)
    first, second = operands
    second = -second if op.name == "sub" else second
    return [to_shape(v * s, v.shape) for v in (first, second)], loss


def by_value(
    affine: Affine, relevance: jax.Array, a: jax.Array, eps: float
) -> tuple[list[jax.Array], Loss]:
    """Sends relevance of averages, sums over positions and added constants back by value.

    The epsilon rule of the operation itself; constants absorb their share, as a bias does.
    """
    shift = affine.bias() if affine.step.kind == "affine" else None
    s, loss = share(relevance, affine.linear(), shift, eps, drop=True)
    return [a * affine.transpose(s)], loss


def chosen(
    op: Op, relevance: jax.Array, z: jax.Array, values: list[Any], data: list[int]
) -> tuple[list[jax.Array], Loss]:
    """Sends relevance of an element-wise choice (maxout, ``where``, a bound) to what was chosen.

    A constant that was chosen absorbs it, as a bias does; but a zero beside a single data value
    passes it on, as a relu does.

    Args:
      op: the operation.
      relevance, z: of its result.
      values: all its operands.
      data: positions of the operands that are cases and depend on the data.
    """
    if op.name == "select_n":
        which = values[0].astype(jnp.int32)
        here = {place: which == place - 1 for place in data}
    elif op.name == "clamp":
        here = {place: values[place] == z for place in data}
    else:
        wins = values[0] >= values[1] if op.name == "max" else values[0] <= values[1]
        here = {place: ~wins if place else wins for place in data}
    if len(data) == 1:
        here = {place: mine | (z == 0) for place, mine in here.items()}
    sent = [jnp.where(mine, relevance, 0) for mine in here.values()]
    fixed = relevance - sum(sent)
    below = [to_shape(r, jnp.shape(values[place])) for place, r in zip(data, sent, strict=True)]
    return below, no_loss(relevance)._replace(bias=fixed)


def layout(
    op: Op, program: Program, env: dict[int, Any], relevance: list[jax.Array]
) -> list[jax.Array]:
    """Moves relevance back to where its elements came from.

    Args:
      op: a linear operation that moves, copies or drops elements.
      program: where it stands.
      env: the values of the forward pass.
      relevance: of each output of the operation.

    Returns:
      The relevance of each operand that depends on the data; positions get none.
    """
    data = [i for i in program.data_ins(op) if i in op.values]
    dtype = relevance[0].dtype
    element = env[op.ins[data[0]]].dtype

    def constant(place: int) -> Any:
        # Integer images are moved about as well; relevance is never an integer.
        value = env[op.ins[place]]
        typed = place in op.values and value.dtype == element != dtype
        return value.astype(dtype) if typed else value

    def move(*values: jax.Array) -> list[jax.Array]:
        given = iter(values)
        return bind_wide(
            op, [next(given) if i in data else constant(i) for i in range(len(op.ins))]
        )

    likes = [program.avals[op.ins[i]].update(dtype=dtype) for i in data]
    return list(jax.linear_transpose(move, *likes)(relevance))


def winner(op: Op, a: jax.Array, z: jax.Array, relevance: jax.Array) -> jax.Array:
    """Sends relevance of an extreme to the element that won, of equals to the first.

    Not the gradient of the maximum, which splits ties or leaves their order to the compiler.
    """
    if op.name == "reduce_window_min":
        a, z = -a, -z
    if "window_dimensions" not in op.params:
        a = -a if op.name == "reduce_min" else a
        return _reduced_winner(a, relevance, tuple(op.params["axes"]))
    return _window_winner(op, a, z, relevance)


def _reduced_winner(a: jax.Array, relevance: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    kept = [d for d in range(a.ndim) if d not in axes]
    order = (*kept, *axes)
    flat = jnp.transpose(a, order).reshape(*(a.shape[d] for d in kept), -1)
    hot = jax.nn.one_hot(jnp.argmax(flat, axis=-1), flat.shape[-1], dtype=relevance.dtype)
    routed = (hot * relevance[..., None]).reshape([a.shape[d] for d in order])
    return jnp.transpose(routed, [order.index(d) for d in range(a.ndim)])


def _window_winner(op: Op, a: jax.Array, z: jax.Array, relevance: jax.Array) -> jax.Array:
    p = op.params
    if any(d != 1 for d in p["base_dilation"]):
        raise NotImplementedError(
            f"a max-pool with base_dilation other than 1 is not covered, at {where(op)}"
        )
    lowest = jnp.array(-jnp.inf if jnp.issubdtype(a.dtype, jnp.floating) else 0, a.dtype)
    padded = jax.lax.pad(a, lowest, [(low, high, 0) for low, high in p["padding"]])
    strides, zero = tuple(p["window_strides"]), jnp.zeros((), relevance.dtype)
    taken = jnp.zeros(z.shape, bool)
    routed = jnp.zeros(padded.shape, relevance.dtype)
    # One strided view per position in the window, in window order.
    for offset in itertools.product(*map(range, p["window_dimensions"])):
        start = [o * d for o, d in zip(offset, p["window_dilation"], strict=True)]
        spans = [(n - 1) * s + 1 for n, s in zip(z.shape, strides, strict=True)]
        limit = [b + n for b, n in zip(start, spans, strict=True)]
        wins = (jax.lax.slice(padded, start, limit, strides) == z) & ~taken
        taken = taken | wins
        ends = [size - end for size, end in zip(padded.shape, limit, strict=True)]
        config = [(b, e, s - 1) for b, e, s in zip(start, ends, strides, strict=True)]
        routed = routed + jax.lax.pad(jnp.where(wins, relevance, zero), zero, config)
    inner = [
        slice(low, size - high)
        for (low, high), size in zip(p["padding"], padded.shape, strict=True)
    ]
    return routed[tuple(inner)]
