"""The scores of a class's concepts before and after unlearning, as bars."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxunlearn.pictures.marks import DONOR, TARGET, cut, headline, shaped, titled
from jaxunlearn.pictures.style import INK, MUTED, Page, pages, signed

__all__ = ["order_of", "save_concepts"]

# inches
_PAD, _LETTER, _CHART, _ROW, _TOP, _TITLE, _FOOT = 0.25, 0.074, 4.6, 0.36, 0.5, 0.34, 0.2
_SHOWN, _LETTERS = 16, 40
_BAR, _APART = 0.3, 0.16  # of a row
_COLOURS = {"target": TARGET, "donor": DONOR}


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
    for name in roles:
        if name not in names:
            raise ValueError(f"chosen: expected some of {', '.join(names)}, got {name!r}")
    scores = [
        shaped(n, v, [len(names)], "names") for n, v in (("before", before), ("after", after))
    ]
    order = order_of(names, scores[0], roles)
    left = _PAD + 0.15 + _LETTER * max(18, *(len(cut(names[k], _LETTERS)) for k in order))
    top = _TOP + (_TITLE if title else 0.0)
    width, height = titled(left + _CHART + _PAD, title, _PAD), top + len(order) * _ROW + _FOOT
    with pages(path, width, height) as figure:
        page = Page(figure, width, height)
        headline(page, title, _PAD)
        _head(page, left, top, f"{len(order)} of {len(names)} concepts")
        axes = page.axes(left, top, _CHART, len(order) * _ROW)
        _bars(axes, np.stack(scores)[:, order], [roles.get(names[k], "") for k in order])
        for row, k in enumerate(order):
            _name(page, left - 0.1, top + (row + 0.5) * _ROW, names[k], roles.get(names[k], ""))


def order_of(names: Sequence[str], before: np.ndarray, chosen: Mapping[str, str]) -> np.ndarray:
    """``int [n]``: which concepts are drawn, by falling score; equal ones in their own order."""
    order = np.argsort(-before, kind="stable")
    return np.array([k for rank, k in enumerate(order) if rank < _SHOWN or names[k] in chosen])


def _head(page: Page, left: float, top: float, about: str) -> None:
    """What the bars mean."""
    style: dict[str, Any] = {"fontsize": 8, "va": "center"}
    page.text(left - 0.1, top - 0.14, about, ha="right", color=MUTED, **style)
    for start, words, opacity in ((0.0, "before unlearning", 0.4), (1.5, "after", 1.0)):
        box = page.axes(left + start, top - 0.19, 0.22, 0.1)
        box.set_axis_off()
        box.axhspan(0, 1, color=INK, alpha=opacity, linewidth=0)
        box.set(xlim=(0, 1), ylim=(0, 1))
        page.text(left + start + 0.3, top - 0.14, words, color=INK, **style)


def _bars(axes: Any, scores: np.ndarray, roles: Sequence[str]) -> None:
    low, high = min(0.0, float(scores.min())), max(0.0, float(scores.max()))
    room = (high - low) or 1.0
    places = np.arange(scores.shape[1])
    colours = [_COLOURS.get(role, INK) for role in roles]
    for values, shift, opacity in ((scores[0], -_APART, 0.4), (scores[1], _APART, 1.0)):
        axes.barh(places + shift, values, height=_BAR, color=colours, alpha=opacity, linewidth=0)
        for place, value in zip(places + shift, values, strict=True):
            step, side = (0.012, "left") if value >= 0 else (-0.012, "right")
            axes.text(
                value + step * room, place, signed(value), ha=side, va="center",
                fontsize=6.2, color=MUTED, parse_math=False,
            )  # fmt: skip
    axes.axvline(0, color="0.6", linewidth=0.6)
    for edge in places[1:]:
        axes.axhline(edge - 0.5, color="0.93", linewidth=0.6, zorder=0)
    axes.set(
        xlim=(low - (0.12 * room if low < 0 else 0.0), high + 0.12 * room),
        ylim=(len(places) - 0.5, -0.5),
    )
    axes.set_axis_off()


def _name(page: Page, right: float, middle: float, name: str, role: str) -> None:
    colour = _COLOURS.get(role, INK)
    style: dict[str, Any] = {"ha": "right", "va": "center", "color": colour}
    weight = "bold" if role else "normal"
    up = 0.07 if role else 0.0
    page.text(right, middle - up, cut(name, _LETTERS), fontsize=8.5, fontweight=weight, **style)
    if role:
        page.text(right, middle + up, role, fontsize=6.5, **style)
