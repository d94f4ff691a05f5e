"""Tables of attributes: those that come with the library, and one's own."""

import numpy as np
import pytest

from jaxunlearn.concepts import TABLES, attribute_sets, load_table
from jaxunlearn.concepts.bank import evenly
from jaxunlearn.core.errors import DataError

CLASSES = {
    "cifar10": [
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ],
    "fashion_mnist": [
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ],
    "mnist": list("0123456789"),
    "digits": list("0123456789"),
}  # fmt: skip

OWN = """
classes = ["cat", "dog", "bird"]
[attributes.fur]
meaning = "It has fur."
classes = ["cat", "dog"]
[attributes.wings]
meaning = "It has wings."
classes = ["bird"]
"""


@pytest.mark.parametrize("name", TABLES)
def test_tables_tell_the_classes_apart(name):
    table = load_table(name)
    assert list(table.classes) == CLASSES[name]
    assert 12 <= len(table.names) <= 20
    assert table.has.shape == (len(table.names), 10)
    assert not table.has.all(axis=1).any()
    assert table.has.any(axis=1).all()
    assert (table.has.sum(axis=0) >= 3).all(), "every class has several attributes"
    assert len(np.unique(table.has, axis=1).T) == 10, "no two classes are alike"
    assert len(np.unique(table.has, axis=0)) == len(table.names), "no two attributes are alike"
    for meaning in table.meanings:
        assert meaning.endswith(".")
        assert meaning.count(".") == 1
        assert meaning[0].isupper()


def own(tmp_path, text=OWN):
    path = tmp_path / "own.toml"
    path.write_text(text)
    return load_table(path)


def test_a_table_of_ones_own(tmp_path):
    table = own(tmp_path)
    assert table.classes == ("cat", "dog", "bird")
    assert table.names == ("fur", "wings")
    assert table.meanings == ("It has fur.", "It has wings.")
    np.testing.assert_array_equal(table.has, [[1, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes = [", "expected TOML"),
        ("[attributes.a]", "classes: expected a list"),
        ('classes = ["a", "a"]', "classes: expected a list of different names"),
        ('classes = ["a", 1]', "classes: expected a list of different names"),
        ('classes = ["a", "b"]', r"expected tables \[attributes"),
        (OWN.replace("meaning", "sense"), "attributes.fur: expected the keys meaning and classes"),
        (OWN.replace('"It has fur."', '" "'), "attributes.fur: meaning: expected a sentence"),
        (OWN.replace('"bird"]\n[', '"bird", "fish"]\n['), None),
        (OWN.replace('["cat", "dog"]\n[', '["cats"]\n['), "got 'cats'.*did you mean 'cat'"),
        (OWN.replace('["cat", "dog"]\n[', '["cat", "dog", "bird"]\n['), "a class without it"),
        (OWN.replace('["cat", "dog"]\n[', "[]\n["), "fur: classes: expected a list"),
    ],
)
def test_malformed_tables_are_named(tmp_path, text, message):
    if message is None:
        assert len(own(tmp_path, text).classes) == 4
        return
    with pytest.raises(DataError, match=message) as error:
        own(tmp_path, text)
    assert "own.toml" in str(error.value)


def test_unknown_tables(tmp_path):
    with pytest.raises(DataError, match=r"expected one of cifar10, .*did you mean 'cifar10'"):
        load_table("cifar")
    with pytest.raises(DataError, match="no such file"):
        load_table(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="expected UTF-8"):
        load_table(tmp_path / "latin.toml")


def features_of(labels):
    """Features that tell label and position."""
    return np.stack([labels, np.arange(len(labels))], axis=1).astype(np.float32)


def test_sets_follow_the_classes(tmp_path):
    labels = np.array([0] * 30 + [1] * 5 + [2] * 50)
    sets = attribute_sets(own(tmp_path), features_of(labels), labels, examples=20)
    positives, negatives = sets["fur"]
    # five of the small class, the rest of the other
    assert np.bincount(positives[:, 0].astype(int)).tolist() == [15, 5]
    assert len(np.unique(positives[:, 1])) == 20
    assert set(negatives[:, 0]) == {2}
    assert len(sets["wings"][0]) == 20
    again = attribute_sets(own(tmp_path), features_of(labels), labels, examples=20)
    np.testing.assert_array_equal(again["fur"][0], positives)
    other = attribute_sets(own(tmp_path), features_of(labels), labels, examples=20, seed=1)
    assert (other["fur"][0] != positives).any()


def test_labels_in_another_order(tmp_path):
    labels = np.arange(3).repeat(4)
    sets = attribute_sets(own(tmp_path), features_of(labels), labels, ("bird", "cat", "dog"))
    assert set(sets["wings"][0][:, 0]) == {0}
    with pytest.raises(DataError, match=r"class_names: .* got 'cow'"):
        attribute_sets(own(tmp_path), features_of(labels), labels, ("bird", "cat", "cow"))


def test_labels_that_the_table_does_not_know(tmp_path):
    labels = np.arange(4).repeat(4)
    with pytest.raises(DataError, match=r"labels: expected 0 to 2, the 3 classes .* got 0 to 3"):
        attribute_sets(own(tmp_path), features_of(labels), labels)


def test_attributes_without_examples(tmp_path):
    labels = np.zeros(9, int)
    with pytest.raises(DataError, match="'fur': expected examples without it, got none"):
        attribute_sets(own(tmp_path), features_of(labels), labels)
    labels = np.arange(2).repeat(4)
    with pytest.raises(DataError, match="attribute 'fur': expected examples without"):
        attribute_sets(own(tmp_path), features_of(labels), labels)
    with pytest.raises(DataError, match="attribute 'fur': expected examples with it"):
        attribute_sets(own(tmp_path), features_of(labels), np.full(8, 2))


def test_malformed_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"features \[N, n\] and integers \[N\]"):
        attribute_sets(own(tmp_path), np.ones((3, 2)), np.ones(3))
    with pytest.raises(ValueError, match="examples: expected at least 1"):
        attribute_sets(own(tmp_path), np.ones((3, 2)), np.arange(3), examples=0)


@pytest.mark.parametrize("count", [0, 1, 4, 9, 12, 99])
def test_even_draws(count):
    groups = np.array([0] * 2 + [1] * 7 + [5] * 3)
    drawn = evenly(groups, count, np.random.default_rng(0))
    assert len(np.unique(drawn)) == len(drawn) == min(count, 12)
    sizes = {g: np.sum(groups[drawn] == g) for g in (0, 1, 5)}
    for group, whole in ((0, 2), (1, 7), (5, 3)):
        rest = max(v for g, v in sizes.items() if g != group)
        assert sizes[group] == whole or sizes[group] >= rest - 1
