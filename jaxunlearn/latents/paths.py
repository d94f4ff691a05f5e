"""Ways through a latent space, and how far images move along them."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxunlearn.latents.pool import images_of
from jaxunlearn.types import Gan, Variables

__all__ = ["path_images", "path_steps"]


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
