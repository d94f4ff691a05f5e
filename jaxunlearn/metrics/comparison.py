"""Rows that set a classifier beside the retrained models, the original, or one never trained.

Each retrained model is set beside the others, not beside itself, so that its column shows how far
two of them are apart.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution import layers
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.core.trees import named_leaves, to_device
from jaxunlearn.core.types import Apply, Subset, Variables
from jaxunlearn.data.examples import fetch, inputs_like
from jaxunlearn.data.sets import forgets_class, num_examples
from jaxunlearn.engine.predict import predict
from jaxunlearn.metrics import agreement, classification, relearning
from jaxunlearn.metrics.classification import ClassifierEvidence
from jaxunlearn.metrics.registry import Metric, Missing, others

PROBED, MOST_FEATURES = 1000, 2000
"""Examples that probes of layers are fitted on, and numbers of an example that they read."""
MOST_EXAMPLES, MOST_NUMBERS = 256, 20_000_000
"""Layers are compared on so many examples, fewer where their values are more numbers than that."""


def _accuracies(evidence: ClassifierEvidence) -> dict[str, float]:
    names = {"forget": "forget", "retain": "retain", "test": "test_retain"}
    return {name: evidence.predictions[part].accuracy for name, part in names.items()}


def _average(
    evidence: ClassifierEvidence,
    retrained: Sequence[ClassifierEvidence],
    values: Callable[[ClassifierEvidence], dict[str, float]],
) -> dict[str, float]:
    each = [values(one) for one in others(evidence, retrained)]
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def tug_of_war(evidence: ClassifierEvidence, retrained: Sequence[ClassifierEvidence]) -> float:
    """Computes ToW against the retrained models' mean accuracies; see ``agreement.tug_of_war``."""
    theirs = _average(evidence, retrained, _accuracies)
    return agreement.tug_of_war(_accuracies(evidence), theirs)


def average_gap(evidence: ClassifierEvidence, retrained: Sequence[ClassifierEvidence]) -> float:
    """Averages the gaps to the retrained models' mean in forget, retain and test accuracy and in
    the accuracy of the attack on the loss.
    """

    def values(one: ClassifierEvidence) -> dict[str, float]:
        return _accuracies(one) | {"attack": one.attack}

    return agreement.average_gap(values(evidence), _average(evidence, retrained, values))


def adaptive_score(evidence: ClassifierEvidence, original: ClassifierEvidence) -> float:
    """Computes AUS from test accuracies; see ``agreement.adaptive_score``.

    What is forgotten is judged on test images of the class, of items on the forget set itself.
    """
    items = not forgets_class(evidence.sets)
    ours = {
        "test": evidence.predictions["test_retain"].accuracy,
        "forget": evidence.predictions["forget" if items else "test_forget"].accuracy,
    }
    before = {"test": original.predictions["test_retain"].accuracy}
    return agreement.adaptive_score(before, ours, items=items)


def normalised_score(evidence: ClassifierEvidence) -> float:
    """Computes NoMUS of the accuracy on retained test images and the attack on the loss."""
    return agreement.normalised_score(evidence.predictions["test_retain"].accuracy, evidence.attack)


def zero_retrain_forgetting(evidence: ClassifierEvidence) -> np.ndarray:
    """Computes ZRF of each forget example, against one freshly drawn network; bits, ``[M]``."""
    model = evidence.model
    try:
        fresh = model.init(derive(evidence.key, Purpose.UNTRAINED))
    except ConfigError as error:  # a network given as a function alone cannot be drawn anew
        raise Missing("a freshly drawn network") from error
    untrained = predict(model.apply, fresh, evidence.part("forget")).softmax
    return agreement.zero_retrain_forgetting(evidence.predictions["forget"].softmax, untrained)


def _mean_over(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray], part: str
) -> Callable[..., np.ndarray]:
    def compare(
        evidence: ClassifierEvidence, retrained: Sequence[ClassifierEvidence]
    ) -> np.ndarray:
        own = evidence.predictions[part].softmax
        theirs = [one.predictions[part].softmax for one in others(evidence, retrained)]
        return np.mean([function(own, one) for one in theirs], axis=0)

    compare.__doc__ = function.__doc__
    return compare


activation_distance = _mean_over(agreement.activation_distance, "forget")
same_class_forget = _mean_over(agreement.same_class, "forget")


def same_class_test(evidence: ClassifierEvidence, retrained: Sequence[ClassifierEvidence]) -> float:
    """Computes the share of retained test examples that get the class a retrained model names."""
    return float(np.mean(_mean_over(agreement.same_class, "test_retain")(evidence, retrained)))


def weight_distance(evidence: ClassifierEvidence, retrained: Sequence[ClassifierEvidence]) -> float:
    """Computes ``|w_u - w_r| / |w_r|`` of all weights, averaged over the retrained models.

    Two retrained models are far apart: the value alone says little.
    """
    return float(np.mean([one[""] for one in _weight_distances(evidence, retrained)]))


def weight_distance_by_layer(
    evidence: ClassifierEvidence, retrained: Sequence[ClassifierEvidence]
) -> list[float]:
    """Computes the same of each kernel, in the order of the tree of weights."""
    each = _weight_distances(evidence, retrained)
    kernels = [name for name, leaf in named_leaves(evidence.weights).items() if np.ndim(leaf) > 1]
    if not kernels:
        raise Missing("kernels")
    return [float(np.mean([one[name] for one in each])) for name in kernels]


def _weight_distances(
    evidence: ClassifierEvidence, retrained: Sequence[ClassifierEvidence]
) -> list[dict[str, float]]:
    rest = others(evidence, retrained)
    try:
        return [agreement.weight_distances(evidence.weights, one.weights) for one in rest]
    except ValueError as error:
        raise Missing("weights with a counterpart in the retrained model") from error


def completeness(
    evidence: ClassifierEvidence,
    original: ClassifierEvidence,
    retrained: Sequence[ClassifierEvidence],
) -> np.ndarray:
    """Computes the completeness by interpolation of each forget example, ``[M]``; 1 is ideal."""
    unseen = np.stack([one.margins["forget"] for one in others(evidence, retrained)])
    return agreement.completeness(original.margins["forget"], evidence.margins["forget"], unseen)


def relearning_ratio(
    evidence: ClassifierEvidence,
    original: ClassifierEvidence,
    retrained: Sequence[ClassifierEvidence],
) -> float:
    """Computes AIN, the steps to relearn by those of the retrained models; 1 is ideal.

    ``(1 + steps) / (1 + steps_r)``, so that a class never forgotten, with 0 steps, has a ratio.
    Source: Tarun et al., arXiv 2111.08947.
    """
    own = classification.relearn_steps(evidence, original)
    rest = others(evidence, retrained)
    theirs = [classification.relearn_steps(one, original) for one in rest]
    return (1 + own) / (1 + float(np.mean(theirs)))


# Layers


@functools.lru_cache(maxsize=8)
def _compiled(apply: Apply) -> tuple[Callable[..., Any], Callable[..., Any]]:
    # one object for one network, so that its programs are found again
    opened = layers(apply)

    def drops(variables: Variables, other: Variables, x: Any, y: jax.Array) -> jax.Array:
        """Computes how far the mean log-probability of the labels falls at each layer, ``[L]``."""

        def right(logits: jax.Array) -> jax.Array:
            own = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
            return jnp.mean(own)

        values = opened.values(other, x)
        patched = [
            right(opened.patched(variables, x, number, value))
            for number, value in enumerate(values)
        ]
        return right(apply(variables, x)) - jnp.stack(patched)

    return jax.jit(opened.values), jax.jit(drops)


def _some(evidence: ClassifierEvidence, part: str) -> tuple[Any, jax.Array]:
    """Returns inputs and labels of so many examples of a set that their values fit."""
    found = evidence.part(part)
    rows = np.asarray(found.indices)[: num_examples(found)][:MOST_EXAMPLES]
    one = inputs_like(found.examples)
    values, _ = _compiled(evidence.model.apply)
    shapes = jax.eval_shape(values, evidence.variables, one)
    numbers = sum(int(np.prod(leaf.shape)) for leaf in shapes)
    chosen = rows[: max(8, MOST_NUMBERS // max(numbers, 1))]
    return fetch(found.examples, chosen), to_device(np.asarray(found.examples.y)[chosen])


def _layer_values(evidence: ClassifierEvidence, x: Any) -> list[np.ndarray]:
    values, _ = _compiled(evidence.model.apply)
    found = [np.asarray(leaf).reshape(len(leaf), -1) for leaf in values(evidence.variables, x)]
    if not all(np.isfinite(leaf).all() for leaf in found):
        raise ValueError("expected finite values in all layers, got others")
    return found


def alignment_by_layer(
    evidence: ClassifierEvidence, retrained: Sequence[ClassifierEvidence]
) -> list[float]:
    """Computes the CKA of each layer with the retrained models', on forget examples."""
    x, _ = _some(evidence, "forget")
    own = _layer_values(evidence, x)
    each = [
        [agreement.alignment(a, b) for a, b in zip(own, _layer_values(one, x), strict=True)]
        for one in others(evidence, retrained)
    ]
    return [float(value) for value in np.mean(each, axis=0)]


def alignment_to_original(
    evidence: ClassifierEvidence, original: ClassifierEvidence
) -> list[float]:
    """Computes the CKA of each layer with the original's, on forget examples."""
    x, _ = _some(evidence, "forget")
    pairs = zip(_layer_values(evidence, x), _layer_values(original, x), strict=True)
    return [agreement.alignment(a, b) for a, b in pairs]


def probe_by_layer(evidence: ClassifierEvidence) -> list[float]:
    """Computes the balanced accuracy of a linear probe on the values of each layer; .5 is chance.

    On test examples, as :func:`jaxunlearn.metrics.classification.linear_probe`, of 1,000 examples
    at most. Where a layer has more than 2,000 numbers, their mean over positions is read; of more
    than 2,000 features so many random projections.
    """
    parts = (evidence.part("forget"), evidence.part("retain"))
    test, others = evidence.part("test_forget"), evidence.sets.test_retain
    others = others if num_examples(others) else parts[1]
    assert others is not None
    seen = [_features(evidence, part) for part in relearning.in_proportion(parts, PROBED)]
    asked, beside = (_features(evidence, relearning.some(part, PROBED)) for part in (test, others))
    return [
        relearning.probe(
            [(layers[number], labels) for layers, labels in seen],
            (asked[0][number], asked[1]),
            beside[0][number],
        )
        for number in range(len(asked[0]))
    ]


def _features(evidence: ClassifierEvidence, part: Subset) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns few enough features ``[n, f]`` of each layer, and labels."""
    values, _ = _compiled(evidence.model.apply)
    rows = np.asarray(part.indices)[: num_examples(part)]
    chunks = []
    for first in range(0, len(rows), MOST_EXAMPLES):
        # as many in each, so that one program serves all
        own = np.resize(rows[first : first + MOST_EXAMPLES], min(len(rows), MOST_EXAMPLES))
        found = values(evidence.variables, fetch(part.examples, own))
        chunks.append([_fewer(np.asarray(leaf)) for leaf in found])
    layers = [np.concatenate(column)[: len(rows)] for column in zip(*chunks, strict=True)]
    return layers, np.asarray(part.examples.y)[rows]


def _fewer(values: np.ndarray) -> np.ndarray:
    """Returns at most so many features ``[n, f]`` of the values of a layer, ``[n, ...]``."""
    if values[0].size > MOST_FEATURES and values.ndim > 2:
        values = values.mean(axis=tuple(range(1, values.ndim - 1)))
    flat = values.reshape(len(values), -1)
    if flat.shape[1] > MOST_FEATURES:
        rng = np.random.default_rng(0)
        drawn = rng.normal(size=(flat.shape[1], MOST_FEATURES)) / np.sqrt(MOST_FEATURES)
        flat = flat @ drawn.astype(flat.dtype)
    return flat


def alignment(evidence: ClassifierEvidence, retrained: Sequence[ClassifierEvidence]) -> float:
    """Averages the CKA with the retrained models over the layers; see ``agreement.alignment``."""
    return float(np.nanmean(alignment_by_layer(evidence, retrained)))


def progress(
    evidence: ClassifierEvidence,
    original: ClassifierEvidence,
    retrained: Sequence[ClassifierEvidence],
    part: str,
) -> float:
    """Averages how far the features went in the direction of retraining.

    Of the features that the last layer reads; the direction is that from the original to the mean
    of the other retrained models. What is missing to their value is residue; see
    ``agreement.progress_to_retrained``.
    """

    def features(one: ClassifierEvidence) -> np.ndarray:
        return predict(one.feature_fn, one.variables, one.part(part)).logits

    theirs = np.mean([features(one) for one in others(evidence, retrained)], axis=0)
    found = agreement.progress_to_retrained(features(original), features(evidence), theirs)
    return float(np.nanmean(found))


def depth_by_layer(evidence: ClassifierEvidence, original: ClassifierEvidence) -> list[float]:
    """Computes the drop of the labels' log-probability that this model's values cause, by layer.

    The original goes on from the values that this model has at one layer; forget examples.
    """
    return [float(value) for value in _drops(evidence, original)]


def _drops(evidence: ClassifierEvidence, original: ClassifierEvidence) -> np.ndarray:
    x, y = _some(original, "forget")
    _, drops = _compiled(original.model.apply)
    found = np.asarray(drops(original.variables, evidence.variables, x, y))
    if not np.isfinite(found).all():
        raise ValueError("expected finite values in all layers, got others")
    return found


def depth(
    evidence: ClassifierEvidence,
    original: ClassifierEvidence,
    retrained: Sequence[ClassifierEvidence],
) -> float:
    """Computes the unlearning depth score; see ``agreement.depth_score``."""
    theirs = np.mean([_drops(one, original) for one in others(evidence, retrained)], axis=0)
    score = agreement.depth_score(theirs, _drops(evidence, original))
    if np.isnan(score):
        raise Missing("a layer at which retraining tells")
    return score


_SEEN, _LAYERS = ("predictions",), ("predictions", "weights")


def _row(
    label: str, group: str, ideal: str, function: Any, needs: tuple[str, ...] = _SEEN,
    scope: str = "retrained", **more: Any,
) -> Metric:  # fmt: skip
    return Metric(label, group, ideal, ".3f", function, needs, scope, extra=True, **more)


ROWS = {
    "tug_of_war": _row("tug of war", "truth", "large", tug_of_war, short="ToW"),
    "average_gap": _row(
        "average gap to retrained", "truth", "small", average_gap, ("predictions", "attack")
    ),
    "adaptive_score": _row(
        "adaptive unlearning score", "truth", "as retrained", adaptive_score, scope="original",
        short="AUS",
    ),
    "normalised_score": _row(
        "normalised unlearning score", "truth", "as retrained", normalised_score,
        ("predictions", "attack"), "model", short="NoMUS",
    ),
    "zero_retrain_forgetting": _row(
        "likeness to an untrained model", "forgetting", "as retrained", zero_retrain_forgetting,
        scope="model", each=True, short="ZRF",
    ),
    "activation_distance": _row(
        "distance of predictions to retrained", "forgetting", "as retrained", activation_distance,
        each=True,
    ),
    "same_class_forget": _row(
        "same class as retrained, forget", "forgetting", "as retrained", same_class_forget,
        each=True,
    ),
    "same_class_test": _row(
        "same class as retrained, retain (test)", "utility", "as retrained", same_class_test
    ),
    "weight_distance": _row(
        "distance of weights to retrained", "truth", "as retrained", weight_distance, _LAYERS,
    ),
    "weight_distance_by_layer": _row(
        "distance of weights to retrained", "truth", "as retrained", weight_distance_by_layer,
        _LAYERS, along="kernels",
    ),
    "completeness": _row(
        "completeness by interpolation", "privacy", "as retrained", completeness,
        ("predictions", "margins"), "both",
        each=True, short="IAM",
    ),
    "relearning_ratio": _row(
        "steps to relearn, by those of retrained", "truth", "as retrained", relearning_ratio,
        ("relearning", "predictions"), "both", short="AIN",
    ),
    "progress_forget": _row(
        "way of features to retrained, forget", "truth", "as retrained",
        functools.partial(progress, part="forget"), ("predictions", "feature_fn"), "both",
    ),
    "progress_retain": _row(
        "way of features to retrained, retain", "truth", "as retrained",
        functools.partial(progress, part="retain"), ("predictions", "feature_fn"), "both",
    ),
    "alignment": _row(
        "CKA with retrained, mean of layers", "truth", "as retrained", alignment,
        _LAYERS, short="CKA",
    ),
    "alignment_by_layer": _row(
        "CKA with retrained", "truth", "as retrained", alignment_by_layer,
        _LAYERS, along="layers",
    ),
    "alignment_to_original": _row(
        "CKA with the original", "truth", "as retrained", alignment_to_original,
        _LAYERS, "original", along="layers",
    ),
    "probe_by_layer": _row(
        "linear probe, forget (test), chance 0.5", "truth", "as retrained", probe_by_layer,
        _LAYERS, "model", along="layers",
    ),
    "depth": _row(
        "depth of unlearning", "truth", "as retrained", depth, _LAYERS, "both", short="UDS",
    ),
    "depth_by_layer": _row(
        "loss of knowledge in the original", "truth", "as retrained", depth_by_layer,
        _LAYERS, "original", along="layers",
    ),
}  # fmt: skip
"""Comparisons with other models."""
