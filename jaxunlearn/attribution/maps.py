"""Maps of the places of concepts and classes, at the last value of a network with positions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.jaxprs.structure import Apply, cut_at_map, features

Maps = Callable[[Any, Any, jax.Array], jax.Array]
"""``(variables, x, directions or weights) -> [B, h, w]``."""


def concept_maps(fn: Apply) -> Maps:
    """Returns the function that shows where in images directions of the feature space lie.

    With the features ``e(a)`` as a function of the last value with positions, ``a
    [h, w, C]`` (:func:`~jaxunlearn.jaxprs.structure.cut_at_map`), and a direction ``v``:

        M_ij = sum over c of a_ijc * d(v e(a)) / d a_ijc

    Behind an average over positions this is exact: what each position adds to ``v e``.

    Args:
      fn: ``(variables, x) -> logits [B, K]``, with ``x [B, H, W, C]`` or a pytree that holds
        it; what else it holds may join behind the map.

    Returns:
      ``maps(variables, x, directions [B, n]) -> [B, h, w]``, of either sign.

    Source: own; behind an average, class activation mapping (Zhou et al. 2016) of a concept.
    """
    return _maps(features(fn), lambda a, slopes: jnp.sum(a * slopes, axis=-1))


def grad_cam(fn: Apply) -> Maps:
    """Returns the function that shows what in images speaks for classes.

    With the weights ``w_c`` = mean over positions of ``d z / d a_ijc``:

        M_ij = max(0, sum over c of w_c a_ijc)

    Args:
      fn: ``(variables, x) -> logits [B, K]``, with ``x [B, H, W, C]`` or a pytree that holds
        it; what else it holds may join behind the map.

    Returns:
      ``maps(variables, x, weights [B, K]) -> [B, h, w]``; the weights of the logits are, for
      one class, one-hot.

    Source: Selvaraju et al. 2017 (Grad-CAM), eq. 1 and 2.
    """

    def summed(a: jax.Array, slopes: jax.Array) -> jax.Array:
        weights = jnp.mean(slopes, axis=(1, 2), keepdims=True)
        return jnp.maximum(jnp.sum(weights * a, axis=-1), 0)

    return _maps(fn, summed)


def _maps(fn: Apply, combine: Callable[[jax.Array, jax.Array], jax.Array]) -> Maps:
    cut = cut_at_map(fn)

    def maps(variables: Any, x: Any, directions: jax.Array) -> jax.Array:
        at = cut.upper(variables, x)

        def along(a: jax.Array) -> jax.Array:
            return jnp.sum(cut.lower(variables, a, x) * directions)

        return combine(at, jax.grad(along)(at))

    return maps
