"""Images along paths from one latent to another, under several models."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxunlearn.pictures.samples import cell, known, place, sheet, tiles, toned
from jaxunlearn.pictures.style import MUTED, Page, cut, headline, pages, shaped, titled

# inches
_PAD, _TOP, _TITLE, _LINE, _LETTER, _GAP, _FOOT = 0.25, 0.1, 0.35, 0.2, 0.085, 0.35, 0.25
_CHART, _AXIS, _LEAST, _BELOW, _KEY, _WORDS = 2.2, 0.6, 0.8, 0.3, 0.35, 2.3
_INCH, _LETTERS = 160, 24

# Okabe and Ito's colours and as many dashes as no other number divides: 28 lines before
# two are alike, and the first four are told apart in black and white too
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))


def save_strips(
    path: str | os.PathLike[str],
    strips: Mapping[str, jax.typing.ArrayLike],
    *,
    lengths: Mapping[str, jax.typing.ArrayLike] | None = None,
    low: float = -1.0,
    high: float = 1.0,
    title: str = "",
) -> None:
    """Draws what lies between pairs of latents, and how evenly it changes, as PNG.

    A block a pair, in it a row a model: images along the path from one latent to the other,
    the same latents in all rows. Beside a pair, how far the images move in each step, a line
    a model; all charts have the same axes. The mean and the largest over all steps of all
    strips are written above: far apart where the path jumps.

    Args:
      path: of the PNG; an existing file is replaced.
      strips: name of a model -> ``[r, t, H, W, C]``, ``t`` images between each of ``r``
        pairs, ``t`` at least 2, ``C`` 1 or 3.
      lengths: name of a model -> ``[r, t - 1]``, of the step from each image to the next, in
        any unit, none negative; models may be left out, and without any, there are no charts.
      low, high: drawn black and white; values beyond are clipped.
      title: of the picture.

    Raises:
      ValueError: no models or images, shapes that do not fit, lengths of models that are not
        there, negative lengths, an empty range, NaN.
      UserError: the file cannot be written.

    Source: own.
    """
    found = toned("strips", strips, "rt", low, high)
    first = next(iter(found.values()))
    pairs, steps = first.shape[:2]
    if steps < 2:
        raise ValueError(f"strips: expected at least 2 images between latents, got {steps}")
    paces = _paces(lengths or {}, strips, (pairs, steps - 1))
    factor, *sides = cell(first)
    row, column = (side / _INCH for side in sides)
    margin = row - factor * first.shape[-3] / _INCH  # of the last row, and of the last column
    block = max(len(found) * row - margin, _LEAST if paces else 0.0)
    # above the blocks, a line for each model that has lengths
    top = _TOP + (_TITLE if title else 0.0) + (len(paces) * _LINE + _BELOW if paces else 0.05)
    left = _PAD + 0.1 + _LETTER * max(len(cut(name, _LETTERS)) for name in found)
    wide = steps * column - margin
    chart = left + wide + _AXIS
    right = max(chart + _CHART, _far(paces) + _WORDS) if paces else left + wide
    foot = _FOOT + (0.15 if paces else 0.0)
    width, height = sheet(
        titled(right + _PAD, title, _PAD), top + pairs * (block + _GAP) - _GAP + foot
    )
    with pages(path, width, height) as figure:
        page = Page(figure, width, height)
        headline(page, title, _PAD)
        _legend(page, top - _BELOW, list(found), paces)
        for pair in range(pairs):
            upper = top + pair * (block + _GAP)
            for number, (name, made) in enumerate(found.items()):
                start = upper + number * row
                style = {"fontsize": 8.5, "fontweight": "bold", "color": line_of(number)["color"]}
                page.text(
                    _PAD, start + (row - margin) / 2, cut(name, _LETTERS), va="center", **style
                )
                place(page, left, start, tiles(made[pair], steps))
            if paces:
                axes = page.axes(chart, upper, _CHART, block)
                _chart(axes, [(list(found).index(n), v[pair]) for n, v in paces.items()])
                axes.set_ylim(0, 1.05 * max(v.max() for v in paces.values()) or 1.0)
        if paces:
            style = {"fontsize": 7, "color": MUTED}
            page.text(chart, top - 0.1, "length of each step", **style)
            page.text(chart + _CHART / 2, height - 0.1, "step", ha="center", **style)


def line_of(number: int) -> dict[str, Any]:
    """Colour and dashes of the n-th line, the same in all charts of a picture."""
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _DASHES[number % len(_DASHES)]}


def sample(page: Page, left: float, middle: float, wide: float, number: int, **style: Any) -> None:
    """A piece of the n-th line, as legends have it."""
    box = page.axes(left, middle - 0.05, wide, 0.1)
    box.plot([0, 0.5, 1], [0, 0, 0], **line_of(number), **style)
    box.set(xlim=(0, 1), ylim=(-1, 1))
    box.set_axis_off()


def _paces(
    lengths: Mapping[str, jax.typing.ArrayLike], models: Mapping[str, Any], shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    known("lengths", lengths, models)
    made = {}
    for name, values in lengths.items():
        label = f"lengths[{name!r}]"
        made[name] = shaped(label, values, shape, "strips")
        if made[name].min() < 0:
            raise ValueError(f"{label}: expected lengths of 0 or more, got {made[name].min()}")
    return made


def _legend(page: Page, base: float, models: list[str], paces: Mapping[str, np.ndarray]) -> None:
    """A line a model: how it is drawn, its name, the mean and the largest of its lengths."""
    start, away = base - len(paces) * _LINE, _PAD + _KEY + 0.1
    for line, (name, values) in enumerate(paces.items()):
        middle, number = start + (line + 0.5) * _LINE, models.index(name)
        sample(page, _PAD, middle, _KEY, number, linewidth=1.3)
        style: dict[str, Any] = {"fontsize": 8.5, "va": "center"}
        colour = line_of(number)["color"]
        page.text(away, middle, cut(name, _LETTERS), fontweight="bold", color=colour, **style)
        words = f"a step: mean {values.mean():.3g}, largest {values.max():.3g}"
        page.text(_far(paces), middle, words, color=MUTED, **style)


def _far(names: Mapping[str, Any]) -> float:
    """Where the words of the legend start: right of all its names."""
    longest = max((len(cut(name, _LETTERS)) for name in names), default=0)
    return _PAD + _KEY + 0.2 + _LETTER * longest


def plain(axes: Any) -> None:
    """Takes from a chart what is not read: half of its frame, long ticks, powers of ten."""
    axes.locator_params(axis="y", nbins=4)
    # no power of ten above the axis, where other words are
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.tick_params(labelsize=7, labelcolor=MUTED, color="0.8", length=2, pad=2)
    for side, spine in axes.spines.items():
        spine.set(edgecolor="0.8", linewidth=0.6, visible=side in ("left", "bottom"))


def _chart(axes: Any, lines: list[tuple[int, np.ndarray]]) -> None:
    steps = len(lines[0][1])
    for number, values in lines:
        # a single step is a point, which no line shows
        axes.plot(
            np.arange(1, steps + 1), values, **line_of(number), linewidth=1.3, marker="o",
            markersize=2.5, clip_on=False,
        )  # fmt: skip
    axes.set_xlim(0.5, steps + 0.5)
    axes.set_xticks(sorted({1, steps}))
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    plain(axes)
