"""The table that judges forgetting: its rows, and how values become a report.

A paper's numbers beside ours.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.metrics.relearning import RELEARN_STEPS
from jaxunlearn.metrics.statistics import estimate, floor, paired, spread


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
    "judged_unseen": Metric("forget images judged unseen", "privacy", "as retrained", ".3f"),
    "linear_probe": Metric("linear probe, forget (test)", "truth", "as retrained", ".3f"),
    "relearn_steps": Metric(f"steps to relearn (of {RELEARN_STEPS})", "truth", "as retrained", "d"),
    "relearning": Metric(
        f"accuracy in relearning, mean of {RELEARN_STEPS} steps", "truth", "as retrained", ".3f"
    ),
    "forget_share": Metric("share of the class in generated images", "forgetting", "small", ".3f"),
    "pul": Metric("PUL: share taken away, percent", "forgetting", "large", ".1f"),
    "inversion_forget": Metric(
        "inversion error, forgotten images", "forgetting", "as retrained", ".4f"
    ),
    "inversion_unseen": Metric(
        "inversion error, unseen images", "forgetting", "as retrained", ".4f"
    ),
    "fid": Metric("C-FID to retained images", "utility", "small", ".2f"),
    "ret_fid": Metric("Ret-FID to a retrained model's images", "utility", "as retrained", ".2f"),
    "kid": Metric("KID to retained images", "utility", "small", ".3f"),
    "classifier_score": Metric("classifier score", "utility", "as retrained", ".2f"),
    "precision": Metric("precision", "utility", "as retrained", ".3f"),
    "recall": Metric("recall", "utility", "as retrained", ".3f"),
    "density": Metric("density", "utility", "as retrained", ".3f"),
    "coverage": Metric("coverage", "utility", "as retrained", ".3f"),
    "downstream": Metric(
        "accuracy of a classifier trained on it", "utility", "as retrained", ".3f"
    ),
    "membership_auc": Metric("membership AUC of the discriminator", "privacy", "0.5", ".3f"),
    "membership_gap": Metric("its distance from 0.5", "privacy", "small", ".3f"),
    "discriminator_probe": Metric(
        "probe of the discriminator, forget (test)", "truth", "as retrained", ".3f"
    ),
    "relearned_share": Metric(
        "share of the class after relearning", "truth", "as retrained", ".3f"
    ),
    "path_length": Metric("path length through the class", "truth", "as retrained", ".2f"),
    "largest_step": Metric(
        "largest step of a path, times the mean", "truth", "as retrained", ".2f"
    ),
    "seconds": Metric("time, compile apart", "cost", "small", "s"),
    "compile_seconds": Metric("time to compile", "cost", "small", "s"),
    "memory": Metric("memory of the compiled program", "cost", "small", "B"),
    "steps": Metric("steps", "cost", "small", "d"),
    "examples": Metric("examples seen", "cost", "small", "d"),
    "speedup": Metric("speed-up over retraining", "cost", "large", "x"),
    "speedup_with_compile": Metric("speed-up, compile included", "cost", "large", "x"),
}

CURVES = {"relearn_curve": ("accuracy on the forget set in relearning", "steps")}
"""Lists among a model's values, by name: what they are, and along what."""

Values = Mapping[str, Any]


class Trial(NamedTuple):
    """Which one of several: a seed, or a class that is forgotten by itself.

    Attributes:
      kind: ``"seed"`` or ``"class"``.
      name: of a class, where it has one other than its number.
    """

    kind: str
    number: int
    name: str = ""


class Judged(NamedTuple):
    """The values of all models of one trial.

    Attributes:
      models: ``{"original": values, <unlearned>: values, ...}``; empty where it failed.
      oracles: values of each retrained model.
      alone: values of the one that was trained alone, whose costs count; by default the
        first.
    """

    models: Mapping[str, Values]
    oracles: Sequence[Values]
    alone: Values | None = None


def make_report(
    title: str, models: Mapping[str, Values], oracles: Sequence[Values], **more: Any
) -> dict[str, Any]:
    """:func:`summarise` of a single trial."""
    return summarise(title, [Judged(models, oracles)], **more)


def summarise(
    title: str,
    judged: Sequence[Judged],
    *,
    trials: Sequence[Trial] = (),
    notes: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
    published: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Sets values side by side; a plain dictionary that JSON can hold.

    For each metric ``m``: ``retrained`` is the mean over the oracles, ``spread`` their
    standard deviation (n - 1), ``floor`` the mean of ``|m_i - m_j|`` over pairs of
    oracles, those of different seeds too, but not of different classes: a difference to
    retraining below the floor is noise. A cost is that of the oracle trained alone.
    ``best`` names the unlearned model closest to the ideal and those within the floor of it.

    Of several trials a value is the mean, and the row holds also ``each`` (the values, trial
    by trial), ``intervals`` (95 %, half the width) and, where the ideal is the retrained
    model, ``differences`` to it, paired by trial.

    Args:
      judged: one for each trial.
      trials: which they are, where there are several.
      published: see :func:`jaxunlearn.metrics.table.compare`.
    """
    columns = [*judged[0].models, "retrained"]
    # retrained models of other seeds differ by chance, those of other classes by their request
    chance = {trial.kind for trial in trials} != {"class"}
    rows = [_row(name, metric, columns, judged, chance) for name, metric in METRICS.items()]
    made = {
        "title": title,
        "columns": columns,
        "rows": [row for row in rows if row["values"]],
        "curves": [curve for name in CURVES if (curve := _curve(name, columns, judged, chance))],
        "notes": list(notes),
        "environment": dict(environment or {}),
    }
    extra = {"trials": _of(trials), "published": dict(published or {})}
    return made | {name: value for name, value in extra.items() if value}


def _of(trials: Sequence[Trial]) -> dict[str, Any]:
    if not trials:
        return {}
    names = [one.name if one.name != str(one.number) else "" for one in trials]
    return {"kind": trials[0].kind, "numbers": [one.number for one in trials], "names": names}


def each_trial(name: str, label: str, judged: Sequence[Judged]) -> list[float | None]:
    """A metric of one column, trial by trial; ``None`` where it is missing."""
    if label != "retrained":
        found = [one.models.get(label, {}).get(name) for one in judged]
        return [None if value is None else float(value) for value in found]
    means: list[float | None] = []
    for one in judged:
        oracles = one.oracles
        if name in METRICS and METRICS[name].group == "cost":
            # the others may have shared a program and its time
            oracles = oracles[:1] if one.alone is None else [one.alone]
        values = [float(own[name]) for own in oracles if name in own]
        means.append(float(np.mean(values)) if values else None)
    return means


def _by_chance(name: str, judged: Sequence[Judged], chance: bool) -> list[list[Any]]:
    """Values of retrained models, those together that differ by chance alone."""
    found = [[own[name] for own in one.oracles if name in own] for one in judged]
    return [list(itertools.chain(*found))] if chance else found


def _row(
    name: str, metric: Metric, columns: Sequence[str], judged: Sequence[Judged], chance: bool
) -> dict[str, Any]:
    each = {label: each_trial(name, label, judged) for label in columns}
    each = {label: own for label, own in each.items() if any(v is not None for v in own)}
    found = {k: estimate([v for v in own if v is not None]) for k, own in each.items()}
    values = {label: one.mean for label, one in found.items()}
    oracles = [] if metric.group == "cost" else _by_chance(name, judged, chance)
    noise = floor(oracles)
    row: dict[str, Any] = {"name": name, "metric": metric.label, "group": metric.group}
    row |= {"format": metric.format, "ideal": metric.ideal, "values": values}
    row |= {"spread": spread(oracles), "floor": noise, "best": _best(metric, values, noise)}
    if len(judged) > 1:
        row |= {"each": each, "intervals": {k: one.interval for k, one in found.items()}}
        if metric.ideal == "as retrained" and "retrained" in each:
            own = {k: paired(v, each["retrained"]) for k, v in each.items() if k != "retrained"}
            row["differences"] = {k: one._asdict() for k, one in own.items() if one is not None}
    return row


def _curve(
    name: str, columns: Sequence[str], judged: Sequence[Judged], chance: bool
) -> dict[str, Any]:
    """The mean course of every model; for the retrained ones their spread as well."""
    label, along = CURVES[name]
    found = {c: [one.models[c] for one in judged if c in one.models] for c in columns[:-1]}
    found["retrained"] = [own for one in judged for own in one.oracles]
    courses = {c: [own[name] for own in models if name in own] for c, models in found.items()}
    values = {c: np.mean(own, axis=0).tolist() for c, own in courses.items() if own}
    if not values:
        return {}
    # step by step
    steps = [list(zip(*own, strict=True)) for own in _by_chance(name, judged, chance) if own]
    noise = [half for groups in zip(*steps, strict=True) if (half := spread(groups)) is not None]
    shown = {"name": name, "label": label, "along": along, "values": values}
    return {**shown, "spread": noise or None}


def _best(metric: Metric, values: Mapping[str, float], noise: float | None) -> list[str]:
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
    limit = min(gaps.values(), default=0.0) + (noise or 0.0)
    return [label for label, gap in gaps.items() if gap <= limit]


def speedups(retrained: Mapping[str, float], own: Mapping[str, float]) -> dict[str, float]:
    """Time of retraining over own time, without and with compilation."""
    whole_time = [m["seconds"] + m["compile_seconds"] for m in (retrained, own)]
    return {
        "speedup": retrained["seconds"] / own["seconds"],
        "speedup_with_compile": whole_time[0] / whole_time[1],
    }


HEADS = {
    "accuracy_forget": "At",
    "accuracy_test_forget": "At (test)",
    "accuracy_retain": "Ag",
    "accuracy_test_retain": "Ag (test)",
    "judged_unseen": "Fr",
    "attack_gap": "Fs",
    "seconds": "time",
    "memory": "memory",
    "speedup": "speed-up",
}
"""Metrics that a paper's numbers can be given for, and their short names.

``attack_gap`` is ``|.5 - loss_attack|``: what the report's own row says, without the side.
"""


def compare(
    judged: Sequence[Judged], published: Mapping[str, Mapping[str, float]], source: str
) -> dict[str, Any]:
    """Models that a paper gives numbers for, each with ours and the paper's.

    Args:
      judged: one for each trial.
      published: label of a model (``"original"``, ``"retrained"`` too) -> metric, one of
        :data:`HEADS` -> value.
      source: where they come from, and what differs there.

    Returns:
      ``{"source", "columns": [{"name", "label", "format"}], "rows": [{"model", "values",
      "intervals", "published"}]}``; ``{}`` if nothing was published. Every published row
      is there, also of a model that was not run.
    """
    given = {name for row in published.values() for name in row}
    # ours, whether or not the paper tells
    names = [name for name in HEADS if name in given or name == "memory"]
    if not given:
        return {}
    judged = [
        one._replace(
            models={k: _with_gap(v) for k, v in one.models.items()},
            oracles=[*map(_with_gap, one.oracles)],
        )
        for one in judged
    ]
    rows = [_published_row(label, row, names, judged) for label, row in published.items()]
    columns = [{"name": n, "label": HEADS[n], "format": _format(n)} for n in names]
    return {"source": source, "columns": columns, "rows": rows}


def _published_row(
    label: str, given: Mapping[str, float], names: Sequence[str], judged: Sequence[Judged]
) -> dict[str, Any]:
    found = {name: [v for v in each_trial(name, label, judged) if v is not None] for name in names}
    own = {name: estimate(values) for name, values in found.items() if values}
    return {
        "model": label,
        "values": {name: one.mean for name, one in own.items()},
        "intervals": {name: one.interval for name, one in own.items()},
        "published": dict(given),
    }


def _with_gap(values: Mapping[str, Any]) -> dict[str, Any]:
    if "loss_attack" not in values:
        return dict(values)
    return {**values, "attack_gap": abs(0.5 - values["loss_attack"])}


def _format(name: str) -> str:
    return ".3f" if name == "attack_gap" else METRICS[name].format
