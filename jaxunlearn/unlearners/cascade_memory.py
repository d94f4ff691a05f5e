"""What cascaded unlearning finds out before its first step: latents and their substitutes."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.sampling import fetch
from jaxunlearn.data.sets import num_examples
from jaxunlearn.errors import RequestError
from jaxunlearn.latents import (
    Guide,
    Known,
    check_guide,
    draw_pool,
    images_of,
    invert,
    look,
    substitute,
)
from jaxunlearn.latents.pool import Pool
from jaxunlearn.types import Gan, Key, Preparation, Sets, Subset, Variables

__all__ = ["Finding", "Memory", "find_memory", "labels_in", "remember"]

FEW_LATENTS = 16
"""Fewer latents of a class than that are told in a warning."""

CHUNK = 256


class Finding(NamedTuple):
    """How latents and substitutes are found; see :func:`jaxunlearn.cascade`."""

    kind: str
    substitute: str
    form: str
    psi: float
    space: str
    pool: int
    latents: int
    references: int
    inversion_steps: int


class Memory(NamedTuple):
    """Latents of what is to be forgotten, and what is to take its place.

    Attributes:
      code: ``[n, Z]``, or ``[n, W]`` in style space.
      y: ``int32 [n]``, labels that a conditional generator is asked for.
      size: ``int32 []``: the first so many count.
      spread: ``[Z]`` or ``[W]``, deviation of codes over the prior.
      target: ``[n, ...]``, images.
      target_features: ``[n, F]``, what the guide sees in them.
      error: ``float32 [n]``, mean square error of the inversion; 0 where a class is forgotten.
      forgotten: ``bool [K]``, classes to be forgotten.
      guide: the guide's variables.
    """

    code: jax.Array
    y: jax.Array
    size: jax.Array
    spread: jax.Array
    target: jax.Array
    target_features: jax.Array
    error: jax.Array
    forgotten: jax.Array
    guide: Variables


def labels_in(part: Subset) -> list[int]:
    """The labels of a subset, on the host."""
    chosen = np.asarray(part.indices)[: num_examples(part)]
    return sorted({int(label) for label in np.asarray(part.examples.y)[chosen]})


def remember(gan: Gan, guide: Guide, finding: Finding) -> Preparation:
    """The preparation of a method that unlearns latents."""

    def shapes(variables: Variables, sets: Sets) -> Any:
        classes = check_guide(guide, gan)
        assert sets.forget is not None
        count = finding.latents
        if finding.kind == "items":
            count = min(count, sets.forget.indices.shape[-1])
        like = jax.eval_shape(
            lambda g, z: gan.style(g, z, jnp.zeros(1, jnp.int32)),
            variables["ema"],
            jax.ShapeDtypeStruct((1, gan.latent), jnp.float32),
        )
        width = gan.latent if finding.space == "z" else like.shape[1]
        x = jax.ShapeDtypeStruct((count, *gan.shape), jnp.float32)
        seen = jax.eval_shape(lambda v, x: look(guide.model.apply, v, x)[0], guide.variables, x)
        return jax.eval_shape(
            lambda known: Memory(
                code=jnp.zeros((count, width)),
                y=jnp.zeros(count, jnp.int32),
                size=jnp.zeros((), jnp.int32),
                spread=jnp.zeros(width),
                target=jnp.zeros(x.shape),
                target_features=jnp.zeros(seen.shape),
                error=jnp.zeros(count),
                forgotten=jnp.zeros(classes, bool),
                guide=known,
            ),
            guide.variables,
        )

    def run(variables: Variables, sets: Sets, key: Key) -> Memory:
        return find_memory(gan, guide, finding, variables["ema"], sets, key)

    return Preparation(run, shapes)


def find_memory(
    gan: Gan, guide: Guide, finding: Finding, generator: Variables, sets: Sets, key: Key
) -> Memory:
    """Latents, substitutes and all that the steps look up.

    Raises:
      RequestError: the generator never draws the class.
    """
    forget, retain = sets.forget, sets.retain
    assert forget is not None
    assert retain is not None
    drawing, inverting, choosing, placing = jax.random.split(key, 4)
    apply, classes = guide.model.apply, check_guide(guide, gan)
    forgotten = np.zeros(classes, bool)
    forgotten[[label for label in labels_in(forget) if label < classes]] = True
    labels = jnp.concatenate([_labels(forget), _labels(retain)])
    pool = draw_pool(
        generator, guide.variables, labels, drawing, gan=gan, apply=apply, count=finding.pool
    )
    shows = jnp.asarray(forgotten)[pool.label]
    if finding.kind == "class":
        found = _of_class(gan, generator, finding, pool, jnp.asarray(forgotten))
        kept = ~shows
    else:
        found = _of_items(gan, guide, finding, generator, forget, inverting)
        kept = jnp.ones(finding.pool, bool)
    code, y, images, features, size, error = found
    references = min(finding.references, num_examples(retain))
    some = jax.random.randint(choosing, (references,), 0, num_examples(retain))
    positions = retain.indices[some]
    retained = fetch(retain.examples, positions)
    known = Known(
        code, y, images, features, retained, retain.examples.y[positions],
        look(apply, guide.variables, retained)[0], pool, kept,
    )  # fmt: skip
    target = substitute(
        generator, known, placing, gan=gan, how=finding.substitute, space=finding.space,
        form=finding.form, psi=finding.psi,
    )  # fmt: skip
    spread = jnp.std(pool.z if finding.space == "z" else pool.w, axis=0)
    seen = look(apply, guide.variables, target)[0]
    return Memory(
        code, y, size, spread, target, seen, error, jnp.asarray(forgotten), guide.variables
    )


Found = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _of_class(
    gan: Gan, generator: Variables, finding: Finding, pool: Pool, forgotten: jax.Array
) -> Found:
    """Latents whose images the guide takes for the class, the surest first."""
    chance = jnp.sum(jax.nn.softmax(pool.logits) * forgotten[None], axis=1)
    order = jnp.argsort(-jnp.where(forgotten[pool.label], 1 + chance, chance))
    order = order[: finding.latents]
    size = jnp.minimum(jnp.sum(forgotten[pool.label]), finding.latents).astype(jnp.int32)
    names = [int(label) for label in np.flatnonzero(np.asarray(forgotten))]
    if int(size) == 0:
        raise RequestError(
            f"sets.forget: expected classes that the generator draws, got {names}, which the "
            f"guide sees in none of {finding.pool} images: there is nothing for the generator "
            "to forget (mode='discriminator_only' makes the discriminator forget)"
        )
    if int(size) < FEW_LATENTS:
        warnings.warn(
            f"the guide sees classes {names} in {int(size)} of {finding.pool} generated "
            "images: the generator hardly draws them",
            stacklevel=2,
        )
    code = (pool.z if finding.space == "z" else pool.w)[order]
    images = images_of(gan, generator, pool.w[order])
    error = jnp.zeros(len(order))
    return code, pool.label[order], images, pool.features[order], size, error


def _of_items(
    gan: Gan, guide: Guide, finding: Finding, generator: Variables, forget: Subset, key: Key
) -> Found:
    """Latents of the images themselves."""
    count = min(finding.latents, len(forget.indices))
    positions = forget.indices[:count]
    images, y = fetch(forget.examples, positions), forget.examples.y[positions]
    found = invert(
        generator, images, y, key, gan=gan, space=finding.space, steps=finding.inversion_steps
    )
    features, _ = look(guide.model.apply, guide.variables, images)
    size = jnp.minimum(forget.size, count).astype(jnp.int32)
    return found.code, y, images, features, size, found.error


def _labels(part: Subset) -> jax.Array:
    return part.examples.y[part.indices[: num_examples(part)]]
