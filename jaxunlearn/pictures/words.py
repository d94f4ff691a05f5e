"""Texts whose words are coloured by their scores, and the words of a topic as bars."""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn.pictures import style

Scored = Sequence[tuple[str, float]]
"""Words in their order, with their scores."""

# inches
_LETTER, _LINE, _GAP = 0.0753, 0.21, 0.16
_BARS, _BESIDE, _ROW = 1.7, 0.35, 0.2
_SIZE = 9  # points; a letter of the font is .602 as wide
_COLUMNS, _SHOWN, _LETTERS, _TEXTS = 84, 16, 20, 12


@style.picture
def save_words(
    path: str | os.PathLike[str],
    texts: Sequence[Scored],
    *,
    ranking: Scored = (),
    title: str | None = None,
) -> None:
    """Draws texts with their words coloured by score, and the strongest words, as PNG.

    Red speaks for the text and blue against it, on one scale for all; what has no score is
    white. Beside them the first 16 words of a ranking as bars. :func:`words_text` says the same
    in letters.

    Args:
      path: of the PNG; an existing file is replaced.
      texts: words and their scores; the first 12 texts are drawn.
      ranking: words by falling score.
      title: of the picture.

    Raises:
      ValueError: no texts, a score that is not finite.
      UserError: the file cannot be written.

    Source: own; the scores are those of arXiv 2405.15662.
    """
    lines = [_lines(text) for text in _checked(texts, ranking)[:_TEXTS]]
    scale = style.scale_of(
        np.array([piece.score for text in lines for one in text for piece in one])
    )
    shown = [(style.cut(word, _LETTERS), float(score)) for word, score in ranking[:_SHOWN]]
    top = style.PAD + (style.TITLE if title else 0.0)
    high = sum(len(text) * _LINE + _GAP for text in lines)
    width = 2 * style.PAD + _COLUMNS * _LETTER
    names = _LETTER * max((len(word) for word, _ in shown), default=0)
    if shown:
        width += _BESIDE + names + _BARS
    height = top + max(high, len(shown) * _ROW) + style.PAD
    with style.page(path, width, height, title) as page:
        at = top
        for text in lines:
            for line in text:
                for piece in line:
                    _draw(page, style.PAD + piece.column * _LETTER, at + _LINE / 2, piece, scale)
                at += _LINE
            at += _GAP
        if shown:
            _draw_bars(page, style.PAD + _COLUMNS * _LETTER + _BESIDE + names, top, shown)


def words_text(texts: Sequence[Scored], ranking: Scored = ()) -> str:
    """Returns what :func:`save_words` draws, in Markdown.

    The three strongest words of a text are bold and have their scores behind them.
    """
    parts = []
    for text in _checked(texts, ranking):
        order = sorted((-float(score), place) for place, (_, score) in enumerate(text) if score > 0)
        best = {place for _, place in order[:3]}
        parts.append(
            "- "
            + _joined(
                [
                    f"**{word}** ({style.signed(float(score))})" if place in best else word
                    for place, (word, score) in enumerate(text)
                ]
            )
        )
    if ranking:
        parts.append("\nStrongest words: " + ", ".join(f"{w} {float(s):.3g}" for w, s in ranking))
    return "\n".join(parts) + "\n"


class _Piece(NamedTuple):
    """A word in a line."""

    word: str
    score: float
    column: int


def _checked(texts: Sequence[Scored], ranking: Scored) -> Sequence[Scored]:
    if not texts:
        raise ValueError("texts: expected at least one text, got none")
    for name, given in (("texts", [row for text in texts for row in text]), ("ranking", ranking)):
        style.as_numbers(name, [score for _, score in given])
    return texts


def joins(word: str) -> bool:
    """Tells that a word follows the one before without a space."""
    return re.match(r"[.,;:!?)\]}%]|['\u2019]\w", word) is not None


def _joined(words: Sequence[str]) -> str:
    return "".join(w if joins(w) or not n else f" {w}" for n, w in enumerate(words))


def _lines(text: Scored) -> list[list[_Piece]]:
    """Breaks a text into lines of at most so many letters."""
    lines: list[list[_Piece]] = [[]]
    column = 0
    for full, score in text:
        word = style.cut(full, _COLUMNS)
        start = column + (column > 0 and not joins(word))
        # a full stop begins no line, and stands in the margin where it must
        if start + len(word) > _COLUMNS and not (joins(word) and len(word) == 1):
            lines.append([])
            start = 0
        lines[-1].append(_Piece(word, float(score), start))
        column = start + len(word)
    return lines


def _draw(page: style.Page, left: float, middle: float, piece: _Piece, scale: float) -> None:
    """Writes a word on its colour."""
    share = float(np.clip(piece.score / scale, -1, 1))
    colour = style.diverging()((share + 1) / 2)[:3]
    light = float(np.dot(colour, (0.3, 0.59, 0.11)))
    box = {"facecolor": colour, "edgecolor": "none", "pad": 1.2} if share else None
    page.text(
        left, middle, piece.word, fontsize=_SIZE, family="monospace", va="center",
        color=style.INK if light > 0.5 else "white", bbox=box,
    )  # fmt: skip


def _draw_bars(page: style.Page, left: float, top: float, shown: Scored) -> None:
    """Draws the words of a ranking with bars right of them."""
    axes = page.axes(left, top, _BARS, len(shown) * _ROW)
    scores = np.array([score for _, score in shown])
    most = float(np.abs(scores).max()) or 1.0
    places = np.arange(len(shown))
    axes.barh(places, scores, height=0.6, color=style.TARGET, linewidth=0)
    for place, (word, score) in enumerate(shown):
        middle = top + (place + 0.5) * _ROW
        page.text(left - 0.08, middle, word, fontsize=8.5, ha="right", va="center", color=style.INK)
        axes.text(
            score + 0.03 * most, place, f"{score:.3g}", fontsize=6.5, va="center",
            color=style.MUTED, parse_math=False,
        )  # fmt: skip
    axes.set(xlim=(min(0.0, float(scores.min())), 1.25 * most), ylim=(len(shown) - 0.5, -0.5))
    axes.set_axis_off()
