"""One number out of several: over seeds, and over retrained models."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

__all__ = ["Estimate", "estimate", "floor", "paired", "spread"]

LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean and half the width of its confidence interval (``None`` from one value)."""

    mean: float
    interval: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of independent runs, with Student's 95 % confidence interval.

    The half width is ``t sd / sqrt(n)``: ``sd`` with n - 1, ``t`` the .975 quantile of
    Student's distribution with n - 1 degrees of freedom.

    Args:
      values: one for each seed; at least one.
    """
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return Estimate(mean, None)
    quantile = float(stdtrit(count - 1, (1 + LEVEL) / 2))
    return Estimate(mean, quantile * float(np.std(values, ddof=1)) / math.sqrt(count))


def paired(own: Sequence[float | None], retrained: Sequence[float | None]) -> Estimate | None:
    """:func:`estimate` of ``own - retrained``, seed by seed, where both are there."""
    pairs = zip(own, retrained, strict=True)
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    return estimate(differences) if differences else None


def spread(oracles: Sequence[float]) -> float | None:
    """Standard deviation (n - 1) of the retrained models; ``None`` for fewer than two."""
    return float(np.std(oracles, ddof=1)) if len(oracles) > 1 else None


def floor(oracles: Sequence[float]) -> float | None:
    """Mean of ``|a - b|`` over pairs of retrained models; ``None`` for fewer than two."""
    if len(oracles) < 2:
        return None
    return float(np.mean([abs(a - b) for a, b in itertools.combinations(oracles, 2)]))
