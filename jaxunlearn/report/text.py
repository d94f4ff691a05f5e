"""A report as text: its numbers and tables, and all of it as GitHub Markdown."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from jaxunlearn.core.errors import brief, printable

ORIGINAL, RETRAINED = "original", "retrained"

FAILED = "failed"
"""Stands in the cell of a value that could not be computed."""

LAST = ("floor", "ideal")
_BY_CLASS = ("accuracy_forget", "accuracy_test_forget", "accuracy_retain", "accuracy_test_retain")
_MEANINGS = {
    "At": "At: accuracy, forget (train)",
    "Ag": "Ag: accuracy, retain (train)",
    "Fr": "Fr: forget images judged unseen",
    "Fs": "Fs: distance of the membership attack on loss from 0.5",
}


def number(value: float | None, spec: str, spread: float | None = None) -> str:
    """Returns a value with its unit, and its spread in the same unit, ``12 ±.4 s``.

    Args:
      spec: the ``format`` of a row, see :mod:`jaxunlearn.report`.
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    unit, size = _unit(value, spec)
    text = _digits(value / size, spec)
    if spread is not None:
        shown = _digits(spread / size, spec)
        text += " ±" + (shown[1:] if shown.startswith("0.") else shown)
    return text + unit


def _unit(value: float, spec: str) -> tuple[str, float]:
    if spec == "s":
        return _time(value)
    if spec == "B":
        # decimal, as the ticks of a logarithmic axis are
        power = min(3, max(0, math.floor(math.log10(max(value, 1)) / 3)))
        return (" B", " kB", " MB", " GB")[power], 1000.0**power
    return ("x" if spec == "x" else ""), 1.0


def _time(seconds: float) -> tuple[str, float]:
    if seconds < 1:
        return (" ms", 1e-3) if seconds >= 1e-3 else (" µs", 1e-6)
    if seconds < 120:
        return " s", 1.0
    return (" min", 60.0) if seconds < 7200 else (" h", 3600.0)


def _digits(value: float, spec: str) -> str:
    if not math.isfinite(value):
        return str(value)
    if spec == "d":
        return f"{round(value):,}"
    if spec not in ("s", "x", "B"):
        return format(value, spec)
    if value >= 9.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"


def expect_report(report: Any) -> None:
    """Raises a ``TypeError`` for what is no report; see :mod:`jaxunlearn.report`."""
    parts = ("title", "columns", "rows")
    if not isinstance(report, Mapping) or not set(parts) <= set(report):
        got = brief(list(report)) if isinstance(report, Mapping) else type(report).__name__
        raise TypeError(
            f"report: expected one with {', '.join(parts)}, as run, evaluate and report.load "
            f"return it, got {got}"
        )


def cell(row: Mapping[str, Any], column: str) -> str:
    """Returns the text of a column without any mark."""
    if column == "ideal":
        return str(row.get("ideal") or "-")
    if column == "floor":
        return number(row.get("floor"), row["format"])
    if column in (row.get("failed") or ()):
        return FAILED
    if "intervals" in row:
        half = row["intervals"].get(column)
        # a count of steps or bytes is the same for every seed
        spread = half or None if row.get("group") == "cost" else half
    else:
        spread = row.get("spread") if column == RETRAINED else None
    return number(row["values"].get(column), row["format"], spread)


def difference(row: Mapping[str, Any], column: str) -> tuple[str, bool]:
    """Returns the difference to the retrained models with its sign, and whether it may be none."""
    found = row["differences"].get(column)
    if found is None or found["mean"] is None:
        return FAILED if column in (row.get("failed") or ()) else "-", False
    mean, half = found["mean"], found["interval"]
    sign = "+" if mean > 0 else "-" if mean < 0 else ""
    text = sign + number(abs(mean), row["format"], half)
    return text, half is not None and abs(mean) <= half


def count(kind: str, number: int) -> str:
    """Returns so many trials in words, ``3 classes``."""
    return f"{number} {kind}{'es' if kind.endswith('s') else 's'}"


def trial_kind(report: Mapping[str, Any]) -> str:
    """Returns ``"seed"`` or ``"class"``, or nothing where there is but one trial."""
    kind: str = report.get("trials", {}).get("kind", "")
    return kind


def failures(report: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each column and reason for which cells have failed."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in report["rows"]:
        for column, reason in (row.get("failed") or {}).items():
            found[column, " ".join(str(reason).split())].append(row["metric"])
    lines = []
    for (column, reason), metrics in found.items():
        what = f"{len(metrics)} metrics" if len(metrics) > 3 else "; ".join(metrics)
        what = "every metric" if len(metrics) == len(report["rows"]) > 1 else what
        lines.append(f"{FAILED}: {column} ({what}): {reason}")
    return lines


class Line(NamedTuple):
    """A line of a table: the words at its begin, then text and mark of each column.

    Attributes:
      theirs: set if the numbers are a paper's.
    """

    words: Sequence[str]
    cells: Mapping[str, tuple[str, bool]]
    theirs: bool = False


class Grid(NamedTuple):
    """A table of a report, the same in every form.

    Attributes:
      title: above it; the first has none of its own.
      heads: above the words of its lines.
      columns: above the cells.
      groups: lines that stand together, and what they are called.
      marks: the meaning of a mark, if any.
      notes: sentences below it.
      models: set if the columns are models, over which a narrow console splits the table.
    """

    title: str
    heads: Sequence[str]
    columns: list[str]
    groups: list[tuple[str, list[Line]]]
    marks: str = ""
    notes: Sequence[str] = ()
    models: bool = True


def grids(report: Mapping[str, Any]) -> list[Grid]:
    """Returns the tables of a report: all values, differences, single classes, a paper's."""
    made = [_values(report), _differences(report), _classes(report), _beside_paper(report)]
    return [grid for grid in made if grid is not None]


def _values(report: Mapping[str, Any]) -> Grid:
    columns, groups = [*report["columns"], *LAST], []
    for group, rows in groupby(report["rows"], lambda row: row.get("group", "")):
        lines = []
        for row in rows:
            best = row.get("best") or ()
            cells = {column: (cell(row, column), column in best) for column in columns}
            lines.append(Line([row["metric"]], cells))
        groups.append((group, lines))
    return Grid("", ["metric"], columns, groups, _legend(report), failures(report))


def _legend(report: Mapping[str, Any]) -> str:
    if kind := trial_kind(report):
        several = count(kind, len(report["trials"]["numbers"]))
        spread = f"95 % confidence interval of the mean over {several}"
    else:
        spread = "standard deviation of the retrained models"
    return f"closest to the ideal; ±: {spread}; floor: mean difference between two retrained models"


def _differences(report: Mapping[str, Any]) -> Grid | None:
    rows = [row for row in report["rows"] if row.get("differences")]
    if not rows:
        return None
    columns = [name for name in report["columns"] if name != RETRAINED]
    lines = [Line([row["metric"]], {c: difference(row, c) for c in columns}) for row in rows]
    title = f"Difference to the retrained models, paired by {trial_kind(report)}"
    marks = "the 95 % confidence interval holds 0"
    return Grid(title, ["metric"], columns, [("", lines)], marks)


def _classes(report: Mapping[str, Any]) -> Grid | None:
    rows = [row for row in report["rows"] if row.get("name") in _BY_CLASS]
    kind = trial_kind(report)
    if kind not in ("class", "turn") or not rows:
        return None
    trials, groups = report["trials"], []
    for place, (label, name) in enumerate(zip(trials["numbers"], trials["names"], strict=True)):
        lines: list[Line] = []
        for row in rows:
            own = {column: values[place] for column, values in row["each"].items()}
            lost = [c for c in row.get("failed") or () if own.get(c) is None]
            single = {"format": row["format"], "values": own, "failed": lost}
            cells = {column: (cell(single, column), False) for column in report["columns"]}
            word = "" if lines else f"{label} {name}".strip()
            lines.append(Line([word, row["metric"]], cells))
        groups.append(("", lines))
    return Grid(f"{kind.capitalize()} by {kind}", [kind, "metric"], report["columns"], groups)


def _beside_paper(report: Mapping[str, Any]) -> Grid | None:
    """Returns two lines for each model, ours and the paper's."""
    published = report.get("published")
    if not published:
        return None
    heads = [column["label"] for column in published["columns"]]
    lines: list[Line] = []
    for row in published["rows"]:
        ours, theirs = {}, {}
        for column in published["columns"]:
            name, spec, head = column["name"], column["format"], column["label"]
            half = row["intervals"].get(name)
            half = half or None if spec == "B" else half
            ours[head] = number(row["values"].get(name), spec, half), False
            theirs[head] = number(row["published"].get(name), spec), False
        if row["values"]:
            lines.append(Line([row["model"]], ours))
        word = "published" if row["values"] else f"{row['model']}, published"
        lines.append(Line([word], theirs, True))
    title = f"Beside the published numbers ({published['source']})"
    notes = "; ".join(text for head, text in _MEANINGS.items() if head in heads)
    return Grid(title, ["model"], heads, [("", lines)], notes=[notes], models=False)


def environment(report: Mapping[str, Any]) -> str:
    """Returns the versions in one line."""
    return ", ".join(f"{name} {value}" for name, value in report.get("environment", {}).items())


def to_markdown(report: Mapping[str, Any]) -> str:
    """Returns the report as GitHub Markdown; the best unlearned value of a row is bold."""
    expect_report(report)
    report = printable_report(report)
    lines = [f"## {report['title']}"]
    for grid in grids(report):
        lines += ["", f"### {grid.title}"] if grid.title else []
        lines += ["", *_markdown_table(grid)]
        lines += ["", f"Bold: {grid.marks}."] if grid.marks else []
        for note in grid.notes:
            lines += ["", f"{note.rstrip('.')}."]
    lines += ["", *(f"- {note}" for note in report.get("notes", []))]
    lines += ["", environment(report)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(grid: Grid) -> Iterator[str]:
    yield _pipes([*grid.heads, *grid.columns])
    sides = [":---" if column == "ideal" else "---:" for column in grid.columns]
    yield _pipes([*[":---"] * len(grid.heads), *sides])
    for name, lines in grid.groups:
        if grid.title == "":
            yield _pipes([f"*{name}*", *[""] * len(grid.columns)])
        for line in lines:
            words = [f"*{word}*" if line.theirs else word for word in line.words]
            cells = [line.cells[column] for column in grid.columns]
            yield _pipes([*words, *(f"**{text}**" if marked else text for text, marked in cells)])


def _pipes(cells: list[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def printable_report(value: Any) -> Any:
    """Returns a report whose texts, which may come from a file of others, terminals just show."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable_report(key): printable_report(inner) for key, inner in value.items()}
    return (
        [printable_report(inner) for inner in value] if isinstance(value, list | tuple) else value
    )
