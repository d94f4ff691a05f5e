"""A report for the terminal: what was best, then tables that fit the width.

Where one table of all models is too wide, each group of metrics has a table of its own, with a row
a model.
"""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from jaxunlearn.report.summary import best_sentence
from jaxunlearn.report.text import (
    FAILED,
    LAST,
    ORIGINAL,
    RETRAINED,
    Grid,
    Line,
    environment,
    expect_report,
    grids,
    printable_report,
)

_NARROW = 20
"""Letters of a metric's name in a line, where there is least room."""


def to_table(report: Mapping[str, Any]) -> "ReportTable":
    """Returns the report for ``rich.print``: split over several tables in a narrow console."""
    return ReportTable(report)


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the tables, on the standard output by default."""
    (console or Console()).print(to_table(report))


class ReportTable:
    """A Rich renderable that splits the models over several tables in a narrow console."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        expect_report(report)
        self.report = printable_report(report)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if sentence := best_sentence(self.report):
            yield Text(f"{sentence}.\n", style="bold")
        yield Text(self.report["title"], style="bold")
        for grid in grids(self.report):
            if grid.title:
                yield Text(f"\n{grid.title}", style="bold")
            for head, table in _fitting(grid, console, options):
                yield Text(f"\n{head}" if head else "", style="bold")
                yield table
            below = [f"* {grid.marks}"] if grid.marks else []
            if below or grid.notes:
                yield Text()
            for note in [*below, *grid.notes]:
                yield Text(note, style="dim")
        for note in self.report.get("notes", []):
            yield Text(f"- {note}")
        yield Text(environment(self.report), style="dim")


def _fitting(grid: Grid, console: Console, options: ConsoleOptions) -> Iterator[tuple[str, Table]]:
    """Yields one table where it fits, a long metric name wrapped; else as many as it takes.

    Metrics are then the columns, group by group, and models the rows, so that any number of models
    fits; where lines have two heads the models are split instead. With each table its head.
    """
    if not grid.models:
        yield "", _drawn(grid, grid.columns, None)
        return
    unlimited = options.update(width=10_000)

    def fits(table: Table) -> bool:
        return console.measure(table, options=unlimited).maximum <= options.max_width

    for wrap in (None, 40, 30, _NARROW):
        if fits(whole := _drawn(grid, grid.columns, wrap)):
            yield "", whole
            return
    if len(grid.heads) > 1:
        yield from (("", table) for table in _models_apart(grid, fits))
        return
    for group, lines in grid.groups:
        head, left = group, list(lines)
        while left:
            count = next((n for n in range(len(left), 1, -1) if fits(_turned(grid, left[:n]))), 1)
            yield head, _turned(grid, left[:count])
            head, left = "", left[count:]


def _models_apart(grid: Grid, fits: Callable[[Table], bool]) -> list[Table]:
    """Returns as few tables as fit, the models split over them."""
    tables: list[Table] = []
    for parts in range(1, max(2, len(_unlearned(grid)) + 1)):
        for wrap in (None, _NARROW):
            tables = [_drawn(grid, columns, wrap) for columns in _split(grid, parts)]
            if all(map(fits, tables)):
                return tables
    return tables


def _turned(grid: Grid, lines: Sequence[Line]) -> Table:
    """Returns a table of some lines with a row a model and a column a line."""
    table = Table(box=box.HORIZONTALS, show_edge=False, header_style="bold")
    table.pad_edge, table.collapse_padding = False, True
    table.add_column("", no_wrap=True)
    for line in lines:
        words = " ".join(line.words).split()
        # never narrower than the ideal below
        wide = max(9, *map(len, [*words, *(line.cells[c][0] for c in LAST if c in line.cells)]))
        table.add_column(Text("\n".join(textwrap.wrap(" ".join(words), wide))), justify="right")
    for column in grid.columns:
        cells = [_cell(*line.cells[column], False) for line in lines]
        table.add_row(Text(column), *cells, style="dim" if column in LAST else "")
    return table


def _unlearned(grid: Grid) -> list[str]:
    return [name for name in grid.columns if name not in (ORIGINAL, RETRAINED, *LAST)]


def _split(grid: Grid, parts: int) -> Iterator[list[str]]:
    """Returns the columns of each table: the retrained models' in all, the floor in the last."""
    names = _unlearned(grid)
    bounds = [round(i * len(names) / parts) for i in range(parts + 1)]
    for i in range(parts):
        columns = [name for name in (ORIGINAL,) if i == 0 and name in grid.columns]
        columns += names[bounds[i] : bounds[i + 1]]
        columns += [name for name in (RETRAINED,) if name in grid.columns]
        yield columns + [name for name in LAST if i == parts - 1 and name in grid.columns]


def _drawn(grid: Grid, columns: list[str], wrap: int | None) -> Table:
    """Returns one table, with the names of metrics wrapped at a width."""
    table = Table(box=box.HORIZONTALS, show_edge=False, header_style="bold")
    table.pad_edge, table.collapse_padding = False, True
    for head in grid.heads:
        metric = {"max_width": wrap, "no_wrap": wrap is None, "overflow": "fold"}
        table.add_column(head, **(metric if head == "metric" else {"no_wrap": True}))  # type: ignore[arg-type]
    for column in columns:
        if column == "ideal":
            narrow = wrap == _NARROW
            table.add_column(column, max_width=9 if narrow else None, no_wrap=not narrow)
            continue
        # Broken after an underscore, a long name does not widen its column.
        head = column.replace("_", "_\n") if len(column) > 9 else column
        # in a narrow console the interval of a paper's value goes below it
        table.add_column(Text(head), justify="right", no_wrap=grid.models)
    # the place of the asterisk is kept free, so that the digits stay aligned
    plain = (RETRAINED, *LAST) if grid.marks else columns
    for _, lines in grid.groups:
        for line in lines:
            cells = (_cell(*line.cells[column], column in plain) for column in columns)
            words = [f"  {word}" if word == "published" else word for word in line.words]
            table.add_row(*map(Text, words), *cells, style="dim" if line.theirs else "")
        table.add_section()
    return table


def _cell(text: str, marked: bool, plain: bool) -> Text:
    if marked:
        return Text(f"{text}*", style="bold green")
    return Text(text if plain else f"{text} ", style="red" if text == FAILED else "")
