"""What Integrated Gradients return, and what all of their forms share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxunlearn.attribution.canonical import canonical
from jaxunlearn.attribution.paths import per_example

__all__ = ["Integrated", "Part", "averaged", "check_chunk", "finish", "floats", "one_array"]


class Integrated(NamedTuple):
    """What the output is due to, and how far its parts are from adding up.

    All are float32 or wider.

    Attributes:
      attribution: shaped like ``x``, or like the layer.
      gap: ``[B]``, the sum of ``attribution`` minus (``score`` - ``baseline_score``).
      plain_gap: ``[B]``, the same before completion: the error of the quadrature.
      score: ``[B]``, the target at ``x``.
      baseline_score: ``[B]``, the target at the baseline; the mean over several.
      logits: ``[B, K]``, the output of the function at ``x``, in its own dtype.
    """

    attribution: jax.Array
    gap: jax.Array
    plain_gap: jax.Array
    score: jax.Array
    baseline_score: jax.Array
    logits: jax.Array

    @property
    def relative_gap(self) -> jax.Array:
        """``[B]``: ``|gap| / |score - baseline_score|``."""
        return jnp.abs(self.gap) / jnp.abs(self.score - self.baseline_score)


class Part(NamedTuple):
    """The result for one baseline: fields of :class:`Integrated`."""

    attribution: jax.Array
    plain_gap: jax.Array
    baseline_score: jax.Array


def averaged(one: Callable[[jax.Array], Part], starts: jax.Array, x: jax.Array) -> Part:
    """The mean over baselines ``[n, B or 1, ...]``, taken one after the other."""

    def full(start: jax.Array) -> Part:
        return one(jnp.broadcast_to(start, x.shape))

    if len(starts) == 1:
        return full(starts[0])
    return jax.tree.map(lambda v: jnp.mean(v, axis=0), lax.map(canonical(full), starts))


def finish(part: Part, ends: jax.Array, logits: jax.Array) -> Integrated:
    """The result, with the gap of what is returned."""
    difference = (ends - part.baseline_score).astype(part.attribution.dtype)
    return Integrated(
        attribution=part.attribution,
        gap=per_example(part.attribution) - difference,
        plain_gap=part.plain_gap,
        score=ends,
        baseline_score=part.baseline_score,
        logits=logits,
    )


def floats(x: Any) -> jax.Array:
    """The data of a path through input space.

    Raises:
      TypeError: if it is not one array of floats.
    """
    x = one_array(x, "x", "one array")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"x: expected floats, got {x.dtype}; for tokens, name their embeddings "
            "(checkpoint_name) and use layer_integrated_gradients"
        )
    return x


def one_array(value: Any, name: str = "fn", expected: str = "one array as output") -> jax.Array:
    """The value as an array.

    Raises:
      TypeError: if it is a container.
    """
    if not jax.tree_util.all_leaves([value]):
        raise TypeError(f"{name}: expected {expected}, got a {type(value).__name__}")
    return jnp.asarray(value)


def check_chunk(chunk: Any) -> int:
    """The number of nodes that are taken together.

    Raises:
      ValueError: if it is not at least 1.
    """
    if isinstance(chunk, bool) or not isinstance(chunk, int | np.integer) or chunk < 1:
        raise ValueError(f"chunk: expected a number of nodes of at least 1, got {chunk!r}")
    return int(chunk)
