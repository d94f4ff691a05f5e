"""What the pictures share: colours, scales, and arrays as NumPy can draw them.

What the pictures of concepts share: colours of roles, frames, and checks of arguments.

Images and heat maps as arrays of colours.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxunlearn.core.errors import UserError

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


_SHARE = 0.995


def scale_of(values: np.ndarray) -> float:
    """What is drawn in full colour: the 99.5 % quantile of the magnitudes.

    The few values beyond, which would leave all else white, saturate. The largest
    magnitude if the quantile is zero, and 1 if all values are.
    """
    magnitudes = np.abs(values)
    if not magnitudes.size:
        return 1.0
    return float(np.quantile(magnitudes, _SHARE)) or float(magnitudes.max()) or 1.0


def to_rgb(images: jax.typing.ArrayLike) -> np.ndarray:
    """``float64 [B, H, W, 3]`` of 0 to 1.

    Raises:
      ValueError: not ``[B, H, W]`` or ``[B, H, W, 1 or 3]``, no image, NaN.
    """
    integers = np.issubdtype(np.asarray(images).dtype, np.integer)
    values = as_numbers("images", images)
    if values.ndim == 3:
        values = values[..., None]
    if values.ndim != 4 or values.shape[-1] not in (1, 3) or not values.size:
        raise ValueError(
            f"images: expected [B, H, W], [B, H, W, 1] or [B, H, W, 3], got {np.shape(images)}"
        )
    low, high = values.min(), values.max()
    if integers and low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    values = (values - low) / ((high - low) or 1.0)
    return np.broadcast_to(values, (*values.shape[:3], 3))


def overlay(picture: np.ndarray, heat: np.ndarray, scale: float) -> np.ndarray:
    """``[H, W, 3]``: the image in pale grey, under the colours of its heat map.

    The more relevant a pixel is, the less of the image shows:
    ``(1 - a) grey + a colour`` with ``a = min(|R| / scale, 1)^.7``.

    Args:
      picture: ``[H, W, 3]`` of 0 to 1.
      heat: ``[H, W]``.
      scale: what is drawn in full colour.
    """
    share = np.clip(heat / scale, -1, 1)
    colour = diverging()((share + 1) / 2)[..., :3]
    grey = 1 - 0.32 * (1 - picture.mean(-1, keepdims=True))
    opacity = np.abs(share)[..., None] ** 0.7
    mixed: np.ndarray = (1 - opacity) * grey + opacity * colour
    return mixed
