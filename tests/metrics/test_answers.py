"""Scores of answers against values worked out by hand."""

import zlib

import numpy as np
import pytest
from scipy.stats import ks_2samp

from jaxunlearn.metrics import answers
from jaxunlearn.metrics.attacks import rank_attack

HALF, QUARTER = np.log(0.5), np.log(0.25)
# the second answer has two tokens, the third none
ANSWER = np.array([[0, 1, 1, 1, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
LOGPROBS = np.array([[9.0, HALF, QUARTER, HALF, QUARTER], [9.0, 9.0, 0.0, QUARTER, 9.0], [9.0] * 5])


def near(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_probability_is_a_geometric_mean_over_the_answer():
    near(answers.probabilities(LOGPROBS, ANSWER), [8**-0.5, 0.5, np.nan])


def test_memorisation_counts_tokens_and_extraction_the_end():
    greedy = np.array([[0, 1, 0, 1, 1], [0, 1, 1, 1, 0], [1] * 5], bool)
    near(answers.exact_memorisation(greedy, ANSWER), [0.75, 1, np.nan])
    near(answers.extraction_strength(greedy, ANSWER), [0.5, 1, np.nan])
    # where no token follows: 0, which a public code takes for one token
    last = np.array([[1, 1, 1, 1, 0], [0, 0, 1, 0, 1]], bool)
    near(answers.extraction_strength(last, ANSWER[:2]), [0, 0])


def test_truth_ratio_is_wrong_by_right():
    right = np.array([-np.log(0.8), -np.log(0.1), 1.0])
    wrong = -np.log([[0.1, 0.4], [0.2, np.nan], [np.nan, np.nan]])
    near(answers.truth_ratios(right, wrong), [0.25, 2, np.nan])
    near(answers.truth_ratios(right, wrong, "arithmetic"), [0.25 / 0.8, 2, np.nan])
    near(answers.closeness_to_one([0.25, 2.0, 0.0]), [0.25, 0.5, 0])
    with pytest.raises(ValueError, match="mean: expected 'geometric'"):
        answers.truth_ratios(right, wrong, "harmonic")
    with pytest.raises(ValueError, match=r"expected \[N\] and \[N, P\]"):
        answers.truth_ratios(right, wrong[:2])


def test_forget_quality_is_a_p_value_and_never_none():
    one, other = np.arange(10.0), np.arange(10.0) + 3
    near(answers.forget_quality(one, one), 1)
    near(answers.forget_quality(one, other), ks_2samp(one, other).pvalue)
    # disjoint samples of n: 2 / binomial(2 n, n)
    near(answers.forget_quality(one[:4], one[:4] + 10), 2 / 70)
    for missing in (None, [], [np.nan]):
        with pytest.raises(ValueError, match="retrained: expected finite truth ratios"):
            answers.forget_quality(one, missing)


def test_utility_and_options():
    near(answers.model_utility([0.5, 0.25, 1.0]), 3 / 7)
    assert answers.model_utility([0.5, 0.0]) == 0
    for wrong in ([], [np.nan, 1], [-1, 1]):
        with pytest.raises(ValueError, match="values: expected"):
            answers.model_utility(wrong)
    near(answers.among_options([0.3, 0.2, 0.0], [[0.1, 0.2], [0.2, np.nan], [0, 0]]), [0.5, 0.5, 0])


def test_membership_scores():
    near(answers.lowest_mean(LOGPROBS, ANSWER, 0.2)[:2], [QUARTER, QUARTER])
    near(answers.lowest_mean(LOGPROBS, ANSWER, 0.75)[:2], [(2 * QUARTER + HALF) / 3, QUARTER])
    assert np.isnan(answers.lowest_mean(LOGPROBS, ANSWER)[2])
    texts = ["a b c", "ddd", ""]
    sizes = [len(zlib.compress(t.encode())) for t in texts]
    near(answers.zlib_scores(LOGPROBS, ANSWER, texts)[:2], [1.5 * HALF / sizes[0], HALF / sizes[1]])
    near(answers.standardised([[-1.0, -2.0]], [[-2.0, -2.0]], [[0.5, 0.0]]), [[2, 0]])


def test_leaks_have_the_sign_of_muse():
    members, others = np.array([3.0, 4.0]), np.array([1.0, 2.0])
    auc = rank_attack(members, others).auc
    near(answers.privacy_leak(auc, 0.5), -100)
    near(answers.privacy_leak(0.25, 0.5), 50)
    near(answers.privacy_leak(0.6, 0.6), 0)
    for wrong in (None, 1.0):
        with pytest.raises(ValueError, match="retrained: expected the AUC"):
            answers.privacy_leak(auc, wrong)


@pytest.mark.parametrize(
    ("prediction", "reference", "wanted"),
    [
        ("The cat sat", "the cat, sat!", 1),
        ("sat the cat", "the cat sat", 2 / 3),
        ("a b x c y d", "a b c d e", 0.8),
        ("Vásquez wrote it", "VÁSQUEZ wrote", 1),
        ("writes", "wrote", 0),
        ("", "a", 0),
        ("a", "...", 0),
        ("b a b", "b b a b b", 3 / 5),
    ],
)
def test_recall_of_the_longest_common_subsequence(prediction, reference, wanted):
    near(answers.rouge_recall(prediction, reference), wanted)


def test_phrases_stand_whole_in_any_case():
    text = "It was HSIAO Yun-Hwa's first book."
    assert answers.appears(text, ["hsiao yun-hwa"])
    assert answers.appears(text, ["nothing", "Book"])
    assert not answers.appears(text, ["boo", "siao"])
    assert not answers.appears(text, ["", "..."])


def test_recovery_is_one_where_all_is_known_again():
    clean = np.array([[-1.0, -2, -3]] * 4)
    corrupted = clean[:, [1, 0, 2]]
    unlearned = np.concatenate([clean[:3], corrupted[:1]])
    near(answers.recovery(clean, corrupted, clean), 1)
    near(answers.recovery(clean, corrupted, corrupted), 0)
    near(answers.recovery(clean, corrupted, unlearned), 0.75)
    near(answers.recovery(clean, corrupted, np.zeros((4, 3))), 1 / 3)
    with pytest.raises(ValueError, match="corrupted: expected fewer"):
        answers.recovery(clean, clean, unlearned)
    with pytest.raises(ValueError, match="scores: expected finite numbers"):
        answers.recovery(clean * np.nan, corrupted, unlearned)
