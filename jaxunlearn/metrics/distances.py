"""How far apart two sets of examples are, in the features of some network.

Legend: ``n, m`` examples, ``F`` features, ``K`` classes.

Nearest neighbours: how two sets of examples cover each other, and what lies next to what.

Legend: ``n, m`` examples, ``F`` features.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.core.nearest import CHUNK, as_features, same_width, squared_distances
from jaxunlearn.core.trees import in_chunks


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Computes the squared Frechet distance of Gaussians fitted to features ("FID", any features).

    With covariances ``C1, C2`` (divided by n - 1) it is

        |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)
        = |m1 - m2|^2 + |A|_F^2 + |B|_F^2 - 2 |R1 R2'|_*
        = |m1 - m2|^2 + min_Q |R1 - Q R2|_F^2,   Q orthogonal,

    ``A, B`` the centred features over ``sqrt(n - 1)``, ``R1, R2`` their QR factors,
    ``|.|_*`` the sum of singular values. The last line is what is computed, with
    ``Q = U V'`` from ``R1 R2' = U S V'`` (the factor with fewer rows filled up with
    zeros): a sum of squares, hence never negative, and precise for sets that hardly
    differ, where the line above it takes the difference of large numbers.

    Covariances and a matrix root in float32 are wrong: the covariances square the
    condition number, and small eigenvalues come out as noise of either sign, whose roots
    are large. On features whose distance is 10.44, eigenvalue routes in float32 gave -194
    and -142.

    Args:
      a: ``[n, F]``, n >= 2; n < F is fine here, but see below.
      b: ``[m, F]``.

    Returns:
      The distance, in squared units of a feature; NaN if a feature is not finite. It is
      biased upwards for few examples: compare only values from equally many.

    Raises:
      ValueError: wrong shapes.

    Source: Dowson and Landau (1982); Heusel et al., arXiv 1706.08500. The QR form is own;
    the minimum over Q is the orthogonal Procrustes problem (Schoenemann, 1966).
    """
    return float(_frechet(*_pair(a, b)))


def kernel_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Computes the squared maximum mean discrepancy under a cubic kernel ("KID", any features).

        mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j),
        k(x, y) = (x . y / F + 1)^3.

    Over *all* examples at once, not averaged over random subsets as is common: the same
    expectation, less variance, no random numbers.

    Args:
      a: ``[n, F]``, n >= 2.
      b: ``[m, F]``, m >= 2.

    Returns:
      The unbiased estimate: its mean is 0 for sets drawn alike, so that it may be negative.
      NaN if a feature is not finite.

    Raises:
      ValueError: wrong shapes.

    Source: Binkowski et al., arXiv 1801.01401.
    """
    a, b = _pair(a, b)
    own = _mean_kernel(a, a, same=True) + _mean_kernel(b, b, same=True)
    return own - 2 * _mean_kernel(a, b, same=False)


def classifier_score(logits: ArrayLike) -> float:
    """Computes ``exp(mean_x KL(p(y | x) || p(y)))``: the "inception score" of any classifier.

    ``p(y | x) = softmax(logits)``, ``p(y)`` its mean over x. From 1 (all examples get the
    same prediction) to K (sure predictions, all classes alike).

    Args:
      logits: ``[n, K]``. Log-probabilities are logits too, those of sure predictions with
        ``-inf``; probabilities are not.

    Returns:
      The score over all examples, not averaged over splits; NaN if a logit is NaN.

    Raises:
      ValueError: wrong shape.

    Source: Salimans et al., arXiv 1606.03498.
    """
    return math.exp(float(_information(as_features("logits", logits))))


def auc(positives: ArrayLike, negatives: ArrayLike) -> float:
    """Computes the area under the ROC curve: how often a positive scores higher than a negative.

        P(p > q) + P(p = q) / 2,

    by ranks (Mann and Whitney), on the host in float64.

    Args:
      positives: ``[n]``, scores of what is to be told apart, as of members.
      negatives: ``[m]``.

    Returns:
      From 0 to 1; .5: the score tells nothing. NaN if a score is NaN.

    Raises:
      ValueError: not one axis, or empty.
    """
    sides = {"positives": np.asarray(positives), "negatives": np.asarray(negatives)}
    for name, side in sides.items():
        if side.ndim != 1 or not len(side):
            raise ValueError(f"{name}: expected at least one score [n], got shape {side.shape}")
    n, m = (len(side) for side in sides.values())
    scores = np.concatenate([side.astype(np.float64) for side in sides.values()])
    if np.isnan(scores).any():
        return math.nan
    # of equal scores the mean of their ranks
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[jax.Array, jax.Array]:
    a, b = as_features("a", a, 2), as_features("b", b, 2)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"b: expected {a.shape[1]} features as in a, got {b.shape[1]}")
    return a, b


@jax.jit
def _frechet(a: jax.Array, b: jax.Array) -> jax.Array:
    # a mean far from zero must not cost digits: it is taken off before anything is summed
    origin = jnp.mean(a, axis=0, keepdims=True)
    # products of float32 are rounded to fewer digits on some accelerators, unless told not to
    with jax.default_matmul_precision("highest"):
        (m1, r1), (m2, r2) = _fitted(a - origin), _fitted(b - origin)
        rows = max(len(r1), len(r2))
        r1, r2 = (jnp.pad(r, ((0, rows - len(r)), (0, 0))) for r in (r1, r2))
        u, _, vt = jnp.linalg.svd(r1 @ r2.T)
        return jnp.sum(jnp.square(m1 - m2)) + jnp.sum(jnp.square(r1 - u @ (vt @ r2)))


def _fitted(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean ``[1, F]`` and root ``R [min(n, F), F]`` of the covariance, ``C = R'R``."""
    mean = jnp.mean(x, axis=0, keepdims=True)
    return mean, jnp.linalg.qr((x - mean) / math.sqrt(len(x) - 1), mode="r")


def _mean_kernel(a: jax.Array, b: jax.Array, *, same: bool) -> float:
    rows = np.asarray(_kernel_rows(a, b, same), np.float64)
    return float(rows.sum() / (len(a) * (len(b) - same)))


@partial(jax.jit, static_argnames="same")
def _kernel_rows(a: jax.Array, b: jax.Array, same: bool) -> jax.Array:
    """Returns ``[n]``, sums of ``k - 1`` over ``b``; with ``same`` each without itself."""

    def some(places: jax.Array) -> jax.Array:
        t = jnp.matmul(a[places], b.T, precision=jax.lax.Precision.HIGHEST) / a.shape[1]
        # (t + 1)^3 - 1: the three means share the 1, which would hide digits of small t
        values = t * (t * (t + 3) + 3)
        if same:
            itself = places[:, None] == jnp.arange(len(b), dtype=places.dtype)[None]
            values = jnp.where(itself, 0, values)
        return jnp.sum(values, axis=1)

    return in_chunks(some, len(a), CHUNK)


@jax.jit
def _information(logits: jax.Array) -> jax.Array:
    """Computes the mean KL divergence of the predictions from their mean, in nats."""
    log_p = jax.nn.log_softmax(logits)
    log_mean = jax.nn.logsumexp(log_p, axis=0, keepdims=True) - math.log(len(logits))
    # a class that is never named adds nothing: 0 log 0 = 0
    divergence = jnp.where(log_p == -jnp.inf, 0, jnp.exp(log_p) * (log_p - log_mean))
    return jnp.mean(jnp.sum(divergence, axis=1))


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
    """Computes precision, recall, density and coverage by k-nearest-neighbour balls.

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
    """Counts real balls around each generated example; tells of real ones: held, covered."""
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
    """Returns ``[n]``, squared distance to the k-th nearest of the others."""
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
