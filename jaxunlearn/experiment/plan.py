"""Plan of a run: all that is known before any training."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import checkpoint
from jaxunlearn.config import SEEDS, Config, Request, section, to_dict
from jaxunlearn.config.overrides import MOST_INT, check_types, check_value
from jaxunlearn.core.errors import ConfigError, brief, expect_at_most, printable
from jaxunlearn.core.files import most_bytes, write_npz, write_text
from jaxunlearn.core.keys import key_like, new_key
from jaxunlearn.core.trees import to_device
from jaxunlearn.core.types import Key, Sets, Unlearner
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.data.requests import resolve, separate
from jaxunlearn.data.sets import (
    divide,
    normalise_by_retained,
    num_examples,
    positions,
    request,
    stratified_mask,
)
from jaxunlearn.data.sources import load_dataset
from jaxunlearn.data.streams import Stream
from jaxunlearn.engine import Chain
from jaxunlearn.engine.sharding import Sharding, check_divides, make_sharding
from jaxunlearn.experiment.folder import check_not_purged
from jaxunlearn.experiment.methods import Problem, build_methods
from jaxunlearn.experiment.stages import UNFINISHED, Stage
from jaxunlearn.gan import Guide
from jaxunlearn.kinds import KINDS, Helper, Kind, load_sections
from jaxunlearn.metrics.registry import applying, check_asked
from jaxunlearn.metrics.table import Place, heads
from jaxunlearn.models import NETWORKS
from jaxunlearn.training.optimizers import make_augment, make_optimizer


class Plan(NamedTuple):
    """Plan of a run, or of one of its trials.

    Attributes:
      kind: of the models, with the ``settings`` of its section.
      data: as the kind of models reads them, on the device once for all trials.
      requests: one, or one for each class.
      sets: of the request; stacked, where there are several.
      judged: the sets that models are judged on: those of ``sets``, but where requests are met
        one after another, all that was forgotten so far.
      retraining: the same as retrained models read them, to be trained and judged on: normalised
        by what they retain alone, so that they know nothing of the rest.
      retained: so many examples are an epoch of retraining and the steps of a method that
        was given none: the retain set's, and those without a class of average size where
        each class is forgotten by itself, since one program does as many steps for all.
      held: which images of the test split no training saw.
      besides: what is to be trained besides, by name.
      helpers: the same, trained; of shapes instead of arrays as long as it is not.
      methods: label -> (unlearner, options of the runner).
      options: label -> what the configuration says of the method.
      left_out: sentences on methods that do not suit the request.
      identity: JSON; what every stage depends on.
      trial: which one of several this is.
    """

    config: Config
    folder: Path
    kind: Kind
    settings: Any
    model: Any
    data: Dataset
    requests: tuple[Request, ...]
    sets: Sets
    judged: Sets
    retraining: Sets
    retained: int
    held: np.ndarray
    sharding: Sharding | None
    besides: Mapping[str, Helper]
    helpers: Mapping[str, Guide]
    methods: Mapping[str, tuple[Unlearner | Chain, dict[str, Any]]]
    options: Mapping[str, Mapping[str, Any]]
    left_out: tuple[str, ...]
    identity: Mapping[str, Any]
    key: Key
    trial: Place | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Returns the names of the labels."""
        return self.data.class_names


def make_plan(
    config: Config,
    runs: Path,
    data: Dataset | None = None,
    *,
    earlier: Plan | None = None,
    outlined: Sharding | None = None,
) -> Plan:
    """Loads the data and builds the network and the methods; reports what is wrong.

    Args:
      data: as they were loaded before.
      earlier: plan with this configuration, whose data are taken.
      outlined: mesh, perhaps of other machines, that a run is to be told of and not begun for:
        files of checkpoints need not be there, nor is this machine's memory asked.
    """
    check_value("kinds", config.kinds, Mapping[str, Any])
    load_sections(config.kinds)
    if isinstance(config.request, Request):  # numbers of any type are taken
        config = dataclasses.replace(config, request=resolve(config.request))
    check_types(config)
    kind = KINDS[NETWORKS.find(config.model.name, "model.name").kind].kind
    settings = section(config, kind.name) if kind.section else None
    _check_values(config)
    if outlined is None:
        check_not_purged(runs / config.name)  # before the data, which may be gone as well
    check_asked(config.metrics)
    applying(kind.evidence)  # finds a metric of another package that cannot be imported
    kind.check_settings(settings)
    kind.check_attacks(config.attacks)
    sharding = outlined or make_sharding(config.mesh, config.sharding_rules)
    if earlier is None:
        loaded = load_dataset(config.data) if data is None else data
        # recorded in numbers, however it was given; texts are told apart before they are tokens
        asked = resolve(config.request, loaded.class_names, len(loaded.train_y), loaded.train_x)
        config = dataclasses.replace(config, request=asked)
        read = (kind.read if outlined is None else kind.outline)(loaded, settings)
        # by statistics of the whole training split, not by constants of the kind
        by_split = read.mean is not None and read.mean is loaded.mean
        by_split &= not isinstance(loaded.train_x, Stream)  # which takes no statistics
        data = _on_device(read)
    else:
        data, by_split = earlier.data, earlier.retraining is not earlier.sets
    num_classes = len(data.class_names)
    held = stratified_mask(data.test_y, config.data.unseen, config.data.seed)
    requests = separate(config.request, num_classes)
    in_turn = config.request.in_turn
    # of requests in turn, each trial has sets of its own: here those of the first
    sets = divide(data, held, requests[:1] if in_turn else requests)
    retained = num_examples(sets.retain)
    if config.request.each:
        # of all classes, not of those asked for: so no class depends on which others are
        retained = round(len(data.train_y) * (1 - 1 / num_classes))
    kind.check_sets(sets)
    assert sets.forget is not None
    x = inputs_like(sets.forget, 2)
    jax.eval_shape(make_augment(config.train.augment), x, key_like())
    model = kind.build(config.model, x, data, settings)
    check_divides(jax.eval_shape(model.init, key_like()), sharding)
    _, steps = kind.recipe(model, config.train, retained, settings)
    expect_at_most(MOST_INT, **{"train.epochs: steps": steps})
    if outlined is None:
        _check_memory(config, model, x)
    besides = kind.helpers(settings, x, data)
    helpers = {
        name: Guide(one.model, jax.eval_shape(one.model.init, key_like()))
        for name, one in besides.items()
    }
    plan = Plan(
        config=config,
        folder=runs / config.name,
        kind=kind,
        settings=settings,
        model=model,
        data=data,
        requests=tuple(requests),
        sets=sets,
        judged=sets,
        retraining=normalise_by_retained(sets) if by_split else sets,
        retained=retained,
        held=held,
        sharding=sharding if sharding.mesh.size > 1 else None,
        besides=besides,
        helpers=helpers,
        methods={},
        options={},
        left_out=(),
        identity=_identity(config, kind, data, requests),
        key=new_key(config.seed),
    )
    return with_methods(plan, helpers)


def _on_device(data: Dataset) -> Dataset:
    """Returns a data set whose training split lies on the device, once for all trials."""
    x, y = jax.tree.map(to_device, (data.train_x, data.train_y))
    return data._replace(train_x=x, train_y=y)


def with_methods(plan: Plan, helpers: Mapping[str, Guide]) -> Plan:
    """Returns the plan with its methods, which helpers may lead."""
    problem = Problem(
        config=plan.config,
        kind=plan.kind,
        model=plan.model,
        sets=request(plan.sets, 0),
        retained=plan.retained,
        class_names=plan.class_names,
        several=len(plan.requests) > 1 and not plan.config.request.in_turn,
        facts=plan.kind.facts(plan.data, helpers),
    )
    methods, options, left_out = build_methods(problem)
    return plan._replace(helpers=helpers, methods=methods, options=options, left_out=left_out)


def groups(plan: Plan) -> list[Plan]:
    """Lists the plans that have an original of their own: those of the seeds, or the whole."""
    first, count = plan.config.seed, plan.config.seeds
    return [_seeded(plan, seed) for seed in range(first, first + count)] if count > 1 else [plan]


def trials(group: Plan) -> list[Plan]:
    """Lists the plans of the requests that share an original: those of the classes, or the one."""
    if len(group.requests) == 1:
        return [group]
    numbers = range(len(group.requests))
    if not group.config.request.in_turn:
        return [_class(group, number) for number in numbers]
    turns = [_turn(group, number) for number in numbers]
    # each starts from the models of the one before: the methods that suit all of them
    shared = [label for label in turns[0].methods if all(label in one.methods for one in turns)]
    left_out = tuple(dict.fromkeys(note for one in turns for note in one.left_out))
    if not shared:
        raise ConfigError(
            "methods: expected one that suits every request, got none: " + "; ".join(left_out)
        )
    return [
        one._replace(methods={label: one.methods[label] for label in shared}, left_out=left_out)
        for one in turns
    ]


def _seeded(plan: Plan, seed: int) -> Plan:
    """Returns the plan of a run with this seed alone, in a folder of its own."""
    return plan._replace(
        config=dataclasses.replace(plan.config, seed=seed, seeds=1),
        folder=plan.folder / f"seed_{seed}",
        identity={**plan.identity, "seed": seed},
        key=new_key(seed),
        trial=Place("seed", seed),
    )


def _class(plan: Plan, number: int) -> Plan:
    """Returns the plan that forgets this class alone, in a folder of its own; keys are the same."""
    asked = plan.requests[number]
    label = int(asked.classes[0])
    own = request(plan.sets, number)
    return plan._replace(
        config=dataclasses.replace(plan.config, request=asked),
        folder=plan.folder / f"class_{label}",
        requests=(asked,),
        sets=own,
        judged=own,
        retraining=own if plan.retraining is plan.sets else request(plan.retraining, number),
        identity={**plan.identity, **_identify(asked)},
        trial=Place("class", label, plan.class_names[label]),
    )


def _turn(plan: Plan, number: int) -> Plan:
    """Returns the plan of one request after others, in a folder of its own.

    A method forgets the new class; models are judged on all classes that are to be forgotten so
    far, and retrained ones see none of these.
    """
    asked = plan.requests[number]
    so_far = tuple(label for one in plan.requests[: number + 1] for label in one.classes)
    judged = divide(plan.data, plan.held, [Request(classes=so_far)])
    alone = divide(plan.data, plan.held, [asked])
    # what was to be forgotten before is gone: neither forgotten again nor retained
    own = alone._replace(retain=judged.retain, holdout=judged.holdout)
    made = plan._replace(
        config=dataclasses.replace(plan.config, request=asked),
        folder=plan.folder / f"turn_{number}",
        requests=(asked,),
        sets=own,
        judged=judged,
        retraining=judged if plan.retraining is plan.sets else normalise_by_retained(judged),
        retained=num_examples(judged.retain),
        identity={**plan.identity, **_identify(asked), "after": list(so_far[:-1])},
        trial=Place("turn", number, f"after {number} others" if number else "first"),
    )
    return with_methods(made, plan.helpers)


def _identity(config: Config, kind: Kind, data: Dataset, requests: list[Request]) -> dict[str, Any]:
    """Returns what every model of a run depends on."""
    whole = to_dict(config)
    identity = {name: whole[name] for name in ("seed", "data", "model", "train")}
    if kind.section is not None:
        identity[kind.name] = to_dict(section(config, kind.name))
    # where the same bytes lie, and who reads them, does not matter
    for place in ("dir", "cache", "stream", "workers"):
        identity["data"].pop(place)
    identity["fingerprint"] = data.fingerprint
    identity["jaxunlearn"] = checkpoint.versions()["jaxunlearn"]
    if len(requests) == 1:  # of many, an original belongs to none
        identity |= _identify(requests[0])
    return identity


def _identify(asked: Request) -> dict[str, Any]:
    """Returns what a model depends on that was made for a single request."""
    found = to_dict(asked)
    for other in ("each", "in_turn", "words", "pairs"):  # the last are positions, too
        found.pop(other)
    return {"request": found}


def _check_values(config: Config) -> None:
    """Checks what types cannot say."""
    if config.seed + config.seeds > SEEDS:
        raise ConfigError(
            f"seeds: expected seeds below {SEEDS:,}, got seed {config.seed} and {config.seeds - 1} "
            "after it"
        )
    if config.seeds > 1 and (config.request.each or config.request.in_turn):
        word = "each" if config.request.each else "in_turn"
        raise ConfigError(f"seeds: expected 1 beside request.{word}, got {config.seeds}")
    for label, given in config.published.values.items():
        if unknown := sorted(set(given) - set(heads())):
            raise ConfigError(
                f"published.values.{label}: expected metrics among {', '.join(heads())}, "
                f"got {unknown}"
            )
    if not _is_folder_name(config.name):
        raise ConfigError(f"name: expected the name of one folder, got {brief(config.name)}")
    for label in config.methods:
        # what lies beside models while they are made has names with a dot before or an ending
        own = label in ("original", "retrained") or label.endswith(UNFINISHED) or label[:1] == "."
        if own or not _is_folder_name(label):
            raise ConfigError(
                "methods: expected labels fit for a folder, other than original and retrained, "
                f"without a dot before them or {UNFINISHED} behind, got {brief(label)}"
            )
    make_optimizer(config.train, 1)
    make_augment(config.train.augment)


def _check_memory(config: Config, model: Any, x: Any) -> None:
    """Checks that the parameters and a batch fit into the memory of this machine."""
    sizes = (
        ("model.options", "parameters", jax.eval_shape(model.init, key_like()), 1.0),
        ("train.batch_size", "a batch", x, config.train.batch_size / 2),
    )
    for key, what, tree, times in sizes:
        found = times * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        if found > most_bytes():
            raise ConfigError(
                f"{key}: expected {what} of at most {most_bytes():,} bytes, the memory of this "
                f"machine, got {found:,.0f}"
            )


def _is_folder_name(text: str) -> bool:
    # room is left for what is written beside it
    short = len(os.fsencode(text)) <= 200 if printable(text) == text else False
    return short and "\n" not in text and text not in ("", ".", "..") and Path(text).name == text


def stages_of(plan: Plan) -> dict[str, Stage]:
    """Lists every stage by name, with what it depends on; of several requests the original.

    The helpers of a run are stages too, ``helpers/judge``: they depend on no request.
    """
    own: dict[str, Mapping[str, Any]] = {"original": {}}
    if len(plan.requests) == 1:
        usual = plan.retained == num_examples(plan.judged.retain)
        more: dict[str, Any] = {} if usual else {"retained": plan.retained}
        more |= {} if plan.retraining is plan.judged else {"statistics": "retained"}
        for number in range(plan.config.retrained):
            own[f"retrained/{number}"] = {"retrained": number, **more}
        for label, (_, runner) in plan.methods.items():
            asked = {key: value for key, value in runner.items() if key != "stop"}
            own[f"unlearned/{label}"] = {"method": label, **plan.options[label], **asked}
    return {
        name: Stage(plan.folder / name, {**plan.identity, "own": inputs})
        for name, inputs in own.items()
    }


def helper_stages(plan: Plan) -> dict[str, Stage]:
    """Lists the stage of each helper by its name; they depend on no request."""
    about = {name: plan.identity[name] for name in ("seed", "data", "fingerprint", "jaxunlearn")}
    return {
        name: Stage(
            plan.folder / "helpers" / name,
            {
                **about,
                "own": {"helper": name, "model": to_dict(one.config), "train": to_dict(one.train)},
            },
        )
        for name, one in plan.besides.items()
    }


def write_plan(plan: Plan) -> None:
    """Writes the resolved configuration, and the requests as positions in the official splits."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_dict(plan.config), indent=2, sort_keys=True)
    write_text(plan.folder / "config.json", text + "\n")
    plan.kind.keep(plan.folder, plan.model, plan.data)
    parts: dict[str, np.ndarray] = {}
    several = len(plan.requests) > 1
    # of requests in turn the sets of each lie in its own folder
    for number, one in enumerate(() if plan.config.request.in_turn else plan.requests):
        home = f"class_{one.classes[0]}/" if several else ""
        found = positions(request(plan.sets, number), plan.held)
        parts |= {home + name: where for name, where in found.items()}
    write_npz(plan.folder / "sets.npz", parts)
