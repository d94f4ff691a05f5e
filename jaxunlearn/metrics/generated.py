"""All that one GAN can tell about itself."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.attribution import features
from jaxunlearn.data.sampling import fetch
from jaxunlearn.data.sets import num_examples
from jaxunlearn.errors import RequestError
from jaxunlearn.latents import Guide, invert, path_images, path_steps
from jaxunlearn.metrics.distances import (
    auc,
    classifier_score,
    frechet_distance,
    kernel_distance,
)
from jaxunlearn.metrics.neighbours import neighbour_scores
from jaxunlearn.metrics.residue import linear_probe
from jaxunlearn.metrics.samples import (
    Extractor,
    Samples,
    extract_all,
    extractor,
    features_of,
    generate,
    training_labels,
)
from jaxunlearn.predict import predict
from jaxunlearn.runner import unlearn
from jaxunlearn.types import Apply, Gan, Key, Model, Sets, Subset, Unlearner, Variables
from jaxunlearn.unlearners.cascade_memory import labels_in
from jaxunlearn.unlearners.gan_retrain import gan_finetune
from jaxunlearn.unlearners.kept import as_subset
from jaxunlearn.unlearners.retrain import retrain

__all__ = ["GAN_MEASURES", "GanReference", "forgets_class", "measure_gan", "refer_gan", "score_of"]

GAN_MEASURES = 1
"""Raised when a measure is added or changes: models judged by other ones are judged anew."""

NEIGHBOURS, COMPARED = 5, 2000
"""``k``, and images on each side, of precision, recall, density and coverage."""

RELEARNED = 50
"""Steps of relearning."""

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


class Extent(NamedTuple):
    """How much is measured; see :class:`jaxunlearn.GanConfig`."""

    samples: int = 5000
    inverted: int = 64
    inversion_steps: int = 200
    downstream_steps: int = 300


DEFAULT_EXTENT = Extent()


def forgets_class(sets: Sets) -> bool:
    """Whether whole classes are forgotten, none of which is retained."""
    assert sets.forget is not None
    assert sets.retain is not None
    return not set(labels_in(sets.forget)) & set(labels_in(sets.retain))


def refer_gan(
    gan: Gan,
    variables: Variables,
    sets: Sets,
    key: Key,
    judge: Guide,
    extent: Extent = DEFAULT_EXTENT,
) -> GanReference:
    """The reference that ``variables``, the original GAN, are."""
    samples = _samples(gan, variables, sets, key, judge, extent)
    shown = _forgotten(samples, sets)
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
    assert sets.forget is not None
    assert sets.retain is not None
    if num_examples(sets.retain) <= NEIGHBOURS + 1:
        raise RequestError(
            f"sets.retain: expected more than {NEIGHBOURS + 1} images to judge a generator by, "
            f"got {num_examples(sets.retain)}"
        )
    drawing, inverting, learning, again = jax.random.split(key, 4)
    del drawing  # of the samples, below: the reference's own
    samples = _samples(gan, variables, sets, key, judge, extent)
    values: dict[str, Any] = {}
    if forgets_class(sets):
        values["forget_share"] = float(_forgotten(samples, sets).mean())
        if reference.share:
            before, after = reference.share, values["forget_share"]
            values["pul"] = 100 * (before - after) / before
        values |= _continuity(gan, variables, sets, reference)
        values |= _truth(gan, variables, sets, again, judge, extent)
    values |= _membership(gan, variables, sets)
    if extent.inverted:
        values |= _inversions(gan, variables, sets, inverting, extent)
    values |= _quality(samples, sets, judge, extract or extractor(judge), extent)
    if extent.downstream_steps and sets.test_retain is not None:
        values["downstream"] = _downstream(judge.model, samples, sets, learning, extent)
    return values


def _samples(
    gan: Gan, variables: Variables, sets: Sets, key: Key, judge: Guide, extent: Extent
) -> Samples:
    assert sets.forget is not None
    assert sets.retain is not None
    labels = training_labels(sets.forget, sets.retain)
    own = jax.random.fold_in(key, 0)
    return generate(gan, variables, judge, labels, own, extent.samples)


def _forgotten(samples: Samples, sets: Sets) -> np.ndarray:
    """Which images the judge takes for what is forgotten, ``bool [n]``; of items none."""
    assert sets.forget is not None
    if not forgets_class(sets):
        return np.zeros(len(samples.label), bool)
    return np.isin(samples.label, labels_in(sets.forget))


def _membership(gan: Gan, variables: Variables, sets: Sets) -> dict[str, float]:
    assert sets.forget is not None
    others = sets.test_forget if num_examples(sets.test_forget) else sets.test_retain
    if others is None:
        return {}
    score = score_of(gan)
    ours, theirs = (
        predict(score, variables["discriminator"], part).logits[:, 0]
        for part in (sets.forget, others)
    )
    area = auc(ours, theirs)
    return {"membership_auc": area, "membership_gap": abs(area - 0.5)}


@functools.lru_cache(maxsize=16)
def score_of(gan: Gan) -> Apply:
    """The discriminator's logit as a column ``[B, 1]``; labels are those of class 0."""
    return lambda variables, x: gan.discriminate(variables, x, jnp.zeros(len(x), jnp.int32))[
        :, None
    ]


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
    y = jnp.full(count, labels_in(sets.forget)[0], jnp.int32)
    strips = path_images(
        variables["ema"], reference.ends[:count], reference.through, reference.ends[count:], y,
        gan=gan,
    )  # fmt: skip
    steps = np.asarray(path_steps(strips))
    largest = steps.max(axis=1) / np.maximum(steps.mean(axis=1), 1e-12)
    return {"path_length": float(steps.sum(axis=1).mean()), "largest_step": float(largest.mean())}


def _truth(
    gan: Gan, variables: Variables, sets: Sets, key: Key, judge: Guide, extent: Extent
) -> dict[str, float]:
    """What an empty share can hide: the class in the discriminator's features, and its return."""
    forget, retain = sets.forget, sets.retain
    assert forget is not None
    assert retain is not None
    found = {}
    if num_examples(sets.test_forget):
        assert sets.test_forget is not None
        found["discriminator_probe"] = linear_probe(
            _features(gan), variables["discriminator"], (forget, retain), sets.test_forget,
            examples=1000,
        )  # fmt: skip
    whole = forget._replace(
        indices=jnp.concatenate([_own(forget), _own(retain)]),
        size=jnp.asarray(num_examples(forget) + num_examples(retain), jnp.int32),
    )
    returned = unlearn(
        _relearner(gan), variables, Sets(retain=whole), key, steps=RELEARNED, batch_size=64
    )
    samples = _samples(gan, returned.variables, sets, key, judge, extent)
    return {**found, "relearned_share": float(_forgotten(samples, sets).mean())}


def _own(part: Subset) -> jax.Array:
    return part.indices[: num_examples(part)]


@functools.lru_cache(maxsize=16)
def _features(gan: Gan) -> Apply:
    return features(score_of(gan))


@functools.lru_cache(maxsize=16)
def _relearner(gan: Gan) -> Unlearner:
    # one object for one network, so that all models of a table share one program
    return gan_finetune(gan, ema=0.9)


def _downstream(model: Model, samples: Samples, sets: Sets, key: Key, extent: Extent) -> float:
    """Accuracy on retained test images of a classifier trained on generated ones.

    Its labels are the judge's, or what a conditional generator was asked for.
    """
    assert sets.test_retain is not None
    part = as_subset(
        samples.images, jnp.asarray(samples.label, jnp.int32),
        jnp.asarray(len(samples.label), jnp.int32),
    )  # fmt: skip
    trained = unlearn(
        _trainer(model), None, Sets(retain=part), key, steps=extent.downstream_steps, batch_size=128
    )
    return predict(model.apply, trained.variables, sets.test_retain).accuracy


@functools.lru_cache(maxsize=16)
def _trainer(model: Model) -> Unlearner:
    return retrain(model, optimizer=optax.adam(1e-3))
