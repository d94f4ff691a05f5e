"""Purposes of random keys: each key of a run is folded with what it is for, in one place.

Nothing carries a key from step to step: a key follows from the seed, the purpose and a number,
so that a run resumed at any step draws what it would have drawn.
"""

import enum
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxunlearn.core.errors import brief
from jaxunlearn.core.types import Key


class Purpose(enum.IntEnum):
    """Purposes, by the number that is folded in; never renumbered, or results would change."""

    # of the key that follows from a run's seed
    ORIGINAL = 0
    RETRAINED = 1  # then the number of the model
    METHOD = 2  # then a number made of the method's name
    JUDGEMENT = 3
    HELPER = 4  # what is trained besides, then its number
    # of the key of judgement
    SAMPLES = 8  # then 0, or 1 for latents of their own
    INVERSION = 9
    DOWNSTREAM = 10
    RELEARNING = 11
    UNTRAINED = 12
    ATTACK = 13
    # of the key of one model's making
    INIT = 16
    BATCHES = 17
    STEPS = 18  # then the number of the step
    PREPARATION = 19
    LINK = 20  # of a chain, then its number
    TURN = 21  # of requests one after another, then its number


def new_key(seed: int) -> Key:
    """Returns the key of a seed, ``jax.random.key``, in one program instead of two.

    Of a larger seed, or a negative one, the lower 32 bits count, as in JAX.
    """
    return _new_key(np.uint32(seed % 2**32))


_new_key = jax.jit(jax.random.key)


def key_like() -> Any:
    """Returns shape and dtype of a key; it costs no program."""
    return jax.eval_shape(lambda: jax.random.key(0))


def check_key(key: Key, name: str = "key", *, several: bool = False) -> None:
    """Checks a random key before it is used.

    Args:
      several: whether it is one key for each of ``R`` members, ``[R]``; those of the old kind,
        ``uint32 [2]``, serve as one key.

    Raises:
      TypeError: it is no key.
      ValueError: several keys where one is expected, or one for several.
    """
    wanted = "one key a member, jax.random.split(key, R)" if several else "jax.random.key(seed)"
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and not (dtype == "uint32" and key.shape == (2,) and not several):
        got = "one key of the old kind" if dtype == "uint32" else brief(key)
        if dtype == "uint32" and several and key.ndim != 1:
            got = "keys of the old kind; jax.random.key makes new ones"
        raise TypeError(f"{name}: expected {wanted}, got {got}")
    if typed and key.ndim != int(several):
        raise ValueError(f"{name}: expected {wanted}, got {list(key.shape)}")


def derive(key: Key, *numbers: int | jax.Array) -> Key:
    """Returns the key for a purpose: ``fold_in`` of one number after the other."""
    for number in numbers:
        # of the host as what is folded in: else it is converted by a program of its own
        folded = np.uint32(number) if isinstance(number, int) else number
        key = _fold_in(key, folded)
    return key


# outside of programs, one; within one as if it stood there
@partial(jax.jit, inline=True)
def _fold_in(key: Key, number: jax.Array) -> Key:
    return jax.random.fold_in(key, number)
