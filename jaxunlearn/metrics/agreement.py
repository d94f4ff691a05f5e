"""How close an unlearned model comes to retrained ones: predictions, features, weights, scores.

Pure functions of arrays. ``o`` original, ``u`` unlearned, ``r`` retrained; softmax vectors are
``[M, K]``. Being close to the retrained model is the aim: less accuracy on what was forgotten, or
more distance from the original, than it has is not better.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.errors import expect_one_of
from jaxunlearn.core.trees import named_leaves

VARIANTS = ("paper", "compatible")
"""Definitions of contested metrics: the right one, and what a widely used public code computes."""


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Computes the Jensen-Shannon divergence of two softmax vectors in bits, ``[M]``, 0 to 1.

    ``JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2``, ``m = (p + q) / 2``, with ``0 log 0 = 0``.
    """
    p, q = _pair(p, q)
    middle = (p + q) / 2

    def half(side: np.ndarray) -> np.ndarray:
        ratio = np.where(side > 0, side / np.where(middle > 0, middle, 1), 1)
        return np.sum(side * np.log2(ratio), axis=-1) / 2

    return np.clip(half(p) + half(q), 0, 1)


def zero_retrain_forgetting(
    unlearned: np.ndarray, untrained: np.ndarray, variant: str = "paper"
) -> np.ndarray:
    """Computes ``ZRF = 1 - JS(u, random)`` of each forget example in bits, ``[M]``.

    Near 1: the model predicts as one that was never trained. Ideal: as retrained, whose value is
    lower. Averages are taken after the divergence, of each example.

    Args:
      untrained: softmax of a freshly drawn network.
      variant: ``"compatible"`` has the divergence as a public code computes it, from which
        published numbers may be: ``KL(m || p) / 2 + KL(m || q) / 2`` in nats, divided by the number
        of classes. A sure prediction (1e-6 for each other class) beside an even one over 10 classes
        has .742 there, .242 by the paper; where a probability is 0 it is ``-inf``.

    Source: Chundawat et al., "Can bad teaching induce forgetting?", AAAI 2023.
    """
    expect_one_of(VARIANTS, variant=variant)
    if variant == "paper":
        return 1 - divergence(unlearned, untrained)
    p, q = _pair(unlearned, untrained)
    m = (p + q) / 2
    with np.errstate(divide="ignore"):
        logs = 2 * np.log(np.where(m > 0, m, 1)) - np.log(p) - np.log(q)
    return 1 - np.mean(np.where(m > 0, m * logs, 0), axis=-1) / 2


def activation_distance(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """Computes ``|p_u - p_r|_2`` of each example's softmax vectors, ``[M]``; 0 is ideal.

    Source: Golatkar et al., CVPR 2020.
    """
    p, q = _pair(unlearned, retrained)
    return np.linalg.norm(p - q, axis=-1)


def same_class(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """Tells whether the two models name the same class for each example, ``bool [M]``."""
    p, q = _pair(unlearned, retrained)
    return np.argmax(p, axis=-1) == np.argmax(q, axis=-1)


def tug_of_war(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Computes ``ToW = (1 - |dFA|) (1 - |dRA|) (1 - |dTA|)``, ``d = u - r``; 1 is ideal.

    Args:
      unlearned, retrained: accuracies by ``"forget"``, ``"retain"`` and ``"test"``.

    Source: Zhao et al., "What makes unlearning hard and what to do about it", NeurIPS 2024.
    """
    gaps = [abs(unlearned[name] - retrained[name]) for name in ("forget", "retain", "test")]
    return float(np.prod([1 - gap for gap in gaps]))


def average_gap(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Averages ``|u - r|`` over the metrics that both have; 0 is ideal."""
    names = [name for name in unlearned if name in retrained]
    if not names:
        raise ValueError("unlearned, retrained: expected a metric that both have, got none")
    return float(np.mean([abs(unlearned[name] - retrained[name]) for name in names]))


def adaptive_score(
    original: Mapping[str, float], unlearned: Mapping[str, float], *, items: bool = False
) -> float:
    """Computes the adaptive unlearning score AUS; 1 is ideal.

    Of a class: ``(1 - (A_o - A_u)) / (1 + |A_f|)``, test accuracies of what is retained and of what
    is forgotten. Of items the denominator is ``1 + |A_f - A_u|``: they should be predicted as test
    examples are. It needs no retrained model, and rewards what one would not do: forgetting that
    goes below it.

    Args:
      original, unlearned: ``"test"``, the accuracy on retained test examples; of the unlearned
        model ``"forget"``, too.

    Source: Cotogni et al., DUCK, arXiv 2312.02052.
    """
    kept = 1 - (original["test"] - unlearned["test"])
    left = unlearned["forget"] - (unlearned["test"] if items else 0)
    return kept / (1 + abs(left))


def normalised_score(test: float, attack: float, weight: float = 0.5) -> float:
    """Computes ``NoMUS = l TA + (1 - l) (1 - 2 |a - .5|)``; 1 is ideal.

    Args:
      test: accuracy on test examples.
      attack: accuracy of a membership attack.
      weight: ``l``.

    Source: Choi and Na, arXiv 2311.02240.
    """
    return weight * test + (1 - weight) * (1 - 2 * abs(attack - 0.5))


def weight_distances(own: Any, other: Any) -> dict[str, float]:
    """Computes ``|w - w'| / |w'|`` of each parameter by its path, and of all under ``""``.

    Arrays of whole numbers are left out; a parameter that is 0 in ``other`` has its own norm.
    """
    ours, theirs = named_leaves(own), named_leaves(other)
    if {k: np.shape(v) for k, v in ours.items()} != {k: np.shape(v) for k, v in theirs.items()}:
        raise ValueError("own, other: expected models of the same form, got others")
    gaps, norms = {}, {}
    for name, leaf in ours.items():
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            a, b = np.asarray(leaf, np.float64), np.asarray(theirs[name], np.float64)
            gaps[name], norms[name] = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    gaps[""], norms[""] = (float(np.linalg.norm([*d.values()])) for d in (gaps, norms))
    return {name: gap / (norms[name] or 1.0) for name, gap in gaps.items()}


def alignment(own: jax.Array | np.ndarray, other: jax.Array | np.ndarray) -> float:
    """Computes the linear centred kernel alignment (CKA) of features, from 0 to 1.

    ``|X'Y|_F^2 / (|X'X|_F |Y'Y|_F)``, columns centred: 1 where features are equal up to a
    rotation and scale. Computed over the smaller of examples and features.

    Args:
      own, other: features ``[M, n]`` and ``[M, n']`` of the same examples; other axes are joined.

    Returns:
      The alignment; NaN where a side's features are constant.

    Source: Kornblith et al., ICML 2019.
    """
    x, y = (np.asarray(side, np.float64).reshape(len(side), -1) for side in (own, other))
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(
            f"own, other: expected features of the same examples, got {len(x)}, {len(y)}"
        )
    x, y = x - x.mean(0), y - y.mean(0)
    if max(x.shape[1], y.shape[1]) > len(x):  # by Gram matrices of examples
        k, m = x @ x.T, y @ y.T
        cross, own_norm, other_norm = np.sum(k * m), np.linalg.norm(k), np.linalg.norm(m)
    else:
        cross = np.sum(np.square(x.T @ y))
        own_norm, other_norm = np.linalg.norm(x.T @ x), np.linalg.norm(y.T @ y)
    return float(cross / (own_norm * other_norm)) if own_norm * other_norm > 0 else float("nan")


def progress_to_retrained(
    original: np.ndarray, unlearned: np.ndarray, retrained: np.ndarray
) -> np.ndarray:
    """Computes how far features went in the direction of retraining, for each example, ``[M]``.

    ``<u - o, r - o> / |r - o|^2``, of features ``[M, n]``: 0 where the model's features stayed as
    they were (or moved aside), 1 where they went as far as those of the retrained model. The part
    that is missing is residue of what was to be forgotten, on forget examples; on retained ones
    the two models differ by chance, and small values are no fault.

    Returns:
      One value an example; NaN where retraining changed nothing.

    Source: arXiv 2606.25001.
    """
    o, u, r = (np.asarray(side, np.float64).reshape(len(side), -1) for side in (
        original, unlearned, retrained
    ))  # fmt: skip
    if not o.shape == u.shape == r.shape:
        raise ValueError(f"features: expected one shape, got {o.shape}, {u.shape}, {r.shape}")
    way = r - o
    length = np.sum(np.square(way), axis=1)
    return np.where(
        length > 0, np.sum((u - o) * way, axis=1) / np.where(length > 0, length, 1), np.nan
    )


def completeness(
    original: np.ndarray, unlearned: np.ndarray, unseen: np.ndarray, *, steps: int = 100
) -> np.ndarray:
    """Computes the completeness of unlearning by interpolation (IAM), for each example, ``[M]``.

    Between the signal of a model that never saw the example and that of the original lie
    ``s_k = s_out + a_k (s_o - s_out)``, ``a_k = k / (K - 1)``. With ``c_k`` the probability that a
    normal distribution around ``s_k`` gives to signals up to ``s_u``::

        1 - sum_(k < K - 1) a_(k + 1) c_k / sum_k a_k

    1: nothing is left; near 0: as the original. One model that never saw the examples is enough;
    its deviation over all examples is then the width.

    Args:
      original, unlearned: ``phi [M]``, see :func:`jaxunlearn.metrics.exposure.logit_confidence`;
        larger where an example is known.
      unseen: ``[M]``, or ``[N, M]`` of several models.
      steps: ``K``.

    Source: Wang et al., arXiv 2506.06112, with normal distributions.
    """
    from scipy.special import ndtr

    before, own = np.asarray(original, np.float64), np.asarray(unlearned, np.float64)
    out = np.atleast_2d(np.asarray(unseen, np.float64))
    if before.shape != own.shape or out.shape[1:] != before.shape:
        raise ValueError(
            f"original, unlearned, unseen: expected [M], [M] and [N, M], got {before.shape}, "
            f"{own.shape} and {out.shape}"
        )
    width = out.std(0, ddof=1) if len(out) > 2 else np.full(before.shape, out.mean(0).std())
    share = (np.arange(steps) / (steps - 1))[:, None]
    between = out.mean(0) + share * (before - out.mean(0))
    below = ndtr((own - between) / np.maximum(width, 1e-6))
    return 1 - np.sum(share[1:] * below[:-1], axis=0) / np.sum(share)


def depth_score(retrained: np.ndarray, unlearned: np.ndarray, *, least: float = 0.05) -> float:
    """Computes the unlearning depth score, from 0 (knowledge intact) to 1 (as retrained).

    At each layer the original goes on from the values of another model, and the drop ``d_l`` of the
    right answers' mean log-probability says how much knowledge these values lack::

        sum_l d_l(retrained) clip(d_l(unlearned) / d_l(retrained), 0, 1) / sum_l d_l(retrained)

    over layers at which retraining tells, ``d_l(retrained) > least``.

    Args:
      retrained, unlearned: ``d_l [L]``, with the values of these models.

    Returns:
      The score; NaN where retraining tells at no layer.

    Source: the unlearning depth score for language models; see ``docs/metrics.md``.
    """
    r, u = np.asarray(retrained, np.float64), np.asarray(unlearned, np.float64)
    if r.shape != u.shape or r.ndim != 1:
        raise ValueError(f"retrained, unlearned: expected drops [L], got {r.shape} and {u.shape}")
    tells = r > least
    if not tells.any():
        return float("nan")
    return float(np.sum(np.clip(u[tells], 0, r[tells])) / np.sum(r[tells]))


def _pair(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if p.shape != q.shape or p.ndim < 1:
        raise ValueError(f"softmax: expected two arrays [M, K], got {p.shape} and {q.shape}")
    return p, q
