"""Where in images concepts are: one map a concept, laid over the image."""

import os
from collections.abc import Sequence

import jax
import numpy as np

from jaxunlearn.pictures.images import overlay, scale_of, to_rgb
from jaxunlearn.pictures.marks import cut, headline, shaped, titled
from jaxunlearn.pictures.style import MUTED, Page, legend, pages, signed

__all__ = ["enlarged", "save_maps"]

# inches
_PAD, _CELL, _NEAR, _ABOVE, _TOP, _TITLE, _FOOT = 0.25, 1.25, 0.09, 0.22, 0.3, 0.34, 0.55
_LETTERS = 20


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
    step = _CELL + _NEAR
    top = _TOP + (_TITLE if title else 0.0)
    width = titled(2 * _PAD + step * (1 + len(names)) - _NEAR, title, _PAD)
    height = top + len(pictures) * (_CELL + _ABOVE) + _FOOT
    with pages(path, width, height) as figure:
        page = Page(figure, width, height)
        headline(page, title, _PAD)
        for place, name in enumerate(["image", *names]):
            middle = _PAD + place * step + _CELL / 2
            style = {"fontsize": 8.5, "fontweight": "bold", "ha": "center"}
            page.text(middle, top - 0.05, cut(name, _LETTERS), **style)
        for row, picture in enumerate(pictures):
            upper, scale = top + row * (_CELL + _ABOVE) + _ABOVE, scale_of(heats[row])
            page.image(_PAD, upper, _CELL, picture)
            words = [f"scale ±{scale:.2g}", *(_strongest(cells) for cells in values[row])]
            for place, word in enumerate(words):
                middle = _PAD + place * step + _CELL / 2
                page.text(middle, upper - 0.04, word, fontsize=6.5, ha="center", color=MUTED)
            for place, heat in enumerate(heats[row], 1):
                page.image(_PAD + place * step, upper, _CELL, overlay(picture, heat, scale))
        legend(page.axes(_PAD, height - 0.36, 1.9, 0.08), "negative", "positive")


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
