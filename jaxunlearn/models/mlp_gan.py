"""A dense generator and discriminator, for images as small as the embedded digits."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.errors import ConfigError

__all__ = ["MLPDiscriminator", "MLPGenerator"]

SLOPE = 0.2


def _widths(features: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(features, Sequence) or isinstance(features, str) or not features:
        raise ConfigError(f"expected widths such as (256, 256) as features, got {features!r}")
    if any(not isinstance(width, int) or width < 1 for width in features):
        raise ConfigError(f"expected positive integers as features, got {features!r}")
    return tuple(features)


class MLPGenerator(nnx.Module):
    """Dense layers with leaky ReLU: ``w [B, Z] -> x float32 [B, ...]`` between -1 and 1."""

    def __init__(
        self,
        shape: Sequence[int],
        latent: int,
        *,
        features: Sequence[int],
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Draws the parameters; see :class:`jaxunlearn.models.mlp.MLP`."""
        self.shape = tuple(shape)
        self.depth = len(_widths(features))
        size = latent
        for number, width in enumerate(features, 1):
            setattr(self, f"fc{number}", nnx.Linear(size, width, dtype=dtype, rngs=rngs))
            size = width
        self.image = nnx.Linear(size, math.prod(self.shape), dtype=dtype, rngs=rngs)

    def __call__(self, w: jax.Array) -> jax.Array:
        for number in range(1, self.depth + 1):
            w = nnx.leaky_relu(getattr(self, f"fc{number}")(w), SLOPE)
        return jnp.tanh(self.image(w).astype(jnp.float32)).reshape(-1, *self.shape)


class MLPDiscriminator(nnx.Module):
    """Dense layers with leaky ReLU: ``(x [B, ...], y) -> d float32 [B]``; ``y`` is not read."""

    def __init__(
        self,
        shape: Sequence[int],
        *,
        features: Sequence[int],
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Draws the parameters; see :class:`jaxunlearn.models.mlp.MLP`."""
        self.depth = len(_widths(features))
        size = math.prod(shape)
        for number, width in enumerate(features, 1):
            setattr(self, f"fc{number}", nnx.Linear(size, width, dtype=dtype, rngs=rngs))
            size = width
        # in float32: in half precision logits tie, and ranks with them
        self.head = nnx.Linear(size, 1, rngs=rngs)

    def __call__(self, inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, _ = inputs
        x = x.reshape(x.shape[0], -1)
        for number in range(1, self.depth + 1):
            x = nnx.leaky_relu(getattr(self, f"fc{number}")(x), SLOPE)
        return self.head(x.astype(jnp.float32))[:, 0]
