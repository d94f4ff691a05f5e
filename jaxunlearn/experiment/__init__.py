"""The whole run, in one direction, for one trial or several.

config -> data -> request -> sets -> original -> retrained -> unlearned -> metrics -> report
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import report
from jaxunlearn.config import Config
from jaxunlearn.core.errors import DivergenceError
from jaxunlearn.core.types import Subset
from jaxunlearn.data.requests import describe
from jaxunlearn.experiment.album import draw_album
from jaxunlearn.experiment.classifiers import classifier_stages, with_classifiers
from jaxunlearn.experiment.comparing import compare_images, notes_on_images
from jaxunlearn.experiment.plan import Plan, prepare, stages_of, write_plan
from jaxunlearn.experiment.stages import check_stage
from jaxunlearn.experiment.together import make_originals, make_retrained, make_unlearned
from jaxunlearn.experiment.trials import groups, trials
from jaxunlearn.experiment.work import Listener, Record, Work
from jaxunlearn.metrics.table import CURVES, Judged, Trial, compare, speedups, summarise
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
    forgotten by itself, in the folder ``class_<k>``; the original is trained once.

    Args:
      config: the experiment.
      runs: folder of all runs.
      force: overwrite stages that were made with other settings.
      listener: see :data:`jaxunlearn.experiment.work.Listener`.

    Returns:
      The report, as ``summarise`` describes it; also saved as JSON, Markdown and PNG.

    Raises:
      UserError: something the user gave is wrong; see the message.
    """
    plan = prepare(config, Path(runs))
    for group in groups(plan):
        for one in (group, *(one for one in trials(group) if one is not group)):
            for stage in (stages_of(one) | classifier_stages(one)).values():
                check_stage(stage, force)
    write_plan(plan)
    tell = listener or (lambda name, progress: None)
    done: list[_Done] = []
    sketches: list[Work] = []
    for group in _fresh(plan):
        trials_done, works = _group(group, force, tell)
        done += trials_done
        sketches += works[: 1 - len(sketches)]  # of several trials the first is drawn
    made = _report(plan, done, [note for work in sketches for note in draw_album(work)])
    report.save(made, plan.folder)
    lines = "".join(f"{json.dumps(line)}\n" for line in _lines(done))
    (plan.folder / "metrics.jsonl").write_text(lines)
    return made


class _Done(NamedTuple):
    """What one trial came to.

    Attributes:
      judged: values of the original, the unlearned and the retrained models.
      diverged: a sentence for each method that failed.
      records: of every model.
      trial: which one of several it is.
      notes: what else is to be said of it.
    """

    judged: Judged
    diverged: list[str]
    records: list[Record]
    trial: Trial | None
    notes: list[str]


def _fresh(plan: Plan) -> Iterator[Plan]:
    """The groups of trials, each with functions of its own, so that compilation is timed cold."""
    for number, group in enumerate(groups(plan)):
        fresh = groups(prepare(plan.config, plan.folder.parent))[number] if number else group
        if fresh.trial is not None:
            write_plan(fresh)
        yield fresh


def _group(plan: Plan, force: bool, listener: Listener) -> tuple[list[_Done], list[Work]]:
    """All models of the trials that share an original, made and judged."""
    plan = with_classifiers(plan, force, _told(plan, listener))
    plans = trials(plan)
    home = Work(plan, force, _told(plan, listener))
    works = [home if one is plan else Work(one, force, _told(one, listener)) for one in plans]
    originals = make_originals(home, works)
    retrained = make_retrained(home, works)
    unlearned = {label: make_unlearned(home, works, label) for label in plan.methods}
    for n, one in enumerate(works):
        records: dict[str, Record | DivergenceError] = {"original": originals[n]}
        records |= {f"retrained/{k}": record for k, record in enumerate(retrained[n])}
        records |= {f"unlearned/{k}": v[n] for k, v in unlearned.items()}
        for name, distance in compare_images(one).items():
            record = records[name]
            if not isinstance(record, DivergenceError):
                record["metrics"]["ret_fid"] = distance
    # the others shared a program, and its time
    alone = min(itertools.chain(*retrained), key=lambda record: record.get("together", 1))
    made = [
        _trial(works[n], originals[n], retrained[n], {k: v[n] for k, v in unlearned.items()}, alone)
        for n in range(len(works))
    ]
    return made, works


def _told(plan: Plan, listener: Listener) -> Listener:
    """A stage of one of several trials is told with the trial's folder."""
    if plan.trial is None:
        return listener
    return lambda name, progress: listener(f"{plan.folder.name}/{name}", progress)


def _trial(
    work: Work,
    original: Record,
    retrained: Sequence[Record],
    unlearned: Mapping[str, Record | DivergenceError],
    alone: Record,
) -> _Done:
    """The models of one trial side by side."""
    records, diverged = [original, *retrained], []
    rows = {"original": original["metrics"]}
    for label, record in unlearned.items():
        if isinstance(record, DivergenceError):
            # a method that fails is shown failing; the others' work is not lost
            diverged.append(f"diverged: {record}")
            rows[label] = {}
            continue
        records.append(record)
        own = record["metrics"]
        rows[label] = {**own, **speedups(alone["metrics"], own)}
    judged = Judged(rows, [one["metrics"] for one in retrained], alone["metrics"])
    return _Done(judged, diverged, records, work.plan.trial, notes_on_images(work, original))


def _lines(done: Sequence[_Done]) -> Iterator[dict[str, Any]]:
    """The values of every model, without curves."""
    for one in done:
        which = {one.trial.kind: one.trial.number} if one.trial else {}
        retrained = {f"retrained/{n}": values for n, values in enumerate(one.judged.oracles)}
        for label, values in {**one.judged.models, **retrained}.items():
            numbers = {name: value for name, value in values.items() if name not in CURVES}
            yield {**which, "model": label, **numbers}


def _report(plan: Plan, done: Sequence[_Done], more: Sequence[str]) -> dict[str, Any]:
    config, judged = plan.config, [one.judged for one in done]
    several = [one.trial for one in done if one.trial is not None]
    notes = []
    for one in done:
        which = f"{one.trial.kind} {one.trial.number} " if one.trial else ""
        notes += [f"{which}{note}" for note in [*one.diverged, *one.notes]]
    versions = [record["versions"] for one in done for record in one.records]
    if any(version != versions[0] for version in versions):
        notes.append("not all models were made with the same versions: see their records")
    title = f"{config.name}: {describe(config.request)}"
    return summarise(
        f"{title}, {count(several[0].kind, len(several))}" if several else title,
        judged,
        trials=several,
        notes=notes + _notes(plan, done) + [*more],
        environment=versions[0],
        published=compare(judged, config.published.values, config.published.source),
    )


def _notes(plan: Plan, done: Sequence[_Done]) -> list[str]:
    sizes = {name: _size(part) for name, part in plan.sets._asdict().items() if part is not None}
    config, leaves = plan.config, jax.tree.leaves(jax.eval_shape(plan.model.init, plan.key))
    shape = list(plan.sets.forget.examples.x.shape[1:]) if plan.sets.forget else []
    each = f" for each {done[0].trial.kind}" if done[0].trial else ""
    notes = [
        f"{config.model.name}, {sum(leaf.size for leaf in leaves):,} parameters "
        f"({leaves[0].dtype}), inputs {shape}, batches of {config.train.batch_size}, "
        f"{config.train.epochs:g} epochs",
        "examples: " + ", ".join(f"{name} {size}" for name, size in sizes.items()),
        f"retrained: mean of {config.oracles}{each}; time of the first, trained alone; "
        "floor: mean difference between two of them",
        "memory: arguments, results and temporaries of a model's largest compiled program",
        *_shared(plan, done),
    ]
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        # never falls in a process: it cannot be told apart by method, as the table's row can
        peak = stats["peak_bytes_in_use"] / 1e6
        notes.append(f"memory of the device at its peak, whole process: {peak:,.0f} MB")
    return notes


def _size(part: Subset) -> str:
    """How many examples; of several requests the smallest and the largest number."""
    sizes = sorted({int(size) for size in np.ravel(part.size)})
    return f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"


def _shared(plan: Plan, done: Sequence[_Done]) -> list[str]:
    """What is to be known of models that were made in one program."""
    if len(plan.requests) < 2:
        return []
    records = [record for one in done for record in one.records]
    shares = [r["together"] for r in records if r["stage"].startswith("unlearned/")]
    least, most = min(shares, default=1), max(shares, default=1)
    number = str(most) if least == most else f"{least} to {most}"
    return [
        f"time and time to compile of a method: those of one program for {number} classes, "
        "divided by their number, speed-ups against one model retrained alone, which shares with "
        "none; its memory: that of the whole program",
        "steps of retraining and of methods: as for a class of average size, "
        f"{plan.retained} examples retained",
    ]
