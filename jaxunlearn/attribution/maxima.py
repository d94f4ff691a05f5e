"""Relevance of a maximum: all to the element that won, of equals to the first.

Not the gradient of the maximum, which splits ties or leaves their order to the compiler.
"""

import itertools

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.flatten import Op
from jaxunlearn.attribution.trace import where

__all__ = ["winner"]


def winner(op: Op, a: jax.Array, z: jax.Array, relevance: jax.Array) -> jax.Array:
    """Relevance of what ``reduce_max``, ``reduce_min`` or ``reduce_window_max`` reads."""
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
