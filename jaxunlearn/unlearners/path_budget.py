"""From the relevance of neurons to those that are edited."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = [
    "SCORES",
    "Budget",
    "Ranking",
    "Tallies",
    "Tally",
    "choose",
    "count",
    "empty",
    "grid",
    "ranking",
]

SCORES = ("votes", "relevance")


class Budget(NamedTuple):
    """How many neurons of each layer are edited.

    Attributes:
      kind: ``"neurons"`` (so many), ``"share"`` (of the layer's width) or
        ``"cumulative"`` (as many as hold this share of its positive relevance).
      value: how much of it.
    """

    kind: str
    value: float


class Tally(NamedTuple):
    """What is counted of one layer's ``n`` neurons over some examples.

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


def empty(width: int) -> Tally:
    """Nothing counted yet."""
    zeros = jnp.zeros(width, jnp.float32)
    return Tally(zeros, zeros, jnp.zeros((), jnp.float32))


def count(
    tallies: Tallies, values: Sequence[jax.Array], weight: jax.Array, per_sample: int
) -> Tallies:
    """Adds a batch.

    Args:
      tallies: of each layer.
      values: for each layer the relevance of its neurons, ``float32 [B, n]``.
      weight: ``float32 [B]``, 0 for padding.
      per_sample: K; at most a layer's width.
    """
    each = weight[:, None]

    def one(tally: Tally, relevance: jax.Array) -> Tally:
        _, top = jax.lax.top_k(relevance, min(per_sample, relevance.shape[1]))
        noted = jnp.zeros_like(relevance).at[jnp.arange(len(relevance))[:, None], top].set(1)
        return Tally(
            votes=tally.votes + jnp.sum(noted * each, axis=0),
            relevance=tally.relevance + jnp.sum(relevance * each, axis=0),
            examples=tally.examples + jnp.sum(weight),
        )

    return tuple(map(one, tallies, values))


def ranking(own: Tally, others: Tally | None, score: str, specificity: float) -> Ranking:
    """Neurons by score, those of equal score by relevance, then by index.

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
    """``bool [n]``: the best neurons that a budget allows; none of score 0 or less.

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


def grid(budget: Budget) -> tuple[float, ...]:
    """Budgets to try, ascending: the given one times ``2 ** (-i / 2)``, ``i = 0 .. 14``.

    Whole numbers of neurons, each once.
    """
    values = [budget.value * 2 ** (-i / 2) for i in range(15)]
    if budget.kind == "neurons":
        values = [float(max(round(value), 1)) for value in values]
    return tuple(sorted(set(values)))
