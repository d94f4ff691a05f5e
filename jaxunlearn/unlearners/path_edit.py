"""Edits of the weights of chosen neurons."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.types import Key, Variables
from jaxunlearn.unlearners.path_sites import Layer, leaf

__all__ = ["EDITS", "edit_weights", "masks"]

_EDITS: dict[str, Callable[[jax.Array, float, Key], jax.Array]] = {
    "zero": lambda w, scale, key: jnp.zeros_like(w),
    "scale": lambda w, scale, key: scale * w,
    "sign": lambda w, scale, key: -w,
    "gaussian": lambda w, scale, key: w + scale * jax.random.normal(key, w.shape, w.dtype),
    "laplace": lambda w, scale, key: w + scale * jax.random.laplace(key, w.shape, w.dtype),
}

EDITS = tuple(_EDITS)


def masks(
    variables: Variables,
    layers: Sequence[Layer],
    chosen: Sequence[jax.Array],
    classes: jax.Array,
) -> dict[str, jax.Array]:
    """Which weights to edit: a mask for each leaf, which broadcasts against it.

    Args:
      variables: where the leaves lie.
      layers: whose places are meant.
      chosen: for each layer ``bool [n]``.
      classes: ``bool [K]``, those to be forgotten.
    """
    found: dict[str, jax.Array] = {}
    for layer, neurons in zip(layers, chosen, strict=True):
        for place in layer.places:
            rank = leaf(variables, place.path).ndim
            mask = _along(neurons, place.axis, rank)
            if place.classes is not None:
                mask &= _along(classes, place.classes, rank)
            # one kernel may be the incoming of a layer and the outgoing of another
            found[place.path] = found[place.path] | mask if place.path in found else mask
    return found


def edit_weights(
    variables: Variables, masks: Mapping[str, jax.Array], edit: str, scale: float, key: Key
) -> Variables:
    """The same tree with the masked weights edited.

    Args:
      masks: leaf path -> a mask that broadcasts against the leaf.
      edit: one of :data:`EDITS`.
      scale: the factor of ``"scale"``, the spread of the noises.
      key: split into one for each masked leaf, in the order of their paths.
    """
    order = sorted(masks)

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in masks:
            return leaf
        own = jax.random.fold_in(key, order.index(name))
        return jnp.where(masks[name], _EDITS[edit](leaf, scale, own), leaf)

    return jax.tree_util.tree_map_with_path(one, variables)


def _along(mask: jax.Array, axis: int, rank: int) -> jax.Array:
    """A mask that runs along one of ``rank`` axes."""
    return jnp.expand_dims(mask, [d for d in range(rank) if d != axis])
