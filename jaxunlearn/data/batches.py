"""Batches drawn on the device from (key, step) alone.

The order of an epoch is a keyed permutation that is *computed*, not stored: the
swap-or-not shuffle of Hoang, Morris and Rogaway (CRYPTO 2012, section 3). So a
step needs no carried order, a killed run continues at any step, the size of a
subset may be an array (subsets of different sizes share one program), and each
epoch still visits every example exactly once.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.core.types import Batch, Batches, Inputs, Key, Needs, Sets, Subset
from jaxunlearn.data.examples import fetch, stored_like
from jaxunlearn.data.streams import Stream

# Each round lets every position swap with one partner; 6 log2(N) / 4 rounds already
# leave no bias that a test of N = 10^5 positions can see, 24 cover 2^16 and more.
ROUNDS = 24


def mix_bits(word: jax.Array) -> jax.Array:
    """Mixes bits as the 32-bit finaliser of MurmurHash3 (Appleby) does: each moves all others."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def shuffled(seed: jax.Array, epoch: jax.Array, position: jax.Array, size: jax.Array) -> jax.Array:
    """Looks up positions of an epoch's random order.

    Args:
      seed: ``uint32 [2]``.
      epoch: ``int32 [B]``; each epoch has an order of its own.
      position: ``int32 [B]``, from 0 to ``size - 1``.
      size: ``int32 []``, at least 1.

    Returns:
      ``int32 [B]``; for a fixed seed and epoch a permutation of ``0 .. size - 1``.
    """
    chex.assert_shape(seed, (2,))
    chex.assert_equal_shape([epoch, position])
    count = size.astype(jnp.uint32)
    x = position.astype(jnp.uint32)
    salt = mix_bits(epoch.astype(jnp.uint32) ^ seed[0]) ^ seed[1]

    def swap_or_not(turn: jax.Array, x: jax.Array) -> jax.Array:
        word = mix_bits(salt + turn.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
        partner = (word % count + count - x) % count
        coin = mix_bits(jnp.maximum(x, partner) ^ word) & 1
        return jnp.where(coin == 1, partner, x)

    return jax.lax.fori_loop(0, ROUNDS, swap_or_not, x).astype(jnp.int32)


def random_slots(part: Subset, key: Key, count: int) -> jax.Array:
    """Draws places in a subset, ``int32 [count]``, none twice as long as there are enough.

    They depend on its size alone, not on its capacity.
    """
    seed = jax.random.bits(key, (2,), jnp.uint32)
    ranks, size = jnp.arange(count, dtype=jnp.int32), jnp.maximum(part.size, 1)
    return shuffled(seed, ranks // size, ranks % size, size)


def pick(
    subset: Subset, slots: jax.Array, weight: jax.Array, labels: bool, rows: Inputs = None
) -> Batch:
    """Returns the examples in some places of a subset; labels are ``-1`` if not wanted.

    Args:
      rows: the stored examples in these places, where they are read elsewhere.
    """
    positions = subset.indices[slots]
    y = subset.examples.y
    return Batch(
        x=fetch(subset.examples, positions) if rows is None else subset.examples.reader(rows),
        y=y[positions] if labels else jnp.full((*slots.shape, *y.shape[1:]), -1, y.dtype),
        weight=weight.astype(jnp.float32),
        slot=slots,
    )


def in_order(subset: Subset, step: jax.Array, batch_size: int) -> Batch:
    """Returns the ``step``-th batch of the subset as it lies, padded with weight 0."""
    slots = step * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    inside = slots < subset.size
    return pick(subset, jnp.where(inside, slots, 0), inside, labels=True)


def ranks_and_slots(
    size: jax.Array, key: Key, step: jax.Array, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the ranks of a step's examples over all epochs, and their places in the subset."""
    seed = jax.random.bits(key, (2,), jnp.uint32)
    size = jnp.maximum(size, 1)
    ranks = step * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    return ranks, shuffled(seed, ranks // size, ranks % size, size)


def draw(
    subset: Subset, key: Key, step: jax.Array, batch_size: int, needs: Needs, rows: Inputs = None
) -> Batch:
    """Draws the ``step``-th batch of the subset in random order.

    Args:
      subset: what to draw from; an empty one gives weight 0.
      key: fixes the order of all epochs.
      step: ``int32 []``.
      batch_size: ``B``.
      needs: ``once`` pads the end with weight 0 and stops at ``samples``;
        otherwise epochs follow each other without a gap. ``labels`` as declared.
      rows: of a streamed subset the stored examples of this batch, see :func:`drawn_slots`.
    """
    ranks, slots = ranks_and_slots(subset.size, key, step, batch_size)
    if needs.once:
        last = subset.size if needs.samples is None else jnp.minimum(subset.size, needs.samples)
        return pick(subset, slots, ranks < last, needs.labels, rows)
    counts = jnp.broadcast_to(subset.size > 0, ranks.shape)
    return pick(subset, slots, counts, needs.labels, rows)


def order_of(key: Key, name: str) -> Key:
    """Returns the key that fixes the order of one set's examples, of that of all sets."""
    return jax.random.fold_in(key, Batches._fields.index(name))


def draw_batches(
    sets: Sets, key: Key, step: jax.Array, batch_size: int, needs: Needs,
    rows: Mapping[str, Inputs] | None = None,
) -> Batches:  # fmt: skip
    """Draws one batch of each set that is present; each set has an order of its own.

    Args:
      rows: by name of a streamed set, the stored examples of this batch.
    """
    return Batches(**{
        name: draw(subset, order_of(key, name), step, batch_size, needs, (rows or {}).get(name))
        for name in Batches._fields
        if (subset := getattr(sets, name)) is not None
    })  # fmt: skip


@partial(jax.jit, static_argnames=("name", "batch_size", "length"))
def drawn_slots(
    size: jax.Array, key: Key, start: jax.Array, *, name: str, batch_size: int, length: int
) -> jax.Array:
    """Returns the places that some steps of a run draw of one set, ``int32 [length, B]``.

    They are those of :func:`draw_batches`, by the same functions.

    Args:
      size: of the set.
      key: of the run.
      start: the first of the steps.
    """
    order = order_of(derive(key, Purpose.BATCHES), name)
    steps = start + jnp.arange(length, dtype=jnp.int32)
    return jax.vmap(lambda step: ranks_and_slots(size, order, step, batch_size)[1])(steps)


def streamed(sets: Sets) -> dict[str, Subset]:
    """Returns the sets whose examples are streamed, by name."""
    parts = sets._asdict().items()
    return {name: part for name, part in parts if part and isinstance(part.examples.x, Stream)}


def rows_like(sets: Sets, batch_size: int, length: int) -> dict[str, Any] | None:
    """Returns shapes and dtypes of the rows that some steps are given beside streamed sets.

    ``None`` where none is streamed, which the steps are given too: else they are traced twice.
    """
    rows = {
        name: stored_like(part.examples.x, length, batch_size)
        for name, part in streamed(sets).items()
    }
    return rows or None
