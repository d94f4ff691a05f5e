"""The pictures of a run, in its folder ``pictures``: drawn when something new was made."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxunlearn.data.sets import labels_of, num_examples
from jaxunlearn.errors import UserError
from jaxunlearn.execute import prepare
from jaxunlearn.gan_album import draw_gan_album
from jaxunlearn.pages import PAGES, Subject, draw_method
from jaxunlearn.pictures import save_confusions
from jaxunlearn.predict import predict
from jaxunlearn.stages import load_stage
from jaxunlearn.types import Gan, Model, Sets, Variables
from jaxunlearn.work import Work

__all__ = ["draw_album"]

MODELS = 9
"""Confusion matrices side by side, at most."""


def draw_album(work: Work) -> list[str]:
    """Draws what the methods of a trial found and changed.

    ``pictures/confusions.png`` shows what the original, the methods' models and a retrained
    one take the test images for; ``pictures/<label>/`` what a method of
    :data:`jaxunlearn.pages.PAGES` has to show. Nothing is drawn if all models and pictures
    were there already.

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
