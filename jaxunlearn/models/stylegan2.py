"""StyleGAN2 for small images: mapping, synthesis, and a residual discriminator.

``B`` images ``[H, W, C]`` of a side 4 * 2^n, ``Z`` the size of a latent, ``W`` that of a
style. Kernels compute in ``dtype``; parameters, styles, images and logits are float32. As for
CIFAR-10 in arXiv 2006.06676, all maps up to 32 pixels a side have the same number of
channels. The layers are in :mod:`jaxunlearn.models.style_layers`.

Source: Karras et al., arXiv 1912.04958 and arXiv 2006.06676; own code.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.types import Key
from jaxunlearn.models.builders import GanParts
from jaxunlearn.models.style_layers import (
    Convolution,
    Dense,
    Modulated,
    Normals,
    activate,
    double,
    halve,
    normalise,
    with_deviation,
)

START = 4  # pixels a side of the smallest maps
FLAT = 32  # up to this side maps have all channels; beyond, half as many for each doubling
MAPPING_RATE = 0.01


def _check_integer(name: str, value: Any, least: int = 1) -> None:
    if not isinstance(value, int) or value < least:
        raise ConfigError(
            f"expected an integer of at least {least} as {name} of stylegan2, got {value!r}"
        )


def _sides(shape: Sequence[int]) -> list[int]:
    """Returns ``[4, 8, ..., H]``, the sides of the maps."""
    sides = [START]
    while len(shape) == 3 and sides[-1] < shape[0]:
        sides.append(2 * sides[-1])
    if len(shape) != 3 or shape[0] != shape[1] or shape[0] != sides[-1] or len(sides) == 1:
        raise ConfigError(
            "expected as shape square images (H, W, C) of a side of 8, 16, 32, ... pixels for "
            f"stylegan2, got {tuple(shape)}"
        )
    return sides


def _channels(width: int, side: int) -> int:
    return max(1, width * FLAT // max(side, FLAT))


def _chosen(embedding: nnx.Param, y: jax.Array) -> jax.Array:
    """Returns ``[B, F]``, the rows of the labels; by a product, whose gradient needs no scatter."""
    return jax.nn.one_hot(y, embedding.shape[0], dtype=jnp.float32) @ embedding[...]


class StyleMapping(nnx.Module):
    """``(z [B, Z], y int [B]) -> w float32 [B, W]``: the style of a latent.

    ``h = z / rms(z)``, with classes ``h = [z / rms(z), e_y / rms(e_y)]``, ``e_y`` of size
    ``W``; then ``layers`` times ``h <- sqrt(2) leaky_relu(dense(h))``, which learn at a
    hundredth of the rate. Without classes ``y`` is not read.
    """

    def __init__(
        self,
        latent: int,
        style: int,
        num_classes: int,
        *,
        layers: int,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Draws the parameters.

        Args:
          latent: ``Z``.
          style: ``W``.
          num_classes: 0: unconditional.
          layers: how many dense layers.
          dtype: of the computation (``"bfloat16"``, say); parameters are float32.
          rngs: where the parameters come from.

        Raises:
          ConfigError: for sizes or numbers that are not positive.
        """
        for name, value in (("latent", latent), ("style", style), ("layers", layers)):
            _check_integer(name, value)
        _check_integer("num_classes", num_classes, 0)
        normals, self.layers = Normals(), layers
        kind: dict[str, Any] = {"normals": normals, "dtype": dtype, "multiplier": MAPPING_RATE}
        self.embedding = normals(num_classes, style) if num_classes else None
        size = latent + style if num_classes else latent
        for number in range(1, layers + 1):
            setattr(self, f"fc{number}", Dense(size, style, **kind))
            size = style
        normals.draw(rngs.params())

    def __call__(self, inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        z, y = inputs
        h = normalise(z)
        if self.embedding is not None:
            h = jnp.concatenate([h, normalise(_chosen(self.embedding, y))], axis=-1)
        for number in range(1, self.layers + 1):
            h = activate(getattr(self, f"fc{number}")(h))
        return h


class StyleSynthesis(nnx.Module):
    """``w [B, W] -> x float32 [B, H, W, C]``, not bounded.

    A learned constant of 4x4 pixels; ``layer`` at 4x4, and at each doubled side ``layer`` with
    upsampling and ``layer`` again: ``activate(modulated(x, w) + a n + b)`` with noise ``n``,
    one number for each pixel, of learned strength ``a``, at first 0. Inference has no noise.
    The image is the sum over sides of ``1x1 modulated(x, w) + b``, each doubled bilinearly.

    ``w [B, L, W]`` gives each layer a style of its own, with ``L = num_styles``; the image
    of a side shares that of the upsampling layer after it.
    """

    def __init__(
        self, shape: Sequence[int], style: int, *, width: int, dtype: Any = None, rngs: nnx.Rngs
    ):
        """Draws the parameters.

        Args:
          shape: ``(H, W, C)``, of a side of 8, 16, 32, ...
          style: ``W``.
          width: channels of the maps, up to 32 pixels a side.
          dtype: of the computation; parameters are float32.
          rngs: where the parameters come from.

        Raises:
          ConfigError: for another shape, or sizes that are not positive.
        """
        self.sides = tuple(_sides(shape))
        _check_integer("style", style)
        _check_integer("width", width)
        normals = Normals()
        own: dict[str, Any] = {"normals": normals, "dtype": dtype}
        wide = _channels(width, START)
        self.constant = normals(START, START, wide)
        for side in self.sides:
            narrow = _channels(width, side)
            if side > START:
                setattr(self, f"up{side}", Modulated(wide, narrow, style, up=True, **own))
            setattr(self, f"conv{side}", Modulated(narrow, narrow, style, **own))
            image = Modulated(narrow, shape[2], style, size=1, linear=True, **own)
            setattr(self, f"image{side}", image)
            wide = narrow
        normals.draw(rngs.params())

    @property
    def num_styles(self) -> int:
        """Returns ``L``, the number of styles that it can be given."""
        return 2 * len(self.sides)

    def __call__(self, w: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        if w.ndim == 3 and w.shape[1] != self.num_styles:
            raise ConfigError(f"w: expected [B, {self.num_styles}, W], got {w.shape}")
        styles = [w[:, i] if w.ndim == 3 else w for i in range(self.num_styles)]
        noises = {} if rngs is None else self._noises(len(w), rngs.noise())
        x = jnp.broadcast_to(self.constant[...][None], (len(w), *self.constant.shape))
        images = []
        for level, side in enumerate(self.sides):
            names = [f"up{side}", f"conv{side}"] if level else [f"conv{side}"]
            for number, name in enumerate(names, 2 * level + 1 - len(names)):
                x = getattr(self, name)(x, styles[number], noises.get(name))
            images.append(getattr(self, f"image{side}")(x, styles[2 * level + 1]))
        return functools.reduce(lambda image, finer: double(image) + finer, images)

    def _noises(self, batch: int, key: Key) -> dict[str, jax.Array]:
        """Draws the noise ``[B, H, W, 1]`` of each layer, all at once."""
        layers = {f"conv{side}": side for side in self.sides}
        layers |= {f"up{side}": side for side in self.sides[1:]}
        sizes = [side**2 for side in layers.values()]
        drawn = jax.random.normal(key, (batch, sum(sizes)), jnp.float32)
        pieces = jnp.split(drawn, np.cumsum(sizes)[:-1], axis=1)
        return {
            name: piece.reshape(batch, side, side, 1)
            for (name, side), piece in zip(layers.items(), pieces, strict=True)
        }


class StyleDiscriminator(nnx.Module):
    """``(x [B, H, W, C], y int [B]) -> d float32 [B]``, the logit of being real.

    A 1x1 convolution; for each side above 4 ``x <- (conv(halve(conv(x))) + conv1x1(halve(x)))
    / sqrt(2)``, the last without activation; the deviation over ``group`` images as a channel;
    a 3x3 convolution, a dense layer to ``h [B, F]`` and ``d = dense(h)``. With classes
    ``d = dense(h) + e_y h / sqrt(F)`` (Miyato and Koyama, arXiv 1802.05637), a linear form of
    the map of labels in arXiv 2006.06676; without, ``y`` is not read.

    Unlike the source's, the second convolution of a block sees the halved map, where theirs
    has stride 2: as cheap, without strides, whose gradients dilate.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        *,
        width: int,
        group: int,
        dtype: Any = None,
        rngs: nnx.Rngs,
    ):
        """Draws the parameters.

        Args:
          shape: ``(H, W, C)``, of a side of 8, 16, 32, ...
          num_classes: 0: unconditional.
          width: channels of the maps, up to 32 pixels a side.
          group: images whose deviation is shown to each, or as many fewer as divide the
            batch; 1: no such channel.
          dtype: of the computation; parameters are float32.
          rngs: where the parameters come from.

        Raises:
          ConfigError: for another shape, or numbers that are not positive.
        """
        self.sides = tuple(_sides(shape)[:0:-1])
        _check_integer("num_classes", num_classes, 0)
        _check_integer("width", width)
        _check_integer("group", group)
        normals, self.group = Normals(), group
        own: dict[str, Any] = {"normals": normals, "dtype": dtype}
        wide = _channels(width, self.sides[0])
        self.image = Convolution(shape[2], wide, 1, **own)
        for side in self.sides:
            narrow = _channels(width, side // 2)
            setattr(self, f"conv{side}", Convolution(wide, wide, 3, **own))
            setattr(self, f"down{side}", Convolution(wide, narrow, 3, **own))
            setattr(self, f"skip{side}", Convolution(wide, narrow, 1, linear=True, **own))
            wide = narrow
        self.last = Convolution(wide + (group > 1), wide, 3, **own)
        self.dense = Dense(START**2 * wide, wide, **own)
        # in float32: half precision would give many images the same logit
        self.head = Dense(wide, 1, normals=normals)
        self.embedding = normals(num_classes, wide) if num_classes else None
        normals.draw(rngs.params())

    def __call__(self, inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, y = inputs
        x = self.image(x)
        for side in self.sides:
            new = getattr(self, f"down{side}")(halve(getattr(self, f"conv{side}")(x)))
            x = (new + getattr(self, f"skip{side}")(halve(x))) * math.sqrt(0.5)
        x = self.last(with_deviation(x, self.group) if self.group > 1 else x)
        h = activate(self.dense(x.reshape(x.shape[0], -1)))
        d = self.head(h)[:, 0]
        if self.embedding is None:
            return d
        return d + jnp.sum(h * _chosen(self.embedding, y), axis=-1) / math.sqrt(h.shape[1])


def stylegan2(
    shape: tuple[int, ...],
    num_classes: int,
    *,
    latent: int = 512,
    style: int = 512,
    layers: int = 8,
    width: int = 256,
    group: int = 4,
    conditional: bool = False,
    dtype: Any = None,
) -> GanParts:
    """Returns the constructors of a StyleGAN2; labels are read where it is ``conditional``."""
    told = num_classes if conditional else 0
    own: dict[str, Any] = {"width": width, "dtype": dtype}
    return GanParts(
        lambda rngs: StyleMapping(latent, style, told, layers=layers, dtype=dtype, rngs=rngs),
        lambda rngs: StyleSynthesis(shape, style, **own, rngs=rngs),
        lambda rngs: StyleDiscriminator(shape, told, **own, group=group, rngs=rngs),
        latent,
        told,
        couples=group > 1,
    )
