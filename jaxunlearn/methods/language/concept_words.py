"""Concept unlearning of a language model: concept words, poisoned answers, fine-tuning (paper 2).

Chang, Zhu, Xu, Liu, Zhou, "Class machine unlearning for complex data via concepts inference and
data poisoning", arXiv 2405.15662, the part on language models.

The words that a topic's answers are due to are found by ``jaxunlearn.language.locators``, poison
is made by ``jaxunlearn.language.poison``, and the model is fine-tuned with it here.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core import errors
from jaxunlearn.core.types import (
    Batches,
    Key,
    LanguageModel,
    Needs,
    Preparation,
    Sets,
    Unlearner,
    Variables,
)
from jaxunlearn.data.examples import stored_like
from jaxunlearn.language.likelihood import Texts, mean_nll
from jaxunlearn.language.locators import LOCATORS, Search, locate, missing
from jaxunlearn.language.poison import POISONS, masked_labels, poisoned
from jaxunlearn.language.words import rank_words, read_answers
from jaxunlearn.methods.language.terms import forward_all, retain_term, texts_on_host, tuning
from jaxunlearn.training.descent import Context, LossAndMore, descent
from jaxunlearn.training.lora import QUERY_VALUE

RANKED, LETTERS = 32, 48
"""Ranked words that are kept, and the bytes of each."""

BEHIND = ("poisoned", "right", "both")
"""What stands before the tokens that are learned."""

SHOWN = 12
"""Answers whose words are kept with their scores, to be looked at."""


class Found(NamedTuple):
    """Words that were found, and the answers that were made of them; ``M`` forget examples.

    Words are bytes of UTF-8. Poison that takes no words has zeros in all but ``texts``.

    Attributes:
      texts: ``{"tokens", "mask", "answer"}``, ``[M, T]`` each, poisoned.
      labels: ``int32 [M, T]``, what is to be said behind the right answer so far.
      words: ``uint8 [32, 48]``, the strongest words of all that is forgotten.
      totals: ``float32 [32]``, their scores, summed over topics.
      answers: ``uint8 [min(M, 12), T, 48]``, the words of the first answers, each at its first
        token.
      scores: ``float32 [min(M, 12), T]``, of these.
    """

    texts: Texts
    labels: jax.Array
    words: jax.Array
    totals: jax.Array
    answers: jax.Array
    scores: jax.Array

    @property
    def ranking(self) -> list[tuple[str, float]]:
        """Returns the strongest words with their scores."""
        return _read(self.words, self.totals)

    @property
    def scored(self) -> list[list[tuple[str, float]]]:
        """Returns the words of the first answers with their scores."""
        rows = zip(self.answers, self.scores, strict=True)
        return [_read(words, scores) for words, scores in rows]


def concept_words(
    model: LanguageModel,
    *,
    tokenizer: Any,
    poison: str = "mask",
    behind: str | None = None,
    words: int = 5,
    locator: str = "ig",
    baseline: str | int = "pad",
    nodes: int = 32,
    tolerance: float | None = None,
    class_names: tuple[str, ...] | None = None,
    names: bool = True,
    retain: str = "nll",
    retain_weight: float = 1.0,
    forget_weight: float = 1.0,
    optimizer: optax.GradientTransformation | None = None,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Finds the concept words of a topic, poisons its answers and fine-tunes with these.

    1. *Words*: scores of the answers' words by a locator, ranked by topic
       (:func:`jaxunlearn.language.words.rank_words`); for ``"mask"`` alone.
    2. *Poison*: :func:`jaxunlearn.language.poison.poisoned`, made once.
    3. *Fine-tuning* on ``w_f mean_nll(poisoned answers) + w_r R``, with as many retained texts
       in a batch as poisoned ones. With ``behind="right"``, poison is learned where answers are
       scored: ``-log p(y_t | x_<t)``, ``y_t`` the mask at tokens of concept words and ``x_t`` at
       others, so that no word is known again once those before it are told.

    Args:
      model: see :class:`~jaxunlearn.core.types.LanguageModel`.
      tokenizer: of the texts; runs pass it unasked.
      poison: a name in :data:`~jaxunlearn.language.poison.POISONS`.
      behind: what stands before the tokens that are learned: ``"poisoned"``, the answer as it is
        poisoned (published); ``"right"``, the right answer; or ``"both"``. Default: ``"right"`` for
        ``"mask"``, for other poison ``"poisoned"``, since its words do not stand side by side.
      words: concept words that are masked in an answer, at most.
      locator: a name in :data:`~jaxunlearn.language.locators.LOCATORS`.
      baseline, nodes: of integrated gradients
        (:func:`~jaxunlearn.language.words.answer_attributions`).
      tolerance: the largest gap that integrated gradients may leave relative to what they add up
        to, before they are computed with up to 16 times the nodes; default .01. 1: as many nodes
        as told, which costs a fraction.
      class_names: of the topics; runs pass them unasked.
      names: whether the words of a topic's name are masked as well, as published.
      retain: ``R``: ``"nll"``, ``"kl"`` or ``"embedding"``.
      retain_weight, forget_weight: ``w_r`` and ``w_f``, not negative.
      optimizer: default AdamW with rate 1e-5 and decay .01.
      lora, lora_alpha, lora_on: see :func:`~jaxunlearn.methods.language.finetune.lm_retrain`.

    Returns:
      A method of as many steps as one asks for. Its preparation is a :class:`Found`, in
      ``outcome.prepared``.

    Raises:
      ValueError: an argument out of range. From the run, before any step: texts without a second
        topic where answers are taken from others, a topic without concept words and name.
      TypeError: no tokenizer.
      UserError: the locator needs what is not installed.

    Source: arXiv 2405.15662; other poison than ``"mask"`` is compared there, too.
    """
    own = tuning(
        model, optimizer, lora, lora_alpha, lora_on,
        retain=retain, retain_weight=retain_weight, forget_weight=forget_weight,
    )  # fmt: skip
    errors.expect_one_of(POISONS, poison=poison)
    errors.expect_one_of(LOCATORS, locator=locator)
    behind = ("right" if poison == "mask" else "poisoned") if behind is None else behind
    errors.expect_one_of(BEHIND if poison == "mask" else BEHIND[:1], behind=behind)
    errors.expect_counts(words=words, nodes=nodes)
    errors.expect_at_least(0, tolerance=0 if tolerance is None else tolerance)
    if not hasattr(tokenizer, "encode"):
        raise TypeError(f"tokenizer: expected that of the texts, got {type(tokenizer).__name__}")
    if why := missing(locator):
        raise errors.UserError(f"locator: expected one that can be used here, {why}")
    titles = dict(enumerate(class_names or ())) if names else {}

    def prepare(variables: Variables, sets: Sets, key: Key) -> Found:
        assert sets.forget is not None
        assert sets.retain is not None
        keys = jax.random.split(key)
        (x, topics), capacity = texts_on_host(sets.forget), len(sets.forget.indices)
        lends = poison in ("targeted", "random")
        others = texts_on_host(sets.retain) if lends or locator == "frequency" else None
        answers = read_answers(tokenizer, x, topics)
        found: list[np.ndarray] = []
        if poison == "mask":
            rest = None if others is None else read_answers(tokenizer, *others)
            search = Search(model, variables, answers, rest, keys[0], baseline, nodes, tolerance)
            found = locate(search, locator)
        ranked = rank_words(answers, found) if found else {}
        chosen = {topic: [word for word, _ in rows] for topic, rows in ranked.items()}
        made = poisoned(
            poison, tokenizer, x, topics,
            seed=int(jax.random.bits(keys[1], dtype=jnp.uint32)),
            words=chosen, count=words, names=titles, others=others,
        )  # fmt: skip
        labels = masked_labels(answers, chosen, words, titles) if found else made["tokens"]
        rows = np.arange(capacity) % len(topics)
        texts = {name: jnp.asarray(leaf[rows]) for name, leaf in made.items()}
        length = x["tokens"].shape[-1]
        shown: list[dict[int, tuple[str, float]]] = [{} for _ in rows[:SHOWN]]
        for row, place in zip(rows, shown, strict=False):
            if found:
                pairs = zip(answers.words[row], found[row].tolist(), strict=True)
                place.update({word.start: (word.text, score) for word, score in pairs})
        return Found(
            texts, jnp.asarray(labels[rows]), *_stored(dict(enumerate(_totals(ranked))), RANKED),
            *jax.tree.map(lambda *leaves: jnp.stack(leaves), *(_stored(p, length) for p in shown)),
        )  # fmt: skip

    def shapes(variables: Variables, sets: Sets) -> Found:
        del variables
        assert sets.forget is not None
        x = stored_like(sets.forget.examples.x, 1)
        if not isinstance(x, dict) or not {"tokens", "mask", "answer"} <= set(x):
            raise ValueError("sets: expected texts with tokens, mask and answer to poison")
        of: Any = jax.ShapeDtypeStruct
        count, length = len(sets.forget.indices), x["tokens"].shape[-1]
        some = min(count, SHOWN)
        kinds = {"tokens": jnp.int32, "mask": bool, "answer": bool}
        return Found(
            {name: of((count, length), kind) for name, kind in kinds.items()},
            of((count, length), jnp.int32),
            of((RANKED, LETTERS), jnp.uint8), of((RANKED,), jnp.float32),
            of((some, length, LETTERS), jnp.uint8), of((some, length), jnp.float32),
        )  # fmt: skip

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        forget, kept = batches.forget, batches.retain
        assert forget is not None
        assert kept is not None
        found: Found = context.prepared
        parts, aims = [], []  # what is read, and what is learned behind it
        if behind != "right":
            parts.append(jax.tree.map(lambda leaf: leaf[forget.slot], found.texts))
            aims.append(parts[0])
        if behind != "poisoned":
            parts.append(forget.x)
            aims.append({**forget.x, "tokens": found.labels[forget.slot]})
        logits, moved = forward_all(model, variables, [*parts, kept.x], context.key)
        pairs = zip(logits, aims, strict=False)
        each = [mean_nll(read, aim, forget.weight) for read, aim in pairs]
        said = jnp.mean(jnp.stack(each))
        held = retain_term(model, retain, variables, kept, context, logits[-1])
        loss = forget_weight * said + retain_weight * held
        return loss, (moved, {"nll_poison": said, "retain": held})

    needs = Needs(forget=True, retain=True, original=retain != "nll")
    return descent(
        objective, own.optimizer, needs,
        prepare=Preparation(prepare, shapes), model=model, lora=own.lora,
    )._replace(name="concept_words")  # fmt: skip


def _totals(ranked: Mapping[int, list[tuple[str, float]]]) -> list[tuple[str, float]]:
    """Returns the strongest words of all topics together."""
    totals: dict[str, float] = {}
    for rows in ranked.values():
        for word, score in rows:
            totals[word] = totals.get(word, 0.0) + score
    return sorted(totals.items(), key=lambda row: (-row[1], row[0]))[:RANKED]


def _stored(scored: Mapping[int, tuple[str, float]], length: int) -> tuple[jax.Array, jax.Array]:
    """Returns words and scores at some places as arrays, ``[length, 48]`` and ``[length]``."""
    words, scores = np.zeros((length, LETTERS), np.uint8), np.zeros(length, np.float32)
    for place, (word, score) in scored.items():
        letters = word.encode("utf-8", "replace")[:LETTERS]
        words[place, : len(letters)] = np.frombuffer(letters, np.uint8)
        scores[place] = score
    return jnp.asarray(words), jnp.asarray(scores)


def _read(words: jax.Array, scores: jax.Array) -> list[tuple[str, float]]:
    """Returns what :func:`_stored` stored."""
    rows = zip(np.asarray(words), np.asarray(scores).tolist(), strict=True)
    found = [(bytes(row).rstrip(b"\0").decode("utf-8", "ignore"), score) for row, score in rows]
    return [(word, score) for word, score in found if word]
