"""Faults of public codes, planted on purpose: each gives another number than is right, ours that.

Planted elsewhere: predictions averaged before the divergence (``test_agreement``), likelihood
ratios of correctness (``test_exposure``), attacks whose signs differ (``test_rank_attacks``).
"""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from jaxunlearn.engine.predict import Predictions
from jaxunlearn.metrics import agreement, attacks, membership
from jaxunlearn.metrics.exposure import margin_divergence

SURE = np.full((1, 10), 1e-6)
SURE[0, 3] = 1 - 9e-6
EVEN = np.full((1, 10), 0.1)


def test_divergence_with_its_sides_exchanged_and_averaged_over_classes():
    m = (SURE + EVEN) / 2
    # what kl_div(log p, m) is where its default average over all numbers is left as it is
    planted = 1 - sum(np.mean(m * np.log(m / side)) for side in (SURE, EVEN)) / 2
    assert planted == pytest.approx(0.742, abs=5e-4)
    ours = agreement.zero_retrain_forgetting(SURE, EVEN)
    assert ours == pytest.approx(0.242, abs=5e-4)
    for p, q in ((SURE, EVEN), (EVEN, SURE)):
        found = agreement.zero_retrain_forgetting(p, q, variant="compatible")
        np.testing.assert_allclose(found, planted, rtol=1e-12)
    # natural logarithms alone: 1 can no longer be told from what nothing reaches
    assert 1 - (1 - ours) * np.log(2) == pytest.approx(0.474, abs=5e-4)
    with pytest.raises(ValueError, match="variant: expected one of"):
        agreement.zero_retrain_forgetting(SURE, EVEN, variant="public")


P = np.array(
    [[0.46, 0.06, 0.12, 0.06, 0.30], [0.14, 0.04, 0.28, 0.22, 0.32], [0.02, 0.70, 0.22, 0.02, 0.04]]
)


def test_modified_entropy_of_columns_that_belong_to_other_examples():
    y = np.arange(3)
    weights = P.copy()
    weights[:, y] = 1 - P[:, y]  # meant: one place in each row
    planted = -np.sum(weights * np.log(P), axis=1)
    assert np.round(planted, 1).tolist() == [5.5, 6.4, 5.3]
    found = attacks.modified_entropies(P, y, variant="compatible")
    np.testing.assert_allclose(found, planted, rtol=1e-12)
    ours = attacks.modified_entropies(P, y)
    assert [f"{one:.2f}" for one in ours] == ["0.55", "3.38", "2.03"]
    # an example's value is its own
    np.testing.assert_allclose(attacks.modified_entropies(P[:1], y[:1]), ours[:1])
    assert abs(attacks.modified_entropies(P[:1], y[:1], variant="compatible") - planted[0]) > 1
    with pytest.raises(ValueError, match="variant: expected one of"):
        attacks.modified_entropies(P, y, variant="public")


def histograms(ours, theirs, bins=20):
    """Shares of equal bins, the last of them without its right edge: the largest is lost."""
    edges = np.linspace(min(ours.min(), theirs.min()), max(ours.max(), theirs.max()), bins + 1)
    for side in (ours, theirs):
        count = np.array([np.sum((side >= a) & (side < b)) for a, b in pairwise(edges)])
        yield np.maximum(count / max(count.sum(), 1), 1e-5)


HALF, TENTH = np.repeat([0.0, 1.0], (5, 5)), np.repeat([0.0, 1.0], (9, 1))


def test_margins_without_the_largest():
    p, q = histograms(HALF, TENTH)
    assert np.sum(p * np.log(p / q)) == 0
    found = margin_divergence(HALF[:, None], TENTH[:, None], variant="compatible")
    np.testing.assert_allclose(found, 0, atol=1e-12)
    rng = np.random.default_rng(0)
    sides = rng.normal(size=40), rng.normal(1, size=60)
    p, q = histograms(*sides)
    found = margin_divergence(*(side[:, None] for side in sides), variant="compatible")
    np.testing.assert_allclose(found, np.sum(p * np.log(p / q)), rtol=1e-9)
    with pytest.raises(ValueError, match="variant: expected one of"):
        margin_divergence(HALF[:, None], TENTH[:, None], variant="public")
    ours = margin_divergence(HALF[:, None], TENTH[:, None])
    assert ours == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1), abs=1e-9)
    assert ours == pytest.approx(0.51, abs=5e-3)


def test_margins_with_the_sides_of_the_divergence_exchanged():
    ours = margin_divergence(HALF[:, None], TENTH[:, None])
    planted = margin_divergence(TENTH[:, None], HALF[:, None])
    assert planted == pytest.approx(0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5), abs=1e-9)
    assert planted == pytest.approx(0.368, abs=5e-4)
    assert ours == pytest.approx(0.511, abs=5e-4)


def predictions(seed, sureness, label, count=2000):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 3))
    logits[:, label] += sureness
    return Predictions(logits, np.full(count, label))


@pytest.mark.parametrize("score", membership.SCORES)
def test_a_class_compared_with_images_of_other_classes(score):
    """A retrained model names other classes for the class, in training and test images alike."""
    found = {
        "forget": predictions(0, -3, label=0),
        "test_forget": predictions(1, -3, label=0),
        "test_retain": predictions(2, 6, label=1),
    }
    size = {name: SimpleNamespace(size=np.asarray(len(p.labels))) for name, p in found.items()}
    evidence = SimpleNamespace(predictions=found, sets=SimpleNamespace(**size))
    assert membership.auc(evidence, score) == pytest.approx(0.5, abs=0.05)
    number = membership.SCORES[score]
    planted = attacks.rank_attack(number(found["forget"]), number(found["test_retain"]))
    assert planted.auc < 0.15, "the attack sees the class"


def test_accuracy_of_what_was_forgotten_is_not_unlearning_accuracy():
    """Fine-tuning and retraining on a tenth of CIFAR-10, in percent: UA .63 and 5.24."""
    ours = agreement.average_gap({"UA": 0.63}, {"UA": 5.24})
    assert ours == pytest.approx(4.61)
    planted = agreement.average_gap({"UA": 100 - 0.63}, {"UA": 5.24})
    assert planted == pytest.approx(94.13)
    # both sides alike, it does not matter
    assert agreement.average_gap({"FA": 99.37}, {"FA": 94.76}) == pytest.approx(ours)


def test_less_accuracy_than_the_retrained_is_not_better():
    own, retrained = {"forget": 0.0}, {"forget": 0.85}
    planted = np.mean([own[name] - retrained[name] for name in own])  # without the absolute value
    assert planted < 0
    assert agreement.average_gap(own, retrained) == pytest.approx(0.85)
