"""Generators and discriminators: dense ones, and DCGAN's without transposed convolutions.

Upsampling is a 3x3 convolution to four times the channels and depth-to-space: the same
functions as a 4x4 transposed convolution of stride 2 can compute, several times faster.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.models.builders import GanParts
from jaxunlearn.models.convolution import conv

SLOPE = 0.2


def _widths(features: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(features, Sequence) or isinstance(features, str) or not features:
        raise ConfigError(f"expected widths such as (256, 256) as features, got {features!r}")
    if any(type(width) is not int or width < 1 for width in features):
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
        """Draws the parameters; see :class:`jaxunlearn.models.classifiers.MLP`."""
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
        self, shape: Sequence[int], *, features: Sequence[int], dtype: Any = None, rngs: nnx.Rngs
    ):
        """Draws the parameters; see :class:`jaxunlearn.models.classifiers.MLP`."""
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


def depth_to_space(x: jax.Array) -> jax.Array:
    """Maps ``[B, H, W, 4 C] -> [B, 2 H, 2 W, C]``: pixel (i, j) is channel ``(2 i + j) C + c``."""
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height, width, 2, 2, channels // 4)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1)


def halvings(shape: Sequence[int]) -> int:
    """Counts how often an image is halved: to 4 pixels a side, or to an odd number above.

    Raises:
      ConfigError: not a square image ``(H, W, C)`` of an even side of at least 8.
    """
    if len(shape) != 3 or shape[0] != shape[1] or shape[0] < 8 or shape[0] % 2:
        raise ConfigError(
            f"expected square images (H, W, C) of an even side of 8 or more, got {tuple(shape)}"
        )
    side, count = shape[0], 0
    while side % 2 == 0 and side > 4:
        side, count = side // 2, count + 1
    return count


def _check_width(width: Any) -> None:
    if not isinstance(width, int) or width < 1:
        raise ConfigError(f"expected a positive integer as width of dcgan, got {width!r}")


class DCGanGenerator(nnx.Module):
    """``w [B, Z] -> x float32 [B, H, W, C]`` between -1 and 1.

    ``dense - [norm - relu - up] ... - norm - relu - conv 3x3 - tanh``: 28x28 images go from
    7x7 with ``4 width / 2`` channels over 14x14 to 28x28 with ``width / 2``, 32x32 images
    from 4x4 likewise; each doubling halves the channels.

    Source: Radford et al., arXiv 1511.06434, with sub-pixel upsampling.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent: int,
        *,
        width: int,
        norm: bool,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Draws the parameters.

        Args:
          shape: ``(H, W, C)``.
          latent: ``Z``.
          width: twice the channels of the largest maps.
          norm: batch normalisation before each ReLU.
          dtype: of the computation (``"bfloat16"``, say); parameters are float32.
          rngs: where the parameters come from.
        """
        _check_width(width)
        self.ups, self.norm = halvings(shape), norm
        self.side = shape[0] >> self.ups
        kind: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        where: dict[str, Any] = {"padding": "SAME", "conv_general_dilated": conv, **kind}
        channels = [max(1, (width << self.ups >> 1) >> level) for level in range(self.ups + 1)]
        self.dense = nnx.Linear(latent, self.side**2 * channels[0], **kind)
        for level, (wide, narrow) in enumerate(itertools.pairwise(channels), 1):
            setattr(self, f"up{level}", nnx.Conv(wide, 4 * narrow, (3, 3), **where))
        if norm:
            for level, size in enumerate(channels):
                setattr(self, f"norm{level}", nnx.BatchNorm(size, momentum=0.9, **kind))
        self.image = nnx.Conv(channels[-1], shape[2], (3, 3), **where)

    def __call__(self, w: jax.Array) -> jax.Array:
        x = self.dense(w).reshape(w.shape[0], self.side, self.side, -1)
        x = nnx.relu(self._normed(x, 0))
        for level in range(1, self.ups + 1):
            x = depth_to_space(getattr(self, f"up{level}")(x))
            x = nnx.relu(self._normed(x, level))
        return jnp.tanh(self.image(x).astype(jnp.float32))

    def _normed(self, x: jax.Array, level: int) -> jax.Array:
        return getattr(self, f"norm{level}")(x) if self.norm else x


class DCGanDiscriminator(nnx.Module):
    """``(x [B, H, W, C], y) -> d float32 [B]``; ``y`` is not read.

    4x4 convolutions of stride 2 with leaky ReLU, each doubling the channels from ``width``,
    and a dense layer. Without normalisation by default: batch statistics would make an
    image's logit depend on what it is shown with.

    Source: Radford et al., arXiv 1511.06434.
    """

    def __init__(
        self, shape: Sequence[int], *, width: int, norm: bool, dtype: Any = None, rngs: nnx.Rngs
    ):
        """Draws the parameters; ``norm``: batch normalisation after all but the first."""
        _check_width(width)
        self.downs, self.norm = halvings(shape), norm
        kind: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        channels = shape[2]
        for level in range(1, self.downs + 1):
            wide = width << (level - 1)
            layer = nnx.Conv(
                channels, wide, (4, 4), 2, padding="SAME", conv_general_dilated=conv, **kind
            )
            setattr(self, f"down{level}", layer)
            if norm and level > 1:
                setattr(self, f"norm{level}", nnx.BatchNorm(wide, momentum=0.9, **kind))
            channels = wide
        side = shape[0] >> self.downs
        # in float32: in half precision logits tie, and ranks with them
        self.head = nnx.Linear(side**2 * channels, 1, rngs=rngs)

    def __call__(self, inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, _ = inputs
        for level in range(1, self.downs + 1):
            x = getattr(self, f"down{level}")(x)
            if self.norm and level > 1:
                x = getattr(self, f"norm{level}")(x)
            x = nnx.leaky_relu(x, SLOPE)
        return self.head(x.reshape(x.shape[0], -1).astype(jnp.float32))[:, 0]


def mlp_gan(
    shape: tuple[int, ...],
    num_classes: int,
    *,
    latent: int = 32,
    features: Sequence[int] = (256, 256),
    dtype: Any = None,
) -> GanParts:
    """Returns the constructors of a dense GAN; ``num_classes`` is not read."""
    own: dict[str, Any] = {"features": features, "dtype": dtype}
    return GanParts(
        None,
        lambda rngs: MLPGenerator(shape, latent, **own, rngs=rngs),
        lambda rngs: MLPDiscriminator(shape, **own, rngs=rngs),
        latent,
    )


def dcgan(
    shape: tuple[int, ...],
    num_classes: int,
    *,
    latent: int = 64,
    width: int = 64,
    norm: str = "generator",
    dtype: Any = None,
) -> GanParts:
    """Returns the constructors of a DCGAN; ``num_classes`` is not read."""
    if norm not in ("generator", "both", "none"):
        raise ConfigError(f"expected 'generator', 'both' or 'none' as norm of dcgan, got {norm!r}")
    own: dict[str, Any] = {"width": width, "dtype": dtype}
    return GanParts(
        None,
        lambda rngs: DCGanGenerator(shape, latent, **own, norm=norm != "none", rngs=rngs),
        lambda rngs: DCGanDiscriminator(shape, **own, norm=norm == "both", rngs=rngs),
        latent,
        couples=norm == "both",
    )
