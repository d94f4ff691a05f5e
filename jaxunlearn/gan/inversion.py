"""Latents of given images: many images at once, one program.

Ways through a latent space, and how far images move along them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.nearest import nearest
from jaxunlearn.core.trees import in_chunks
from jaxunlearn.core.types import Gan, Key, Variables
from jaxunlearn.gan.guide import images_of

SPACES = ("z", "w")


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
    generator: Variables,
    images: jax.Array,
    labels: jax.Array,
    key: Key,
    *,
    gan: Gan,
    space: str = "z",
    steps: int = 400,
    rate: float = 0.05,
    penalty: float = 0.01,
    starts: int = 512,
    chunk: int = 256,
) -> Inversion:
    """``argmin_c mean_p (G(c) - x)_p^2 + penalty mean_i ((c - m) / s)_i^2`` by Adam.

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
            kept = jax.tree.map(
                lambda new, old: jnp.where(_like(better, new), new, old),
                Inversion(code, made, error),
                best,
            )
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(gradient, state, code)
                return optax.apply_updates(code, updates), state, kept

        code = codes[near[rows]]
        with jax.numpy_dtype_promotion("standard"):
            state = optimizer.init(code)
        none = Inversion(code, x, jnp.full(len(x), jnp.inf))
        return jax.lax.fori_loop(0, steps, step, (code, state, none))[2]

    return in_chunks(some, len(images), chunk)


def _like(flags: jax.Array, values: jax.Array) -> jax.Array:
    """``[n]`` as ``[n, 1, ...]``, for values ``[n, ...]``."""
    return flags.reshape(-1, *(1,) * (values.ndim - 1))


@partial(jax.jit, static_argnames=("gan", "count"))
def path_images(
    generator: Variables,
    start: jax.Array,
    through: jax.Array,
    end: jax.Array,
    y: jax.Array,
    *,
    gan: Gan,
    count: int = 17,
) -> jax.Array:
    """Images along arcs from one latent through a second to a third, ``[r, count, ...]``.

    Each half is the spherical interpolation ``slerp(a, b; t) = (sin((1 - t) o) a + sin(t o) b)
    / sin o``, ``o`` the angle between ``a`` and ``b``, at equal steps of ``t``.

    Args:
      generator: ``variables["ema"]``.
      start, through, end: ``[r, Z]``.
      y: ``int [r]``, labels that a conditional generator is asked for.
      count: images of a strip, odd: the middle one is that of ``through``.
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
    """Root mean square change from image to image of strips ``[r, t, ...]``, ``[r, t - 1]``.

    A latent space that is continuous has no step much larger than the others; the sum over a
    strip is its path length.
    """
    change = jnp.square(images[:, 1:] - images[:, :-1])
    return jnp.sqrt(jnp.mean(change.reshape(*change.shape[:2], -1), axis=2))
