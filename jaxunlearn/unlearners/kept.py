"""Examples that a method keeps in a form of its own, and looks up when they are drawn."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.data.sampling import fetch
from jaxunlearn.members import in_chunks
from jaxunlearn.types import Batch, Key, Subset
from jaxunlearn.unlearners.poison_copies import CHUNK
from jaxunlearn.unlearners.shares import capacity_of, keep_share

__all__ = ["Kept", "keep", "look_up", "share_of"]


class Kept(NamedTuple):
    """Examples that are trained on.

    Attributes:
      x: ``[M, ...]``, images or the features of images.
      y: ``int32 [M]``.
      size: ``int32 []``, how many there are; the others repeat them.
    """

    x: jax.Array
    y: jax.Array
    size: jax.Array


def share_of(part: Subset, share: float, key: Key, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Slots of a random share of each class, padded, and how many they are."""
    if share == 1:  # in order: what is kept of an example lies where the example does
        return jnp.arange(len(part.indices), dtype=jnp.int32), part.size
    labels = part.examples.y[part.indices]
    capacity = capacity_of(len(labels), share, num_classes)
    return keep_share(labels, part.size, share, key, capacity, num_classes)


def keep(
    part: Subset, share: float, key: Key, num_classes: int, made: Callable[[jax.Array], jax.Array]
) -> Kept:
    """A share of a subset as it is trained on."""
    slots, size = share_of(part, share, key, num_classes)
    positions = part.indices[slots]
    x = in_chunks(lambda rows: made(fetch(part.examples, positions[rows])), len(slots), CHUNK)
    return Kept(x, part.examples.y[positions], size)


def look_up(kept: Kept | None, batch: Batch | None) -> Batch | None:
    """What is kept in the place of drawn examples; each comes equally often."""
    if kept is None or batch is None:
        return batch
    slots = batch.slot % jnp.maximum(kept.size, 1)
    return batch._replace(x=kept.x[slots], y=kept.y[slots], slot=slots)
