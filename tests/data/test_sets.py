import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.core.errors import DataError
from jaxunlearn.data.sets import as_examples, num_examples, stratified_mask, subset, whole
from tests import toy


def members(part):
    return set(np.asarray(part.indices)[: int(part.size)].tolist())


def test_the_parts_are_disjoint_and_complete():
    (_, y), (_, y_unseen), (_, y_test) = toy.blobs()
    sets = toy.sets(ju.forget_class(1))
    assert members(sets.forget) == set(np.flatnonzero(np.asarray(y) == 1))
    assert members(sets.retain) == set(np.flatnonzero(np.asarray(y) != 1))
    assert members(sets.unseen) == set(np.flatnonzero(np.asarray(y_unseen) == 1))
    assert members(sets.test_retain) == set(np.flatnonzero(np.asarray(y_test) != 1))
    assert sets.forget.examples.x is sets.retain.examples.x
    assert sets.forget.examples.x.dtype == jnp.uint8


def test_a_request_for_items_has_no_unseen_kind():
    sets = toy.sets(ju.forget_indices([0, 1, 2]))
    assert sets.unseen is None
    assert sets.test_forget is None
    assert num_examples(sets.holdout) == len(toy.blobs()[1][1])


def test_stacked_requests_share_their_arrays():
    requests = [toy.sets(ju.forget_class(label)) for label in range(4)]
    stacked = ju.stack_sets(requests)
    assert stacked.forget.examples.x is requests[0].forget.examples.x
    assert stacked.forget.indices.shape == (4, 60)
    assert list(stacked.forget.size) == [30, 50, 40, 60]
    for number, one in enumerate(requests):
        own = np.asarray(stacked.forget.indices[number])
        assert set(own[: int(stacked.forget.size[number])]) == members(one.forget)
        assert set(own) == members(one.forget), "padding repeats valid positions"


def test_sets_on_different_arrays_cannot_be_stacked():
    train = [(np.zeros((4, 2), np.uint8), np.array([0, 1, 0, 1])) for _ in range(2)]
    sets = [ju.make_sets(*arrays, ju.forget_class(0)) for arrays in train]
    with pytest.raises(ValueError, match="expected forget to share one device array"):
        ju.stack_sets(sets)


def test_requests_of_different_kinds_cannot_be_stacked():
    with pytest.raises(ValueError, match="expected unseen in all or in none"):
        ju.stack_sets([toy.sets(), toy.sets(ju.forget_indices([0]))])


def test_normalisation_defaults():
    bytes_ = as_examples(np.zeros((2, 3, 3, 1), np.uint8), [0, 1])
    floats = as_examples(np.zeros((2, 3)), [0, 1])
    assert (float(bytes_.std.max()), float(floats.std.max())) == (255, 1)
    assert floats.x.dtype == jnp.float32


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), np.zeros(3), r"expected integer labels \[N\], got float64"),
        (np.zeros((3, 2)), np.zeros(4, int), "expected 4 examples for 4 labels"),
        (np.zeros(3), np.zeros(3, int), r"got an array \[3\]"),
        (np.zeros((3, 2)), np.zeros((3, 1), int), "expected integer labels"),
    ],
)
def test_wrong_arrays_are_named(x, y, message):
    with pytest.raises(DataError, match=message):
        as_examples(x, y, name="mine")


def test_labels_must_be_of_the_classes():
    x = np.zeros((3, 2), np.uint8)
    with pytest.raises(DataError, match="x, y: expected labels from 0 to 1, got -1 to 1"):
        ju.make_sets(x, np.array([-1, 0, 1]), ju.forget_class(0))
    with pytest.raises(DataError, match="test: expected labels from 0 to 1, got 2 to 2"):
        ju.make_sets(x, np.array([1, 0, 1]), ju.forget_class(0), test=(x, np.array([2, 2, 2])))


def test_wide_integers_are_narrowed():
    assert as_examples(np.zeros((2, 3), np.int64), [0, 1]).x.dtype == jnp.int32


def test_a_capacity_must_hold_the_indices():
    with pytest.raises(ValueError, match="at least 3, got 2"):
        subset(whole(as_examples(np.zeros((4, 2)), np.zeros(4, int))).examples, [0, 1, 2], 2)


def test_unseen_images_are_taken_from_each_class_by_its_share():
    labels = np.repeat(np.arange(3), (40, 20, 60))
    mask = stratified_mask(np.random.default_rng(0).permutation(labels), 30, seed=1)
    assert mask.sum() == 30
    shuffled = np.random.default_rng(0).permutation(labels)
    counts = np.bincount(shuffled[mask])
    np.testing.assert_allclose(counts, [10, 5, 15], atol=1)
    assert not stratified_mask(labels, 0, seed=0).any()


def test_unseen_must_leave_test_images():
    with pytest.raises(DataError, match="fewer than the 10 test images, got 10"):
        stratified_mask(np.zeros(10, int), 10, seed=0)
