"""A classifier that tells what generated images show, and what they look like."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.cut import Cut, cut_at_features
from jaxunlearn.errors import ConfigError
from jaxunlearn.models import check_model
from jaxunlearn.types import Apply, Gan, Model, Variables

__all__ = ["Guide", "check_guide", "look"]


class Guide(NamedTuple):
    """A classifier of the images that a GAN learned from, trained apart from it.

    Attributes:
      model: logits ``[B, K]`` of images normalised as the GAN's.
      variables: arrays; their shapes are enough where nothing is computed yet.
    """

    model: Model
    variables: Variables


@functools.lru_cache(maxsize=16)
def _cut(apply: Apply) -> Cut:
    # one object for one network, so that compiled programs are found again
    return cut_at_features(apply)


def look(apply: Apply, variables: Variables, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a classifier sees: its last features ``float32 [B, F]``, and logits ``[B, K]``."""
    cut = _cut(apply)
    features = cut.upper(variables, x)
    logits = cut.lower(variables, features, x.shape[1:])
    return features.reshape(len(x), -1).astype(jnp.float32), logits


def check_guide(guide: Guide, gan: Gan) -> int:
    """How many classes a guide tells apart.

    Raises:
      ConfigError: it does not read the images that the GAN makes.
    """
    if not isinstance(guide, Guide):
        raise ConfigError(f"guide: expected a Guide, got {type(guide).__name__}")
    try:
        return check_model(guide.model, gan.shape, variables=guide.variables)
    except ConfigError as error:
        raise ConfigError(f"guide: {error}") from error
