"""Concept unlearning of a language model: concept words, poisoned answers, fine-tuning (paper 2).

Chang, Zhu, Xu, Liu, Zhou, "Class machine unlearning for complex data via concepts inference and
data poisoning", arXiv 2405.15662, the part on language models.

The words that a topic's answers are due to are found by ``jaxunlearn.language.locators``, poison
is made by ``jaxunlearn.language.poison``, and the model is fine-tuned with it here.
"""

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
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.language.likelihood import Texts, mean_nll
from jaxunlearn.language.locators import LOCATORS, Search, locate, missing
from jaxunlearn.language.poison import POISONS, poisoned
from jaxunlearn.language.words import Answers, rank_words, read_answers
from jaxunlearn.methods.language.terms import forward_all, retain_term, tuning
from jaxunlearn.training.descent import Context, LossAndMore, descent
from jaxunlearn.training.lora import QUERY_VALUE

SHOWN, LETTERS = 32, 48
"""Ranked words that are kept, and the bytes of each."""


class Found(NamedTuple):
    """Words that were found, and the answers that were made of them; ``M`` forget examples.

    Attributes:
      texts: ``{"tokens", "mask", "answer"}``, ``[M, T]`` each, poisoned.
      scores: ``float32 [M, T]``, of a word at its first token; 0 for ``"idk"`` and other poison
        that takes no words.
      words: ``uint8 [32, 48]``, the strongest words of all that is forgotten, in UTF-8.
      totals: ``float32 [32]``, their scores, summed over topics; 0 behind the last.
    """

    texts: Texts
    scores: jax.Array
    words: jax.Array
    totals: jax.Array

    @property
    def ranking(self) -> list[tuple[str, float]]:
        """Returns the strongest words with their scores."""
        rows = zip(np.asarray(self.words), np.asarray(self.totals).tolist(), strict=True)
        found = [(bytes(row).rstrip(b"\0").decode("utf-8", "ignore"), s) for row, s in rows]
        return [(word, score) for word, score in found if score > 0]


def concept_words(
    model: LanguageModel,
    *,
    tokenizer: Any,
    poison: str = "mask",
    words: int = 5,
    locator: str = "ig",
    baseline: str | int = "pad",
    nodes: int = 32,
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
       in a batch as poisoned ones.

    Args:
      model: see :class:`~jaxunlearn.core.types.LanguageModel`.
      tokenizer: of the texts; runs pass it unasked.
      poison: a name in :data:`~jaxunlearn.language.poison.POISONS`.
      words: concept words that are masked in an answer, at most.
      locator: a name in :data:`~jaxunlearn.language.locators.LOCATORS`.
      baseline, nodes: of integrated gradients
        (:func:`~jaxunlearn.language.words.answer_attributions`).
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
        topic where answers are taken from others.
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
    errors.expect_counts(words=words, nodes=nodes)
    if not hasattr(tokenizer, "encode"):
        raise TypeError(f"tokenizer: expected that of the texts, got {type(tokenizer).__name__}")
    if why := missing(locator):
        raise errors.UserError(f"locator: expected one that can be used here, {why}")
    titles = dict(enumerate(class_names or ())) if names else {}

    def prepare(variables: Variables, sets: Sets, key: Key) -> Found:
        assert sets.forget is not None
        assert sets.retain is not None
        keys = jax.random.split(key)
        (x, topics), capacity = _on_host(sets.forget), len(sets.forget.indices)
        lends = poison in ("targeted", "random")
        others = _on_host(sets.retain) if lends or locator == "frequency" else None
        answers = read_answers(tokenizer, x, topics)
        scores = np.zeros(x["tokens"].shape, np.float32)
        ranked: dict[int, list[tuple[str, float]]] = {}
        if poison == "mask":
            rest = None if others is None else read_answers(tokenizer, *others)
            search = Search(model, variables, answers, rest, keys[0], baseline, nodes)
            found = locate(search, locator)
            ranked, scores = rank_words(answers, found), _at_first_tokens(answers, found)
        made = poisoned(
            poison, tokenizer, x, topics,
            seed=int(jax.random.bits(keys[1], dtype=jnp.uint32)),
            words={topic: [word for word, _ in rows] for topic, rows in ranked.items()},
            count=words, names=titles, others=others,
        )  # fmt: skip
        rows = np.arange(capacity) % len(topics)
        texts = {name: jnp.asarray(leaf[rows]) for name, leaf in made.items()}
        return Found(texts, jnp.asarray(scores[rows]), *_as_bytes(ranked))

    def shapes(variables: Variables, sets: Sets) -> Found:
        del variables
        assert sets.forget is not None
        x = sets.forget.examples.x
        if not isinstance(x, dict) or not {"tokens", "mask", "answer"} <= set(x):
            raise ValueError("sets: expected texts with tokens, mask and answer to poison")
        of: Any = jax.ShapeDtypeStruct
        shape = (len(sets.forget.indices), x["tokens"].shape[-1])
        texts = {"tokens": of(shape, jnp.int32), "mask": of(shape, bool), "answer": of(shape, bool)}
        return Found(
            texts,
            of(shape, jnp.float32),
            of((SHOWN, LETTERS), jnp.uint8),
            of((SHOWN,), jnp.float32),
        )

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        forget, kept = batches.forget, batches.retain
        assert forget is not None
        assert kept is not None
        texts = jax.tree.map(lambda leaf: leaf[forget.slot], context.prepared.texts)
        logits, moved = forward_all(model, variables, [texts, kept.x], context.key)
        said = mean_nll(logits[0], texts, forget.weight)
        held = retain_term(model, retain, variables, kept, context, logits[1])
        loss = forget_weight * said + retain_weight * held
        return loss, (moved, {"nll_poison": said, "retain": held})

    needs = Needs(forget=True, retain=True, original=retain != "nll")
    return descent(
        objective, own.optimizer, needs,
        prepare=Preparation(prepare, shapes), model=model, lora=own.lora,
    )._replace(name="concept_words")  # fmt: skip


def _on_host(part: Subset) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the texts of a set as they are stored, and their topics."""
    at = np.asarray(part.indices)[: int(part.size)]
    x = jax.tree.map(lambda leaf: np.asarray(leaf)[at], part.examples.x)
    return x, np.asarray(part.examples.y)[at]


def _at_first_tokens(answers: Answers, scores: list[np.ndarray]) -> np.ndarray:
    found = np.zeros(answers.x["tokens"].shape, np.float32)
    for row, (own, given) in enumerate(zip(answers.words, scores, strict=True)):
        for word, score in zip(own, given, strict=True):
            found[row, word.start] = score
    return found


def _as_bytes(ranked: dict[int, list[tuple[str, float]]]) -> tuple[jax.Array, jax.Array]:
    """Returns the strongest words of all topics and their scores, in arrays of one shape."""
    totals: dict[str, float] = {}
    for rows in ranked.values():
        for word, score in rows:
            totals[word] = totals.get(word, 0.0) + score
    best = sorted(totals.items(), key=lambda row: (-row[1], row[0]))[:SHOWN]
    words, scores = np.zeros((SHOWN, LETTERS), np.uint8), np.zeros(SHOWN, np.float32)
    for place, (word, score) in enumerate(best):
        letters = word.encode()[:LETTERS]
        words[place, : len(letters)] = np.frombuffer(letters, np.uint8)
        scores[place] = score
    return jnp.asarray(words), jnp.asarray(scores)
