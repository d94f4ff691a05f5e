"""Nearest neighbours: how two sets of examples cover each other, and what lies next to what.

Legend: ``n, m`` examples, ``F`` features.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.members import in_chunks
from jaxunlearn.nearest import CHUNK, as_features, same_width, squared_distances

__all__ = ["NeighbourScores", "neighbour_scores"]


class NeighbourScores(NamedTuple):
    """How generated examples and real ones cover each other; see :func:`neighbour_scores`.

    Attributes:
      precision: share of generated examples that look real, 0 to 1.
      recall: share of real examples that might have been generated, 0 to 1.
      density: in how many neighbourhoods of real examples a generated one lies, over k;
        1 is expected of sets drawn alike, and it may exceed 1.
      coverage: share of real examples with a generated one in their neighbourhood, 0 to 1.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_scores(real: ArrayLike, generated: ArrayLike, k: int = 5) -> NeighbourScores:
    """Precision, recall, density and coverage by k-nearest-neighbour balls.

    With ``B(x)`` the closed ball around ``x`` that reaches to the k-th nearest *other*
    example of its own set, ``r_i`` real and ``g_j`` generated:

        precision = mean_j [some i: g_j in B(r_i)]      recall = mean_i [some j: r_i in B(g_j)]
        density = mean_j |{i: g_j in B(r_i)}| / k       coverage = mean_i [some j: g_j in B(r_i)]

    Distances are sums of squared differences, in float32 and in blocks. The usual
    ``|a|^2 + |b|^2 - 2 a.b`` is 3 to 4 times faster on a CPU, but its error is relative to the
    distance from the origin: where classes form tight clusters far apart it is larger than
    the distances within a cluster, which are all that counts here, and a copy does not come
    to lie at distance 0.

    Args:
      real: ``[n, F]``, n > k.
      generated: ``[m, F]``, m > k.
      k: neighbours that a ball reaches to.

    Returns:
      Four numbers, all NaN if a feature is not finite. They depend on n and m: compare only
      values from equally many examples.

    Raises:
      ValueError: wrong shapes, or k out of range.

    Source: precision and recall: Kynkaanniemi et al., arXiv 1904.06991; density and coverage:
    Naeem et al., arXiv 2002.09797.
    """
    sides = {"real": as_features("real", real), "generated": as_features("generated", generated)}
    real, generated = sides.values()
    same_width("generated", generated, "real", real)
    least = min(len(real), len(generated))
    if not 1 <= k < least:
        raise ValueError(f"k: expected 1 <= k < {least}, the smaller set, got {k}")
    if not all(bool(jnp.all(jnp.isfinite(side))) for side in sides.values()):
        return NeighbourScores(*[math.nan] * 4)
    around, held, covered = map(np.asarray, _scores(real, generated, k))
    return NeighbourScores(
        precision=float(np.mean(around > 0)),
        recall=float(np.mean(held)),
        density=float(np.mean(around, dtype=np.float64) / k),
        coverage=float(np.mean(covered)),
    )


@partial(jax.jit, static_argnames="k")
def _scores(real: jax.Array, generated: jax.Array, k: int) -> tuple[jax.Array, ...]:
    """Real balls around each generated example; is a real one held, is it covered."""
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)

    def balls(places: jax.Array) -> jax.Array:
        inside = squared_distances(generated[places], real) <= real_radii[None]
        return jnp.sum(inside, axis=1, dtype=jnp.int32)

    def cover(places: jax.Array) -> tuple[jax.Array, jax.Array]:
        squared = squared_distances(real[places], generated)
        held = jnp.any(squared <= generated_radii[None], axis=1)
        return held, jnp.any(squared <= real_radii[places][:, None], axis=1)

    around = in_chunks(balls, len(generated), CHUNK)
    return around, *in_chunks(cover, len(real), CHUNK)


def _radii(x: jax.Array, k: int) -> jax.Array:
    """``[n]``: squared distance to the k-th nearest of the others."""
    everyone = jnp.arange(len(x), dtype=jnp.int32)[None]

    def some(places: jax.Array) -> jax.Array:
        # itself, then the nearest left are struck out: on a CPU top_k takes several times longer
        def strike(_: int, left: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            squared, out = left
            squared = jnp.where(everyone == out[:, None], jnp.inf, squared)
            return squared, jnp.argmin(squared, axis=1).astype(jnp.int32)

        squared, _ = jax.lax.fori_loop(0, k, strike, (squared_distances(x[places], x), places))
        return jnp.min(squared, axis=1)

    return in_chunks(some, len(x), CHUNK)
