"""The operations of a function in one sequence, with every operand of every operation.

Calls (``jit``, ``custom_jvp_call``, ``custom_vjp_call``, ``remat``) are stepped into. Loops that
the data goes through are written out where it is known how often they run (a ``scan``; a
``while`` that counts). Of a branch all cases are computed and the one taken is chosen; where that
is known, it alone is computed.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

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


def bind(op: Op, ins: list[Any]) -> list[Any]:
    """Applies an operation to operands; always returns a list of outputs."""
    outs = op.primitive.bind(*ins, **op.primitive.get_bind_params(op.params))
    return list(outs) if op.primitive.multiple_results else [outs]
