"""The whole run, in one direction.

config -> data -> request -> sets -> original -> retrained -> unlearned -> metrics -> report
"""

import contextlib
import json
import statistics
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from jaxunlearn import checkpoint, report
from jaxunlearn.config import Config, to_dict
from jaxunlearn.data.requests import describe
from jaxunlearn.data.sets import num_examples, whole
from jaxunlearn.errors import DivergenceError
from jaxunlearn.execute import Outcome, Progress
from jaxunlearn.fit import train, train_many
from jaxunlearn.metrics.evaluate import costs, member_of
from jaxunlearn.metrics.measure import measure
from jaxunlearn.metrics.table import make_report, speedups
from jaxunlearn.plan import Plan, prepare, stages_of, write_plan
from jaxunlearn.runner import unlearn
from jaxunlearn.sharding import abstract
from jaxunlearn.stages import Keeper, Stage, check_stage, finish_stage, load_stage
from jaxunlearn.types import Key, Subset, Variables

__all__ = ["run"]

# purposes of the keys that follow from config.seed
ORIGINAL, ORACLE, METHOD, MEASURE = range(4)
REPEATS = 5
"""A run that takes less than a second is timed so often; the median counts."""

Record = dict[str, Any]
Hooks = dict[str, Any]
Listener = Callable[[str, Progress | None], None]
"""Told the stage's name, and how far it is (``None``: it was there already)."""


def run(
    config: Config,
    runs: str | Path = "runs",
    *,
    force: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Trains, unlearns, retrains and compares; the folder ``runs/config.name`` holds it all.

    Args:
      config: the experiment.
      runs: folder of all runs.
      force: overwrite stages that were made with other settings.
      listener: see :data:`Listener`.

    Returns:
      The report, as ``make_report`` describes it; also saved as JSON, Markdown and PNG.

    Raises:
      UserError: something the user gave is wrong; see the message.
    """
    plan = prepare(config, Path(runs))
    for stage in stages_of(plan).values():
        check_stage(stage, force)
    write_plan(plan)
    work = _Work(plan, force, listener or (lambda name, progress: None))
    original, first = work.original()
    rows = {"original": first["metrics"]}
    notes: list[str] = []
    records = [first]
    known = first["metrics"]["accuracy_forget"]
    references = work.oracles(known)
    cost = references[0]["metrics"]
    for label in plan.methods:
        try:
            record = work.method(label, original, known)
        except DivergenceError as error:
            # a method that fails is shown failing; the others' work is not lost
            notes.append(f"diverged: {error}")
            rows[label] = {}
            continue
        records.append(record)
        rows[label] = {**record["metrics"], **speedups(cost, record["metrics"])}
    if any(one["versions"] != first["versions"] for one in [*records, *references]):
        notes.append("not all models were made with the same versions: see their records")
    made = make_report(
        f"{config.name}: {describe(config.request)}",
        rows,
        [record["metrics"] for record in references],
        notes=notes + _notes(plan),
        environment=first["versions"],
    )
    report.save(made, plan.folder)
    lines = [json.dumps({"model": label, **metrics}) for label, metrics in rows.items()]
    lines += [json.dumps({"model": one["stage"], **one["metrics"]}) for one in references]
    (plan.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return made


class _Work:
    """Makes each stage, or loads it where it is there already."""

    def __init__(self, plan: Plan, force: bool, listener: Listener) -> None:
        self.plan = plan
        self.stages = stages_of(plan)
        self.force = force
        self.listener = listener
        like = jax.eval_shape(plan.model.init, plan.key)
        self.like = abstract(like, plan.sharding) if plan.sharding else like

    def original(self) -> tuple[Variables, Record]:
        assert self.plan.sets.forget is not None
        everything = whole(self.plan.sets.forget.examples)
        key = jax.random.fold_in(self.plan.key, ORIGINAL)
        return self._stage("original", lambda hooks: self._train(everything, key, hooks))

    def oracles(self, known: float) -> list[Record]:
        """The retrained models: the first timed alone, the others in one program."""
        part = self.plan.sets.retain
        assert part is not None
        names = [name for name in self.stages if name.startswith("retrained/")]
        # not split: the keys of the first must not depend on how many there are
        base = jax.random.fold_in(self.plan.key, ORACLE)
        keys = [jax.random.fold_in(base, number) for number in range(len(names))]
        first = self._stage(names[0], lambda hooks: self._train(part, keys[0], hooks), known)
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

            records.append(self._stage(name, make, known)[1])
        if made:
            Keeper(together).forget()
        return records

    def method(self, label: str, original: Variables, known: float) -> Record:
        method, options = self.plan.methods[label]
        # from the method's name: its variants then see the same samples and batches, and
        # the order of the methods does not matter
        name = self.plan.config.methods[label].get("method", label)
        purpose = jax.random.fold_in(self.plan.key, METHOD)
        key = jax.random.fold_in(purpose, zlib.crc32(name.encode()))
        once = partial(unlearn, method, original, self.plan.sets, key, **options)
        once = partial(once, sharding=self.plan.sharding)
        return self._stage(f"unlearned/{label}", lambda hooks: _timed(once, hooks), known)[1]

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

    def _stage(
        self, name: str, make: Callable[[Hooks], Outcome], known: float | None = None
    ) -> tuple[Variables, Record]:
        stage = self.stages[name]
        if self._there(name):
            self.listener(name, None)
            return load_stage(stage, self.like)
        with _named(name):
            outcome = make(self._hooks(stage, name))
        plan = self.plan
        key = jax.random.fold_in(plan.key, MEASURE)
        metrics: dict[str, float] = measure(
            plan.model, outcome.variables, plan.sets, key, original_accuracy=known
        )
        metrics |= costs(outcome)
        record = {
            "stage": name,
            "config": to_dict(plan.config),
            "request": describe(plan.config.request),
            "seed": plan.config.seed,
            "metrics": metrics,
            "history": {key: value.tolist() for key, value in outcome.history.items()},
            "versions": checkpoint.versions(),
        }
        return outcome.variables, finish_stage(stage, outcome.variables, record)


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


def _notes(plan: Plan) -> list[str]:
    sizes = {
        name: num_examples(part) for name, part in plan.sets._asdict().items() if part is not None
    }
    config, leaves = plan.config, jax.tree.leaves(jax.eval_shape(plan.model.init, plan.key))
    shape = list(plan.sets.forget.examples.x.shape[1:]) if plan.sets.forget else []
    return [
        f"{config.model.name}, {sum(leaf.size for leaf in leaves):,} parameters "
        f"({leaves[0].dtype}), inputs {shape}, batches of {config.train.batch_size}, "
        f"{config.train.epochs:g} epochs",
        "examples: " + ", ".join(f"{name} {size}" for name, size in sizes.items()),
        f"retrained: mean of {plan.config.oracles}; time of the first, trained alone; "
        "floor: mean difference between two of them",
    ]
