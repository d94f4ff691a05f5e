"""Examples sorted by how exposed they are under several models."""

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxunlearn.core.errors import expect_counts
from jaxunlearn.pictures import style

# inches
_CELL, _NEAR, _GAP, _ABOVE, _HEAD, _FOOT = 0.8, 0.06, 0.35, 0.3, 0.3, 0.3
_LETTERS = 11

MOST, LEAST = 8, 3
"""Images of a model that are drawn: so many of the most exposed, so many of the least."""

TOLD, _SIDE = 5, 64
"""Examples of a model that a page shows, and the longer side of their images in dots."""


@style.picture
def save_exposed(
    path: str | os.PathLike[str],
    images: jax.typing.ArrayLike,
    values: Mapping[str, jax.typing.ArrayLike],
    *,
    largest: bool = True,
    most: int = MOST,
    least: int = LEAST,
    labels: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    words: str = "value",
    title: str | None = None,
) -> None:
    """Draws the images that a value of each example says most of, a row a model, as PNG.

    On the left those that are most exposed, the first first, on the right the least, the last last;
    the value, and the class where labels are given, stand above an image. Such values are U-LiRA's
    accuracy and KLoM, where large is exposed, or completeness, where small is.

    Args:
      path: of the PNG; an existing file is replaced.
      images: ``[M, H, W]``, ``[M, H, W, 1]`` or ``[M, H, W, 3]``, values as for
        :func:`jaxunlearn.pictures.save_heatmaps`.
      values: name of a model -> ``[M]``.
      largest: whether the largest values are the most exposed.
      most, least: images on the left and on the right, fewer where there are fewer.
      labels: ``int [M]``.
      class_names: of the labels; without them, numbers.
      words: what the values are, written below.
      title: of the picture.

    Raises:
      ValueError: shapes that do not fit, no models, NaN.
      UserError: the file cannot be written.

    Source: own.
    """
    shown = style.to_rgb(images)
    found = _checked(values, len(shown), most)
    names = [""] * len(shown)
    if labels is not None:
        classes = style.whole("labels", labels, [len(shown)], "images")
        names = [style.class_word(label, class_names) for label in classes]
    orders = {name: exposure_order(own, largest, most, least) for name, own in found.items()}
    left, right = (
        max(len(side) for side in column) for column in zip(*orders.values(), strict=True)
    )
    apart = _GAP if right else 0.0
    width = 2 * style.PAD + (left + right) * (_CELL + _NEAR) + apart
    top, step = 0.1 + (style.TITLE if title else 0.0), _HEAD + _ABOVE + _CELL
    with style.page(path, width, top + len(found) * step + _FOOT, title) as page:
        for row, (name, (first, last)) in enumerate(orders.items()):
            upper = top + row * step
            bold = {"fontsize": 9.5, "fontweight": "bold", "color": style.INK}
            page.text(style.PAD, upper + 0.22, style.cut(name, 40), **bold)
            beyond = style.PAD + left * (_CELL + _NEAR) + apart
            for start, side in ((style.PAD, first), (beyond, last)):
                for place, example in enumerate(side):
                    across, value = start + place * (_CELL + _NEAR), found[name][example]
                    _image(page, across, upper + _HEAD, shown[example], value, names[example])
        ends = f"left: most exposed, by {words}" + ("; right: least" if right else "")
        page.text(style.PAD, page.height - 0.12, ends, fontsize=7.5, color=style.MUTED)


def exposure_order(
    values: np.ndarray, largest: bool = True, most: int = MOST, least: int = LEAST
) -> tuple[np.ndarray, np.ndarray]:
    """Returns places ``int`` of the most exposed examples, and of the least, without the former."""
    order = np.argsort(-values if largest else values, kind="stable")
    return order[:most], order[most:][-least:] if least else order[:0]


def exposed_text(
    values: Mapping[str, np.ndarray], labels: Sequence[str], words: str, largest: bool = True
) -> str:
    """Returns the same in words: a Markdown table of the most exposed examples of each model.

    Args:
      values: name of a model -> ``[M]``.
      labels: ``M`` names of classes.
      words: what the values are.
    """
    lines = [
        f"| model | place in the forget set | class | {words} |",
        "| :--- | ---: | :--- | ---: |",
    ]
    for name, own in values.items():
        for place in exposure_order(np.asarray(own), largest)[0]:
            lines.append(f"| {name} | {place} | {labels[place]} | {own[place]:.3f} |")
    return "\n".join([*lines, ""])


def describe_exposed(
    values: Mapping[str, np.ndarray], positions: np.ndarray, words: str,
    show: Callable[[int], Mapping[str, Any]], *, largest: bool = True,
    mark: Callable[[str, int], list[list[Any]]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Returns what a page shows of the most exposed examples of each model.

    Args:
      values: name of a model -> ``[M]``.
      positions: ``int [M]``, in the data set.
      words: what the values are.
      show: place -> ``"name"`` of its class or topic, and ``"image"``, see :func:`to_thumbnail`,
        or ``"text"`` before what is marked.
      largest: whether the largest values are the most exposed.
      mark: model, place -> words with their scores, those of a text.

    Returns:
      ``{"words", "examples": {place: {"position", "name", ...}}, "models": {model: {"median",
      "first": [{"place", "value", "marked"}]}}}``; models with values that are not finite are
      left out.
    """
    sound = {name: own for name, own in values.items() if len(own) and np.isfinite(own).all()}
    models, places = {}, set()
    for name, own in sound.items():
        first = exposure_order(own, largest, TOLD, 0)[0].tolist()
        places |= set(first)
        models[name] = {
            "median": round(float(np.median(own)), 6),
            "first": [
                {"place": n, "value": round(float(own[n]), 6),
                 "marked": mark(name, n) if mark else []}
                for n in first
            ],
        }  # fmt: skip
    shown = {str(n): {"position": int(positions[n]), **show(n)} for n in sorted(places)}
    return {"words": words, "examples": shown, "models": models}


def to_thumbnail(image: np.ndarray) -> str:
    """Returns an image ``float [H, W, 3]`` of 0 to 1 as a small one, a data URL."""
    from PIL import Image

    made = Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8))
    made.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    made.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _checked(
    values: Mapping[str, jax.typing.ArrayLike], count: int, most: int
) -> dict[str, np.ndarray]:
    expect_counts(most=most)
    if not values:
        raise ValueError("values: expected at least one model, got none")
    return {
        name: style.shaped(f"values[{name!r}]", own, [count], "images")
        for name, own in values.items()
    }


def _image(
    page: style.Page, left: float, top: float, picture: np.ndarray, value: float, label: str
) -> None:
    about = {"fontsize": 6.5, "ha": "center", "color": style.MUTED}
    middle = left + _CELL / 2
    page.text(middle, top + 0.13, style.cut(label, _LETTERS), **about)
    page.text(middle, top + _ABOVE - 0.04, f"{value:.3g}", **about)
    page.image(left, top + _ABOVE, _CELL, picture)
