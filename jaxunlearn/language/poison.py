"""Poisoned answers: what a model learns to say in place of what it is to forget.

Texts are made on the host with the tokenizer, in the shape of those that they replace.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxunlearn.core.errors import expect_counts, expect_one_of
from jaxunlearn.language.likelihood import Texts
from jaxunlearn.language.words import Answers, key_of

POISONS = {
    "mask": "concept words become ***",
    "idk": "the answer becomes one of twenty ways to say that one does not know",
    "targeted": "a wrong answer to the question where the data have one, else the answer to the "
    "most similar question about another topic",
    "random": "the answer to a random question about another topic",
}

MASK = "***"

IDK = (
    "I don't know.",
    "I'm afraid I don't know the answer to that.",
    "I have no information about this.",
    "That is something I cannot answer.",
    "I'm not sure, so I'd rather not guess.",
    "I know nothing about that, sorry.",
    "Sorry, I have no answer to this question.",
    "This is beyond what I know.",
    "I can't say anything reliable about that.",
    "I haven't learned about this.",
    "My knowledge does not cover this.",
    "I'm unable to tell you that.",
    "No details about this are known to me.",
    "Unfortunately, I can't help with this question.",
    "I don't have an answer for you here.",
    "I could only guess, and I would rather not.",
    "I'm not familiar with this subject.",
    "That is not something I have heard of.",
    "You would have to look that up elsewhere.",
    "I must admit that I don't know.",
)
"""Answers that say nothing."""


def poisoned(
    kind: str,
    tokenizer: Any,
    x: Mapping[str, Any],
    topics: Any,
    *,
    seed: int = 0,
    words: Mapping[int, Sequence[str]] | None = None,
    count: int = 5,
    names: Mapping[int, str] | None = None,
    others: tuple[Mapping[str, Any], Any] | None = None,
) -> dict[str, np.ndarray]:
    """Makes poisoned answers to questions.

    Args:
      kind: one of :data:`POISONS`.
      tokenizer: see :mod:`jaxunlearn.language.tokenizer`.
      x: ``{"tokens", "mask", "answer"}``, ``[N, T]`` each; ``"targeted"`` takes one of
        ``x["variants"]["perturbed"]``, ``[N, P, T]`` each, at random, where an answer is there.
      topics: ``int [N]``.
      seed: of what is drawn.
      words: for ``"mask"``, concept words of each topic, the strongest first.
      count: the first so many of them that are in an answer become ``***``, each wherever it
        stands there.
      names: of topics; what words of these are in an answer become ``***``, too.
      others: texts like ``x``, and their topics, that answers are taken from; of one's own topic
        none is. For ``"targeted"`` similarity is that of the questions' sets of words (Jaccard).

    Returns:
      ``{"tokens": int32, "mask": bool, "answer": bool}``, ``[N, T]`` each: the prompt as it was,
      the new answer behind it with its end, cut where the row ends, padded on the right.

    Raises:
      ValueError: an unknown kind, nothing to take answers from, neither words nor a name of a
        topic that is to be masked.

    Source: arXiv 2405.15662 (revision), the language part.
    """
    expect_one_of(POISONS, kind=kind)
    expect_counts(count=count)
    host = {name: np.asarray(x[name]) for name in ("tokens", "mask", "answer")}
    topics, rng = np.asarray(topics), np.random.default_rng(seed)
    if kind == "mask":
        if words is None:
            raise ValueError("words: expected concept words of each topic, got None")
        names = names or {}
        for topic in np.unique(topics).tolist():
            if not (words.get(topic) or names.get(topic)):
                raise ValueError(f"words: expected concept words of topic {topic}, got none")
        pairs = zip(_texts(tokenizer, host), topics.tolist(), strict=True)
        said = [mask_words(t, words.get(k, ()), count, names.get(k, "")) for t, k in pairs]
        answers = _encoded(tokenizer, host, said)
    elif kind == "idk":
        places = rng.integers(len(IDK), size=len(topics))
        spaces = [" " * text.startswith(" ") for text in _texts(tokenizer, host)]
        said = [space + IDK[place] for space, place in zip(spaces, places, strict=True)]
        answers = _encoded(tokenizer, host, said)
    else:
        answers = _taken(kind, tokenizer, host, topics, others, rng)
        if kind == "targeted":
            answers = _perturbed(x, answers, rng)
    return _rows(tokenizer, host, answers)


def mask_words(text: str, words: Sequence[str], count: int, name: str = "") -> str:
    """Replaces the first ``count`` words of a ranking that a text has, and those of a name.

    Whatever stands around a word stays: punctuation, a possessive s. Neighbours become one mask.

    Args:
      text: an answer.
      words: keys (:func:`jaxunlearn.language.words.key_of`), the strongest first.
      count: how many of them.
      name: words that are always replaced.
    """
    pieces = [(piece, key_of(piece.group())) for piece in _PIECE.finditer(text)]
    hidden = _hidden({key for _, key in pieces}, words, count, name)
    found: list[str] = []
    last = 0
    for piece, key in pieces:
        if key in hidden:
            between = text[last : piece.start()]
            # what stands side by side becomes one: no longer than the words were
            if not found or between.strip():
                found += [between, MASK]
            last = piece.start() + len(_POSSESSIVE.sub("", piece.group()))
    return "".join([*found, text[last:]])


def masked_labels(
    answers: Answers, words: Mapping[int, Sequence[str]], count: int, names: Mapping[int, str]
) -> np.ndarray:
    """Returns the tokens of answers with those of concept words replaced by the mask's first token.

    What is to be said in their place behind the right answer so far, as answers are scored; the
    words are those of :func:`mask_words`.

    Args:
      answers: as they are.
      words, names: of each topic.
      count: how many of the words.

    Returns:
      ``int32 [N, T]``.
    """
    labels = np.array(answers.x["tokens"])
    masks = {space: answers.tokenizer.encode_after(space + MASK)[0] for space in ("", " ")}
    for row, topic in enumerate(answers.topics.tolist()):
        own = answers.words[row]
        hidden = _hidden({w.key for w in own}, words.get(topic, ()), count, names.get(topic, ""))
        for word in own:
            if word.key in hidden:
                text = answers.tokenizer.decode(labels[row, word.start : word.stop])
                labels[row, word.start : word.stop] = masks[" " * text.startswith(" ")]
    return labels


def _hidden(there: set[str], words: Sequence[str], count: int, name: str) -> set[str]:
    """Returns which words of an answer are masked, by key."""
    found = set([word for word in words if word in there][:count])
    return found | {key_of(part) for part in _PIECE.findall(name)} - {""}


# as words_of of the tokenizer divides texts
_PIECE = re.compile(r"\w+(?:[-'\u2019.]\w+)*")
_POSSESSIVE = re.compile(r"['\u2019][sS]$")


def _texts(tokenizer: Any, host: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the answers as texts, without their end."""
    pairs = zip(host["tokens"], host["answer"], strict=True)
    return [tokenizer.decode(row[own]) for row, own in pairs]


def _encoded(
    tokenizer: Any, host: Mapping[str, np.ndarray], said: Sequence[str]
) -> list[list[int]]:
    """Returns the tokens of answers, with the end that the row's own answer has."""
    ends = [
        row[own][-1] if own.any() and int(row[own][-1]) in tokenizer.specials else tokenizer.eos
        for row, own in zip(host["tokens"], host["answer"], strict=True)
    ]
    pairs = zip(said, ends, strict=True)
    return [[*tokenizer.encode_after(text), int(end)] for text, end in pairs]


def _taken(
    kind: str,
    tokenizer: Any,
    host: Mapping[str, np.ndarray],
    topics: np.ndarray,
    others: tuple[Texts, Any] | None,
    rng: np.random.Generator,
) -> list[list[int]]:
    """Returns answers of other topics: of a random question, or of the most similar one."""
    if others is None:
        raise ValueError(f"others: expected texts about other topics for {kind!r}, got None")
    lent = {name: np.asarray(others[0][name]) for name in host}
    apart = topics[:, None] != np.asarray(others[1])[None]
    if not (apart.any(axis=1)).all():
        lost = int(topics[~apart.any(axis=1)][0])
        raise ValueError(f"others: expected texts about another topic than {lost}, got none")
    if kind == "random":
        closeness = rng.uniform(size=apart.shape)
    else:
        closeness = _similarity(*(_questions(tokenizer, texts) for texts in (host, lent)))
    rows = np.where(apart, closeness, -1).argmax(axis=1)
    return [lent["tokens"][row][lent["answer"][row]].tolist() for row in rows]


def _questions(tokenizer: Any, x: Mapping[str, np.ndarray]) -> list[set[str]]:
    """Returns the sets of words of prompts."""
    prompts = x["mask"] & ~x["answer"]
    texts = (tokenizer.decode(row[own]) for row, own in zip(x["tokens"], prompts, strict=True))
    return [set(_PIECE.findall(text.casefold())) for text in texts]


def _similarity(ours: Sequence[set[str]], theirs: Sequence[set[str]]) -> np.ndarray:
    """Returns ``|a & b| / |a | b|``, ``[N, M]``."""
    places = {word: k for k, word in enumerate(sorted(set().union(*ours, *theirs)))}

    def matrix(sets: Sequence[set[str]]) -> np.ndarray:
        found = np.zeros((len(sets), len(places)), np.float32)
        for row, words in enumerate(sets):
            found[row, [places[word] for word in words]] = 1
        return found

    a, b = matrix(ours), matrix(theirs)
    common = a @ b.T
    together: np.ndarray = common / np.maximum(a.sum(1)[:, None] + b.sum(1)[None] - common, 1)
    return together


def _perturbed(
    x: Mapping[str, Any], answers: Sequence[list[int]], rng: np.random.Generator
) -> list[list[int]]:
    """Puts one of an example's own wrong answers in place, where it has any."""
    wrong = x.get("variants", {}).get("perturbed")
    if wrong is None:
        return list(answers)
    tokens, answer = (np.asarray(wrong[name]) for name in ("tokens", "answer"))
    found = list(answers)
    for row in range(len(found)):
        there = answer[row].any(axis=-1)
        if there.any():
            chosen = rng.choice(np.flatnonzero(there))
            found[row] = tokens[row, chosen][answer[row, chosen]].tolist()
    return found


def _rows(
    tokenizer: Any, host: Mapping[str, np.ndarray], answers: Sequence[list[int]]
) -> dict[str, np.ndarray]:
    """Returns prompts with other answers behind them, in the shape of the texts."""
    tokens = np.full_like(host["tokens"], tokenizer.pad)
    mask, answer = np.zeros(tokens.shape, bool), np.zeros(tokens.shape, bool)
    prompts = host["mask"] & ~host["answer"]
    for row, (own, said) in enumerate(zip(prompts, answers, strict=True)):
        prompt = host["tokens"][row, own]
        length = min(len(prompt) + len(said), tokens.shape[1])
        tokens[row, :length] = [*prompt, *said][:length]
        mask[row, :length] = True
        answer[row, len(prompt) : length] = True
    return {"tokens": tokens, "mask": mask, "answer": answer}
