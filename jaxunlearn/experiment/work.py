"""The stages of one trial: each model made and judged once, and loaded when asked for again."""

import contextlib
import statistics
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxunlearn import checkpoint
from jaxunlearn.config import section, to_dict
from jaxunlearn.core.errors import DivergenceError
from jaxunlearn.core.types import Key, Unlearner, Variables
from jaxunlearn.data.requests import describe
from jaxunlearn.data.sets import whole
from jaxunlearn.engine import unlearn
from jaxunlearn.engine.driver import Outcome, Progress
from jaxunlearn.engine.sharding import abstract
from jaxunlearn.experiment.judging import judge_model, measures_of, refer_original
from jaxunlearn.experiment.plan import Plan, stages_of
from jaxunlearn.experiment.stages import Keeper, Stage, check_stage, finish_stage, load_stage
from jaxunlearn.kinds.training import recipe, train
from jaxunlearn.metrics.evaluate import costs
from jaxunlearn.metrics.generated import GanReference
from jaxunlearn.metrics.measure import Reference

# purposes of the keys that follow from config.seed
ORIGINAL, ORACLE, METHOD = range(3)
REPEATS = 5
"""A run that takes less than a second is timed so often; the median counts."""

Record = dict[str, Any]
Hooks = dict[str, Any]
Listener = Callable[[str, Progress | None], None]
"""Told the stage's name, and how far it is (``None``: it was there already)."""


class Task(NamedTuple):
    """What makes a model of a trial: a method, the model it starts from, a key, options."""

    method: Unlearner
    variables: Variables
    key: Key
    options: dict[str, Any]


class Made(NamedTuple):
    """A new model, its costs a share of those of the program that ``together`` models shared."""

    outcome: Outcome
    together: int = 1


class Work:
    """Makes each stage, or loads it where it is there already; the original comes first."""

    def __init__(self, plan: Plan, force: bool, listener: Listener) -> None:
        self.plan = plan
        self.stages = stages_of(plan)
        self.force = force
        self.listener = listener
        like = jax.eval_shape(plan.model.init, plan.key)
        self.like = abstract(like, plan.sharding) if plan.sharding else like
        self.begun: Variables = None
        self.made: list[str] = []
        self.prepared: dict[str, Any] = {}
        self.known: Reference | GanReference | None = None

    def original(self) -> Record:
        plan = self.plan
        assert plan.sets.forget is not None
        everything = whole(plan.sets.forget.examples)
        key = jax.random.fold_in(plan.key, ORIGINAL)
        once = partial(train, plan.model, everything, key)
        once = partial(once, config=plan.config.train, gan=section(plan.config, "gan"))
        once = partial(once, sharding=plan.sharding)
        made = self._stage("original", lambda hooks: Made(timed(once, hooks)))
        self.begun = made[0]
        return made[1]

    def adopt(self, other: "Work", record: Record) -> Record:
        """The original that trials share: judged on this one's request, and not kept again."""
        self.begun = other.begun
        stage = self.stages["original"]
        if self.there("original"):
            self.listener("original", None)
            _, own = load_stage(stage, {})
            if own.get("measures") == measures_of(self.plan):
                return own
        judged = self._judge(self.begun) | record["metrics"]
        about = {**self._about("original"), "history": {}, "versions": record["versions"]}
        return finish_stage(stage, {}, {**about, "metrics": judged})

    def oracle(self, number: int, made: Made | None = None) -> Record:
        return self._make(f"retrained/{number}", made)[1]

    def method(self, label: str, made: Made | None = None) -> Record:
        return self._make(f"unlearned/{label}", made)[1]

    def task(self, name: str) -> Task:
        """What makes the model of a stage other than the original."""
        plan, (kind, label) = self.plan, name.split("/")
        if kind == "retrained":
            config = plan.config.train
            method, steps = recipe(plan.model, config, plan.retained, section(plan.config, "gan"))
            # not split: the keys of the first must not depend on how many there are
            key = jax.random.fold_in(jax.random.fold_in(plan.key, ORACLE), int(label))
            return Task(method, None, key, {"steps": steps, "batch_size": config.batch_size})
        method, options = plan.methods[label]
        # from the method's name: its variants then see the same samples and batches, and
        # the order of the methods does not matter
        own = plan.config.methods[label].get("method", label)
        purpose = jax.random.fold_in(plan.key, METHOD)
        key = jax.random.fold_in(purpose, zlib.crc32(own.encode()))
        return Task(method, self.begun, key, options)

    def there(self, name: str) -> bool:
        return check_stage(self.stages[name], self.force)

    def hooks(self, stage: Stage, name: str) -> Hooks:
        """What shows and keeps the progress of a stage that is being made."""
        keeper = Keeper(stage)

        def on_chunk(progress: Progress) -> None:
            self.listener(name, progress)
            keeper.keep(progress)

        return {"on_chunk": on_chunk, "resume": keeper.find}

    def _make(self, name: str, made: Made | None) -> tuple[Variables, Record]:
        """``made``: by a program for several models; else it is made alone."""

        def alone(hooks: Hooks) -> Made:
            task, plan = self.task(name), self.plan
            once = partial(unlearn, task.method, task.variables, plan.sets, task.key)
            once = partial(once, sharding=plan.sharding, **task.options)
            return Made(timed(once, hooks))

        return self._stage(name, alone if made is None else lambda hooks: made)

    def _stage(self, name: str, make: Callable[[Hooks], Made]) -> tuple[Variables, Record]:
        stage = self.stages[name]
        if self.there(name):
            self.listener(name, None)
            variables, record = load_stage(stage, self.like)
            if record.get("measures") == measures_of(self.plan):
                return variables, record
            # a model costs more than to judge it: it is kept, and what it took
            record["metrics"] |= self._judge(variables)
            record["measures"] = measures_of(self.plan)
        else:
            with named(name):
                outcome, together = make(self.hooks(stage, name))
            variables = outcome.variables
            self.made.append(name)
            self.prepared[name] = outcome.prepared
            record = {
                **self._about(name),
                "metrics": self._judge(variables) | costs(outcome),
                "together": together,
                "history": {key: value.tolist() for key, value in outcome.history.items()},
                "versions": checkpoint.versions(),
            }
        return variables, finish_stage(stage, variables, record)

    def _about(self, name: str) -> Record:
        config = self.plan.config
        about = {"stage": name, "config": to_dict(config), "request": describe(config.request)}
        return {**about, "seed": config.seed, "measures": measures_of(self.plan)}

    def _judge(self, variables: Variables) -> dict[str, Any]:
        plan = self.plan
        if len(plan.requests) > 1:
            return {}  # it is judged on each of them
        if self.begun is not None and self.known is None:
            self.known = refer_original(plan, self.begun)
        return judge_model(plan, variables, self.known)


@contextlib.contextmanager
def named(stage: str) -> Iterator[None]:
    """A divergence says which model it happened to."""
    try:
        yield
    except DivergenceError as error:
        raise DivergenceError(f"{stage}: {error}") from error


@contextlib.contextmanager
def _cold_compilation() -> Iterator[None]:
    """Programs are compiled, not found: else the time to compile would be that to read a file."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it remembers whether it is used
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def timed(once: Callable[..., Outcome], hooks: Hooks) -> Outcome:
    """Compiled cold; what takes less than a second is done again, the median time counts."""
    with _cold_compilation():
        outcome = once(**hooks)
    seconds = [outcome.seconds]
    while outcome.seconds < 1 and len(seconds) < REPEATS:
        seconds.append(once().seconds)
    return outcome._replace(seconds=statistics.median(seconds))
