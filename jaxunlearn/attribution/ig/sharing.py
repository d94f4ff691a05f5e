"""The first linear layers of a function, shared by all points of a straight path.

Along a straight line an affine function is affine in the line's parameter: its values at both
ends give all between, and its pullback of the summed gradients is the sum of their pullbacks. It
is then run twice and pulled back once, whatever the number of nodes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.ig.integral import Moving, Traces, windows_apart
from jaxunlearn.jaxprs.flatten import bind, held_by
from jaxunlearn.jaxprs.primitives import row_of
from jaxunlearn.jaxprs.replay import replay

LEAST = 32
"""Inputs that each output of a layer reads, from which on sharing pays (measured: below, what
it saves is less than what it takes to go from node to node on the larger outputs)."""

GROWTH = 2
"""By how much more elements than the input an operation that only moves them may have."""


class Shared(NamedTuple):
    """``fn(x) = upper(lower(x))``, with an affine ``lower``, for the leaves of x that move.

    Attributes:
      lower: from moving leaves ``[B, ...]`` to values ``[B, ...]``.
      upper: from values ``[B * c, ...]`` to the output of ``B * c`` points.
    """

    lower: Callable[[list[jax.Array]], list[jax.Array]]
    upper: Callable[[list[jax.Array]], jax.Array]


def shared(run: Traces, given: Moving, chunk: int) -> Shared | None:
    """Cuts a function behind the linear layers that read its moving input alone.

    Through dense layers, convolutions whose windows do not overlap, and operations that move,
    add or scale by constants; not through other convolutions, whose outputs are larger than
    it takes to compute them again.

    Args:
      run: the function.
      given: its input.
      chunk: points of an example taken together.

    Returns:
      ``None`` if there is no such layer, or if something of what the layers make has no
      leading axis of examples.
    """
    count = len(jax.tree.leaves(given.x)[0])
    # in two sizes: what grows with the number of examples has them along its leading axis
    several = max(chunk, 2)
    if not run.accepts(given.points(several)):
        return None
    cuts = [_Cut(run, given.points(c), given.own) for c in (1, several)]
    few, many = (cut.shapes() for cut in cuts)
    if not cuts[0].layers or [_of_more(shape, count, several) for shape in few] != many:
        return None

    def lower(moving: list[jax.Array]) -> list[jax.Array]:
        found = _Cut(run, given.whole(moving), given.own).below()
        return [value.reshape(count, -1, *value.shape[1:]) for value in found]

    def upper(points: list[jax.Array]) -> jax.Array:
        return _Cut(run, given.points(len(points[0]) // count), given.own).above(points)

    return Shared(lower, upper)


def _of_more(shape: tuple[int, ...], count: int, times: int) -> tuple[int, ...] | None:
    """Returns the shape for ``times`` as many examples as ``count``, along the leading axis."""
    if not shape or shape[0] % count:
        return None
    return (shape[0] * times, *shape[1:])


class _Affine:
    """A value that is affine in what moves; ``value`` where it is computed."""

    def __init__(self, value: Any = None) -> None:
        self.value = value


class _Beyond:
    """A value that is not; ``value`` where it is computed."""

    def __init__(self, value: Any = None) -> None:
        self.value = value


class _Cut:
    """A function at an input, cut where values stop to be affine in what moves.

    Attributes:
      layers: how many linear layers were crossed so far.
    """

    def __init__(self, run: Traces, x: Any, own: Sequence[bool]) -> None:
        self.closed = run.closed(x)
        self.leaves = jax.tree.leaves(run.variables)
        self.x, self.own = jax.tree.leaves(x), own
        self.layers = 0

    def shapes(self) -> list[tuple[int, ...]]:
        """Returns the shapes of the values at the cut."""
        return [value.shape for value in jax.eval_shape(self.below)]

    def below(self) -> list[jax.Array]:
        """Returns the values at the cut, in the order in which they are met."""
        found: list[jax.Array] = []

        def meet(value: _Affine, shape: tuple[int, ...]) -> None:
            found.append(value.value)

        self._walk(meet, below=True)
        return found

    def above(self, values: list[jax.Array]) -> jax.Array:
        """Returns the output from the values at the cut, of any shapes of as many elements."""
        rest = iter(values)
        out: jax.Array = self._walk(lambda _, shape: next(rest).reshape(shape), below=False)
        return out

    def _walk(self, meet: Callable[[_Affine, tuple[int, ...]], Any], *, below: bool) -> Any:
        """Runs what lies below the cut, or what lies above it."""
        met: dict[int, tuple[_Affine, Any]] = {}

        def plain(value: Any, shape: tuple[int, ...]) -> Any:
            if isinstance(value, _Affine):
                if id(value) not in met:
                    met[id(value)] = value, meet(value, shape)
                return met[id(value)][1]
            return value.value if isinstance(value, _Beyond) else value

        def change(eqn: Any, ins: list[Any]) -> list[Any] | None:
            affine = [isinstance(value, _Affine) for value in ins]
            beyond = any(isinstance(value, _Beyond) for value in ins)
            if not any(affine) and not beyond:
                return bind(eqn, ins)
            called = row_of(eqn.primitive.name).role == "call" and held_by(eqn) is not None
            if called and any(affine):
                return None
            if not beyond and _keeps_straight(eqn, affine):
                self.layers += row_of(eqn.primitive.name).role == "linear"
                values = [v.value if own else v for v, own in zip(ins, affine, strict=True)]
                outs = bind(eqn, values) if below else [None] * len(eqn.outvars)
                return [_Affine(out) for out in outs]
            values = [plain(v, var.aval.shape) for v, var in zip(ins, eqn.invars, strict=True)]
            outs = [None] * len(eqn.outvars) if below else bind(eqn, values)
            return [_Beyond(out) for out in outs]

        moving = [
            _Affine(leaf) if own else leaf for leaf, own in zip(self.x, self.own, strict=True)
        ]
        (out,) = replay(self.closed, [*self.leaves, *moving], change, lambda eqn: True)
        return plain(out, self.closed.out_avals[0].shape)


def _keeps_straight(eqn: Any, affine: list[bool]) -> bool:
    """Tells that results are affine in some operands, and worth to be shared.

    Args:
      eqn: an equation.
      affine: for each operand, whether it is affine; if not, it is constant.
    """
    name, row = eqn.primitive.name, row_of(eqn.primitive.name)
    if not all(jnp.issubdtype(var.aval.dtype, jnp.floating) for var in eqn.outvars):
        return False
    if row.role == "linear":
        return affine == [True, False] and _reads(eqn) >= LEAST
    if row.stops:
        return False
    if row.role == "product":
        return (name == "mul" and sum(affine) == 1) or (name == "div" and affine == [True, False])
    moves = row.role in ("layout", "pool", "sum") or row.still or row.affine == "flip"
    before = sum(
        math.prod(var.aval.shape) for var, own in zip(eqn.invars, affine, strict=True) if own
    )
    return moves and all(math.prod(var.aval.shape) <= GROWTH * before for var in eqn.outvars)


def _reads(eqn: Any) -> int:
    """Returns how many inputs an output of a linear layer reads; 0 of windows that overlap."""
    kernel, p = eqn.invars[1].aval.shape, eqn.params
    if eqn.primitive.name == "dot_general":
        return math.prod(kernel[d] for d in p["dimension_numbers"][0][1])
    if eqn.primitive.name != "conv_general_dilated" or p["batch_group_count"] != 1:
        return 0
    read = math.prod(kernel[d] for d in p["dimension_numbers"].rhs_spec[1:])
    return read if windows_apart(eqn) else 0
