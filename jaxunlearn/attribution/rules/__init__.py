"""Rules of relevance propagation: what of an output's relevance each input gets."""

from jaxunlearn.attribution.rules.base import Propagate, Propagated, Rule, share, stabilize
from jaxunlearn.attribution.rules.composites import (
    epsilon_alpha2_beta1,
    epsilon_alpha2_beta1_flat,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
)
from jaxunlearn.attribution.rules.inputs import flat, wsquare, zbox
from jaxunlearn.attribution.rules.linear import epsilon, identity, norm, zero
from jaxunlearn.attribution.rules.select import (
    Operation,
    OperationRule,
    Rules,
    assign,
    check,
    for_operation,
    operation,
    select,
)
from jaxunlearn.attribution.rules.signed import alpha_beta, gamma, zplus

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
