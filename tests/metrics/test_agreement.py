"""Agreement with retrained models: worked values and closed forms."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import norm

from jaxunlearn.metrics import Missing, agreement, comparison

SURE = np.eye(10)[:1]
EVEN = np.full((1, 10), 0.1)


def test_divergence_of_a_sure_and_an_even_prediction():
    # m = .55 once and .05 nine times
    wanted = 0.5 * np.log2(1 / 0.55) + 0.5 * (0.1 * np.log2(0.1 / 0.55) + 0.9 * np.log2(2))
    assert agreement.divergence(SURE, EVEN)[0] == pytest.approx(wanted, abs=1e-12)
    assert agreement.zero_retrain_forgetting(SURE, EVEN)[0] == pytest.approx(0.242, abs=5e-4)
    assert agreement.divergence(SURE, np.eye(10)[1:2])[0] == 1  # bits
    assert agreement.divergence(EVEN, EVEN)[0] == 0


def test_forgetting_is_averaged_after_the_divergence():
    # the planted fault: two examples whose mean predictions are even
    sure = np.eye(2)
    even = np.full((2, 2), 0.5)
    assert agreement.zero_retrain_forgetting(sure, even).mean() == pytest.approx(0.6887, abs=1e-4)
    mean = agreement.zero_retrain_forgetting(sure.mean(0, keepdims=True), even[:1])
    assert mean[0] == pytest.approx(1)


def test_distances_of_predictions():
    np.testing.assert_allclose(
        agreement.activation_distance(SURE, EVEN), [np.sqrt(0.81 + 9 * 0.01)], rtol=1e-12
    )
    assert agreement.same_class(np.eye(3), np.eye(3)[[0, 2, 1]]).tolist() == [True, False, False]


def test_scores_by_hand():
    u, r = {"forget": 0.1, "retain": 0.9, "test": 0.8}, {"forget": 0.3, "retain": 1, "test": 0.9}
    assert agreement.tug_of_war(u, r) == pytest.approx(0.8 * 0.9 * 0.9)
    assert agreement.average_gap(u, r) == pytest.approx(0.4 / 3)
    # below the retrained model's is as far off as above
    assert agreement.tug_of_war(u | {"forget": 0.5}, r) == agreement.tug_of_war(u, r)
    assert agreement.adaptive_score({"test": 0.9}, u) == pytest.approx(0.9 / 1.1)
    assert agreement.adaptive_score({"test": 0.9}, u, items=True) == pytest.approx(0.9 / 1.7)
    assert agreement.normalised_score(0.8, 0.4) == pytest.approx(0.4 + 0.5 * 0.8)
    with pytest.raises(ValueError, match="a metric that both have"):
        agreement.average_gap({"a": 1.0}, {"b": 1.0})


def test_distances_of_weights():
    own = {"params": {"w": np.array([3.0, 4.0]), "b": np.array([2.0])}, "steps": np.array(3)}
    other = {"params": {"w": np.array([0.0, 4.0]), "b": np.array([0.0])}, "steps": np.array(9)}
    found = agreement.weight_distances(own, other)
    assert found == {"params/w": 0.75, "params/b": 2.0, "": pytest.approx(np.sqrt(13) / 4)}
    with pytest.raises(ValueError, match="models of the same form"):
        agreement.weight_distances(own, {"params": {"w": np.zeros(2)}})


def test_distances_of_each_kernel_are_means_over_the_other_retrained_models():
    def model(first, last):
        weights = {"fc1": {"bias": np.full(2, 9.0), "kernel": first}, "head": {"kernel": last}}
        return SimpleNamespace(weights=weights, is_sound=lambda: True)

    ones = np.ones((2, 2))
    own = model(3 * ones, ones)
    found = comparison.weight_distance_by_layer(own, [model(ones, ones), model(2 * ones, ones)])
    # 2 / 1 and 1 / 2 of the first kernel; vectors have no place
    assert found == pytest.approx([(2 + 0.5) / 2, 0], abs=1e-12)
    other = model(np.ones((2, 3)), ones)
    for function in (comparison.weight_distance_by_layer, comparison.weight_distance):
        with pytest.raises(Missing, match="counterpart"):
            function(own, [other])


@pytest.mark.parametrize("shape", [(50, 6), (12, 40)], ids=["examples", "features"])
def test_alignment(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    turned = 3 * x @ np.linalg.qr(rng.normal(size=(shape[1],) * 2))[0] + 7
    assert agreement.alignment(x, turned) == pytest.approx(1, abs=1e-9)
    y = rng.normal(size=(shape[0], 9))
    centred = [side - side.mean(0) for side in (x, y)]
    k, m = (side @ side.T for side in centred)
    wanted = np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))
    assert agreement.alignment(x, y) == pytest.approx(wanted, abs=1e-12)
    assert np.isnan(agreement.alignment(np.ones(shape), x))


def test_progress_along_the_direction_of_retraining():
    o, r = np.zeros((4, 2)), np.tile([2.0, 0.0], (4, 1))
    u = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 5.0], [0.0, 3.0]])
    assert agreement.progress_to_retrained(o, u, r).tolist() == [0, 1, 0.5, 0]
    assert np.isnan(agreement.progress_to_retrained(o, u, o)).all()


def test_completeness_between_the_two_ends():
    rng = np.random.default_rng(0)
    out = rng.normal(0, 1, (2000, 3))
    before = np.full(3, 20.0)
    found = agreement.completeness(before, np.array([20.0, 0.0, -50.0]), out)
    share = np.arange(100) / 99
    # the original itself: everything lies below it, but the last few
    wanted = [
        1 - np.sum(share[1:] * norm.cdf(own - share[:-1] * 20)) / share.sum()
        for own in (20.0, 0.0, -50.0)
    ]
    np.testing.assert_allclose(found, wanted, atol=0.01)
    assert found[0] < 0.1
    assert found[1] > 0.99
    # one model without the examples will do
    assert agreement.completeness(before, np.zeros(3), out[0]).shape == (3,)
    with pytest.raises(ValueError, match=r"expected \[M\], \[M\] and \[N, M\]"):
        agreement.completeness(before, np.zeros(2), out)


def test_depth_by_hand():
    retrained = np.array([0.01, 1.0, 3.0])
    assert agreement.depth_score(retrained, np.array([9.0, 0.5, 3.5])) == pytest.approx(3.5 / 4)
    assert agreement.depth_score(retrained, retrained) == 1
    assert agreement.depth_score(retrained, np.zeros(3)) == 0
    assert agreement.depth_score(retrained, -retrained) == 0
    assert np.isnan(agreement.depth_score(np.zeros(2), np.ones(2)))
