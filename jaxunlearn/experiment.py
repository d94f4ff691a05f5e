"""The whole run, in one direction, for one seed or several.

config -> data -> request -> sets -> original -> retrained -> unlearned -> metrics -> report
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxunlearn import report
from jaxunlearn.config import Config
from jaxunlearn.data.requests import describe
from jaxunlearn.data.sets import num_examples
from jaxunlearn.errors import DivergenceError
from jaxunlearn.execute import Progress
from jaxunlearn.metrics.published import compare
from jaxunlearn.metrics.table import CURVES, Judged, Trial, speedups, summarise
from jaxunlearn.plan import Plan, prepare, seeded, stages_of, write_plan
from jaxunlearn.stages import check_stage
from jaxunlearn.work import Listener, Work

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
    therein, and the report is on all of them.

    Args:
      config: the experiment.
      runs: folder of all runs.
      force: overwrite stages that were made with other settings.
      listener: see :data:`jaxunlearn.work.Listener`.

    Returns:
      The report, as ``summarise`` describes it; also saved as JSON, Markdown and PNG.

    Raises:
      UserError: something the user gave is wrong; see the message.
    """
    plan = prepare(config, Path(runs))
    seeds = list(range(config.seed, config.seed + config.seeds)) if config.seeds > 1 else []
    for one in [seeded(plan, seed) for seed in seeds] or [plan]:
        for stage in stages_of(one).values():
            check_stage(stage, force)
    write_plan(plan)
    trials = _trials(plan, seeds, listener or (lambda name, progress: None))
    done = [_trial(one, force, tell) for one, tell in trials]
    made = _report(plan, seeds, done)
    report.save(made, plan.folder)
    lines = "".join(f"{json.dumps(line)}\n" for line in _lines(seeds, done))
    (plan.folder / "metrics.jsonl").write_text(lines)
    return made


class _Done(NamedTuple):
    """What one seed came to.

    Attributes:
      judged: values of the original, the unlearned and the retrained models.
      diverged: a sentence for each method that failed.
      versions: of every model.
    """

    judged: Judged
    diverged: list[str]
    versions: list[dict[str, Any]]


def _trials(
    plan: Plan, seeds: Sequence[int], listener: Listener
) -> Iterator[tuple[Plan, Listener]]:
    """The plan of each seed, and whom to tell of its stages."""
    if not seeds:
        yield plan, listener
    for number, seed in enumerate(seeds):
        # made anew: the network's functions are then others, and compilation is timed cold
        fresh = prepare(plan.config, plan.folder.parent) if number else plan
        own = seeded(fresh, seed)
        write_plan(own)

        def tell(name: str, progress: Progress | None, home: str = own.folder.name) -> None:
            listener(f"{home}/{name}", progress)

        yield own, tell


def _trial(plan: Plan, force: bool, listener: Listener) -> _Done:
    """All models of one seed, made and judged."""
    work = Work(plan, force, listener)
    first = work.original()
    references = work.oracles()
    records, diverged = [first, *references], []
    rows = {"original": first["metrics"]}
    for label in plan.methods:
        try:
            record = work.method(label)
        except DivergenceError as error:
            # a method that fails is shown failing; the others' work is not lost
            diverged.append(f"diverged: {error}")
            rows[label] = {}
            continue
        records.append(record)
        own = record["metrics"]
        rows[label] = {**own, **speedups(references[0]["metrics"], own)}
    judged = Judged(rows, [one["metrics"] for one in references])
    return _Done(judged, diverged, [one["versions"] for one in records])


def _lines(seeds: Sequence[int], done: Sequence[_Done]) -> Iterator[dict[str, Any]]:
    """The values of every model, without curves."""
    for number, (models, oracles, _) in enumerate(one.judged for one in done):
        retrained = {f"retrained/{n}": values for n, values in enumerate(oracles)}
        for label, values in {**models, **retrained}.items():
            numbers = {name: value for name, value in values.items() if name not in CURVES}
            yield {**({"seed": seeds[number]} if seeds else {}), "model": label, **numbers}


def _report(plan: Plan, seeds: Sequence[int], done: Sequence[_Done]) -> dict[str, Any]:
    config, judged = plan.config, [one.judged for one in done]
    notes = []
    for number, one in enumerate(done):
        notes += [f"seed {seeds[number]} {note}" if seeds else note for note in one.diverged]
    versions = [version for one in done for version in one.versions]
    if any(version != versions[0] for version in versions):
        notes.append("not all models were made with the same versions: see their records")
    title = f"{config.name}: {describe(config.request)}"
    return summarise(
        f"{title}, {len(seeds)} seeds" if seeds else title,
        judged,
        trials=[Trial("seed", seed) for seed in seeds],
        notes=notes + _notes(plan),
        environment=versions[0],
        published=compare(judged, config.published.values, config.published.source),
    )


def _notes(plan: Plan) -> list[str]:
    sizes = {
        name: num_examples(part) for name, part in plan.sets._asdict().items() if part is not None
    }
    config, leaves = plan.config, jax.tree.leaves(jax.eval_shape(plan.model.init, plan.key))
    shape = list(plan.sets.forget.examples.x.shape[1:]) if plan.sets.forget else []
    each = " for each seed" if config.seeds > 1 else ""
    notes = [
        f"{config.model.name}, {sum(leaf.size for leaf in leaves):,} parameters "
        f"({leaves[0].dtype}), inputs {shape}, batches of {config.train.batch_size}, "
        f"{config.train.epochs:g} epochs",
        "examples: " + ", ".join(f"{name} {size}" for name, size in sizes.items()),
        f"retrained: mean of {config.oracles}{each}; time of the first, trained alone; "
        "floor: mean difference between two of them",
        "memory: arguments, results and temporaries of a model's largest compiled program",
    ]
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        # never falls in a process: it cannot be told apart by method, as the table's row can
        peak = stats["peak_bytes_in_use"] / 1e6
        notes.append(f"memory of the device at its peak, whole process: {peak:,.0f} MB")
    return notes
