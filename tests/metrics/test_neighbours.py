import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core.nearest import CHUNK, nearest
from jaxunlearn.metrics.distances import NeighbourScores, neighbour_scores

MODES = [None, True, False]


def distances(a, b):
    return np.linalg.norm(np.float64(a)[:, None] - np.float64(b)[None], axis=-1)


def naive_scores(real, generated, k):
    def radii(x):
        others = distances(x, x) + np.diag(np.full(len(x), np.inf))
        return np.sort(others, axis=1)[:, k - 1]

    between = distances(generated, real)
    in_real = between <= radii(real)[None]
    in_generated = between <= radii(generated)[:, None]
    return NeighbourScores(
        precision=np.mean(in_real.any(axis=1)),
        recall=np.mean(in_generated.any(axis=0)),
        density=np.mean(in_real.sum(axis=1)) / k,
        coverage=np.mean(in_real.any(axis=0)),
    )


class TestScores:
    @pytest.mark.parametrize("shift", [0.0, 100.0])
    @pytest.mark.parametrize(
        ("n", "m", "k"), [(60, 40, 5), (7, 30, 1), (CHUNK + 44, CHUNK - 56, 5), (6, 9, 5)]
    )
    def test_they_are_those_of_float64(self, n, m, k, shift):
        rng = np.random.default_rng(n)
        real = (shift + rng.normal(size=(n, 3))).astype(np.float32)
        generated = (shift + 0.4 + 0.8 * rng.normal(size=(m, 3))).astype(np.float32)
        found, wanted = neighbour_scores(real, generated, k), naive_scores(real, generated, k)
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        assert len(set(wanted)) >= 3, "the four differ, so that none may stand for another"

    def test_sets_drawn_alike(self):
        """Expected density: 1; expected coverage: 1 - 2^-k for equally many."""
        real, generated = np.random.default_rng(0).normal(size=(2, 1000, 4))
        found = neighbour_scores(real, generated)
        assert found.density == pytest.approx(1, abs=0.1)
        assert found.coverage == pytest.approx(1 - 2**-5, abs=0.02)

    def test_sets_far_apart_score_nothing(self):
        real, generated = np.random.default_rng(0).normal(size=(2, 50, 4))
        assert neighbour_scores(real, generated + 100) == (0, 0, 0, 0)

    def test_a_set_and_itself(self):
        real = np.random.default_rng(0).normal(size=(80, 4))
        found = neighbour_scores(real, real[::-1])
        assert (found.precision, found.recall, found.coverage) == (1, 1, 1)

    def test_a_single_picture_is_precise_and_covers_little(self):
        real = np.random.default_rng(0).normal(size=(80, 4))
        found = neighbour_scores(real, np.tile(real[:1], (30, 1)), k=3)
        assert found.precision == 1
        assert found.recall == 1 / 80, "its ball has no width: it holds its own original alone"
        assert 1 / 80 <= found.coverage < 0.5
        turned = neighbour_scores(np.tile(real[:1], (30, 1)), real, k=3)
        assert (turned.precision, turned.recall) == (1 / 80, 1)

    def test_an_outlier_does_not_make_far_examples_real(self):
        """What Naeem et al. made density for: precision falls for the outlier's wide ball."""
        real = np.append(np.arange(10), 100.0)[:, None]
        found = neighbour_scores(real, np.arange(60.0, 80.0)[:, None], k=2)
        assert (found.precision, found.density, found.coverage) == (1, 0.5, 1 / 11)

    def test_tight_clusters_far_apart(self):
        """|a|^2 + |b|^2 - 2 a.b has no digit left for distances within a cluster."""
        rng = np.random.default_rng(0)
        centers = 1000 * rng.normal(size=(5, 1, 16))
        real, generated = (
            (centers + 0.01 * rng.normal(size=(5, 20, 16))).reshape(100, 16).astype(np.float32)
            for _ in range(2)
        )
        wanted = naive_scores(real, generated, 3)
        np.testing.assert_allclose(neighbour_scores(real, generated, 3), wanted, atol=1e-6)
        squares = np.sum(real**2, axis=1)
        usual = squares[:, None] + squares[None] - 2 * real @ real.T
        assert np.max(np.abs(usual - distances(real, real) ** 2)) > 1, "against 0.003"

    def test_what_is_not_finite_is_not_hidden(self):
        x = np.random.default_rng(0).normal(size=(9, 2))
        broken = np.where(np.arange(9)[:, None] == 4, np.nan, x)
        assert all(map(math.isnan, neighbour_scores(x, broken)))
        assert all(map(math.isnan, neighbour_scores(broken, x)))


class TestNearest:
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(CHUNK + 20, 5)).astype(np.float32)
    references = rng.normal(size=(70, 5)).astype(np.float32)
    query_labels = rng.integers(0, 4, CHUNK + 20)
    reference_labels = rng.integers(0, 4, 70)
    valid = rng.random(70) < 0.6

    def wanted(self, same, valid):
        away = distances(self.queries, self.references)
        alike = self.query_labels[:, None] == self.reference_labels[None]
        allowed = np.ones_like(alike) if same is None else alike == same
        if valid:
            allowed = allowed & self.valid[None]
        away = np.where(allowed, away, np.inf)
        return away.argmin(axis=1), away.min(axis=1)

    def options(self, same, valid):
        options = {"same": same}
        if same is not None:
            options["query_labels"] = self.query_labels
            options["reference_labels"] = self.reference_labels
        return {**options, "valid": self.valid} if valid else options

    @pytest.mark.parametrize("valid", [False, True])
    @pytest.mark.parametrize("same", MODES)
    def test_it_is_the_nearest_that_is_allowed(self, same, valid):
        place, away = nearest(self.queries, self.references, **self.options(same, valid))
        assert (place.dtype, away.dtype) == (jnp.int32, jnp.float32)
        wanted_place, wanted_away = self.wanted(same, valid)
        np.testing.assert_array_equal(place, wanted_place)
        np.testing.assert_allclose(away, wanted_away, rtol=1e-5)

    def test_the_modes_differ(self):
        places = [self.wanted(same, valid)[0] for same in MODES for valid in (False, True)]
        assert len({tuple(one) for one in places}) == len(places)

    @pytest.mark.parametrize("same", MODES)
    def test_traced_arrays(self, same):
        traced = jax.jit(partial(nearest, same=same))
        options = {k: v for k, v in self.options(same, True).items() if k != "same"}
        place, away = traced(self.queries, self.references, **options)
        wanted_place, wanted_away = self.wanted(same, True)
        np.testing.assert_array_equal(place, wanted_place)
        np.testing.assert_allclose(away, wanted_away, rtol=1e-5)

    def test_many_sets_at_once(self):
        def other(queries, labels):
            mine = {"query_labels": labels, "reference_labels": self.reference_labels}
            return nearest(queries, self.references, same=False, **mine)

        halves = self.queries.reshape(4, -1, 5), self.query_labels.reshape(4, -1)
        place, away = jax.vmap(other)(*halves)
        wanted_place, wanted_away = self.wanted(False, False)
        np.testing.assert_array_equal(place.reshape(-1), wanted_place)
        np.testing.assert_allclose(away.reshape(-1), wanted_away, rtol=1e-5)

    def test_no_reference_is_allowed(self):
        labels = {"query_labels": [0, 1, 2], "reference_labels": [0, 0]}
        x = np.float32([[0.0], [1.0], [2.0]])
        place, away = nearest(x, x[1:], same=True, **labels)
        assert (place.tolist(), away.tolist()) == ([0, -1, -1], [1.0, np.inf, np.inf])
        place, away = nearest(x, x[1:], valid=np.zeros(2, bool))
        assert (place.tolist(), away.tolist()) == ([-1] * 3, [np.inf] * 3)

    def test_padding_may_hold_anything(self):
        references = np.float32([[np.nan], [3.0], [np.inf]])
        place, away = nearest([[1.0]], references, valid=[False, True, False])
        assert (place.tolist(), away.tolist()) == ([1], [2.0])

    def test_a_copy_is_at_distance_zero_and_the_first_one_counts(self):
        references = np.repeat(1000 + self.references, 2, axis=0)
        place, away = nearest(references[::2], references)
        np.testing.assert_array_equal(place, 2 * np.arange(70))
        np.testing.assert_array_equal(away, 0)

    def test_labels_of_different_kinds(self):
        labels = {
            "query_labels": self.query_labels.astype(np.uint8),
            "reference_labels": jnp.asarray(self.reference_labels, jnp.int32),
        }
        place, _ = nearest(self.queries, self.references, same=True, **labels)
        np.testing.assert_array_equal(place, self.wanted(True, False)[0])

    def test_differences_are_never_stored(self):
        """300 x 400 x 256 of them would take 123 MB; the blocks of distances take less than 1."""
        x, y = jnp.ones((300, 256)), jnp.ones((400, 256))
        needed = jax.jit(nearest).lower(x, y).compile().memory_analysis().temp_size_in_bytes
        assert 0 < needed < 4e6


X, Y = np.ones((6, 2)), np.ones((8, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: neighbour_scores(np.ones(3), Y), r"real: expected \[n, F\].*\(3,\)"),
        (lambda: neighbour_scores(X, np.ones((8, 3))), "generated: expected 2 .* got 3"),
        (lambda: neighbour_scores(X, Y, k=6), "k: expected 1 <= k < 6, .* got 6"),
        (lambda: neighbour_scores(X, Y, k=0), "k: expected 1 <= k < 6, .* got 0"),
        (lambda: nearest(np.ones((0, 2)), Y), r"queries: expected .* got shape \(0, 2\)"),
        (lambda: nearest(X, np.ones((0, 2))), r"references: expected .* got shape \(0, 2\)"),
        (lambda: nearest(X, np.ones((8, 3))), "references: expected 2 .* got 3"),
        (lambda: nearest(X, Y, same=True), "query_labels: expected labels for same=True, got None"),
        (
            lambda: nearest(X, Y, same=False, query_labels=np.ones(6, int)),
            "reference_labels: expected labels for same=False, got None",
        ),
        (
            lambda: nearest(X, Y, query_labels=np.ones(6, int)),
            r"query_labels: expected None without same, got shape \(6,\)",
        ),
        (
            lambda: nearest(
                X, Y, same=True, query_labels=np.ones(6, int), reference_labels=np.ones(7, int)
            ),
            r"reference_labels: expected shape \(8,\), got \(7,\)",
        ),
        (lambda: nearest(X, Y, valid=np.ones(6, bool)), r"valid: expected shape \(8,\)"),
        (lambda: nearest(X, Y, valid=np.ones(8)), r"valid: expected bool \[m\], got float32"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
