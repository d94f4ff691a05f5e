"""Patches of images: cut out, sent through the network, and those that show a concept."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.concepts.bank import Bank, evenly, margins
from jaxunlearn.core.types import Variables

Features = Callable[[Variables, jax.Array], jax.Array]
"""``(variables, x [B, H, W, C]) -> features [B, n]``."""


class Grid(NamedTuple):
    """Where patches are cut from every image.

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
    """Places that cover an image from border to border, evenly spaced.

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
    """Features of patches, each resized to the size of the images the network knows.

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
    x = jnp.asarray(images, jnp.float32)
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
    out = _outputs(variables, x, jnp.asarray(places), feature_fn=feature_fn, size=grid.size)
    found = np.asarray(out, np.float32).reshape(-1, out.shape[-1])[:count]
    return found.reshape(len(x), len(grid.corner), -1)


def draw_images(count: int, places: int, patches: int, labels: Any, seed: int) -> np.ndarray:
    """Positions of as many images as have at most ``patches`` patches, at least one.

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
    """The patches of largest strength for each concept, one of each image.

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
    """What the concepts of any bank look like: the patches of largest margin.

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
    strength = margins(bank, jnp.asarray(found.reshape(-1, found.shape[-1])))
    shape = (*found.shape[:2], len(bank.names))
    return pick_typical(np.asarray(strength).reshape(shape), grid, typical, chosen)
