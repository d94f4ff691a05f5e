"""Tuning under an equal budget: every method tries as many settings with as many steps.

On one seed that no table reports, all settings of a method in one program; what counts is the gap
to retrained models on examples that neither training nor the tables see.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich import box
from rich.table import Table
from threadpoolctl import threadpool_limits

from jaxunlearn import checkpoint
from jaxunlearn.config import BenchConfig, Request
from jaxunlearn.core.errors import ConfigError, UserError, sentence
from jaxunlearn.core.files import write_text
from jaxunlearn.core.keys import Purpose, derive, new_key
from jaxunlearn.core.trees import member
from jaxunlearn.data.requests import describe
from jaxunlearn.data.sets import stack_sets
from jaxunlearn.engine import unlearn_many
from jaxunlearn.experiment.bench import Bench, lenient, needed_sets, read_json, shown_sets
from jaxunlearn.experiment.bench_judging import GAP, Judge
from jaxunlearn.experiment.bench_report import floor_of, gap_to
from jaxunlearn.experiment.folder import hold_run
from jaxunlearn.experiment.methods import build_swept
from jaxunlearn.experiment.trial import Listener, is_fault_of_method
from jaxunlearn.methods import METHODS, method_options

RATES = (1e-5, 1e-1)
"""Learning rates that are tried, at both ends."""
COLLAPSED, OFTEN = 0.5, 0.25
"""A setting collapses that keeps less than this share of the original's accuracy on held-out
examples; of a method where so many do, the preset says it."""


def tune_bench(
    config: BenchConfig,
    runs: str | Path = "runs",
    *,
    presets: str | Path | None = None,
    command: str = "",
    force: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Chooses options of every method by the gap to retrained models, and saves them as presets.

    What is swept: the learning rate where a method has an optimizer, and what its row names in
    ``tune``. All methods get as many settings (``config.draws``) of as many steps, and the same
    original and retrained models; of the requests the first by class and the first of items.

    Args:
      presets: the file to write; default ``runs/base.name/presets.json``, which the bench reads.
      command: is noted beside the values.
      force: tunes again what the file holds.
      listener: see :func:`jaxunlearn.run`.

    Returns:
      What is in the file: ``command``, ``seed``, ``draws``, ``methods``; of each ``options`` by
      kind of request, the ``score`` of these, that of the untouched ``original``, the ``floor``
      of two retrained models, and ``notes``.

    Raises:
      ConfigError: the tuning seed is among those that are reported, or nothing held out.
    """
    first = config.base.seed
    if config.tuning_seed in range(first, first + config.base.seeds):
        raise ConfigError(
            f"tuning_seed: expected one that is not reported, other than {first} to "
            f"{first + config.base.seeds - 1}, got {config.tuning_seed}"
        )
    if config.base.data.unseen < 1:
        raise ConfigError("data.unseen: expected held-out examples to tune by, got 0")
    file = presets_file(config, runs, presets)
    tell = listener or (lambda name, progress: None)
    plain = dataclasses.replace(config, requests=_two_kinds(config), preset=None)
    with hold_run(Path(runs) / config.base.name), threadpool_limits(1):
        bench = Bench(plain, Path(runs), force, tell, [config.tuning_seed], part="tuning")
        bench.presets = {}
        tuning = _Tuning(bench)
        found = {} if force else read_json(file)
        about = tuning.about()
        if {k: found.get(k) for k in about} != about:
            found = {**about, "methods": {}}
        for label in bench.options:
            if label in found["methods"]:
                tell(f"tuning/{label}", None)
                continue
            entry = tuning.tune(label)
            if entry:
                found = {**found, "command": command, "versions": checkpoint.versions()}
                found["methods"] = {**found["methods"], label: entry}
                write_text(file, json.dumps(found, indent=2) + "\n")
    return found


def presets_file(config: BenchConfig, runs: str | Path, presets: str | Path | None) -> Path:
    """Returns the file of tuned options: the one named, or that of the run."""
    return Path(runs) / config.base.name / "presets.json" if presets is None else Path(presets)


def to_table(found: Mapping[str, Any]) -> Table:
    """Returns tuned options as a table for the terminal."""
    title = f"tuned on seed {found['seed']}, {found['draws']} settings of each method"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("method", "request", "options", "gap", "original", "floor"):
        table.add_column(head, justify="left" if head in ("method", "options") else "right")
    for label, entry in found["methods"].items():
        if "failed" in entry:
            table.add_row(label, "", f"failed: {entry['failed']}", "-", "-", "-")
        for kind, options in entry["options"].items():
            text = ", ".join(f"{name} {value:.3g}" for name, value in options.items())
            numbers = (entry[name].get(kind) for name in ("score", "original", "floor"))
            shown = ("-" if value is None else f"{value:.3f}" for value in numbers)
            table.add_row(label, kind, text, *shown)
    return table


def _two_kinds(config: BenchConfig) -> dict[str, Any]:
    """Returns the first request by class and the first of random examples."""
    found: dict[str, Any] = {}
    for name, asked in config.requests.items():
        single = isinstance(asked, Request) and not asked.each and not asked.in_turn
        if single:
            kind = "class" if asked.classes else "items"  # type: ignore[union-attr]
            if kind not in [one[0] for one in found.values()]:
                found[name] = (kind, asked)
    if not found:
        raise ConfigError("requests: expected a single one to tune by, got none")
    return {name: asked for name, (_, asked) in found.items()}


class _Tuning:
    """Tuning of the methods of a bench of one seed."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.judge = Judge(
            bench.plan.model, bench.cases, bench.seeds, bench.originals, bench.retrained,
            GAP, held_out=True,
        )  # fmt: skip
        self.retrained = {c: own[0] for c, own in self.judge.retrained().items()}
        self.original = {c: own[0] for c, own in self.judge.originals().items()}

    def about(self) -> dict[str, Any]:
        """Returns what all values depend on."""
        bench = self.bench
        return {
            "data": bench.plan.identity["fingerprint"],
            "seed": bench.seeds[0],
            "draws": bench.config.draws,
            "steps": bench.steps,
            "retrained": bench.config.base.retrained,
            "requests": [describe(case.request) for case in bench.cases],
        }

    def tune(self, label: str) -> dict[str, Any]:
        """Tries settings of one method; returns nothing where it has none, or suits nowhere."""
        bench, options = self.bench, self.bench.options[label]
        name = options.get("method", label)
        if "chain" in options:
            return {}
        ranges = _ranges(name, options)
        cases = bench.suited(label)
        if not ranges or not cases:
            return {}
        drawn = draw_settings(ranges, bench.config.draws, bench.seeds[0])
        entry: dict[str, Any] = {"options": {}, "score": {}, "original": {}, "floor": {}}
        notes: list[str] = []
        for own in bench.groups(label, cases):
            try:
                self._try(label, own, drawn, entry, notes)
            # whatever a method raises, which may be another package's
            except Exception as error:
                if not is_fault_of_method(error):
                    raise
                known = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                entry["failed"] = f"{known}{sentence(error)}"
        entry["tried"] = {key: list(ends) for key, ends in ranges.items()}
        return {**entry, **({"notes": notes} if notes else {})}

    def _try(
        self, label: str, cases: Sequence[int], drawn: Mapping[str, np.ndarray],
        entry: dict[str, Any], notes: list[str],
    ) -> None:  # fmt: skip
        """Tries all settings of each request in one program; enters the best."""
        bench, count = self.bench, self.bench.config.draws
        numbers = {key: [*values] * len(cases) for key, values in drawn.items()}
        problem = bench.problem(bench.cases[cases[0]])
        swept, runner = build_swept(label, bench.options[label], problem, numbers, lenient)
        needs = needed_sets(swept)
        parts = [shown_sets(bench.cases[c].sets, needs) for c in cases for _ in range(count)]
        key = derive(new_key(bench.seeds[0]), Purpose.METHOD)
        made = unlearn_many(
            swept, member(bench.originals, 0), stack_sets(parts), jnp.stack([key] * len(parts)),
            at_a_time=bench.config.base.at_a_time,
            on_chunk=partial(bench.tell, f"tuning/{label}"),
            **{k: v for k, v in runner.items() if k != "stop"},
        )  # fmt: skip
        variables = made.variables["made"]
        steps = {"steps": runner["steps"]} if "steps" in runner else {}
        for place, c in enumerate(cases):
            kind, theirs = bench.cases[c].kind, self.retrained[c]
            values = [
                self.judge.unlearned(member(variables, place * count + n), c, 0)
                for n in range(count)
            ]
            scores = [gap_to(one, theirs, GAP) for one in values]
            best = choose(scores)
            if best is None:
                notes.append(f"{kind}: no setting leaves a model that is finite")
                continue
            entry["options"][kind] = {key: float(drawn[key][best]) for key in drawn} | steps
            entry["score"][kind] = scores[best]
            floor = floor_of(theirs, GAP)
            entry["floor"] |= {kind: floor} if math.isfinite(floor) else {}
            entry["original"][kind] = gap_to(self.original[c], theirs, GAP)
            notes += _notes(kind, values, scores, best, entry["original"][kind], self.original[c])


def _ranges(name: str, options: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Returns the ends of the ranges of what is swept; not of what the configuration fixes."""
    row, own = METHODS.find(name), method_options(name)
    found = {"learning_rate": RATES} if "optimizer" in own else {}
    found |= {key: (float(low), float(high)) for key, (low, high) in row.tune.items()}
    return {key: ends for key, ends in found.items() if key not in options}


def draw_settings(
    ranges: Mapping[str, tuple[float, float]], count: int, seed: int
) -> dict[str, np.ndarray]:
    """Draws settings by a Latin hypercube: each option once in each of ``count`` parts.

    Args:
      ranges: ends by option; divided on a log scale where both are positive.

    Returns:
      ``float32 [count]`` by option.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for name, (low, high) in ranges.items():
        places = (rng.permutation(count) + rng.uniform(size=count)) / count
        if low > 0 and high > 0:
            values = low * (high / low) ** places
        else:
            values = low + (high - low) * places
        found[name] = values.astype(np.float32)
    return found


def choose(scores: list[float]) -> int | None:
    """Returns the place of the smallest score; ``None`` where none is finite."""
    finite = [score if math.isfinite(score) else math.inf for score in scores]
    best = int(np.argmin(finite))
    return best if math.isfinite(finite[best]) else None


def _notes(
    kind: str, values: list[dict[str, float]], scores: list[float], best: int, original: float,
    before: Mapping[str, float],
) -> list[str]:  # fmt: skip
    """Makes sentences on what to beware of."""
    notes = []
    kept = before["accuracy_test_retain"] * COLLAPSED
    ruined = sum(not one.get("accuracy_test_retain", -1.0) >= kept for one in values)
    if ruined >= OFTEN * len(values):
        notes.append(
            f"{kind}: {ruined} of {len(values)} settings lose half of the accuracy on held-out "
            "examples; a stop target is wise"
        )
    if scores[best] >= original:
        notes.append(f"{kind}: no setting comes nearer to retraining than the original")
    return notes
