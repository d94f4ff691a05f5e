"""The pictures of a run, in its folder ``pictures``: drawn when something new was made.

The pictures of a run on a GAN: grids of the same latents, strips between them, scores.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.errors import UserError
from jaxunlearn.core.types import Gan, Model, Sets, Variables
from jaxunlearn.data.sets import labels_of, num_examples
from jaxunlearn.engine.driver import prepare
from jaxunlearn.engine.predict import predict
from jaxunlearn.experiment.comparing import models_of
from jaxunlearn.experiment.judging import extent_of, sample_key
from jaxunlearn.experiment.stages import load_stage
from jaxunlearn.experiment.work import Work
from jaxunlearn.gan import path_images, path_steps
from jaxunlearn.kinds.method_pictures import PAGES, Subject, draw_method
from jaxunlearn.metrics.distances import auc
from jaxunlearn.metrics.generated import refer_gan
from jaxunlearn.metrics.samples import forgets_class, logits_of, samples_of, shows_forgotten
from jaxunlearn.pictures import save_confusions, save_samples, save_scores, save_strips

MODELS = 9
"""Confusion matrices side by side, at most."""


def draw_album(work: Work) -> list[str]:
    """Draws what the methods of a trial found and changed.

    ``pictures/confusions.png`` shows what the original, the methods' models and a retrained
    one take the test images for; ``pictures/<label>/`` what a method of
    :data:`jaxunlearn.kinds.method_pictures.PAGES` has to show. Nothing is drawn if all models
    and pictures were there already.

    Returns:
      A sentence for each picture that could not be drawn: the run is none the worse.
    """
    if isinstance(work.plan.model, Gan):
        return draw_gan_album(work)
    plan, folder = work.plan, work.plan.folder / "pictures"
    assert isinstance(plan.model, Model)
    wanted = {label: _name(work, label) for label in plan.methods}
    wanted = {label: name for label, name in wanted.items() if name in PAGES}
    there = [folder / "confusions.png", *(folder / label for label in wanted)]
    if not work.made and all(path.exists() for path in there):
        return []
    models = {"original": work.begun}
    names = {**{label: f"unlearned/{label}" for label in plan.methods}, "retrained": "retrained/0"}
    for label, name in names.items():
        if work.stages[name].path.exists():  # a method that diverged left nothing
            models[label] = load_stage(work.stages[name], work.like)[0]
    kept = [*list(models)[: MODELS - 1], "retrained"] if len(models) > MODELS else list(models)
    shown = {label: models[label] for label in kept}
    _draw_answers(folder / "confusions.png", plan.model, shown, plan.sets, plan.class_names)
    failed = []
    for label, name in wanted.items():
        if label in models:
            try:
                draw_method(folder / label, _subject(work, label, name, models[label]))
            except (UserError, ValueError, NotImplementedError) as error:
                failed.append(f"no pictures of {label}: {error}")
    return failed


def _name(work: Work, label: str) -> str:
    found: str = work.plan.config.methods[label].get("method", label)
    return found


def _subject(work: Work, label: str, name: str, unlearned: Variables) -> Subject:
    plan, task = work.plan, work.task(f"unlearned/{label}")
    assert isinstance(plan.model, Model)
    stage = f"unlearned/{label}"
    prepared = work.prepared.get(stage)
    if prepared is None:  # it was made in an earlier run
        prepared = prepare(task.method, work.begun, plan.sets, task.key)
    return Subject(
        name, plan.config.methods[label], plan.model, work.begun, unlearned, plan.sets,
        task.key, prepared, plan.class_names,
    )  # fmt: skip


def _draw_answers(
    path: Path,
    model: Model,
    models: Mapping[str, Variables],
    sets: Sets,
    class_names: Sequence[str],
) -> None:
    """Confusion matrices of models on the test images, side by side."""
    parts = [p for p in (sets.test_forget, sets.test_retain) if p is not None and num_examples(p)]
    if not parts:
        return
    matrices = {}
    for name, variables in models.items():
        matrix = np.zeros((len(class_names), len(class_names)))
        for part in parts:
            found = predict(model.apply, variables, part)
            np.add.at(matrix, (found.labels, found.logits.argmax(axis=1)), 1)
        matrices[name] = matrix
    forgotten = () if sets.test_forget is None else tuple(labels_of(sets.test_forget))
    save_confusions(path, matrices, class_names=class_names, forgotten=forgotten)


IMAGES = 48
"""Images of a model in a grid."""

STRIPS, LENGTH = 3, 13
"""Strips of a model, and images of a strip."""


def draw_gan_album(work: Work) -> list[str]:
    """Draws what the original, the methods' models and a retrained one generate.

    ``pictures/samples.png``: images of the same latents, those that the judge takes for the
    forgotten class marked; ``strips.png``: ways through what showed the class;
    ``scores.png``: the discriminator's logit on forget, unseen and retain images.

    Returns:
      A sentence for each picture that could not be drawn.
    """
    plan, folder = work.plan, work.plan.folder / "pictures"
    assert isinstance(plan.model, Gan)
    labels = {f"unlearned/{label}": label for label in plan.methods}
    names = {"original": "original", **labels, "retrained/0": "retrained"}
    found = models_of(work, *names)
    models = {names[name]: variables for name, variables in found.items()}
    failed = []
    draws = {"samples": _draw_samples, "strips": _draw_strips, "scores": _draw_scores}
    for name, draw in draws.items():
        path = folder / f"{name}.png"
        if path.exists() and not work.made:
            continue
        try:
            draw(path, work, plan.model, models)
        except (UserError, ValueError) as error:
            failed.append(f"no picture {name}: {error}")
    return failed


def _title(words: str, work: Work) -> str:
    return f"{words}: {work.plan.config.name}"


def _draw_samples(path: Path, work: Work, gan: Gan, models: dict[str, Variables]) -> None:
    plan = work.plan
    assert plan.judge is not None
    assert plan.sets.forget is not None
    assert plan.sets.retain is not None
    key, extent = sample_key(plan), extent_of(plan)
    made = {
        name: samples_of(gan, variables, plan.sets, key, plan.judge, extent)
        for name, variables in models.items()
    }
    rows = np.arange(min(IMAGES, extent_of(plan).samples))
    marks = None
    if forgets_class(plan.sets):
        shown = {name: shows_forgotten(one, plan.sets) for name, one in made.items()}
        # a third of the places for what showed the class in the original
        own = np.flatnonzero(shown["original"])[: IMAGES // 3]
        rest = np.flatnonzero(~shown["original"])[: len(rows) - len(own)]
        rows = np.concatenate([own, rest])
        marks = {name: one[rows] for name, one in shown.items()}
    images = {name: np.asarray(one.images[rows]) for name, one in made.items()}
    save_samples(path, images, marks=marks, title=_title("the same latents", work))


def _draw_strips(path: Path, work: Work, gan: Gan, models: dict[str, Variables]) -> None:
    plan = work.plan
    if not forgets_class(plan.sets):
        return
    assert plan.judge is not None
    assert plan.sets.forget is not None
    known = refer_gan(gan, work.begun, plan.sets, sample_key(plan), plan.judge, extent_of(plan))
    count = min(STRIPS, len(known.through))
    if not count:
        return
    half = len(known.through)
    y = jnp.full(count, labels_of(plan.sets.forget)[0], jnp.int32)
    strips = {
        name: path_images(
            variables["ema"], known.ends[:count], known.through[:count],
            known.ends[half : half + count], y, gan=gan, count=LENGTH,
        )
        for name, variables in models.items()
    }  # fmt: skip
    lengths = {name: np.asarray(path_steps(images)) for name, images in strips.items()}
    title = _title("through what showed the class", work)
    drawn = {name: np.asarray(images) for name, images in strips.items()}
    save_strips(path, drawn, lengths=lengths, title=title)


def _draw_scores(path: Path, work: Work, gan: Gan, models: dict[str, Variables]) -> None:
    sets = work.plan.sets
    unseen = sets.test_forget if num_examples(sets.test_forget) else sets.test_retain
    parts = {"forget": sets.forget, "unseen": unseen, "retain": sets.retain}
    scores: dict[str, dict[str, np.ndarray]] = {}
    notes = {}
    for name, variables in models.items():
        scores[name] = {
            part: logits_of(gan, variables["discriminator"], some)
            for part, some in parts.items()
            if some is not None
        }
        if "unseen" in scores[name]:
            area = auc(scores[name]["forget"], scores[name]["unseen"])
            notes[name] = f"AUC of forget against unseen {area:.3f}"
    save_scores(path, scores, title=_title("discriminator", work), notes=notes)
