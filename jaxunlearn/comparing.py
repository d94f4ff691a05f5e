"""What compares the models of a trial with a retrained one, once all are made."""

import jax
import numpy as np

from jaxunlearn.judging import extent_of, sample_key
from jaxunlearn.metrics.distances import frechet_distance
from jaxunlearn.metrics.samples import (
    extract_all,
    extractor,
    generate,
    training_labels,
)
from jaxunlearn.stages import load_stage
from jaxunlearn.types import Gan, Variables
from jaxunlearn.work import Work

__all__ = ["compare_images", "models_of"]


def models_of(work: Work, *names: str) -> dict[str, Variables]:
    """Models of a trial by stage, ``unlearned/cascade``; those that were not made left out."""
    found = {"original": work.begun}
    for name in names:
        if name != "original" and work.stages[name].path.exists():
            found[name] = load_stage(work.stages[name], work.like)[0]
    return {name: found[name] for name in names if name in found}


def compare_images(work: Work) -> dict[str, float]:
    """Ret-FID of every model of a trial: C-FID between its images and a retrained model's.

    The images of the first retrained model come from latents of their own, so that its value
    says what two samples of one model differ by.
    """
    plan = work.plan
    if not isinstance(plan.model, Gan) or len(plan.requests) > 1:
        return {}
    assert plan.judge is not None
    assert plan.sets.forget is not None
    assert plan.sets.retain is not None
    labels = training_labels(plan.sets.forget, plan.sets.retain)
    extract, count = extractor(plan.judge), extent_of(plan).samples

    gan, judge = plan.model, plan.judge

    def seen(variables: Variables, number: int) -> np.ndarray:
        key = jax.random.fold_in(sample_key(plan), number)
        return extract_all(extract, generate(gan, variables, judge, labels, key, count).images)

    names = [name for name in work.stages if work.stages[name].path.exists()]
    (first,) = models_of(work, "retrained/0").values()
    reference = seen(first, 1)
    return {
        name: frechet_distance(seen(models_of(work, name)[name], 0), reference) for name in names
    }
