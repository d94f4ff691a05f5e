"""Attacks by one number: closed forms, worked values and planted faults."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from jaxunlearn.metrics import attacks


def test_auc_of_two_normal_distributions():
    rng = np.random.default_rng(0)
    members, others = rng.normal(1, 2, 40_000), rng.normal(0, 1, 40_000)
    found = attacks.rank_attack(members, others)
    assert found.auc == pytest.approx(norm.cdf(1 / np.sqrt(5)), abs=0.005)
    for rate, share in found.tpr.items():
        assert share == pytest.approx(norm.sf((norm.isf(rate) - 1) / 2), abs=0.015)


def test_ties_count_half():
    members, others = np.array([1.0, 2, 2, 3]), np.array([2.0, 2, 0])
    found = attacks.rank_attack(members, others, rates=(0.0, 1 / 3, 1.0))
    assert found.auc == pytest.approx(roc_auc_score([1] * 4 + [0] * 3, [*members, *others]))
    # no other above: only 3; one of three others allowed makes no odds, both 2 are equal; all
    assert found.tpr == {0.0: 0.25, 1 / 3: 0.25, 1.0: 1.0}
    assert attacks.rank_attack(np.ones(5), np.ones(7)).auc == 0.5


def test_sides_without_numbers():
    with pytest.raises(ValueError, match="members, others: expected numbers"):
        attacks.rank_attack(np.array([]), np.ones(3))
    with pytest.raises(ValueError, match="members, others: expected numbers"):
        attacks.rank_attack(np.array([np.nan]), np.ones(3))


def test_modified_entropy_by_hand():
    p = np.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.2, 0.3, 0.5]])
    y = np.array([0, 0, 1])
    wanted = []
    for row, label in zip(p, y, strict=True):
        one = -(1 - row[label]) * np.log(row[label])
        one -= sum(q * np.log(1 - q) for i, q in enumerate(row) if i != label)
        wanted.append(one)
    np.testing.assert_allclose(attacks.modified_entropies(p, y), wanted, rtol=1e-12)
    # sure and right, sure and wrong: plain entropy does not tell them apart
    sure = np.array([[0.98, 0.01, 0.01]] * 2)
    right, wrong = attacks.modified_entropies(sure, np.array([0, 1]))
    assert right < 0.02 < 4 < wrong
    assert np.ptp(attacks.entropies(sure)) == 0
    assert np.isfinite(attacks.modified_entropies(np.eye(3), np.array([0, 0, 2]))).all()


def test_vector_attack_is_about_what_was_not_seen():
    rng = np.random.default_rng(0)

    def softmax(sureness, count):
        z = rng.normal(size=(count, 4))
        y = rng.integers(0, 4, count)
        z[np.arange(count), y] += sureness
        e = np.exp(z)
        return e / e.sum(1, keepdims=True), y

    members, others = softmax(9, 300), softmax(2, 300)
    for name in ("confidence", "entropy", "modified_entropy", "probabilities"):
        seen, unseen = (
            attacks.vector_attack(members, others, softmax(sureness, 200), feature=name)
            for sureness in (9, 2)
        )
        assert seen < 0.15 < 0.7 < unseen, name
    # the entropy attack counts members: the opposite sign
    of_seen = attacks.entropy_attack(members[0], others[0], softmax(9, 200)[0])
    of_unseen = attacks.entropy_attack(members[0], others[0], softmax(2, 200)[0])
    assert of_unseen < 0.3 < 0.85 < of_seen
