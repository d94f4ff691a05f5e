"""Groups a traced program into steps that relevance crosses at once."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.jaxprs.primitives import Axis, Contraction, Op, Row
from jaxunlearn.jaxprs.program import Program
from jaxunlearn.jaxprs.units import Unit, Units, carry, contraction

Kind = Literal[
    "linear", "pool", "max", "layout", "lookup", "sum", "pass", "softmax", "matmul", "gate",
    "choice", "unknown",
]  # fmt: skip


class Step(NamedTuple):
    """Operations that relevance crosses at once.

    Attributes:
      kind: see :func:`plan`.
      name: of the primitive, or ``softmax``; what rules and the ledger know it by.
      key: ``name``, with ``#1``, ``#2``, ... appended where there are several;
        of a linear step that of its unit, of a marked value its mark.
      ops: the operations; the first is the one that the step is named by.
      ins: the values that relevance goes to.
      outs: the values that relevance comes from.
      unit: the position of a linear step among the units.
      dims: the dimensions of a linear step.
      nonnegative: whether the input is known to have no negative element.
      axes: what a softmax runs over.
    """

    kind: Kind
    ops: tuple[Op, ...]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    name: str = ""
    key: str = ""
    unit: int | None = None
    dims: Contraction | None = None
    nonnegative: bool = False
    axes: tuple[int, ...] = ()


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
    """Groups a program into steps; nothing is computed.

    The kinds: ``linear`` (one operation with a constant kernel and what is folded into
    it); ``pool`` (sums of one data value, with a constant factor); ``max``; ``layout``;
    ``lookup`` (rows of a constant table); ``sum`` (or difference of two data values);
    ``pass`` (element by element, one data value; and what a normaliser divides);
    ``softmax``; ``matmul`` (of two data values); ``gate`` (their product element by
    element); ``choice`` (one of several, element by element); ``unknown``.
    """
    return _Planner(program).run()


class _Planner:
    """One walk over the operations; every method adds to what is known so far."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.units = Units(program)
        self.signs = Signs(program)
        self.patterns = Patterns(program)
        self.steps: list[Step] = []
        self.names: dict[tuple[str, str], int] = {}
        self.root: dict[int, int] = {}
        self.neurons: dict[int, tuple[int, Axis]] = {}
        shapes = {v: program.shape(v) for v in program.xs if v in program.data}
        self.examples = {v: Axis(0, 1, shape[0]) for v, shape in shapes.items() if shape}

    def run(self) -> Plan:
        absorbed: set[int] = set()
        for op in self.program.ops:
            positions = self.program.data_ins(op)
            if not positions:
                self.signs.follow(op)
                continue
            if op.outs[0] in absorbed:
                continue
            step = self.named(self.step(op, positions))
            absorbed.update(o.outs[0] for o in step.ops)
            self.steps.append(step)
            for inner in step.ops:
                self.follow(inner, step)
        units = tuple(self.units.found)
        return Plan(self.program, tuple(self.steps), units, self.examples, self.neurons)

    def named(self, step: Step) -> Step:
        if step.unit is not None:
            return step._replace(name=step.ops[0].name, key=self.units.found[step.unit].key)
        op = step.ops[0]
        name = step.kind if step.kind == "softmax" else op.name
        shown = op.params["name"] if name == "name" else name
        number = self.names.get((name, shown), 0)
        self.names[name, shown] = number + 1
        return step._replace(name=name, key=f"{shown}#{number}" if number else shown)

    def step(self, op: Op, positions: list[int]) -> Step:
        """Returns the step that begins with an operation on data."""
        values, role = tuple(op.ins[i] for i in positions), op.row.role
        if role == "linear":
            return self.linear(op, positions)
        if role == "pool":
            chain = self.units.chain(op, ["scale"])
            return Step("pool", (op, *chain), values, (chain or [op])[-1].outs)
        if role == "max":
            return Step("max", (op,), values, op.outs)
        if role == "indexed":
            # where to read depends on the data: the relevance belongs to what is read
            return Step("layout" if 0 in positions else "lookup", (op,), values[:1], op.outs)
        if role == "layout" or (op.name == "select_n" and 0 not in positions):
            return Step("layout", (op,), values, op.outs)
        if op.row.elementwise:
            return self.elementwise(op, values)
        return Step("unknown", (op,), values, op.outs)

    def elementwise(self, op: Op, values: tuple[int, ...]) -> Step:
        role = op.row.role
        if role == "mark":
            # not taken for its root: relevance is to stop by
            return Step("pass", (op,), values, op.outs)
        roots = {self.root.get(v, v) for v in values}
        if len(roots) == 1:
            self.root[op.outs[0]] = root = roots.pop()
            return Step("pass", (op,), (root,), op.outs)
        softmax = self.patterns.softmax(op)
        if softmax is not None:
            return Step("softmax", (op,), (softmax[0],), op.outs, axes=softmax[1])
        if role == "sum":
            return Step("sum", (op,), values, op.outs)
        if role == "product":
            normaliser = self.patterns.normaliser(op)
            if normaliser is not None:
                return Step("pass", (op,), (op.ins[1 - normaliser],), op.outs)
            return Step("gate", (op,), values, op.outs)
        if role == "choice":
            return Step("choice", (op,), op.ins[1:] if op.name == "select_n" else op.ins, op.outs)
        return Step("unknown", (op,), values, op.outs)

    def linear(self, op: Op, positions: list[int]) -> Step:
        if op.name == "dot_general" and len(positions) == 2:
            return _step("matmul", op)
        (data, *others) = positions
        if others or (op.name != "dot_general" and data != 0):
            return Step("unknown", (op,), tuple(op.ins[i] for i in positions), op.outs)
        dims = contraction(op, self.program, data)
        chain = self.units.folded(op, dims)
        self.units.add(op, dims, chain, self.neurons.get(op.ins[data]))
        return Step(
            kind="linear",
            ops=(op, *chain),
            ins=(op.ins[data],),
            outs=((chain or [op])[-1]).outs,
            unit=len(self.units.found) - 1,
            dims=dims,
            nonnegative=op.ins[data] in self.signs,
        )

    def follow(self, op: Op, step: Step) -> None:
        """Carries what is known of the operands over to the results."""
        if op is step.ops[0] and step.kind in ("linear", "matmul"):
            self.begin(op, step)
            return
        self.signs.follow(op)
        if step.kind == "lookup":
            found = carry(op, self.program, 1, self.examples.get(op.ins[1]))
            if found is not None:
                self.examples[op.outs[0]] = found
            return
        indexed = op.row.role == "indexed"
        positions = [i for i in self.program.data_ins(op) if not indexed or i == 0]
        if step.kind == "unknown" or not positions:
            return
        examples = {carry(op, self.program, i, self.examples.get(op.ins[i])) for i in positions}
        axis = examples.pop() if len(examples) == 1 else None
        if axis is not None:
            self.examples.update((v, axis) for v in op.outs)
        if step.kind not in ("sum", "gate", "choice", "softmax"):
            neurons = {self.carried(op, i) for i in positions}
            whose = neurons.pop() if len(neurons) == 1 else None
            if whose is not None:
                self.neurons.update((v, whose) for v in op.outs)

    def carried(self, op: Op, position: int) -> tuple[int, Axis] | None:
        unit, axis = self.neurons.get(op.ins[position], (0, None))
        axis = carry(op, self.program, position, axis)
        return None if axis is None else (unit, axis)

    def begin(self, op: Op, step: Step) -> None:
        """Notes that a linear operation keeps the examples apart and makes new features."""
        found = set()
        for position in self.program.data_ins(op):
            dims = contraction(op, self.program, position)
            axis = self.examples.get(op.ins[position])
            kept = None if axis is None else dims.kept.get(axis.dim)
            found.add(None if axis is None or kept is None else axis._replace(dim=kept))
        axis = found.pop() if len(found) == 1 else None
        if axis is not None:
            self.examples[op.outs[0]] = axis
        if step.unit is not None and step.dims is not None and len(step.dims.made) == 1:
            (dim,) = step.dims.made
            size = self.program.shape(op.outs[0])[dim]
            self.neurons[op.outs[0]] = step.unit, Axis(dim, 1, size)


def _step(kind: Kind, op: Op) -> Step:
    return Step(kind, (op,), op.ins, op.outs)


def _still(row: Row) -> bool:
    return row.still


def _laid_out(row: Row) -> bool:
    return row.still or row.keeps


class Patterns:
    """Looks backwards from an operation for what it is the end of: softmax, normalisers."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.made_by = program.made_by

    def softmax(self, op: Op) -> tuple[int, tuple[int, ...]] | None:
        """Returns ``x`` and the axes summed over, where an operation is the division of
        ``exp(x - max x) / sum exp(x - max x)``.
        """
        if op.name != "div":
            return None
        exp = self._maker(op.ins[0])
        total = self._maker(op.ins[1], _laid_out)
        if exp is None or exp.name != "exp" or total is None or total.name != "reduce_sum":
            return None
        if self._value(total.ins[0]) != self._value(op.ins[0]):
            return None
        axes = tuple(total.params["axes"])
        shifted = self.made_by.get(exp.ins[0])
        if shifted is not None and shifted.name == "sub" and self._is_max(shifted):
            return shifted.ins[0], axes
        return exp.ins[0], axes

    def _is_max(self, shifted: Op) -> bool:
        """Tells that ``x - m`` subtracts what does not change a softmax: a maximum of ``x``."""
        if shifted.ins[1] not in self.program.data:
            return False
        highest = self._maker(shifted.ins[1], lambda row: _laid_out(row) or row.role == "choice")
        return highest is not None and highest.name == "reduce_max"

    def _maker(self, value: int, through: Callable[[Row], bool] = _still) -> Op | None:
        """Returns the operation that made a value, behind operations that only pass it on."""
        op = self.made_by.get(value)
        while op is not None and through(op.row):
            onward = [op.ins[i] for i in self.program.data_ins(op)]
            if len(set(onward)) != 1:
                return op
            op = self.made_by.get(onward[0])
        return op

    def _value(self, value: int) -> int:
        """Returns the value behind operations that pass it on, or mask it by a constant."""
        op = self.made_by.get(value)
        while op is not None and (op.row.still or op.name == "select_n"):
            onward = self.program.data_ins(op)
            if len(onward) != 1 or (op.name == "select_n" and onward == [0]):
                break
            value = op.ins[onward[0]]
            op = self.made_by.get(value)
        return value

    def normaliser(self, op: Op) -> int | None:
        """Finds the operand of a product or quotient of data that normalises the other.

        It does if it is made of reductions (mean, sum, maximum) alone, element by element,
        and is divided by: the standard deviation of a layer norm, the length of a vector, the
        sum over a window. A product with a root of a mean is a gate, not a normalisation.

        Returns:
          The position of the normaliser among the operands, or ``None``.
        """
        if op.name == "div":
            return 1 if self._reduced(op.ins[1], inverted=True) else None
        return next((place for place in (1, 0) if self._reduced(op.ins[place], False)), None)

    def _reduced(self, value: int, inverted: bool) -> bool:
        waiting, seen, found = [value], set(), False
        while waiting:
            here = waiting.pop()
            if here not in self.program.data or here in seen:
                continue
            seen.add(here)
            op = self.made_by.get(here)
            if op is not None and (op.row.reduces or self._squares(op)):
                found = True
                continue
            if op is None or not (op.row.elementwise or op.row.keeps):
                return False
            inverted = inverted or self.program.inverts(op, self.program.data_ins(op))
            waiting.extend(op.ins)
        return found and inverted

    def _squares(self, op: Op) -> bool:
        """Tells that an operation sums squares, as a product of a value with itself."""
        return op.name == "dot_general" and self._value(op.ins[0]) == self._value(op.ins[1])


class Signs:
    """Proves which values have no negative element, whatever the data.

    Asked for one operation after the other, in execution order. Behind a relu the negative
    half of an input is empty, and with it half of the passes that some rules need.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.known: set[int] = set()
        self._above_zero: dict[int, int] = {}
        """Values that tell where another is greater than, or equal to, zero."""

    def __contains__(self, value: int) -> bool:
        return value in self.known or _is_nonnegative(self.program.consts.get(value))

    def follow(self, op: Op) -> None:
        """Notes what an operation's results are known to be."""
        if op.row.compares and _is_nonnegative(self.program.consts.get(op.ins[1])):
            self._above_zero[op.outs[0]] = op.ins[0]
        if self._proves(op):
            self.known.update(op.outs)

    def _proves(self, op: Op) -> bool:
        ins = op.ins
        match op.row.sign:
            case "always":
                return True
            case "all":
                return all(v in self for v in ins)
            case "any":
                return any(v in self for v in ins)
            case "first":
                return ins[0] in self
            case "power":
                return op.params["y"] % 2 == 0 or ins[0] in self
            case "product":
                return ins[0] == ins[1] or all(v in self for v in ins)
            case "chosen":
                # ``where(x > 0, x, ...)`` is what ``x`` is where it is chosen
                above = self._above_zero.get(ins[0])
                return all(v in self or (i == 1 and v == above) for i, v in enumerate(ins[1:]))
        return False


def _is_nonnegative(constant: Any) -> bool:
    if constant is None or isinstance(constant, jax.core.Tracer):
        return False
    if not isinstance(constant, np.ndarray | np.generic | int | float | jax.Array):
        return False
    if not jnp.issubdtype(np.asarray(constant).dtype, jnp.number):
        return False
    return np.size(constant) <= 10_000 and bool(np.all(np.asarray(constant) >= 0))
