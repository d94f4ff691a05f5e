"""A multi-layer perceptron."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.errors import ConfigError

__all__ = ["MLP"]


class MLP(nnx.Module):
    """Dense layers with ReLU between them: ``fc1, fc2, ..., head``.

    Inputs ``[B, ...]`` are flattened; logits are ``float32 [B, K]``.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        features: Sequence[int] = (256, 128),
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Draws the parameters.

        Args:
          input_shape: shape of one example.
          num_classes: ``K``.
          features: widths of the hidden layers; may be empty.
          dtype: of the computation (``"bfloat16"``, say); parameters are float32.
          rngs: where the parameters come from.

        Raises:
          ConfigError: for widths that are no positive integers.
        """
        if not isinstance(features, Sequence) or isinstance(features, str):
            raise ConfigError(f"expected widths such as (64, 32) as features, got {features!r}")
        features = tuple(features)
        if any(not isinstance(width, int) or width < 1 for width in features):
            raise ConfigError(f"expected positive integers as features of mlp, got {features!r}")
        self.depth = len(features)
        size = math.prod(input_shape)
        for number, width in enumerate(features, 1):
            setattr(self, f"fc{number}", nnx.Linear(size, width, dtype=dtype, rngs=rngs))
            size = width
        self.head = nnx.Linear(size, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for number in range(1, self.depth + 1):
            x = nnx.relu(getattr(self, f"fc{number}")(x))
        return self.head(x).astype(jnp.float32)
