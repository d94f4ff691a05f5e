"""Evidence that metrics of language models read: scores of tokens, greedy answers, attacks.

Sets hold questions with answers; variants are other answers to the same question: a *paraphrase*,
and *perturbed*, wrong ones in its form.

Legend: ``N`` examples of a set, ``P`` wrong answers to a question, ``T`` tokens of a text, ``L``
blocks.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.config import LanguageConfig
from jaxunlearn.core.types import Key, LanguageModel, Sets, Subset, Variables
from jaxunlearn.data.examples import fetch
from jaxunlearn.data.sets import num_examples
from jaxunlearn.data.sources.authors import REAL_AUTHORS, WORLD_FACTS
from jaxunlearn.language.generation import generate
from jaxunlearn.language.pairs import decode_answers, stop_token
from jaxunlearn.language.words import STOP_WORDS, read_answers
from jaxunlearn.metrics import answers
from jaxunlearn.metrics.language_attacks import (
    TokenScores,
    batch_of,
    knowledge_drops,
    learn_again,
    score_tokens,
)
from jaxunlearn.metrics.registry import Evidence, Missing

SCORED = 128
"""Examples of a set other than the forget set that are scored, drawn at random, at most."""

GENERAL = (REAL_AUTHORS, WORLD_FACTS)
"""Topics of general knowledge, sets of their own here."""


class LanguageEvidence(Evidence):
    """Evidence of one decoder: scores of tokens, greedy answers, attacks.

    Sets are named as in :class:`~jaxunlearn.core.types.Sets`, and :data:`GENERAL` besides, which
    ``"retain"`` and ``"test_retain"`` are then without. Of sets other than ``"forget"`` some
    examples are taken, the same of every model.

    Args:
      tokenizer: turns tokens into texts; ``None``: metrics of texts are left out.
      settings: amounts that are measured, and the template of prompts.
      topics: names of the topics, by label.
      words: words or phrases to be forgotten; without any, each example's topic is.
    """

    provides = frozenset({"weights", "scores", "truth", "generated", "learned", "drops"})

    def __init__(
        self,
        model: LanguageModel,
        variables: Variables,
        sets: Sets,
        key: Key,
        *,
        tokenizer: Any = None,
        settings: LanguageConfig | None = None,
        topics: Sequence[str] = (),
        words: Sequence[str] = (),
    ) -> None:
        super().__init__(model, variables, sets, key)
        self.tokenizer, self.topics, self.words = tokenizer, tuple(topics), tuple(words)
        self.settings = LanguageConfig() if settings is None else settings
        self._held: dict[Any, Any] = {}

    def _once(self, name: Any, compute: Callable[[], Any]) -> Any:
        if name not in self._held:
            self._held[name] = compute()
        return self._held[name]

    def texts(self, name: str) -> dict[str, Any]:
        """Returns texts of a set with their variants, and ``"topic"``, arrays of NumPy."""

        def read() -> dict[str, Any]:
            part, at = self._chosen(name)
            x = jax.tree.map(np.asarray, fetch(part.examples, at))
            return {**x, "topic": np.asarray(part.examples.y)[at]}

        return self._once(("texts", name), read)

    def _chosen(self, name: str) -> tuple[Subset, np.ndarray]:
        part = self.part("test_retain" if name in GENERAL else name)
        at = np.asarray(part.indices)[: num_examples(part)]
        topic = np.asarray(part.examples.y)[at]
        if name in GENERAL:
            if name not in self.topics:
                raise Missing(name)
            at = at[topic == self.topics.index(name)]
        elif name in ("retain", "test_retain"):
            general = [self.topics.index(one) for one in GENERAL if one in self.topics]
            own = at[~np.isin(topic, general)]
            at = own if len(own) else at
        if not len(at):
            raise Missing(name)
        order = (
            np.arange(len(at))
            if name == "forget"
            else np.random.default_rng(0).permutation(len(at))
        )
        return part, at[order[: None if name == "forget" else SCORED]]

    def _first(self, name: str) -> int | None:
        """Returns how many examples of a set are generated for, or have their variants scored."""
        return None if name == "forget" else self.settings.generated

    def is_sound(self) -> bool:
        try:
            self.scores("forget")
        except ValueError:
            return False
        return True

    def scores(self, name: str, variant: str = "") -> TokenScores:
        """Returns scores of the tokens of a set's answers, ``[N, T]``, or of their variants.

        Of wrong answers ``[N, P, T]``.

        Raises:
          Missing: the set has no such variant.
          ValueError: of a wrecked model.
        """

        def compute() -> TokenScores:
            x = self.texts(name)
            if variant:
                x = x.get("variants", {}).get(variant)
                if x is None or not np.any(x["answer"]):
                    raise Missing(f"{variant} answers of {name}")
                x = {key: leaf[: self._first(name)] for key, leaf in x.items()}
            shape = x["tokens"].shape
            flat = {key: x[key].reshape(-1, shape[-1]) for key in ("tokens", "mask", "answer")}
            found = score_tokens(self.model, self.variables, flat)
            return TokenScores(*(leaf.reshape(shape) for leaf in found))

        return self._once(("scores", name, variant), compute)

    def losses(self, name: str, variant: str = "") -> np.ndarray:
        """Returns ``nll / n`` of a set's answers, ``[N]`` or ``[N, P]``; NaN where none is."""
        found = self.scores(name, variant)
        return -answers.mean_over(found.logprobs, found.answer)

    def options(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns ``nll / n`` of given, right and wrong answers, where there are wrong ones.

        Right is the paraphrase, the given answer where there is none; ``[N]``, ``[N]``, ``[N, P]``.
        """
        wrong = self.losses(name, "perturbed")
        given = self.losses(name)[: len(wrong)]
        try:
            paraphrase = self.losses(name, "paraphrase")
        except Missing:
            paraphrase = np.full(len(given), np.nan)
        right = np.where(np.isnan(paraphrase), given, paraphrase)
        there = ~np.isnan(wrong).all(axis=1)
        return given[there], right[there], wrong[there]

    def truth(self, name: str) -> np.ndarray:
        """Returns truth ratios of a set's examples that have wrong answers, ``[N']``."""
        _, right, wrong = self.options(name)
        return answers.truth_ratios(right, wrong)

    def generated(self, name: str) -> list[str]:
        """Returns greedy answers to a set's questions."""
        return self._once(("generated", name), lambda: self._generate(name))

    def _generate(self, name: str) -> list[str]:
        tokenizer = self._reader()
        self.scores(name)  # a wrecked model has no answers
        x, most = self.texts(name), self._first(name)
        mask = _questions(x)[:most]
        width = self._longest_question
        tokens = np.where(mask, x["tokens"][:most], 0)[:, :width]
        mask, count = mask[:, :width], len(mask)
        length = self.settings.answer_length
        if (context := getattr(self.model.shape, "context", None)) is not None:
            length = min(length, context - width)
        if length < 1:
            raise Missing("room for answers behind the longest question")
        stop = stop_token(tokenizer, self.settings.template)
        size, texts = batch_of(self.model, self.variables, width), []
        for start in range(0, count, size):
            rows = np.arange(start, start + size) % count
            asked = {"tokens": jnp.asarray(tokens[rows]), "mask": jnp.asarray(mask[rows])}
            made = np.asarray(
                generate(self.model, self.variables, asked, self.key, most=length, stop_token=stop)
            )
            texts += decode_answers(tokenizer, made, stop)
        return texts[:count]

    @functools.cached_property
    def _longest_question(self) -> int:
        # one width for all sets, so that one program answers them
        longest, length = 1, 1
        for name in ("forget", "test_forget", "retain", *GENERAL):
            with contextlib.suppress(Missing):
                questions = _questions(self.texts(name))
                longest, length = max(longest, int(questions.sum(1).max())), questions.shape[1]
        return min(-(-longest // 8) * 8, length)

    def right_texts(self, name: str) -> list[str]:
        """Returns the texts of a set's answers."""
        tokenizer, x = self._reader(), self.texts(name)
        return [tokenizer.decode(t[a]) for t, a in zip(x["tokens"], x["answer"], strict=True)]

    def questions(self, name: str) -> list[str]:
        """Returns what stands before a set's answers, by the template of prompts."""
        tokenizer, x = self._reader(), self.texts(name)
        return [tokenizer.decode(t[q]) for t, q in zip(x["tokens"], _questions(x), strict=True)]

    def _reader(self) -> Any:
        if self.tokenizer is None:
            raise Missing("a tokenizer")
        return self.tokenizer

    def concepts(self, name: str) -> list[tuple[str, ...]]:
        """Returns, for each example of a set, the words that its answer should not contain.

        Those of the request; else the name of its topic and each word of it, but for words of
        less than three letters and function words.
        """
        topic = self.texts(name)["topic"]
        if self.words:
            return [self.words] * len(topic)
        if not self.topics:
            raise Missing("names of the topics")

        def parts(whole: str) -> tuple[str, ...]:
            words = [w for w in answers.words_in(whole) if len(w) > 2 and w not in STOP_WORDS]
            return (whole, *words)

        return [parts(self.topics[number]) for number in topic]

    def learned(self, unrelated: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns what learning again brings back.

        On a few forgotten examples, or on others, of the test set where there is one.

        Returns:
          ``[steps]``, the mean probability of each batch before its step; the places of the
          forget examples that it was trained on; the probabilities of the others afterwards.
        """
        return self._once(("learned", unrelated), lambda: self._learn(unrelated))

    def _learn(self, unrelated: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        steps, most = self.settings.relearning_steps, self.settings.relearning_examples
        if not steps:
            raise Missing("steps of relearning")
        forget = self.texts("forget")
        self.scores("forget")  # a wrecked model cannot be trained
        count = len(forget["topic"])
        order = np.random.default_rng(0).permutation(count)
        few = order[: 0 if unrelated else min(most, max(count // 2, 1))]
        rest = np.setdiff1d(order, few) if len(few) < count else few
        name = "test_retain" if num_examples(self.sets.test_retain) else "retain"
        source, at = (self.texts(name), slice(None)) if unrelated else (forget, few)
        keys = ("tokens", "mask", "answer")
        variables, curve = learn_again(
            self.model, self.variables, {key: source[key][at] for key in keys}, self.key,
            steps=steps, batch_size=most,
        )  # fmt: skip
        found = score_tokens(self.model, variables, {key: forget[key][rest] for key in keys})
        return curve, few, answers.probabilities(found.logprobs, found.answer)

    def drops(self, original: "LanguageEvidence") -> np.ndarray:
        """Returns what the original loses by going on from this model's states, ``[N, L]``.

        At words of the forget set's answers other than function words; see ``knowledge_drops``.
        """
        if self.model.apply_patched is None:
            raise Missing("a network whose states can be replaced")
        if ("drops", id(original)) not in self._held:
            x = self.texts("forget")
            marked = {**x, "answer": self._content(x)}
            self._held["drops", id(original)] = knowledge_drops(
                self.model, original.variables, self.variables, marked
            )
        found: np.ndarray = self._held["drops", id(original)]
        return found

    def _content(self, x: dict[str, Any]) -> np.ndarray:
        """Marks the tokens of words that say something; all of an answer where none does."""
        marked = np.zeros_like(x["answer"])
        if self.tokenizer is not None:
            for row, words in enumerate(read_answers(self.tokenizer, x, x["topic"]).words):
                for word in words:
                    marked[row, word.start : word.stop] |= bool(word.key)
        marked &= x["answer"]
        return np.where(marked.any(axis=1, keepdims=True), marked, x["answer"])

    @property
    def held_out(self) -> str:
        """Names the set of texts that attacks compare forgotten ones with."""
        name = "test_forget" if num_examples(self.sets.test_forget) else "test_retain"
        if min(num_examples(getattr(self.sets, name)), num_examples(self.sets.forget)) < 4:
            raise Missing(name)  # too few for any attack
        return name


def _questions(x: Any) -> np.ndarray:
    """Marks the tokens of questions, those before an answer, ``bool [N, T]``."""
    answer = np.asarray(x["answer"], bool)
    return np.asarray(x["mask"], bool) & ~np.logical_or.accumulate(answer, axis=1)
