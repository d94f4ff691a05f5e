"""Rules for the first layer, whose input is not what a relu let through."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.attribution.affine import Affine
from jaxunlearn.attribution.rules.base import Propagated, Rule, check_positive, share

__all__ = ["flat", "wsquare", "zbox"]


def zbox(low: ArrayLike, high: ArrayLike, eps: float = 1e-6) -> Rule:
    """The z-box rule, for inputs that lie between bounds, such as pixels.

    ``s = R / stab(W a - W+ l - W- h)``; ``R_a = a * W' s - l * W+' s - h * W-' s``.

    Args:
      low, high: the bounds ``l`` and ``h``, broadcast against the input as the unit reads it
        (normalised pixels if the function is given normalised pixels).
      eps: keeps the division from zero.

    Raises:
      ValueError: if a lower bound is above its upper bound, or ``eps`` is not positive.

    Source: Montavon et al. 2017, eq. 17 (z^B).
    """
    check_positive("eps", eps)
    traced = isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer)
    if not traced and np.any(np.asarray(low) > np.asarray(high)):
        raise ValueError(f"low, high: expected low <= high, got {low} and {high}")

    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> Propagated:
        del z
        kernel = affine.kernel()
        up, down = jnp.maximum(kernel, 0), jnp.minimum(kernel, 0)
        floor = jnp.broadcast_to(jnp.asarray(low, a.dtype), a.shape)
        ceiling = jnp.broadcast_to(jnp.asarray(high, a.dtype), a.shape)
        bounds = affine.forward(floor, up) + affine.forward(ceiling, down)
        s, loss = share(relevance, affine.linear() - bounds, None, eps)
        # W = W+ + W-: two transposed operations, not three
        below = (a - floor) * affine.transpose(s, up) + (a - ceiling) * affine.transpose(s, down)
        return Propagated(below, loss)

    return Rule("zbox", propagate)


def wsquare(eps: float = 1e-6, *, bias: bool = True) -> Rule:
    """The w2 rule: by squared weights, whatever the input.

    ``s = R / stab(W^2 1 + c^2)``; ``R_a = W^2' s``.

    Args:
      eps: keeps the division from zero.
      bias: whether ``c^2`` is part of the denominator and absorbs its share.

    Raises:
      ValueError: if ``eps`` is not positive.

    Source: Montavon et al. 2017, eq. 11.
    """
    check_positive("eps", eps)

    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> Propagated:
        del z
        kernel = jnp.square(affine.kernel())
        shift = jnp.square(affine.bias()) if bias else None
        s, loss = share(relevance, affine.forward(jnp.ones_like(a), kernel), shift, eps)
        return Propagated(affine.transpose(s, kernel), loss)

    return Rule("wsquare", propagate)


def flat(eps: float = 1e-6) -> Rule:
    """The flat rule: alike to all inputs of a unit (all weights 1, no bias).

    Args:
      eps: keeps the division from zero.

    Raises:
      ValueError: if ``eps`` is not positive.

    Source: Lapuschkin et al. 2019.
    """
    check_positive("eps", eps)

    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> Propagated:
        del z
        kernel = jnp.ones_like(affine.kernel())
        s, loss = share(relevance, affine.forward(jnp.ones_like(a), kernel), None, eps)
        return Propagated(affine.transpose(s, kernel), loss)

    return Rule("flat", propagate)
