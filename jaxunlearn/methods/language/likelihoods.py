"""Objectives that lower the likelihood of the answers to be forgotten.

``nll = -log p(answer | question)`` of one example, the sum over its tokens; ``p_t`` the
probability of token ``t``; means are over examples, or over all tokens of a batch.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core import errors
from jaxunlearn.core.types import Batch, Key, LanguageModel, Sets, Unlearner, Variables
from jaxunlearn.language.likelihood import answer_nll, mean_nll, token_logprobs
from jaxunlearn.methods.language.terms import (
    ForgetTerm,
    forgetting,
    log_softmax_before,
    reference_nll,
    token_mean,
    tuning,
)
from jaxunlearn.training.descent import Context, example_mean
from jaxunlearn.training.lora import QUERY_VALUE


def away(log_ratio: jax.Array, beta: float) -> jax.Array:
    """Computes ``-(2 / b) log sigmoid(-b r)``, which falls with ``r`` and tends to 0.

    Its slope is ``2 sigmoid(b r)``: 1 at ``r = 0``, and less the farther down.
    """
    return -2 / beta * jax.nn.log_sigmoid(-beta * log_ratio)


def lm_gradient_ascent(
    model: LanguageModel,
    *,
    optimizer: optax.GradientTransformation | None = None,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Climbs the loss of the answers: ``F = mean_t log p_t``; needs no retained text.

    Args:
      model, lora, lora_alpha, lora_on: as for :func:`~jaxunlearn.lm_retrain`.
      optimizer: default AdamW with rate 1e-5 and decay .01.
    """
    own = tuning(model, optimizer, lora, lora_alpha, lora_on)
    return forgetting(model, _likelihood, own)


def grad_diff(
    model: LanguageModel,
    *,
    optimizer: optax.GradientTransformation | None = None,
    retain: str = "nll",
    retain_weight: float = 1.0,
    forget_weight: float = 1.0,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Climbs the loss of what is to be forgotten and descends that of what is retained.

    ``J = g mean_t log p_t + a R``. Source: Liu et al., "Continual learning and private
    unlearning", CoLLAs 2022; Maini et al., arXiv 2401.06121.

    Args:
      model, lora, lora_alpha, lora_on: as for :func:`~jaxunlearn.lm_retrain`.
      optimizer: default AdamW with rate 1e-5 and decay .01.
      retain: ``R``: ``"nll"`` of the answers, ``"kl"`` from the original over their tokens, or
        ``"embedding"``, the mean square distance from the original's states behind the last
        block.
      retain_weight, forget_weight: ``a``, ``g``; without ``a`` no retained text is read.
    """
    own = tuning(
        model, optimizer, lora, lora_alpha, lora_on,
        retain=retain, retain_weight=retain_weight, forget_weight=forget_weight,
    )  # fmt: skip
    return forgetting(model, _likelihood, own)


def _likelihood(logits: Sequence[jax.Array], batch: Batch, context: Context) -> jax.Array:
    del context
    return -mean_nll(logits[0], batch.x, batch.weight)


def npo(
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
    """Climbs the loss less and less, the farther it is away: negative preference optimisation.

    ``F = mean_i -(2 / b) log sigmoid(b (nll_i - nll_o,i))``, where ``nll_o`` is the original's,
    computed once. With ``b -> 0`` it is gradient ascent on ``nll``.

    Source: Zhang et al., arXiv 2404.05868.

    Args:
      model, retain, retain_weight, forget_weight, lora, lora_alpha, lora_on: as for
        :func:`~jaxunlearn.grad_diff`.
      optimizer: default AdamW with rate 1e-5 and decay .01.
      beta: ``b``, positive.
    """
    errors.expect_positive(beta=beta)
    own = tuning(
        model, optimizer, lora, lora_alpha, lora_on,
        retain=retain, retain_weight=retain_weight, forget_weight=forget_weight,
    )  # fmt: skip

    def begin(variables: Variables, sets: Sets, key: Key, prepared: Any) -> jax.Array:
        del key, prepared
        assert sets.forget is not None
        return reference_nll(model, variables, sets.forget, lambda x, places: x)[:, 0]

    def term(logits: Sequence[jax.Array], batch: Batch, context: Context) -> jax.Array:
        total, _ = answer_nll(logits[0], batch.x)
        return example_mean(away(context.prepared[batch.slot] - total, beta), batch.weight)

    return forgetting(model, term, own, begin=begin)


def simnpo(
    model: LanguageModel,
    *,
    optimizer: optax.GradientTransformation | None = None,
    beta: float = 4.5,
    margin: float = 0.0,
    retain: str = "nll",
    retain_weight: float = 1.0,
    forget_weight: float = 0.125,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Climbs the mean loss of a token, less and less: preference optimisation without reference.

    ``F = mean_i -(2 / b) log sigmoid(b nll_i / n_i - c)`` with ``n_i`` tokens.

    Source: Fan et al., arXiv 2410.07163.

    Args:
      model, retain, retain_weight, forget_weight, lora, lora_alpha, lora_on: as for
        :func:`~jaxunlearn.grad_diff`.
      optimizer: default AdamW with rate 1e-5 and decay .01.
      beta: ``b``, positive.
      margin: ``c``.
    """
    errors.expect_positive(beta=beta)
    own = tuning(
        model, optimizer, lora, lora_alpha, lora_on,
        retain=retain, retain_weight=retain_weight, forget_weight=forget_weight,
    )  # fmt: skip

    def term(logits: Sequence[jax.Array], batch: Batch, context: Context) -> jax.Array:
        del context
        total, count = answer_nll(logits[0], batch.x)
        return example_mean(away(margin / beta - total / jnp.maximum(count, 1), beta), batch.weight)

    return forgetting(model, term, own)


def wga(
    model: LanguageModel,
    *,
    optimizer: optax.GradientTransformation | None = None,
    power: float = 1.0,
    retain: str = "nll",
    retain_weight: float = 1.0,
    forget_weight: float = 1.0,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Climbs the loss of each token as far as it is known: weighted gradient ascent.

    ``F = mean_t w_t log p_t`` with ``w_t = p_t^b``, which has no gradient of its own: what is
    forgotten already is left alone.

    Source: Wang et al., arXiv 2502.19301.

    Args:
      model, retain, retain_weight, forget_weight, lora, lora_alpha, lora_on: as for
        :func:`~jaxunlearn.grad_diff`.
      optimizer: default AdamW with rate 1e-5 and decay .01.
      power: ``b``, not negative; 0 is gradient ascent.
    """
    errors.expect_at_least(0, power=power)
    own = tuning(
        model, optimizer, lora, lora_alpha, lora_on,
        retain=retain, retain_weight=retain_weight, forget_weight=forget_weight,
    )  # fmt: skip
    return forgetting(model, _weighted(power, 0.0), own)


def sat_imp(
    model: LanguageModel,
    *,
    optimizer: optax.GradientTransformation | None = None,
    saturation: float = 5.0,
    importance: float = 1.0,
    retain: str = "nll",
    retain_weight: float = 1.0,
    forget_weight: float = 0.1,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Climbs the loss of tokens that are known, and that are not known anyway.

    ``F = mean_t w_t log p_t`` with ``w_t = p_t^b1 (1 - p_t)^b2``, which has no gradient of its
    own: little for tokens that are forgotten (saturation), or that any model would guess
    (importance).

    Source: Yang et al., arXiv 2505.11953.

    Args:
      model, retain, retain_weight, forget_weight, lora, lora_alpha, lora_on: as for
        :func:`~jaxunlearn.grad_diff`.
      optimizer: default AdamW with rate 1e-5 and decay .01.
      saturation, importance: ``b1``, ``b2``, not negative.
    """
    errors.expect_at_least(0, saturation=saturation, importance=importance)
    own = tuning(
        model, optimizer, lora, lora_alpha, lora_on,
        retain=retain, retain_weight=retain_weight, forget_weight=forget_weight,
    )  # fmt: skip
    return forgetting(model, _weighted(saturation, importance), own)


def _weighted(saturation: float, importance: float) -> ForgetTerm:
    """Returns the term ``mean_t p_t^b1 (1 - p_t)^b2 log p_t``, the weights being constants."""

    def term(logits: Sequence[jax.Array], batch: Batch, context: Context) -> jax.Array:
        del context
        found = token_logprobs(logits[0], batch.x)
        known = jnp.exp(jax.lax.stop_gradient(found))
        weights = known**saturation * (1 - known) ** importance
        return token_mean(weights * found, batch.x["answer"], batch.weight)

    return term


def undial(
    model: LanguageModel,
    *,
    optimizer: optax.GradientTransformation | None = None,
    strength: float = 10.0,
    retain: str = "nll",
    retain_weight: float = 0.0,
    forget_weight: float = 1.0,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Distils the original, with the logit of each answer token lowered, into itself.

    ``F = mean_t -sum_v q_tv log p_tv`` with ``q_t = softmax(z_o,t - b onehot(x_t))``, ``z_o``
    the original's logits. Bounded: it ends where the model is this teacher.

    Source: Dong et al., arXiv 2402.10052.

    Args:
      model, retain, retain_weight, forget_weight, lora, lora_alpha, lora_on: as for
        :func:`~jaxunlearn.grad_diff`.
      optimizer: default AdamW with rate 1e-5 and decay .01.
      strength: ``b``, not negative.
    """
    errors.expect_at_least(0, strength=strength)
    own = tuning(
        model, optimizer, lora, lora_alpha, lora_on,
        retain=retain, retain_weight=retain_weight, forget_weight=forget_weight,
    )  # fmt: skip

    def term(logits: Sequence[jax.Array], batch: Batch, context: Context) -> jax.Array:
        texts = batch.x
        teacher = log_softmax_before(model.apply(context.original, texts))
        aim = jax.nn.softmax(_lowered(teacher, texts["tokens"], strength), axis=-1)
        losses = -jnp.sum(aim * log_softmax_before(logits[0]), axis=-1)
        return token_mean(losses, texts["answer"], batch.weight)

    return forgetting(model, term, own, original=True)


def ce_u(
    model: LanguageModel,
    *,
    optimizer: optax.GradientTransformation | None = None,
    skip: int = 1,
    retain: str = "nll",
    retain_weight: float = 0.0,
    forget_weight: float = 1.0,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Learns its own predictions without the token to be forgotten: cross-entropy unlearning.

    ``F = mean_t -sum_v q_tv log p_tv`` with ``q_t = softmax(z_t)`` of the model as it is, the
    answer token's logit at minus infinity; ``q`` has no gradient.

    Source: Yang, arXiv 2503.01224.

    Args:
      model, retain, retain_weight, forget_weight, lora, lora_alpha, lora_on: as for
        :func:`~jaxunlearn.grad_diff`.
      optimizer: default AdamW with rate 1e-5 and decay .01.
      skip: so many tokens at the begin of each answer are left out.
    """
    errors.expect_at_least(0, skip=skip)
    own = tuning(
        model, optimizer, lora, lora_alpha, lora_on,
        retain=retain, retain_weight=retain_weight, forget_weight=forget_weight,
    )  # fmt: skip

    def term(logits: Sequence[jax.Array], batch: Batch, context: Context) -> jax.Array:
        del context
        texts, ours = batch.x, log_softmax_before(logits[0])
        others = _lowered(jax.lax.stop_gradient(ours), texts["tokens"], jnp.inf)
        losses = -jnp.sum(jax.nn.softmax(others, axis=-1) * ours, axis=-1)
        counted = texts["answer"] & (jnp.cumsum(texts["answer"], axis=-1) > skip)
        return token_mean(losses, counted, batch.weight)

    return forgetting(model, term, own)


def _lowered(logits: jax.Array, tokens: jax.Array, amount: jax.Array | float) -> jax.Array:
    """Returns ``z_tv - amount [v = x_t]``."""
    chosen = jax.nn.one_hot(tokens, logits.shape[-1], dtype=bool)
    return jnp.where(chosen, logits - amount, logits)
