"""Metrics of language models: what a model that knows, and one that never did, are told by."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.metrics import answers, language, language_attacks
from jaxunlearn.metrics.language_evidence import LanguageEvidence
from jaxunlearn.metrics.registry import Missing, measure
from tests.language import small_authors as small

KEY = jax.random.key(3)


def observe(variables, sets=None, **given):
    given = {**small.helpers(), **given}
    return LanguageEvidence(small.decoder(), variables, sets or small.sets(), KEY, **given)


@functools.cache
def seen():
    """The original, which knows the first author, and two models that never saw that one."""
    models = [small.trained(0), small.trained(1, retrained=True), small.trained(2, retrained=True)]
    return [observe(one) for one in models]


def one(name, evidence, **given):
    original, *retrained = seen()
    found = measure(evidence, original, retrained, names=[name])
    assert not found.failed, found.failed
    return found.values[name]


def test_scores_are_those_of_the_softmax():
    evidence = seen()[0]
    x, found = evidence.texts("forget"), evidence.scores("forget")
    logits = np.asarray(small.decoder().apply(evidence.variables, x), np.float64)[:, :-1]
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    p, target = np.exp(logp), x["tokens"][:, 1:]
    own = np.take_along_axis(logp, target[..., None], -1)[..., 0]
    mean = np.sum(p * logp, -1)
    wanted = {
        "logprobs": own,
        "margins": own - np.log1p(-np.exp(own)),
        "means": mean,
        "deviations": np.sqrt(np.sum(p * logp**2, -1) - mean**2),
        "greedy": logits.argmax(-1) == target,
    }
    for name, values in wanted.items():
        there = x["answer"][:, 1:]
        got = getattr(found, name)[:, 1:]
        np.testing.assert_allclose(got[there], values[there], rtol=1e-3, atol=1e-4, err_msg=name)
    total = np.array([row[a].mean() for row, a in zip(own, x["answer"][:, 1:], strict=True)])
    np.testing.assert_allclose(evidence.losses("forget"), -total, rtol=1e-4)


def test_the_original_knows_and_the_retrained_models_do_not():
    original, *retrained = seen()
    know = {
        name: [one(name, evidence) for evidence in (original, retrained[0])]
        for name in (
            "probability_forget", "rouge_forget", "exact_memorisation", "extraction_strength",
            "appearance_forget", "probability_8_bits", "probability_4_bits",
            "probability_finetuned",
        )
    }  # fmt: skip
    for name, (knows, never) in know.items():
        assert knows > never + 0.2, name
    assert know["appearance_forget"] == [1, 0]
    assert one("steps_to_relearn", original) == 0
    assert one("steps_to_relearn", retrained[0]) == small.SETTINGS.relearning_steps
    assert one("depth_of_answers", original) == pytest.approx(0, abs=1e-6)
    assert one("depth_of_answers", retrained[0]) > 0.7
    assert one("privacy_leak", original) < 0
    assert one("forget_quality", original) < one("forget_quality", retrained[0])
    for name in ("probability_retain", "utility_retain", "utility"):
        assert one(name, original) == pytest.approx(one(name, retrained[0]), abs=0.2), name


def test_answers_are_generated_for_questions_and_cut_at_their_end():
    original = seen()[0]
    made, right = original.generated("forget"), original.right_texts("forget")
    assert made[1] == right[1] == " Leocadia Jaspasca was born in Gdansk."
    # what is longer than the settings allow is cut there
    assert all(len(small.texts()[0].encode(text)) <= 12 for text in made)
    assert len(original.generated("retain")) == small.SETTINGS.generated


def test_words_of_the_request_go_before_the_name_of_the_topic():
    original = seen()[0]
    assert original.concepts("forget")[0] == ("Leocadia Jaspasca", "leocadia", "jaspasca")
    told = observe(original.variables, words=("gdansk",))
    assert language.appearance(told, "forget") == 0.5
    with pytest.raises(Missing):
        language.appearance(observe(original.variables, topics=()), "forget")


def test_sets_are_taken_apart_and_sampled():
    original = seen()[0]
    names = small.texts()[3]
    general = {names.index("real authors"), names.index("world facts")}
    assert not general & set(original.texts("retain")["topic"])
    assert set(original.texts("real authors")["topic"]) == {names.index("real authors")}
    assert original.scores("forget", "perturbed").logprobs.shape[:2] == (4, 2)
    assert len(original.losses("retain")) == 16
    assert original.losses("retain", "perturbed").shape == (small.SETTINGS.generated, 2)


def test_utility_is_of_nine_numbers_or_none():
    original = seen()[0]
    nine = [
        value
        for part in ("retain", "real authors", "world facts")
        for value in language._three(original, part)
    ]
    assert one("utility", original) == pytest.approx(9 / sum(1 / value for value in nine))
    given, _, wrong = original.options("world facts")
    share = np.exp(-given) / (np.exp(-given) + np.exp(-wrong).sum(1))
    assert nine[6] == pytest.approx(share.mean())
    without = observe(original.variables, topics=small.texts()[3][:-1])
    assert "utility" not in measure(without, names=["utility"]).values


LEFT_OUT = {
    "tokenizer": {
        "rouge_forget", "rouge_retain", "utility", "utility_retain", "appearance_forget",
        "appearance_paraphrased", "attack_zlib",
    },
    "variants": {
        "probability_paraphrase", "truth_ratio_forget", "truth_retain", "utility",
        "utility_retain", "forget_quality",
    },
    "bits": {"probability_8_bits", "probability_4_bits"},
    "steps": {"probability_relearned", "probability_finetuned", "steps_to_relearn"},
}  # fmt: skip


@pytest.mark.parametrize("without", LEFT_OUT)
def test_without_something_its_rows_are_left_out(without):
    def plain(part):
        if part is None:
            return None
        x = {k: v for k, v in part.examples.x.items() if k != "variants"}
        return part._replace(examples=part.examples._replace(x=x))

    sets = type(small.sets())(*map(plain, small.sets())) if without == "variants" else None
    settings = {"bits": {"bits": (3,)}, "steps": {"relearning_steps": 0}}.get(without, {})
    given = {"settings": dataclasses.replace(small.SETTINGS, **settings)}
    given |= {"tokenizer": None} if without == "tokenizer" else {}
    original, *retrained = [observe(e.variables, sets, **given) for e in seen()]
    found = measure(original, original, retrained, names=sorted(LEFT_OUT[without]))
    assert not found.failed
    assert not found.values


def test_a_wrecked_model_fails_in_every_row():
    original, *retrained = seen()
    wrecked = observe(jax.tree.map(lambda leaf: jnp.full_like(leaf, np.nan), original.variables))
    names = [n for n, row in language.ROWS.items() if row.scope != "ensemble" and "_3_" not in n]
    found = measure(wrecked, original, retrained, names=names)
    assert set(found.failed) == set(names)
    # beside a wrecked retrained model the others count
    beside = measure(original, original, [wrecked, *retrained], names=["forget_quality"])
    assert beside.values == {"forget_quality": one("forget_quality", original)}
    assert "no retrained" not in str(
        measure(original, original, [wrecked], names=["privacy_leak"]).failed
    )


def test_margins_of_many_models():
    original, *retrained = seen()
    same = [retrained[n % 2] for n in range(4)]
    assert language.margin_divergence(same, same, "forget") == pytest.approx(0, abs=1e-9)
    assert language.margin_divergence([original] * 3, same, "forget") > 1
    with pytest.raises(Missing):
        language.margin_divergence(same[:2], same, "forget")


def test_all_models_share_the_programs():
    original, *retrained = seen()
    names = [n for n, row in language.ROWS.items() if row.scope != "ensemble" and "_3_" not in n]
    measure(original, original, retrained, names=names)
    programs = (language_attacks._score, language_attacks._drops, language_attacks.rounded)
    before = [one._cache_size() for one in programs]
    scaled = observe(jax.tree.map(lambda leaf: 0.9 * leaf, original.variables))
    assert not measure(scaled, original, retrained, names=names).failed
    assert [one._cache_size() for one in programs] == before


def test_kernels_alone_are_rounded_by_channel():
    kernel = jnp.array([[1.0, 10.0], [-0.4, 3.0], [0.1, 0.0]])
    variables = {
        "params": {"a": {"kernel": kernel, "bias": kernel[:, 0]}, "b": {"embedding": kernel}}
    }
    found = language_attacks.rounded(variables, 3)["params"]
    np.testing.assert_allclose(found["a"]["kernel"], [[1, 10], [-1 / 3, 10 / 3], [0, 0]], atol=1e-6)
    np.testing.assert_array_equal(found["a"]["bias"], kernel[:, 0])
    np.testing.assert_array_equal(found["b"]["embedding"], kernel)


def test_the_last_block_says_what_the_other_model_says():
    """Its states behind the original's head give the likelihood that patching finds."""
    original, other, _ = seen()
    x = {k: jnp.asarray(original.texts("forget")[k]) for k in ("tokens", "mask", "answer")}
    mixed = {**other.variables["params"]}
    mixed |= {name: original.variables["params"][name] for name in ("norm", "head")}
    logits = small.decoder().apply({"params": mixed}, x)
    after = answers.mean_over(language_attacks.token_logprobs(logits, x), x["answer"])
    drops = language_attacks.knowledge_drops(
        small.decoder(), original.variables, other.variables, x
    )
    assert drops.shape == (4, 2)
    np.testing.assert_allclose(drops[:, -1], -original.losses("forget") - after, atol=1e-4)
    np.testing.assert_allclose(original.drops(original), 0, atol=1e-6)


def test_learning_again_takes_the_first_texts_and_leaves_the_model():
    other = seen()[1]
    x = {k: other.texts("forget")[k] for k in ("tokens", "mask", "answer")}
    before = jax.device_get(other.variables)
    made, curve = language_attacks.learn_again(
        small.decoder(), other.variables, x, KEY, steps=4, batch_size=2
    )
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(other.variables), before)
    assert curve.shape == (4,)
    assert curve[0] == pytest.approx(language.mean_probability(other, "forget"), abs=0.01)
    after = language_attacks.score_tokens(small.decoder(), made, x)
    probability = answers.probabilities(after.logprobs, after.answer).mean()
    assert probability > language.mean_probability(other, "forget")


def test_requests_without_a_topic_are_compared_with_all_test_texts():
    sets = small.sets(ju.data.forget_indices((0, 1, 5, 9)))
    evidence = observe(seen()[0].variables, sets)
    assert evidence.held_out == "test_retain"
    assert 0 <= language.membership_auc(evidence, "min_k") <= 1
