"""Kinks: where the gradient of a function with respect to its data jumps.

Along a smooth function a quadrature of high degree is exact with a few nodes; along one with
kinks (relu, max-pool) no quadrature gains by its degree.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxunlearn.jaxprs.flatten import held_by
from jaxunlearn.jaxprs.primitives import Row, row_of
from jaxunlearn.jaxprs.program import traced

_CONSTANT, _SMOOTH, _BOUNDED, _KINKED = range(4)
"""What is known of a value: it does not move with the data; it does; it is a smooth one held
above a constant, which is a kink unless it guards a division or a root; its gradient jumps."""

_SMOOTH_CALLS = {"logaddexp", "logaddexp2", "softplus"}
"""Functions written with a maximum of which nothing remains."""


def has_kinks(fn: Callable[[Any, Any], Any], variables: Any, x: Any) -> bool:
    """Tells whether the gradient of ``fn(variables, x)`` to the floats of ``x`` jumps somewhere.

    Read off the trace: a maximum, a comparison that chooses, a sort and the like, of values that
    depend on the floats of ``x``. A maximum that the function is written with, and that its
    gradient does not see, does not count: that of a softmax, the bound below a variance. Calls
    are stepped into; an operation that is not known counts as smooth.

    Args:
      fn: any function that JAX can trace.
      variables, x: pytrees of arrays, or of their shapes and dtypes.

    Source: own.
    """
    closed, _ = traced(fn, variables, x)
    dtypes = [aval.dtype for aval in closed.in_avals[-len(jax.tree_util.tree_leaves(x)) :]]
    return jaxpr_has_kinks(closed, [jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes])


def jaxpr_has_kinks(closed: Any, moves: Sequence[bool]) -> bool:
    """Tells it of a jaxpr, of whose last operands some are the data that move."""
    count = len(closed.in_avals) - len(moves)
    states = [_CONSTANT] * count + [_SMOOTH if own else _CONSTANT for own in moves]
    return any(state >= _BOUNDED for state in _follow(closed, states))


def _follow(body: Any, states: Sequence[int]) -> list[int]:
    """Returns what is known of the outputs of a (closed) jaxpr."""
    jaxpr = getattr(body, "jaxpr", body)
    env: dict[Any, int] = dict.fromkeys(jaxpr.constvars, _CONSTANT)
    env.update(zip(jaxpr.invars, states, strict=True))
    for eqn in jaxpr.eqns:
        ins = [_CONSTANT if isinstance(v, core.Literal) else env[v] for v in eqn.invars]
        outs = [_CONSTANT] * len(eqn.outvars) if not any(ins) else _outs(eqn, ins)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [_CONSTANT if isinstance(v, core.Literal) else env[v] for v in jaxpr.outvars]


def _outs(eqn: Any, ins: list[int]) -> list[int]:
    """Returns what is known of the outputs of an equation that reads data."""
    row = row_of(eqn.primitive.name)
    if row.role in ("call", "gradient"):
        return _of_call(eqn, ins)
    match row.name:
        case "scan" | "while" | "cond":
            return _of_loop(eqn, ins)
    return [_of_one(eqn, row, ins)] * len(eqn.outvars)


def _of_one(eqn: Any, row: Row, ins: list[int]) -> int:
    # a result that is the same almost everywhere, or has no gradient by decree
    if row.kink == "rare" or row.name == "stop_gradient":
        return _CONSTANT
    worst = max(ins)
    unknown = row.role == "unknown" and row.name.startswith("reduce")
    if worst == _KINKED or row.kink == "jump" or unknown or _steps(eqn, ins):
        return _KINKED
    if row.kink == "bound":
        # a bound that moves itself is no guard
        return _BOUNDED if worst == _SMOOTH and sum(map(bool, ins)) == 1 else _KINKED
    if worst == _BOUNDED:
        return _behind_bound(row, ins)
    return _SMOOTH


def _steps(eqn: Any, ins: list[int]) -> bool:
    """Tells that floats are made from, or chosen by, something discrete that the data decide."""
    makes = any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars)
    pairs = zip(eqn.invars, ins, strict=True)
    return makes and any(
        state and not jnp.issubdtype(v.aval.dtype, jnp.inexact) for v, state in pairs
    )


def _behind_bound(row: Row, ins: list[int]) -> int:
    if row.kink == "guards" or (row.name == "div" and ins[0] < _BOUNDED):
        return _SMOOTH
    kept = row.keeps or row.still or (row.affine in ("scale", "shift") and min(ins) == 0)
    return _BOUNDED if kept else _KINKED


def _of_call(eqn: Any, ins: list[int]) -> list[int]:
    inner = held_by(eqn)
    if inner is None or eqn.params.get("name") in _SMOOTH_CALLS:
        worst = max(ins)
        return [_SMOOTH if worst < _BOUNDED else _KINKED] * len(eqn.outvars)
    return _follow(inner, ins)


def _of_loop(eqn: Any, ins: list[int]) -> list[int]:
    """Returns what is known behind a loop or a branch, followed until it does not change."""
    p = eqn.params
    if eqn.primitive.name == "cond":
        if ins[0]:
            return [_KINKED] * len(eqn.outvars)
        ways = [_follow(branch, ins[1:]) for branch in p["branches"]]
        return [max(column) for column in zip(*ways, strict=True)]
    if eqn.primitive.name == "while":
        fixed, body = ins[p["cond_nconsts"] :][: p["body_nconsts"]], p["body_jaxpr"]
        count, rows = len(ins) - p["cond_nconsts"] - p["body_nconsts"], []
        carry = ins[len(ins) - count :]
    else:
        fixed, body, count = ins[: p["num_consts"]], p["jaxpr"], p["num_carry"]
        carry, rows = ins[len(fixed) : len(fixed) + count], ins[len(fixed) + count :]
    while True:
        outs = _follow(body, [*fixed, *carry, *rows])
        grown = [max(pair) for pair in zip(carry, outs[:count], strict=True)]
        if grown == carry:
            return [*carry, *outs[count:]]
        carry = grown
