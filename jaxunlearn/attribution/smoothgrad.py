"""SmoothGrad: the mean of any attribution over noisy copies of the input."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from jaxunlearn.core.errors import brief, is_count, is_number
from jaxunlearn.core.trees import divide_like
from jaxunlearn.jaxprs.program import check_examples, traced, wide
from jaxunlearn.jaxprs.replay import canonical


def smoothgrad(
    attribute: Callable[..., Any], n: int = 16, *, scale: float = 0.15
) -> Callable[..., Any]:
    """Returns the function that averages an attribution over noisy inputs.

        mean over k of attribute(variables, x + e_k, ...),  e_k ~ normal(0, s^2)

    with ``s = scale * (max x - min x)``, the extremes of each example, of each array of a pytree
    by itself; integers and bools stay. The copies are taken one after the other in one
    loop: memory is that of one. Nothing is jitted here; it composes, is sharded over the
    examples and keeps shapes as ``attribute`` does.

    Args:
      attribute: ``(variables, x, ...) -> result``: what
        :func:`~jaxunlearn.attribution.lrp`,
        :func:`~jaxunlearn.attribution.integrated_gradients` or
        :func:`~jaxunlearn.attribution.grad_cam` returns, or any function to a pytree of arrays.
        Let a label be given: the largest logit may be another with noise.
      n: how many copies.
      scale: the standard deviation, as a share of the range of an example. 0.1 to 0.2 are usual.

    Returns:
      ``smoothed(variables, x, *args, key, **kwargs) -> result``, every float of which is the mean
      (the relevance of each layer, the gap and so on), and every integer that of the last copy.
      ``key`` is a random key; the same key draws the same noise. Inside ``shard_map`` every
      shard draws alike, unless each is given a key of its own. It raises ``TypeError`` if ``x``
      holds no floats.

    Raises:
      ValueError: if ``n`` is below 1 or ``scale`` not positive.

    Source: Smilkov et al. 2017.
    """
    if not is_count(n):
        raise ValueError(f"smoothgrad: expected n of at least 1, got {brief(n)}")
    if not is_number(scale) or scale <= 0:
        raise ValueError(f"smoothgrad: expected a positive scale, got {brief(scale)}")

    def smoothed(variables: Any, x: Any, *args: Any, key: jax.Array, **kwargs: Any) -> Any:
        check_examples(x)
        x = jax.tree.map(jnp.asarray, x)
        floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(x)]
        if not any(floats):
            raise TypeError("x: expected floats to add noise to, got integers alone")

        def one(key: jax.Array) -> Any:
            return attribute(variables, _noisy(key, x, scale), *args, **kwargs)

        keys = jax.random.split(key, n)
        closed, like = traced(canonical(one), keys[0])
        run = core.jaxpr_as_fun(closed)

        def add(sums: list[jax.Array], key: jax.Array) -> tuple[list[jax.Array], None]:
            pairs = zip(sums, run(key), strict=True)
            return [s + v.astype(s.dtype) if _is_float(v) else v for s, v in pairs], None

        # zeros of the right kind inside shard_map; compiled, the values themselves are not made
        blank = [jnp.zeros_like(v, wide(v.dtype) if _is_float(v) else None) for v in run(keys[0])]
        sums, _ = lax.scan(add, blank, keys)
        leaves, structure = jax.tree.flatten(like)
        pairs = zip(sums, leaves, strict=True)
        means = [(s / n).astype(v.dtype) if _is_float(v) else s for s, v in pairs]
        return divide_like(x, jax.tree.unflatten(structure, means))

    return smoothed


def _is_float(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def _noisy(key: jax.Array, x: Any, scale: float) -> Any:
    """Adds noise to the floats of an input."""
    leaves, structure = jax.tree.flatten(x)
    keys = jax.random.split(key, len(leaves))

    def add(key: jax.Array, leaf: jax.Array) -> jax.Array:
        if not _is_float(leaf):
            return leaf
        axes = tuple(range(1, leaf.ndim))
        width = jnp.max(leaf, axes, keepdims=True) - jnp.min(leaf, axes, keepdims=True)
        return leaf + scale * width * jax.random.normal(key, leaf.shape, leaf.dtype)

    return jax.tree.unflatten(structure, [add(*pair) for pair in zip(keys, leaves, strict=True)])
