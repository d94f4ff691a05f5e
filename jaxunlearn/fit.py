"""Training in one call: the original, and many retrained models in one program."""

import functools
import math

from jaxunlearn.config import TrainConfig
from jaxunlearn.data.sets import num_examples
from jaxunlearn.errors import ConfigError, expect
from jaxunlearn.execute import OnChunk, Outcome, ResumeFrom
from jaxunlearn.models import check_model, functionalize
from jaxunlearn.runner import unlearn, unlearn_many
from jaxunlearn.sharding import Sharding
from jaxunlearn.training.optimizers import make_optimizer
from jaxunlearn.types import Apply, Key, Model, Sets, Subset, Unlearner
from jaxunlearn.unlearners.retrain import retrain

__all__ = ["recipe", "train", "train_many"]

DEFAULT = TrainConfig()


def train(
    model: Model | Apply,
    part: Subset,
    key: Key,
    *,
    config: TrainConfig = DEFAULT,
    sharding: Sharding | None = None,
    on_chunk: OnChunk | None = None,
    resume: ResumeFrom | None = None,
) -> Outcome:
    """Trains a fresh model on a subset.

    Args:
      model: with an ``init``; see :func:`jaxunlearn.functionalize`.
      part: the training examples, ``whole(examples)`` or ``sets.retain``.
      key: fixes the parameters' start and the order of the examples.
      config: epochs, batch size, optimizer, augmentation.
      sharding, on_chunk, resume: as in :func:`jaxunlearn.unlearn`.

    Returns:
      The outcome; ``outcome.variables`` is the model.
    """
    method, steps = _prepare(model, part, config)
    return unlearn(
        method, None, Sets(retain=part), key, steps=steps, batch_size=config.batch_size,
        sharding=sharding, on_chunk=on_chunk, resume=resume,
    )  # fmt: skip


def train_many(
    model: Model | Apply,
    part: Subset,
    keys: Key,
    *,
    config: TrainConfig = DEFAULT,
    at_a_time: int | None = None,
    on_chunk: OnChunk | None = None,
    resume: ResumeFrom | None = None,
) -> Outcome:
    """:func:`train` for many keys ``[R]`` in one program; variables get a leading axis ``R``.

    ``at_a_time``: where memory is short, so many models at a time on accelerators.
    """
    method, steps = _prepare(model, part, config)
    return unlearn_many(
        method, None, Sets(retain=part), keys, steps=steps, batch_size=config.batch_size,
        at_a_time=at_a_time, on_chunk=on_chunk, resume=resume,
    )  # fmt: skip


def _prepare(model: Model | Apply, part: Subset, config: TrainConfig) -> tuple[Unlearner, int]:
    expect("part", part, Subset, "; whole(examples) makes one")
    expect("config", config, TrainConfig)
    model = functionalize(model)
    if not 0 < config.epochs < math.inf or config.batch_size < 1:
        raise ConfigError(
            f"config: expected positive epochs and batch_size, got {config.epochs} and "
            f"{config.batch_size}"
        )
    check_model(model, part.examples.x.shape[1:], labels=part.examples.y)
    return recipe(model, config, num_examples(part))


@functools.lru_cache(maxsize=32)
def recipe(model: Model, config: TrainConfig, examples: int) -> tuple[Unlearner, int]:
    """Training as a method, and its steps: ``config.epochs`` of so many examples."""
    # one object for equal settings, so that a second call finds the compiled program
    steps = max(1, round(config.epochs * examples / config.batch_size))
    optimizer = make_optimizer(config, steps)
    return retrain(model, optimizer=optimizer, augment=config.augment), steps
