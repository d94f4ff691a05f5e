"""Rows of attacks on single classifiers: can forgotten examples be told from unseen ones?

For a request by class the forget images are compared with test images of the same classes, else
with test images of all: an attack must not see the class.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxunlearn.engine.predict import Predictions
from jaxunlearn.metrics import attacks
from jaxunlearn.metrics.classification import ClassifierEvidence, unseen
from jaxunlearn.metrics.registry import Metric, Missing

SCORES: dict[str, Callable[[Predictions], np.ndarray]] = {
    "loss": lambda found: -found.losses,
    "confidence": lambda found: attacks.confidences(found.softmax, found.labels),
    "entropy": lambda found: -attacks.entropies(found.softmax),
    "modified_entropy": lambda found: -attacks.modified_entropies(found.softmax, found.labels),
}
"""Numbers that are larger where an example is known."""

RATES = {"0.1": 0.001, "1": 0.01, "5": 0.05}
"""False positive rates, by the percentage in the name of the row."""


def auc(evidence: ClassifierEvidence, score: str) -> float:
    """Computes the AUC of one of :data:`SCORES`, forget against unseen examples.

    The probability that a forget example has the larger number; .5: nothing is told. Far below
    .5, forgotten examples are told by being predicted *worse* than unseen ones.
    """
    return _rank(evidence, score).auc


def true_positives(evidence: ClassifierEvidence, percent: str) -> float:
    """Computes the share of forget examples that the threshold on the loss finds.

    At a false positive rate of :data:`RATES`; ideal: that rate. Averages hide the few examples that
    are told for sure, which this shows.
    """
    return _rank(evidence, "loss").tpr[RATES[percent]]


def _rank(evidence: ClassifierEvidence, score: str) -> attacks.Roc:
    number = SCORES[score]
    forget, others = evidence.predictions["forget"], unseen(evidence)
    return attacks.rank_attack(number(forget), number(others), tuple(RATES.values()))


def vector_attack(evidence: ClassifierEvidence, feature: str) -> float:
    """Computes the share of forget examples that a support vector machine judges unseen.

    It learns from retained training and test examples; see ``attacks.vector_attack``. As large as
    a retrained model's is ideal, larger is over-forgetting.
    """
    sides = (evidence.predictions["retain"], _test(evidence), evidence.predictions["forget"])
    return attacks.vector_attack(*((one.softmax, one.labels) for one in sides), feature=feature)


def entropy_attack(evidence: ClassifierEvidence) -> float:
    """Computes the share of forget examples that are judged members by their entropy.

    The sign is opposite to that of the vector attack; see ``attacks.entropy_attack``.
    """
    sides = (evidence.predictions["retain"], _test(evidence), evidence.predictions["forget"])
    return attacks.entropy_attack(*(one.softmax for one in sides))


def _test(evidence: ClassifierEvidence) -> Predictions:
    found = evidence.predictions["test_retain"]
    if min(len(found.labels), len(evidence.predictions["retain"].labels)) < 4:
        raise Missing("test_retain")
    return found


def _row(label: str, ideal: str, function: Any, **given: str) -> Metric:
    return Metric(
        label, "privacy", ideal, ".3f", functools.partial(function, **given),
        ("predictions",), extra=True,
    )  # fmt: skip


ROWS = {
    **{
        f"auc_{name}": _row(f"AUC of {name.replace('_', ' ')}", "0.5", auc, score=name)
        for name in SCORES
    },
    **{
        f"tpr_{percent}": _row(
            f"forget images found at {percent} % false alarms", "as retrained", true_positives,
            percent=percent,
        )
        for percent in RATES
    },
    **{
        f"unseen_by_{name}": _row(
            f"judged unseen by {name.replace('_', ' ')} (SVM)", "as retrained", vector_attack,
            feature=name,
        )
        for name in ("correctness", "confidence", "entropy", "modified_entropy", "probabilities")
    },
    "seen_by_entropy": Metric(
        "judged seen by entropy", "privacy", "as retrained", ".3f", entropy_attack,
        ("predictions",), extra=True,
    ),
}  # fmt: skip
"""Attacks on one model's predictions."""
