"""What cascaded unlearning finds out before its first step: latents and their substitutes."""

import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.errors import RequestError
from jaxunlearn.core.trees import in_chunks
from jaxunlearn.core.types import Apply, Gan, Key, Preparation, Sets, Subset, Variables
from jaxunlearn.data.batches import fetch, random_slots
from jaxunlearn.data.sets import labels_of, num_examples
from jaxunlearn.gan import Guide, Known, check_guide, draw_pool, images_of, invert, look, substitute
from jaxunlearn.gan.guide import Pool

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


def remember(
    gan: Gan, guide: Guide, finding: Finding, moves: bool = True, few: int | None = None
) -> Preparation:
    """The preparation of a method that unlearns latents.

    Args:
      moves: whether the generator unlearns; else no latent is looked for.
      few: retained images that learning is confined to.
    """
    if not moves:
        finding = finding._replace(substitute="none", pool=1, latents=1, inversion_steps=1)

    def shapes(variables: Variables, sets: Sets) -> Any:
        check_guide(guide, gan)
        key = jax.eval_shape(lambda: jax.random.key(0))
        known = partial(_find, gan=gan, apply=guide.model.apply, finding=finding)
        return jax.eval_shape(known, variables["ema"], guide.variables, sets, key)

    def run(variables: Variables, sets: Sets, key: Key) -> Memory:
        _check(finding, sets, moves, few)
        if moves:
            return find_memory(gan, guide, finding, variables["ema"], sets, key)
        known = partial(_find, gan=gan, apply=guide.model.apply, finding=finding)
        return known(variables["ema"], guide.variables, sets, key)

    return Preparation(run, shapes)


def _check(finding: Finding, sets: Sets, moves: bool, few: int | None) -> None:
    """Raises a :class:`RequestError` where the request is not of the kind that was said."""
    assert sets.forget is not None
    assert sets.retain is not None
    shared = sorted(set(labels_of(sets.forget)) & set(labels_of(sets.retain)))
    if finding.kind == "class" and shared:
        raise RequestError(
            f"kind: expected 'items' for a request that retains images of classes {shared}, got "
            "'class'"
        )
    count = num_examples(sets.forget)
    if finding.kind == "items" and moves and count > finding.latents:
        raise RequestError(
            f"latents: expected at least the {count} items to be forgotten, got {finding.latents}"
        )
    if few is not None and few > num_examples(sets.retain):
        warnings.warn(
            f"few: expected at most the {num_examples(sets.retain)} retained images, got {few}: "
            "some count twice",
            stacklevel=2,
        )


def find_memory(
    gan: Gan, guide: Guide, finding: Finding, generator: Variables, sets: Sets, key: Key
) -> Memory:
    """Latents, substitutes and all that the steps look up, by one program.

    Raises:
      RequestError: the generator never draws the class. Drawn hardly ever, it is a warning.
    """
    memory = _find(
        generator, guide.variables, sets, key, gan=gan, apply=guide.model.apply, finding=finding
    )
    found = int(memory.size)
    if finding.kind == "class" and found < FEW_LATENTS:
        names = [int(label) for label in np.flatnonzero(np.asarray(memory.forgotten))]
        if not found:
            raise RequestError(
                f"sets.forget: expected classes that the generator draws, got {names}, which the "
                f"guide sees in none of {finding.pool} images: there is nothing for the "
                "generator to forget"
            )
        warnings.warn(
            f"the guide sees classes {names} in {found} of {finding.pool} generated images: "
            "the generator hardly draws them",
            stacklevel=2,
        )
    return memory


@partial(jax.jit, static_argnames=("gan", "apply", "finding"))
def _find(
    generator: Variables,
    guide: Variables,
    sets: Sets,
    key: Key,
    *,
    gan: Gan,
    apply: Apply,
    finding: Finding,
) -> Memory:
    forget, retain = sets.forget, sets.retain
    assert forget is not None
    assert retain is not None
    drawing, inverting, choosing, placing = jax.random.split(key, 4)
    own, others = (part.examples.y[part.indices] for part in (forget, retain))
    noise, asking = jax.random.split(drawing)
    total = jnp.maximum(forget.size + retain.size, 1)
    places = jax.random.randint(asking, (finding.pool,), 0, total)
    # of all training examples; not of what pads the sets
    asked = jnp.where(
        places < forget.size,
        own[jnp.minimum(places, len(own) - 1)],
        others[jnp.clip(places - forget.size, 0, len(others) - 1)],
    )
    pool = draw_pool(generator, guide, asked, noise, gan=gan, apply=apply)
    forgotten = jnp.zeros(pool.logits.shape[1], bool).at[own].set(True)
    if finding.kind == "class":
        found = _of_class(gan, generator, finding, pool, forgotten)
        kept = ~forgotten[pool.label]
    else:
        found = _of_items(gan, apply, finding, generator, guide, forget, inverting)
        kept = jnp.ones(finding.pool, bool)
    positions = retain.indices[random_slots(retain, choosing, finding.references)]
    retained = fetch(retain.examples, positions)
    known = Known(
        found.code, found.y, found.label, found.images, found.features, retained,
        retain.examples.y[positions], _features(apply, guide, retained), pool, kept,
    )  # fmt: skip
    target = substitute(
        generator, known, placing, gan=gan, how=finding.substitute, space=finding.space,
        form=finding.form, psi=finding.psi,
    )  # fmt: skip
    spread = jnp.std(pool.z if finding.space == "z" else pool.w, axis=0)
    return Memory(
        found.code, found.y, found.size, spread, target, _features(apply, guide, target),
        found.error, forgotten, guide,
    )  # fmt: skip


class _Found(NamedTuple):
    """What is to be forgotten; fields as in :class:`Known` and :class:`Memory`."""

    code: jax.Array
    y: jax.Array
    label: jax.Array
    images: jax.Array
    features: jax.Array
    size: jax.Array
    error: jax.Array


def _of_class(
    gan: Gan, generator: Variables, finding: Finding, pool: Pool, forgotten: jax.Array
) -> _Found:
    """Latents whose images the guide takes for the class, in the order they were drawn."""
    shows = forgotten[pool.label]
    # not by how sure the guide is: that is a tie wherever its softmax is saturated
    order = jnp.argsort(~shows, stable=True)[: finding.latents]
    size = jnp.minimum(jnp.sum(shows, dtype=jnp.int32), finding.latents)
    code = (pool.z if finding.space == "z" else pool.w)[order]
    images = images_of(gan, generator, pool.w[order])
    # a conditional generator is asked for the label that gave the image
    return _Found(
        code,
        pool.y[order],
        pool.label[order],
        images,
        pool.features[order],
        size,
        jnp.zeros(len(order)),
    )


def _of_items(
    gan: Gan, apply: Apply, finding: Finding, generator: Variables, guide: Variables,
    forget: Subset, key: Key,
) -> _Found:  # fmt: skip
    """Latents of the images themselves."""
    count = min(finding.latents, len(forget.indices))
    positions = forget.indices[:count]
    images, y = fetch(forget.examples, positions), forget.examples.y[positions]
    found = invert(
        generator, images, y, key, gan=gan, space=finding.space, steps=finding.inversion_steps
    )
    size = jnp.minimum(forget.size, count).astype(jnp.int32)
    return _Found(found.code, y, y, images, _features(apply, guide, images), size, found.error)


def _features(apply: Apply, guide: Variables, images: jax.Array) -> jax.Array:
    """What the guide sees in images ``[n, ...]``, some at a time."""
    return in_chunks(lambda rows: look(apply, guide, images[rows])[0], len(images), CHUNK)
