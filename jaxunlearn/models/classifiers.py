"""The built-in classifiers: dense, convolutional and residual networks.

Inputs are ``[B, ...]``, images ``[B, H, W, C]``; logits are ``float32 [B, K]``. Parameters are
float32, whatever the network computes in.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.models.convolution import conv, max_pool


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
        if any(type(width) is not int or width < 1 for width in features):
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


class _Block(nnx.Module):
    """``relu(x' + bn2(conv2(relu(bn1(conv1(x))))))``.

    ``x'`` is ``x``, projected by a 1x1 convolution where its shape changes.
    """

    def __init__(self, channels: int, outputs: int, stride: int, *, dtype: Any, rngs: nnx.Rngs):
        self.conv1 = _conv(channels, outputs, 3, stride, dtype, rngs)
        self.bn1 = _batch_norm(outputs, rngs)
        self.conv2 = _conv(outputs, outputs, 3, 1, dtype, rngs)
        self.bn2 = _batch_norm(outputs, rngs)
        self.projects = stride != 1 or channels != outputs
        if self.projects:
            self.proj = _conv(channels, outputs, 1, stride, dtype, rngs)
            self.bn_proj = _batch_norm(outputs, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(_normalise(self.bn1, self.conv1(x)))
        y = _normalise(self.bn2, self.conv2(y))
        shortcut = _normalise(self.bn_proj, self.proj(x)) if self.projects else x
        return nnx.relu(shortcut + y)


class ResNet(nnx.Module):
    """ResNet with the 3x3 stem used for CIFAR, basic blocks and batch normalisation.

    ``conv1 - bn1 - relu - stage1_block1 ... - mean over pixels - head``. Stage
    ``s`` has ``width 2^(s-1)`` channels; every stage but the first halves the
    image. Inputs ``[B, H, W, C]``, logits ``float32 [B, K]``.

    Source: He et al. 2016 (arXiv 1512.03385).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        stages: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Draws the parameters.

        Args:
          input_shape: ``(H, W, C)``.
          num_classes: ``K``.
          stages: number of blocks of each stage; ``(2, 2, 2, 2)`` is ResNet-18.
          width: channels of the first stage.
          dtype: of the computation (``"bfloat16"``, say); parameters are float32.
          rngs: where the parameters come from.

        Raises:
          ConfigError: for inputs that are no images, or no stage or width.
        """
        if len(input_shape) != 3:
            raise ConfigError(f"expected images (H, W, C) for resnet, got {input_shape!r}")
        if not stages or min(stages) < 1 or width < 1:
            raise ConfigError(
                f"expected positive stages and width of resnet, got {stages!r} and {width!r}"
            )
        self.conv1 = _conv(input_shape[-1], width, 3, 1, dtype, rngs)
        self.bn1 = _batch_norm(width, rngs)
        self.stages = tuple(stages)
        channels = width
        for stage, blocks in enumerate(self.stages):
            outputs = width * 2**stage
            for number in range(blocks):
                stride = 2 if stage and not number else 1
                block = _Block(channels, outputs, stride, dtype=dtype, rngs=rngs)
                setattr(self, _name(stage, number), block)
                channels = outputs
        self.head = nnx.Linear(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(_normalise(self.bn1, self.conv1(x)))
        for stage, blocks in enumerate(self.stages):
            for number in range(blocks):
                x = getattr(self, _name(stage, number))(x)
        return self.head(x.mean((1, 2))).astype(jnp.float32)


# one block in each of three stages
ResNet8 = functools.partial(ResNet, stages=(1, 1, 1), width=16)


def _name(stage: int, number: int) -> str:
    return f"stage{stage + 1}_block{number + 1}"


def _conv(
    channels: int, outputs: int, size: int, stride: int, dtype: Any, rngs: nnx.Rngs
) -> nnx.Conv:
    # without bias: batch normalisation, which follows, would take it out again
    return nnx.Conv(
        channels,
        outputs,
        (size, size),
        strides=stride,
        use_bias=False,
        dtype=dtype,
        conv_general_dilated=conv,
        rngs=rngs,
    )


def _batch_norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    # running averages over about ten batches: trainings here are short
    return nnx.BatchNorm(channels, momentum=0.9, dtype=jnp.float32, rngs=rngs)


def _normalise(batch_norm: nnx.BatchNorm, x: jax.Array) -> jax.Array:
    # in float32, whatever the network computes in: statistics want the digits
    return batch_norm(x).astype(x.dtype)
