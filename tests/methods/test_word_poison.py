"""Classes of texts forgotten by concept words and by neuronal paths."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.concepts import WordConcepts
from jaxunlearn.concepts.words import word_shapes
from jaxunlearn.data.examples import fetch
from jaxunlearn.engine.predict import predict
from jaxunlearn.methods.word_poison import exchange, poison_texts, word_donors
from tests import toy

KEY = jax.random.key(0)
TREC = Path(__file__).parents[3] / "shared" / "data" / "tfds"


@functools.cache
def inferred():
    sets = toy.question_sets()
    return ju.concepts.infer_words(
        toy.text_classifier(), toy.trained_on_questions().variables, (sets.forget, sets.retain),
        KEY, concepts=20, nodes=8,
    )  # fmt: skip


def accuracy(variables, part):
    return predict(toy.text_classifier().apply, variables, part).accuracy


# ---- the words of classes


def test_the_words_that_tell_a_class_are_its_concepts():
    found = inferred()
    for label in range(toy.NUM_CLASSES):
        own = set(range(1 + 4 * label, 5 + 4 * label))
        assert {token for token, _ in found.of_class(label)[:4]} == own
    assert (np.diff(found.tokens) > 0).all()
    assert (found.values.sum(axis=1) <= 1 + 1e-6).all()
    np.testing.assert_allclose(found.confusion.sum(axis=1), 1, rtol=1e-5)
    assert (found.confusion.argmax(axis=1) == np.arange(toy.NUM_CLASSES)).all()
    assert (found.gap < 0.1).all()


def test_shapes_are_those_of_the_result():
    x, variables = toy.question_sets().forget.examples.x, toy.trained_on_questions().variables
    shapes = word_shapes(toy.text_classifier().apply, variables, x, 20)
    found = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), inferred())
    assert found == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes)


def concepts(values, confusion):
    values = jnp.asarray(values, jnp.float32)
    tokens = jnp.arange(1, values.shape[1] + 1, dtype=jnp.int32)
    return WordConcepts(tokens, values, jnp.asarray(confusion, jnp.float32), jnp.zeros(len(values)))


def test_a_shared_word_names_the_donor_and_else_confusion():
    retain = toy.question_sets().retain
    alike = concepts(
        [[0, 0, 0.5, 0], [0.2, 0.1, 0.4, 0], [0.9, 0, 0, 0], [0, 0, 0, 0.8]],
        [[0, 0, 0, 1], [1, 0, 0, 0], [0, 0.6, 0.1, 0.3], [0.1, 0, 0.2, 0.7]],
    )
    # the words of class 1: first that of class 0, then that of class 2
    assert word_donors(alike, retain).tolist() == [3, 0, 3, 2], "class 1 is not retained"


# ---- the poison


def test_the_strongest_words_are_exchanged_by_hand():
    tokens = jnp.array([[5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, 8]], jnp.int32)
    ours = jnp.array([[0.1, 0, 0.9, 0.5], [0.1, 0, 0.9, 0.5], [0.3, 0.2, 0, 0]])
    lent = tokens + 10
    theirs = jnp.array([[0, 0.2, 0.1, 0.0], [0, 0, 0, 0], [0, 0, 0, 0.7]])
    found, replaced = exchange(tokens, ours, lent, theirs, 3)
    # two words are lent in turn; none are; one is lent twice
    assert found.tolist() == [[16, 6, 16, 17], [5, 6, 7, 8], [18, 18, 7, 8]]
    assert replaced.tolist() == [[True, False, True, True], [False] * 4, [True, True, False, False]]
    assert exchange(tokens, ours, lent, theirs, 1)[0][0].tolist() == [5, 6, 16, 8]


@pytest.mark.parametrize("place", ["concepts", "random", "all", "none"])
def test_what_is_replaced(place):
    sets, found = toy.question_sets(), inferred()
    slots = jnp.arange(20, dtype=jnp.int32)
    make = functools.partial(
        poison_texts, place, "targeted", 2, sets.forget, sets.retain, found, KEY,
        num_classes=toy.NUM_CLASSES, slots=slots,
    )  # fmt: skip
    made = make()
    before = fetch(sets.forget.examples, sets.forget.indices[slots])
    lent = fetch(sets.retain.examples, sets.retain.indices[made.donors])
    donor = int(word_donors(found, sets.retain)[1])
    assert (made.y == donor).all()
    assert (sets.retain.examples.y[sets.retain.indices[made.donors]] == donor).all()
    changed = np.asarray(made.x["tokens"] != before["tokens"])
    assert place == "all" or not (changed & ~np.asarray(made.replaced)).any()
    if place == "none":
        assert not made.replaced.any()
    elif place == "all":
        jax.tree.map(np.testing.assert_array_equal, made.x, lent)
    else:
        assert (made.replaced.sum(axis=1) == 2).all()
        for row in range(20):
            given = np.asarray(made.x["tokens"])[row][np.asarray(made.replaced)[row]]
            assert set(given) <= set(np.asarray(lent["tokens"])[row]) - {0}
    if place == "concepts":
        assert made.replaced[:, :2].all(), "the words that tell the class come first"
    first = make(first=5)
    np.testing.assert_array_equal(first.x["tokens"], made.x["tokens"][:5])


@pytest.mark.parametrize(
    "options", [{}, {"place": "none"}, {"place": "random", "train": "all", "statistics": "moving"}]
)
def test_a_class_is_forgotten_and_the_others_are_not(options):
    sets, before = toy.question_sets(), toy.trained_on_questions().variables
    assert accuracy(before, sets.test_forget) > 0.9
    method = ju.word_poison(
        toy.text_classifier(), words=2, concepts=20, nodes=8, optimizer=optax.adam(2e-2), **options
    )
    out = ju.unlearn(method, before, sets, KEY, steps=200, batch_size=32)
    assert accuracy(out.variables, sets.test_forget) < 0.1
    assert accuracy(out.variables, sets.test_retain) > 0.9


def test_kept_labels_without_other_words_need_no_concepts():
    method = ju.word_poison(toy.text_classifier(), place="none", label="keep")
    out = ju.unlearn(
        method, toy.trained_on_questions().variables, toy.question_sets(), KEY, steps=1
    )
    assert out.prepared is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"place": "patch"}, "place: expected one of"),
        ({"label": "true"}, "label: expected one of"),
        ({"words": 0}, "words: expected"),
        ({"concepts": 0}, "concepts: expected"),
        ({"data": 0}, "data: expected"),
        ({"forget_weight": -1}, "forget_weight: expected"),
        ({"statistics": "none"}, "statistics: expected one of"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        ju.word_poison(toy.text_classifier(), **wrong)


def test_images_and_unnamed_embeddings_are_refused():
    with pytest.raises(ValueError, match=r"sets: expected texts as tokens and mask .* got \[6, 6"):
        ju.unlearn(ju.word_poison(toy.mlp()), toy.trained().variables, toy.sets(), KEY, steps=1)
    method = ju.word_poison(toy.text_classifier(), embedding="words")
    with pytest.raises(ValueError, match="words"):
        ju.unlearn(method, toy.trained_on_questions().variables, toy.question_sets(), KEY, steps=1)


# ---- neuronal paths, and whole runs


def test_a_path_through_words_forgets_a_class_without_its_training_texts():
    sets, before = toy.question_sets(), toy.trained_on_questions().variables
    method = ju.neuron_path(toy.text_classifier(), per_sample=8, neurons=8, specificity=1.0)
    out = ju.unlearn(method, before, sets._replace(forget=None, retain=None), KEY, batch_size=16)
    assert accuracy(out.variables, sets.test_forget) < 0.2
    assert accuracy(out.variables, sets.test_retain) > 0.9


def run(tmp_path, name, **data):
    adam = {"optimizer": "adam", "learning_rate": 1e-2}
    return ju.run(
        ju.Config(
            name="texts",
            data=ju.data.DataConfig(name=str(name), **data),
            model=ju.config.ModelConfig("text_bag", {"width": 16, "features": (32,)}),
            train=ju.TrainConfig(epochs=10, batch_size=32, learning_rate=1e-2),
            request=ju.config.Request(classes=(1,)),
            methods={
                "neuron_path": {"per_sample": 16, "neurons": 16, "edit": "sign"},
                "word_poison": {"steps": 60, "train": "all", "words": 1, **adam},
            },
            retrained=1,
        ),
        tmp_path / "runs",
    )


def test_lines_of_texts_and_labels_are_a_run(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for number in range(240):
        label = number % 3
        more = rng.integers(0, 60, rng.integers(1, 6))
        own = [f"kind{label}{'abcd'[n]}" for n in rng.integers(4, size=2)]
        words = [*own, *(f"word{n}" for n in more)]
        split = "test" if number >= 150 else "train"
        text = " ".join(rng.permutation(words)) + " ?"
        rows.append({"text": text, "label": ("red", "green", "blue")[label], "split": split})
    file = tmp_path / "colours.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = run(tmp_path, file, unseen=45)
    values = {row["name"]: row["values"] for row in report["rows"]}
    assert values["accuracy_forget"]["original"] > 0.9
    assert values["accuracy_forget"]["neuron_path"] < 0.8
    assert values["accuracy_forget"]["word_poison"] < 0.2
    assert values["accuracy_test_retain"]["word_poison"] > 0.9


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": 3, "label": "a"}', "text"),
        ('{"text": "who"}', "label"),
        ('{"text": "?", "label": "a"}', "expected texts with words"),
        ('{"text": "", "label": "a"}', "text"),
    ],
)
def test_lines_that_are_no_labelled_texts_are_refused(tmp_path, line, said):
    good = [{"text": f"a {n}", "label": "ab"[n % 2]} for n in range(8)]
    rows = [{**row, "split": "test" if n > 3 else "train"} for n, row in enumerate(good)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "few.jsonl").write_text(text + line[:-1] + ', "split": "train"}\n')
    with pytest.raises(ju.core.errors.UserError, match=said):
        run(tmp_path, tmp_path / "few.jsonl", unseen=2)


@pytest.mark.skipif(not (TREC / "trec").exists(), reason="TREC is not here")
def test_questions_of_trec_become_tokens():
    from jaxunlearn.data.sources import load_dataset
    from jaxunlearn.kinds.classifier import CLASSIFIER

    data = CLASSIFIER.read(load_dataset(ju.data.DataConfig(name="trec", dir=str(TREC))))
    assert "HUM" in data.class_names
    sets = ju.make_sets(
        data.train_x, data.train_y, ju.forget_class("HUM"), reader=data.reader,
        class_names=data.class_names,
    )  # fmt: skip
    x = fetch(sets.forget.examples, sets.forget.indices)
    assert x["tokens"].shape == (1223, 33)
    who = ju.data.words.token_of("who")
    assert 0.4 < float(np.mean(np.asarray(x["tokens"] == who).any(axis=1))) < 0.8
