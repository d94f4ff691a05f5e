"""How relevance crosses the steps that have no kernel."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.rules import stabilize
from jaxunlearn.attribution.trace import Op, Program, bind

__all__ = ["NORM_EPS", "layout", "passed", "sum_of_data", "winner"]

NORM_EPS = 1e-6
"""Stabiliser of sums and average pools."""


def passed(relevance: jax.Array, like: Any) -> jax.Array:
    """Relevance as it is, summed where one element of the input fed several."""
    relevance = _unbroadcast(relevance, like.shape)
    if jnp.issubdtype(like.dtype, jnp.floating):
        relevance = relevance.astype(like.dtype)
    return relevance


def _unbroadcast(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    values = jnp.sum(values, axis=tuple(range(values.ndim - len(shape))))
    axes = tuple(d for d, size in enumerate(shape) if size != values.shape[d])
    return jnp.sum(values, axis=axes, keepdims=True)


def sum_of_data(relevance: jax.Array, z: jax.Array, operands: list[Any]) -> list[jax.Array]:
    """Relevance of a sum of data, split by value: ``R_i = v_i R / stab(z)``."""
    s = relevance / stabilize(z, NORM_EPS)
    return [_unbroadcast(v * s, v.shape) for v in operands]


def layout(
    op: Op, program: Program, env: dict[int, Any], relevance: list[jax.Array]
) -> list[jax.Array]:
    """Relevance moved back to where its elements came from.

    Args:
      op: a linear operation that moves, copies or drops elements.
      program: where it stands.
      env: the values of the forward pass.
      relevance: of each output of the operation.

    Returns:
      The relevance of each operand that depends on the data.
    """
    data, dtype = program.data_ins(op), relevance[0].dtype
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
    """Relevance of a maximum goes to the element that won, of equals to the first.

    Not the gradient of the maximum, which splits ties or leaves their order to
    the compiler.
    """
    if op.name == "reduce_max":
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
        raise NotImplementedError("a max-pool with base_dilation other than 1 is not covered")
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
