"""Residual networks for small images."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.models.conv import conv


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
