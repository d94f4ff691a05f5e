"""Worked values of the texts are what the functions compute, to the digits printed."""

import re
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxunlearn.engine.predict import Predictions
from jaxunlearn.gan import path_steps
from jaxunlearn.metrics import about, agreement, answers, attacks, distances, exposure
from jaxunlearn.metrics.classification import (
    Kept,
    correct_in_test,
    exact_zeros,
    js_of_means,
    js_to_retrained,
)
from jaxunlearn.metrics.comparison import relearning_ratio
from jaxunlearn.metrics.ensembles import epsilon
from jaxunlearn.metrics.generation import taken_away
from jaxunlearn.metrics.relearning import relearn_steps
from jaxunlearn.metrics.robustness import prune_weights, round_weights
from jaxunlearn.metrics.table import speedups
from tests.metrics.test_classification import Predicting

SURE = np.full((1, 10), 1e-6)
SURE[0, 3] = 1 - 9e-6
OTHER = np.roll(SURE, 1, axis=1)
EVEN = np.full((1, 10), 0.1)
FOUR = np.array([1.0, 2, 2, 3]), np.array([2.0, 2, 0])  # members, others
CURVE = np.array([0.2, 0.6, 0.96])
GREEDY = np.array([[True, False, True, True]]), np.ones((1, 4), bool)
GREY = jnp.array([0.0, 0.1, 0.3])[None, :, None]
SOFTMAX = np.array(
    [[0.46, 0.06, 0.12, 0.06, 0.30], [0.14, 0.04, 0.28, 0.22, 0.32], [0.02, 0.70, 0.22, 0.02, 0.04]]
)
LABELS = np.arange(3)
FALLS = np.array([0.01, 1.0, 3.0]), np.array([9.0, 0.5, 3.5])


def predicting(p, **more):
    """Evidence of a model that says this of the forget examples."""
    logits = np.log(np.maximum(np.asarray(p, np.float64), 1e-300))
    found = Predictions(logits, np.zeros(len(logits), int))
    return Predicting(predictions={"forget": found}, **more)


def of_js(p, q):
    return js_to_retrained(predicting(p), [predicting(q)])[0]


def of_means():
    a, b = (predicting([row]) for row in np.eye(2))
    return js_of_means([a, b], [b, a]), js_of_means([a, a], [a, b])


def named(right, count):
    """Predictions of two classes for ``count`` examples, so many of them right."""
    logits = np.tile([1.0, 0.0], (count, 1))
    return Predictions(logits, np.repeat([0, 1], (right, count - right)))


def of_all_accuracies():
    found = {"test_forget": named(3, 4), "test_retain": named(1, 2)}
    sizes = {n: SimpleNamespace(size=np.asarray(len(p.labels))) for n, p in found.items()}
    evidence = SimpleNamespace(predictions=found, sets=SimpleNamespace(**sizes))
    return correct_in_test(evidence).mean()


def of_losses(low):
    return attacks.loss_attack(np.linspace(0, 1, 100), np.linspace(low, low + 1, 100))


def of_judge():
    seen, unseen = (np.tile([p, 1 - p], (20, 1)) for p in (0.98, 0.70))
    return attacks.fit_judge(seen, unseen)(np.concatenate([seen, unseen]))


def normal_auc():
    quantiles = norm.ppf((np.arange(4000) + 0.5) / 4000)
    return attacks.rank_attack(1 + 2 * quantiles, quantiles).auc


def of_tpr(rate):
    return attacks.rank_attack(np.arange(15, 25), np.arange(1, 21), (rate,)).tpr[rate]


def of_svc():
    """Retained images right, 6 of 10 test images, 7 of 10 forgotten ones."""
    p = np.array([0.9, 0.1])
    sides = []
    for right, count in ((100, 100), (60, 100), (7, 10)):
        y = np.repeat([0, 1], (right, count - right))
        sides.append((np.tile(p, (count, 1)), y))
    return attacks.vector_attack(*sides, feature="correctness")


def of_entropy():
    sure, even = np.tile([0.999, 0.001], (50, 1)), np.full((50, 2), 0.5)
    return attacks.entropy_attack(sure, even, np.concatenate([sure[:7], even[:3]]))


def complete(margin):
    unseen = np.array([[-1.0], [0.0], [1.0]])
    return agreement.completeness(np.array([20.0]), np.array([margin]), unseen)[0]


def epsilon_of(ours, theirs):
    """Four models a side, of which so many answer yes."""
    sides = ([Kept({"forget": np.array([float(n < yes)])}, {}) for n in range(4)]
             for yes in (ours, theirs))  # fmt: skip
    return epsilon(*sides)[0]


def lira():
    rng = np.random.default_rng(0)
    return np.mean(exposure.unlearning_lira(*(rng.normal(m, 1, (2000, 60)) for m in (1, 0))))


def ratio(phi):
    sides = np.array([[0.0], [1.0], [2.0]]), np.array([[4.0], [5.0], [6.0]])
    return exposure.density_ratio(np.array([phi]), *sides)[0]


def ratio_of_steps():
    def relearning(steps):
        curve = np.where(np.arange(100) >= steps, 1.0, 0.0)
        return predicting([[1.0, 0.0]], relearning=curve, sets=SimpleNamespace(forget=None))

    return relearning_ratio(relearning(4), relearning(0), [relearning(9)])


def zeros():
    own, before = np.ones(12), np.ones(12)
    own[:3] = 0
    return exact_zeros(SimpleNamespace(weights={"w": own}), SimpleNamespace(weights={"w": before}))


def progress(u):
    return agreement.progress_to_retrained([[0.0, 0.0]], [u], [[2.0, 0.0]])[0]


POINTS = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
TURNED = 3 * POINTS @ np.array([[0.6, 0.8], [-0.8, 0.6]])


def rounded():
    made = round_weights({"params": {"kernel": jnp.array([[1.0], [0.4], [-0.2]])}}, 3)
    return np.asarray(made["params"]["kernel"])[:, 0]


def pruned():
    made = prune_weights({"params": {"kernel": jnp.arange(1.0, 11.0)[:, None]}}, 0.3)
    return np.flatnonzero(np.asarray(made["params"]["kernel"])[:, 0]) + 1


def klom(exchanged=False):
    sides = [np.repeat([0.0, 1.0], n)[:, None] for n in ((5, 5), (9, 1))]
    return exposure.margin_divergence(*sides[:: -1 if exchanged else 1])[0]


def near(which):
    real, generated = np.array([[0.0], [1], [2], [3]]), np.array([[0.5], [1.5], [10], [11]])
    return getattr(distances.neighbour_scores(real, generated, 1), which)


def shown(share):
    marks = np.arange(100) < round(100 * share)
    return SimpleNamespace(of_class=True, shows_forgotten=marks)


def features(*values):
    return np.array(values, np.float32)[:, None]


U, R = {"forget": 0.1, "retain": 0.9, "test": 0.8}, {"forget": 0.3, "retain": 1, "test": 0.9}
COSTS = {"seconds": 10.0, "compile_seconds": 5.0}, {"seconds": 2.0, "compile_seconds": 5.0}
WRONG = np.log([0.8]) * -1, -np.log([[0.1, 0.4]])
TRUTH = answers.truth_ratios(*WRONG)
TOKENS = np.log([[0.5, 0.25]]), np.ones((1, 2), bool)


def gap(ours, theirs):
    return agreement.average_gap({"FA": ours}, {"FA": theirs})


# by metric: what the text prints, and what is computed
VALUES = {
    "accuracy_forget": {
        ".948": lambda: 1 - 0.0524, ".994": lambda: 1 - 0.0063, ".046": lambda: gap(0.9937, 0.9476)
    },
    "js_to_retrained": {
        ".526": lambda: of_js(SURE, EVEN), ".693": lambda: of_js(SURE, OTHER),
        ".758": lambda: agreement.divergence(SURE, EVEN)[0],
    },
    "js_of_means": {"0.000": lambda: of_means()[0], ".216": lambda: of_means()[1]},
    "zero_retrain_forgetting": {
        ".242": lambda: agreement.zero_retrain_forgetting(SURE, EVEN)[0],
        ".742": lambda: agreement.zero_retrain_forgetting(SURE, EVEN, variant="compatible")[0],
    },
    "activation_distance": {
        ".949": lambda: agreement.activation_distance(SURE, EVEN)[0],
        "1.414": lambda: agreement.activation_distance(SURE, OTHER)[0],
    },
    "same_class_forget": {
        ".333": lambda: agreement.same_class(np.eye(3), np.eye(3)[[0, 2, 1]]).mean()
    },
    "accuracy_test": {".667": of_all_accuracies, ".625": lambda: (3 / 4 + 1 / 2) / 2},
    "loss_attack": {"1.000": lambda: of_losses(2)},
    "attack_gap": {".060": lambda: abs(0.5 - 0.44)},
    "judged_unseen": {".500": of_judge},
    "auc_loss": {
        ".667": lambda: attacks.rank_attack(*FOUR).auc, ".673": normal_auc,
        ".55": lambda: attacks.modified_entropies(SOFTMAX, LABELS)[0],
        "3.38": lambda: attacks.modified_entropies(SOFTMAX, LABELS)[1],
        "2.03": lambda: attacks.modified_entropies(SOFTMAX, LABELS)[2],
        "5.5": lambda: attacks.modified_entropies(SOFTMAX, LABELS, variant="compatible")[0],
        "6.4": lambda: attacks.modified_entropies(SOFTMAX, LABELS, variant="compatible")[1],
        "5.3": lambda: attacks.modified_entropies(SOFTMAX, LABELS, variant="compatible")[2],
    },
    "tpr_1": {".500": lambda: of_tpr(0.05), ".400": lambda: of_tpr(0.01)},
    "unseen_by_correctness": {".300": of_svc},
    "seen_by_entropy": {".700": of_entropy},
    "completeness": {
        ".998": lambda: complete(0.0), ".740": lambda: complete(10.0),
        ".034": lambda: complete(20.0),
    },
    "lira": {".69": lira},
    "lira_95": {
        ".900": lambda: np.percentile([0.5] * 19 + [0.9] * 2, 95),
        ".538": lambda: np.mean([0.5] * 19 + [0.9] * 2),
    },
    "efficacy_vulnerable": {".978": lambda: ratio(1.5), ".500": lambda: ratio(3.0)},
    "epsilon": {"1.0986": lambda: epsilon_of(3, 1), "1.3863": lambda: epsilon_of(4, 0)},
    "forgetting_quality": {
        ".550": lambda: exposure.challenge_score(np.array([0, 0.49, 0.5, 1.2, np.inf])),
        ".545": lambda: exposure.challenge_score(np.array([0, 0.49, 0.5, 1.2, np.inf]), 0.9, 1.1),
    },
    "relearn_steps": {"2": lambda: relearn_steps(CURVE, 0.95)},
    "relearning": {".587": CURVE.mean},
    "relearning_ratio": {".500": ratio_of_steps},
    "exact_zeros": {".25": zeros},
    "tug_of_war": {".648": lambda: agreement.tug_of_war(U, R)},
    "average_gap": {
        ".100": lambda: agreement.average_gap(U | {"attack": 0.5}, R | {"attack": 0.5})
    },
    "adaptive_score": {
        ".818": lambda: agreement.adaptive_score({"test": 0.9}, U),
        ".529": lambda: agreement.adaptive_score({"test": 0.9}, U, items=True),
    },
    "normalised_score": {".800": lambda: agreement.normalised_score(0.8, 0.4)},
    "weight_distance": {
        ".901": lambda: agreement.weight_distances(
            {"w": np.array([3.0, 4, 2])}, {"w": np.array([0.0, 4, 0])}
        )[""]
    },
    "progress_forget": {".500": lambda: progress([1.0, 5.0]), ".000": lambda: progress([0.0, 3.0])},
    "alignment": {
        ".707": lambda: agreement.alignment(POINTS, POINTS[:, :1]),
        "1.000": lambda: agreement.alignment(POINTS, TURNED),
    },
    "depth": {".875": lambda: agreement.depth_score(*FALLS)},
    "depth_of_answers": {".875": lambda: agreement.depth_score(*FALLS)},
    "after_rounding_3": {
        "1.000": lambda: rounded()[0], ".333": lambda: rounded()[1], "-.333": lambda: rounded()[2]
    },
    "after_pruning_30": {"7": lambda: len(pruned()), "4": lambda: pruned()[0]},
    "klom_forget": {".511": klom, ".368": lambda: klom(exchanged=True)},
    "margins_forget": {".511": klom},
    "pul": {"80.0": lambda: taken_away(shown(0.02), shown(0.10))},
    "inversion_forget": {".0100": lambda: np.mean(np.square(np.full(9, 0.1)))},
    "fid": {
        "4.00": lambda: distances.frechet_distance(features(-1, 1), features(1, 3)),
        "2.00": lambda: distances.frechet_distance(features(-1, 1), features(-2, 2)),
    },
    "kid": {"7.000": lambda: distances.kernel_distance(features(0, 0), features(1, 1))},
    "classifier_score": {
        "2.00": lambda: distances.classifier_score(np.array([[40.0, 0], [0, 40]], np.float32)),
        "1.00": lambda: distances.classifier_score(np.array([[40.0, 0], [40, 0]], np.float32)),
    },
    "precision": {".500": lambda: near("precision")},
    "recall": {".750": lambda: near("recall")},
    "density": {"1.000": lambda: near("density")},
    "coverage": {".750": lambda: near("coverage")},
    "membership_auc": {".667": lambda: distances.auc(*FOUR)},
    "path_length": {".30": lambda: path_steps(GREY).sum()},
    "largest_step": {"1.33": lambda: path_steps(GREY).max() / path_steps(GREY).mean()},
    "probability_forget": {".354": lambda: answers.probabilities(*TOKENS)[0]},
    "rouge_forget": {
        ".667": lambda: answers.rouge_recall("The cat sat on the mat", "the cat lay on a mat")
    },
    "truth_ratio_forget": {
        ".250": lambda: answers.closeness_to_one(TRUTH)[0],
        ".500": lambda: answers.closeness_to_one(np.array([2.0]))[0],
    },
    "truth_retain": {".750": lambda: np.maximum(0, 1 - TRUTH)[0]},
    "forget_quality": {
        ".029": lambda: answers.forget_quality(np.arange(4.0), np.arange(4.0, 8))
    },
    "exact_memorisation": {".750": lambda: answers.exact_memorisation(*GREEDY)[0]},
    "extraction_strength": {".500": lambda: answers.extraction_strength(*GREEDY)[0]},
    "utility": {
        ".476": lambda: answers.model_utility([0.9] * 8 + [0.1]),
        ".491": lambda: answers.model_utility([0.9, 0.6, 0.3]),
    },
    "attack_loss": {
        ".667": lambda: attacks.rank_attack(*FOUR).auc,
        "-5.0": lambda: answers.lowest_mean(-np.arange(1.0, 6)[None], np.ones((1, 5), bool))[0],
    },
    "privacy_leak": {"-80.0": lambda: answers.privacy_leak(0.9, 0.5)},
    "speedup": {
        "5.0": lambda: speedups(*COSTS)["speedup"],
        "2.1": lambda: speedups(*COSTS)["speedup_with_compile"],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_a_worked_value(name):
    example = about.text_of(name).example
    for printed, compute in VALUES[name].items():
        assert re.search(rf"(?<![\d.]){re.escape(printed)}(?!\d)", example), printed
        digits = len(printed.partition(".")[2])
        assert f"{float(compute()):.{digits}f}" == f"{float(printed):.{digits}f}", printed


def test_the_arithmetic_truth_ratio_of_the_text():
    assert answers.truth_ratios(*WRONG, mean="arithmetic")[0] == pytest.approx(0.3125)
    assert ".3125" in about.text_of("truth_ratio_forget").misleads
