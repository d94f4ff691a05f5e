"""Preference: another answer is to be likelier than the one to be forgotten, as against before.

Of an example ``i`` with its answer ``y`` and another one ``y'``, ``r = nll_o - nll`` is the log
of how much likelier an answer became than the original had it; answers are summed over tokens.
``F = mean_i -(2 / b) log sigmoid(b (r'_i - r_i))``. The original's likelihoods are computed once.

Source: Rafailov et al., arXiv 2305.18290; the factor ``2 / b``, with which all of these begin
with the slope of gradient ascent, is that of negative preference optimisation. An example
without another answer is treated as there: ``r'`` is 0.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core import errors
from jaxunlearn.core.types import Batch, Key, LanguageModel, Preparation, Sets, Unlearner, Variables
from jaxunlearn.data.examples import stored_like
from jaxunlearn.language.likelihood import Texts, answer_nll
from jaxunlearn.language.poison import poisoned
from jaxunlearn.methods.language.likelihoods import away
from jaxunlearn.methods.language.terms import (
    Tuning,
    forgetting,
    reference_nll,
    texts_on_host,
    tuning,
    whole_texts,
)
from jaxunlearn.training.descent import Context, example_mean
from jaxunlearn.training.lora import QUERY_VALUE


class Reference(NamedTuple):
    """What is computed once of ``M`` examples to be forgotten, with ``P`` other answers each.

    Attributes:
      nll: ``float32 [M, 1 + P]``, the original's, of the own answer and of the others.
      others: ``[M, T]`` texts, where they do not come with the examples.
    """

    nll: jax.Array
    others: Texts | None = None


Choose = Callable[[Texts, Key], jax.Array]
"""Which of the other answers a step takes: ``others [B, P, T], key -> int32 [B]``."""


def dpo(
    model: LanguageModel,
    *,
    optimizer: optax.GradientTransformation | None = None,
    beta: float = 0.1,
    retain: str = "nll",
    retain_weight: float = 1.0,
    forget_weight: float = 1.0,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Prefers a wrong answer to the right one: the first of each example's perturbed answers.

    The objective is that of :mod:`jaxunlearn.methods.language.preference`.

    Args:
      model, retain, retain_weight, forget_weight, lora, lora_alpha, lora_on: as for
        :func:`~jaxunlearn.grad_diff`.
      optimizer: default AdamW with rate 1e-5 and decay .01.
      beta: ``b``, positive.

    Raises:
      ValueError: a number out of range; while tracing, examples without perturbed answers.
    """
    own = tuning(
        model, optimizer, lora, lora_alpha, lora_on,
        retain=retain, retain_weight=retain_weight, forget_weight=forget_weight,
    )  # fmt: skip
    return _preferring(model, own, beta, _first)


def alt_po(
    model: LanguageModel,
    *,
    optimizer: optax.GradientTransformation | None = None,
    beta: float = 0.1,
    retain: str = "nll",
    retain_weight: float = 1.0,
    forget_weight: float = 1.0,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Prefers one of several alternatives, drawn anew at every visit, to the right answer.

    The alternatives are the examples' perturbed answers; the objective is that of
    :mod:`jaxunlearn.methods.language.preference`.

    Source: Mekala et al., arXiv 2409.13474, whose alternatives the model itself writes.

    Args:
      model, optimizer, beta, retain, retain_weight, forget_weight, lora, lora_alpha, lora_on: as
        for :func:`~jaxunlearn.dpo`.

    Raises:
      ValueError: as for :func:`~jaxunlearn.dpo`.
    """
    own = tuning(
        model, optimizer, lora, lora_alpha, lora_on,
        retain=retain, retain_weight=retain_weight, forget_weight=forget_weight,
    )  # fmt: skip
    return _preferring(model, own, beta, _any)


def idk_dpo(
    model: LanguageModel,
    *,
    tokenizer: Any,
    optimizer: optax.GradientTransformation | None = None,
    beta: float = 0.1,
    retain: str = "nll",
    retain_weight: float = 1.0,
    forget_weight: float = 1.0,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Prefers to say that one does not know.

    Each question gets one of twenty such answers (:data:`jaxunlearn.language.poison.IDK`), drawn
    once; the objective is that of :mod:`jaxunlearn.methods.language.preference`.

    Source: Maini et al., arXiv 2401.06121; Zhang et al., arXiv 2404.05868.

    Args:
      tokenizer: of the texts; runs pass it unasked.
      model, optimizer, beta, retain, retain_weight, forget_weight, lora, lora_alpha, lora_on: as
        for :func:`~jaxunlearn.dpo`.

    Raises:
      TypeError: no tokenizer.
      ValueError: a number out of range.
    """
    own = tuning(
        model, optimizer, lora, lora_alpha, lora_on,
        retain=retain, retain_weight=retain_weight, forget_weight=forget_weight,
    )  # fmt: skip
    if not hasattr(tokenizer, "encode"):
        raise TypeError(f"tokenizer: expected that of the texts, got {type(tokenizer).__name__}")

    def run(variables: Variables, sets: Sets, key: Key) -> Texts:
        del variables
        assert sets.forget is not None
        x, topics = texts_on_host(sets.forget)
        made = poisoned("idk", tokenizer, x, topics, seed=int(jax.random.bits(key, dtype="uint32")))
        rows = np.arange(len(sets.forget.indices)) % len(topics)
        return {name: jnp.asarray(leaf[rows]) for name, leaf in made.items()}

    def shapes(variables: Variables, sets: Sets) -> Any:
        del variables
        assert sets.forget is not None
        return whole_texts(stored_like(sets.forget.examples.x, len(sets.forget.indices)))

    return _preferring(model, own, beta, _first, Preparation(run, shapes))


def _first(others: Texts, key: Key) -> jax.Array:
    del key
    return jnp.zeros(len(others["tokens"]), jnp.int32)


def _any(others: Texts, key: Key) -> jax.Array:
    """Draws one of those that have an answer."""
    there = jnp.any(others["answer"], axis=-1)
    return jax.random.categorical(key, jnp.where(there, 0.0, -jnp.inf)).astype(jnp.int32)


def _preferring(
    model: LanguageModel,
    own: Tuning,
    beta: float,
    choose: Choose,
    prepare: Preparation | None = None,
) -> Unlearner:
    """Makes the method; ``prepare`` finds texts ``[M, T]`` in the place of perturbed answers."""
    errors.expect_positive(beta=beta)

    def others_of(x: Any, made: Texts | None, slot: jax.Array) -> Texts:
        if made is None:
            return _perturbed(x)
        return {name: leaf[slot][:, None] for name, leaf in made.items()}

    def begin(variables: Variables, sets: Sets, key: Key, made: Texts | None) -> Reference:
        del key
        part = sets.forget
        assert part is not None
        several = 1
        if made is None:
            several = _perturbed(stored_like(part.examples.x, 1))["tokens"].shape[1]

        def texts_of(x: Any, places: jax.Array) -> Texts:
            others = others_of(x, made, places // (1 + several))
            both = {
                name: jnp.concatenate([x[name][:, None], others[name]], axis=1) for name in others
            }
            return _taken(both, places % (1 + several))

        return Reference(reference_nll(model, variables, part, texts_of, 1 + several), made)

    def chosen(batch: Batch, context: Context) -> tuple[Texts, jax.Array]:
        others = others_of(batch.x, context.prepared.others, batch.slot)
        choice = choose(others, jax.random.fold_in(context.key, 1))
        return _taken(others, choice), choice

    def term(logits: Sequence[jax.Array], batch: Batch, context: Context) -> jax.Array:
        texts, choice = chosen(batch, context)
        before = context.prepared.nll[batch.slot]
        ours = before[:, 0] - answer_nll(logits[0], batch.x)[0]
        picked = jnp.take_along_axis(before, 1 + choice[:, None], axis=1)[:, 0]
        theirs = picked - answer_nll(logits[1], texts)[0]
        return example_mean(away(ours - theirs, beta), batch.weight)

    return forgetting(
        model, term, own, beside=lambda *given: [chosen(*given)[0]], begin=begin, prepare=prepare
    )


def _perturbed(x: Any) -> Texts:
    found = x.get("variants", {}).get("perturbed")
    if found is None:
        raise ValueError(
            "sets: expected examples with perturbed answers to prefer, perturbed_answer in lines "
            "of a file, got none"
        )
    return whole_texts(found)


def _taken(texts: Texts, choice: jax.Array) -> Texts:
    """Returns one of several texts of each example, ``[B, P, T] -> [B, T]``."""
    rows = jnp.arange(len(choice), dtype=jnp.int32)
    return {name: leaf[rows, choice] for name, leaf in texts.items()}
