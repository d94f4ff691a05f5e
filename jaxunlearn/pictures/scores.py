"""Scores of a discriminator on several sets, under several models."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxunlearn.pictures import style

# inches
_TOP, _HEAD, _ABOUT, _CHART, _HIGH, _GAP = 0.1, 0.35, 0.15, 5.6, 1.2, 0.25
_AXIS, _LEGEND, _KEY, _LETTER, _FOOT = 0.5, 0.25, 0.35, 0.075, 0.35
_TAIL, _FEWEST, _MOST, _LETTERS = 0.005, 10, 60, 40


@style.picture
def save_scores(
    path: str | os.PathLike[str],
    scores: Mapping[str, Mapping[str, jax.typing.ArrayLike]],
    *,
    notes: Mapping[str, str] | None = None,
    title: str | None = None,
    words: str = "discriminator's logit",
) -> None:
    """Draws how the scores of several sets are distributed under several models, as PNG.

    A panel a model, one below the other, with the same bins and axes; in it, a line a set:
    the density, ``count / (n * width of a bin)``. A set that a model has seen scores above
    one it has not, which is what an attack on membership uses.

    Args:
      path: of the PNG; an existing file is replaced.
      scores: name of a model -> name of a set -> ``[n]``; the same sets for every model, of
        any sizes.
      notes: name of a model -> words below its name, such as the AUC of an attack.
      title: of the picture.
      words: what the scores are, written below the axis.

    Raises:
      ValueError: no models or sets, sets that differ, an empty set, notes on models that are
        not there, NaN.
      UserError: the file cannot be written.

    Source: own.
    """
    found = _checked(scores)
    style.known("notes", notes or {}, found)
    sets = list(next(iter(found.values())))
    groups = [values for panel in found.values() for values in panel.values()]
    edges = bins_of(groups)
    drawn = {
        model: {name: densities(values, edges) for name, values in panel.items()}
        for model, panel in found.items()
    }
    tallest = max(heights.max() for panel in drawn.values() for heights in panel.values())
    labels = [_label(name, [len(panel[name]) for panel in found.values()]) for name in sets]
    lines = _lines(labels)
    top = _TOP + (style.TITLE if title else 0.0) + len(lines) * _LEGEND
    head, left = _HEAD + (_ABOUT if notes else 0.0), style.PAD + _AXIS
    step = head + _HIGH + _GAP
    width, height = left + _CHART + style.PAD, top + len(found) * step + _FOOT
    with style.page(path, width, height, title) as page:
        for row, line in enumerate(lines):
            _legend(page, top - (len(lines) - row - 0.5) * _LEGEND, labels, line)
        for number, (model, panel) in enumerate(drawn.items()):
            upper = top + number * step
            bold = {"fontsize": 10, "fontweight": "bold", "color": style.INK}
            page.text(left, upper + 0.26, style.cut(model, 58), **bold)
            about = style.cut((notes or {}).get(model, ""), 96)
            page.text(left, upper + 0.42, about, fontsize=8, color=style.MUTED)
            axes = page.axes(left, upper + head, _CHART, _HIGH)
            _panel(axes, list(panel.values()), edges, tallest)
        middle = {"ha": "center", "color": style.MUTED}
        below = page.height - 0.27
        page.text(left + _CHART / 2, below, style.cut(words, 90), fontsize=8, **middle)
        beyond = sum(int(((v < edges[0]) | (v > edges[-1])).sum()) for v in groups)
        if beyond:
            rest = f"not shown: {beyond} of {sum(map(len, groups))} scores, beyond the ends"
            page.text(left + _CHART / 2, below + 0.16, rest, fontsize=7, **middle)


def bins_of(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Returns ``[bins + 1]``, the edges that all panels share.

    They reach from the lowest 0.5 % quantile of any set to the highest 99.5 % quantile: a
    single score far away leaves the others legible. No score of a set of less than 200 is
    beyond. The fewer scores the smallest set has, the wider are the bins.
    """
    low = min(np.quantile(values, _TAIL, method="lower") for values in groups)
    high = max(np.quantile(values, 1 - _TAIL, method="higher") for values in groups)
    if low == high:
        room = max(0.5, abs(low) / 100)
        low, high = low - room, high + room
    count = round(4 * min(map(len, groups)) ** (1 / 3))
    return np.linspace(low, high, int(np.clip(count, _FEWEST, _MOST)) + 1)


def densities(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns ``[bins]``, the share of the scores in each bin, divided by its width.

    Scores beyond the edges count in the whole, so that areas can be compared between sets.
    """
    made: np.ndarray = np.histogram(values, edges)[0] / len(values) / np.diff(edges)
    return made


def describe_scores(
    scores: Mapping[str, Mapping[str, np.ndarray]], words: str, members: str, others: str,
    *, small: bool = False, about: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Returns what a page draws of scores: counts in bins, and the attack that a threshold makes.

    The attack takes scores above a threshold (below, if ``small``) for members; its curve has the
    share of members found by the share of others taken for members, over all thresholds.

    Args:
      scores: as :func:`save_scores` takes them; a model with values that are not finite is left
        out.
      members, others: names of the two sets that the attack tells apart, if they are there.
      about: words on the attack.

    Returns:
      ``{"words", "about", "edges": {model: edges}, "models": {model: {set: counts}}, "roc":
      {model: {"false", "true", "auc"}}}``; nothing of no model.
    """
    sound = {
        model: {name: np.asarray(v, np.float64) for name, v in panel.items()}
        for model, panel in scores.items()
        if all(np.isfinite(v).all() and np.size(v) for v in panel.values())
    }
    if not sound:
        return {}
    edges = {model: bins_of(list(panel.values())) for model, panel in sound.items()}
    # what lies beyond the ends counts in the last bins
    counts = {
        model: {name: _counts(values, edges[model]) for name, values in panel.items()}
        for model, panel in sound.items()
    }
    sign = -1.0 if small else 1.0
    curves = {
        model: _roc(sign * panel[members], sign * panel[others])
        for model, panel in sound.items()
        if {members, others} <= set(panel)
    }
    rounded = {model: [float(f"{edge:.6g}") for edge in own] for model, own in edges.items()}
    return {"words": words, "about": about, "edges": rounded, "models": counts, "roc": curves}


def _counts(values: np.ndarray, edges: np.ndarray) -> list[int]:
    found: list[int] = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].tolist()
    return found


def _roc(members: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """Returns the curve of an attack, of its corners at most 100, and the area below all."""
    cuts = np.unique(np.concatenate([members, others]))[::-1]
    true = np.r_[0.0, [float(np.mean(members >= cut)) for cut in cuts]]
    false = np.r_[0.0, [float(np.mean(others >= cut)) for cut in cuts]]
    area = float(np.trapezoid(true, false))
    kept = np.unique(np.linspace(0, len(true) - 1, min(len(true), 100)).round().astype(int))
    return {
        "false": [round(v, 4) for v in false[kept].tolist()],
        "true": [round(v, 4) for v in true[kept].tolist()],
        "auc": round(area, 4),
    }


def _checked(
    scores: Mapping[str, Mapping[str, jax.typing.ArrayLike]],
) -> dict[str, dict[str, np.ndarray]]:
    if not scores:
        raise ValueError("scores: expected at least one model, got none")
    sets = list(next(iter(scores.values())))
    made: dict[str, dict[str, np.ndarray]] = {}
    for model, panel in scores.items():
        label = f"scores[{model!r}]"
        if not panel:
            raise ValueError(f"{label}: expected at least one set, got none")
        if set(panel) != set(sets):
            raise ValueError(
                f"{label}: expected the sets {', '.join(sets)}, got {', '.join(panel)}"
            )
        made[model] = {
            name: style.shaped(f"{label}[{name!r}]", panel[name], ["n"], "a list of scores")
            for name in sets
        }
        for name, values in made[model].items():
            if not values.size:
                raise ValueError(f"{label}[{name!r}]: expected at least one score, got none")
    return made


def _label(name: str, sizes: Sequence[int]) -> str:
    """Returns the name of a set, with its size where all models have the same."""
    short = style.cut(name, _LETTERS)
    return f"{short}, n = {sizes[0]}" if len(set(sizes)) == 1 else short


def _lines(labels: Sequence[str]) -> list[list[tuple[int, float]]]:
    """Returns the sets of each line of the legend, and their distance from the left in inches."""
    lines: list[list[tuple[int, float]]] = [[]]
    start = 0.0
    for number, label in enumerate(labels):
        wide = _KEY + 0.25 + _LETTER * len(label)
        if lines[-1] and start + wide > _CHART:
            lines.append([])
            start = 0.0
        lines[-1].append((number, start))
        start += wide
    return lines


def _legend(
    page: style.Page, middle: float, labels: Sequence[str], line: Sequence[tuple[int, float]]
) -> None:
    for number, start in line:
        left = style.PAD + _AXIS + start
        style.sample(page, left, middle, _KEY, number, linewidth=1.5)
        words = {"fontsize": 8.5, "va": "center", "color": style.INK}
        page.text(left + _KEY + 0.08, middle, labels[number], **words)


def _panel(axes: Any, heights: Sequence[np.ndarray], edges: np.ndarray, tallest: float) -> None:
    for number, densest in enumerate(heights):
        axes.stairs(densest, edges, **style.line_of(number), linewidth=1.5, zorder=3)
    if edges[0] < 0 < edges[-1]:
        axes.axvline(0, color="0.8", linewidth=0.6)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.05 * tallest))
    axes.set_ylabel("density", fontsize=7, color=style.MUTED, labelpad=2)
    style.plain(axes)
