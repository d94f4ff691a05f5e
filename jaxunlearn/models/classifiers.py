"""A multi-layer perceptron.

The convolutional network of the neuronal-path paper.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.models.conv import conv, max_pool


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


class PaperCNN(nnx.Module):
    """Two 3x3 convolutions, max-pooling and two dense layers, with ReLU between.

    ``conv1 - relu - conv2 - relu - max-pool 2 - fc1 - relu - head``. The
    convolutions keep the image's size (``SAME``): 28x28 images make the paper's
    14 x 14 x 64 = 12544 inputs of ``fc1``. Inputs ``[B, H, W, C]``, logits
    ``float32 [B, K]``.

    Source: arXiv 2410.23693, the MNIST network.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        channels: Sequence[int] = (32, 64),
        features: int = 512,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Draws the parameters.

        Args:
          input_shape: ``(H, W, C)``, at least 2 pixels a side.
          num_classes: ``K``.
          channels: of the two convolutions.
          features: width of ``fc1``.
          dtype: of the computation (``"bfloat16"``, say); parameters are float32.
          rngs: where the parameters come from.

        Raises:
          ConfigError: for another number of channels, or too small images.
        """
        if len(input_shape) != 3 or min(input_shape[:2]) < 2:
            raise ConfigError(
                f"expected images (H, W, C) of at least 2x2 pixels for cnn, got {input_shape!r}"
            )
        if len(channels) != 2:
            raise ConfigError(f"expected two channels of cnn, got {channels!r}")
        height, width, depth = input_shape
        first, second = channels
        kind: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        shape: dict[str, Any] = {"padding": "SAME", "conv_general_dilated": conv}
        self.conv1 = nnx.Conv(depth, first, (3, 3), **shape, **kind)
        self.conv2 = nnx.Conv(first, second, (3, 3), **shape, **kind)
        flat = (height // 2) * (width // 2) * second
        self.fc1 = nnx.Linear(flat, features, **kind)
        self.head = nnx.Linear(features, num_classes, **kind)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(x))
        x = max_pool(nnx.relu(self.conv2(x)))
        x = nnx.relu(self.fc1(x.reshape(x.shape[0], -1)))
        return self.head(x).astype(jnp.float32)
