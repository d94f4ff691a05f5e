"""Rules by pattern: the choice of a rule for each part of a network."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxunlearn.attribution.lrp.rule import Propagate, Rule
from jaxunlearn.jaxprs.units import Unit


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
A rule of one's own is a function :data:`~jaxunlearn.attribution.lrp.rule.Propagate`. A
pair with an :func:`operation` is for a primitive alone."""


def operation(
    propagate: Callable[[Operation, list[jax.Array]], Sequence[jax.Array]],
) -> OperationRule:
    """Makes a rule for a primitive that is not a linear unit.

    For one that is not covered, or another way for one that is: ``("sort", operation(...))``,
    ``("add", operation(...))``.

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
    """Refuses the constructor of a rule, which is a function, but no rule."""
    name, module = (getattr(rule, key, "") for key in ("__qualname__", "__module__"))
    if module.startswith(__package__ or "?") and "<locals>" not in name and callable(rule):
        raise TypeError(f"rules: expected a rule, got the function {name}; call it: {name}(...)")


def assign(rules: Rules, units: Sequence[Unit]) -> list[Rule]:
    """Returns the rule for each unit.

    Positions count the units whose kernels are in the variables (a resizing of the input
    is a linear operation, too, but no layer); all units if there is none such.
    """
    layers = [unit for unit in units if not unit.kernel.startswith("constant:")] or units
    places = {unit.key: place for place, unit in enumerate(layers)}
    return [select(rules, unit, places.get(unit.key), len(layers)) for unit in units]


def select(rules: Rules, unit: Unit, position: int | None, count: int) -> Rule:
    """Returns the rule for a unit.

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
    """Returns the rule given for a primitive by its name, if any; a pattern is taken literally."""
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
