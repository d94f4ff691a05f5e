"""Metrics of GANs, and the evidence that they read.

Quality is judged against retained images. For a class, attacks and inversions compare with test
images of that class; for items with all test images.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.attribution import features
from jaxunlearn.core.errors import RequestError
from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.core.trees import to_device
from jaxunlearn.core.types import Apply, Gan, Key, Model, Sets, Subset, Unlearner, Variables
from jaxunlearn.data.examples import fetch
from jaxunlearn.data.sets import forgets_class, labels_of, num_examples
from jaxunlearn.engine import unlearn
from jaxunlearn.engine.predict import predict
from jaxunlearn.gan import Guide, images_of, invert, look, path_images, path_steps
from jaxunlearn.methods.gan_retrain import gan_finetune
from jaxunlearn.methods.retrain import retrain
from jaxunlearn.methods.shares import as_subset
from jaxunlearn.metrics import distances
from jaxunlearn.metrics.registry import Evidence, Metric, Missing
from jaxunlearn.metrics.relearning import linear_probe

NEIGHBOURS, COMPARED = 5, 2000
"""``k``, and images on each side, of precision, recall, density and coverage."""

STRIPS = 32
"""Paths through the forgotten region."""

RELEARNED = 50
"""Steps of relearning."""

Extractor = Callable[[jax.Array], jax.Array]
"""``images [n, ...] -> features [n, F]``: what C-FID and its like are computed on."""


class Extent(NamedTuple):
    """Amounts that are measured; see :class:`jaxunlearn.config.GanConfig`."""

    samples: int = 5000
    inverted: int = 64
    inversion_steps: int = 200
    downstream_steps: int = 300


class Samples(NamedTuple):
    """Generated images, and what they are taken for.

    Attributes:
      z: ``[n, Z]``.
      y: ``int32 [n]``, labels that a conditional generator was asked for.
      images: ``[n, ...]``, normalised.
      label: ``int [n]``, what the judge says.
      logits: ``float32 [n, K]``.
    """

    z: jax.Array
    y: jax.Array
    images: jax.Array
    label: np.ndarray
    logits: np.ndarray


class GanEvidence(Evidence):
    """Evidence of one GAN: its samples, what lies between them, its discriminator's logits.

    Args:
      judge: a classifier of the images, trained apart from any method's guide.
      extent: how much is measured.
      extract: features for C-FID, precision and the like; default: those that the judge's last
        layer reads.
    """

    provides = frozenset({"weights", "samples", "features", "logits", "inversions", "strips"})

    def __init__(
        self, model: Gan, variables: Variables, sets: Sets, key: Key, judge: Guide,
        extent: Extent = Extent(), extract: Extractor | None = None,  # noqa: B008
    ) -> None:  # fmt: skip
        super().__init__(model, variables, sets, key)
        if num_examples(sets.retain) <= NEIGHBOURS + 1:
            raise RequestError(
                f"sets.retain: expected more than {NEIGHBOURS + 1} images to judge a generator "
                f"by, got {num_examples(sets.retain)}"
            )
        self.judge, self.extent = judge, extent
        self.extract = extract or (lambda images: _see(judge, images)[0])
        self._logits: dict[str, np.ndarray] = {}
        self._real: dict[str, np.ndarray] = {}
        self._paces: tuple[GanEvidence, np.ndarray] | None = None

    @property
    def of_class(self) -> bool:
        """Tells whether whole classes are forgotten."""
        return forgets_class(self.sets)

    @functools.cached_property
    def samples(self) -> Samples:
        """Returns images of the latents that all models of a table share."""
        return self._drawn(0, self.sets.forget, self.sets.retain)

    @functools.cached_property
    def retained(self) -> Samples:
        """Returns the samples that quality is judged by.

        A conditional generator is asked for labels of retained images alone: a retrained one
        never learned the others.
        """
        conditional = self.model.num_classes and self.of_class
        return self._drawn(0, self.sets.retain) if conditional else self.samples

    @functools.cached_property
    def features(self) -> np.ndarray:
        """Returns features of the retained samples, ``[n, F]``."""
        return extract_all(self.extract, self.retained.images)

    @functools.cached_property
    def features_again(self) -> np.ndarray:
        """Returns features of samples of other latents, ``[n, F]``: what others compare with."""
        conditional = self.model.num_classes and self.of_class
        parts = (self.sets.retain,) if conditional else (self.sets.forget, self.sets.retain)
        return extract_all(self.extract, self._drawn(1, *parts).images)

    def features_of(self, name: str) -> np.ndarray:
        """Returns features of at most as many images of a set, drawn at random, ``[n, F]``."""
        if name not in self._real:
            part = self.part(name)
            order = np.random.default_rng(0).permutation(num_examples(part))
            at = np.asarray(part.indices)[order[: self.extent.samples]]
            self._real[name] = extract_all(self.extract, fetch(part.examples, at))
        return self._real[name]

    @functools.cached_property
    def near(self) -> distances.NeighbourScores:
        """Returns how samples and retained images cover each other."""
        real = self.features_of("retain")[:COMPARED]
        return distances.neighbour_scores(real, self.features[:COMPARED], NEIGHBOURS)

    @functools.cached_property
    def shows_forgotten(self) -> np.ndarray:
        """Tells which samples the judge takes for the class, ``bool [n]``; of items none."""
        if not self.of_class:
            return np.zeros(len(self.samples.label), bool)
        return np.isin(self.samples.label, labels_of(self.part("forget")))

    @property
    def unseen(self) -> str:
        """Names the set of images like the forgotten ones that no training saw."""
        return "test_forget" if num_examples(self.sets.test_forget) else "test_retain"

    def logits(self, name: str) -> np.ndarray:
        """Returns the discriminator's logits on a set's images, ``[n]``."""
        if name not in self._logits:
            part = self.part(name)
            self._logits[name] = logits_of(self.model, self.variables["discriminator"], part)
        return self._logits[name]

    def inversions(self, name: str) -> float:
        """Returns the mean square error of the inversion of some images of a set."""
        if not self.extent.inverted:
            raise Missing("inversions")
        part, key = self.part(name), derive(self.key, Purpose.INVERSION)
        at = np.asarray(part.indices)[: min(num_examples(part), self.extent.inverted)]
        x, y = fetch(part.examples, at), to_device(np.asarray(part.examples.y)[at])
        made = invert(
            self.model, self.variables["ema"], x, y, key, steps=self.extent.inversion_steps
        )
        return float(jnp.mean(made.error))

    @functools.cached_property
    def through(self) -> tuple[jax.Array, jax.Array]:
        """Returns latents that show the class ``[r, Z]``, and ``[2 r, Z]`` that do not."""
        shown = self.shows_forgotten
        through = np.flatnonzero(shown)[:STRIPS]
        others = np.flatnonzero(~shown)[: 2 * len(through)]
        through = through[: len(others) // 2]
        if not len(through):
            raise Missing("samples of the class")
        return self.samples.z[through], self.samples.z[others[: 2 * len(through)]]

    def strips(self, original: "GanEvidence", most: int = STRIPS, **options: Any) -> jax.Array:
        """Returns images along paths through what showed the class in the original."""
        through, ends = original.through
        half, count = len(through), min(most, len(through))
        y = jnp.full(count, labels_of(self.part("forget"))[0], jnp.int32)
        return path_images(
            self.model, self.variables["ema"], ends[:count], through[:count],
            ends[half : half + count], y, **options,
        )  # fmt: skip

    def paces(self, original: "GanEvidence") -> np.ndarray:
        """Returns how far images move at each step of those paths, ``[r, steps]``."""
        _class_only(self)
        if self._paces is None or self._paces[0] is not original:
            self._paces = original, np.asarray(path_steps(self.strips(original)))
        return self._paces[1]

    def _drawn(self, number: int, *parts: Subset | None) -> Samples:
        labels = jnp.concatenate([
            part.examples.y[part.indices[: num_examples(part)]]
            for part in parts
            if part is not None
        ])  # fmt: skip
        own = derive(self.key, Purpose.SAMPLES, number)
        return generate(self.model, self.variables, self.judge, labels, own, self.extent.samples)


@partial(jax.jit, static_argnames=("gan", "count"))
def _draw(
    generator: Variables, labels: jax.Array, key: Key, *, gan: Gan, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    noise, asking = jax.random.split(key)
    z = jax.random.normal(noise, (count, gan.latent))
    y = labels[jax.random.randint(asking, (count,), 0, len(labels))]
    return z, y, images_of(gan, generator, gan.style(generator, z, y))


def generate(
    gan: Gan, variables: Variables, judge: Guide, labels: jax.Array, key: Key, count: int
) -> Samples:
    """Generates images of the averaged generator; equal keys give equal latents to every model.

    Args:
      labels: ``int [N]``; a conditional generator is asked for labels drawn from these.

    Raises:
      ValueError: of a wrecked generator, whose images are NaN.
    """
    z, y, images = _draw(variables["ema"], labels, key, gan=gan, count=count)
    logits = np.asarray(_see(judge, images)[1])
    if not np.isfinite(logits).all():  # the largest of them would be taken for a class
        raise ValueError("expected finite images, got some that a classifier makes NaN of")
    return Samples(z, y, images, logits.argmax(axis=1), logits)


@partial(jax.jit, static_argnames="apply")
def _look(variables: Variables, images: jax.Array, *, apply: Apply) -> tuple[jax.Array, jax.Array]:
    return look(apply, variables, images)


def _see(judge: Guide, images: jax.Array, chunk: int = 500) -> tuple[jax.Array, jax.Array]:
    """Returns features ``[n, F]`` and logits ``[n, K]`` of images, some at a time."""
    parts = [
        _look(judge.variables, images[at : at + chunk], apply=judge.model.apply)
        for at in range(0, len(images), chunk)
    ]
    found, logits = (jnp.concatenate(each) for each in zip(*parts, strict=True))
    return found, logits


def extract_all(extract: Extractor, images: jax.Array, chunk: int = 500) -> np.ndarray:
    """Returns features of images ``[n, ...]``, some at a time, ``[n, F]`` on the host."""
    parts = [extract(images[at : at + chunk]) for at in range(0, len(images), chunk)]
    return np.concatenate([np.asarray(part, np.float32) for part in parts])


@partial(jax.jit, static_argnames="gan")
def _discriminate(discriminator: Variables, x: jax.Array, y: jax.Array, *, gan: Gan) -> jax.Array:
    return gan.discriminate(discriminator, x, y)


def logits_of(gan: Gan, discriminator: Variables, part: Subset, chunk: int = 500) -> np.ndarray:
    """Returns the discriminator's logits on a set's images with their labels, ``[n]``."""
    count = num_examples(part)
    # equal chunks of a multiple of 4: what couples the images of a batch couples all alike
    size = min(chunk, -(-count // 4) * 4)
    places = np.arange(-(-count // size) * size) % count
    positions = np.asarray(part.indices)[places].reshape(-1, size)
    labels = np.asarray(part.examples.y)
    logits = [
        _discriminate(discriminator, fetch(part.examples, some), labels[some], gan=gan)
        for some in positions
    ]
    return np.concatenate([np.asarray(some) for some in logits])[:count]


def forget_share(evidence: GanEvidence) -> float:
    """Computes the share of samples that the judge takes for the class to be forgotten."""
    _class_only(evidence)
    return float(evidence.shows_forgotten.mean())


def taken_away(evidence: GanEvidence, original: GanEvidence) -> float:
    """Computes PUL, ``100 (before - after) / before``, of the shares of the class."""
    before = forget_share(original)
    if not before:
        raise Missing("samples of the class")
    return 100 * (before - forget_share(evidence)) / before


def membership_auc(evidence: GanEvidence) -> float:
    """Computes the AUC of the discriminator's logit, forget against unseen images."""
    return distances.auc(evidence.logits("forget"), evidence.logits(evidence.unseen))


def membership_gap(evidence: GanEvidence) -> float:
    """Computes ``|AUC - .5|`` of :func:`membership_auc`."""
    return abs(membership_auc(evidence) - 0.5)


def inversion(evidence: GanEvidence, forgotten: bool) -> float:
    """Computes the error of the inversion of forgotten images, or of images never seen."""
    return evidence.inversions("forget" if forgotten else evidence.unseen)


def fid(evidence: GanEvidence) -> float:
    """Computes C-FID between samples and retained images."""
    return distances.frechet_distance(evidence.features, evidence.features_of("retain"))


def kid(evidence: GanEvidence) -> float:
    """Computes KID between samples and retained images."""
    real = evidence.features_of("retain")
    return distances.kernel_distance(evidence.features[:COMPARED], real[:COMPARED])


def ret_fid(evidence: GanEvidence, retrained: Sequence[GanEvidence]) -> float:
    """Computes Ret-FID, C-FID between samples and those of the first retrained model.

    Its own come from latents of their own, so that its value says what two samples of one model
    differ by. A retrained model whose images are not finite has failed in its own cells: the
    next one counts.
    """
    finite = (one for one in retrained if np.isfinite(one.samples.images).all())
    first = next(finite, retrained[0])
    return distances.frechet_distance(evidence.features, first.features_again)


def classifier_score(evidence: GanEvidence) -> float:
    """Computes the inception score of the judge on the samples."""
    return distances.classifier_score(evidence.retained.logits)


def neighbours(evidence: GanEvidence, which: str) -> float:
    """Computes precision, recall, density or coverage; see ``distances.neighbour_scores``."""
    return float(getattr(evidence.near, which))


def path_length(evidence: GanEvidence, original: GanEvidence) -> float:
    """Computes the mean length of paths through what showed the class in the original."""
    return float(evidence.paces(original).sum(axis=1).mean())


def largest_step(evidence: GanEvidence, original: GanEvidence) -> float:
    """Computes the largest step of such a path over the mean one, averaged over paths."""
    steps = evidence.paces(original)
    return float((steps.max(axis=1) / np.maximum(steps.mean(axis=1), 1e-12)).mean())


def discriminator_probe(evidence: GanEvidence) -> float:
    """Computes the accuracy of a linear probe on the discriminator's features."""
    _class_only(evidence)
    parts = (evidence.part("forget"), evidence.part("retain"))
    return linear_probe(
        _features(evidence.model), evidence.variables["discriminator"], parts,
        evidence.part("test_forget"), examples=1000,
    )  # fmt: skip


def relearned_share(evidence: GanEvidence) -> float:
    """Computes the share of the class after the GAN is trained on all images again."""
    _class_only(evidence)
    forget, retain = evidence.part("forget"), evidence.part("retain")
    own = [part.indices[: num_examples(part)] for part in (forget, retain)]
    whole = forget._replace(
        indices=jnp.concatenate(own), size=jnp.asarray(sum(map(len, own)), jnp.int32)
    )
    learning, drawing = jax.random.split(derive(evidence.key, Purpose.RELEARNING))
    returned = unlearn(
        _relearner(evidence.model), evidence.variables, Sets(retain=whole), learning,
        steps=RELEARNED, batch_size=64,
    )  # fmt: skip
    again = GanEvidence(
        evidence.model, returned.variables, evidence.sets, drawing, evidence.judge, evidence.extent
    )
    return float(again.shows_forgotten.mean())


def downstream(evidence: GanEvidence) -> float:
    """Computes the accuracy on retained test images of a classifier trained on the samples.

    Its labels are the judge's.
    """
    if not evidence.extent.downstream_steps:
        raise Missing("downstream")
    test, samples = evidence.part("test_retain"), evidence.retained
    count = jnp.asarray(len(samples.label), jnp.int32)
    part = as_subset(samples.images, jnp.asarray(samples.label, jnp.int32), count)
    key = derive(evidence.key, Purpose.DOWNSTREAM)
    trained = unlearn(
        _trainer(evidence.judge.model), None, Sets(retain=part), key,
        steps=evidence.extent.downstream_steps, batch_size=128,
    )  # fmt: skip
    return predict(evidence.judge.model.apply, trained.variables, test).accuracy


def _class_only(evidence: GanEvidence) -> None:
    if not evidence.of_class:
        raise Missing("a class")


@functools.lru_cache(maxsize=16)
def _features(gan: Gan) -> Apply:
    """Returns the function of what the discriminator's last layer reads; labels play no part."""

    def score(variables: Variables, x: jax.Array) -> jax.Array:
        return gan.discriminate(variables, x, jnp.zeros(len(x), jnp.int32))[:, None]

    return features(score)


@functools.lru_cache(maxsize=16)
def _relearner(gan: Gan) -> Unlearner:
    # one object for one network, so that all models of a table share one program
    return gan_finetune(gan, ema=0.9)


@functools.lru_cache(maxsize=16)
def _trainer(model: Model) -> Unlearner:
    return retrain(model, optimizer=optax.adam(1e-3))


def _row(
    label: str, group: str, ideal: str, form: str, function: Callable[..., Any], needs: str,
    scope: str = "model",
) -> Metric:  # fmt: skip
    return Metric(label, group, ideal, form, function, tuple(needs.split()), scope)


_AS = "as retrained"
ROWS = {
    "forget_share": _row(
        "share of the class in generated images", "forgetting", "small", ".3f", forget_share,
        "samples",
    ),
    "pul": _row(
        "PUL: share taken away, percent", "forgetting", "large", ".1f", taken_away, "samples",
        "original",
    ),
    "inversion_forget": _row(
        "inversion error, forgotten images", "forgetting", _AS, ".4f",
        partial(inversion, forgotten=True), "inversions",
    ),
    "inversion_unseen": _row(
        "inversion error, unseen images", "forgetting", _AS, ".4f",
        partial(inversion, forgotten=False), "inversions",
    ),
    "fid": _row("C-FID to retained images", "utility", "small", ".2f", fid, "features"),
    "ret_fid": _row(
        "Ret-FID to a retrained model's images", "utility", _AS, ".2f", ret_fid, "features",
        "retrained",
    ),
    "kid": _row("KID to retained images", "utility", "small", ".3f", kid, "features"),
    "classifier_score": _row(
        "classifier score", "utility", _AS, ".2f", classifier_score, "samples"
    ),
    **{
        name: _row(name, "utility", _AS, ".3f", partial(neighbours, which=name), "features")
        for name in ("precision", "recall", "density", "coverage")
    },
    "downstream": _row(
        "accuracy of a classifier trained on it", "utility", _AS, ".3f", downstream, "samples"
    ),
    "membership_auc": _row(
        "membership AUC of the discriminator", "privacy", "0.5", ".3f", membership_auc, "logits"
    ),
    "membership_gap": _row(
        "distance of the AUC from 0.5", "privacy", "small", ".3f", membership_gap, "logits"
    ),
    "discriminator_probe": _row(
        "probe of the discriminator, forget (test)", "truth", _AS, ".3f", discriminator_probe,
        "logits",
    ),
    "relearned_share": _row(
        "share of the class after relearning", "truth", _AS, ".3f", relearned_share, "samples"
    ),
    "path_length": _row(
        "path length through the class", "truth", _AS, ".2f", path_length, "strips", "original"
    ),
    "largest_step": _row(
        "largest step of a path, times the mean", "truth", _AS, ".2f", largest_step, "strips",
        "original",
    ),
}  # fmt: skip
"""The metrics of GANs."""
