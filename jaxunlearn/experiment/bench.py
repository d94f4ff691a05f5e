"""Methods on one bench: each beside retrained models, with several seeds, on several requests.

The originals of all seeds are trained in one program, the retrained models of all requests and
seeds in another; and every method is one program for all its seeds and requests. Only requests
one after another take a program for each turn, the same for all turns.
"""

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from threadpoolctl import threadpool_limits

from jaxunlearn import checkpoint
from jaxunlearn.config import BenchConfig, Request, to_dict
from jaxunlearn.config.overrides import check_types, load_preset
from jaxunlearn.core.errors import ConfigError, UserError, sentence
from jaxunlearn.core.files import write_text
from jaxunlearn.core.keys import Purpose, derive, new_key
from jaxunlearn.core.trees import member
from jaxunlearn.core.types import Sets, Unlearner, Variables
from jaxunlearn.core.variables import in_form_of
from jaxunlearn.data.requests import describe
from jaxunlearn.data.sets import num_examples, stack_sets
from jaxunlearn.engine import Chain, Sweep, unlearn_many
from jaxunlearn.engine.driver import Outcome, Progress
from jaxunlearn.experiment.bench_cases import Case, make_cases
from jaxunlearn.experiment.bench_judging import GAP, SHOWN, Judge
from jaxunlearn.experiment.bench_report import Measured, make_bench_report, to_markdown
from jaxunlearn.experiment.folder import hold_run
from jaxunlearn.experiment.methods import Problem, build_method, build_swept, unsuited
from jaxunlearn.experiment.pages import try_page
from jaxunlearn.experiment.plan import make_plan
from jaxunlearn.experiment.stages import (
    Keeper,
    Stage,
    check_stage,
    finish_stage,
    load_stage,
    read_stage,
    state_of,
)
from jaxunlearn.experiment.trial import Listener, is_fault_of_method, named, timed
from jaxunlearn.kinds.evaluate import costs
from jaxunlearn.methods import METHODS
from jaxunlearn.metrics.registry import check_asked, versions_of
from jaxunlearn.pictures.bench import save_bench

REPEATS, BRIEF = 3, 2.0
"""A program that takes less than so many seconds is timed so often; the mean counts."""


def run_bench(
    config: BenchConfig,
    runs: str | Path = "runs",
    *,
    force: bool = False,
    listener: Listener | None = None,
) -> dict[str, Any]:
    """Runs every method on every request beside retrained models; ``runs/base.name`` keeps all.

    *Gap*: the mean over accuracies on forget, retain and test examples and the AUC of the attack
    on the loss of ``|unlearned - retrained|``, averaged over the retrained models of the same
    seed and request; the *floor* is the same between two retrained models. Intervals are
    Student's, over seeds.

    Args:
      force, listener: see :func:`jaxunlearn.run`.

    Returns:
      A report, see :func:`jaxunlearn.experiment.bench_report.make_bench_report`; also saved as
      ``bench.json``, ``bench.md`` and ``bench.png``.

    Raises:
      ConfigError: another kind of models than classifiers, or no request.
    """
    bench = Bench(config, Path(runs), force, listener or (lambda name, progress: None))
    with hold_run(bench.folder), threadpool_limits(1):
        text = json.dumps(to_dict(bench.config), indent=2, sort_keys=True)
        bench.folder.mkdir(parents=True, exist_ok=True)
        write_text(bench.folder / "config.json", text + "\n")
        report = make_bench_report(bench.measured())
        write_text(bench.folder / "bench.json", json.dumps(report, indent=2) + "\n")
        write_text(bench.folder / "bench.md", to_markdown(report))
        save_bench(bench.folder / "bench.png", report["requests"], title=report["title"])
        try_page(bench.folder)
    return report


class Bench:
    """Bench of one data set: its models, each made once or loaded, and what is measured of them.

    Attributes:
      plan: of its data and network.
      seeds: of the originals.
      cases: requests, those in turn too.
      options: of each method by label.
      presets: tuned options, by method and kind of request.
      failed: why a method has no models of a request, by label and name of the request.
      left_out: sentences on methods that do not suit.
    """

    def __init__(
        self, config: BenchConfig, runs: Path, force: bool, tell: Listener,
        seeds: Sequence[int] | None = None, part: str = "",
    ) -> None:  # fmt: skip
        check_types(config)
        check_asked(config.base.metrics)
        if not config.requests:
            raise ConfigError("requests: expected one or several, got none")
        self.config, self.force, self.tell = config, force, tell
        first = config.base.seed
        self.seeds = list(range(first, first + config.base.seeds) if seeds is None else seeds)
        base = dataclasses.replace(config.base, seeds=1)
        any_request = next(
            (one for one in config.requests.values() if isinstance(one, Request)),
            Request(share=0.1),
        )
        placeholder = dataclasses.replace(any_request, each=False, in_turn=False)
        if any_request.each:
            placeholder = Request(classes=(0,))
        self.plan = make_plan(
            dataclasses.replace(base, request=placeholder, methods={"finetune": {}}), runs
        )
        if self.plan.kind.name != "classifier":
            raise ConfigError(f"model: expected a classifier, got a {self.plan.kind.name} model")
        self.folder = runs / base.name / part
        self.cases = make_cases(config.requests, self.plan)
        own = {**base.methods}
        for label, options in own.items():
            if "chain" not in options:
                METHODS.find(options.get("method", label), "methods")
        if config.every:
            suits = [n for n, row in METHODS.items() if row.kind == "classifier" and n != "retrain"]
            own |= {name: {} for name in suits if name not in own}
        self.options = own
        self.failed: dict[str, dict[str, str]] = {}
        self.left_out: list[str] = []
        self.records: dict[str, dict[str, Any]] = {}
        sizes = [num_examples(case.judged.retain) for case in self.cases]
        self.retained = round(sum(sizes) / len(sizes))
        train = base.train
        _, whole_steps = self.plan.kind.recipe(
            self.plan.model, train, len(self.plan.data.train_y), None
        )
        self.steps = max(1, int(config.share * whole_steps))
        self.presets = _presets(config.preset, runs / base.name)
        self._methods: dict[Any, Any] = {}

    # Models

    @cached_property
    def originals(self) -> Variables:
        """Returns the originals, ``[seeds, ...]``."""
        config, plan = self.config.base, self.plan
        everything = self.cases[0].sets.train
        method, steps = plan.kind.recipe(plan.model, config.train, len(plan.data.train_y), None)
        keys = [derive(new_key(seed), Purpose.ORIGINAL) for seed in self.seeds]
        once = partial(
            unlearn_many, method, None, Sets(retain=everything), jnp.stack(keys), steps=steps,
            batch_size=config.train.batch_size, at_a_time=config.at_a_time,
        )  # fmt: skip
        return self._stage("original", {}, once, len(keys))

    @cached_property
    def retrained(self) -> Variables:
        """Returns the retrained models, ``[seeds * cases * retrained, ...]``."""
        config, plan = self.config.base, self.plan
        method, steps = plan.kind.recipe(plan.model, config.train, self.retained, None)
        keys, parts = [], []
        for seed in self.seeds:
            for case in self.cases:
                for number in range(config.retrained):
                    turn = () if case.turn is None else (Purpose.TURN, case.turn)
                    key = derive(new_key(seed), Purpose.RETRAINED, number, *turn)
                    keys.append(key)
                    parts.append(Sets(retain=case.retraining.retain))
        once = partial(
            unlearn_many, method, None, stack_sets(parts), jnp.stack(keys), steps=steps,
            batch_size=config.train.batch_size, at_a_time=config.at_a_time,
        )  # fmt: skip
        own = {"requests": self._about(self.cases), "retrained": config.retrained, "steps": steps}
        return self._stage("retrained", own, once, len(keys))

    def unlearned(self, label: str) -> dict[int, Variables]:
        """Returns a method's models ``[seeds, ...]`` by the number of the case.

        Whatever the method raises is noted in ``failed``.
        """
        cases = self.suited(label)
        found: dict[int, Variables] = {}
        together = [n for n in cases if self.cases[n].turn is None]
        names = list(dict.fromkeys(self.cases[n].name for n in cases))
        turns = {
            name: [
                n for n in cases if self.cases[n].name == name and self.cases[n].turn is not None
            ]
            for name in names
        }
        groups = self.groups(label, together)
        for own in groups:
            stage = label if len(groups) == 1 else f"{label}@{self.cases[own[0]].kind}"
            try:
                many = self._program(label, own, f"unlearned/{stage}", self.originals)
            # whatever a method raises, which may be another package's
            except Exception as error:
                self._note(label, [self.cases[n].name for n in own], error)
            else:
                split = _split(many, len(self.seeds))
                found |= {n: split[place] for place, n in enumerate(own)}
        for name, own in turns.items():
            before = self.originals
            try:
                for n in own:
                    before = found[n] = self._program(
                        label, [n], f"in_turn/{label}/{self.cases[n].turn}", before, padded=own
                    )
            except Exception as error:
                self._note(label, [name], error)
                found = {n: one for n, one in found.items() if n not in own}
        return found

    def groups(self, label: str, cases: Sequence[int]) -> list[list[int]]:
        """Divides cases by kind for a method that is another one for each; else they are one."""
        name = self.options[label].get("method", label)
        if name not in METHODS or "request" not in METHODS[name].takes:
            return [list(cases)] if cases else []
        kinds = dict.fromkeys(self.cases[n].kind for n in cases)
        return [[n for n in cases if self.cases[n].kind == kind] for kind in kinds]

    def _note(self, label: str, names: Iterable[str], error: Exception) -> None:
        if not is_fault_of_method(error):
            raise error
        text = sentence(error) or type(error).__name__
        reason = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
        self.failed.setdefault(label, {}).update(dict.fromkeys(names, reason))

    def suited(self, label: str) -> list[int]:
        """Lists the cases that a method suits; says which requests it is left out of."""
        reasons: dict[str, str] = {}
        suited: list[int] = []
        needs: dict[str, list[str]] = {}
        for n, case in enumerate(self.cases):
            if case.kind not in reasons:
                reasons[case.kind] = ""
                try:
                    name = self.options[label].get("method", label)
                    known = "chain" in self.options[label]
                    reasons[case.kind] = "" if known else unsuited(name, self.problem(case))
                    if not reasons[case.kind]:
                        needs[case.kind] = needed_sets(self._built(label, [n])[0])
                except ConfigError as error:
                    reasons[case.kind] = str(error).removeprefix(f"methods.{label}: ")
                except Exception as error:
                    self._note(label, dict.fromkeys(c.name for c in self.cases), error)
                    return []
            reason = reasons[case.kind]
            if not reason:
                lacking = [
                    one for one in needs[case.kind] if num_examples(getattr(case.sets, one)) == 0
                ]
                reason = f"it needs {' and '.join(lacking)} examples" if lacking else ""
            if reason:
                note = f"{label} left out of {case.name}: {reason}"
                self.left_out += [] if note in self.left_out else [note]
            else:
                suited.append(n)
        # those in turn start from each other's models: all or none
        whole_turns = {c.name for n, c in enumerate(self.cases) if c.turn is not None}
        whole_turns -= {c.name for n, c in enumerate(self.cases) if n not in suited}
        return [
            n for n in suited
            if self.cases[n].turn is None or self.cases[n].name in whole_turns
        ]  # fmt: skip

    def problem(self, case: Case) -> Problem:
        """Returns the problem of a request, with the steps of the bench."""
        batch = self.config.base.train.batch_size
        return Problem(
            config=self.config.base,
            kind=self.plan.kind,
            model=self.plan.model,
            sets=case.sets,
            retained=self.steps * batch,
            class_names=self.plan.class_names,
            several=True,
            facts={},
        )

    def preset(self, label: str) -> Mapping[str, Any]:
        """Returns tuned options of a method by kind of request; of none they are empty."""
        name = self.options[label].get("method", label)
        return self.presets.get(name, {}).get("options", {})

    def _built(
        self, label: str, cases: Sequence[int]
    ) -> tuple[Unlearner | Chain | Sweep, dict[str, Any], dict[str, Any]]:
        """Builds a method for members ``[seeds * cases]``, its options of the runner, all options.

        Tuned numbers are those of each member's kind of request. For cases of the same kinds it
        is the same object, so that its program is found again.
        """
        kinds = tuple(self.cases[n].kind for n in cases)
        if (label, kinds) not in self._methods:
            self._methods[label, kinds] = self._build(
                label, self.problem(self.cases[cases[0]]), kinds
            )
        return self._methods[label, kinds]

    def _build(self, label: str, problem: Problem, kinds: Sequence[str]) -> Any:
        given, tuned = self.options[label], self.preset(label)
        own: dict[str, Mapping[str, Any]]
        own = {kind: tuned.get(kind) or next(iter(tuned.values()), {}) for kind in kinds}
        members, first = [*kinds] * len(self.seeds), own[kinds[0]]
        free = {k: v for k, v in first.items() if k not in given}
        numbers = {
            name: [float(own[kind][name]) for kind in members]
            for name, value in free.items()
            if isinstance(value, float)
        }
        options = {**{k: v for k, v in free.items() if k not in numbers}, **given}
        if not numbers:
            method, runner = build_method(label, options, problem)
            return lenient(method), runner, options
        swept, runner = build_swept(label, options, problem, numbers, lenient)
        return swept, runner, {**options, "tuned": own}

    def _program(
        self, label: str, cases: Sequence[int], name: str, start: Variables,
        *, padded: Sequence[int] = (),
    ) -> Variables:  # fmt: skip
        """Runs a method for all seeds and cases in one program, or loads what it made.

        Args:
          start: models ``[seeds, ...]``.
          padded: cases to whose largest sets all are padded, so that one program serves them.
        """
        base = self.config.base
        method, runner, options = self._built(label, cases)
        own_name = self.options[label].get("method", label)
        number = zlib.crc32(own_name.encode())
        keys, parts, rows = [], [], []
        needs = needed_sets(method)
        for place, seed in enumerate(self.seeds):
            for n in cases:
                turn = self.cases[n].turn
                more = (Purpose.TURN, turn) if turn else ()
                keys.append(derive(new_key(seed), Purpose.METHOD, number, *more))
                parts.append(shown_sets(self.cases[n].sets, needs))
                rows.append(place)
        stacked = stack_sets([*parts, *(shown_sets(self.cases[n].sets, needs) for n in padded)])
        sets = _first(stacked, len(parts))
        places = jnp.asarray(rows)
        variables = start if len(cases) == 1 else jax.tree.map(lambda leaf: leaf[places], start)
        own = {name: value for name, value in runner.items() if name != "stop"}
        once = partial(
            unlearn_many, method, variables, sets, jnp.stack(keys), stacked_variables=True,
            at_a_time=base.at_a_time, **own,
        )  # fmt: skip
        about = {
            "method": label,
            **options,
            **own,
            "requests": self._about([self.cases[n] for n in cases]),
        }
        return self._stage(name, about, once, len(keys), resumable=not isinstance(method, Chain))

    def _about(self, cases: Sequence[Case]) -> list[Any]:
        return [[case.name, case.turn, to_dict(case.request)] for case in cases]

    def _stage(
        self, name: str, own: Mapping[str, Any], once: Callable[..., Outcome], count: int,
        *, resumable: bool = True,
    ) -> Variables:  # fmt: skip
        """Loads stacked models, or makes them and saves them as one checkpoint."""
        one = jax.eval_shape(self.plan.model.init, self.plan.key)
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), one
        )
        about = {k: v for k, v in self.plan.identity.items() if k not in ("seed", "request")}
        inputs = {**about, "seeds": self.seeds, "own": dict(own)}
        stage = Stage(self.folder / name, json.loads(json.dumps(inputs)))
        if check_stage(stage, self.force):
            self.tell(name, None)
            self.records[name] = read_stage(stage)
            return load_stage(stage, like)[0]
        before, keeper = state_of(stage), Keeper(stage)

        def on_chunk(progress: Progress) -> None:
            self.tell(name, progress)
            keeper.keep(progress)

        hooks = {"on_chunk": on_chunk, "resume": keeper.find} if resumable else {}
        # the program of one turn serves the others, so that none is timed by itself
        alone = name.partition("/")[0] != "in_turn"
        with named(name):
            made = timed(once, hooks) if alone else once(**hooks)
        seconds = [made.seconds]
        while alone and made.seconds < BRIEF and len(seconds) < REPEATS:
            seconds.append(once().seconds)
        found = made.variables
        if isinstance(found, dict) and set(found) == {"made"}:  # of a lenient method
            found = found["made"]
        found = in_form_of(one, found)
        record = {
            "stage": name,
            "costs": costs(made),
            "members": count,
            "seconds": [each / count for each in seconds],
            "versions": checkpoint.versions(),
        }
        self.records[name] = finish_stage(stage, found, record, replaces=before)
        return found

    # Measurements

    def measured(self) -> Measured:
        """Makes and measures all models; what was measured before of the same is read."""
        names = [*SHOWN, *(m for m in self.config.base.metrics if m not in SHOWN)]
        judge = Judge(
            self.plan.model, self.cases, self.seeds, self.originals, self.retrained, names,
            self.config.spared,
        )  # fmt: skip
        values = {"original": judge.originals()}
        retrained = judge.retrained()
        for label in self.options:
            models = self.unlearned(label)
            self.tell(f"judging {label}", None)
            values[label] = self._judged(label, models, judge)
        return Measured(
            title=f"{self.config.base.name}: methods beside retrained models",
            cases=[(one.name, describe(one.request), one.turn, one.kind) for one in self.cases],
            seeds=self.seeds,
            gap=GAP,
            metrics=[name for name in names if name != "auc_loss"],
            values=values,
            retrained=retrained,
            failed=self.failed,
            left_out=self.left_out,
            costs=self.costs(),
            environment=checkpoint.versions(),
        )

    def _judged(
        self, label: str, models: Mapping[int, Variables], judge: Judge
    ) -> dict[int, list[dict[str, float]]]:
        """Measures a method's models, by case, one a seed; what was measured before is read."""
        file = self.folder / "measured" / f"{label}.json"
        stages = sorted(
            name
            for name in self.records
            if name in (f"unlearned/{label}", "original", "retrained")
            or name.startswith((f"in_turn/{label}/", f"unlearned/{label}@"))
        )
        about = {
            "models": {name: checkpoint.digest(self.folder / name) for name in stages},
            "metrics": versions_of(judge.names),
            "spared": list(self.config.spared),
            "cases": sorted(models),
        }
        known = read_json(file)
        if known.get("about") != about:
            values = {
                str(c): [judge.unlearned(member(own, s), c, s) for s in judge.seeds]
                for c, own in models.items()
            }
            known = {"about": about, "values": values}
            write_text(file, json.dumps(known) + "\n")
        return {int(c): each for c, each in known["values"].items()}

    def costs(self) -> dict[str, dict[str, Any]]:
        """Returns the time of each method's programs by label: together, by kind, and in turn."""
        found: dict[str, dict[str, Any]] = {}
        for name, record in self.records.items():
            what, _, label = name.partition("/")
            kept = ("steps",) if what == "in_turn" else ("compile_seconds", "steps", "memory")
            own = {"seconds": record["seconds"], "members": record["members"]}
            own |= {k: record["costs"][k] for k in kept if k in record["costs"]}
            place, which = what, "together"
            if what == "unlearned":
                place, _, kind = label.partition("@")
                which = kind or which
            elif what == "in_turn":
                place, which = label.partition("/")[0], "in turn"
            found.setdefault(place, {})[which] = own
        return found


def lenient(method: Any) -> Any:
    """Returns a method whose members do not end each other.

    Those that diverge or do nothing are left as they came out; what it returns is held apart in
    ``{"made": variables}``, so that it is not compared with what was given.
    """
    if isinstance(method, Chain):
        return Chain(tuple((_never_ending(one), options) for one, options in method.links))
    made = _never_ending(method)
    return made._replace(result=lambda state: {"made": method.result(state)})


def _never_ending(method: Unlearner) -> Unlearner:
    if method.step is None:
        return method._replace(remarks=None)

    def step(*given: Any) -> Any:
        state, info = method.step(*given)  # type: ignore[misc]
        return state, info._replace(finite=jnp.ones_like(info.finite))

    return method._replace(step=step, remarks=None)


def needed_sets(method: Unlearner | Chain | Sweep) -> list[str]:
    """Lists the sets that a method reads."""
    if isinstance(method, Chain):
        return list(dict.fromkeys(n for one, _ in method.links for n in needed_sets(one)))
    needs = (method.method if isinstance(method, Sweep) else method).needs
    return [n for n in ("forget", "retain", "unseen", "holdout") if getattr(needs, n)]


def shown_sets(sets: Sets, names: Sequence[str]) -> Sets:
    """Returns the sets of these names; forget and retain always, which tell the kind."""
    return Sets(**{n: getattr(sets, n) for n in dict.fromkeys(("forget", "retain", *names))})


def _first(stacked: Sets, count: int) -> Sets:
    """Returns the first members of stacked sets."""
    return Sets(*(
        part and part._replace(indices=part.indices[:count], size=part.size[:count])
        for part in stacked
    ))  # fmt: skip


def _split(many: Variables, seeds: int) -> list[Variables]:
    """Divides models ``[seeds * cases]`` by case, ``[seeds]`` each."""
    grid = jax.tree.map(lambda leaf: leaf.reshape(seeds, -1, *leaf.shape[1:]), many)
    count = jax.tree.leaves(grid)[0].shape[1]
    return [jax.tree.map(lambda leaf, n=n: leaf[:, n], grid) for n in range(count)]


def read_json(file: Path) -> dict[str, Any]:
    """Reads an object from a file; of none that can be read it is empty."""
    try:
        found = json.loads(file.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _presets(name: str | None, folder: Path) -> Mapping[str, Any]:
    """Returns tuned options by method: those of the run itself before those of a preset."""
    found = {} if name is None else load_preset(name)
    return {**found, **read_json(folder / "presets.json").get("methods", {})}
