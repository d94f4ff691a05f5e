"""The smallest budget that makes a model forget, judged by unseen examples alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxunlearn.training.descent import accuracy
from jaxunlearn.types import Apply, Batch, Batches, Subset, Variables

__all__ = ["keep", "room", "smallest"]


def room(part: Subset | None, samples: int) -> Batch:
    """An empty batch, large enough for a single pass over a subset."""
    assert part is not None
    places = min(samples, part.indices.shape[0])
    return Batch(
        x=jnp.zeros((places, *part.examples.x.shape[1:]), jnp.float32),
        y=jnp.zeros(places, jnp.int32),
        weight=jnp.zeros(places, jnp.float32),
        slot=jnp.zeros(places, jnp.int32),
    )


def keep(shown: Batches, batches: Batches) -> Batches:
    """The examples so far, and behind them those of the next batches."""

    def behind(old: Batch | None, new: Batch | None) -> Batch | None:
        if old is None or new is None:
            return old
        start = jnp.sum(old.weight).astype(jnp.int32)
        places = start + jnp.arange(len(new.y), dtype=jnp.int32)
        # a single pass pads its end alone: what does not fit is padding
        pairs = zip(old, new, strict=True)
        return Batch(*(kept.at[places].set(added, mode="drop") for kept, added in pairs))

    return Batches(*(behind(old, new) for old, new in zip(shown, batches, strict=True)))


def smallest(
    edited: Callable[[jax.Array], Variables],
    apply: Apply,
    values: tuple[float, ...],
    shown: Batches,
    target: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The smallest budget with which the unseen examples are forgotten.

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
