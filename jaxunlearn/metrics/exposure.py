"""Exposure of each example: can it be told from many models which of them never saw it?

Arrays hold the logit-scaled confidence ``phi`` of ``M`` examples under ``N`` models of each of two
or three sides: *trained* (with the example), *unlearned* (with it, then made to forget it) and
*retrained* (never with it). Averages over examples hide leaks: every function here returns a value
for each example, ``[M]``.
"""

from typing import NamedTuple

import numpy as np

from jaxunlearn.core.errors import brief, expect_one_of
from jaxunlearn.metrics.agreement import VARIANTS

DELTA = 1e-6
"""Probability that a bound of differential privacy may fail with, in :func:`privacy_loss`."""


def logit_confidence(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes ``phi = z_y - log sum_{j != y} exp z_j``, ``[...]``.

    The logarithm of the odds of the label, ``log p_y / (1 - p_y)``, from logits, where it does
    not run out of digits. Close to normal over models, which correctness (0 or 1) is not.

    Args:
      logits: ``[..., M, K]``, ``K`` at least 2.
      labels: ``int [M]``.

    Source: Carlini et al., "Membership inference attacks from first principles", S&P 2022.
    """
    z = np.asarray(logits, np.float64)
    if z.ndim < 2 or z.shape[-1] < 2 or z.shape[-2] != len(labels):
        raise ValueError(f"logits: expected [..., M, K] = [..., {len(labels)}, K], got {z.shape}")
    places = np.broadcast_to(np.asarray(labels)[:, None], (*z.shape[:-1], 1))
    own = np.take_along_axis(z, places, axis=-1)[..., 0]
    rest = z.copy()
    np.put_along_axis(rest, places, -np.inf, axis=-1)
    top = np.max(rest, axis=-1, keepdims=True)
    return own - (top[..., 0] + np.log(np.sum(np.exp(rest - top), axis=-1)))


def unlearning_lira(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """Computes the accuracy of the likelihood-ratio attack on each example (U-LiRA), ``[M]``.

    Normal distributions are fitted to each side's ``phi`` of one example, and a model is taken
    for unlearned where ``log N(phi; mu_u, s_u) - log N(phi; mu_r, s_r) > 0``. Each pair of models,
    one of each side, is judged by distributions fitted without the two. Half the models are
    unlearned: .5 is ideal, values below it are chance.

    Args:
      unlearned, retrained: ``[N, M]``, ``N`` at least 3.

    Raises:
      ValueError: other shapes, or values that are not finite.

    Source: Hayes et al., arXiv 2403.01218. Fitted to confidences: correctness has two values, whose
    deviation is often 0.
    """
    sides = _checked(unlearned=unlearned, retrained=retrained)
    fits = [_without_each(side) for side in sides]

    def ratio(phi: np.ndarray) -> np.ndarray:
        own, other = (
            -np.square((phi - mean) / deviation) / 2 - np.log(deviation) for mean, deviation in fits
        )
        return own - other

    # a tie tells nothing: half right
    right = [_share(ratio(sides[0])), 1 - _share(ratio(sides[1]))]
    return (right[0] + right[1]) / 2


def _share(ratio: np.ndarray) -> np.ndarray:
    return np.mean((ratio > 0) + (ratio == 0) / 2, axis=0)


def _without_each(side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits a normal distribution to all models but one, for each one: ``[N, M]`` twice."""
    count = len(side)
    total = side.sum(0)
    mean = (total - side) / (count - 1)
    centred = side - total / count
    squares = np.square(centred).sum(0) - np.square(centred) * count / (count - 1)
    deviation = np.sqrt(np.maximum(squares, 0) / (count - 2))
    return mean, np.maximum(deviation, 1e-6)


def density_ratio(phi: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Computes ``p_1(phi) / (p_1(phi) + p_0(phi))`` by kernel densities of width 1 (RULI).

    *Efficacy* is told with ``one`` unlearned and ``other`` retrained models; *privacy*, of an
    original and of an unlearned model, with ``one`` trained and ``other`` retrained ones.

    Args:
      phi: ``[..., M]``, of the models that are judged, which fitted no density.
      one, other: ``[N, M]``.

    Returns:
      ``[..., M]``, from 0 to 1; .5: both are equally likely.

    Source: Naderloui et al., "Rectifying privacy and efficacy measurements in machine unlearning",
    USENIX Security 2025.
    """
    phi = np.asarray(phi, np.float64)
    logs = []
    for side in _checked(one=one, other=other):
        distances = -np.square(phi[..., None, :] - side) / 2
        top = distances.max(-2, keepdims=True)
        logs.append(top[..., 0, :] + np.log(np.mean(np.exp(distances - top), axis=-2)))
    return 1 / (1 + np.exp(np.clip(logs[1] - logs[0], -700, 700)))


class Split(NamedTuple):
    """Examples divided by how exposed they are, as places ``[M']``.

    Attributes:
      vulnerable: of which training is told best.
      protected: of which it is told least.
    """

    vulnerable: np.ndarray
    protected: np.ndarray


def split_by_exposure(exposure: np.ndarray, share: float = 0.5) -> Split:
    """Divides examples into those most and least exposed; on average ones leaks do not show.

    Args:
      exposure: ``[M]``, of the original: ``unlearning_lira(trained, retrained)``, say.
      share: of all examples in each of the two parts, at most half.
    """
    if not 0 < share <= 0.5:
        raise ValueError(f"share: expected a number above 0, at most .5, got {share}")
    order = np.argsort(-np.asarray(exposure), kind="stable")
    count = max(1, int(len(order) * share))
    return Split(order[:count], order[-count:])


def privacy_loss(unlearned: np.ndarray, retrained: np.ndarray, delta: float = DELTA) -> np.ndarray:
    """Estimates each example's ``epsilon`` from the best attack that one threshold makes, ``[M]``.

        epsilon = max over thresholds of
            max(log (1 - delta - FPR) - log FNR, log (1 - delta - FNR) - log FPR)

    FPR: share of retrained models taken for unlearned; FNR: of unlearned ones missed; thresholds
    lie between all values, in both directions. An attack that makes no mistake at all has
    ``epsilon`` infinite; one with a single rate 0, by which few models alone can be told, is
    skipped. 0 where no attack is left.

    Args:
      unlearned, retrained: ``[N, M]``.

    Source: evaluation of the NeurIPS 2023 machine unlearning challenge (Triantafillou et al., arXiv
    2406.09073); there several attacks on two values are taken as well.
    """
    own, other = _checked(unlearned=unlearned, retrained=retrained)
    cuts = np.sort(np.concatenate([own, other]), axis=0)
    # above a cut: taken for unlearned; ties fall on one side
    missed = np.mean(own[None] <= cuts[:, None], axis=1)
    wrong = np.mean(other[None] > cuts[:, None], axis=1)
    return np.maximum(
        rates_to_loss(wrong, missed, delta), rates_to_loss(1 - wrong, 1 - missed, delta)
    )


def rates_to_loss(fpr: np.ndarray, fnr: np.ndarray, delta: float = DELTA) -> np.ndarray:
    """Computes ``epsilon`` of attacks with these rates of mistakes, the largest over axis 0."""
    fpr, fnr = np.asarray(fpr, np.float64), np.asarray(fnr, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.fmax(np.log(1 - delta - fpr) - np.log(fnr), np.log(1 - delta - fnr) - np.log(fpr))
    each = np.where((fpr == 0) | (fnr == 0), -np.inf, np.nan_to_num(each, nan=-np.inf))
    each = np.where((fpr == 0) & (fnr == 0), np.inf, each)
    return np.maximum(each.max(axis=0), 0)


def challenge_score(losses: np.ndarray, retain: float = 1.0, test: float = 1.0) -> float:
    """Computes the final score of the NeurIPS 2023 challenge; 1 is ideal.

    ``F RA_u / RA_r TA_u / TA_r`` with the forgetting quality
    ``F = mean_i 2 / 2^(floor(epsilon_i / .5) + 1)``: an example halves its share with every half of
    ``epsilon``.

    Args:
      losses: ``epsilon [M]``, see :func:`privacy_loss`; infinite ones count 0.
      retain, test: accuracy of the unlearned models by that of the retrained ones, on what is
        retained and on test examples.
    """
    found = np.asarray(losses, np.float64)
    if found.size == 0 or np.any(found < 0) or np.isnan(found).any():
        raise ValueError(f"losses: expected numbers from 0 on, got {brief(found)}")
    return float(np.mean(2.0 ** -np.floor(found / 0.5))) * retain * test


def margin_divergence(
    unlearned: np.ndarray, retrained: np.ndarray, *, bins: int = 20, clip: float = 100.0,
    least: float = 1e-5, variant: str = "paper",
) -> np.ndarray:  # fmt: skip
    """Computes KLoM, the divergence of margins over models, of each example, ``[M]``; 0 is ideal.

    ``KL(p || q) = sum_b p_b log(p_b / q_b)`` of the histograms ``p`` over unlearned and ``q`` over
    retrained models, in nats: equal bins from the least margin of both to the largest, which
    belongs to the last bin. Shares of bins are at least ``least``.

    Args:
      unlearned, retrained: margins ``[N, M]`` and ``[N', M]``: ``phi``; of an answer the mean over
        its tokens of ``log p / (1 - p)``, given the right ones before.
      bins: number of bins.
      clip: margins beyond count as this.
      least: share that an empty bin counts as.
      variant: ``"compatible"`` loses the largest margin, as a public code does, and counts shares
        of the others: 0 where half of ``p`` and a tenth of ``q`` lie there, .51 by the paper.

    Raises:
      ValueError: other shapes, NaN, or an unknown variant.

    Source: Georgiev et al., arXiv 2410.23232.
    """
    expect_one_of(VARIANTS, variant=variant)
    ours, theirs = (np.clip(np.asarray(s, np.float64), -clip, clip) for s in (unlearned, retrained))
    if ours.ndim != 2 or theirs.ndim != 2 or ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"unlearned, retrained: expected margins [N, M], got {ours.shape}, {theirs.shape}"
        )
    if np.isnan(ours).any() or np.isnan(theirs).any():
        raise ValueError("unlearned, retrained: expected margins, got NaN among them")
    low = np.minimum(ours.min(0), theirs.min(0))
    width = np.maximum(ours.max(0), theirs.max(0)) - low

    def shares(side: np.ndarray) -> np.ndarray:
        place = np.floor((side - low) / np.where(width > 0, width, 1) * bins)
        if variant == "paper":
            place = np.minimum(place, bins - 1)
        found = (place[..., None] == np.arange(bins)).sum(0)
        return np.maximum(found / np.maximum(found.sum(-1, keepdims=True), 1), least)

    p, q = shares(ours), shares(theirs)
    return np.sum(p * np.log(p / q), axis=-1)


def _checked(**sides: np.ndarray) -> list[np.ndarray]:
    arrays = {name: np.asarray(side, np.float64) for name, side in sides.items()}
    for name, side in arrays.items():
        if side.ndim != 2 or len(side) < 3:
            raise ValueError(f"{name}: expected [N, M] of three models or more, got {side.shape}")
        if not np.isfinite(side).all():
            raise ValueError(f"{name}: expected finite confidences, got others")
    if len({side.shape for side in arrays.values()}) > 1:
        shapes = {name: side.shape for name, side in arrays.items()}
        raise ValueError(f"{', '.join(sides)}: expected the same shape [N, M], got {shapes}")
    return list(arrays.values())
