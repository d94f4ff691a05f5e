"""Pages of a bench, of a metric study and of two runs side by side."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from jaxunlearn.report import html_charts as charts
from jaxunlearn.report.html import Cell, Page, Part, Row, Section, Table, Words
from jaxunlearn.report.html_run import flatten
from jaxunlearn.report.summary import best_sentence, request_of
from jaxunlearn.report.text import FAILED, ORIGINAL, RETRAINED, cell, number

Report = Mapping[str, Any]


def make_bench_page(
    report: Report, words: Mapping[str, Words], configuration: Mapping[str, Any]
) -> Page:
    """Makes the page of a bench: all requests together, then each by itself."""
    models = [row["label"] for row in report["overall"]]
    shown = [ORIGINAL, *models, RETRAINED]
    scatters = [chart for one in report["requests"] if (chart := _scatter(one, shown))]
    sections = [
        Section("overall", "All requests", [Part("table", _overall(report))], _OVERALL),
        Section("time", "Gap and time", [Part("charts", scatters)] if scatters else [], _SCATTER),
        *(
            Section(f"request-{n}", f"Request {one['name']}: {one['about']}",
                    [Part("table", _request(one, words))])
            for n, one in enumerate(report["requests"])
        ),
        *_tail(report, configuration),
    ]  # fmt: skip
    facts = [
        ("methods", str(len(models))),
        ("requests", ", ".join(one["name"] for one in report["requests"])),
        ("seeds", str(len(report.get("seeds", [])))),
        *_device(report),
    ]
    return Page("Bench", report["title"], best_of_bench(report), facts, sections, words)


_OVERALL = (
    "Mean rank over the requests; the gap is the mean distance from retrained models, the floor "
    "that of these from each other. Underlined: the gap is no larger than the floor."
)
_SCATTER = "Lower left is better; in the grey, retrained models differ as much from each other."


def best_of_bench(report: Report) -> str:
    """Returns what came first in a bench, in one sentence; an empty one where nothing did."""
    ranked = [row for row in report["overall"] if row["rank"] is not None]
    if not ranked:
        return ""
    first = ranked[0]["rank"]
    best = [row["label"] for row in ranked if row["rank"] == first]
    who = best[0] if len(best) == 1 else f"{', '.join(best[:-1])} and {best[-1]}"
    many = len(report["requests"])
    over = f"over {many} requests" if many > 1 else f"on {report['requests'][0]['name']}"
    if len(best) > 1:
        return (
            f"{who} share the best mean rank, {first:.1f}, {over}: methods whose gaps to retrained "
            "models differ by no more than the floor are equally good"
        )
    speed = ranked[0].get("speedup")
    fast = f", {_fast(speed)}" if speed else ""
    near = _near(report, best[0])
    return f"{who} came nearest to retrained models {over} (mean rank {first:.1f}){near}{fast}"


def _fast(speed: float) -> str:
    if speed >= 1:
        return f"{number(speed, 'x')} faster than retraining"
    return f"{number(1 / speed, 'x')} slower than retraining"


def _near(report: Report, label: str) -> str:
    """Tells on how many requests a method's gap is within the floor."""
    inside = [table for table in report["requests"] if _is_within(table, label)]
    if len(report["requests"]) == 1:
        return ", within the floor" if inside else ", but not within the floor"
    return f", within the floor on {len(inside)} of {len(report['requests'])}"


def _is_within(table: Mapping[str, Any], label: str) -> bool:
    row: Mapping[str, Any] = next((one for one in table["rows"] if one["label"] == label), {})
    gap, floor = row.get("gap"), table.get("floor")
    return bool(gap and floor and gap["mean"] <= floor["mean"])


def _overall(report: Report) -> Table:
    tables = {table["name"]: table for table in report["requests"]}
    rows = []
    for row in report["overall"]:
        rank = "-" if row["rank"] is None else f"{row['rank']:.1f}"
        cells = [Cell(rank)]
        for name, table in tables.items():
            if name in row["failed"]:
                reason = next((r.get("failed", "") for r in table["rows"]
                               if r["label"] == row["label"]), "")  # fmt: skip
                cells.append(Cell(FAILED, "failed", reason))
            else:
                kind = "same" if _is_within(table, row["label"]) else ""
                cells.append(Cell(_number(row["gaps"].get(name)), kind))
        cells.append(Cell(number(row["speedup"], "x")))
        rows.append(Row(row["label"], cells))
    floors = [Cell(_number(table["floor"])) for table in tables.values()]
    rows.append(Row("floor", [Cell(""), *floors, Cell("")], below="retrained models"))
    heads = ["mean rank", *(f"gap, {name}" for name in tables), "speed-up"]
    return Table("method", heads, [("", rows)])


def _request(table: Mapping[str, Any], words: Mapping[str, Words]) -> Table:
    columns = table["columns"]
    rows = []
    for row in table["rows"]:
        if "failed" in row:
            gaps = [Cell(FAILED, "failed", row["failed"]), Cell("-")]
        else:
            kind = "same" if _is_within(table, row["label"]) else ""
            gaps = [Cell(_number(row.get("gap")), kind), Cell(_number(row.get("excess")))]
        rank = row.get("rank")
        values = row.get("values", {})
        own = [Cell(_number(values.get(m), _spec(words, m))) for m in columns]
        below = "" if rank is None else f"rank {rank}"
        rows.append(Row(row["label"], [*gaps, *own, *_times(row)], below=below))
    theirs = table["retrained"]
    own = [Cell(_number(theirs["values"].get(m), _spec(words, m))) for m in columns]
    rows.append(
        Row(RETRAINED, [Cell(_number(table["floor"])), Cell("-"), *own, *_times(theirs)],
            below="gap: the floor")
    )  # fmt: skip
    heads = ["gap", "over the floor", *(words[m].label if m in words else m for m in columns)]
    return Table("method", [*heads, "time", "speed-up", "time to compile"], [("", rows)])


def _times(row: Mapping[str, Any]) -> list[Cell]:
    return [
        Cell(_number(row.get("seconds"), "s")),
        Cell(number(row.get("speedup"), "x")),
        Cell(number(row.get("compile_seconds"), "s")),
    ]


def _spec(words: Mapping[str, Words], name: str) -> str:
    return words[name].format if name in words else ".3f"


def _number(found: Mapping[str, Any] | None, spec: str = ".3f") -> str:
    return "-" if found is None else number(found["mean"], spec, found["interval"])


def _scatter(table: Mapping[str, Any], models: Sequence[str]) -> charts.Chart | None:
    points = {
        row["label"]: (float(row["seconds"]["mean"]), float(row["gap"]["mean"]))
        for row in table["rows"]
        if row["label"] != ORIGINAL and row.get("gap") and row.get("seconds")
    }
    floor = table["floor"]["mean"] if table.get("floor") else None
    title = f"{table['name']}: {table['about']}"
    return charts.scatter(title, points, models, ("time of one model", "gap"), floor=floor)


def _device(report: Report) -> list[tuple[str, str]]:
    versions = report.get("environment", {})
    if "device" not in versions:
        return []
    return [("device", f"{versions['device']}, jax {versions.get('jax', '?')}")]


def _tail(report: Report, configuration: Mapping[str, Any]) -> list[Section]:
    versions = ", ".join(f"{k} {v}" for k, v in report.get("environment", {}).items())
    notes = [*report.get("notes", []), *([versions] if versions else [])]
    settings = list(flatten(configuration))
    return [
        Section("configuration", "Configuration", [Part("settings", settings)] if settings else [],
                open=False),
        Section("notes", "Notes", [Part("list", notes)], open=False),
    ]  # fmt: skip


# A metric study


def make_study_page(
    report: Report, words: Mapping[str, Words], configuration: Mapping[str, Any]
) -> Page:
    """Makes the page of a metric study: which metrics are faithful, and which robust."""
    rows = report["rows"]
    points = {
        row["name"]: (row["faithfulness"], row["robustness"])
        for row in rows
        if row["faithfulness"] is not None and row["robustness"] is not None
    }
    chart = charts.scatter(
        "Faithful and robust", points, [], ("faithfulness", "robustness"), linear=True,
        note="Upper right is better; 0.5 of faithfulness is worthless. The best have their names "
        "here, all have them in the table below.",
        named=sorted(points, key=lambda name: -points[name][0] * points[name][1])[:_NAMED],
    )  # fmt: skip
    groups = []
    for group, own in groupby(sorted(rows, key=lambda r: str(r["group"])), lambda r: r["group"]):
        made = sorted(own, key=lambda r: -(r["faithfulness"] or 0))
        groups.append((group, [_judged(row) for row in made]))
    heads = [
        "faithfulness", "robustness", "after relearning", "after rounding", "larger in", "trained",
        "retrained", "variance by training", "by unlearning", "by evaluation",
    ]  # fmt: skip
    sections = [
        Section("picture", "At a glance", [Part("charts", [chart])] if chart else []),
        Section("table", "Table", [Part("table", Table("metric", heads, groups))], _STUDY),
        *_tail(report, configuration),
    ]
    facts = [("metrics", str(len(rows))), *_device(report)]
    return Page("Metric study", report["title"], best_of_study(report), facts, sections, words)


_NAMED = 8
_STUDY = (
    "Faithfulness: how well a metric tells models that were trained on the forget set from those "
    "that were not (AUC in the better direction). Robustness: how little it moves when an "
    "unlearned model is trained a little or rounded."
)


def best_of_study(report: Report) -> str:
    """Returns which metric is best to believe, in one sentence; empty where none is."""
    found = [r for r in report["rows"] if r["faithfulness"] is not None and r["robustness"]]
    if not found:
        return ""
    best = max(found, key=lambda r: (r["faithfulness"] * r["robustness"], r["name"]))
    worthless = sum((r["faithfulness"] or 0.5) < 0.6 for r in report["rows"])
    return (
        f"{best['metric']} is the one to believe first: it tells the pools apart with an AUC of "
        f"{best['faithfulness']:.3f} and has a robustness of {best['robustness']:.3f}; {worthless} "
        f"of {len(report['rows'])} metrics hardly tell them apart at all"
    )


def _judged(row: Mapping[str, Any]) -> Row:
    numbers = [row["faithfulness"], row["robustness"], row["relearning"], row["rounding"]]
    shares = row["variance"] or [None] * 3
    cells = [Cell(number(value, ".3f")) for value in numbers]
    cells.append(Cell(str(row["larger"])))
    cells += [Cell(number(row[name], ".3g")) for name in ("trained", "retrained")]
    cells += [Cell(number(share, ".2f")) for share in shares]
    return Row(row["metric"], cells, row["name"])


# Two runs


def make_comparison(
    first: tuple[str, Report, Mapping[str, Any]], second: tuple[str, Report, Mapping[str, Any]],
    words: Mapping[str, Words],
) -> Page:  # fmt: skip
    """Makes the page of two runs: their settings that differ, then each model of both.

    Args:
      first, second: name, report and configuration of each.
    """
    names = [first[0], second[0]]
    reports = [first[1], second[1]]
    facts = [(name, request_of(one)) for name, one in zip(names, reports, strict=True)]
    shared = [m for m in first[1]["columns"] if m in second[1]["columns"]]
    changed = settings_apart(first[2], second[2])
    rows = [
        Row(key, [Cell(value) for value in pair]) for key, pair in changed.items() if key != "name"
    ]
    parts = [Part("table", Table("setting", names, [("", rows)]))] if rows else []
    sections = [
        Section("settings", "Settings that differ", parts or [Part("text", "None.")]),
        *(
            Section(f"model-{n}", model, [Part("table", _apart(model, reports, names))],
                    open=n < 1 or model == RETRAINED or len(shared) <= 4)
            for n, model in enumerate(_ordered(shared))
        ),
        *(
            Section(f"only-{n}", f"Only in {name}",
                    [Part("table", _alone(one, [m for m in one["columns"] if m not in shared]))],
                    open=False)
            for n, (name, one) in enumerate(zip(names, reports, strict=True))
            if any(m not in shared for m in one["columns"])
        ),
    ]  # fmt: skip
    lead = "\n".join(
        f"{name}: {sentence}." for name, one in zip(names, reports, strict=True)
        if (sentence := best_sentence(one))
    )  # fmt: skip
    return Page("Comparison", f"{names[0]} and {names[1]}", lead, facts, sections, words)


def _ordered(models: Sequence[str]) -> list[str]:
    last = [name for name in (RETRAINED, ORIGINAL) if name in models]
    return [name for name in models if name not in last] + last


def settings_apart(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """Returns settings of which two configurations hold different values; ``-`` for none."""
    sides = [dict(flatten(one)) for one in (first, second)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    pairs = {name: (sides[0].get(name, "-"), sides[1].get(name, "-")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _apart(model: str, reports: Sequence[Report], names: Sequence[str]) -> Table:
    """Returns the rows of one model in both runs, and their difference beside the floor."""
    sides = [{row["name"]: row for row in one["rows"] if "name" in row} for one in reports]
    kept = [row for name, row in sides[0].items() if name in sides[1]]
    groups = []
    for group, rows in groupby(kept, lambda row: row.get("group", "")):
        made = []
        for row in rows:
            other = sides[1][row["name"]]
            cells = [Cell(cell(one, model)) for one in (row, other)]
            made.append(Row(row["metric"], [*cells, _change(row, other, model)], row["name"]))
        groups.append((group, made))
    return Table(model, [*names, "change"], groups, note=_CHANGE)


_CHANGE = "Underlined: no larger than the larger floor of the two runs."


def _change(row: Mapping[str, Any], other: Mapping[str, Any], model: str) -> Cell:
    a, b = (one["values"].get(model) for one in (row, other))
    if a is None or b is None:
        return Cell("-")
    gap = b - a
    floors = [one["floor"] for one in (row, other) if one.get("floor") is not None]
    same = bool(floors) and abs(gap) <= max(floors)
    sign = "+" if gap > 0 else "-" if gap < 0 else ""
    return Cell(sign + number(abs(gap), row["format"]), "same" if same else "")


def _alone(report: Report, models: Sequence[str]) -> Table:
    groups = [
        (group, [
            Row(row["metric"], [Cell(cell(row, m)) for m in models], row.get("name", ""))
            for row in rows
        ])
        for group, rows in groupby(report["rows"], lambda row: row.get("group", ""))
    ]  # fmt: skip
    return Table("metric", models, groups)
