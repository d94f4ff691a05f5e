"""Many latents, and what a classifier takes their images for."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.latents.guide import look
from jaxunlearn.members import in_chunks
from jaxunlearn.types import Apply, Gan, Key, Variables

__all__ = ["Pool", "draw_pool", "images_of", "share_drawn"]

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
    generator: Variables,
    guide: Variables,
    y: jax.Array,
    key: Key,
    *,
    gan: Gan,
    apply: Apply,
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
