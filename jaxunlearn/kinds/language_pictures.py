"""Pictures that a run on language models draws."""

from pathlib import Path

from jaxunlearn import pictures
from jaxunlearn.core.files import write_text
from jaxunlearn.kinds import View
from jaxunlearn.methods.language.concept_words import Found
from jaxunlearn.pictures.words import words_text


def draw_words(path: Path, view: View, label: str) -> None:
    """Draws the words that answers to be forgotten are due to, and writes them beside it."""
    found: Found | None = view.methods[label].prepared()
    if found is None or not found.ranking:
        return
    title = "original: what the answers are due to"
    pictures.save_words(path, found.scored, ranking=found.ranking, title=title)
    write_text(path.with_suffix(".md"), words_text(found.scored, found.ranking))
