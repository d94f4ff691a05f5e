"""Crossings: the way of relevance through a step that is no linear unit.

Sums and products of data, choices, lookups, layout, maxima and softmax. Layer norm needs
nothing here: its normaliser gets no relevance (identity), the subtraction of the mean is a sum
of data. Source of the rules of attention: Achtibat et al. 2024 (AttnLRP).
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.lrp.rule import Loss, no_loss, share
from jaxunlearn.jaxprs.primitives import Op
from jaxunlearn.jaxprs.program import Program, bind, where


def gate(relevance: jax.Array) -> list[jax.Array]:
    """Sends relevance of ``a * b``, element by element, half to each.

    Source: Achtibat et al. 2024, the uniform rule.
    """
    return [relevance / 2, relevance / 2]


def matmul(
    op: Op, relevance: jax.Array, z: jax.Array, operands: list[Any]
) -> tuple[list[jax.Array], Loss]:
    """Sends relevance of a product of two data matrices half to each, by the epsilon rule.

    ``Z = A B``, ``S = R / stab(Z)``; ``R_A = A * (S B') / 2``, ``R_B = B * (A' S) / 2``.

    Source: Achtibat et al. 2024, Prop. 3.3.
    """
    s, loss = share(relevance, z, None, NORM_EPS)
    halves = [
        v * jax.linear_transpose(_in_operand(op, operands, place), v)(s)[0] / 2
        for place, v in enumerate(operands)
    ]
    return halves, loss


def _in_operand(op: Op, operands: list[Any], place: int) -> Callable[[Any], Any]:
    def linear(v: Any) -> Any:
        return bind(op, [v if i == place else other for i, other in enumerate(operands)])[0]

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


NORM_EPS = 1e-6
"""Stabiliser of sums, average pools and products of data."""


def passed(relevance: jax.Array, like: Any) -> jax.Array:
    """Passes relevance as it is, summed where one element of the input fed several."""
    relevance = _unbroadcast(relevance, like.shape)
    if jnp.issubdtype(like.dtype, jnp.floating):
        relevance = relevance.astype(like.dtype)
    return relevance


def _unbroadcast(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    values = jnp.sum(values, axis=tuple(range(values.ndim - len(shape))))
    axes = tuple(d for d, size in enumerate(shape) if size != values.shape[d])
    return jnp.sum(values, axis=axes, keepdims=True)


def summed(
    op: Op, relevance: jax.Array, z: jax.Array, operands: list[Any]
) -> tuple[list[jax.Array], Loss]:
    """Shares out relevance of a sum or difference of data by value: ``R_i = v_i R / stab(z)``.

    Not shared out by halves and not passed to each: relevance would double at every skip.
    """
    s, loss = share(relevance, z, None, NORM_EPS)
    first, second = operands
    second = -second if op.name == "sub" else second
    return [_unbroadcast(v * s, v.shape) for v in (first, second)], loss


def chosen(op: Op, relevance: jax.Array, values: list[Any]) -> list[jax.Array]:
    """Sends relevance of an element-wise choice (maxout, ``where``) to what was chosen."""
    nothing = jnp.zeros_like(relevance)
    if op.name == "select_n":
        which, cases = values[0], values[1:]
        here = [which == place for place in range(len(cases))]
    else:
        first, second = cases = values
        wins = first >= second if op.name == "max" else first <= second
        here = [wins, ~wins]
    return [
        _unbroadcast(jnp.where(mine, relevance, nothing), jnp.shape(case))
        for mine, case in zip(here, cases, strict=True)
    ]


def looked_up(op: Op, relevance: jax.Array, indices: Any) -> jax.Array:
    """Sends relevance of rows read from a table to the positions they were read at."""
    offset = op.params["dimension_numbers"].offset_dims if op.name == "gather" else None
    if offset is None or indices.shape[-1] != 1:
        raise NotImplementedError("relevance of positions in several dimensions is not covered")
    return jnp.sum(relevance, axis=offset).reshape(indices.shape)


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
    data = [0] if op.row.role == "indexed" else program.data_ins(op)
    dtype = relevance[0].dtype
    element = env[op.ins[data[0]]].dtype

    def constant(value: Any) -> Any:
        # Integer images are moved about as well; relevance is never an integer.
        return value.astype(dtype) if value.dtype == element != dtype else value

    def move(*values: jax.Array) -> list[jax.Array]:
        moved = iter(values)
        return bind(
            op, [next(moved) if i in data else constant(env[v]) for i, v in enumerate(op.ins)]
        )

    likes = [program.avals[op.ins[i]].update(dtype=dtype) for i in data]
    return list(jax.linear_transpose(move, *likes)(relevance))


def winner(op: Op, a: jax.Array, z: jax.Array, relevance: jax.Array) -> jax.Array:
    """Sends relevance of an extreme to the element that won, of equals to the first.

    Not the gradient of the maximum, which splits ties or leaves their order to the compiler.
    """
    if op.name != "reduce_window_max":
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
