"""All that one model can tell about itself."""

import functools

from jaxunlearn.attribution import features
from jaxunlearn.data.sets import num_examples
from jaxunlearn.metrics.attacks import loss_attack
from jaxunlearn.metrics.predict import predict
from jaxunlearn.metrics.residue import linear_probe, relearn_steps
from jaxunlearn.models import check_model, functionalize
from jaxunlearn.types import Apply, Key, Model, Sets, Variables

__all__ = ["measure"]

RELEARNED = 0.95
"""Share of the original's forget accuracy at which a class counts as known again."""


def measure(
    model: Model | Apply,
    variables: Variables,
    sets: Sets,
    key: Key,
    *,
    original_accuracy: float | None = None,
    batch_size: int = 500,
) -> dict[str, float]:
    """All that one model can tell about itself.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      sets: ``forget`` and ``retain``; ``test_retain`` and ``test_forget`` where given.
      key: for relearning.
      original_accuracy: the original's on the forget set; ``None``: this is the original.

    Returns:
      Values under names in ``METRICS``. For a request by class the attack compares
      forget images with test images of the same classes (else it would see the class);
      for other requests with the test set.
    """
    model = functionalize(model)
    names = ("forget", "retain", "test_forget", "test_retain")
    if sets.forget is None or sets.retain is None:
        raise ValueError("sets: expected forget and retain, got a request without one of them")
    examples = sets.forget.examples
    check_model(model, examples.x.shape[1:], variables=variables, labels=examples.y)
    parts = {name: getattr(sets, name) for name in names if num_examples(getattr(sets, name))}
    found = {name: predict(model.apply, variables, p, batch_size) for name, p in parts.items()}
    values = {f"accuracy_{name}": one.accuracy for name, one in found.items()}
    tested = [found[name] for name in ("test_forget", "test_retain") if name in found]
    if tested:
        right = [one.accuracy * len(one.labels) for one in tested]
        values["accuracy_test"] = sum(right) / sum(len(one.labels) for one in tested)
    others = found.get("test_forget") or found.get("test_retain")
    if others is not None and min(len(others.labels), len(found["forget"].labels)) >= 4:
        values["loss_attack"] = loss_attack(found["forget"].losses, others.losses)
    if "test_forget" in parts:
        train, test = (parts["forget"], parts["retain"]), parts["test_forget"]
        values["linear_probe"] = linear_probe(_features(model.apply), variables, train, test)
    known = values["accuracy_forget"] if original_accuracy is None else original_accuracy
    values["relearn_steps"] = relearn_steps(
        model, variables, parts["forget"], RELEARNED * known, key
    )
    return values


@functools.lru_cache(maxsize=16)
def _features(apply: Apply) -> Apply:
    # one function object for one network, so that its compiled program is found again
    return features(apply)
