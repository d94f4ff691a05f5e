"""Learning of a GAN: from scratch it is the original or the oracle, else fine-tuning."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.types import Batches, Gan, Info, Key, Needs, Sets, Unlearner, Variables
from jaxunlearn.training.adversarial import (
    Players,
    average_in,
    begin_players,
    learn,
    players_result,
)


class LearningState(NamedTuple):
    """Networks and optimizers, the key for the next step, and the number of steps done."""

    players: Players
    key: Key
    turn: jax.Array


def gan_retrain(
    gan: Gan,
    *,
    optimizer: optax.GradientTransformation,
    r1: float = 0.0,
    r1_every: int = 16,
    ema: float = 0.999,
) -> Unlearner:
    """Forgets exactly: a fresh generator and discriminator trained on the retain set alone.

    Each step is one update of both by the non-saturating losses; see
    :mod:`jaxunlearn.training.adversarial`. The given variables are not used. With
    ``Sets(retain=whole(examples))`` this is ordinary training.

    Args:
      gan: see :func:`jaxunlearn.build_gan`.
      optimizer: any optax transformation; each network has a state of its own.
      r1: weight of the R1 penalty.
      r1_every: it is taken every so many steps, so many times as heavy.
      ema: decay of the generator's moving average at a step; it is smaller at the start,
        ``min(ema, (1 + k) / (10 + k))`` at step ``k``.
    """
    return _learning(gan, optimizer, r1, r1_every, ema, fresh=True)


def gan_finetune(
    gan: Gan,
    *,
    optimizer: optax.GradientTransformation | None = None,
    r1: float = 0.0,
    r1_every: int = 16,
    ema: float = 0.97,
) -> Unlearner:
    """Goes on learning on the retain set: hopes that what is not repeated is forgotten.

    Arguments as of :func:`gan_retrain`; the optimizer is Adam with rate 2e-4 and ``b1 = .5``
    by default, and the average follows faster, for there are few steps.
    """
    optimizer = optimizer or optax.adam(2e-4, b1=0.5)
    return _learning(gan, optimizer, r1, r1_every, ema, fresh=False)


def _learning(
    gan: Gan,
    optimizer: optax.GradientTransformation,
    r1: float,
    r1_every: int,
    ema: float,
    *,
    fresh: bool,
) -> Unlearner:
    if r1 < 0:
        raise ValueError(f"r1: expected a number of 0 or more, got {r1}")
    if r1_every < 1:
        raise ValueError(f"r1_every: expected 1 or more, got {r1_every}")
    if not 0 <= ema < 1:
        raise ValueError(f"ema: expected a number from 0 to below 1, got {ema}")

    def init(variables: Variables, sets: Sets, key: Key) -> LearningState:
        del sets
        start, onward = jax.random.split(key)
        players = begin_players(gan.init(start) if fresh else variables, optimizer)
        return LearningState(players, onward, jnp.zeros((), jnp.int32))

    def step(state: LearningState, batches: Batches) -> tuple[LearningState, Info]:
        assert batches.retain is not None
        onward, key = jax.random.split(state.key)
        players, metrics, finite = learn(
            gan, optimizer, state.players, batches.retain, key, r1=r1, r1_every=r1_every,
            turn=state.turn,
        )  # fmt: skip
        done = state.turn.astype(jnp.float32)
        decay = jnp.minimum(ema, (1 + done) / (10 + done)) if fresh else ema
        players = players._replace(ema=average_in(players.ema, players.generator, decay))
        return LearningState(players, onward, state.turn + 1), Info(metrics, finite)

    def result(state: LearningState) -> Variables:
        return players_result(state.players)

    return Unlearner(init, step, result, Needs(retain=True))
