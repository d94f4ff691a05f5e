"""Groups a traced program into steps that relevance crosses at once."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.jaxprs.callers import Own, own_steps
from jaxunlearn.jaxprs.patterns import Functions, Patterns, Signs, moves_alone
from jaxunlearn.jaxprs.primitives import Axis, Contraction, Op
from jaxunlearn.jaxprs.program import Program
from jaxunlearn.jaxprs.units import Unit, Units, carry, contraction, kept

Kind = Literal[
    "linear", "pool", "affine", "max", "layout", "lookup", "sum", "pass", "softmax", "logsumexp",
    "matmul", "gate", "choice", "mix", "order", "factors", "write", "own", "unknown",
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
      axes: what a softmax or logsumexp runs over.
      mixes: whether the results of one example depend on the others.
      functions: for each of ``ins`` that is a function of one value, element by element, the
        operations that make it; none for others, and where a linear unit reads it.
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
    mixes: bool = False
    functions: tuple[tuple[Op, ...], ...] = ()


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


def plan(program: Program, own: Sequence[str] = ()) -> Plan:
    """Groups a program into steps; nothing is computed.

    The kinds: ``linear`` (one operation with a constant kernel and what is folded into
    it); ``pool`` (sums of one data value, with a constant factor); ``affine`` (constants added
    to one data value, and scalings between them, behind no linear operation); ``max``;
    ``layout``; ``lookup`` (rows of a constant table); ``sum`` (or difference of two data
    values); ``pass`` (a function of one data value, element by element; what a normaliser
    divides; logits up to a shift that is common to all); ``softmax``; ``logsumexp``;
    ``matmul`` (of two data values); ``gate`` (their product element by element); ``choice``
    (one of several values, or a bound, element by element); ``mix`` (linear, and no unit),
    ``order`` (elements picked by size), ``factors`` (a product over positions),
    ``write`` (elements put at positions); ``unknown``.
    """
    return _Planner(program, own).run()


class _Planner:
    """One walk over the operations; every method adds to what is known so far."""

    def __init__(self, program: Program, own: Sequence[str] = ()) -> None:
        self.program = program
        ops = [op for op in program.ops if not program.data.isdisjoint(op.outs)]
        found = (Patterns(program).whole(op) for op in ops) if own else ()
        self.own_kinds = {whole[0] for whole in found if whole is not None}.intersection(own)
        groups = own_steps(ops, [name for name in own if name not in self.own_kinds])
        self.own = {group.ops[0].outs[0]: group for group in groups}
        apart = {out for group in groups for op in group.ops for out in op.outs}
        self.units = Units(program, apart)
        self.signs = Signs(program)
        self.patterns = Patterns(program, apart)
        self.steps: list[Step] = []
        self.names: dict[tuple[str, str], int] = {}
        self.functions = Functions(program)
        self.passes: set[int] = set()
        self.neurons: dict[int, tuple[int, Axis]] = {}
        shapes = {v: program.shape(v) for v in program.xs if v in program.data}
        self.examples = {v: Axis(0, 1, shape[0]) for v, shape in shapes.items() if shape}

    def run(self) -> Plan:
        absorbed: set[int] = set()
        for op in self.program.ops:
            positions = self.program.data_ins(op)
            if not positions or self.program.data.isdisjoint(op.outs):
                self.signs.follow(op)
                continue
            if op.outs[0] in absorbed:
                continue
            own = self.own.get(op.outs[0])
            step = self.named(self.step(op, positions) if own is None else self.alone(own))
            if step.kind != "own":
                step = step._replace(mixes=step.mixes or self.mixes(op, positions))
            if step.kind in ("matmul", "pool", "sum", "affine", "max"):
                smooth = map(self.smooth_function, step.ins)
                step = step._replace(functions=tuple(smooth))
            absorbed.update(o.outs[0] for o in step.ops)
            self.steps.append(step)
            for inner in step.ops:
                self.follow(inner, step)
            if step.kind == "own":
                self.keep_examples(step)
        units = tuple(self.units.found)
        return Plan(self.program, tuple(self.steps), units, self.examples, self.neurons)

    def named(self, step: Step) -> Step:
        if step.unit is not None:
            return step._replace(name=step.ops[0].name, key=self.units.found[step.unit].key)
        op = step.ops[0]
        name = step.name or op.name
        shown = op.params["name"] if name == "name" else step.key or name
        number = self.names.get((name, shown), 0)
        self.names[name, shown] = number + 1
        return step._replace(name=name, key=f"{shown}#{number}" if number else shown)

    def alone(self, own: Own) -> Step:
        """Returns the step of operations that have a rule of their own."""
        program, ops = self.program, own.ops
        made = {out for op in ops for out in op.outs}
        if own.whole:
            read = dict.fromkeys(v for op in ops for v in op.ins if v not in made)
            ins = [v for v in read if v in program.data]
            users = self.units.consumers
            needed = (v for v in made if v in program.data)
            outs = [
                v for v in sorted(needed)
                if v == program.out or any(made.isdisjoint(op.outs) for op in users.get(v, ()))
            ]  # fmt: skip
        else:
            ins = [ops[0].ins[i] for i in program.data_ins(ops[0]) if i in ops[0].values]
            outs = list(ops[0].outs)
        floats = [v for v in ins if jnp.issubdtype(program.avals[v].dtype, jnp.inexact)]
        return Step("own", ops, tuple(floats or ins), tuple(outs), own.name, own.shown)

    def keep_examples(self, step: Step) -> None:
        """Takes the examples to stay where they are in what has a rule of its own.

        Where nothing is known of it. If they do not, relevance crosses from one to another, and
        the ledger still adds up.
        """
        for out in step.outs:
            axes = {self.examples[v] for v in step.ins if v in self.examples}
            axis = axes.pop() if len(axes) == 1 and out not in self.examples else None
            if axis is not None and axis.exact(self.program.shape(step.ins[0])):
                sizes = self.program.shape(out)[axis.dim : axis.dim + 1]
                if sizes == (axis.size,):
                    self.examples[out] = axis

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
        moved = tuple(op.ins[i] for i in positions if i in op.values)
        if not moved and not op.row.elementwise:
            return Step("lookup", (op,), values, op.outs)
        if role == "layout" or (op.name == "select_n" and self.program.fixed(op, 0)):
            return Step("layout", (op,), values, op.outs)
        if role == "indexed":
            # where to read depends on the data: the relevance belongs to what is read
            return Step("layout", (op,), moved, op.outs)
        if role in _OF_VALUES:
            return Step(_OF_VALUES[role], (op,), moved, op.outs)
        if op.row.elementwise:
            return self.elementwise(op, values)
        return Step("unknown", (op,), values, op.outs)

    def elementwise(self, op: Op, values: tuple[int, ...]) -> Step:
        role, whole = op.row.role, self.patterns.whole(op)
        if whole is not None and self.patterns.is_max(op) and not self.last(op.outs[0]):
            whole = None  # what follows tells a shift from none
        if whole is not None:
            kind, value, axes = whole
            if kind in self.own_kinds:
                return Step("own", (op,), (value,), op.outs, kind, axes=axes)
            name, axis = "" if kind == "pass" else kind, self.examples.get(value)
            lost = any(v not in self.examples for v in values) or (axis and axis.dim in axes)
            mixes = axis is not None and axis.size > 1 and bool(lost)
            return Step(kind, (op,), (value,), op.outs, name, axes=axes, mixes=mixes)
        if role == "choice":
            return self.choice(op, values)
        if len(values) == 1:
            return self.of_one(op, values)
        base = self.functions.base(values)
        fixed = self.patterns.stepwise(op) if role == "product" else None
        if base is not None and fixed is not None and not self.functions.smooth(values):
            return Step("pass", (op,), (op.ins[1 - fixed],), op.outs)
        if base is not None and (role != "sum" or self.functions.smooth(values)):
            return Step("pass", (op,), (base,), op.outs)
        if role == "sum":
            return Step("gate" if self.places(op) else "sum", (op,), values, op.outs)
        if role == "product":
            normaliser = self.patterns.normaliser(op)
            if normaliser is not None:
                other = op.ins[1 - normaliser]
                axis, lost = self.examples.get(other), op.ins[normaliser] not in self.examples
                mixes = axis is not None and axis.size > 1 and lost
                return Step("pass", (op,), (other,), op.outs, mixes=mixes)
            functions = tuple(self.function(v) for v in values)
            return Step("gate", (op,), values, op.outs, functions=functions)
        return Step("unknown", (op,), values, op.outs)

    def last(self, value: int) -> bool:
        """Tells that a value becomes the output, or an exponential, and is at most laid out."""
        consumers = self.units.consumers.get(value, [])
        ends = (
            op.name == "exp" or ((op.row.still or op.row.keeps) and self.last(op.outs[0]))
            for op in consumers
        )
        return value == self.program.out or (bool(consumers) and all(ends))

    def smooth_function(self, value: int) -> tuple[Op, ...]:
        """Returns the operations of a function that is not linear in pieces."""
        return self.function(value) if self.functions.smooth((value,)) else ()

    def function(self, value: int) -> tuple[Op, ...]:
        """Returns the operations of an activation that ends in a value, laid out or not."""
        base, before = self.patterns.laid_out(value), None
        while base != before:
            before = base
            base = self.patterns.laid_out(self.functions.start(base, self.passes))
        found: list[Op] = []
        waiting, seen = [value], {base}
        while waiting:
            here = waiting.pop()
            if here not in seen and not self.constant(here):
                seen.add(here)
                op = self.program.made_by[here]
                if not (op.row.elementwise or moves_alone(op.row) or op.row.role == "decision"):
                    return ()
                if op.row.axis is not None and op.row.role == "decision":
                    return ()  # a choice among places
                found.append(op)
                waiting.extend(op.ins)
        constants = {v for op in found for v in op.ins if self.constant(v)}
        numbers = all(math.prod(self.program.shape(self.units.source(v))) == 1 for v in constants)
        return tuple(sorted(found, key=lambda op: op.outs[0])) if numbers else ()

    def constant(self, value: int) -> bool:
        """Tells that a value is the same for all data."""
        return value not in self.program.data and value not in self.program.decided

    def choice(self, op: Op, values: tuple[int, ...]) -> Step:
        cases = op.ins[1:] if op.name == "select_n" else op.ins
        data = [v for v in cases if v in self.program.data]
        if not data:
            return Step("pass", (op,), values, op.outs)  # nothing but the choice itself is data
        if len(data) == 1 and all(self.zero(v) for v in cases if v not in data):
            return Step("pass", (op,), tuple(data), op.outs)  # a relu
        return Step("choice", (op,), cases, op.outs)

    def zero(self, value: int) -> bool:
        """Tells that a constant is known to be zero."""
        constant = self.program.consts.get(self.units.source(value))
        if constant is None or isinstance(constant, jax.core.Tracer):
            return False
        return np.size(constant) == 1 and not np.any(np.asarray(constant))

    def of_one(self, op: Op, values: tuple[int, ...]) -> Step:
        """Returns the step of a function of one value: constants that are added absorb."""
        affine = ("scale", "shift", "flip")
        if self.places(op):
            return Step("pass", (op,), values, op.outs)
        if op.row.affine in affine and not self.program.inverts(op, self.program.data_ins(op)):
            ops = (op, *self.units.chain(op, affine, through=True))
            shifts = [
                one for one in ops if one.row.affine == "shift" and not any(map(self.zero, one.ins))
            ]
            if shifts and not self.within(ops, shifts):
                return Step("affine", ops, values, ops[-1].outs, name=shifts[0].name)
        return Step("pass", (op,), values, op.outs)

    def places(self, op: Op) -> bool:
        """Tells that the results are integers: places and labels, which are no amounts."""
        return not jnp.issubdtype(self.program.avals[op.outs[0]].dtype, jnp.inexact)

    def within(self, ops: tuple[Op, ...], shifts: list[Op]) -> bool:
        """Tells that the numbers which are added are part of a smooth function.

        As in ``log(1 + exp(x))`` and in ``1 - z`` for the gate ``z`` of a recurrent network:
        a number is added to a smooth function of a value, and another one is taken of the sum.
        """
        smooth, consumers = self.functions.smooth, self.units.consumers.get(ops[-1].outs[0], ())
        taken = all(one.row.smooth or one.row.role == "product" for one in consumers)
        numbers = all(self.number(one) for one in shifts)
        return bool(consumers) and taken and numbers and smooth(ops[0].ins)

    def number(self, op: Op) -> bool:
        """Tells that what an operation adds is one number that stands in the program."""
        added = (self.units.source(v) for v in op.ins if v not in self.program.data)
        return all(v in self.program.consts and not self.program.shape(v) for v in added)

    def mixes(self, op: Op, positions: list[int]) -> bool:
        """Tells that an operation computes a statistic over the examples.

        A product with a constant matrix is none: so the nodes of a graph see their neighbours.
        """
        products = op.row.role == "linear" and len(positions) > 1
        find = kept if products else carry
        reduces = op.row.role in ("pool", "max", "factors", "order")
        for position in positions if products or reduces else ():
            axis = self.examples.get(op.ins[position])
            if axis and axis.size > 1 and find(op, self.program, position, axis) is None:
                return True
        return False

    def linear(self, op: Op, positions: list[int]) -> Step:
        if len(positions) == 2:
            return Step("matmul", (op,), op.ins, op.outs)
        (data,) = positions
        if op.name != "dot_general" and data != 0:
            return Step("mix", (op,), (op.ins[data],), op.outs)
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
        if op.row.contract is not None and (op is step.ops[0] or step.kind == "own"):
            self.begin(op, step)
            return
        self.signs.follow(op)
        if op.row.elementwise and step.kind != "own":
            self.functions.follow(op)
        elif self.functions.smooth(op.ins) and moves_alone(op.row):
            self.functions.mark(op.outs)
        if op.row.elementwise and step.kind in ("pass", "sum", "choice"):
            self.passes.update(op.outs)
        if step.kind == "lookup":
            place = self.program.data_ins(op)[0]
            found = carry(op, self.program, place, self.examples.get(op.ins[place]))
            if found is not None:
                self.examples[op.outs[0]] = found
            return
        positions = [i for i in self.program.data_ins(op) if i in op.values]
        if step.kind == "unknown" or not positions:
            return
        examples = {carry(op, self.program, i, self.examples.get(op.ins[i])) for i in positions}
        axis = examples.pop() if len(examples) == 1 else None
        if axis is not None:
            self.examples.update((v, axis) for v in op.outs)
        if step.kind == "pass":
            positions = [i for i in positions if op.ins[i] in step.ins] or positions
        of_one = op.row.elementwise and self.functions.base(op.ins) is not None
        if step.axes or (step.kind == "own" and op.row.role in ("sum", "product", "choice")):
            return
        if of_one or step.kind not in ("sum", "gate", "choice", "softmax", "logsumexp"):
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
            found.add(kept(op, self.program, position, self.examples.get(op.ins[position])))
        axis = found.pop() if len(found) == 1 else None
        if axis is not None:
            self.examples[op.outs[0]] = axis
        if step.unit is not None and step.dims is not None and len(step.dims.made) == 1:
            (dim,) = step.dims.made
            size = self.program.shape(op.outs[0])[dim]
            self.neurons[op.outs[0]] = step.unit, Axis(dim, 1, size)


_OF_VALUES: dict[str, Kind] = {
    "mix": "mix", "bilinear": "mix", "order": "order", "factors": "factors", "write": "write",
}  # fmt: skip
"""Roles of primitives whose operands are values and positions, and the kinds of their steps."""
