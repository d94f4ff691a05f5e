"""Metrics judged: does a metric tell models that saw the forget set from models that did not?

Two pools of models are trained that differ in seed and learning rate, *trained* with the forget
set and *retrained* without it. A metric that cannot tell them apart says nothing about unlearning;
one that changes as soon as the model is trained a little, or rounded, says little.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.table import Table
from threadpoolctl import threadpool_limits

from jaxunlearn import checkpoint
from jaxunlearn.config import Config
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.files import write_text
from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.core.statistics import Components, components
from jaxunlearn.core.trees import member
from jaxunlearn.core.types import Key, Sets, Subset, Unlearner, Variables
from jaxunlearn.engine import Outcome, sweep, unlearn_many
from jaxunlearn.engine.driver import Progress
from jaxunlearn.experiment.erasure import describe_for_titles
from jaxunlearn.experiment.folder import hold_run
from jaxunlearn.experiment.pages import try_page
from jaxunlearn.experiment.plan import Plan, make_plan, stages_of, write_plan
from jaxunlearn.experiment.stages import (
    Keeper,
    Stage,
    check_stage,
    finish_stage,
    load_stage,
    state_of,
)
from jaxunlearn.experiment.trial import Listener, named
from jaxunlearn.kinds.evaluate import costs
from jaxunlearn.methods.retrain import retrain
from jaxunlearn.metrics.distances import auc
from jaxunlearn.metrics.registry import METRICS, SINGLE, Evidence, applying, measure
from jaxunlearn.metrics.robustness import round_weights, train_on
from jaxunlearn.pictures.metric_study import save_metric_study
from jaxunlearn.training.optimizers import make_optimizer

REFERENCES = 3
"""Retrained models, in no pool, that others are compared with; one original beside them."""
USEFUL = 0.8
"""Unlearned models count that keep this share of the original's retained test accuracy."""
BITS = 4

Values = dict[str, float]


def judge_metrics(
    config: Config,
    runs: str | Path = "runs",
    *,
    pool: int = 30,
    originals: int = 3,
    seeds: int = 2,
    force: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Judges every metric of a kind of models; the folder ``runs/config.name`` holds the models.

    *Faithfulness*: the AUC with which a metric tells the pool trained with the forget set from the
    pool trained without it, in the better direction; .5 is worthless. *Robustness* is the harmonic
    mean of two: with ``d`` the change of a metric when a model is trained on the forget set for one
    epoch, ``1 - |d_u - d_r| / (|d_u| + |d_r|)`` of unlearned and retrained models; and with ``m'``
    its value after the unlearned model is rounded to 4 bits, ``1 - |m' - m| / (|m'| + |m|)``.
    *Variance components*: the shares that seeds of training, unlearning and evaluation have in the
    variance of the unlearned models' values, averaged over methods. *Nested*: of each method the
    mean of a metric, with the 95 % interval that its originals allow; seeds of unlearning and of
    evaluation do not narrow it as more originals would.

    Args:
      config: of a run of a classifier, with one request and one seed; its methods make the
        unlearned models.
      pool: models in each pool.
      originals, seeds: each method unlearns so many models of the first pool with so many seeds.
      force, listener: see :func:`jaxunlearn.run`.

    Returns:
      A report: ``rows``, one a metric, and ``notes``; also saved as JSON, Markdown and a picture.

    Raises:
      ConfigError: another kind of models, several requests or seeds, or too small a pool.

    Source: the meta-evaluation of open-unlearning (arXiv 2506.12618), here for classifiers.
    """
    if pool < 4 or not 2 <= originals <= pool or seeds < 1:
        raise ConfigError(
            "pool, originals, seeds: expected a pool of 4 or more, from 2 originals to as many as "
            f"in the pool, and 1 seed or more, got {pool}, {originals} and {seeds}"
        )
    plan = make_plan(dataclasses.replace(config, metrics=("all",)), Path(runs))
    if plan.kind.name != "classifier" or len(plan.requests) > 1 or plan.config.seeds > 1:
        raise ConfigError(
            f"config: expected one request and one seed of a classifier, got {plan.kind.name}, "
            f"{len(plan.requests)} requests and {plan.config.seeds} seeds"
        )
    tell = listener or (lambda name, progress: None)
    with hold_run(plan.folder):
        write_plan(plan)
        study = _Study(plan, pool, originals, seeds, force, tell)
        # many small fits: threads that wait for each other cost more than they bring
        with threadpool_limits(1):
            report = study.report()
        write_text(plan.folder / "metrics.json", json.dumps(report, indent=2) + "\n")
        write_text(plan.folder / "metrics.md", to_markdown(report))
        save_metric_study(plan.folder / "metrics.png", report["rows"], title=report["title"])
        try_page(plan.folder)
    return report


class _Study:
    """Study of one request: its pools, each made once or loaded, and what is measured of them."""

    def __init__(
        self, plan: Plan, pool: int, originals: int, seeds: int, force: bool, tell: Listener
    ) -> None:
        self.plan, self.pool, self.originals, self.seeds = plan, pool, originals, seeds
        self.force, self.tell = force, tell
        self.key = derive(plan.key, Purpose.JUDGEMENT)
        self.trained = self._trained("trained", plan.sets.train, pool + 1)
        assert plan.retraining.retain is not None
        self.retrained = self._trained("retrained", plan.retraining.retain, pool + REFERENCES)
        self.original = self._evidence(self.trained, pool)
        self.references = [
            self._evidence(self.retrained, pool + n, plan.retraining) for n in range(REFERENCES)
        ]
        self.names = [
            name
            for name in applying(plan.kind.evidence, SINGLE, ("all",))
            if not METRICS[name].along
        ]

    # Models

    def _trained(self, name: str, part: Subset, count: int) -> Variables:
        """Trains a pool, learning rates from half to twice that of the configuration."""
        plan, train = self.plan, self.plan.config.train
        steps = max(1, round(train.epochs * int(part.size) / train.batch_size))
        purpose = Purpose.ORIGINAL if name == "trained" else Purpose.RETRAINED
        draws = np.random.default_rng([plan.config.seed, purpose]).uniform(-1, 1, count)

        def make(rate: Any) -> Unlearner:
            optimizer = make_optimizer(dataclasses.replace(train, learning_rate=rate), steps)
            return retrain(plan.model, optimizer=optimizer, augment=train.augment)

        rates = sweep(make, rate=np.asarray(train.learning_rate * 2.0**draws, np.float32))
        keys = jax.random.split(derive(plan.key, purpose), count)
        once = partial(
            unlearn_many, rates, None, Sets(retain=part), keys, steps=steps,
            batch_size=train.batch_size, at_a_time=plan.config.at_a_time,
        )  # fmt: skip
        inputs = {**plan.identity, "pool": [name, count]}
        return self._stage(Stage(plan.folder / "pools" / name, inputs), once, count)

    def _unlearned(self, label: str) -> Variables:
        """Runs a method on the first originals, with several seeds each, in one program."""
        plan, (method, options) = self.plan, self.plan.methods[label]
        count = self.originals * self.seeds
        rows = jnp.repeat(jnp.arange(self.originals), self.seeds)
        keys = jax.random.split(derive(plan.key, Purpose.METHOD), count)
        own = {name: value for name, value in options.items() if name != "stop"}
        once = partial(
            unlearn_many, method, jax.tree.map(lambda leaf: leaf[rows], self.trained), plan.sets,
            keys, stacked_variables=True, at_a_time=plan.config.at_a_time, **own,
        )  # fmt: skip
        inputs = dict(stages_of(plan)[f"unlearned/{label}"].inputs)
        inputs["pool"] = [label, self.pool, self.originals, self.seeds]
        return self._stage(Stage(plan.folder / "pools" / label, inputs), once, count)

    def _stage(self, stage: Stage, once: Callable[..., Outcome], count: int) -> Variables:
        """Loads a stacked pool, or makes it and saves it as one checkpoint."""
        one = jax.eval_shape(self.plan.model.init, self.plan.key)
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), one
        )
        name = f"pools/{stage.path.name}"
        if check_stage(stage, self.force):
            self.tell(name, None)
            return load_stage(stage, like)[0]
        before, keeper = state_of(stage), Keeper(stage)

        def on_chunk(progress: Progress) -> None:
            self.tell(name, progress)
            keeper.keep(progress)

        with named(name):
            made = once(on_chunk=on_chunk, resume=keeper.find)
        record = {"stage": name, "costs": costs(made), "versions": checkpoint.versions()}
        finish_stage(stage, made.variables, record, replaces=before)
        return made.variables

    # Measurements

    def _evidence(
        self, stacked: Variables, number: int, sets: Sets | None = None, seed: int = 0
    ) -> Evidence:
        return self._of(member(stacked, number), sets, seed)

    def _of(self, variables: Variables, sets: Sets | None = None, seed: int = 0) -> Evidence:
        key = derive(self.key, seed) if seed else self.key
        return self.plan.kind.observe(self.plan.model, variables, sets or self.plan.sets, key)

    def _measure(self, evidence: Evidence) -> Values:
        found = measure(evidence, self.original, self.references, names=self.names).values
        return {name: value for name, value in found.items() if isinstance(value, int | float)}

    def _pool(self, stacked: Variables, sets: Sets) -> list[Values]:
        return [self._measure(self._evidence(stacked, n, sets)) for n in range(self.pool)]

    def _relearned(self, variables: Variables, sets: Sets) -> Variables:
        assert sets.forget is not None
        size = int(sets.forget.size)
        key: Key = derive(self.key, Purpose.ATTACK)
        steps = max(1, math.ceil(size / 64))
        return train_on(self.plan.model, variables, sets.forget, key, steps=steps)

    def report(self) -> dict[str, Any]:
        """Measures all models and sums up, a row a metric."""
        plan = self.plan
        pools = [self._pool(self.trained, plan.sets), self._pool(self.retrained, plan.retraining)]
        base = self._measure(self.original)
        after = [
            self._measure(self._of(self._relearned(member(self.retrained, n), plan.retraining),
                                   plan.retraining))
            for n in range(self.originals)
        ]  # fmt: skip
        moved = _mean_change(pools[1][: self.originals], after)
        steps: list[Values] = []
        rounded: list[Values] = []
        nested: dict[str, dict[str, Components]] = {}
        kept, made = 0, 0
        for label in plan.methods:
            stacked, each = self._unlearned(label), []
            for number in range(self.originals * self.seeds):
                variables = member(stacked, number)
                values = [self._measure(self._of(variables, seed=seed)) for seed in range(2)]
                each.append(values)
                made += 1
                if values[0].get("accuracy_test_retain", 0) < USEFUL * base["accuracy_test_retain"]:
                    continue
                kept += 1
                changed = self._measure(self._of(self._relearned(variables, plan.sets)))
                steps.append(_relearning(values[0], changed, moved))
                coarse = self._measure(self._of(round_weights(variables, BITS)))
                rounded.append(_rounding(values[0], coarse))
            nested[label] = self._components(each)
        rows = [
            self._row(name, pools, steps, rounded, nested)
            for name in self.names
            if all(name in one for pool in pools for one in pool[:1])
        ]
        rows.sort(key=lambda row: -(row["faithfulness"] or 0))
        return {
            "title": f"{plan.config.name}: metrics judged, {describe_for_titles(plan.config)}",
            "rows": rows,
            "notes": [
                f"{self.pool} models trained with the forget set and {self.pool} without, seeds "
                "and learning rates (from half to twice) varied; compared with one more original "
                f"and {REFERENCES} more retrained models",
                f"robustness: {kept} of {made} unlearned models keep {USEFUL:g} of the original's "
                f"accuracy and count; of {', '.join(plan.methods)}",
            ],
            "environment": checkpoint.versions(),
        }

    def _components(self, each: Sequence[Sequence[Values]]) -> dict[str, Components]:
        """Computes what training, unlearning and evaluation add to each metric's variance."""
        found = {}
        for name in self.names:
            values = np.array([[one.get(name, math.nan) for one in own] for own in each])
            if np.isfinite(values).all():
                found[name] = components(values.reshape(self.originals, self.seeds, -1))
        return found

    def _row(
        self, name: str, pools: Sequence[Sequence[Values]], steps: Sequence[Values],
        rounded: Sequence[Values], nested: Mapping[str, Mapping[str, Components]],
    ) -> dict[str, Any]:  # fmt: skip
        sides = [
            [one[name] for one in pool if math.isfinite(one.get(name, math.nan))] for pool in pools
        ]
        told = auc(np.array(sides[0]), np.array(sides[1])) if all(sides) else math.nan
        robust = [_mean(one.get(name) for one in values) for values in (steps, rounded)]
        whole = all(value is not None and value > 0 for value in robust)
        known = {label: own[name] for label, own in nested.items() if name in own}
        parts = [np.array(one[:3]) for one in known.values()]
        shares = [one / one.sum() for one in parts if one.sum() > 0]
        return {
            "name": name,
            "metric": METRICS[name].label,
            "group": METRICS[name].group,
            "trained": _mean(sides[0]),
            "retrained": _mean(sides[1]),
            "faithfulness": None if math.isnan(told) else max(told, 1 - told),
            "larger": "trained" if told > 0.5 else "retrained",
            "relearning": robust[0],
            "rounding": robust[1],
            "robustness": 2 / sum(1 / v for v in robust if v) if whole else 0.0,
            "variance": [float(v) for v in np.mean(shares, axis=0)] if shares else None,
            "nested": {label: one.mean._asdict() for label, one in known.items()},
        }


def _mean(values: Any) -> float | None:
    found = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(found)) if found else None


def _mean_change(before: Sequence[Values], after: Sequence[Values]) -> Values:
    names = set(before[0]) & set(after[0])
    pairs = list(zip(before, after, strict=True))
    changes = {
        name: _mean(b.get(name, math.nan) - a.get(name, math.nan) for a, b in pairs)
        for name in names
    }
    return {name: value for name, value in changes.items() if value is not None}


def _relearning(before: Values, after: Values, retrained: Values) -> Values:
    """Computes how alike metrics of unlearned and of retrained models change in relearning."""
    names = set(before) & set(after) & set(retrained)
    return {name: _alike(after[name] - before[name], retrained[name]) for name in names}


def _rounding(before: Values, after: Values) -> Values:
    """Computes how alike metrics are before and after rounding."""
    return {name: _alike(after[name], before[name]) for name in set(before) & set(after)}


def _alike(one: float, other: float) -> float:
    """Computes ``1 - |a - b| / (|a| + |b|)``; two zeros are alike."""
    whole = abs(one) + abs(other)
    return 1 - abs(one - other) / whole if whole else 1.0


_HEADS = ("metric", "faithful", "larger", "relearn", "round", "robust", "variance %")
_LEGEND = (
    "faithful: AUC with which the metric tells the pools apart, 0.5 is chance; larger: the pool in "
    "which it is larger; relearn, round: how little it changes, 1 is not at all; robust: their "
    "harmonic mean; variance: shares of seeds of training, unlearning and evaluation"
)


_NESTED = (
    "mean of unlearned models, ±: 95 % by the variance between originals, which seeds of "
    "unlearning and of evaluation do not make smaller"
)


def to_markdown(report: Mapping[str, Any]) -> str:
    """Returns a study as a Markdown table, the most faithful metrics first, and one of methods."""
    lines = [f"## {report['title']}", "", f"| {' | '.join(_HEADS)} |"]
    lines.append(f"| :--- | ---: | :--- |{' ---: |' * (len(_HEADS) - 3)}")
    lines += [f"| {' | '.join(cells)} |" for cells in _cells(report)]
    lines += ["", *(f"- {note}" for note in (_LEGEND, *report["notes"])), ""]
    labels = list(dict.fromkeys(label for row in report["rows"] for label in row["nested"]))
    lines += ["## Unlearned models, seeds nested", "", f"| metric | {' | '.join(labels)} |"]
    lines.append(f"| :--- |{' ---: |' * len(labels)}")
    for row in report["rows"]:
        found = [row["nested"].get(label) for label in labels]
        cells = [
            "-" if one is None else f"{one['mean']:.3f} ±{one['interval']:.3f}" for one in found
        ]
        lines.append(f"| {' | '.join([row['metric'], *cells])} |")
    return "\n".join([*lines, "", f"- {_NESTED}", ""])


def to_table(report: Mapping[str, Any]) -> Table:
    """Returns a study as a table for the terminal."""
    table = Table(title=report["title"], caption=_LEGEND, box=box.SIMPLE_HEAD, pad_edge=False)
    for head in _HEADS:
        words = head in ("metric", "larger")
        least = {"min_width": 30} if head == "metric" else {"no_wrap": True}
        table.add_column(head, justify="left" if words else "right", **least)  # type: ignore[arg-type]
    for cells in _cells(report):
        table.add_row(*cells)
    return table


def _cells(report: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for row in report["rows"]:
        numbers = (row[name] for name in ("faithfulness", "relearning", "rounding", "robustness"))
        told, *rest = ("-" if value is None else f"{value:.2f}" for value in numbers)
        parts = " / ".join(f"{100 * share:.0f}" for share in row["variance"] or [])
        yield (row["metric"], told, row["larger"], *rest, parts or "-")
