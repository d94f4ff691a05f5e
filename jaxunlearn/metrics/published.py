"""A paper's numbers beside ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxunlearn.metrics.summary import estimate
from jaxunlearn.metrics.table import METRICS, Judged, each_trial

__all__ = ["HEADS", "compare"]

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
    rows = [_row(label, row, names, judged) for label, row in published.items()]
    columns = [{"name": n, "label": HEADS[n], "format": _format(n)} for n in names]
    return {"source": source, "columns": columns, "rows": rows}


def _row(
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
