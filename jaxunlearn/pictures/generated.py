"""Generated images: several models' of the same latents, and along paths between latents."""

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxunlearn.pictures import style

# inches
_TOP, _HEAD, _ABOUT, _APART, _LEAST = 0.1, 0.3, 0.17, 0.2, 2.5
_LINE, _LETTER, _GAP, _FOOT, _BELOW = 0.2, 0.085, 0.35, 0.25, 0.3
_CHART, _AXIS, _LOWEST, _KEY, _WORDS = 2.2, 0.6, 0.8, 0.35, 2.3
_LETTERS = 24
# dots: images are enlarged by whole numbers
_SIDE, _MARGIN = 96, 6


@style.picture
def save_samples(
    path: str | os.PathLike[str],
    images: Mapping[str, jax.typing.ArrayLike],
    *,
    marks: Mapping[str, jax.typing.ArrayLike] | None = None,
    columns: int = 16,
    low: float = -1.0,
    high: float = 1.0,
    title: str | None = None,
) -> None:
    """Draws the images that several models make of the same latents, as PNG.

    A block of rows a model, under its name. The i-th image has the same place in every
    block, so that what became of a latent is seen by looking up and down. Marked images
    are framed, and how many there are is written under the name.

    Args:
      path: of the PNG; an existing file is replaced.
      images: name of a model -> ``[n, H, W, C]``, ``C`` 1 or 3; the i-th ones of all models
        are of the same latent.
      marks: name of a model -> ``bool [n]``, which images a classifier takes for the
        forgotten class; models may be left out.
      columns: images in a row.
      low, high: values drawn black and white under all models; those beyond are clipped.
      title: of the picture.

    Raises:
      ValueError: no models or images, shapes that do not fit, marks of models that are not
        there, an empty range or row, NaN.
      UserError: the file cannot be written.

    Source: own.
    """
    found = _toned("images", images, "n", low, high)
    count = len(next(iter(found.values())))
    marked = _marked(marks or {}, images, count)
    if columns < 1:
        raise ValueError(f"columns: expected a positive number, got {columns}")
    across = min(columns, count)
    canvases = {name: _tiles(made, across, marked.get(name)) for name, made in found.items()}
    sides = next(iter(canvases.values())).shape[:2]
    tall, wide = ((side - 2 * _MARGIN) / style.INCH for side in sides)
    top, head = _TOP + (style.TITLE if title else 0.0), _HEAD + (_ABOUT if marked else 0.0)
    step, away = head + tall + _APART, _MARGIN / style.INCH
    width, height = max(2 * style.PAD + wide, _LEAST), top + len(found) * step + 0.05
    with style.page(path, width, height, title) as page:
        for number, (name, canvas) in enumerate(canvases.items()):
            upper = top + number * step
            words = style.cut(name, int((page.width - 2 * style.PAD) / 0.095))
            bold = {"fontsize": 10, "fontweight": "bold", "color": style.INK}
            page.text(style.PAD, upper + 0.2, words, **bold)
            if name in marked:
                _count(page, upper + 0.33, int(marked[name].sum()), count)
            page.dots(style.PAD - away, upper + head - away, canvas)


@style.picture
def save_strips(
    path: str | os.PathLike[str],
    strips: Mapping[str, jax.typing.ArrayLike],
    *,
    lengths: Mapping[str, jax.typing.ArrayLike] | None = None,
    low: float = -1.0,
    high: float = 1.0,
    title: str | None = None,
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
      low, high: values drawn black and white; those beyond are clipped.
      title: of the picture.

    Raises:
      ValueError: no models or images, shapes that do not fit, lengths of models that are not
        there, negative lengths, an empty range, NaN.
      UserError: the file cannot be written.

    Source: own.
    """
    found = _toned("strips", strips, "rt", low, high)
    first = next(iter(found.values()))
    pairs, steps = first.shape[:2]
    if steps < 2:
        raise ValueError(f"strips: expected at least 2 images between latents, got {steps}")
    paces = _paces(lengths or {}, strips, (pairs, steps - 1))
    _, *sides = _cell(first)
    row, column = (side / style.INCH for side in sides)
    away = _MARGIN / style.INCH
    margin = 2 * away  # of the last row, and of the last column
    block = max(len(found) * row - margin, _LOWEST if paces else 0.0)
    # above the blocks, a line for each model that has lengths
    top = _TOP + (style.TITLE if title else 0.0)
    top += len(paces) * _LINE + _BELOW if paces else 0.05
    names = {name: style.cut(name, _LETTERS) for name in found}
    left = style.PAD + 0.1 + _LETTER * max(map(len, names.values()))
    wide = steps * column - margin
    chart = left + wide + _AXIS
    right = max(chart + _CHART, _far(paces) + _WORDS) if paces else left + wide
    height = top + pairs * (block + _GAP) - _GAP + _FOOT + (0.15 if paces else 0.0)
    with style.page(path, right + style.PAD, height, title) as page:
        _legend(page, top - _BELOW, list(found), paces)
        for pair in range(pairs):
            upper = top + pair * (block + _GAP)
            for number, (name, made) in enumerate(found.items()):
                middle = upper + number * row + (row - margin) / 2
                words = {"fontsize": 8.5, "fontweight": "bold", "va": "center"}
                colour = style.line_of(number)["color"]
                page.text(style.PAD, middle, names[name], color=colour, **words)
                page.dots(left - away, upper + number * row - away, _tiles(made[pair], steps))
            if paces:
                axes = page.axes(chart, upper, _CHART, block)
                _chart(axes, [(list(found).index(n), v[pair]) for n, v in paces.items()])
                axes.set_ylim(0, 1.05 * max(v.max() for v in paces.values()) or 1.0)
        if paces:
            small = {"fontsize": 7, "color": style.MUTED}
            page.text(chart, top - 0.1, "length of each step", **small)
            page.text(chart + _CHART / 2, page.height - 0.1, "step", ha="center", **small)


def _toned(
    name: str, models: Mapping[str, jax.typing.ArrayLike], leading: str, low: float, high: float
) -> dict[str, np.ndarray]:
    """Returns the images of all models as ``uint8 [..., H, W, 3]``.

    Args:
      name: of the argument.
      models: name of a model -> ``[..., H, W, 1 or 3]``, all of one shape.
      leading: a letter for each axis before ``H``.
      low, high: become 0 and 255; values beyond are clipped.

    Raises:
      ValueError: naming the argument.
    """
    if not models:
        raise ValueError(f"{name}: expected at least one model, got none")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low, high: expected finite numbers, low < high, got {low}, {high}")
    made: dict[str, np.ndarray] = {}
    shape: list[int] = []
    for model, given in models.items():
        label = f"{name}[{model!r}]"
        values = style.as_numbers(label, given)
        if not made:
            shape = list(values.shape)
            if len(shape) != len(leading) + 3 or shape[-1] not in (1, 3) or not values.size:
                axes = ", ".join([*leading, "H, W, 1 or 3"])
                raise ValueError(f"{label}: expected [{axes}], none of them 0, got {shape}")
        if list(values.shape) != shape:
            raise ValueError(
                f"{label}: expected shape {shape}, as all of them, got {list(values.shape)}"
            )
        shares = np.clip((values - low) / (high - low), 0, 1)
        made[model] = np.rint(255 * np.broadcast_to(shares, (*shape[:-1], 3))).astype(np.uint8)
    return made


def _cell(pictures: np.ndarray) -> tuple[int, int, int]:
    """Returns how much images ``[..., H, W, 3]`` are enlarged, and the sides of a cell in dots."""
    high, wide = pictures.shape[-3:-1]
    factor = max(1, _SIDE // max(high, wide))
    return factor, factor * high + 2 * _MARGIN, factor * wide + 2 * _MARGIN


def _tiles(pictures: np.ndarray, across: int, marked: np.ndarray | None = None) -> np.ndarray:
    """Returns ``uint8 [h, w, 3]``, images row by row on white, one field a dot.

    Args:
      pictures: ``uint8 [n, H, W, 3]``.
      across: images in a row.
      marked: ``bool [n]``, which are framed; the others have a hairline.
    """
    from matplotlib.colors import to_rgb

    factor, down, right = _cell(pictures)
    count, m = len(pictures), _MARGIN
    colour = np.rint(255 * np.array(to_rgb(style.FRAME))).astype(np.uint8)
    canvas = np.full((-(-count // across) * down, across * right, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, across)
        part = canvas[row * down : (row + 1) * down, column * right : (column + 1) * right]
        framed = marked is not None and marked[i]
        if framed:
            part[1:-1, 1:-1] = colour
        # a dark line within the frame: seen around images of any colour
        part[m - 1 : 1 - m, m - 1 : 1 - m] = 26 if framed else 204
        part[m:-m, m:-m] = picture.repeat(factor, 0).repeat(factor, 1)
    return canvas


def _marked(
    marks: Mapping[str, jax.typing.ArrayLike], models: Mapping[str, Any], count: int
) -> dict[str, np.ndarray]:
    style.known("marks", marks, models)
    found = {name: np.asarray(values) for name, values in marks.items()}
    for name, values in found.items():
        if values.dtype != bool:
            raise ValueError(f"marks[{name!r}]: expected booleans, got {values.dtype}")
        if values.shape != (count,):
            raise ValueError(
                f"marks[{name!r}]: expected shape [{count}], as images, got {list(values.shape)}"
            )
    return found


def _count(page: style.Page, middle: float, marked: int, count: int) -> None:
    """Writes how many are marked, behind a frame like theirs."""
    box = page.axes(style.PAD + 0.0125, middle - 0.05, 0.1, 0.1)
    box.set(xticks=[], yticks=[])
    for spine in box.spines.values():
        spine.set(edgecolor=style.FRAME, linewidth=1.8)
    words = f"forgotten class: {marked} of {count}"
    page.text(style.PAD + 0.2, middle, words, fontsize=8, va="center", color=style.MUTED)


def _paces(
    lengths: Mapping[str, jax.typing.ArrayLike], models: Mapping[str, Any], shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    style.known("lengths", lengths, models)
    made = {}
    for name, values in lengths.items():
        label = f"lengths[{name!r}]"
        made[name] = style.shaped(label, values, shape, "strips")
        if made[name].min() < 0:
            raise ValueError(f"{label}: expected lengths of 0 or more, got {made[name].min()}")
    return made


def _legend(
    page: style.Page, base: float, models: list[str], paces: Mapping[str, np.ndarray]
) -> None:
    """Draws a line a model: a piece of it, its name, the mean and the largest of its lengths."""
    start, away = base - len(paces) * _LINE, style.PAD + _KEY + 0.1
    for line, (name, values) in enumerate(paces.items()):
        middle, number = start + (line + 0.5) * _LINE, models.index(name)
        style.sample(page, style.PAD, middle, _KEY, number, linewidth=1.3)
        words: dict[str, Any] = {"fontsize": 8.5, "va": "center"}
        colour = style.line_of(number)["color"]
        page.text(away, middle, style.cut(name, _LETTERS), fontweight="bold", color=colour, **words)
        about = f"a step: mean {values.mean():.3g}, largest {values.max():.3g}"
        page.text(_far(paces), middle, about, color=style.MUTED, **words)


def _far(names: Mapping[str, Any]) -> float:
    """Returns the place of the words of the legend, right of all its names."""
    longest = max((len(style.cut(name, _LETTERS)) for name in names), default=0)
    return style.PAD + _KEY + 0.2 + _LETTER * longest


def _chart(axes: Any, lines: list[tuple[int, np.ndarray]]) -> None:
    steps = len(lines[0][1])
    for number, values in lines:
        # a single step is a point, which no line shows
        axes.plot(
            np.arange(1, steps + 1), values, **style.line_of(number), linewidth=1.3, marker="o",
            markersize=2.5, clip_on=False,
        )  # fmt: skip
    axes.set_xlim(0.5, steps + 0.5)
    axes.set_xticks(sorted({1, steps}))
    axes.grid(axis="y", color="0.92", linewidth=0.6)
    style.plain(axes)
