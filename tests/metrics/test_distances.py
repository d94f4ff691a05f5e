import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics import roc_auc_score

from jaxunlearn.metrics.distances import auc, classifier_score, frechet_distance, kernel_distance


def gaussian_frechet(mean1, cov1, mean2, cov2):
    """In float64, with a root that a singular product has too."""
    root = sqrtm(cov1)
    middle = sqrtm(root @ cov2 @ root)
    trace = np.trace(cov1) + np.trace(cov2) - 2 * np.trace(middle).real
    return float(np.sum((mean1 - mean2) ** 2) + trace)


def fitted(x):
    x = np.asarray(x, np.float64)
    return x.mean(axis=0), np.cov(x, rowvar=False)


def correlated(rng, count, features, shift=0.0, scale=1.0):
    """Features with a spectrum that falls off, as those of networks have."""
    mix = np.random.default_rng(7).normal(size=(features, features)) / math.sqrt(features)
    widths = np.exp(-np.arange(features) / 8)[:, None]
    drawn = rng.normal(size=(count, features))
    return (shift + scale * drawn @ (mix * widths)).astype(np.float32)


class TestFrechet:
    @pytest.mark.parametrize("shift", [0.0, 100.0])
    @pytest.mark.parametrize(
        ("n", "m", "features"), [(500, 400, 16), (300, 700, 64), (30, 20, 48), (20, 90, 48)]
    )
    def test_it_is_that_of_the_covariances_in_float64(self, n, m, features, shift):
        rng = np.random.default_rng(0)
        a = correlated(rng, n, features, shift)
        b = correlated(rng, m, features, shift + 0.2, scale=1.3)
        wanted = gaussian_frechet(*fitted(a), *fitted(b))
        assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-3)
        assert frechet_distance(b, a) == pytest.approx(wanted, rel=1e-3)

    def test_covariances_in_float32_would_not_do(self):
        """What the shift in the test above is for: E x x' - m m' has no digits left."""
        rng = np.random.default_rng(0)
        a, b = correlated(rng, 300, 64, 100.0), correlated(rng, 300, 64, 100.2)

        def naive(x):
            mean = x.mean(axis=0)
            return mean, x.T @ x / np.float32(len(x)) - np.outer(mean, mean)

        wanted = gaussian_frechet(*fitted(a), *fitted(b))
        (m1, c1), (m2, c2) = naive(a), naive(b)
        roots = np.sqrt(np.abs(np.linalg.eigvals(c1 @ c2))).sum()
        wrong = np.sum((m1 - m2) ** 2) + np.trace(c1) + np.trace(c2) - 2 * roots
        assert abs(wrong - wanted) > 0.1 * wanted
        assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-3)

    def test_means_alone(self):
        a = correlated(np.random.default_rng(0), 200, 12)
        step = np.linspace(-1, 2, 12).astype(np.float32)
        assert frechet_distance(a, a + step) == pytest.approx(np.sum(step**2), rel=1e-4)

    def test_close_means_far_from_zero(self):
        """Multiples of 1/64 near 10,000 are exact in float32; their plain mean would not be."""
        rng = np.random.default_rng(0)
        a, b = (10_000 + np.round(64 * rng.normal(size=(2000, 4)) + c) / 64 for c in (0, 2))
        wanted = gaussian_frechet(*fitted(a), *fitted(b))
        assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-3)

    def test_two_gaussians(self):
        """Diagonal: |m1 - m2|^2 + |s1 - s2|^2, as far as 40,000 examples tell."""
        rng = np.random.default_rng(0)
        m1, m2, s1, s2 = np.array([[0, 1, 2], [1, 1, -1], [1, 2, 0.5], [2, 0.5, 0.5]])
        a, b = (m + s * rng.normal(size=(40_000, 3)) for m, s in ((m1, s1), (m2, s2)))
        closed = np.sum((m1 - m2) ** 2) + np.sum((s1 - s2) ** 2)
        assert closed == pytest.approx(gaussian_frechet(m1, np.diag(s1**2), m2, np.diag(s2**2)))
        assert frechet_distance(a, b) == pytest.approx(closed, rel=0.02)

    @pytest.mark.parametrize("shape", [(200, 16), (10, 40)])
    def test_a_set_and_itself(self, shape):
        a = correlated(np.random.default_rng(0), *shape, shift=5.0)
        assert 0 <= frechet_distance(a, a) < 1e-5
        assert 0 <= frechet_distance(a, a[::-1]) < 1e-5

    def test_sets_that_hardly_differ(self):
        """The distance is a hundred-thousandth of the traces that it is the difference of."""
        rng = np.random.default_rng(0)
        a = correlated(rng, 1000, 32, scale=10.0)
        b = a + 0.02 * rng.normal(size=a.shape).astype(np.float32)
        wanted = gaussian_frechet(*fitted(a), *fitted(b))
        assert wanted < 1e-5 * np.trace(fitted(a)[1])
        assert frechet_distance(a, b) == pytest.approx(wanted, rel=0.02)

    def test_rotating_both_changes_nothing(self):
        rng = np.random.default_rng(0)
        a, b = correlated(rng, 300, 24), correlated(rng, 200, 24, 0.3, 2.0)
        turn = np.linalg.qr(rng.normal(size=(24, 24)))[0].astype(np.float32)
        whole = frechet_distance(a, b)
        assert frechet_distance(a @ turn, b @ turn) == pytest.approx(whole, rel=1e-4)
        assert frechet_distance(a @ turn, b) > 1.1 * whole, "turning one of them does"

    def test_what_is_not_finite_is_not_hidden(self):
        a = np.ones((5, 3))
        assert math.isnan(frechet_distance(a, np.where(np.eye(5, 3) > 0, np.nan, a)))


class TestKernel:
    def naive(self, a, b):
        def mean(x, y, same):
            values = [
                (np.dot(one, other) / len(one) + 1) ** 3
                for i, one in enumerate(x.astype(np.float64))
                for j, other in enumerate(y.astype(np.float64))
                if not (same and i == j)
            ]
            return np.mean(values)

        return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)

    @pytest.mark.parametrize(("n", "m"), [(2, 3), (40, 25), (270, 30)])
    def test_it_is_the_sum_over_pairs(self, n, m):
        rng = np.random.default_rng(n)
        a, b = correlated(rng, n, 8), correlated(rng, m, 8, 0.4, 1.5)
        wanted = self.naive(a, b)
        assert kernel_distance(a, b) == pytest.approx(wanted, rel=1e-4)
        assert kernel_distance(b, a) == pytest.approx(wanted, rel=1e-4)

    def test_small_features_keep_their_digits(self):
        """All kernel values are close to 1; what tells the sets apart is far behind the point."""
        rng = np.random.default_rng(0)
        a, b = (3e-4 * correlated(rng, 100, 8, shift) for shift in (0.0, 0.5))
        assert kernel_distance(a, b) == pytest.approx(self.naive(a, b), rel=1e-3)

    def test_it_is_unbiased(self):
        """Of sets drawn alike as often below zero as above; that of a biased one is > 0."""
        rng = np.random.default_rng(0)
        found = [kernel_distance(*rng.normal(size=(2, 30, 4))) for _ in range(100)]
        assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(len(found))
        assert 20 < np.sum(np.array(found) < 0) < 90

    def test_what_is_not_finite_is_not_hidden(self):
        assert math.isnan(kernel_distance(np.ones((3, 2)), np.full((3, 2), np.nan)))


class TestClassifierScore:
    def test_one_answer_for_all_scores_one(self):
        assert classifier_score(np.zeros((7, 5))) == pytest.approx(1)
        assert classifier_score(np.tile([3.0, 1.0, -2.0], (9, 1))) == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize("off", [-1e4, -np.inf])
    def test_sure_answers_of_all_classes_score_their_number(self, off):
        logits = np.where(np.eye(6)[np.arange(30) % 6] > 0, 0.0, off)
        assert classifier_score(logits) == pytest.approx(6, rel=1e-5)
        assert classifier_score(logits[:, :4][np.arange(30) % 6 < 2]) == pytest.approx(2, rel=1e-5)

    def test_the_formula(self):
        logits = 3 * np.random.default_rng(0).normal(size=(50, 4))
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        wanted = np.exp(np.mean(np.sum(p * np.log(p / p.mean(axis=0)), axis=1)))
        assert classifier_score(logits) == pytest.approx(wanted, rel=1e-5)
        assert classifier_score(np.log(p)) == pytest.approx(wanted, rel=1e-5)
        assert classifier_score(logits + 1000) == pytest.approx(wanted, rel=1e-3)

    def test_what_is_not_a_number_is_not_hidden(self):
        assert math.isnan(classifier_score([[0.0, np.nan], [0.0, 1.0]]))


class TestAuc:
    @pytest.mark.parametrize("values", [1, 3, 20, 10**9])
    def test_it_is_that_of_scikit_learn(self, values):
        rng = np.random.default_rng(values)
        a, b = rng.integers(0, values, 40), rng.integers(0, values, 70) - values // 4
        y = np.repeat([1, 0], [40, 70])
        assert auc(a, b) == pytest.approx(roc_auc_score(y, np.concatenate([a, b])), abs=1e-12)

    def test_worked_values(self):
        assert auc([3, 4], [1, 2]) == 1
        assert auc([1, 2], [3, 4, 5]) == 0
        assert auc([1.0], [1.0, 1.0]) == 0.5
        assert auc([2, 0], [1, 0]) == (1 + 1 + 0 + 0.5) / 4

    def test_arrays_of_jax_and_infinities(self):
        assert auc(jnp.array([jnp.inf, 2.0]), jnp.array([1.0, -jnp.inf])) == 1
        assert math.isnan(auc([np.nan, 1.0], [0.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(np.ones(3), np.ones((3, 2))), r"a: expected \[n, F\].*\(3,\)"),
        (lambda: frechet_distance(np.ones((3, 2)), np.ones((1, 2))), r"b: .*n >= 2, .*\(1, 2\)"),
        (lambda: frechet_distance(np.ones((3, 2)), np.ones((3, 4))), "b: expected 2 .* got 4"),
        (lambda: kernel_distance(np.ones((1, 2)), np.ones((3, 2))), r"a: .*n >= 2, .*\(1, 2\)"),
        (lambda: kernel_distance(np.ones((3, 2)), np.ones((3, 1))), "b: expected 2 .* got 1"),
        (lambda: classifier_score(np.ones((0, 3))), r"logits: expected .* got shape \(0, 3\)"),
        (lambda: auc([], [1]), r"positives: expected .* got shape \(0,\)"),
        (lambda: auc([1], [[1]]), r"negatives: expected .* got shape \(1, 1\)"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
