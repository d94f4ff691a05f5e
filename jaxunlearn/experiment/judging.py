"""How the models of a run are judged: classifiers by their answers, GANs by their images.

What is to be said of a GAN's trial once all of its models are made.
"""

from typing import Any

import jax

from jaxunlearn.config import section
from jaxunlearn.core.types import Gan, Variables
from jaxunlearn.experiment.plan import Plan
from jaxunlearn.metrics.generated import GAN_MEASURES, GanReference, measure_gan, refer_gan
from jaxunlearn.metrics.measure import MEASURES, Reference, measure, refer
from jaxunlearn.metrics.samples import Extent

MEASURE = 3
"""Purpose of the key that follows from ``config.seed``, beside those of :mod:`work`."""


def measures_of(plan: Plan) -> int:
    """The number of the measures: models judged by other ones are judged anew."""
    return GAN_MEASURES if isinstance(plan.model, Gan) else MEASURES


def extent_of(plan: Plan) -> Extent:
    """How much of a GAN is measured."""
    own = section(plan.config, "gan")
    return Extent(**{name: getattr(own, name) for name in Extent._fields})


def refer_original(plan: Plan, original: Variables) -> Reference | GanReference:
    """What other models are judged by."""
    if not isinstance(plan.model, Gan):
        return refer(plan.model, original, plan.sets)
    assert plan.judge is not None
    return refer_gan(plan.model, original, plan.sets, sample_key(plan), plan.judge, extent_of(plan))


def judge_model(
    plan: Plan, variables: Variables, reference: Reference | GanReference | None
) -> dict[str, Any]:
    """All that a model can tell about itself; without a reference it is the original."""
    if not isinstance(plan.model, Gan):
        known = reference if isinstance(reference, Reference) else None
        return measure(plan.model, variables, plan.sets, sample_key(plan), reference=known)
    assert plan.judge is not None
    if not isinstance(reference, GanReference):
        found = refer_original(plan, variables)
        assert isinstance(found, GanReference)
        reference = found
    return measure_gan(
        plan.model,
        variables,
        plan.sets,
        sample_key(plan),
        plan.judge,
        reference,
        extent=extent_of(plan),
    )


def sample_key(plan: Plan) -> jax.Array:
    """Of all that is drawn to judge the models of a run."""
    return jax.random.fold_in(plan.key, MEASURE)
