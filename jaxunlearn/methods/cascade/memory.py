"""Latents of what is to be forgotten and their substitutes, found before the first step.

The substitution mechanism is reconstructed from the abstract of arXiv 2308.09881; every
formula here is ours.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core import errors
from jaxunlearn.core.nearest import nearest
from jaxunlearn.core.trees import in_chunks
from jaxunlearn.core.types import Apply, Batch, Gan, Key, Preparation, Sets, Subset, Variables
from jaxunlearn.data.batches import random_slots
from jaxunlearn.data.examples import fetch
from jaxunlearn.data.sets import labels_of, num_examples
from jaxunlearn.gan import CHUNK, SPACES, Guide, Pool, draw_pool, images_of, invert, look

REQUESTS = ("class", "items")
FORMS = ("image", "latent")

FEW_LATENTS = 16
"""Fewer latents of a class than that are told in a warning."""

RIDGE = 1e-2
"""Of the encoder, in units of the mean square of an input."""


class Search(NamedTuple):
    """Options of how latents and substitutes are found; see :func:`jaxunlearn.cascade`."""

    request: str
    substitute: str
    form: str
    psi: float
    space: str
    pool: int
    latents: int
    references: int
    inversion_steps: int
    few: int | None

    def check(self, gan: Gan) -> None:
        """Raises :class:`ValueError` for options out of range, or that do not go together."""
        errors.expect_one_of(REQUESTS, request=self.request)
        errors.expect_one_of(SUBSTITUTES, substitute=self.substitute)
        errors.expect_one_of(FORMS, form=self.form)
        errors.expect_one_of(SPACES, space=self.space)
        counts = ("pool", "latents", "references", "inversion_steps")
        errors.expect_counts(**{name: getattr(self, name) for name in counts})
        if self.few is not None and (type(self.few) is not int or self.few < 1):
            raise ValueError(f"few: expected a positive number or None, got {self.few!r}")
        if self.space == "w" and not gan.maps:
            raise ValueError(
                "space: expected 'z' for a generator without a mapping network, got 'w'"
            )
        if self.request == "items":
            return
        if self.latents > self.pool:
            raise ValueError(f"latents: expected at most pool = {self.pool}, got {self.latents}")
        if self.substitute == "same_class_nn":
            raise ValueError(
                "substitute: expected another than 'same_class_nn' for a class, of which nothing "
                "is retained"
            )
        drawn_anew = ("projection", "truncation") if self.space == "z" else ("projection",)
        if gan.num_classes and self.substitute in drawn_anew:
            raise ValueError(
                "substitute: expected another for a conditional generator, which would be asked "
                f"for the class itself, got {self.substitute!r}"
            )


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
      few: the retained images that learning is confined to; ``None`` for all.
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
    few: Batch | None


def remember(gan: Gan, guide: Guide, search: Search, moves: bool = True) -> Preparation:
    """Returns the preparation of a method that unlearns latents; it finds a :class:`Memory`.

    Args:
      moves: whether the generator unlearns; else no latent is looked for.
    """
    if not moves:
        search = search._replace(substitute="none", pool=1, latents=1, inversion_steps=1)
    find = partial(_find, gan=gan, apply=guide.model.apply, search=search)

    def shapes(variables: Variables, sets: Sets) -> Any:
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(find, variables["ema"], guide.variables, sets, key)

    def run(variables: Variables, sets: Sets, key: Key) -> Memory:
        _check_sets(search, sets, moves)
        memory = find(variables["ema"], guide.variables, sets, key)
        if moves and search.request == "class":
            _check_found(search, memory)
        return memory

    return Preparation(run, shapes)


def _check_sets(search: Search, sets: Sets, moves: bool) -> None:
    """Raises a :class:`RequestError` where the request is not of the kind that was said."""
    assert sets.forget is not None
    assert sets.retain is not None
    shared = sorted(set(labels_of(sets.forget)) & set(labels_of(sets.retain)))
    if search.request == "class" and shared:
        raise errors.RequestError(
            f"request: expected 'items' where images of classes {shared} are retained, got 'class'"
        )
    count, retained = num_examples(sets.forget), num_examples(sets.retain)
    if search.request == "items" and moves and count > search.latents:
        raise errors.RequestError(
            f"latents: expected at least the {count} items to be forgotten, got {search.latents}"
        )
    if search.few is not None and search.few > retained:
        warnings.warn(
            f"few: expected at most the {retained} retained images, got {search.few}: some count "
            "twice",
            stacklevel=2,
        )


def _check_found(search: Search, memory: Memory) -> None:
    """Raises a :class:`RequestError` for a class never drawn; warns of one that hardly is."""
    found, classes = int(memory.size), np.flatnonzero(np.asarray(memory.forgotten)).tolist()
    if not found:
        raise errors.RequestError(
            f"sets.forget: expected classes that the generator draws, got {classes}, which the "
            f"guide sees in none of {search.pool} images: there is nothing for the generator to "
            "forget"
        )
    if found < FEW_LATENTS:
        warnings.warn(
            f"the guide sees classes {classes} in {found} of {search.pool} generated images: "
            "the generator hardly draws them",
            stacklevel=2,
        )


class Found(NamedTuple):
    """Latents of what is to be forgotten; fields as in :class:`Memory`, and

    Attributes:
      label: ``int32 [n]``, the class that is shown.
      images: ``[n, ...]``, given ones, or generated ones of a class.
      features: ``[n, F]``, what the guide sees in them.
    """

    code: jax.Array
    y: jax.Array
    label: jax.Array
    images: jax.Array
    features: jax.Array
    size: jax.Array
    error: jax.Array


@partial(jax.jit, static_argnames=("gan", "apply", "search"))
def _find(
    generator: Variables,
    guide: Variables,
    sets: Sets,
    key: Key,
    *,
    gan: Gan,
    apply: Apply,
    search: Search,
) -> Memory:
    """Finds latents, substitutes and all that the steps look up, by one program."""
    forget, retain = sets.forget, sets.retain
    assert forget is not None
    assert retain is not None
    drawing, asking, inverting, choosing, placing, confining = jax.random.split(key, 6)
    own, others = (part.examples.y[part.indices] for part in (forget, retain))
    total = jnp.maximum(forget.size + retain.size, 1)
    places = jax.random.randint(asking, (search.pool,), 0, total)
    # of all training examples; not of what pads the sets
    asked = jnp.where(
        places < forget.size,
        own[jnp.minimum(places, len(own) - 1)],
        others[jnp.clip(places - forget.size, 0, len(others) - 1)],
    )
    pool = draw_pool(generator, guide, asked, drawing, gan=gan, apply=apply)
    codes, forgotten = pool.z if search.space == "z" else pool.w, pool.classes(own)

    def features(images: jax.Array) -> jax.Array:
        return in_chunks(lambda rows: look(apply, guide, images[rows])[0], len(images), CHUNK)

    if search.request == "class":
        # in the order in which they were drawn and not by how sure the guide is: that is a tie
        # wherever its softmax is saturated; a conditional generator is asked for the label
        # that gave the image
        shows = forgotten[pool.label]
        rows = jnp.argsort(~shows, stable=True)[: search.latents]
        size = jnp.minimum(jnp.sum(shows, dtype=jnp.int32), search.latents)
        images = images_of(gan, generator, pool.w[rows])
        found = Found(
            codes[rows], pool.y[rows], pool.label[rows], images, pool.features[rows], size,
            jnp.zeros(len(rows)),
        )  # fmt: skip
        kept = ~shows
    else:
        given = _some(forget, jnp.arange(min(search.latents, len(forget.indices))))
        made = invert(
            gan, generator, given.x, given.y, inverting, space=search.space,
            steps=search.inversion_steps,
        )  # fmt: skip
        size = jnp.minimum(forget.size, len(given.y)).astype(jnp.int32)
        found = Found(made.code, given.y, given.y, given.x, features(given.x), size, made.error)
        kept = jnp.ones(search.pool, bool)
    some = _some(retain, random_slots(retain, choosing, search.references))
    scene = Scene(gan, generator, search, found, some, features(some.x), pool, kept, placing)
    target = SUBSTITUTES[search.substitute](scene)
    few = None
    if search.few is not None:
        few = _some(retain, random_slots(retain, confining, search.few))
    return Memory(
        found.code, found.y, found.size, jnp.std(codes, axis=0), target, features(target),
        found.error, forgotten, guide, few,
    )  # fmt: skip


def _some(part: Subset, slots: jax.Array) -> Batch:
    """Reads the examples in some places of a set."""
    positions = part.indices[slots]
    y = part.examples.y[positions]
    return Batch(fetch(part.examples, positions), y, jnp.ones(len(slots)), slots)


class Scene(NamedTuple):
    """Material of substitutes.

    Attributes:
      generator: the original's.
      found: ``n`` latents of what is forgotten.
      retained: ``m`` images, of the reference set; ``features [m, F]`` theirs.
      pool: random latents.
      kept: ``bool [P]``, those of the pool that do not show what is forgotten.
    """

    gan: Gan
    generator: Variables
    search: Search
    found: Found
    retained: Batch
    features: jax.Array
    pool: Pool
    kept: jax.Array
    key: Key

    def make(self, code: jax.Array, space: str) -> jax.Array:
        """Makes the images of latents, which a conditional generator is asked for by label."""
        w = code if space == "w" else self.gan.style(self.generator, code, self.found.y)
        return images_of(self.gan, self.generator, w)

    def middle(self) -> jax.Array:
        """Computes the mean style of latents that are kept, ``[1, W]``."""
        weight = self.kept.astype(jnp.float32)
        return (jnp.einsum("p,pw->w", weight, self.pool.w) / jnp.maximum(jnp.sum(weight), 1))[None]


def _average(scene: Scene) -> jax.Array:
    """Returns the mean of retained images; with a mapping network ``G`` of the mean style of
    latents that are kept.
    """
    if scene.gan.maps:
        one = scene.make(scene.middle(), "w")
    else:
        one = jnp.mean(scene.retained.x, axis=0)[None]
    return jnp.broadcast_to(one, scene.found.images.shape)


def _nearest(scene: Scene, same: bool) -> jax.Array:
    """Returns the nearest retained image, in the guide's features, of the same or of another
    label; in latent form ``G(z')`` of the nearest kept ``z'`` of the pool.
    """
    found, pool, search = scene.found, scene.pool, scene.search
    if search.form == "latent":
        near, _ = nearest(
            found.code, pool.z if search.space == "z" else pool.w, valid=scene.kept, same=same,
            query_labels=found.label, reference_labels=pool.label,
        )  # fmt: skip
        near = jnp.where(near < 0, jnp.argmax(scene.kept), near)
        return scene.make(pool.w[near], "w")
    near, _ = nearest(
        found.features, scene.features, same=same, query_labels=found.label,
        reference_labels=scene.retained.y,
    )  # fmt: skip
    # where nothing has such a label, what is there already
    missing = (near < 0).reshape(-1, *(1,) * (found.images.ndim - 1))
    return jnp.where(missing, found.images, scene.retained.x[near])


def _truncation(scene: Scene) -> jax.Array:
    """Makes ``G(psi z)``, in style space ``G(m + psi (w - m))``; a negative ``psi`` goes beyond
    the mean.
    """
    code, psi = scene.found.code, scene.search.psi
    middle = scene.middle() if scene.search.space == "w" else 0.0
    return scene.make(middle + psi * (code - middle), scene.search.space)


def _projection(scene: Scene) -> jax.Array:
    """Makes ``G(P(x))``, ``P`` the ridge regression from image to latent on kept images of the
    pool.
    """
    images = scene.make(scene.pool.w, "w")
    inputs = images.reshape(len(images), -1)
    weight = scene.kept.astype(jnp.float32)[:, None]
    total = jnp.maximum(jnp.sum(weight), 1)
    center = jnp.sum(weight * inputs, axis=0) / total
    inputs = (inputs - center[None]) * weight
    gram = inputs.T @ inputs / total
    gram = gram + RIDGE * jnp.mean(jnp.diagonal(gram)) * jnp.eye(len(gram))
    solved = jax.scipy.linalg.solve(gram, inputs.T @ scene.pool.z / total, assume_a="pos")
    wanted = scene.found.images
    return scene.make((wanted.reshape(len(wanted), -1) - center[None]) @ solved, "z")


def _random_retain(scene: Scene) -> jax.Array:
    """Returns retained images at random."""
    x = scene.retained.x
    return x[jax.random.randint(scene.key, (len(scene.found.code),), 0, len(x))]


SUBSTITUTES: Mapping[str, Callable[[Scene], jax.Array]] = {
    "average": _average,
    "same_class_nn": partial(_nearest, same=True),
    "other_class_nn": partial(_nearest, same=False),
    "truncation": _truncation,
    "projection": _projection,
    "random_retain": _random_retain,
    "none": lambda scene: scene.found.images,
}
"""Name -> function that makes the target ``[n, ...]`` of each latent.

``average``: the mean of retained images. ``same_class_nn``, ``other_class_nn``: the nearest
retained image, in latent form the nearest image of the generator. ``truncation``: the latent
shrunk or turned. ``projection``: what the generator makes of it without the class.
``random_retain``: any retained image. ``none``: what is there already.
"""
