"""Pictures of texts: a word has the colour of its score, and the same stands in letters."""

import numpy as np
import pytest

from jaxunlearn.pictures import style, words
from tests.pictures.reading import DPI, Recorder, pixels


def test_words_have_the_colours_of_their_scores(tmp_path):
    text = [("for", 1.0), ("none", 0.0), ("against", -1.0)]
    words.save_words(tmp_path / "words.png", [text])
    shown = pixels(tmp_path / "words.png")
    row = shown[round(DPI * (style.PAD + 0.02)) :][: round(DPI * words._LINE)]

    def part(first, letters):
        left = style.PAD + first * words._LETTER
        piece = row[:, round(DPI * left) : round(DPI * (left + letters * words._LETTER))]
        return piece.reshape(-1, 3).mean(axis=0)

    red, plain, blue = part(0, 3), part(4, 4), part(9, 7)
    assert red[0] > red[2] + 30
    assert blue[2] > blue[0] + 30
    assert np.ptp(plain) < 2


@pytest.mark.usefixtures("coarse")
def test_long_texts_go_on_in_lines_and_rankings_stand_beside(tmp_path, monkeypatch):
    text = [("word", 0.1)] * 40 + [(".", 0.0)]
    lines = words._lines(text)
    assert all(line[-1].column + 4 <= words._COLUMNS for line in lines)
    assert sum(map(len, lines)) == 41
    assert lines[-1][-1].column == lines[-1][-2].column + 4, "a full stop follows its word"
    full = words._lines([("w" * words._COLUMNS, 0.0), (".", 0.0), ("next", 0.0)])
    assert [len(line) for line in full] == [2, 1]
    seen = Recorder(monkeypatch)
    words.save_words(
        tmp_path / "a.png", [text] * 13, ranking=[(f"w{k}", 1 / k) for k in range(1, 30)]
    )
    assert seen.words.count("word") == 12 * 40
    assert [word for word in seen.words if word.startswith("w") and word != "word"] == [
        f"w{k}" for k in range(1, 17)
    ]  # fmt: skip


def test_the_same_in_letters():
    text = [("Ada", 0.25), ("Byrne", 2.0), ("'s", 0.0), ("book", -1.0), (".", 0.0)]
    assert words.words_text([text], [("byrne", 1.0)]) == (
        "- **Ada** (+0.25) **Byrne** (+2)'s book.\n\nStrongest words: byrne 1\n"
    )


def test_mistakes_in_words_are_named(tmp_path):
    with pytest.raises(ValueError, match="texts: expected at least one text, got none"):
        words.save_words(tmp_path / "a.png", [])
    with pytest.raises(ValueError, match="ranking: expected finite numbers, got 1 NaN"):
        words.save_words(tmp_path / "a.png", [[("a", 1.0)]], ranking=[("a", np.nan)])
    assert not (tmp_path / "a.png").exists()
