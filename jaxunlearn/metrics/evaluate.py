"""Several models beside the retrained ones, in one call."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxunlearn.errors import expect
from jaxunlearn.execute import Outcome
from jaxunlearn.members import member
from jaxunlearn.metrics.measure import Reference, measure, refer
from jaxunlearn.metrics.table import make_report, speedups
from jaxunlearn.models import functionalize
from jaxunlearn.types import Apply, Key, Model, Sets, Variables

__all__ = ["costs", "evaluate", "member_of"]


def evaluate(
    model: Model | Apply,
    models: Mapping[str, Variables | Outcome],
    oracles: Variables | Outcome | Sequence[Variables],
    sets: Sets,
    key: Key | None = None,
    *,
    title: str = "unlearning",
) -> dict[str, Any]:
    """The report on several models of one network; show it with ``print_report``.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      models: by name, ``"original"`` first; given as outcomes of ``train`` and
        ``unlearn`` they bring their time along.
      oracles: retrained models: an outcome of ``train_many``, variables stacked along a
        leading axis, or a sequence. An outcome's time is divided by its members.
      sets: of the request, with test examples.
      key: for relearning; default ``jax.random.key(0)``.

    Raises:
      ValueError: no ``"original"`` among the models, or sets without forget or retain.
      ConfigError: the network's output does not suit the labels.
    """
    if "original" not in models:
        raise ValueError(f"models: expected an entry 'original', got {list(models)}")
    expect("sets", sets, Sets, "; make_sets makes them")
    key = jax.random.key(0) if key is None else key
    model = functionalize(model)
    original = models["original"]
    given = original.variables if isinstance(original, Outcome) else original
    reference = refer(model, given, sets)
    names = ["original", *(name for name in models if name != "original")]
    rows = {name: _row(model, models[name], sets, key, reference) for name in names}
    references = [_row(model, one, sets, key, reference) for one in _members(oracles)]
    for name, row in rows.items():
        if name != "original" and "seconds" in row and references and "seconds" in references[0]:
            row |= speedups(references[0], row)
    return make_report(title, rows, references)


def _row(
    model: Model, one: Variables | Outcome, sets: Sets, key: Key, reference: Reference
) -> dict[str, Any]:
    variables = one.variables if isinstance(one, Outcome) else one
    values = measure(model, variables, sets, key, reference=reference)
    return values | costs(one) if isinstance(one, Outcome) else values


def _members(oracles: Variables | Outcome | Sequence[Variables]) -> Sequence[Variables | Outcome]:
    if isinstance(oracles, Sequence) and not isinstance(oracles, Outcome):
        return oracles
    timed = isinstance(oracles, Outcome)
    count = jax.tree.leaves(oracles.variables if timed else oracles)[0].shape[0]
    take = member_of if timed else member
    return [take(oracles, number) for number in range(count)]


def member_of(many: Outcome, number: int) -> Outcome:
    """One model out of an ensemble's outcome, what was prepared for it, its share of the time.

    The memory stays that of the program for all of them: one alone may need more than its
    share.
    """
    count = jax.tree.leaves(many.variables)[0].shape[0]
    return many._replace(
        variables=member(many.variables, number),
        history={name: value[:, number] for name, value in many.history.items()},
        prepared=member(many.prepared, number),
        seconds=many.seconds / count,
        compile_seconds=many.compile_seconds / count,
    )


def costs(outcome: Outcome) -> dict[str, float]:
    """What a run took, under names in ``METRICS``."""
    names = ("seconds", "compile_seconds", "memory", "steps", "examples")
    found = {name: getattr(outcome, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}
