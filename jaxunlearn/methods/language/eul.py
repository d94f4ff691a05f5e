"""Light adapters for each request, and one set of weights for several: efficient unlearning.

Chen and Yang, "Unlearn what you want to forget", arXiv 2310.20150. Its code was never published
whole; what is here follows the equations. Adapters stand on the kernels that end a feed-forward
part, where the paper puts one behind it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core import errors
from jaxunlearn.core.trees import named_leaves, path_name, precise
from jaxunlearn.core.types import Batches, Inputs, LanguageModel, Model, Needs, Unlearner, Variables
from jaxunlearn.jaxprs.program import evaluate, trace
from jaxunlearn.language.likelihood import mean_nll, token_logprobs
from jaxunlearn.methods.language.terms import (
    descend,
    forward_all,
    token_kl,
    token_mean,
    tuning,
    whole_texts,
)
from jaxunlearn.training.descent import Context, LossAndMore

FEED_FORWARD = (r"(^|/)down/kernel$",)
"""Kernels that end the feed-forward part of a block."""


def eul(
    model: LanguageModel,
    *,
    optimizer: optax.GradientTransformation | None = None,
    retain_weight: float = 0.8,
    forget_weight: float = 1.0,
    task_weight: float = 1.0,
    reversed_weight: float = 0.2,
    cap: float = 5.0,
    lora: int = 8,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = FEED_FORWARD,
) -> Unlearner:
    """Trains light adapters by a selective teacher and student, and a reversed language model.

    ``J = a KL_r - g KL_f + l NLL_r - c NLL_f`` with ``KL = mean_t KL(p_o || p)`` from the original
    and ``NLL = mean_t -log p_t``, on retained answers and those to be forgotten. What is climbed
    has no bound: each token counts there up to ``cap`` nats, and pulls no further.

    The result has the adapters merged; :func:`fuse` makes one model of those of several requests.

    Source: arXiv 2310.20150.

    Args:
      model: see :class:`~jaxunlearn.core.types.LanguageModel`.
      optimizer: default AdamW with rate 1e-5 and decay .01.
      retain_weight, forget_weight: ``a``, ``g``.
      task_weight, reversed_weight: ``l``, ``c``.
      cap: positive.
      lora: rank of the adapters.
      lora_alpha: of them, ``2 lora`` by default.
      lora_on: regular expressions on the paths of the kernels that have one.

    Raises:
      ValueError: a number out of range.
    """
    own = tuning(
        model, optimizer, lora, lora_alpha, lora_on,
        retain_weight=retain_weight, forget_weight=forget_weight,
    )  # fmt: skip
    errors.expect_at_least(0, task_weight=task_weight, reversed_weight=reversed_weight)
    errors.expect_positive(cap=cap)

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        forget, retain = batches.forget, batches.retain
        assert forget is not None
        assert retain is not None
        parts = [forget.x, retain.x]
        logits, moved = forward_all(model, variables, parts, context.key)
        teacher = [model.apply(context.original, whole_texts(x)) for x in parts]
        apart, nll = token_kl(teacher[0], logits[0]), -token_logprobs(logits[0], forget.x)
        climbed = forget_weight * jnp.minimum(apart, cap) + reversed_weight * jnp.minimum(nll, cap)
        away = token_mean(climbed, forget.x["answer"], forget.weight)
        kept = token_mean(token_kl(teacher[1], logits[1]), retain.x["answer"], retain.weight)
        task = mean_nll(logits[1], retain.x, retain.weight)
        metrics = {
            "forget": -away,
            "retain": kept,
            "nll_forget": mean_nll(logits[0], forget.x, forget.weight),
        }
        return retain_weight * kept + task_weight * task - away, (moved, metrics)

    return descend(model, objective, own, Needs(forget=True, retain=True, original=True))


def input_grams(
    model: LanguageModel | Model, variables: Variables, x: Inputs, on: tuple[str, ...] | None = None
) -> dict[str, jax.Array]:
    """Computes Gram matrices ``X'X`` of what dense kernels read of some inputs.

    One row a token of a language model, or an example (and a position) of a classifier.

    Args:
      variables: of the original.
      x: texts ``[B, T]``, whose padding is left out; or a batch that a classifier takes.
      on: regular expressions on the paths of the kernels; default :data:`FEED_FORWARD`, or of a
        classifier all that are dense.

    Returns:
      ``[in, in]`` by path, ``params/blocks_0/mlp/down/kernel``, in float32 or better; add those
      of batches.

    Raises:
      ValueError: no kernel is found, or one that does not read states ``[B, T, in]``.
    """
    texts = isinstance(model, LanguageModel)
    on = (FEED_FORWARD if texts else (".",)) if on is None else on
    errors.expect_patterns((), on=on)
    given = {name: x[name] for name in ("tokens", "mask")} if texts else x
    program = trace(model.apply, variables, given)
    values, found = evaluate(program, variables, given), {}
    for op in program.ops:
        reads = program.data_ins(op)
        if op.name != "dot_general" or len(reads) != 1:
            continue
        leaf = program.leaf(op.ins[1 - reads[0]])
        path = "" if leaf is None else program.paths[leaf]
        if not path or not any(re.search(pattern, path) for pattern in on):
            continue
        dims = op.params["dimension_numbers"][0][reads[0]]
        states = precise(jnp.moveaxis(values[op.ins[reads[0]]], dims[0], -1))
        if len(dims) != 1 or (texts and states.shape[:-1] != given["mask"].shape):
            raise ValueError(
                f"model: expected {path} to read states {'[B, T, in]' if texts else '[B, ..., in]'}"
                f", got {list(states.shape)}"
            )
        rows = states[given["mask"]] if texts else states.reshape(-1, states.shape[-1])
        found[path] = rows.T @ rows
    if not found:
        raise ValueError(f"on: expected patterns found in some of {program.paths}, got {on}")
    return found


def fuse(
    original: Variables,
    unlearned: Sequence[Variables],
    grams: Sequence[Mapping[str, jax.Array]],
    *,
    ridge: float = 1e-6,
) -> Variables:
    """Fuses what several requests made of an original into one model, by least squares.

    Of each kernel of a language model or a classifier, ``W_i`` what request ``i`` made of it and
    ``X_i`` what it reads of what is to be forgotten there: ``argmin_W sum_i |X_i W - X_i W_i|^2 +
    e |W - W_i|^2``, which is ``(sum_i G_i)^-1 sum_i G_i W_i`` with ``G_i = X_i'X_i + e I``. One
    request gives its ``W_1``;
    inputs that are orthogonal give ``X_i W = X_i W_i`` as ``e`` tends to 0. All other parameters
    are the original's.

    Args:
      original: variables that every request started from.
      unlearned: those that it ended with.
      grams: of each request, :func:`input_grams`.
      ridge: ``e``, as a share of the mean of the diagonal of ``sum_i X_i'X_i``; positive.

    Raises:
      ValueError: numbers differ, no request, requests with different kernels.

    Source: arXiv 2310.20150; the ridge towards each request's own kernel is ours.
    """
    errors.expect_positive(ridge=ridge)
    if len(unlearned) != len(grams) or not grams:
        raise ValueError(
            f"grams: expected one a request, at least one, got {len(grams)} for {len(unlearned)}"
        )
    if len({frozenset(one) for one in grams}) > 1:
        raise ValueError("grams: expected the same kernels of every request, got different ones")
    made = [named_leaves(one) for one in unlearned]

    def one(keys: Sequence[Any], before: jax.Array) -> jax.Array:
        path = path_name(keys)
        if path not in grams[0]:
            return before
        each = jnp.stack([own[path] for own in grams])
        whole = jnp.sum(each, axis=0)
        size = jnp.maximum(ridge * jnp.trace(whole) / len(whole), jnp.finfo(whole.dtype).tiny)
        each += size * jnp.eye(len(whole), dtype=whole.dtype)[None]
        # as distances from the mean, so that rounding leaves alone what requests agree on
        aims = jnp.stack([leaves[path].astype(whole.dtype) for leaves in made])
        mean = jnp.mean(aims, axis=0)
        right = jnp.einsum("rij,rjk->ik", each, aims - mean[None])
        fused = mean + jnp.linalg.solve(jnp.sum(each, axis=0), right)
        return fused.astype(before.dtype)

    return jax.tree_util.tree_map_with_path(one, original)
