"""The scores of a class's concepts before and after unlearning, as bars.

Where in images concepts are: one map a concept, laid over the image.

Concepts without words: the patches of images that show each of them most.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxunlearn.pictures.style import (
    DONOR,
    INK,
    MUTED,
    TARGET,
    Page,
    cut,
    framed,
    headline,
    legend,
    overlay,
    pages,
    scale_of,
    shaped,
    signed,
    titled,
    to_rgb,
    whole,
)

# inches
_PAD, _LETTER, _CHART, _ROW, _TOP, _TITLE, _FOOT = 0.25, 0.074, 4.6, 0.36, 0.5, 0.34, 0.2
_SHOWN, _LETTERS = 16, 40
_BAR, _APART = 0.3, 0.16  # of a row
_COLOURS = {"target": TARGET, "donor": DONOR}


def save_concepts(
    path: str | os.PathLike[str],
    names: Sequence[str],
    before: jax.typing.ArrayLike,
    after: jax.typing.ArrayLike,
    *,
    title: str | None = None,
    chosen: Mapping[str, str] | None = None,
) -> None:
    """Draws how much each concept speaks for a class, before and after unlearning, as PNG.

    Two bars a concept, pale before and full after, on one scale, with their scores. The
    16 concepts of largest score before, in that order, and all that are chosen.

    Args:
      path: of the PNG; an existing file is replaced.
      names: ``m`` concepts.
      before, after: ``[m]``, the scores in the original and in the unlearned model.
      title: of the picture.
      chosen: name of a concept -> its role, written below the name; ``"target"`` and
        ``"donor"`` have colours of their own.

    Raises:
      ValueError: shapes that do not fit, a chosen concept that is not there, NaN.
      UserError: the file cannot be written.

    Source: own; the scores are those of arXiv 2405.15662.
    """
    if not names:
        raise ValueError("names: expected at least one concept, got none")
    roles = dict(chosen or {})
    for name in roles:
        if name not in names:
            raise ValueError(f"chosen: expected some of {', '.join(names)}, got {name!r}")
    scores = [
        shaped(n, v, [len(names)], "names") for n, v in (("before", before), ("after", after))
    ]
    order = order_of(names, scores[0], roles)
    left = _PAD + 0.15 + _LETTER * max(18, *(len(cut(names[k], _LETTERS)) for k in order))
    top = _TOP + (_TITLE if title else 0.0)
    width, height = titled(left + _CHART + _PAD, title, _PAD), top + len(order) * _ROW + _FOOT
    with pages(path, width, height) as figure:
        page = Page(figure, width, height)
        headline(page, title, _PAD)
        _head(page, left, top, f"{len(order)} of {len(names)} concepts")
        axes = page.axes(left, top, _CHART, len(order) * _ROW)
        _bars(axes, np.stack(scores)[:, order], [roles.get(names[k], "") for k in order])
        for row, k in enumerate(order):
            _name(page, left - 0.1, top + (row + 0.5) * _ROW, names[k], roles.get(names[k], ""))


def order_of(names: Sequence[str], before: np.ndarray, chosen: Mapping[str, str]) -> np.ndarray:
    """``int [n]``: which concepts are drawn, by falling score; equal ones in their own order."""
    order = np.argsort(-before, kind="stable")
    return np.array([k for rank, k in enumerate(order) if rank < _SHOWN or names[k] in chosen])


def _head(page: Page, left: float, top: float, about: str) -> None:
    """What the bars mean."""
    style: dict[str, Any] = {"fontsize": 8, "va": "center"}
    page.text(left - 0.1, top - 0.14, about, ha="right", color=MUTED, **style)
    for start, words, opacity in ((0.0, "before unlearning", 0.4), (1.5, "after", 1.0)):
        box = page.axes(left + start, top - 0.19, 0.22, 0.1)
        box.set_axis_off()
        box.axhspan(0, 1, color=INK, alpha=opacity, linewidth=0)
        box.set(xlim=(0, 1), ylim=(0, 1))
        page.text(left + start + 0.3, top - 0.14, words, color=INK, **style)


def _bars(axes: Any, scores: np.ndarray, roles: Sequence[str]) -> None:
    low, high = min(0.0, float(scores.min())), max(0.0, float(scores.max()))
    room = (high - low) or 1.0
    places = np.arange(scores.shape[1])
    colours = [_COLOURS.get(role, INK) for role in roles]
    for values, shift, opacity in ((scores[0], -_APART, 0.4), (scores[1], _APART, 1.0)):
        axes.barh(places + shift, values, height=_BAR, color=colours, alpha=opacity, linewidth=0)
        for place, value in zip(places + shift, values, strict=True):
            step, side = (0.012, "left") if value >= 0 else (-0.012, "right")
            axes.text(
                value + step * room, place, signed(value), ha=side, va="center",
                fontsize=6.2, color=MUTED, parse_math=False,
            )  # fmt: skip
    axes.axvline(0, color="0.6", linewidth=0.6)
    for edge in places[1:]:
        axes.axhline(edge - 0.5, color="0.93", linewidth=0.6, zorder=0)
    axes.set(
        xlim=(low - (0.12 * room if low < 0 else 0.0), high + 0.12 * room),
        ylim=(len(places) - 0.5, -0.5),
    )
    axes.set_axis_off()


def _name(page: Page, right: float, middle: float, name: str, role: str) -> None:
    colour = _COLOURS.get(role, INK)
    style: dict[str, Any] = {"ha": "right", "va": "center", "color": colour}
    weight = "bold" if role else "normal"
    up = 0.07 if role else 0.0
    page.text(right, middle - up, cut(name, _LETTERS), fontsize=8.5, fontweight=weight, **style)
    if role:
        page.text(right, middle + up, role, fontsize=6.5, **style)


# inches
_MAP_PAD, _CELL, _MAP_NEAR, _ABOVE = 0.25, 1.25, 0.09, 0.22
_MAP_TOP, _MAP_TITLE, _MAP_FOOT = 0.3, 0.34, 0.55
_MAP_LETTERS = 20


def save_maps(
    path: str | os.PathLike[str],
    images: jax.typing.ArrayLike,
    maps: jax.typing.ArrayLike,
    names: Sequence[str],
    *,
    title: str | None = None,
) -> None:
    """Draws images and, beside each, the maps of concepts laid over it, as PNG.

    Blue is negative, red positive; the image shows where a concept is not. All maps of a row have
    one scale, the 99.5 % quantile of the magnitudes; what lies beyond saturates. Above a
    map is its strongest cell.

    Args:
      path: of the PNG; an existing file is replaced.
      images: ``[B, H, W]``, ``[B, H, W, 1]`` or ``[B, H, W, 3]``, values as for
        :func:`jaxunlearn.save_heatmaps`.
      maps: ``[B, c, h, w]``, enlarged to the pixels by bilinear interpolation.
      names: ``c`` concepts.
      title: of the picture.

    Raises:
      ValueError: shapes that do not fit, NaN.
      UserError: the file cannot be written.

    Source: own.
    """
    pictures = to_rgb(images)
    values = shaped("maps", maps, [len(pictures), len(names), "h", "w"], "images and names")
    if not values.size:
        raise ValueError(f"maps: expected at least one cell, got {list(values.shape)}")
    heats = enlarged(values, pictures.shape[1:3])
    step = _CELL + _MAP_NEAR
    top = _MAP_TOP + (_MAP_TITLE if title else 0.0)
    width = titled(2 * _MAP_PAD + step * (1 + len(names)) - _MAP_NEAR, title, _MAP_PAD)
    height = top + len(pictures) * (_CELL + _ABOVE) + _MAP_FOOT
    with pages(path, width, height) as figure:
        page = Page(figure, width, height)
        headline(page, title, _MAP_PAD)
        for place, name in enumerate(["image", *names]):
            middle = _MAP_PAD + place * step + _CELL / 2
            style = {"fontsize": 8.5, "fontweight": "bold", "ha": "center"}
            page.text(middle, top - 0.05, cut(name, _MAP_LETTERS), **style)
        for row, picture in enumerate(pictures):
            upper, scale = top + row * (_CELL + _ABOVE) + _ABOVE, scale_of(heats[row])
            page.image(_MAP_PAD, upper, _CELL, picture)
            words = [f"scale ±{scale:.2g}", *(_strongest(cells) for cells in values[row])]
            for place, word in enumerate(words):
                middle = _MAP_PAD + place * step + _CELL / 2
                page.text(middle, upper - 0.04, word, fontsize=6.5, ha="center", color=MUTED)
            for place, heat in enumerate(heats[row], 1):
                page.image(_MAP_PAD + place * step, upper, _CELL, overlay(picture, heat, scale))
        legend(page.axes(_MAP_PAD, height - 0.36, 1.9, 0.08), "negative", "positive")


def enlarged(maps: np.ndarray, pixels: tuple[int, ...]) -> np.ndarray:
    """``[..., H, W]`` from ``[..., h, w]``: bilinear, a cell's value at the middle of the cell."""
    for axis, count in zip((-2, -1), pixels, strict=True):
        size = maps.shape[axis]
        # nothing to interpolate with beyond the middle of the first and the last cell
        places = np.clip((np.arange(count) + 0.5) * size / count - 0.5, 0, size - 1)
        low = np.floor(places).astype(int)
        share = (places - low).reshape(-1, *[1] * (-1 - axis))
        first, second = (maps.take(k, axis) for k in (low, np.minimum(low + 1, size - 1)))
        maps = (1 - share) * first + share * second
    return maps


def _strongest(cells: np.ndarray) -> str:
    return f"peak {signed(cells.flat[np.abs(cells).argmax()])}"


# inches
_PATCH_PAD, _PATCH, _THUMB, _PATCH_NEAR, _PATCH_APART, _PATCH_ROW = 0.2, 0.9, 0.62, 0.06, 0.24, 1.04
_PATCH_LETTER, _PATCH_LETTERS, _PATCH_TITLE = 0.074, 24, 0.34


def save_patches(
    path: str | os.PathLike[str],
    images: jax.typing.ArrayLike,
    names: Sequence[str],
    image: jax.typing.ArrayLike,
    corner: jax.typing.ArrayLike,
    size: int,
    *,
    strength: jax.typing.ArrayLike | None = None,
    title: str | None = None,
) -> None:
    """Draws the typical patches of concepts, as PNG.

    A row is a concept: its patches, enlarged, each beside the whole image with a frame
    where the patch is.

    Args:
      path: of the PNG; an existing file is replaced.
      images: ``[N, H, W]``, ``[N, H, W, 1]`` or ``[N, H, W, 3]``, values as for
        :func:`jaxunlearn.save_heatmaps`; only those that are shown are read.
      names: ``m`` concepts.
      image: ``int [m, t]``, which image each patch is from.
      corner: ``int [m, t, 2]``, row and column of its upper left pixel.
      size: pixels of a side.
      strength: ``[m, t]``, written below the thumbnail: how much of the concept is there.
      title: of the picture.

    Raises:
      ValueError: shapes that do not fit, patches that are not within the images, NaN.
      UserError: the file cannot be written.

    Source: own.
    """
    stored = np.asarray(images)
    if stored.ndim < 3:
        raise ValueError(f"images: expected [N, H, W, C], got {stored.shape}")
    which = whole("image", image, [len(names), "t"], "names", len(stored) - 1)
    if not which.size:
        raise ValueError(f"image: expected at least one patch, got {list(which.shape)}")
    corners = _corners(corner, which.shape, size, stored.shape[1:3])
    strengths = None
    if strength is not None:
        strengths = shaped("strength", strength, which.shape, "image")
    shown, places = np.unique(which, return_inverse=True)
    pictures = to_rgb(stored[shown])[places.reshape(which.shape)]
    left = _PATCH_PAD + _PATCH_LETTER * max(len(cut(name, _PATCH_LETTERS)) for name in names) + 0.1
    step = _PATCH + _PATCH_NEAR + _THUMB + _PATCH_APART
    top = _PATCH_PAD + (_PATCH_TITLE if title else 0.0)
    width = titled(left + step * which.shape[1] - _PATCH_APART + _PATCH_PAD, title, _PATCH_PAD)
    height = top + len(names) * _PATCH_ROW + 0.1
    with pages(path, width, height) as figure:
        page = Page(figure, width, height)
        headline(page, title, _PATCH_PAD)
        for row, name in enumerate(names):
            upper = top + row * _PATCH_ROW
            side = {"ha": "right", "va": "center", "fontsize": 8.5}
            page.text(left - 0.1, upper + _PATCH / 2, cut(name, _PATCH_LETTERS), **side)
            for place in range(which.shape[1]):
                at = (left + place * step, upper)
                _one(page, at, pictures[row, place], corners[row, place], size)
                if strengths is not None:
                    words = f"{strengths[row, place]:.3g}"
                    middle = at[0] + _PATCH + _PATCH_NEAR + _THUMB / 2
                    page.text(middle, upper + _THUMB + 0.16, words, fontsize=6.5, color=MUTED,
                              ha="center")  # fmt: skip


def _corners(
    corner: jax.typing.ArrayLike, which: tuple[int, ...], size: int, pixels: tuple[int, ...]
) -> np.ndarray:
    if not 1 <= size <= min(pixels):
        raise ValueError(f"size: expected 1 to {min(pixels)} pixels, got {size}")
    corners = whole("corner", corner, [*which, 2], "image")
    ends = [side - size for side in pixels]
    if (corners > ends).any():
        found = corners.reshape(-1, 2).max(0).tolist()
        raise ValueError(f"corner: expected rows and columns of at most {ends}, got {found}")
    return corners


def _one(
    page: Page, at: tuple[float, float], picture: np.ndarray, corner: np.ndarray, size: int
) -> None:
    left, top = at
    row, column = corner
    page.image(left, top, _PATCH, picture[row : row + size, column : column + size])
    place = (left + _PATCH + _PATCH_NEAR, top, _THUMB)
    framed(page, place, picture, corner[None], size, line=0.9)
