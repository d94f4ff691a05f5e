"""Rows of examples with columns of maps and bars."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.pictures.images import overlay, scale_of
from jaxunlearn.pictures.style import INK, MUTED, Page, diverging, legend, pages, signed

__all__ = ["BARS", "Layer", "draw", "top_channels"]

# inches
_CELL, _CHART, _NEAR, _APART = 1.05, 1.5, 0.07, 0.32
_LEFT, _RIGHT, _TOP, _TITLE, _BOTTOM, _ABOVE = 1.0, 0.2, 0.6, 0.3, 0.62, 0.2

BARS = 8
"""How many neurons of a layer without positions are drawn."""


class Layer(NamedTuple):
    """A layer as columns of the picture: maps side by side, or one chart of bars.

    Attributes:
      name, within, about: written above it.
      values: ``[B, ..., features]``.
      maps: how many channels are drawn as maps; 0 for bars.
    """

    name: str
    within: str
    about: str
    values: np.ndarray
    maps: int

    @property
    def width(self) -> float:
        """In inches."""
        return self.maps * (_CELL + _NEAR) - _NEAR if self.maps else _CHART


def draw(
    path: str | os.PathLike[str],
    pictures: np.ndarray,
    heat: np.ndarray,
    layers: Sequence[Layer],
    names: Sequence[str],
    title: str | None,
) -> None:
    """Draws one row for each example, as PNG.

    Args:
      path: of the PNG.
      pictures: ``[B, H, W, 3]`` of 0 to 1.
      heat: ``[B, H, W]``.
      layers: the columns behind image, heat map and overlay.
      names: beside the rows.
      title: above all.
    """
    widths = [_CELL] * 3 + [layer.width for layer in layers]
    gaps = [_NEAR, _NEAR, *[_APART] * len(layers)]
    starts = _LEFT + np.cumsum([0.0, *(w + g for w, g in zip(widths, gaps, strict=False))])
    width = float(starts[len(widths) - 1]) + widths[-1] + _RIGHT
    top = _TOP + (_TITLE if title else 0.0)
    height = top + len(pictures) * (_CELL + _ABOVE) + _BOTTOM
    with pages(path, width, height) as figure:
        page = Page(figure, width, height)
        if title:
            page.text(_LEFT, 0.26, title, fontsize=11, fontweight="bold", color=INK)
        heads = [("image", "", ""), ("relevance", "", ""), ("overlay", "", "")]
        heads += [(layer.name, layer.within, layer.about) for layer in layers]
        for start, wide, (head, within, about) in zip(starts, widths, heads, strict=False):
            middle = {"left": start + wide / 2, "ha": "center"}
            page.text(top=top - 0.43, words=within, fontsize=6.5, color=MUTED, **middle)
            page.text(top=top - 0.27, words=head, fontsize=9, fontweight="bold", **middle)
            page.text(top=top - 0.1, words=about, fontsize=6.5, color=MUTED, **middle)
        for row, picture in enumerate(pictures):
            upper = top + row * (_CELL + _ABOVE) + _ABOVE
            side = {"ha": "right", "va": "center"}
            page.text(_LEFT - 0.12, upper + _CELL / 2, names[row], fontsize=8, **side)
            _example(page, starts, upper, picture, heat[row])
            for layer, start in zip(layers, starts[3:], strict=False):
                (_maps if layer.maps else _bars)(page, start, upper, layer, row)
        legend(page.axes(_LEFT, height - 0.36, 3 * _CELL + 2 * _NEAR, 0.08), "negative", "positive")


def top_channels(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """``int [count]``, ``[count]``: features of largest ``|sum of R|``, and their sums.

    Args:
      values: ``[..., features]``, of one example.
      count: how many; all if there are fewer.
    """
    sums = values.sum(axis=tuple(range(values.ndim - 1)))
    order = np.argsort(-np.abs(sums), kind="stable")[:count]
    return order, sums[order]


def _example(
    page: Page, starts: np.ndarray, top: float, picture: np.ndarray, heat: np.ndarray
) -> None:
    scale = scale_of(heat)
    page.image(starts[0], top, _CELL, picture)
    _map(page, starts[1], top, heat, scale, f"sum {signed(heat.sum(), 3)}, scale ±{scale:.2g}")
    page.image(starts[2], top, _CELL, overlay(picture, heat, scale))


def _maps(page: Page, start: float, top: float, layer: Layer, row: int) -> None:
    values = layer.values[row]
    chosen, sums = top_channels(values, layer.maps)
    scale = scale_of(values[..., chosen])
    for place, (channel, total) in enumerate(zip(chosen, sums, strict=True)):
        left = start + place * (_CELL + _NEAR)
        _map(page, left, top, values[..., channel], scale, f"{channel}:  {signed(total)}")


def _map(page: Page, left: float, top: float, heat: np.ndarray, scale: float, words: str) -> None:
    page.image(left, top, _CELL, heat, cmap=diverging(), vmin=-scale, vmax=scale)
    page.text(left + _CELL / 2, top - 0.04, words, fontsize=6.2, ha="center", color=MUTED)


def _bars(page: Page, start: float, top: float, layer: Layer, row: int) -> None:
    """The neurons of an example that have relevance at all."""
    chosen, sums = top_channels(layer.values[row], BARS)
    chosen, sums = chosen[sums != 0], sums[sums != 0]
    share = sums / np.abs(sums).max(initial=1e-300)
    axes = page.axes(start, top, _CHART, _CELL)
    axes.barh(
        range(len(chosen)), share, height=0.72, color=diverging()(0.5 + 0.36 * np.sign(share))
    )
    style: dict[str, Any] = {"va": "center", "fontsize": 6, "parse_math": False}
    for place, (channel, value, end) in enumerate(zip(chosen, sums, share, strict=True)):
        # the number of a neuron stands on the side where no bar is
        step, away, side = (0.05, "left", "right") if end > 0 else (-0.05, "right", "left")
        axes.text(-step, place, str(channel), ha=side, color=INK, **style)
        axes.text(end + step, place, signed(value), ha=away, color=MUTED, **style)
    axes.axvline(0, color="0.6", linewidth=0.6)
    # one zero line for all rows of a layer
    negative = any((top_channels(values, BARS)[1] < 0).any() for values in layer.values)
    axes.set(xlim=(-1.55 if negative else -0.4, 1.55), ylim=(BARS - 0.5, -0.5))
    axes.set_axis_off()
