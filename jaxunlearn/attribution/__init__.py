"""Attribution: what in a network, and in its input, an output is due to."""

from jaxunlearn.attribution import baselines, quadrature, rules, seeds
from jaxunlearn.attribution.integrated import integrated_gradients
from jaxunlearn.attribution.layers import conductance, layer_integrated_gradients
from jaxunlearn.attribution.ledger import Absorbed
from jaxunlearn.attribution.maps import concept_maps, grad_cam
from jaxunlearn.attribution.parts import Integrated
from jaxunlearn.attribution.relevance import Relevance, lrp
from jaxunlearn.attribution.rules import Rule
from jaxunlearn.attribution.structure import features, head, structure
from jaxunlearn.attribution.units import Unit

__all__ = [
    "Absorbed",
    "Integrated",
    "Relevance",
    "Rule",
    "Unit",
    "baselines",
    "concept_maps",
    "conductance",
    "features",
    "grad_cam",
    "head",
    "integrated_gradients",
    "layer_integrated_gradients",
    "lrp",
    "quadrature",
    "rules",
    "seeds",
    "structure",
]
