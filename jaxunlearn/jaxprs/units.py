"""The linear units of a program, and where their features and the examples run along its values.

Two axes are followed through a network: that of the examples, to sum
relevance per example whatever the layout; and that of a linear unit's
features, to know which unit's outputs are another unit's inputs. The axes of a
kernel are followed from the variables to the operation that reads it.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from jaxunlearn.jaxprs.primitives import Axis, Contraction, Op
from jaxunlearn.jaxprs.program import Program


def carry(op: Op, program: Program, position: int, axis: Axis | None) -> Axis | None:
    """Returns the axis of operand ``position`` in the result, or ``None`` if it is lost.

    Args:
      op: the operation; not a linear one.
      program: where it stands.
      position: which operand has the axis.
      axis: the axis.
    """
    if axis is None:
        return None
    row, old, new = op.row, program.shape(op.ins[position]), program.shape(op.outs[0])
    if row.axis is not None:
        found = row.axis(axis, op.params, position, old, new)
        return found or _counted(op, program, position, axis)
    same = row.elementwise and len(old) == len(new) and old[axis.dim] == new[axis.dim]
    return axis if same else None


def _counted(op: Op, program: Program, position: int, axis: Axis) -> Axis | None:
    """Follows an axis that each position reads, or writes, at its own place.

    As in ``h[arange(B), last]``, with the positions ``0, 1, ...`` along the examples.
    """
    numbers = op.params.get("dimension_numbers")
    reads = getattr(numbers, "start_index_map", None)
    places = getattr(numbers, "scatter_dims_to_operand_dims", reads)
    if numbers is None or places is None:
        return None
    window = numbers.offset_dims if reads is not None else numbers.update_window_dims
    large = op.outs[0] if reads is None else op.ins[0]
    small = op.ins[2] if reads is None else op.outs[0]
    free = [d for d in range(len(program.shape(small))) if d not in window]
    for component, dim in enumerate(places):
        if program.shape(large)[dim] != axis.size:
            continue
        along = program.counts(op.ins[1], component, axis.size)
        if along is None:
            continue
        from_large, from_small = Axis(dim, 1, axis.size), Axis(free[along], 1, axis.size)
        if position == 1:
            own = axis == Axis(along, 1, axis.size)
            found = from_small if reads is not None else from_large
        elif position == 0:
            own, found = axis == from_large, from_small if reads is not None else from_large
        else:
            own, found = axis == from_small, from_large
        if own:
            return found
    return None


def contraction(op: Op, program: Program, data: int) -> Contraction:
    """Returns the dimensions of a linear operation whose operand ``data`` is the data."""
    contract = op.row.contract
    assert contract is not None
    return contract(op.params, [len(program.shape(v)) for v in op.ins], data)


def kept(op: Op, program: Program, position: int, axis: Axis | None) -> Axis | None:
    """Returns the axis of the data of a linear operation in the result, ``None`` if it is lost.

    An axis of groups of features, which are convolved each by itself, is kept.
    """
    if axis is None:
        return None
    dims = contraction(op, program, position)
    if axis.dim in dims.kept:
        return axis._replace(dim=dims.kept[axis.dim])
    groups = op.params.get("feature_group_count", 1)
    if position or groups == 1 or axis.dim != dims.contracted[0][0]:
        return None
    width = program.shape(op.ins[position])[axis.dim] // groups
    (made,) = dims.made
    each = program.shape(op.outs[0])[made] // groups
    return (
        axis._replace(dim=made, inner=axis.inner // width * each)
        if axis.inner % width == 0
        else None
    )


def varies(program: Program, value: int, rank: int) -> tuple[tuple[int, ...], int]:
    """Returns the layout of a constant along ``rank`` dimensions, before it was broadcast to them.

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


def made_axes(op: Op, program: Program, dims: Contraction) -> dict[int, Axis]:
    """Returns, by dimension of the kernel, the axis of its neurons in the result."""
    shape = program.shape(op.outs[0])
    return {kernel: Axis(d, 1, shape[d]) for d, kernel in dims.made.items()}


def carry_all(op: Op, program: Program, axes: dict[int, Axis]) -> dict[int, Axis]:
    """Returns the axes that are not lost by an operation with one operand that is data."""
    (data,) = program.data_ins(op)
    moved = {kernel: carry(op, program, data, axis) for kernel, axis in axes.items()}
    return {kernel: axis for kernel, axis in moved.items() if axis is not None}


def leaf_axes(program: Program, value: int) -> dict[int, int]:
    """Returns the dimensions of a leaf that those of a kernel are, as an operation reads it.

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
            axis = carry(op, program, position, axis)
        if axis is not None and axis.exact(program.shape(value)):
            found.setdefault(axis.dim, dim)
    return found


def _derived_from(op: Op, program: Program) -> int | None:
    """Finds the operand that an operation only moves or scales, if the other is no variable."""
    positions = [i for i, v in enumerate(op.ins) if program.origins.get(v)]
    # of what works element by element, zero must stay zero
    known = op.row.keeps or op.row.still or op.row.affine in ("scale", "flip")
    if not known or len(positions) != 1 or program.inverts(op, positions):
        return None
    return positions[0]


class Unit(NamedTuple):
    """A linear operation of the network, with what follows it folded in.

    Attributes:
      kernel: key path of its kernel in ``variables``, joined by ``/``;
        ``"constant:<primitive>"`` where the kernel is no part of ``variables``.
      primitive: ``dot_general`` or ``conv_general_dilated``.
      out_features: how many neurons (output units or channels) it has.
      in_features: how many input units or channels it reads.
      bias: key path of the bias added straight to its output, if any.
      producer: kernel of the unit whose neuron ``n`` is input feature ``n`` of
        this one: nothing lies between but operations that keep features apart
        (relu, batch norm in inference, pools, layout), so that zeroing index
        ``n`` of the producer's ``out_axis`` takes its contribution out of
        exactly that input feature. ``None`` where it is not so: at the first unit, behind a sum of
        two branches, behind a flattening that multiplies the features.
      key: what the relevance of the unit is stored under: ``kernel``, with
        ``#1``, ``#2``, ... appended where the same kernel is applied again.
      in_axis: the axis of the kernel, as it is stored in ``variables``, that the
        input features run along: 0 of a dense kernel ``[in, out]``, 1 of one
        that is applied as ``x @ W.T``, 2 of a convolution's ``[h, w, in, out]``.
        ``None`` where no one axis of one leaf is it: the kernel is no part of
        ``variables`` or computed from it by more than moving axes, changing the
        type or scaling by constants; several axes are contracted; a
        convolution has groups.
      out_axis: the same for the neurons. Groups of features leave it whole.
      out_axes: the axes of the stored kernel that the neurons run along, from the slowest to the
        fastest; two of ``[in, heads, features]``. Empty where they are not known.
    """

    kernel: str
    primitive: str
    out_features: int
    in_features: int
    bias: str | None
    producer: str | None
    key: str
    in_axis: int | None
    out_axis: int | None
    out_axes: tuple[int, ...] = ()


class Units:
    """Collects the units of a program, asked for in execution order.

    Args:
      program: the program.
      apart: values whose operations are steps of their own: nothing is folded into them.
    """

    def __init__(self, program: Program, apart: Collection[int] = ()) -> None:
        self.program = program
        self.apart = apart
        self.found: list[Unit] = []
        self.consumers: dict[int, list[Op]] = {}
        for op in program.ops:
            for value in set(op.ins):
                self.consumers.setdefault(value, []).append(op)

    def source(self, value: int) -> int:
        """Returns the value that another one was broadcast from, its type changed; or itself."""
        op = self.program.made_by.get(value)
        while op is not None and (op.name == "broadcast_in_dim" or op.row.still):
            value = op.ins[0]
            op = self.program.made_by.get(value)
        return value

    def folded(self, op: Op, dims: Contraction) -> list[Op]:
        """Returns what follows a linear operation and can be folded into kernel and bias.

        Up to a factor that differs between the positions of one neuron: no kernel has it.
        """
        chain = self.chain(op, ("scale", "shift", "flip"), through=True)
        axes = made_axes(op, self.program, dims)
        for length, following in enumerate(chain):
            axes = carry_all(following, self.program, axes)
            if following.row.affine == "scale" and not self._by_neuron(following, axes):
                return _foldable(chain[:length])
        return chain

    def _by_neuron(self, op: Op, axes: dict[int, Axis]) -> bool:
        """Tells that a factor is one number for each neuron."""
        (data,) = self.program.data_ins(op)
        shape = self.program.shape(op.outs[0])
        sizes, _ = varies(self.program, op.ins[1 - data], len(shape))
        whole = {axis.dim for axis in axes.values() if axis.exact(shape)}
        return {d for d, size in enumerate(sizes) if size > 1} <= whole

    def chain(self, op: Op, affine: Sequence[str], through: bool = False) -> list[Op]:
        """Returns what follows an operation and acts on nothing else.

        As far as each intermediate value has one consumer, and up to the last
        operation of the kinds ``affine`` with a constant: what only lies behind that, or,
        if ``through``, between, is left to be a step of its own.
        """
        kinds = (*affine, "through") if through else tuple(affine)
        found: list[Op] = []
        value = op.outs[0]
        while value != self.program.out and len(self.consumers.get(value, ())) == 1:
            following = self.consumers[value][0]
            positions = self.program.data_ins(following)
            inverted = self.program.inverts(following, positions)
            # what is decided differs between the examples
            fixed = self.program.decided.isdisjoint(following.ins)
            known = following.row.affine in kinds and fixed
            if len(positions) != 1 or inverted or not known or following.outs[0] in self.apart:
                break
            found.append(following)
            value = following.outs[0]
        return _foldable(found)

    def add(
        self, op: Op, dims: Contraction, chain: list[Op], read: tuple[int, Axis] | None
    ) -> Unit:
        """Adds the unit of a linear operation.

        Args:
          op: the operation.
          dims: its dimensions.
          chain: what is folded into it.
          read: the unit whose neurons it reads, and where their axis lies in what it reads.
        """
        shape = self.program.shape(op.ins[dims.kernel])
        in_axis, out_axes = self._kernel_axes(op, dims)
        kernel = self._path(op.ins[dims.kernel]) or f"constant:{op.name}"
        again = sum(unit.kernel == kernel for unit in self.found)
        unit = Unit(
            kernel=kernel,
            primitive=op.name,
            out_features=math.prod(shape[d] for d in dims.made.values()),
            in_features=math.prod(shape[d] for _, d in dims.contracted)
            * op.params.get("feature_group_count", 1),
            bias=self._bias(chain),
            producer=self._producer(op.ins[dims.data], dims, read),
            key=f"{kernel}#{again}" if again else kernel,
            in_axis=in_axis,
            out_axis=out_axes[0] if len(out_axes) == 1 else None,
            out_axes=out_axes,
        )
        self.found.append(unit)
        return unit

    def _kernel_axes(self, op: Op, dims: Contraction) -> tuple[int | None, tuple[int, ...]]:
        """Returns the axes of the stored kernel that inputs and neurons run along."""
        if op.params.get("batch_group_count", 1) != 1:
            return None, ()
        stored = leaf_axes(self.program, op.ins[dims.kernel])
        grouped = op.params.get("feature_group_count", 1) != 1
        contracted = [] if grouped else [d for _, d in dims.contracted]
        made = [stored[kernel] for _, kernel in sorted(dims.made.items()) if kernel in stored]
        return (
            stored.get(contracted[0]) if len(contracted) == 1 else None,
            tuple(made) if len(made) == len(dims.made) else (),
        )

    def _path(self, value: int) -> str | None:
        """Returns the key path of the leaf that a constant comes from."""
        leaf = self.program.leaf(value)
        return None if leaf is None else self.program.paths[leaf]

    def _bias(self, chain: list[Op]) -> str | None:
        """Returns the key path of what is added before anything else happens."""
        first = next((op for op in chain if op.row.affine != "through"), None)
        if first is None or first.row.affine != "shift" or first.name == "sub":
            return None
        (constant,) = (v for v in first.ins if v not in self.program.data)
        return self._path(constant)

    def _producer(self, value: int, dims: Contraction, read: tuple[int, Axis] | None) -> str | None:
        if read is None or len(dims.contracted) != 1:
            return None
        number, axis = read
        same = axis.dim == dims.contracted[0][0] and axis.exact(self.program.shape(value))
        return self.found[number].kernel if same else None


def _foldable(ops: list[Op]) -> list[Op]:
    """Cuts off what lies behind the last operation that does something."""
    length = len(ops)
    while length and ops[length - 1].row.affine == "through":
        length -= 1
    return ops[:length]
