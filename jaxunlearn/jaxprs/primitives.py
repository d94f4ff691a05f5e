"""The primitives by what they do to relevance.

Which values have no negative element, whatever the data: proved along the trace.

Behind a relu the negative half of an input is empty, and with it half of the passes that
some rules need.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.jaxprs.program import Op, Program, names

LINEAR = names("dot_general conv_general_dilated")
SUMS = names("reduce_sum reduce_window_sum cumsum")
MAXIMA = names("reduce_max reduce_min reduce_window_max")
ADDITIONS = names("add add_any")
SUBTRACTION = names("sub")
PRODUCTS = names("mul div")
CHOICES = names("max min select_n")

INDEXED = names("gather dynamic_slice")
"""Layouts whose further operands are positions."""

LAYOUT = INDEXED | names(
    "reshape transpose squeeze slice concatenate pad broadcast_in_dim rev split expand_dims"
)

SHAPED = names("reshape squeeze broadcast_in_dim expand_dims transpose")
"""Layouts that lose nothing."""

LOSING = names("concatenate gather pad reduce_window_max select_n")
"""Of what these move, a part may be constant, or padding."""

ELEMENTWISE = names(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp "
    "convert_element_type copy copy_p cos cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge "
    "gt integer_pow is_finite le log log1p logistic lt max min mul name ne neg not or pcast pow "
    "pvary reduce_precision rem round rsqrt select_n sharding_constraint sign sin sinh sqrt "
    "square stop_gradient sub tan tanh xor"
)

AFFINE = names("add add_any sub mul div neg")
"""With constants, what can be folded into a linear operation before it."""

SCALING = names("mul div")

THROUGH = names("convert_element_type reshape transpose squeeze broadcast_in_dim pcast pvary")
"""What may lie between a linear operation and what is folded into it."""


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
