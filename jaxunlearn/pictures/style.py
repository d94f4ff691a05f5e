"""What the pictures share: colours, scales, and arrays as NumPy can draw them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.errors import UserError

__all__ = ["INK", "MUTED", "as_numbers", "diverging", "legend", "pages", "short", "signed"]

INK, MUTED = "0.1", "0.42"

# Blue and red, told apart by colour-blind readers too; white lies exactly in the middle.
_STOPS = ("#08306b", "#2171b5", "#85bcdb", "#ffffff", "#fb9272", "#cb2a22", "#67000d")
_STEPS = 257  # odd: zero has a colour of its own


def diverging() -> Any:
    """The colour map of signed relevance: blue below zero, white at zero, red above."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("relevance", _STOPS, N=_STEPS)


def as_numbers(name: str, values: Any) -> np.ndarray:
    """``float64`` of the same shape, from arrays of any type (bfloat16 too).

    Raises:
      ValueError: naming the argument, if a value is not finite.
    """
    numbers = np.asarray(values).astype(np.float64)
    wrong = numbers.size - int(np.isfinite(numbers).sum())
    if wrong:
        raise ValueError(f"{name}: expected finite numbers, got {wrong} NaN or infinite ones")
    return numbers


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign and so many digits, ``+0.37``."""
    return f"{value:+.{digits}g}".replace("-", "−")  # noqa: RUF001


def short(key: str) -> tuple[str, str]:
    """A layer's name, and where it is: ``params/block1/fc1/kernel`` is ``fc1`` of ``block1``."""
    path, _, again = key.partition("#")
    parts = [part for part in path.split("/") if part not in ("params", "kernel", "weight", "w")]
    *within, name = parts or [path]
    return name + (f" #{again}" if again else ""), "/".join(within)


def legend(axes: Any, low: str, high: str) -> None:
    """Draws the colour map into axes as a bar, with words at both ends."""
    axes.imshow(np.linspace(-1, 1, _STEPS)[None], cmap=diverging(), aspect="auto")
    axes.set_xticks([0, _STEPS // 2, _STEPS - 1], [low, "0", high], fontsize=7, color=MUTED)
    axes.set_yticks([])
    axes.tick_params(length=0, pad=3)
    for words, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        words.set_horizontalalignment(side)
    for spine in axes.spines.values():
        spine.set_edgecolor("0.8")


@contextmanager
def pages(path: str | os.PathLike[str], width: float, height: float) -> Iterator[Any]:
    """A figure of a size in inches, saved as PNG on leaving.

    Raises:
      UserError: the file cannot be written there.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    yield figure
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")
    except OSError as error:
        raise UserError(
            f"path: expected a file that can be written, got {path}: {error}"
        ) from error


class Page:
    """A figure whose parts are placed in inches from the upper left corner."""

    def __init__(self, figure: Any, width: float, height: float) -> None:
        self.figure, self.width, self.height = figure, width, height

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """New axes."""
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Words as they are; a dollar sign begins no formula."""
        place = (left / self.width, 1 - top / self.height)
        self.figure.text(*place, words, parse_math=False, **style)

    def image(
        self, left: float, top: float, side: float, picture: np.ndarray, **style: Any
    ) -> None:
        """A framed square with one field a pixel."""
        axes = self.axes(left, top, side, side)
        axes.imshow(picture, interpolation="nearest", **style)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(edgecolor="0.8", linewidth=0.6)
