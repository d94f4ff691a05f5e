"""Shares of a set: some of the examples of each class, in a form of a method's own.

A method that does not learn from a set as it is, but from a part of it or from something that
it made of the examples, keeps that in its state and draws from it instead::

    slots, size = share_of(sets.retain, 0.5, key, num_classes)           # in init
    kept = keep(sets.retain, slots, size, made=features, order=order)
    batch = redraw(kept, batches.retain, count)                          # in step

Sizes of subsets may be arrays: what stands behind ``size`` is padding and is never chosen, and
what is chosen does not depend on how much of it there is.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxunlearn.core.errors import expect_shares
from jaxunlearn.core.trees import in_chunks, precise
from jaxunlearn.core.types import Batch, Examples, Inputs, Key, Needs, Subset
from jaxunlearn.data.batches import draw, pick, random_slots
from jaxunlearn.data.examples import fetch, take

CHUNK = 256
"""Examples that go through a network together."""


class Kept(NamedTuple):
    """Share of a set that is drawn in its place; :func:`keep` makes one.

    Attributes:
      part: the examples.
      order: key of the order in which they are drawn; ``None`` where all of the set was kept in
        its order: then the examples that the runner drew are looked up.
    """

    part: Subset
    order: Key | None


def share_of(part: Subset, share: float, key: Key, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Draws the slots of a random share of each class, padded; and counts them.

    All of a set stays in order: what is kept of an example then lies where it does.
    """
    if share == 1:
        return jnp.arange(len(part.indices), dtype=jnp.int32), part.size
    labels = part.examples.y[part.indices]
    capacity = capacity_of(len(labels), share, num_classes)
    return keep_share(labels, part.size, share, key, capacity, num_classes)


def keep(
    part: Subset,
    slots: jax.Array,
    size: jax.Array,
    *,
    made: Callable[[Inputs], Inputs] | None = None,
    order: Key | None = None,
) -> Kept:
    """Copies some examples of a subset to arrays of their own.

    Args:
      slots: ``int32 [C]``, places in it.
      size: how many of them count.
      made: what is kept of inputs, ``[c, ...] -> [c, ...]``; ``None``: these, as stored.
      order: see :class:`Kept`.
    """
    positions = part.indices[slots]
    y = part.examples.y[positions]
    if made is None:
        x = take(part.examples.x, positions)
        examples = part.examples._replace(x=x, y=y)
        return Kept(Subset(examples, jnp.arange(len(y), dtype=jnp.int32), size), order)
    x = in_chunks(lambda rows: made(fetch(part.examples, positions[rows])), len(slots), CHUNK)
    return Kept(as_subset(x, y, size), order)


def as_subset(x: Inputs, y: jax.Array, size: jax.Array) -> Subset:
    """Returns the first ``size`` of examples that were read already."""
    examples = Examples(x, y, Partial(precise))
    return Subset(examples, jnp.arange(len(y), dtype=jnp.int32), size)


def redraw(kept: Kept | None, batch: Batch | None, count: jax.Array) -> Batch | None:
    """Makes a step's batch out of what was kept; each example comes equally often.

    Args:
      kept: ``None`` for the batch as it was drawn.
      batch: drawn from the set.
      count: ``int32 []``, steps done.
    """
    if kept is None or batch is None:
        return batch
    if kept.order is None:
        return pick(kept.part, batch.slot, batch.weight, labels=True)
    return draw(kept.part, kept.order, count, len(batch.y), Needs())


def sample_of(part: Subset, count: int, key: Key) -> Subset:
    """Draws examples of a set at random, ``count`` or all; which ones depends on its size alone."""
    slots = random_slots(part, key, min(count, len(part.indices)))
    return part._replace(indices=part.indices[slots], size=jnp.minimum(part.size, count))


def forget_fraction(forget: Subset, retain: Subset) -> jax.Array:
    """Computes ``n_f / (n_f + n_r)``, the forget set's share of both sets; ``[]``."""
    return forget.size.astype(float) / (forget.size + retain.size).astype(float)


def capacity_of(total: int, share: float, num_classes: int) -> int:
    """Returns ``min(M, ceil(share * M) + K)``, at least what is kept of ``M`` labels.

    Raises:
      ValueError: a share that is not in (0, 1].
    """
    expect_shares(share=share)
    return min(total, int(_quota(total, share)[-1]) + num_classes)


def keep_share(
    labels: jax.Array, size: jax.Array, share: float, key: Key, capacity: int, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Draws ``ceil(share * count_k)`` of the examples of each class ``k`` at random.

    What is chosen does not depend on how much padding there is.

    Args:
      labels: ``int [M]`` of ``0 .. K - 1``.
      size: ``int32 []``, how many of them count; the rest is padding.
      share: static, in (0, 1]; 1 keeps all.
      key: of choice and order.
      capacity: static, at least :func:`capacity_of`.
      num_classes: ``K``.

    Returns:
      ``int32 [capacity]``, positions among the labels in random order, those behind the
      second result repeating earlier ones (all 0 where ``size`` is 0); ``int32 []``,
      how many are kept.

    Raises:
      ValueError: a share out of range, a capacity that may not suffice.
    """
    total = len(labels)
    if capacity < (needed := capacity_of(total, share, num_classes)):
        raise ValueError(f"capacity: expected at least {needed}, got {capacity}")
    # two keys: bits of one axis do not change when it grows, those of two do
    choose, arrange = (jax.random.bits(k, (total,), jnp.uint32) for k in jax.random.split(key))
    places = jnp.arange(total, dtype=jnp.int32)
    # padding is a class of its own, of which nothing is kept
    classes = jnp.where(places < size, labels.astype(jnp.int32), num_classes)
    if share >= 1:  # nothing is chosen
        order = jnp.lexsort((arrange, (places >= size).astype(jnp.int32))).astype(jnp.int32)
        return jnp.where(size > 0, order[_cycled(size, capacity)], 0), size.astype(jnp.int32)
    by_class = jnp.lexsort((choose, classes)).astype(jnp.int32)
    counts = jnp.zeros(num_classes + 1, jnp.int32).at[classes].add(1)
    quota = jnp.asarray(_quota(total, share))[counts].at[num_classes].set(0)
    own = classes[by_class]
    taken = places - (jnp.cumsum(counts) - counts)[own] < quota[own]
    dropped = jnp.ones(total, jnp.int32).at[by_class].set(1 - taken.astype(jnp.int32))
    order = jnp.lexsort((arrange, dropped)).astype(jnp.int32)
    kept = jnp.sum(quota)
    return jnp.where(kept > 0, order[_cycled(kept, capacity)], 0), kept


def _cycled(count: jax.Array, capacity: int) -> jax.Array:
    """Returns ``0 .. count - 1`` again and again, ``int32 [capacity]``."""
    return jnp.arange(capacity, dtype=jnp.int32) % jnp.maximum(count, 1)


def occurring(parts: Sequence[Subset], num_classes: int) -> jax.Array:
    """Tells which of ``K`` labels occur in some sets; ``bool [K]``."""
    found = jnp.zeros(num_classes, bool)
    for part in parts:
        counted = jnp.arange(len(part.indices), dtype=jnp.int32) < part.size
        found = found.at[part.examples.y[part.indices]].max(counted)
    return found


def donor_positions(labels: jax.Array, size: jax.Array, wanted: jax.Array, key: Key) -> jax.Array:
    """Draws a random example of each wanted class, with replacement.

    Args:
      labels: ``int [M]``.
      size: ``int32 []``, how many of them count; the rest is padding.
      wanted: ``int [B]``, classes.
      key: of the choice.

    Returns:
      ``int32 [B]``: positions among the first ``size`` labels, uniform over those of the
      class; ``-1`` for a class without examples.
    """
    places = jnp.arange(len(labels), dtype=jnp.int32)
    classes = jnp.where(places < size, labels.astype(jnp.int32), jnp.iinfo(jnp.int32).max)
    by_class = jnp.argsort(classes).astype(jnp.int32)
    ordered, wanted = classes[by_class], wanted.astype(jnp.int32)
    first = jnp.searchsorted(ordered, wanted, side="left").astype(jnp.int32)
    # a wanted class equal to what stands for padding finds nothing either
    last = jnp.minimum(jnp.searchsorted(ordered, wanted, side="right").astype(jnp.int32), size)
    count = last - first
    chosen = first + jax.random.randint(key, wanted.shape, 0, jnp.maximum(count, 1), jnp.int32)
    return jnp.where(count > 0, by_class[jnp.minimum(chosen, len(labels) - 1)], -1)


def _quota(total: int, share: float) -> np.ndarray:
    """Returns ``ceil(share * count)`` for every count, ``int32 [M + 1]``; a tenth of 30 is 3."""
    exact = share * np.arange(total + 1)
    # a product of floats may lie just above the whole number that is meant
    return np.ceil(exact * (1 - 1e-12)).astype(np.int32)
