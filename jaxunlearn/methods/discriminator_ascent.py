"""Gradient ascent of the discriminator on what is to be forgotten; the generator follows."""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.types import Batches, Gan, Info, Key, Needs, Sets, Unlearner, Variables
from jaxunlearn.methods.gan_retrain import LearningState
from jaxunlearn.training.adversarial import (
    average_in,
    begin_players,
    learn,
    learn_discriminator,
    mean_of,
    players_result,
)


def discriminator_ascent(
    gan: Gan, *, optimizer: optax.GradientTransformation | None = None, ema: float = 0.97
) -> Unlearner:
    """``D <- D + eta grad mean_u sp(-d(x_u))``, then ``G <- G - eta grad mean sp(-d(G z))``.

    The discriminator climbs the loss that made it take the images ``x_u`` for real; the
    generator learns against it as ever. A baseline: nothing keeps the quality, for no step
    sees a retained image, and the loss that is climbed has no top. The sooner it is stopped
    the better.

    On forget images the discriminator runs in inference mode: batch statistics of these
    alone would be those of no data.

    Args:
      gan: see :func:`jaxunlearn.build_gan`. A conditional generator is asked for the labels of
        the forget images.
      optimizer: default Adam with rate 2e-4 and ``b1 = .5``; its sign is not to be turned.
      ema: decay of the generator's moving average at a step; it follows fast, for there are
        few steps.

    Returns:
      A method of as many steps as one asks for, which needs ``forget`` alone. It reports
      ``loss_discriminator`` (that is climbed, before the step), ``loss_generator``, and
      ``score_forget``, the mean ``sigmoid(d)`` of the forget images after the step.

    Raises:
      TypeError: ``gan`` is no :class:`~jaxunlearn.core.types.Gan`.
      ValueError: ``ema`` out of range.

    Source: own; :func:`jaxunlearn.gradient_ascent` carried over to a GAN.
    """
    if not isinstance(gan, Gan):
        raise TypeError(f"gan: expected a Gan, got {type(gan).__name__}; build_gan makes one")
    if not 0 <= ema < 1:
        raise ValueError(f"ema: expected a number from 0 to below 1, got {ema}")
    optimizer = optimizer or optax.adam(2e-4, b1=0.5)

    def init(variables: Variables, sets: Sets, key: Key) -> LearningState:
        del sets
        return LearningState(begin_players(variables, optimizer), key, jnp.zeros((), jnp.int32))

    def step(state: LearningState, batches: Batches) -> tuple[LearningState, Info]:
        batch = batches.forget
        assert batch is not None
        onward, climbing, following = jax.random.split(state.key, 3)

        def fallen(discriminator: Variables, key: Key) -> tuple[jax.Array, Variables]:
            del key
            logits = gan.discriminate(discriminator, batch.x, batch.y)
            return -mean_of(jax.nn.softplus(-logits), batch.weight), discriminator

        players, value, risen = learn_discriminator(optimizer, state.players, fallen, climbing)
        players, metrics, fine = learn(
            gan, optimizer, players, batch, following, r1=0.0, r1_every=1, turn=state.turn,
            discriminator=False,
        )  # fmt: skip
        players = players._replace(ema=average_in(players.ema, players.generator, ema))
        logits = gan.discriminate(players.discriminator, batch.x, batch.y)
        metrics |= {
            "loss_discriminator": -value,
            "score_forget": mean_of(jax.nn.sigmoid(logits), batch.weight),
        }
        finite = jnp.isfinite(value) & risen & fine
        return LearningState(players, onward, state.turn + 1), Info(metrics, finite)

    def result(state: LearningState) -> Variables:
        return players_result(state.players)

    return Unlearner(init, step, result, Needs(forget=True))
