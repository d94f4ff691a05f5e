"""Variance components and bootstrap against simulation and closed forms."""

import numpy as np
import pytest

from jaxunlearn.core import statistics


def test_components_of_a_simulated_design():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        y = 5 + rng.normal(0, 2, (6, 1, 1)) + rng.normal(0, 1, (6, 4, 1))
        found.append(statistics.components(y + rng.normal(0, 0.5, (6, 4, 3))))
    assert np.mean([one.training for one in found]) == pytest.approx(4, rel=0.1)
    assert np.mean([one.unlearning for one in found]) == pytest.approx(1, rel=0.1)
    assert np.mean([one.evaluation for one in found]) == pytest.approx(0.25, rel=0.1)
    inside = [abs(one.mean.mean - 5) <= one.mean.interval for one in found]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


def test_components_by_hand():
    y = np.array([[[1.0, 3.0], [5.0, 7.0]], [[11.0, 13.0], [15.0, 17.0]]])
    # within 2; unlearning seeds 2 and 6 around 4: MS 2 * (4 + 4 + 4 + 4) / 2 = 16; originals 4, 14
    found = statistics.components(y)
    assert found.evaluation == 2
    assert found.unlearning == (16 - 2) / 2
    assert found.training == (4 * 50 - 16) / 4
    assert found.mean.mean == 9


def test_one_seed_of_a_stage_leaves_its_variance_to_the_stage_above():
    y = np.array([1.0, 2.0, 4.0])[:, None, None]
    found = statistics.components(y)
    assert found.training == pytest.approx(np.var([1, 2, 4], ddof=1))
    assert found.unlearning == found.evaluation == 0
    with pytest.raises(ValueError, match=r"values: expected \[T, U, E\] with two originals"):
        statistics.components(np.zeros((1, 3, 3)))


def test_bootstrap_of_a_mean():
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = statistics.bootstrap(values)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.03)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)
    assert statistics.bootstrap([2.0, 2.0]) == (2, 2)
    assert statistics.bootstrap(values) == (low, high)
    # right or wrong: the deviation of a share
    share = np.arange(400) < 100
    low, high = statistics.bootstrap(share)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.75 / 400), rel=0.08)
    assert (low + high) / 2 == pytest.approx(0.25, abs=0.005)
