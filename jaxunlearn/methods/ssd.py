"""Selective synaptic dampening: weights that what is to be forgotten depends on are shrunk."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core.errors import (
    expect_at_least,
    expect_counts,
    expect_flags,
    expect_one_of,
    expect_positive,
)
from jaxunlearn.core.trees import choose, precise
from jaxunlearn.core.types import (
    Apply,
    Batch,
    Key,
    Model,
    Needs,
    Sets,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.data.batches import pick, shuffled
from jaxunlearn.methods.shares import forget_fraction
from jaxunlearn.models import functionalize
from jaxunlearn.training.curvature import losses_of
from jaxunlearn.training.descent import Losses, example_mean, trained, with_trained
from jaxunlearn.training.edit import edit
from jaxunlearn.training.per_example import MEANS, mean_importance

IMPORTANCES = ("example", "batch")


def dampen(
    params: Any,
    forget: Any,
    everything: Any,
    threshold: float | jax.Array,
    dampening: float | jax.Array,
) -> Any:
    """Computes ``theta min(l I_D / I_f, 1)`` where ``I_f > a I_D``; other numbers stay.

    Args:
      params: ``theta``.
      forget, everything: importances ``I_f`` and ``I_D``, trees like the parameters.
      threshold, dampening: ``a`` and ``l``.
    """

    def shrink(theta: jax.Array, own: jax.Array, whole: jax.Array) -> jax.Array:
        chosen = own > jnp.asarray(threshold, own.dtype) * whole
        factor = jnp.asarray(dampening, own.dtype) * whole / jnp.where(chosen, own, 1)
        return jnp.where(chosen, theta * jnp.minimum(factor, 1).astype(theta.dtype), theta)

    return jax.tree.map(shrink, params, forget, everything)


def adaptive_threshold(forget: Any, everything: Any, share: jax.Array) -> jax.Array:
    """Returns the percentile ``100 - ln(1 + 100 s)`` of all ratios ``I_f / I_D``.

    Args:
      forget, everything: importances, trees like the parameters; where ``I_D`` is 0 there is no
        ratio.
      share: ``s``, that of the forget set among all training examples.

    Source: Schoepf et al., "Parameter-tuning-free data entry error unlearning with adaptive
    selective synaptic dampening", arXiv 2402.10098.
    """

    def ratios(own: jax.Array, whole: jax.Array) -> jax.Array:
        there = whole > 0
        return jnp.where(there, own / jnp.where(there, whole, 1), jnp.nan).reshape(-1)

    found = jnp.concatenate(jax.tree.leaves(jax.tree.map(ratios, forget, everything)))
    rank = 1 - jnp.log1p(100 * share.astype(found.dtype)) / 100
    return jnp.nanquantile(found, rank)


def batch_importance(
    losses: Losses,
    variables: Variables,
    parts: tuple[Subset, ...],
    key: Key,
    *,
    size: int,
    reduce: str = "mean_square",
) -> Any:
    """Computes the mean over batches of ``(grad mean_b l)^2``, or of its absolute value.

    Batches are drawn once from the union of some sets, in random order. Examples whose gradients
    are opposite take each other away, so that the number depends on order and size of batches.

    Args:
      parts: the sets.
      size: of a batch; the last one may be smaller.
      reduce: ``"mean_square"`` or ``"mean_abs"``.

    Returns:
      A tree like the trained parameters.
    """
    total = sum(part.size for part in parts)
    assert isinstance(total, jax.Array)
    seed = jax.random.bits(key, (2,), jnp.uint32)
    count = -(-total // size)

    def add(turn: jax.Array, found: Any) -> Any:
        ranks = turn * size + jnp.arange(size, dtype=jnp.int32)
        places = shuffled(seed, jnp.zeros_like(ranks), jnp.minimum(ranks, total - 1), total)
        batch = _pick_of(parts, places, ranks < total)

        def mean_loss(params: Any) -> jax.Array:
            return example_mean(losses(with_trained(variables, params), batch), batch.weight)

        gradient = jax.grad(mean_loss)(trained(variables))
        return jax.tree.map(lambda leaf, g: leaf + MEANS[reduce](g), found, gradient)

    blank = jax.tree.map(jnp.zeros_like, trained(variables))
    found = jax.lax.fori_loop(0, count, add, blank)
    return jax.tree.map(lambda leaf: leaf / jnp.maximum(count, 1).astype(leaf.dtype), found)


def _pick_of(parts: tuple[Subset, ...], places: jax.Array, weight: jax.Array) -> Batch:
    """Returns the examples in some places of sets that lie one behind the other."""
    begin, found = jnp.int32(0), None
    for part in parts:
        inside = (places >= begin) & (places < begin + part.size)
        batch = pick(part, jnp.where(inside, places - begin, 0), weight, labels=True)
        begin = begin + part.size
        found = batch if found is None else choose(inside, batch, found)
    assert found is not None
    return found


def _dampening(
    model: Model,
    losses: Losses,
    reduce: str,
    needs: Needs,
    *,
    threshold: float,
    dampening: float,
    adaptive: bool,
    importance: str,
    importance_batch: int,
) -> Unlearner:
    """Makes the method of one measure of importance."""
    expect_positive(threshold=threshold)
    expect_at_least(0, dampening=dampening)
    expect_flags(adaptive=adaptive)
    expect_one_of(IMPORTANCES, importance=importance)
    expect_counts(importance_batch=importance_batch)

    def measured(variables: Variables, sets: Sets, key: Key) -> tuple[Any, Any]:
        forget, retain = sets.forget, sets.retain
        assert forget is not None
        assert retain is not None
        if importance == "batch":
            first, second = jax.random.split(key)
            return tuple(
                batch_importance(losses, variables, parts, own, size=importance_batch,
                                 reduce=reduce)
                for parts, own in (((forget,), first), ((forget, retain), second))
            )  # fmt: skip

        def loss(variables: Variables, one: Batch) -> jax.Array:
            return jnp.sum(losses(variables, one))

        own, kept = (
            mean_importance(loss, variables, part, reduce=reduce) for part in (forget, retain)
        )
        share = forget_fraction(forget, retain)

        def both(f: jax.Array, r: jax.Array) -> jax.Array:
            part = share.astype(f.dtype)
            return part * f + (1 - part) * r

        return own, jax.tree.map(both, own, kept)

    def change(variables: Variables, sets: Sets, key: Key) -> Variables:
        assert sets.forget is not None
        assert sets.retain is not None
        own, whole = measured(variables, sets, key)
        least: float | jax.Array = threshold
        if adaptive:
            share = forget_fraction(sets.forget, sets.retain)
            least = adaptive_threshold(own, whole, share)
        params = dampen(trained(variables), own, whole, least, dampening)
        return with_trained(variables, params)

    return edit(change, needs, model=model)


def ssd(
    model: Model | Apply,
    *,
    threshold: float = 2.0,
    dampening: float = 1.0,
    adaptive: bool = False,
    importance: str = "example",
    importance_batch: int = 64,
    losses: Losses | None = None,
) -> Unlearner:
    """Shrinks weights of large importance: ``theta <- theta min(l I_D / I_f, 1)``.

    It does so where ``I_f > a I_D``, with ``I = (1/n) sum_i (grad l_i)^2`` over the forget set and
    over all training examples, of the original in inference mode. One pass over both sets, and no
    step. ``I_f / I_D`` is at most ``n / n_f``: thresholds above that leave everything as it is,
    also the published 10 where one of ten classes is to be forgotten.

    For classes and items; not exact. Gradients of examples that are fitted perfectly are 0:
    then nothing tells which weights they depend on.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      threshold: ``a``, positive; 10 in the paper, whose forget sets were 1 to 5 %.
      dampening: ``l``, not negative; 0 sets weights to 0.
      adaptive: in the place of ``a`` a percentile of all ratios, see :func:`adaptive_threshold`.
      importance: ``"example"``, the same in whatever order; ``"batch"``, as published code has
        it: ``I = (1/m) sum_b (grad mean_b l)^2`` over ``m`` batches, which depends on their
        order, drawn from the key of the call, and on their size.
      importance_batch: that size.
      losses: ``variables, batch -> [B]``, in the place of the cross-entropy.

    Source: Foster et al., "Fast machine unlearning without retraining through selective synaptic
    dampening", AAAI 2024 (arXiv 2308.07707); importance of each example: arXiv 2510.26714, B.
    """
    model = functionalize(model)
    return _dampening(
        model, losses_of(model) if losses is None else losses, "mean_square",
        Needs(forget=True, retain=True), threshold=threshold, dampening=dampening,
        adaptive=adaptive, importance=importance, importance_batch=importance_batch,
    )  # fmt: skip


def loss_free_ssd(
    model: Model | Apply,
    *,
    threshold: float = 2.0,
    dampening: float = 1.0,
    adaptive: bool = False,
    importance: str = "example",
    importance_batch: int = 64,
) -> Unlearner:
    """Shrinks weights as :func:`ssd` does, with an importance that needs no labels.

    ``I = (1/n) sum_i |grad |f(x_i)|^2|``, without a square: the slope of the squared norm of the
    logits ``f``. It does not vanish where examples are fitted perfectly.

    For classes and items, without labels; not exact.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      threshold, dampening, adaptive, importance, importance_batch: see :func:`ssd`.

    Source: Foster et al., "Loss-free machine unlearning", ICLR 2024 Tiny Papers (arXiv
    2402.19308).
    """
    model = functionalize(model)
    return _dampening(
        model, squared_norms(model.apply), "mean_abs",
        Needs(forget=True, retain=True, labels=False), threshold=threshold, dampening=dampening,
        adaptive=adaptive, importance=importance, importance_batch=importance_batch,
    )  # fmt: skip


def squared_norms(apply: Apply) -> Callable[[Variables, Batch], jax.Array]:
    """Returns the function of ``|f(x)|^2`` of each example, in float32 or better."""

    def norms(variables: Variables, batch: Batch) -> jax.Array:
        logits = apply(variables, batch.x)
        return jnp.sum(jnp.square(precise(logits)), axis=-1)

    return norms
