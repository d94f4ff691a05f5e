"""GANs: a generator and a discriminator of images, with a guide and a judge trained besides.

The two classifiers are trained apart, on the same images: what the guide takes for forgotten, the
judge may not. Their training is not part of any method's time: one guide serves all requests.
"""

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.config import GanConfig, ModelConfig, TrainConfig
from jaxunlearn.core.errors import ConfigError, RequestError
from jaxunlearn.core.trees import in_chunks
from jaxunlearn.core.types import Examples, Gan, Key, Sets, Unlearner, Variables
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.examples import array_shape, fetch
from jaxunlearn.data.sets import num_examples
from jaxunlearn.engine.predict import predict
from jaxunlearn.gan import Guide
from jaxunlearn.kinds import Helper, Kind
from jaxunlearn.kinds.classifier import CLASSIFIER
from jaxunlearn.methods.gan_retrain import gan_retrain
from jaxunlearn.metrics.distances import frechet_distance
from jaxunlearn.metrics.generation import NEIGHBOURS, Extent, Extractor, GanEvidence, membership_gap
from jaxunlearn.metrics.registry import Evidence, Missing
from jaxunlearn.models import NETWORKS, build_gan
from jaxunlearn.training.optimizers import make_optimizer

MEMORISED = 0.02
"""A smaller distance of the membership AUC from .5 tells nothing."""


class GanKind(Kind):
    """Kind of the networks that ``build_gan`` makes."""

    name = "gan"
    summary = "a generator and a discriminator of images"
    section = GanConfig
    evidence = GanEvidence
    trains_methods = True

    def owns(self, model: Any) -> bool:
        return isinstance(model, Gan)

    def read(self, data: Dataset, settings: GanConfig | None = None) -> Dataset:
        """Returns the data set normalised so that images lie between -1 and 1.

        By constants: bytes from 0 to 255, floats from 0 to 1, -1 to 1 or 0 to 255, the first of
        these that holds the test images, or else by the extremes of these.
        """
        if data.mean is None:  # a reader of its own, whose images check_examples looks at
            return data
        if data.train_x.dtype == np.uint8:
            low, high = 0.0, 255.0
        else:
            # of images that no training sees: those that are to be forgotten tell nothing
            low, high = float(np.min(data.test_x)), float(np.max(data.test_x))
            usual = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
            whole = (pair for pair in usual if low < high and pair[0] <= low and high <= pair[1])
            low, high = next(whole, (low, high))
        if high <= low:
            raise ConfigError(f"data: expected images to generate, got all values {low}")
        shape = data.mean.shape
        return data._replace(
            mean=np.full(shape, (high + low) / 2, np.float32),
            std=np.full(shape, (high - low) / 2, np.float32),
        )

    def build(
        self, config: ModelConfig, x: Any, data: Dataset, settings: GanConfig | None = None
    ) -> Gan:
        return build_gan(config.name, tuple(x.shape[1:]), len(data.class_names), config.options)

    def recipe(
        self, model: Gan, train: TrainConfig, examples: int, settings: GanConfig | None = None
    ) -> tuple[Unlearner, int]:
        own = settings or GanConfig()
        return _recipe(model, train, examples, own.r1, own.r1_every, own.ema)

    def check_settings(self, settings: GanConfig) -> None:
        least = {"samples": NEIGHBOURS + 2, "inverted": 0, "inversion_steps": 1, "r1": 0}
        least |= {"downstream_steps": 0, "r1_every": 1, "ema": 0}
        for name, low in least.items():
            found = getattr(settings, name)
            if not found >= low or (name == "ema" and found >= 1):
                wanted = "a number from 0 to below 1" if name == "ema" else f"{low} or more"
                raise ConfigError(f"gan.{name}: expected {wanted}, got {found}")
        row = NETWORKS.find(settings.classifier.name, "gan.classifier.name")
        if row.kind != CLASSIFIER.name:
            raise ConfigError(
                f"gan.classifier.name: expected a classifier, got {settings.classifier.name!r}"
            )

    def check_sets(self, sets: Sets) -> None:
        if num_examples(sets.retain) <= NEIGHBOURS + 1:
            raise RequestError(
                f"request: expected more than {NEIGHBOURS + 1} retained images to judge a "
                f"generator by, got {num_examples(sets.retain)}"
            )

    def check_examples(self, model: Gan, examples: Examples) -> None:
        """Checks the images' shape; warns where they do not lie between -1 and 1."""
        shape = array_shape(examples, "part")
        if model.shape != shape:
            raise ConfigError(f"gan: expected images {list(model.shape)}, got {list(shape)}")

        def ends(rows: jax.Array) -> jax.Array:
            x = fetch(examples, rows).reshape(len(rows), -1)
            return jnp.stack([jnp.min(x, axis=1), jnp.max(x, axis=1)], axis=1)

        found = in_chunks(ends, len(examples.y), 1024)
        low, high = float(jnp.min(found)), float(jnp.max(found))
        if max(-low, high) > 1 + 1e-3:
            warnings.warn(
                f"part: expected images between -1 and 1, as generated ones lie, got {low:.3g} to "
                f"{high:.3g}; see mean and std of make_sets",
                stacklevel=3,
            )

    def helpers(self, settings: GanConfig, x: Any, data: Dataset) -> Mapping[str, Helper]:
        model = CLASSIFIER.build(settings.classifier, x, data)
        CLASSIFIER.recipe(model, settings.classifier_train, 1)
        one = Helper(model, settings.classifier, settings.classifier_train)
        return {"guide": one, "judge": one}

    def facts(self, data: Dataset, helpers: Mapping[str, Guide]) -> Mapping[str, Any]:
        return {"guide": helpers["guide"]}

    def observe(
        self, model: Gan, variables: Variables, sets: Sets, key: Key, *,
        settings: GanConfig | None = None, judge: Guide | None = None,
        guide: Guide | None = None, extract: Extractor | None = None,
    ) -> GanEvidence:  # fmt: skip
        """Returns the evidence of one GAN.

        Args:
          judge: a classifier of the images, not the guide that a method was given.
          extract: features for C-FID and the like, ``images -> [n, F]``; default: the judge's.

        Raises:
          ValueError: no judge.
        """
        if judge is None:
            raise ValueError("judge: expected a Guide to judge a GAN's images by, got None")
        own = settings or GanConfig()
        extent = Extent(**{name: getattr(own, name) for name in Extent._fields})
        return GanEvidence(model, variables, sets, key, judge, extent, extract)

    def notes(self, original: Evidence, settings: GanConfig) -> list[str]:
        """Says what C-FID is computed on, how small it can be, and whether attacks tell."""
        assert isinstance(original, GanEvidence)
        notes, real = [], original.features_of("retain")
        if original.sets.test_retain is not None:
            unseen = original.features_of("test_retain")
            judge = original.judge
            right = predict(judge.model.apply, judge.variables, original.sets.test_retain)
            notes.append(
                f"C-FID: {real.shape[1]} features of a classifier "
                f"({settings.classifier.name}, accuracy {right.accuracy:.3f} on retained test "
                f"images) trained on the same data, {len(real)} retained against "
                f"{original.extent.samples} generated images; between retained training and test "
                f"images it is {frechet_distance(real, unseen):.2f}"
            )
            if min(len(real), len(unseen)) <= 2 * real.shape[1]:
                notes.append(
                    f"few images: {min(len(real), len(unseen))} for {real.shape[1]} features, "
                    "C-FID is too large"
                )
        try:
            gap = membership_gap(original)
        except Missing:
            return notes
        if gap < MEMORISED:
            notes.append(
                "the original's discriminator has not memorised what is to be forgotten (its AUC "
                f"is {gap:.3f} from 0.5): the rows on membership tell nothing"
            )
        return notes

    def limits(self, settings: GanConfig) -> list[str]:
        """Says how many images were drawn and searched for."""
        return [
            "A model that makes images was judged by a sample: every share and every distance "
            f"rests on {settings.samples:,} images that it made. What it makes no more often than "
            f"once in {max(1, settings.samples // 3):,} images may have been missed.",
            f"For at most {settings.inverted:,} of the forgotten pictures an input was sought, in "
            f"{settings.inversion_steps:,} steps, that brings the picture back. Other pictures, "
            "and longer searches, were not tried.",
            "Which of the images show what was to be forgotten was decided by a second model, "
            "which errs too.",
        ]


@functools.lru_cache(maxsize=32)
def _recipe(
    model: Gan, train: TrainConfig, examples: int, r1: float, r1_every: int, ema: float
) -> tuple[Unlearner, int]:
    # one object for equal settings, so that a second call finds the compiled program
    if train.augment != "none":
        raise ConfigError(f"train.augment: expected 'none' for a GAN, got {train.augment!r}")
    steps = max(1, round(train.epochs * examples / train.batch_size))
    optimizer = make_optimizer(train, steps)
    return gan_retrain(model, optimizer=optimizer, r1=r1, r1_every=r1_every, ema=ema), steps


GAN = GanKind()
