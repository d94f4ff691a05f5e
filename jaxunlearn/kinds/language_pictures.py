"""Pictures that a run on language models draws: losses, exposed answers, words that made them.

Each is a function of the file to write, the run and, of a method's picture, its label.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import pictures
from jaxunlearn.core.files import write_text
from jaxunlearn.data.sets import num_examples
from jaxunlearn.kinds import View
from jaxunlearn.language.words import Word, read_answers
from jaxunlearn.methods.language.concept_words import Found
from jaxunlearn.metrics.language import probability
from jaxunlearn.metrics.language_evidence import LanguageEvidence
from jaxunlearn.metrics.registry import METRICS, Missing
from jaxunlearn.pictures.exposed import describe_exposed
from jaxunlearn.pictures.scores import describe_scores
from jaxunlearn.pictures.words import joins, words_text


def draw_words(path: Path, view: View, label: str) -> None:
    """Draws the words that answers to be forgotten are due to, and writes them beside it."""
    found: Found | None = view.methods[label].prepared()
    if found is None or not found.ranking:
        return
    title = "original: what the answers are due to"
    pictures.save_words(path, found.scored, ranking=found.ranking, title=title)
    write_text(path.with_suffix(".md"), words_text(found.scored, found.ranking))


def draw_losses(path: Path, view: View, label: str) -> None:
    """Writes the losses of forgotten answers and of those that attacks set beside them."""
    try:
        held_out = view.observe("original").held_out
    except Missing:
        return
    seen = _observed(view)
    members, others = "forget (trained on)", "test (never seen)"
    losses = {
        name: {
            words: own[~np.isnan(own)]
            for words, own in ((members, one.losses("forget")), (others, one.losses(held_out)))
        }
        for name, one in seen.items()
    }
    about = "a small loss is taken for a sign of training; a retrained model is the ideal"
    text = describe_scores(losses, "loss of a token", members, others, small=True, about=about)
    if text:
        write_text(path.with_suffix(".json"), json.dumps(text) + "\n")


def draw_exposed(path: Path, view: View, label: str) -> None:
    """Writes the forgotten answers that are likeliest, and which of their words are.

    A word's score is what its tokens' log-probability is above that of a retrained model, divided
    by ten: a word ten times as likely, say, has .23.
    """
    seen = _observed(view)
    if not seen:
        return
    some = next(iter(seen.values()))
    x, forget = some.texts("forget"), view.sets.forget
    assert forget is not None
    read = read_answers(some.tokenizer, x, x["topic"])
    texts = some.questions("forget")
    logprobs = {name: one.scores("forget").logprobs for name, one in seen.items()}

    def show(place: int) -> dict[str, Any]:
        return {"name": view.class_names[x["topic"][place]], "text": texts[place]}

    def mark(name: str, place: int) -> list[list[Any]]:
        above = logprobs[name][place] - logprobs.get("retrained", logprobs[name])[place]
        return [
            [f"{'' if joins(word.text) else ' '}{word.text}", _score(above, word)]
            for word in read.words[place]
        ]

    values = {n: probability(one, "forget") for n, one in seen.items() if n != "retrained"}
    at = np.asarray(forget.indices)[: num_examples(forget)]
    sound = {name: own for name, own in values.items() if len(own) == len(at)}
    words = METRICS["probability_forget"].label
    text = describe_exposed(sound, at, words, show, mark=mark)
    if text["models"]:
        write_text(path.with_suffix(".json"), json.dumps(text) + "\n")


def _score(above: np.ndarray, word: Word) -> float:
    return round(float(np.clip(above[word.start : word.stop].sum() / 10, -1, 1)), 3)


def _observed(view: View) -> dict[str, LanguageEvidence]:
    """Returns the evidence of each model, but of wrecked ones."""
    seen = {name: view.observe(name) for name in view.variables}
    return {name: one for name, one in seen.items() if one.is_sound()}
