"""Rules by pattern: the choice of a rule for each part of a network."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxunlearn.attribution.lrp.rule import Propagate, Rule, bind_wide
from jaxunlearn.core.errors import did_you_mean
from jaxunlearn.jaxprs import callers
from jaxunlearn.jaxprs.primitives import Op, row_of
from jaxunlearn.jaxprs.program import Program
from jaxunlearn.jaxprs.steps import Plan, Step
from jaxunlearn.jaxprs.units import Unit


class Operation(NamedTuple):
    """One operation of the forward pass: a primitive, or a whole call of a function or module.

    In networks of half precision its values are widened to float32, and ``bind`` and
    ``transpose`` compute in it.

    Attributes:
      name: of the primitive; of a function what the pattern of the rule matched.
      params: of the primitive, as in a jaxpr; of a function none.
      ins: values of all operands; of a function those that depend on the data.
      outs: values of all results.
      data: positions of the operands that depend on the data, of those that are floats, if any.
      bind: applies the operation to other values of the operands in ``data``, the rest as they
        are; returns a list of results.
    """

    name: str
    params: dict[str, Any]
    ins: list[jax.Array]
    outs: list[jax.Array]
    data: list[int]
    bind: Callable[..., list[jax.Array]]

    @property
    def operands(self) -> list[jax.Array]:
        """Returns the values of the operands in ``data``."""
        return [self.ins[place] for place in self.data]

    def transpose(self, *s: jax.Array, operand: int = 0) -> jax.Array:
        """Applies the transpose of an operation that is linear in an operand, others fixed.

        Args:
          s: one array for each result, shaped like it.
          operand: position in ``data``.

        Returns:
          an array shaped like the operand.

        Raises:
          ValueError: if there is another number of arrays, or the operation is not linear.
        """
        if len(s) != len(self.outs):
            raise ValueError(f"s: expected {len(self.outs)} arrays, got {len(s)}")
        values = self.operands

        def along(value: jax.Array) -> list[jax.Array]:
            return self.bind(*values[:operand], value, *values[operand + 1 :])

        try:
            (back,) = jax.linear_transpose(along, values[operand])(list(s))
        except (NotImplementedError, AssertionError) as error:
            raise ValueError(
                f"transpose: expected an operation that is linear in operand {operand}, "
                f"got {self.name}; jax.vjp(operation.bind, *operation.operands) is its gradient"
            ) from error
        transposed: jax.Array = back
        return transposed


def operation_of(step: Step, program: Program, env: dict[int, Any]) -> Operation:
    """Returns the operation of a step of kind ``own``, with the values of a forward pass.

    Args:
      env: the values, :func:`~jaxunlearn.attribution.lrp.rule.widened`.
    """
    op = step.ops[0]
    single = len(step.ops) == 1 and op.name == step.name
    ins = op.ins if single else step.ins
    places = op.values if single else range(len(ins))
    data = [i for i in places if ins[i] in step.ins]
    made = [op] if single else _between(program, step)

    def apply(*values: jax.Array) -> list[jax.Array]:
        if single:
            given = dict(zip(data, values, strict=True))
            return bind_wide(op, [given.get(i, env[v]) for i, v in enumerate(ins)])
        known = dict(zip(step.ins, values, strict=True))
        for inner in made:
            outs = bind_wide(inner, [known.get(v, env[v]) for v in inner.ins])
            known.update(zip(inner.outs, outs, strict=True))
        return [known[v] for v in step.outs]

    params = op.params if single else {}
    return Operation(
        name=step.key.partition("#")[0],
        params=params | ({"axes": step.axes} if step.axes else {}),
        ins=[env[v] for v in ins],
        outs=[env[v] for v in step.outs],
        data=data,
        bind=apply,
    )


def _between(program: Program, step: Step) -> list[Op]:
    """Returns the operations that lead from what a step reads to what it yields."""
    changed, ops = set(step.ins), []
    for op in program.ops:
        if changed.isdisjoint(op.ins):
            continue
        if not changed.intersection(op.outs):
            changed.update(op.outs)
            ops.append(op)
        if changed.issuperset(step.outs):
            break
    needed, kept = set(step.outs), []
    for op in reversed(ops):
        if needed.intersection(op.outs):
            needed.update(op.ins)
            kept.append(op)
    return kept[::-1]


class OperationRule(NamedTuple):
    """A rule for an operation; :func:`operation` makes one."""

    name: str
    propagate: Callable[[Operation, list[jax.Array]], Sequence[jax.Array]]


Pattern = str | int | tuple[str | int, ...]
"""A regular expression searched for in a unit's key; or the name of a primitive; or the
position of a unit in execution order, from the end where negative; or several of these, all
of which must match: ``(0, "conv_general_dilated")``. One that nothing matches is an error."""

Rules = Rule | Propagate | Sequence[tuple[Pattern, Rule | Propagate | OperationRule]]
"""One rule for all linear units, or pairs ``(pattern, rule)``, the first that matches wins:
``[(0, flat()), ("head", epsilon(0.1)), ("conv_general_dilated", zplus()), ("", epsilon())]``.
A rule of one's own is a function :data:`~jaxunlearn.attribution.lrp.rule.Propagate`. A
pair with an :func:`operation` is for what is no linear unit; its pattern is a name alone."""


def operation(
    propagate: Callable[[Operation, list[jax.Array]], Sequence[jax.Array]],
) -> OperationRule:
    """Makes a rule for an operation that is not a linear unit.

    For one that is not covered, or another way for one that is. The name it is paired with is
    that of a primitive (``"sort"``, ``"max"``), of a step (``"softmax"``, ``"logsumexp"``), or a
    regular expression for functions, modules and scopes (``"gelu"``, ``"LayerNorm"``,
    ``"Block_0/gate"``; :mod:`jaxunlearn.jaxprs.callers`), all of whose operations then are one
    step, linear units inside included. Of these the first that is found in the function counts;
    a primitive is a step of its own wherever it stands, but inside such a function.

    A linear operation needs one line, and so does the gradient::

        ("cumsum", operation(lambda op, r: [op.ins[0] * op.transpose(r[0] / op.outs[0])]))
        ("gelu", operation(lambda op, r: jax.vjp(op.bind, *op.operands)[1](r)))

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
        raise TypeError(
            "rules: expected the name of a primitive, function or module for operation(), "
            f"got {pattern!r}"
        )
    _check_made(rule)
    for one in conditions:
        try:
            re.compile(str(one))
        except re.error as error:
            raise ValueError(f"rules: {one!r} is not a regular expression: {error}") from error
    if isinstance(rule, OperationRule) and any(re.search(pattern, one) for one in _NO_NAMES):
        raise ValueError(
            "rules: expected the name of a primitive, function or module for operation(), got "
            f"{pattern!r}, which matches all: the network would be one step; a Rule is for all "
            "linear units"
        )


_NO_NAMES = ("", "\ufdd0")
"""What only a pattern finds that finds everything."""


def _check_made(rule: Any) -> None:
    """Refuses the constructor of a rule, which is a function, but no rule."""
    name, module = (getattr(rule, key, None) or "" for key in ("__qualname__", "__module__"))
    if module.startswith(__package__ or "?") and "<locals>" not in name and callable(rule):
        raise TypeError(f"rules: expected a rule, got the function {name}; call it: {name}(...)")


def operations(rules: Rules) -> tuple[str, ...]:
    """Returns the names that :func:`operation` rules are given for."""
    if isinstance(rules, Rule) or callable(rules):
        return ()
    return tuple(str(pattern) for pattern, rule in rules if isinstance(rule, OperationRule))


def check_found(rules: Rules, planned: Plan) -> None:
    """Refuses a pattern that nothing in a function matches.

    Linear primitives may be missing: assignments of rules name them for networks of any kind.

    Raises:
      ValueError: naming the pattern, and what comes near to it.
    """
    if isinstance(rules, Rule) or callable(rules):
        return
    layers = layers_of(planned.units)
    names = {step.name for step in planned.steps}
    for pattern, rule in rules:
        if isinstance(rule, OperationRule):
            if not any(step.kind == "own" and step.name == pattern for step in planned.steps):
                ops = [op for op in planned.program.ops if planned.program.data_ins(op)]
                near = did_you_mean(str(pattern), {op.name for op in ops} | callers.names(ops))
                raise ValueError(
                    "rules: expected the name of a primitive, function or module that the data "
                    f"goes through, got {pattern!r}{near}"
                )
        elif not _is_found(pattern, planned.units, layers, names):
            keys = {unit.key for unit in planned.units}
            parts = {part for key in keys for part in key.split("/")}
            near = did_you_mean(str(pattern), keys | parts | names)
            near = near or "; there are " + ", ".join([unit.key for unit in layers][:4]) + ", ..."
            if isinstance(pattern, int):
                near = f"; there are {len(layers)}"
            raise ValueError(
                f"rules: expected a pattern for one of the linear units, got {pattern!r}{near}"
            )


def _is_found(
    pattern: Pattern, units: Sequence[Unit], layers: Sequence[Unit], names: set[str]
) -> bool:
    conditions = pattern if isinstance(pattern, tuple) else (pattern,)
    if pattern == "" or pattern in names or not (units or isinstance(pattern, str)):
        return True
    if any(row_of(str(one)).role == "linear" for one in conditions):
        return True
    places = {unit.key: place for place, unit in enumerate(layers)}
    return any(_matches(pattern, unit, places.get(unit.key), len(layers)) for unit in units)


def layers_of(units: Sequence[Unit]) -> Sequence[Unit]:
    """Returns the units that have a position: those whose kernels are in the variables.

    A resizing of the input is a linear operation, too, but no layer. All units if there is none
    with such a kernel.
    """
    return [unit for unit in units if not unit.kernel.startswith("constant:")] or units


def assign(rules: Rules, units: Sequence[Unit]) -> list[Rule]:
    """Returns the rule for each unit."""
    layers = layers_of(units)
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
    """Returns the rule given for a step by its name, if any; a pattern is taken literally."""
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
