"""Poisoned copies of images: the place of a patch, what it shows, the label of the copy.

Beside the shapes of :mod:`jaxunlearn.core.types`: ``c`` patches of an image, ``h, w`` the cells
of a coarse map. A corner is the ``(row, column)`` of a patch's upper left pixel. Every
function is pure, compiles and maps; sizes of patches and of results are static.

Source: Chang et al. 2024 (arXiv 2405.15662); the arrays are own.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.attribution.maps import concept_maps, grad_cam
from jaxunlearn.concepts import Concepts, Donor, choose_donor
from jaxunlearn.core.errors import expect_counts, expect_one_of, expect_shares
from jaxunlearn.core.trees import in_chunks
from jaxunlearn.core.types import Apply, Key, Subset, Variables
from jaxunlearn.data.examples import array_shape, fetch, inputs_like
from jaxunlearn.methods.shares import CHUNK, donor_positions, occurring

PLACES = ("localized", "center", "random", "full", "none", "gradcam", "top")
"""Places where the paper pastes: the concept's peak, and its ablations."""

LABELS = ("targeted", "random", "keep")
"""Labels that the paper gives to the copies."""

_PAPER = 64 / 224


class Recipe(NamedTuple):
    """Form of the poison; static.

    Attributes:
      place: one of :data:`PLACES`.
      label: one of :data:`LABELS`.
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
      x: ``float32 [B, H, W, C]``, as the network takes them, or what was made of them.
      y: ``int32 [B]``, their new labels.
      corners: ``int32 [B, c, 2]``, where the patches are; zeros where there is none.
      donors: ``int32 [B]``, slots of the donor images in the retain set.
    """

    x: jax.Array
    y: jax.Array
    corners: jax.Array
    donors: jax.Array


def donors_of(concepts: Concepts, retain: Subset | Sequence[int], top: int = 5) -> Donor:
    """Chooses each class's donor among the classes that the retain set has examples of.

    See :func:`jaxunlearn.concepts.choose_donor`.

    Args:
      retain: the set, or the classes that it has examples of.
    """
    num_classes = concepts.values.shape[0]
    if isinstance(retain, Subset):
        allowed: ArrayLike = lenders(retain, num_classes)
    else:
        own = np.isin(np.arange(num_classes), retain)
        allowed = np.broadcast_to(own, (num_classes, num_classes))
    weights = concepts.bottleneck.weights
    return choose_donor(concepts.values, weights, concepts.bank.useful, allowed, top)


def lenders(retain: Subset, num_classes: int) -> jax.Array:
    """Tells which classes may lend to others, ``bool [K, K]``: those that a set has examples of."""
    own = occurring([retain], num_classes)
    return jnp.broadcast_to(own[None], (num_classes, num_classes))


@partial(jax.jit, inline=True)
def directions(concepts: Concepts) -> jax.Array:
    """Returns the concept vectors, each divided by its length."""
    vectors = concepts.bank.vectors
    lengths = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / jnp.where(lengths > 0, lengths, 1)


def poison_images(
    apply: Apply,
    recipe: Recipe,
    variables: Variables,
    forget: Subset,
    retain: Subset,
    concepts: Concepts | None,
    key: Key,
    *,
    slots: jax.Array,
    made: Callable[[jax.Array], jax.Array] = lambda x: x,
    first: int | None = None,
) -> Copies:
    """Makes copies of forget images with patches of donor images, and with other labels.

    Each image gets a random image of its donor class. ``localized``, ``top``: the donor's
    patch around the peak of the donor concept goes where the target concept of the image's
    class peaks; ``gradcam``: where Grad-CAM of the class peaks; ``center``, ``random``:
    there; ``full``: the donor image takes the place of the whole image; ``none``: as it is.

    Args:
      apply: the network; channels last.
      concepts: ``None`` for copies without a patch whose label is not the donor's.
      slots: ``int32 [B]``, which of the forget set, places in its order.
      made: what is kept of poisoned images, ``[c, H, W, C] -> [c, ...]``.
      first: only so many of the images are made, the same as if all were.

    Source: arXiv 2405.15662.
    """
    shape = array_shape(forget)
    num_classes = jax.eval_shape(apply, variables, inputs_like(forget)).shape[-1]
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
        corners = central(len(slots), recipe.patch, shape)
    elif recipe.place == "random":
        corners = anywhere(place_key, len(slots), recipe.patch, shape)
    show, cam = concept_maps(apply), grad_cam(apply)

    def find(x: jax.Array, classes: jax.Array) -> jax.Array:
        """Finds the peaks in images of forgotten classes."""
        if recipe.place == "gradcam":
            maps = cam(variables, x, jax.nn.one_hot(classes, num_classes))
        else:
            maps = show(variables, x, units[donor.concept[classes]])
        return peaks(maps, recipe.patches, recipe.patch, shape)

    def one(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, classes, at = fetch(forget.examples, positions[rows]), labels[rows], corners[rows]
        if recipe.place == "none":
            return made(x), at
        lent = fetch(retain.examples, retain.indices[donors[rows]])
        if recipe.place == "full":
            return made(lent), at
        if recipe.place not in ("center", "random"):
            at = find(x, classes)
        maps = show(variables, lent, units[donor.donor_concept[classes]])
        taken = peaks(maps, recipe.patches, recipe.patch, shape)
        return made(paste(x, crop(lent, taken, recipe.patch), at)), at

    x, at = in_chunks(one, len(slots) if first is None else first, CHUNK)
    occurs = occurring([forget, retain], num_classes)
    y = poison_labels(recipe.label, labels, wanted, num_classes, label_key, occurs)
    return Copies(x, y, at, donors)


def check_patch(patch: int, shape: Sequence[int]) -> None:
    """Checks that a patch fits into images of ``shape [H, W, ...]``.

    Raises:
      ValueError: not between 1 and ``min(H, W)`` pixels.
    """
    if patch < 1:
        raise ValueError(f"patch: expected at least 1 pixel, got {patch}")
    if patch > min(shape[:2]):
        raise ValueError(
            f"patch: expected at most {min(shape[:2])} pixels, as the images {list(shape)}, "
            f"got {patch}"
        )


def patch_pixels(share: float | None, shape: Sequence[int]) -> int:
    """Computes the side of a patch, ``round(share * min(H, W))``, at least 1.

    Args:
      share: of the shorter side; ``None`` for the paper's 64 of 224 pixels.
      shape: ``[H, W, ...]`` of an image.

    Raises:
      ValueError: a share that is not in (0, 1].
    """
    share = _PAPER if share is None else share
    expect_shares(" of the image's side (a larger patch does not fit)", patch=share)
    return max(1, round(share * min(shape[:2])))


def peaks(maps: jax.Array, count: int, patch: int, shape: Sequence[int]) -> jax.Array:
    """Finds the corners of patches centred on the strongest cells of maps.

    Cell ``(i, j)`` is centred at ``((i + .5) H / h, (j + .5) W / w)``; a patch that would
    leave the image is moved into it. Each patch after the first takes the strongest cell
    whose patch overlaps no earlier one; without such a cell, the strongest whose centre
    no earlier patch covers; then any not yet taken. Of equal cells the first in
    row order; NaN counts as weakest.

    Args:
      maps: ``[B, h, w]``.
      count: ``c``, patches for each image.
      patch: pixels of a side.
      shape: ``[H, W, ...]`` of an image.

    Returns:
      ``int32 [B, c, 2]``, strongest first.

    Raises:
      ValueError: maps of other rank, no patch, a patch that does not fit.
    """
    check_patch(patch, shape)
    if maps.ndim != 3:
        raise ValueError(f"maps: expected [B, h, w], got {maps.shape}")
    expect_counts(count=count)
    centres, corners = _cells(maps.shape[1:], patch, shape)

    def one(strength: jax.Array) -> jax.Array:
        order = jnp.argsort(-strength)
        places = jnp.arange(order.size, dtype=jnp.int32)
        rank = jnp.zeros_like(places).at[order].set(places)

        def take(level: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            best = jnp.argmin(level * order.size + rank)
            corner = corners[best]
            overlaps = (jnp.abs(corners - corner[None]) < patch).all(-1)
            away = centres - corner.astype(jnp.float32)[None]
            covered = ((away >= 0) & (away < patch)).all(-1)
            worse = sum(x.astype(jnp.int32) for x in (overlaps, covered, places == best))
            return jnp.maximum(level, worse), corner

        return jax.lax.scan(take, jnp.zeros_like(places), None, length=count)[1]

    return jax.vmap(one)(maps.reshape(len(maps), -1))


def central(batch: int, patch: int, shape: Sequence[int]) -> jax.Array:
    """Returns corners ``int32 [B, 1, 2]`` of patches in the middle of images ``[H, W, ...]``.

    Raises:
      ValueError: a patch that does not fit.
    """
    check_patch(patch, shape)
    middle = np.array([(side - patch) // 2 for side in shape[:2]], np.int32)
    return jnp.broadcast_to(jnp.asarray(middle)[None, None], (batch, 1, 2))


def anywhere(key: Key, batch: int, patch: int, shape: Sequence[int]) -> jax.Array:
    """Draws corners ``int32 [B, 1, 2]``, uniform over what fits ``[H, W, ...]``.

    Raises:
      ValueError: a patch that does not fit.
    """
    check_patch(patch, shape)
    keys = jax.random.split(key)
    ends = [side - patch + 1 for side in shape[:2]]
    drawn = [
        jax.random.randint(k, (batch, 1), 0, end, jnp.int32)
        for k, end in zip(keys, ends, strict=True)
    ]
    return jnp.stack(drawn, axis=-1)


def crop(images: jax.Array, corners: jax.Array, patch: int) -> jax.Array:
    """Cuts patches out of images.

    Args:
      images: ``[B, H, W, C]``.
      corners: ``int [B, c, 2]``; one that leaves the image is moved into it.
      patch: pixels of a side.

    Returns:
      ``[B, c, patch, patch, C]`` of the images' dtype.

    Raises:
      ValueError: shapes that do not fit, a patch that does not fit.
    """
    corners = _inside(images, corners, patch)

    def one(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, _start(corner), (patch, patch, image.shape[-1]))

    return jax.vmap(jax.vmap(one, (None, 0)))(images, corners)


def paste(images: jax.Array, patches: jax.Array, corners: jax.Array) -> jax.Array:
    """Puts patches into images, later ones over earlier ones.

    Args:
      images: ``[B, H, W, C]``.
      patches: ``[B, c, p, p, C]`` of the same dtype.
      corners: ``int [B, c, 2]``; one that leaves the image is moved into it.

    Returns:
      ``[B, H, W, C]`` of the images' dtype.

    Raises:
      ValueError: shapes or dtypes that do not fit, a patch that does not fit.
    """
    if patches.dtype != images.dtype:
        raise ValueError(f"patches: expected {images.dtype}, as the images, got {patches.dtype}")
    patch = patches.shape[-2]
    expected = (*corners.shape[:2], patch, patch, images.shape[-1])
    if patches.shape != expected:
        raise ValueError(f"patches: expected shape {expected}, got {patches.shape}")
    corners = _inside(images, corners, patch)

    def put(image: jax.Array, one: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return jax.lax.dynamic_update_slice(image, one[0], _start(one[1])), None

    return jax.vmap(lambda image, *them: jax.lax.scan(put, image, them)[0])(
        images, patches, corners
    )


def poison_labels(
    kind: str,
    labels: jax.Array,
    donors: jax.Array,
    num_classes: int,
    key: Key,
    occurs: jax.Array | None = None,
) -> jax.Array:
    """Makes the labels of poisoned images, ``int32 [B]``.

    Args:
      kind: ``"targeted"`` the donor class, ``"random"`` uniform over all that occur, the
        true one among them (as the paper does), ``"keep"`` the label as it was.
      labels, donors: ``int [B]``.
      num_classes: ``K``.
      key: of the random labels.
      occurs: ``bool [K]``, the classes that random labels are drawn from; ``None`` for all.

    Raises:
      ValueError: another kind.
    """
    expect_one_of(LABELS, kind=kind)
    if kind == "random":
        if occurs is None:
            return jax.random.randint(key, labels.shape, 0, num_classes, jnp.int32)
        classes = jnp.argsort(~occurs, stable=True).astype(jnp.int32)  # those that occur first
        count = jnp.sum(occurs, dtype=jnp.int32)
        return classes[jax.random.randint(key, labels.shape, 0, count, jnp.int32)]
    return (donors if kind == "targeted" else labels).astype(jnp.int32)


def _cells(cells: Sequence[int], patch: int, shape: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Returns centres ``float32 [h w, 2]`` of cells, and corners ``int32`` of their patches."""
    centres, corners = [], []
    for count, side in zip(cells, shape[:2], strict=True):
        centre = (np.arange(count) + 0.5) * side / count
        centres.append(centre)
        corners.append(np.clip(np.floor(centre - patch / 2 + 0.5), 0, side - patch))
    flat = [np.stack(np.meshgrid(*x, indexing="ij"), -1).reshape(-1, 2) for x in (centres, corners)]
    return jnp.asarray(flat[0], jnp.float32), jnp.asarray(flat[1], jnp.int32)


def _inside(images: jax.Array, corners: jax.Array, patch: int) -> jax.Array:
    """Moves corners so that their patches lie within the images."""
    if images.ndim != 4:
        raise ValueError(f"images: expected [B, H, W, C], got {images.shape}")
    check_patch(patch, images.shape[1:])
    if corners.ndim != 3 or corners.shape[0] != len(images) or corners.shape[-1] != 2:
        raise ValueError(f"corners: expected [{len(images)}, c, 2], got {corners.shape}")
    # slices of JAX read a negative start from the end
    limits = jnp.array([side - patch for side in images.shape[1:3]], corners.dtype)
    return jnp.clip(corners, 0, limits[None, None])


def _start(corner: jax.Array) -> tuple[jax.Array, ...]:
    return corner[0], corner[1], jnp.zeros_like(corner[0])
