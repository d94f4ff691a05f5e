"""What JAX runs as a program of its own: loops, branches, reductions by a function."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.interpreters import partial_eval

MAX_UNROLLED = 20_000
"""Operations that one loop may become."""


def count(body: Any) -> int:
    """Returns how many operations a (closed) jaxpr becomes, its loops written out."""
    total = 0
    for eqn in getattr(body, "jaxpr", body).eqns:
        held = [one for param in eqn.params.values() for one in _jaxprs(param)]
        inner = sum(map(count, held)) if held else 1
        total += inner * eqn.params["length"] if eqn.primitive.name == "scan" else inner
    return total


def _jaxprs(param: Any) -> list[Any]:
    parts = param if isinstance(param, tuple | list) else (param,)
    return [one for one in parts if hasattr(getattr(one, "jaxpr", one), "eqns")]


def mapped(eqn: Any) -> Any:
    """Returns the jaxpr of a scan without a carry, all steps at once."""
    p = eqn.params
    axes = [None if i < p["num_consts"] else 0 for i in range(len(eqn.invars))]
    step: Callable[..., Any] = core.jaxpr_as_fun(p["jaxpr"])
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    return jax.make_jaxpr(jax.vmap(step, axes, axis_size=p["length"]))(*shapes)


def trips(eqn: Any, ins: list[int], known: Callable[[int], Any]) -> int | None:
    """Returns how often a ``while`` runs; ``None`` if that is not known before the data is.

    Args:
      eqn: the loop.
      ins: its operands.
      known: from an operand to its value, if it is a constant.
    """
    p = eqn.params
    first, last = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    goes, body = p["cond_jaxpr"], p["body_jaxpr"]
    wanted = _reads(goes, [True])[first:]
    while True:  # what the condition is made of, over all steps
        further = _reads(body, wanted)[p["body_nconsts"] :]
        both = [one or other for one, other in zip(wanted, further, strict=True)]
        if both == wanted:
            break
        wanted = both
    needed = [*_reads(goes, [True])[:first], *_reads(body, wanted)[: last - first], *wanted]
    if not any(wanted):
        return None
    values = [known(v) if own else None for v, own in zip(ins, needed, strict=True)]
    if any(own and value is None for own, value in zip(needed, values, strict=True)):
        return None
    with jax.ensure_compile_time_eval():
        args = [None if value is None else jnp.asarray(value) for value in values]
        check, step = _sliced(goes, [True]), _sliced(body, wanted)
        state, times = args[last:], 0
        while check(*args[:first], *state)[0]:
            times += 1
            if times > MAX_UNROLLED:
                return None
            moved = iter(step(*args[first:last], *state))
            state = [next(moved) if own else None for own in wanted]
    return times


def _reads(closed: Any, outs: list[bool]) -> list[bool]:
    """Tells which operands some outputs of a jaxpr are made of."""
    return list(partial_eval.dce_jaxpr(closed.jaxpr, outs)[1])


def _sliced(closed: Any, outs: list[bool]) -> Callable[..., list[Any]]:
    """Returns the function that computes some outputs; operands that they do not need are left."""
    jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, outs)
    run: Callable[..., list[Any]] = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, closed.consts))
    return lambda *args: run(*(arg for arg, own in zip(args, used, strict=True) if own))


def plain(eqn: Any) -> Callable[[Any, Any], list[Any]] | None:
    """Returns a reduction by one operation as that of JAX, and what it begins with behind it.

    For JAX it is one of the reader's if what it begins with is no number that stands there.
    """
    p = dict(eqn.params)
    body: Any = p.pop("jaxpr")
    kinds: dict[str, tuple[Any, float]] = {
        "add": (lax.add, 0), "max": (lax.max, -math.inf), "min": (lax.min, math.inf)
    }  # fmt: skip
    names = [one.primitive.name for one in getattr(body, "jaxpr", body).eqns]
    dtype = eqn.outvars[0].aval.dtype
    if len(names) != 1 or names[0] not in kinds or not jnp.issubdtype(dtype, jnp.floating):
        return None
    operation, first = kinds[names[0]]

    def run(x: Any, begin: Any) -> list[Any]:
        neutral = np.asarray(first, dtype)
        if eqn.primitive.name == "reduce":
            return [operation(lax.reduce(x, neutral, operation, p["dimensions"]), begin)]
        return [operation(_window(x, neutral, operation, p), begin)]

    return run


def _window(x: Any, first: Any, operation: Any, p: dict[str, Any]) -> Any:
    size, strides = p["window_dimensions"], p["window_strides"]
    dilation = p["base_dilation"], p["window_dilation"]
    return lax.reduce_window(x, first, operation, size, strides, p["padding"], *dilation)


def platform(params: dict[str, Any]) -> int | None:
    """Returns which branch a choice between platforms takes; ``None`` for another choice."""
    platforms = params.get("branches_platforms")
    if platforms is None:
        return None
    here = jax.default_backend()
    named = [i for i, names in enumerate(platforms) if names is None or here in names]
    return named[0] if named else None
