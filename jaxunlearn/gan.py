"""Generated images: what a classifier sees in them, and the latents that given images have.

Legend: ``n`` images, ``P`` latents of a pool, ``Z`` and ``W`` sizes of a latent and of a style,
``K`` classes, ``F`` features of the classifier, ``...`` the shape of an image.
"""

import functools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.nearest import nearest
from jaxunlearn.core.trees import choose, in_chunks
from jaxunlearn.core.types import Apply, Gan, Key, Model, Variables
from jaxunlearn.jaxprs.cuts import Cut, cut_at_features
from jaxunlearn.models import check_model
from jaxunlearn.training.descent import apply_update

SPACES = ("z", "w")
"""Latents as they are drawn, and styles, which a mapping network makes of them."""

CHUNK = 256
"""Images made together."""


class Guide(NamedTuple):
    """A classifier of the images that a GAN learned from, trained apart from it.

    Attributes:
      model: logits ``[B, K]`` of images normalised as the GAN's.
      variables: arrays; their shapes are enough where nothing is computed yet.
    """

    model: Model
    variables: Variables


def check_guide(guide: Guide, gan: Gan) -> int:
    """Returns how many classes a guide tells apart.

    Raises:
      ConfigError: it does not read the images that the GAN makes.
    """
    if not isinstance(guide, Guide):
        raise ConfigError(f"guide: expected a Guide, got {type(guide).__name__}")
    try:
        return check_model(guide.model, gan.shape, variables=guide.variables)
    except ConfigError as error:
        raise ConfigError(f"guide: {str(error).removeprefix('model: ')}") from error


@functools.lru_cache(maxsize=16)
def _cut(apply: Apply) -> Cut:
    # one object for one network, so that compiled programs are found again
    return cut_at_features(apply)


def look(apply: Apply, variables: Variables, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a classifier's last features ``float32 [B, F]`` of images, and logits ``[B, K]``."""
    cut = _cut(apply)
    features = cut.upper(variables, x)
    logits = cut.lower(variables, features, x.shape[1:])
    return features.reshape(len(x), -1).astype(jnp.float32), logits


def images_of(gan: Gan, generator: Variables, w: jax.Array, chunk: int = CHUNK) -> jax.Array:
    """Makes the images ``[n, ...]`` of styles ``[n, W]``, some at a time."""
    return in_chunks(lambda rows: gan.synthesize(generator, w[rows]), len(w), chunk)


class Pool(NamedTuple):
    """Latents and their images, as a classifier sees them.

    Attributes:
      z: ``[P, Z]``.
      y: ``int32 [P]``, the label that a conditional generator was asked for.
      w: ``[P, W]``, styles.
      logits: ``[P, K]``.
      features: ``[P, F]``.
    """

    z: jax.Array
    y: jax.Array
    w: jax.Array
    logits: jax.Array
    features: jax.Array

    @property
    def label(self) -> jax.Array:
        """Returns the class that the classifier takes each image for, ``int32 [P]``."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def classes(self, labels: jax.Array) -> jax.Array:
        """Returns which classes are among some labels, ``bool [K]``."""
        return jnp.zeros(self.logits.shape[1], bool).at[labels].set(True)


@partial(jax.jit, static_argnames=("gan", "apply"))
def draw_pool(
    generator: Variables, guide: Variables, y: jax.Array, key: Key, *, gan: Gan, apply: Apply
) -> Pool:
    """Draws latents from the prior and looks at their images, some at a time.

    Args:
      generator: of the GAN.
      guide: the classifier's variables.
      y: ``int32 [P]``, labels that a conditional generator is asked for.
      apply: of the classifier.
    """
    count = len(y)
    z = jax.random.normal(key, (count, gan.latent))

    def some(rows: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        w = gan.style(generator, z[rows], y[rows])
        features, logits = look(apply, guide, gan.synthesize(generator, w))
        return w, logits, features

    w, logits, features = in_chunks(some, count, CHUNK)
    return Pool(z, y, w, logits, features)


def share_drawn(
    gan: Gan, generator: Variables, guide: Guide, forgotten: jax.Array, y: jax.Array, key: Key
) -> jax.Array:
    """Computes the share of new images that a classifier takes for some classes, ``float32 []``.

    Args:
      forgotten: ``bool [K]``, the classes.
      y: ``int32 [B]``, labels that a conditional generator is asked for: those of the classes.
    """
    z = jax.random.normal(key, (len(y), gan.latent))
    images = gan.synthesize(generator, gan.style(generator, z, y))
    seen = guide.model.apply(guide.variables, images)
    return jnp.mean(forgotten[jnp.argmax(seen, axis=-1)].astype(jnp.float32))


class Inversion(NamedTuple):
    """Latents that give images as close to the given ones as were found.

    Attributes:
      code: ``[n, Z]`` or ``[n, W]``.
      images: ``[n, ...]``, of these.
      error: ``float32 [n]``, mean square over pixels and channels.
    """

    code: jax.Array
    images: jax.Array
    error: jax.Array


@partial(jax.jit, static_argnames=("gan", "space", "steps", "starts", "chunk"))
def invert(
    gan: Gan,
    generator: Variables,
    images: jax.Array,
    labels: jax.Array,
    key: Key,
    *,
    space: str = "z",
    steps: int = 400,
    rate: float = 0.05,
    penalty: float = 0.01,
    starts: int = 512,
    chunk: int = CHUNK,
) -> Inversion:
    """Finds ``argmin_c mean_p (G(c) - x)_p^2 + penalty mean_i ((c - m) / s)_i^2`` by Adam.

    ``c`` is ``z`` (``m = 0, s = 1``) or a style ``w`` (``m, s`` its mean and deviation
    over the prior). Each image starts from the one of ``starts`` random latents
    whose image is nearest. Of all steps the one with the least error counts.

    Args:
      generator: of the GAN; it is not changed.
      images: ``[n, ...]``, normalised.
      labels: ``int [n]``, what a conditional generator is asked for.
      space: ``"z"`` or ``"w"``.
      steps: of Adam, with rate ``rate``.
      penalty: on codes that the prior does not give.
      chunk: images inverted together.

    Raises:
      ValueError: another space.

    Source: own, after the reconstruction of arXiv 2308.09881.
    """
    if space not in SPACES:
        raise ValueError(f"space: expected one of {SPACES}, got {space!r}")
    prior, more = jax.random.split(key)
    z = jax.random.normal(prior, (starts, gan.latent))
    asked = labels[jax.random.randint(more, (starts,), 0, len(labels))]
    codes = z if space == "z" else gan.style(generator, z, asked)
    mean, deviation = jnp.zeros(codes.shape[1:]), jnp.ones(codes.shape[1:])
    if space == "w":
        mean, deviation = jnp.mean(codes, axis=0), jnp.std(codes, axis=0) + 1e-6

    def make(code: jax.Array, y: jax.Array) -> jax.Array:
        return gan.synthesize(generator, gan.style(generator, code, y) if space == "z" else code)

    drawn = in_chunks(lambda rows: make(codes[rows], asked[rows]), starts, chunk)
    near, _ = nearest(images.reshape(len(images), -1), drawn.reshape(starts, -1))
    optimizer = optax.adam(rate)

    def some(rows: jax.Array) -> Inversion:
        x, y = images[rows], labels[rows]

        def loss(code: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            made = make(code, y)
            error = jnp.mean(jnp.square(made - x).reshape(len(x), -1), axis=1)
            away = jnp.square((code - mean[None]) / deviation[None]).reshape(len(x), -1)
            return jnp.sum(error + penalty * jnp.mean(away, axis=1)), (error, made)

        def step(_: jax.Array, carry: tuple) -> tuple:
            code, state, best = carry
            (_, (error, made)), gradient = jax.value_and_grad(loss, has_aux=True)(code)
            better = error < best.error
            kept = choose(better, Inversion(code, made, error), best)
            code, state, _ = apply_update(optimizer, code, state, gradient)
            return code, state, kept

        code = codes[near[rows]]
        with jax.numpy_dtype_promotion("standard"):
            state = optimizer.init(code)
        none = Inversion(code, x, jnp.full(len(x), jnp.inf))
        return jax.lax.fori_loop(0, steps, step, (code, state, none))[2]

    return in_chunks(some, len(images), chunk)


@partial(jax.jit, static_argnames=("gan", "count"))
def path_images(
    gan: Gan,
    generator: Variables,
    start: jax.Array,
    through: jax.Array,
    end: jax.Array,
    y: jax.Array,
    *,
    count: int = 17,
) -> jax.Array:
    """Makes images along arcs from one latent through a second to a third, ``[r, count, ...]``.

    Each half is the spherical interpolation ``slerp(a, b; t) = (sin((1 - t) o) a + sin(t o) b)
    / sin o``, ``o`` the angle between ``a`` and ``b``, at equal steps of ``t``.

    Args:
      generator: ``variables["ema"]``.
      start, through, end: ``[r, Z]``.
      y: ``int [r]``, labels that a conditional generator is asked for.
      count: images of a strip, odd: the middle one is that of ``through``.

    Raises:
      ValueError: a count that is even or below 3.
    """
    if count < 3 or count % 2 == 0:
        raise ValueError(f"count: expected an odd number of 3 or more, got {count}")
    half = count // 2
    share = jnp.arange(half) / half
    first = jax.vmap(lambda t: _slerp(start, through, t), out_axes=1)(share)
    second = jax.vmap(lambda t: _slerp(through, end, t), out_axes=1)(share)
    codes = jnp.concatenate([first, second, end[:, None]], axis=1)
    flat = codes.reshape(-1, codes.shape[-1])
    w = gan.style(generator, flat, jnp.repeat(y, count))
    images = images_of(gan, generator, w)
    return images.reshape(len(start), count, *images.shape[1:])


def _slerp(a: jax.Array, b: jax.Array, t: jax.Array) -> jax.Array:
    sizes = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
    cosine = jnp.sum(a * b, axis=1) / jnp.maximum(sizes, 1e-12)
    angle = jnp.arccos(jnp.clip(cosine, -1 + 1e-6, 1 - 1e-6))[:, None]
    return (jnp.sin((1 - t) * angle) * a + jnp.sin(t * angle) * b) / jnp.sin(angle)


def path_steps(images: jax.Array) -> jax.Array:
    """Computes the root mean square change from image to image of strips ``[r, t, ...]``.

    A latent space that is continuous has no step much larger than the others; the sum over a
    strip is its path length.

    Returns:
      ``[r, t - 1]``.
    """
    change = jnp.square(images[:, 1:] - images[:, :-1])
    return jnp.sqrt(jnp.mean(change.reshape(*change.shape[:2], -1), axis=2))
