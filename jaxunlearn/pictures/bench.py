"""Methods of a bench: how near they come to retrained models, and what they cost."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxunlearn.pictures import style

_LEAST = 1e-4
"""Smallest gap that is drawn."""
# inches
_WIDE, _HIGH, _LEFT, _BELOW, _ABOVE, _ACROSS = 4.6, 3.3, 0.6, 0.6, 0.35, 2


@style.picture
def save_bench(
    path: str | os.PathLike[str], requests: Sequence[Mapping[str, Any]], *, title: str | None = None
) -> None:
    """Draws gap against time of every method, a panel a request, as PNG.

    Both with their intervals, where there are some. The line joins the methods that no other
    beats in both; the band is the floor, the mean gap between two retrained models.

    Args:
      path: of the PNG; an existing file is replaced.
      requests: of a report of ``run_bench``: ``"name"``, ``"floor"`` and ``"rows"``, of which those
        with a gap and a time are drawn.
      title: of the picture.

    Raises:
      ValueError: no request, or an entry missing.
      UserError: the file cannot be written.

    Source: own.
    """
    for number, one in enumerate(requests):
        if missing := [name for name in ("name", "floor", "rows") if name not in one]:
            raise ValueError(f"requests[{number}]: expected an entry {missing[0]!r}, got none")
    if not requests:
        raise ValueError("requests: expected one or several, got none")
    across = min(_ACROSS, len(requests))
    down = math.ceil(len(requests) / across)
    top = style.TITLE if title else 0.0
    width, height = _LEFT + _WIDE + style.PAD, _ABOVE + _HIGH + _BELOW
    with style.page(path, across * width + style.PAD, top + down * height, title) as page:
        for number, one in enumerate(requests):
            left = style.PAD + (number % across) * width
            above = top + (number // across) * height
            page.text(left, above + 0.2, one["name"], fontsize=9, color=style.INK)
            axes = page.axes(left + _LEFT, above + _ABOVE, _WIDE, _HIGH)
            _panel(axes, one)


def _panel(axes: Any, one: Mapping[str, Any]) -> None:
    drawn = [
        row for row in one["rows"]
        if row.get("gap") and row.get("seconds") and row["label"] != "original"
    ]  # fmt: skip
    points = {
        row["label"]: (row["seconds"]["mean"], max(row["gap"]["mean"], _LEAST)) for row in drawn
    }
    for row in drawn:
        x, y = points[row["label"]]
        # on logarithmic axes nothing reaches zero
        halves = [(row[name]["interval"] or 0.0) for name in ("seconds", "gap")]
        bars = [
            [[min(half, 0.9 * value)], [half]] for half, value in zip(halves, (x, y), strict=True)
        ]
        axes.errorbar(
            x, y, xerr=bars[0], yerr=bars[1], fmt="o", markersize=3,
            color=style.DONOR, ecolor="0.8", elinewidth=0.6,
        )  # fmt: skip
        axes.annotate(
            row["label"], (x, y), xytext=(3, 2), textcoords="offset points", fontsize=5,
            color=style.MUTED, parse_math=False,
        )  # fmt: skip
    best = front(points)
    if best:
        across, up = zip(*(points[label] for label in best), strict=True)
        axes.plot(across, up, color=style.TARGET, linewidth=0.9, drawstyle="steps-post", zorder=1)
    theirs = one.get("retrained", {}).get("seconds")
    if theirs:
        axes.axvline(theirs["mean"], color=style.MUTED, linewidth=0.6, linestyle="dashed")
    if one["floor"] and one["floor"]["mean"] > 0:
        axes.axhspan(_LEAST / 10, one["floor"]["mean"], color="0.93", zorder=0)
    if points:
        axes.set(xscale="log", yscale="log")
    heights = [y for _, y in points.values()] + ([one["floor"]["mean"]] if one["floor"] else [])
    axes.set_ylim(max(_LEAST, 0.5 * min(heights, default=_LEAST)), 2 * max(heights, default=1.0))
    axes.minorticks_off()
    axes.tick_params(labelsize=7, labelcolor=style.MUTED, color="0.8", length=2, pad=2)
    style.hairlines(axes, ("left", "bottom"))
    axes.set_xlabel("seconds of one model; dashed: of retraining", fontsize=7, color=style.MUTED)
    axes.set_ylabel("gap to retrained; grey: floor", fontsize=7, color=style.MUTED)


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Lists the labels that no other beats in both numbers, the smaller the better, by the first.

    Args:
      points: by label, time and gap.
    """
    found: list[str] = []
    least = math.inf
    for label in sorted(points, key=points.__getitem__):
        if points[label][1] < least:
            found.append(label)
            least = points[label][1]
    return found
