"""The linear units of a program: what a rule works on, and what the user sees of it."""

import math
from typing import NamedTuple

from jaxunlearn.jaxprs.axes import Axis, Contraction, carry_all, leaf_axes, made_axes, varies
from jaxunlearn.jaxprs.primitives import ADDITIONS, AFFINE, SCALING, THROUGH
from jaxunlearn.jaxprs.program import Op, Program


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


class Units:
    """Collects the units of a program, asked for in execution order."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.found: list[Unit] = []
        self.consumers: dict[int, list[Op]] = {}
        for op in program.ops:
            for value in set(op.ins):
                self.consumers.setdefault(value, []).append(op)

    def folded(self, op: Op, dims: Contraction) -> list[Op]:
        """What follows a linear operation and can be folded into kernel and bias.

        Up to a factor that differs between the positions of one neuron: no kernel has it.
        """
        chain = self.chain(op, AFFINE, THROUGH)
        axes = made_axes(op, self.program, dims)
        for length, following in enumerate(chain):
            axes = carry_all(following, self.program, axes)
            if following.name in SCALING and not self._by_neuron(following, axes):
                return _ending_in(AFFINE, chain[:length])
        return chain

    def _by_neuron(self, op: Op, axes: dict[int, Axis]) -> bool:
        """Whether a factor is one number for each neuron."""
        (data,) = self.program.data_ins(op)
        shape = self.program.shape(op.outs[0])
        sizes, _ = varies(self.program, op.ins[1 - data], len(shape))
        whole = {axis.dim for axis in axes.values() if axis.exact(shape)}
        return {d for d, size in enumerate(sizes) if size > 1} <= whole

    def chain(self, op: Op, affine: frozenset[str], through: frozenset[str]) -> list[Op]:
        """What follows an operation and acts on nothing else.

        As far as each intermediate value has one consumer, and up to the last
        operation of ``affine`` with a constant: what lies behind that, of
        ``through``, is left to be a step of its own.
        """
        found: list[Op] = []
        value = op.outs[0]
        while value != self.program.out and len(self.consumers.get(value, ())) == 1:
            following = self.consumers[value][0]
            positions = self.program.data_ins(following)
            divisor = following.name == "div" and positions == [1]
            if len(positions) != 1 or divisor or following.name not in affine | through:
                break
            found.append(following)
            value = following.outs[0]
        return _ending_in(affine, found)

    def add(
        self, op: Op, dims: Contraction, chain: list[Op], read: tuple[int, Axis] | None
    ) -> Unit:
        """The unit of a linear operation.

        Args:
          op: the operation.
          dims: its dimensions.
          chain: what is folded into it.
          read: the unit whose neurons it reads, and where their axis lies in what it reads.
        """
        shape = self.program.shape(op.ins[dims.kernel])
        in_axis, out_axis = self._kernel_axes(op, dims)
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
            out_axis=out_axis,
        )
        self.found.append(unit)
        return unit

    def _kernel_axes(self, op: Op, dims: Contraction) -> tuple[int | None, int | None]:
        """The axes of the stored kernel that inputs and neurons run along."""
        if op.params.get("batch_group_count", 1) != 1:
            return None, None
        stored = leaf_axes(self.program, op.ins[dims.kernel])
        grouped = op.params.get("feature_group_count", 1) != 1
        contracted = [] if grouped else [d for _, d in dims.contracted]
        made = list(dims.made.values())
        return (
            stored.get(contracted[0]) if len(contracted) == 1 else None,
            stored.get(made[0]) if len(made) == 1 else None,
        )

    def _path(self, value: int) -> str | None:
        """Key path of the leaf that a constant comes from."""
        leaf = self.program.leaf(value)
        return None if leaf is None else self.program.paths[leaf]

    def _bias(self, chain: list[Op]) -> str | None:
        """Key path of what is added before anything else happens."""
        first = next((op for op in chain if op.name not in THROUGH), None)
        if first is None or first.name not in ADDITIONS:
            return None
        (constant,) = (v for v in first.ins if v not in self.program.data)
        return self._path(constant)

    def _producer(self, value: int, dims: Contraction, read: tuple[int, Axis] | None) -> str | None:
        if read is None or len(dims.contracted) != 1:
            return None
        number, axis = read
        same = axis.dim == dims.contracted[0][0] and axis.exact(self.program.shape(value))
        return self.found[number].kernel if same else None


def _ending_in(kinds: frozenset[str], ops: list[Op]) -> list[Op]:
    """Operations up to the last of some kinds."""
    length = len(ops)
    while length and ops[length - 1].name not in kinds:
        length -= 1
    return ops[:length]
