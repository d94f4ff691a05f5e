"""Metrics judged, side by side: which of them to believe."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxunlearn.pictures import style

# inches
_TOP, _LINE, _FOOT, _LETTER, _CHART, _KEY = 0.15, 0.19, 0.5, 0.073, 3.6, 0.3
_LETTERS = 52
_PARTS = (("relearning", "o"), ("rounding", "|"))


@style.picture
def save_metric_study(
    path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], *, title: str | None = None
) -> None:
    """Draws how faithful and how robust metrics are, as PNG.

    A bar a metric runs from .5, chance, to its faithfulness: the AUC with which it tells models
    trained with the forget set from models trained without it. Rings say how little it changes
    in relearning, strokes how little in rounding, from 0 to 1.

    Args:
      path: of the PNG; an existing file is replaced.
      rows: of a report of ``judge_metrics``: ``"metric"``, ``"faithfulness"``, ``"relearning"``
        and ``"rounding"``, the last three numbers from 0 to 1 or ``None``; drawn in this order.
      title: of the picture.

    Raises:
      ValueError: no rows, an entry missing, or numbers out of range.
      UserError: the file cannot be written.

    Source: own.
    """
    found = [_checked(number, row) for number, row in enumerate(rows)]
    if not found:
        raise ValueError("rows: expected a metric, got none")
    words = [style.cut(row["metric"], _LETTERS) for row in found]
    left = style.PAD + _LETTER * max(map(len, words)) + 0.1
    top = _TOP + (style.TITLE if title else 0.0)
    high = _LINE * len(found)
    with style.page(path, left + _CHART + style.PAD, top + high + _FOOT + _KEY, title) as page:
        axes = page.axes(left, top, _CHART, high)
        places = range(len(found))
        told = [0.5 if row["faithfulness"] is None else row["faithfulness"] for row in found]
        axes.barh(places, [value - 0.5 for value in told], 0.62, 0.5, color=style.DONOR)
        for name, marker in _PARTS:
            pairs = [(row[name], n) for n, row in enumerate(found) if row[name] is not None]
            if pairs:
                across, down = zip(*pairs, strict=True)
                look = {"markerfacecolor": "white"} if marker == "o" else {"markeredgewidth": 1.6}
                axes.plot(
                    across, down, marker, markersize=5, color=style.TARGET, linestyle="none",
                    label=name, clip_on=False, zorder=3, **look,
                )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(len(found) - 0.5, -0.5))
        axes.set_yticks(list(places), words, fontsize=7, color=style.INK, parse_math=False)
        axes.axvline(0.5, color=style.MUTED, linewidth=0.6)
        axes.tick_params(axis="x", labelsize=7, labelcolor=style.MUTED, color="0.8", length=2)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(
            "bar: faithfulness (AUC, from 0.5)   ring: stays in relearning   stroke: in rounding",
            fontsize=7, color=style.MUTED,
        )  # fmt: skip
        style.hairlines(axes, ("left", "bottom"))


def _checked(number: int, row: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("metric", "faithfulness", "relearning", "rounding"):
        if name not in row:
            raise ValueError(f"rows[{number}]: expected an entry {name!r}, got {list(row)[:3]}")
        value = row[name]
        if name != "metric" and value is not None and not 0 <= value <= 1:
            raise ValueError(
                f"rows[{number}][{name!r}]: expected a number from 0 to 1, got {value}"
            )
    return row
