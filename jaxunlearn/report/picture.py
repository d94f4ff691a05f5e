"""A report as a picture: one panel for each metric, one line in it for each model."""

import math
import os
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxunlearn.core.files import write_atomic
from jaxunlearn.report.text import (
    FAILED,
    ORIGINAL,
    RETRAINED,
    count,
    expect_report,
    number,
    trial_kind,
)

# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", "--", "-.", ":")  # the colours come again, in another line
_PANELS = 4  # side by side
_CURVE = 2  # panels that a curve takes, at the least
_INCH = 150  # dots
_FEW = 20  # places of a curve that are marked, at most


def save_png(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws panels of the metrics, then the curves, as PNG.

    A band marks the retrained models (their mean, and the larger of spread and floor on
    both sides), a star the unlearned model closest to the ideal, a bar the confidence
    interval over seeds or classes, an open diamond a published value. The place of a value
    that failed is empty, and the word stands beside it. Times, ratios and
    bytes have a logarithmic axis, and all axes fit their values: they need not begin at zero.

    Args:
      report: see :mod:`jaxunlearn.report`.
      path: of the PNG; an existing file is replaced.

    Raises:
      OSError: the file cannot be written.
    """
    # Imported here: it takes long, and most runs only print.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    expect_report(report)
    rows, models, curves = report["rows"], report["columns"], report.get("curves", [])
    across = min(_PANELS, max(1, len(rows)))
    down = max(1, math.ceil(len(rows) / across))
    places = _places_of_curves(len(curves), len(rows), across, down)
    down = max(down, 1 + max((place[0] for place in places), default=0))
    size = (2.1 + 2.9 * across, 0.7 + down * (0.75 + 0.23 * len(models)))
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.06, wspace=0.02, hspace=0.03)
    figure = Figure(figsize=size, dpi=_INCH, layout=layout)
    figure.suptitle(report["title"], fontweight="bold", fontsize=12, parse_math=False)
    grid = figure.add_gridspec(down, across)
    for index, row in enumerate(rows):
        ax = figure.add_subplot(grid[index // across, index % across])
        _panel(ax, row, models, _published(report, row), names=index % across == 0)
    for curve, (line, first) in zip(curves, places, strict=True):
        _course(figure.add_subplot(grid[line, first:]), curve, models)
    figure.supxlabel(_legend(report), fontsize=8, color="0.35", parse_math=False)
    write_atomic(path, lambda file: figure.savefig(file, format="png"))


def _places_of_curves(count: int, panels: int, across: int, down: int) -> list[tuple[int, int]]:
    """Returns line and first panel of each curve: the rest of the last line, then own lines."""
    places, free = [], down * across - panels
    line, first = down - 1, across - free
    for _ in range(count):
        if across - first < min(_CURVE, across):
            line, first = line + 1, 0
        places.append((line, first))
        first = across
    return places


def _legend(report: Mapping[str, Any]) -> str:
    parts = ["★ closest to the ideal"]
    parts.append("band: retrained models, ± the larger of their spread and the floor")
    if kind := trial_kind(report):
        several = count(kind, len(report["trials"]["numbers"]))
        parts.append(f"bar: 95 % confidence interval over {several}")
    elif any("over_examples" in row for row in report["rows"]):
        parts.append("bar: 95 % over examples, of one seed")
    if published := report.get("published"):
        parts.append(f"◇ published ({published['source']})")
    return "\n".join(textwrap.wrap("      ".join(parts), 150, drop_whitespace=True))


def _published(report: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the paper's values of one metric by model."""
    given = report.get("published", {}).get("rows", [])
    found = {one["model"]: one["published"].get(row.get("name")) for one in given}
    return {
        name: float(value)
        for name, value in found.items()
        if value is not None and name in report["columns"]
    }


def _panel(
    ax: Any, row: Mapping[str, Any], models: list[str], published: dict[str, float], names: bool
) -> None:
    title = "\n".join(textwrap.wrap(row["metric"], 34))
    ax.set_title(title, fontsize=9, loc="left", fontweight="bold", parse_math=False)
    failed = row.get("failed") or {}
    values = {name: row["values"].get(name) for name in models if name not in failed}
    shown = {n: float(v) for n, v in values.items() if v is not None and math.isfinite(v)}
    known = row.get("intervals") or row.get("over_examples") or {}
    halves = {name: known.get(name) or 0.0 for name in shown}
    halves = {name: half if math.isfinite(half) else 0.0 for name, half in halves.items()}
    ends = [v + sign * halves[n] for n, v in shown.items() for sign in (-1, 1)]
    _scale(ax, row, list(shown.values()), [*ends, *published.values()])
    _band(ax, row, shown.get(RETRAINED))
    for place, name in enumerate(models):
        best = name in (row.get("best") or ())
        ax.axhline(place, color="0.92", linewidth=0.8, zorder=0)
        if name in shown:
            marker, area = ("*", 130) if best else ("o", 36)
            colour = _colour(name, models)
            ax.scatter(shown[name], place, s=area, marker=marker, color=colour, zorder=3)
            if halves[name]:
                ax.errorbar(shown[name], place, xerr=halves[name], color=colour, capsize=2, lw=1)
        if name in published:
            ax.scatter(
                published[name], place, s=46, marker="D", facecolor="none", edgecolor="0.25",
                linewidth=0.9, zorder=4,
            )  # fmt: skip
        # The right edge reads as the column of a table.
        ax.text(
            1.02,
            place,
            FAILED if name in failed else number(values[name], row["format"]),
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


def _scale(ax: Any, row: Mapping[str, Any], values: list[float], marks: list[float]) -> None:
    """Makes the axis hold the values and the other marks of a panel."""
    if row["format"] in ("s", "x", "B") and values and min(values) > 0:
        marks = [*values, *(mark for mark in marks if mark > 0)]
        ax.set_xscale("log")
        low, high = math.log10(min(marks)), math.log10(max(marks))
        # Whole decades: two labelled ticks at the least.
        ax.set_xlim(10 ** math.floor(low - 0.05), 10 ** math.ceil(high + 0.05))
        ax.xaxis.set_major_formatter(lambda value, _: number(value, row["format"]))
        ax.xaxis.set_minor_formatter(lambda value, _: "")
        return
    ax.locator_params(axis="x", nbins=4)
    if all(0 <= value <= 1 for value in values):
        # an interval from few seeds may reach beyond what a share can be
        marks = [min(max(mark, 0.0), 1.0) for mark in marks]
    marks = [*values, *marks]
    if marks:
        # Never so near that the noise of retraining fills the panel.
        noise = 6 * _half(row)
        low, high = min(marks), max(marks)
        room = max(high - low, noise, 1e-3 * abs(high), 1e-9)
        middle = (low + high) / 2
        ax.set_xlim(middle - 0.6 * room, middle + 0.6 * room)


def _band(ax: Any, row: Mapping[str, Any], retrained: float | None) -> None:
    if retrained is None:
        return
    half = _half(row)
    if half:
        ax.axvspan(retrained - half, retrained + half, color="0.5", alpha=0.25, linewidth=0)
    ax.axvline(retrained, color="0.35", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)


def _half(row: Mapping[str, Any]) -> float:
    """Returns half of the band: the larger of spread and floor, where they are known."""
    found = [float(row.get(key) or 0) for key in ("spread", "floor")]
    return max(half if math.isfinite(half) else 0.0 for half in found)


def _course(ax: Any, curve: Mapping[str, Any], models: list[str]) -> None:
    """Draws one curve a model, and the retrained ones' spread as a band."""
    ax.set_title(curve["label"], fontsize=9, loc="left", fontweight="bold", parse_math=False)
    for name in models:
        if name not in curve["values"]:
            continue
        values = np.asarray(curve["values"][name], float)
        # layers are counted from the first, steps from the model as it was
        steps = np.arange(len(values)) + (curve["along"] in ("layers", "kernels"))
        last: dict[str, Any] = {"color": _colour(name, models), "linestyle": _line(name, models)}
        last |= {"marker": "o", "markersize": 3} if len(values) <= _FEW else {}
        ax.plot(steps, values, label=name, linewidth=1.3, **last)
        if name == RETRAINED and curve.get("spread"):
            half = np.asarray(curve["spread"], float)
            ax.fill_between(steps, values - half, values + half, color="0.5", alpha=0.25, lw=0)
    ax.set_xlabel(curve["along"], fontsize=7.5, color="0.35", parse_math=False)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    if not ax.lines:
        return
    legend = ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _colour(name: str, models: list[str]) -> str:
    if name in (ORIGINAL, RETRAINED):
        return "0.55" if name == ORIGINAL else "black"
    return _COLOURS[_unlearned(models).index(name) % len(_COLOURS)]


def _line(name: str, models: list[str]) -> str:
    if name in (ORIGINAL, RETRAINED):
        return "-"
    return _LINES[_unlearned(models).index(name) // len(_COLOURS) % len(_LINES)]


def _unlearned(models: list[str]) -> list[str]:
    return [model for model in models if model not in (ORIGINAL, RETRAINED)]
