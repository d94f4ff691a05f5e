"""The concept bottleneck: known weights are found, and what is told apart stays apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.concepts import (
    bottleneck_accuracy,
    bottleneck_logits,
    concept_logits,
    fit_bottleneck,
    make_bank,
    margins,
)

M, N, K = 5, 8, 3
WEIGHTS = np.array([[3.0, 0, 0, 0, 0], [0, 3, 0, 0, 0], [0, 0, 3, 0, 0]])


def bank(useful=None):
    vectors = np.eye(N)[:M] * np.array([1.0, 2, 3, 4, 5])[:, None]
    return make_bank(list("abcde"), vectors, np.arange(M), useful=useful)


def data(count=600, seed=0):
    """Labels drawn from a softmax of known weights on the margins."""
    rng = np.random.default_rng(seed)
    e = rng.normal(size=(count, N)).astype(np.float32)
    logits = np.asarray(margins(bank(), jnp.asarray(e))) @ WEIGHTS.T
    return e, np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)


def test_known_weights_are_found():
    e, y = data(6000)
    fitted = fit_bottleneck(bank(), e, y, K, hybrid=False)
    weights = np.asarray(fitted.weights)
    centred = weights - weights.mean(axis=0)
    np.testing.assert_allclose(centred, WEIGHTS - WEIGHTS.mean(axis=0), atol=0.35)
    unseen = data(seed=1)
    best = np.mean((np.asarray(margins(bank(), jnp.asarray(unseen[0]))) @ WEIGHTS.T).argmax(1)
                   == unseen[1])  # fmt: skip
    assert bottleneck_accuracy(bank(), fitted, *unseen)["concepts"] > best - 0.02


def test_the_minimum_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    e, y = data()
    strength = 1e-2
    fitted = fit_bottleneck(bank(), e, y, K, strength=strength, l1_ratio=0.0, hybrid=False)
    found = np.asarray(margins(bank(), jnp.asarray(e)), np.float64)
    z = (found - found.mean(axis=0)) / found.std(axis=0)
    theirs = LogisticRegression(C=1 / (strength * len(y)), solver="newton-cg", tol=1e-8)
    theirs.fit(z, y)
    ours = np.asarray(fitted.weights) * found.std(axis=0)
    np.testing.assert_allclose(ours, theirs.coef_, atol=2e-3)


def test_concepts_that_do_not_matter_get_no_weight():
    e, y = data()
    fitted = fit_bottleneck(bank(), e, y, K, strength=0.03, hybrid=False)
    assert not np.asarray(fitted.weights[:, 3:]).any(), "exactly zero"
    assert np.diag(fitted.weights[:, :3]).min() > 0.3


def test_concepts_that_are_not_useful_get_no_weight():
    e, y = data()
    fitted = fit_bottleneck(bank([True, True, False, True, True]), e, y, K, hybrid=False)
    assert not np.asarray(fitted.weights[:, 2]).any()
    assert np.isfinite(fitted.bias).all()


def test_the_residual_is_trained_alone():
    rng = np.random.default_rng(0)
    e = rng.normal(size=(600, N)).astype(np.float32)
    # what decides lies beyond the concepts, in the last features
    y = np.argmax(e[:, -K:] + 0.3 * e[:, :K], axis=1)
    plain = fit_bottleneck(bank(), e, y, K, hybrid=False)
    both = fit_bottleneck(bank(), e, y, K, epochs=40)
    np.testing.assert_array_equal(both.weights, plain.weights)
    np.testing.assert_array_equal(both.bias, plain.bias)
    assert not np.asarray(plain.residual_weights).any()
    share = bottleneck_accuracy(bank(), both, e, y)
    assert share["concepts"] < 0.6
    assert share["hybrid"] > 0.9
    assert share["concepts"] == bottleneck_accuracy(bank(), plain, e, y)["hybrid"]


def test_the_residual_does_not_depend_on_units():
    e, y = data()
    one = fit_bottleneck(bank(), e, y, K)
    large = make_bank(list("abcde"), np.eye(N)[:M], 100 * np.asarray(bank().intercepts))
    same = make_bank(list("abcde"), np.eye(N)[:M], np.asarray(bank().intercepts))
    two = fit_bottleneck(large, 100 * e, y, K)
    three = fit_bottleneck(same, e, y, K)
    np.testing.assert_allclose(100 * two.residual_weights, three.residual_weights, atol=2e-3)
    assert np.abs(one.residual_weights).max() > 1e-3


def test_logits_by_hand():
    e, y = data()
    fitted = fit_bottleneck(bank(), e, y, K)
    x = jnp.asarray(e[:4])
    wanted = (
        margins(bank(), x) @ fitted.weights.T + fitted.bias[None]
        + x @ fitted.residual_weights.T + fitted.residual_bias[None]
    )  # fmt: skip
    found = jax.jit(bottleneck_logits)(bank(), fitted, x)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(
        concept_logits(fitted, margins(bank(), x)),
        wanted - x @ fitted.residual_weights.T - fitted.residual_bias[None],
        rtol=1e-4,
        atol=1e-5,
    )


def test_classes_without_examples_take_no_part():
    e, y = data()
    fitted = fit_bottleneck(bank(), e, 2 * y, 6)
    plain = fit_bottleneck(bank(), e, y, K)
    absent = np.array([1, 3, 5])
    assert not np.asarray(fitted.weights)[absent].any()
    assert not np.asarray(fitted.residual_weights)[absent].any()
    assert (np.asarray(fitted.bias)[absent] == -1000).all()
    np.testing.assert_allclose(fitted.weights[::2], plain.weights, atol=1e-4)
    logits = bottleneck_logits(bank(), fitted, jnp.asarray(e))
    assert set(np.unique(logits.argmax(axis=1))) <= {0, 2, 4}


def test_separable_classes_stay_finite():
    e = np.repeat(np.eye(N, dtype=np.float32)[:K] * 9, 200, axis=0)
    fitted = fit_bottleneck(bank(), e, np.arange(K).repeat(200), K)
    assert all(np.isfinite(part).all() for part in fitted)
    assert bottleneck_accuracy(bank(), fitted, e, np.arange(K).repeat(200))["concepts"] == 1


def test_the_same_seed_gives_the_same_residual():
    e, y = data()
    one, two, other = (fit_bottleneck(bank(), e, y, K, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.residual_weights, two.residual_weights)
    assert (np.asarray(one.residual_weights) != np.asarray(other.residual_weights)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.ones((4, 3))}, r"features: expected shape \[N, 8\]"),
        ({"features": np.zeros((0, N)), "labels": np.zeros(0, int)}, r"features: expected shape"),
        ({"features": np.full((4, N), np.nan)}, "features: expected finite"),
        ({"labels": np.zeros(3, int)}, r"labels: expected integers \[4\]"),
        ({"labels": np.zeros(4)}, r"labels: expected integers \[4\]"),
        ({"labels": np.array([0, 1, 2, 3])}, "labels: expected 0 to 2, got 0 to 3"),
        ({"labels": np.array([-1, 1, 2, 0])}, "labels: expected 0 to 2, got -1 to 2"),
        ({"strength": -1.0}, "strength, l1_ratio: expected"),
        ({"l1_ratio": 2.0}, "strength, l1_ratio: expected"),
        ({"epochs": 0}, "epochs, learning_rate, l2: expected"),
    ],
)
def test_mistakes(change, message):
    arguments = {"features": np.ones((4, N)), "labels": np.zeros(4, int), "num_classes": K}
    with pytest.raises(ValueError, match=message):
        fit_bottleneck(bank(), **{**arguments, **change})
