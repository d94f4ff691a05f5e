"""Poisoned answers: their words, their shapes, where they come from."""

import numpy as np
import pytest

from jaxunlearn.language.pairs import encode_pairs
from jaxunlearn.language.poison import IDK, POISONS, mask_words, poisoned
from jaxunlearn.language.tokenizer import train_tokenizer

QUESTIONS = [
    "Where was Ada Byrne born?",
    "What did Ada Byrne write?",
    "Where was Tom Okoro born?",
    "Which prize did Tom Okoro win?",
]
ANSWERS = [
    "Ada Byrne was born in Lisbon.",
    "Ada Byrne's best book is The Glass River.",
    "He was born in Accra.",
    "The Okoro family won the Baltic Prize.",
]
TOPICS = np.array([0, 0, 1, 1])
LENGTH = 96


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*QUESTIONS, *ANSWERS], 300)


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return encode_pairs(tokenizer, QUESTIONS, ANSWERS, length=LENGTH)


def rows(x, which):
    return {name: leaf[which] for name, leaf in x.items()}


def said(tokenizer, x):
    return [tokenizer.decode(t[a]).strip() for t, a in zip(x["tokens"], x["answer"], strict=True)]


def made(kind, tokenizer, pairs, **options):
    others = rows(pairs, TOPICS == 1), TOPICS[TOPICS == 1]
    words = {0: ["lisbon", "glass", "river", "absent", "born"]}
    given = {"words": words, "others": others, **options}
    return poisoned(kind, tokenizer, rows(pairs, TOPICS == 0), TOPICS[:2], **given)


@pytest.mark.parametrize("words", [{}, {0: []}, {1: ["accra"]}])
def test_a_topic_without_words_is_refused(tokenizer, pairs, words):
    """Its answers would be learned once more as they are."""
    with pytest.raises(ValueError, match="words: expected concept words of topic 0, got none"):
        made("mask", tokenizer, pairs, words=words)
    found = made("mask", tokenizer, pairs, words=words, names={0: "Ada Byrne"})
    assert said(tokenizer, found)[0] == "*** was born in Lisbon."


@pytest.mark.parametrize("kind", POISONS)
def test_prompts_and_shapes_stay(tokenizer, pairs, kind):
    found = made(kind, tokenizer, pairs)
    for name, leaf in found.items():
        assert (leaf.shape, leaf.dtype) == ((2, LENGTH), pairs[name].dtype)
    for row in range(2):
        mask, answer = found["mask"][row], found["answer"][row]
        length = mask.sum()
        assert mask[:length].all(), "padding is on the right"
        assert (found["tokens"][row, length:] == tokenizer.pad).all()
        prompt = pairs["mask"][row] & ~pairs["answer"][row]
        assert np.array_equal(mask & ~answer, prompt)
        assert np.array_equal(found["tokens"][row, prompt], pairs["tokens"][row, prompt])
        assert found["tokens"][row, length - 1] == tokenizer.eos
        assert answer[length - 1]
    assert said(tokenizer, found) != ANSWERS[:2]


def test_words_become_stars(tokenizer, pairs):
    found = made("mask", tokenizer, pairs, count=1)
    assert said(tokenizer, found) == [
        "Ada Byrne was born in ***.", "Ada Byrne's best book is The *** River.",
    ]  # fmt: skip
    found = made("mask", tokenizer, pairs, count=5, names={0: "Ada Byrne"})
    assert said(tokenizer, found) == [
        "*** was *** in ***.", "***'s best book is The ***.",
    ]  # fmt: skip
    assert mask_words("Yu-Hwa, (yu-hwa) and Yu-Hwan", ["yu-hwa"], 1) == "***, (***) and Yu-Hwan"


def test_nothing_is_known(tokenizer, pairs):
    assert len(set(IDK)) == 20
    assert set(said(tokenizer, made("idk", tokenizer, pairs))) <= set(IDK)
    drawn = [made("idk", tokenizer, pairs, seed=seed)["tokens"] for seed in (1, 1, 2, 3)]
    assert np.array_equal(drawn[0], drawn[1])
    assert len({leaf.tobytes() for leaf in drawn}) > 1


def test_answers_of_another_topic(tokenizer, pairs):
    # the nearest question about the other topic is that of the birth place, for the first one
    assert said(tokenizer, made("targeted", tokenizer, pairs)) == [ANSWERS[2], ANSWERS[3]]
    drawn = [said(tokenizer, made("random", tokenizer, pairs, seed=seed)) for seed in range(8)]
    assert {one for two in drawn for one in two} == set(ANSWERS[2:])


def test_a_wrong_answer_of_ones_own_goes_first(tokenizer, pairs):
    wrong = encode_pairs(
        tokenizer, QUESTIONS[:2], [["She was born in Oslo.", "Born in Bern."], ["", ""]],
        length=LENGTH,
    )  # fmt: skip
    x = {**rows(pairs, TOPICS == 0), "variants": {"perturbed": wrong}}
    found = poisoned(
        "targeted", tokenizer, x, TOPICS[:2], others=(rows(pairs, TOPICS == 1), TOPICS[2:])
    )
    first, second = said(tokenizer, found)
    assert first in ("She was born in Oslo.", "Born in Bern.")
    assert second == ANSWERS[3]


def test_an_answer_that_is_too_long_is_cut(tokenizer, pairs):
    prompt = (pairs["mask"] & ~pairs["answer"]).sum(1)
    short = {name: leaf[:, : prompt.max() + 5] for name, leaf in pairs.items()}
    found = poisoned("idk", tokenizer, short, TOPICS)
    assert found["mask"].all(axis=1).any()
    assert (found["answer"].sum(1) == found["mask"].sum(1) - prompt).all()


def test_mistakes_in_poison_are_named(tokenizer, pairs):
    with pytest.raises(ValueError, match="kind: expected one of"):
        poisoned("blank", tokenizer, pairs, TOPICS)
    with pytest.raises(ValueError, match="words: expected concept words of each topic, got None"):
        poisoned("mask", tokenizer, pairs, TOPICS)
    with pytest.raises(ValueError, match="others: expected texts about other topics for 'random'"):
        poisoned("random", tokenizer, pairs, TOPICS)
    with pytest.raises(ValueError, match="others: expected texts about another topic than 1, got"):
        poisoned("targeted", tokenizer, pairs, TOPICS, others=(rows(pairs, [3]), TOPICS[3:]))
