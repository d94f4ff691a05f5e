"""A jaxpr, and all that it calls, as one list of operations on numbered values.

Calls (``jit``, ``custom_jvp_call``, ``custom_vjp_call``, ``remat``) are stepped into; a
``scan`` that the data goes through is unrolled, so that every step of it has
operands of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

__all__ = ["Flattener", "Op", "names"]

MAX_UNROLLED = 20_000
"""Operations that one loop may become."""


def names(text: str) -> frozenset[str]:
    """A set of words, which reads better than a list of quoted ones."""
    return frozenset(text.split())


# Names differ between versions of JAX; all of them only call what they hold.
_CALLS = names(
    "jit pjit closed_call core_call xla_call remat remat2 checkpoint "
    "custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr"
)
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class Op(NamedTuple):
    """One primitive applied to values; a value is its number."""

    primitive: Any
    params: dict[str, Any]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    source_info: Any
    callers: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """The primitive's name."""
        return str(self.primitive.name)


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
        """A value not seen before."""
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
    """What an equation does in smaller steps; ``None`` if it is one step."""
    if eqn.primitive.name in _CALLS:
        return next(eqn.params[name] for name in _BODIES if name in eqn.params)
    if eqn.primitive.name == "scan" and data:
        size = eqn.params["length"] * len(eqn.params["jaxpr"].eqns)
        return _unrolled(eqn) if 0 < size <= MAX_UNROLLED else None
    return None


def _unrolled(eqn: Any) -> Any:
    """The jaxpr of a scan with its loop written out."""
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
