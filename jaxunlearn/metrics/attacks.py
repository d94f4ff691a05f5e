"""Membership attacks: can one tell that the forgotten examples were trained on?"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxunlearn.core.errors import expect_one_of
from jaxunlearn.core.host import on_one_thread
from jaxunlearn.metrics.agreement import VARIANTS
from jaxunlearn.metrics.distances import auc

Judge = Callable[[np.ndarray], float]
"""Softmax vectors ``[M, K]`` -> the share of them judged unseen."""


@on_one_thread
def loss_attack(
    member_losses: np.ndarray, other_losses: np.ndarray, *, splits: int = 10, seed: int = 0
) -> float:
    """Computes the accuracy of a logistic regression that tells members by their loss alone.

    Members (forget examples) and non-members (test examples of the same kind) are
    balanced by dropping the surplus at random; the attack is fitted on half and
    scored on the other half of ``splits`` stratified shuffles.

    Args:
      member_losses: ``[M]``, losses of the forgotten training examples.
      other_losses: ``[M']``, losses of examples that no training saw.

    Returns:
      The mean accuracy; .5 is ideal, both above and below it something is told. Paper 1's
      Fs is the distance ``|.5 - accuracy|``.

    Raises:
      ValueError: fewer than 4 examples on a side.

    Source: the baseline attack of the NeurIPS 2023 machine unlearning challenge.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit

    count = min(len(member_losses), len(other_losses))
    if count < 4:
        raise ValueError(f"losses: expected at least 4 examples a side, got {count}")
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.permutation(side)[:count] for side in (member_losses, other_losses)])
    y = np.repeat([1, 0], count)
    scores = []
    shuffles = StratifiedShuffleSplit(n_splits=splits, test_size=0.5, random_state=seed)
    for fit, test in shuffles.split(x, y):
        attack = LogisticRegression().fit(x[fit, None], y[fit])
        scores.append(attack.score(x[test, None], y[test]))
    return float(np.mean(scores))


@on_one_thread
def fit_judge(members: np.ndarray, others: np.ndarray, *, draws: int = 10, seed: int = 0) -> Judge:
    """Fits paper 1's Fr: are forgotten examples predicted as the original predicts unseen ones?

    A linear support vector machine is fitted on the *original* model's softmax vectors,
    forget examples (members) against test examples of the same kind. It then judges any
    model's softmax vectors of the forget examples; ``Fr`` is the share judged unseen.

    Both sides are balanced by dropping the surplus at random, ``draws`` times, and the
    shares averaged: with several times as many members the machine calls everything a
    member, retrained models too. The two sides of a well-trained model hardly differ: few
    examples decide on which side the predictions of another model come to lie, so that the
    value varies much from one original to the next, for retrained models too.

    Args:
      members: ``[M, K]``, softmax of the original on the forget examples.
      others: ``[M', K]``, softmax of the original on examples that no training saw.

    Returns:
      A function of softmax vectors ``[M'', K]``; its ideal value is that of a retrained
      model.

    Raises:
      ValueError: fewer than 4 examples on a side.

    Source: arXiv 2410.23693; the hinge loss, the balance and the draws are our choice.
    """
    from sklearn.svm import LinearSVC

    count = min(len(members), len(others))
    if count < 4:
        raise ValueError(f"softmax: expected at least 4 examples a side, got {count}")
    rng = np.random.default_rng(seed)
    y = np.repeat([1, 0], count)
    machines = []
    for _ in range(draws):
        x = np.concatenate([rng.permutation(side)[:count] for side in (members, others)])
        machines.append(LinearSVC(loss="hinge", max_iter=100_000, random_state=seed).fit(x, y))

    def judge(softmax: np.ndarray) -> float:
        return float(np.mean([np.mean(one.predict(softmax) == 0) for one in machines]))

    return judge


class Roc(NamedTuple):
    """Outcome of an attack that ranks examples by one number.

    Attributes:
      auc: probability that a member has a larger number than another example, ties half; .5 is
        ideal. Values below .5 tell members too: by smaller numbers.
      tpr: share of members found, by the share of others taken for members; ideal: equal to it.
    """

    auc: float
    tpr: dict[float, float]


def rank_attack(
    members: np.ndarray, others: np.ndarray, rates: Sequence[float] = (0.001, 0.01, 0.05)
) -> Roc:
    """Computes AUC and true positive rates of the attack that a threshold on a number makes.

    Args:
      members: ``[M]``, of examples that were trained on: large where an example is known, such as
        ``-loss``.
      others: ``[M']``, of examples that no training saw.
      rates: false positive rates; the threshold is the smallest that keeps to the rate.

    Raises:
      ValueError: no example on a side, or NaN.

    The AUC of normal numbers, means ``d`` apart with deviations ``s`` and ``s'``, is
    ``Phi(d / sqrt(s^2 + s'^2))``.
    """
    sides = [np.asarray(side, np.float64).ravel() for side in (members, others)]
    if min(map(len, sides)) < 1 or any(np.isnan(side).any() for side in sides):
        raise ValueError(
            f"members, others: expected numbers of examples on both sides, got {len(sides[0])} and "
            f"{len(sides[1])}, NaN among them or none"
        )
    own, other = sides
    ranked, tpr = np.sort(other), {}
    for rate in rates:
        allowed = int(np.floor(rate * len(other) + 1e-9))
        cut = ranked[len(other) - 1 - allowed] if allowed < len(other) else -np.inf
        tpr[rate] = float(np.mean(own > cut))
    return Roc(auc(own, other), tpr)


def confidences(softmax: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the probability of each example's label, ``[M]``."""
    return np.take_along_axis(softmax, np.asarray(labels)[:, None], axis=1)[:, 0]


def entropies(softmax: np.ndarray) -> np.ndarray:
    """Computes ``-sum_i p_i log p_i`` of each example in nats, ``[M]``, with ``0 log 0 = 0``."""
    p = np.asarray(softmax, np.float64)
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), axis=1)


def modified_entropies(
    softmax: np.ndarray, labels: np.ndarray, variant: str = "paper"
) -> np.ndarray:
    """Computes ``-(1 - p_y) log p_y - sum_{i != y} p_i log(1 - p_i)`` of each example, ``[M]``.

    Small where a prediction is sure and right, large where it is sure and wrong, which plain
    entropy does not tell apart. Probabilities are kept 1e-12 away from 0 and 1.

    Args:
      variant: ``"compatible"`` computes ``-sum_i a_i log p_i`` as a public code does, with
        ``a_i = 1 - p_i`` for every class that labels *any* of the examples, ``p_i`` for others: the
        value of an example depends on which others are there, and on its own label not at all.

    Source: Song and Mittal, "Systematic evaluation of privacy risks of machine learning models",
    USENIX Security 2021.
    """
    expect_one_of(VARIANTS, variant=variant)
    p = np.asarray(softmax, np.float64)
    if variant == "compatible":
        named = np.isin(np.arange(p.shape[1]), labels)
        return -np.sum(np.where(named, 1 - p, p) * np.log(np.where(p > 0, p, 1e-30)), axis=1)
    kept = np.clip(p, 1e-12, 1 - 1e-12)
    own = confidences(kept, labels)
    others = -kept * np.log1p(-kept)
    return -(1 - own) * np.log(own) + others.sum(1) - confidences(others, labels)


@on_one_thread
def vector_attack(
    members: tuple[np.ndarray, np.ndarray],
    others: tuple[np.ndarray, np.ndarray],
    asked: tuple[np.ndarray, np.ndarray],
    *,
    feature: str,
    most: int = 2000,
    seed: int = 0,
) -> float:
    """Computes the share of asked examples that a support vector machine judges unseen.

    The machine (radial kernel, ``C = 3``) learns on one feature of the model's own predictions
    to tell retained training examples (members) from test examples, and judges the forget
    examples. Often called MIA efficacy: the larger the better *up to the retrained model's*.

    Args:
      members, others, asked: softmax ``[M, K]`` and labels ``[M]``: of retained training
        examples, of test examples, of the forget set.
      feature: ``"correctness"``, ``"confidence"``, ``"entropy"``, ``"modified_entropy"`` or
        ``"probabilities"``.
      most: examples of each side, drawn at random; sides are balanced.

    Source: the feature attacks of Song and Mittal 2021, as Jia et al. (NeurIPS 2023) use them.
    """
    from sklearn.svm import SVC

    count = min(len(members[1]), len(others[1]), most)
    if count < 4:
        raise ValueError(f"members, others: expected at least 4 examples a side, got {count}")
    rng = np.random.default_rng(seed)
    x = []
    for softmax, labels in (members, others):
        chosen = rng.permutation(len(labels))[:count]
        x.append(_FEATURES[feature](softmax[chosen], np.asarray(labels)[chosen]))
    machine = SVC(C=3, gamma="auto", kernel="rbf").fit(np.concatenate(x), np.repeat([1, 0], count))
    return float(np.mean(machine.predict(_FEATURES[feature](*asked)) == 0))


_FEATURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "correctness": lambda p, y: (np.argmax(p, axis=1) == y).astype(float)[:, None],
    "confidence": lambda p, y: confidences(p, y)[:, None],
    "entropy": lambda p, y: entropies(p)[:, None],
    "modified_entropy": lambda p, y: modified_entropies(p, y)[:, None],
    "probabilities": lambda p, y: p,
}


@on_one_thread
def entropy_attack(
    members: np.ndarray, others: np.ndarray, asked: np.ndarray, *, seed: int = 0
) -> float:
    """Computes the share of asked examples that a logistic regression on entropy judges *members*.

    Opposite in sign to :func:`vector_attack`: small is as retrained models are.

    Args:
      members, others, asked: softmax ``[M, K]`` of retained training examples, of test examples and
        of the forget set; the first two are balanced at random.

    Source: Golatkar et al., CVPR 2020.
    """
    from sklearn.linear_model import LogisticRegression

    count = min(len(members), len(others))
    if count < 4:
        raise ValueError(f"members, others: expected at least 4 examples a side, got {count}")
    rng = np.random.default_rng(seed)
    sides = [entropies(side[rng.permutation(len(side))[:count]]) for side in (members, others)]
    fitted = LogisticRegression().fit(np.concatenate(sides)[:, None], np.repeat([1, 0], count))
    return float(np.mean(fitted.predict(entropies(asked)[:, None]) == 1))
