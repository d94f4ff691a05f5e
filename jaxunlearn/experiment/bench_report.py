"""Report of a bench: means with intervals over seeds, gaps beside the floor, ranks with ties."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from jaxunlearn.core.statistics import Estimate, estimate, paired
from jaxunlearn.metrics.registry import METRICS
from jaxunlearn.report.text import FAILED, number

Values = Mapping[str, float]

HEADS = {
    "accuracy_forget": "forget",
    "accuracy_retain": "retain",
    "accuracy_test_retain": "test",
    "accuracy_test_forget": "forget test",
    "auc_loss": "attack",
    "js_to_retrained": "JS",
    "linear_probe": "probe",
    "relearn_steps": "relearn",
}
"""Short heads of columns; other metrics have their own labels."""


class Measured(NamedTuple):
    """Measurements of a bench.

    Attributes:
      cases: name, description, number in turn (or ``None``) and kind of request of each.
      gap: metrics whose distance from the retrained models' counts.
      metrics: names, in the order of the columns.
      values: by label and case, one a seed; the original's too.
      retrained: by case and seed, of each retrained model.
      failed: reasons by label and name of a request.
      costs: by label and ``"together"``, a kind of request where each has its program, or
        ``"in turn"``.
    """

    title: str
    cases: Sequence[tuple[str, str, int | None, str]]
    seeds: Sequence[int]
    gap: Sequence[str]
    metrics: Sequence[str]
    values: Mapping[str, Mapping[int, Sequence[Values]]]
    retrained: Mapping[int, Sequence[Sequence[Values]]]
    failed: Mapping[str, Mapping[str, str]]
    left_out: Sequence[str]
    costs: Mapping[str, Mapping[str, Mapping[str, Any]]]
    environment: Mapping[str, str]


def gap_between(own: Values, other: Values, names: Sequence[str]) -> float:
    """Computes the mean of ``|own - other|`` over metrics; NaN where one is missing."""
    return float(np.mean([abs(own.get(n, math.nan) - other.get(n, math.nan)) for n in names]))


def gap_to(own: Values, retrained: Sequence[Values], names: Sequence[str]) -> float:
    """Computes the mean gap to several retrained models."""
    return float(np.mean([gap_between(own, other, names) for other in retrained]))


def floor_of(retrained: Sequence[Values], names: Sequence[str]) -> float:
    """Computes the mean gap between two of several retrained models; NaN of one alone."""
    pairs = [gap_between(a, b, names) for a, b in itertools.combinations(retrained, 2)]
    return float(np.mean(pairs)) if pairs else math.nan


def ranks(gaps: Mapping[str, float], floor: float) -> dict[str, int]:
    """Ranks labels by their gaps; those within the floor of the first of a rank share it.

    What differs by less than two retrainings do is equally good: ``.02, .03, .06`` with a floor of
    ``.02`` have the ranks 1, 1 and 3.
    """
    found: dict[str, int] = {}
    leader = rank = 0.0
    for place, label in enumerate(sorted(gaps, key=gaps.__getitem__), 1):
        if not found or gaps[label] > leader + floor:
            leader, rank = gaps[label], place
        found[label] = int(rank)
    return found


def make_bench_report(measured: Measured) -> dict[str, Any]:
    """Makes the report of a bench.

    Returns:
      ``title``; ``requests``, each with ``name``, ``about``, ``floor`` (``mean``, ``interval``),
      ``columns`` and ``rows``: of a model ``label``, ``rank``, ``gap``, ``excess`` (over the floor,
      paired by seed), ``values`` by metric, all as ``{"mean", "interval"}``, ``seconds`` of one
      model, ``speedup`` over retraining, ``compile_seconds`` of its program and ``failed``, why
      there is nothing; ``overall``, a row a method: mean rank and gaps by request; ``failures``,
      ``notes`` and ``environment``.
    """
    names = list(dict.fromkeys(name for name, *_ in measured.cases))
    tables = [_table(measured, name) for name in names]
    methods = [label for label in measured.values if label != "original"]
    return {
        "title": measured.title,
        "requests": tables,
        "overall": _overall(tables, methods),
        "seeds": list(measured.seeds),
        "failures": _failures(measured),
        "notes": _notes(measured),
        "environment": dict(measured.environment),
    }


def _table(measured: Measured, name: str) -> dict[str, Any]:
    """Makes the table of one request; of those in turn the last counts."""
    cases = [n for n, case in enumerate(measured.cases) if case[0] == name]
    in_turn = measured.cases[cases[0]][2] is not None
    cases = cases[-1:] if in_turn else cases
    seeds = range(len(measured.seeds))
    metrics = list(dict.fromkeys((*measured.gap, *measured.metrics)))
    floors = [
        float(np.mean([floor_of(measured.retrained[c][s], measured.gap) for c in cases]))
        for s in seeds
    ]
    floor = _estimate(floors)
    theirs = {
        m: [_mean(one.get(m) for c in cases for one in measured.retrained[c][s]) for s in seeds]
        for m in metrics
    }
    kind = "in turn" if in_turn else measured.cases[cases[0]][3]
    retraining = measured.costs.get("retrained", {}).get("together", {})
    rows = []
    for label, found in measured.values.items():
        reason = measured.failed.get(label, {}).get(name, "")
        if not reason and not all(c in found for c in cases):
            continue  # left out
        row: dict[str, Any] = {"label": label}
        cost = measured.costs.get(label, {})
        row |= _costs(cost.get(kind, cost.get("together", {})), retraining, label)

        def gap(s: int, found: Mapping[int, Sequence[Values]] = found) -> float:
            own = [gap_to(found[c][s], measured.retrained[c][s], measured.gap) for c in cases]
            return float(np.mean(own))

        gaps = [] if reason else [gap(s) for s in seeds]
        broken = sum(not math.isfinite(one) for one in gaps)
        if broken:
            reason = f"of {broken} of {len(gaps)} seeds a model is not finite"
        if reason:
            rows.append(row | {"failed": reason})
            continue
        row |= {"gap": _estimate(gaps), "excess": _paired(gaps, floors)}
        own = {m: [_mean(found[c][s].get(m) for c in cases) for s in seeds] for m in metrics}
        rows.append(row | {"values": _estimates(own)})
    placed = ranks(
        {r["label"]: r["gap"]["mean"] for r in rows if "gap" in r and r["label"] != "original"},
        floor["mean"] if floor and math.isfinite(floor["mean"]) else 0.0,
    )
    for row in rows:
        row |= {"rank": placed[row["label"]]} if row["label"] in placed else {}
    rows.sort(key=_order)
    known = {m for row in rows for m in row.get("values", {})}
    return {
        "name": name,
        "about": f"{len(cases)} requests" if len(cases) > 1 else _about(measured, name),
        "floor": floor,
        "columns": [m for m in metrics if m in known],
        "rows": rows,
        "retrained": {"values": _estimates(theirs), **_costs(retraining, retraining, "retrained")},
    }


def _order(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
    """Returns the place of a row: the original, then by gap, failures last."""
    gap = row["gap"]["mean"] if "gap" in row else 0.0
    return row["label"] != "original", "failed" in row, gap


def _about(measured: Measured, name: str) -> str:
    """Describes the requests of one name; of those in turn all, in their order."""
    return ", then ".join(about for own, about, *_ in measured.cases if own == name)


def _estimates(values: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    found = {name: _estimate(own) for name, own in values.items()}
    return {name: one for name, one in found.items() if one is not None}


def _costs(own: Mapping[str, Any], retraining: Mapping[str, Any], label: str) -> dict[str, Any]:
    if not own:
        return {}
    found: dict[str, Any] = {"seconds": _estimate(own["seconds"])}
    found |= {k: own[k] for k in ("compile_seconds", "steps", "members") if k in own}
    if label not in ("original", "retrained") and retraining and found["seconds"]["mean"] > 0:
        found["speedup"] = float(np.mean(retraining["seconds"])) / found["seconds"]["mean"]
    return found


def _estimate(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return estimate(known)._asdict() if known else None


def _paired(own: Sequence[float], floors: Sequence[float]) -> dict[str, Any] | None:
    if not all(math.isfinite(one) for one in floors):
        return None
    found: Estimate | None = paired(own, floors)
    return None if found is None else found._asdict()


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known else None


def _overall(tables: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Sums up the tables, a row a method, the best mean rank first; failures come last."""
    rows = []
    for label in methods:
        own = {t["name"]: r for t in tables for r in t["rows"] if r["label"] == label}
        placed = [row["rank"] for row in own.values() if "rank" in row]
        if not own:
            continue
        rows.append({
            "label": label,
            "rank": float(np.mean(placed)) if placed else None,
            "gaps": {name: row.get("gap") for name, row in own.items()},
            "failed": [name for name, row in own.items() if "failed" in row],
            "speedup": next((row["speedup"] for row in own.values() if "speedup" in row), None),
        })  # fmt: skip
    return sorted(rows, key=lambda row: math.inf if row["rank"] is None else row["rank"])


def _notes(measured: Measured) -> list[str]:
    """Makes sentences on how the numbers are meant, what failed and what was left out."""
    count = len(measured.retrained[0][0]) if measured.retrained else 0
    merged: dict[tuple[str, str], list[str]] = {}
    for note in measured.left_out:
        label, _, rest = note.partition(" left out of ")
        name, _, reason = rest.partition(": ")
        merged.setdefault((reason, label), []).append(name)
    seeds = len(measured.seeds)
    over = f"; ±: 95 % interval over {seeds} seeds" if seeds > 1 else ""
    return [
        f"gap: mean distance of {', '.join(METRICS[n].label for n in measured.gap)} from "
        f"{count} retrained models of the same seed and request; floor: of these from each other; "
        f"over: gap less floor, paired by seed{over}",
        "rank: methods whose gaps differ by no more than the floor share one",
        "time: of one model, that of a method's program divided by the models it makes, compile "
        "apart",
        *_failures(measured),
        *(f"{label} left out of {', '.join(own)}: {why}" for (why, label), own in merged.items()),
    ]


def _failures(measured: Measured) -> list[str]:
    """Makes a sentence for each method that raised, and why."""
    return [
        f"{label} failed on {', '.join(own)}: {reason}"
        for label, given in measured.failed.items()
        for reason, own in _by_reason(given).items()
    ]


def _by_reason(given: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in given.items():
        found.setdefault(reason, []).append(name)
    return found


# Text


class Grid(NamedTuple):
    """A table as text."""

    title: str
    heads: list[str]
    rows: list[list[str]]


def grids(report: Mapping[str, Any]) -> list[Grid]:
    """Returns the tables of a report: the overall one, then one a request."""
    return [_overall_grid(report), *(_grid(table) for table in report["requests"])]


def _overall_grid(report: Mapping[str, Any]) -> Grid:
    names = [table["name"] for table in report["requests"]]
    rows = []
    for row in report["overall"]:
        gaps = [
            FAILED if name in row["failed"] else _number(row["gaps"].get(name)) for name in names
        ]
        rank = "-" if row["rank"] is None else f"{row['rank']:.1f}"
        rows.append([rank, row["label"], *gaps, number(row["speedup"], "x")])
    floors = [_number(table["floor"]) for table in report["requests"]]
    rows.append(["", "floor", *floors, "-"])
    heads = ["mean rank", "method", *(f"gap, {name}" for name in names), "speed-up"]
    return Grid("all requests", heads, rows)


def _grid(table: Mapping[str, Any]) -> Grid:
    columns = table["columns"]
    rows = []
    for row in table["rows"]:
        rank = str(row.get("rank", ""))
        numbers = [_number(row.get("values", {}).get(m), METRICS[m].format) for m in columns]
        gaps = [_number(row.get("gap")), _number(row.get("excess"))]
        if "failed" in row:
            gaps = [FAILED, "-"]
        rows.append([rank, row["label"], *gaps, *numbers, *_times(row)])
    theirs = table["retrained"]
    numbers = [_number(theirs["values"].get(m), METRICS[m].format) for m in columns]
    rows.append(["", "retrained (floor)", _number(table["floor"]), "-", *numbers, *_times(theirs)])
    heads = ["rank", "method", "gap", "over", *(HEADS.get(m, METRICS[m].label) for m in columns)]
    return Grid(f"{table['name']}: {table['about']}", [*heads, "time", "speed-up", "compile"], rows)


def _times(row: Mapping[str, Any]) -> list[str]:
    seconds, compiled = row.get("seconds"), row.get("compile_seconds")
    return [_number(seconds, "s"), number(row.get("speedup"), "x"), number(compiled, "s")]


def _number(found: Mapping[str, Any] | None, spec: str = ".3f") -> str:
    return "-" if found is None else number(found["mean"], spec, found["interval"])


def to_markdown(report: Mapping[str, Any]) -> str:
    """Returns a bench as Markdown tables."""
    lines = [f"## {report['title']}", ""]
    for grid in grids(report):
        lines += [f"### {grid.title}", "", f"| {' | '.join(grid.heads)} |"]
        lines.append(f"| ---: | :--- |{' ---: |' * (len(grid.heads) - 2)}")
        lines += [f"| {' | '.join(cells)} |" for cells in grid.rows]
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in report["notes"]), ""])


def to_tables(report: Mapping[str, Any], width: int = 120) -> Iterator[Table]:
    """Yields the tables for the terminal; a wide one in parts, each with rank and method."""
    for grid in grids(report):
        for place, columns in enumerate(_parts(grid, width)):
            title = "" if place else grid.title
            table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
            for column in columns:
                justify: Any = "left" if grid.heads[column] == "method" else "right"
                table.add_column(grid.heads[column], justify=justify, no_wrap=True)
            for cells in grid.rows:
                table.add_row(*(cells[column] for column in columns))
            yield table


def _parts(grid: Grid, width: int) -> list[list[int]]:
    """Divides the columns so that each part fits; the first two stand in all."""
    wide = [
        3 + max(map(len, (head, *(cells[n] for cells in grid.rows))))
        for n, head in enumerate(grid.heads)
    ]
    parts: list[list[int]] = [[0, 1]]
    for column in range(2, len(wide)):
        whole = sum(wide[n] for n in parts[-1]) + wide[column] > width
        if whole and len(parts[-1]) > 2:
            parts.append([0, 1])
        parts[-1].append(column)
    return parts
