"""Gradient ascent of the discriminator on what is to be forgotten; the generator follows."""

import jax
import optax

from jaxunlearn.core.types import Batches, Gan, Needs, Unlearner, Variables
from jaxunlearn.training import adversarial
from jaxunlearn.training.adversarial import Players, Updated
from jaxunlearn.training.descent import Context


def discriminator_ascent(
    gan: Gan, *, optimizer: optax.GradientTransformation | None = None, ema: float = 0.97
) -> Unlearner:
    """Does ``D <- D + eta grad mean_u sp(-d(x_u))``, then ``G <- G - eta grad mean sp(-d(G z))``.

    The discriminator climbs the loss that made it take the images ``x_u`` for real; the
    generator learns against it as ever. A baseline: nothing keeps the quality, for no step
    sees a retained image, and the loss that is climbed has no top. The sooner it is stopped
    the better.

    On forget images the discriminator runs in inference mode: batch statistics of these
    alone would be those of no data.

    Args:
      gan: see :func:`jaxunlearn.models.build_gan`. A conditional generator is asked for the
        labels of the forget images.
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
    adversarial.check_gan(gan, ema=ema)
    optimizer = optax.adam(2e-4, b1=0.5) if optimizer is None else optimizer

    def update(players: Players, batches: Batches, context: Context) -> Updated:
        batch = batches.forget
        assert batch is not None

        def fallen(discriminator: Variables) -> tuple[jax.Array, Variables]:
            logits = gan.discriminate(discriminator, batch.x, batch.y)
            return -adversarial.mean_of(jax.nn.softplus(-logits), batch.weight), discriminator

        players, value, risen = adversarial.learn_discriminator(optimizer, players, fallen)
        players, metrics, followed = adversarial.learn(
            gan, optimizer, players, batch, context.key, context.step, discriminator=False
        )
        logits = gan.discriminate(players.discriminator, batch.x, batch.y)
        metrics |= {
            "loss_discriminator": -value,
            "score_forget": adversarial.mean_of(jax.nn.sigmoid(logits), batch.weight),
        }
        return adversarial.average_in(players, ema), metrics, risen & followed

    return adversarial.game(update, optimizer, Needs(forget=True))
