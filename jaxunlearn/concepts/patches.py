"""Patches of images: concepts without labels, and patches that show a concept.

Patches are cut out and sent through the network; what their features are sums of are concepts
(:func:`patch_bank`); the concepts of any bank are shown by their patches
(:func:`typical_patches`).
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.concepts.bank import Bank, check_levels, evenly, make_bank, margins
from jaxunlearn.core.host import on_one_thread
from jaxunlearn.core.trees import to_device
from jaxunlearn.core.types import Variables

Features = Callable[[Variables, jax.Array], jax.Array]
"""``(variables, x [B, H, W, C]) -> features [B, n]``."""

# a patch is strong in a concept if it is among this share
_STRONG = 0.25
_STEPS = 200


class Grid(NamedTuple):
    """The places where patches are cut from every image.

    Attributes:
      corner: ``int32 [P, 2]``, row and column of the upper left pixel of each place.
      size: pixels of a side; patches are square.
    """

    corner: np.ndarray
    size: int


class Patches(NamedTuple):
    """The patches that show each concept best, strongest first.

    Attributes:
      image: ``int32 [m, t]``, the image's position among those given.
      corner: ``int32 [m, t, 2]``, row and column of the upper left pixel.
      size: pixels of a side.
      strength: ``float32 [m, t]``, how much of the concept is in the patch.
    """

    image: np.ndarray
    corner: np.ndarray
    size: int
    strength: np.ndarray


def make_grid(height: int, width: int, crop: float, stride: float) -> Grid:
    """Spaces places evenly, so that they cover an image from border to border.

    Args:
      height, width: pixels of the image.
      crop: side of a patch as a share of the image's shorter side; from above 0 to 1.
      stride: the largest step from place to place as a share of the patch's side;
        rounded down to pixels, at least one.

    Raises:
      ValueError: a share out of range.
    """
    if not 0 < crop <= 1:
        raise ValueError(f"crop: expected a share of the side from above 0 to 1, got {crop!r}")
    if not 0 < stride <= 1:
        raise ValueError(f"stride: expected a share of the patch above 0 to 1, got {stride!r}")
    size = max(1, round(crop * min(height, width)))
    step = max(1, int(stride * size))
    along = []
    for side in (height, width):
        count = math.ceil((side - size) / step) + 1
        along.append(np.rint(np.linspace(0, side - size, count)).astype(np.int32))
    corner = np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, 2)
    return Grid(corner, size)


@partial(jax.jit, static_argnames=("feature_fn", "size"))
def _outputs(
    variables: Variables, images: jax.Array, places: jax.Array, *, feature_fn: Features, size: int
) -> jax.Array:
    depth = images.shape[-1]

    def cut(place: jax.Array) -> jax.Array:
        start = (place[0], place[1], place[2], jnp.zeros_like(place[0]))
        return jax.lax.dynamic_slice(images, start, (1, size, size, depth))[0]

    def one(chunk: jax.Array) -> jax.Array:
        crops = jax.vmap(cut)(chunk)
        shape = (crops.shape[0], *images.shape[1:])
        return feature_fn(variables, jax.image.resize(crops, shape, "bilinear"))

    return jax.lax.map(one, places)


def patch_features(
    feature_fn: Features,
    variables: Variables,
    images: ArrayLike,
    grid: Grid,
    *,
    batch_size: int = 256,
) -> np.ndarray:
    """Computes features of patches, each resized to the size of the images the network knows.

    One compiled program runs over all of them, ``batch_size`` at a time; it is compiled
    anew for another ``feature_fn``: keep the function.

    Args:
      feature_fn: ``jaxunlearn.attribution.features(apply)``, or any
        ``(variables, x) -> [B, n]``.
      variables: of the network.
      images: ``[N, H, W, C]``, normalised.
      grid: see :func:`make_grid`.
      batch_size: patches taken together.

    Returns:
      ``float32 [N, P, n]``.

    Raises:
      ValueError: images or features of another rank, or no image.
    """
    x = to_device(images, np.float32)
    if x.ndim != 4 or not len(x):
        raise ValueError(f"images: expected shape [N, H, W, C], got {list(x.shape)}")
    one = jax.eval_shape(feature_fn, variables, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    if one.ndim != 2:
        raise ValueError(f"feature_fn: expected features [B, n], got shape {list(one.shape)}")
    count = len(x) * len(grid.corner)
    places = np.concatenate(
        [
            np.repeat(np.arange(len(x), dtype=np.int32), len(grid.corner))[:, None],
            np.tile(grid.corner, (len(x), 1)),
        ],
        axis=1,
    )
    batch = min(batch_size, count)
    # the last batch is filled up with patches that are dropped again
    places = np.resize(places, (math.ceil(count / batch), batch, 3))
    out = _outputs(variables, x, places, feature_fn=feature_fn, size=grid.size)
    found = np.asarray(out, np.float32).reshape(-1, out.shape[-1])[:count]
    return found.reshape(len(x), len(grid.corner), -1)


def draw_images(count: int, places: int, patches: int, labels: Any, seed: int) -> np.ndarray:
    """Draws as many images as have at most ``patches`` patches, at least one.

    Args:
      count: images there are.
      places: patches of an image.
      patches: see above.
      labels: ``None``, or integers ``[N]``; images are drawn evenly over them.
      seed: fixes the draw.

    Raises:
      ValueError: labels of another length.
    """
    groups = np.zeros(count, np.int32) if labels is None else np.asarray(labels)
    if groups.shape != (count,):
        raise ValueError(f"labels: expected shape [{count}], got {list(groups.shape)}")
    return evenly(groups, max(1, patches // places), np.random.default_rng(seed))


def pick_typical(
    strength: np.ndarray, grid: Grid, count: int, images: np.ndarray | None = None
) -> Patches:
    """Picks the patches of largest strength for each concept, one of each image.

    Args:
      strength: ``[N, P, m]``, of each concept in each patch.
      grid: the places ``P``.
      count: at most so many patches for a concept; not more than images.
      images: ``int [N]``, what the images are called in the result; ``0 .. N - 1`` by
        default.

    Raises:
      ValueError: no positive count.
    """
    if count < 1:
        raise ValueError(f"typical: expected at least 1 patch of a concept, got {count!r}")
    names = np.arange(len(strength)) if images is None else np.asarray(images)
    best = strength.argmax(axis=1).T
    peak = strength.max(axis=1).T
    order = np.argsort(-peak, axis=1, kind="stable")[:, :count]
    return Patches(
        image=names[order].astype(np.int32),
        corner=grid.corner[np.take_along_axis(best, order, axis=1)],
        size=grid.size,
        strength=np.take_along_axis(peak, order, axis=1).astype(np.float32),
    )


def typical_patches(
    bank: Bank,
    feature_fn: Features,
    variables: Variables,
    images: ArrayLike,
    *,
    crop: float = 0.4,
    stride: float = 0.8,
    typical: int = 8,
    patches: int = 4096,
    batch_size: int = 256,
    labels: ArrayLike | None = None,
    seed: int = 0,
) -> Patches:
    """Finds the patches of largest margin, which show what the concepts of a bank look like.

    Args:
      bank: of ``n`` features.
      feature_fn, variables, images, batch_size: see :func:`patch_features`.
      crop, stride: see :func:`make_grid`.
      typical: patches for each concept, of different images; those of a concept that is not
        useful mean nothing.
      patches: at most so many are looked at; images are drawn at random.
      labels: integers ``[N]``; images are then drawn evenly over them.
      seed: fixes the draw.

    Raises:
      ValueError: see :func:`patch_features`, :func:`make_grid`, :func:`pick_typical`.
    """
    x = np.asarray(images)
    if x.ndim != 4:
        raise ValueError(f"images: expected shape [N, H, W, C], got {list(x.shape)}")
    grid = make_grid(x.shape[1], x.shape[2], crop, stride)
    chosen = draw_images(len(x), len(grid.corner), patches, labels, seed)
    found = patch_features(feature_fn, variables, x[chosen], grid, batch_size=batch_size)
    strength = margins(bank, found.reshape(-1, found.shape[-1]))
    shape = (*found.shape[:2], len(bank.names))
    return pick_typical(np.asarray(strength).reshape(shape), grid, typical, chosen)


class _Quality(NamedTuple):
    """``[m]`` each."""

    accuracy: np.ndarray
    p_value: np.ndarray


def patch_names(concepts: int) -> tuple[str, ...]:
    """Names the concepts that have no name: ``patch 0``, ``patch 1``, ..."""
    return tuple(f"patch {number}" for number in range(concepts))


def patch_bank(
    feature_fn: Features,
    variables: Variables,
    images: ArrayLike,
    *,
    concepts: int = 16,
    crop: float = 0.4,
    stride: float = 0.8,
    typical: int = 8,
    patches: int = 4096,
    held_out: float = 0.3,
    randoms: int = 40,
    alpha: float = 0.05,
    seed: int = 0,
    batch_size: int = 256,
    labels: ArrayLike | None = None,
) -> tuple[Bank, Patches]:
    """Factorises the activations of patches into concepts, each shown by its patches.

    Square patches are cut from images, resized to the size the network knows and sent
    through it; their features ``E [P, n]`` are approximated by ``E = U V`` with no
    negative number in ``U [P, m]`` and ``V [m, n]``. A row of ``V``, of length 1, is a
    concept vector; its intercept is minus the mean projection of the patches, so that a
    positive margin means more of the concept than a patch has on average.

    A concept is worth something if other images have it too. So a share of the images is
    held out and factorised by itself; each concept is matched with the vector found there
    that is nearest in angle. Its accuracy (balanced, chance .5) says how well the concept
    vector alone finds the quarter of the held-out patches that are strongest in its
    match: it takes the quarter of largest projection. Random concepts, with the weights
    of the concept on other features (shuffled in units of the features' root mean
    squares), are asked for the same patches; with r of ``randoms`` at least as accurate
    the p-value is ``(1 + r) / (1 + randoms)``. Useful are concepts with ``p < alpha``
    and an accuracy above .5. The others are marked in the bank, and no warning is given:
    nobody asked for one of them in particular.

    The test weeds out what is not found again; it proves no meaning. The match is the
    nearest of m, which random concepts cannot choose: of the concepts of pure noise some
    more than ``alpha`` pass (measured: 12 of 48 at .05).

    Args:
      feature_fn, variables, images, batch_size: see
        :func:`patch_features`; no feature may be negative,
        as is so behind a relu.
      concepts: ``m``, from 2 to the number of features.
      crop, stride: see :func:`make_grid`.
      typical: patches that show a concept, those of largest coefficient in ``U``, of
        different images.
      patches: at most so many are looked at; images are drawn at random.
      held_out: share of the images that the concepts are tested on.
      randoms: random concepts for each concept.
      alpha: level of significance.
      seed: fixes all draws.
      labels: integers ``[N]``; images are then drawn evenly over them.

    Raises:
      ValueError: wrong shapes, features that are negative or not finite, an option out of
        range, too few images, or no useful concept.

    Source: Fel et al. 2023 (CRAFT) for the factorisation of patches; the test by a second
    factorisation is our own.
    """
    x = np.asarray(images)
    if x.ndim != 4:
        raise ValueError(f"images: expected shape [N, H, W, C], got {list(x.shape)}")
    check_levels(held_out, randoms, alpha)
    grid = make_grid(x.shape[1], x.shape[2], crop, stride)
    chosen = draw_images(len(x), len(grid.corner), patches, labels, seed)
    found = patch_features(feature_fn, variables, x[chosen], grid, batch_size=batch_size)
    _check_features(found, concepts)
    rng = np.random.default_rng(seed)
    tested = rng.permutation(len(found)) < _images_held_out(found, concepts, held_out)
    known, unknown = (found[part].reshape(-1, found.shape[2]) for part in (~tested, tested))
    vectors, coefficients = _factorise(known, concepts, seed)
    quality = _replicate(vectors, unknown, randoms, rng, seed)
    useful = (quality.p_value < alpha) & (quality.accuracy > 0.5) & vectors.any(axis=1)
    if not useful.any():
        raise ValueError(
            "concepts: expected a concept that other images have too, got none: accuracies "
            f"from {quality.accuracy.min():.2f} to {quality.accuracy.max():.2f}; more images, "
            "larger patches or fewer concepts may help"
        )
    strength = np.zeros((*found.shape[:2], concepts), np.float32)
    strength[~tested] = coefficients.reshape(-1, found.shape[1], concepts)
    strength[tested] = _explain(unknown, vectors).reshape(-1, found.shape[1], concepts)
    bank = make_bank(
        patch_names(concepts),
        vectors,
        -(known @ vectors.T).mean(axis=0),
        useful=useful,
        accuracy=quality.accuracy,
        p_value=quality.p_value,
    )
    return bank, pick_typical(strength, grid, typical, chosen)


def _check_features(found: np.ndarray, concepts: int) -> None:
    width = found.shape[2]
    if not 2 <= concepts <= width:
        raise ValueError(
            f"concepts: expected from 2 to {width}, the features that the head reads, "
            f"got {concepts!r}"
        )
    if not np.isfinite(found).all():
        raise ValueError("features: expected finite numbers, got NaN or infinity")
    if found.min() < 0:
        raise ValueError(
            f"features: expected none below 0 (those behind a relu), got {found.min():.3g}; "
            "patches are factorised without negative numbers, so that another network needs "
            "concepts from an attribute table or vectors of one's own"
        )
    if not found.any():
        raise ValueError("features: expected a patch that the network answers to, got zeros only")


def _images_held_out(found: np.ndarray, concepts: int, held_out: float) -> int:
    """Counts the images to hold out, so that both parts can be factorised."""
    images, places = found.shape[:2]
    least = max(2, -(-concepts // places))
    if images < 2 * least:
        raise ValueError(
            f"images: expected at least {2 * least} for {concepts} concepts and {places} "
            f"patches of an image, got {images}"
        )
    return min(max(round(held_out * images), least), images - least)


@on_one_thread
def _factorise(x: np.ndarray, concepts: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds vectors ``[m, n]`` of length 1 (or 0, if unused) and coefficients ``[P, m]``."""
    from sklearn.decomposition import NMF

    model = NMF(concepts, init="nndsvda", max_iter=_STEPS, random_state=seed)
    with _quietly():
        coefficients = model.fit_transform(x)
    norms = np.linalg.norm(model.components_, axis=1)
    return model.components_ / np.where(norms > 0, norms, 1)[:, None], coefficients * norms


@on_one_thread
def _explain(x: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Finds the coefficients ``[P, m]`` of patches for given vectors."""
    from sklearn.decomposition import non_negative_factorization

    with _quietly():
        coefficients, _, _ = non_negative_factorization(
            x, H=vectors, n_components=len(vectors), init="custom", update_H=False, max_iter=_STEPS
        )
    return coefficients


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Runs without a warning that the last digits have not converged."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _replicate(
    vectors: np.ndarray, x: np.ndarray, randoms: int, rng: np.random.Generator, seed: int
) -> _Quality:
    """Measures how well concepts find the strong patches of a factorisation of other patches."""
    others, coefficients = _factorise(x, len(vectors), seed)
    strong = _top(coefficients)[:, (vectors @ others.T).argmax(axis=1)]
    own = _agreement(vectors, x, strong)
    null = np.stack([_agreement(_shuffled(vectors, x, rng), x, strong) for _ in range(randoms)])
    return _Quality(own, (1 + np.sum(null >= own[None], axis=0)) / (1 + randoms))


def _shuffled(vectors: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves the weights of each vector ``[m, n]`` to other features.

    They are shuffled in units of the features' root mean squares, among the features
    that ever answer: one that is often large stays so, and what goes is which of them
    belong together.
    """
    scale = np.sqrt(np.mean(x**2, axis=0))
    live = np.flatnonzero(scale > 0)
    made = np.zeros_like(vectors)
    made[:, live] = rng.permuted(vectors[:, live] / scale[live], axis=1) * scale[live]
    return made


def _agreement(vectors: np.ndarray, x: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Computes the balanced accuracy ``[m]`` at finding the patches ``wanted [P, m]``."""
    taken = _top(x @ vectors.T)
    positives, negatives = wanted.sum(axis=0), (~wanted).sum(axis=0)
    found = (taken & wanted).sum(axis=0) / np.maximum(positives, 1)
    spared = (~taken & ~wanted).sum(axis=0) / np.maximum(negatives, 1)
    return np.where(positives > 0, (found + spared) / 2, 0.5)


def _top(values: np.ndarray) -> np.ndarray:
    """Marks, ``bool [P, m]``, the largest quarter of each column, none of value 0."""
    place = int((1 - _STRONG) * (len(values) - 1))
    border = np.partition(values, place, axis=0)[place]
    return (values >= border[None]) & (values > 0)
