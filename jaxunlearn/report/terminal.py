"""A report as tables for the terminal."""

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from jaxunlearn.report.text import (
    ORIGINAL,
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

_LAST = ["floor", "ideal"]

Draw = Callable[[list[str], int | None], Table]
"""Columns, and the width at which names of metrics are wrapped -> a table."""


def to_table(report: dict[str, Any]) -> "ReportTable":
    """The report for ``rich.print``: split over several tables in a narrow console."""
    return ReportTable(report)


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Prints the tables, on the standard output by default."""
    (console or Console()).print(to_table(report))


class ReportTable:
    """A Rich renderable that splits the models over several tables in a narrow console."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report
        self.compared = [row for row in report["rows"] if row.get("differences")]
        self.classes = list(by_class(report))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.report["title"], style="bold")
        for table in self._fitting(self._main, [RETRAINED], _LAST, console, options):
            yield Text()
            yield table
        yield Text()
        yield Text(f"* {legend(self.report)}", style="dim")
        if self.compared:
            kind = trial_kind(self.report)
            yield Text(f"\nDifference to retrained, paired by {kind}", style="bold")
            for table in self._fitting(self._differences, [], [], console, options):
                yield Text()
                yield table
            yield Text("\n* the 95 % confidence interval holds 0", style="dim")
        if self.classes:
            yield Text("\nClass by class", style="bold")
            for table in self._fitting(self._by_class, [RETRAINED], [], console, options):
                yield Text()
                yield table
        if published := self.report.get("published"):
            yield Text(f"\nBeside the published numbers ({published['source']})\n", style="bold")
            yield _published(published)
            yield Text(f"\n{paper_legend(published)}", style="dim")
        for note in self.report.get("notes", []):
            yield Text(f"- {note}")
        yield Text(environment(self.report), style="dim")

    def _fitting(
        self, draw: Draw, ends: list[str], last: list[str], console: Console,
        options: ConsoleOptions,
    ) -> list[Table]:  # fmt: skip
        """As few tables as fit; a long metric name is wrapped before the models are split."""
        unlimited = options.update(width=10_000)
        tables: list[Table] = []
        for parts in range(1, max(2, len(self._unlearned()) + 1)):
            for wrap in (None, 20):
                tables = [draw(columns, wrap) for columns in self._split(parts, ends, last)]
                widths = (console.measure(table, options=unlimited).maximum for table in tables)
                if max(widths) <= options.max_width:
                    return tables
        return tables

    def _unlearned(self) -> list[str]:
        return [c for c in self.report["columns"] if c not in (ORIGINAL, RETRAINED)]

    def _split(self, parts: int, ends: list[str], last: list[str]) -> Iterator[list[str]]:
        """Columns of each table; all have the ``ends``, one the other references."""
        names, models = self._unlearned(), self.report["columns"]
        bounds = [round(i * len(names) / parts) for i in range(parts + 1)]
        for i in range(parts):
            columns = [ORIGINAL] if i == 0 and ORIGINAL in models else []
            columns += names[bounds[i] : bounds[i + 1]]
            columns += [name for name in ends if name in models]
            yield columns + (last if i == parts - 1 else [])

    def _main(self, columns: list[str], wrap: int | None) -> Table:
        table = _empty(columns, wrap)
        for _, rows in groupby(self.report["rows"], lambda row: row.get("group", "")):
            for row in rows:
                table.add_row(Text(row["metric"]), *(_marked(row, column) for column in columns))
            table.add_section()
        return table

    def _differences(self, columns: list[str], wrap: int | None) -> Table:
        table = _empty(columns, wrap)
        for row in self.compared:
            found = (difference(row, column) for column in columns)
            table.add_row(Text(row["metric"]), *(_starred(*one) for one in found))
        return table

    def _by_class(self, columns: list[str], wrap: int | None) -> Table:
        table = _empty(columns, wrap, "class")
        for label, lines in self.classes:
            for place, (metric, texts) in enumerate(lines):
                cells = (texts[column] for column in columns)
                table.add_row("" if place else Text(label), Text(metric), *map(Text, cells))
            table.add_section()
        return table


def _empty(columns: list[str], wrap: int | None, *before: str) -> Table:
    table = Table(box=box.HORIZONTALS, show_edge=False, header_style="bold")
    table.pad_edge, table.collapse_padding = False, True
    for column in before:
        table.add_column(column, no_wrap=True)
    table.add_column("metric", max_width=wrap, no_wrap=wrap is None, overflow="fold")
    for column in columns:
        if column == "ideal":
            table.add_column(column, max_width=wrap and 9, no_wrap=wrap is None)
            continue
        # Broken after an underscore, a long name does not widen its column.
        head = column.replace("_", "_\n") if len(column) > 9 else column
        table.add_column(Text(head), justify="right", no_wrap=True)
    return table


def _marked(row: dict[str, Any], column: str) -> Text:
    if column in ("floor", "ideal", RETRAINED):
        return Text(cell(row, column))
    return _starred(cell(row, column), column in (row.get("best") or ()))


def _starred(text: str, marked: bool) -> Text:
    # The place of the asterisk is kept free, so that the digits stay aligned.
    return Text(f"{text}*", style="bold green") if marked else Text(f"{text} ")


def _published(published: dict[str, Any]) -> Table:
    table = Table(box=box.HORIZONTALS, show_edge=False, header_style="bold")
    table.pad_edge, table.collapse_padding = False, True
    table.add_column("model", no_wrap=True)
    for column in published["columns"]:
        # in a narrow console the interval goes below its value
        table.add_column(column["label"], justify="right")
    for name, *cells in beside_paper(published):
        style = "dim" if name.endswith("published") else ""
        shown = f"  {name}" if name == "published" else name
        table.add_row(Text(shown), *map(Text, cells), style=style)
    return table
