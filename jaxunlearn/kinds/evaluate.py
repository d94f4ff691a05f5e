"""Judgement: several models beside the retrained ones, in one call; runs go the same way."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxunlearn.core.errors import ConfigError, DivergenceError, brief, expect
from jaxunlearn.core.keys import check_key
from jaxunlearn.core.trees import member
from jaxunlearn.core.types import Apply, Gan, Key, LanguageModel, Model, Sets, Variables
from jaxunlearn.core.variables import check_like, check_variables, in_form_of, leaves_of
from jaxunlearn.engine.driver import Outcome, member_of
from jaxunlearn.kinds import kind_of
from jaxunlearn.metrics.registry import (
    Evidence,
    Measured,
    check_asked,
    mean_measured,
    measure,
    measure_ensemble,
)
from jaxunlearn.metrics.robustness import after
from jaxunlearn.metrics.table import make_report, speedups


def evaluate(
    model: Model | Apply | Gan | LanguageModel,
    models: Mapping[str, Variables | Outcome | Sequence[Outcome]],
    retrained: Variables | Outcome | Sequence[Variables | Outcome],
    sets: Sets,
    key: Key | None = None,
    *,
    title: str = "unlearning",
    metrics: Sequence[str] = (),
    attack: str = "",
    settings: Any = None,
    **helpers: Any,
) -> dict[str, Any]:
    """Makes the report on several models of one network; show it with ``print_report``.

    Args:
      model: see :func:`jaxunlearn.functionalize`; or a GAN, or a language model.
      models: by name, ``"original"`` first; given as outcomes of ``train`` and ``unlearn`` they
        bring their time along; several (a list, or stacked ones) are an ensemble: its cells are
        means.
      retrained: retrained models: an outcome of ``train_many``, variables stacked along a leading
        axis, a sequence, or a single model. An outcome's time is divided by its members.
      sets: of the request, with test examples.
      key: of all that is drawn; default ``jax.random.key(0)``.
      metrics: names of those measured besides the usual ones, or ``"all"``.
      attack: what all models are put through before they are judged, ``"rounding_4"`` for example;
        the report has no costs then. Names are those of ``metrics.robustness.ATTACKS``.
      settings: of this kind of models, a ``GanConfig`` for a GAN.
      helpers: what judges this kind of models besides; a GAN needs ``judge=``, a ``Guide``, and
        may have ``extract=``, features for C-FID, a language model ``tokenizer=``.

    Returns:
      The report, as ``jaxunlearn.report`` describes it, JSON but for ``report["examples"]``:
      arrays of values of each example by model and metric, which
      :func:`jaxunlearn.report.save` puts beside it.

    Raises:
      TypeError: ``models`` is no mapping, or what is given for a model is none.
      ValueError: no ``"original"`` among the models, or sets without forget or retain.
      ConfigError: the network's output does not suit the labels; an attack that this kind of
        models has not.
      DivergenceError: a model cannot be trained, as the attack has it.
    """
    if not isinstance(models, Mapping):
        raise TypeError(
            f"models: expected models by name, {{'original': ...}}, got {type(models).__name__}"
        )
    if "original" not in models:
        raise ValueError(f"models: expected an entry 'original', got {brief(list(models))}")
    for name in models:
        if not isinstance(name, str) or name in ("retrained", "floor", "ideal"):
            raise ValueError(
                f"models: expected names other than retrained, floor and ideal, got {brief(name)}"
            )
    expect("sets", sets, Sets, "; make_sets makes them")
    expect("attack", attack, str)
    key = jax.random.key(0) if key is None else key
    check_key(key)
    check_asked(metrics)
    kind = kind_of(model)
    kind.check_attacks([attack] if attack else [], "attack")
    network = kind.given(model)

    given = _variables(_ensemble(models["original"])[0], "models.original")

    def observe(name: str, one: Variables | Outcome) -> Evidence:
        variables = _variables(one, name)
        check_like(variables, given, name=name)
        # weights of different models are compared: all in the containers of one
        variables = in_form_of(given, variables)

        def look(own: Variables) -> Evidence:
            return kind.observe(network, own, sets, key, settings=settings, **helpers)

        try:
            found = look(variables)
            return look(after(found, kind.attacks[attack])) if attack else found
        except (ConfigError, DivergenceError) as error:
            raise type(error)(f"{name}: {error}") from error

    names = ["original", *(name for name in models if name != "original")]
    several = {n: _members(models[n], given, f"models.{n}") for n in names}
    seen = {n: [observe(f"models.{n}", one) for one in several[n]] for n in names}
    for name, members in seen.items():
        if not members:
            raise ValueError(f"models.{name}: expected one model or several, got none")
    references = _members(retrained, given, "retrained")
    original, others = seen["original"][0], [observe("retrained", one) for one in references]
    judged = judge(seen, original, others, metrics)
    values, theirs = judged.models, judged.retrained
    if attack:
        title = f"{title}, after {kind.attacks[attack].label}"
    else:
        values = {name: values[name] | _mean_costs(several[name]) for name in names}
        theirs = [own | costs(one) for own, one in zip(theirs, references, strict=True)]
    for name, row in values.items():
        if name != "original" and "seconds" in row and theirs and "seconds" in theirs[0]:
            row |= speedups(theirs[0], row)
    notes = kind.notes(original, settings)
    more = {"failed": judged.failed, "intervals": judged.intervals, "notes": notes}
    report = make_report(title, values, theirs, **more)
    return report | {"examples": judged.examples}


class Comparison(NamedTuple):
    """Measurements of all models of one request.

    Attributes:
      models: values by model.
      retrained: values of each retrained model.
      failed: why, by model and metric.
      examples: values of each example by ``"<model>/<metric>"``.
      intervals: by model and metric, half the width of intervals over examples; of single models.
    """

    models: dict[str, dict[str, Any]]
    retrained: list[dict[str, Any]]
    failed: dict[str, dict[str, str]]
    examples: dict[str, Any]
    intervals: Mapping[str, Mapping[str, float]] = {}


def judge(
    seen: Mapping[str, Sequence[Evidence]],
    original: Evidence,
    retrained: Sequence[Evidence],
    asked: Sequence[str] = (),
) -> Comparison:
    """Measures models, each given as its members, against the original and the retrained ones.

    Args:
      asked: metrics beside the usual ones, see ``metrics.registry.applying``.
    """
    found: dict[str, Measured] = {}
    for name, members in seen.items():
        each = [
            measure(one, None if one is original else original, retrained, asked=asked)
            for one in members
        ]
        found[name] = each[0] if len(each) == 1 else mean_measured(each)
        together = measure_ensemble(members, retrained, asked)
        found[name].values.update(together.values)
        found[name].failed.update(together.failed)
        found[name].each.update(together.each)
    theirs = [measure(one, original, retrained, asked=asked) for one in retrained]
    failures = {name: one.failed for name, one in found.items() if one.failed}
    if theirs and any(one.failed for one in theirs):
        failures["retrained"] = {k: v for one in reversed(theirs) for k, v in one.failed.items()}
        failures |= {f"retrained/{n}": one.failed for n, one in enumerate(theirs) if one.failed}
    named = {**found, **{f"retrained/{n}": one for n, one in enumerate(theirs)}}
    examples = {
        f"{name}/{metric}": array
        for name, one in named.items()
        for metric, array in one.each.items()
    }
    models = {name: one.values for name, one in found.items()}
    halves = {name: one.intervals() for name, one in found.items()}
    return Comparison(models, [one.values for one in theirs], failures, examples, halves)


def costs(outcome: Variables | Outcome) -> dict[str, float]:
    """Returns what a run took, under names of metrics; nothing of variables alone."""
    if not isinstance(outcome, Outcome):
        return {}
    names = ("seconds", "compile_seconds", "memory", "steps", "examples")
    found = {name: getattr(outcome, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _mean_costs(members: Sequence[Variables | Outcome]) -> dict[str, float]:
    each = [costs(one) for one in members]
    return {name: sum(own[name] for own in each) / len(each) for name in each[0]}


def _ensemble(given: Any) -> Sequence[Variables | Outcome]:
    several = isinstance(given, list) and given and all(isinstance(o, Outcome) for o in given)
    return given if several else [given]


def _variables(one: Variables | Outcome, name: str) -> Variables:
    return check_variables(one.variables if isinstance(one, Outcome) else one, name=name)


def _members(given: Any, original: Variables, name: str) -> list[Variables | Outcome]:
    """Takes apart what one model or several were given as; told by the shapes of the original."""
    if given is None:
        raise TypeError(
            f"{name}: expected a model or several, got None; [] says that there is none"
        )
    timed = isinstance(given, Outcome)
    given = list(given) if isinstance(given, Iterator) else given
    several = isinstance(given, list | tuple) and not timed
    if several and leaves_of(given).keys() != leaves_of(original).keys():
        return [one for part in given for one in _members(part, original, name)]
    stacked = _variables(given, name)
    shapes = {name: leaf.shape for name, leaf in leaves_of(original).items()}
    members = {
        leaf.shape[0] if leaf.ndim and leaf.shape[1:] == shapes.get(name) else None
        for name, leaf in leaves_of(stacked).items()
    }
    count = members.pop() if len(members) == 1 else None
    if count is None:
        check_like(stacked, original, name=name)
        return [given]
    take = member_of if timed else member
    return [take(given, number) for number in range(count)]
