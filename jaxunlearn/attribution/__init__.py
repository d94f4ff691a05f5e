"""Attribution: what in a network, and in its input, an output is due to."""

from jaxunlearn.attribution import starts
from jaxunlearn.attribution.ig import (
    baselines,
    conductance,
    integrated_gradients,
    layer_integrated_gradients,
    quadrature,
)
from jaxunlearn.attribution.ig.integral import Integrated
from jaxunlearn.attribution.lrp import Relevance, lrp, rules
from jaxunlearn.attribution.lrp.rule import Rule
from jaxunlearn.attribution.lrp.sweep import Absorbed
from jaxunlearn.attribution.maps import concept_maps, grad_cam
from jaxunlearn.attribution.smoothgrad import smoothgrad
from jaxunlearn.jaxprs.cuts import Layers, layers
from jaxunlearn.jaxprs.structure import features, head, structure
from jaxunlearn.jaxprs.units import Unit

__all__ = [
    "Absorbed", "Integrated", "Layers", "Relevance", "Rule", "Unit", "baselines", "concept_maps",
    "conductance", "features", "grad_cam", "head", "integrated_gradients",
    "layer_integrated_gradients", "layers", "lrp", "quadrature", "rules", "smoothgrad", "starts",
    "structure",
]  # fmt: skip
