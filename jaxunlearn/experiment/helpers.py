"""Models that a run trains besides: they lead methods, or judge what other models make."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from jaxunlearn import checkpoint
from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.data.sets import request
from jaxunlearn.engine.predict import predict
from jaxunlearn.experiment.plan import Plan, helper_stages, with_methods
from jaxunlearn.experiment.stages import Stage, check_stage, finish_stage, load_stage, state_of
from jaxunlearn.experiment.trial import Listener, named
from jaxunlearn.gan import Guide
from jaxunlearn.kinds.training import train


def with_helpers(plan: Plan, force: bool, listener: Listener) -> Plan:
    """Returns the plan with trained helpers: made, or loaded where they are there already."""
    made: Mapping[str, Guide] = {
        name: _make(plan, name, number, stage, force, listener)
        for number, (name, stage) in enumerate(helper_stages(plan).items())
    }
    return with_methods(plan, made) if made else plan


def _make(
    plan: Plan, name: str, number: int, stage: Stage, force: bool, listener: Listener
) -> Guide:
    helper = plan.besides[name]
    if check_stage(stage, force):
        listener(name, None)
        return Guide(helper.model, load_stage(stage, plan.helpers[name].variables)[0])
    before = state_of(stage)
    sets = request(plan.sets, 0)
    assert sets.forget is not None
    with named(name):
        outcome = train(
            helper.model, sets.train, derive(plan.key, Purpose.HELPER, number),
            config=helper.train, on_chunk=partial(listener, name),
        )  # fmt: skip
    test = [p for p in (sets.test_forget, sets.test_retain) if p is not None]
    found = [predict(helper.model.apply, outcome.variables, part) for part in test]
    right = sum(one.accuracy * len(one.labels) for one in found)
    record: dict[str, Any] = {
        "stage": name,
        "accuracy_test": right / sum(len(one.labels) for one in found) if found else None,
        "seconds": outcome.seconds,
        "versions": checkpoint.versions(),
    }
    finish_stage(stage, outcome.variables, record, replaces=before)
    return Guide(helper.model, outcome.variables)
