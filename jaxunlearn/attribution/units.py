"""Groups a traced program into steps that relevance rules work on, and reads
the chain of linear units off it.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxunlearn.attribution.axes import Axis, Contraction, carry, contraction, leaf_axes
from jaxunlearn.attribution.trace import Op, Program, names

__all__ = ["Plan", "Step", "Unit", "plan"]

_LINEAR = names("dot_general conv_general_dilated")
_SUMS = names("reduce_sum reduce_window_sum")
_MAXIMA = names("reduce_max reduce_window_max")
_ADDITIONS = names("add add_any")
_LAYOUT = names(
    "reshape transpose squeeze slice dynamic_slice concatenate pad broadcast_in_dim rev "
    "gather split expand_dims"
)
_ELEMENTWISE = names(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp "
    "convert_element_type copy copy_p cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge "
    "gt integer_pow is_finite le log log1p logistic lt max min mul name ne neg not or pow "
    "reduce_precision rem round rsqrt select_n sharding_constraint sign sin sinh sqrt square "
    "stop_gradient sub tan tanh xor"
)
_AFFINE = names("add add_any sub mul div neg")
_SCALING = names("mul div")
_THROUGH = names("convert_element_type reshape transpose squeeze broadcast_in_dim")

Kind = Literal["linear", "pool", "max", "layout", "sum", "pass", "unknown"]


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


class Step(NamedTuple):
    """Operations that relevance crosses at once.

    Attributes:
      kind: ``linear`` and ``pool`` (affine in the data), ``max``, ``layout``,
        ``sum`` (of two data values), ``pass`` (element by element, one data
        value) or ``unknown``.
      ops: the operations; the first is the one that the step is named by.
      ins: the values that relevance goes to.
      outs: the values that relevance comes from.
      unit: the position of a linear step among the units.
      dims: the dimensions of a linear step.
      nonnegative: whether the input is known to have no negative element.
    """

    kind: Kind
    ops: tuple[Op, ...]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    unit: int | None = None
    dims: Contraction | None = None
    nonnegative: bool = False


class Plan(NamedTuple):
    """A program as steps.

    Attributes:
      program: what was traced.
      steps: in execution order.
      units: the linear steps as the user sees them, in execution order.
      examples: for each data value, where the axis of the examples lies; values
        in which it cannot be told are absent.
      neurons: for each data value whose features are the neurons of one unit,
        that unit and where their axis lies.
    """

    program: Program
    steps: tuple[Step, ...]
    units: tuple[Unit, ...]
    examples: dict[int, Axis]
    neurons: dict[int, tuple[int, Axis]]


def plan(program: Program) -> Plan:
    """Groups a program into steps; nothing is computed."""
    return _Planner(program).run()


class _Planner:
    """One walk over the operations; every method adds to what is known so far."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.steps: list[Step] = []
        self.units: list[Unit] = []
        self.root: dict[int, int] = {}
        self.nonnegative: set[int] = set()
        self.neurons: dict[int, tuple[int, Axis]] = {}
        self.consumers: dict[int, list[Op]] = {}
        for op in program.ops:
            for value in set(op.ins):
                self.consumers.setdefault(value, []).append(op)
        shape = program.shape(program.x)
        self.examples = {program.x: Axis(0, 1, shape[0])} if shape else {}

    def run(self) -> Plan:
        absorbed: set[int] = set()
        for op in self.program.ops:
            positions = self.program.data_ins(op)
            if not positions or op.outs[0] in absorbed:
                continue
            step = self.step(op, positions)
            absorbed.update(o.outs[0] for o in step.ops)
            self.steps.append(step)
            for inner in step.ops:
                self.follow(inner, step)
        return Plan(self.program, tuple(self.steps), tuple(self.units), self.examples, self.neurons)

    def step(self, op: Op, positions: list[int]) -> Step:
        """The step that begins with an operation on data."""
        values = tuple(op.ins[i] for i in positions)
        if op.name in _LINEAR and len(positions) == 1:
            return self.linear(op, positions[0])
        if op.name in _SUMS:
            chain = self.chain(op, _SCALING, frozenset())
            return Step("pool", (op, *chain), values, (chain or [op])[-1].outs)
        if op.name in _MAXIMA:
            return Step("max", (op,), values, op.outs)
        chosen_by_constant = op.name == "select_n" and 0 not in positions
        # Positions and sizes that depend on the data are not a layout.
        moved_by_data = op.name in ("gather", "dynamic_slice") and positions != [0]
        if (op.name in _LAYOUT and not moved_by_data) or chosen_by_constant:
            return Step("layout", (op,), values, op.outs)
        if op.name in _ELEMENTWISE:
            roots = {self.root.get(v, v) for v in values}
            if len(roots) == 1:
                self.root[op.outs[0]] = root = roots.pop()
                return Step("pass", (op,), (root,), op.outs)
            if op.name in _ADDITIONS:
                return Step("sum", (op,), values, op.outs)
        return Step("unknown", (op,), values, op.outs)

    def chain(self, op: Op, affine: frozenset[str], through: frozenset[str]) -> list[Op]:
        """What follows an operation and can be folded into it.

        As far as each intermediate value has one consumer, and up to the last
        operation of ``affine`` with a constant: what lies behind that, of
        ``through``, is left to be a step of its own.
        """
        found: list[Op] = []
        length, value = 0, op.outs[0]
        while value != self.program.out and len(self.consumers.get(value, ())) == 1:
            following = self.consumers[value][0]
            positions = self.program.data_ins(following)
            divisor = following.name == "div" and positions == [1]
            if len(positions) != 1 or divisor or following.name not in affine | through:
                break
            found.append(following)
            value = following.outs[0]
            if following.name in affine:
                length = len(found)
        return found[:length]

    def linear(self, op: Op, data: int) -> Step:
        program = self.program
        chain = self.chain(op, _AFFINE, _THROUGH)
        dims = contraction(op, program, data)
        shape = program.shape(op.ins[dims.kernel])
        contracted = [d for _, d in dims.contracted]
        in_axis, out_axis = self.kernel_axes(op, dims)
        kernel = self.path(op.ins[dims.kernel]) or f"constant:{op.name}"
        again = sum(unit.kernel == kernel for unit in self.units)
        self.units.append(
            Unit(
                kernel=kernel,
                primitive=op.name,
                out_features=math.prod(shape[d] for d in dims.made.values()),
                in_features=math.prod(shape[d] for d in contracted)
                * op.params.get("feature_group_count", 1),
                bias=self.bias(chain),
                producer=self.producer(op.ins[data], dims),
                key=f"{kernel}#{again}" if again else kernel,
                in_axis=in_axis,
                out_axis=out_axis,
            )
        )
        return Step(
            kind="linear",
            ops=(op, *chain),
            ins=(op.ins[data],),
            outs=((chain or [op])[-1]).outs,
            unit=len(self.units) - 1,
            dims=dims,
            nonnegative=op.ins[data] in self.nonnegative,
        )

    def kernel_axes(self, op: Op, dims: Contraction) -> tuple[int | None, int | None]:
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

    def path(self, value: int) -> str | None:
        """Key path of the leaf that a constant comes from."""
        leaf = self.program.leaf(value)
        return None if leaf is None else self.program.paths[leaf]

    def bias(self, chain: list[Op]) -> str | None:
        """Key path of what is added before anything else happens."""
        first = next((op for op in chain if op.name not in _THROUGH), None)
        if first is None or first.name not in _ADDITIONS:
            return None
        (constant,) = (v for v in first.ins if v not in self.program.data)
        return self.path(constant)

    def producer(self, value: int, dims: Contraction) -> str | None:
        if value not in self.neurons or len(dims.contracted) != 1:
            return None
        unit, axis = self.neurons[value]
        same = axis.dim == dims.contracted[0][0] and axis.exact(self.program.shape(value))
        return self.units[unit].kernel if same else None

    def follow(self, op: Op, step: Step) -> None:
        """Carries what is known of the operands over to the results."""
        positions = self.program.data_ins(op)
        out = op.outs[0]
        same = op.name in _ELEMENTWISE
        if step.kind == "linear" and op is step.ops[0]:
            self.begin(step)
            return
        examples = {
            carry(op, self.program, i, self.examples.get(op.ins[i]), same) for i in positions
        }
        axis = examples.pop() if len(examples) == 1 else None
        if axis is not None and step.kind != "unknown":
            self.examples.update((v, axis) for v in op.outs)
        if step.kind not in ("sum", "unknown"):
            neurons = {self.carried(op, i, same) for i in positions}
            found = neurons.pop() if len(neurons) == 1 else None
            if found is not None:
                self.neurons.update((v, found) for v in op.outs)
        if _nonnegative(op, step, self.program, self.nonnegative):
            self.nonnegative.add(out)

    def carried(self, op: Op, position: int, same: bool) -> tuple[int, Axis] | None:
        unit, axis = self.neurons.get(op.ins[position], (0, None))
        axis = carry(op, self.program, position, axis, same)
        return None if axis is None else (unit, axis)

    def begin(self, step: Step) -> None:
        """A linear operation keeps the examples apart and makes new features."""
        op, dims = step.ops[0], step.dims
        assert dims is not None
        assert step.unit is not None
        axis = self.examples.get(step.ins[0])
        if axis is not None and axis.dim in dims.kept:
            self.examples[op.outs[0]] = axis._replace(dim=dims.kept[axis.dim])
        if len(dims.made) == 1:
            (dim,) = dims.made
            size = self.program.shape(op.outs[0])[dim]
            self.neurons[op.outs[0]] = step.unit, Axis(dim, 1, size)


def _nonnegative(op: Op, step: Step, program: Program, known: set[int]) -> bool:
    """Whether a result has no negative element, whatever the data."""
    if op.name in ("exp", "exp2", "logistic", "square", "abs", "sqrt"):
        return True
    positive = [v in known or _is_nonnegative(program.consts.get(v)) for v in op.ins]
    if op.name == "max":
        return any(positive)
    keeps = step.kind in ("sum", "pool", "max", "layout") or op.name == "convert_element_type"
    indices = op.name in ("gather", "dynamic_slice")
    return keeps and (positive[0] if indices else all(positive))


def _is_nonnegative(constant: Any) -> bool:
    if constant is None or isinstance(constant, jax.core.Tracer) or np.ndim(constant):
        return False
    return bool(constant >= 0)
