"""The gradient of a convolution's kernel as matrix products, for CPUs.

Legend as in :mod:`jaxunlearn.models.conv`: ``B`` images, ``H, W`` pixels, ``C`` channels in,
``O`` channels out, ``h, w`` the kernel.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["Geometry", "kernel_gradient"]


class Geometry(NamedTuple):
    """The static arguments of a two-dimensional convolution, hashable."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    precision: Any


def kernel_gradient(
    inputs: jax.Array, grad: jax.Array, shape: tuple[int, ...], geometry: Geometry
) -> jax.Array:
    """``dk[i, j, c, o] = sum_bpq x[b, p s + i d, q s + j d, c] g[b, p, q, o]``, ``x`` padded.

    One of the two factors is copied once for each kernel entry, or for each column: the
    input, or, where it has more channels than the output, the gradient.

    Args:
      inputs: ``[B, H, W, C]``.
      grad: ``[B, H', W', O]``.
      shape: ``(h, w, C, O)``.

    Returns:
      ``[h, w, C, O]``, of the gradient's dtype.
    """
    if geometry.strides == (1, 1) and shape[3] < shape[2]:
        return _by_shifted_gradient(inputs, grad, shape, geometry)
    return _by_rows(inputs, grad, shape, geometry)


def _by_shifted_gradient(
    inputs: jax.Array, grad: jax.Array, shape: tuple[int, ...], geometry: Geometry
) -> jax.Array:
    """All shifts of the gradient side by side, and one product with the inputs."""
    (high, wide, channels, outputs), (rows, columns) = shape, inputs.shape[1:3]
    (step_i, step_j), half = geometry.dilation, jnp.finfo(grad.dtype).bits < 32
    reach = ((high - 1) * step_i, (wide - 1) * step_j)
    sides = [(r - low, r - up, 0) for r, (low, up) in zip(reach, geometry.padding, strict=True)]
    edges = ((0, 0, 0), *sides, (0, 0, 0))
    padded = lax.pad(grad, jnp.zeros((), grad.dtype), edges)
    tops = [(high - 1 - i) * step_i for i in range(high)]
    lefts = [(wide - 1 - j) * step_j for j in range(wide)]
    every = jnp.concatenate(
        [padded[:, top : top + rows, left : left + columns] for top in tops for left in lefts],
        axis=-1,
    )
    found = lax.dot_general(
        inputs.reshape(-1, channels),
        every.reshape(-1, high * wide * outputs),
        (((0,), (0,)), ((), ())),
        precision=geometry.precision,
        # summed over B H W terms, which half precision cannot hold
        preferred_element_type=jnp.float32 if half else None,
    )
    whole = found.reshape(channels, high, wide, outputs).transpose(1, 2, 0, 3)
    return whole.astype(grad.dtype)


def _by_rows(
    inputs: jax.Array, grad: jax.Array, shape: tuple[int, ...], geometry: Geometry
) -> jax.Array:
    """``[h, w, C, O]``: a matrix product for each kernel row.

    The columns of a row are concatenated: with few channels (one, in the first
    layer) a product for each kernel entry would be too thin to be fast, and all
    rows at once would copy the input ``h w`` times instead of ``w`` times.
    """
    (high, wide, channels, outputs), (rows, columns) = shape, grad.shape[1:3]
    (down, across), (step_i, step_j) = geometry.strides, geometry.dilation
    zero = jnp.zeros((), inputs.dtype)
    edges = ((0, 0, 0), *((low, up, 0) for low, up in geometry.padding), (0, 0, 0))
    padded = lax.pad(inputs, zero, edges)

    def strided(array: jax.Array, start: int, size: int, stride: int, axis: int) -> jax.Array:
        return lax.slice_in_dim(array, start, start + (size - 1) * stride + 1, stride, axis)

    shifted = jnp.concatenate(
        [strided(padded, j * step_j, columns, across, 2) for j in range(wide)], axis=-1
    )
    flat_grad = grad.reshape(-1, outputs)
    # summed over B H' W' terms, which half precision cannot hold
    half = jnp.finfo(grad.dtype).bits < 32
    products = [
        lax.dot_general(
            strided(shifted, i * step_i, rows, down, 1).reshape(-1, wide * channels),
            flat_grad,
            (((0,), (0,)), ((), ())),
            precision=geometry.precision,
            preferred_element_type=jnp.float32 if half else None,
        )
        for i in range(high)
    ]
    return jnp.stack(products).reshape(shape).astype(grad.dtype)
