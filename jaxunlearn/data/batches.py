"""Batches drawn on the device from (key, step) alone, and the readers of their inputs.

The order of an epoch is a keyed permutation that is *computed*, not stored: the
swap-or-not shuffle of Hoang, Morris and Rogaway (CRYPTO 2012, section 3). So a
step needs no carried order, a killed run continues at any step, the size of a
subset may be an array (subsets of different sizes share one program), and each
epoch still visits every example exactly once.

A reader turns the stored examples of a batch into what the network takes: ``reader(x)``, from
one pytree of arrays with the leading axis ``B`` to another. It is a
:class:`jax.tree_util.Partial`, so that equal functions with other arrays share one program:
``Partial(normalise, mean=mean, std=std)``.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxunlearn.core.errors import DataError
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.core.types import Batch, Batches, Examples, Inputs, Key, Needs, Sets, Subset

# Each round lets every position swap with one partner; 6 log2(N) / 4 rounds already
# leave no bias that a test of N = 10^5 positions can see, 24 cover 2^16 and more.
ROUNDS = 24


def _mix(word: jax.Array) -> jax.Array:
    """The 32-bit finaliser of MurmurHash3 (Appleby): every input bit moves every output bit."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def shuffled(seed: jax.Array, epoch: jax.Array, position: jax.Array, size: jax.Array) -> jax.Array:
    """Where a position of an epoch's random order points to.

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
    salt = _mix(epoch.astype(jnp.uint32) ^ seed[0]) ^ seed[1]

    def swap_or_not(turn: jax.Array, x: jax.Array) -> jax.Array:
        word = _mix(salt + turn.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
        partner = (word % count + count - x) % count
        coin = _mix(jnp.maximum(x, partner) ^ word) & 1
        return jnp.where(coin == 1, partner, x)

    return jax.lax.fori_loop(0, ROUNDS, swap_or_not, x).astype(jnp.int32)


def random_slots(part: Subset, key: Key, count: int) -> jax.Array:
    """``int32 [count]``: places in a subset, none twice as long as there are enough.

    They depend on its size alone, not on its capacity.
    """
    seed = jax.random.bits(key, (2,), jnp.uint32)
    ranks, size = jnp.arange(count, dtype=jnp.int32), jnp.maximum(part.size, 1)
    return shuffled(seed, ranks // size, ranks % size, size)


def unchanged(x: Inputs) -> Inputs:
    """Returns the inputs as stored, floats as float32: a reader."""

    def one(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, x)


def scale_bytes(x: Inputs, largest: jax.Array) -> Inputs:
    """Divides leaves of uint8 by ``largest``, all else :func:`unchanged`: the default reader."""

    def one(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.float32) / largest if leaf.dtype == jnp.uint8 else unchanged(leaf)

    return jax.tree.map(one, x)


def normalise(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Returns ``(x - mean) / std`` in float32: a reader.

    Args:
      x: ``[B, ...]``, integers or floats.
      mean, std: of the rank of one example, and broadcast against it.
    """
    return (x.astype(jnp.float32) - mean[None]) / std[None]


def inputs_like(part: Subset | Examples, batch: int = 1) -> Any:
    """Returns shapes and dtypes of what the network gets, as ``jax.ShapeDtypeStruct``.

    Args:
      part: arrays, or their shapes and dtypes.
      batch: ``B``, the leading axis.

    Raises:
      DataError: the reader does not return arrays with the leading axis ``B``.
    """
    examples = part.examples if isinstance(part, Subset) else part
    stored = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype), examples.x
    )
    found = jax.eval_shape(lambda reader, x: reader(x), examples.reader, stored)
    shapes = {name: leaf.shape for name, leaf in named_leaves(found).items()}
    if not shapes or any(shape[:1] != (batch,) for shape in shapes.values()):
        raise DataError(
            f"reader: expected inputs with the leading axis of the batch, {batch}, got {shapes}"
        )
    return found


def array_shape(part: Subset | Examples, name: str = "sets") -> tuple[int, ...]:
    """Returns the shape of one input, ``(H, W, C)``, where the network takes one array.

    Args:
      name: what errors call the examples.

    Raises:
      DataError: it takes a tree of several.
    """
    like = inputs_like(part)
    if not isinstance(like, jax.ShapeDtypeStruct):
        raise DataError(
            f"{name}: expected inputs that are one array, got {', '.join(named_leaves(like))}"
        )
    return tuple(like.shape[1:])


def fetch(examples: Examples, positions: jax.Array) -> Inputs:
    """Returns some examples as the network takes them, ``reader(x[positions])``."""
    return examples.reader(jax.tree.map(lambda leaf: leaf[positions], examples.x))


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
    """The ``step``-th batch of the subset as it lies, padded with weight 0."""
    slots = step * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    inside = slots < subset.size
    return pick(subset, jnp.where(inside, slots, 0), inside, labels=True)


def draw(subset: Subset, key: Key, step: jax.Array, batch_size: int, needs: Needs) -> Batch:
    """The ``step``-th batch of the subset in random order.

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
    """One batch of each set that is present; each set has an order of its own."""
    batches = {}
    for number, name in enumerate(Batches._fields):
        subset = getattr(sets, name)
        if subset is not None:
            order = jax.random.fold_in(key, number)
            batches[name] = draw(subset, order, step, batch_size, needs)
    return Batches(**batches)
