"""Scores of concepts against their closed form; donors on matrices made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.attribution.ig import quadrature
from jaxunlearn.concepts import (
    Bottleneck,
    check_donor,
    choose_donor,
    concept_scores,
    make_bank,
    margins,
)

M, N, K = 4, 6, 3
RNG = np.random.default_rng(0)
BANK = make_bank(list("abcd"), RNG.normal(size=(M, N)), useful=[True, True, True, False])
BOTTLENECK = Bottleneck(
    *(jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((K, M), K, (K, N), K))
)
FEATURES = jnp.asarray(RNG.normal(size=(20, N)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 2, 20), jnp.int32)


@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_scores_of_a_linear_bottleneck(baseline):
    run = jax.jit(concept_scores, static_argnames=("num_classes", "baseline"))
    found = run(BANK, BOTTLENECK, FEATURES, LABELS, K, baseline=baseline)
    m = np.asarray(margins(BANK, FEATURES))
    start = m.mean(axis=0) if baseline == "mean" else 0
    for k in range(2):
        wanted = np.asarray(BOTTLENECK.weights[k]) * (m - start)[k == LABELS].mean(axis=0)
        np.testing.assert_allclose(found.values[k], wanted, rtol=1e-4, atol=1e-6)
    assert not np.asarray(found.values[2]).any(), "a class without examples"
    assert not np.asarray(found.values[:, 3]).any(), "a concept that is not useful"
    assert 0 <= float(found.gap.max()) < 1e-5
    assert found.values.dtype == found.gap.dtype == jnp.float32


def test_scores_jitted():
    def run(features, labels):
        return concept_scores(BANK, BOTTLENECK, features, labels, K)

    one, two = run(FEATURES, LABELS), jax.jit(run)(FEATURES, LABELS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)


def test_one_node_suffices_for_a_linear_function():
    node = quadrature.gauss_legendre(1)
    one = jax.jit(lambda e, y: concept_scores(BANK, BOTTLENECK, e, y, K, quadrature=node))(
        FEATURES, LABELS
    )
    assert float(one.gap.max()) < 1e-5


def test_unknown_baseline():
    with pytest.raises(ValueError, match="baseline: expected 'mean' or 'zero', got 'black'"):
        concept_scores(BANK, BOTTLENECK, FEATURES, LABELS, K, baseline="black")


# ---- donors

ALL = np.ones((3, 3), bool)
USEFUL = np.ones(4, bool)
NONE = np.zeros((3, 4))


def donors(values, weights=NONE, useful=USEFUL, allowed=ALL, **options):
    found = choose_donor(
        *(jnp.asarray(v, jnp.float32) for v in (values, weights)),
        jnp.asarray(useful), jnp.asarray(allowed), **options,
    )  # fmt: skip
    return tuple(part.tolist() for part in found)


def test_the_first_concept_shared_with_another_class():
    # class 0: a then b; class 1: b first; class 2: c first, shared by none
    label, concept, shared = donors([[4, 3, 0, 0], [0, 5, 1, 0], [0, 0, 2, 1]])
    assert (label[0], concept[0], shared[0]) == (1, 0, 1)
    # class 1 has c second, which is the first of class 2
    assert (label[1], concept[1], shared[1]) == (2, 1, 2)
    assert (label[2], concept[2], shared[2]) == (-1, 2, -1)


def test_the_own_first_concept_comes_first():
    label, concept, shared = donors([[4, 3, 0, 0], [0, 5, 1, 0], [2, 0, 0, 1]])
    assert (label[0], concept[0], shared[0]) == (2, 0, 0)


def test_of_several_classes_the_one_of_larger_score():
    values = [[4, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0]]
    assert donors(values)[0] == [2, 0, 0]
    equal = [[4, 0, 0, 0], [3, 0, 0, 0], [3, 0, 0, 0]]
    assert donors(equal)[0] == [1, 0, 0], "of equal ones the first"


def test_only_the_top_concepts_are_looked_at():
    values = [[4, 3, 2, 0], [0, 0, 5, 0], [0, 0, 0, 1]]
    assert donors(values, top=2)[0][0] == -1
    assert donors(values, top=3)[0][0] == 1
    with pytest.raises(ValueError, match="top: expected at least 1"):
        donors(values, top=0)


def test_else_the_class_of_largest_weight():
    values = [[4, 0, 0, 0], [0, 5, 0, 0], [0, 0, 2, 0]]
    weights = [[9, 0, 0, 0], [1, 0, 0, 0], [2, 0, -1, 0]]
    label, concept, shared = donors(values, weights)
    assert (label[0], concept[0], shared[0]) == (2, 0, 0)
    assert label[1:] == [-1, -1], "no positive weight, no donor"
    assert concept[1:] == [1, 2]
    assert shared[1:] == [-1, -1]


def test_forbidden_classes():
    values = [[4, 3, 0, 0], [5, 0, 0, 0], [0, 5, 0, 0]]
    assert donors(values)[0][0] == 1
    allowed = ALL.copy()
    allowed[0, 1] = False
    assert donors(values, allowed=allowed)[0][0] == 2
    allowed[0, 2] = False
    label, concept, shared = donors(values, weights=np.ones((3, 4)), allowed=allowed)
    assert (label[0], concept[0], shared[0]) == (-1, 0, -1)
    assert donors(values, allowed=np.zeros((3, 3), bool))[0] == [-1, -1, -1]


def test_concepts_that_are_not_useful_or_speak_against_a_class():
    values = [[4, 3, 0, 0], [5, 0, 0, 0], [0, 5, 0, 0]]
    useful = [False, True, True, True]
    label, concept, shared = donors(values, useful=useful)
    assert (label[0], concept[0], shared[0]) == (2, 1, 1)
    assert (label[1], concept[1]) == (-1, -1), "its only concept is not useful"
    label, concept, _ = donors([[-1, -2, -3, -4], [1, 0, 0, 0], [1, 0, 0, 0]], np.ones((3, 4)))
    assert (label[0], concept[0]) == (-1, -1)


def test_what_is_not_a_number_counts_for_nothing():
    values = [[np.nan, 3, 0, 0], [0, 5, 0, 0], [np.nan] * 4]
    assert donors(values)[0] == [1, 0, -1]


def test_jit_and_vmap_are_the_loop():
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(20, 6, 8)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(20, 6, 8)), jnp.float32)
    useful = jnp.asarray(rng.random((20, 8)) < 0.7)
    allowed = jnp.asarray(rng.random((20, 6, 6)) < 0.5)
    arguments = (values, weights, useful, allowed)
    mapped = jax.device_get(jax.jit(jax.vmap(choose_donor))(*arguments))
    given = jax.device_get(arguments)
    for number in range(20):
        alone = choose_donor(*(np.asarray(a[number]) for a in given))
        for one, many in zip(alone, mapped, strict=True):
            np.testing.assert_array_equal(one, many[number])
        wanted = by_hand(*(a[number] for a in given))
        assert [list(part) for part in zip(*wanted, strict=True)] == [p.tolist() for p in alone]
    assert all(part.dtype == jnp.int32 for part in mapped)


def by_hand(values, weights, useful, allowed, top=5):
    """The rule, word for word."""
    classes = range(len(values))
    good = {k: [c for c in np.argsort(-values[k]) if useful[c] and values[k, c] > 0]
            for k in classes}  # fmt: skip
    found = []
    for k in classes:
        if not good[k]:
            found.append((-1, -1, -1))
            continue
        others = [d for d in classes if allowed[k, d] and d != k]
        for c in good[k][:top]:
            sharing = [d for d in others if good[d] and good[d][0] == c]
            if sharing:
                found.append((max(sharing, key=lambda d: values[d, c]), good[k][0], c))
                break
        else:
            c = good[k][0]
            best = max(others, key=lambda d: weights[d, c], default=None)
            ok = best is not None and weights[best, c] > 0
            found.append((best, c, c) if ok else (-1, c, -1))
    return found


def test_a_missing_donor_is_told():
    values = jnp.asarray([[4.0, 0, 0, 0], [4, 0, 0, 0], [0, -5, 0, 0]])
    found = choose_donor(values, jnp.zeros((3, 4)), jnp.asarray(USEFUL), jnp.asarray(ALL))
    names = ["wings", "fur", "wheels", "sky"]
    check_donor(found, names, classes=[0, 1])
    with pytest.raises(ValueError, match="a donor for class 2, got none: no useful concept"):
        check_donor(found, names)
    with pytest.raises(ValueError, match=r"for class 2 \(cat\), got none"):
        check_donor(found, names, 2, ["bird", "dog", "cat"])
    alone = found._replace(label=-jnp.ones(3, jnp.int32))
    with pytest.raises(
        ValueError, match=r"for class 0, got none: no class .* on its concept 'wings'"
    ):
        check_donor(alone, names)
