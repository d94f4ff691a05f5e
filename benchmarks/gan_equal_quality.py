"""How much faster is unlearning a GAN than retraining one to the same quality?

    python benchmarks/gan_equal_quality.py digits_gan_class
    python benchmarks/gan_equal_quality.py mnist_gan_class data.dir=DIR model.options.width=16
    python benchmarks/gan_equal_quality.py digits_gan_class --runs FOLDER --methods cascade --json

Of a run, which is made where it is not there yet, a GAN is retrained once more by the same recipe
and the same key, and looked at on the way: at some steps, each ``--grow`` times the one before,
C-FID to the retained images is measured of its generator and of the moving average of it, and the
better of the two counts. It ends where it is as good as the best unlearned one. The time of a step
is the median over chunks of steps, so that neither looks nor what else the machine does now and
then counts. For each method its unlearning is timed again in this process, preparation included
and compilation apart, median of ``--repeats``:

* *equal quality*: time of the steps until the retrained GAN's C-FID is that of the unlearned one,
  or better, by the time that unlearning takes. ``>`` where it never was: all steps then count.
* *whole schedule*: the same for all steps of retraining.

A ratio says nothing of how well the class, or the images, are forgotten: the share of the class, or
the distance of the membership AUC from .5, stands beside.
"""

import argparse
import contextlib
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import jax
from peers.report import about, tell

import jaxunlearn as ju
from jaxunlearn import experiment
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.host import keep_memory
from jaxunlearn.engine.driver import Progress
from jaxunlearn.experiment.helpers import with_helpers
from jaxunlearn.experiment.plan import groups, make_plan
from jaxunlearn.experiment.trial import Trial
from jaxunlearn.metrics.registry import measure

FORGOTTEN = ("forget_share", "membership_gap")


class Look(NamedTuple):
    """Quality of a GAN that is being retrained.

    Attributes:
      step: steps so far.
      fid: the smaller C-FID of its generator and of the average.
    """

    step: int
    fid: float


class GoodEnough(Exception):
    """A retrained GAN is as good as any unlearned one."""


def opened(config: Any, runs: Path) -> Trial:
    """Returns the first trial of a run, all of whose models are there."""
    experiment.run(config, runs)
    group = groups(make_plan(config, runs))[0]
    quiet = lambda name, progress: None  # noqa: E731
    trial = Trial(with_helpers(group, False, quiet), False, quiet)
    for name in ("original", *(name for name in trial.stages if name != "original")):
        trial.original() if name == "original" else trial.make(name)
    return trial


def numbers(trial: Trial, variables: Any, names: list[str]) -> dict[str, float]:
    """Measures a GAN as the run does."""
    plan = trial.plan
    seen = plan.kind.observe(
        plan.model, variables, plan.judged, jax.random.key(plan.config.seed),
        settings=plan.settings, **plan.kind.aids(plan.config, plan.data, plan.helpers),
    )  # fmt: skip
    return measure(seen, trial.evidence("original"), [], names=names).values


def made_again(trial: Trial, name: str, **more: Any) -> Any:
    """Makes the model of a stage again."""
    task = trial.task(name)
    given = {"sharding": trial.plan.sharding, **task.options, **more}
    return ju.unlearn(task.method, task.start(), trial.sets_of(name), task.key, **given)


def retrained(trial: Trial, least: float, first: int, grow: float) -> tuple[list[Look], float, int]:
    """Retrains until C-FID is ``least`` or better; returns looks, seconds a step, and all steps."""
    looks: list[Look] = []
    chunks: list[float] = []
    method = trial.task("retrained/0").method
    due, before, total = first, (0, 0.0), 0

    def look(progress: Progress) -> None:
        nonlocal due, before, total
        chunks.append((progress.seconds - before[1]) / (progress.step - before[0]))
        before, total = (progress.step, progress.seconds), progress.steps
        if progress.step < due and progress.step < total:
            return
        made = jax.jit(method.result)(progress.state)
        both = (made, {**made, "ema": made["generator"]})
        fids = [numbers(trial, one, ["fid"]).get("fid", math.inf) for one in both]
        looks.append(Look(progress.step, min(fid for fid in fids if not math.isnan(fid))))
        due = math.ceil(progress.step * grow)
        if looks[-1].fid <= least:
            raise GoodEnough

    with contextlib.suppress(GoodEnough):
        made_again(trial, "retrained/0", on_chunk=look, chunk=min(first, 32))
    return looks, statistics.median(chunks), total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="a configuration of a GAN, and key=value")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs (runs)")
    parser.add_argument("--methods", nargs="+", help="of the run that are timed (all)")
    parser.add_argument("--first", type=int, default=32, help="step of the first look (32)")
    parser.add_argument("--grow", type=float, default=1.15, help="between two looks (1.15)")
    parser.add_argument("--repeats", type=int, default=3, help="of unlearning (3)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    options = parser.parse_args()
    keep_memory()  # as the commands do
    names = [word for word in options.words if "=" not in word]
    config = load_config(
        names[0] if names else "digits_gan_class", [w for w in options.words if "=" in w]
    )
    trial = opened(config, options.runs)
    wanted = options.methods or list(trial.plan.methods)
    stages = [f"unlearned/{label}" for label in wanted]
    found = {name: numbers(trial, trial.variables(name), ["fid", *FORGOTTEN]) for name in
             ("original", "retrained/0", *stages)}  # fmt: skip
    costs = {
        name: statistics.median(made_again(trial, name).seconds for _ in range(options.repeats))
        for name in stages
    }
    least = min(found[name]["fid"] for name in stages)
    looks, second, total = retrained(trial, least, options.first, options.grow)
    rows = []
    for name in stages:
        there = [one for one in looks if one.fid <= found[name]["fid"]]
        equal = there[0].step if there else total
        rows.append({
            "method": name.removeprefix("unlearned/"), **found[name], "seconds": costs[name],
            "reached": bool(there), "steps_to_equal": equal,
            "equal_quality": equal * second / costs[name],
            "whole_schedule": total * second / costs[name],
        })  # fmt: skip
    told = about(
        options=options, without=("words", "runs", "methods"), config=config.name,
        steps=total, milliseconds_a_step=round(1e3 * second, 2),
        original_fid=round(found["original"]["fid"], 3),
        retrained_fid=round(found["retrained/0"]["fid"], 3),
    )  # fmt: skip
    if not tell(told, options.json, rows=rows, looks=[one._asdict() for one in looks]):
        return
    extra = [name for name in FORGOTTEN if any(name in row for row in rows)]
    print("\n| method | C-FID | " + " | ".join(extra)
          + " | time | steps to equal quality | equal quality | whole schedule |")  # fmt: skip
    print("| :--- |" + " ---: |" * (len(extra) + 5))
    for row in rows:
        forgotten = " | ".join(f"{row.get(name, math.nan):.3f}" for name in extra)
        more = "" if row["reached"] else ">"
        print(
            f"| {row['method']} | {row['fid']:.2f} | {forgotten} | {row['seconds']:.2f} s "
            f"| {more}{row['steps_to_equal']} | {more}{row['equal_quality']:.1f}x "
            f"| {row['whole_schedule']:.1f}x |"
        )
    way = ", ".join(f"{one.step}: {one.fid:.2f}" for one in looks)
    print(f"\nretraining, step: C-FID  {way}")


if __name__ == "__main__":
    main()
