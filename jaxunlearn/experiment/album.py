"""Pictures of a run, in its folder ``pictures``: drawn when something new was made."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import checkpoint
from jaxunlearn.core.errors import UserError, sentence
from jaxunlearn.core.files import read_object, write_text
from jaxunlearn.core.registry import load
from jaxunlearn.core.types import Sets, Unlearner, Variables
from jaxunlearn.engine import Chain
from jaxunlearn.engine.driver import prepare
from jaxunlearn.experiment.trial import Task, Trial, telling
from jaxunlearn.kinds import Drawing, View
from jaxunlearn.metrics.registry import METRICS
from jaxunlearn.pictures import PICTURES


def draw_album(trial: Trial) -> list[str]:
    """Draws the pictures of this kind of models, and those of the trial's methods.

    ``pictures/<name>.png`` shows the models side by side, ``pictures/<label>/<name>.png`` what a
    method found and changed: every row of :data:`jaxunlearn.pictures.PICTURES` that names this
    kind. A picture that is there, and whole, is drawn again only if it shows other models than
    those that are there now; ``drawn.json`` says which it shows.

    Returns:
      A sentence for each picture that could not be drawn: the run is none the worse.
    """
    folder, view, failed = trial.plan.folder / "pictures", _view(trial), []
    drawn, models = read_object(trial.plan.folder / "drawn.json"), _digest_of(trial)
    tell = telling(trial.listener, "pictures", PICTURES)
    for name in PICTURES:
        try:
            row = PICTURES[name]
        except UserError as error:  # of another package
            failed.append(f"no picture {name}: {error}")
            continue
        if row.kind != trial.plan.kind.name or not row.draw:
            continue
        labels = [""] if not row.method else [
            label for label, one in view.methods.items() if one.name == row.method
        ]  # fmt: skip
        for label in labels:
            path = folder / label / f"{name}.png"
            there = [p for p in _listing(path.parent, row.ending) if p.name.startswith(name)]
            key = f"{label}/{name}".lstrip("/")
            # one of an earlier version, which wrote down no models, is as good
            known = drawn.get(key, "" if trial.made else models) == models
            if known and there and all(map(_whole, there)):
                drawn[key] = models
                continue
            tell(name)
            try:
                load(row.draw)(path, view, label)
                drawn[key] = models
            # another package's code, perhaps: whatever it raises, the run is none the worse
            except Exception as error:
                drawn.pop(key, None)
                failed.append(f"no picture {key}: {sentence(error)}")
    tell("")
    if drawn:
        write_text(trial.plan.folder / "drawn.json", json.dumps(drawn, indent=2) + "\n")
    return failed


def _digest_of(trial: Trial) -> str:
    """Returns what changes with any model of a trial, or with the metrics that are asked for."""
    digests = [checkpoint.digest(trial.stages[name].path) for name in sorted(trial.records)]
    digests += sorted(trial.plan.config.metrics)  # whose values are shown, too
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _listing(folder: Path, ending: str) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix == ending] if folder.is_dir() else []


def _whole(path: Path) -> bool:
    """Tells whether a picture begins and ends as PNG files do, or is JSON."""
    if path.suffix == ".json":
        return bool(read_object(path))
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")


class _Models(Mapping[str, Variables]):
    """Variables by label, read when they are first asked for."""

    def __init__(self, trial: Trial, stages: Mapping[str, str]) -> None:
        self.trial, self.stages = trial, stages

    def __getitem__(self, label: str) -> Variables:
        return self.trial.variables(self.stages[label])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)


def _view(trial: Trial) -> View:
    """Returns the trial as its pictures see it."""
    plan = trial.plan
    labels = [label for label in plan.methods if f"unlearned/{label}" in trial.records]
    stages = {
        "original": "original",
        **{label: f"unlearned/{label}" for label in labels},
        "retrained": "retrained/0",
    }
    methods = {label: _drawing(trial, label) for label in labels}
    return View(
        title=plan.config.name,
        model=plan.model,
        variables=_Models(trial, stages),
        sets=plan.sets,
        class_names=plan.class_names,
        methods=methods,
        observe=lambda label: trial.evidence(stages[label]),
        examples={label: _asked(trial, stage) for label, stage in stages.items()},
    )


def _asked(trial: Trial, stage: str) -> dict[str, np.ndarray]:
    """Returns values of each example by the usual metrics and those that the run was asked for."""
    asked = trial.plan.config.metrics
    own = {key.rpartition("/")[2]: v for key, v in trial.examples.items()
           if key.rpartition("/")[0] == stage}  # fmt: skip
    return {
        name: values for name, values in own.items()
        if name in METRICS and (not METRICS[name].extra or name in asked or "all" in asked)
    }  # fmt: skip


def _drawing(trial: Trial, label: str) -> Drawing:
    stage, options = f"unlearned/{label}", trial.plan.options[label]
    task = trial.task(stage)
    found: Callable[[], Any] = partial(trial.prepared.get, stage)
    if not isinstance(task.method, Chain) and trial.prepared.get(stage) is None:
        # it was made in an earlier run
        found = partial(_found_again, task.method, task, trial.plan.sets)
    # a chain has no pictures of its own, whatever its label
    method = "" if isinstance(task.method, Chain) else options.get("method", label)
    return Drawing(method, options, task.key, _once(found))


def _found_again(method: Unlearner, task: Task, sets: Sets) -> Any:
    return prepare(method, task.start(), sets, task.key)


def _once(find: Callable[[], Any]) -> Callable[[], Any]:
    found: list[Any] = []

    def get() -> Any:
        if not found:
            found.append(find())
        return found[0]

    return get
