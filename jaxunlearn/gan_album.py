"""The pictures of a run on a GAN: grids of the same latents, strips between them, scores."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxunlearn.comparing import models_of
from jaxunlearn.data.sets import labels_of, num_examples
from jaxunlearn.errors import UserError
from jaxunlearn.judging import extent_of, sample_key
from jaxunlearn.latents import path_images, path_steps
from jaxunlearn.metrics.distances import auc
from jaxunlearn.metrics.generated import refer_gan
from jaxunlearn.metrics.samples import forgets_class, logits_of, samples_of, shows_forgotten
from jaxunlearn.pictures import save_samples, save_scores, save_strips
from jaxunlearn.types import Gan, Variables
from jaxunlearn.work import Work

__all__ = ["draw_gan_album"]

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
