"""Shapes of several operations that one rule belongs to: softmax, normalisers."""

from jaxunlearn.attribution.flatten import Op, names
from jaxunlearn.attribution.kinds import ELEMENTWISE, SHAPED
from jaxunlearn.attribution.trace import Program

__all__ = ["Patterns"]

_REDUCTIONS = names("reduce_sum reduce_max reduce_window_sum")
_STILL = names("convert_element_type copy name pcast pvary reduce_precision stop_gradient")


class Patterns:
    """Looks backwards from an operation for what it is the end of."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.made_by = program.made_by

    def softmax(self, op: Op) -> tuple[int, tuple[int, ...]] | None:
        """``x``, and the axes summed over, where an operation is the division of
        ``exp(x - max x) / sum exp(x - max x)``.
        """
        if op.name != "div":
            return None
        exp = self._maker(op.ins[0])
        total = self._maker(op.ins[1], _STILL | SHAPED)
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
        """Whether ``x - m`` subtracts what does not change a softmax: a maximum of ``x``."""
        if shifted.ins[1] not in self.program.data:
            return False
        highest = self._maker(shifted.ins[1], _STILL | SHAPED | names("max select_n"))
        return highest is not None and highest.name == "reduce_max"

    def _maker(self, value: int, through: frozenset[str] = _STILL) -> Op | None:
        """The operation that made a value, behind operations that only pass it on."""
        op = self.made_by.get(value)
        while op is not None and op.name in through:
            onward = [op.ins[i] for i in self.program.data_ins(op)]
            if len(set(onward)) != 1:
                return op
            op = self.made_by.get(onward[0])
        return op

    def _value(self, value: int) -> int:
        """What a value is behind operations that pass it on, or mask it by a constant."""
        op = self.made_by.get(value)
        while op is not None and op.name in _STILL | {"select_n"}:
            onward = self.program.data_ins(op)
            if len(onward) != 1 or (op.name == "select_n" and onward == [0]):
                break
            value = op.ins[onward[0]]
            op = self.made_by.get(value)
        return value

    def normaliser(self, op: Op) -> int | None:
        """Which operand of a product or quotient of data normalises the other.

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
            if op is not None and (op.name in _REDUCTIONS or self._squares(op)):
                found = True
                continue
            if op is None or op.name not in ELEMENTWISE | SHAPED:
                return False
            inverted = inverted or self._inverts(op)
            waiting.extend(op.ins)
        return found and inverted

    def _squares(self, op: Op) -> bool:
        """A sum of squares, written as a product of a value with itself."""
        return op.name == "dot_general" and self._value(op.ins[0]) == self._value(op.ins[1])

    def _inverts(self, op: Op) -> bool:
        if op.name == "div":
            return self.program.data_ins(op) == [1]
        if op.name == "integer_pow":
            return bool(op.params["y"] < 0)
        exponent = self.program.consts.get(op.ins[-1]) if op.name == "pow" else None
        return op.name == "rsqrt" or (exponent is not None and bool(exponent < 0))
