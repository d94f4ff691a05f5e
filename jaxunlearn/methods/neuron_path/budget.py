"""From the relevance of neurons to those that are edited, and how many of them it takes.

Counts over batches, a ranking of each layer's neurons, a budget that says how many are edited,
and the smallest budget that makes a model forget, judged by unseen examples alone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.core.errors import expect_counts, expect_shares
from jaxunlearn.core.types import Apply, Batch, Batches, Subset, Variables
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.training.descent import accuracy

SCORES = ("votes", "relevance")

PUBLISHED = 80
"""Neurons of the published budget."""

NOTED = 50
"""Neurons noted of each example, as published."""

SIGNED_SHARE, SIGNED_NOTED = 500 / 768, 400 / 768
"""The same two as published for a vision transformer, as shares of a layer's width."""

PATH_SHARE = 0.02
"""Budget of each layer where a path through a network with a signed stream is edited; own."""


class Budget(NamedTuple):
    """Number of neurons that are edited in each layer.

    Attributes:
      kind: ``"neurons"`` (so many), ``"share"`` (of the layer's width) or
        ``"cumulative"`` (as many as hold this share of its positive relevance).
      value: how much of it.
    """

    kind: str
    value: float


def budget_of(neurons: int | None, share: float | None, cumulative: float | None) -> Budget | None:
    """Returns the one budget that is given, ``None`` where there is none.

    Raises:
      ValueError: there are two, or it is out of range.
    """
    given = {"neurons": neurons, "share": share, "cumulative": cumulative}
    asked = {kind: value for kind, value in given.items() if value is not None}
    if len(asked) > 1:
        shown = ", ".join(f"{kind}={value}" for kind, value in asked.items())
        raise ValueError(f"neurons, share, cumulative: expected at most one, got {shown}")
    for kind, value in asked.items():
        expect_counts(neurons=value) if kind == "neurons" else expect_shares(**{kind: value})
        return Budget(kind, value)
    return None


def default_budget(signed: bool, last: bool) -> Budget:
    """Returns the published budget.

    Args:
      signed: whether the head reads what may be negative and no one layer makes: relevance is
        then spread over all of it, and the published share is large.
      last: whether the last layer alone is edited.
    """
    if signed:
        return Budget("share", SIGNED_SHARE if last else PATH_SHARE)
    return Budget("neurons", PUBLISHED)


class Tally(NamedTuple):
    """Counts of one layer's ``n`` neurons over some examples.

    Attributes:
      votes: ``float32 [n]``, in how many examples a neuron was among the K most relevant.
      relevance: ``float32 [n]``, its summed relevance.
      examples: ``float32 []``, how many were looked at.
    """

    votes: jax.Array
    relevance: jax.Array
    examples: jax.Array


Tallies = tuple[Tally, ...]
"""Of each layer."""


class Ranking(NamedTuple):
    """Neurons from the best to be edited to the worst.

    Attributes:
      order: ``int32 [n]``.
      score: ``float32 [n]``, by neuron.
      relevance: ``float32 [n]``, by neuron; a mean, less what is specific to other classes.
    """

    order: jax.Array
    score: jax.Array
    relevance: jax.Array


def start_tally(width: int) -> Tally:
    """Returns counts of no examples."""
    zeros = jnp.zeros(width, jnp.float32)
    return Tally(zeros, zeros, jnp.zeros((), jnp.float32))


def add_batch(
    tallies: Tallies, values: Sequence[jax.Array], weight: jax.Array, per_sample: Sequence[int]
) -> Tallies:
    """Counts a batch, too.

    Args:
      tallies: of each layer.
      values: for each layer the relevance of its neurons, ``float32 [B, n]``.
      weight: ``float32 [B]``, 0 for padding.
      per_sample: K of each layer; at most its width.
    """
    each = weight[:, None]

    def one(tally: Tally, relevance: jax.Array, count: int) -> Tally:
        _, top = jax.lax.top_k(relevance, count)
        noted = jnp.zeros_like(relevance).at[jnp.arange(len(relevance))[:, None], top].set(1)
        return Tally(
            votes=tally.votes + jnp.sum(noted * each, axis=0),
            relevance=tally.relevance + jnp.sum(relevance * each, axis=0),
            examples=tally.examples + jnp.sum(weight),
        )

    return tuple(map(one, tallies, values, per_sample))


def rank_neurons(own: Tally, others: Tally | None, score: str, specificity: float) -> Ranking:
    """Orders neurons by score, those of equal score by relevance, then by index.

    ``s_n = f_n - specificity * g_n`` with ``f`` the share of votes or the mean
    relevance over the examples to be forgotten, and ``g`` the same over the others.

    Args:
      own: of the examples to be forgotten.
      others: of examples of other classes; ``None`` for ``g = 0``.
      score: one of :data:`SCORES`.
      specificity: see above.
    """

    def contrast(name: str) -> jax.Array:
        mean = getattr(own, name) / jnp.maximum(own.examples, 1)
        if others is None:
            return mean
        return mean - specificity * getattr(others, name) / jnp.maximum(others.examples, 1)

    by, relevance = contrast(score), contrast("relevance")
    return Ranking(jnp.lexsort((-relevance, -by)), by, relevance)


def choose(ranked: Ranking, kind: str, value: jax.Array) -> jax.Array:
    """Marks the best neurons that a budget allows, ``bool [n]``; none of score 0 or less.

    * ``neurons``: the first ``value``;
    * ``share``: the first ``round(value n)``, at least one;
    * ``cumulative``: the shortest beginning of the order whose positive relevance is at
      least ``value`` times that of all neurons.

    Args:
      ranked: the neurons in order.
      kind: see :class:`Budget`.
      value: ``float32 []``.
    """
    n = len(ranked.order)
    place = jnp.zeros(n, jnp.int32).at[ranked.order].set(jnp.arange(n, dtype=jnp.int32))
    if kind == "cumulative":
        held = jnp.cumsum(jnp.maximum(ranked.relevance, 0)[ranked.order])
        before = jnp.concatenate([jnp.zeros_like(held[:1]), held[:-1]])
        inside = (before < value * held[-1])[place]
    else:
        most = value if kind == "neurons" else jnp.maximum(jnp.round(value * n), 1)
        inside = place.astype(jnp.float32) < most
    return inside & (ranked.score > 0)


def smaller_budgets(budget: Budget) -> tuple[float, ...]:
    """Lists budgets to try, ascending: the given one times ``2 ** (-i / 2)``, ``i = 0 .. 14``.

    Whole numbers of neurons, each once.
    """
    values = [budget.value * 2 ** (-i / 2) for i in range(15)]
    if budget.kind == "neurons":
        values = [float(max(round(value), 1)) for value in values]
    return tuple(sorted(set(values)))


def make_room(part: Subset | None, samples: int) -> Batch:
    """Makes an empty batch, large enough for a single pass over a subset."""
    assert part is not None
    places = min(samples, part.indices.shape[0])
    return Batch(
        x=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), inputs_like(part, places)),
        y=jnp.zeros((places, *part.examples.y.shape[1:]), part.examples.y.dtype),
        weight=jnp.zeros(places, jnp.float32),
        slot=jnp.zeros(places, jnp.int32),
    )


def add_examples(shown: Batches, batches: Batches) -> Batches:
    """Puts the examples of the next batches behind those so far."""

    def behind(old: Batch | None, new: Batch | None) -> Batch | None:
        if old is None or new is None:
            return old
        start = jnp.sum(old.weight).astype(jnp.int32)
        places = start + jnp.arange(len(new.y), dtype=jnp.int32)
        # a single pass pads its end alone: what does not fit is padding
        return jax.tree.map(lambda kept, added: kept.at[places].set(added, mode="drop"), old, new)

    return Batches(*(behind(old, new) for old, new in zip(shown, batches, strict=True)))


def calibrate_budget(
    edited: Callable[[jax.Array], Variables],
    apply: Apply,
    values: tuple[float, ...],
    shown: Batches,
    target: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Finds the smallest budget with which the unseen examples are forgotten.

    Of those with ``accuracy(unseen) <= target`` the first of the largest
    ``accuracy(holdout)`` is taken, where there is a holdout; else the first. Where none
    is low enough, the first of the lowest ``accuracy(unseen)``.

    Args:
      edited: budget -> the edited model; tried one after the other, in one program.
      apply: the network.
      values: budgets, ascending.
      shown: ``unseen`` examples of what is to be forgotten and, or not, ``holdout``
        examples of other classes.
      target: accuracy to get down to.

    Returns:
      The budget, ``float32 []``, and diagnostics: itself and the accuracies.
    """

    def trial(value: jax.Array) -> dict[str, jax.Array]:
        variables = edited(value)
        parts = {"unseen": shown.unseen, "holdout": shown.holdout}
        return {
            f"accuracy_{name}": accuracy(apply(variables, part.x), part)
            for name, part in parts.items()
            if part is not None
        }

    budgets = jnp.asarray(values, jnp.float32)
    found = jax.lax.map(trial, budgets)
    unseen = found["accuracy_unseen"]
    lost = -found.get("accuracy_holdout", jnp.zeros_like(unseen))
    # an accuracy is at most 1: whatever reaches the target comes before what does not
    best = jnp.argmin(jnp.where(unseen <= target, lost, 1 + unseen))
    metrics = {name: value[best] for name, value in found.items()}
    return budgets[best], {"budget": budgets[best], **metrics}
