"""Rules of relevance propagation: what of an output's relevance each input gets.

Published assignments of rules to the layers of a convolutional network.

"First" is the first linear unit in execution order: the one that touches the input.
"""

from jax.typing import ArrayLike

from jaxunlearn.attribution.lrp.rules.base import (
    Operation,
    OperationRule,
    Pattern,
    Propagate,
    Propagated,
    Rule,
    Rules,
    assign,
    check,
    for_operation,
    operation,
    select,
    share,
    stabilize,
)
from jaxunlearn.attribution.lrp.rules.formulas import (
    alpha_beta,
    epsilon,
    flat,
    gamma,
    identity,
    norm,
    wsquare,
    zbox,
    zero,
    zplus,
)

__all__ = [
    "Operation",
    "OperationRule",
    "Propagate",
    "Propagated",
    "Rule",
    "Rules",
    "alpha_beta",
    "assign",
    "check",
    "epsilon",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "flat",
    "for_operation",
    "gamma",
    "identity",
    "norm",
    "operation",
    "select",
    "share",
    "stabilize",
    "wsquare",
    "zbox",
    "zero",
    "zplus",
]


__all__ = [
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
]

_CONVOLUTION = "conv_general_dilated"
_REST = ""


def epsilon_plus(eps: float = 1e-6) -> Rules:
    """Convolutions: z+; dense layers: epsilon.

    Source: Montavon et al. 2019; Anders et al. 2021.
    """
    return [(_CONVOLUTION, zplus()), (_REST, epsilon(eps))]


def epsilon_plus_flat(eps: float = 1e-6) -> Rules:
    """First unit: flat; other convolutions: z+; dense layers: epsilon.

    Source: Anders et al. 2021.
    """
    return [(0, flat()), *_pairs(zplus(), eps)]


def epsilon_alpha2_beta1(eps: float = 1e-6) -> Rules:
    """Convolutions: alpha-beta with 2 and 1; dense layers: epsilon.

    Source: Bach et al. 2015; Anders et al. 2021.
    """
    return _pairs(alpha_beta(2, 1), eps)


def epsilon_alpha2_beta1_flat(eps: float = 1e-6) -> Rules:
    """First unit: flat; otherwise as :func:`epsilon_alpha2_beta1`.

    Source: Anders et al. 2021.
    """
    return [(0, flat()), *_pairs(alpha_beta(2, 1), eps)]


def epsilon_gamma_box(low: ArrayLike, high: ArrayLike, eps: float = 1e-6) -> Rules:
    """First unit, if a convolution: z-box; other convolutions: gamma with .25; dense: epsilon.

    Args:
      low, high: bounds of the input, see :func:`zbox`.
      eps: of the dense layers.

    Source: Montavon et al. 2019; Anders et al. 2021.
    """
    return [((0, _CONVOLUTION), zbox(low, high)), *_pairs(gamma(0.25), eps)]


def _pairs(convolution: Rule, eps: float) -> list[tuple[Pattern, Rule]]:
    return [(_CONVOLUTION, convolution), (_REST, epsilon(eps))]
