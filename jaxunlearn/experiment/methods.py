"""Methods of a run, built from their options in the configuration."""

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn.config import Config
from jaxunlearn.config.overrides import MOST_INT, check_types, check_value, load_preset
from jaxunlearn.core.errors import ConfigError, brief, did_you_mean, expect_at_most, is_known
from jaxunlearn.core.keys import key_like
from jaxunlearn.core.types import Sets, Unlearner
from jaxunlearn.data.batches import rows_like
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.data.sets import alone, forgets_class
from jaxunlearn.engine import Chain, Sweep, chain, stop, sweep
from jaxunlearn.engine.driver import prepared_like, visible_sets
from jaxunlearn.engine.loop import Job, advance, begin
from jaxunlearn.kinds import Kind
from jaxunlearn.methods import METHODS, Method, method_options
from jaxunlearn.training.optimizers import make_augment, make_optimizer, matching, only

RUNNER_OPTIONS = ("method", "steps", "batch_size", "chunk", "stop")
OPTIMIZER_OPTIONS = (
    "optimizer", "learning_rate", "schedule", "weight_decay", "momentum", "betas", "only",
)  # fmt: skip


class Problem(NamedTuple):
    """Problem that methods are to solve.

    Attributes:
      sets: of a single request, the first of several.
      retained: so many examples are an epoch.
      several: whether there are several requests.
      facts: what the kind's helpers tell methods.
    """

    config: Config
    kind: Kind
    model: Any
    sets: Sets
    retained: int
    class_names: tuple[str, ...]
    several: bool
    facts: Mapping[str, Any]


BuiltMethod = tuple[Unlearner | Chain, dict[str, Any]]
"""A method, and options of the runner."""


def build_methods(
    problem: Problem,
) -> tuple[dict[str, BuiltMethod], dict[str, Mapping[str, Any]], tuple[str, ...]]:
    """Builds the methods of a run: those that the configuration names, or those that suit.

    Returns:
      Methods and their options by label; sentences on defaults that do not suit the request.

    Raises:
      ConfigError: a method that was asked for suits neither the network nor the request; no
        default does.
    """
    asked = {k: with_preset(k, own, problem) for k, own in problem.config.methods.items()}
    if asked:
        return {k: build_method(k, own, problem) for k, own in asked.items()}, dict(asked), ()
    methods: dict[str, BuiltMethod] = {}
    options = problem.kind.default_methods(problem.config)
    left_out: list[str] = []
    for label, own in options.items():
        reason = unsuited(own.get("method", label), problem)
        try:
            if not reason:
                methods[label] = build_method(label, own, problem)
        except ConfigError as error:  # examples that it needs are not there, say
            reason = str(error).removeprefix(f"methods.{label}: ")
        if reason:
            left_out.append(f"{label} left out: {reason}")
    if not methods:
        raise ConfigError("methods: expected one that suits, got none: " + "; ".join(left_out))
    return methods, {label: options[label] for label in methods}, tuple(left_out)


def with_preset(label: str, options: Mapping[str, Any], problem: Problem) -> Mapping[str, Any]:
    """Returns options with those of the preset that they name, which the others go before.

    Raises:
      ConfigError: there is none of this name, or none for the method and this kind of request.
    """
    if "preset" not in options:
        return options
    check_value(f"methods.{label}.preset", options["preset"], str)
    name = options.get("method", label)
    kind = "class" if forgets_class(problem.sets) else "items"
    known = load_preset(options["preset"]).get(name, {}).get("options", {})
    if kind not in known:
        raise ConfigError(
            f"methods.{label}.preset: expected one with {name} for requests by {kind}, got "
            f"{brief(options['preset'])}, which has it for {', '.join(known) or 'none'}"
        )
    return known[kind] | {key: value for key, value in options.items() if key != "preset"}


def unsuited(name: str, problem: Problem) -> str:
    """Returns why a method does not suit the request; nothing if it does."""
    row, sets = METHODS.find(name), problem.sets
    request = "class" if forgets_class(sets) else "items"
    if request not in row.forgets:
        told = {"class": "classes", "items": "items"}
        wants = " or ".join(told[one] for one in row.forgets)
        return f"it forgets {wants}, and the request is for {told[request]}"
    return ""


def build_method(label: str, options: Mapping[str, Any], problem: Problem) -> BuiltMethod:
    """Builds one method; options of the runner and of the optimizer are taken out.

    Raises:
      ConfigError: an option that the method does not have, or refuses for this network and
        these sets, found out before any training.
    """
    if "chain" in options:
        return _build_chain(label, options, problem)
    key = f"methods.{label}"
    recipe = _read(label, options, problem)
    own, runner = recipe.own, recipe.runner
    arguments = dict(recipe.arguments)
    try:
        arguments |= _optimizer(options, own, problem, recipe.steps)
        if "augment" in arguments and problem.sets.retain is not None:
            x = inputs_like(problem.sets.retain, 2)
            jax.eval_shape(make_augment(arguments["augment"]), x, key_like())
        method = recipe.row.factory(problem.model, **arguments)
        _try(method, problem, runner, options.get("stop", ()))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from error
    if not method.needs.once:
        return method, {"steps": recipe.steps, **runner}
    if "steps" in options:
        raise ConfigError(f"{key}.steps: expected none for a single pass, got {recipe.steps}")
    return method, runner


def build_swept(
    label: str,
    options: Mapping[str, Any],
    problem: Problem,
    numbers: Mapping[str, Sequence[float]],
    change: Callable[[Unlearner], Unlearner] = lambda method: method,
) -> tuple[Sweep, dict[str, Any]]:
    """Builds one method with numbers of each member, for ``unlearn_many``.

    Args:
      numbers: by option, ``"learning_rate"`` among them, one for each member.
      change: what is made of the method before it is swept.

    Raises:
      ConfigError: see :func:`build_method`; or a number that cannot be swept.
    """
    key, first = f"methods.{label}", {name: float(each[0]) for name, each in numbers.items()}
    _, runner = build_method(label, {**options, **first}, problem)
    recipe = _read(label, {**options, **first}, problem)

    def make(**own: Any) -> Unlearner:
        arguments = {**recipe.arguments, **{k: v for k, v in own.items() if k in recipe.own}}
        rest = {k: v for k, v in own.items() if k in OPTIMIZER_OPTIONS or k not in recipe.own}
        arguments |= _optimizer({**options, **rest}, recipe.own, problem, recipe.steps)
        return change(recipe.row.factory(problem.model, **arguments))

    try:
        arrays = {name: np.asarray(each, np.float32) for name, each in numbers.items()}
        return sweep(make, **arrays), runner
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from error


class _Recipe(NamedTuple):
    """Options of a method, told apart.

    Attributes:
      own: keyword arguments that the factory takes.
      arguments: those given, and the facts that it asks for.
      runner: options of the runner.
      steps: that the method will do, or one that does steps would.
    """

    row: Method
    own: Mapping[str, inspect.Parameter]
    arguments: dict[str, Any]
    runner: dict[str, Any]
    steps: int


def _read(label: str, options: Mapping[str, Any], problem: Problem) -> _Recipe:
    """Checks a method's options and tells them apart; see :func:`build_method`."""
    name, key = options.get("method", label), f"methods.{label}"
    row, own = METHODS.find(name, key if "method" in options else "methods"), method_options(name)
    if row.kind != problem.kind.name:
        suitable = sorted(n for n, other in METHODS.items() if other.kind == problem.kind.name)
        raise ConfigError(
            f"{key}: expected one of {suitable} for the model {problem.config.model.name}, "
            f"got {name!r}"
        )
    if reason := unsuited(name, problem):
        raise ConfigError(f"{key}: expected a method that suits the request, got {name}: {reason}")
    allowed = {*RUNNER_OPTIONS, *own, *(OPTIMIZER_OPTIONS if "optimizer" in own else ())}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ConfigError(
            f"{key}: expected options among {', '.join(sorted(allowed))}, got {unknown}"
            f"{did_you_mean(unknown[0], allowed)}"
        )
    runner = _runner_options(label, options, problem)
    steps = runner.get("steps", math.ceil(problem.retained / runner["batch_size"]))
    arguments = {k: options[k] for k in options if k in own and k != "optimizer"}
    kinds = _kinds_of(row.factory)
    for argument, value in arguments.items():
        check_value(f"{key}.{argument}", value, kinds.get(argument, Any))
    facts = {
        "steps": steps,
        "class_names": problem.class_names,
        "request": "class" if forgets_class(problem.sets) else "items",
        **problem.facts,
    }
    arguments = {**{fact: facts[fact] for fact in row.takes if fact in facts}, **arguments}
    for count in arguments.get("ratio", ()):
        if type(count) is int and count > 0 and runner["batch_size"] % count:
            raise ConfigError(
                f"{key}.ratio: expected parts that divide the batch of "
                f"{runner['batch_size']}, got {count}"
            )
    return _Recipe(row, own, arguments, runner, steps)


def _kinds_of(factory: Any) -> dict[str, Any]:
    """Returns the annotations of a function, a partial one, or an object that is called."""
    while isinstance(factory, partial):
        factory = factory.func
    plain = inspect.isroutine(factory) or inspect.isclass(factory)
    return typing.get_type_hints(factory if plain else type(factory).__call__)


def _build_chain(label: str, options: Mapping[str, Any], problem: Problem) -> BuiltMethod:
    """Builds methods one after the other: ``{"chain": ({"method": ...}, {...})}``."""
    links, key = options["chain"], f"methods.{label}.chain"
    if set(options) != {"chain"}:
        extra = sorted(set(options) - {"chain"})
        raise ConfigError(f"methods.{label}: expected nothing beside chain, got {extra}")
    whole = isinstance(links, tuple | list) and len(links) > 0
    if not whole or not all(isinstance(one, Mapping) and "method" in one for one in links):
        raise ConfigError(f"{key}: expected options with a method for each link, got {links!r}")
    made = []
    for link in links:
        method, runner = build_method(f"{label}.chain", link, problem)
        assert isinstance(method, Unlearner)
        made.append((method, runner))
    return chain(*made), {}


def _optimizer(
    options: Mapping[str, Any], own: Mapping[str, inspect.Parameter], problem: Problem, steps: int
) -> dict[str, Any]:
    """Makes the optimizer that options ask for, if the method takes one; nothing leaves its own.

    A method that takes ``learning_rate`` is told that of the optimizer.
    """
    if "optimizer" not in own:
        return {}
    chosen = {key: options[key] for key in OPTIMIZER_OPTIONS if key in options}
    patterns = chosen.pop("only", None)
    required = own["optimizer"].default is inspect.Parameter.empty
    asked = chosen or patterns is not None or required
    if not asked and not problem.kind.trains_methods:
        return {}
    train = dataclasses.replace(problem.config.train, **{"schedule": "constant", **chosen})
    if is_known(train.learning_rate):  # else a member's number, see `build_swept`
        check_types(train)
    made = make_optimizer(train, steps)
    if patterns is not None:
        made = only(made, matching(*([patterns] if isinstance(patterns, str) else patterns)))
    rate = {"learning_rate": train.learning_rate} if "learning_rate" in own else {}
    return {"optimizer": made, **rate}


def _try(
    method: Unlearner, problem: Problem, runner: Mapping[str, Any], limits: Iterable[str]
) -> None:
    """Traces what a method makes of the model and the data; it refuses them before training.

    A step is traced only where the metrics that it reports are to end the run.
    """
    like = jax.eval_shape(problem.model.init, key_like())
    shown = visible_sets(method.needs, problem.sets)
    prepared = prepared_like(method, like, shown)
    key = key_like()
    state = jax.eval_shape(
        lambda *given: begin(method, given[0], alone(given[1]), *given[2:]),
        like, shown, key, prepared,
    )  # fmt: skip
    if not limits:
        return
    if method.step is None:
        raise ValueError(f"stop: expected none for a method without steps, got {list(limits)}")
    step = partial(advance, job=Job(method, runner["batch_size"]), length=1)
    rows = rows_like(shown, runner["batch_size"], 1)
    reported = jax.eval_shape(step, state, shown, key, 0, 1, rows)[1].metrics
    if missing := sorted(set(limits) - set(reported)):
        raise ValueError(f"stop: expected metrics among {sorted(reported)}, got {missing}")


def _runner_options(label: str, options: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    """Returns what of a method's options is the runner's."""
    runner = {"batch_size": options.get("batch_size", problem.config.train.batch_size)}
    runner |= {key: options[key] for key in ("steps", "chunk") if key in options}
    for key, value in runner.items():
        if type(value) is not int or value < 1:
            raise ConfigError(
                f"methods.{label}.{key}: expected a positive number, got {brief(value)}"
            )
        expect_at_most(MOST_INT, **{f"methods.{label}.{key}": value})
    if "stop" in options:
        check_value(f"methods.{label}.stop", options["stop"], Mapping[str, float])
        if problem.several:
            raise ConfigError(
                f"methods.{label}.stop: expected none where each class is forgotten, all with "
                "the same number of steps"
            )
        runner["stop"] = stop.within(**options["stop"])
    return runner
