"""A function as a flat list of operations on numbered values, which depend on the data or not.

What follows sees one sequence in true execution order; ``flatten.py`` makes it of a jaxpr.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.errors import ConfigError, sentence
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.core.variables import check_variables
from jaxunlearn.jaxprs.flatten import Flattener, bind, folded
from jaxunlearn.jaxprs.primitives import Op


class Program(NamedTuple):
    """A traced ``fn(variables, x)``.

    Attributes:
      ops: what the output needs, in execution order.
      avals: shape and dtype of every value.
      leaves: the values that are leaves of ``variables``.
      paths: the key path of each leaf, joined by ``/``.
      xs: the values that are the leaves of ``x``.
      out: the value that is the output.
      consts: values known at trace time (literals, arrays closed over).
      data: the values that depend on ``x``, as far as it is followed (:func:`trace`).
      decided: truths, orders and places that depend on ``x``, and what is made of them alone:
        relevance takes them for constants.
      origins: for each other value, the positions in ``leaves`` it comes from.
      made_by: the operation that each value is a result of.
    """

    ops: tuple[Op, ...]
    avals: dict[int, Any]
    leaves: tuple[int, ...]
    paths: tuple[str, ...]
    xs: tuple[int, ...]
    out: int
    consts: dict[int, Any]
    data: frozenset[int]
    decided: frozenset[int]
    origins: dict[int, frozenset[int]]
    made_by: dict[int, Op]

    def shape(self, value: int) -> tuple[int, ...]:
        """Returns the shape of a value."""
        return tuple(self.avals[value].shape)

    def data_ins(self, op: Op) -> list[int]:
        """Returns the positions of the operands that depend on the data."""
        return [i for i, v in enumerate(op.ins) if v in self.data]

    def fixed(self, op: Op, position: int) -> bool:
        """Tells that an operand is the same for all data."""
        return op.ins[position] not in self.data and op.ins[position] not in self.decided

    def inverts(self, op: Op, varying: list[int]) -> bool:
        """Tells that an operation's result falls where the operands at some positions grow."""
        known = op.row.inverts
        return known is not None and known(op.params, varying, [*map(self.consts.get, op.ins)])

    def known(self, value: int) -> Any:
        """Returns a value made of constants alone; ``None`` if it is unknown, or large."""
        return folded(value, self.consts, self.made_by, self.avals)

    def counts(self, indices: int, component: int, size: int) -> int | None:
        """Returns the dimension that a component of positions counts along: ``0, 1, ...``.

        Args:
          indices: the positions ``[..., components]``.
          component: which one.
          size: of the dimension.
        """
        op = self.made_by.get(indices)
        if op is not None and op.name == "concatenate":
            widths = [self.shape(v)[-1] for v in op.ins]
            if set(widths) != {1}:
                return None
            indices, component = op.ins[component], 0
        values = self.known(indices)
        if values is None:
            return None
        values = np.asarray(values)[..., component]
        for dim in range(values.ndim):
            counted = np.arange(size).reshape(-1, *[1] * (values.ndim - dim - 1))
            if values.shape[dim] == size and np.array_equal(
                values, np.broadcast_to(counted, values.shape)
            ):
                return dim
        return None

    def leaf(self, value: int) -> int | None:
        """Returns the largest leaf that a value which is not data comes from.

        Largest, because a kernel may be scaled on its way (weight
        standardisation, spectral norm): the kernel is then what counts.
        """
        origins = self.origins.get(value)
        if not origins:
            return None
        return max(sorted(origins), key=lambda i: math.prod(self.shape(self.leaves[i])))


def where(op: Op) -> str:
    """Returns file and line of the caller's code that an operation stems from.

    Inside a jitted function, first the line that called it: the function may
    have been traced for another caller, whose lines it then remembers.
    """
    try:
        from jax._src import source_info_util

        infos = (*op.callers, op.source_info)
        lines = [str(source_info_util.summarize(info)) for info in infos]
    except Exception:  # a private helper: a message must not depend on it
        lines = []
    known = [line for line in dict.fromkeys(lines) if line and "unknown" not in line]
    known = known[:1] + known[1:][-1:]
    return " -> ".join(known) or "an unknown line"


def _live(ops: list[Op], out: int) -> tuple[Op, ...]:
    """Returns the operations that the output needs."""
    needed, kept = {out}, []
    for op in reversed(ops):
        if needed.intersection(op.outs):
            needed.update(op.ins)
            kept.append(op)
    return tuple(reversed(kept))


def trace(fn: Callable[[Any, Any], jax.Array], variables: Any, x: Any) -> Program:
    """Traces ``fn(variables, x)`` without computing anything.

    Of several leaves of ``x`` those of floats are followed, and those of integers that rows of
    a table are looked up at (tokens); where there are neither, all integers. Masks, lengths
    and other integers are taken for constants.

    Args:
      fn: any function that JAX can trace, from two pytrees to one array.
      variables: a pytree of arrays, or of their shapes and dtypes.
      x: the data: an array ``[B, ...]``, or a pytree of arrays with one leading axis; or their
        shapes and dtypes.

    Raises:
      TypeError: if the output is not one array, or there is no leaf of ``x`` to follow.
      ValueError: if the leaves of ``x`` have no common leading axis, or the output does not
        depend on ``x``.
    """
    check_examples(x)
    closed, shapes = traced_call(fn, variables, x)
    if not jax.tree_util.all_leaves([shapes]):
        raise TypeError(f"fn: expected one array as output, got a {type(shapes).__name__}")

    count = len(jax.tree_util.tree_leaves(x))
    flat, args, out = _flatten(closed, _followed(closed, count))
    lost = {v for v in flat.data.intersection(args) if v not in _reaching(flat, out)}
    if lost:  # through decisions alone, if at all: those are followed, then
        flat, args, out = _flatten(closed, [v in flat.data for v in args[-count:]], lost)
    leaves, xs = args[:-count], args[-count:]
    ops = _live(flat.ops, out)
    if out not in flat.data:
        raise ValueError("fn: expected an output that depends on x, got a constant")
    return Program(
        ops=ops,
        avals=flat.avals,
        leaves=tuple(leaves),
        paths=tuple(named_leaves(variables)),
        xs=tuple(xs),
        out=out,
        consts=flat.consts,
        data=frozenset(flat.data),
        decided=frozenset(flat.decided),
        origins=_origins(ops, leaves, flat.data | flat.decided),
        made_by={out: op for op in ops for out in op.outs},
    )


def check_examples(x: Any) -> None:
    """Refuses an input that is no array and no pytree of arrays with one leading axis.

    Raises:
      TypeError: if it holds no array.
      ValueError: if an array has no leading axis, or one of another length.
    """
    if jax.tree_util.all_leaves([x]):
        return
    shapes = {
        key: tuple(getattr(leaf, "shape", np.shape(leaf))) for key, leaf in named_leaves(x).items()
    }
    if not shapes:
        raise TypeError(f"x: expected an array or a pytree of arrays, got {x!r}")
    if len({shape[:1] for shape in shapes.values()} | {()}) != 2 or () in shapes.values():
        shown = ", ".join(f"{key} {list(shape)}" for key, shape in list(shapes.items())[:4])
        more = f" and {len(shapes) - 4} more" if len(shapes) > 4 else ""
        raise ValueError(
            f"x: expected arrays with one leading axis of examples, got {shown}{more}; nested "
            "lists are trees of numbers: make an array of them"
        )


def _reaching(flat: Flattener, out: int) -> set[int]:
    """Returns the data that a value is made of."""
    reaching = {out} & flat.data
    for op in reversed(flat.ops):
        if not reaching.isdisjoint(op.outs):
            reaching.update(flat.data.intersection(op.ins))
    return reaching


def _flatten(
    closed: Any, followed: list[bool], lost: Collection[int] = ()
) -> tuple[Flattener, list[int], int]:
    """Numbers the values of a jaxpr, of whose last operands some are data.

    Decisions on data of the ``lost`` operands are data.
    """
    flat = Flattener()
    flat.followed.update(lost)
    data = [False] * (len(closed.in_avals) - len(followed)) + followed
    args = [flat.new(aval, own) for aval, own in zip(closed.in_avals, data, strict=True)]
    (out,) = flat.inline(closed, args)
    return flat, args, out


def _followed(closed: Any, count: int) -> list[bool]:
    """Tells which of the last ``count`` operands of a jaxpr are data, see :func:`trace`."""
    types = [aval.dtype for aval in closed.in_avals[-count:]]
    floats = [jnp.issubdtype(dtype, jnp.inexact) for dtype in types]
    if count == 1 or all(floats):
        return [True] * count
    flat, args, _ = _flatten(closed, [True] * count)
    looked_up = [_looked_up(flat, value) for value in args[-count:]]
    integers = [jnp.issubdtype(dtype, jnp.integer) for dtype in types]
    found = [own or row for own, row in zip(floats, looked_up, strict=True)]
    found = found if any(found) else integers
    if not any(found):
        raise TypeError(f"x: expected a leaf of floats or integers, got {[*map(str, types)]}")
    return found


def _looked_up(flat: Flattener, leaf: int) -> bool:
    """Tells that a leaf of integers says which rows of a constant are read."""
    reached = {leaf}
    for op in flat.ops:
        if reached.isdisjoint(op.ins):
            continue
        row = op.row
        if row.role == "indexed" and op.ins[0] not in flat.data:
            return True
        if row.elementwise or row.moves:
            whole = (v for v in op.outs if jnp.issubdtype(flat.avals[v].dtype, jnp.integer))
            reached.update(whole)
    return False


def traced(fn: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """Returns the closed jaxpr of ``fn(*args)``, and the shapes of its outputs."""
    return jax.make_jaxpr(fn, return_shape=True)(*jax.tree.map(_shape, args))


def traced_call(fn: Callable[[Any, Any], Any], variables: Any, x: Any) -> tuple[Any, Any]:
    """Returns what :func:`traced` does of a function of the user's, whose errors say more.

    Raises:
      TypeError: ``fn`` is no function, or ``variables`` are none.
      ConfigError: ``fn`` reads variables that are not there.
      TypeError, ValueError: those that ``fn`` raises, with the shape of ``x``.
    """
    if not callable(fn):
        advice = "; give its .apply" if hasattr(fn, "apply") else ""
        raise TypeError(f"fn: expected a function (variables, x), got {type(fn).__name__}{advice}")
    check_variables(variables)
    try:
        return traced(fn, variables, x)
    except KeyError as error:
        held = ", ".join(list(named_leaves(variables))[:3])
        message = f"variables: expected those that fn reads, {error} too, got {held}"
        raise ConfigError(message) from error
    except (TypeError, ValueError) as error:
        kind = type(error)
        if kind not in (TypeError, ValueError) or str(error).startswith(_OURS):
            raise
        shapes = ", ".join(str(list(np.shape(leaf))) for leaf in jax.tree_util.tree_leaves(x))
        raise kind(
            f"fn: expected a function that takes variables and a batch x [B, ...], got an error "
            f"for x of shape {shapes}: {sentence(error)}"
        ) from error


_OURS = ("fn:", "x:", "layer:", "variables:")
"""Beginnings of messages that say already what was expected."""


def _shape(value: Any) -> Any:
    """Returns an operand of a trace, which inside ``shard_map`` says along which axes it varies."""
    varies = getattr(getattr(value, "aval", None), "vma", None)
    if not varies:
        return value
    return jax.ShapeDtypeStruct(value.shape, value.dtype, vma=varies)  # type: ignore[call-arg]


def _origins(ops: tuple[Op, ...], leaves: list[int], data: set[int]) -> dict[int, frozenset[int]]:
    """Returns the leaves that each value which is not data comes from."""
    origins = {value: frozenset([i]) for i, value in enumerate(leaves)}
    for op in ops:
        if data.isdisjoint(op.ins):
            union = frozenset[int]().union(*(origins.get(v, frozenset()) for v in op.ins))
            origins.update((v, union) for v in op.outs)
    return origins


def evaluate(program: Program, variables: Any, x: Any, until: int | None = None) -> dict[int, Any]:
    """Computes all values of a program, or those up to the value ``until``."""
    env: dict[int, Any] = dict(program.consts)
    env.update(zip(program.leaves, map(_array, jax.tree_util.tree_leaves(variables)), strict=True))
    env.update(zip(program.xs, map(_array, jax.tree_util.tree_leaves(x)), strict=True))
    for op in program.ops:
        if until in env:
            break
        env.update(zip(op.outs, bind(op, [env[v] for v in op.ins]), strict=True))
    return env


def _array(value: Any) -> Any:
    # Typed keys and tracers are jax.Arrays already and stay as they are.
    return value if isinstance(value, jax.Array) else jnp.asarray(value)


def varying_axes(value: Any) -> frozenset[str]:
    """Returns the axes of a mesh over which a value varies inside ``shard_map``; none elsewhere."""
    aval = getattr(value, "aval", value)
    manual = getattr(aval, "manual_axis_type", aval)  # of versions of JAX before, the type itself
    return frozenset(getattr(manual, "varying", None) or getattr(manual, "vma", None) or ())


def wide(dtype: Any) -> Any:
    """Returns what sums are computed in: ``dtype``, or float32 if that is wider."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
