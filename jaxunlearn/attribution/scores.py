"""Targets: the one number per example that is attributed, made from the output ``[B, K]``."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.axes import wide
from jaxunlearn.attribution.seeds import label

__all__ = ["Score", "Target", "scorer"]

Target = Callable[[jax.Array], jax.Array] | jax.typing.ArrayLike
"""What is attributed:

* ``int [B]``, or one integer: the logit of a class;
* a seed of :mod:`jaxunlearn.attribution.seeds`, or any function ``[B, K] -> [B, K]``: a
  weighted sum of the logits, with weights that are made once, from the output at ``x``;
* ``float [B, K]``: those weights themselves;
* a function ``[B, K] -> [B]``: evaluated anew at every point of the path.
"""

Score = Callable[[jax.Array], jax.Array]
"""From outputs ``[B * c, K]``, the c points of an example side by side, to ``[B, c]``."""


def scorer(target: Any, output: jax.Array) -> Score:
    """The scalar whose gradient is taken, in float32 or wider.

    Args:
      target: a :data:`Target`.
      output: ``[B, K]`` (or ``[B, ...]``), the output at ``x``.

    Raises:
      ValueError: if the output has no axis but that of the examples, or the target
        fits neither ``[B]`` nor its shape.
    """
    if output.ndim < 2:
        raise ValueError(f"fn: expected an output [B, K], got shape {output.shape}")
    batch, dtype = output.shape[0], wide(output.dtype)

    def points(outputs: jax.Array) -> jax.Array:
        return outputs.reshape(batch, -1, *output.shape[1:])

    weights = _first(target, output)
    if callable(target) and weights.shape == (batch,):
        alongside = jax.vmap(target, in_axes=1, out_axes=1)
        return lambda outputs: alongside(points(outputs)).astype(dtype)
    if weights.shape != output.shape:
        raise ValueError(
            f"target: expected labels [{batch}], a function to [{batch}], or weights of the "
            f"shape of the output {output.shape}, got shape {weights.shape}"
        )
    weights = weights.astype(dtype)[:, None]

    def weighted(outputs: jax.Array) -> jax.Array:
        # a masked logit may be infinite: one without weight is left out, not multiplied
        terms = jnp.where(weights == 0, 0, weights * points(outputs).astype(dtype))
        return jnp.sum(terms, axis=tuple(range(2, terms.ndim)))

    return weighted


def _first(target: Any, output: jax.Array) -> jax.Array:
    if callable(target):
        return jnp.asarray(target(output))
    values = jnp.asarray(target)
    if jnp.issubdtype(values.dtype, jnp.integer):
        if output.ndim != 2:
            raise ValueError(f"fn: expected an output [B, K] for labels, got {output.shape}")
        return label(values)(output)
    return values
