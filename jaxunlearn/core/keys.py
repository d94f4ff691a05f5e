"""Purposes of random keys: each key of a run is folded with what it is for, in one place.

Nothing carries a key from step to step: a key follows from the seed, the purpose and a number,
so that a run resumed at any step draws what it would have drawn.
"""

import enum

import jax

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
    # of the key of one model's making
    INIT = 16
    BATCHES = 17
    STEPS = 18  # then the number of the step
    PREPARATION = 19
    LINK = 20  # of a chain, then its number
    TURN = 21  # of requests one after another, then its number


def derive(key: Key, *numbers: int | jax.Array) -> Key:
    """Returns the key for a purpose: ``fold_in`` of one number after the other."""
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key
