"""Integrals over a path, a few nodes at a time.

The nodes of an example lie side by side, ``[B, c, ...]`` and ``[B * c, ...]``: merged in
this order, an array sharded over the examples stays so without communication.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxunlearn.attribution.canonical import canonical
from jaxunlearn.attribution.quadrature import Quadrature

__all__ = ["Nodes", "between", "integrate", "nodes_of", "per_example", "repeat", "stretch"]


class Nodes(NamedTuple):
    """What is known of each node, ``[n]`` each.

    Attributes:
      at: where on the path.
      weight: of the quadrature.
      span: the distance from the node before; 0 at the first.
      next: the node after, for finite differences.
    """

    at: Any
    weight: Any
    span: Any
    next: Any


class _Sums(NamedTuple):
    """Carried from chunk to chunk; ``last`` and what follows only for completion."""

    total: jax.Array
    last: jax.Array
    shift: jax.Array
    scale: jax.Array
    steepest: jax.Array


def nodes_of(quadrature: Quadrature, dtype: Any, *, differences: bool = False) -> Nodes:
    """The nodes of a quadrature, or the n - 1 intervals between them."""
    at, weight = quadrature
    following = np.append(at[1:], 1.0)
    span = np.append(0.0, np.diff(at))
    parts = (
        (at, np.ones_like(at), span, following) if differences else (at, weight, span, following)
    )
    stop = len(at) - 1 if differences else len(at)
    return Nodes(*(jnp.asarray(part[:stop], dtype) for part in parts))


def integrate(
    contributions: Callable[[Nodes], jax.Array],
    nodes: Nodes,
    difference: jax.Array,
    shape: tuple[int, ...],
    *,
    chunk: int,
    complete: bool,
) -> tuple[jax.Array, jax.Array]:
    """The weighted sum of what the nodes contribute, and what it lacks.

    Args:
      contributions: from c nodes to ``[B, c, ...]``.
      nodes: all of them.
      difference: ``[B]``, what the sum should be, and its dtype.
      shape: ``[B, ...]``, of the sum.
      chunk: nodes at a time; the rest of the division is taken by itself.
      complete: moves the borders between the nodes, see :func:`_completed`.

    Returns:
      The sum ``[B, ...]``, and ``[B]``, its own sum (before completion) minus
      ``difference``.
    """
    # zeros that vary over the mesh axes of shard_map as the contributions do
    blank = jnp.broadcast_to(stretch(jnp.zeros_like(difference), len(shape)), shape)
    none = jnp.zeros_like(difference)
    sums = _Sums(blank, blank, blank, none, none) if complete else blank

    at_nodes = canonical(contributions)

    def add(sums: Any, part: Nodes) -> tuple[Any, None]:
        found = at_nodes(part)
        if complete:
            return _tracked(sums, found, part), None
        return sums + _weighted(part.weight, found), None

    count = len(nodes.at)
    chunk = min(chunk, count)
    whole = count - count % chunk
    parts = jax.tree.map(lambda v: v[:whole].reshape(-1, chunk), nodes)
    sums, _ = lax.scan(add, sums, parts)
    if whole < count:
        sums, _ = add(sums, jax.tree.map(lambda v: v[whole:], nodes))
    total = sums.total if isinstance(sums, _Sums) else sums
    gap = per_example(total) - difference
    return (_completed(sums, gap) if isinstance(sums, _Sums) else total), gap


def _tracked(sums: _Sums, found: jax.Array, part: Nodes) -> _Sums:
    """Adds the nodes, and the jumps of the contributions from each to the next."""
    joined = jnp.concatenate([sums.last[:, None], found], axis=1)
    jump = joined[:, :-1] - joined[:, 1:]
    fall = per_example(jump, keep=2)
    span = part.span[None]
    return _Sums(
        total=sums.total + _weighted(part.weight, found),
        last=found[:, -1],
        shift=sums.shift + jnp.sum(stretch(span**2 * fall, jump.ndim) * jump, axis=1),
        scale=sums.scale + jnp.sum(span**2 * fall**2, axis=1),
        steepest=jnp.maximum(sums.steepest, jnp.max(span * jnp.abs(fall), axis=1)),
    )


def _completed(sums: _Sums, gap: jax.Array) -> jax.Array:
    """The sum with the gap taken out by the least movement of borders between nodes.

    A quadrature sums step by step: node k stands for an interval around it. Moving the
    border behind it by ``m_k`` changes the sum by ``m_k (s_k - s_{k+1})``, for
    contributions ``s``. Of all movements that close the gap, the one of the least
    ``sum((m_k / h_k)^2)`` is ``m_k ~ h_k^2 (d_k - d_{k+1})``, with distances ``h`` and
    slopes ``d_k = sum(s_k)``. The weights keep their sum, so that a linear function
    is not changed. No border moves by more than ``h_k``; what then remains of the gap is
    left. With half of that no two borders could cross and no weight become negative, but the
    gap of one input in fifty (measured, relu networks, 32 nodes) would stay above a thousandth;
    the parts are as exact either way.
    """
    known = sums.scale > 0
    amount = -gap / jnp.where(known, sums.scale, 1)
    most = 1 / jnp.where(known, sums.steepest, 1)
    amount = jnp.where(known, jnp.clip(amount, -most, most), 0)
    return sums.total + stretch(amount, sums.shift.ndim) * sums.shift


def _weighted(weight: jax.Array, found: jax.Array) -> jax.Array:
    return jnp.sum(stretch(weight[None], found.ndim) * found, axis=1)


def between(start: jax.Array, change: jax.Array, at: jax.Array, dtype: Any) -> jax.Array:
    """``[B * c, ...]``: the points ``start + at * change``, c to an example."""
    points = (
        start.astype(change.dtype)[:, None] + stretch(at[None], change.ndim + 1) * change[:, None]
    )
    return points.reshape(-1, *change.shape[1:]).astype(dtype)


def repeat(x: jax.Array, count: int) -> jax.Array:
    """``[B * count, ...]``: each example ``count`` times in a row."""
    if count == 1:
        return x
    return jnp.broadcast_to(x[:, None], (x.shape[0], count, *x.shape[1:])).reshape(-1, *x.shape[1:])


def stretch(values: jax.Array, ndim: int) -> jax.Array:
    """Trailing axes of length 1, up to a rank."""
    return values.reshape(*values.shape, *(1,) * (ndim - values.ndim))


def per_example(values: jax.Array, keep: int = 1) -> jax.Array:
    """The sum over all but the first ``keep`` axes."""
    return jnp.sum(values, axis=tuple(range(keep, values.ndim)))
