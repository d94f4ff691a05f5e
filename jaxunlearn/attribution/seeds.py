"""Seeds: the relevance that propagation starts from, made from the logits ``[B, K]``.

A seed is a pytree, so that it can be an argument of a jitted function.
Logits are meant, before any softmax.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

__all__ = ["ArgMax", "Label", "argmax", "label"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ArgMax:
    """See :func:`argmax`."""

    times_logit: bool = field(default=False, metadata={"static": True})

    def __call__(self, logits: jax.Array) -> jax.Array:
        """``[B, K]``: the seed."""
        return _one_hot(jnp.argmax(logits, axis=-1), logits, self.times_logit)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Label:
    """See :func:`label`."""

    y: jax.Array
    times_logit: bool = field(default=False, metadata={"static": True})

    def __call__(self, logits: jax.Array) -> jax.Array:
        """``[B, K]``: the seed."""
        if jnp.shape(self.y) not in ((), logits.shape[:1]):
            raise ValueError(
                f"label: expected one label or labels [{logits.shape[0]}], "
                f"got shape {jnp.shape(self.y)}"
            )
        y = jnp.broadcast_to(jnp.asarray(self.y), logits.shape[:1])
        return _one_hot(y, logits, self.times_logit)


def argmax(*, times_logit: bool = False) -> ArgMax:
    """1 on the largest logit (the first of equals), 0 elsewhere.

    Args:
      times_logit: the logit itself instead of 1.

    Source: arXiv 2410.23693 (with 1); Bach et al. 2015 (with the logit).
    """
    return ArgMax(times_logit=times_logit)


def label(y: jax.typing.ArrayLike, *, times_logit: bool = False) -> Label:
    """1 on the logit of a class, 0 elsewhere.

    Args:
      y: ``int [B]``, or one class for all examples.
      times_logit: the logit itself instead of 1.

    Raises:
      ValueError: when applied, if ``y`` has another shape.
    """
    return Label(y=jnp.asarray(y), times_logit=times_logit)


def _one_hot(y: jax.Array, logits: jax.Array, times_logit: bool) -> jax.Array:
    seed = jax.nn.one_hot(y, logits.shape[-1], dtype=logits.dtype)
    return seed * logits if times_logit else seed
