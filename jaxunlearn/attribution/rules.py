"""Rules of relevance propagation for linear units.

In the formulas ``a`` is what a unit reads, ``z = W a + c`` what it yields with
bias and batch norm folded in (``W`` and ``c`` are the folded ones), ``R`` the
relevance of ``z``, ``x+ = max(x, 0)``, ``x- = min(x, 0)`` and ``stab(z) = z +
eps sign(z)`` with ``sign(0) = +1``. A rule returns the relevance of ``a``.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.affine import Affine
from jaxunlearn.attribution.units import Unit

__all__ = ["Propagate", "Rule", "Rules", "epsilon", "select", "stabilize", "zero", "zplus"]

Propagate = Callable[[Affine, jax.Array, jax.Array, jax.Array], jax.Array]
"""``(affine, a, z, R of z) -> R of a``; ``a`` and ``z`` are those of the forward pass."""


class Rule(NamedTuple):
    """A rule for one linear unit.

    Attributes:
      name: for messages.
      propagate: :data:`Propagate`, pure.
    """

    name: str
    propagate: Propagate


Rules = Rule | Sequence[tuple[str, Rule]]
"""One rule for all linear units, or pairs ``(pattern, rule)``, first match wins.
A pattern is a regular expression searched for in the unit's key, or the name of
its primitive: ``[("head", epsilon(0.1)), ("conv_general_dilated", zplus())]``."""


def stabilize(z: jax.Array, eps: float) -> jax.Array:
    """``z + eps sign(z)`` with ``sign(0) = +1``: never zero for ``eps > 0``."""
    return z + jnp.where(z >= 0, eps, -eps).astype(z.dtype)


def epsilon(eps: float = 1e-6) -> Rule:
    """The epsilon rule: ``R_a = a * W' (R / stab(z))``.

    One transposed operation; the forward pass is reused.

    Args:
      eps: what keeps the division from zero; it absorbs relevance.

    Raises:
      ValueError: if ``eps`` is not positive (see :func:`zero`).

    Source: Bach et al. 2015, eq. 58; the bias is part of ``z``.
    """
    if not eps > 0:
        raise ValueError(f"eps: expected a positive number, got {eps}; LRP-0 is zero()")

    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> jax.Array:
        return a * affine.transpose(relevance / stabilize(z, eps))

    return Rule(f"epsilon({eps:g})", propagate)


def zero() -> Rule:
    """LRP-0: ``R_a = a * W' (R / z)``; what sits on ``z = 0`` is dropped.

    Source: Bach et al. 2015, eq. 56.
    """

    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> jax.Array:
        dead = z == 0
        safe = jnp.where(dead, jnp.ones_like(z), z)
        return a * affine.transpose(jnp.where(dead, jnp.zeros_like(z), relevance / safe))

    return Rule("zero", propagate)


def zplus(eps: float = 1e-6) -> Rule:
    """The z+ rule: only what raises the output counts.

    ``s = R / stab(W+ a+ + W- a- + c+)``; ``R_a = a+ * W+' s + a- * W-' s``.
    One forward and one transposed operation where the input is known not to be
    negative (behind a relu), otherwise two of each.

    Args:
      eps: keeps the division from zero.

    Raises:
      ValueError: if ``eps`` is not positive.

    Source: Montavon et al. 2017 (deep Taylor), extended to inputs of both signs.
    """
    if not eps > 0:
        raise ValueError(f"eps: expected a positive number, got {eps}")

    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> jax.Array:
        kernel = affine.kernel()
        up, down = jnp.maximum(kernel, 0), jnp.minimum(kernel, 0)
        parts = [(a, up)]
        if not affine.nonnegative:
            parts = [(jnp.maximum(a, 0), up), (jnp.minimum(a, 0), down)]
        positive = sum((affine.forward(v, w) for v, w in parts), jnp.maximum(affine.bias(), 0))
        s = relevance / stabilize(positive, eps)
        return sum((v * affine.transpose(s, w) for v, w in parts), jnp.zeros_like(a))

    return Rule("zplus", propagate)


def check(rules: Rules) -> None:
    """Raises ``TypeError`` or ``ValueError`` unless ``rules`` is of the type it says."""
    if isinstance(rules, Rule):
        return
    for pair in rules:
        if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], Rule):
            raise TypeError(f"rules: expected a Rule or pairs (pattern, Rule), got {pair!r}")
        try:
            re.compile(pair[0])
        except re.error as error:
            raise ValueError(f"rules: {pair[0]!r} is not a regular expression: {error}") from error


def select(rules: Rules, unit: Unit) -> Rule:
    """The rule for a unit.

    Raises:
      ValueError: if no pattern matches.
    """
    if isinstance(rules, Rule):
        return rules
    for pattern, rule in rules:
        if pattern == unit.primitive or re.search(pattern, unit.key):
            return rule
    patterns = ", ".join(repr(pattern) for pattern, _ in rules)
    raise ValueError(
        f"rules: expected a pattern for {unit.key!r} ({unit.primitive}), got {patterns}; "
        "end with ('', rule) to match whatever is left"
    )
