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
from jaxunlearn.config import Config, ModelConfig, Request, to_dict
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.requests import separate
from jaxunlearn.data.sets import num_examples, request, stratified_mask
from jaxunlearn.data.sources import load_dataset
from jaxunlearn.data.split import divide, positions
from jaxunlearn.errors import ConfigError
from jaxunlearn.execute import visible_sets
from jaxunlearn.fit import recipe
from jaxunlearn.latents import Guide
from jaxunlearn.loop import begin
from jaxunlearn.metrics.generated import forgets_class
from jaxunlearn.metrics.published import HEADS
from jaxunlearn.metrics.table import Trial
from jaxunlearn.models import GANS, build, build_gan, check_model
from jaxunlearn.overrides import check_types, check_value
from jaxunlearn.runner import within
from jaxunlearn.sharding import Sharding, make_sharding
from jaxunlearn.stages import Stage
from jaxunlearn.training.augment import make_augment
from jaxunlearn.training.optimizers import make_optimizer
from jaxunlearn.types import Gan, Key, Model, Sets, Unlearner
from jaxunlearn.unlearners import METHODS, load_method, method_options

__all__ = ["Plan", "equip", "identify", "prepare", "stages_of", "write_plan"]

RUNNER_OPTIONS = ("method", "steps", "batch_size", "chunk", "stop")
OPTIMIZER_OPTIONS = ("optimizer", "learning_rate", "schedule", "weight_decay", "momentum", "betas")


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
      guide, judge: of a GAN: the classifier that methods may use, and the one that judges;
        as long as they are not trained, of shapes instead of arrays.
      trial: which one of several this is.
    """

    config: Config
    folder: Path
    model: Model | Gan
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
    guide: Guide | None = None
    judge: Guide | None = None


def prepare(config: Config, runs: Path) -> Plan:
    """Loads the data and builds the network and the methods; reports what is wrong."""
    check_types(config)
    _check_values(config)
    sharding = make_sharding(config.mesh, config.rules)
    data = load_dataset(config.data)
    is_gan = config.model.name in GANS
    if is_gan:
        data = _between_ones(data)
    num_classes = len(data.class_names)
    held = stratified_mask(data.test_y, config.data.unseen, config.data.seed)
    requests = separate(config.request, num_classes)
    sets = divide(data, held, requests)
    retained = num_examples(sets.retain)
    if len(requests) > 1:
        # of all classes, not of those asked for: so no class depends on which others are
        retained = round(len(data.train_y) * (1 - 1 / num_classes))
    shape = data.train_x.shape[1:]
    model = _network(config.model, shape, num_classes)
    recipe(model, config.train, retained, config.gan)
    classifier = _classifier(config, shape, num_classes) if is_gan else None
    whole_config = to_dict(config)
    about = ("seed", "data", "model", "train", *(("gan",) if is_gan else ()))
    identity = {name: whole_config[name] for name in about}
    for place in ("dir", "cache"):  # where the same bytes lie does not matter
        identity["data"].pop(place)
    identity["fingerprint"] = data.fingerprint
    identity["jaxunlearn"] = checkpoint.versions()["jaxunlearn"]
    if len(requests) == 1:  # of many, an original belongs to none
        identity |= identify(requests[0])
    plan = Plan(
        config,
        runs / config.name,
        model,
        tuple(requests),
        sets,
        retained,
        held,
        data.class_names,
        sharding if sharding.mesh.size > 1 else None,
        {},
        identity,
        jax.random.key(config.seed),
    )
    return equip(plan, classifier, classifier)


def equip(plan: Plan, guide: Guide | None, judge: Guide | None) -> Plan:
    """The plan with its methods, which may be led by a classifier."""
    plan = plan._replace(guide=guide, judge=judge)
    options = plan.config.methods
    return plan._replace(methods={k: _build_method(k, own, plan) for k, own in options.items()})


def _between_ones(data: Dataset) -> Dataset:
    """Normalised so that images lie between -1 and 1, as generated ones do."""
    low, high = (255.0 * n if data.train_x.dtype == np.uint8 else float(f(data.train_x))
                 for n, f in ((0, np.min), (1, np.max)))  # fmt: skip
    if high <= low:
        raise ConfigError(f"data: expected images to generate, got all values {low}")
    shape = data.mean.shape
    return data._replace(
        mean=np.full(shape, (high + low) / 2, np.float32),
        std=np.full(shape, (high - low) / 2, np.float32),
    )


def _network(config: ModelConfig, shape: tuple[int, ...], num_classes: int) -> Model | Gan:
    if config.name in GANS:
        return build_gan(config.name, shape, num_classes, config.options)
    model = build(config.name, shape, num_classes, config.options)
    check_model(model, shape, num_classes)
    return model


def _classifier(config: Config, shape: tuple[int, ...], num_classes: int) -> Guide:
    """The guide and the judge of a GAN, not yet trained."""
    if config.gan.classifier.name in GANS:
        raise ConfigError(
            f"gan.classifier.name: expected a classifier, got {config.gan.classifier.name!r}"
        )
    model = _network(config.gan.classifier, shape, num_classes)
    assert isinstance(model, Model)
    recipe(model, config.gan.classifier_train, 1)
    return Guide(model, jax.eval_shape(model.init, jax.random.key(0)))


def _check_values(config: Config) -> None:
    """What types cannot say."""
    if config.oracles < 1:
        raise ConfigError(f"oracles: expected at least 1 retrained model, got {config.oracles}")
    if config.seeds < 1:
        raise ConfigError(f"seeds: expected at least 1, got {config.seeds}")
    if config.seeds > 1 and config.request.each:
        raise ConfigError(f"seeds: expected 1 beside request.each, got {config.seeds}")
    for name in ("samples", "inversion_steps"):
        if getattr(config.gan, name) < 1:
            found = getattr(config.gan, name)
            raise ConfigError(f"gan.{name}: expected a positive number, got {found}")
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
    label: str, options: Mapping[str, Any], plan: Plan
) -> tuple[Unlearner, dict[str, Any]]:
    """A method from its options; those of the runner and of the optimizer are taken out."""
    config, sets = plan.config, request(plan.sets, 0)
    name = options.get("method", label)
    own = method_options(name)
    is_gan = isinstance(plan.model, Gan)
    if METHODS[name].gan != is_gan:
        suitable = sorted(n for n, row in METHODS.items() if row.gan == is_gan)
        raise ConfigError(
            f"methods.{label}: expected one of {suitable} for the model {config.model.name}, "
            f"got {name!r}"
        )
    kinds = typing.get_type_hints(load_method(name))
    allowed = {*RUNNER_OPTIONS, *own, *(OPTIMIZER_OPTIONS if "optimizer" in own else ())}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ConfigError(
            f"methods.{label}: expected options among {', '.join(sorted(allowed))}, got {unknown}"
        )
    runner = _runner_options(label, options, plan)
    steps = runner.get("steps", math.ceil(plan.retained / runner["batch_size"]))
    arguments = {key: options[key] for key in options if key in own and key != "optimizer"}
    given = {"horizon": steps, "guide": plan.guide}
    given["kind"] = "class" if sets.forget is not None and forgets_class(sets) else "items"
    if options.get("bank") in TABLES:
        given["class_names"] = plan.class_names
    for key, value in arguments.items():
        check_value(f"methods.{label}.{key}", value, kinds.get(key, Any))
    arguments = {**{key: value for key, value in given.items() if key in own}, **arguments}
    try:
        if "optimizer" in own:
            chosen = {key: options[key] for key in OPTIMIZER_OPTIONS if key in options}
            if chosen or is_gan or own["optimizer"].default is inspect.Parameter.empty:
                train = dataclasses.replace(config.train, **{"schedule": "constant", **chosen})
                check_types(train)
                arguments["optimizer"] = make_optimizer(train, steps)
        method = load_method(name)(plan.model, **arguments)
        # what a method refuses when it sees model and data, found out before any training
        like = jax.eval_shape(plan.model.init, jax.random.key(0))
        shown = visible_sets(method.needs, sets)
        prepared = method.prepare and method.prepare.shapes(like, shown)
        jax.eval_shape(partial(begin, method), like, shown, jax.random.key(0), prepared)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"methods.{label}: {error}") from error
    if not method.needs.once:
        return method, {"steps": steps, **runner}
    if "steps" in options:
        raise ConfigError(f"methods.{label}.steps: expected none for a single pass, got {steps}")
    return method, runner


def _runner_options(label: str, options: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """What of a method's options is the runner's."""
    runner = {"batch_size": options.get("batch_size", plan.config.train.batch_size)}
    runner |= {key: options[key] for key in ("steps", "chunk") if key in options}
    for key, value in runner.items():
        if type(value) is not int or value < 1:
            raise ConfigError(f"methods.{label}.{key}: expected a positive number, got {value!r}")
    if "stop" in options:
        check_value(f"methods.{label}.stop", options["stop"], Mapping[str, float])
        if len(plan.requests) > 1:
            raise ConfigError(
                f"methods.{label}.stop: expected none where each class is forgotten, all with "
                "the same number of steps"
            )
        runner["stop"] = within(**options["stop"])
    return runner


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
            asked = {key: value for key, value in runner.items() if key != "stop"}
            own[f"unlearned/{label}"] = {"method": label, **plan.config.methods[label], **asked}
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
