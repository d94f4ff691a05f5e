"""Metrics of language models: one row each.

Attacks compare forgotten texts with test texts on the same topics, of requests that name no topic
with all test texts. These are commonly paraphrases, which differ from what was trained on: the
value of a retrained model is the ideal, not .5.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxunlearn.metrics import answers, exposure
from jaxunlearn.metrics.agreement import depth_score
from jaxunlearn.metrics.attacks import rank_attack
from jaxunlearn.metrics.language_attacks import rounded, score_tokens
from jaxunlearn.metrics.language_evidence import GENERAL, LanguageEvidence
from jaxunlearn.metrics.registry import Metric, Missing, others
from jaxunlearn.metrics.relearning import relearn_steps

RELEARNED = 0.95
"""Share of the original's probability at which answers count as known again."""


# Forgetting and utility


def probability(evidence: LanguageEvidence, part: str, variant: str = "") -> np.ndarray:
    """Computes ``exp(-nll / n)`` of each answer that is there; see ``answers.probabilities``."""
    found = np.exp(-evidence.losses(part, variant))
    return found[~np.isnan(found)]


def mean_probability(evidence: LanguageEvidence, part: str, variant: str = "") -> float:
    """Averages :func:`probability` over a set's answers."""
    return float(np.mean(probability(evidence, part, variant)))


def rouge(evidence: LanguageEvidence, part: str) -> np.ndarray:
    """Computes ROUGE-L recall of greedy answers, ``[N]``; see ``answers.rouge_recall``."""
    made, right = evidence.generated(part), evidence.right_texts(part)
    return np.array([answers.rouge_recall(*pair) for pair in zip(made, right, strict=False)])


def mean_rouge(evidence: LanguageEvidence, part: str) -> float:
    """Averages :func:`rouge` over a set's answers."""
    return float(np.mean(rouge(evidence, part)))


def truth_closeness(evidence: LanguageEvidence) -> np.ndarray:
    """Computes ``min(R, 1 / R)`` of the forget set: 1, right and wrong answers are equally likely.

    Of examples that have wrong answers. See ``answers.truth_ratios``.
    """
    return answers.closeness_to_one(evidence.truth("forget"))


def true_share(evidence: LanguageEvidence, part: str) -> float:
    """Computes the mean of ``max(0, 1 - R)``: 1, right answers are far likelier than wrong ones."""
    return float(np.mean(np.maximum(0, 1 - evidence.truth(part))))


def forget_quality(evidence: LanguageEvidence, retrained: Sequence[LanguageEvidence]) -> float:
    """Averages TOFU's forget quality over the other retrained models; ``answers.forget_quality``.

    A logarithm, as papers often show it, is the reader's.
    """
    own = evidence.truth("forget")
    rest = others(evidence, retrained)
    return float(np.mean([answers.forget_quality(own, one.truth("forget")) for one in rest]))


def memorised(evidence: LanguageEvidence, function: str) -> np.ndarray:
    """Computes exact memorisation or extraction strength of each forgotten answer, ``[N]``."""
    found = evidence.scores("forget")
    compute: Callable[..., np.ndarray] = getattr(answers, function)
    return compute(found.greedy, found.answer)


def appearance(evidence: LanguageEvidence, part: str) -> float:
    """Computes the share of greedy answers in which a concept word stands, 0 is ideal.

    Words are those of the request, or of the name of the example's topic; whole, in any case. A
    question that holds the name invites it: the retrained model's value tells how often.
    """
    pairs = zip(evidence.generated(part), evidence.concepts(part), strict=False)
    return float(np.mean([answers.appears(text, words) for text, words in pairs]))


def _three(evidence: LanguageEvidence, part: str) -> list[float]:
    """Returns probability, ROUGE-L recall and truth of a set, as TOFU's utility takes them."""
    if part in GENERAL:
        given, _, wrong = evidence.options(part)
        likely = float(np.mean(answers.among_options(np.exp(-given), np.exp(-wrong))))
    else:
        likely = mean_probability(evidence, part)
    return [likely, mean_rouge(evidence, part), true_share(evidence, part)]


def utility(evidence: LanguageEvidence, parts: Sequence[str]) -> float:
    """Computes the harmonic mean of probability, ROUGE-L recall and truth over some sets.

    Probability is that among the options on general knowledge. A set that is not there leaves the
    row out: a mean over fewer would be another number of the same name.
    """
    return answers.model_utility([one for part in parts for one in _three(evidence, part)])


# Privacy


def membership_auc(evidence: LanguageEvidence, score: str) -> float:
    """Computes the AUC of a score, forgotten against held-out texts; near 1: training shows."""
    members, held_out = (_SCORES[score](evidence, name) for name in ("forget", evidence.held_out))
    return rank_attack(members, held_out).auc


def reference_auc(evidence: LanguageEvidence, retrained: Sequence[LanguageEvidence]) -> float:
    """Computes the AUC of ``log p - log p_r``, means over tokens, ``p_r`` of retrained models.

    What is hard for every model is then told from what was not trained on. Source: Carlini et al.
    2021.
    """
    rest = others(evidence, retrained)
    members, held_out = (
        np.mean([one.losses(name) for one in rest], axis=0) - evidence.losses(name)
        for name in ("forget", evidence.held_out)
    )
    return rank_attack(members, held_out).auc


def privacy_leak(evidence: LanguageEvidence, retrained: Sequence[LanguageEvidence]) -> float:
    """Computes PrivLeak of min-k against the retrained models' mean AUC, in percent."""
    rest = [membership_auc(one, "min_k") for one in others(evidence, retrained)]
    return answers.privacy_leak(membership_auc(evidence, "min_k"), float(np.mean(rest)))


def _zlib(evidence: LanguageEvidence, part: str) -> np.ndarray:
    found = evidence.scores(part)
    return answers.zlib_scores(found.logprobs, found.answer, evidence.right_texts(part))


def _min_k(evidence: LanguageEvidence, part: str) -> np.ndarray:
    found = evidence.scores(part)
    return answers.lowest_mean(found.logprobs, found.answer)


def _min_k_plus(evidence: LanguageEvidence, part: str) -> np.ndarray:
    found = evidence.scores(part)
    values = answers.standardised(found.logprobs, found.means, found.deviations)
    return answers.lowest_mean(values, found.answer)


_SCORES: dict[str, Callable[[LanguageEvidence, str], np.ndarray]] = {
    "loss": lambda evidence, part: -evidence.losses(part),
    "zlib": _zlib,
    "min_k": _min_k,
    "min_k_plus": _min_k_plus,
}


# What is left inside


def rounded_probability(evidence: LanguageEvidence, bits: int) -> float:
    """Computes the mean probability of forgotten answers after kernels are rounded to ``bits``."""
    if bits not in evidence.settings.bits:
        raise Missing(f"{bits} bits")
    evidence.scores("forget")
    found = score_tokens(
        evidence.model, rounded(evidence.variables, bits), evidence.texts("forget")
    )
    return float(np.mean(answers.probabilities(found.logprobs, found.answer)))


def learned_probability(evidence: LanguageEvidence, unrelated: bool) -> float:
    """Computes the mean probability of forgotten answers after learning again.

    On a few of them, of which the others are judged; or on unrelated texts.
    """
    return float(np.mean(evidence.learned(unrelated)[2]))


def steps_to_relearn(evidence: LanguageEvidence, original: LanguageEvidence) -> int:
    """Counts the steps of learning again until a few forgotten answers are as likely as before.

    Until a batch's mean probability reaches .95 of the original's on these; the number of steps
    looked at where none does.
    """
    curve, few, _ = evidence.learned(False)
    target = RELEARNED * float(np.mean(probability(original, "forget")[few]))
    return relearn_steps(curve, target)


def depth(
    evidence: LanguageEvidence, original: LanguageEvidence, retrained: Sequence[LanguageEvidence]
) -> float:
    """Averages the unlearning depth score over forgotten answers; 1: as retrained, 0: intact.

    Of each answer with ``d_l`` of ``knowledge_drops``; see ``agreement.depth_score``. Answers whose
    words retraining does not take away at any block are left out.
    """
    theirs = np.mean([one.drops(original) for one in others(evidence, retrained)], axis=0)
    pairs = zip(theirs, evidence.drops(original), strict=True)
    found = np.array([depth_score(*pair) for pair in pairs])
    if np.isnan(found).all():
        raise Missing("an answer that retraining takes away")
    return float(np.nanmean(found))


def margin_divergence(
    members: Sequence[LanguageEvidence], retrained: Sequence[LanguageEvidence], part: str
) -> float:
    """Averages KLoM over a set's answers; see ``exposure.margin_divergence``.

    Tokens are judged after the right ones before them (teacher forcing). With few models most bins
    are empty on both sides: a few dozen are needed for values to mean much.
    """
    if min(len(members), len(retrained)) < 3:
        raise Missing("three models of each side")
    sides = []
    for side in (members, retrained):
        scores = [one.scores(part) for one in side]
        sides.append(np.stack([answers.mean_over(one.margins, one.answer) for one in scores]))
    return float(np.mean(exposure.margin_divergence(*sides)))


def _row(
    label: str, group: str, ideal: str, function: Callable[..., Any], needs: str = "scores",
    scope: str = "model", form: str = ".3f", **more: Any,
) -> Metric:  # fmt: skip
    return Metric(label, group, ideal, form, function, tuple(needs.split()), scope, **more)


_AS, partial = "as retrained", functools.partial
ROWS = {
    "probability_forget": _row(
        "probability of answers, forget", "forgetting", _AS, partial(probability, part="forget"),
        each=True,
    ),
    "probability_paraphrase": _row(
        "probability of paraphrases, forget", "forgetting", _AS,
        partial(mean_probability, part="forget", variant="paraphrase"),
    ),
    "rouge_forget": _row(
        "ROUGE-L recall, forget", "forgetting", _AS, partial(rouge, part="forget"), "generated",
        each=True,
    ),
    "truth_ratio_forget": _row(
        "truth ratio, closeness to 1, forget", "forgetting", _AS, truth_closeness, "truth",
        each=True,
    ),
    "forget_quality": _row(
        "forget quality (p of the KS test)", "forgetting", "large", forget_quality, "truth",
        "retrained", "#.2g",
    ),
    "exact_memorisation": _row(
        "exact memorisation, forget", "forgetting", _AS,
        partial(memorised, function="exact_memorisation"), each=True,
    ),
    "extraction_strength": _row(
        "extraction strength, forget", "forgetting", _AS,
        partial(memorised, function="extraction_strength"), each=True,
    ),
    "appearance_forget": _row(
        "concept words in greedy answers", "forgetting", "small",
        partial(appearance, part="forget"), "generated",
    ),
    "appearance_paraphrased": _row(
        "the same, paraphrased questions", "forgetting", "small",
        partial(appearance, part="test_forget"), "generated",
    ),
    "margins_forget": _row(
        "divergence of margins, forget", "forgetting", "small",
        partial(margin_divergence, part="forget"), scope="ensemble", short="KLoM",
    ),
    "utility": _row(
        "model utility (TOFU, of nine)", "utility", "large",
        partial(utility, parts=("retain", *GENERAL)), "generated truth",
    ),
    "utility_retain": _row(
        "utility on retained answers (of three)", "utility", "large",
        partial(utility, parts=("retain",)), "generated truth",
    ),
    "probability_retain": _row(
        "probability of answers, retain", "utility", _AS,
        partial(mean_probability, part="retain"),
    ),
    "probability_test_retain": _row(
        "probability of test answers, retain", "utility", _AS,
        partial(mean_probability, part="test_retain"),
    ),
    "rouge_retain": _row(
        "ROUGE-L recall, retain", "utility", _AS, partial(mean_rouge, part="retain"), "generated",
    ),
    "truth_retain": _row(
        "1 - truth ratio, retain", "utility", "large", partial(true_share, part="retain"), "truth",
    ),
    "margins_retain": _row(
        "divergence of margins, retain", "utility", "small",
        partial(margin_divergence, part="retain"), scope="ensemble",
    ),
    "attack_loss": _row(
        "attack by loss, AUC", "privacy", _AS, partial(membership_auc, score="loss"),
    ),
    "attack_zlib": _row(
        "attack by loss and zlib, AUC", "privacy", _AS, partial(membership_auc, score="zlib"),
    ),
    "attack_min_k": _row(
        "attack by min-k, AUC", "privacy", _AS, partial(membership_auc, score="min_k"),
    ),
    "attack_min_k_plus": _row(
        "attack by min-k++, AUC", "privacy", _AS, partial(membership_auc, score="min_k_plus"),
    ),
    "attack_reference": _row(
        "attack by loss beside retrained, AUC", "privacy", _AS, reference_auc, scope="retrained",
    ),
    "privacy_leak": _row(
        "PrivLeak of min-k, percent", "privacy", _AS, privacy_leak, scope="retrained", form=".1f",
        short="PrivLeak",
    ),
    **{
        f"probability_{bits}_bits": _row(
            f"probability, forget, weights of {bits} bits", "truth", _AS,
            partial(rounded_probability, bits=bits), "scores weights",
        )
        for bits in (8, 4, 3)
    },
    "probability_relearned": _row(
        "probability, forget, a few others relearned", "truth", _AS,
        partial(learned_probability, unrelated=False), "learned",
    ),
    "steps_to_relearn": _row(
        "steps to relearn a few answers", "truth", _AS, steps_to_relearn, "learned scores",
        "original", "d",
    ),
    "probability_finetuned": _row(
        "probability, forget, after other texts", "truth", _AS,
        partial(learned_probability, unrelated=True), "learned",
    ),
    "depth_of_answers": _row(
        "depth of unlearning", "truth", _AS, depth, "drops", "both", short="UDS",
    ),
}  # fmt: skip
"""The metrics of language models."""
