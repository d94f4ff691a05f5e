"""How relevance crosses what transformers are made of: products of data and softmax.

Layer norm needs nothing here: its normaliser gets no relevance (identity), the subtraction
of the mean is a sum of data. Source of the rules: Achtibat et al. 2024 (AttnLRP).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.flatten import Op
from jaxunlearn.attribution.ledger import Loss, no_loss
from jaxunlearn.attribution.routes import NORM_EPS
from jaxunlearn.attribution.rules import share
from jaxunlearn.attribution.trace import bind

__all__ = ["gate", "matmul", "softmax"]


def gate(relevance: jax.Array) -> list[jax.Array]:
    """Relevance of ``a * b`` element by element: half to each.

    Source: Achtibat et al. 2024, the uniform rule.
    """
    return [relevance / 2, relevance / 2]


def matmul(
    op: Op, relevance: jax.Array, z: jax.Array, operands: list[Any]
) -> tuple[list[jax.Array], Loss]:
    """Relevance of a product of two data matrices, half to each by the epsilon rule.

    ``Z = A B``, ``S = R / stab(Z)``; ``R_A = A * (S B') / 2``, ``R_B = B * (A' S) / 2``.

    Source: Achtibat et al. 2024, Prop. 3.3.
    """
    s, loss = share(relevance, z, None, NORM_EPS)
    halves = [
        v * jax.linear_transpose(_in_operand(op, operands, place), v)(s)[0] / 2
        for place, v in enumerate(operands)
    ]
    return halves, loss


def _in_operand(op: Op, operands: list[Any], place: int) -> Callable[[Any], Any]:
    def linear(v: Any) -> Any:
        return bind(op, [v if i == place else other for i, other in enumerate(operands)])[0]

    return linear


def softmax(
    relevance: jax.Array, x: jax.Array, p: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, Loss]:
    """Relevance of a softmax ``p`` of ``x``: ``R_x = x * (R - p sum R)``.

    The Taylor expansion of the softmax at ``x``; what its constant term holds is absorbed
    (``bias`` in the ledger). Entries that are masked out (``p = R = 0``) get nothing.

    Args:
      relevance, x, p: of one shape.
      axes: what the softmax runs over.

    Source: Achtibat et al. 2024, Prop. 3.1.
    """
    weight = relevance - p * jnp.sum(relevance, axis=axes, keepdims=True)
    nothing = jnp.zeros_like(weight)
    below = jnp.where(weight == 0, nothing, x.astype(weight.dtype) * weight)
    return below, no_loss(relevance)._replace(bias=relevance - below)
