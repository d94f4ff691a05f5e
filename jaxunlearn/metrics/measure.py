"""All that one model can tell about itself."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxunlearn.attribution import features
from jaxunlearn.core.types import Apply, Key, Model, Sets, Variables
from jaxunlearn.data.sets import num_examples
from jaxunlearn.engine.predict import Predictions, predict
from jaxunlearn.metrics.attacks import Judge, fit_judge, loss_attack
from jaxunlearn.metrics.relearning import linear_probe, relearn_curve, relearn_steps
from jaxunlearn.models import check_model, functionalize

RELEARNED = 0.95
"""Share of the original's forget accuracy at which a class counts as known again."""

JUDGED = ("forget", "retain", "test_forget", "test_retain")
"""Sets that a model is judged on."""

MEASURES = 2
"""Raised when a measure is added or changes: models judged by other ones are judged anew."""


class Reference(NamedTuple):
    """What other models are judged by: taken from the original.

    Attributes:
      accuracy: on the forget set.
      judge: see :func:`jaxunlearn.metrics.attacks.fit_judge`; ``None`` without enough
        test examples.
    """

    accuracy: float
    judge: Judge | None


def refer(
    model: Model | Apply, variables: Variables, sets: Sets, batch_size: int = 500
) -> Reference:
    """The reference that ``variables``, the original model, are."""
    others = "test_forget" if num_examples(sets.test_forget) else "test_retain"
    found = _look(functionalize(model), variables, sets, batch_size, ("forget", others))
    return _reference(found)


def measure(
    model: Model | Apply,
    variables: Variables,
    sets: Sets,
    key: Key,
    *,
    reference: Reference | None = None,
    batch_size: int = 500,
) -> dict[str, Any]:
    """All that one model can tell about itself.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      sets: ``forget`` and ``retain``; ``test_retain`` and ``test_forget`` where given.
      key: for relearning.
      reference: :func:`refer` of the original; ``None``: this is the original.

    Returns:
      Numbers under names in ``METRICS`` and lists under names in ``CURVES``. For a
      request by class the attacks compare forget images with test images of the same
      classes (else they would see the class); for other requests with the test set.
    """
    model = functionalize(model)
    found = _look(model, variables, sets, batch_size)
    reference = _reference(found) if reference is None else reference
    values: dict[str, Any] = {f"accuracy_{name}": one.accuracy for name, one in found.items()}
    tested = [found[name] for name in ("test_forget", "test_retain") if name in found]
    if tested:
        right = [one.accuracy * len(one.labels) for one in tested]
        values["accuracy_test"] = sum(right) / sum(len(one.labels) for one in tested)
    others = _others(found)
    if others is not None:
        values["loss_attack"] = loss_attack(found["forget"].losses, others.losses)
    if reference.judge is not None:
        values["judged_unseen"] = reference.judge(found["forget"].softmax)
    assert sets.forget is not None
    assert sets.retain is not None
    if "test_forget" in found:
        train, test = (sets.forget, sets.retain), sets.test_forget
        assert test is not None
        values["linear_probe"] = linear_probe(_features(model.apply), variables, train, test)
    curve = relearn_curve(model, variables, sets.forget, key)
    values["relearn_steps"] = relearn_steps(curve, RELEARNED * reference.accuracy)
    values["relearning"] = float(curve.mean())
    values["relearn_curve"] = curve.round(4).tolist()
    return values


def _look(
    model: Model, variables: Variables, sets: Sets, batch_size: int, names: tuple[str, ...] = JUDGED
) -> dict[str, Predictions]:
    """Outputs on those of the sets that are there."""
    if sets.forget is None or sets.retain is None:
        raise ValueError("sets: expected forget and retain, got a request without one of them")
    examples = sets.forget.examples
    check_model(model, examples.x.shape[1:], variables=variables, labels=examples.y)
    parts = {name: getattr(sets, name) for name in names if num_examples(getattr(sets, name))}
    return {name: predict(model.apply, variables, p, batch_size) for name, p in parts.items()}


def _others(found: Mapping[str, Predictions]) -> Predictions | None:
    """Outputs on examples that no training saw, fit for an attack on the forget set."""
    others = found.get("test_forget") or found.get("test_retain")
    if others is None or min(len(others.labels), len(found["forget"].labels)) < 4:
        return None
    return others


def _reference(found: Mapping[str, Predictions]) -> Reference:
    others = _others(found)
    judge = others and fit_judge(found["forget"].softmax, others.softmax)
    return Reference(found["forget"].accuracy, judge or None)


@functools.lru_cache(maxsize=16)
def _features(apply: Apply) -> Apply:
    # one function object for one network, so that its compiled program is found again
    return features(apply)
