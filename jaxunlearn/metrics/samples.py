"""Images of a generator, and how a judge sees them."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.types import Apply, Gan, Key, Sets, Subset, Variables
from jaxunlearn.data.batches import fetch
from jaxunlearn.data.sets import labels_of, num_examples
from jaxunlearn.gan import Guide, look
from jaxunlearn.gan.guide import images_of

Extractor = Callable[[jax.Array], jax.Array]
"""``images [n, ...] -> features [n, F]``: what C-FID and its like are computed on."""


class Extent(NamedTuple):
    """How much is measured; see :class:`jaxunlearn.GanConfig`."""

    samples: int = 5000
    inverted: int = 64
    inversion_steps: int = 200
    downstream_steps: int = 300


DEFAULT_EXTENT = Extent()


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
    """Images of the averaged generator; the same key gives the same latents to every model.

    Args:
      labels: ``int [N]``; a conditional generator is asked for labels drawn from these.
    """
    z, y, images = _draw(variables["ema"], labels, key, gan=gan, count=count)
    logits = np.asarray(see(judge, images)[1])
    return Samples(z, y, images, logits.argmax(axis=1), logits)


@partial(jax.jit, static_argnames="apply")
def _look(variables: Variables, images: jax.Array, *, apply: Apply) -> tuple[jax.Array, jax.Array]:
    return look(apply, variables, images)


def see(judge: Guide, images: jax.Array, chunk: int = 500) -> tuple[jax.Array, jax.Array]:
    """Features ``[n, F]`` and logits ``[n, K]`` of images, some at a time."""
    parts = [
        _look(judge.variables, images[at : at + chunk], apply=judge.model.apply)
        for at in range(0, len(images), chunk)
    ]
    features, logits = (jnp.concatenate(each) for each in zip(*parts, strict=True))
    return features, logits


def extractor(judge: Guide) -> Extractor:
    """The default features: those that the judge's last layer reads."""
    return lambda images: see(judge, images)[0]


def training_labels(*parts: Subset) -> jax.Array:
    """Labels of all examples of some sets, ``int32 [N]``."""
    return jnp.concatenate([part.examples.y[part.indices[: num_examples(part)]] for part in parts])


def features_of(extract: Extractor, part: Subset, count: int, seed: int = 0) -> np.ndarray:
    """Features of a set's images, at most ``count`` of them drawn at random, ``[n, F]``."""
    places = np.random.default_rng(seed).permutation(num_examples(part))[:count]
    return extract_all(extract, fetch(part.examples, part.indices[places]))


def extract_all(extract: Extractor, images: jax.Array, chunk: int = 500) -> np.ndarray:
    """Features of images ``[n, ...]``, some at a time, ``[n, F]`` on the host."""
    parts = [extract(images[at : at + chunk]) for at in range(0, len(images), chunk)]
    return np.concatenate([np.asarray(part, np.float32) for part in parts])


def forgets_class(sets: Sets) -> bool:
    """Whether whole classes are forgotten, none of which is retained."""
    assert sets.forget is not None
    assert sets.retain is not None
    return not set(labels_of(sets.forget)) & set(labels_of(sets.retain))


def samples_of(
    gan: Gan,
    variables: Variables,
    sets: Sets,
    key: Key,
    judge: Guide,
    extent: Extent,
    *,
    retained: bool = False,
) -> Samples:
    """The images that a model is judged by; of the same latents for all models.

    ``retained``: a conditional generator is asked for labels of retained images alone, for a
    retrained one never learned the others.
    """
    assert sets.forget is not None
    assert sets.retain is not None
    parts = (sets.retain,) if retained else (sets.forget, sets.retain)
    own = jax.random.fold_in(key, 0)
    return generate(gan, variables, judge, training_labels(*parts), own, extent.samples)


def shows_forgotten(samples: Samples, sets: Sets) -> np.ndarray:
    """Which images the judge takes for what is forgotten, ``bool [n]``; of items none."""
    assert sets.forget is not None
    if not forgets_class(sets):
        return np.zeros(len(samples.label), bool)
    return np.isin(samples.label, labels_of(sets.forget))


@partial(jax.jit, static_argnames="gan")
def _discriminate(discriminator: Variables, x: jax.Array, y: jax.Array, *, gan: Gan) -> jax.Array:
    return gan.discriminate(discriminator, x, y)


def logits_of(gan: Gan, discriminator: Variables, part: Subset, chunk: int = 500) -> np.ndarray:
    """The discriminator's logits on a set's images with their labels, ``[n]``."""
    count = num_examples(part)
    # equal chunks of a multiple of 4: what couples the images of a batch couples all alike
    size = min(chunk, -(-count // 4) * 4)
    places = np.arange(-(-count // size) * size) % count
    positions = part.indices[places].reshape(-1, size)
    logits = [
        _discriminate(discriminator, fetch(part.examples, some), part.examples.y[some], gan=gan)
        for some in positions
    ]
    return np.concatenate([np.asarray(some) for some in logits])[:count]
