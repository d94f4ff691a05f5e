"""Random changes of the training images, drawn on the device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxunlearn.errors import ConfigError
from jaxunlearn.types import Key

__all__ = ["AUGMENTATIONS", "crop_flip", "make_augment"]

Augment = Callable[[jax.Array, Key], jax.Array]


def crop_flip(x: jax.Array, key: Key, pad: int = 4) -> jax.Array:
    """Each image moved by up to ``pad`` pixels, filled with 0, and mirrored with odds 1/2.

    Args:
      x: ``[B, H, W, C]``, normalised, so that 0 is the mean of the channel.
    """
    flip_key, move_key = jax.random.split(key)
    flip = jax.random.bernoulli(flip_key, 0.5, (x.shape[0], 1, 1, 1))
    x = jnp.where(flip, x[:, :, ::-1], x)
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(move_key, (x.shape[0], 2), 0, 2 * pad + 1)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), x.shape[1:])

    return jax.vmap(cut)(padded, corners)


def _unchanged(x: jax.Array, key: Key) -> jax.Array:
    del key
    return x


AUGMENTATIONS: dict[str, Augment] = {"none": _unchanged, "crop_flip": crop_flip}


def make_augment(name: str) -> Augment:
    """The augmentation of that name; :class:`ConfigError` if there is none."""
    if name not in AUGMENTATIONS:
        raise ConfigError(f"train.augment: expected one of {list(AUGMENTATIONS)}, got {name!r}")
    return AUGMENTATIONS[name]
