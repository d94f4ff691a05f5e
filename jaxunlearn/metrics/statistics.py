"""One number out of several: over seeds or classes, and over retrained models."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean and half the width of its confidence interval (``None`` from one value)."""

    mean: float
    interval: float | None


def estimate(values: Sequence[float]) -> Estimate:
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
