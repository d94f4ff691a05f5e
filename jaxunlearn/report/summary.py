"""What was best in a run, in one sentence, judged beside retrained models.

A method *forgot* if each of its primary metrics of forgetting differs from the retrained models'
by no more than two of these differ from each other (the floor), or, over several seeds, if the 95 %
interval of the difference holds 0 and is at most a tenth of what there was to forget. Less than
retrained models know is no better than more: both are told apart.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxunlearn.report.text import ORIGINAL, RETRAINED, number

PRIMARY = (("accuracy_forget", "accuracy_test_forget"), ("forget_share",), ("probability_forget",))
"""Metrics that say whether something was forgotten, by kind of model; the first that are there."""
SHORT = {
    "accuracy_forget": "accuracy",
    "accuracy_test_forget": "accuracy on others of it",
    "forget_share": "share of images",
    "probability_forget": "probability",
}
USE = ("accuracy_test_retain", "accuracy_retain", "utility", "probability_retain")
"""Metrics of what is left of use, the larger the better; the first that is there."""
DISTANCES = ("fid",)
"""The same, the smaller the better."""
TRACES = {
    "linear_probe": "a linear probe still finds it inside",
    "discriminator_probe": "a linear probe still finds it in the discriminator",
    "js_to_retrained": "its predictions still differ from retrained models'",
    "relearning": "it is relearned at another pace",
    "judged_unseen": "an attack takes fewer of the examples for unseen",
    "relearned_share": "it comes back after little training",
    "probability_paraphrase": "other wordings are not as unlikely",
    "probability_relearned": "it comes back after little training",
    "membership_gap": "an attack tells members",
    "loss_attack": "an attack on the loss tells members",
}
"""What a metric beyond the floor says, in the order in which it is said; the first one counts."""
PROBES = ("linear_probe", "discriminator_probe")
_CHANCE = 0.6
_NARROW = 0.1

Report = Mapping[str, Any]


def unlearned(report: Report) -> list[str]:
    """Lists the columns of unlearned models."""
    return [name for name in report["columns"] if name not in (ORIGINAL, RETRAINED)]


def is_as_retrained(row: Mapping[str, Any], label: str) -> bool | None:
    """Tells whether a value differs from the retrained models' by no more than chance.

    ``None`` where that cannot be told: no value, no retrained model or no floor.
    """
    own, theirs = (_value(row, name) for name in (label, RETRAINED))
    if own is None or theirs is None:
        return None
    paired = (row.get("differences") or {}).get(label) or {}
    known = None not in (paired.get("mean"), paired.get("interval"))
    before = _value(row, ORIGINAL)
    if known and before is not None and abs(paired["mean"]) <= paired["interval"]:
        # a wide interval holds everything
        narrow = paired["interval"] <= _NARROW * abs(before - theirs)
        if narrow:
            return True
    if row.get("floor") is None:
        return None
    # a hair's breadth of rounding is no difference
    return abs(own - theirs) <= row["floor"] + 1e-9


def mean_gap(report: Report, label: str) -> float | None:
    """Computes the mean of ``|value - retrained|`` over the rows of :func:`gap_rows`."""
    gaps = []
    for row in gap_rows(report):
        own, theirs = _value(row, label), _value(row, RETRAINED)
        if own is None or theirs is None:
            return None
        gaps.append(abs(own - theirs))
    return sum(gaps) / len(gaps) if gaps else None


def gap_rows(report: Report) -> list[Mapping[str, Any]]:
    """Lists the rows whose ideal is the retrained model and whose values are shares."""
    return [
        row
        for row in report["rows"]
        if row.get("ideal") == "as retrained" and row["format"] == ".3f"
        and _value(row, RETRAINED) is not None
        and all(abs(v) <= 1 for v in row["values"].values() if v is not None)
    ]  # fmt: skip


def request_of(report: Report) -> str:
    """Returns what was to be forgotten, as the title tells it: ``"class 3"``."""
    _, _, rest = str(report["title"]).partition(": forget ")
    for mark in (", after ", *(f", {n} " for n in _counts(report))):
        rest = rest.partition(mark)[0]
    return rest or "what was asked"


def _counts(report: Report) -> list[int]:
    return [len(report["trials"]["numbers"])] if "trials" in report else []


def best_sentence(report: Report) -> str:
    """Returns what was best in one sentence; an empty one where nothing can be said.

    Of the methods that forgot as retrained models do, the one with the smallest mean gap to them
    and, within the mean floor of it, the fastest.
    """
    rows = {row.get("name"): row for row in report["rows"]}
    primary = _primary(report)
    labels = [label for label in unlearned(report) if all(_has(row, label) for row in primary)]
    if not primary or not labels:
        return ""
    what = request_of(report)
    if all(_value(row, RETRAINED) is None for row in primary):
        return ""
    forgot = [m for m in labels if all(is_as_retrained(row, m) for row in primary)]
    unknown = any(is_as_retrained(row, m) is None for row in primary for m in labels)
    label = _best(report, forgot or labels, primary if not forgot else [])
    numbers = _with(primary, label)
    if forgot:
        start = f"{label} forgot {what} as retrained models did ({numbers})"
    elif unknown:
        start = (
            f"{label} comes nearest to the one retrained model on {what} ({numbers}; with one, "
            "nothing says how near is near)"
        )
    else:
        start = (
            f"no method forgot {what} as retrained models did: {label} comes nearest ({numbers})"
        )
    rest = [part for part in (_use(rows, label), _speed(rows, label)) if part]
    found = _trace(rows, label)
    return ", ".join([start, *rest]) + (f"; {found}" if found else "")


def _primary(report: Report) -> list[Mapping[str, Any]]:
    rows = {row.get("name"): row for row in report["rows"]}
    for names in PRIMARY:
        if found := [rows[name] for name in names if name in rows]:
            return found
    return [
        row for row in report["rows"]
        if row.get("group") == "forgetting" and row.get("ideal") == "as retrained"
    ][:1]  # fmt: skip


def _best(report: Report, labels: Sequence[str], primary: Sequence[Mapping[str, Any]]) -> str:
    """Returns the method nearest to the retrained models, the fastest of equally near ones."""

    def gap(label: str) -> float:
        if primary:
            return sum(abs(row["values"][label] - (_value(row, RETRAINED) or 0)) for row in primary)
        found = mean_gap(report, label)
        return math.inf if found is None else found

    gaps = {label: gap(label) for label in labels}
    floors = [row["floor"] for row in gap_rows(report) if row.get("floor") is not None]
    floor = 0.0 if primary or not floors else sum(floors) / len(floors)
    near = [label for label in labels if gaps[label] <= min(gaps.values()) + floor]
    seconds: Mapping[str, Any] = next(
        (row["values"] for row in report["rows"] if row.get("name") == "seconds"), {}
    )
    return min(near, key=lambda label: seconds.get(label) or math.inf)


def _with(primary: Sequence[Mapping[str, Any]], label: str) -> str:
    return ", ".join(_numbers(primary, label))


def _numbers(primary: Sequence[Mapping[str, Any]], label: str) -> Iterator[str]:
    for row in primary:
        own, theirs = (number(_value(row, n), row["format"]) for n in (label, RETRAINED))
        word = SHORT.get(row.get("name", ""), row["metric"])
        if own != theirs:
            yield f"{word} {own}, retrained {theirs}"
        elif row is primary[0]:
            yield f"{word} {own}"


def _use(rows: Mapping[Any, Mapping[str, Any]], label: str) -> str:
    for name in USE:
        if name in rows and _has(rows[name], label) and _has(rows[name], ORIGINAL):
            own, before = (number(rows[name]["values"][n], ".3f") for n in (label, ORIGINAL))
            return f"keeps {own} of {before} elsewhere"
    for name in DISTANCES:
        if name in rows and _has(rows[name], label) and _has(rows[name], ORIGINAL):
            own, before = (number(rows[name]["values"][n], ".3g") for n in (label, ORIGINAL))
            return f"its distance from real images went from {before} to {own}"
    return ""


def _speed(rows: Mapping[Any, Mapping[str, Any]], label: str) -> str:
    value = _value(rows.get("speedup", {}), label)
    if value is None or value <= 0:
        return ""
    if value >= 1:
        return f"{number(value, 'x')} faster than retraining"
    return f"{number(1 / value, 'x')} slower than retraining"


def _trace(rows: Mapping[Any, Mapping[str, Any]], label: str) -> str:
    """Returns what is left, by the first metric that finds it; where none does, what a probe says.

    A probe that finds the class in retrained models too is no trace: it says so.
    """
    said = [(n, words) for n, words in TRACES.items() if n in rows]
    for name, words in said:
        row = rows[name]
        if is_as_retrained(row, label) is False and _leans_to_original(row, label):
            own, theirs = (number(_value(row, n), row["format"]) for n in (label, RETRAINED))
            if own != theirs:
                return f"{words} ({own}, retrained {theirs})"
    for name, words in said:
        found, wanted = (_value(rows[name], n) for n in (label, RETRAINED))
        if name in PROBES and found is not None and wanted is not None and found > _CHANCE:
            both = f"{number(found, '.3f')}, retrained {number(wanted, '.3f')}"
            return f"{words}, but in retrained models too ({both})"
    return "no test of this run finds a trace beyond the floor" if said else ""


def _leans_to_original(row: Mapping[str, Any], label: str) -> bool:
    """Tells whether a value differs from the retrained models' towards the original's."""
    own, theirs, before = (_value(row, name) for name in (label, RETRAINED, ORIGINAL))
    if row.get("ideal") in ("small", "0.5") or own is None or theirs is None or before is None:
        return own is not None and theirs is not None and _off(row, own) > _off(row, theirs)
    return (own - theirs) * (before - theirs) > 0


def _off(row: Mapping[str, Any], value: float) -> float:
    return abs(value - 0.5) if row.get("ideal") == "0.5" else abs(value)


def _has(row: Mapping[str, Any], label: str) -> bool:
    return _value(row, label) is not None


def _value(row: Mapping[str, Any], label: str) -> float | None:
    value = row.get("values", {}).get(label)
    return float(value) if value is not None and math.isfinite(value) else None
