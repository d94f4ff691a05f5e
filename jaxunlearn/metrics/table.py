"""The table that judges forgetting: how values become a report, beside a paper's numbers."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.core.statistics import estimate, floor, paired, spread
from jaxunlearn.metrics.registry import GROUPS, METRICS, Metric

Values = Mapping[str, Any]


class Place(NamedTuple):
    """Place of one trial among several: a seed, a class by itself, or a request in turn.

    Attributes:
      kind: ``"seed"``, ``"class"`` or ``"turn"``.
      name: of a class, where it has one other than its number.
    """

    kind: str
    number: int
    name: str = ""


class Judged(NamedTuple):
    """Values of all models of one trial.

    Attributes:
      models: ``{"original": values, <unlearned>: values, ...}``; empty where it failed.
      retrained: values of each retrained model.
      alone: values of the one that was trained alone, whose costs count; by default the
        first.
      failed: by model (``"retrained"`` and ``"retrained/0"`` too) and metric, why there is no
        value; under the metric ``""``, why there is no model.
      intervals: by model and metric, half the width of 95 % intervals over examples.
    """

    models: Mapping[str, Values]
    retrained: Sequence[Values]
    alone: Values | None = None
    failed: Mapping[str, Mapping[str, str]] = {}
    intervals: Mapping[str, Mapping[str, float]] = {}


def make_report(
    title: str, models: Mapping[str, Values], retrained: Sequence[Values], **more: Any
) -> dict[str, Any]:
    """Makes the report of a single trial; see :func:`summarise`."""
    given = {name: more.pop(name, {}) for name in ("failed", "intervals")}
    return summarise(title, [Judged(models, retrained, **given)], **more)


def summarise(
    title: str,
    judged: Sequence[Judged],
    *,
    trials: Sequence[Place] = (),
    ensembles: Judged | None = None,
    notes: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
    published: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Sets values side by side; a plain dictionary that JSON can hold.

    For each metric ``m``: ``retrained`` is the mean over the retrained models, ``spread`` their
    standard deviation (n - 1), ``floor`` the mean of ``|m_i - m_j|`` over pairs of
    them, those of different seeds too, but not of different classes: a difference to
    retraining below the floor is noise. A metric that compares with the other retrained models has
    none with two of them and one seed, for there is one distance between two models. A cost is
    that of the one trained alone.
    ``best`` names the unlearned model closest to the ideal and those within the floor of it.

    Of several trials a value is the mean, and the row holds also ``each`` (the values, trial
    by trial), ``intervals`` (95 %, half the width) and, where the ideal is the retrained
    model, ``differences`` to it, paired by trial. Of one trial the row of a mean over examples
    holds ``over_examples``, half the width of the interval that other examples would give.

    Args:
      judged: one for each trial.
      trials: which they are, where there are several.
      ensembles: values of metrics of ensembles, of all trials together.
      published: see :func:`jaxunlearn.metrics.table.compare`.
    """
    columns = [*judged[0].models, "retrained"]
    # retrained models of other seeds differ by chance, those of other trials by their request
    chance = {trial.kind for trial in trials} <= {"seed"}
    shown = sorted(METRICS.items(), key=lambda item: _place(item[1].group))
    together = judged if ensembles is None else [ensembles]
    sources = {name: together if one.scope == "ensemble" else judged for name, one in shown}
    rows = [_row(name, one, columns, sources[name], chance) for name, one in shown if not one.along]
    curves = [_curve(name, one, columns, judged, chance) for name, one in shown if one.along]
    if any(trial.kind == "turn" for trial in trials):
        rows = [_dependent(row) for row in rows]
    failures = _failures(judged, trials)
    made = {
        "title": title,
        "columns": columns,
        "rows": [
            row for row in rows if row["values"] or _failed(row["name"], sources[row["name"]])
        ],
        "curves": [curve for curve in curves if curve],
        "notes": [*failures, *_wrecked(judged, trials), *notes, *_over_examples(rows)],
        "environment": dict(environment or {}),
    }
    extra = {"trials": _of(trials), "published": dict(published or {}), "failures": failures}
    return made | {name: value for name, value in extra.items() if value}


def _place(group: str) -> tuple[float, str]:
    """Returns the place of a group; those of other packages come before the costs."""
    before_costs = len(GROUPS) - 1.5
    return (GROUPS.index(group), "") if group in GROUPS else (before_costs, group)


def _failures(judged: Sequence[Judged], trials: Sequence[Place]) -> list[str]:
    """Makes a sentence for each model that could not be made."""
    sentences = []
    for number, one in enumerate(judged):
        which = f"{trials[number].kind} {trials[number].number}: " if trials else ""
        reasons = {label: own[""] for label, own in one.failed.items() if "" in own}
        sentences += [f"{which}{label} failed: {reason}" for label, reason in reasons.items()]
    return sentences


def _wrecked(judged: Sequence[Judged], trials: Sequence[Place]) -> list[str]:
    """Makes a sentence for each retrained model that counts in no mean, or not in all."""
    sentences = []
    for number, one in enumerate(judged):
        which = f"{trials[number].kind} {trials[number].number}: " if trials else ""
        for label, own in one.failed.items():
            if label.startswith("retrained/") and own:
                reason = " ".join(str(next(iter(own.values()))).split())
                sentences.append(
                    f"{which}{label} failed in {len(own)} metrics, whose means are of the others: "
                    f"{reason}"
                )
    return sentences


def _of(trials: Sequence[Place]) -> dict[str, Any]:
    if not trials:
        return {}
    names = [one.name if one.name != str(one.number) else "" for one in trials]
    return {"kind": trials[0].kind, "numbers": [one.number for one in trials], "names": names}


def each_trial(name: str, label: str, judged: Sequence[Judged]) -> list[float | None]:
    """Returns a metric of one column, trial by trial; ``None`` where it is missing or failed."""
    if label != "retrained":
        found = [one.models.get(label, {}).get(name) for one in judged]
        return [None if v is None or not math.isfinite(v) else float(v) for v in found]
    means: list[float | None] = []
    for one in judged:
        counted = one.retrained
        if METRICS[name].group == "cost":
            # the others may have shared a program and its time
            counted = counted[:1] if one.alone is None else [one.alone]
        values = [float(own[name]) for own in counted if _is_number(own.get(name))]
        means.append(float(np.mean(values)) if values else None)
    return means


def _is_number(value: Any) -> bool:
    return value is not None and (isinstance(value, Sequence) or math.isfinite(value))


def _by_chance(name: str, judged: Sequence[Judged], chance: bool) -> list[list[Any]]:
    """Groups values of retrained models that differ by chance alone.

    Two models are as far from each other either way round: where a metric compares with the other
    retrained models and there is one other, both values are the same one, and count once.
    """
    found = [[own[name] for own in one.retrained if _is_number(own.get(name))] for one in judged]
    if METRICS[name].scope == "retrained":
        found = [[np.mean(own, axis=0).tolist()] if len(own) == 2 else own for own in found]
    return [list(itertools.chain(*found))] if chance else found


def _row(
    name: str, metric: Metric, columns: Sequence[str], judged: Sequence[Judged], chance: bool
) -> dict[str, Any]:
    each = {label: each_trial(name, label, judged) for label in columns}
    each = {label: own for label, own in each.items() if any(v is not None for v in own)}
    found = {k: estimate([v for v in own if v is not None]) for k, own in each.items()}
    values = {label: one.mean for label, one in found.items()}
    retrained = [] if metric.group == "cost" else _by_chance(name, judged, chance)
    noise = floor(retrained)
    failed = {c: why for c in columns if c not in values and (why := _why(name, c, judged))}
    row: dict[str, Any] = {"name": name, "metric": metric.label, "group": metric.group}
    row |= {"format": metric.format, "ideal": metric.ideal, "values": values}
    row |= {"spread": spread(retrained), "floor": noise, "best": _best(metric, values, noise)}
    if failed:
        row["failed"] = failed
    halves = {c: own[name] for c, own in judged[0].intervals.items() if name in own}
    if len(judged) == 1 and halves:
        row["over_examples"] = halves
    if len(judged) > 1:
        row |= {"each": each, "intervals": {k: one.interval for k, one in found.items()}}
        if metric.ideal == "as retrained" and "retrained" in each:
            own = {k: paired(v, each["retrained"]) for k, v in each.items() if k != "retrained"}
            row["differences"] = {k: one._asdict() for k, one in own.items() if one is not None}
    return row


def _over_examples(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Makes a sentence on how far means over examples of one trial can be trusted."""
    most = {
        row["name"]: max(row["over_examples"].values()) for row in rows if "over_examples" in row
    }
    found = ", ".join(f"{name} {half:.3f}" for name, half in most.items())
    return [f"one seed; 95 % over examples (bootstrap), most of any model: {found}"] if most else []


def _dependent(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row without confidence intervals: each trial follows from the one before."""
    gaps = {k: {**one, "interval": None} for k, one in row.get("differences", {}).items()}
    none = dict.fromkeys(row.get("intervals", {}))
    return row | ({"intervals": none} if none else {}) | ({"differences": gaps} if gaps else {})


def _failed(name: str, judged: Sequence[Judged]) -> bool:
    return any(name in reasons for one in judged for reasons in one.failed.values())


def _why(name: str, column: str, judged: Sequence[Judged]) -> str:
    """Returns why a column has no value of a metric; nothing where the metric does not apply."""
    for one in judged:
        reasons = one.failed.get(column, {})
        if name in reasons or "" in reasons:
            return reasons.get(name) or "the method failed"
    return ""


def _curve(
    name: str, metric: Metric, columns: Sequence[str], judged: Sequence[Judged], chance: bool
) -> dict[str, Any]:
    """Averages the curve of every model; for the retrained ones their spread as well."""
    found = {c: [one.models[c] for one in judged if c in one.models] for c in columns[:-1]}
    found["retrained"] = [own for one in judged for own in one.retrained]
    courses = {
        c: [own[name] for own in models if isinstance(own.get(name), Sequence)]
        for c, models in found.items()
    }
    values = {c: np.mean(own, axis=0).tolist() for c, own in courses.items() if own}
    if not values:
        return {}
    # step by step
    grouped = [
        [one for one in own if isinstance(one, Sequence)]
        for own in _by_chance(name, judged, chance)
    ]
    steps = [list(zip(*own, strict=True)) for own in grouped if own]
    noise = [half for groups in zip(*steps, strict=True) if (half := spread(groups)) is not None]
    shown = {"name": name, "label": metric.label, "along": metric.along, "values": values}
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
    """Computes retraining's time over own time, with and without compilation, if both are known."""
    if not all({"seconds", "compile_seconds"} <= set(m) for m in (retrained, own)):
        return {}
    whole_time = [m["seconds"] + m["compile_seconds"] for m in (retrained, own)]
    return {
        "speedup": retrained["seconds"] / own["seconds"],
        "speedup_with_compile": whole_time[0] / whole_time[1],
    }


def heads() -> dict[str, str]:
    """Returns the metrics that a paper's numbers can be given for, with their short names."""
    return {name: metric.short for name, metric in METRICS.items() if metric.short}


def compare(
    judged: Sequence[Judged], published: Mapping[str, Mapping[str, float]], source: str
) -> dict[str, Any]:
    """Sets models that a paper gives numbers for beside ours.

    Args:
      judged: one for each trial.
      published: label of a model (``"original"``, ``"retrained"`` too) -> metric, one of
        :func:`heads` -> value.
      source: where they come from, and what differs there.

    Returns:
      ``{"source", "columns": [{"name", "label", "format"}], "rows": [{"model", "values",
      "intervals", "published"}]}``; ``{}`` if nothing was published. Every published row
      is there, also of a model that was not run.
    """
    given = {name for row in published.values() for name in row}
    # ours, whether or not the paper tells
    names = [name for name in heads() if name in given or name == "memory"]
    if not given:
        return {}
    rows = [_published_row(label, row, names, judged) for label, row in published.items()]
    columns = [{"name": n, "label": METRICS[n].short, "format": METRICS[n].format} for n in names]
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
