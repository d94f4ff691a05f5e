"""Pictures of a run, in its folder ``pictures``: drawn when something new was made."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from jaxunlearn.core.errors import UserError
from jaxunlearn.core.registry import load
from jaxunlearn.core.types import Variables
from jaxunlearn.engine import Chain
from jaxunlearn.engine.driver import prepare
from jaxunlearn.experiment.trial import Trial
from jaxunlearn.kinds import Drawing, View
from jaxunlearn.pictures import PICTURES


def draw_album(trial: Trial) -> list[str]:
    """Draws the pictures of this kind of models, and those of the trial's methods.

    ``pictures/<name>.png`` shows the models side by side, ``pictures/<label>/<name>.png`` what a
    method found and changed: every row of :data:`jaxunlearn.pictures.PICTURES` that names this
    kind. A picture that is there is drawn again only if some model was made now.

    Returns:
      A sentence for each picture that could not be drawn: the run is none the worse.
    """
    folder, view, failed = trial.plan.folder / "pictures", _view(trial), []
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
            if not trial.made and list(path.parent.glob(f"{name}*.png")):
                continue
            try:
                load(row.draw)(path, view, label)
            # another package's code, perhaps: whatever it raises, the run is none the worse
            except Exception as error:
                failed.append(f"no picture {label}{'/' if label else ''}{name}: {error}")
    return failed


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
    )


def _drawing(trial: Trial, label: str) -> Drawing:
    stage, options = f"unlearned/{label}", trial.plan.options[label]
    task = trial.task(stage)
    found: Callable[[], Any] = partial(trial.prepared.get, stage)
    if not isinstance(task.method, Chain) and trial.prepared.get(stage) is None:
        # it was made in an earlier run
        found = partial(prepare, task.method, task.variables, trial.plan.sets, task.key)
    # a chain has no pictures of its own, whatever its label
    method = "" if isinstance(task.method, Chain) else options.get("method", label)
    return Drawing(method, options, task.key, _once(found))


def _once(find: Callable[[], Any]) -> Callable[[], Any]:
    found: list[Any] = []

    def get() -> Any:
        if not found:
            found.append(find())
        return found[0]

    return get
