"""The parts that pictures share: pages, colours, lines, and arguments that are checked.

Lengths on a page are inches, from its upper left corner.
"""

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np

from jaxunlearn.core.errors import UserError
from jaxunlearn.core.files import write_atomic

Item = TypeVar("Item")
Save = TypeVar("Save", bound=Callable[..., None])

INCH = 160
"""Dots of an inch."""

PAD, TITLE = 0.25, 0.35
"""The margin of a page, and the height of its title."""

INK, MUTED = "0.1", "0.42"

# Okabe and Ito's colours, told apart by colour-blind readers too.
TARGET, DONOR, FRAME = "#D55E00", "#0072B2", "#E69F00"

# The same, and as many dashes as no other number divides: 28 lines before two are alike,
# and the first four are told apart in black and white too
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))

# Blue and red, told apart by colour-blind readers too; white lies exactly in the middle.
_STOPS = ("#08306b", "#2171b5", "#85bcdb", "#ffffff", "#fb9272", "#cb2a22", "#67000d")
_STEPS = 257  # odd: zero has a colour of its own
_SHARE = 0.995


class Fields(NamedTuple):
    """Place of an image on a page, and the size of its pixels, in inches."""

    left: float
    top: float
    size: float


class Page:
    """A figure whose parts are placed in inches from the upper left corner."""

    def __init__(self, figure: Any, width: float, height: float) -> None:
        self.figure, self.width, self.height = figure, width, height

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Returns new axes."""
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Writes words as they are; a dollar sign begins no formula."""
        place = (left / self.width, 1 - top / self.height)
        self.figure.text(*place, words, parse_math=False, **style)

    def dots(self, left: float, top: float, canvas: np.ndarray) -> None:
        """Puts ``uint8 [h, w, 3]`` on the page, a field a dot, at the dot nearest to a place."""
        # axes instead, with their ticks, would take a hundred times as long
        bottom = round(self.height * INCH) - round(top * INCH) - len(canvas)
        self.figure.figimage(canvas, round(left * INCH), bottom, origin="upper")

    def image(self, left: float, top: float, side: float, picture: np.ndarray) -> Fields:
        """Draws an image into the middle of a square, one field a pixel, within a hairline.

        Args:
          left, top, side: of the square.
          picture: ``[H, W, 3]`` of 0 to 1.

        Returns:
          The place of the image, for :meth:`frame`.
        """
        size = side / max(picture.shape[:2])
        high, wide = (size * pixels for pixels in picture.shape[:2])
        left, top = left + (side - wide) / 2, top + (side - high) / 2
        down, across = (max(1, round(length * INCH)) for length in (high, wide))
        rows, columns = (
            ((np.arange(dots) + 0.5) * pixels / dots).astype(int)
            for dots, pixels in zip((down, across), picture.shape[:2], strict=True)
        )
        canvas = np.rint(255 * picture).astype(np.uint8)[rows[:, None], columns]
        self.dots(left, top, canvas)
        self._rectangle(left, top, wide, high, edgecolor="0.8", linewidth=0.6)
        return Fields(left, top, size)

    def frame(self, fields: Fields, corners: np.ndarray, patch: int, line: float = 1.3) -> None:
        """Frames patches of an image.

        Args:
          fields: of the image.
          corners: ``int [c, 2]``, row and column of each patch's upper left pixel.
          patch: pixels of a side.
          line: width of the frame in points.
        """
        side = patch * fields.size
        for row, column in corners:
            left, top = fields.left + column * fields.size, fields.top + row * fields.size
            # dark below bright: seen on any image
            for colour, width in (("black", 2 * line), (FRAME, line)):
                self._rectangle(left, top, side, side, edgecolor=colour, linewidth=width, zorder=5)

    def _rectangle(self, left: float, top: float, wide: float, high: float, **style: Any) -> None:
        from matplotlib.patches import Rectangle

        place = (left, self.height - top - high)
        inches = self.figure.dpi_scale_trans
        self.figure.add_artist(
            Rectangle(place, wide, high, fill=False, joinstyle="miter", transform=inches, **style)
        )


def picture(save: Save) -> Save:
    """Makes the function of a picture look at its path first, before any work.

    Arguments in another order are then a ``TypeError`` that says so.
    """

    @wraps(save)
    def checked(*args: Any, **options: Any) -> None:
        given = args[0] if args else options.get("path", "")
        if not isinstance(given, str | os.PathLike):
            raise TypeError(
                f"path: expected the path of a PNG, got {type(given).__name__}; "
                f"{save.__name__}(path, ...)"
            )
        save(*args, **options)

    return cast(Save, checked)


@contextmanager
def page(
    path: str | os.PathLike[str], width: float, height: float, title: str | None, pad: float = PAD
) -> Iterator[Page]:
    """Opens a page, wide enough for its title, and saves it as PNG on leaving.

    Args:
      path: of the PNG; folders that it needs are made, an existing file is replaced.
      width, height: in inches; made whole numbers of dots.
      title: written above all.
      pad: left of the title.

    Raises:
      UserError: the file cannot be written there.
    """
    from matplotlib.figure import Figure

    width = max(width, 2 * pad + 0.1 * len(title or ""))
    width, height = (math.ceil(round(side * INCH, 3)) / INCH for side in (width, height))
    figure = Figure(figsize=(width, height), dpi=INCH, facecolor="white")
    drawn = Page(figure, width, height)
    if title:
        drawn.text(pad, 0.32, title, fontsize=11, fontweight="bold", color=INK)
    yield drawn
    try:
        write_atomic(path, lambda file: figure.savefig(file, format="png"))
    except OSError as error:
        raise UserError(
            f"path: expected a file that can be written, got {path}: {error}"
        ) from error


def hairlines(axes: Any, sides: Collection[str] = ("left", "right", "top", "bottom")) -> None:
    """Draws the frame of axes pale and thin, and only on some sides."""
    for side, spine in axes.spines.items():
        spine.set(edgecolor="0.8", linewidth=0.6, visible=side in sides)


def plain(axes: Any) -> None:
    """Takes from a chart what is not read: half of its frame, long ticks, powers of ten."""
    axes.locator_params(axis="y", nbins=4)
    # no power of ten above the axis, where other words are
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.tick_params(labelsize=7, labelcolor=MUTED, color="0.8", length=2, pad=2)
    hairlines(axes, ("left", "bottom"))


def line_of(number: int) -> dict[str, Any]:
    """Returns colour and dashes of the n-th line, the same in all charts of a picture."""
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _DASHES[number % len(_DASHES)]}


def sample(page: Page, left: float, middle: float, wide: float, number: int, **style: Any) -> None:
    """Draws a piece of the n-th line, as legends have it."""
    box = page.axes(left, middle - 0.05, wide, 0.1)
    box.plot([0, 0.5, 1], [0, 0, 0], **line_of(number), **style)
    box.set(xlim=(0, 1), ylim=(-1, 1))
    box.set_axis_off()


def diverging() -> Any:
    """Returns the colour map of signed relevance: blue below zero, white at zero, red above."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("relevance", _STOPS, N=_STEPS)


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


def scale_of(values: np.ndarray) -> float:
    """Returns what is drawn in full colour: the 99.5 % quantile of the magnitudes.

    The few values beyond, which would leave all else white, saturate. The largest
    magnitude if the quantile is zero, and 1 if all values are.
    """
    magnitudes = np.abs(values)
    if not magnitudes.size:
        return 1.0
    return float(np.quantile(magnitudes, _SHARE)) or float(magnitudes.max()) or 1.0


def overlay(picture: np.ndarray, heat: np.ndarray, scale: float) -> np.ndarray:
    """Returns ``[H, W, 3]``: the image in pale grey, under the colours of its heat map.

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


def to_rgb(images: jax.typing.ArrayLike) -> np.ndarray:
    """Returns images as ``float64 [B, H, W, 3]`` of 0 to 1.

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


def as_numbers(name: str, values: Any) -> np.ndarray:
    """Returns ``float64`` of the same shape, from arrays of any type (bfloat16 too).

    Raises:
      ValueError: naming the argument, if a value is not finite.
    """
    numbers = np.asarray(values).astype(np.float64)
    wrong = numbers.size - int(np.isfinite(numbers).sum())
    if wrong:
        raise ValueError(f"{name}: expected finite numbers, got {wrong} NaN or infinite ones")
    return numbers


def shaped(name: str, values: Any, shape: Sequence[int | str], like: str) -> np.ndarray:
    """Returns ``float64``, checked: finite, and of a shape in which a word stands for any size.

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
    """Returns ``int``, checked: integers of 0 to ``most``, and of a shape.

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


def known(name: str, given: Collection[str], there: Collection[str]) -> None:
    """Checks that all names that are given are names of something.

    Raises:
      ValueError: naming the argument, and the names that there are.
    """
    for one in given:
        if one not in there:
            raise ValueError(f"{name}: expected some of {', '.join(there)}, got {one!r}")


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """Returns at most so many items, evenly from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[place] for place in places]


def signed(value: float, digits: int = 2) -> str:
    """Returns a number with its sign and so many digits, ``+0.37``."""
    return f"{value:+.{digits}g}".replace("-", "−")  # noqa: RUF001


def short(key: str) -> tuple[str, str]:
    """Returns a layer's name and its place: ``params/block1/fc1/kernel`` is ``fc1, block1``."""
    path, _, again = key.partition("#")
    parts = [part for part in path.split("/") if part not in ("params", "kernel", "weight", "w")]
    *within, name = parts or [path]
    return name + (f" #{again}" if again else ""), "/".join(within)


def cut(words: str, length: int) -> str:
    """Returns at most so many letters; an ellipsis stands for what is left out."""
    return words if len(words) <= length else words[: length - 1] + "…"


def class_word(label: int, class_names: Sequence[str] | None) -> str:
    """Returns the name of a class, or its number."""
    return str(label) if class_names is None else class_names[label]
