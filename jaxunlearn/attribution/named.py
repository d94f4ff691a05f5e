"""The value inside a function that ``jax.ad_checkpoint.checkpoint_name`` marked."""

from collections.abc import Callable
from typing import Any

import jax

from jaxunlearn.attribution.replay import LOOPS, equations, replay
from jaxunlearn.attribution.trace import traced

__all__ = ["Named", "named"]

Named = Callable[..., tuple[jax.Array, jax.Array]]
"""``(variables, x, value=None) -> (output, value)``."""


def named(fn: Callable[[Any, jax.Array], jax.Array], name: str) -> Named:
    """``fn`` together with a value on its way, which can be replaced.

    Args:
      fn: ``(variables, x [B, ...]) -> [B, K]``; in it, once,
        ``h = jax.ad_checkpoint.checkpoint_name(h, name)``.
      name: the name.

    Returns:
      ``run(variables, x, value=None) -> (output, value)``: what ``fn`` returns and the
      named value. Where ``value`` is given, ``fn`` goes on from it; what does not go
      through the name (a skip around it) is still that of ``x``. It raises
      ``TypeError`` if the output is not one array, ``ValueError`` if the name is not
      there, or there more than once, or if ``value`` has another shape, and
      ``NotImplementedError`` if the name stands in a loop or a branch.

    Raises:
      TypeError: if ``name`` is not a string.
    """
    if not isinstance(name, str):
        raise TypeError(f"layer: expected a name given by checkpoint_name, got {name!r}")

    def run(
        variables: Any, x: jax.Array, value: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        closed, shape = traced(fn, variables, x)
        if not jax.tree_util.all_leaves([shape]):
            raise TypeError(f"fn: expected one array as output, got a {type(shape).__name__}")
        _check(closed.jaxpr, name)
        seen: list[jax.Array] = []

        def change(eqn: Any, ins: list[Any]) -> list[Any] | None:
            if _name(eqn) != name:
                return None
            seen.append(_swap(ins[0], value))
            return seen

        def touched(eqn: Any) -> bool:
            return _name(eqn) == name or any(_name(inner) == name for inner in equations(eqn))

        args = jax.tree_util.tree_leaves((variables, x))
        (out,) = replay(closed, args, change, touched)
        return out, seen[0]

    return run


def _check(jaxpr: Any, name: str) -> None:
    """Raises if the name is not given to one value, outside of loops."""
    names = [own for own in map(_name, equations(jaxpr)) if own is not None]
    if names.count(name) != 1:
        raise ValueError(
            f"layer: expected a name that fn gives to one value, of {sorted(set(names))}, "
            f"got {name!r}, which it gives to {names.count(name)}"
        )
    for eqn in equations(jaxpr):
        if eqn.primitive.name in LOOPS and any(_name(inner) == name for inner in equations(eqn)):
            raise NotImplementedError(
                f"layer: expected {name!r} outside of loops and branches, "
                f"got it in a {eqn.primitive.name}"
            )


def _swap(own: jax.Array, value: jax.Array | None) -> jax.Array:
    if value is None:
        return own
    if value.shape != own.shape:
        raise ValueError(f"value: expected the shape of the layer {own.shape}, got {value.shape}")
    return value.astype(own.dtype)


def _name(eqn: Any) -> str | None:
    return eqn.params["name"] if eqn.primitive.name == "name" else None
