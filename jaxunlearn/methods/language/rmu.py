"""Representation misdirection: states of what is to be forgotten become a random vector."""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core import errors
from jaxunlearn.core.types import Batches, Key, LanguageModel, Needs, Sets, Unlearner, Variables
from jaxunlearn.data.examples import stored_like
from jaxunlearn.methods.language.terms import (
    descend,
    square_distance,
    token_mean,
    tuning,
    whole_texts,
)
from jaxunlearn.training.descent import Context, LossAndMore
from jaxunlearn.training.lora import QUERY_VALUE
from jaxunlearn.training.optimizers import matching, only

LAYER = 7
"""Block whose states are moved, counted from 0, in networks of 15 blocks and more."""


def rmu(
    model: LanguageModel,
    *,
    optimizer: optax.GradientTransformation | None = None,
    layer: int | None = None,
    coefficient: float = 2.0,
    parts: tuple[str, ...] | None = None,
    retain_weight: float = 1.0,
    forget_weight: float = 1.0,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Moves the states behind a block to ``c u``, and keeps those of retained texts.

    ``J = g mean_t |h_t - c u|^2 / D + a mean_t |h_t - h_o,t|^2 / D`` over the tokens of answers to
    be forgotten and to be retained, with ``u`` a random vector of length 1 and entries above 0,
    drawn once, and ``h_o`` the original's states. Blocks behind are neither trained nor computed.

    Source: Li et al., arXiv 2403.03218. The paper takes ``c`` 6.5 and ``a`` 1200 for a network
    of 7 billion parameters, whose states are longer.

    Args:
      model, lora, lora_alpha, lora_on: as for :func:`~jaxunlearn.lm_retrain`.
      optimizer: default AdamW with rate 1e-5 and decay .01.
      layer: the block, counted from 0; default 7, and in networks of few blocks one before
        their middle.
      coefficient: ``c``, positive.
      parts: regular expressions on the paths of what is trained; default: all of the block and
        the two before it.
      retain_weight, forget_weight: ``a``, ``g``; without ``a`` no retained text is read.

    Raises:
      ValueError: a number out of range, a block that the network has not.
    """
    own = tuning(
        model, optimizer, lora, lora_alpha, lora_on,
        retain_weight=retain_weight, forget_weight=forget_weight,
    )  # fmt: skip
    errors.expect_positive(coefficient=coefficient)
    blocks = _count_blocks(model)
    layer = min(LAYER, (blocks - 1) // 2) if layer is None else layer
    if layer not in range(blocks):
        raise ValueError(f"layer: expected one from 0 to {blocks - 1}, got {layer!r}")
    at = layer + 1
    if parts is None:
        numbers = "|".join(map(str, range(max(0, layer - 2), layer + 1)))
        parts = (rf"(^|/)blocks_({numbers})/",)
    errors.expect_patterns((), parts=parts)
    own = own._replace(optimizer=only(own.optimizer, matching(*parts)))
    retained = retain_weight > 0

    def begin(variables: Variables, sets: Sets, key: Key, prepared: object) -> jax.Array:
        del prepared
        assert sets.forget is not None
        one = whole_texts(stored_like(sets.forget.examples.x, 1))
        width = jax.eval_shape(model.states, variables, one).shape[-1]
        drawn = jax.random.uniform(key, (width,))
        return coefficient * drawn / jnp.linalg.norm(drawn)

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        both = [batch for batch in (batches.forget, batches.retain) if batch is not None]
        x = jax.tree.map(lambda *own: jnp.concatenate(own), *(whole_texts(b.x) for b in both))
        states = jnp.split(model.states(variables, x)[at], [len(both[0].weight)])
        aim = context.prepared[None, None]
        answers = [batch.x["answer"] for batch in both]
        away = token_mean(square_distance(states[0], aim), answers[0], both[0].weight)
        loss, metrics = forget_weight * away, {"forget": away}
        if retained:
            before = model.states(context.original, whole_texts(both[1].x))[at]
            moved = square_distance(states[1], before)
            metrics["retain"] = token_mean(moved, answers[1], both[1].weight)
            loss = loss + retain_weight * metrics["retain"]
        return loss, (variables, metrics)

    needs = Needs(forget=True, retain=retained, original=retained)
    return descend(model, objective, own, needs, begin)


def _count_blocks(model: LanguageModel) -> int:
    key = jax.eval_shape(lambda: jax.random.key(0))
    x = {
        "tokens": jax.ShapeDtypeStruct((1, 2), jnp.int32),
        "mask": jax.ShapeDtypeStruct((1, 2), bool),
    }
    return int(jax.eval_shape(model.states, jax.eval_shape(model.init, key), x).shape[0]) - 1
