"""Poisoned images beside what they were made of."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxunlearn.pictures.style import (
    DONOR,
    MUTED,
    TARGET,
    Page,
    class_word,
    cut,
    framed,
    headline,
    pages,
    titled,
    to_rgb,
    whole,
)

# inches
_PAD, _CELL, _NEAR, _APART, _ABOVE, _TOP, _TITLE = 0.25, 1.1, 0.08, 0.4, 0.3, 0.3, 0.34
_ACROSS, _DOWN = 3, 4  # groups side by side, once there are more than so many
_LETTERS = 16


def save_poison(
    path: str | os.PathLike[str],
    images: jax.typing.ArrayLike,
    poisoned: jax.typing.ArrayLike,
    corners: jax.typing.ArrayLike | None,
    patch: int,
    labels: jax.typing.ArrayLike,
    poison_labels: jax.typing.ArrayLike,
    donors: jax.typing.ArrayLike | None,
    *,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
) -> None:
    """Draws images, their donors, and what was made of them, as PNG.

    Above each example stands its label and, after an arrow, the label it is trained with
    once poisoned. All images are on one scale.

    Args:
      path: of the PNG; an existing file is replaced.
      images: ``[B, H, W]``, ``[B, H, W, 1]`` or ``[B, H, W, 3]``, values as for
        :func:`jaxunlearn.save_heatmaps`.
      poisoned: of the shape of ``images``.
      corners: ``int [B, c, 2]``, row and column of the upper left pixel of each patch, which
        is framed; ``None`` for no frame.
      patch: pixels of a side.
      labels, poison_labels: ``int [B]``.
      donors: the images the patches are from, of the shape of ``images``; or ``None``.
      class_names: ``K``; without them, numbers.
      title: of the picture.

    Raises:
      ValueError: shapes that do not fit, patches not within the images, labels without
        a name, NaN.
      UserError: the file cannot be written.

    Source: own.
    """
    columns = _columns(images, poisoned, donors)
    batch, pixels = len(columns[0].pictures), columns[0].pictures.shape[1:3]
    frames = None if corners is None else _frames(corners, patch, (batch, *pixels))
    most = None if class_names is None else len(class_names) - 1
    before, after = (
        whole(name, values, [batch], "images", most)
        for name, values in (("labels", labels), ("poison_labels", poison_labels))
    )
    across = min(_ACROSS, -(-batch // _DOWN))
    wide = len(columns) * (_CELL + _NEAR) - _NEAR
    top = _TOP + (_TITLE if title else 0.0)
    width = titled(2 * _PAD + across * (wide + _APART) - _APART, title, _PAD)
    height = top + -(-batch // across) * (_CELL + _ABOVE) + _PAD
    with pages(path, width, height) as figure:
        page = Page(figure, width, height)
        headline(page, title, _PAD)
        for group in range(across):
            _heads(page, _PAD + group * (wide + _APART), top, columns)
        for number in range(batch):
            left = _PAD + number % across * (wide + _APART)
            upper = top + number // across * (_CELL + _ABOVE) + _ABOVE
            words = [class_word(label[number], class_names) for label in (before, after)]
            _labels(page, left, upper - 0.07, wide, words)
            for place, column in enumerate(columns):
                at = (left + place * (_CELL + _NEAR), upper, _CELL)
                marks = frames[number] if column.framed and frames is not None else None
                framed(page, at, column.pictures[number], marks, patch)


class _Column(NamedTuple):
    """Images ``[B, H, W, 3]`` under a head, with or without the frames."""

    head: str
    pictures: np.ndarray
    framed: bool


def _columns(
    images: jax.typing.ArrayLike,
    poisoned: jax.typing.ArrayLike,
    donors: jax.typing.ArrayLike | None,
) -> list[_Column]:
    given = [("images", "original", images), ("donors", "donor", donors)]
    given += [("poisoned", "poisoned", poisoned)]
    there = [(name, head, np.asarray(a)) for name, head, a in given if a is not None]
    shape = there[0][2].shape
    for name, _, array in there:
        if array.shape != shape:
            raise ValueError(
                f"{name}: expected shape {list(shape)}, as images, got {list(array.shape)}"
            )
    # together, so that one value has one colour in all of them
    pictures = np.split(to_rgb(np.concatenate([array for *_, array in there])), len(there))
    return [
        _Column(head, made, name == "poisoned")
        for (name, head, _), made in zip(there, pictures, strict=True)
    ]


def _frames(corners: jax.typing.ArrayLike, patch: int, shape: tuple[int, ...]) -> np.ndarray:
    if not 1 <= patch <= min(shape[1:]):
        raise ValueError(f"patch: expected 1 to {min(shape[1:])} pixels, got {patch}")
    found = whole("corners", corners, [shape[0], "c", 2], "images")
    ends = [side - patch for side in shape[1:]]
    if (found > ends).any():
        largest = found.reshape(-1, 2).max(0).tolist()
        raise ValueError(f"corners: expected rows and columns of at most {ends}, got {largest}")
    return found


def _heads(page: Page, left: float, top: float, columns: Sequence[_Column]) -> None:
    for place, column in enumerate(columns):
        middle = left + place * (_CELL + _NEAR) + _CELL / 2
        page.text(middle, top - 0.03, column.head, fontsize=8, ha="center", color=MUTED)


def _labels(page: Page, left: float, base: float, wide: float, words: Sequence[str]) -> None:
    """Old label, arrow, new label, around the middle of a group."""
    middle = left + wide / 2
    style = {"fontsize": 8.5, "fontweight": "bold"}
    page.text(middle - 0.13, base, cut(words[0], _LETTERS), ha="right", color=TARGET, **style)
    page.text(middle, base, "→", ha="center", color=MUTED, fontsize=8.5)
    changed = DONOR if words[1] != words[0] else TARGET
    page.text(middle + 0.13, base, cut(words[1], _LETTERS), ha="left", color=changed, **style)
