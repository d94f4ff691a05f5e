"""Networks drawn as columns of neurons with lines between them."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.pictures import style

# inches
_STEP, _GAP, _PICTURE, _LEFT, _RIGHT = 0.34, 1.42, 1.2, 0.35, 0.8
_TOP, _HEAD, _FOOT, _KEY = 0.2, 0.55, 0.75, 0.6
_RADIUS, _LINE = 0.135, 7.0
_WIDE = 15.0  # of the page; wider pairs stand one above the other
_FAINT = 0.01


class Column(NamedTuple):
    """A layer.

    Attributes:
      name, about: written below it.
      neurons: ``int [n]``, their numbers.
      strength: ``[n]``, their relevance.
      ring: ``[n]`` of 0 to 1, how much of them was edited.
    """

    name: str
    about: str
    neurons: np.ndarray
    strength: np.ndarray
    ring: np.ndarray


class Panel(NamedTuple):
    """A network.

    Attributes:
      title, about: written above it.
      picture: ``[H, W, 3]`` of 0 to 1, or ``None``.
      columns: from the first layer to the last.
      edges: between each two columns ``[neurons of the later, neurons of the earlier]``.
    """

    title: str
    about: str
    picture: np.ndarray | None
    columns: Sequence[Column]
    edges: Sequence[np.ndarray]


def draw(path: str | os.PathLike[str], panels: Sequence[Panel], title: str | None) -> None:
    """Draws networks of the same columns on one scale, side by side if they are narrow, as PNG."""
    first = panels[0]
    lead = _LEFT + (_PICTURE + 0.7 if first.picture is not None else 0.35)
    wide = lead + _GAP * (len(first.columns) - 1) + _RIGHT
    body = _STEP * max(len(column.neurons) for column in first.columns)
    high = _HEAD + body + _FOOT
    across = len(panels) if wide * len(panels) <= _WIDE else 1
    top = _TOP + (style.TITLE if title else 0.0)
    width, height = wide * across, top + high * (len(panels) // across) + _KEY
    with style.page(path, width, height, title, _LEFT) as page:
        sizes = _sizes(panels)
        for number, panel in enumerate(panels):
            left, start = number % across * wide, top + number // across * high
            page.text(left + _LEFT, start + 0.16, panel.title, fontsize=11, fontweight="bold")
            page.text(left + _LEFT + 1.0, start + 0.16, panel.about, fontsize=8, color=style.MUTED)
            place = (left, start + _HEAD, wide, body)
            _Network(page, panel, sizes, place, lead).draw()
        _key(page)


class _Sizes(NamedTuple):
    """The largest magnitude of each column, and between each two."""

    columns: list[float]
    edges: list[float]


def _sizes(panels: Sequence[Panel]) -> _Sizes:
    def largest(arrays: Sequence[np.ndarray]) -> float:
        return max(float(np.abs(a).max(initial=0)) for a in arrays) or 1.0

    columns = [
        largest([c.strength for c in same])
        for same in zip(*(p.columns for p in panels), strict=True)
    ]
    edges = [largest(same) for same in zip(*(p.edges for p in panels), strict=True)]
    return _Sizes(columns, edges)


class _Network:
    """One panel, in inches on axes that cover the page."""

    def __init__(
        self,
        page: style.Page,
        panel: Panel,
        sizes: _Sizes,
        place: tuple[float, float, float, float],
        lead: float,
    ) -> None:
        self.page, self.panel, self.sizes, self.lead = page, panel, sizes, lead
        self.left, self.top, width, self.body = place
        self.axes = page.axes(*place)
        self.axes.set(xlim=(0, width), ylim=(self.body, 0))
        self.axes.set_axis_off()
        self.colours = style.diverging()

    def place(self, column: int, row: int) -> tuple[float, float]:
        count = len(self.panel.columns[column].neurons)
        step = min(_STEP * 1.5, self.body / count)
        return self.lead + column * _GAP, self.body / 2 + (row - (count - 1) / 2) * step

    def draw(self) -> None:
        for gap, edges in enumerate(self.panel.edges):
            self.lines(gap, edges)
        for number, column in enumerate(self.panel.columns):
            for row in range(len(column.neurons)):
                self.neuron(number, row)
            x = self.left + self.lead + number * _GAP
            below = self.top + self.body
            middle = {"ha": "center", "va": "top"}
            self.page.text(x, below + 0.06, column.name, fontsize=9, fontweight="bold", **middle)
            muted = {"fontsize": 6.5, "color": style.MUTED}
            self.page.text(x, below + 0.22, column.about, **muted, **middle)
        if self.panel.picture is not None:
            top = self.top + (self.body - _PICTURE) / 2
            self.page.image(self.left + _LEFT, top, _PICTURE, self.panel.picture)

    def lines(self, gap: int, edges: np.ndarray) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        share = edges / self.sizes.edges[gap]
        codes = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
        # the strongest last, on top
        for flat in np.argsort(np.abs(share), axis=None):
            later, earlier = np.unravel_index(flat, share.shape)
            value = float(share[later, earlier])
            if abs(value) < _FAINT:
                continue
            (x0, y0), (x1, y1) = self.place(gap, int(earlier)), self.place(gap + 1, int(later))
            bend = (x1 - x0) * 0.45
            curve = Path([(x0, y0), (x0 + bend, y0), (x1 - bend, y1), (x1, y1)], codes)
            drawn = {"facecolor": "none", "capstyle": "butt", "zorder": 1 + abs(value)}
            colour = self.colours(0.5 + 0.3 * np.sign(value))
            opacity = 0.18 + 0.6 * abs(value)
            width = 0.25 + (_LINE - 0.25) * abs(value)
            self.axes.add_patch(
                PathPatch(curve, edgecolor=colour, alpha=opacity, linewidth=width, **drawn)
            )

    def neuron(self, number: int, row: int) -> None:
        from matplotlib import patheffects
        from matplotlib.patches import Arc, Circle

        column = self.panel.columns[number]
        share = float(column.strength[row]) / self.sizes.columns[number]
        x, y = self.place(number, row)
        radius = _RADIUS * max(abs(share), 0.08) ** 0.5
        colour = self.colours(0.5 + 0.5 * share)
        edge = {"edgecolor": "0.45", "linewidth": 0.6, "zorder": 4, "clip_on": False}
        self.axes.add_patch(Circle((x, y), radius, facecolor=colour, **edge))
        if column.ring[row] > 0:
            size = 2 * radius + 0.075
            line: dict[str, Any] = {"linewidth": 1.3, "zorder": 5, "clip_on": False}
            line |= {"theta1": -90, "theta2": -90 + 360 * float(column.ring[row])}
            self.axes.add_patch(Arc((x, y), size, size, color=style.INK, **line))
        halo = [patheffects.withStroke(linewidth=1.6, foreground="white")]
        last = number == len(self.panel.columns) - 1
        words = str(column.neurons[row])
        if last and column.strength[row]:
            words += f"  {style.signed(column.strength[row])}"
        away = radius + (0.1 if column.ring[row] > 0 else 0.06)
        self.axes.text(
            x + (away if last else -away), y, words, fontsize=6 if not last else 7,
            ha="left" if last else "right", va="center", color=style.INK if last else style.MUTED,
            zorder=6, path_effects=halo, parse_math=False,
        )  # fmt: skip


def _key(page: style.Page) -> None:
    """Explains circles, lines and rings, at the foot."""
    style.legend(page.axes(_LEFT, page.height - 0.42, 1.9, 0.08), "negative", "positive")
    lines = (
        "circle: relevance of a neuron      line: relevance it passes on to the column before",
        "ring: share of its weights, incoming or outgoing, that were edited",
    )
    for number, words in enumerate(lines):
        place = _LEFT + 2.25, page.height - 0.35 + 0.17 * number
        page.text(*place, words, fontsize=7, color=style.MUTED)
