"""Convolution and pooling whose gradients are fast on CPUs.

XLA:CPU computes the weight gradient of a convolution, and the gradient of
max-pooling, an order of magnitude slower than the forward pass, and inside
``lax.scan`` the former becomes ruinous (jax issue 12868). Both operations here
keep the plain primitive in their forward pass, which is what relevance
propagation reads, and replace the backward pass alone. ``benchmarks/
conv_gradient.py`` measures what that saves.

Shapes: ``B`` images, ``H, W`` pixels, ``C`` channels in, ``O`` channels out,
``h, w`` the kernel.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Geometry(NamedTuple):
    """The static arguments of a two-dimensional convolution, hashable."""

    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    precision: Any


_BLOCK_BYTES, _BLOCK_ROWS, _FEWEST_BLOCKS = 4 << 20, 1024, 4
"""Bytes copied and rows multiplied in a block of :func:`kernel_gradient`, and how many pay."""


def kernel_gradient(
    inputs: jax.Array, grad: jax.Array, shape: tuple[int, ...], geometry: Geometry
) -> jax.Array:
    """Computes the gradient of a convolution's kernel by matrix products, for CPUs.

    ``dk[i, j, c, o] = sum_bpq x[b, p s + i d, q s + j d, c] g[b, p, q, o]``, ``x`` padded.

    One of the two factors is copied once for each kernel entry: the input, or, where it has
    more channels than the output, the gradient. A block of images at a time: copies of the whole
    batch would be written to memory and read again, and where that memory is new at each call,
    which it is outside a compiled loop, mapping its pages takes longer than the products. In a
    mesh the batch stays whole, for the devices divide it.

    Args:
      inputs: ``[B, H, W, C]``.
      grad: ``[B, H', W', O]``.
      shape: ``(h, w, C, O)``.

    Returns:
      ``[h, w, C, O]``, of the gradient's dtype.
    """
    shifts_grad = geometry.strides == (1, 1) and shape[3] < shape[2]
    of_block = functools.partial(
        _by_shifted_gradient if shifts_grad else _by_shifted_inputs, shape=shape, geometry=geometry
    )
    rows = math.prod((inputs if shifts_grad else grad).shape[1:3])
    row_bytes = math.prod(shape[:2]) * shape[3 if shifts_grad else 2] * inputs.dtype.itemsize
    size = _block_size(len(inputs), rows, row_bytes)
    if size == len(inputs):
        return of_block(inputs, grad).astype(grad.dtype)
    whole = len(inputs) - len(inputs) % size
    blocks = [a[:whole].reshape(-1, size, *a.shape[1:]) for a in (inputs, grad)]

    def add(total: jax.Array, block: list[jax.Array]) -> tuple[jax.Array, None]:
        return total + of_block(*block), None

    if whole < len(inputs):
        total = of_block(inputs[whole:], grad[whole:])
    else:
        total = jnp.zeros(shape, jnp.float32 if _is_half(grad) else grad.dtype)
    return lax.scan(add, total, blocks)[0].astype(grad.dtype)


def _block_size(images: int, rows: int, row_bytes: int) -> int:
    """Returns how many images are multiplied at a time; a divisor of all, where one is near."""
    size = max(-(-_BLOCK_ROWS // max(rows, 1)), _BLOCK_BYTES // max(rows * row_bytes, 1), 1)
    if images < _FEWEST_BLOCKS * size or _is_in_mesh():
        return images
    near = (n for n in range(size, size // 2, -1) if images % n == 0)
    return next(near, size)


def _is_in_mesh() -> bool:
    return not jax.sharding.get_abstract_mesh().empty


def _is_half(array: jax.Array) -> bool:
    return jnp.finfo(array.dtype).bits < 32


def _summed_product(first: jax.Array, second: jax.Array, precision: Any) -> jax.Array:
    """Computes ``[*F, *S]``, ``sum_bpq a[b, p, q, f] b[b, p, q, s]``, in float32 or better.

    The narrower factor stands on the left, which is twice as fast: XLA transposes that one. The
    barrier keeps XLA from taking the order back. In a mesh all axes stay, for of an axis that is
    one with another the devices cannot keep their parts.
    """
    numbers = (*first.shape[3:], *second.shape[3:])
    # summed over B H W terms, which half precision cannot hold
    wide = jnp.float32 if _is_half(first) else None
    kind: dict[str, Any] = {"precision": precision, "preferred_element_type": wide}
    if _is_in_mesh():
        return lax.dot_general(first, second, (((0, 1, 2),) * 2, ((), ())), **kind)
    rows = math.prod(first.shape[:3])
    first, second = (a.reshape(rows, -1) for a in (first, second))
    swapped = second.shape[1] < first.shape[1]
    factors = (second, first) if swapped else (first, second)
    product = lax.dot_general(*factors, (((0,), (0,)), ((), ())), **kind)
    return (lax.optimization_barrier(product).T if swapped else product).reshape(numbers)


def _by_shifted_gradient(
    inputs: jax.Array, grad: jax.Array, shape: tuple[int, ...], geometry: Geometry
) -> jax.Array:
    """Lays all shifts of the gradient side by side, for one product with the inputs."""
    (high, wide), (rows, columns) = shape[:2], inputs.shape[1:3]
    (step_i, step_j), zero = geometry.dilation, jnp.zeros((), grad.dtype)
    reach = ((high - 1) * step_i, (wide - 1) * step_j)
    sides = [(r - low, r - up, 0) for r, (low, up) in zip(reach, geometry.padding, strict=True)]
    padded = lax.pad(grad, zero, ((0, 0, 0), *sides, (0, 0, 0)))
    tops = [(high - 1 - i) * step_i for i in range(high)]
    lefts = [(wide - 1 - j) * step_j for j in range(wide)]
    every = jnp.stack(
        [padded[:, top : top + rows, left : left + columns] for top in tops for left in lefts],
        axis=3,
    )
    found = _summed_product(inputs, every, geometry.precision)
    return jnp.moveaxis(found, 0, 1).reshape(shape)


def _by_shifted_inputs(
    inputs: jax.Array, grad: jax.Array, shape: tuple[int, ...], geometry: Geometry
) -> jax.Array:
    """Lays what every kernel entry reads side by side, for one product with the gradient."""
    (high, wide), (rows, columns) = shape[:2], grad.shape[1:3]
    (down, across), (step_i, step_j) = geometry.strides, geometry.dilation
    edges = ((0, 0, 0), *((low, up, 0) for low, up in geometry.padding), (0, 0, 0))
    padded = lax.pad(inputs, jnp.zeros((), inputs.dtype), edges)

    def strided(array: jax.Array, start: int, size: int, stride: int, axis: int) -> jax.Array:
        return lax.slice_in_dim(array, start, start + (size - 1) * stride + 1, stride, axis)

    # columns first, then rows of these: fewer and longer pieces than all at once
    beside = jnp.stack(
        [strided(padded, j * step_j, columns, across, 2) for j in range(wide)], axis=3
    )
    every = jnp.stack([strided(beside, i * step_i, rows, down, 1) for i in range(high)], axis=3)
    return _summed_product(every, grad, geometry.precision).reshape(shape)


_NUMBERS = ("NHWC", "HWIO", "NHWC")


def conv(
    inputs: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = _NUMBERS,
    feature_group_count: int = 1,
    precision: Any = None,
    **kwargs: Any,
) -> jax.Array:
    """Computes ``lax.conv_general_dilated``, with a backward pass that is fast on CPUs.

    ``y[b, p, q, o] = sum_ijc x[b, p s + i d, q s + j d, c] k[i, j, c, o]`` with
    stride ``s`` and kernel dilation ``d``, of the padded ``x``. The gradient of
    the input is a convolution with the flipped, transposed kernel; the gradient
    of the kernel is, on CPUs, :func:`kernel_gradient`, elsewhere XLA's own. Gradients
    of gradients, ``vmap`` and ``scan`` work; forward mode (``jax.jvp``) does not,
    unless it differentiates a gradient.

    It takes the arguments of ``lax.conv_general_dilated``, so that it serves as
    ``nnx.Conv(..., conv_general_dilated=conv)``. What is not a two-dimensional
    NHWC convolution with one feature group and undilated input is passed to the
    plain operation with its plain gradient.

    Args:
      inputs: ``[B, H, W, C]``.
      kernel: ``[h, w, C, O]``, of the same dtype.
      window_strides: ``s``, one for each spatial dimension.
      padding: ``"SAME"``, ``"VALID"`` or (low, high) pairs.
      lhs_dilation: dilation of the input.
      rhs_dilation: ``d``, dilation of the kernel.
      dimension_numbers: as ``lax.conv_general_dilated`` takes them.
      feature_group_count: number of feature groups.
      precision: ``lax.Precision`` or ``None``.
      **kwargs: further arguments of the plain operation.

    Returns:
      ``[B, H', W', O]``.

    Source: own.
    """
    given = {name: value for name, value in kwargs.items() if value is not None}
    if (
        given
        or feature_group_count != 1
        or any(d != 1 for d in lhs_dilation or ())
        or not _is_nhwc(inputs, kernel, dimension_numbers)
    ):
        return lax.conv_general_dilated(
            inputs,
            kernel,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            precision=precision,
            **given,
        )
    (down, across), (step_i, step_j) = window_strides, rhs_dilation or (1, 1)
    if isinstance(padding, str):
        reach = ((kernel.shape[0] - 1) * step_i + 1, (kernel.shape[1] - 1) * step_j + 1)
        padding = lax.padtype_to_pads(inputs.shape[1:3], reach, (down, across), padding)
    (top, bottom), (left, right) = padding
    pads = ((int(top), int(bottom)), (int(left), int(right)))
    return _conv(inputs, kernel, Geometry((down, across), pads, (step_i, step_j), precision))


def _is_nhwc(inputs: jax.Array, kernel: jax.Array, dimension_numbers: Any) -> bool:
    if inputs.ndim != 4:
        return False
    numbers = lax.conv_dimension_numbers(inputs.shape, kernel.shape, dimension_numbers)
    return numbers == lax.conv_dimension_numbers(inputs.shape, kernel.shape, _NUMBERS)


def _plain(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return lax.conv_general_dilated(
        inputs,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_NUMBERS,
        precision=geometry.precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(inputs: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return _plain(inputs, kernel, geometry)


def _conv_forward(
    inputs: jax.Array, kernel: jax.Array, geometry: Geometry
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _plain(inputs, kernel, geometry), (inputs, kernel)


def _conv_backward(
    geometry: Geometry, residuals: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = residuals
    by_matmul = functools.partial(kernel_gradient, shape=kernel.shape, geometry=geometry)

    def by_xla(inputs: jax.Array, grad: jax.Array) -> jax.Array:
        transpose = jax.linear_transpose(lambda k: _plain(inputs, k, geometry), kernel)
        return transpose(grad)[0]

    kernel_grad = lax.platform_dependent(inputs, grad, cpu=by_matmul, default=by_xla)
    return _input_gradient(grad, kernel, inputs.shape, geometry), kernel_grad


_conv.defvjp(_conv_forward, _conv_backward)


def _input_gradient(
    grad: jax.Array, kernel: jax.Array, shape: tuple[int, ...], geometry: Geometry
) -> jax.Array:
    """Returns ``[B, H, W, C]``: the flipped, transposed kernel over the dilated gradient."""
    pads = []
    for axis in range(2):
        reach = (kernel.shape[axis] - 1) * geometry.dilation[axis] + 1
        dilated = (grad.shape[axis + 1] - 1) * geometry.strides[axis] + 1
        low = reach - 1 - geometry.padding[axis][0]
        # whatever makes the result as large as the input; negative where the
        # convolution never read the input's last rows
        pads.append((low, shape[axis + 1] + reach - 1 - dilated - low))
    return lax.conv_general_dilated(
        grad,
        jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
        (1, 1),
        pads,
        lhs_dilation=geometry.strides,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_NUMBERS,
        precision=geometry.precision,
    )


def max_pool(inputs: jax.Array, window: int = 2) -> jax.Array:
    """Takes the largest of every ``window x window`` block; the remainder is dropped.

    The gradient goes to the first of the largest entries of a block, in row-major
    order, as XLA's does, by comparisons in place of XLA's ``select_and_scatter``.

    Args:
      inputs: ``[B, H, W, C]``.
      window: side of a block, and the stride.

    Returns:
      ``[B, H // window, W // window, C]``.

    Source: own.
    """
    return _pool(inputs, window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool(inputs: jax.Array, window: int) -> jax.Array:
    size = (1, window, window, 1)
    return lax.reduce_window(inputs, -jnp.inf, lax.max, size, size, "VALID")


def _pool_forward(inputs: jax.Array, window: int) -> tuple[jax.Array, Any]:
    pooled = _pool(inputs, window)
    return pooled, (inputs, pooled)


def _pool_backward(window: int, residuals: Any, grad: jax.Array) -> tuple[jax.Array]:
    inputs, pooled = residuals
    batch, height, width, channels = inputs.shape
    rows, columns = pooled.shape[1:3]
    blocks = inputs[:, : rows * window, : columns * window, :].reshape(
        batch, rows, window, columns, window, channels
    )
    free = jnp.ones(pooled.shape, bool)
    gradients = []
    for i in range(window):
        for j in range(window):
            largest = (blocks[:, :, i, :, j, :] == pooled) & free
            free = free & ~largest
            gradients.append(jnp.where(largest, grad, jnp.zeros_like(grad)))
    stacked = jnp.stack(
        [jnp.stack(gradients[i * window : (i + 1) * window], axis=3) for i in range(window)], axis=2
    )
    whole = stacked.reshape(batch, rows * window, columns * window, channels)
    remainder = ((0, 0), (0, height - rows * window), (0, width - columns * window), (0, 0))
    return (jnp.pad(whole, remainder),)


_pool.defvjp(_pool_forward, _pool_backward)
