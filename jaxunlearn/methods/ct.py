"""Spatial kernels turned over, then fine-tuned."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.trees import named_leaves, path_name
from jaxunlearn.core.types import Apply, Inputs, Key, Model, Needs, Sets, Unlearner, Variables
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.jaxprs.structure import spatial_axes
from jaxunlearn.methods.retrain import learn_retained
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import DescentState, descent


def swap_axes(apply: Apply, variables: Variables, x: Inputs) -> Variables:
    """Swaps the two spatial axes of every square kernel; done twice, nothing has changed.

    Kernels that are not square would change their form, and stay.

    Args:
      apply: ``(variables, x) -> logits [B, K]``.
      x: inputs, or their shapes and dtypes.

    Raises:
      ConfigError: there is no kernel that swapping could change.
    """
    leaves = named_leaves(variables)
    axes = {
        path: own
        for path, own in spatial_axes(apply, variables, x).items()
        if len(own) == 2 and len({leaves[path].shape[axis] for axis in own}) == 1
    }
    if not any(leaves[path].shape[own[0]] > 1 for path, own in axes.items()):
        raise ConfigError(
            "model: expected a network with square convolution kernels larger than 1x1, whose "
            "axes ct swaps, got none"
        )

    def swapped(keys: Any, leaf: jax.Array) -> jax.Array:
        own = axes.get(path_name(keys))
        return leaf if own is None else jnp.swapaxes(leaf, *own)

    return jax.tree_util.tree_map_with_path(swapped, variables)


def ct(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    augment: str = "none",
) -> Unlearner:
    """Swaps the two spatial axes of every kernel, then descends ``l(B_r)``: convolution transpose.

    Each filter sees its pattern mirrored at the diagonal; fine-tuning repairs what is retained.
    It reads nothing of the forget set. For networks of images with square kernels alone; where
    filters are nearly symmetric little changes.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      optimizer: default SGD with momentum .9 and rate .001.
      augment: a name in ``AUGMENTATIONS``.

    Raises:
      ConfigError: the network has no square kernel larger than 1x1; before any step.

    Source: the fifth of the winners of the NeurIPS 2023 challenge on unlearning, as in Cadet et
    al., Deep Unlearn, arXiv 2410.01276.
    """
    model = functionalize(model)
    optimizer = optax.sgd(1e-3, momentum=0.9) if optimizer is None else optimizer
    method = descent(learn_retained(model, augment), optimizer, Needs(retain=True), model=model)

    def init(variables: Variables, sets: Sets, key: Key) -> DescentState:
        assert sets.retain is not None
        start = swap_axes(model.apply, variables, inputs_like(sets.retain))
        state: DescentState = method.init(start, sets, key)
        return state

    return method._replace(init=init)
