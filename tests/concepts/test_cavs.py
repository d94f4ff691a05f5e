"""Concept vectors: what is there is found, what is not is told."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.concepts import cavs, fit_bank, margins

N = 12


def planted(seed, shift=4.0, count=60, direction=None):
    """Positives that lie ``shift`` further along a direction."""
    rng = np.random.default_rng(seed)
    along = np.eye(N)[seed % N] if direction is None else direction
    return rng.normal(size=(count, N)) + shift * along, rng.normal(size=(count, N))


def noise(seed):
    return planted(seed, shift=0.0)


def test_a_concept_is_found_where_it_lies():
    direction = np.r_[3.0, 4.0, np.zeros(N - 2)] / 5
    found = fit_bank({"it": planted(0, 12.0, direction=direction)})
    vector = np.asarray(found.vectors[0])
    assert vector @ direction / np.linalg.norm(vector) > 0.95
    assert found.accuracy.tolist() == [1]
    assert found.useful.tolist() == [True]
    np.testing.assert_allclose(found.p_value, [1 / 21])


def test_vectors_are_in_the_units_of_the_features():
    positives, negatives = planted(1, 8.0)
    found = fit_bank({"it": (positives, negatives)})
    moved = fit_bank({"it": (1e3 * positives + 50, 1e3 * negatives + 50)})
    for bank, sides in ((found, (positives, negatives)),
                        (moved, (1e3 * positives + 50, 1e3 * negatives + 50))):  # fmt: skip
        inside, outside = (margins(bank, jnp.asarray(s, jnp.float32)) for s in sides)
        assert (inside > 0).mean() > 0.95
        assert (outside < 0).mean() > 0.95
    np.testing.assert_allclose(moved.vectors * 1e3, found.vectors, rtol=1e-2, atol=1e-3)


def test_a_feature_that_hardly_moves_does_not_carry_the_concept():
    positives, negatives = planted(0, 6.0)
    for side in (positives, negatives):
        side[:, -1] *= 1e-6
    vector = np.asarray(fit_bank({"it": (positives, negatives)}).vectors[0])
    assert abs(vector[-1]) < 1e-3 * np.linalg.norm(vector)


def test_what_is_not_there_is_named_once():
    sets = {"it": planted(0), "nothing": noise(1), "void": noise(2)}
    with pytest.warns(UserWarning, match=r"left out .* nothing \(0\.\d\d\), void") as told:
        found = fit_bank(sets)
    assert len(told) == 1
    assert found.useful.tolist() == [True, False, False]
    assert found.names == ("it", "nothing", "void")
    assert not margins(found, jnp.ones((3, N)))[:, 1:].any()


def test_no_warning_unless_wanted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_bank({"it": planted(0), "nothing": noise(1)}, warn=False)


def test_meaningless_concepts_pass_as_rarely_as_alpha_says():
    sets = {"it": planted(0)} | {f"none {seed}": noise(seed) for seed in range(1, 61)}
    found = fit_bank(sets, warn=False)
    assert np.sum(found.useful[1:]) <= 8  # 3 expected; more than 8 once in 200 times
    assert 0.45 < np.mean(found.accuracy[1:]) < 0.55


def test_sides_of_different_sizes():
    positives, _ = planted(0, 8.0, count=20)
    _, negatives = planted(3, count=150)
    found = fit_bank({"it": (positives, negatives)})
    assert found.useful.all()
    with pytest.raises(ValueError, match="got none: held-out accuracies"):
        fit_bank({"it": (noise(0)[0][:20], negatives)})


def test_the_strength_is_that_of_the_best_accuracy():
    # one feature tells, 300 are noise: without regularisation it is drowned
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 300)), np.arange(60) < 30
    x[:, 0] += np.where(y, 3, -3)
    parts = cavs._split(y, 0.3, rng)
    scores = {
        c: cavs._balanced(*cavs._machine(x[parts[0]], y[parts[0]], c), x[parts[1]], y[parts[1]])
        for c in (1e-4, 1e-2, 10.0)
    }
    chosen = cavs._choose(x, y, *parts[:2], tuple(scores))
    assert scores[chosen] == max(scores.values())
    assert chosen == next(c for c in scores if scores[c] == max(scores.values()))


def test_parts_do_not_overlap_and_hold_both_sides():
    y = np.arange(24) < 4
    parts = cavs._split(y, 0.3, np.random.default_rng(0))
    assert sorted(np.concatenate(parts)) == list(range(24))
    for part in parts:
        assert y[part].any()
        assert not y[part].all()


@pytest.mark.parametrize("count", [7, 60], ids=["fewer-than-features", "more-than-features"])
@pytest.mark.parametrize("strength", [0.01, 10.0])
def test_machines_are_those_of_scikit_learn(count, strength, capfd):
    positives, negatives = planted(3, 1.0, count=count)
    x = np.concatenate([positives, negatives[: count // 2]])
    x, y = x.astype(np.float32), np.arange(len(x)) < count
    assert cavs._solver() is not None, "else each machine is checked, and takes three times as long"
    own = cavs._machine(x, y, strength)
    assert capfd.readouterr() == ("", ""), "it is silent by itself"
    vector, intercept = cavs._checked_machine(x, y, strength)
    np.testing.assert_array_equal(own[0], vector)
    assert own[1] == intercept


def test_the_same_seed_gives_the_same_bank():
    sets = {"it": planted(0), "other": planted(5)}
    one, two, other = (fit_bank(sets, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.vectors, two.vectors)
    assert (np.asarray(one.vectors) != np.asarray(other.vectors)).any()


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ({}, {}, "at least one concept, got none"),
        ({"it": (np.ones((1, 3)), np.ones((9, 3)))}, {}, "'it'. positives: .* at least 4 .* got 1"),
        ({"it": (np.ones((9, 3)), np.ones((3, 3)))}, {}, "negatives: .* at least 4 .* got 3"),
        ({"it": (np.ones((9, 3)), np.ones((9, 2)))}, {}, "negatives: expected 3 features, got 2"),
        ({"a": planted(0), "b": (np.ones((9, 3)),) * 2}, {}, "'b'. positives: expected 12"),
        ({"it": (np.full((9, 3), np.nan), np.ones((9, 3)))}, {}, "finite numbers"),
        ({"it": (np.ones(9), np.ones((9, 3)))}, {}, r"expected shape \[N, n\]"),
        ({"it": (np.ones((9, 3)), np.ones((9, 3)))}, {}, "told better than random ones, got none"),
        ({"it": planted(0)}, {"randoms": 19}, "randoms: expected at least 20"),
        ({"it": planted(0)}, {"strengths": ()}, "strengths: expected positive numbers"),
        ({"it": planted(0)}, {"strengths": (0.0,)}, "strengths: expected positive numbers"),
        ({"it": planted(0)}, {"held_out": 1.0}, "held_out: expected a share"),
        ({"it": planted(0)}, {"alpha": 0.0}, "alpha: expected a level"),
    ],
)
def test_mistakes(sets, options, message):
    with pytest.raises(ValueError, match=message):
        fit_bank(sets, **options)
