"""Seeds of a run as one ensemble: attacks on each example, which need many models.

The unlearned models of all seeds are one side, the retrained ones of all seeds the other. Of a
model only its margins and accuracies are kept, which a trial computed to judge it.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxunlearn import checkpoint
from jaxunlearn.experiment.plan import Plan
from jaxunlearn.experiment.trial import (
    Trial,
    home_of,
    read_judgement,
    stale_metrics,
    write_judgement,
)
from jaxunlearn.kinds.evaluate import Comparison
from jaxunlearn.metrics.registry import METRICS, applying, measure_ensemble, versions_of

LEAST = 3
"""Seeds that are an ensemble, at the least."""


def asks_for_ensembles(plan: Plan) -> bool:
    """Tells whether a run has seeds enough, and is asked for metrics that need them."""
    return plan.config.seeds >= LEAST and bool(_names(plan))


def judge_seeds(
    plan: Plan, trials: Sequence[Trial], examples: Mapping[str, np.ndarray], attack: str = ""
) -> Comparison:
    """Measures the models of all seeds, each kind of them as one ensemble.

    What was measured of the same models, in the same way, is not measured again.

    Args:
      plan: of the whole run.
      trials: one a seed.
      examples: values of each example known so far, by ``"<model>/<metric>"``.
      attack: that every model is put through before; those that could not be are left out.

    Returns:
      Values of the original and of each method; no retrained models, which are the other side.
    """
    file = home_of(plan.folder, attack) / "judgement.json"
    entries, versions = read_judgement(file), versions_of(_names(plan))
    # first one model of each seed: where there are fewer on the other side, no seed counts twice
    numbers = range(plan.config.retrained)
    others = [(one, f"retrained/{n}") for n in numbers for one in trials]
    judged = Comparison({}, [], {}, {})
    for stage in ("original", *(f"unlearned/{label}" for label in plan.methods)):
        members = [
            (one, stage)
            for one in trials
            if stage in one.records and (attack, stage) not in one.broken
        ]
        digest, label = _digest([*members, *others]), stage.removeprefix("unlearned/")
        entry = entries.get(stage, {})
        if entry.get("model") != digest:
            entry = {"model": digest, "versions": {}, "values": {}, "failed": {}}
        own = {m: examples.get(f"{stage}/{m}") for m in versions if METRICS[m].each}
        if len(members) >= LEAST and stale_metrics(entry, versions, own):
            ours, theirs = (
                [one.kept(name, attack) for one, name in side] for side in (members, others)
            )
            found = measure_ensemble(ours, theirs, plan.config.metrics)
            sound = {m: v for m, v in found.values.items() if m not in found.failed}
            entry |= {"values": sound, "failed": found.failed, "versions": versions}
            own = dict(found.each)
        entries[stage] = entry
        failed = {m: why for m, why in entry["failed"].items() if m in versions}
        values = {m: v for m, v in entry["values"].items() if m in versions}
        judged.models[label] = values | dict.fromkeys(failed, math.nan)
        judged.failed[label] = failed
        judged.examples.update({f"{stage}/{m}": v for m, v in own.items() if v is not None})
    if attack:
        for one in trials:
            one.let_go(attack)
    write_judgement(file, entries)
    return judged


def _names(plan: Plan) -> list[str]:
    asked = applying(plan.kind.evidence, ("ensemble",), plan.config.metrics)
    return [name for name in asked if METRICS[name].extra]


def _digest(models: Sequence[tuple[Trial, str]]) -> str:
    """Digests the models of both sides, and which of them is whose."""
    own = [f"{name} {checkpoint.digest(one.stages[name].path)}" for one, name in models]
    return hashlib.sha256("\n".join(own).encode()).hexdigest()
