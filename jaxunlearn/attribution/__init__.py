"""Attribution: what in a network, and in its input, an output is due to."""

from jaxunlearn.attribution import rules, seeds
from jaxunlearn.attribution.relevance import Relevance, lrp
from jaxunlearn.attribution.rules import Rule
from jaxunlearn.attribution.structure import features, structure
from jaxunlearn.attribution.units import Unit

__all__ = ["Relevance", "Rule", "Unit", "features", "lrp", "rules", "seeds", "structure"]
