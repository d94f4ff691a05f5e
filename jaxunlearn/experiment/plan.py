"""All of a run that is known before any training: data, sets, network, methods, stages."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import checkpoint
from jaxunlearn.config import DEFAULT_METHODS, Config, ModelConfig, Request, section, to_dict
from jaxunlearn.config.overrides import check_types
from jaxunlearn.core.errors import ConfigError, RequestError
from jaxunlearn.core.types import Gan, Key, Model, Sets, Unlearner
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.requests import separate
from jaxunlearn.data.sets import divide, num_examples, positions, request, stratified_mask
from jaxunlearn.data.sources import load_dataset
from jaxunlearn.engine.sharding import Sharding, make_sharding
from jaxunlearn.experiment.method_options import Problem, build_method
from jaxunlearn.experiment.stages import Stage
from jaxunlearn.gan import Guide
from jaxunlearn.kinds.training import recipe
from jaxunlearn.metrics.generated import NEIGHBOURS
from jaxunlearn.metrics.table import HEADS, Trial
from jaxunlearn.models import NETWORKS, build, build_gan, check_model
from jaxunlearn.training.optimizers import make_augment, make_optimizer


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
    if not config.methods:
        config = dataclasses.replace(config, methods=DEFAULT_METHODS)
    check_types(config)
    _check_values(config)
    sharding = make_sharding(config.mesh, config.rules)
    data = load_dataset(config.data)
    is_gan = NETWORKS.find(config.model.name, "model.name").kind == "gan"
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
    if is_gan and num_examples(sets.retain) <= NEIGHBOURS + 1:
        raise RequestError(
            f"request: expected more than {NEIGHBOURS + 1} retained images to judge a generator "
            f"by, got {num_examples(sets.retain)}"
        )
    model = _network(config.model, shape, num_classes)
    recipe(model, config.train, retained, section(config, "gan"))
    classifier = _classifier(config, shape, num_classes) if is_gan else None
    whole_config = to_dict(config)
    identity = {name: whole_config[name] for name in ("seed", "data", "model", "train")}
    if is_gan:
        identity["gan"] = to_dict(section(config, "gan"))
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
    problem = Problem(
        plan.config, plan.model, request(plan.sets, 0), plan.retained, plan.class_names,
        len(plan.requests) > 1, guide,
    )  # fmt: skip
    options = plan.config.methods
    return plan._replace(methods={k: build_method(k, own, problem) for k, own in options.items()})


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
    if NETWORKS.find(config.name, "model.name").kind == "gan":
        return build_gan(config.name, shape, num_classes, config.options)
    model = build(config.name, shape, num_classes, config.options)
    check_model(model, shape, num_classes)
    return model


def _classifier(config: Config, shape: tuple[int, ...], num_classes: int) -> Guide:
    """The guide and the judge of a GAN, not yet trained."""
    gan = section(config, "gan")
    own = gan.classifier
    model = build(own.name, shape, num_classes, own.options, where="gan.classifier")
    check_model(model, shape, num_classes)
    recipe(model, gan.classifier_train, 1)
    return Guide(model, jax.eval_shape(model.init, jax.random.key(0)))


def _check_values(config: Config) -> None:
    """What types cannot say."""
    if config.oracles < 1:
        raise ConfigError(f"oracles: expected at least 1 retrained model, got {config.oracles}")
    if config.seeds < 1:
        raise ConfigError(f"seeds: expected at least 1, got {config.seeds}")
    if config.seeds > 1 and config.request.each:
        raise ConfigError(f"seeds: expected 1 beside request.each, got {config.seeds}")
    least = {"samples": NEIGHBOURS + 2, "inverted": 0, "inversion_steps": 1, "r1": 0}
    least |= {"downstream_steps": 0, "r1_every": 1, "ema": 0}
    for name, low in least.items():
        found = getattr(section(config, "gan"), name)
        if not found >= low or (name == "ema" and found >= 1):
            wanted = "a number from 0 to below 1" if name == "ema" else f"{low} or more"
            raise ConfigError(f"gan.{name}: expected {wanted}, got {found}")
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
