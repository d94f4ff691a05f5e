"""Several models beside the retrained ones, in one call."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxunlearn.core.errors import expect
from jaxunlearn.core.trees import member
from jaxunlearn.core.types import Apply, Gan, Key, Model, Sets, Variables
from jaxunlearn.engine.driver import Outcome
from jaxunlearn.gan import Guide
from jaxunlearn.metrics.generated import measure_gan, refer_gan
from jaxunlearn.metrics.measure import measure, refer
from jaxunlearn.metrics.samples import Extractor
from jaxunlearn.metrics.table import make_report, speedups
from jaxunlearn.models import functionalize


def evaluate(
    model: Model | Apply | Gan,
    models: Mapping[str, Variables | Outcome],
    oracles: Variables | Outcome | Sequence[Variables],
    sets: Sets,
    key: Key | None = None,
    *,
    title: str = "unlearning",
    judge: Guide | None = None,
    extract: Extractor | None = None,
) -> dict[str, Any]:
    """The report on several models of one network; show it with ``print_report``.

    Args:
      model: see :func:`jaxunlearn.functionalize`; or a GAN.
      models: by name, ``"original"`` first; given as outcomes of ``train`` and
        ``unlearn`` they bring their time along.
      oracles: retrained models: an outcome of ``train_many``, variables stacked along a
        leading axis, or a sequence. An outcome's time is divided by its members.
      sets: of the request, with test examples.
      key: of all that is drawn; default ``jax.random.key(0)``.
      judge: of GANs: a classifier of their images, not the guide that a method was given.
      extract: features for C-FID and the like, ``images -> [n, F]``; default: the judge's.

    Raises:
      ValueError: no ``"original"`` among the models, or sets without forget or retain.
      ConfigError: the network's output does not suit the labels.
    """
    if "original" not in models:
        raise ValueError(f"models: expected an entry 'original', got {list(models)}")
    expect("sets", sets, Sets, "; make_sets makes them")
    key = jax.random.key(0) if key is None else key
    original = models["original"]
    given = original.variables if isinstance(original, Outcome) else original
    look = _judged_by(model, given, sets, key, judge, extract)
    names = ["original", *(name for name in models if name != "original")]
    rows = {name: _row(look, models[name]) for name in names}
    references = [_row(look, one) for one in _members(oracles)]
    for name, row in rows.items():
        if name != "original" and "seconds" in row and references and "seconds" in references[0]:
            row |= speedups(references[0], row)
    return make_report(title, rows, references)


def _judged_by(
    model: Model | Apply | Gan,
    original: Variables,
    sets: Sets,
    key: Key,
    judge: Guide | None,
    extract: Extractor | None,
) -> Callable[[Variables], dict[str, Any]]:
    """What tells the values of a model, given the original."""
    if isinstance(model, Gan):
        if judge is None:
            raise ValueError("judge: expected a Guide to judge a GAN's images by, got None")
        known = refer_gan(model, original, sets, key, judge)
        return lambda variables: measure_gan(
            model, variables, sets, key, judge, known, extract=extract
        )
    network = functionalize(model)
    reference = refer(network, original, sets)
    return lambda variables: measure(network, variables, sets, key, reference=reference)


def _row(look: Callable[[Variables], dict[str, Any]], one: Variables | Outcome) -> dict[str, Any]:
    values = look(one.variables if isinstance(one, Outcome) else one)
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
