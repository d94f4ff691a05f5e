"""A function run again from its jaxpr, equation by equation, some of them changed.

Calls are stepped into only where something in them is to be changed: all else keeps its
own derivative (the gradient 0 of ``jax.nn.relu`` at 0, a convolution's custom one).
"""

from collections.abc import Callable, Iterator
from typing import Any

from jax.extend import core

from jaxunlearn.attribution.trace import bind

__all__ = ["LOOPS", "equations", "replay"]

LOOPS = ("scan", "while", "cond", "shard_map")
"""Operations whose bodies are not run once, as they stand."""

_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")

Change = Callable[[Any, list[Any]], list[Any] | None]
"""From an equation and its operands to its outputs; ``None``: as it is."""


def replay(body: Any, args: list[Any], change: Change, touched: Callable[[Any], bool]) -> list[Any]:
    """The outputs of a (closed) jaxpr at flat operands.

    Args:
      body: the jaxpr.
      args: its operands.
      change: what an equation gives instead.
      touched: whether an equation is, or calls what is, to be changed.
    """
    jaxpr, consts = getattr(body, "jaxpr", body), getattr(body, "consts", ())
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    def run(eqn: Any, ins: list[Any]) -> list[Any]:
        if not touched(eqn):
            return bind(eqn, ins)
        outs = change(eqn, ins)
        if outs is not None:
            return outs
        inner = next((eqn.params[key] for key in _BODIES if key in eqn.params), None)
        return bind(eqn, ins) if inner is None else replay(inner, ins, change, touched)

    for eqn in jaxpr.eqns:
        outs = run(eqn, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def equations(part: Any) -> Iterator[Any]:
    """The equations of a jaxpr and of all that it calls; of an equation, those it calls."""
    if hasattr(part, "eqns"):
        for eqn in part.eqns:
            yield eqn
            yield from equations(eqn)
        return
    for param in part.params.values():
        for one in param if isinstance(param, tuple | list) else (param,):
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns"):
                yield from equations(inner)
