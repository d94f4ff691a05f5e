"""Terms of objectives that several methods for classifiers share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import ConfigError, expect_at_least
from jaxunlearn.core.trees import precise
from jaxunlearn.core.types import Batch, Inputs, Key, Model, Variables
from jaxunlearn.training.descent import Losses, accuracy, cross_entropy, example_mean


def momentum_sgd(optimizer: optax.GradientTransformation | None) -> optax.GradientTransformation:
    """Returns the optimizer, or if there is none SGD with Nesterov momentum .9 and rate .01."""
    return optax.sgd(0.01, momentum=0.9, nesterov=True) if optimizer is None else optimizer


def forward_both(
    model: Model, variables: Variables, forget: Batch, retain: Batch, key: Key
) -> tuple[jax.Array, jax.Array, Variables]:
    """Passes two batches through the network as one, in training mode.

    So batch statistics see the mixture, and not what is to be forgotten alone.

    Returns:
      Logits ``[B_f, K]`` and ``[B_r, K]``; variables, which differ in what is not trained.
    """
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts), forget.x, retain.x)
    logits, moved = model.apply_train(variables, both, key)
    z_forget, z_retain = jnp.split(logits, [len(forget.weight)])
    return z_forget, z_retain, moved


def kl_divergences(
    teacher: jax.Array, student: jax.Array, temperature: float | jax.Array = 1.0
) -> jax.Array:
    """Computes ``KL(p_T || p_S) = sum_k p_T (log p_T - log p_S)`` of each example.

    Args:
      teacher, student: logits ``[B, K]``, divided by the temperature.

    Returns:
      ``[B]``, not multiplied by the temperature's square.
    """
    theirs, ours = (jax.nn.log_softmax(precise(z) / temperature) for z in (teacher, student))
    return jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)


def expect_weights(**weights: float) -> None:
    """Raises a ``ValueError`` for a negative weight, and where all of them are 0."""
    expect_at_least(0, **weights)
    if all(isinstance(one, int | float) and one == 0 for one in weights.values()):
        raise ValueError(f"{', '.join(weights)}: expected one that is positive, got 0")


def mean_loss(
    model: Model, losses: Losses | None, variables: Variables, batch: Batch, name: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the mean loss of a batch in inference mode, and its diagnostics.

    Args:
      losses: of each example; ``None``: cross-entropy.
      name: of the accuracy in the diagnostics; other losses than the default have none.
    """
    if losses is not None:
        return example_mean(losses(variables, batch), batch.weight), {}
    logits = model.apply(variables, batch.x)
    loss = cross_entropy(logits, batch.y, batch.weight)
    return loss, {name: accuracy(logits, batch)}


def flat(features: jax.Array) -> jax.Array:
    """Returns features ``[B, ...]`` as vectors ``[B, n]``, in float32 or better."""
    found: jax.Array = precise(features)
    return found.reshape(len(features), -1)


def cosines(one: jax.Array, other: jax.Array) -> jax.Array:
    """Computes ``<a, b> / (|a| |b|)`` along the last axis; 0, and no slope, where one is 0."""
    scale = jnp.sum(jnp.square(one), axis=-1) * jnp.sum(jnp.square(other), axis=-1)
    there = scale > 0
    found = jnp.sum(one * other, axis=-1) / jnp.sqrt(jnp.where(there, scale, 1))
    return jnp.where(there, found, 0)


def expect_float_inputs(like: Inputs) -> None:
    """Raises a ``ValueError`` for shapes of inputs some of which do not hold floats."""
    leaves = jax.tree.leaves(like)
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        kinds = ", ".join(str(leaf.dtype) for leaf in leaves)
        raise ValueError(f"sets: expected inputs of floats, got {kinds}")


def split_floats(x: Inputs) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Inputs]]:
    """Takes from inputs the leaves that noise can move; the rest, such as masks, is kept.

    Returns:
      The leaves of floats; the function that makes inputs of others in their place.

    Raises:
      ConfigError: while tracing, where no leaf holds floats.
    """
    form: Any
    leaves, form = jax.tree.flatten(x)
    moves = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    if not any(moves):
        kinds = sorted({str(leaf.dtype) for leaf in leaves})
        raise ConfigError(f"x: expected inputs of floats, which noise can move, got {kinds}")

    def joined(floats: list[jax.Array]) -> Inputs:
        rest = iter(floats)
        own = [next(rest) if move else leaf for move, leaf in zip(moves, leaves, strict=True)]
        return form.unflatten(own)

    return [leaf for move, leaf in zip(moves, leaves, strict=True) if move], joined
