"""Terms of objectives that several methods for classifiers share."""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import expect_at_least
from jaxunlearn.core.types import Batch, Key, Model, Variables


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
    theirs, ours = (
        jax.nn.log_softmax(z.astype(jnp.promote_types(z.dtype, jnp.float32)) / temperature)
        for z in (teacher, student)
    )
    return jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)


def expect_weights(**weights: float) -> None:
    """Raises a ``ValueError`` for a negative weight, and where all of them are 0."""
    expect_at_least(0, **weights)
    if all(isinstance(one, int | float) and one == 0 for one in weights.values()):
        raise ValueError(f"{', '.join(weights)}: expected one that is positive, got 0")
