"""Concept-poisoned fine-tuning of a language model: what is forgotten, what stays."""

import functools
import types

import jax
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.kinds.language_pictures import draw_words
from jaxunlearn.language.likelihood import answer_nll
from jaxunlearn.language.poison import POISONS, masked_labels
from jaxunlearn.language.words import read_answers
from jaxunlearn.methods.language.concept_words import concept_words
from tests.language import planted


@functools.cache
def sets():
    _, _, _, x, topics = planted.trained()
    return ju.make_sets(x, topics, ju.forget_class(0), num_classes=4)


def forgotten(variables):
    """Probability of the name that an answer begins with, of the forgotten one and the others;
    and the likelihood of the others' answers."""
    model, _, tokenizer, x, topics = planted.trained()
    first = np.zeros_like(x["answer"])
    for row, words in enumerate(read_answers(tokenizer, x, topics).words):
        first[row, words[0].start : words[0].stop] = True
    total, _ = answer_nll(model.apply(variables, x), {**x, "answer": first})
    names = np.exp(-np.asarray(total))
    whole = planted.likelihoods(model, variables, x)
    return names[topics == 0].mean(), names[topics > 0].mean(), whole[topics > 0].mean()


def first_words(row):
    """The words between name and town."""
    _, _, tokenizer, x, topics = planted.trained()
    return [word.text for word in read_answers(tokenizer, x, topics).words[row][1:3]]


def run(**options):
    model, variables, tokenizer, _, _ = planted.trained()
    options = {"optimizer": optax.adam(3e-3), "tokenizer": tokenizer, **options}
    method = concept_words(model, **options)
    return ju.unlearn(method, variables, sets(), key=jax.random.key(0), steps=80, batch_size=10)


@pytest.mark.parametrize(
    ("poison", "options"),
    [
        ("mask", {"class_names": ("Byrne", "b", "c", "d")}),
        ("mask", {"behind": "both", "nodes": 2, "tolerance": 1.0}),
        (
            "mask",
            {
                "behind": "poisoned",
                "lora": 4,
                "lora_on": (r"/kernel$",),
                "optimizer": optax.adam(5e-3),
            },
        ),
        ("idk", {"retain": "kl"}),
        ("targeted", {}),
        ("random", {}),
    ],
)
def test_answers_are_forgotten_and_others_kept(poison, options):
    _, variables, tokenizer, _, _ = planted.trained()
    before = jax.tree.map(lambda leaf: np.array(leaf), variables)
    old = forgotten(variables)
    out = run(poison=poison, **options)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    new = forgotten(out.variables)
    # what is near the original on other answers goes on beginning a quarter with the name
    assert new[0] < (0.9 if "retain" in options else 0.2) * old[0]
    assert new[1] > 0.6 * old[1], "half of what is learned begins with something else"
    assert new[2] > 0.85 * old[2]
    made = jax.tree.map(np.asarray, out.prepared.texts)
    assert jax.tree.map(np.shape, made) == dict.fromkeys(made, (30, planted.LENGTH))
    rows = zip(made["tokens"], made["answer"], strict=True)
    said = [tokenizer.decode(tokens[own]) for tokens, own in rows]
    if poison == "mask":
        assert {word for word, _ in out.prepared.ranking[:2]} == {"byrne", "lisbon"}
        assert not any("Byrne" in text or "Lisbon" in text for text in said)
        first = out.prepared.scored[0]
        assert [word for word, _ in first] == ["Byrne", *first_words(0), "Lisbon", "."]
        assert max(score for _, score in first) > 0
    else:
        assert out.prepared.ranking == []
        assert out.prepared.scored == [[]] * 12


@pytest.mark.parametrize("poison", POISONS)
def test_shapes_are_told_before_any_work(poison):
    model, variables, tokenizer, _, _ = planted.trained()
    method = concept_words(model, tokenizer=tokenizer, poison=poison, locator="frequency")
    told = method.prepare.shapes(variables, jax.eval_shape(lambda: sets()))
    found = method.prepare.run(variables, sets(), jax.random.key(1))
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), told, found
    )


def test_behind_the_right_answer_the_mask_stands_for_concept_words():
    _, _, tokenizer, x, topics = planted.trained()
    answers = read_answers(tokenizer, {k: x[k] for k in ("tokens", "mask", "answer")}, topics)
    topic, own = int(topics[0]), answers.words[0]
    chosen, named = own[-2], own[0]
    words, names = {topic: ["elsewhere", chosen.key, own[1].key]}, {topic: named.text}
    labels = masked_labels(answers, words, 1, names)
    assert labels.dtype == np.int32
    changed = np.flatnonzero(labels[0] != x["tokens"][0])
    wanted = {place for word in (named, chosen) for place in range(word.start, word.stop)}
    assert set(changed) <= wanted
    assert wanted - set(changed) <= {p for p in wanted if labels[0, p] in labels[0, changed]}
    assert len({int(labels[0, place]) for place in wanted}) <= 2, "with and without a space"
    again = masked_labels(answers, words, 2, {})
    assert (
        again[0, own[1].start : own[1].stop] != x["tokens"][0, own[1].start : own[1].stop]
    ).any()
    assert (again[0, named.start] == x["tokens"][0, named.start]).all()
    others = np.flatnonzero(topics != topic)
    np.testing.assert_array_equal(labels[others], np.asarray(x["tokens"])[others])


@pytest.mark.parametrize("poison", ["idk", "random"])
def test_other_poison_stands_behind_itself(poison):
    model, _, tokenizer, _, _ = planted.trained()
    with pytest.raises(ValueError, match=r"behind: expected one of \('poisoned',\), got 'right'"):
        concept_words(model, tokenizer=tokenizer, poison=poison, behind="right")


def test_mistakes_are_named():
    model, _, tokenizer, _, _ = planted.trained()
    for name, value, message in (
        ("poison", "blank", "poison: expected one of"),
        ("locator", "attention", "locator: expected one of"),
        ("behind", "left", "behind: expected one of"),
        ("tolerance", -1.0, "tolerance: expected a number of 0 or more"),
        ("words", 0, "words: expected a positive number, got 0"),
        ("retain", "mse", "retain: expected one of"),
        ("retain_weight", -1, "retain_weight: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            concept_words(model, **{"tokenizer": tokenizer, name: value})
    with pytest.raises(TypeError, match="tokenizer: expected that of the texts, got NoneType"):
        concept_words(model, tokenizer=None)
    images = ju.make_sets(np.zeros((4, 3), np.float32), np.arange(4) % 2, ju.forget_class(0))
    method = concept_words(model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="sets: expected texts with tokens, mask and answer"):
        method.prepare.shapes(None, images)


def test_the_words_are_drawn_and_written(tmp_path):
    found = run(poison="mask").prepared
    view = types.SimpleNamespace(methods={"mine": types.SimpleNamespace(prepared=lambda: found)})
    draw_words(tmp_path / "words.png", view, "mine")
    assert (tmp_path / "words.png").stat().st_size > 1000
    told = (tmp_path / "words.md").read_text()
    assert told.count("Byrne") == 12
    assert "Strongest words: " in told
    nothing = found._replace(totals=found.totals * 0, words=found.words * 0)
    view.methods["mine"].prepared = lambda: nothing
    draw_words(tmp_path / "other.png", view, "mine")
    assert not (tmp_path / "other.png").exists()
