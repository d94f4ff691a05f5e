"""The poisoned copies of what is to be forgotten, made on the device in one program."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.maps import concept_maps, grad_cam
from jaxunlearn.concepts import Concepts, Donor, choose_donor
from jaxunlearn.core.trees import in_chunks
from jaxunlearn.core.types import Apply, Key, Subset, Variables
from jaxunlearn.data.batches import array_shape, fetch
from jaxunlearn.methods.concept_poison import poison as _poison
from jaxunlearn.methods.shares import donor_positions

CHUNK = 256
"""Images that go through the network together."""


class Recipe(NamedTuple):
    """How images are poisoned; static.

    Attributes:
      place: one of :data:`jaxunlearn.methods.concept_poison.poison.PLACES`.
      label: one of :data:`jaxunlearn.methods.concept_poison.poison.LABELS`.
      patch: pixels of a side.
      patches: how many of them an image gets.
    """

    place: str
    label: str
    patch: int
    patches: int


class Copies(NamedTuple):
    """Poisoned images.

    Attributes:
      x: ``float32 [B, H, W, C]``, normalised, or whatever a function made of them.
      y: ``int32 [B]``, their new labels.
      corners: ``int32 [B, c, 2]``, where the patches are; zeros where there is none.
      donors: ``int32 [B]``, slots of the donor images in the retain set.
    """

    x: jax.Array
    y: jax.Array
    corners: jax.Array
    donors: jax.Array


def uses_concepts(recipe: Recipe) -> bool:
    """Whether a donor class is needed, which follows from concepts."""
    return recipe.place != "none" or recipe.label == "targeted"


def donors_of(concepts: Concepts, retain: Subset, top: int = 5) -> Donor:
    """Each class's donor among the classes that the retain set has examples of.

    See :func:`jaxunlearn.concepts.choose_donor`.
    """
    num_classes = concepts.values.shape[0]
    places = jnp.arange(len(retain.indices), dtype=jnp.int32)
    labels = retain.examples.y[retain.indices]
    counts = jnp.zeros(num_classes, jnp.int32).at[labels].add((places < retain.size).astype(int))
    allowed = jnp.broadcast_to(counts[None] > 0, (num_classes, num_classes))
    weights = concepts.bottleneck.weights
    return choose_donor(concepts.values, weights, concepts.bank.useful, allowed, top)


def poisoned_copies(
    apply: Apply,
    recipe: Recipe,
    variables: Variables,
    forget: Subset,
    retain: Subset,
    slots: jax.Array,
    concepts: Concepts | None,
    key: Key,
    num_classes: int,
    made: Callable[[jax.Array], jax.Array] = lambda x: x,
    first: int | None = None,
) -> Copies:
    """Copies of forget images with patches of donor images, and with other labels.

    Each image gets a random image of its donor class. ``localized``, ``top``: the donor's
    patch around the peak of the donor concept goes where the target concept of the image's
    class peaks; ``gradcam``: where Grad-CAM of the class peaks; ``center``, ``random``:
    there; ``full``: the donor image takes the place of the whole image; ``none``: as it is.

    Args:
      apply: the network; channels last.
      slots: ``int32 [B]``, which of the forget set, places in its order.
      concepts: ``None`` where :func:`uses_concepts` says no.
      num_classes: ``K``.
      made: what is kept of poisoned images, ``[c, H, W, C] -> [c, ...]``.
      first: only so many of the images are made, the same as if all were.

    Source: arXiv 2405.15662.
    """
    shape = array_shape(forget)
    positions = forget.indices[slots]
    labels = forget.examples.y[positions]
    lend_key, place_key, label_key = jax.random.split(key, 3)
    corners = jnp.zeros((len(slots), recipe.patches, 2), jnp.int32)
    wanted, donors = labels, jnp.zeros_like(labels)
    if concepts is not None:
        donor = donors_of(concepts, retain)
        wanted = donor.label[labels]
        own = retain.examples.y[retain.indices]
        donors = jnp.maximum(donor_positions(own, retain.size, wanted, lend_key), 0)
        units = directions(concepts)
    if recipe.place == "center":
        corners = _poison.central(len(slots), recipe.patch, shape)
    elif recipe.place == "random":
        corners = _poison.anywhere(place_key, len(slots), recipe.patch, shape)
    show, cam = concept_maps(apply), grad_cam(apply)

    def where(x: jax.Array, classes: jax.Array) -> jax.Array:
        """The peaks in images of forgotten classes."""
        if recipe.place == "gradcam":
            maps = cam(variables, x, jax.nn.one_hot(classes, num_classes))
        else:
            maps = show(variables, x, units[donor.concept[classes]])
        return _poison.peaks(maps, recipe.patches, recipe.patch, shape)

    def one(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, classes, at = fetch(forget.examples, positions[rows]), labels[rows], corners[rows]
        if recipe.place == "none":
            return made(x), at
        lent = fetch(retain.examples, retain.indices[donors[rows]])
        if recipe.place == "full":
            return made(lent), at
        if recipe.place not in ("center", "random"):
            at = where(x, classes)
        maps = show(variables, lent, units[donor.donor_concept[classes]])
        peaks = _poison.peaks(maps, recipe.patches, recipe.patch, shape)
        return made(_poison.paste(x, _poison.crop(lent, peaks, recipe.patch), at)), at

    x, at = in_chunks(one, len(slots) if first is None else first, CHUNK)
    y = _poison.poison_labels(recipe.label, labels, wanted, num_classes, label_key)
    return Copies(x, y, at, donors)


def directions(concepts: Concepts) -> jax.Array:
    """Concept vectors of length 1."""
    vectors = concepts.bank.vectors
    lengths = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / jnp.where(lengths > 0, lengths, 1)
