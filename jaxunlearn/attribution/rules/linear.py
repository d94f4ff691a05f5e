"""Rules that weigh by the contributions as they are: LRP-0, epsilon, norm; and pass."""

import jax

from jaxunlearn.attribution.affine import Affine
from jaxunlearn.attribution.ledger import no_loss
from jaxunlearn.attribution.rules.base import Propagated, Rule, check_positive, share

__all__ = ["epsilon", "identity", "norm", "zero"]


def epsilon(eps: float = 1e-6, *, bias: bool = True) -> Rule:
    """The epsilon rule: ``R_a = a * W' (R / stab(z))``.

    One transposed operation; the forward pass is used again.

    Args:
      eps: what keeps the division from zero; it absorbs relevance.
      bias: whether ``c`` is part of ``z`` and absorbs its share.

    Raises:
      ValueError: if ``eps`` is not positive (see :func:`zero`).

    Source: Bach et al. 2015, eq. 58.
    """
    check_positive("eps", eps, "; LRP-0 is zero()")
    return _by_contribution(f"epsilon({eps:g})", eps, bias)


def zero(*, bias: bool = True) -> Rule:
    """LRP-0: ``R_a = a * W' (R / z)``; what sits on ``z = 0`` is dropped.

    Args:
      bias: as in :func:`epsilon`.

    Source: Bach et al. 2015, eq. 56.
    """
    return _by_contribution("zero", 0.0, bias)


def norm(eps: float = 1e-6) -> Rule:
    """Each input by its share of the output: the epsilon rule of the operation itself.

    What average pools and sums of data follow.

    Raises:
      ValueError: if ``eps`` is not positive.

    Source: Anders et al. 2021 (zennit, "Norm").
    """
    check_positive("eps", eps)
    return _by_contribution("norm", eps, True)


def _by_contribution(name: str, eps: float, bias: bool) -> Rule:
    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> Propagated:
        del z
        s, loss = share(relevance, affine.linear(), affine.bias() if bias else None, eps)
        return Propagated(a * affine.transpose(s), loss)

    return Rule(name, propagate)


def identity() -> Rule:
    """The pass rule: ``R_a = R``, for a unit whose input has the shape of its output.

    Raises:
      ValueError: when applied, if the shapes differ.

    Source: Montavon et al. 2019, for layers that are left out.
    """

    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> Propagated:
        del affine
        if a.shape != z.shape:
            raise ValueError(
                "rules: expected a unit that keeps its shape for identity(), "
                f"got {a.shape} -> {z.shape}"
            )
        return Propagated(relevance, no_loss(relevance))

    return Rule("identity", propagate)
