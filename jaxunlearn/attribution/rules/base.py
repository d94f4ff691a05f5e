"""What a rule is.

In the formulas of this package ``a`` is what a unit reads, ``z = W a + c`` what it yields
with bias and batch norm folded in (``W`` and ``c`` are the folded ones), ``R`` the
relevance of ``z``, ``x+ = max(x, 0)``, ``x- = min(x, 0)`` and ``stab(z) = z + eps sign(z)``
with ``sign(0) = +1``. A rule returns the relevance of ``a``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.affine import Affine
from jaxunlearn.attribution.ledger import Loss

__all__ = ["Propagate", "Propagated", "Rule", "check_positive", "share", "stabilize"]


class Propagated(NamedTuple):
    """What a rule may return instead of the relevance alone.

    Attributes:
      relevance: of ``a``.
      loss: what was absorbed on the way, for the ledger.
    """

    relevance: jax.Array
    loss: Loss


Propagate = Callable[[Affine, jax.Array, jax.Array, jax.Array], jax.Array | Propagated]
"""``(affine, a, z, R of z) -> R of a``; ``a`` and ``z`` are those of the forward pass."""


class Rule(NamedTuple):
    """A rule for one linear unit.

    Attributes:
      name: for messages.
      propagate: :data:`Propagate`, pure.
    """

    name: str
    propagate: Propagate


def stabilize(z: jax.Array, eps: float | jax.Array) -> jax.Array:
    """``z + eps sign(z)`` with ``sign(0) = +1``: never zero for ``eps > 0``."""
    return z + jnp.where(z >= 0, eps, -eps).astype(z.dtype)


def share(
    portion: jax.Array, linear: jax.Array, shift: jax.Array | None, eps: float | jax.Array
) -> tuple[jax.Array, Loss]:
    """``s = portion / stab(linear + shift)``, and what of the portion is not passed on.

    What is passed on is ``linear * s``: the contributions to a unit sum to ``linear``.

    Args:
      portion: the relevance to be shared out.
      linear: the sum of the contributions that share it.
      shift: what stands in the denominator beside them; ``None`` for nothing.
      eps: the stabiliser; 0 drops what sits on a denominator of zero.
    """
    z = linear if shift is None else linear + shift
    exact = isinstance(eps, float | int) and eps == 0
    if not exact:
        below = stabilize(z, eps)
        s = portion / below
    else:
        empty = z == 0
        below = jnp.where(empty, jnp.ones_like(z), z)
        s = jnp.where(empty, jnp.zeros_like(z), portion / below)
    dead = linear == 0
    if exact:
        dead = dead | (z == 0)
    nothing = jnp.zeros_like(z)
    return s, Loss(
        bias=nothing if shift is None else jnp.where(dead, nothing, shift * s),
        stabilizer=jnp.where(dead, nothing, (below - z) * s) if not exact else nothing,
        dead=jnp.where(dead, portion, nothing),
    )


def check_positive(name: str, value: float, hint: str = "") -> None:
    """:class:`ValueError` unless a number is positive."""
    if not value > 0:
        raise ValueError(f"{name}: expected a positive number, got {value}{hint}")
