"""Maps of the places of concepts and classes, at the last value of a network with positions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.starts import Target, argmax, scorer
from jaxunlearn.jaxprs.cuts import cut_at_map
from jaxunlearn.jaxprs.structure import Apply, features


def concept_maps(fn: Apply) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """Returns the function that shows where in images directions of the feature space lie.

    With the features ``e(a)`` as a function of the last value with positions, ``a
    [h, w, C]`` (:func:`~jaxunlearn.jaxprs.cuts.cut_at_map`), and a direction ``v``:

        M_ij = sum over c of a_ijc * d(v e(a)) / d a_ijc

    Behind an average over positions this is exact: what each position adds to ``v e``.

    Args:
      fn: ``(variables, x) -> logits [B, K]``, channels first or last, with ``x`` images ``[B,
        ...]`` or a pytree that holds them; what else it holds may join behind the map.

    Returns:
      ``maps(variables, x, directions [B, n]) -> [B, h, w]``, of either sign. It raises
      ``ValueError`` if no value has positions, or the directions are not shaped like the
      features.

    Source: own; behind an average, class activation mapping (Zhou et al. 2016) of a concept.
    """
    cut = cut_at_map(features(fn))

    def maps(variables: Any, x: Any, directions: jax.Array) -> jax.Array:
        at = cut.upper(variables, x)
        found, pull = jax.vjp(lambda a: cut.lower(variables, a, x), at)
        if jnp.shape(directions) != found.shape:
            raise ValueError(
                f"directions: expected one for each example, {list(found.shape)} as the "
                f"features, got shape {list(jnp.shape(directions))}"
            )
        (slopes,) = pull(jnp.asarray(directions, found.dtype))
        return jnp.sum(at * slopes, axis=-1)

    return maps


def grad_cam(fn: Apply) -> Callable[..., jax.Array]:
    """Returns the function that shows what in images speaks for classes.

    With the target ``z`` as a function of the last value with positions, ``a [h, w, C]``
    (:func:`~jaxunlearn.jaxprs.cuts.cut_at_map`), and the weights ``w_c`` = mean over
    positions of ``d z / d a_ijc``:

        M_ij = max(0, sum over c of w_c a_ijc)

    Args:
      fn: ``(variables, x) -> logits [B, K]``, channels first or last, with ``x`` images ``[B,
        ...]`` or a pytree that holds them; what else it holds may join behind the map.

    Returns:
      ``maps(variables, x, target=starts.argmax()) -> [B, h, w]``, with a target as in
      :data:`~jaxunlearn.attribution.starts.Target`: labels, a start, weights ``[B, K]``. It
      raises ``ValueError`` if no value has positions, or the target does not fit.

    Source: Selvaraju et al. 2017 (Grad-CAM), eq. 1 and 2.
    """
    cut = cut_at_map(fn)

    def maps(variables: Any, x: Any, target: Target = argmax()) -> jax.Array:  # noqa: B008
        at = cut.upper(variables, x)
        output, pull = jax.vjp(lambda a: cut.lower(variables, a, x), at)
        score = scorer(target, output)
        (slopes,) = pull(jax.grad(lambda logits: jnp.sum(score(logits)))(output))
        weights = jnp.mean(slopes, axis=(1, 2), keepdims=True)
        return jnp.maximum(jnp.sum(weights * at, axis=-1), 0)

    return maps
