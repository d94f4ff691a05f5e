"""A function as a flat list of operations on numbered values, which depend on the data or not.

What follows sees one sequence in true execution order with every operand of every
operation: calls (``jit``, ``custom_jvp_call``, ``custom_vjp_call``, ``remat``) are stepped
into. Loops that the data goes through are written out where it is known how often they run (a
``scan``; a ``while`` that counts). Of a branch all cases are computed and the one taken is chosen;
where that is known, it alone is computed.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jaxunlearn.core.errors import ConfigError, sentence
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.core.variables import check_variables
from jaxunlearn.jaxprs import loops
from jaxunlearn.jaxprs.primitives import Op, row_of

_FOLDED = 10_000
"""Elements of a constant that is computed while tracing."""

_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")


class Flattener:
    """Numbers the values of a jaxpr and of all that it calls.

    Attributes:
      avals: shape and dtype of every value.
      consts: values known at trace time.
      data: the values that depend on the data and that relevance is sent to: not what is
        decided, and nothing without elements.
      decided: truths, orders and places that depend on the data, and what is made of them.
      followed: values that depend on data which reaches the output through decisions alone:
        what is decided of them is data, too.
      ops: the operations, in execution order.
    """

    def __init__(self) -> None:
        self.avals: dict[int, Any] = {}
        self.consts: dict[int, Any] = {}
        self.data: set[int] = set()
        self.decided: set[int] = set()
        self.followed: set[int] = set()
        self.ops: list[Op] = []
        self._made_by: dict[int, Op] = {}

    def new(self, aval: Any, data: bool = False) -> int:
        """Numbers a value not seen before."""
        number = len(self.avals)
        self.avals[number] = aval
        if data:
            self.data.add(number)
        return number

    def const(self, aval: Any, value: Any) -> int:
        """Numbers a value that is known."""
        number = self.new(aval)
        self.consts[number] = value
        return number

    def known(self, value: int) -> Any:
        """Returns a value made of constants alone; ``None`` if it is unknown, or large."""
        return folded(value, self.consts, self._made_by, self.avals)

    def inline(self, body: Any, args: list[int], callers: tuple[Any, ...] = ()) -> list[int]:
        """Appends the operations of a (closed) jaxpr; returns its outputs."""
        jaxpr, consts = getattr(body, "jaxpr", body), getattr(body, "consts", ())
        env: dict[Any, int] = {}
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self.const(var.aval, value)
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> int:
            if isinstance(atom, core.Literal):
                return self.const(atom.aval, atom.val)
            return env[atom]

        for eqn in jaxpr.eqns:
            ins = [read(atom) for atom in eqn.invars]
            outs = self._smaller(eqn, ins, callers)
            if outs is None:
                outs = self.add(eqn, ins, callers)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def add(self, eqn: Any, ins: list[int], callers: tuple[Any, ...]) -> list[int]:
        """Appends an operation; returns its results."""
        outs = [self.new(var.aval) for var in eqn.outvars]
        op = Op(eqn.primitive, eqn.params, tuple(ins), tuple(outs), eqn.source_info, callers)
        self.ops.append(op)
        self._made_by.update((out, op) for out in outs)
        self._mark(op)
        return outs

    def _mark(self, op: Op) -> None:
        """Notes which results are data, and which are decided."""
        data = self.data.intersection(op.ins)
        followed = not self.followed.isdisjoint(op.ins)
        for place, out in enumerate(op.outs):
            if not math.prod(self.avals[out].shape):
                continue  # nothing is there that relevance could be sent to
            if data and (followed or not op.decides(place, data)):
                self.data.add(out)
                if followed:
                    self.followed.add(out)
            elif data or not self.decided.isdisjoint(op.ins):
                self.decided.add(out)

    def _smaller(self, eqn: Any, ins: list[int], callers: tuple[Any, ...]) -> list[int] | None:
        """Appends what an equation does in smaller steps; ``None`` if it is one step."""
        name, role = eqn.primitive.name, row_of(eqn.primitive.name).role
        if role == "same" or (name == "device_put" and not any(eqn.params["devices"])):
            return ins
        inside = (*callers, eqn.source_info)
        if name in ("reduce", "reduce_window") and len(ins) == 2:
            plain = loops.plain(eqn)
            return None if plain is None else self._own(plain, ins, eqn, inside)
        if role in ("call", "gradient"):
            body = held_by(eqn)
            return None if body is None else self.inline(body, ins, inside)
        if role != "loop" or self.data.isdisjoint(ins):
            return None
        if name == "scan":
            return self._scan(eqn, ins, inside)
        if name == "while":
            return self._while(eqn, ins, inside)
        return self._branch(eqn, ins, inside) if name == "cond" else None

    def _scan(self, eqn: Any, ins: list[int], callers: tuple[Any, ...]) -> list[int] | None:
        """Writes a scan out: one without a carry is a map, which needs no loop."""
        p = eqn.params
        first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
        if not p["length"]:
            return None
        if first == last:
            return self.inline(loops.mapped(eqn), ins, callers)
        if p["length"] * loops.count(p["jaxpr"]) > loops.MAX_UNROLLED:
            return None
        rows = [self._own(jnp.unstack, [x], eqn, callers) for x in ins[last:]]
        carry, found = ins[first:last], {}
        order = range(p["length"])
        for i in reversed(order) if p["reverse"] else order:
            args = [*ins[:first], *carry, *(row[i] for row in rows)]
            out = self.inline(p["jaxpr"], args, callers)
            carry, found[i] = out[: p["num_carry"]], out[p["num_carry"] :]
        stacked: list[int] = []
        for column in zip(*(found[i] for i in order), strict=True):
            stacked += self._own(lambda *parts: [jnp.stack(parts)], [*column], eqn, callers)
        return carry + stacked

    def _while(self, eqn: Any, ins: list[int], callers: tuple[Any, ...]) -> list[int] | None:
        """Writes a loop out whose condition is made of constants."""
        p = eqn.params
        body = p["body_jaxpr"]
        times = loops.trips(eqn, ins, self.known)
        if times is None or times * loops.count(body) > loops.MAX_UNROLLED:
            return None
        first = p["cond_nconsts"]
        last = first + p["body_nconsts"]
        carry = ins[last:]
        for _ in range(times):
            carry = self.inline(body, [*ins[first:last], *carry], callers)
        return carry

    def _branch(self, eqn: Any, ins: list[int], callers: tuple[Any, ...]) -> list[int]:
        """Computes the branch taken, where it is known, or all of them, and chooses.

        Branches that are not taken compute with ones, from which nothing infinite comes: their
        relevance is zero, which must stay zero.
        """
        index, args = ins[0], ins[1:]
        branches, taken = eqn.params["branches"], loops.platform(eqn.params)
        taken = self.known(index) if taken is None else taken
        if taken is not None:
            return self.inline(branches[int(taken)], args, callers)

        def guard(place: int, value: int) -> int:
            if value not in self.data or not jnp.issubdtype(self.avals[value].dtype, jnp.inexact):
                return value

            def guarded(i: Any, v: Any) -> Any:
                return [lax.select_n(lax.eq(i, jnp.int32(place)), jnp.ones_like(v), v)]

            return self._own(guarded, [index, value], eqn, callers)[0]

        outs = [
            self.inline(branch, [guard(place, value) for value in args], callers)
            for place, branch in enumerate(branches)
        ]
        return [
            column[0]
            if len(set(column)) == 1
            else self._own(
                lambda i, *cases: [lax.select_n(i, *cases)], [index, *column], eqn, callers
            )[0]
            for column in zip(*outs, strict=True)
        ]

    def _own(
        self, fn: Callable[..., Any], args: list[int], eqn: Any, callers: tuple[Any, ...]
    ) -> list[int]:
        """Appends operations that stand in no code of the user's, under the line of an equation."""
        shapes = [jax.ShapeDtypeStruct(self.avals[v].shape, self.avals[v].dtype) for v in args]
        start = len(self.ops)
        outs = self.inline(jax.make_jaxpr(fn)(*shapes), args)
        about = {"source_info": eqn.source_info, "callers": callers[:-1]}
        self.ops[start:] = [op._replace(**about) for op in self.ops[start:]]
        return outs


def held_by(eqn: Any) -> Any:
    """Returns the jaxpr that a call runs; ``None`` if there is none."""
    return next((eqn.params[key] for key in _BODIES if key in eqn.params), None)


def folded(
    value: int, consts: dict[int, Any], made_by: Mapping[int, Op], avals: Mapping[int, Any]
) -> Any:
    """Returns a value made of constants alone; ``None`` if it is unknown, or large.

    What was computed is added to the constants.
    """
    if value in consts:
        constant = consts[value]
        return None if isinstance(constant, jax.core.Tracer) else constant
    op = made_by.get(value)
    if op is None or op.row.role in ("unknown", "loop") or math.prod(avals[value].shape) > _FOLDED:
        return None
    ins = [folded(v, consts, made_by, avals) for v in op.ins]
    if any(constant is None for constant in ins):
        return None
    with jax.ensure_compile_time_eval():
        consts.update(zip(op.outs, bind(op, [*map(jnp.asarray, ins)]), strict=True))
    return consts[value]


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
