"""What a run is made of: one trial, or one for each seed, or one for each class.

A trial is a request, its models and their judgement. Trials of several seeds have nothing
in common; those of several classes share the original, and are made in the same programs.
"""

import dataclasses

import jax

from jaxunlearn.data.sets import request
from jaxunlearn.experiment.plan import Plan, identify
from jaxunlearn.metrics.table import Trial


def groups(plan: Plan) -> list[Plan]:
    """The plans that have an original of their own: those of the seeds, or the whole."""
    first, count = plan.config.seed, plan.config.seeds
    return [_seeded(plan, seed) for seed in range(first, first + count)] if count > 1 else [plan]


def trials(group: Plan) -> list[Plan]:
    """The plans of the requests that share an original: those of the classes, or the one."""
    several = len(group.requests) > 1
    return [_asked(group, n) for n in range(len(group.requests))] if several else [group]


def _seeded(plan: Plan, seed: int) -> Plan:
    """A run with this seed alone, in a folder of its own."""
    return plan._replace(
        config=dataclasses.replace(plan.config, seed=seed, seeds=1),
        folder=plan.folder / f"seed_{seed}",
        identity={**plan.identity, "seed": seed},
        key=jax.random.key(seed),
        trial=Trial("seed", seed),
    )


def _asked(plan: Plan, number: int) -> Plan:
    """A run that forgets this class alone, in a folder of its own; its keys are the same."""
    asked = plan.requests[number]
    (label,) = asked.classes
    return plan._replace(
        config=dataclasses.replace(plan.config, request=asked),
        folder=plan.folder / f"class_{label}",
        requests=(asked,),
        sets=request(plan.sets, number),
        identity={**plan.identity, **identify(asked)},
        trial=Trial("class", label, plan.class_names[label]),
    )
