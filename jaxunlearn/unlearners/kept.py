"""A share of a set, in a form of a method's own, drawn in the place of the set."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxunlearn.data.sampling import draw, fetch, pick
from jaxunlearn.members import in_chunks
from jaxunlearn.types import Batch, Examples, Key, Needs, Subset
from jaxunlearn.unlearners.shares import capacity_of, keep_share

__all__ = ["as_subset", "keep", "look_up", "share_of"]


def share_of(part: Subset, share: float, key: Key, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Slots of a random share of each class, padded, and how many they are.

    All of a set stays in order: what is kept of an example then lies where it does.
    """
    if share == 1:
        return jnp.arange(len(part.indices), dtype=jnp.int32), part.size
    labels = part.examples.y[part.indices]
    capacity = capacity_of(len(labels), share, num_classes)
    return keep_share(labels, part.size, share, key, capacity, num_classes)


def as_subset(x: jax.Array, y: jax.Array, size: jax.Array) -> Subset:
    """The first ``size`` of examples that are normalised already."""
    unit = (1,) * (x.ndim - 1)
    examples = Examples(x, y, jnp.zeros(unit), jnp.ones(unit))
    return Subset(examples, jnp.arange(len(y), dtype=jnp.int32), size)


def keep(
    part: Subset,
    slots: jax.Array,
    size: jax.Array,
    made: Callable[[jax.Array], jax.Array] | None,
    chunk: int,
) -> Subset:
    """Some examples of a subset on arrays of their own.

    Args:
      part: whence.
      slots: ``int32 [C]``, places in it.
      size: how many of them count.
      made: what is kept of images, ``[c, ...] -> [c, ...]``; ``None``: these, as stored.
      chunk: images taken together.
    """
    positions = part.indices[slots]
    y = part.examples.y[positions]
    if made is None:
        examples = part.examples._replace(x=part.examples.x[positions], y=y)
        return Subset(examples, jnp.arange(len(y), dtype=jnp.int32), size)
    x = in_chunks(lambda rows: made(fetch(part.examples, positions[rows])), len(slots), chunk)
    return as_subset(x, y, size)


def look_up(
    kept: Subset | None, batch: Batch | None, whole: bool, key: Key, turn: jax.Array
) -> Batch | None:
    """The batch of a step out of what is kept; each example comes equally often.

    Args:
      kept: ``None``: the batch as it was drawn.
      batch: drawn from the set.
      whole: whether all of the set is kept: then what is kept of the drawn examples.
      key: of the order otherwise.
      turn: ``int32 []``, the number of the step.
    """
    if kept is None or batch is None:
        return batch
    if whole:
        return pick(kept, batch.slot, batch.weight, labels=True)
    return draw(kept, key, turn, len(batch.y), Needs())
