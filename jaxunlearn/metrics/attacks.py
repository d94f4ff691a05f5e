"""Membership attacks: can one tell that the forgotten examples were trained on?"""

from collections.abc import Callable

import numpy as np

Judge = Callable[[np.ndarray], float]
"""Softmax vectors ``[M, K]`` -> the share of them judged unseen."""


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
