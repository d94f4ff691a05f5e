"""One number out of several: over seeds or classes, and over retrained models."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95
FEW_VALUES = 16
"""Values of examples of which no more than so many differ, right or wrong say, are counted."""


class Components(NamedTuple):
    """Variances of a nested design, and its mean.

    Attributes:
      training, unlearning, evaluation: variance that seeds of this stage add, at least 0.
      mean: with its interval, which respects the stages.
    """

    training: float
    unlearning: float
    evaluation: float
    mean: "Estimate"


class Estimate(NamedTuple):
    """A mean and half the width of its confidence interval (``None`` from one value)."""

    mean: float
    interval: float | None


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """Computes the mean of independent runs, with Student's 95 % confidence interval.

    The half width is ``t sd / sqrt(n)``: ``sd`` with n - 1, ``t`` the .975 quantile of
    Student's distribution with n - 1 degrees of freedom.

    Args:
      values: one for each seed, or for each class; at least one.
    """
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return Estimate(mean, None)
    if min(values) == max(values):
        return Estimate(mean, 0.0)  # what all share, not what rounding makes of it
    quantile = float(stdtrit(count - 1, (1 + LEVEL) / 2))
    return Estimate(mean, quantile * float(np.std(values, ddof=1)) / math.sqrt(count))


def paired(own: Sequence[float | None], retrained: Sequence[float | None]) -> Estimate | None:
    """Computes :func:`estimate` of ``own - retrained``, trial by trial, where both are there."""
    pairs = zip(own, retrained, strict=True)
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    return estimate(differences) if differences else None


def spread(groups: Sequence[Sequence[float]]) -> float | None:
    """Pools the standard deviation (n - 1) of retrained models over groups; ``None`` without two.

    ``sqrt(sum_g sum_i (m_gi - mean_g)^2 / sum_g (n_g - 1))``.

    Args:
      groups: values of models that differ by chance alone: of one request.
    """
    free = sum(len(values) - 1 for values in groups if values)
    if not free:
        return None
    return math.sqrt(sum(float(np.var(v)) * len(v) for v in groups if v) / free)


def floor(groups: Sequence[Sequence[float]]) -> float | None:
    """Averages ``|a - b|`` over pairs in each group; ``None`` without any. See :func:`spread`."""
    pairs = [abs(a - b) for values in groups for a, b in itertools.combinations(values, 2)]
    return float(np.mean(pairs)) if pairs else None


def components(values: np.ndarray) -> Components:
    """Estimates how much of a metric's variance each stage's seeds bring.

    For ``y_tue = m + a_t + b_tu + c_tue`` with independent effects, by the mean squares of the
    nested analysis of variance: ``MS_E`` within evaluations, ``MS_U`` between unlearning seeds of
    one original, ``MS_T`` between originals,

        evaluation = MS_E,  unlearning = (MS_U - MS_E) / E,  training = (MS_T - MS_U) / (U E).

    The mean's interval is ``t sqrt(MS_T / (T U E))`` with ``T - 1`` degrees of freedom: more
    seeds of unlearning cannot make up for a single original.

    Args:
      values: ``[T, U, E]``: by original, by seed of unlearning, by seed of evaluation.

    Raises:
      ValueError: another shape, or fewer than two originals.

    Source: Searle, Casella and McCulloch, "Variance Components", 1992, ch. 3.
    """
    y = np.asarray(values, np.float64)
    if y.ndim != 3 or len(y) < 2:
        raise ValueError(f"values: expected [T, U, E] with two originals or more, got {y.shape}")
    count_t, count_u, count_e = y.shape
    by_unlearning, by_training = y.mean(2), y.mean((1, 2))
    free = count_t * count_u * (count_e - 1)
    within = float(np.square(y - by_unlearning[..., None]).sum() / free) if free else 0.0
    free = count_t * (count_u - 1)
    spread_u = np.square(by_unlearning - by_training[:, None]).sum()
    between_u = float(count_e * spread_u / free) if free else within
    between_t = float(count_u * count_e * np.var(by_training, ddof=1))
    quantile = float(stdtrit(count_t - 1, (1 + LEVEL) / 2))
    return Components(
        training=max(0.0, (between_t - between_u) / (count_u * count_e)),
        unlearning=max(0.0, (between_u - within) / count_e),
        evaluation=within,
        mean=Estimate(float(y.mean()), quantile * math.sqrt(between_t / y.size)),
    )


def bootstrap(
    values: Sequence[float] | np.ndarray, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Computes a 95 % interval of a mean over examples, by drawing them again with replacement.

    Of one model: it says how the mean would vary with other examples, not with other seeds.

    Source: Efron 1979, percentiles.
    """
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not len(found):
        raise ValueError(f"values: expected numbers [N], got shape {found.shape}")
    rng, count = np.random.default_rng(seed), len(found)
    distinct, times = np.unique(found, return_counts=True)
    if len(distinct) <= FEW_VALUES:  # how often each is drawn is as good as which
        means = rng.multinomial(count, times / count, draws) @ distinct / count
    else:
        # one after the other: all at once are as many numbers as draws times examples
        means = np.array([found[rng.integers(0, count, count)].mean() for _ in range(draws)])
    low, high = np.percentile(means, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return float(low), float(high)
