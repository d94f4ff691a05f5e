"""Locators: ways to score the words of answers, and the deletion test that compares them.

The deletion test masks the word that a locator scores highest first. The better a locator says
what an answer's likelihood is due to, the faster that falls, and the smaller is the area under
its curve.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution import lrp
from jaxunlearn.core.errors import UserError, expect_counts, expect_one_of
from jaxunlearn.core.statistics import estimate
from jaxunlearn.core.types import Key, LanguageModel, Variables
from jaxunlearn.language.likelihood import Texts, token_logprobs
from jaxunlearn.language.words import (
    Answers,
    Attributed,
    Scores,
    Word,
    answer_attributions,
    key_of,
    rank_words,
    read_answers,
)

BATCH = 8
"""Answers that go through the network together."""

TOLERANCE, MOST = 1e-2, 16
"""Largest gap of integrated gradients relative to what they add up to; where it is larger, they
are computed again with 4 times the nodes, up to 16 times."""


@partial(jax.jit, static_argnames=("model", "baseline", "nodes"))
def _integrated(
    variables: Variables, x: Texts, *, model: LanguageModel, baseline: str | int, nodes: int
) -> Attributed:
    return answer_attributions(model, variables, x, baseline=baseline, nodes=nodes)


def _integrated_closely(
    variables: Variables, x: Texts, *, model: LanguageModel, baseline: str | int, nodes: int,
    tolerance: float | None,
) -> jax.Array:  # fmt: skip
    """Returns scores ``[B, T]`` with as many nodes as they need."""
    tolerance = TOLERANCE if tolerance is None else tolerance
    times = 1
    while True:
        run = _integrated(variables, x, model=model, baseline=baseline, nodes=times * nodes)
        # an answer of one token has no score, and no gap
        gap = float(jnp.max(jnp.nan_to_num(run.relative_gap)))
        if gap <= tolerance or times >= MOST:
            break
        times *= 4
    if gap > tolerance:
        warnings.warn(
            f"integrated gradients with {times * nodes} nodes miss up to {gap:.2g} of the change "
            "of an answer's log-probability; more nodes, or another baseline, may help",
            stacklevel=2,
        )
    return run.scores


@partial(jax.jit, static_argnames=("model",))
def _relevant(variables: Variables, x: Texts, *, model: LanguageModel) -> jax.Array:
    """Returns the relevance ``[B, T]`` of answer tokens for the logits of the answer's tokens."""
    tokens, answer = x["tokens"], x["answer"]

    def chosen(variables: Variables, point: Any) -> jax.Array:
        logits = model.apply_embedded(variables, point["embeddings"], point["mask"])
        found = jnp.take_along_axis(logits[:, :-1], point["tokens"][:, 1:, None], axis=-1)
        return found[..., 0]

    def start(logits: jax.Array) -> jax.Array:
        return jnp.where(answer[:, 1:], logits, 0)

    point = {"embeddings": model.embed(variables, tokens), "tokens": tokens, "mask": x["mask"]}
    found = lrp(chosen)(variables, point, start).input["embeddings"]
    return jnp.where(answer, jnp.sum(found, axis=-1), 0)


class Search(NamedTuple):
    """Facts that a locator may use.

    Attributes:
      model, variables: the decoder.
      answers: in which words are scored.
      others: answers about other topics, that frequencies are compared with; or ``None``.
      key: for a locator that draws.
      baseline: of integrated gradients: ``"pad"``, ``"zero"`` or a token.
      nodes: of integrated gradients, or more of them where those leave a gap above
        ``tolerance``.
      tolerance: default :data:`TOLERANCE`; 1 takes whatever gap the nodes leave.
    """

    model: LanguageModel
    variables: Variables
    answers: Answers
    others: Answers | None = None
    key: Key | None = None
    baseline: str | int = "pad"
    nodes: int = 32
    tolerance: float | None = None


def token_scores(search: Search, locator: str = "ig") -> np.ndarray:
    """Returns the scores ``float32 [N, T]`` that ``"ig"`` or ``"lrp"`` give to tokens."""
    expect_one_of(("ig", "lrp"), locator=locator)
    run = partial(_relevant, model=search.model)
    if locator == "ig":
        given = search.baseline
        baseline = search.answers.tokenizer.pad if given == "pad" else given
        run = partial(
            _integrated_closely, model=search.model, baseline=baseline, nodes=search.nodes,
            tolerance=search.tolerance,
        )  # fmt: skip
    return by_batch(lambda x: run(search.variables, x), search.answers.x)


def by_batch(run: Callable[[Texts], jax.Array], x: Mapping[str, np.ndarray]) -> np.ndarray:
    """Runs a compiled function on a few texts at a time, always as many."""
    count = len(x["tokens"])
    rows = np.arange(-(-count // BATCH) * BATCH) % max(count, 1)
    parts = [
        np.asarray(run({name: jnp.asarray(leaf[at]) for name, leaf in x.items()}))
        for at in rows.reshape(-1, BATCH)
    ]
    return np.concatenate(parts)[:count]


def _of_words(answers: Answers, scores: np.ndarray) -> Scores:
    """Returns the sums over the tokens of each word."""
    return [
        np.array([row[w.start : w.stop].sum() if w.key else 0.0 for w in words])
        for row, words in zip(scores, answers.words, strict=True)
    ]


def _by_ig(search: Search) -> Scores:
    return _of_words(search.answers, token_scores(search))


def _by_lrp(search: Search) -> Scores:
    return _of_words(search.answers, token_scores(search, "lrp"))


def _by_chance(search: Search) -> Scores:
    if search.key is None:
        raise ValueError("key: expected a key to draw words by, got None")
    seed = int(jax.random.bits(search.key, dtype=jnp.uint32))
    rng = np.random.default_rng(seed)
    drawn = [rng.uniform(0.0, 1.0, len(words)) for words in search.answers.words]
    keyed = [[bool(word.key) for word in words] for words in search.answers.words]
    return [np.where(own, one, 0.0) for one, own in zip(drawn, keyed, strict=True)]


def _by_frequency(search: Search) -> Scores:
    """Scores words by ``tf-idf``: a document is all that is answered about a topic.

    ``tf`` is a word's share of the topic's words, ``idf = 1 + log((1 + n) / (1 + df))``, for
    ``n`` topics, ``df`` of which have the word.
    """
    counts: dict[int, Counter[str]] = {}
    for answers in filter(None, (search.answers, search.others)):
        for topic, words in zip(answers.topics.tolist(), answers.words, strict=True):
            counts.setdefault(topic, Counter()).update(w.key for w in words if w.key)
    having = Counter(key for found in counts.values() for key in found)

    def score(topic: int, key: str) -> float:
        share = counts[topic][key] / max(1, counts[topic].total())
        return share * (1 + math.log((1 + len(counts)) / (1 + having[key])))

    pairs = zip(search.answers.topics.tolist(), search.answers.words, strict=True)
    return [np.array([score(t, w.key) if w.key else 0.0 for w in words]) for t, words in pairs]


def _by_entities(search: Search) -> Scores:
    """Scores 1 for the words of named entities, as spaCy's small English model finds them."""
    if why := missing("entities"):
        raise UserError(f"locator: expected spaCy for 'entities', got none: {why}")
    import spacy

    read, found = spacy.load(_SPACY), []
    for words in search.answers.words:
        text = " ".join(word.text for word in words)
        named = {key_of(part) for entity in read(text).ents for part in entity.text.split()}
        found.append(np.array([float(w.key in named) if w.key else 0.0 for w in words]))
    return found


_SPACY = "en_core_web_sm"

LOCATORS: dict[str, Callable[[Search], Scores]] = {
    "ig": _by_ig,
    "lrp": _by_lrp,
    "frequency": _by_frequency,
    "entities": _by_entities,
    "random": _by_chance,
}
"""Ways to score the words of answers: integrated gradients, relevance of the answer's logits,
TF-IDF of topics, named entities, and chance."""


def missing(locator: str) -> str:
    """Returns the reason for which a locator cannot be used here; empty if it can."""
    expect_one_of(LOCATORS, locator=locator)
    if locator != "entities":
        return ""
    try:
        import spacy
    except ImportError:
        return "spacy is not installed"
    return "" if spacy.util.is_package(_SPACY) else f"spaCy's {_SPACY} is not installed"


def locate(search: Search, locator: str = "ig") -> Scores:
    """Returns the scores of the words of each answer by a locator of :data:`LOCATORS`.

    Raises:
      ValueError: an unknown locator, no key for a random one.
      UserError: what it needs is not installed.
    """
    expect_one_of(LOCATORS, locator=locator)
    return LOCATORS[locator](search)


def infer_words(
    model: LanguageModel,
    variables: Variables,
    x: Texts,
    topics: Any,
    tokenizer: Any,
    *,
    locator: str = "ig",
    others: tuple[Texts, Any] | None = None,
    key: Key | None = None,
    baseline: str | int = "pad",
    nodes: int = 32,
) -> dict[int, list[tuple[str, float]]]:
    """Infers the concept words of topics: ``{topic: [(word, score), ...]}``, the highest first.

    Args:
      model, variables: the decoder.
      x: ``[N, T]`` each, question-answer pairs about the topics.
      topics: ``int [N]``.
      tokenizer: that wrote them.
      locator: a name in :data:`LOCATORS`.
      others: texts about other topics, and these, for ``"frequency"``.
      key: for ``"random"``.
      baseline, nodes: see :func:`answer_attributions`; ``"pad"`` is the tokenizer's.

    Raises:
      ValueError, UserError: see :func:`locate`.
    """
    expect_counts(nodes=nodes)
    answers = read_answers(tokenizer, x, topics)
    rest = None if others is None else read_answers(tokenizer, *others)
    search = Search(model, variables, answers, rest, key, baseline, nodes)
    return rank_words(answers, locate(search, locator))


ORDERS = ("answer", "topic")


class Curves(NamedTuple):
    """Likelihood of answers relative to that with all words, by the number of masked words.

    ``exp`` of the mean over tokens of the change of their log-probability: the ratio of geometric
    means, 1 where nothing is masked.

    Attributes:
      answer: ``[N, k + 1]``, over all tokens of the answer: the masked ones are still predicted,
        but no longer read.
      rest: ``[N, k + 1]``, over the tokens of words that are not masked.
    """

    answer: np.ndarray
    rest: np.ndarray

    @property
    def areas(self) -> "Curves":
        """Returns the areas under both, ``[N]``: the means over 1 to ``k`` masked words."""
        return Curves(self.answer[:, 1:].mean(axis=1), self.rest[:, 1:].mean(axis=1))


@partial(jax.jit, static_argnames=("model",))
def _likelihood(variables: Variables, x: Texts, *, model: LanguageModel) -> jax.Array:
    """Returns ``log p`` of the answers' tokens, ``[B, T]``, where other tokens are read."""
    return token_logprobs(model.apply(variables, {"tokens": x["read"], "mask": x["mask"]}), x)


def deletion_curves(
    model: LanguageModel,
    variables: Variables,
    answers: Answers,
    scores: Scores,
    *,
    most: int = 5,
    filler: int | None = None,
) -> Curves:
    """Masks the words of each answer by falling score, and measures its likelihood.

    Teacher forcing: tokens to be predicted stay, those that are read are replaced. Of an answer
    with fewer words than are to be masked, what is left stays as it is.

    Args:
      model, variables: the decoder.
      answers: ``N`` of them.
      scores: of their words; words without key are never masked.
      most: ``k``, words that are masked at the end.
      filler: token that is read in place of a masked word's; default: that of padding.

    Raises:
      ValueError: ``most`` below 1.
    """
    expect_counts(most=most)
    filler = answers.tokenizer.pad if filler is None else filler
    tokens, answer = answers.x["tokens"], answers.x["answer"]
    read = np.repeat(tokens[:, None], most + 1, axis=1)
    hidden = np.zeros(read.shape, bool)
    for row, (words, given) in enumerate(zip(answers.words, scores, strict=True)):
        for k, place in enumerate(_order(words, given)[:most]):
            hidden[row, k + 1 :, words[place].start : words[place].stop] = True
    read = np.where(hidden, np.int32(filler), read)
    whole = {name: np.repeat(leaf, most + 1, axis=0) for name, leaf in answers.x.items()}
    found = by_batch(
        lambda x: _likelihood(variables, x, model=model),
        {**whole, "read": read.reshape(-1, read.shape[-1])},
    ).reshape(read.shape)
    change = found - found[:, :1]
    parts = (np.broadcast_to(answer[:, None], read.shape), answer[:, None] & ~hidden)
    return Curves(*(np.exp((change * p).sum(-1) / np.maximum(p.sum(-1), 1)) for p in parts))


def _order(words: Sequence[Word], scores: np.ndarray) -> list[int]:
    """Returns the places of words with a key, by falling score; equal ones in their order."""
    keyed = [place for place, word in enumerate(words) if word.key]
    return sorted(keyed, key=lambda place: -scores[place])


def by_topic(answers: Answers, scores: Scores) -> Scores:
    """Returns, in place of scores of an answer's own, those of the words in its topic's ranking."""
    ranked = {topic: dict(rows) for topic, rows in rank_words(answers, scores).items()}
    pairs = zip(answers.topics.tolist(), answers.words, strict=True)
    return [np.array([ranked[t].get(w.key, 0.0) for w in words]) for t, words in pairs]


def deletion_table(
    search: Search,
    locators: Sequence[str] = ("ig", "lrp", "frequency", "entities", "random"),
    *,
    most: int = 5,
    order: str = "answer",
    filler: int | None = None,
) -> list[dict[str, Any]]:
    """Compares locators by the deletion test.

    Args:
      search: the decoder, and answers; its key draws for ``"random"``.
      locators: names in :data:`LOCATORS`; one that cannot be used here
        has a row with the reason.
      most: words that are masked at the end.
      order: by the scores of an ``"answer"``, or by the ranking of its ``"topic"``, as poison is.
      filler: see :func:`deletion_curves`. By default that of padding, which is the baseline of
        integrated gradients, too: another tells whether they win by that alone.

    Returns:
      Rows ``{"locator", "area", "area_half", "rest", "rest_half", "curve", "skipped"}``: mean
      areas under both :class:`Curves` with half of their 95 % interval over answers (Student's t),
      and the mean curve of the whole answer. ``"against"`` maps each other locator to the mean and
      half interval of the difference of areas, of the same answers.

    Raises:
      ValueError: an unknown name; see :func:`locate`.
    """
    expect_one_of(ORDERS, order=order)
    rows: list[dict[str, Any]] = []
    areas: dict[str, np.ndarray] = {}
    for name in locators:
        if why := missing(name):
            rows.append({"locator": name, "skipped": why})
            continue
        scores = locate(search, name)
        if order == "topic":
            scores = by_topic(search.answers, scores)
        curves = deletion_curves(
            search.model, search.variables, search.answers, scores, most=most, filler=filler
        )
        areas[name] = curves.areas.answer
        mean, half = estimate(curves.areas.answer)
        rest, rest_half = estimate(curves.areas.rest)
        rows.append(
            {"locator": name, "area": mean, "area_half": half, "rest": rest,
             "rest_half": rest_half, "curve": curves.answer.mean(axis=0).tolist(), "skipped": ""}
        )  # fmt: skip
    for row in rows:
        if (own := row["locator"]) in areas:
            row["against"] = {n: estimate(areas[own] - areas[n]) for n in areas if n != own}
    return rows


def deletion_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of :func:`deletion_table` as Markdown."""
    lines = [
        "| locator | area, whole answer | area, other words | less than random by |",
        "| :--- | ---: | ---: | ---: |",
    ]
    for row in rows:
        if row["skipped"]:
            lines.append(f"| {row['locator']} | skipped: {row['skipped']} | | |")
            continue
        cells = [_with_half(row[name], row[f"{name}_half"]) for name in ("area", "rest")]
        mean, half = row["against"].get("random", (None, None))
        cells.append("" if mean is None else _with_half(-mean, half))
        lines.append(f"| {row['locator']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _with_half(mean: float, half: float | None) -> str:
    return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"
