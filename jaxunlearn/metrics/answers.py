"""Scores of a language model's answers, as functions of arrays and texts.

Legend: ``N`` answers, ``T`` tokens of a text, ``P`` wrong answers to a question. Arrays ``[N, T]``
hold a value for each token, read where ``answer``, ``bool [N, T]``, is true. An answer has ``n``
tokens, the one that ends it included; ``nll`` is minus the sum of their log-probabilities.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np

MIN_K = 0.2
"""Share of an answer's tokens, the least likely ones, that the attacks min-k and min-k++ read."""


def mean_over(values: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Averages a value over the tokens of each answer, ``[N]``; NaN where there are none."""
    values, answer = np.asarray(values, np.float64), np.asarray(answer, bool)
    count = answer.sum(-1)
    total = np.where(answer, values, 0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def probabilities(logprobs: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Computes ``exp(-nll / n)``, the geometric mean of the tokens' probabilities, ``[N]``.

    Of the answer after the question, each token after the right ones before it. Ideal on what was
    forgotten: as retrained; NaN where there is no answer.

    Source: Maini et al., TOFU, arXiv 2401.06121.
    """
    return np.exp(mean_over(logprobs, answer))


def exact_memorisation(greedy: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Computes the share of an answer's tokens that are the likeliest in their place, ``[N]``.

    ``1/n sum_t [argmax p(. | x_<t) = x_t]``: 1 is an answer known by heart. Ideal: as retrained.

    Args:
      greedy: ``bool [N, T]``, where the likeliest token is the text's.

    Source: Tirumala et al., NeurIPS 2022, as open-unlearning uses it.
    """
    return mean_over(greedy, answer)


def extraction_strength(greedy: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Computes how much of an answer need not be told for the rest of it to be given, ``[N]``.

    ``1 - k / n``, ``k`` the fewest first tokens that must be given so that greedy generation goes
    on with all others: 1 after the question alone, 0 where not even the last token follows. Greedy
    generation gives the rest exactly where each of its tokens is the likeliest after the right
    ones before it, so that nothing is generated. Ideal: as retrained.

    A public code never finds 0: where no token follows it says ``1 / n``.

    Args:
      greedy: see :func:`exact_memorisation`.

    Source: Carlini et al. 2021, as open-unlearning uses it.
    """
    greedy, answer = np.asarray(greedy, bool), np.asarray(answer, bool)
    # right from here on to the end
    onward = np.logical_and.accumulate((greedy | ~answer)[..., ::-1], axis=-1)[..., ::-1]
    return mean_over(onward, answer)


def truth_ratios(right: np.ndarray, wrong: np.ndarray, mean: str = "geometric") -> np.ndarray:
    """Computes ``R = mean over wrong answers of p(wrong) / p(right)``, ``[N]``.

    ``p = exp(-nll / n)``. ``R`` near 0: the right answer is known, near 1: it is no likelier than
    wrong ones in its form, above 1: wrong ones are preferred. The right answer is the
    paraphrased one, which training did not see; the given one where there is no other.

    Args:
      right: ``nll / n``, ``[N]``.
      wrong: ``[N, P]``; NaN where there are fewer than ``P``.
      mean: ``"geometric"``, ``exp(-mean nll / n)``, as the codes of TOFU and open-unlearning
        compute it, from which published numbers are; ``"arithmetic"``, as TOFU's text has it.

    Returns:
      ``R``; NaN where there is no wrong answer.
    """
    if mean not in ("geometric", "arithmetic"):
        raise ValueError(f"mean: expected 'geometric' or 'arithmetic', got {mean!r}")
    right, wrong = np.asarray(right, np.float64), np.asarray(wrong, np.float64)
    if wrong.shape[:1] != right.shape or wrong.ndim != 2:
        raise ValueError(f"right, wrong: expected [N] and [N, P], got {right.shape}, {wrong.shape}")
    there = ~np.isnan(wrong)
    if mean == "geometric":
        return np.exp(right - mean_over(wrong, there))
    return mean_over(np.exp(-wrong), there) / np.exp(-right)


def closeness_to_one(ratios: np.ndarray) -> np.ndarray:
    """Computes ``min(R, 1 / R)`` of truth ratios, ``[N]``: 1 where right and wrong are alike."""
    r = np.asarray(ratios, np.float64)
    with np.errstate(divide="ignore"):
        return np.minimum(r, 1 / r)


def forget_quality(unlearned: np.ndarray | None, retrained: np.ndarray | None) -> float:
    """Computes TOFU's forget quality, the p-value that truth ratios are distributed as retrained.

    Of the two-sample test of Kolmogorov and Smirnov on the forget set's truth ratios: 1 where the
    two models cannot be told apart, near 0 where they can; above .05 is commonly called good.

    Args:
      unlearned, retrained: ``R [N]``, see :func:`truth_ratios`; ``min(R, 1 / R)`` would be another
        test.

    Raises:
      ValueError: no truth ratios of a retrained model: without one there is no quality, where
        public codes write ``None`` and go on.
    """
    from scipy.stats import ks_2samp

    sides = {}
    for name, given in (("unlearned", unlearned), ("retrained", retrained)):
        found = np.asarray([] if given is None else given, np.float64).ravel()
        if not found.size or not np.isfinite(found).all():
            raise ValueError(
                f"{name}: expected finite truth ratios of the forget set under the {name} model, "
                f"got {'none' if not found.size else 'others'}"
            )
        sides[name] = found
    return float(ks_2samp(sides["unlearned"], sides["retrained"]).pvalue)


def among_options(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Computes ``p(right) / (p(right) + sum of p(wrong))``, ``[N]``.

    TOFU's probability on general knowledge, where wrong answers are options of the question.

    Args:
      right: ``p [N]``.
      wrong: ``p [N, P]``, NaN where there are fewer than ``P``.
    """
    right, wrong = np.asarray(right, np.float64), np.asarray(wrong, np.float64)
    total = right + np.nansum(wrong, axis=-1)
    return right / np.where(total > 0, total, 1)


def model_utility(values: Sequence[float]) -> float:
    """Computes the harmonic mean; 0 where a value is. High is good.

    TOFU's utility is that of nine: probability, ROUGE-L recall and ``max(0, 1 - R)``, on the
    retain set, on real authors and on world facts.
    """
    found = np.asarray(values, np.float64)
    if not found.size or np.isnan(found).any() or (found < 0).any():
        raise ValueError("values: expected numbers from 0 on, got none or others")
    return float(len(found) / np.sum(1 / found)) if (found > 0).all() else 0.0


# Membership: each score is large where a text is known, for attacks.rank_attack


def zlib_scores(logprobs: np.ndarray, answer: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Computes ``-(nll / n) / z``, ``z`` the bytes that zlib makes of an answer's text, ``[N]``.

    Source: Carlini et al. 2021, "Extracting training data from large language models"; the mean
    instead of the sum as in open-unlearning.
    """
    sizes = np.array([len(zlib.compress(text.encode("utf-8"))) for text in texts])
    return mean_over(logprobs, answer) / sizes


def lowest_mean(values: np.ndarray, answer: np.ndarray, share: float = MIN_K) -> np.ndarray:
    """Averages the lowest ``share`` of each answer's values, ``max(1, floor(share n))``, ``[N]``.

    Of log-probabilities that is the attack min-k (Shi et al., arXiv 2310.16789), of
    :func:`standardised` ones min-k++ (Zhang et al., arXiv 2404.02936).
    """
    values, answer = np.asarray(values, np.float64), np.asarray(answer, bool)
    count = answer.sum(-1, keepdims=True)
    ranked = np.sort(np.where(answer, values, np.inf), axis=-1)
    # rounded up where a product of floats lies below its whole number
    most = np.maximum(np.floor(share * count + 1e-9), 1)
    return mean_over(ranked, (np.arange(answer.shape[-1]) < most) & (count > 0))


def standardised(logprobs: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Computes ``(log p(x_t) - mu_t) / sigma_t``, ``[N, T]``.

    Args:
      mean, deviation: ``mu_t`` and ``sigma_t`` of ``log p(z)`` for tokens ``z`` drawn from
        ``p(. | x_<t)``; deviations below .001 count as that.
    """
    return (np.asarray(logprobs) - np.asarray(mean)) / np.maximum(deviation, 1e-3)


def privacy_leak(auc: float, retrained: float | None) -> float:
    """Computes PrivLeak of MUSE in percent; 0 is ideal.

    ``100 ((1 - AUC_u) - (1 - AUC_r)) / (1 - AUC_r)``, where AUC is the probability that a forgotten
    text scores higher, as better known, than a held-out one (MUSE's own AUC is the other way
    round). Near -100: forgotten texts are still told from others; above 0: they are *less* likely
    than after retraining.

    Args:
      auc: of the unlearned model, min-k commonly.
      retrained: of the retrained one.

    Raises:
      ValueError: no retrained model's AUC, for which a public code takes .5; or one of 1.

    Source: Shi et al., MUSE, arXiv 2407.06460.
    """
    if retrained is None or not 0 <= retrained < 1:
        raise ValueError(f"retrained: expected the AUC of a retrained model, got {retrained}")
    return 100 * (retrained - auc) / (1 - retrained)


# Texts


def words_in(text: str) -> list[str]:
    """Returns the runs of letters and digits of a text, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def rouge_recall(prediction: str, reference: str) -> float:
    """Computes the recall of ROUGE-L: the longest common subsequence by the reference's length.

    Both count words, :func:`words_in`: case and punctuation do not matter, letters of all scripts
    do. Words are not stemmed: ``wrote`` and ``writes`` differ, as they do in the package
    rouge_score by default, while TOFU's evaluation takes word stems, so that its values may lie a
    little higher. 1: all words of the reference in its order, whatever stands between; 0 for a
    reference without words.

    Source: Lin 2004.
    """
    ours, theirs = words_in(prediction), words_in(reference)
    row = [0] * (len(theirs) + 1)
    for word in ours:
        diagonal = 0
        for place, other in enumerate(theirs, 1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1] / len(theirs) if theirs else 0.0


def appears(text: str, phrases: Sequence[str]) -> bool:
    """Tells whether any of some words or phrases stands in a text, whole and in any case."""
    within = f" {' '.join(words_in(text))} "
    wanted = [" ".join(words_in(phrase)) for phrase in phrases]
    return any(f" {phrase} " in within for phrase in wanted if phrase)


# What is known again


def option_accuracy(scores: np.ndarray) -> float:
    """Computes how often the correct option is the likeliest.

    Args:
      scores: ``-nll / n``, ``[N, K]``: of the correct answer to each question, of the one that was
        taught instead, of random others; a tie is divided among those that tie.
    """
    found = np.asarray(scores, np.float64)
    if found.ndim != 2 or found.shape[1] < 2 or not len(found) or not np.isfinite(found).all():
        raise ValueError(f"scores: expected finite numbers [N, K], K from 2 on, got {found.shape}")
    best = found == found.max(axis=1, keepdims=True)
    return float(np.mean(best[:, 0] / best.sum(axis=1)))


def recovery(clean: np.ndarray, corrupted: np.ndarray, unlearned: np.ndarray) -> float:
    """Computes how far a model knows again what it knew before false facts were taught.

    ``(a_u - a_c) / (a_clean - a_c)``, with :func:`option_accuracy` ``a`` on the facts that were
    corrupted: 1 is ideal (unlearning restored what was known), 0: nothing was restored; forgetting
    the false facts alone brings a model to chance.

    Args:
      clean, corrupted, unlearned: ``-nll / n`` of the options, ``[N, K]``, the correct one first,
        under the three models.

    Raises:
      ValueError: other shapes, or corruption took nothing away.

    Source: the quotient is ours; questions and options of Rezaei et al., RESTOR, arXiv 2411.00204.
    """
    whole, low, own = (option_accuracy(one) for one in (clean, corrupted, unlearned))
    if whole <= low:
        raise ValueError(
            f"corrupted: expected fewer correct answers than the clean model's, {whole:.3f}, "
            f"got {low:.3f}"
        )
    return (own - low) / (whole - low)
