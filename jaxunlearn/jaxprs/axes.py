"""Where one axis of an operand lies in the result of an operation.

Two axes are followed through a network: that of the examples, to sum
relevance per example whatever the layout; and that of a linear unit's
features, to know which unit's outputs are another unit's inputs. The axes of a
kernel are followed from the variables to the operation that reads it.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.jaxprs.program import Op, Program, names

# What may lie between a kernel in the variables and the operation that reads it. Of the
# element by element ones, zero must stay zero.
_MOVES = names("broadcast_in_dim expand_dims reshape rev squeeze transpose")
_SAME = names(
    "convert_element_type copy copy_p div mul name neg pcast pvary reduce_precision "
    "sharding_constraint stop_gradient"
)


class Axis(NamedTuple):
    """An index that runs through (part of) one dimension of an array.

    Along dimension ``dim`` the index of position ``p`` is
    ``p // inner % size``: a reshape that merges dimensions leaves an axis whole.
    """

    dim: int
    inner: int
    size: int

    def exact(self, shape: tuple[int, ...]) -> bool:
        """Whether the axis is the dimension, not a part of it."""
        return shape[self.dim] == self.size


class Contraction(NamedTuple):
    """A ``dot_general`` of data with constants, seen from the two operands.

    Attributes:
      data, kernel: positions of the operands.
      contracted: pairs (dimension of the data, dimension of the kernel).
      kept: dimension of the data -> dimension of the result.
      made: dimension of the result -> dimension of the kernel.
    """

    data: int
    kernel: int
    contracted: tuple[tuple[int, int], ...]
    kept: dict[int, int]
    made: dict[int, int]


def contraction(op: Op, program: Program, data: int) -> Contraction:
    """The dimensions of a linear operation whose operand ``data`` is the data."""
    kernel = 1 - data
    if op.name == "conv_general_dilated":
        spec = op.params["dimension_numbers"]
        return Contraction(
            data=data,
            kernel=kernel,
            contracted=((spec.lhs_spec[1], spec.rhs_spec[1]),),
            kept={spec.lhs_spec[0]: spec.out_spec[0]},
            made={spec.out_spec[1]: spec.rhs_spec[0]},
        )
    contract, batch = op.params["dimension_numbers"]
    # The result has the batch dimensions, the free ones of the left, those of the right.
    position: list[dict[int, int]] = [{}, {}]
    count = len(batch[0])
    for side in (0, 1):
        position[side].update({d: i for i, d in enumerate(batch[side])})
        for d in range(len(program.shape(op.ins[side]))):
            if d not in batch[side] and d not in contract[side]:
                position[side][d] = count
                count += 1
    return Contraction(
        data=data,
        kernel=kernel,
        contracted=tuple(zip(contract[data], contract[kernel], strict=True)),
        kept=position[data],
        made={out: d for d, out in position[kernel].items()},
    )


def _reshape(axis: Axis, old: tuple[int, ...], new: tuple[int, ...]) -> Axis | None:
    stride = axis.inner * math.prod(old[axis.dim + 1 :])
    for dim in range(len(new)):
        below = math.prod(new[dim + 1 :])
        if stride % below:
            continue
        inner = stride // below
        if new[dim] == 1 == axis.size and inner == 1:
            return Axis(dim, 1, 1)
        if axis.size > 1 and inner < new[dim] and new[dim] % (inner * axis.size) == 0:
            return Axis(dim, inner, axis.size)
    return None


def _moved_to(op: Op, dim: int) -> int | None:
    """The dimension of the result that is dimension ``dim`` of the operand, whole."""
    p, name = op.params, op.name
    if name == "transpose":
        return int(p["permutation"].index(dim))
    if name == "broadcast_in_dim":
        return int(p["broadcast_dimensions"][dim])
    if name.startswith("reduce_window"):
        keeps = (
            p["window_dimensions"][dim] == 1
            and p["window_strides"][dim] == 1
            and tuple(p["padding"][dim]) == (0, 0)
            and p["base_dilation"][dim] == 1
        )
        return dim if keeps else None
    if name in ("reduce_sum", "reduce_max"):
        return None if dim in p["axes"] else dim - sum(a < dim for a in p["axes"])
    if name == "concatenate":
        return None if dim == p["dimension"] else dim
    if name == "pad":
        return dim if tuple(p["padding_config"][dim]) == (0, 0, 0) else None
    if name == "rev":
        return None if dim in p["dimensions"] else dim
    if name == "cumsum":
        return None if dim == p["axis"] else dim
    if name == "gather":
        return _gathered(p, dim)
    if name == "split":
        return None if dim == p["axis"] else dim
    if name in ("slice", "dynamic_slice"):
        # Cut or strided, the result is shorter, which the caller sees.
        return dim
    return None


def _gathered(params: dict[str, Any], dim: int) -> int | None:
    """The same for the first operand of a gather, whose window may be as wide as it is."""
    numbers = params["dimension_numbers"]
    alone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    if dim in alone:
        return None
    return int(numbers.offset_dims[dim - sum(d < dim for d in alone)])


def varies(program: Program, value: int, rank: int) -> tuple[tuple[int, ...], int]:
    """How a constant is laid out along ``rank`` dimensions, before it was broadcast to them.

    Returns:
      its sizes there, and the value that it was broadcast from (or itself).
    """
    op = program.made_by.get(value)
    if op is None or op.name != "broadcast_in_dim":
        return program.shape(value) or (1,) * rank, value
    sizes = [1] * rank
    source = op.ins[0]
    for d, size in zip(op.params["broadcast_dimensions"], program.shape(source), strict=True):
        sizes[d] = size
    return tuple(sizes), source


def looked_up(op: Op, program: Program, axis: Axis | None) -> Axis | None:
    """Where an axis of the positions lies in the rows that a gather reads there."""
    if op.name != "gather" or axis is None or axis.dim == len(program.shape(op.ins[1])) - 1:
        return None
    offset = op.params["dimension_numbers"].offset_dims
    free = [d for d in range(len(program.shape(op.outs[0]))) if d not in offset]
    return axis._replace(dim=free[axis.dim])


def carry(op: Op, program: Program, position: int, axis: Axis | None, same: bool) -> Axis | None:
    """The axis of operand ``position`` in the result, or ``None`` if it is lost.

    Args:
      op: the operation; not a linear one.
      program: where it stands.
      position: which operand has the axis.
      axis: the axis.
      same: whether the operation works element by element.
    """
    if axis is None:
        return None
    old, new = program.shape(op.ins[position]), program.shape(op.outs[0])
    order = op.params.get("dimensions") if op.name == "reshape" else None
    if order is not None:  # transposed before it is reshaped
        axis, old = axis._replace(dim=order.index(axis.dim)), tuple(old[d] for d in order)
    if op.name in ("reshape", "squeeze"):
        return _reshape(axis, old, new)
    dim = axis.dim if same and len(old) == len(new) else _moved_to(op, axis.dim)
    if dim is None or new[dim] != old[axis.dim]:
        return None
    return axis._replace(dim=dim)


def made_axes(op: Op, program: Program, dims: Contraction) -> dict[int, Axis]:
    """Dimension of the kernel -> where its neurons run along the result of a linear operation."""
    shape = program.shape(op.outs[0])
    return {kernel: Axis(d, 1, shape[d]) for d, kernel in dims.made.items()}


def carry_all(op: Op, program: Program, axes: dict[int, Axis]) -> dict[int, Axis]:
    """The axes that are not lost by an operation with one operand that is data."""
    (data,) = program.data_ins(op)
    moved = {
        kernel: carry(op, program, data, axis, op.name not in _MOVES)
        for kernel, axis in axes.items()
    }
    return {kernel: axis for kernel, axis in moved.items() if axis is not None}


def leaf_axes(program: Program, value: int) -> dict[int, int]:
    """Which dimension of a kernel, as an operation reads it, is which of its leaf.

    Args:
      program: where the value stands.
      value: made from one leaf of the variables by moving whole dimensions,
        changing the type and scaling by constants; else nothing is known.

    Returns:
      dimension of the value -> dimension of the leaf, where either is the other, whole.
    """
    path: list[tuple[Op, int]] = []
    here = value
    while here not in program.leaves:
        op = program.made_by.get(here)
        position = None if op is None else _derived_from(op, program)
        if op is None or position is None:
            return {}
        path.append((op, position))
        here = op.ins[position]
    found: dict[int, int] = {}
    for dim, size in enumerate(program.shape(here)):
        axis: Axis | None = Axis(dim, 1, size)
        for op, position in reversed(path):
            axis = carry(op, program, position, axis, op.name in _SAME)
        if axis is not None and axis.exact(program.shape(value)):
            found.setdefault(axis.dim, dim)
    return found


def _derived_from(op: Op, program: Program) -> int | None:
    """The operand that an operation moves or scales, if it does nothing else with variables."""
    positions = [i for i, v in enumerate(op.ins) if program.origins.get(v)]
    inverted = op.name == "div" and positions == [1]
    known = op.name in _MOVES | _SAME and not inverted
    return positions[0] if known and len(positions) == 1 else None


def wide(dtype: Any) -> Any:
    """What sums of relevance are computed in: ``dtype``, or float32 if that is wider."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def per_index(values: jax.Array, axis: Axis | None) -> jax.Array:
    """``[size]``: the sum over everything but an axis, in float32 or wider; ``[1]`` over all."""
    if axis is None:
        return jnp.sum(values, dtype=wide(values.dtype)).reshape(1)
    shape = values.shape
    inner = axis.inner * math.prod(shape[axis.dim + 1 :])
    return jnp.sum(values.reshape(-1, axis.size, inner), axis=(0, 2), dtype=wide(values.dtype))
