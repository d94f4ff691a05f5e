"""Fresh variables of the built-in networks, in one random draw.

A draw for every kernel makes the initialisation of a small convolutional network
compile for seconds; one long draw, cut into kernels, compiles in a fraction of
one, and maps over keys.
"""

import math

import jax
import jax.numpy as jnp

from jaxunlearn.types import Key, Variables

__all__ = ["lecun_normal"]

# standard deviation of the standard normal distribution cut off at two
_CUT_DEVIATION = 0.87962566103423978


def lecun_normal(shapes: Variables, key: Key) -> Variables:
    """LeCun-normal kernels; ones for ``scale`` and ``var``, zeros for all else.

    A kernel is ``n / (sqrt(fan_in) 0.8796)``, where ``n`` is standard normal, cut off
    at two: its variance is ``1 / fan_in``, the product of all dimensions but the last.

    Args:
      shapes: nested dictionaries of arrays or ``jax.ShapeDtypeStruct``, by the names
        that Flax gives: ``kernel``, ``bias``, ``scale``, ``mean``, ``var``.
      key: consumed.

    Returns:
      Arrays of the same structure, shapes and dtypes.

    Source: LeCun et al. 1998, Efficient BackProp; the distribution is Flax's default.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    named = [(path[-1].key, leaf) for path, leaf in leaves]
    total = sum(math.prod(leaf.shape) for name, leaf in named if name == "kernel")
    noise = jax.random.truncated_normal(key, -2.0, 2.0, (total,), jnp.float32)
    values, start = [], 0
    for name, leaf in named:
        if name == "kernel":
            size = math.prod(leaf.shape)
            deviation = 1.0 / (_CUT_DEVIATION * math.sqrt(math.prod(leaf.shape[:-1])))
            value = deviation * noise[start : start + size].reshape(leaf.shape)
            start += size
        else:
            value = jnp.full(leaf.shape, 1.0 if name in ("scale", "var") else 0.0)
        values.append(value.astype(leaf.dtype))
    return jax.tree.unflatten(structure, values)
