"""A method of a run from its options in the configuration."""

import dataclasses
import inspect
import math
import typing
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax

from jaxunlearn.concepts.attributes import TABLES
from jaxunlearn.config import Config
from jaxunlearn.config.overrides import check_types, check_value
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.types import Gan, Model, Sets, Unlearner
from jaxunlearn.engine import within
from jaxunlearn.engine.driver import visible_sets
from jaxunlearn.engine.loop import begin
from jaxunlearn.gan import Guide
from jaxunlearn.methods import METHODS, load_method, method_options
from jaxunlearn.metrics.samples import forgets_class
from jaxunlearn.training.optimizers import make_optimizer

RUNNER_OPTIONS = ("method", "steps", "batch_size", "chunk", "stop")
OPTIMIZER_OPTIONS = ("optimizer", "learning_rate", "schedule", "weight_decay", "momentum", "betas")


class Problem(NamedTuple):
    """What a method is to be run on.

    Attributes:
      sets: of a single request, the first of several.
      retained: so many examples are an epoch.
      several: whether there are several requests.
      guide: a classifier that methods for GANs may use.
    """

    config: Config
    model: Model | Gan
    sets: Sets
    retained: int
    class_names: tuple[str, ...]
    several: bool
    guide: Guide | None


def build_method(
    label: str, options: Mapping[str, Any], problem: Problem
) -> tuple[Unlearner, dict[str, Any]]:
    """A method from its options; those of the runner and of the optimizer are taken out.

    Raises:
      ConfigError: an option that the method does not have, or refuses for this network and
        these sets, found out before any training.
    """
    config, sets = problem.config, problem.sets
    name = options.get("method", label)
    own = method_options(name)
    is_gan = isinstance(problem.model, Gan)
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
    runner = _runner_options(label, options, problem)
    steps = runner.get("steps", math.ceil(problem.retained / runner["batch_size"]))
    arguments = {key: options[key] for key in options if key in own and key != "optimizer"}
    given = {"horizon": steps, "guide": problem.guide}
    given["kind"] = "class" if sets.forget is not None and forgets_class(sets) else "items"
    if options.get("bank") in TABLES:
        given["class_names"] = problem.class_names
    for key, value in arguments.items():
        check_value(f"methods.{label}.{key}", value, kinds.get(key, Any))
    arguments = {**{key: value for key, value in given.items() if key in own}, **arguments}
    for count in arguments.get("ratio", ()):
        if type(count) is int and count > 0 and runner["batch_size"] % count:
            raise ConfigError(
                f"methods.{label}.ratio: expected parts that divide the batch of "
                f"{runner['batch_size']}, got {count}"
            )
    try:
        if "optimizer" in own:
            chosen = {key: options[key] for key in OPTIMIZER_OPTIONS if key in options}
            if chosen or is_gan or own["optimizer"].default is inspect.Parameter.empty:
                train = dataclasses.replace(config.train, **{"schedule": "constant", **chosen})
                check_types(train)
                arguments["optimizer"] = make_optimizer(train, steps)
        method = load_method(name)(problem.model, **arguments)
        # what a method refuses when it sees model and data, found out before any training
        like = jax.eval_shape(problem.model.init, jax.random.key(0))
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


def _runner_options(label: str, options: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    """What of a method's options is the runner's."""
    runner = {"batch_size": options.get("batch_size", problem.config.train.batch_size)}
    runner |= {key: options[key] for key in ("steps", "chunk") if key in options}
    for key, value in runner.items():
        if type(value) is not int or value < 1:
            raise ConfigError(f"methods.{label}.{key}: expected a positive number, got {value!r}")
    if "stop" in options:
        check_value(f"methods.{label}.stop", options["stop"], Mapping[str, float])
        if problem.several:
            raise ConfigError(
                f"methods.{label}.stop: expected none where each class is forgotten, all with "
                "the same number of steps"
            )
        runner["stop"] = within(**options["stop"])
    return runner
