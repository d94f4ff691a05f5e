"""Concept words: which words of answers their likelihood is due to, by answer and by topic.

Scores of tokens come from integrated gradients of an answer's log-probability, or from another
locator; tokens merge to words, and words of all answers about a topic are ranked. Punctuation and
function words (:data:`STOP_WORDS`) are never concept words: no locator ranks them.

Legend: ``N`` answers, ``B`` of a batch, ``T`` tokens of a text, ``D`` width of an embedding.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution import integrated_gradients
from jaxunlearn.attribution.ig.quadrature import gauss_legendre
from jaxunlearn.core.errors import expect_one_of
from jaxunlearn.core.types import LanguageModel, Variables
from jaxunlearn.language.likelihood import Texts, token_logprobs
from jaxunlearn.language.tokenizer import words_of

_FUNCTION_WORDS = """
    a about above after again against all also although always am among an and another any are as
    at be became because become been before being below between both but by can could did do does
    doing done down during each either else etc even ever every few for from further had has have
    having he her here hers herself him himself his how however i if in into is it its itself just
    least less like made make many may me might more most much must my myself neither never no nor
    not now of off often on once one only onto or other others our ours out over own per quite
    rather same shall she should since so some such than that the their theirs them themselves then
    there these they this those though through thus to together too toward towards under until up
    upon us very was we were what when where whether which while who whom whose why will with within
    without would yes yet you your yours yourself
    """

STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Function words of English, lower case: never concept words."""


class Attributed(NamedTuple):
    """Scores of the tokens of answers.

    Attributes:
      scores: ``float32 [B, T]``, 0 outside answers.
      gap: ``[B]``, their sum minus (``score`` - ``baseline_score``).
      score: ``[B]``, log-probability of the answer.
      baseline_score: ``[B]``, the same with the answer's embeddings at the baseline.
    """

    scores: jax.Array
    gap: jax.Array
    score: jax.Array
    baseline_score: jax.Array

    @property
    def relative_gap(self) -> jax.Array:
        """Returns ``|gap| / |score - baseline_score|``, ``[B]``."""
        return jnp.abs(self.gap) / jnp.abs(self.score - self.baseline_score)


def answer_attributions(
    model: LanguageModel,
    variables: Variables,
    x: Texts,
    *,
    baseline: str | int = "zero",
    nodes: int = 32,
    chunk: int | None = None,
    complete: bool = False,
) -> Attributed:
    """Attributes the log-probability of answers to their tokens, by integrated gradients.

    With the embeddings ``e_t`` of the answer's tokens, those of the prompt fixed, and

        F(e) = sum over answer tokens of log p(x_t | prompt, e_<t)
        s_t = (e_t - e'_t) . integral over a in [0, 1] of dF/de_t (e' + a (e - e'))

    the scores add up to ``F(e) - F(e')``. The tokens that are predicted stay what they are: a
    score says how much a token, *once read*, raises the likelihood of those behind it. The last
    token, behind which nothing stands, has 0.

    Args:
      model, variables: the decoder.
      x: ``[B, T]`` each; see :mod:`jaxunlearn.language.likelihood`.
      baseline: a token whose embedding stands in place of each of the answer's, that of padding
        as published; or ``"zero"``. Near zero a norm turns all at once, and the gap is larger:
        more nodes, or ``complete``, help.
      nodes, chunk, complete: see :func:`jaxunlearn.integrated_gradients`; quadrature of
        Gauss-Legendre.

    Raises:
      ValueError: a baseline that is neither, fewer than one node.

    Source: arXiv 2405.15662 (revision), the language part.
    """
    if isinstance(baseline, str):
        expect_one_of(("zero",), baseline=baseline)
    tokens, answer = jnp.asarray(x["tokens"]), jnp.asarray(x["answer"])
    embeddings = model.embed(variables, tokens)
    start = jnp.zeros_like(embeddings)
    if not isinstance(baseline, str):
        start = model.embed(variables, jnp.full_like(tokens, baseline))

    def score(variables: Variables, point: Any) -> jax.Array:
        logits = model.apply_embedded(variables, point["embeddings"], point["mask"])
        return jnp.sum(token_logprobs(logits, point), axis=-1)

    stay = {"tokens": tokens, "mask": jnp.asarray(x["mask"]), "answer": answer}
    fixed = dict.fromkeys(stay)
    attribute = integrated_gradients(score, gauss_legendre(nodes), chunk=chunk, complete=complete)
    found = attribute(
        variables,
        {"embeddings": embeddings, **stay},
        baseline={"embeddings": jnp.where(answer[..., None], start, embeddings), **fixed},
    )
    scores = jnp.sum(found.attribution["embeddings"], axis=-1)
    return Attributed(scores, found.gap, found.score, found.baseline_score)


class Word(NamedTuple):
    """A word of an answer.

    Attributes:
      text: as it stands there.
      key: by which words are told apart (:func:`key_of`); empty: never a concept word.
      start, stop: its tokens in the row, ``start`` to ``stop - 1``.
    """

    text: str
    key: str
    start: int
    stop: int


class Answers(NamedTuple):
    """Answers on the host; :func:`read_answers` makes them.

    Attributes:
      x: ``{"tokens", "mask", "answer"}``, arrays ``[N, T]`` of NumPy.
      topics: ``int [N]``.
      words: of each answer.
      tokenizer: that reads them.
    """

    x: Mapping[str, np.ndarray]
    topics: np.ndarray
    words: list[list[Word]]
    tokenizer: Any


def key_of(word: str) -> str:
    """Returns a word in lower case, without punctuation around it and a possessive s.

    Empty for function words, and for what has no letter and no digit.
    """
    bare = re.sub(r"(['\u2019]s)?[\W_]*$", "", word.casefold())
    bare = re.sub(r"^[\W_]+", "", bare)
    return "" if bare in STOP_WORDS else bare


def read_answers(tokenizer: Any, x: Texts, topics: Any) -> Answers:
    """Finds the words of answers.

    Args:
      tokenizer: see :mod:`jaxunlearn.language.tokenizer`.
      x: ``[N, T]`` each; other entries are not read.
      topics: ``int [N]``.
    """
    host = {name: np.asarray(x[name]) for name in ("tokens", "mask", "answer")}
    words = [
        _words_in(tokenizer, tokens, np.flatnonzero(answer))
        for tokens, answer in zip(host["tokens"], host["answer"], strict=True)
    ]
    return Answers(host, np.asarray(topics), words, tokenizer)


Scores = list[np.ndarray]
"""For each answer ``float [number of its words]``; that of a word without key is 0."""


def rank_words(answers: Answers, scores: Scores) -> dict[int, list[tuple[str, float]]]:
    """Returns the words of each topic with their scores, the highest first.

    Negative scores count as 0; those of an answer are divided by their sum, so that answers
    count alike, and added up over the answers about a topic. Words without a score are left out;
    equal ones stand in the order of the alphabet.

    Source: arXiv 2405.15662 (revision), the language part.
    """
    totals: dict[int, dict[str, float]] = {}
    for topic, words, given in zip(answers.topics.tolist(), answers.words, scores, strict=True):
        total = totals.setdefault(topic, {})
        own = np.array(
            [max(float(s), 0.0) if w.key else 0.0 for w, s in zip(words, given, strict=True)]
        )
        for word, share in zip(words, own / (own.sum() or 1.0), strict=True):
            if share > 0:
                total[word.key] = total.get(word.key, 0.0) + float(share)
    return {
        t: sorted(found.items(), key=lambda row: (-row[1], row[0])) for t, found in totals.items()
    }


def _words_in(tokenizer: Any, tokens: np.ndarray, places: np.ndarray) -> list[Word]:
    """Returns the words of the tokens at some places of a row."""
    found = [(text, places[own]) for text, own in words_of(tokenizer, tokens[places]) if own]
    return [Word(text, key_of(text), int(at[0]), int(at[-1]) + 1) for text, at in found]
