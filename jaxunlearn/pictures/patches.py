"""Concepts without words: the patches of images that show each of them most."""

import os
from collections.abc import Sequence

import jax
import numpy as np

from jaxunlearn.pictures.images import to_rgb
from jaxunlearn.pictures.marks import cut, framed, headline, shaped, titled, whole
from jaxunlearn.pictures.style import MUTED, Page, pages

__all__ = ["save_patches"]

# inches
_PAD, _PATCH, _THUMB, _NEAR, _APART, _ROW = 0.2, 0.9, 0.62, 0.06, 0.24, 1.04
_LETTER, _LETTERS, _TITLE = 0.074, 24, 0.34


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
    left = _PAD + _LETTER * max(len(cut(name, _LETTERS)) for name in names) + 0.1
    step = _PATCH + _NEAR + _THUMB + _APART
    top = _PAD + (_TITLE if title else 0.0)
    width = titled(left + step * which.shape[1] - _APART + _PAD, title, _PAD)
    height = top + len(names) * _ROW + 0.1
    with pages(path, width, height) as figure:
        page = Page(figure, width, height)
        headline(page, title, _PAD)
        for row, name in enumerate(names):
            upper = top + row * _ROW
            side = {"ha": "right", "va": "center", "fontsize": 8.5}
            page.text(left - 0.1, upper + _PATCH / 2, cut(name, _LETTERS), **side)
            for place in range(which.shape[1]):
                at = (left + place * step, upper)
                _one(page, at, pictures[row, place], corners[row, place], size)
                if strengths is not None:
                    words = f"{strengths[row, place]:.3g}"
                    middle = at[0] + _PATCH + _NEAR + _THUMB / 2
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
    place = (left + _PATCH + _NEAR, top, _THUMB)
    framed(page, place, picture, corner[None], size, line=0.9)
