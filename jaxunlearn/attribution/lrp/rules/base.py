"""What a rule is.

In the formulas of this package ``a`` is what a unit reads, ``z = W a + c`` what it yields
with bias and batch norm folded in (``W`` and ``c`` are the folded ones), ``R`` the
relevance of ``z``, ``x+ = max(x, 0)``, ``x- = min(x, 0)`` and ``stab(z) = z + eps sign(z)``
with ``sign(0) = +1``. A rule returns the relevance of ``a``.

Which rule for which part of a network.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.lrp.affine import Affine
from jaxunlearn.jaxprs.units import Unit


class Loss(NamedTuple):
    """What a rule absorbs, element by element of the outputs of its step.

    Attributes:
      bias: by the bias, batch norm's shift included.
      stabilizer: by what keeps a denominator from zero.
      dead: by units without any contribution to share it among (a window of zeros).
    """

    bias: jax.Array
    stabilizer: jax.Array
    dead: jax.Array


def no_loss(like: jax.Array) -> Loss:
    """Nothing absorbed."""
    nothing = jnp.zeros_like(like)
    return Loss(nothing, nothing, nothing)


class Propagated(NamedTuple):
    """What a rule may return instead of the relevance alone.

    Attributes:
      relevance: of ``a``.
      loss: what was absorbed on the way, for the ledger.
    """

    relevance: jax.Array
    loss: Loss


Propagate = Callable[[Affine, jax.Array, jax.Array, jax.Array], jax.Array | Propagated]
"""``(affine, a, z, R of z) -> R of a``; ``a`` and ``z`` are those of the forward pass."""


class Rule(NamedTuple):
    """A rule for one linear unit.

    Attributes:
      name: for messages.
      propagate: :data:`Propagate`, pure.
    """

    name: str
    propagate: Propagate


def stabilize(z: jax.Array, eps: float | jax.Array) -> jax.Array:
    """``z + eps sign(z)`` with ``sign(0) = +1``: never zero for ``eps > 0``."""
    return z + jnp.where(z >= 0, eps, -eps).astype(z.dtype)


def share(
    portion: jax.Array, linear: jax.Array, shift: jax.Array | None, eps: float | jax.Array
) -> tuple[jax.Array, Loss]:
    """``s = portion / stab(linear + shift)``, and what of the portion is not passed on.

    What is passed on is ``linear * s``: the contributions to a unit sum to ``linear``.

    Args:
      portion: the relevance to be shared out.
      linear: the sum of the contributions that share it.
      shift: what stands in the denominator beside them; ``None`` for nothing.
      eps: the stabiliser; 0 drops what sits on a denominator of zero.
    """
    z = linear if shift is None else linear + shift
    exact = isinstance(eps, float | int) and eps == 0
    if not exact:
        below = stabilize(z, eps)
        s = portion / below
    else:
        empty = z == 0
        below = jnp.where(empty, jnp.ones_like(z), z)
        s = jnp.where(empty, jnp.zeros_like(z), portion / below)
    dead = linear == 0
    if exact:
        dead = dead | (z == 0)
    nothing = jnp.zeros_like(z)
    return s, Loss(
        bias=nothing if shift is None else jnp.where(dead, nothing, shift * s),
        stabilizer=jnp.where(dead, nothing, (below - z) * s) if not exact else nothing,
        dead=jnp.where(dead, portion, nothing),
    )


def check_positive(name: str, value: float, hint: str = "") -> None:
    """:class:`ValueError` unless a number is positive."""
    if not value > 0:
        raise ValueError(f"{name}: expected a positive number, got {value}{hint}")


class Operation(NamedTuple):
    """One primitive operation of the forward pass.

    Attributes:
      name: of the primitive.
      params: of the primitive, as in a jaxpr.
      ins: values of all operands.
      outs: values of all results.
      data: positions of the operands that depend on the data.
    """

    name: str
    params: dict[str, Any]
    ins: list[jax.Array]
    outs: list[jax.Array]
    data: list[int]


class OperationRule(NamedTuple):
    """A rule for a primitive; :func:`operation` makes one."""

    name: str
    propagate: Callable[[Operation, list[jax.Array]], Sequence[jax.Array]]


Pattern = str | int | tuple[str | int, ...]
"""A regular expression searched for in a unit's key; or the name of a primitive; or the
position of a unit in execution order, from the end where negative; or several of these, all
of which must match: ``(0, "conv_general_dilated")``."""

Rules = Rule | Propagate | Sequence[tuple[Pattern, Rule | Propagate | OperationRule]]
"""One rule for all linear units, or pairs ``(pattern, rule)``, the first that matches wins:
``[(0, flat()), ("head", epsilon(0.1)), ("conv_general_dilated", zplus()), ("", epsilon())]``.
A rule of one's own is a function :data:`~jaxunlearn.attribution.lrp.rules.base.Propagate`. A
pair with an :func:`operation` is for a primitive alone."""


def operation(
    propagate: Callable[[Operation, list[jax.Array]], Sequence[jax.Array]],
) -> OperationRule:
    """A rule for a primitive that is not a linear unit: one that is not covered, or
    another way for one that is (``("sort", operation(...))``, ``("add", operation(...))``).

    Args:
      propagate: ``(operation, relevance of each result) -> relevance of each operand in
        operation.data``, shaped like those operands.

    Source: own.
    """
    if not callable(propagate):
        raise TypeError(f"propagate: expected a function, got {type(propagate).__name__}")
    return OperationRule(getattr(propagate, "__name__", "operation"), propagate)


def check(rules: Rules) -> None:
    """Raises ``TypeError`` or ``ValueError`` unless ``rules`` is of the type it says."""
    if isinstance(rules, Rule) or callable(rules):
        _check_made(rules)
        return
    if not isinstance(rules, Sequence) or isinstance(rules, str):
        raise TypeError(f"rules: expected a Rule or pairs (pattern, Rule), got {rules!r}")
    for pair in rules:
        _check_pair(pair)


def _check_pair(pair: Any) -> None:
    message = f"rules: expected a list of pairs (pattern, Rule), got {pair!r} in it"
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise TypeError(message)
    pattern, rule = pair
    conditions = pattern if isinstance(pattern, tuple) else (pattern,)
    kinds = {type(one) for one in conditions}
    if not kinds or not kinds <= {str, int}:
        raise TypeError(message)
    if not (isinstance(rule, Rule | OperationRule) or callable(rule)):
        raise TypeError(message)
    if isinstance(rule, OperationRule) and not isinstance(pattern, str):
        raise TypeError(f"rules: expected the name of a primitive for operation(), got {pattern!r}")
    _check_made(rule)
    for one in conditions:
        try:
            re.compile(str(one))
        except re.error as error:
            raise ValueError(f"rules: {one!r} is not a regular expression: {error}") from error


def _check_made(rule: Any) -> None:
    """A constructor of a rule is a function, but no rule."""
    name, module = (getattr(rule, key, "") for key in ("__qualname__", "__module__"))
    if module.startswith(__package__ or "?") and "<locals>" not in name and callable(rule):
        raise TypeError(f"rules: expected a rule, got the function {name}; call it: {name}(...)")


def assign(rules: Rules, units: Sequence[Unit]) -> list[Rule]:
    """The rule for each unit.

    Positions count the units whose kernels are in the variables (a resizing of the input
    is a linear operation, too, but no layer); all units if there is none such.
    """
    layers = [unit for unit in units if not unit.kernel.startswith("constant:")] or units
    places = {unit.key: place for place, unit in enumerate(layers)}
    return [select(rules, unit, places.get(unit.key), len(layers)) for unit in units]


def select(rules: Rules, unit: Unit, position: int | None, count: int) -> Rule:
    """The rule for a unit.

    Args:
      position: of the unit among ``count`` units, in execution order; ``None``: of no account.

    Raises:
      ValueError: if no pattern matches.
    """
    if isinstance(rules, Rule) or callable(rules):
        return _rule(rules)
    for pattern, rule in rules:
        if not isinstance(rule, OperationRule) and _matches(pattern, unit, position, count):
            return _rule(rule)
    patterns = ", ".join(repr(pattern) for pattern, _ in rules)
    raise ValueError(
        f"rules: expected a pattern for {unit.key!r} ({unit.primitive}), got {patterns}; "
        "end with ('', rule) to match whatever is left"
    )


def for_operation(rules: Rules, name: str) -> Rule | OperationRule | None:
    """The rule given for a primitive by its name, if any; a pattern is taken literally."""
    if isinstance(rules, Rule) or callable(rules):
        return None
    found = (rule for pattern, rule in rules if pattern == name)
    rule = next(found, None)
    return rule if rule is None or isinstance(rule, OperationRule) else _rule(rule)


def _matches(pattern: Pattern, unit: Unit, position: int | None, count: int) -> bool:
    if isinstance(pattern, tuple):
        return all(_matches(one, unit, position, count) for one in pattern)
    if isinstance(pattern, int):
        return position is not None and pattern in (position, position - count)
    return pattern == unit.primitive or re.search(pattern, unit.key) is not None


def _rule(rule: Rule | Propagate) -> Rule:
    if isinstance(rule, Rule):
        return rule
    return Rule(getattr(rule, "__name__", "rule"), rule)
