"""A function as a flat list of operations on numbered values, which depend on the data or not.

What follows sees one sequence in true execution order with every operand of every
operation: calls (``jit``, ``custom_jvp_call``, ``custom_vjp_call``, ``remat``) are stepped
into, and a ``scan`` that the data goes through is unrolled.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jaxunlearn.core.trees import named_leaves
from jaxunlearn.jaxprs.primitives import Op, row_of

MAX_UNROLLED = 20_000
"""Operations that one loop may become."""

_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Flattener:
    """Numbers the values of a jaxpr and of all that it calls.

    Attributes:
      avals: shape and dtype of every value.
      consts: values known at trace time.
      data: the values that depend on the data.
      ops: the operations, in execution order.
    """

    def __init__(self) -> None:
        self.avals: dict[int, Any] = {}
        self.consts: dict[int, Any] = {}
        self.data: set[int] = set()
        self.ops: list[Op] = []

    def new(self, aval: Any, data: bool = False) -> int:
        """Numbers a value not seen before."""
        number = len(self.avals)
        self.avals[number] = aval
        if data:
            self.data.add(number)
        return number

    def _const(self, aval: Any, value: Any) -> int:
        number = self.new(aval)
        self.consts[number] = value
        return number

    def inline(self, body: Any, args: list[int], callers: tuple[Any, ...] = ()) -> list[int]:
        """Appends the operations of a (closed) jaxpr; returns its outputs."""
        jaxpr, consts = getattr(body, "jaxpr", body), getattr(body, "consts", ())
        env: dict[Any, int] = {}
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self._const(var.aval, value)
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> int:
            if isinstance(atom, core.Literal):
                return self._const(atom.aval, atom.val)
            return env[atom]

        for eqn in jaxpr.eqns:
            ins = [read(atom) for atom in eqn.invars]
            data = not self.data.isdisjoint(ins)
            inner = _body(eqn, data)
            if inner is not None:
                outs = self.inline(inner, ins, (*callers, eqn.source_info))
            else:
                outs = [self.new(var.aval, data) for var in eqn.outvars]
                source = eqn.source_info, callers
                self.ops.append(Op(eqn.primitive, eqn.params, tuple(ins), tuple(outs), *source))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]


def _body(eqn: Any, data: bool) -> Any:
    """Returns what an equation does in smaller steps; ``None`` if it is one step."""
    if row_of(eqn.primitive.name).role in ("call", "gradient"):
        return held_by(eqn)
    if eqn.primitive.name == "scan" and data:
        size = eqn.params["length"] * len(eqn.params["jaxpr"].eqns)
        return _unrolled(eqn) if 0 < size <= MAX_UNROLLED else None
    return None


def held_by(eqn: Any) -> Any:
    """Returns the jaxpr that a call runs; ``None`` if there is none."""
    return next((eqn.params[key] for key in _BODIES if key in eqn.params), None)


def _unrolled(eqn: Any) -> Any:
    """Returns the jaxpr of a scan with its loop written out."""
    p = eqn.params
    step: Callable[..., Any] = core.jaxpr_as_fun(p["jaxpr"])
    first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
    order = range(p["length"])

    def loop(*args: Any) -> list[Any]:
        carry, found = list(args[first:last]), {}
        for i in reversed(order) if p["reverse"] else order:
            row = (lax.index_in_dim(x, i, keepdims=False) for x in args[last:])
            out = step(*args[:first], *carry, *row)
            carry, found[i] = list(out[: p["num_carry"]]), out[p["num_carry"] :]
        stacked = zip(*(found[i] for i in order), strict=True)
        return carry + [jnp.stack(column) for column in stacked]

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    return jax.make_jaxpr(loop)(*shapes)


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
    origins: dict[int, frozenset[int]]
    made_by: dict[int, Op]

    def shape(self, value: int) -> tuple[int, ...]:
        """Returns the shape of a value."""
        return tuple(self.avals[value].shape)

    def data_ins(self, op: Op) -> list[int]:
        """Returns the positions of the operands that depend on the data."""
        return [i for i, v in enumerate(op.ins) if v in self.data]

    def inverts(self, op: Op, varying: list[int]) -> bool:
        """Tells that an operation's result falls where the operands at some positions grow."""
        known = op.row.inverts
        return known is not None and known(op.params, varying, [*map(self.consts.get, op.ins)])

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

        infos = (*op.callers[:1], op.source_info)
        lines = [str(source_info_util.summarize(info)) for info in infos]
    except Exception:  # a private helper: a message must not depend on it
        lines = []
    known = [line for line in dict.fromkeys(lines) if line]
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
    closed, shapes = traced(fn, variables, x)
    if not jax.tree_util.all_leaves([shapes]):
        raise TypeError(f"fn: expected one array as output, got a {type(shapes).__name__}")

    count = len(jax.tree_util.tree_leaves(x))
    flat, args, out = _flatten(closed, _followed(closed, count))
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
        origins=_origins(ops, leaves, flat.data),
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
        raise ValueError(f"x: expected arrays with one leading axis of examples, got {shapes}")


def _flatten(closed: Any, followed: list[bool]) -> tuple[Flattener, list[int], int]:
    """Numbers the values of a jaxpr, of whose last operands some are data."""
    flat = Flattener()
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


def bind(op: Op, ins: list[Any]) -> list[Any]:
    """Applies an operation to operands; always returns a list of outputs."""
    outs = op.primitive.bind(*ins, **op.primitive.get_bind_params(op.params))
    return list(outs) if op.primitive.multiple_results else [outs]


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


def wide(dtype: Any) -> Any:
    """Returns what sums are computed in: ``dtype``, or float32 if that is wider."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
