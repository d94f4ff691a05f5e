"""A classifier that tells what generated images show, and what they look like.

Many latents, and what a classifier takes their images for.
"""

import functools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.trees import in_chunks
from jaxunlearn.core.types import Apply, Gan, Key, Model, Variables
from jaxunlearn.jaxprs.structure import Cut, cut_at_features
from jaxunlearn.models import check_model


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


CHUNK = 256
"""Images made together."""


class Pool(NamedTuple):
    """Latents and their images, as a classifier sees them.

    Attributes:
      z: ``[P, Z]``.
      y: ``int32 [P]``, the label that a conditional generator was asked for.
      w: ``[P, W]``, styles.
      logits: ``[P, K]``.
      features: ``[P, F]``.
    """

    z: jax.Array
    y: jax.Array
    w: jax.Array
    logits: jax.Array
    features: jax.Array

    @property
    def label(self) -> jax.Array:
        """``int32 [P]``, what the classifier says."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)


def images_of(gan: Gan, generator: Variables, w: jax.Array, chunk: int = CHUNK) -> jax.Array:
    """``[n, ...]``: the images of styles ``[n, W]``, made some at a time."""
    return in_chunks(lambda rows: gan.synthesize(generator, w[rows]), len(w), chunk)


@partial(jax.jit, static_argnames=("gan", "apply"))
def draw_pool(
    generator: Variables, guide: Variables, y: jax.Array, key: Key, *, gan: Gan, apply: Apply
) -> Pool:
    """Draws latents from the prior and looks at their images, some at a time.

    Args:
      generator: of the GAN.
      guide: the classifier's variables.
      y: ``int32 [P]``, labels that a conditional generator is asked for.
      apply: of the classifier.
    """
    count = len(y)
    z = jax.random.normal(key, (count, gan.latent))

    def some(rows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        w = gan.style(generator, z[rows], y[rows])
        features, logits = look(apply, guide, gan.synthesize(generator, w))
        return w, logits, features

    w, logits, features = in_chunks(some, count, CHUNK)
    return Pool(z, y, w, logits, features)


def share_drawn(
    gan: Gan,
    generator: Variables,
    apply: Apply,
    guide: Variables,
    forgotten: jax.Array,
    y: jax.Array,
    key: Key,
) -> jax.Array:
    """Which share of newly drawn images a classifier takes for some classes, ``float32 []``.

    Args:
      apply, guide: the classifier and its variables.
      forgotten: ``bool [K]``, the classes.
      y: ``int [B]``, labels that a conditional generator is asked for: those of the classes.
    """
    z = jax.random.normal(key, (len(y), gan.latent))
    seen = apply(guide, gan.synthesize(generator, gan.style(generator, z, y)))
    return jnp.mean(forgotten[jnp.argmax(seen, axis=-1)].astype(jnp.float32))
