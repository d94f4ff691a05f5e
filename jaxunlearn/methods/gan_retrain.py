"""Learning of a GAN: from scratch it makes the original or the retrained, else it fine-tunes."""

import jax.numpy as jnp
import optax

from jaxunlearn.core.types import Batches, Gan, Needs, Unlearner
from jaxunlearn.training.adversarial import Players, Updated, average_in, check_gan, game, learn
from jaxunlearn.training.descent import Context


def gan_retrain(
    gan: Gan,
    *,
    optimizer: optax.GradientTransformation,
    r1: float = 0.0,
    r1_every: int = 16,
    ema: float = 0.999,
) -> Unlearner:
    """Forgets exactly: trains a fresh generator and discriminator on the retain set alone.

    Each step is one update of both by the non-saturating losses; see
    :mod:`jaxunlearn.training.adversarial`. The given variables are not used. With
    ``Sets(retain=sets.train)`` this is ordinary training.

    Args:
      gan: see :func:`jaxunlearn.models.build_gan`.
      optimizer: any optax transformation; each network has a state of its own.
      r1: weight of the R1 penalty.
      r1_every: it is taken every so many steps, so many times as heavy.
      ema: decay of the generator's moving average at a step; it is smaller at the start,
        ``min(ema, (1 + k) / (10 + k))`` at step ``k``.

    Raises:
      TypeError: ``gan`` is no :class:`~jaxunlearn.core.types.Gan`.
      ValueError: an argument out of range.
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
    optimizer = optax.adam(2e-4, b1=0.5) if optimizer is None else optimizer
    return _learning(gan, optimizer, r1, r1_every, ema, fresh=False)


def _learning(
    gan: Gan, optimizer: optax.GradientTransformation, r1: float, r1_every: int, ema: float,
    *, fresh: bool,
) -> Unlearner:  # fmt: skip
    check_gan(gan, r1=r1, r1_every=r1_every, ema=ema)

    def update(players: Players, batches: Batches, context: Context) -> Updated:
        assert batches.retain is not None
        players, metrics, finite = learn(
            gan, optimizer, players, batches.retain, context.key, context.step,
            r1=r1, r1_every=r1_every,
        )  # fmt: skip
        done = context.step.astype(jnp.float32)
        decay = jnp.minimum(ema, (1 + done) / (10 + done)) if fresh else ema
        return average_in(players, decay), metrics, finite

    return game(update, optimizer, Needs(retain=True), fresh=gan if fresh else None)
