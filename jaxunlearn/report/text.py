"""Numbers as text, the same in every form of a report.

A report as GitHub Markdown.
"""

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

ORIGINAL, RETRAINED = "original", "retrained"

_BY_CLASS = ("accuracy_forget", "accuracy_test_forget", "accuracy_retain", "accuracy_test_retain")
"""Metrics that are told class by class."""


def number(value: float | None, spec: str, spread: float | None = None) -> str:
    """A value with its unit, and its spread in the same unit, ``12 ±.4 s``."""
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
    if spec == "d":
        return f"{round(value):,}"
    if spec not in ("s", "x", "B"):
        return format(value, spec)
    if value >= 9.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"


def cell(row: dict[str, Any], column: str) -> str:
    """The text of a column without any mark."""
    if column == "ideal":
        return str(row.get("ideal") or "-")
    if column == "floor":
        return number(row.get("floor"), row["format"])
    if "intervals" in row:
        half = row["intervals"].get(column)
        # a count of steps or bytes is the same for every seed
        spread = half or None if row.get("group") == "cost" else half
    else:
        spread = row.get("spread") if column == RETRAINED else None
    return number(row["values"].get(column), row["format"], spread)


def difference(row: dict[str, Any], column: str) -> tuple[str, bool]:
    """Difference to the retrained model with its sign, and whether it may be none."""
    found = row["differences"].get(column)
    if found is None:
        return "-", False
    mean, half = found["mean"], found["interval"]
    sign = "+" if mean > 0 else "-" if mean < 0 else ""
    text = sign + number(abs(mean), row["format"], half)
    return text, half is not None and abs(mean) <= half


def count(kind: str, number: int) -> str:
    """So many trials, ``3 classes``."""
    return f"{number} {kind}{'es' if kind.endswith('s') else 's'}"


def trial_kind(report: dict[str, Any]) -> str:
    """``"seed"`` or ``"class"``; empty where there is but one trial."""
    return report.get("trials", {}).get("kind", "")


def by_class(report: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """Each class, with its lines: the metric, and the texts of the columns."""
    if trial_kind(report) != "class":
        return
    rows = [row for row in report["rows"] if row.get("name") in _BY_CLASS]
    trials = report["trials"]
    for place, (label, name) in enumerate(zip(trials["numbers"], trials["names"], strict=True)):
        lines = []
        for row in rows:
            values = {column: own[place] for column, own in row["each"].items()}
            texts = {c: number(values.get(c), row["format"]) for c in report["columns"]}
            lines.append((row["metric"], texts))
        yield f"{label} {name}".strip(), lines


def beside_paper(published: dict[str, Any]) -> Iterator[list[str]]:
    """Lines of the table of published numbers: two for each model, ours and the paper's."""
    for row in published["rows"]:
        ours, theirs = [row["model"]], ["published"]
        for column in published["columns"]:
            name, spec = column["name"], column["format"]
            half = row["intervals"].get(name)
            half = half or None if spec == "B" else half
            ours.append(number(row["values"].get(name), spec, half))
            theirs.append(number(row["published"].get(name), spec))
        if row["values"]:
            yield ours
        else:
            theirs[0] = f"{row['model']}, published"
        yield theirs


def legend(report: dict[str, Any]) -> str:
    """What the mark, ± and floor mean."""
    if kind := trial_kind(report):
        several = count(kind, len(report["trials"]["numbers"]))
        spread = f"95 % confidence interval of the mean over {several}"
    else:
        spread = "standard deviation of the retrained models"
    return f"closest to the ideal; ±: {spread}; floor: mean difference between two retrained models"


def paper_legend(published: dict[str, Any]) -> str:
    """What the short heads mean."""
    meanings = {
        "At": "At: accuracy, forget (train)",
        "Ag": "Ag: accuracy, retain (train)",
        "Fr": "Fr: forget images judged unseen",
        "Fs": "Fs: distance of the membership attack on loss from 0.5",
    }
    heads = [column["label"] for column in published["columns"]]
    return "; ".join(text for head, text in meanings.items() if head in heads)


def environment(report: dict[str, Any]) -> str:
    """Versions in one line."""
    return ", ".join(f"{name} {value}" for name, value in report.get("environment", {}).items())


def to_markdown(report: dict[str, Any]) -> str:
    """The report as GitHub Markdown; the best unlearned value of a row is bold."""
    lines = [f"## {report['title']}", "", *_main(report)]
    lines += ["", f"Bold: {legend(report)}."]
    lines += _differences(report)
    lines += _by_class(report)
    if report.get("published"):
        lines += _published(report["published"])
    lines += ["", *(f"- {note}" for note in report.get("notes", []))]
    lines += ["", environment(report)]
    return "\n".join(lines).rstrip() + "\n"


def _main(report: dict[str, Any]) -> list[str]:
    columns = [*report["columns"], "floor", "ideal"]
    lines = [_line(["metric", *columns])]
    lines.append(_line([":---", *["---:"] * len(report["columns"]), "---:", ":---"]))
    for group, rows in groupby(report["rows"], lambda row: row.get("group", "")):
        lines.append(_line([f"*{group}*", *[""] * len(columns)]))
        for row in rows:
            cells = ((cell(row, column), column in (row.get("best") or ())) for column in columns)
            lines.append(_line([row["metric"], *(_bold(*one) for one in cells)]))
    return lines


def _differences(report: dict[str, Any]) -> list[str]:
    rows = [row for row in report["rows"] if row.get("differences")]
    if not rows:
        return []
    columns = [name for name in report["columns"] if name != RETRAINED]
    lines = ["", f"### Difference to retrained, paired by {trial_kind(report)}", ""]
    lines += [_line(["metric", *columns]), _line([":---", *["---:"] * len(columns)])]
    for row in rows:
        lines.append(_line([row["metric"], *(_bold(*difference(row, c)) for c in columns)]))
    return [*lines, "", "Bold: the 95 % confidence interval holds 0."]


def _by_class(report: dict[str, Any]) -> list[str]:
    if trial_kind(report) != "class":
        return []
    columns = report["columns"]
    lines = ["", "### Class by class", "", _line(["class", "metric", *columns])]
    lines.append(_line([":---", ":---", *["---:"] * len(columns)]))
    for label, rows in by_class(report):
        for place, (metric, texts) in enumerate(rows):
            lines.append(_line(["" if place else label, metric, *(texts[c] for c in columns)]))
    return lines


def _published(published: dict[str, Any]) -> list[str]:
    heads = [column["label"] for column in published["columns"]]
    lines = ["", f"### Beside the published numbers ({published['source']})", ""]
    lines += [_line(["model", *heads]), _line([":---", *["---:"] * len(heads)])]
    for name, *cells in beside_paper(published):
        ours = not name.endswith("published")
        lines.append(_line([name if ours else f"*{name}*", *cells]))
    return [*lines, "", f"{paper_legend(published)}."]


def _bold(text: str, marked: bool) -> str:
    return f"**{text}**" if marked else text


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"
