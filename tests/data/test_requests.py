import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.config import Request
from jaxunlearn.core.errors import RequestError
from jaxunlearn.data.requests import describe, forget_mask, same_kind_mask, separate

LABELS = np.array([0, 1, 2, 1, 0, 2, 2])


def positions(request):
    return list(np.flatnonzero(forget_mask(request, LABELS, 3)))


def test_what_is_named_is_marked():
    assert positions(ju.forget_class(1)) == [1, 3]
    assert positions(ju.data.forget_classes([0, 2])) == [0, 2, 4, 5, 6]
    assert positions(ju.data.forget_indices([6, 0])) == [0, 6]


def test_a_random_share_follows_from_its_seed():
    first, again, other = (positions(ju.data.forget_random(0.5, seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 4


def test_other_splits_know_classes_only():
    assert list(np.flatnonzero(same_kind_mask(ju.forget_class(2), LABELS))) == [2, 5, 6]
    assert not same_kind_mask(ju.data.forget_indices([1]), LABELS).any()


def test_descriptions():
    assert describe(ju.forget_class(3)) == "forget class 3"
    assert describe(Request(each=True)) == "forget each class by itself"
    assert describe(ju.data.forget_classes([1, 2])) == "forget classes 1, 2"
    assert describe(ju.data.forget_indices([1, 2])) == "forget 2 given examples"
    assert "0.25" in describe(ju.data.forget_random(0.25))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(), "exactly one of classes, indices and share"),
        (Request(classes=(1,), share=0.5), "exactly one of"),
        (ju.forget_class(3), r"request.classes: expected numbers from 0 to 2, got \[3\]"),
        (ju.forget_class(-1), r"from 0 to 2, got \[-1\]"),
        (ju.data.forget_classes([1, 1]), "each number once"),
        (ju.data.forget_indices([7]), r"request.indices: expected numbers from 0 to 6, got \[7\]"),
        (ju.data.forget_random(1.5), "between 0 and 1, got 1.5"),
        (ju.data.forget_random(0.01), "none of the 7"),
        (ju.data.forget_random(0.99), "all 7 examples"),
        (ju.data.forget_classes([0, 1, 2]), "all 7 examples"),
    ],
)
def test_what_cannot_be_met_is_refused(request_, message):
    with pytest.raises(RequestError, match=message):
        forget_mask(request_, LABELS, 3)


def test_a_class_without_training_examples_is_refused():
    with pytest.raises(RequestError, match="none of the 7"):
        forget_mask(ju.forget_class(3), LABELS, 4)


def test_each_class_is_a_request_of_its_own():
    assert separate(Request(each=True), 3) == [ju.forget_class(label) for label in range(3)]
    assert separate(Request(each=True, classes=(2, 0)), 3) == [
        ju.forget_class(0),
        ju.forget_class(2),
    ]
    assert separate(ju.data.forget_classes([0, 2]), 3) == [ju.data.forget_classes([0, 2])]
    with pytest.raises(RequestError, match="a single request here"):
        forget_mask(Request(each=True), LABELS, 3)
