"""Generated images: what several models make of the same latents."""

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxunlearn.pictures.style import (
    FRAME,
    INK,
    MUTED,
    Page,
    as_numbers,
    cut,
    headline,
    pages,
    titled,
)

# inches
_PAD, _TOP, _TITLE, _HEAD, _ABOUT, _APART, _LEAST = 0.25, 0.1, 0.35, 0.3, 0.17, 0.2, 2.5
# dots, of which a page has so many an inch: images are enlarged by whole numbers
_INCH, _SIDE, _MARGIN = 160, 96, 6


def save_samples(
    path: str | os.PathLike[str],
    images: Mapping[str, jax.typing.ArrayLike],
    *,
    marks: Mapping[str, jax.typing.ArrayLike] | None = None,
    columns: int = 16,
    low: float = -1.0,
    high: float = 1.0,
    title: str = "",
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
      low, high: drawn black and white under all models; values beyond are clipped.
      title: of the picture.

    Raises:
      ValueError: no models or images, shapes that do not fit, marks of models that are not
        there, an empty range or row, NaN.
      UserError: the file cannot be written.

    Source: own.
    """
    found = toned("images", images, "n", low, high)
    count = len(next(iter(found.values())))
    marked = _marked(marks or {}, images, count)
    if columns < 1:
        raise ValueError(f"columns: expected a positive number, got {columns}")
    across = min(columns, count)
    canvases = {name: tiles(made, across, marked.get(name)) for name, made in found.items()}
    sides = next(iter(canvases.values())).shape[:2]
    tall, wide = ((side - 2 * _MARGIN) / _INCH for side in sides)
    top, head = _TOP + (_TITLE if title else 0.0), _HEAD + (_ABOUT if marked else 0.0)
    step = head + tall + _APART
    width, height = sheet(
        titled(max(2 * _PAD + wide, _LEAST), title, _PAD), top + len(found) * step + 0.05
    )
    with pages(path, width, height) as figure:
        page = Page(figure, width, height)
        headline(page, title, _PAD)
        for number, (name, canvas) in enumerate(canvases.items()):
            upper = top + number * step
            words = cut(name, int((width - 2 * _PAD) / 0.095))
            page.text(_PAD, upper + 0.2, words, fontsize=10, fontweight="bold", color=INK)
            if name in marked:
                _count(page, upper + 0.33, int(marked[name].sum()), count)
            place(page, _PAD, upper + head, canvas)


def toned(
    name: str, models: Mapping[str, jax.typing.ArrayLike], leading: str, low: float, high: float
) -> dict[str, np.ndarray]:
    """The images of all models as ``uint8 [..., H, W, 3]``, from ``low`` to ``high``.

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
        values = as_numbers(label, given)
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


def known(name: str, given: Mapping[str, Any], models: Mapping[str, Any]) -> None:
    """Checks that what is given for some models is given for models that are there.

    Raises:
      ValueError: naming the argument.
    """
    for model in given:
        if model not in models:
            raise ValueError(f"{name}: expected some of {', '.join(models)}, got {model!r}")


def cell(pictures: np.ndarray) -> tuple[int, int, int]:
    """How much images ``[..., H, W, 3]`` are enlarged; height and width of a cell, in dots."""
    high, wide = pictures.shape[-3:-1]
    factor = max(1, _SIDE // max(high, wide))
    return factor, factor * high + 2 * _MARGIN, factor * wide + 2 * _MARGIN


def tiles(pictures: np.ndarray, across: int, marked: np.ndarray | None = None) -> np.ndarray:
    """``uint8 [h, w, 3]``: images row by row on white, one field a dot.

    Args:
      pictures: ``uint8 [n, H, W, 3]``.
      across: images in a row.
      marked: ``bool [n]``, which are framed; the others have a hairline.
    """
    from matplotlib.colors import to_rgb

    factor, down, right = cell(pictures)
    count, m = len(pictures), _MARGIN
    colour = np.rint(255 * np.array(to_rgb(FRAME))).astype(np.uint8)
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


def place(page: Page, left: float, top: float, canvas: np.ndarray) -> None:
    """Puts a canvas on a page so that the corner of its first image, not its frame, is there."""
    high, wide = canvas.shape[:2]
    # whole dots: between two of them, fields would be drawn twice or not at all
    left, top = ((round(inches * _INCH) - _MARGIN) / _INCH for inches in (left, top))
    axes = page.axes(left, top, wide / _INCH, high / _INCH)
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def sheet(width: float, height: float) -> tuple[float, float]:
    """The size of a page in inches, made a whole number of dots."""
    across, down = (math.ceil(round(side * _INCH, 3)) / _INCH for side in (width, height))
    return across, down


def _marked(
    marks: Mapping[str, jax.typing.ArrayLike], models: Mapping[str, Any], count: int
) -> dict[str, np.ndarray]:
    known("marks", marks, models)
    found = {name: np.asarray(values) for name, values in marks.items()}
    for name, values in found.items():
        if values.dtype != bool:
            raise ValueError(f"marks[{name!r}]: expected booleans, got {values.dtype}")
        if values.shape != (count,):
            raise ValueError(
                f"marks[{name!r}]: expected shape [{count}], as images, got {list(values.shape)}"
            )
    return found


def _count(page: Page, middle: float, marked: int, count: int) -> None:
    """How many are marked, behind a frame like theirs."""
    box = page.axes(_PAD + 0.0125, middle - 0.05, 0.1, 0.1)
    box.set(xticks=[], yticks=[])
    for spine in box.spines.values():
        spine.set(edgecolor=FRAME, linewidth=1.8)
    words = f"forgotten class: {marked} of {count}"
    page.text(_PAD + 0.2, middle, words, fontsize=8, va="center", color=MUTED)
