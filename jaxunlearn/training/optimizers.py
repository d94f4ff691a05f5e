"""From a training configuration to an optax optimizer."""

import optax

from jaxunlearn.config import TrainConfig
from jaxunlearn.errors import ConfigError

__all__ = ["OPTIMIZERS", "make_optimizer"]

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine")


def make_optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of ``steps`` steps.

    ``sgd`` has Nesterov momentum; ``sgd`` and ``adam`` add ``weight_decay`` times the
    parameters to the gradient, ``adamw`` decouples it.

    Raises:
      ConfigError: unknown optimizer or schedule, or a rate that is not positive.
    """
    if config.learning_rate <= 0:
        raise ConfigError(
            f"train.learning_rate: expected a positive number, got {config.learning_rate}"
        )
    if config.schedule not in SCHEDULES:
        raise ConfigError(f"train.schedule: expected one of {SCHEDULES}, got {config.schedule!r}")
    if len(config.betas) != 2 or not all(0 <= beta < 1 for beta in config.betas):
        raise ConfigError(
            f"train.betas: expected two numbers from 0 to below 1, got {config.betas}"
        )
    b1, b2 = config.betas
    rate: optax.ScalarOrSchedule = config.learning_rate
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(config.learning_rate, steps)
    if config.optimizer == "adamw":
        return optax.adamw(rate, b1, b2, weight_decay=config.weight_decay)
    decay = optax.add_decayed_weights(config.weight_decay)
    if config.optimizer == "sgd":
        return optax.chain(decay, optax.sgd(rate, momentum=config.momentum, nesterov=True))
    if config.optimizer == "adam":
        return optax.chain(decay, optax.adam(rate, b1, b2))
    raise ConfigError(f"train.optimizer: expected one of {OPTIMIZERS}, got {config.optimizer!r}")
