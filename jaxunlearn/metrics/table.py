"""The table that judges forgetting: its rows, and how values become a report."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["METRICS", "Metric", "make_report", "speedups"]


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


def speedups(retrained: Mapping[str, float], own: Mapping[str, float]) -> dict[str, float]:
    """Time of retraining over own time, without and with compilation."""
    whole_time = [m["seconds"] + m["compile_seconds"] for m in (retrained, own)]
    return {
        "speedup": retrained["seconds"] / own["seconds"],
        "speedup_with_compile": whole_time[0] / whole_time[1],
    }
