"""What is to be said of a GAN's trial once all of its models are made."""

import jax
import numpy as np

from jaxunlearn.config import section
from jaxunlearn.core.types import Gan, Variables
from jaxunlearn.engine.predict import predict
from jaxunlearn.experiment.judging import extent_of, sample_key
from jaxunlearn.experiment.stages import is_there, load_stage
from jaxunlearn.experiment.work import Record, Work
from jaxunlearn.metrics.distances import frechet_distance
from jaxunlearn.metrics.generated import MEMORISED
from jaxunlearn.metrics.samples import (
    extract_all,
    extractor,
    features_of,
    forgets_class,
    generate,
    training_labels,
)


def models_of(work: Work, *names: str) -> dict[str, Variables]:
    """Models of a trial by stage, ``unlearned/cascade``; those that were not made left out."""
    found = {"original": work.begun}
    for name in names:
        if name != "original" and is_there(work.stages[name]):
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
    parts = [plan.sets.forget, plan.sets.retain]
    if plan.model.num_classes and forgets_class(plan.sets):
        parts = parts[1:]  # a retrained generator never learned the others
    labels = training_labels(*parts)
    extract, count = extractor(plan.judge), extent_of(plan).samples

    gan, judge = plan.model, plan.judge

    def seen(variables: Variables, number: int) -> np.ndarray:
        key = jax.random.fold_in(sample_key(plan), number)
        return extract_all(extract, generate(gan, variables, judge, labels, key, count).images)

    names = [name for name, stage in work.stages.items() if is_there(stage)]
    (first,) = models_of(work, "retrained/0").values()
    reference = seen(first, 1)
    return {
        name: frechet_distance(seen(models_of(work, name)[name], 0), reference) for name in names
    }


def notes_on_images(work: Work, original: Record) -> list[str]:
    """What C-FID is computed on and how small it can be; whether there was anything to attack."""
    plan = work.plan
    if not isinstance(plan.model, Gan):
        return []
    assert plan.judge is not None
    assert plan.sets.retain is not None
    count, extract = extent_of(plan).samples, extractor(plan.judge)
    real = features_of(extract, plan.sets.retain, count)
    notes = []
    if plan.sets.test_retain is not None:
        unseen = features_of(extract, plan.sets.test_retain, count)
        right = predict(plan.judge.model.apply, plan.judge.variables, plan.sets.test_retain)
        notes.append(
            f"C-FID: {real.shape[1]} features of a classifier "
            f"({section(plan.config, 'gan').classifier.name}, "
            f"accuracy {right.accuracy:.3f} on retained test images) trained on the same data, "
            f"{len(real)} retained against {count} generated images; between retained training "
            f"and test images it is {frechet_distance(real, unseen):.2f}"
        )
        if min(len(real), len(unseen)) <= 2 * real.shape[1]:
            notes.append(
                f"few images: {min(len(real), len(unseen))} for {real.shape[1]} features, "
                "C-FID is too large"
            )
    gap = original["metrics"].get("membership_gap")
    if gap is not None and gap < MEMORISED:
        notes.append(
            f"the original's discriminator has not memorised what is to be forgotten (its AUC is "
            f"{gap:.3f} from 0.5): the rows on membership tell nothing"
        )
    return notes
