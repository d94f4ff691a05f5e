"""Locators on a decoder whose answers hang on a name, and the deletion test."""

import sys
import types

import jax
import numpy as np
import pytest

from jaxunlearn.core.errors import UserError
from jaxunlearn.language import locators
from jaxunlearn.language.locators import (
    Search,
    by_topic,
    deletion_curves,
    deletion_table,
    infer_words,
    locate,
)
from jaxunlearn.language.words import answer_attributions, read_answers
from tests.language import planted


def search(every=6, others=False, **options):
    model, variables, tokenizer, x, topics = planted.trained()
    kept = np.arange(0, len(topics), every)
    part = {name: leaf[kept] for name, leaf in x.items()}
    answers = read_answers(tokenizer, part, topics[kept])
    return Search(model, variables, answers, key=jax.random.key(2), **options)


@pytest.mark.parametrize("locator", ["ig", "lrp", "frequency"])
def test_the_words_that_an_answer_hangs_on_come_first(locator):
    given = search()
    ranked = infer_words(
        given.model, given.variables, given.answers.x, given.answers.topics,
        given.answers.tokenizer, locator=locator,
    )  # fmt: skip
    assert sorted(ranked) == [0, 1, 2, 3]
    shares = []
    for topic, rows in ranked.items():
        hangs_on = {planted.NAMES[topic].casefold(), planted.TOWNS[topic].casefold()}
        assert rows[0][0] in hangs_on
        own = sum(score for word, score in rows if word in hangs_on) / sum(s for _, s in rows)
        shares.append(own)
    # chance gives a half; single topics vary with the processor that trained the decoder
    assert min(shares) > 0.6
    assert np.mean(shares) > (0.7 if locator == "lrp" else 0.75)


def test_parts_add_up():
    given = search()
    x = {name: leaf[:8] for name, leaf in given.answers.x.items()}
    pad = given.answers.tokenizer.pad
    found = answer_attributions(given.model, given.variables, x, baseline=pad, nodes=96)
    assert float(found.relative_gap.max()) < 1e-2
    assert not np.asarray(found.scores)[~x["answer"]].any()
    np.testing.assert_allclose(
        np.exp(np.asarray(found.score) / x["answer"].sum(1)),
        planted.likelihoods(given.model, given.variables, x), rtol=1e-5,
    )  # fmt: skip
    zero = answer_attributions(given.model, given.variables, x, baseline="zero", complete=True)
    assert float(zero.relative_gap.max()) < 1e-2


def test_the_deletion_test_tells_locators_from_chance():
    rows = {row["locator"]: row for row in deletion_table(search(3), most=2)}
    assert rows["ig"]["area"] + rows["ig"]["area_half"] < rows["random"]["area"]
    difference, half = rows["ig"]["against"]["random"]
    assert difference + half < 0
    assert rows["ig"]["curve"][0] == 1
    assert rows["entities"]["skipped"] or rows["entities"]["area"] > 0
    table = locators.deletion_text(list(rows.values()))
    assert table.count("\n") == 2 + len(rows)


def test_words_are_masked_by_the_ranking_of_their_topic():
    given = search(15)  # two answers a topic
    answers = given.answers
    # in the first answer of a topic the name counts most, in the second the town, and once more
    scores = [np.array([[3.0, 0, 0, 1, 0], [0, 0, 1, 3, 0]][row % 2]) for row in range(8)]
    found = by_topic(answers, scores)
    for words, own in zip(answers.words, found, strict=True):
        ranking = dict(zip([word.key for word in words], own, strict=True))
        name, town = words[0].key, words[3].key
        assert ranking[name] == 0.75
        assert ranking[town] == 0.25 + 0.75
    by_hand = deletion_curves(given.model, given.variables, answers, found, most=1)
    rows = deletion_table(given, ["ig"], most=1, order="topic")
    ranked = by_topic(answers, locate(given, "ig"))
    curves = deletion_curves(given.model, given.variables, answers, ranked, most=1)
    assert rows[0]["area"] == pytest.approx(curves.areas.answer.mean())
    assert by_hand.answer.shape == curves.answer.shape == (8, 2)


def test_masked_words_are_not_read_and_still_predicted():
    given = search(30)
    words = given.answers.words
    scores = [np.array([1.0, 0, 0, 0, 0.5]) for _ in words]  # the name; the full stop has no key
    curves = deletion_curves(given.model, given.variables, given.answers, scores, most=1)
    assert curves.answer.shape == (4, 2)
    assert (curves.answer[:, 0] == 1).all()
    for row, found in enumerate(words):
        x = {name: leaf[row : row + 1] for name, leaf in given.answers.x.items()}
        read = x["tokens"].copy()
        read[0, found[0].start : found[0].stop] = given.answers.tokenizer.pad
        logits = given.model.apply(given.variables, {**x, "tokens": read})
        changed = locators.token_logprobs(logits, x)
        before = locators.token_logprobs(given.model.apply(given.variables, x), x)
        change = np.asarray(changed - before)[0]
        np.testing.assert_allclose(
            curves.answer[row, 1], np.exp(change.sum() / x["answer"].sum()), rtol=1e-4
        )
        rest = x["answer"][0].copy()
        rest[found[0].start : found[0].stop] = False
        np.testing.assert_allclose(
            curves.rest[row, 1], np.exp(change[rest].sum() / rest.sum()), rtol=1e-4
        )


def test_frequency_compares_topics():
    given = search()
    scores = locators.locate(given, "frequency")[0]
    n, df, share = 4, 1, 5 / 20  # five of the answers, four words with a key in each
    assert scores[0] == pytest.approx(share * (1 + np.log((1 + n) / (1 + df))))
    # of eight topics two have the name
    own = given.answers
    others = own._replace(topics=own.topics + 10)
    assert locators.locate(given._replace(others=others), "frequency")[0][0] == pytest.approx(
        share * (1 + np.log(9 / 3))
    )


def test_mistakes_of_locators_are_named():
    given = search()
    with pytest.raises(ValueError, match="locator: expected one of"):
        locators.locate(given, "attention")
    with pytest.raises(ValueError, match="key: expected a key to draw words by, got None"):
        locators.locate(given._replace(key=None), "random")
    with pytest.raises(ValueError, match="order: expected one of"):
        deletion_table(given, order="length")
    if why := locators.missing("entities"):
        with pytest.raises(UserError, match=f"got none: {why}"):
            locators.locate(given, "entities")


def test_named_entities_by_spacy(monkeypatch):
    def load(name):
        assert name == "en_core_web_sm"
        entity = types.SimpleNamespace(text="Byrne")
        return lambda text: types.SimpleNamespace(ents=[entity] if "Byrne" in text else [])

    util = types.SimpleNamespace(is_package=lambda name: True)
    monkeypatch.setitem(sys.modules, "spacy", types.SimpleNamespace(load=load, util=util))
    scores = locators.locate(search(30), "entities")
    assert scores[0].tolist() == [1, 0, 0, 0, 0]
    assert not any(one.any() for one in scores[1:])
    util.is_package = lambda name: False
    assert locators.missing("entities") == "spaCy's en_core_web_sm is not installed"


def test_nodes_follow_the_gap(monkeypatch):
    given, asked = search(30), []
    integrated = locators._integrated

    def count(variables, x, *, nodes, **options):
        asked.append(nodes)
        return integrated(variables, x, nodes=nodes, **options)

    monkeypatch.setattr(locators, "_integrated", count)
    monkeypatch.setattr(locators, "TOLERANCE", 0.0)
    monkeypatch.setattr(locators, "MOST", 4)
    with pytest.warns(UserWarning, match="integrated gradients with 128 nodes miss up to"):
        locators.token_scores(given)
    assert asked == [32, 128]
