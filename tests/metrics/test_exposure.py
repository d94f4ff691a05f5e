"""Exposure of each example against closed forms and hand-made cases."""

import numpy as np
import pytest
from scipy.stats import laplace, norm

from jaxunlearn.metrics import METRICS, Missing, exposure
from jaxunlearn.metrics.about import text_of
from jaxunlearn.metrics.classification import Kept


def normal_sides(distance, models=400, examples=60, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(distance, 1, (models, examples)), rng.normal(0, 1, (models, examples))


def test_confidence_is_the_log_odds_of_the_label():
    z = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, 0.0]])
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    wanted = np.log(p[[0, 1], [0, 1]] / (1 - p[[0, 1], [0, 1]]))
    np.testing.assert_allclose(exposure.logit_confidence(z, [0, 1]), wanted, rtol=1e-12)
    # where the softmax is 1 to the last digit, the odds are still there
    assert exposure.logit_confidence(np.array([[800.0, 0.0]]), [0])[0] == 800


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.0])
def test_lira_of_two_normal_distributions(distance):
    found = exposure.unlearning_lira(*normal_sides(distance))
    assert found.shape == (60,)
    # the best attack on N(d, 1) and N(0, 1) is right with probability Phi(d / 2)
    assert np.mean(found) == pytest.approx(norm.cdf(distance / 2), abs=0.01)


def test_lira_of_equal_sides_is_chance_with_few_models_too():
    found = exposure.unlearning_lira(*normal_sides(0.0, models=6, examples=4000))
    assert np.mean(found) == pytest.approx(0.5, abs=0.01)


def test_lira_leaves_the_judged_model_out():
    rng = np.random.default_rng(1)
    side = rng.normal(size=(7, 1))
    mean, deviation = exposure._without_each(side)
    for n in range(7):
        rest = np.delete(side, n, axis=0)
        np.testing.assert_allclose(mean[n], rest.mean(0), rtol=1e-12)
        np.testing.assert_allclose(deviation[n], rest.std(0, ddof=1), rtol=1e-9)


def test_lira_tells_widths_apart_where_correctness_cannot():
    rng = np.random.default_rng(2)
    wide, narrow = rng.normal(5, 3, (200, 20)), rng.normal(5, 0.3, (200, 20))
    assert np.mean(exposure.unlearning_lira(wide, narrow)) > 0.8
    # the planted fault: distributions of 0 and 1; all are right, nothing is told
    right = [(side > 0).astype(float) for side in (np.abs(wide) + 1, narrow)]
    assert np.all(exposure.unlearning_lira(*right) == 0.5)


def test_density_ratio_by_hand():
    one, other = np.array([[0.0], [1.0], [2.0]]), np.array([[4.0], [5.0], [6.0]])
    phi = 1.5
    p1, p0 = norm.pdf(phi, one, 1).mean(), norm.pdf(phi, other, 1).mean()
    found = exposure.density_ratio(np.array([phi]), one, other)
    np.testing.assert_allclose(found, [p1 / (p1 + p0)], rtol=1e-9)
    assert exposure.density_ratio(np.array([3.0]), one, other) == pytest.approx(0.5)
    assert exposure.density_ratio(np.array([-900.0]), one, other)[0] == 1  # no 0 / 0 far out


def test_loss_of_rates_by_hand():
    wanted = max(np.log(1 - 1e-6 - 0.1) - np.log(0.2), np.log(1 - 1e-6 - 0.2) - np.log(0.1))
    assert exposure.rates_to_loss([0.1], [0.2]) == pytest.approx(wanted, rel=1e-12)
    # both 0: told without a mistake; one 0: too few models to say
    assert exposure.rates_to_loss([0.0, 0.5], [0.0, 0.5]) == np.inf
    assert exposure.rates_to_loss([0.0, 0.5], [0.3, 0.5]) == pytest.approx(0, abs=1e-5)
    # two normal distributions: the loss at the best threshold among some
    cut = np.linspace(-1, 2, 7)
    fpr, fnr = norm.sf(cut), norm.cdf(cut - 1)
    each = np.maximum(np.log((1 - fpr) / fnr), np.log((1 - fnr) / fpr))
    assert exposure.rates_to_loss(fpr, fnr) == pytest.approx(each.max(), abs=1e-4)


def test_loss_of_models():
    apart = np.array([[3.0], [4.0], [5.0]]), np.array([[0.0], [1.0], [2.0]])
    assert exposure.privacy_loss(*apart) == np.inf
    assert exposure.privacy_loss(*apart[::-1]) == np.inf  # in the other direction, too
    same = np.arange(8.0)[:, None]
    assert exposure.privacy_loss(same, same)[0] == pytest.approx(0, abs=1e-4)
    # unlearned 1, 3, 4, 6 and retrained 0, 2, 5, 7: best at FPR 1/4, FNR 1/4 or worse
    own, other = np.array([1.0, 3, 4, 6])[:, None], np.array([0.0, 2, 5, 7])[:, None]
    wanted = np.log(0.5) - np.log(0.25)  # above 2: FPR 2/4, FNR 1/4
    assert exposure.privacy_loss(own, other)[0] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("loss", [0.5, 1.0, 3.0])
def test_loss_of_the_mechanisms_of_differential_privacy(loss):
    """Noise of a Laplace distribution, and randomised response, have the loss they are made for."""
    cut = np.linspace(-2, loss + 2, 9)
    rates = laplace.sf(cut), laplace.cdf(cut - loss)
    assert exposure.rates_to_loss(*rates, delta=0.0) == pytest.approx(loss, abs=1e-12)
    right = np.exp(loss) / (1 + np.exp(loss))
    assert exposure.rates_to_loss([1 - right], [1 - right]) == pytest.approx(loss, abs=1e-4)


def test_loss_as_a_row_of_the_table():
    def models(*columns):
        return [Kept({"forget": np.array(row, float)}, {}) for row in zip(*columns, strict=True)]

    # randomised response that says the truth to 3 of 4, told without a mistake, told by nothing
    ours = models([1, 1, 1, 0], [5, 6, 7, 8], [2, 2, 2, 2])
    theirs = models([1, 0, 0, 0], [1, 2, 3, 4], [2, 2, 2, 2])
    found = METRICS["epsilon"].function(ours, theirs)
    wanted = [np.log(0.75 - exposure.DELTA) - np.log(0.25), np.log(4), 0]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert METRICS["epsilon"].each, "averages hide the few that are told"
    # four models show no more
    rng = np.random.default_rng(0)
    sides = (models(*rng.normal(distance, 1, (500, 4))) for distance in (2, 0))
    assert METRICS["epsilon"].function(*sides).max() == pytest.approx(np.log(4))
    with pytest.raises(Missing, match="three models"):
        METRICS["epsilon"].function(ours[:2], theirs)


@pytest.mark.parametrize(("count", "wanted"), [(6, "1.1"), (30, "1.4")])
def test_loss_by_chance_is_what_the_text_says(count, wanted):
    found = exposure.privacy_loss(*normal_sides(0.0, models=count, examples=1000))
    mean = np.minimum(found, np.log(count)).mean()
    assert f"{mean:.1f}" == wanted
    assert f"{wanted} where " in text_of("epsilon").misleads


def test_score_of_the_challenge():
    # 2^-floor(eps / .5): 1, 1, 1/2, 1/4, 0
    losses = np.array([0.0, 0.49, 0.5, 1.2, np.inf])
    assert exposure.challenge_score(losses) == pytest.approx((1 + 1 + 0.5 + 0.25) / 5)
    assert exposure.challenge_score(losses, 0.9, 1.1) == pytest.approx(0.55 * 0.99)
    with pytest.raises(ValueError, match="losses: expected numbers from 0 on"):
        exposure.challenge_score(np.array([-1.0]))


def test_examples_are_split_by_exposure():
    found = exposure.split_by_exposure(np.array([0.5, 0.9, 0.6, 0.7]))
    assert found.vulnerable.tolist() == [1, 3]
    assert found.protected.tolist() == [2, 0]
    with pytest.raises(ValueError, match="share: expected a number above 0, at most"):
        exposure.split_by_exposure(np.zeros(4), 0.7)


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ((np.zeros((2, 4)), np.zeros((2, 4))), "unlearned: expected .* three models"),
        ((np.zeros((3, 4)), np.zeros((4, 4))), "expected the same shape"),
        ((np.full((3, 4), np.nan), np.zeros((3, 4))), "unlearned: expected finite"),
    ],
)
def test_what_is_no_exposure(sides, message):
    with pytest.raises(ValueError, match=message):
        exposure.unlearning_lira(*sides)
    with pytest.raises(ValueError, match=message):
        exposure.privacy_loss(*sides)


def test_divergence_of_margins_keeps_the_largest():
    ours = np.array([0.0] * 5 + [1.0] * 5)[:, None]
    theirs = np.array([0.0] * 9 + [1.0])[:, None]
    wanted = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    np.testing.assert_allclose(exposure.margin_divergence(ours, theirs), [wanted], atol=1e-9)
    np.testing.assert_allclose(wanted, 0.510826, atol=1e-6)
    # apart: the shares of one side are the least ones
    np.testing.assert_allclose(
        exposure.margin_divergence(ours[:5], ours[5:]),
        [np.log(1e5) + 1e-5 * np.log(1e-5)],
        atol=1e-6,
    )
    np.testing.assert_allclose(exposure.margin_divergence(ours, ours), [0], atol=1e-9)
    np.testing.assert_allclose(exposure.margin_divergence(ours[:1], ours[:2]), [0], atol=1e-9)
    np.testing.assert_allclose(exposure.margin_divergence([[200.0]], [[1e9]]), [0], atol=1e-9)
    with pytest.raises(ValueError, match=r"expected margins \[N, M\]"):
        exposure.margin_divergence(ours, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="expected margins, got NaN"):
        exposure.margin_divergence(ours, np.where(theirs == 1, np.nan, theirs))
