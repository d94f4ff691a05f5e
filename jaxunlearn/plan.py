"""All of a run that is known before any training: data, sets, network, methods, stages."""

import dataclasses
import inspect
import json
import math
import typing
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import checkpoint
from jaxunlearn.concepts.attributes import TABLES
from jaxunlearn.config import Config, Request, to_dict
from jaxunlearn.data.requests import separate
from jaxunlearn.data.sets import num_examples, request, stratified_mask
from jaxunlearn.data.sources import load_dataset
from jaxunlearn.data.split import divide, positions
from jaxunlearn.errors import ConfigError
from jaxunlearn.execute import visible_sets
from jaxunlearn.loop import begin
from jaxunlearn.metrics.published import HEADS
from jaxunlearn.metrics.table import Trial
from jaxunlearn.models import build, check_model
from jaxunlearn.overrides import check_types, check_value
from jaxunlearn.sharding import Sharding, make_sharding
from jaxunlearn.stages import Stage
from jaxunlearn.training.augment import make_augment
from jaxunlearn.training.optimizers import make_optimizer
from jaxunlearn.types import Key, Model, Sets, Unlearner
from jaxunlearn.unlearners import load_method, method_options

__all__ = ["Plan", "identify", "prepare", "stages_of", "write_plan"]

RUNNER_OPTIONS = ("method", "steps", "batch_size")
OPTIMIZER_OPTIONS = ("optimizer", "learning_rate", "schedule", "weight_decay", "momentum")


class Plan(NamedTuple):
    """All that is known before any training.

    Attributes:
      requests: one, or one for each class.
      sets: of the request; stacked, where there are several.
      retained: so many examples are an epoch of retraining and the steps of a method that
        was given none: the retain set's, and those without a class of average size where
        each class is forgotten by itself, since one program does as many steps for all.
      held: which images of the test split no training saw.
      methods: label -> (unlearner, options of the runner).
      identity: JSON; what every stage depends on, its metrics included.
      trial: which one of several this is.
    """

    config: Config
    folder: Path
    model: Model
    requests: tuple[Request, ...]
    sets: Sets
    retained: int
    held: np.ndarray
    class_names: tuple[str, ...]
    sharding: Sharding | None
    methods: Mapping[str, tuple[Unlearner, dict[str, Any]]]
    identity: Mapping[str, Any]
    key: Key
    trial: Trial | None = None


def prepare(config: Config, runs: Path) -> Plan:
    """Loads the data and builds the network and the methods; reports what is wrong."""
    check_types(config)
    _check_values(config)
    sharding = make_sharding(config.mesh, config.rules)
    data = load_dataset(config.data)
    num_classes = len(data.class_names)
    held = stratified_mask(data.test_y, config.data.unseen, config.data.seed)
    requests = separate(config.request, num_classes)
    sets = divide(data, held, requests)
    retained = num_examples(sets.retain)
    if len(requests) > 1:
        # of all classes, not of those asked for: so no class depends on which others are
        retained = round(len(data.train_y) * (1 - 1 / num_classes))
    shape = data.train_x.shape[1:]
    model = build(config.model.name, shape, num_classes, config.model.options)
    check_model(model, shape, num_classes)
    whole_config = to_dict(config)
    identity = {name: whole_config[name] for name in ("seed", "data", "model", "train")}
    for place in ("dir", "cache"):  # where the same bytes lie does not matter
        identity["data"].pop(place)
    identity["fingerprint"] = data.fingerprint
    identity["jaxunlearn"] = checkpoint.versions()["jaxunlearn"]
    if len(requests) == 1:  # of many, an original belongs to none
        identity |= identify(requests[0])
    one = request(sets, 0)
    methods = {
        label: _build_method(label, options, model, config, one, retained, data.class_names)
        for label, options in config.methods.items()
    }
    return Plan(
        config,
        runs / config.name,
        model,
        tuple(requests),
        sets,
        retained,
        held,
        data.class_names,
        sharding if sharding.mesh.size > 1 else None,
        methods,
        identity,
        jax.random.key(config.seed),
    )


def _check_values(config: Config) -> None:
    """What types cannot say."""
    if config.oracles < 1:
        raise ConfigError(f"oracles: expected at least 1 retrained model, got {config.oracles}")
    if config.seeds < 1:
        raise ConfigError(f"seeds: expected at least 1, got {config.seeds}")
    if config.seeds > 1 and config.request.each:
        raise ConfigError(f"seeds: expected 1 beside request.each, got {config.seeds}")
    if config.at_a_time is not None and config.at_a_time < 1:
        raise ConfigError(f"at_a_time: expected at least 1, got {config.at_a_time}")
    for label, given in config.published.values.items():
        if unknown := sorted(set(given) - set(HEADS)):
            raise ConfigError(
                f"published.values.{label}: expected metrics among {', '.join(HEADS)}, "
                f"got {unknown}"
            )
    if not _is_folder_name(config.name):
        raise ConfigError(f"name: expected the name of one folder, got {config.name!r}")
    for label in config.methods:
        if not _is_folder_name(label) or label in ("original", "retrained"):
            raise ConfigError(
                "methods: expected labels fit for a folder, other than original and retrained, "
                f"got {label!r}"
            )
    for name, value in (("epochs", config.train.epochs), ("batch_size", config.train.batch_size)):
        if not 0 < value < math.inf:
            raise ConfigError(f"train.{name}: expected a positive number, got {value:g}")
    if not config.methods:
        raise ConfigError("methods: expected at least one, got none")
    make_optimizer(config.train, 1)
    make_augment(config.train.augment)


def _is_folder_name(text: str) -> bool:
    return text not in ("", ".", "..") and Path(text).name == text


def _build_method(
    label: str,
    options: Mapping[str, Any],
    model: Model,
    config: Config,
    sets: Sets,
    retained: int,
    class_names: tuple[str, ...],
) -> tuple[Unlearner, dict[str, Any]]:
    """A method from its options; those of the runner and of the optimizer are taken out."""
    name = options.get("method", label)
    own = method_options(name)
    kinds = typing.get_type_hints(load_method(name))
    allowed = {*RUNNER_OPTIONS, *own, *(OPTIMIZER_OPTIONS if "optimizer" in own else ())}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ConfigError(
            f"methods.{label}: expected options among {', '.join(sorted(allowed))}, got {unknown}"
        )
    batch_size = options.get("batch_size", config.train.batch_size)
    for key, value in (("steps", options.get("steps", 1)), ("batch_size", batch_size)):
        if type(value) is not int or value < 1:
            raise ConfigError(f"methods.{label}.{key}: expected a positive number, got {value!r}")
    steps = options.get("steps", math.ceil(retained / batch_size))
    arguments = {key: options[key] for key in options if key in own and key != "optimizer"}
    if "class_names" in own and options.get("bank") in TABLES:
        arguments.setdefault("class_names", class_names)
    for key, value in arguments.items():
        check_value(f"methods.{label}.{key}", value, kinds.get(key, Any))
    try:
        if "optimizer" in own:
            chosen = {key: options[key] for key in OPTIMIZER_OPTIONS if key in options}
            if chosen or own["optimizer"].default is inspect.Parameter.empty:
                train = dataclasses.replace(config.train, **{"schedule": "constant", **chosen})
                check_types(train)
                arguments["optimizer"] = make_optimizer(train, steps)
        method = load_method(name)(model, **arguments)
        # what a method refuses when it sees model and data, found out before any training
        like = jax.eval_shape(model.init, jax.random.key(0))
        shown = visible_sets(method.needs, sets)
        prepared = method.prepare and method.prepare.shapes(like, shown)
        jax.eval_shape(partial(begin, method), like, shown, jax.random.key(0), prepared)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"methods.{label}: {error}") from error
    if not method.needs.once:
        return method, {"batch_size": batch_size, "steps": steps}
    if "steps" in options:
        raise ConfigError(f"methods.{label}.steps: expected none for a single pass, got {steps}")
    return method, {"batch_size": batch_size}


def identify(request: Request) -> dict[str, Any]:
    """What a model depends on that was made for a single request."""
    found = to_dict(request)
    found.pop("each")
    return {"request": found}


def stages_of(plan: Plan) -> dict[str, Stage]:
    """Every stage of the run by name, with what it depends on; of several requests the original."""
    own: dict[str, Mapping[str, Any]] = {"original": {}}
    if len(plan.requests) == 1:
        usual = plan.retained == num_examples(plan.sets.retain)
        length = {} if usual else {"retained": plan.retained}
        for number in range(plan.config.oracles):
            own[f"retrained/{number}"] = {"oracle": number, **length}
        for label, (_, runner) in plan.methods.items():
            own[f"unlearned/{label}"] = {"method": label, **plan.config.methods[label], **runner}
    return {
        name: Stage(plan.folder / name, {**plan.identity, "own": inputs})
        for name, inputs in own.items()
    }


def write_plan(plan: Plan) -> None:
    """The resolved configuration, and the requests as positions in the official splits."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_dict(plan.config), indent=2, sort_keys=True)
    (plan.folder / "config.json").write_text(text + "\n")
    parts: dict[str, np.ndarray] = {}
    for number, one in enumerate(plan.requests):
        home = f"class_{one.classes[0]}/" if len(plan.requests) > 1 else ""
        found = positions(request(plan.sets, number), plan.held)
        parts |= {home + name: where for name, where in found.items()}
    np.savez_compressed(plan.folder / "sets.npz", allow_pickle=False, **parts)
