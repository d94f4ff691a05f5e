"""Concepts of a class: their scores, their patches in images, and images poisoned with them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.pictures import style

# inches
_CHART, _ROW, _TOP, _FOOT = 4.6, 0.36, 0.5, 0.2
_PATCH, _THUMB, _PATCH_ROW = 0.9, 0.62, 1.04
_CELL, _ABOVE, _HEAD, _BETWEEN = 1.1, 0.3, 0.3, 0.4
_NEAR, _APART, _LETTER = 0.08, 0.24, 0.074
_BAR, _AWAY = 0.3, 0.16  # of a row
_ACROSS, _DOWN = 3, 4  # groups side by side, once there are more than so many
_SHOWN, _LETTERS, _PATCH_LETTERS, _LABEL_LETTERS = 16, 40, 24, 16
_COLOURS = {"target": style.TARGET, "donor": style.DONOR}


@style.picture
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
    style.known("chosen", roles, names)
    scores = [
        style.shaped(n, v, [len(names)], "names") for n, v in (("before", before), ("after", after))
    ]
    order = order_of(names, scores[0], roles)
    longest = max(18, *(len(style.cut(names[k], _LETTERS)) for k in order))
    left = style.PAD + 0.15 + _LETTER * longest
    top = _TOP + (style.TITLE if title else 0.0)
    width, height = left + _CHART + style.PAD, top + len(order) * _ROW + _FOOT
    with style.page(path, width, height, title) as page:
        _key(page, left, top, f"{len(order)} of {len(names)} concepts")
        axes = page.axes(left, top, _CHART, len(order) * _ROW)
        _bars(axes, np.stack(scores)[:, order], [roles.get(names[k], "") for k in order])
        for row, k in enumerate(order):
            _name(page, left - 0.1, top + (row + 0.5) * _ROW, names[k], roles.get(names[k], ""))


def order_of(names: Sequence[str], before: np.ndarray, chosen: Mapping[str, str]) -> np.ndarray:
    """Returns ``int [n]``, the concepts to draw, by falling score; equal ones in their order."""
    order = np.argsort(-before, kind="stable")
    return np.array([k for rank, k in enumerate(order) if rank < _SHOWN or names[k] in chosen])


def _key(page: style.Page, left: float, top: float, about: str) -> None:
    words: dict[str, Any] = {"fontsize": 8, "va": "center"}
    page.text(left - 0.1, top - 0.14, about, ha="right", color=style.MUTED, **words)
    for start, meaning, opacity in ((0.0, "before unlearning", 0.4), (1.5, "after", 1.0)):
        box = page.axes(left + start, top - 0.19, 0.22, 0.1)
        box.set_axis_off()
        box.axhspan(0, 1, color=style.INK, alpha=opacity, linewidth=0)
        box.set(xlim=(0, 1), ylim=(0, 1))
        page.text(left + start + 0.3, top - 0.14, meaning, color=style.INK, **words)


def _bars(axes: Any, scores: np.ndarray, roles: Sequence[str]) -> None:
    low, high = min(0.0, float(scores.min())), max(0.0, float(scores.max()))
    room = (high - low) or 1.0
    places = np.arange(scores.shape[1])
    colours = [_COLOURS.get(role, style.INK) for role in roles]
    for values, shift, opacity in ((scores[0], -_AWAY, 0.4), (scores[1], _AWAY, 1.0)):
        axes.barh(places + shift, values, height=_BAR, color=colours, alpha=opacity, linewidth=0)
        for place, value in zip(places + shift, values, strict=True):
            step, side = (0.012, "left") if value >= 0 else (-0.012, "right")
            axes.text(
                value + step * room, place, style.signed(value), ha=side, va="center",
                fontsize=6.2, color=style.MUTED, parse_math=False,
            )  # fmt: skip
    axes.axvline(0, color="0.6", linewidth=0.6)
    for edge in places[1:]:
        axes.axhline(edge - 0.5, color="0.93", linewidth=0.6, zorder=0)
    axes.set(
        xlim=(low - (0.12 * room if low < 0 else 0.0), high + 0.12 * room),
        ylim=(len(places) - 0.5, -0.5),
    )
    axes.set_axis_off()


def _name(page: style.Page, right: float, middle: float, name: str, role: str) -> None:
    words: dict[str, Any] = {"ha": "right", "va": "center", "color": _COLOURS.get(role, style.INK)}
    weight, up = ("bold", 0.07) if role else ("normal", 0.0)
    name = style.cut(name, _LETTERS)
    page.text(right, middle - up, name, fontsize=8.5, fontweight=weight, **words)
    if role:
        page.text(right, middle + up, role, fontsize=6.5, **words)


@style.picture
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
        :func:`jaxunlearn.pictures.save_heatmaps`; only those that are shown are read.
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
    which = style.whole("image", image, [len(names), "t"], "names", len(stored) - 1)
    if not which.size:
        raise ValueError(f"image: expected at least one patch, got {list(which.shape)}")
    rows, count = which.shape
    ends = _ends("size", size, stored)
    corners = _corners("corner", corner, [rows, count, 2], "image", ends)
    strengths = None
    if strength is not None:
        strengths = style.shaped("strength", strength, which.shape, "image")
    shown, places = np.unique(which, return_inverse=True)
    pictures = style.to_rgb(stored[shown])[places.reshape(which.shape)]
    words = [style.cut(name, _PATCH_LETTERS) for name in names]
    left = style.PAD + _LETTER * max(map(len, words)) + 0.1
    step = _PATCH + _NEAR + _THUMB + _APART
    top = style.PAD + (style.TITLE if title else 0.0)
    width, height = left + step * count - _APART + style.PAD, top + rows * _PATCH_ROW + 0.1
    with style.page(path, width, height, title) as page:
        for row, name in enumerate(words):
            upper = top + row * _PATCH_ROW
            page.text(left - 0.1, upper + _PATCH / 2, name, ha="right", va="center", fontsize=8.5)
            for place, picture in enumerate(pictures[row]):
                start = left + place * step
                (y, x), thumb = corners[row, place], start + _PATCH + _NEAR
                page.image(start, upper, _PATCH, picture[y : y + size, x : x + size])
                fields = page.image(thumb, upper, _THUMB, picture)
                page.frame(fields, corners[row, place][None], size, line=0.9)
                if strengths is not None:
                    about = {"fontsize": 6.5, "color": style.MUTED, "ha": "center"}
                    found = f"{strengths[row, place]:.3g}"
                    page.text(thumb + _THUMB / 2, upper + _THUMB + 0.16, found, **about)


def _ends(name: str, size: int, images: np.ndarray) -> list[int]:
    """Returns the largest row and column of a patch's corner within images ``[N, H, W]``."""
    height, width = images.shape[1:3]
    if not 1 <= size <= min(height, width):
        raise ValueError(f"{name}: expected 1 to {min(height, width)} pixels, got {size}")
    return [height - size, width - size]


def _corners(
    name: str,
    corners: jax.typing.ArrayLike,
    shape: Sequence[int | str],
    like: str,
    ends: Sequence[int],
) -> np.ndarray:
    found = style.whole(name, corners, shape, like)
    if (found > ends).any():
        largest = found.reshape(-1, 2).max(0).tolist()
        raise ValueError(f"{name}: expected rows and columns of at most {ends}, got {largest}")
    return found


@style.picture
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
        :func:`jaxunlearn.pictures.save_heatmaps`.
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
    first, batch = columns[0].pictures, len(columns[0].pictures)
    frames = None
    if corners is not None:
        ends = _ends("patch", patch, first)
        frames = _corners("corners", corners, [batch, "c", 2], "images", ends)
    most = None if class_names is None else len(class_names) - 1
    before, after = (
        style.whole(name, values, [batch], "images", most)
        for name, values in (("labels", labels), ("poison_labels", poison_labels))
    )
    across = min(_ACROSS, -(-batch // _DOWN))
    wide = len(columns) * (_CELL + _NEAR) - _NEAR
    top = _HEAD + (style.TITLE if title else 0.0)
    width = 2 * style.PAD + across * (wide + _BETWEEN) - _BETWEEN
    height = top + -(-batch // across) * (_CELL + _ABOVE) + style.PAD
    with style.page(path, width, height, title) as page:
        for group in range(across):
            _heads(page, style.PAD + group * (wide + _BETWEEN), top, columns)
        for number in range(batch):
            left = style.PAD + number % across * (wide + _BETWEEN)
            upper = top + number // across * (_CELL + _ABOVE) + _ABOVE
            words = [style.class_word(label[number], class_names) for label in (before, after)]
            _labels(page, left + wide / 2, upper - 0.07, words)
            for place, column in enumerate(columns):
                start = left + place * (_CELL + _NEAR)
                fields = page.image(start, upper, _CELL, column.pictures[number])
                if column.framed and frames is not None:
                    page.frame(fields, frames[number], patch)


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
    pictures = np.split(style.to_rgb(np.concatenate([array for *_, array in there])), len(there))
    return [
        _Column(head, made, name == "poisoned")
        for (name, head, _), made in zip(there, pictures, strict=True)
    ]


def _heads(page: style.Page, left: float, top: float, columns: Sequence[_Column]) -> None:
    for place, column in enumerate(columns):
        middle = left + place * (_CELL + _NEAR) + _CELL / 2
        page.text(middle, top - 0.03, column.head, fontsize=8, ha="center", color=style.MUTED)


def _labels(page: style.Page, middle: float, base: float, labels: Sequence[str]) -> None:
    """Writes old label, arrow and new label around the middle of a group."""
    old, new = (style.cut(label, _LABEL_LETTERS) for label in labels)
    words = {"fontsize": 8.5, "fontweight": "bold"}
    page.text(middle - 0.13, base, old, ha="right", color=style.TARGET, **words)
    page.text(middle, base, "→", ha="center", color=style.MUTED, fontsize=8.5)
    changed = style.DONOR if labels[1] != labels[0] else style.TARGET
    page.text(middle + 0.13, base, new, ha="left", color=changed, **words)
