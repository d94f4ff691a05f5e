"""A report as a terminal table, Markdown and a picture.

A report is plain JSON: ``title``; ``columns``, the models in order, from
``original`` over the unlearned ones to ``retrained``; ``rows``; ``notes``, sentences;
``environment``, versions. A row is one metric::

    {"metric": "test accuracy, retained classes", "group": "utility", "format": ".3f",
     "ideal": "as retrained", "values": {"original": 0.98, ...}, "spread": 0.004,
     "floor": 0.003, "best": ["neuron_path"]}

``format`` is ``"s"`` (seconds), ``"x"`` (a ratio), ``"d"`` (a count) or a Python
format; ``spread`` the standard deviation over the retrained models, ``floor`` the mean
difference between two of them, ``best`` the unlearned models closest to the ideal; the
last three may be ``None`` or absent, and a value too.
"""

import json
import math
import os
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from jaxunlearn.errors import UserError

__all__ = ["load", "print_report", "save", "save_png", "to_markdown", "to_table"]

_ORIGINAL, _RETRAINED = "original", "retrained"
_LEGEND = "closest to the ideal; ±: standard deviation of the retrained models"
_FLOOR = "; floor: mean difference between two of them"

# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_PANELS = 4  # side by side in the picture


def to_table(report: dict[str, Any]) -> "ReportTable":
    """The report for ``rich.print``: split over several tables in a narrow console."""
    return ReportTable(report)


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Prints the tables, on the standard output by default."""
    (console or Console()).print(to_table(report))


def to_markdown(report: dict[str, Any]) -> str:
    """The report as GitHub Markdown; the best unlearned value of a row is bold."""
    columns = [*report["columns"], "floor", "ideal"]
    lines = [f"## {report['title']}", "", _line(["metric", *columns])]
    lines.append(_line([":---", *["---:"] * len(report["columns"]), "---:", ":---"]))
    for group, rows in groupby(report["rows"], lambda row: row.get("group", "")):
        lines.append(_line([f"*{group}*", *[""] * len(columns)]))
        for row in rows:
            cells = ((_cell(row, column), column in (row.get("best") or ())) for column in columns)
            lines.append(_line([row["metric"], *(f"**{t}**" if best else t for t, best in cells)]))
    lines += ["", f"Bold: {_LEGEND}{_FLOOR}."]
    lines += ["", *(f"- {note}" for note in report.get("notes", []))]
    lines += ["", _environment(report)]
    return "\n".join(lines).rstrip() + "\n"


def save(report: dict[str, Any], folder: str | os.PathLike[str]) -> None:
    """Writes ``report.json``, ``report.md`` and ``report.png`` into ``folder``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
    save_png(report, folder / "report.png")


def load(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The report that :func:`save` wrote into ``folder``.

    Raises:
      UserError: there is none, or it is not JSON.
    """
    file = Path(folder) / "report.json"
    try:
        report = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"expected a report, got {file}: {error}") from error
    if not isinstance(report, dict) or not {"title", "columns", "rows"} <= set(report):
        raise UserError(f"expected a report with title, columns and rows, got {file}")
    return report


# ---------------------------------------------------------------- text


def _number(value: float | None, spec: str, spread: float | None = None) -> str:
    """A value with its unit, and its spread in the same unit, ``12 ±.4 s``."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    unit, size = _unit(value) if spec == "s" else ("x" if spec == "x" else "", 1.0)
    text = _digits(value / size, spec)
    if spread is not None:
        shown = _digits(spread / size, spec)
        text += " ±" + (shown[1:] if shown.startswith("0.") else shown)
    return text + unit


def _unit(seconds: float) -> tuple[str, float]:
    if seconds < 1:
        return (" ms", 1e-3) if seconds >= 1e-3 else (" µs", 1e-6)
    if seconds < 120:
        return " s", 1.0
    return (" min", 60.0) if seconds < 7200 else (" h", 3600.0)


def _digits(value: float, spec: str) -> str:
    if spec == "d":
        return f"{round(value):,}"
    if spec not in ("s", "x"):
        return format(value, spec)
    if value >= 9.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"


def _cell(row: dict[str, Any], column: str) -> str:
    """The text of a column without any mark."""
    if column == "ideal":
        return str(row.get("ideal") or "-")
    if column == "floor":
        return _number(row.get("floor"), row["format"])
    spread = row.get("spread") if column == _RETRAINED else None
    return _number(row["values"].get(column), row["format"], spread)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _environment(report: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in report.get("environment", {}).items())


class ReportTable:
    """A Rich renderable that splits the models over several tables in a narrow console."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.report["title"], style="bold")
        for table in self._fitting(console, options):
            yield Text()
            yield table
        yield Text()
        yield Text(f"* {_LEGEND}{_FLOOR}", style="dim")
        for note in self.report.get("notes", []):
            yield Text(f"- {note}")
        yield Text(_environment(self.report), style="dim")

    def _fitting(self, console: Console, options: ConsoleOptions) -> list[Table]:
        """As few tables as fit; a long metric name is wrapped before the models are split."""
        unlimited = options.update(width=10_000)
        tables: list[Table] = []
        for parts in range(1, max(2, len(self._unlearned()) + 1)):
            for wrap in (None, 20):
                tables = [self._table(columns, wrap) for columns in self._split(parts)]
                widths = (console.measure(table, options=unlimited).maximum for table in tables)
                if max(widths) <= options.max_width:
                    return tables
        return tables

    def _unlearned(self) -> list[str]:
        return [c for c in self.report["columns"] if c not in (_ORIGINAL, _RETRAINED)]

    def _split(self, parts: int) -> Iterator[list[str]]:
        """Columns of each table; all have the retrained model, one the other references."""
        names, models = self._unlearned(), self.report["columns"]
        bounds = [round(i * len(names) / parts) for i in range(parts + 1)]
        for i in range(parts):
            columns = [_ORIGINAL] if i == 0 and _ORIGINAL in models else []
            columns += names[bounds[i] : bounds[i + 1]]
            columns += [_RETRAINED] if _RETRAINED in models else []
            yield columns + (["floor", "ideal"] if i == parts - 1 else [])

    def _table(self, columns: list[str], wrap: int | None) -> Table:
        table = Table(box=box.HORIZONTALS, show_edge=False, header_style="bold")
        table.pad_edge, table.collapse_padding = False, True
        table.add_column("metric", max_width=wrap, no_wrap=wrap is None, overflow="fold")
        for column in columns:
            if column == "ideal":
                table.add_column(column, max_width=wrap and 9, no_wrap=wrap is None)
                continue
            # Broken after an underscore, a long name does not widen its column.
            head = column.replace("_", "_\n") if len(column) > 9 else column
            table.add_column(Text(head), justify="right", no_wrap=True)
        for _, rows in groupby(self.report["rows"], lambda row: row.get("group", "")):
            for row in rows:
                cells = [self._marked(row, column) for column in columns]
                table.add_row(Text(row["metric"]), *cells)
            table.add_section()
        return table

    @staticmethod
    def _marked(row: dict[str, Any], column: str) -> Text:
        if column in (row.get("best") or ()):
            return Text(_cell(row, column) + "*", style="bold green")
        # The place of the asterisk is kept free, so that the digits stay aligned.
        models = column not in ("floor", "ideal", _RETRAINED)
        return Text(_cell(row, column) + (" " if models else ""))


# ---------------------------------------------------------------- picture


def save_png(report: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """A picture: one panel for each metric, one line in it for each model.

    A band marks the retrained models (their mean, and the larger of spread and floor on
    both sides), a star the unlearned model closest to the ideal. Times and ratios have a
    logarithmic axis, and all axes fit their values: they need not begin at zero.
    """
    # Imported here: it takes long, and most runs only print.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows, models = report["rows"], report["columns"]
    across = min(_PANELS, max(1, len(rows)))
    down = max(1, math.ceil(len(rows) / across))
    size = (2.1 + 2.9 * across, 0.7 + down * (0.75 + 0.23 * len(models)))
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.06, wspace=0.02, hspace=0.03)
    figure = Figure(figsize=size, dpi=150, layout=layout)
    figure.suptitle(report["title"], fontweight="bold", fontsize=12, parse_math=False)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for index, ax in enumerate(axes):
        if index < len(rows):
            _panel(ax, rows[index], models, names=index % across == 0)
        else:
            ax.set_axis_off()
    text = "★ closest to the ideal      band: retrained, ± the larger of its spread and the floor"
    figure.supxlabel(text, fontsize=8, color="0.35", parse_math=False)
    figure.savefig(path)


def _panel(ax: Any, row: dict[str, Any], models: list[str], names: bool) -> None:
    title = "\n".join(textwrap.wrap(row["metric"], 34))
    ax.set_title(title, fontsize=9, loc="left", fontweight="bold", parse_math=False)
    values = {name: row["values"].get(name) for name in models}
    shown = {n: float(v) for n, v in values.items() if v is not None and math.isfinite(v)}
    _scale(ax, row, list(shown.values()))
    _band(ax, row, shown.get(_RETRAINED))
    for place, name in enumerate(models):
        colour, best = _colour(name, models), name in (row.get("best") or ())
        ax.axhline(place, color="0.92", linewidth=0.8, zorder=0)
        if name in shown:
            marker, area = ("*", 130) if best else ("o", 36)
            ax.scatter(shown[name], place, s=area, marker=marker, color=colour, zorder=3)
        # The right edge reads as the column of a table.
        ax.text(
            1.02,
            place,
            _number(values[name], row["format"]),
            transform=ax.get_yaxis_transform(),
            va="center",
            fontsize=8,
            fontweight="bold" if best else "normal",
            parse_math=False,
        )
    ax.set_yticks(range(len(models)), models if names else [""] * len(models), parse_math=False)
    ax.set_ylim(len(models) - 0.4, -0.6)
    ax.set_xlabel(f"ideal: {row.get('ideal') or '-'}", fontsize=7.5, color="0.35", parse_math=False)
    ax.tick_params(axis="y", length=0, labelsize=8.5)
    ax.tick_params(axis="x", labelsize=7)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _scale(ax: Any, row: dict[str, Any], values: list[float]) -> None:
    if row["format"] in ("s", "x") and values and min(values) > 0:
        ax.set_xscale("log")
        low, high = math.log10(min(values)), math.log10(max(values))
        # Whole decades: two labelled ticks at the least.
        ax.set_xlim(10 ** math.floor(low - 0.05), 10 ** math.ceil(high + 0.05))
        ax.xaxis.set_major_formatter(lambda value, _: _number(value, row["format"]))
        ax.xaxis.set_minor_formatter(lambda value, _: "")
        return
    ax.locator_params(axis="x", nbins=4)
    if values:
        # Never so near that the noise of retraining fills the panel.
        noise = 6 * max(row.get("spread") or 0, row.get("floor") or 0)
        low, high = min(values), max(values)
        room = max(high - low, noise, 1e-3 * abs(high), 1e-9)
        middle = (low + high) / 2
        ax.set_xlim(middle - 0.6 * room, middle + 0.6 * room)


def _band(ax: Any, row: dict[str, Any], retrained: float | None) -> None:
    if retrained is None:
        return
    half = max(row.get("spread") or 0, row.get("floor") or 0)
    if half:
        ax.axvspan(retrained - half, retrained + half, color="0.5", alpha=0.25, linewidth=0)
    ax.axvline(retrained, color="0.35", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)


def _colour(name: str, models: list[str]) -> str:
    if name in (_ORIGINAL, _RETRAINED):
        return "0.55" if name == _ORIGINAL else "black"
    unlearned = [model for model in models if model not in (_ORIGINAL, _RETRAINED)]
    return _COLOURS[unlearned.index(name) % len(_COLOURS)]
