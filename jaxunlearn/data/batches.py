"""Batches drawn on the device from (key, step) alone.

The order of an epoch is a keyed permutation that is *computed*, not stored: the
swap-or-not shuffle of Hoang, Morris and Rogaway (CRYPTO 2012, section 3). So a
step needs no carried order, a killed run continues at any step, the size of a
subset may be an array (subsets of different sizes share one program), and each
epoch still visits every example exactly once.
"""

import chex
import jax
import jax.numpy as jnp

from jaxunlearn.core.types import Batch, Batches, Key, Needs, Sets, Subset
from jaxunlearn.data.examples import fetch

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


def pick(subset: Subset, slots: jax.Array, weight: jax.Array, labels: bool) -> Batch:
    """Returns the examples in some places of a subset; labels are ``-1`` if not wanted."""
    positions = subset.indices[slots]
    y = subset.examples.y
    return Batch(
        x=fetch(subset.examples, positions),
        y=y[positions] if labels else jnp.full((*slots.shape, *y.shape[1:]), -1, y.dtype),
        weight=weight.astype(jnp.float32),
        slot=slots,
    )


def in_order(subset: Subset, step: jax.Array, batch_size: int) -> Batch:
    """Returns the ``step``-th batch of the subset as it lies, padded with weight 0."""
    slots = step * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    inside = slots < subset.size
    return pick(subset, jnp.where(inside, slots, 0), inside, labels=True)


def draw(subset: Subset, key: Key, step: jax.Array, batch_size: int, needs: Needs) -> Batch:
    """Draws the ``step``-th batch of the subset in random order.

    Args:
      subset: what to draw from; an empty one gives weight 0.
      key: fixes the order of all epochs.
      step: ``int32 []``.
      batch_size: ``B``.
      needs: ``once`` pads the end with weight 0 and stops at ``samples``;
        otherwise epochs follow each other without a gap. ``labels`` as declared.
    """
    seed = jax.random.bits(key, (2,), jnp.uint32)
    size = jnp.maximum(subset.size, 1)
    ranks = step * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    slots = shuffled(seed, ranks // size, ranks % size, size)
    if needs.once:
        last = subset.size if needs.samples is None else jnp.minimum(subset.size, needs.samples)
        return pick(subset, slots, ranks < last, needs.labels)
    return pick(subset, slots, jnp.broadcast_to(subset.size > 0, ranks.shape), needs.labels)


def draw_batches(sets: Sets, key: Key, step: jax.Array, batch_size: int, needs: Needs) -> Batches:
    """Draws one batch of each set that is present; each set has an order of its own."""
    batches = {}
    for number, name in enumerate(Batches._fields):
        subset = getattr(sets, name)
        if subset is not None:
            order = jax.random.fold_in(key, number)
            batches[name] = draw(subset, order, step, batch_size, needs)
    return Batches(**batches)
