"""Which values have no negative element, whatever the data: proved along the trace.

Behind a relu the negative half of an input is empty, and with it half of the passes that
some rules need.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution.flatten import Op, names
from jaxunlearn.attribution.kinds import ADDITIONS, INDEXED, LAYOUT, MAXIMA, SUMS
from jaxunlearn.attribution.trace import Program

__all__ = ["Signs"]

_ALWAYS = names("abs exp exp2 logistic rsqrt sqrt square")
_FROM_ALL = (
    LAYOUT | MAXIMA | SUMS | ADDITIONS | names("div min mul")
)  # of operands without negative elements
_FROM_FIRST = names(
    "cbrt convert_element_type copy copy_p erf expm1 floor log1p name pcast pvary "
    "reduce_precision round sharding_constraint sign sinh stop_gradient tanh"
)


class Signs:
    """What is known so far; asked for one operation after the other, in execution order."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.known: set[int] = set()
        self._above_zero: dict[int, int] = {}
        """Values that tell where another is greater than, or equal to, zero."""

    def __contains__(self, value: int) -> bool:
        return value in self.known or _is_nonnegative(self.program.consts.get(value))

    def follow(self, op: Op) -> None:
        """Notes what an operation's results are known to be."""
        if op.name in ("gt", "ge") and _is_nonnegative(self.program.consts.get(op.ins[1])):
            self._above_zero[op.outs[0]] = op.ins[0]
        if self._proves(op):
            self.known.update(op.outs)

    def _proves(self, op: Op) -> bool:
        name, ins = op.name, op.ins
        if name in _ALWAYS:
            return True
        if name == "integer_pow":
            return op.params["y"] % 2 == 0 or ins[0] in self
        if name == "mul" and ins[0] == ins[1]:
            return True
        if name == "max":
            return any(v in self for v in ins)
        if name == "clamp":
            return ins[0] in self
        if name == "select_n":
            return self._chosen(ins)
        if name in INDEXED or name in _FROM_FIRST:
            return ins[0] in self
        return name in _FROM_ALL and all(v in self for v in ins)

    def _chosen(self, ins: tuple[int, ...]) -> bool:
        """``where(x > 0, x, ...)`` is what ``x`` is where it is chosen."""
        above = self._above_zero.get(ins[0])
        cases = [v in self or (place == 1 and v == above) for place, v in enumerate(ins[1:])]
        return all(cases)


def _is_nonnegative(constant: Any) -> bool:
    if constant is None or isinstance(constant, jax.core.Tracer):
        return False
    if not isinstance(constant, np.ndarray | np.generic | int | float | jax.Array):
        return False
    if not jnp.issubdtype(np.asarray(constant).dtype, jnp.number):
        return False
    return np.size(constant) <= 10_000 and bool(np.all(np.asarray(constant) >= 0))
