"""What the pictures of concepts share: colours of roles, frames, and checks of arguments."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxunlearn.pictures.style import INK, Page, as_numbers

__all__ = [
    "DONOR",
    "FRAME",
    "TARGET",
    "class_word",
    "cut",
    "framed",
    "headline",
    "shaped",
    "titled",
    "whole",
]

# Okabe and Ito's colours, told apart by colour-blind readers too.
TARGET, DONOR, FRAME = "#D55E00", "#0072B2", "#E69F00"


def shaped(name: str, values: Any, shape: Sequence[int | str], like: str) -> np.ndarray:
    """``float64``, checked: finite, and of a shape in which a word stands for any size.

    Raises:
      ValueError: naming the argument, and the one whose shape it must have.
    """
    numbers = as_numbers(name, values)
    fits = len(shape) == numbers.ndim and all(
        isinstance(wanted, str) or wanted == found
        for wanted, found in zip(shape, numbers.shape, strict=True)
    )
    if not fits:
        words = ", ".join(map(str, shape))
        raise ValueError(f"{name}: expected shape [{words}], as {like}, got {list(numbers.shape)}")
    return numbers


def whole(
    name: str, values: Any, shape: Sequence[int | str], like: str, most: int | None = None
) -> np.ndarray:
    """``int``, checked: integers of 0 to ``most``, and of a shape.

    Raises:
      ValueError: naming the argument.
    """
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name}: expected integers, got {array.dtype}")
    numbers = shaped(name, array, shape, like).astype(int)
    if numbers.size and (numbers.min() < 0 or (most is not None and numbers.max() > most)):
        wanted = "0 or more" if most is None else f"0 to {most}"
        raise ValueError(f"{name}: expected {wanted}, got {numbers.min()} to {numbers.max()}")
    return numbers


def cut(words: str, length: int) -> str:
    """At most so many letters; an ellipsis stands for what is left out."""
    return words if len(words) <= length else words[: length - 1] + "…"


def class_word(label: int, class_names: Sequence[str] | None) -> str:
    """The name of a class, or its number."""
    return str(label) if class_names is None else class_names[label]


def titled(width: float, title: str | None, pad: float) -> float:
    """The width of a page in inches, made large enough for its title."""
    return max(width, 2 * pad + 0.1 * len(title or ""))


def headline(page: Page, title: str | None, pad: float) -> None:
    """The title of a page, if it has one."""
    if title:
        page.text(pad, 0.32, title, fontsize=11, fontweight="bold", color=INK)


def framed(
    page: Page,
    place: tuple[float, float, float],
    picture: np.ndarray,
    corners: np.ndarray | None,
    patch: int,
    line: float = 1.3,
) -> None:
    """An image with frames around its patches.

    Args:
      page: to draw on.
      place: left, top and side in inches.
      picture: ``[H, W, 3]`` of 0 to 1.
      corners: ``int [c, 2]``, row and column of each patch's upper left pixel, or ``None``.
      patch: pixels of a side.
      line: width of the frame in points.
    """
    from matplotlib.patches import Rectangle

    page.image(*place, picture)
    axes = page.figure.axes[-1]
    for row, column in corners if corners is not None else ():
        # dark below bright: seen on any image
        for colour, width in (("black", 2 * line), (FRAME, line)):
            axes.add_patch(
                Rectangle(
                    (column - 0.5, row - 0.5), patch, patch, fill=False, edgecolor=colour,
                    linewidth=width, joinstyle="miter", clip_on=False, zorder=5,
                )
            )  # fmt: skip
