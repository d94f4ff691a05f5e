"""Runs: an experiment from its configuration to a report, for one trial or several.

Data flows one way: config -> data -> request -> sets -> original -> retrained -> unlearned ->
metrics -> report.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import __version__, report
from jaxunlearn.config import Config
from jaxunlearn.core.errors import DataError, sentence
from jaxunlearn.core.files import is_writer, read_npz, write_text
from jaxunlearn.core.processes import agree, shared
from jaxunlearn.core.types import Subset
from jaxunlearn.data.streams import stored_shapes
from jaxunlearn.experiment.album import draw_album
from jaxunlearn.experiment.ensembles import asks_for_ensembles, judge_seeds
from jaxunlearn.experiment.erasure import Subject, describe_for_titles, write_records
from jaxunlearn.experiment.folder import drop_unfinished, hold_run, mend_run
from jaxunlearn.experiment.helpers import with_helpers
from jaxunlearn.experiment.pages import try_page
from jaxunlearn.experiment.plan import (
    Plan,
    groups,
    helper_stages,
    make_plan,
    stages_of,
    trials,
    write_plan,
)
from jaxunlearn.experiment.shared_programs import make_retrained, make_unlearned, shared_keepers
from jaxunlearn.experiment.stages import Keeper, check_stage
from jaxunlearn.experiment.trial import Listener, Record, Trial, home_of, is_fault_of_method
from jaxunlearn.kinds.evaluate import Comparison
from jaxunlearn.metrics.registry import METRICS
from jaxunlearn.metrics.table import Judged, compare, speedups, summarise
from jaxunlearn.report.text import count

__all__ = ["run"]


def run(
    config: Config,
    runs: str | Path = "runs",
    *,
    force: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Trains, unlearns, retrains and compares; the folder ``runs/config.name`` holds it all.

    With ``config.seeds`` above 1 each seed is a run of its own in the folder ``seed_<n>``
    therein, and the report is on all of them. With ``config.request.each`` each class is
    forgotten by itself, in the folder ``class_<k>``; the original is trained once. With
    ``config.request.in_turn`` the classes are forgotten one after another, in ``turn_<n>``.

    Args:
      config: the experiment.
      runs: folder of all runs.
      force: overwrite stages that were made with other settings.
      listener: see :data:`jaxunlearn.experiment.trial.Listener`.

    Returns:
      The report, as ``jaxunlearn.report`` describes it; also saved as JSON, Markdown and PNG,
      and with all that was drawn as a page, ``report.html``.
      Those on ``config.attacks`` lie in ``attacks/<name>`` below.
      Its ``models`` are the digests of the checkpoints that it was made of, by their place; its
      ``records`` the seals of the erasure records, see :mod:`jaxunlearn.experiment.erasure`.

    Raises:
      UserError: something the user gave is wrong, or another process works in the folder; see
        the message.
    """
    agree("run", {"force": force, **_settings()})
    plan = make_plan(config, Path(runs))
    agree("data", {"fingerprint": plan.data.fingerprint})
    stages = [
        stage
        for group in groups(plan)
        for place in (group, *(one for one in trials(group) if one is not group))
        for stage in (*stages_of(place).values(), *helper_stages(group).values())
    ]
    with hold_run(plan.folder):
        mend_run(plan.folder)
        kept = {Keeper(stage).path for stage in stages if not check_stage(stage, force)}
        kept |= {keeper.path for group in groups(plan) for keeper in shared_keepers(group)}
        drop_unfinished(plan.folder, kept)
        return _run(plan, force, listener)


def _settings() -> dict[str, Any]:
    """Returns what else processes of one program have to agree on: versions, how JAX computes."""
    names = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl")
    return {"jaxunlearn": __version__, "jax": jax.__version__} | {
        name: getattr(jax.config, name) for name in names
    }


def _run(plan: Plan, force: bool, listener: Listener | None) -> dict[str, Any]:
    # what a finished run left belongs together: it is replaced as a whole, by the next finished
    first = not (plan.folder / "report.json").exists()
    if first:
        write_plan(plan)
    tell = listener or (lambda name, progress: None)
    attacks = ("", *dict.fromkeys(plan.config.attacks))
    known = {attack: _known_examples(home_of(plan.folder, attack)) for attack in attacks}
    judged: dict[str, list[_Judged]] = {attack: [] for attack in attacks}
    drawn: list[Trial] = []
    seeds: list[Trial] = []
    notes: list[str] = []
    together = asks_for_ensembles(plan)
    for group in _fresh(plan):
        made = _make(group, force, tell, first)
        for trial in made:
            for attack in list(judged):
                try:
                    judged[attack].append(_judge(trial, made, known[attack], attack))
                    if together:
                        trial.keep(attack)
                except Exception as error:
                    if not attack or not is_fault_of_method(error):
                        raise
                    del judged[attack]  # the run itself is none the worse
                    notes.append(f"no table after {attack}: {sentence(error)}")
                if attack:
                    trial.let_go(attack)
            if together:
                seeds.append(trial)
            if drawn or trial is not made[0]:
                trial.let_go()
        drawn += made[: 1 - len(drawn)]  # of several trials the first is drawn
        for place in (group, *(t.plan for t in made if plan.config.request.in_turn)):
            if place.trial is not None:
                write_plan(place)
    ensembles = {a: judge_seeds(plan, seeds, known[a], a) for a in judged if seeds}
    usual, of_usual = judged.pop(""), ensembles.get("")
    reports = {
        attack: _save(plan, found, [], attack, ensembles.get(attack))
        for attack, found in judged.items()
    }
    if judged:
        places = ", ".join(f"attacks/{attack}" for attack in judged)
        notes.append(f"all models judged again after attacks: reports in {places} beside this one")
    write_plan(plan)
    reports[""] = _report(plan, usual, notes, "", of_usual)
    subjects = _subjects(usual, judged)
    sealed = shared(write_records(plan, subjects, reports) if is_writer() else {})
    table = _save(plan, usual, notes, together=of_usual, records=sealed)
    if of_usual:
        drawn[0].examples.update(of_usual.examples)
    # the report comes first: a picture that cannot be drawn costs only itself
    if failures := [note for trial in drawn for note in draw_album(trial)]:
        table = _save(plan, usual, notes + failures, together=of_usual, records=sealed)
    lines = "".join(f"{json.dumps(line)}\n" for line in _lines(usual))
    write_text(plan.folder / "metrics.jsonl", lines)
    try_page(plan.folder)
    return table


def _save(
    plan: Plan, judged: Sequence["_Judged"], notes: Sequence[str], attack: str = "",
    together: Comparison | None = None, records: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:  # fmt: skip
    """Writes the report on all trials, as they are or after an attack, and returns it."""
    table = _report(plan, judged, notes, attack, together)
    if not attack:
        table["records"] = dict(records)
    examples = {name: values for one in judged for name, values in one.examples.items()}
    examples |= together.examples if together else {}
    report.save(table, home_of(plan.folder, attack), examples=examples)
    return table


class _Judged(NamedTuple):
    """Outcome of one trial.

    Attributes:
      values: of all models, for the table.
      plan: of the trial.
      records: of every model.
      notes: what else is to be said of it.
      examples: values of each example by ``"<trial>/<model>/<metric>"``.
      models: digests of the checkpoints by stage.
      places: of the checkpoints, by stage.
    """

    values: Judged
    plan: Plan
    records: list[Record]
    notes: list[str]
    examples: dict[str, np.ndarray]
    models: dict[str, str]
    places: dict[str, Path]


def _subjects(usual: Sequence[_Judged], attacked: Mapping[str, Sequence[_Judged]]) -> list[Subject]:
    """Returns what the records of unlearned models are made of, trial by trial."""
    return [
        Subject(
            one.plan, one.values, {record["stage"]: record for record in one.records}, one.places,
            one.notes, {attack: found[number].values for attack, found in attacked.items()},
        )
        for number, one in enumerate(usual)
    ]  # fmt: skip


def _fresh(plan: Plan) -> Iterator[Plan]:
    """Yields the groups, each with functions of its own, so that compilation is timed cold."""
    for number, group in enumerate(groups(plan)):
        fresh = group
        if number:
            fresh = groups(make_plan(plan.config, plan.folder.parent, earlier=plan))[number]
        yield fresh


def _make(plan: Plan, force: bool, listener: Listener, first: bool) -> list[Trial]:
    """Makes all models of the trials that share an original."""
    plan = with_helpers(plan, force, _told(plan, listener))
    home = Trial(plan, force, _told(plan, listener))
    home.original()
    made: list[Trial] = []
    for one in trials(plan):
        before = made[-1] if made and plan.config.request.in_turn else None
        trial = home
        if one is not plan:
            trial = Trial(one, force, _told(one, listener), home, before)
            trial.original()
        made.append(trial)
        if plan.config.request.in_turn:
            if first:
                write_plan(one)
            for name in trial.stages:
                if name != "original":
                    trial.make(name)
    if not plan.config.request.in_turn:
        make_retrained(home, made)
        for label in plan.methods:
            make_unlearned(home, made, label)
    return made


def _told(plan: Plan, listener: Listener) -> Listener:
    """Returns a listener that is told a stage of one of several trials with the trial's folder."""
    if plan.trial is None:
        return listener
    return lambda name, progress: listener(f"{plan.folder.name}/{name}", progress)


def _judge(
    trial: Trial, group: Sequence[Trial], known: dict[str, np.ndarray], attack: str = ""
) -> _Judged:
    """Judges the models of one trial, after an attack if any, and sets them side by side."""
    plan, prefix = trial.plan, "" if trial.plan.trial is None else f"{trial.plan.folder.name}/"
    own = {k.removeprefix(prefix): v for k, v in known.items() if k.startswith(prefix)}
    found = trial.judge(own, attack)
    # of several classes the others shared a program, and its time; of each turn one is alone
    own_time = plan.trial is not None and plan.trial.kind == "turn"
    alone = min(
        (
            one.records[name]
            for one in ([trial] if own_time else group)
            for name in one.records
            if name.startswith("retrained")
        ),
        key=lambda record: record["sharing"],
    )
    failed: dict[str, dict[str, str]] = {}
    rows = {"original": found.values["original"]}
    for label in plan.methods:
        name = f"unlearned/{label}"
        if name in trial.failed:
            rows[label], failed[label] = {}, {"": trial.failed[name]}
        else:
            rows[label], failed[label] = found.values.get(name, {}), found.failed[name]
            if not attack:
                rows[label] |= speedups(alone["costs"], rows[label])
    retrained = [name for name in trial.records if name.startswith("retrained/")]
    failed |= {name: found.failed[name] for name in retrained if found.failed[name]}
    failed["original"] = found.failed["original"]
    failed["retrained"] = {k: v for name in retrained for k, v in found.failed[name].items()}
    costs = {} if attack else alone["costs"]
    stages = {"original": "original", **{label: f"unlearned/{label}" for label in plan.methods}}
    halves = {label: found.intervals.get(stage, {}) for label, stage in stages.items()}
    values = Judged(rows, [found.values[name] for name in retrained], costs, failed, halves)
    examples = {
        f"{prefix}{key}": value
        for key, value in (own | found.examples).items()
        if key.rpartition("/")[0] in trial.records and key.rpartition("/")[2] in METRICS
    }
    if not attack:
        trial.examples.update(own | found.examples)
    places = {name: trial.stages[name].path for name in found.models}
    return _Judged(
        values, plan, list(trial.records.values()), found.notes, examples, found.models, places
    )


def _known_examples(folder: Path) -> dict[str, np.ndarray]:
    """Reads values of each example that an earlier run left; damaged ones are measured anew."""
    path = folder / "examples.npz"
    try:
        return read_npz(path, None) if path.exists() else {}
    except DataError:
        return {}


def _lines(judged: Sequence[_Judged]) -> Iterator[dict[str, Any]]:
    """Yields the values of every model, without curves."""
    for one in judged:
        place = one.plan.trial
        which = {place.kind: place.number} if place else {}
        retrained = {f"retrained/{n}": values for n, values in enumerate(one.values.retrained)}
        for label, values in {**one.values.models, **retrained}.items():
            numbers = {n: v for n, v in values.items() if n in METRICS and not METRICS[n].along}
            failed = [name for name, value in numbers.items() if value != value]
            stage = label if label in one.models else f"unlearned/{label}"
            about = {"model": label, "digest": one.models.get(stage)}
            yield {**which, **about, **numbers, **dict.fromkeys(failed)}


def _report(
    plan: Plan, judged: Sequence[_Judged], more: Sequence[str], attack: str = "",
    together: Comparison | None = None,
) -> dict[str, Any]:  # fmt: skip
    config, values = plan.config, [one.values for one in judged]
    several = [one.plan.trial for one in judged if one.plan.trial is not None]
    notes = list(dict.fromkeys(note for one in judged for note in one.plan.left_out))
    for one in judged:
        place = one.plan.trial
        notes += [f"{place.kind} {place.number} {note}" if place else note for note in one.notes]
    versions = [record["versions"] for one in judged for record in one.records]
    if any(version != versions[0] for version in versions):
        notes.append("not all models were made with the same versions: see their records")
    title = f"{config.name}: {describe_for_titles(config)}"
    if attack:
        title += f", after {plan.kind.attacks[attack].label}"
    table = summarise(
        f"{title}, {count(several[0].kind, len(several))}" if several else title,
        values,
        trials=several,
        ensembles=together and Judged(together.models, [], None, together.failed),
        notes=notes + _notes(plan, judged, attack) + [*more],
        environment=versions[0],
        published={}
        if attack
        else compare(values, config.published.values, config.published.source),
    )
    models = {
        Path(os.path.relpath(one.places[name], home_of(plan.folder, attack))).as_posix(): digest
        for one in judged
        for name, digest in one.models.items()
    }
    return table | {"models": models}


def _notes(plan: Plan, judged: Sequence[_Judged], attack: str = "") -> list[str]:
    sizes = {name: _size(part) for name, part in plan.sets._asdict().items() if part is not None}
    config, leaves = plan.config, jax.tree.leaves(jax.eval_shape(plan.model.init, plan.key))
    assert plan.sets.forget is not None
    shapes = dict.fromkeys(
        str(list(leaf.shape[1:])) for leaf in stored_shapes(plan.sets.forget.examples.x).values()
    )
    place = judged[0].plan.trial
    each = f" for each {place.kind}" if place else ""
    notes = [
        f"{config.model.name}, {sum(leaf.size for leaf in leaves):,} parameters "
        f"({leaves[0].dtype}), inputs {', '.join(shapes)}, batches of "
        f"{config.train.batch_size}, {config.train.epochs:g} epochs",
        "examples: " + ", ".join(f"{name} {size}" for name, size in sizes.items()),
        f"retrained: mean of {config.retrained}{each}; "
        + ("" if attack else "time of the first, trained alone; ")
        + "floor: mean difference between two of them",
        *_statistics(plan),
    ]
    if attack:
        return [*notes, f"all models alike, the original and the retrained ones too: {attack}"]
    notes += [
        "memory: arguments, results and temporaries of a model's largest compiled program",
        *_shared(plan, judged),
    ]
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        # never falls in a process: it cannot be told apart by method, as the table's row can
        peak = stats["peak_bytes_in_use"] / 1e6
        notes.append(f"memory of the device at its peak, whole process: {peak:,.0f} MB")
    return notes


def _statistics(plan: Plan) -> list[str]:
    """Says what inputs are normalised by, where that is taken from the data."""
    if plan.retraining is plan.judged:
        return []
    return [
        "inputs: normalised by mean and standard deviation of the training split; of retrained "
        "models by those of what they retain, so that they know nothing of the rest"
    ]


def _size(part: Subset) -> str:
    """Returns how many examples; of several requests the smallest and the largest number."""
    sizes = sorted({int(size) for size in np.ravel(part.size)})
    return f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"


def _shared(plan: Plan, judged: Sequence[_Judged]) -> list[str]:
    """Says what is to be known of models that were made in one program, or in turn."""
    if plan.config.request.in_turn:
        return [
            "in turn: each method starts from its own model of the turn before; accuracy on forget "
            "is that on all classes forgotten so far, which the retrained models never saw"
        ]
    if len(plan.requests) < 2:
        return []
    records = [record for one in judged for record in one.records]
    shares = [r["sharing"] for r in records if r["stage"].startswith("unlearned/")]
    least, most = min(shares, default=1), max(shares, default=1)
    number = str(most) if least == most else f"{least} to {most}"
    return [
        f"time and time to compile of a method: those of one program for {number} classes, "
        "divided by their number, speed-ups against one model retrained alone, which shares with "
        "none; its memory: that of the whole program",
        "steps of retraining and of methods: as for a class of average size, "
        f"{plan.retained} examples retained",
    ]
