"""The whole run, in one direction.

config -> data -> request -> sets -> original -> unlearned -> retrained -> metrics -> report
"""

import dataclasses
import inspect
import json
import math
import statistics
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import checkpoint, report
from jaxunlearn.config import Config, to_dict
from jaxunlearn.data.requests import describe
from jaxunlearn.data.sets import make_sets, num_examples, stratified_mask, whole
from jaxunlearn.data.sources import load_dataset
from jaxunlearn.errors import ConfigError, DivergenceError
from jaxunlearn.metrics.evaluate import make_report, measure
from jaxunlearn.models import build, check_model
from jaxunlearn.fit import train, train_many
from jaxunlearn.runner import Outcome, Progress, unlearn
from jaxunlearn.sharding import Sharding, abstract, make_sharding
from jaxunlearn.stages import Keeper, Stage, check_stage, finish_stage, load_stage
from jaxunlearn.training.optimizers import make_optimizer
from jaxunlearn.types import Key, Model, Sets, Subset, Unlearner, Variables
from jaxunlearn.unlearners import load_method, method_options

__all__ = ["Plan", "prepare", "run"]

# purposes of the keys that follow from config.seed
ORIGINAL, ORACLE, METHOD, MEASURE = range(4)
RUNNER_OPTIONS = ("method", "steps", "batch_size")
OPTIMIZER_OPTIONS = ("optimizer", "learning_rate", "schedule", "weight_decay", "momentum")
REPEATS = 5
"""A method that takes less than a second is timed so often; the median counts."""

Record = dict[str, Any]
Hooks = dict[str, Any]
Listener = Callable[[str, Progress | None], None]
"""Told the stage's name, and how far it is (``None``: it was there already)."""


class Plan(NamedTuple):
    """All that is known before any training.

    Attributes:
      methods: label -> (unlearner, options of the runner).
      identity: JSON; what data, model and training depend on.
    """

    config: Config
    folder: Path
    model: Model
    sets: Sets
    sharding: Sharding | None
    methods: Mapping[str, tuple[Unlearner, dict[str, Any]]]
    identity: Mapping[str, Any]
    key: Key


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
    for stage in _stages(plan).values():
        check_stage(stage, force)
    _write_plan(plan)
    work = _Work(plan, force, listener or (lambda name, progress: None))
    original, first = work.original()
    rows = {"original": first["metrics"]}
    notes = []
    known = first["metrics"]["accuracy_forget"]
    references = work.oracles(known)
    cost = references[0]["metrics"]
    for label in plan.methods:
        try:
            metrics = work.method(label, original, known)["metrics"]
        except DivergenceError as error:
            # a method that fails is shown failing; the others' work is not lost
            notes.append(f"{label} diverged: {error}")
            rows[label] = {}
            continue
        rows[label] = {**metrics, **_speedups(cost, metrics)}
    made = make_report(
        f"{config.name}: {describe(config.request)}",
        rows,
        [record["metrics"] for record in references],
        notes=notes + _notes(plan),
        environment=checkpoint.versions(),
    )
    report.save(made, plan.folder)
    return made


def prepare(config: Config, runs: Path) -> Plan:
    """Loads the data and builds the network and the methods; reports what is wrong."""
    if config.oracles < 1:
        raise ConfigError(f"oracles: expected at least 1 retrained model, got {config.oracles}")
    if not config.name or Path(config.name).name != config.name:
        raise ConfigError(f"name: expected the name of one folder, got {config.name!r}")
    sharding = make_sharding(config.mesh, config.rules)
    data = load_dataset(config.data)
    held = stratified_mask(data.test_y, config.data.unseen, config.data.seed)
    sets = make_sets(
        data.train_x,
        data.train_y,
        config.request,
        unseen=(data.test_x[held], data.test_y[held]),
        test=(data.test_x[~held], data.test_y[~held]),
        mean=data.mean,
        std=data.std,
        num_classes=len(data.class_names),
    )
    shape = data.train_x.shape[1:]
    model = build(config.model.name, shape, len(data.class_names), config.model.options)
    check_model(model, shape, len(data.class_names))
    whole_config = to_dict(config)
    identity = {name: whole_config[name] for name in ("seed", "data", "model", "train")}
    for place in ("dir", "cache"):  # where the same bytes lie does not matter
        identity["data"].pop(place)
    identity["fingerprint"] = data.fingerprint
    identity["jaxunlearn"] = checkpoint.versions()["jaxunlearn"]
    methods = {
        label: _build_method(label, options, model, config, sets)
        for label, options in config.methods.items()
    }
    return Plan(
        config,
        runs / config.name,
        model,
        sets,
        sharding if sharding.mesh.size > 1 else None,
        methods,
        identity,
        jax.random.key(config.seed),
    )


def _build_method(
    label: str, options: Mapping[str, Any], model: Model, config: Config, sets: Sets
) -> tuple[Unlearner, dict[str, Any]]:
    """A method from its options; those of the runner and of the optimizer are taken out."""
    name = options.get("method", label)
    own = method_options(name)
    allowed = {*RUNNER_OPTIONS, *own, *(OPTIMIZER_OPTIONS if "optimizer" in own else ())}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ConfigError(
            f"methods.{label}: expected options among {', '.join(sorted(allowed))}, got {unknown}"
        )
    batch_size = options.get("batch_size", config.train.batch_size)
    arguments = {key: options[key] for key in options if key in own and key != "optimizer"}
    try:
        steps = options.get("steps")
        if "optimizer" in own:
            steps = steps or math.ceil(num_examples(sets.retain) / batch_size)
            chosen = {key: options[key] for key in OPTIMIZER_OPTIONS if key in options}
            if chosen or own["optimizer"].default is inspect.Parameter.empty:
                train = dataclasses.replace(config.train, **{"schedule": "constant", **chosen})
                arguments["optimizer"] = make_optimizer(train, steps)
        method = load_method(name)(model, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"methods.{label}: {error}") from error
    if method.needs.once and steps is not None:
        raise ConfigError(f"methods.{label}.steps: expected none for a single pass, got {steps}")
    runner = {"batch_size": batch_size}
    return method, runner if method.needs.once else {**runner, "steps": steps}


def _stages(plan: Plan) -> dict[str, Stage]:
    """Every stage of the run by name, with what it depends on."""
    config = to_dict(plan.config)
    request = {"request": config["request"]}
    original = {**plan.identity}
    stages = {"original": Stage(plan.folder / "original", original)}
    for number in range(plan.config.oracles):
        inputs = {**original, **request, "oracle": number}
        stages[f"retrained/{number}"] = Stage(plan.folder / "retrained" / str(number), inputs)
    for label, (_, runner) in plan.methods.items():
        options = {"method": label, **config["methods"][label], **runner}
        inputs = {**original, **request, "options": options}
        stages[f"unlearned/{label}"] = Stage(plan.folder / "unlearned" / label, inputs)
    return stages


class _Work:
    """Makes each stage, or loads it where it is there already."""

    def __init__(self, plan: Plan, force: bool, listener: Listener) -> None:
        self.plan = plan
        self.stages = _stages(plan)
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
            together = Stage(path, {**self.stages[names[0]].inputs, "oracle": missing})
            hooks = self._hooks(together, "retrained/others")
            stacked = jnp.stack([keys[n] for n in missing])
            many = train_many(
                self.plan.model, part, stacked, config=self.plan.config.train, **hooks
            )
            made = {names[n]: _member(many, place) for place, n in enumerate(missing)}
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
        # from the label, so that the order of the methods does not matter
        purpose = jax.random.fold_in(self.plan.key, METHOD)
        key = jax.random.fold_in(purpose, zlib.crc32(label.encode()))

        def make(hooks: Hooks) -> Outcome:
            once = partial(unlearn, method, original, self.plan.sets, key, **options)
            once = partial(once, sharding=self.plan.sharding)
            outcome = once(**hooks)
            seconds = [outcome.seconds]
            while outcome.seconds < 1 and len(seconds) < REPEATS:
                seconds.append(once().seconds)
            return outcome._replace(seconds=statistics.median(seconds))

        return self._stage(f"unlearned/{label}", make, known)[1]

    def _train(self, part: Subset, key: Key, hooks: Hooks) -> Outcome:
        config, sharding = self.plan.config.train, self.plan.sharding
        return train(self.plan.model, part, key, config=config, sharding=sharding, **hooks)

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
        outcome = make(self._hooks(stage, name))
        plan = self.plan
        key = jax.random.fold_in(plan.key, MEASURE)
        metrics: dict[str, float] = measure(
            plan.model, outcome.variables, plan.sets, key, original_accuracy=known
        )
        for field in ("seconds", "compile_seconds", "steps", "examples"):
            metrics[field] = getattr(outcome, field)
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


def _member(many: Outcome, place: int) -> Outcome:
    """One model out of an ensemble; its share of the time."""
    count = jax.tree.leaves(many.variables)[0].shape[0]
    return many._replace(
        variables=jax.tree.map(lambda leaf: leaf[place], many.variables),
        history={name: value[:, place] for name, value in many.history.items()},
        seconds=many.seconds / count,
        compile_seconds=many.compile_seconds / count,
    )


def _speedups(retrained: Mapping[str, float], own: Mapping[str, float]) -> dict[str, float]:
    whole_time = [m["seconds"] + m["compile_seconds"] for m in (retrained, own)]
    return {
        "speedup": retrained["seconds"] / own["seconds"],
        "speedup_with_compile": whole_time[0] / whole_time[1],
    }


def _write_plan(plan: Plan) -> None:
    """The resolved configuration, and the request as positions in each split."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_dict(plan.config), indent=2, sort_keys=True)
    (plan.folder / "config.json").write_text(text + "\n")
    positions = {
        name: np.asarray(part.indices)[: num_examples(part)]
        for name, part in plan.sets._asdict().items()
        if part is not None
    }
    np.savez_compressed(plan.folder / "sets.npz", allow_pickle=False, **positions)


def _notes(plan: Plan) -> list[str]:
    sizes = {
        name: num_examples(part) for name, part in plan.sets._asdict().items() if part is not None
    }
    return [
        "examples: " + ", ".join(f"{name} {size}" for name, size in sizes.items()),
        f"retrained: mean of {plan.config.oracles}; time of the first, trained alone; "
        "floor: mean difference between two of them",
    ]
