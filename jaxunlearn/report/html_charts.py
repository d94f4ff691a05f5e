"""Charts of the page as SVG: colours are the page's, so that they follow light and dark.

A chart is made for a width of 360 units, a phone's; wider screens enlarge it. Every chart says in
words what it shows. Series are told apart by colour, mark and dash together.
"""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.report.text import ORIGINAL, RETRAINED, number

WIDTH = 360
COLOURS = 6
"""Colours of unlearned models; they come again with another dash."""
_DASHES = ("", "5 3", "1.5 2.5", "7 2 1.5 2")
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 16, 10, 34
_MOST_CELLS, _MOST_NAMED = 20, 12


class Chart(NamedTuple):
    """Chart of the page.

    Attributes:
      title: above it.
      svg: the drawing, markup.
      alt: what it shows, in words.
      legend: name, markup of its sample; one for each series.
      note: below it.
    """

    title: str
    svg: str
    alt: str
    legend: Sequence[tuple[str, str]] = ()
    note: str = ""


class Axis(NamedTuple):
    """Axis of a chart: place of a value between 0 and 1, and labelled ticks."""

    place: Callable[[float], float]
    ticks: list[tuple[float, str]]


def series_class(name: str, models: Sequence[str]) -> str:
    """Returns the class of CSS that colours a model."""
    if name in (ORIGINAL, RETRAINED):
        return f"s-{name}"
    others = [model for model in models if model not in (ORIGINAL, RETRAINED)]
    return f"s{others.index(name) % COLOURS}" if name in others else "s-original"


def dash_of(name: str, models: Sequence[str]) -> str:
    """Returns the dashes of a model's line: the round of colours that it is of."""
    others = [model for model in models if model not in (ORIGINAL, RETRAINED)]
    if name not in others:
        return "4 3" if name == ORIGINAL else ""
    return _DASHES[others.index(name) // COLOURS % len(_DASHES)]


def mark(name: str, models: Sequence[str], x: float, y: float, size: float = 4.5) -> str:
    """Draws a model's mark: a ring for the original, a bar for retrained ones, else a shape."""
    kind = series_class(name, models)
    if name == ORIGINAL:
        return f'<circle class="{kind} hollow" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
    if name == RETRAINED:
        points = _around(x, y, size * 1.25, 4, 45)
        return f'<polygon class="{kind} fill" points="{points}"/>'
    others = [model for model in models if model not in (ORIGINAL, RETRAINED)]
    shape = others.index(name) % COLOURS if name in others else 0
    if shape == 0:
        return f'<circle class="{kind} fill" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
    corners, turn = ((3, 0), (4, 0), (3, 180), (5, 0), (6, 0))[shape - 1]
    points = _around(x, y, size * (1.3 if corners < 5 else 1.15), corners, turn)
    return f'<polygon class="{kind} fill" points="{points}"/>'


def _around(x: float, y: float, radius: float, corners: int, turn: float) -> str:
    angles = [math.radians(turn - 90 + 360 * n / corners) for n in range(corners)]
    return " ".join(
        f"{x + radius * math.cos(a):.1f},{y + radius * math.sin(a):.1f}" for a in angles
    )


def sample(name: str, models: Sequence[str], line: bool = True) -> str:
    """Draws a model's line and mark for a legend."""
    kind = series_class(name, models)
    drawn = f'<path class="{kind} line" d="M1 7H27"{_dashes(name, models)}/>' if line else ""
    return (
        f'<svg class="sample" viewBox="0 0 28 14" aria-hidden="true">{drawn}'
        f"{mark(name, models, 14, 7, 4)}</svg>"
    )


def _dashes(name: str, models: Sequence[str]) -> str:
    found = dash_of(name, models)
    return f' stroke-dasharray="{found}"' if found else ""


def linear_axis(low: float, high: float, spec: str = "", count: int = 5) -> Axis:
    """Makes an axis with round steps that holds both ends."""
    if not high > low:
        room = max(abs(low) * 0.1, 0.5)
        low, high = low - room, high + room
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    start, end = first * step, last * step
    digits = max(0, -math.floor(math.log10(step)))
    ticks = [(n * step, f"{n * step:,.{digits}f}") for n in range(first, last + 1)]
    if spec in ("s", "B", "x"):
        ticks = [(value, number(value, spec)) for value, _ in ticks]
    return Axis(lambda value: (value - start) / (end - start), ticks)


def _round_step(size: float) -> float:
    power = 10.0 ** math.floor(math.log10(size))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= size * 0.999)


def log_axis(low: float, high: float, spec: str) -> Axis:
    """Makes a logarithmic axis of whole decades, or of halves where there is but one."""
    first, last = math.floor(math.log10(low) - 0.05), math.ceil(math.log10(high) + 0.05)
    every = max(1, math.ceil((last - first) / 5))
    ticks = [(10.0**n, number(10.0**n, spec)) for n in range(first, last + 1, every)]
    return Axis(lambda value: (math.log10(value) - first) / (last - first), ticks)


def _frame(
    x: Axis, y: Axis, words: tuple[str, str], height: float, left: float = _LEFT
) -> tuple[str, Callable[[float], float], Callable[[float], float]]:
    """Draws grid, ticks and names of the axes; returns the drawing and both scales."""
    right, bottom = WIDTH - _RIGHT, height - _BOTTOM

    def across(value: float) -> float:
        return left + x.place(value) * (right - left)

    def down(value: float) -> float:
        return bottom - y.place(value) * (bottom - _TOP)

    parts = []
    for value, word in y.ticks:
        at = down(value)
        parts.append(f'<path class="grid" d="M{left} {at:.1f}H{right}"/>')
        parts.append(_text(left - 6, at + 3.5, word, "end"))
    for value, word in x.ticks:
        parts.append(_text(across(value), bottom + 14, word, "middle"))
    parts.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
    parts.append(_text((left + right) / 2, height - 5, words[0], "middle", "name"))
    if words[1]:
        middle = (bottom + _TOP) / 2
        turned = f' transform="rotate(-90 11 {middle:.1f})"'
        parts.append(_text(11, middle, words[1], "middle", "name", turned))
    return "".join(parts), across, down


def _text(
    x: float, y: float, word: str, anchor: str = "start", kind: str = "tick", more: str = ""
) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>'
        f"{html.escape(word)}</text>"
    )


def svg(body: str, alt: str, height: float, width: float = WIDTH) -> str:
    """Returns a drawing with its text alternative."""
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{html.escape(alt)}">{body}</svg>'
    )


def scatter(
    title: str, points: Mapping[str, tuple[float, float]], models: Sequence[str],
    words: tuple[str, str], *, spec: str = "s", floor: float | None = None, note: str = "",
    linear: bool = False, named: Sequence[str] = (),
) -> Chart | None:  # fmt: skip
    """Draws models by two numbers; a line marks the floor of the second.

    Args:
      points: model -> place on the first axis, logarithmic unless ``linear``, and the second.
      spec: format of the first axis.
      named: points whose names are written where there are too many for all.
    """
    sound = {n: p for n, p in points.items() if all(map(math.isfinite, p)) and (linear or p[0] > 0)}
    if not sound:
        return None
    firsts, seconds = zip(*sound.values(), strict=True)
    x = (
        linear_axis(min(firsts), max(firsts))
        if linear
        else log_axis(min(firsts), max(firsts), spec)
    )
    y = linear_axis(min(0.0, *seconds), max(*seconds, floor or 0.0))
    height = 270.0
    frame, across, down = _frame(x, y, words, height)
    parts = [frame]
    if floor is not None:
        top = down(floor)
        high = max(height - _BOTTOM - top, 0)
        parts.append(
            f'<rect class="band" x="{_LEFT}" y="{top:.1f}" width="{WIDTH - _LEFT - _RIGHT}" '
            f'height="{high:.1f}"/>'
        )
    drawn = {name: (across(p[0]), down(p[1])) for name, p in sound.items()}
    written = {n: p for n, p in drawn.items() if len(drawn) <= _MOST_NAMED or n in named}
    blocked = []
    if floor is not None:
        begin = _floor_place([x for x, y in drawn.values() if abs(y - down(floor)) < 20])
        parts.append(_text(begin, down(floor) - 3, "floor"))
        blocked.append((begin, begin + 28, down(floor) - 12, down(floor)))
    parts += _labels(written, drawn, blocked, height - _BOTTOM)
    for name, place in drawn.items():
        about = html.escape(f"{name}: {sound[name][0]:.3g}, {sound[name][1]:.3f}")
        parts.append(f"<g><title>{about}</title>{mark(name, models, *place, 5)}</g>")
    told = ", ".join(
        f"{n} {number(p[0], '.3g' if linear else spec)} and {p[1]:.3f}" for n, p in sound.items()
    )
    alt = f"{title}. {words[0]} and {words[1]}: {told}."
    legend = [] if written else [(name, sample(name, models, line=False)) for name in sound]
    return Chart(title, svg("".join(parts), alt, height), alt, legend, note)


def _floor_place(near: Sequence[float]) -> float:
    """Returns where the word begins on the line of the floor: left, or farthest from marks."""
    tries = np.linspace(_LEFT + 4, WIDTH - _RIGHT - 30, 9)
    free = [min((abs(x - begin - 14) for x in near), default=999.0) for begin in tries]
    return float(next((t for t, f in zip(tries, free, strict=True) if f > 60), tries[0]))


def _labels(
    places: Mapping[str, tuple[float, float]], marks: Mapping[str, tuple[float, float]],
    blocked: Sequence[tuple[float, float, float, float]], lowest: float,
) -> list[str]:  # fmt: skip
    """Writes names beside marks, where they overlap neither others nor marks.

    Args:
      blocked: other places: left, right, top and bottom.
      lowest: below which no name stands.
    """
    taken = [*blocked, *((x - 6, x + 6, y - 6, y + 6) for x, y in marks.values())]
    parts = []
    for name, (x, y) in sorted(places.items(), key=lambda item: item[1][1]):
        wide = 6.4 * len(name)
        tries = [
            (begin, y + shift)
            for shift in (3.5, -9, 16, -20, 27, -31, 38, -42)
            for begin in (x + 9, x - 9 - wide)
            if begin >= 2 and begin + wide <= WIDTH - 2 and 8 < y + shift < lowest
        ] or [(max(2.0, min(x + 9, WIDTH - 2 - wide)), y + 3.5)]
        begin, base = min(tries, key=lambda at: (_hits(at, wide, taken), tries.index(at)))
        taken.append((begin, begin + wide, base - 9, base + 3))
        to_right = begin > x
        anchor, at = ("start", begin) if to_right else ("end", begin + wide)
        parts.append(_text(at, base, name, anchor, "label halo"))
    return parts


def _hits(
    at: tuple[float, float], wide: float, taken: Sequence[tuple[float, float, float, float]]
) -> int:
    """Counts what a text at a place would lie on."""
    begin, base = at
    return sum(
        begin < right and left < begin + wide and base - 9 < bottom and top < base + 3
        for left, right, top, bottom in taken
    )


def curves(
    title: str, lines: Mapping[str, Sequence[float | None]], models: Sequence[str],
    words: tuple[str, str], *, first: int = 0, spread: Sequence[float] | None = None,
    note: str = "",
) -> Chart | None:  # fmt: skip
    """Draws a line a model along steps or layers, gaps where a value is missing.

    Args:
      first: place of the first value.
      spread: half the width of the band around the retrained models' line.
    """
    known = [v for own in lines.values() for v in own if v is not None and math.isfinite(v)]
    if not known:
        return None
    length = max(len(own) for own in lines.values())
    x = linear_axis(first, max(first + length - 1, first + 1), count=min(5, max(length - 1, 1)))
    low, high = min(known), max(known)
    y = linear_axis(0.0 if low >= 0 and high <= 1 else low, 1.0 if 0.8 < high <= 1 else high)
    height = 250.0
    frame, across, down = _frame(x, y, words, height)
    parts = [frame]
    if spread and RETRAINED in lines:
        parts.append(_band(lines[RETRAINED], spread, first, across, down, y))
    for name, own in lines.items():
        path = _path((first + n, v) for n, v in enumerate(own))
        places = [(across(a), down(b)) for a, b in path if b is not None]
        d = _moves(path, across, down)
        kind = series_class(name, models)
        parts.append(f'<path class="{kind} line" d="{d}"{_dashes(name, models)}/>')
        shown = places if len(own) <= 12 else places[:: max(1, len(places) // 5)]
        parts += [mark(name, models, *place, 3) for place in shown]
    ends = ", ".join(f"{n} {_ends(own)}" for n, own in lines.items())
    alt = f"{title}, along {words[0]}, from first to last: {ends}."
    legend = [(name, sample(name, models)) for name in lines]
    return Chart(title, svg("".join(parts), alt, height), alt, legend, note)


def _path(values: Iterable[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    return [(a, b if b is not None and math.isfinite(b) else None) for a, b in values]


def _moves(
    path: Iterable[tuple[float, float | None]], across: Callable[[float], float],
    down: Callable[[float], float],
) -> str:  # fmt: skip
    parts, pen = [], "M"
    for a, b in path:
        if b is None:
            pen = "M"
            continue
        parts.append(f"{pen}{across(a):.1f} {down(b):.1f}")
        pen = "L"
    return "".join(parts)


def _band(
    middle: Sequence[float | None], half: Sequence[float], first: int,
    across: Callable[[float], float], down: Callable[[float], float], y: Axis,
) -> str:  # fmt: skip
    low, high = y.ticks[0][0], y.ticks[-1][0]
    kept = [
        (across(first + n), v, h) for n, (v, h) in enumerate(zip(middle, half, strict=False))
        if v is not None and math.isfinite(v) and math.isfinite(h)
    ]  # fmt: skip
    upper = [f"{a:.1f},{down(min(v + h, high)):.1f}" for a, v, h in kept]
    lower = [f"{a:.1f},{down(max(v - h, low)):.1f}" for a, v, h in reversed(kept)]
    return f'<polygon class="band" points="{" ".join(upper + lower)}"/>'


def _ends(values: Sequence[float | None]) -> str:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return f"{known[0]:.3f} to {known[-1]:.3f}" if known else "no values"


def histogram(
    title: str, counts: Mapping[str, Sequence[float]], edges: Sequence[float], words: str,
    note: str = "",
) -> Chart:  # fmt: skip
    """Draws how values of several sets are distributed, as shares of each set."""
    sets = list(counts)
    shares = {
        name: np.asarray(own, float) / max(1.0, float(np.sum(own))) for name, own in counts.items()
    }
    tallest = max(float(own.max(initial=0.0)) for own in shares.values())
    x = linear_axis(float(edges[0]), float(edges[-1]), count=4)
    y = linear_axis(0.0, tallest or 1.0, count=3)
    height = 150.0
    frame, across, down = _frame(x, y, (words, "share"), height)
    parts = [frame]
    for place, own in enumerate(shares.values()):
        moves = [f"M{across(edges[0]):.1f} {down(0):.1f}"]
        for left, right, share in zip(edges[:-1], edges[1:], own, strict=True):
            moves.append(
                f"L{across(left):.1f} {down(share):.1f}L{across(right):.1f} {down(share):.1f}"
            )
        moves.append(f"L{across(edges[-1]):.1f} {down(0):.1f}")
        dashes = f' stroke-dasharray="{_DASHES[place]}"' if place else ""
        kind = f"s{place}" + (" area" if not place else "")
        parts.append(f'<path class="{kind} line" d="{"".join(moves)}"{dashes}/>')
    means = ", ".join(f"{name} {_mean_of(own, edges):.2f}" for name, own in shares.items())
    alt = f"{title}: distribution of {words}; means: {means}."
    legend = [(name, _line_sample(place)) for place, name in enumerate(sets)]
    return Chart(title, svg("".join(parts), alt, height), alt, legend, note)


def _mean_of(shares: np.ndarray, edges: Sequence[float]) -> float:
    middles = (np.asarray(edges[:-1]) + np.asarray(edges[1:])) / 2
    return float(np.sum(middles * shares))


def _line_sample(place: int) -> str:
    dashes = f' stroke-dasharray="{_DASHES[place]}"' if place else ""
    return (
        '<svg class="sample" viewBox="0 0 28 14" aria-hidden="true">'
        f'<path class="s{place} line" d="M1 7H27"{dashes}/></svg>'
    )


def roc(
    title: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], models: Sequence[str],
    areas: Mapping[str, float], note: str = "",
) -> Chart:  # fmt: skip
    """Draws the share of members found by the share of others taken for members, a line a model."""
    x, y = linear_axis(0.0, 1.0, count=4), linear_axis(0.0, 1.0, count=4)
    height = 330.0
    frame, across, down = _frame(x, y, ("others taken for members", "members found"), height)
    parts = [
        frame,
        f'<path class="guide" d="M{across(0):.1f} {down(0):.1f}L{across(1):.1f} {down(1):.1f}"/>',
    ]
    for name, (false, true) in lines.items():
        d = _moves(zip(false, true, strict=True), across, down)
        kind = series_class(name, models)
        parts.append(f'<path class="{kind} line" d="{d}"{_dashes(name, models)}/>')
        middle = len(false) // 2
        parts.append(mark(name, models, across(false[middle]), down(true[middle]), 3.5))
    alt = f"{title}. Area under each line: " + ", ".join(f"{n} {a:.3f}" for n, a in areas.items())
    legend = [(f"{name}, AUC {areas[name]:.3f}", sample(name, models)) for name in lines]
    return Chart(title, svg("".join(parts), f"{alt}.", height), alt, legend, note)


def confusion(
    title: str, matrix: Sequence[Sequence[float]], names: Sequence[str], forgotten: Sequence[int]
) -> Chart | None:
    """Draws a confusion matrix, rows true and columns predicted; ``None`` of too many classes."""
    counts = np.asarray(matrix, float)
    if counts.ndim != 2 or len(counts) > _MOST_CELLS or not counts.any():
        return None
    k, edge = len(counts), 34.0
    size = (WIDTH - edge - 10) / k
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    parts = []
    for row in range(k):
        middle = 24 + (row + 0.5) * size
        bold = "label" if row in forgotten else "tick"
        parts.append(_text(edge - 6, middle + 3.5, str(names[row])[:5], "end", bold))
        parts.append(_text(edge + (row + 0.5) * size, 18, str(names[row])[:3], "middle", bold))
        for column in range(k):
            share, left, top = shares[row, column], edge + column * size, 24 + row * size
            kind = "hit" if row == column else "miss"
            if share > 0:
                parts.append(
                    f'<rect class="{kind}" x="{left + 0.5:.1f}" y="{top + 0.5:.1f}" '
                    f'width="{size - 1:.1f}" height="{size - 1:.1f}" '
                    f'fill-opacity="{0.12 + 0.88 * share:.2f}"/>'
                )
            if size >= 20 and counts[row, column]:
                word = "over" if share > 0.55 else "cell"
                middle_x = left + size / 2
                parts.append(
                    _text(
                        middle_x, top + size / 2 + 3.5, f"{counts[row, column]:.0f}", "middle", word
                    )
                )
    for row in forgotten:
        parts.append(
            f'<rect class="ring" x="{edge:.1f}" y="{24 + row * size:.1f}" '
            f'width="{k * size:.1f}" height="{size:.1f}"/>'
        )
    right = ", ".join(f"{n} {shares[i, i]:.2f}" for i, n in enumerate(names))
    alt = f"{title}: confusion matrix on test images; share named correctly of each class: {right}."
    height = 28 + k * size
    return Chart(title, svg("".join(parts), alt, height), alt)


def strip(row: Mapping[str, Any], models: Sequence[str]) -> str:
    """Draws one row of a table: each model's place on a line, the retrained ones' band behind."""
    values = {n: row["values"].get(n) for n in models}
    shown = {n: float(v) for n, v in values.items() if v is not None and math.isfinite(v)}
    if len(shown) < 2:
        return ""
    log = row["format"] in ("s", "x", "B") and min(shown.values()) > 0
    places = {n: math.log10(v) if log else v for n, v in shown.items()}
    low, high = min(places.values()), max(places.values())
    wide, room = 150.0, 8.0
    scale = (wide - 2 * room) / (high - low) if high > low else 0.0

    def at(value: float) -> float:
        return room + (value - low) * scale if scale else wide / 2

    parts = ['<path class="grid" d="M2 12H148"/>']
    half = max(
        [h for key in ("spread", "floor") if (h := row.get(key)) and math.isfinite(h)] or [0]
    )
    if RETRAINED in places and half and not log:
        left, right = max(2, at(places[RETRAINED] - half)), min(148, at(places[RETRAINED] + half))
        parts.append(
            f'<rect class="band" x="{left:.1f}" y="3" height="18" '
            f'width="{max(right - left, 1):.1f}"/>'
        )
    if RETRAINED in places:
        parts.append(f'<path class="s-retrained line" d="M{at(places[RETRAINED]):.1f} 2V22"/>')
    parts += [mark(n, models, at(v), 12, 3.6) for n, v in places.items() if n != RETRAINED]
    return (
        '<svg class="strip" viewBox="0 0 150 24" role="img" '
        f'aria-label="{html.escape(str(row["metric"]))}: the models on a line; '
        f'the numbers stand in this row">{"".join(parts)}</svg>'
    )
