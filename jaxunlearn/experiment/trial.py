"""One trial: its models, each made once or loaded, and their judgement.

Trials of several seeds have nothing in common; those of several classes share the original, and
are made in the same programs (``shared_programs.py``); of requests in turn each starts from the
models of the one before.
"""

import contextlib
import functools
import json
import math
import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from jaxunlearn import checkpoint
from jaxunlearn.config import to_dict
from jaxunlearn.core.errors import CheckpointError, DataError, DivergenceError, UserError, sentence
from jaxunlearn.core.files import write_text
from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.core.processes import gathered, several, shared
from jaxunlearn.core.types import Key, Sets, Unlearner, Variables
from jaxunlearn.data.requests import describe
from jaxunlearn.engine import Chain, unlearn
from jaxunlearn.engine.driver import Outcome, Progress
from jaxunlearn.engine.sharding import abstract
from jaxunlearn.experiment.plan import Plan, stages_of
from jaxunlearn.experiment.stages import (
    Keeper,
    Stage,
    check_stage,
    finish_stage,
    load_stage,
    read_stage,
    state_of,
)
from jaxunlearn.kinds.evaluate import costs
from jaxunlearn.kinds.training import train
from jaxunlearn.metrics.registry import METRICS, SINGLE, Evidence, applying, measure, versions_of
from jaxunlearn.metrics.robustness import after

REPEATS = 5
"""A run that takes less than a second is timed so often; the median counts."""

Record = dict[str, Any]
Hooks = dict[str, Any]
Listener = Callable[[str, Progress | None], None]
"""Told the stage's name, and how far it is (``None``: it was there already).

It is told of ``judging`` and ``pictures``, too, where that takes time: they have no ``state``.
"""


def telling(listener: Listener, work: str, names: Iterable[str]) -> Callable[[str], None]:
    """Returns what tells a listener of work other than training: how much of it is done.

    Args:
      work: as the listener is told.
      names: of its parts, in order. The function is called with a part before that is begun, and
        with nothing at the end; where no part was begun, nothing is told.
    """
    parts, begin = list(names), time.perf_counter()
    begun: list[str] = []

    def tell(name: str) -> None:
        if name:
            begun.append(name)
        if begun:
            step = parts.index(name) if name else len(parts)
            listener(work, Progress(None, step, len(parts), time.perf_counter() - begin, {}))

    return tell


class Task(NamedTuple):
    """Work that makes a model: a method, the model it starts from, a key, options.

    Attributes:
      start: returns the variables that are given to the method; read when they are needed.
    """

    method: Unlearner | Chain
    start: Callable[[], Variables]
    key: Key
    options: dict[str, Any]


class Made(NamedTuple):
    """New model, its costs a share of those of the program that ``sharing`` models shared."""

    outcome: Outcome
    sharing: int = 1


class Trial:
    """Trial of a run: makes each stage, or loads it where it is there already.

    Attributes:
      plan, stages: what is to be made.
      records: of every model made or found, by stage.
      failed: why a model could not be made, by stage.
      broken: attacks, each with the stage of a model that could not be put through it.
      made: stages that were made now, not found.
      prepared: by stage, what methods found out before, of those made now.
      examples: values of each example by ``"<model>/<metric>"``, once it was judged.
    """

    def __init__(
        self, plan: Plan, force: bool, listener: Listener,
        home: "Trial | None" = None, before: "Trial | None" = None,
    ) -> None:  # fmt: skip
        self.plan, self.force, self.listener = plan, force, listener
        self.home, self.before = home, before
        self.stages = stages_of(plan)
        if home is not None:  # it lies with the trial whose original it is
            self.stages["original"] = home.stages["original"]
        like = jax.eval_shape(plan.model.init, plan.key)
        # each process reads models for itself, which it judges by itself
        self.like = abstract(like, plan.sharding) if plan.sharding and not several() else like
        self.records: dict[str, Record] = {}
        self.failed: dict[str, str] = {}
        self.broken: set[tuple[str, str]] = set()
        self.made: list[str] = []
        self.prepared: dict[str, Any] = {}
        self.examples: dict[str, np.ndarray] = {}
        self._variables: dict[str, Variables] = {}
        self._evidence: dict[tuple[str, str], Evidence] = {}
        self._kept: dict[tuple[str, str], Any] = {}

    # Making

    def original(self) -> None:
        """Makes the original, or takes that of the trials that share it."""
        if self.home is not None:
            self.records["original"] = self.home.records["original"]
            return
        plan = self.plan
        assert plan.sets.forget is not None
        everything = plan.sets.train
        key = derive(plan.key, Purpose.ORIGINAL)
        once = partial(train, plan.model, everything, key, sharding=plan.sharding)
        once = partial(once, config=plan.config.train, settings=plan.settings)

        def make(hooks: Hooks) -> Made:
            given = plan.kind.original(plan.model, plan.settings, plan.sharding)
            return Made(timed(once, hooks) if given is None else Outcome(given, {}, 0, 0, 0.0, 0.0))

        self._stage("original", make)

    def make(self, name: str, made: Made | None = None) -> None:
        """Makes the model of another stage.

        A method that cannot make its model is noted in ``failed``: the others' work is not lost.

        Args:
          made: by a program for several models; else it is made alone.
        """

        def alone(hooks: Hooks) -> Made:
            task, plan = self.task(name), self.plan
            once = partial(unlearn, task.method, task.start(), self.sets_of(name), task.key)
            once = partial(once, sharding=plan.sharding, **task.options)
            return Made(timed(once, hooks))

        try:
            self._stage(name, alone if made is None else lambda hooks: made)
        # whatever a method raises, which may be another package's
        except Exception as error:
            if not is_fault_of_method(error) or not name.startswith("unlearned/"):
                raise
            text = sentence(error)
            known = isinstance(error, UserError)
            self.failed[name] = text if known else f"{type(error).__name__}: {text}"

    def sets_of(self, name: str) -> Sets:
        """Returns the sets that the model of a stage is made of."""
        return self.plan.retraining if name.startswith("retrained/") else self.plan.sets

    def task(self, name: str) -> Task:
        """Returns what makes the model of a stage other than the original."""
        plan, (what, label) = self.plan, name.split("/")
        turn = (Purpose.TURN, plan.trial.number) if self.before is not None and plan.trial else ()
        if what == "retrained":
            config = plan.config.train
            method, steps = plan.kind.recipe(plan.model, config, plan.retained, plan.settings)
            # not split: the keys of the first must not depend on how many there are
            key = derive(plan.key, Purpose.RETRAINED, int(label), *turn)
            start = partial(plan.kind.start, plan.model, plan.settings, plan.sharding)
            return Task(method, start, key, {"steps": steps, "batch_size": config.batch_size})
        made, options = plan.methods[label]
        # from the method's name: its variants then see the same samples and batches, and
        # the order of the methods does not matter
        own = plan.options[label].get("method", label)
        key = derive(plan.key, Purpose.METHOD, zlib.crc32(own.encode()), *turn)
        start = partial(self.variables, "original")
        if self.before is not None:
            if name in self.before.failed:
                raise UserError(f"the request before it failed: {self.before.failed[name]}")
            start = partial(self.before.variables, name)
        return Task(made, start, key, options)

    def there(self, name: str) -> bool:
        """Tells whether a stage is there already."""
        return check_stage(self.stages[name], self.force)

    def hooks(self, stage: Stage, name: str) -> Hooks:
        """Returns what shows and keeps the progress of a stage that is being made."""
        keeper = Keeper(stage)

        def on_chunk(progress: Progress) -> None:
            self.listener(name, progress)
            keeper.keep(progress)

        label = name.removeprefix("unlearned/")
        chained = label in self.plan.methods and isinstance(self.plan.methods[label][0], Chain)
        if chained and "members" in stage.inputs:  # many in one program are resumed at no link
            return {"on_chunk": partial(self.listener, name)}
        return {"on_chunk": on_chunk, "resume": keeper.find}

    def _stage(self, name: str, make: Callable[[Hooks], Made]) -> None:
        stage = self.stages[name]
        if self.there(name):
            self.listener(name, None)
            self.records[name] = read_stage(stage)
            return
        before = state_of(stage)
        with named(name):
            outcome, sharing = make(self.hooks(stage, name))
        self.made.append(name)
        self.prepared[name] = outcome.prepared
        if name == "original" or self.plan.trial is None:
            self._variables[name] = gathered(outcome.variables)  # of many they are read again
        config = self.plan.config
        self.records[name] = finish_stage(stage, outcome.variables, {
            "stage": name,
            "config": to_dict(config),
            "request": describe(config.request),
            "seed": config.seed,
            # of one that was given none; methods of a single pass take time, and no steps
            "costs": costs(outcome) if outcome.steps or name != "original" else {},
            "sharing": sharing,
            "history": {key: value.tolist() for key, value in outcome.history.items()},
            "versions": checkpoint.versions(),
        }, replaces=before)  # fmt: skip

    # Judging

    def variables(self, name: str) -> Variables:
        """Returns the variables of a stage, read from its checkpoint when first asked for."""
        if name == "original" and self.home is not None:
            return self.home.variables(name)
        if name not in self._variables:
            self._variables[name] = load_stage(self.stages[name], self.like)[0]
        return self._variables[name]

    def evidence(self, name: str, attack: str = "") -> Evidence:
        """Returns the evidence of a stage, after an attack if there is one.

        It is computed as far as metrics ask for it.
        """
        if (attack, name) not in self._evidence:
            variables = self.variables(name)
            if attack:
                with named(f"{name}, {attack}"):
                    variables = after(self.evidence(name), self.plan.kind.attacks[attack])
            self._evidence[attack, name] = self._observe(name, variables)
        return self._evidence[attack, name]

    def _observe(self, name: str, variables: Variables) -> Evidence:
        plan = self.plan
        sets = plan.retraining if name.startswith("retrained/") else plan.judged
        return plan.kind.observe(
            plan.model, variables, sets, derive(plan.key, Purpose.JUDGEMENT),
            settings=plan.settings, **plan.kind.aids(plan.config, plan.data, plan.helpers),
        )  # fmt: skip

    def judge(self, examples: Mapping[str, np.ndarray], attack: str = "") -> "Judgement":
        """Judges every model; what is known of it, by the same metrics, is not measured again.

        Args:
          examples: values of each example known so far, by ``"<model>/<metric>"``.
          attack: that every model is put through before; the judgement lies with the others of
            this attack.
        """
        file = home_of(self.plan.folder, attack) / "judgement.json"
        known = shared(read_judgement(file))
        seen = functools.partial(self.evidence, attack=attack)
        retrained = [name for name in self.records if name.startswith("retrained/")]
        digests = {name: checkpoint.digest(self.stages[name].path) for name in self.records}
        wanted = versions_of(
            applying(self.plan.kind.evidence, SINGLE, self.plan.config.metrics),
            digests["original"],
            [digests[name] for name in retrained],
        )
        judgement = Judgement({}, {}, {}, [], digests, {})
        entries = dict(known)  # of methods that this run leaves out, too
        tell = telling(self.listener, " after ".join(filter(None, ("judging", attack))), digests)
        for name, digest in digests.items():
            entry = known.get(name, {})
            if entry.get("model") != digest:
                entry = {"model": digest, "versions": {}, "values": {}, "failed": {}}
            own = {m: examples.get(f"{name}/{m}") for m in wanted if METRICS[m].each}
            if stale := shared(stale_metrics(entry, wanted, own)):
                tell(name)
                try:
                    evidence = seen(name)
                except Exception as error:  # an attack that trains what cannot be trained
                    if not attack or not name.startswith("unlearned/"):
                        raise
                    judgement.failed[name] = {"": sentence(error)}
                    self.broken.add((attack, name))
                    continue
                found = measure(
                    evidence, seen("original"), [seen(one) for one in retrained], names=stale
                )
                entry.setdefault("intervals", {})
                for metric in stale:
                    for part in ("values", "failed", "intervals"):
                        entry[part].pop(metric, None)
                entry["values"] |= found.values
                entry["failed"] |= found.failed
                entry["intervals"] |= found.intervals()
                entry["versions"] = wanted
                judgement.examples.update({f"{name}/{m}": v for m, v in found.each.items()})
            failed = {m: v for m, v in entry["failed"].items() if m in wanted}
            # JSON has no NaN
            kept = {m: v for m, v in entry["values"].items() if m in wanted and m not in failed}
            entries[name] = {**entry, "values": kept, "failed": failed}
            if name == "original":
                if "notes" not in entry:
                    entries[name]["notes"] = self.plan.kind.notes(seen(name), self.plan.settings)
                judgement.notes.extend(entries[name]["notes"])
            # an attack takes nothing of what the making took
            cost = {} if attack else self.records[name]["costs"]
            judgement.values[name] = kept | dict.fromkeys(failed, math.nan) | cost
            judgement.failed[name] = failed
            halves = entry.get("intervals", {})
            judgement.intervals[name] = {m: v for m, v in halves.items() if m in kept}
        write_judgement(file, entries)
        tell("")
        return judgement

    def kept(self, name: str, attack: str = "") -> Any:
        """Returns what metrics of ensembles read of a stage; it is still there after ``let_go``."""
        if (attack, name) not in self._kept:
            self._kept[attack, name] = self.evidence(name, attack).kept()
        return self._kept[attack, name]

    def keep(self, attack: str = "") -> None:
        """Keeps that of every stage whose evidence was computed, after an attack if any."""
        for one, name in self._evidence:
            if one == attack:
                self.kept(name, attack)

    def let_go(self, attack: str = "") -> None:
        """Lets go of models and of what was computed of them; they are read again if need be.

        Args:
          attack: only of models that were put through it.
        """
        if attack:
            self._evidence = {key: one for key, one in self._evidence.items() if key[0] != attack}
            return
        self._variables.clear()
        self._evidence.clear()
        self.prepared.clear()


class Judgement(NamedTuple):
    """Judgement of a trial's models, by stage.

    Attributes:
      values: of metrics and costs.
      failed: why a metric has no value; under the metric ``""``, why a model has none.
      examples: values of each example that were measured now, by ``"<model>/<metric>"``.
      notes: sentences on how far the metrics can be trusted.
      models: digests of what was judged.
      intervals: half the width of intervals over examples, of metrics that are means over them.
    """

    values: dict[str, dict[str, Any]]
    failed: dict[str, dict[str, str]]
    examples: dict[str, np.ndarray]
    notes: list[str]
    models: dict[str, str]
    intervals: dict[str, dict[str, float]]


def home_of(folder: Path, attack: str) -> Path:
    """Returns where a run, or a trial of it, keeps what was judged after an attack, if any."""
    return folder / "attacks" / attack if attack else folder


def read_judgement(file: Path) -> dict[str, Any]:
    """Reads judgements of an earlier run; what cannot be read is judged anew."""
    wanted = {"versions", "values", "failed"}
    try:
        found = json.loads(file.read_text())
        sound = {
            k: v
            for k, v in found.items()
            if all(isinstance(v[w], dict) for w in wanted)
            and all(map(_is_number_or_curve, v["values"].values()))
        }
        return _without_gaps(sound, math.nan)
    except (OSError, ValueError, AttributeError, LookupError, TypeError, RecursionError):
        return {}


def write_judgement(file: Path, entries: Mapping[str, Any]) -> None:
    """Writes judgements; JSON has no NaN."""
    write_text(file, json.dumps(_without_gaps(entries, None), indent=2) + "\n")


def _is_number_or_curve(value: Any) -> bool:
    if isinstance(value, list):
        return all(one is None or isinstance(one, int | float) for one in value)
    return isinstance(value, int | float)


def _without_gaps(entries: Mapping[str, Any], by: float | None) -> dict[str, Any]:
    """Returns judgements with gaps in curves, NaN or ``None``, filled: JSON has no NaN."""

    def filled(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [by if one is None or not math.isfinite(one) else one for one in value]

    return {
        name: {**entry, "values": {m: filled(value) for m, value in entry["values"].items()}}
        for name, entry in entries.items()
    }


def stale_metrics(
    entry: Mapping[str, Any], wanted: Mapping[str, str], each: Mapping[str, np.ndarray | None]
) -> list[str]:
    """Lists metrics to measure: those not measured as now, failed, or without their examples."""
    values = entry["values"]
    lost = [
        metric
        for metric, array in each.items()
        if metric in values and (array is None or float(np.mean(array)) != values[metric])
    ]
    return [
        metric
        for metric, version in wanted.items()
        if entry["versions"].get(metric) != version or metric in entry["failed"] or metric in lost
    ]


def is_fault_of_method(error: Exception) -> bool:
    """Tells whether a run goes on without a method that raised this.

    A checkpoint or another file that cannot be read or written is no fault of the method's. Of
    several processes all have to see a fault, or those that do not would wait for the others: they
    go on without what is refused or diverges, which all find alike; data that one cannot read, or
    memory that one has not, ends them.
    """
    if isinstance(error, CheckpointError | OSError):
        return False
    alike = isinstance(error, ValueError | TypeError) and not isinstance(error, DataError)
    return alike or not several()


@contextlib.contextmanager
def named(stage: str) -> Iterator[None]:
    """Names the model that a divergence happened to."""
    try:
        yield
    except DivergenceError as error:
        raise DivergenceError(f"{stage}: {error}") from error


@contextlib.contextmanager
def _cold_compilation() -> Iterator[None]:
    """Has programs compiled, not found: else their time would be that to read a file."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it remembers whether it is used
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def timed(once: Callable[..., Outcome], hooks: Hooks) -> Outcome:
    """Runs with cold compilation; what takes less than a second again, the median time counts."""
    with _cold_compilation():
        outcome = once(**hooks)
    seconds = [outcome.seconds]
    if shared(outcome.seconds < 1):
        seconds += [once().seconds for _ in range(REPEATS - 1)]
    return outcome._replace(seconds=statistics.median(seconds))
