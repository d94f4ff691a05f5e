"""Metrics of classifiers, and the evidence that they read.

For a request by class attacks compare forget images with test images of the same classes (else
they would see the class); for other requests with the test set.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution import features
from jaxunlearn.core.types import Apply
from jaxunlearn.data.sets import forgets_class, num_examples
from jaxunlearn.engine.predict import Predictions, predict
from jaxunlearn.metrics import attacks, relearning
from jaxunlearn.metrics.agreement import divergence
from jaxunlearn.metrics.exposure import logit_confidence
from jaxunlearn.metrics.registry import Evidence, Metric, Missing, others

Value = TypeVar("Value")

RELEARNED = 0.95
"""Share of the original's forget accuracy at which a class counts as known again."""


class ClassifierEvidence(Evidence):
    """Evidence of one classifier: predictions on each set, features, the curve of relearning."""

    provides = frozenset({
        "weights", "predictions", "margins", "accuracies", "feature_fn", "attack", "relearning",
        "unseen_judge",
    })  # fmt: skip

    @functools.cached_property
    def predictions(self) -> "_BySet[Predictions]":
        """Returns predictions by name of a set, each computed when it is first read."""
        return _BySet(self.predict)

    def predict(self, name: str) -> Predictions:
        """Computes predictions on one of the sets."""
        return predict(self.model.apply, self.variables, self.part(name))

    @functools.cached_property
    def margins(self) -> "_BySet[np.ndarray]":
        """Returns logit-scaled confidences ``phi [M]`` by name of a set."""

        def margins(name: str) -> np.ndarray:
            found = self.predictions[name]
            return logit_confidence(found.logits, found.labels)

        return _BySet(margins)

    @functools.cached_property
    def accuracies(self) -> "_BySet[float]":
        """Returns accuracies by name of a set."""
        return _BySet(lambda name: self.predictions[name].accuracy)

    def kept(self) -> "Kept":
        """Returns margins and accuracies on the sets that metrics of ensembles read.

        NaN where predictions are not finite: those metrics fail, and nothing else.
        """
        names = ("forget", "retain", "test_retain")
        there = [name for name in names if num_examples(getattr(self.sets, name))]
        sound = {n: np.isfinite(self.predictions[n].logits).all() for n in there}
        return Kept(
            _BySet(_missing, {name: self.margins[name] for name in there}),
            _BySet(_missing, {n: self.accuracies[n] if sound[n] else np.nan for n in there}),
        )

    def is_sound(self) -> bool:
        return bool(np.isfinite(self.predictions["forget"].logits).all())

    @property
    def feature_fn(self) -> Apply:
        """Returns the function ``variables, x -> [B, n]`` of what the last layer reads."""
        return _features(self.model.apply)

    @functools.cached_property
    def relearning(self) -> np.ndarray:
        """Returns the accuracy on the forget set while it is trained on again, ``[steps]``."""
        return relearning.relearn_curve(self.model, self.variables, self.part("forget"), self.key)

    @functools.cached_property
    def attack(self) -> float:
        """Returns the accuracy of the membership attack on the loss."""
        return attacks.loss_attack(self.predictions["forget"].losses, unseen(self).losses)

    @functools.cached_property
    def unseen_judge(self) -> attacks.Judge:
        """Returns the support vector machine that tells forget from unseen examples by softmax."""
        return attacks.fit_judge(self.predictions["forget"].softmax, unseen(self).softmax)


class _BySet(dict[str, Value]):
    """Values by name of a set, each computed when it is first read."""

    def __init__(self, compute: Callable[[str], Value], known: Mapping[str, Value] = {}) -> None:
        super().__init__(known)
        self.compute = compute

    def __missing__(self, name: str) -> Value:
        found = self[name] = self.compute(name)
        return found


def _missing(name: str) -> Any:
    raise Missing(name)


class Kept(NamedTuple):
    """Margins and accuracies of one model by name of a set, which outlast it."""

    margins: Mapping[str, np.ndarray]
    accuracies: Mapping[str, float]
    provides: frozenset[str] = frozenset({"margins", "accuracies"})


@functools.lru_cache(maxsize=16)
def _features(apply: Apply) -> Apply:
    # one function object for one network, so that its compiled program is found again
    return features(apply)


def unseen(evidence: ClassifierEvidence) -> Predictions:
    """Returns predictions on examples that no training saw, fit for attacks on the forget set."""
    name = "test_forget" if num_examples(evidence.sets.test_forget) else "test_retain"
    others = evidence.predictions[name]
    if min(len(others.labels), num_examples(evidence.sets.forget)) < 4:
        raise Missing(name)  # too few for any attack
    return others


def correct(evidence: ClassifierEvidence, part: str) -> np.ndarray:
    """Tells of each example of a set whether its largest logit is the label's, ``bool [M]``."""
    found = evidence.predictions[part]
    return found.classes == found.labels


def correct_in_test(evidence: ClassifierEvidence) -> np.ndarray:
    """Tells the same of all test examples, of either kind."""
    names = [n for n in ("test_forget", "test_retain") if num_examples(getattr(evidence.sets, n))]
    if not names:
        raise Missing("test")
    return np.concatenate([correct(evidence, name) for name in names])


def loss_attack(evidence: ClassifierEvidence) -> float:
    """Computes the accuracy of a membership attack on the loss; see ``attacks.loss_attack``."""
    return evidence.attack


def attack_gap(evidence: ClassifierEvidence) -> float:
    """Computes ``|.5 - loss_attack|``, the first paper's Fs."""
    return abs(0.5 - evidence.attack)


def judged_unseen(evidence: ClassifierEvidence, original: ClassifierEvidence) -> float:
    """Computes the share of forget examples that the original's machine takes for unseen."""
    return original.unseen_judge(evidence.predictions["forget"].softmax)


def linear_probe(evidence: ClassifierEvidence) -> float:
    """Computes the balanced accuracy of a probe on frozen features.

    On test examples, of what is retained on training examples where there are no others; see
    ``relearning.linear_probe``.
    """
    parts = (evidence.part("forget"), evidence.part("retain"))
    test, others = evidence.part("test_forget"), evidence.sets.test_retain
    others = others if num_examples(others) else parts[1]
    apply, variables = evidence.feature_fn, evidence.variables
    return relearning.linear_probe(apply, variables, parts, test, others=others)


def relearn_steps(evidence: ClassifierEvidence, original: ClassifierEvidence) -> float:
    """Counts the steps until .95 of the original's forget accuracy is reached again."""
    _expect_knowledge(original)
    target = RELEARNED * original.predictions["forget"].accuracy
    return relearning.relearn_steps(_finite_start(evidence), target)


def mean_relearning(evidence: ClassifierEvidence, original: ClassifierEvidence) -> float:
    """Computes the mean of the curve of relearning."""
    _expect_knowledge(original)
    return float(_finite_start(evidence).mean())


def relearn_curve(evidence: ClassifierEvidence, original: ClassifierEvidence) -> list[float]:
    """Returns the curve of relearning."""
    _expect_knowledge(original)
    return [round(value, 4) for value in _finite_start(evidence).tolist()]


def _expect_knowledge(original: ClassifierEvidence) -> None:
    """Raises :class:`Missing` where the original never knew what was to be forgotten.

    That is: it named no more forget examples correctly than chance does, ``1 / K`` or, of whole
    classes, the share of retained examples that it gives their labels.
    """
    found = original.predictions["forget"]
    chance = 1 / found.logits.shape[1]
    if forgets_class(original.sets):
        named = original.predictions["retain"].classes
        chance = max(chance, float(np.mean(np.isin(named, np.unique(found.labels)))))
    if found.accuracy <= chance:
        raise Missing("what the original knew")


def _finite_start(evidence: ClassifierEvidence) -> np.ndarray:
    curve = evidence.relearning
    if not np.isfinite(curve[0]):
        raise ValueError("the model cannot be trained again: its first loss is not finite")
    return curve


def exact_zeros(evidence: Evidence, original: Evidence) -> float:
    """Computes the share of weights that are exactly 0 and are not so in the original.

    Zeros betray where weights were edited. Training makes hardly any: a number that moves is
    0 by chance alone. Of models of any kind; all numbers that are no integers count.

    Raises:
      Missing: the models differ in form, so that no weight has a counterpart.
      ValueError: some weight is not finite.

    Source: Zhang et al. 2026, arXiv 2603.06640, of pruning that forgets.
    """
    own, before = (
        [np.asarray(leaf) for leaf in jax.tree.leaves(one.weights) if _is_real(leaf)]
        for one in (evidence, original)
    )
    if not own or [leaf.shape for leaf in own] != [leaf.shape for leaf in before]:
        raise Missing("weights with a counterpart in the original")
    if not all(np.isfinite(leaf).all() for leaf in own):
        raise ValueError("weights: expected finite numbers, got others")
    new = sum(np.count_nonzero((a == 0) & (b != 0)) for a, b in zip(own, before, strict=True))
    return new / sum(leaf.size for leaf in own)


def _is_real(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def js_to_retrained(
    evidence: ClassifierEvidence, retrained: list[ClassifierEvidence]
) -> np.ndarray:
    """Computes each forget example's Jensen-Shannon divergence to the retrained models, ``[N]``.

    ``JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2``, ``m = (p + q) / 2``, in nats, from 0 to
    log 2; averaged over the retrained models other than the one that is measured, without
    those whose predictions are not finite: they have failed in their own cells.

    Raises:
      ValueError: no other has finite predictions, or the model itself has none.
    """
    own, rest = evidence.predictions["forget"].softmax, others(evidence, retrained)
    return np.mean([_js(own, one.predictions["forget"].softmax) for one in rest], axis=0)


def js_of_means(members: list[ClassifierEvidence], retrained: list[ClassifierEvidence]) -> float:
    """Computes the divergence of the members' mean forget predictions from the retrained ones'."""
    if len(members) < 2 or len(retrained) < 2:
        raise Missing("several members")
    retrained = [one for one in retrained if one.is_sound()]
    if len(retrained) < 2:
        raise ValueError("retrained: expected two models with finite predictions, got fewer")
    means = [
        np.mean([one.predictions["forget"].softmax for one in side], axis=0)
        for side in (members, retrained)
    ]
    return float(_js(*means).mean())


def _js(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return divergence(p, q) * np.log(2)


def _of(part: str) -> Any:
    return functools.partial(correct, part=part)


_SEEN, _STEPS = ("predictions",), relearning.RELEARN_STEPS
ROWS = {
    "accuracy_forget": Metric(
        "accuracy, forget (train)", "forgetting", "as retrained", ".3f", _of("forget"), _SEEN,
        short="At", averaged=True,
    ),
    "accuracy_test_forget": Metric(
        "accuracy, forget (test)", "forgetting", "as retrained", ".3f", _of("test_forget"), _SEEN,
        short="At (test)", averaged=True,
    ),
    "js_to_retrained": Metric(
        "JS to retrained, each forget example", "forgetting", "as retrained", ".3f",
        js_to_retrained, _SEEN, "retrained", each=True,
    ),
    "js_of_means": Metric(
        "JS of mean predictions to retrained", "forgetting", "small", ".3f", js_of_means, _SEEN,
        "ensemble",
    ),
    "accuracy_retain": Metric(
        "accuracy, retain (train)", "utility", "as retrained", ".3f", _of("retain"), _SEEN,
        short="Ag", averaged=True,
    ),
    "accuracy_test_retain": Metric(
        "accuracy, retain (test)", "utility", "as retrained", ".3f", _of("test_retain"), _SEEN,
        short="Ag (test)", averaged=True,
    ),
    "accuracy_test": Metric(
        "accuracy, test", "utility", "as retrained", ".3f", correct_in_test, _SEEN,
        averaged=True,
    ),
    "loss_attack": Metric(
        "membership attack on loss", "privacy", "0.5", ".3f", loss_attack, ("attack",)
    ),
    "attack_gap": Metric(
        "distance of the attack from 0.5", "privacy", "small", ".3f", attack_gap, ("attack",),
        short="Fs",
    ),
    "judged_unseen": Metric(
        "forget images judged unseen", "privacy", "as retrained", ".3f", judged_unseen,
        ("predictions", "unseen_judge"), "original", short="Fr",
    ),
    "linear_probe": Metric(
        "linear probe, forget (test), chance 0.5", "truth", "as retrained", ".3f", linear_probe,
        ("feature_fn",),
    ),
    "relearn_steps": Metric(
        f"steps to relearn (of {_STEPS})", "truth", "as retrained", "d", relearn_steps,
        ("relearning", "predictions"), "original",
    ),
    "relearning": Metric(
        f"accuracy in relearning, mean of {_STEPS} steps", "truth", "as retrained", ".3f",
        mean_relearning, ("relearning", "predictions"), "original",
    ),
    "relearn_curve": Metric(
        "accuracy on the forget set in relearning", "truth", "as retrained", ".3f", relearn_curve,
        ("relearning", "predictions"), "original", along="steps",
    ),
    "exact_zeros": Metric(
        "weights that became exactly 0", "truth", "as retrained", ".2g", exact_zeros, ("weights",),
        "original",
    ),
}  # fmt: skip
"""The metrics of classifiers."""
