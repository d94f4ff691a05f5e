"""The two classifiers of a run on a GAN: a guide for the methods, a judge for the metrics.

They are trained apart, on the same images: what the guide takes for forgotten, the judge may
not. Their training is not part of any method's time: one guide serves all requests.
"""

from functools import partial
from typing import Any

import jax

from jaxunlearn import checkpoint
from jaxunlearn.config import section, to_dict
from jaxunlearn.data.sets import request, whole
from jaxunlearn.engine.predict import predict
from jaxunlearn.experiment.plan import Plan, equip
from jaxunlearn.experiment.stages import Stage, check_stage, finish_stage, load_stage
from jaxunlearn.experiment.work import Listener, named
from jaxunlearn.gan import Guide
from jaxunlearn.kinds.training import train

CLASSIFIERS = 4
"""Purpose of the key that follows from ``config.seed``, beside those of :mod:`work`."""

NAMES = ("guide", "judge")


def classifier_stages(plan: Plan) -> dict[str, Stage]:
    """The stage of each classifier by name; none for a run on classifiers."""
    if plan.guide is None:
        return {}
    config = to_dict(section(plan.config, "gan"))
    about = {name: plan.identity[name] for name in ("seed", "data", "fingerprint", "jaxunlearn")}
    own = {"model": config["classifier"], "train": config["classifier_train"]}
    return {
        f"classifiers/{name}": Stage(
            plan.folder / "classifiers" / name, {**about, "own": {"classifier": name, **own}}
        )
        for name in NAMES
    }


def with_classifiers(plan: Plan, force: bool, listener: Listener) -> Plan:
    """The plan with trained classifiers: made, or loaded where they are there already."""
    stages = classifier_stages(plan)
    if not stages:
        return plan
    guide, judge = (_make(plan, name, stages[name], force, listener) for name in stages)
    return equip(plan, guide, judge)


def _make(plan: Plan, name: str, stage: Stage, force: bool, listener: Listener) -> Guide:
    assert plan.guide is not None
    assert plan.sets.forget is not None
    if check_stage(stage, force):
        listener(name, None)
        return Guide(plan.guide.model, load_stage(stage, plan.guide.variables)[0])
    sets = request(plan.sets, 0)
    everything = whole(plan.sets.forget.examples)
    number = list(classifier_stages(plan)).index(name)
    key = jax.random.fold_in(jax.random.fold_in(plan.key, CLASSIFIERS), number)
    with named(name):
        config = section(plan.config, "gan").classifier_train
        outcome = train(
            plan.guide.model, everything, key, config=config, on_chunk=partial(listener, name)
        )
    test = [p for p in (sets.test_forget, sets.test_retain) if p is not None]
    found = [predict(plan.guide.model.apply, outcome.variables, part) for part in test]
    right = sum(one.accuracy * len(one.labels) for one in found)
    record: dict[str, Any] = {
        "stage": name,
        "accuracy_test": right / sum(len(one.labels) for one in found) if found else None,
        "seconds": outcome.seconds,
        "versions": checkpoint.versions(),
    }
    finish_stage(stage, outcome.variables, record)
    return Guide(plan.guide.model, outcome.variables)
