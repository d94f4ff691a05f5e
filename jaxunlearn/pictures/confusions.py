"""Confusion matrices of several models, side by side."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxunlearn.pictures import style

# inches
_GAP, _HEAD, _KEY, _LETTER = 0.35, 0.55, 0.5, 0.064
_CELL, _LEAST, _MOST, _WIDE = 0.34, 2.1, 3.8, 15.0
_NUMBERS, _NAMED = 12, 30  # so many classes have numbers in their cells, have all names
_LETTERS, _NOTHING = 14, "0.9"


@style.picture
def save_confusions(
    path: str | os.PathLike[str],
    matrices: Mapping[str, jax.typing.ArrayLike],
    *,
    class_names: Sequence[str] | None = None,
    forgotten: Sequence[int] = (),
    title: str | None = None,
) -> None:
    """Draws what models take the examples of each class for, as PNG.

    A row is a true class, a column what is predicted, a colour the share of the row,
    ``n[i, j] / sum over j of n[i, j]``, written as per cent for up to 12 classes. A class
    without examples has a grey row. The rows of forgotten classes are framed.

    Args:
      path: of the PNG; an existing file is replaced.
      matrices: name of a model -> ``[K, K]``, counts or shares, none negative.
      class_names: ``K``; without them, numbers.
      forgotten: classes.
      title: of the picture.

    Raises:
      ValueError: shapes that do not fit, classes that are not there, negative counts, NaN.
      UserError: the file cannot be written.

    Source: own.
    """
    found, forgotten = _checked(matrices), [int(k) for k in forgotten]
    count = len(next(iter(found.values())))
    if class_names is not None and len(class_names) != count:
        raise ValueError(f"class_names: expected {count}, as matrices, got {len(class_names)}")
    if wrong := [k for k in forgotten if not 0 <= k < count]:
        raise ValueError(f"forgotten: expected classes of 0 to {count - 1}, got {wrong[0]}")
    words = [style.cut(style.class_word(k, class_names), _LETTERS) for k in range(count)]
    side = float(np.clip(count * _CELL, _LEAST, _MOST if count > _NUMBERS else np.inf))
    margin = 0.3 + _LETTER * max(map(len, words))
    wide, high = margin + side + _GAP, _HEAD + side + margin
    across = max(1, min(len(found), int(_WIDE // wide)))
    top = 0.1 + (style.TITLE if title else 0.0)
    width = max(style.PAD + across * wide, _LEAST + 1)
    height = top + -(-len(found) // across) * high + _KEY
    with style.page(path, width, height, title) as page:
        for number, (name, matrix) in enumerate(found.items()):
            left = style.PAD + number % across * wide + margin
            upper = top + number // across * high + _HEAD
            head = style.cut(name, int(side / 0.095))
            page.text(left, upper - 0.25, head, fontsize=10, fontweight="bold", color=style.INK)
            page.text(left, upper - 0.09, _about(matrix, forgotten), fontsize=7, color=style.MUTED)
            _matrix(page.axes(left, upper, side, side), matrix, words, forgotten, side)
        _key(page, bool(forgotten))


def shares(counts: np.ndarray) -> np.ndarray:
    """Returns ``[K, K]``, each row divided by its sum; a row of zeros stays one."""
    sums = counts.sum(1, keepdims=True)
    return counts / np.where(sums > 0, sums, 1)


def _checked(matrices: Mapping[str, jax.typing.ArrayLike]) -> dict[str, np.ndarray]:
    if not matrices:
        raise ValueError("matrices: expected at least one, got none")
    count = len(np.atleast_1d(np.asarray(next(iter(matrices.values())))))
    made = {}
    for name, values in matrices.items():
        label = f"matrices[{name!r}]"
        numbers = style.shaped(label, values, [count, count], "all of them")
        if not numbers.size or numbers.min() < 0:
            raise ValueError(f"{label}: expected counts of 0 or more, got {numbers.min(initial=0)}")
        made[name] = shares(numbers)
    return made


def _about(matrix: np.ndarray, forgotten: Sequence[int]) -> str:
    """Returns the accuracies in words, means over classes that have examples."""
    there = matrix.sum(1) > 0
    lost = np.isin(np.arange(len(matrix)), list(forgotten))
    parts = []
    for name, rows in (("retained" if forgotten else "mean", ~lost), ("forgotten", lost)):
        if (rows & there).any():
            parts.append(f"{name} {matrix.diagonal()[rows & there].mean():.1%}")
    return f"accuracy: {', '.join(parts)}" if parts else ""


def _matrix(
    axes: Any, matrix: np.ndarray, words: Sequence[str], forgotten: Sequence[int], side: float
) -> None:
    from matplotlib.patches import Rectangle

    count = len(matrix)
    axes.imshow(matrix, cmap=style.diverging(), vmin=-1, vmax=1, interpolation="nearest")
    size = min(7.5, 52 * side / count)
    if count <= _NUMBERS:
        _numbers(axes, matrix)
    for row in np.flatnonzero(matrix.sum(1) == 0):
        axes.axhspan(row - 0.5, row + 0.5, color=_NOTHING, linewidth=0)
    line = 1.4 if count <= _NAMED else 0.9
    away = 0.5 + line / 2 * count / (72 * side)  # around the row, not over it
    for k in forgotten:
        axes.add_patch(
            Rectangle(
                (-away, k - away), count - 1 + 2 * away, 2 * away, fill=False, zorder=4,
                edgecolor=style.INK, linewidth=line, joinstyle="miter", clip_on=False,
            )
        )  # fmt: skip
    shown = _named(count, forgotten)
    size = max(size, 5.5) if count <= _NAMED else 6.0
    labels = [words[k] for k in shown]
    long = max(map(len, labels)) > 2
    axes.set_xticks(shown, labels, fontsize=size, rotation=90 if long else 0)
    axes.set_yticks(shown, labels, fontsize=size)
    axes.set_xlabel("predicted", fontsize=7, color=style.MUTED, labelpad=2)
    axes.set_ylabel("true", fontsize=7, color=style.MUTED, labelpad=2)
    axes.tick_params(length=0, pad=3)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        for k, tick in zip(shown, ticks, strict=True):
            tick.set(parse_math=False, fontweight="bold" if k in forgotten else "normal")
    style.hairlines(axes)


def _named(count: int, forgotten: Sequence[int]) -> list[int]:
    """Returns the classes to name: all, or every tenth and the forgotten ones."""
    if count <= _NAMED:
        return list(range(count))
    near = round(count / 30)  # so many rows are as high as a name
    tenth = [k for k in range(0, count, 10) if all(abs(k - f) >= near for f in forgotten)]
    return sorted({*tenth, *forgotten})


def _numbers(axes: Any, matrix: np.ndarray) -> None:
    for (row, column), share in np.ndenumerate(matrix):
        if share:
            colour = "white" if share > 0.6 else style.INK
            words = {"ha": "center", "va": "center", "fontsize": 6.5, "color": colour}
            axes.text(column, row, "<1" if share < 0.01 else f"{100 * share:.0f}", **words)


def _key(page: style.Page, framed: bool) -> None:
    """Draws the red half of the colours of signed numbers."""
    axes = page.axes(style.PAD + 0.1, page.height - 0.36, 1.4, 0.08)
    style.legend(axes, "", "100% of the row")
    axes.set_xlim(axes.get_xticks()[1], axes.get_xticks()[2])
    if framed:
        place = style.PAD + 1.8, page.height - 0.29
        page.text(*place, "framed: forgotten", fontsize=7, color=style.MUTED)
