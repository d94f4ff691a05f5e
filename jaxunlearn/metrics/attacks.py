"""Membership attacks: can one tell that the forgotten examples were trained on?"""

import numpy as np

__all__ = ["loss_attack"]


def loss_attack(
    member_losses: np.ndarray, other_losses: np.ndarray, *, splits: int = 10, seed: int = 0
) -> float:
    """Accuracy of a logistic regression that tells members by their loss alone.

    Members (forget examples) and non-members (test examples of the same kind) are
    balanced by dropping the surplus at random; the attack is fitted on half and
    scored on the other half of ``splits`` stratified shuffles.

    Args:
      member_losses: ``[M]``, losses of the forgotten training examples.
      other_losses: ``[M']``, losses of examples that no training saw.

    Returns:
      The mean accuracy; .5 is ideal, both above and below it something is told.

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
