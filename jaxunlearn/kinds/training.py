"""Training in one call: the original, and many retrained models in one program."""

import math
from typing import Any

from jaxunlearn.config import TrainConfig
from jaxunlearn.config.overrides import MOST_INT, check_bounds
from jaxunlearn.core.errors import ConfigError, expect, expect_at_most
from jaxunlearn.core.types import Apply, Gan, Key, LanguageModel, Model, Sets, Subset, Unlearner
from jaxunlearn.data.sets import num_examples
from jaxunlearn.engine import unlearn, unlearn_many
from jaxunlearn.engine.driver import OnChunk, Outcome, ResumeFrom
from jaxunlearn.engine.sharding import Sharding
from jaxunlearn.kinds import kind_of

DEFAULT = TrainConfig()


def train(
    model: Model | Apply | Gan | LanguageModel,
    part: Subset,
    key: Key,
    *,
    config: TrainConfig = DEFAULT,
    settings: Any = None,
    sharding: Sharding | None = None,
    on_chunk: OnChunk | None = None,
    resume: ResumeFrom | None = None,
) -> Outcome:
    """Trains a fresh model on a subset.

    Args:
      model: with an ``init``, see :func:`jaxunlearn.functionalize`; or a GAN, or a language
        model.
      part: the training examples, ``sets.train`` or ``sets.retain``.
      key: fixes the parameters' start and the order of the examples.
      config: epochs, batch size, optimizer, augmentation.
      settings: what concerns this kind of models alone: a ``GanConfig`` for a GAN, a
        ``LanguageConfig`` for a language model, whose ``base`` training starts from.
      sharding, on_chunk, resume: as in :func:`jaxunlearn.unlearn`.

    Returns:
      The outcome; ``outcome.variables`` is the model.
    """
    method, steps = _checked(model, part, config, settings)
    start = kind_of(model).start(model, settings, sharding)
    return unlearn(
        method, start, Sets(retain=part), key, steps=steps, batch_size=config.batch_size,
        sharding=sharding, on_chunk=on_chunk, resume=resume,
    )  # fmt: skip


def train_many(
    model: Model | Apply | Gan | LanguageModel,
    part: Subset,
    keys: Key,
    *,
    config: TrainConfig = DEFAULT,
    settings: Any = None,
    at_a_time: int | None = None,
    sharding: Sharding | None = None,
    on_chunk: OnChunk | None = None,
    resume: ResumeFrom | None = None,
) -> Outcome:
    """Trains for many keys ``[R]`` in one program; variables get a leading axis ``R``.

    Args:
      part: shared, or one for each model, stacked by ``stack_sets`` or drawn by ``random_subsets``.
      at_a_time: where memory is short, so many models at a time on accelerators.
      sharding: a mesh over whose first axis the models are divided, see ``unlearn_many``.

    The other arguments are those of :func:`train`.
    """
    method, steps = _checked(model, part, config, settings)
    start = kind_of(model).start(model, settings, sharding)
    return unlearn_many(
        method, start, Sets(retain=part), keys, steps=steps, batch_size=config.batch_size,
        at_a_time=at_a_time, sharding=sharding, on_chunk=on_chunk, resume=resume,
    )  # fmt: skip


def _checked(model: Any, part: Subset, config: TrainConfig, settings: Any) -> tuple[Unlearner, int]:
    expect("part", part, Subset, "; sets.train is one")
    expect("config", config, TrainConfig)
    if not 0 < config.epochs < math.inf or config.batch_size < 1:
        raise ConfigError(
            f"config: expected positive epochs and batch_size, got {config.epochs} and "
            f"{config.batch_size}"
        )
    check_bounds(config, "config.")
    kind = kind_of(model)
    if settings is not None:
        expect("settings", settings, kind.section or type(None))
        check_bounds(settings, "settings.")
    model = kind.given(model)
    kind.check_examples(model, part.examples)
    method, steps = kind.recipe(model, config, num_examples(part), settings)
    expect_at_most(MOST_INT, steps=steps)
    return method, steps
