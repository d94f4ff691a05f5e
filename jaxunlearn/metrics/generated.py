"""All that one GAN can tell about itself."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.errors import RequestError
from jaxunlearn.core.types import Gan, Key, Sets, Variables
from jaxunlearn.data.batches import fetch
from jaxunlearn.data.sets import labels_of, num_examples
from jaxunlearn.gan import Guide, invert, path_images, path_steps
from jaxunlearn.metrics.distances import (
    auc,
    classifier_score,
    frechet_distance,
    kernel_distance,
    neighbour_scores,
)
from jaxunlearn.metrics.gan_residue import downstream, truth
from jaxunlearn.metrics.samples import (
    DEFAULT_EXTENT,
    Extent,
    Extractor,
    Samples,
    extract_all,
    extractor,
    features_of,
    forgets_class,
    logits_of,
    samples_of,
    shows_forgotten,
)

GAN_MEASURES = 2
"""Raised when a measure is added or changes: models judged by other ones are judged anew."""

NEIGHBOURS, COMPARED = 5, 2000
"""``k``, and images on each side, of precision, recall, density and coverage."""

STRIPS = 32
"""Paths through the forgotten region."""

MEMORISED = 0.02
"""A smaller distance of the membership AUC from .5 tells nothing."""


class GanReference(NamedTuple):
    """What other models are judged by: taken from the original.

    Attributes:
      share: of the forgotten class among its images.
      through: ``[r, Z]``, latents whose images showed it; none for items.
      ends: ``[2 r, Z]``, latents of other images.
    """

    share: float
    through: jax.Array
    ends: jax.Array


def refer_gan(
    gan: Gan,
    variables: Variables,
    sets: Sets,
    key: Key,
    judge: Guide,
    extent: Extent = DEFAULT_EXTENT,
) -> GanReference:
    """The reference that ``variables``, the original GAN, are."""
    samples = samples_of(gan, variables, sets, key, judge, extent)
    shown = shows_forgotten(samples, sets)
    through = np.flatnonzero(shown)[:STRIPS]
    others = np.flatnonzero(~shown)[: 2 * len(through)]
    through = through[: len(others) // 2]
    ends = samples.z[others[: 2 * len(through)]]
    return GanReference(float(shown.mean()), samples.z[through], ends)


def measure_gan(
    gan: Gan,
    variables: Variables,
    sets: Sets,
    key: Key,
    judge: Guide,
    reference: GanReference,
    *,
    extent: Extent = DEFAULT_EXTENT,
    extract: Extractor | None = None,
) -> dict[str, Any]:
    """All that one GAN can tell about itself, but what compares it with retrained ones.

    Args:
      sets: ``forget`` and ``retain``; ``test_forget`` and ``test_retain`` where given.
      key: of all that is drawn; the same for all models of a table.
      judge: a classifier of the images, trained apart from any method's guide.
      reference: :func:`refer_gan` of the original.
      extract: features for C-FID, precision and the like; by default the judge's.

    Returns:
      Numbers under names in ``METRICS``. Quality is judged against retained images. For a
      class, ``membership_gap`` is ``|AUC - .5|`` of the discriminator's logit on forgotten
      against test images of that class, for items against test images.

    Raises:
      RequestError: fewer retained images than the metrics need.
    """
    if sets.forget is None or sets.retain is None:
        raise ValueError("sets: expected forget and retain, got a request without one of them")
    if num_examples(sets.retain) <= NEIGHBOURS + 1:
        raise RequestError(
            f"sets.retain: expected more than {NEIGHBOURS + 1} images to judge a generator by, "
            f"got {num_examples(sets.retain)}"
        )
    drawing, inverting, learning, again = jax.random.split(key, 4)
    del drawing  # of the samples, below: the reference's own
    samples = samples_of(gan, variables, sets, key, judge, extent)
    values: dict[str, Any] = {}
    if forgets_class(sets):
        values["forget_share"] = float(shows_forgotten(samples, sets).mean())
        if reference.share:
            before, after = reference.share, values["forget_share"]
            values["pul"] = 100 * (before - after) / before
        values |= _continuity(gan, variables, sets, reference)
        values |= truth(gan, variables, sets, again, judge, extent)
    values |= _membership(gan, variables, sets)
    if gan.num_classes and forgets_class(sets):
        samples = samples_of(gan, variables, sets, key, judge, extent, retained=True)
    if extent.inverted:
        values |= _inversions(gan, variables, sets, inverting, extent)
    values |= _quality(samples, sets, judge, extract or extractor(judge), extent)
    if extent.downstream_steps and sets.test_retain is not None:
        values["downstream"] = downstream(judge.model, samples, sets, learning, extent)
    return values


def _membership(gan: Gan, variables: Variables, sets: Sets) -> dict[str, float]:
    assert sets.forget is not None
    others = sets.test_forget if num_examples(sets.test_forget) else sets.test_retain
    if others is None:
        return {}
    ours, theirs = (
        logits_of(gan, variables["discriminator"], part) for part in (sets.forget, others)
    )
    area = auc(ours, theirs)
    return {"membership_auc": area, "membership_gap": abs(area - 0.5)}


def _inversions(
    gan: Gan, variables: Variables, sets: Sets, key: Key, extent: Extent
) -> dict[str, float]:
    """Mean square error of the inversion of forgotten images, and of images never seen."""
    others = sets.test_forget if num_examples(sets.test_forget) else sets.test_retain
    found = {}
    for name, part in (("forget", sets.forget), ("unseen", others)):
        if part is not None:
            positions = part.indices[: min(num_examples(part), extent.inverted)]
            made = invert(
                variables["ema"], fetch(part.examples, positions), part.examples.y[positions],
                key, gan=gan, steps=extent.inversion_steps,
            )  # fmt: skip
            found[f"inversion_{name}"] = float(jnp.mean(made.error))
    return found


def _quality(
    samples: Samples, sets: Sets, judge: Guide, extract: Extractor, extent: Extent
) -> dict[str, float]:
    assert sets.retain is not None
    real = features_of(extract, sets.retain, extent.samples)
    made = extract_all(extract, samples.images)
    near = neighbour_scores(real[:COMPARED], made[:COMPARED], NEIGHBOURS)
    return {
        "fid": frechet_distance(made, real),
        "kid": kernel_distance(made[:COMPARED], real[:COMPARED]),
        "classifier_score": classifier_score(samples.logits),
        **near._asdict(),
    }


def _continuity(
    gan: Gan, variables: Variables, sets: Sets, reference: GanReference
) -> dict[str, float]:
    """Paths from one image to another through what showed the class in the original."""
    assert sets.forget is not None
    count = len(reference.through)
    if not count:
        return {}
    y = jnp.full(count, labels_of(sets.forget)[0], jnp.int32)
    strips = path_images(
        variables["ema"], reference.ends[:count], reference.through, reference.ends[count:], y,
        gan=gan,
    )  # fmt: skip
    steps = np.asarray(path_steps(strips))
    largest = steps.max(axis=1) / np.maximum(steps.mean(axis=1), 1e-12)
    return {"path_length": float(steps.sum(axis=1).mean()), "largest_step": float(largest.mean())}
