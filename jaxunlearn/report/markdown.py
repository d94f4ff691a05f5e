"""A report as GitHub Markdown."""

from itertools import groupby
from typing import Any

from jaxunlearn.report.cells import (
    RETRAINED,
    beside_paper,
    by_class,
    cell,
    difference,
    environment,
    legend,
    paper_legend,
    trial_kind,
)

__all__ = ["to_markdown"]


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
