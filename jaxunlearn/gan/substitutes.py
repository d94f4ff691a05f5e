"""What a generator is to produce where it used to produce what is forgotten.

The substitution mechanism of cascaded unlearning, reconstructed from the abstract of
arXiv 2308.09881; every formula here is ours.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.core.nearest import nearest
from jaxunlearn.core.types import Gan, Key, Variables
from jaxunlearn.gan.guide import Pool, images_of

SUBSTITUTES = (
    "average",
    "same_class_nn",
    "other_class_nn",
    "truncation",
    "projection",
    "random_retain",
    "none",
)

RIDGE = 1e-2
"""Of the encoder, in units of the mean square of an input."""


class Known(NamedTuple):
    """What substitutes are made of.

    Attributes:
      code: ``[n, Z]`` or ``[n, W]``, latents of what is forgotten.
      y: ``int32 [n]``, labels that a conditional generator was asked for.
      label: ``int32 [n]``, what it shows.
      images: ``[n, ...]``, what is forgotten: given images, or generated ones of a class.
      features: ``[n, F]``, what the guide sees in them.
      retained: ``[m, ...]``, images that are retained; ``retained_y``, ``retained_features``
        theirs.
      pool: random latents.
      kept: ``bool [P]``, those of the pool that do not show what is forgotten.
    """

    code: jax.Array
    y: jax.Array
    label: jax.Array
    images: jax.Array
    features: jax.Array
    retained: jax.Array
    retained_y: jax.Array
    retained_features: jax.Array
    pool: Pool
    kept: jax.Array


@partial(jax.jit, static_argnames=("gan", "how", "space", "form"))
def substitute(
    generator: Variables,
    known: Known,
    key: Key,
    *,
    gan: Gan,
    how: str,
    space: str = "z",
    form: str = "image",
    psi: float = 0.5,
) -> jax.Array:
    """The target of each latent, ``[n, ...]``.

    ``average``: the mean of retained images; with a mapping network ``G`` of the mean style of
    latents that are kept. ``same_class_nn``, ``other_class_nn``: the nearest retained image, in
    the guide's features, of the same or of another label; in latent form (``form="latent"``)
    ``G(z')`` of the nearest kept ``z'`` of the pool. ``truncation``: ``G(psi z)``, in style
    space ``G(m + psi (w - m))``; a negative ``psi`` goes beyond the mean. ``projection``:
    ``G(P(x))``, ``P`` the ridge regression from image to latent fitted on kept images of the
    pool. ``random_retain``: any retained image. ``none``: what is there already.

    Args:
      generator: the original's.
      how: one of :data:`SUBSTITUTES`.
      space: of ``known.code``.
    """
    kept = known.kept.astype(jnp.float32)

    def make(w: jax.Array) -> jax.Array:
        return images_of(gan, generator, w)

    def make_z(z: jax.Array) -> jax.Array:
        return make(gan.style(generator, z, known.y))

    middle = jnp.einsum("p,pw->w", kept, known.pool.w) / jnp.maximum(jnp.sum(kept), 1)
    if how == "average":
        if gan.maps:
            return jnp.broadcast_to(make(middle[None]), known.images.shape)
        return jnp.broadcast_to(jnp.mean(known.retained, axis=0)[None], known.images.shape)
    if how in ("same_class_nn", "other_class_nn"):
        if form == "latent":
            codes = known.pool.z if space == "z" else known.pool.w
            near, _ = nearest(
                known.code, codes, valid=known.kept, same=how == "same_class_nn",
                query_labels=known.label, reference_labels=known.pool.label,
            )  # fmt: skip
            near = jnp.where(near < 0, jnp.argmax(known.kept), near)
            return make(known.pool.w[near])
        labels = {"query_labels": known.label, "reference_labels": known.retained_y}
        near, _ = nearest(
            known.features, known.retained_features, same=how == "same_class_nn", **labels
        )
        # where nothing has such a label, what is there already
        missing = (near < 0).reshape(-1, *(1,) * (known.images.ndim - 1))
        return jnp.where(missing, known.images, known.retained[near])
    if how == "truncation":
        if space == "z":
            return make_z(psi * known.code)
        return make(middle[None] + psi * (known.code - middle[None]))
    if how == "projection":
        return make_z(_encode(gan, generator, known))
    if how == "random_retain":
        some = jax.random.randint(key, (len(known.code),), 0, len(known.retained))
        return known.retained[some]
    return known.images


def _encode(gan: Gan, generator: Variables, known: Known) -> jax.Array:
    """Latents of the images by a ridge regression on kept images of the pool, ``[n, Z]``."""
    images = images_of(gan, generator, known.pool.w)
    inputs = images.reshape(len(images), -1)
    weight = known.kept.astype(jnp.float32)[:, None]
    total = jnp.maximum(jnp.sum(weight), 1)
    center = jnp.sum(weight * inputs, axis=0) / total
    inputs = (inputs - center[None]) * weight
    gram = inputs.T @ inputs / total
    ridge = RIDGE * jnp.mean(jnp.diagonal(gram))
    gram = gram + ridge * jnp.eye(len(gram))
    solved = jax.scipy.linalg.solve(gram, inputs.T @ known.pool.z / total, assume_a="pos")
    return (known.images.reshape(len(known.images), -1) - center[None]) @ solved
