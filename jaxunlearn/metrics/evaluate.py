"""The table that judges forgetting: every model beside the retrained ones."""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.attribution import features
from jaxunlearn.data.sets import num_examples
from jaxunlearn.metrics.attacks import loss_attack
from jaxunlearn.metrics.predict import predict
from jaxunlearn.metrics.residue import linear_probe, relearn_steps
from jaxunlearn.models import check_model, functionalize
from jaxunlearn.types import Apply, Key, Model, Sets, Variables

__all__ = ["METRICS", "Metric", "evaluate", "make_report", "measure"]

RELEARNED = 0.95
"""Share of the original's forget accuracy at which a class counts as known again."""


class Metric(NamedTuple):
    """A row of the table: how it is called, grouped, shown, and what is ideal."""

    label: str
    group: str
    ideal: str
    format: str


METRICS: dict[str, Metric] = {
    "accuracy_forget": Metric("accuracy, forget (train)", "forgetting", "as retrained", ".3f"),
    "accuracy_test_forget": Metric("accuracy, forget (test)", "forgetting", "as retrained", ".3f"),
    "accuracy_retain": Metric("accuracy, retain (train)", "utility", "as retrained", ".3f"),
    "accuracy_test_retain": Metric("accuracy, retain (test)", "utility", "as retrained", ".3f"),
    "accuracy_test": Metric("accuracy, test", "utility", "as retrained", ".3f"),
    "loss_attack": Metric("membership attack on loss", "privacy", "0.5", ".3f"),
    "linear_probe": Metric("linear probe, forget (test)", "truth", "as retrained", ".3f"),
    "relearn_steps": Metric("steps to relearn (of 100)", "truth", "as retrained", "d"),
    "seconds": Metric("time, compile apart", "cost", "small", "s"),
    "compile_seconds": Metric("time to compile", "cost", "small", "s"),
    "steps": Metric("steps", "cost", "small", "d"),
    "examples": Metric("examples seen", "cost", "small", "d"),
    "speedup": Metric("speed-up over retraining", "cost", "large", "x"),
    "speedup_with_compile": Metric("speed-up, compile included", "cost", "large", "x"),
}


def measure(
    model: Model | Apply,
    variables: Variables,
    sets: Sets,
    key: Key,
    *,
    original_accuracy: float | None = None,
    batch_size: int = 500,
) -> dict[str, float]:
    """All that one model can tell about itself.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      sets: ``forget`` and ``retain``; ``test_retain`` and ``test_forget`` where given.
      key: for relearning.
      original_accuracy: the original's on the forget set; ``None``: this is the original.

    Returns:
      Values under names in :data:`METRICS`. For a request by class the attack compares
      forget images with test images of the same classes (else it would see the class);
      for other requests with the test set.
    """
    model = functionalize(model)
    names = ("forget", "retain", "test_forget", "test_retain")
    if sets.forget is None or sets.retain is None:
        raise ValueError("sets: expected forget and retain, got a request without one of them")
    check_model(model, sets.forget.examples.x.shape[1:], variables=variables)
    parts = {name: getattr(sets, name) for name in names if num_examples(getattr(sets, name))}
    found = {name: predict(model.apply, variables, p, batch_size) for name, p in parts.items()}
    values = {f"accuracy_{name}": one.accuracy for name, one in found.items()}
    tested = [found[name] for name in ("test_forget", "test_retain") if name in found]
    if tested:
        right = [one.accuracy * len(one.labels) for one in tested]
        values["accuracy_test"] = sum(right) / sum(len(one.labels) for one in tested)
    others = found.get("test_forget") or found.get("test_retain")
    if others is not None and min(len(others.labels), len(found["forget"].labels)) >= 4:
        values["loss_attack"] = loss_attack(found["forget"].losses, others.losses)
    if "test_forget" in parts:
        train, test = (parts["forget"], parts["retain"]), parts["test_forget"]
        values["linear_probe"] = linear_probe(_features(model.apply), variables, train, test)
    known = values["accuracy_forget"] if original_accuracy is None else original_accuracy
    values["relearn_steps"] = relearn_steps(
        model, variables, parts["forget"], RELEARNED * known, key
    )
    return values


@functools.lru_cache(maxsize=16)
def _features(apply: Apply) -> Apply:
    # one function object for one network, so that its compiled program is found again
    return features(apply)


def make_report(
    title: str,
    models: Mapping[str, Mapping[str, float]],
    oracles: Sequence[Mapping[str, float]],
    *,
    notes: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Sets values side by side; a plain dictionary that JSON can hold.

    For each metric ``m``: ``retrained`` is the mean over the oracles, ``spread`` their
    standard deviation (n - 1), ``floor`` the mean of ``|m_i - m_j|`` over pairs of
    oracles: a difference to retraining below the floor is noise. A cost is that of the
    first oracle. ``best`` names the unlearned
    model closest to the ideal and those within the floor of it.

    Args:
      models: ``{"original": values, <unlearned>: values, ...}``.
      oracles: values of each retrained model.
    """
    columns = [*models, "retrained"]
    rows = []
    for name, metric in METRICS.items():
        values = {label: float(own[name]) for label, own in models.items() if name in own}
        oracle = [float(own[name]) for own in oracles if name in own]
        if not values and not oracle:
            continue
        spread = floor = None
        if oracle and metric.group == "cost":
            # the others may have shared a program and its time
            values["retrained"] = oracle[0]
        elif oracle:
            values["retrained"] = float(np.mean(oracle))
        if len(oracle) > 1 and metric.group != "cost":
            spread = float(np.std(oracle, ddof=1))
            floor = float(np.mean([abs(a - b) for a, b in itertools.combinations(oracle, 2)]))
        row: dict[str, Any] = {"name": name, "metric": metric.label, "group": metric.group}
        row |= {"format": metric.format, "ideal": metric.ideal, "values": values}
        rows.append(row | {"spread": spread, "floor": floor, "best": _best(metric, values, floor)})
    return {
        "title": title,
        "columns": columns,
        "rows": rows,
        "notes": list(notes),
        "environment": dict(environment or {}),
    }


def _best(metric: Metric, values: Mapping[str, float], floor: float | None) -> list[str]:
    references = ("original", "retrained")
    rivals = {k: v for k, v in values.items() if k not in references and math.isfinite(v)}
    if metric.ideal == "as retrained" and "retrained" in values:
        gaps = {k: abs(v - values["retrained"]) for k, v in rivals.items()}
    elif metric.ideal == "small":
        gaps = rivals
    elif metric.ideal == "large":
        gaps = {k: -v for k, v in rivals.items()}
    elif metric.ideal == "0.5":
        gaps = {k: abs(v - 0.5) for k, v in rivals.items()}
    else:
        gaps = {}
    # what differs by less than two retrainings do is equally good
    limit = min(gaps.values(), default=0.0) + (floor or 0.0)
    return [label for label, gap in gaps.items() if gap <= limit]


def evaluate(
    model: Model | Apply,
    models: Mapping[str, Variables],
    oracles: Variables | Sequence[Variables],
    sets: Sets,
    key: Key | None = None,
    *,
    title: str = "unlearning",
) -> dict[str, Any]:
    """The report on several models of one network; show it with ``print_report``.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      models: by name; ``"original"`` first.
      oracles: retrained models, a sequence or stacked along a leading axis.
      sets: of the request, with test examples.
      key: for relearning; default ``jax.random.key(0)``.

    Raises:
      ValueError: no ``"original"`` among the models.
    """
    if "original" not in models:
        raise ValueError(f"models: expected an entry 'original', got {list(models)}")
    key = jax.random.key(0) if key is None else key
    model = functionalize(model)
    if not isinstance(oracles, Sequence):
        count = jax.tree.leaves(oracles)[0].shape[0]
        oracles = [jax.tree.map(lambda leaf, i=i: leaf[i], oracles) for i in range(count)]
    first = measure(model, models["original"], sets, key)
    known = first["accuracy_forget"]
    rest = {
        name: measure(model, variables, sets, key, original_accuracy=known)
        for name, variables in models.items()
        if name != "original"
    }
    references = [measure(model, v, sets, key, original_accuracy=known) for v in oracles]
    return make_report(title, {"original": first, **rest}, references)
