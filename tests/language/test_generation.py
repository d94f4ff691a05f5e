"""Texts written behind prompts: those of transformers, ends of rows, draws, one program."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core.errors import ConfigError, DataError
from jaxunlearn.language import generation
from jaxunlearn.language.decoder import llama
from jaxunlearn.language.generation import generate, write_answers
from jaxunlearn.language.huggingface import load_pretrained
from jaxunlearn.language.pairs import decode_answers, encode_pairs
from jaxunlearn.language.tokenizer import train_tokenizer

GOLDEN = Path(__file__).parent.parent / "golden" / "lm"
KEY = jax.random.key(0)
MODEL = llama((), 23, depth=1, width=16, heads=2, context=24)
VARIABLES = jax.tree.map(lambda leaf: 8 * leaf, MODEL.init(jax.random.key(1)))


def prompts(rows=2, length=5):
    tokens = np.random.default_rng(0).integers(0, 23, (rows, length))
    return {"tokens": jnp.asarray(tokens, jnp.int32), "mask": jnp.ones((rows, length), bool)}


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen2"])
def test_greedy_texts_are_those_of_transformers_whatever_the_padding(name):
    golden = np.load(GOLDEN / f"{name}.npz")
    model, variables = load_pretrained(GOLDEN / name, dtype="float32")
    mask, tokens = golden["mask"], golden["tokens"]
    right = np.argsort(~mask, axis=1, kind="stable")
    ways = [(tokens, mask), tuple(np.take_along_axis(a, right, 1) for a in (tokens, mask))]
    for tokens, mask in ways:
        x = {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}
        np.testing.assert_array_equal(
            generate(model, variables, x, KEY, most=10), golden["written"], err_msg=name
        )


def test_a_second_call_compiles_nothing():
    x = prompts()
    options = {"most": 4, "stop_token": 3}
    generate(MODEL, VARIABLES, x, KEY, temperature=0.5, top_p=0.9, **options)
    before = generation._written._cache_size()
    other = {"tokens": x["tokens"][::-1], "mask": x["mask"].at[0, 0].set(False)}
    for temperature, top_p, stop in ((0.7, 0.3, 5), (1.3, 0.5, 0)):
        options = {"temperature": temperature, "top_p": top_p, "most": 4, "stop_token": stop}
        generate(MODEL, VARIABLES, other, jax.random.key(5), **options)
    assert generation._written._cache_size() == before


def test_a_row_ends_at_its_stop_and_the_program_when_all_have():
    steps = []

    def extend(variables, cache, x):
        jax.debug.callback(lambda: steps.append(1), ordered=True)
        return MODEL.extend(variables, cache, x)

    counted = MODEL._replace(extend=extend)
    x = prompts()
    free = np.asarray(generate(MODEL, VARIABLES, x, KEY, most=8))
    stop = int(free[0, 2])
    found = np.asarray(generate(counted, VARIABLES, x, KEY, most=8, stop_token=stop))
    for row, whole in zip(found, free, strict=True):
        end = int(np.argmax(whole == stop)) if stop in whole else len(whole)
        np.testing.assert_array_equal(row[:end], whole[:end])
        assert (row[end:] == stop).all()
    one = {name: leaf[:1] for name, leaf in x.items()}
    steps.clear()
    found = np.asarray(generate(counted, VARIABLES, one, KEY, most=8, stop_token=stop))
    jax.effects_barrier()
    first = int(np.argmax(free[0] == stop))
    # the prompt but its last token, then a step for each token up to the end
    assert len(steps) == 1 + first + 1
    np.testing.assert_array_equal(found[0], np.where(np.arange(8) < first, free[0], stop))


def test_draws_follow_the_probabilities_of_the_nucleus():
    x = prompts(1, 4)
    many = {name: jnp.repeat(leaf, 4000, axis=0) for name, leaf in x.items()}
    logits = np.asarray(MODEL.apply(VARIABLES, x))[0, -1] / 0.4
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    drawn = np.asarray(generate(MODEL, VARIABLES, many, KEY, most=1, temperature=0.4))
    counts = np.bincount(drawn[:, 0], minlength=23) / 4000
    np.testing.assert_allclose(counts, shares, atol=4 * np.sqrt(shares.max() / 4000))
    drawn = np.asarray(generate(MODEL, VARIABLES, many, KEY, most=1, temperature=0.4, top_p=0.6))
    order = np.argsort(-shares)
    kept = order[: 1 + np.searchsorted(np.cumsum(shares[order]), 0.6)]
    counts = np.bincount(drawn[:, 0], minlength=23) / 4000
    assert set(np.flatnonzero(counts)) == set(kept)
    wanted = shares[kept] / shares[kept].sum()
    np.testing.assert_allclose(counts[kept], wanted, atol=4 * np.sqrt(wanted.max() / 4000))


def test_draws_come_from_the_key():
    x = prompts(3)
    options = {"most": 6, "temperature": 1.0}
    one, same, other = (
        np.asarray(generate(MODEL, VARIABLES, x, jax.random.key(seed), **options))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    greedy = generate(MODEL, VARIABLES, x, KEY, most=6)
    sure = generate(MODEL, VARIABLES, x, KEY, most=6, temperature=1.0, top_p=1e-6)
    np.testing.assert_array_equal(sure, greedy)


def test_a_prompt_of_one_token_and_one_that_fills_the_context():
    assert generate(MODEL, VARIABLES, prompts(2, 1), KEY, most=3).shape == (2, 3)
    x = prompts(2, 30)  # longer than the context, but padded
    x["mask"] = x["mask"].at[:, :10].set(False)
    assert generate(MODEL, VARIABLES, x, KEY, most=4).shape == (2, 4)
    with pytest.raises(ConfigError, match=r"a prompt and 5 tokens behind it within .* of 24, got"):
        generate(MODEL, VARIABLES, x, KEY, most=5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"most": 0}, ValueError, "most: expected a positive number, got 0"),
        ({"most": 20}, ConfigError, "x: expected a prompt and 20 tokens behind it within"),
        ({"most": 1, "temperature": -1}, ValueError, "temperature: expected a number of 0"),
        ({"most": 1, "temperature": float("nan")}, ValueError, "temperature: expected"),
        ({"most": 1, "top_p": 0}, ValueError, "top_p: expected a share above 0"),
        ({"most": 1, "stop_token": 23}, ValueError, "stop_token: expected a token below 23"),
    ],
)
def test_numbers_out_of_range_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        generate(MODEL, VARIABLES, prompts(), KEY, **options)


def test_an_empty_prompt_and_another_model_are_refused():
    x = prompts()
    x["mask"] = x["mask"].at[1].set(False)
    with pytest.raises(DataError, match=r"x: expected prompts of one token or more, .* row 1"):
        generate(MODEL, VARIABLES, x, KEY, most=1)
    with pytest.raises(TypeError, match="model: expected LanguageModel, got str"):
        generate("llama", VARIABLES, x, KEY, most=1)
    with pytest.raises(DataError, match=r"x: expected tokens and mask, .*, got list; .*questions"):
        generate(MODEL, VARIABLES, [[1, 2]], KEY, most=1)
    with pytest.raises(DataError, match=r"x: expected tokens and mask, .*, got \['tokens'\]"):
        generate(MODEL, VARIABLES, {"tokens": x["tokens"]}, KEY, most=1)


QUESTIONS = ["Where was Ada Byrne born?", "Who?"]


@pytest.fixture(scope="module")
def talker():
    """A tokenizer, and a model of random weights whose embedding has 40 rows more."""
    tokenizer = train_tokenizer(QUESTIONS * 2, 300)
    model = llama((), tokenizer.size + 40, depth=1, width=16, heads=2, context=64)
    return tokenizer, model, jax.tree.map(lambda leaf: 8 * leaf, model.init(KEY))


def test_answers_are_what_is_generated_as_text(talker):
    tokenizer, model, variables = talker
    x = encode_pairs(tokenizer, QUESTIONS, ["", ""])
    for options in ({}, {"temperature": 2.0, "top_p": 0.9}):
        made = generate(model, variables, x, KEY, most=8, stop_token=tokenizer.eos, **options)
        found = write_answers(model, variables, tokenizer, QUESTIONS, KEY, most=8, **options)
        own = [[t for t in row if t < tokenizer.size] for row in np.asarray(made).tolist()]
        own = [row[: [*row, tokenizer.eos].index(tokenizer.eos)] for row in own]
        assert found == [tokenizer.decode(row).strip() for row in own]
    assert write_answers(model, variables, tokenizer, QUESTIONS, most=8) == write_answers(
        model, variables, tokenizer, QUESTIONS, KEY, most=8
    )


def test_tokens_without_text_and_those_behind_the_end_are_left_out(talker):
    tokenizer = talker[0]
    said, end = tokenizer.encode("Ada"), tokenizer.eos
    row = np.array([[tokenizer.size, *said, tokenizer.size + 39, end, *said]])
    assert decode_answers(tokenizer, row, end) == ["Ada"]
    assert decode_answers(tokenizer, row, tokenizer.size) == [""]


@pytest.mark.parametrize(
    ("questions", "options", "error", "message"),
    [
        ("Who?", {}, DataError, "questions: expected a list of texts, got a single text"),
        ([], {}, DataError, "questions: expected a list of texts, got none"),
        (["Who?"], {"temperature": 1.0}, ValueError, "key: expected a key to draw tokens by"),
        (["Who?"], {"template": "lama2"}, DataError, "template: expected one of"),
        (["Who?"], {"most": 60}, ConfigError, "x: expected a prompt and 60 tokens behind it"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(talker, questions, options, error, message):
    tokenizer, model, variables = talker
    with pytest.raises(error, match=message):
        write_answers(model, variables, tokenizer, questions, **options)


def test_a_tokenizer_of_another_model_is_refused(talker):
    with pytest.raises(DataError, match="tokenizer: expected at most 23 tokens"):
        write_answers(MODEL, VARIABLES, talker[0], QUESTIONS)
