"""What values are, read backwards from an operation: functions, patterns, signs.

A value may be a function of another one, element by element; the end of a softmax or of what
divides by a norm; or known to have no negative element, whatever the data.
"""

from collections.abc import Callable, Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.jaxprs.primitives import Op, Row
from jaxunlearn.jaxprs.program import Program

Whole = Literal["pass", "softmax", "logsumexp"]
"""Kinds of steps that end a pattern of several operations."""


def _still(row: Row) -> bool:
    return row.still


def _laid_out(row: Row) -> bool:
    return row.still or row.keeps


def _kept_positive(row: Row) -> bool:
    """Tells what is done to probabilities before their logarithm is taken."""
    return row.still or row.affine == "shift" or (row.role == "choice" and row.name != "select_n")


def moves_alone(row: Row) -> bool:
    """Tells that a result holds elements of the operand, and nothing else."""
    return row.still or (row.role == "layout" and not row.fills)


class Functions:
    """Finds the value that others are functions of, element by element.

    The values between a value and what is computed from it alone form a tree: the parent of
    a result is the closest value that all of its operands are functions of.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._above: dict[int, tuple[int, int]] = {}
        """Of each function of another value: that value, and how far up the first one is."""
        self._smooth: set[int] = set()

    def follow(self, op: Op) -> None:
        """Notes that a result is a function of its operands."""
        base = self.base(op.ins)
        if base is None:
            return
        depth = self._above[base][1] if base in self._above else 0
        self._above.update((out, (base, depth + 1)) for out in op.outs)
        if op.row.smooth or self.smooth(op.ins):
            self._smooth.update(op.outs)

    def base(self, values: tuple[int, ...]) -> int | None:
        """Returns the closest value that those which are data are functions of, if there is one."""
        data = [v for v in values if v in self.program.data]
        here = data[0]
        for other in data[1:]:
            while here != other:
                (up, depth), (over, height) = (self._above.get(v, (-1, 0)) for v in (here, other))
                if depth == height == 0:
                    return None
                here, other = (up, other) if depth >= height else (here, over)
        return here

    def mark(self, values: tuple[int, ...]) -> None:
        """Notes that values hold elements of a function that is not linear in pieces."""
        self._smooth.update(values)

    def start(self, value: int, through: set[int]) -> int:
        """Returns the first value that a value is a function of, by steps of a set alone."""
        while value in through and value in self._above:
            value = self._above[value][0]
        return value

    def smooth(self, values: tuple[int, ...]) -> bool:
        """Tells that one of the values is a function that is not linear in pieces."""
        return not self._smooth.isdisjoint(values)


class Patterns:
    """Looks backwards from an operation for what it is the end of.

    Softmax and its logarithm, logsumexp, normalisers.
    """

    def __init__(self, program: Program, apart: Collection[int] = ()) -> None:
        self.program = program
        self.made_by = {v: op for v, op in program.made_by.items() if v not in apart}
        # what carries no relevance is looked through, whatever rules it has
        self.every = Patterns(program) if apart else self

    def whole(self, op: Op) -> tuple[Whole, int, tuple[int, ...]] | None:
        """Returns the kind of step, its input and axes, where an operation ends one of these:

        * ``softmax(x)``;
        * ``x - logsumexp(x)``, ``log(softmax(x))`` and ``x - max(x)``: ``x`` up to a shift that
          is common to all elements, which says nothing of their differences: ``pass``;
        * ``logsumexp(x)``, with its maximum added or without.
        """
        found = self.softmax(op)
        if found is not None:
            return "softmax", *found
        for one, other in self._differences(op):
            value = self._unshifted(one)
            found = self._logsumexp(self._maker(other, _laid_out))
            if found is not None and found[0] == value:
                return "pass", value, ()
        if self.is_max(op):
            return "pass", op.ins[0], ()
        if op.name == "log":
            made = self._maker(op.ins[0], _kept_positive)
            found = None if made is None else self.softmax(made)
            if found is not None:
                return "pass", found[0], ()
        found = self._logsumexp(op)
        return None if found is None else ("logsumexp", *found)

    def _differences(self, op: Op) -> list[tuple[int, int]]:
        """Returns ``a`` and ``b`` where an operation is ``a - b``, or ``a + (-b)``."""
        if op.name == "sub":
            return [op.ins] if op.ins[1] in self.program.data else []  # type: ignore[list-item]
        found = []
        for one, other in (op.ins, op.ins[::-1]) if op.name == "add" else ():
            negated = self.made_by.get(other)
            if negated is not None and negated.name == "neg":
                found.append((one, negated.ins[0]))
        return found

    def stepwise(self, op: Op) -> int | None:
        """Returns the position of a factor that is constant in steps: a sign, a rounding."""
        for place, value in enumerate(op.ins):
            made = self.made_by.get(value)
            if made is not None and made.row.role == "function" and made.row.kink == "jump":
                return place
        return None

    def is_max(self, op: Op) -> bool:
        """Tells that an operation is ``x - max(x)``."""
        return op.name == "sub" and op.ins[1] in self.program.data and self._is_max(op)

    def _logsumexp(self, op: Op | None) -> tuple[int, tuple[int, ...]] | None:
        """Returns ``x`` and the axes, where an operation ends ``log(sum(exp(x)))``."""
        if op is None:
            return None
        if op.name == "add":
            for one, other in (op.ins, op.ins[::-1]):
                found = self._logsumexp(self._maker(one, _laid_out))
                if found is not None and self._of_max(other, found[0]):
                    return found
            return None
        if op.name != "log":
            return None
        total = self._maker(op.ins[0], lambda row: _laid_out(row) or row.name == "abs")
        if total is None or total.name != "reduce_sum":
            return None
        exp = self._maker(total.ins[0])
        if exp is None or exp.name != "exp":
            return None
        return self._unshifted(exp.ins[0]), tuple(total.params["axes"])

    def _unshifted(self, value: int) -> int:
        """Returns ``x`` of ``x - max(x)``, or the value itself."""
        shifted = self.made_by.get(value)
        if shifted is not None and shifted.name == "sub" and self._is_max(shifted):
            return shifted.ins[0]
        return value

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
        return self._unshifted(exp.ins[0]), tuple(total.params["axes"])

    def _is_max(self, shifted: Op) -> bool:
        """Tells that ``x - m`` subtracts a maximum of ``x``."""
        return self._of_max(shifted.ins[1], shifted.ins[0])

    def _of_max(self, value: int, x: int) -> bool:
        """Tells that a value is a maximum of ``x``, which changes no softmax."""
        if value not in self.program.data:
            return False
        every = self.every
        highest = every._maker(value, lambda row: _laid_out(row) or row.role == "choice")
        if highest is None or highest.name != "reduce_max":
            return False
        return every._source(highest.ins[0]) == every._source(x)

    def _maker(self, value: int, through: Callable[[Row], bool] = _still) -> Op | None:
        """Returns the operation that made a value, behind operations that only pass it on."""
        op = self.made_by.get(value)
        while op is not None and through(op.row):
            picks = op.name == "select_n"
            onward = [op.ins[i] for i in self.program.data_ins(op) if i or not picks]
            if len(set(onward)) != 1:
                return op
            op = self.made_by.get(onward[0])
        return op

    def laid_out(self, value: int) -> int:
        """Returns the value that another one holds elements of, and nothing else."""
        op = self.made_by.get(value)
        while op is not None and moves_alone(op.row) and value in self.program.data:
            value = op.ins[0]
            op = self.made_by.get(value)
        return value

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

    def _source(self, value: int) -> int:
        """Returns the value behind operations that pass it on, mask it or lay it out anew."""
        value = self._value(value)
        op = self.made_by.get(value)
        while op is not None and op.row.keeps:
            value = self._value(op.ins[0])
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
            op = self.program.made_by.get(here)
            if op is not None and (op.row.reduces or self._squares(op) or self._averages(op)):
                found = True
                continue
            if op is None or not (op.row.elementwise or op.row.keeps):
                return False
            inverted = inverted or self.program.inverts(op, self.program.data_ins(op))
            waiting.extend(op.ins)
        return found and inverted

    def _averages(self, op: Op) -> bool:
        """Tells that an operation is a product with a matrix of numbers, no variable."""
        fixed = [v for v in op.ins if v not in self.program.data]
        linear = op.row.role == "linear" and len(fixed) == 1
        return linear and not self.program.origins.get(fixed[0])

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
