"""Pictures that a run on GANs draws: grids of the same latents, strips between them, scores.

Each is a function of the file to write, the run and an empty label.
"""

import json
from pathlib import Path

import numpy as np

from jaxunlearn import pictures
from jaxunlearn.core.files import write_text
from jaxunlearn.data.sets import num_examples
from jaxunlearn.gan import path_steps
from jaxunlearn.kinds import View
from jaxunlearn.kinds.classifier_pictures import write_exposed
from jaxunlearn.metrics.distances import auc
from jaxunlearn.metrics.generation import GanEvidence
from jaxunlearn.metrics.registry import Missing
from jaxunlearn.pictures.scores import describe_scores

IMAGES = 48
"""Images of a model in a grid."""

STRIPS, LENGTH = 3, 13
"""Strips of a model, and images of a strip."""


def draw_samples(path: Path, view: View, label: str) -> None:
    """Draws images of the same latents, those of the forgotten class marked."""
    seen = _observed(view)
    original = seen["original"]
    rows, marks = np.arange(min(IMAGES, original.extent.samples)), None
    if original.of_class:
        shown = {name: one.shows_forgotten for name, one in seen.items()}
        # a third of the places for what showed the class in the original
        own = np.flatnonzero(shown["original"])[: IMAGES // 3]
        rest = np.flatnonzero(~shown["original"])[: len(rows) - len(own)]
        rows = np.concatenate([own, rest])
        marks = {name: one[rows] for name, one in shown.items()}
    images = {name: np.asarray(one.samples.images[rows]) for name, one in seen.items()}
    pictures.save_samples(path, images, marks=marks, title=f"the same latents: {view.title}")


def draw_strips(path: Path, view: View, label: str) -> None:
    """Draws ways through what showed the class in the original."""
    seen = _observed(view)
    original = seen["original"]
    if not original.of_class:
        return
    try:
        strips = {n: one.strips(original, STRIPS, count=LENGTH) for n, one in seen.items()}
    except Missing:  # the original never showed the class
        return
    lengths = {name: np.asarray(path_steps(images)) for name, images in strips.items()}
    drawn = {name: np.asarray(images) for name, images in strips.items()}
    title = f"through what showed the class: {view.title}"
    pictures.save_strips(path, drawn, lengths=lengths, title=title)


def draw_scores(path: Path, view: View, label: str) -> None:
    """Draws the discriminator's logit on forget, unseen and retain images."""
    scores: dict[str, dict[str, np.ndarray]] = {}
    notes = {}
    for name, one in _observed(view).items():
        parts = {"forget": "forget", "unseen": one.unseen, "retain": "retain"}
        scores[name] = {
            part: one.logits(place) for part, place in parts.items() if getattr(view.sets, place)
        }
        if "unseen" in scores[name]:
            area = auc(scores[name]["forget"], scores[name]["unseen"])
            notes[name] = f"AUC of forget against unseen {area:.3f}"
    pictures.save_scores(path, scores, title=f"discriminator: {view.title}", notes=notes)
    about = "a large logit is taken for a sign of training; 0.5 is a coin toss"
    text = describe_scores(scores, "discriminator's logit", "forget", "unseen", about=about)
    write_text(path.with_suffix(".json"), json.dumps(text) + "\n")


def draw_exposed(path: Path, view: View, label: str) -> None:
    """Writes which forgotten images the discriminator takes most for real."""
    forget = view.sets.forget
    assert forget is not None
    values = {n: one.logits("forget") for n, one in _observed(view).items() if n != "retrained"}
    at = np.asarray(forget.indices)[: num_examples(forget)]
    names = [view.class_names[k] for k in np.asarray(forget.examples.y)[at]]
    write_exposed(path, forget, values, names, "discriminator's logit")


def _observed(view: View) -> dict[str, GanEvidence]:
    return {name: view.observe(name) for name in view.variables}
