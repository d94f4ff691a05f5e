"""Training in one call: the original, and many retrained models in one program."""

import functools
import math
import warnings

import jax.numpy as jnp

from jaxunlearn.config import GanConfig, TrainConfig
from jaxunlearn.core.errors import ConfigError, expect
from jaxunlearn.core.types import Apply, Examples, Gan, Key, Model, Sets, Subset, Unlearner
from jaxunlearn.data.sets import num_examples
from jaxunlearn.engine import unlearn, unlearn_many
from jaxunlearn.engine.driver import OnChunk, Outcome, ResumeFrom
from jaxunlearn.engine.sharding import Sharding
from jaxunlearn.methods.gan_retrain import gan_retrain
from jaxunlearn.methods.retrain import retrain
from jaxunlearn.models import check_model, functionalize
from jaxunlearn.training.optimizers import make_optimizer

DEFAULT = TrainConfig()
DEFAULT_GAN = GanConfig()


def train(
    model: Model | Apply | Gan,
    part: Subset,
    key: Key,
    *,
    config: TrainConfig = DEFAULT,
    gan: GanConfig = DEFAULT_GAN,
    sharding: Sharding | None = None,
    on_chunk: OnChunk | None = None,
    resume: ResumeFrom | None = None,
) -> Outcome:
    """Trains a fresh model on a subset.

    Args:
      model: with an ``init``, see :func:`jaxunlearn.functionalize`; or a GAN.
      part: the training examples, ``whole(examples)`` or ``sets.retain``.
      key: fixes the parameters' start and the order of the examples.
      config: epochs, batch size, optimizer, augmentation.
      gan: what concerns GANs alone.
      sharding, on_chunk, resume: as in :func:`jaxunlearn.unlearn`.

    Returns:
      The outcome; ``outcome.variables`` is the model.
    """
    method, steps = _prepare(model, part, config, gan)
    return unlearn(
        method, None, Sets(retain=part), key, steps=steps, batch_size=config.batch_size,
        sharding=sharding, on_chunk=on_chunk, resume=resume,
    )  # fmt: skip


def train_many(
    model: Model | Apply | Gan,
    part: Subset,
    keys: Key,
    *,
    config: TrainConfig = DEFAULT,
    gan: GanConfig = DEFAULT_GAN,
    at_a_time: int | None = None,
    on_chunk: OnChunk | None = None,
    resume: ResumeFrom | None = None,
) -> Outcome:
    """:func:`train` for many keys ``[R]`` in one program; variables get a leading axis ``R``.

    ``at_a_time``: where memory is short, so many models at a time on accelerators.
    """
    method, steps = _prepare(model, part, config, gan)
    return unlearn_many(
        method, None, Sets(retain=part), keys, steps=steps, batch_size=config.batch_size,
        at_a_time=at_a_time, on_chunk=on_chunk, resume=resume,
    )  # fmt: skip


def _prepare(
    model: Model | Apply | Gan, part: Subset, config: TrainConfig, gan: GanConfig
) -> tuple[Unlearner, int]:
    expect("part", part, Subset, "; whole(examples) makes one")
    expect("config", config, TrainConfig)
    if not 0 < config.epochs < math.inf or config.batch_size < 1:
        raise ConfigError(
            f"config: expected positive epochs and batch_size, got {config.epochs} and "
            f"{config.batch_size}"
        )
    shape = part.examples.x.shape[1:]
    if isinstance(model, Gan):
        check_images(model, part.examples)
    else:
        model = functionalize(model)
        check_model(model, shape, labels=part.examples.y)
    return recipe(model, config, num_examples(part), gan)


def check_images(gan: Gan, examples: Examples) -> None:
    """Whether images are such as a GAN can make.

    Raises:
      ConfigError: they have another shape. Warns where they do not lie between -1 and 1.
    """
    shape = examples.x.shape[1:]
    if gan.shape != tuple(shape):
        raise ConfigError(f"gan: expected images {list(gan.shape)}, got {list(shape)}")
    axes = tuple(range(examples.x.ndim - 1))
    ends = [
        (end(examples.x, axis=axes, keepdims=True).astype(jnp.float32) - examples.mean[None])
        / examples.std[None]
        for end in (jnp.min, jnp.max)
    ]
    low, high = float(jnp.min(ends[0])), float(jnp.max(ends[1]))
    if max(-low, high) > 1 + 1e-3:
        warnings.warn(
            f"part: expected images between -1 and 1, as generated ones lie, got {low:.3g} to "
            f"{high:.3g}; see mean and std of make_sets",
            stacklevel=2,
        )


def recipe(
    model: Model | Gan, config: TrainConfig, examples: int, gan: GanConfig = DEFAULT_GAN
) -> tuple[Unlearner, int]:
    """Training as a method, and its steps: ``config.epochs`` of so many examples."""
    return _recipe(model, config, examples, gan.r1, gan.r1_every, gan.ema)


@functools.lru_cache(maxsize=32)
def _recipe(
    model: Model | Gan, config: TrainConfig, examples: int, r1: float, r1_every: int, ema: float
) -> tuple[Unlearner, int]:
    # one object for equal settings, so that a second call finds the compiled program
    steps = max(1, round(config.epochs * examples / config.batch_size))
    optimizer = make_optimizer(config, steps)
    if isinstance(model, Gan):
        if config.augment != "none":
            raise ConfigError(f"train.augment: expected 'none' for a GAN, got {config.augment!r}")
        method = gan_retrain(model, optimizer=optimizer, r1=r1, r1_every=r1_every, ema=ema)
        return method, steps
    return retrain(model, optimizer=optimizer, augment=config.augment), steps
