"""The stages of one seed: each model made and judged once, and loaded when asked for again."""

import contextlib
import statistics
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from jaxunlearn import checkpoint
from jaxunlearn.config import to_dict
from jaxunlearn.data.requests import describe
from jaxunlearn.data.sets import whole
from jaxunlearn.errors import DivergenceError
from jaxunlearn.execute import Outcome, Progress
from jaxunlearn.fit import train, train_many
from jaxunlearn.metrics.evaluate import costs, member_of
from jaxunlearn.metrics.measure import MEASURES, Reference, measure, refer
from jaxunlearn.plan import Plan, stages_of
from jaxunlearn.runner import unlearn
from jaxunlearn.sharding import abstract
from jaxunlearn.stages import Keeper, Stage, check_stage, finish_stage, load_stage
from jaxunlearn.types import Key, Subset, Variables

__all__ = ["Listener", "Record", "Work"]

# purposes of the keys that follow from config.seed
ORIGINAL, ORACLE, METHOD, MEASURE = range(4)
REPEATS = 5
"""A run that takes less than a second is timed so often; the median counts."""

Record = dict[str, Any]
Hooks = dict[str, Any]
Listener = Callable[[str, Progress | None], None]
"""Told the stage's name, and how far it is (``None``: it was there already)."""


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
        self.known: Reference | None = None

    def original(self) -> Record:
        assert self.plan.sets.forget is not None
        everything = whole(self.plan.sets.forget.examples)
        key = jax.random.fold_in(self.plan.key, ORIGINAL)
        made = self._stage("original", lambda hooks: self._train(everything, key, hooks))
        self.begun = made[0]
        return made[1]

    def oracles(self) -> list[Record]:
        """The retrained models: the first timed alone, the others in one program."""
        part = self.plan.sets.retain
        assert part is not None
        names = [name for name in self.stages if name.startswith("retrained/")]
        # not split: the keys of the first must not depend on how many there are
        base = jax.random.fold_in(self.plan.key, ORACLE)
        keys = [jax.random.fold_in(base, number) for number in range(len(names))]
        first = self._stage(names[0], lambda hooks: self._train(part, keys[0], hooks))
        missing = [n for n, name in enumerate(names) if n and not self._there(name)]
        made: dict[str, Outcome] = {}
        if missing and self.plan.sharding is None:
            path = self.plan.folder / "retrained" / "others"
            together = Stage(path, {**self.plan.identity, "own": {"oracles": missing}})
            hooks = self._hooks(together, "retrained/others")
            stacked = jnp.stack([keys[n] for n in missing])
            with _named("retrained/others"):
                many = train_many(
                    self.plan.model, part, stacked, config=self.plan.config.train, **hooks
                )
            made = {names[n]: member_of(many, place) for place, n in enumerate(missing)}
        records = [first[1]]
        for n, name in enumerate(names[1:], start=1):

            def make(hooks: Hooks, n: int = n, name: str = name) -> Outcome:
                return made[name] if name in made else self._train(part, keys[n], hooks)

            records.append(self._stage(name, make)[1])
        if made:
            Keeper(together).forget()
        return records

    def method(self, label: str) -> Record:
        method, options = self.plan.methods[label]
        # from the method's name: its variants then see the same samples and batches, and
        # the order of the methods does not matter
        name = self.plan.config.methods[label].get("method", label)
        purpose = jax.random.fold_in(self.plan.key, METHOD)
        key = jax.random.fold_in(purpose, zlib.crc32(name.encode()))
        once = partial(unlearn, method, self.begun, self.plan.sets, key, **options)
        once = partial(once, sharding=self.plan.sharding)
        return self._stage(f"unlearned/{label}", lambda hooks: _timed(once, hooks))[1]

    def _train(self, part: Subset, key: Key, hooks: Hooks) -> Outcome:
        config, sharding = self.plan.config.train, self.plan.sharding
        once = partial(train, self.plan.model, part, key, config=config, sharding=sharding)
        return _timed(once, hooks)

    def _there(self, name: str) -> bool:
        return check_stage(self.stages[name], self.force)

    def _hooks(self, stage: Stage, name: str) -> Hooks:
        keeper = Keeper(stage)

        def on_chunk(progress: Progress) -> None:
            self.listener(name, progress)
            keeper.keep(progress)

        return {"on_chunk": on_chunk, "resume": keeper.find}

    def _stage(self, name: str, make: Callable[[Hooks], Outcome]) -> tuple[Variables, Record]:
        stage, plan = self.stages[name], self.plan
        if self._there(name):
            self.listener(name, None)
            variables, record = load_stage(stage, self.like)
            if record.get("measures") == MEASURES:
                return variables, record
            # a model costs more than to judge it: it is kept, and what it took
            record["metrics"] |= self._judge(variables)
            record["measures"] = MEASURES
        else:
            with _named(name):
                outcome = make(self._hooks(stage, name))
            variables = outcome.variables
            record = {
                "stage": name,
                "config": to_dict(plan.config),
                "request": describe(plan.config.request),
                "seed": plan.config.seed,
                "metrics": self._judge(variables) | costs(outcome),
                "measures": MEASURES,
                "history": {key: value.tolist() for key, value in outcome.history.items()},
                "versions": checkpoint.versions(),
            }
        return variables, finish_stage(stage, variables, record)

    def _judge(self, variables: Variables) -> dict[str, Any]:
        plan = self.plan
        if self.begun is not None and self.known is None:
            self.known = refer(plan.model, self.begun, plan.sets)
        key = jax.random.fold_in(plan.key, MEASURE)
        return measure(plan.model, variables, plan.sets, key, reference=self.known)


@contextlib.contextmanager
def _named(stage: str) -> Iterator[None]:
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


def _timed(once: Callable[..., Outcome], hooks: Hooks) -> Outcome:
    """Compiled cold; what takes less than a second is done again, the median time counts."""
    with _cold_compilation():
        outcome = once(**hooks)
    seconds = [outcome.seconds]
    while outcome.seconds < 1 and len(seconds) < REPEATS:
        seconds.append(once().seconds)
    return outcome._replace(seconds=statistics.median(seconds))
