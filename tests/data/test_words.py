"""Words of texts as tokens, without a vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.core.errors import DataError
from jaxunlearn.data import words
from jaxunlearn.data.examples import fetch
from jaxunlearn.data.texts import labelled_dataset, to_bytes
from jaxunlearn.kinds.classifier import CLASSIFIER

TEXTS = ["Who was Camp David named for ?", "who?WHO", "a-b_c 19th", "Größe 東京 ist's", "?", ""]


@pytest.fixture(scope="module")
def read():
    return jax.jit(lambda reader, x: reader(x))


def tokens_of(text, buckets):
    return [words.token_of(word, buckets) for word in words.split_words(text)]


def test_words_are_runs_of_letters_and_digits():
    assert [words.split_words(text) for text in TEXTS] == [
        ["who", "was", "camp", "david", "named", "for"],
        ["who", "who"],
        ["a", "b", "c", "19th"],
        ["größe", "東京", "ist", "s"],
        [],
        [],
    ]


@pytest.mark.parametrize("buckets", [2, 50, 8192, 100_003])
def test_the_compiled_reader_finds_the_same_tokens(read, buckets):
    found = read(words.word_reader(6, buckets), {"text": jnp.asarray(to_bytes(TEXTS))})
    for row, text in enumerate(TEXTS):
        own = tokens_of(text, buckets)
        assert found["tokens"][row].tolist() == own + [0] * (6 - len(own))
        assert found["mask"][row].tolist() == [n < len(own) for n in range(6)]
        assert all(0 < token < buckets for token in own)


def test_padding_and_neighbours_change_nothing(read):
    wide = np.pad(to_bytes(TEXTS[:1]), ((0, 0), (0, 40)))
    reader = words.word_reader(6)
    alone, padded = (read(reader, {"text": jnp.asarray(x)}) for x in (to_bytes(TEXTS[:1]), wide))
    jax.tree.map(np.testing.assert_array_equal, alone, padded)


def test_words_behind_the_last_are_not_read(read):
    found = read(words.word_reader(2), {"text": jnp.asarray(to_bytes(TEXTS[:1]))})
    assert found["tokens"][0].tolist() == tokens_of(TEXTS[0], words.BUCKETS)[:2]
    assert found["mask"].all()


def test_few_words_share_a_bucket():
    found = {words.token_of(f"word{n}") for n in range(2000)}
    # of 2,000 balls in 8,191 boxes, 1,774 boxes are expected to be hit
    assert 1730 < len(found) < 1820


def test_equal_readers_are_one_object():
    assert words.word_reader(5) is words.word_reader(5)


@pytest.mark.parametrize("arguments", [(0,), (3, 1)])
def test_readers_without_words_are_refused(arguments):
    with pytest.raises(ValueError, match="expected at least 1 word and 2 buckets"):
        words.word_reader(*arguments)


def test_tokens_are_named_by_their_most_frequent_word():
    assert words.name_tokens(["who who was", "Who"], 2) == {1: "who"}
    names = words.name_tokens(TEXTS)
    assert names[words.token_of("camp")] == "camp"


def test_the_classifiers_read_texts_and_nothing_else():
    rows = [("who is it", 0), ("where is it now", 1)]
    data = CLASSIFIER.read(labelled_dataset(rows, rows[:1], ["person", "place"]))
    sets = ju.make_sets(data.train_x, data.train_y, ju.forget_class(0), reader=data.reader)
    x = fetch(sets.forget.examples, jnp.arange(2))
    assert x["tokens"].shape == (2, 4), "as long as the longest text"
    assert x["mask"].sum(axis=1).tolist() == [3, 4]
    digits = ju.data.load_dataset(ju.data.DataConfig())
    assert CLASSIFIER.read(digits) is digits


@pytest.mark.parametrize(("split", "place"), [("train", 1), ("test", 0)])
def test_texts_without_words_are_refused(split, place):
    rows = {"train": [("who", 0), ("where", 1)], "test": [("who", 0)]}
    rows[split][place] = (" ?! ", 0)
    data = labelled_dataset(rows["train"], rows["test"], ["a", "b"])
    with pytest.raises(DataError, match=f"1 without any in the {split} split.* position {place}"):
        CLASSIFIER.read(data)
