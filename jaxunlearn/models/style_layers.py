"""The layers of StyleGAN2 as plain convolutions: nothing grouped, nothing transposed.

``B`` images, ``C`` channels in, ``O`` channels out, ``W`` the size of a style. Learning
rates are equalised: stored kernels are ``N(0, 1)``, and scaled by ``1 / sqrt(fan_in)`` where
they are used, so that Adam moves every layer by the same fraction of its size.

Source: Karras et al., arXiv 1912.04958 (modulation, resampling); arXiv 1710.10196 (equalised
learning rate, deviation over the batch).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxunlearn.core.types import Key
from jaxunlearn.models.convolution import conv
from jaxunlearn.models.gans import depth_to_space

SLOPE = 0.2
TINY = 1e-8


class Normals:
    """Kernels of a network, drawn all at once: a draw for each compiles for seconds."""

    def __init__(self) -> None:
        """Holds no kernels yet."""
        self._kernels: list[tuple[nnx.Param, float]] = []

    def __call__(self, *shape: int, deviation: float = 1.0) -> nnx.Param:
        """Returns a kernel of zeros, to be filled by :meth:`draw`."""
        kernel = nnx.Param(jnp.zeros(shape, jnp.float32))
        self._kernels.append((kernel, deviation))
        return kernel

    def draw(self, key: Key) -> None:
        """Fills all kernels from ``N(0, deviation^2)``."""
        sizes = [math.prod(kernel.shape) for kernel, _ in self._kernels]
        noise = jax.random.normal(key, (sum(sizes),), jnp.float32)
        pieces = jnp.split(noise, np.cumsum(sizes)[:-1])
        for (kernel, deviation), piece in zip(self._kernels, pieces, strict=True):
            kernel.set_value(deviation * piece.reshape(kernel.shape))


def activate(x: jax.Array) -> jax.Array:
    """Computes ``sqrt(2) leaky_relu(x)``, of about the variance of ``x`` (1.04 of it)."""
    return nnx.leaky_relu(x, SLOPE) * math.sqrt(2)


def normalise(x: jax.Array) -> jax.Array:
    """Computes ``x / sqrt(mean_i x_i^2)`` over the last axis, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + TINY)


class Dense(nnx.Module):
    """``x [B, C] -> (m / sqrt(C)) x k + m b``, float32 ``[B, O]``.

    ``m`` is the multiplier of the learning rate; the kernel is drawn with deviation ``1 / m``.
    """

    def __init__(
        self,
        wide: int,
        narrow: int,
        *,
        normals: Normals,
        dtype: Any = None,
        multiplier: float = 1.0,
        bias: float = 0.0,
    ):
        """Registers the kernel; ``bias``: where the bias starts."""
        self.kernel = normals(wide, narrow, deviation=1 / multiplier)
        self.bias = nnx.Param(jnp.full(narrow, bias / multiplier, jnp.float32))
        self.multiplier, self.dtype = multiplier, jnp.dtype(dtype or jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...] * (self.multiplier / math.sqrt(self.kernel.shape[0]))
        product = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return product.astype(jnp.float32) + (self.multiplier * self.bias[...])[None]


class Convolution(nnx.Module):
    """``x [B, H, W, C] -> activate(conv(x, k) + b)``, or ``conv(x, k)`` if it is linear."""

    def __init__(
        self,
        wide: int,
        narrow: int,
        size: int,
        *,
        normals: Normals,
        dtype: Any = None,
        linear: bool = False,
    ):
        """Registers the kernel, of ``size x size`` pixels."""
        self.kernel = normals(size, size, wide, narrow)
        self.bias = None if linear else nnx.Param(jnp.zeros(narrow, jnp.float32))
        self.dtype = jnp.dtype(dtype or jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _scaled(self.kernel[...]).astype(self.dtype)
        x = conv(x.astype(self.dtype), kernel, (1, 1), "SAME")
        if self.bias is None:
            return x
        return activate(x + self.bias[...].astype(self.dtype)[None, None, None])


class Modulated(nnx.Module):
    """A convolution whose kernel depends on the image's style, with what follows it.

    ``y = activate(modulated(x, w) + a n + b)`` with noise ``n [B, H, W, 1]`` of learned
    strength ``a``, at first 0; or, linear, ``y = modulated(x, w) + b`` in float32, without
    demodulation: the colours of a map.

    ``modulated`` has the kernels ``k_b[i, j, c, o] = s[b, c] k[i, j, c, o]``,
    ``s = affine(w)``, divided by ``sqrt(sum_ijc k_b^2 + 1e-8)`` if demodulated. A factor of an
    input channel may as well multiply the input, and one of an output channel the output: so
    one ordinary convolution serves all images of the batch, ``d conv(s x, k)``.

    With ``up``, kernels of 3x3 pixels double the image: the source's transposed convolution
    of stride 2 and its blur by ``[1, 3, 3, 1]`` are together *one* 3x3 convolution to ``4 O``
    channels, with a kernel that is linear in ``k``, and ``depth_to_space``. The result is
    the source's, for the price of a 3x3 convolution of the large image, without a dilated
    input and without passes over the large map for the blur.
    """

    def __init__(
        self,
        wide: int,
        narrow: int,
        style: int,
        *,
        size: int = 3,
        up: bool = False,
        linear: bool = False,
        normals: Normals,
        dtype: Any = None,
    ):
        """Registers the kernels; the affine map computes in float32."""
        self.affine = Dense(style, wide, normals=normals, bias=1.0)
        self.kernel = normals(size, size, wide, narrow)
        self.bias = nnx.Param(jnp.zeros(narrow, jnp.float32))
        self.noise = None if linear else nnx.Param(jnp.zeros((), jnp.float32))
        self.up, self.linear, self.dtype = up, linear, jnp.dtype(dtype or jnp.float32)

    def __call__(self, x: jax.Array, w: jax.Array, n: jax.Array | None = None) -> jax.Array:
        y, bias = self.modulated(x, w), self.bias[...][None, None, None]
        if self.noise is None:
            return y.astype(jnp.float32) + bias
        if n is not None:
            bias = self.noise[...] * n + bias
        return activate(y + bias.astype(self.dtype))

    def modulated(self, x: jax.Array, w: jax.Array) -> jax.Array:
        """Computes ``d conv(s x, k)``, without noise, bias and activation."""
        scale, kernel = self.affine(w), _scaled(self.kernel[...])
        x = x.astype(self.dtype) * scale.astype(self.dtype)[:, None, None]
        used = _doubling(kernel) if self.up else kernel
        y = conv(x, used.astype(self.dtype), (1, 1), "SAME")
        if self.up:
            y = depth_to_space(y)
        if self.linear:
            return y
        # of the kernel before the blur, as in the source
        squares = jnp.square(scale) @ jnp.sum(jnp.square(kernel), axis=(0, 1))
        return y * jax.lax.rsqrt(squares + TINY).astype(self.dtype)[:, None, None]


def _scaled(kernel: jax.Array) -> jax.Array:
    return kernel * (1 / math.sqrt(math.prod(kernel.shape[:-1])))


def _taps() -> np.ndarray:
    """Returns ``T[p, a, k]``, the share of tap ``k`` of a kernel in tap ``a`` of phase ``p``.

    The doubled line is ``z[n] = sum_j f[j] y[n - 1 + j]`` with ``y[2 s + k] += x[s] K[k]``
    and the blur ``f``, so ``z[2 m + p] = sum_ak x[m - 1 + a] K[k] f[2 a + k - p - 1]``.
    """
    # sums to 2: half of what it is applied to are zeros
    blur = (0.25, 0.75, 0.75, 0.25)
    taps = np.zeros((2, 3, 3), np.float32)
    for p, a, k in np.ndindex(taps.shape):
        if 0 <= 2 * a + k - p - 1 < len(blur):
            taps[p, a, k] = blur[2 * a + k - p - 1]
    return taps


def _doubling(kernel: jax.Array) -> jax.Array:
    """Maps ``[3, 3, C, O] -> [3, 3, C, 4 O]``, all four phases of the doubled image."""
    taps = jnp.asarray(_taps())
    rows = jnp.einsum("pai,ijco->pajco", taps, kernel)
    phases = jnp.einsum("qbj,pajco->abcpqo", taps, rows)
    return phases.reshape(*kernel.shape[:-1], -1)


def double(x: jax.Array) -> jax.Array:
    """Maps ``[B, H, W, C] -> [B, 2 H, 2 W, C]`` bilinearly: twice ``[1, 3, 3, 1] / 4``."""
    for axis in (1, 2):
        before, here, after = (
            jax.lax.slice_in_dim(_padded(x, axis), start, start + x.shape[axis], axis=axis)
            for start in range(3)
        )
        pairs = jnp.stack([before + 3 * here, 3 * here + after], axis=axis + 1)
        x = 0.25 * pairs.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
    return x


def halve(x: jax.Array) -> jax.Array:
    """Maps ``[B, 2 H, 2 W, C] -> [B, H, W, C]``: blurred by ``[1, 3, 3, 1] / 8``, every second."""
    for axis in (1, 2):
        count = x.shape[axis] // 2
        # (x[-1], x[0]), (x[1], x[2]), ...: strides would make gradients with dilation
        pairs = _padded(x, axis).reshape(*x.shape[:axis], count + 1, 2, *x.shape[axis + 1 :])
        odd, even = (
            jax.lax.index_in_dim(pairs, part, axis=axis + 1, keepdims=False) for part in range(2)
        )

        def part(of: jax.Array, start: int, axis: int = axis, count: int = count) -> jax.Array:
            return jax.lax.slice_in_dim(of, start, start + count, axis=axis)

        x = 0.125 * (part(odd, 0) + 3 * part(even, 0) + 3 * part(odd, 1) + part(even, 1))
    return x


def _padded(x: jax.Array, axis: int) -> jax.Array:
    # by its edge, not by zeros: what is constant stays constant
    first, last = (jax.lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (0, x.shape[axis] - 1))
    return jnp.concatenate([first, x, last], axis=axis)


def with_deviation(x: jax.Array, group: int) -> jax.Array:
    """Adds a channel to ``[B, H, W, C]``, the deviation among the images of a group.

    ``mean_hwc sqrt(var_g x[g, h, w, c] + 1e-8)``, one number for each group of consecutive
    images, of as many as divide ``B``, at most ``group``; images apart (a prime batch) get
    the constant 1e-4. The 1e-8 keeps the gradient finite where images are equal.
    """
    batch = x.shape[0]
    size = max(size for size in range(1, min(group, batch) + 1) if batch % size == 0)
    groups = x.astype(jnp.float32).reshape(batch // size, size, *x.shape[1:])
    deviation = jnp.mean(jnp.sqrt(jnp.var(groups, axis=1) + TINY), axis=(1, 2, 3))
    channel = jnp.repeat(deviation, size, total_repeat_length=batch)[:, None, None, None]
    return jnp.concatenate([x, jnp.broadcast_to(channel, (*x.shape[:3], 1)).astype(x.dtype)], -1)
