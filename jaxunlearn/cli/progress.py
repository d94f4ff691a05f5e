"""Progress of a run on a terminal: how far it is, and the time left."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from jaxunlearn.engine.driver import Progress as Step

BRIEF = 3.0
"""Seconds of work that nobody need be told of."""


class _Silence(ProgressColumn):
    """Says behind the latest bar how long nothing has been heard, once it is long."""

    max_refresh = 1.0

    def __init__(self, bars: "Bars") -> None:
        super().__init__()
        self.bars = bars

    def render(self, task: Task) -> Text:
        silent = time.monotonic() - self.bars.heard
        if task.description != self.bars.latest or silent < BRIEF:
            return Text()
        what = "; next: preparing, compiling" if task.finished else ""
        return Text(f"{silent:.0f} s ago{what}", "dim")


class Bars:
    """A listener of :func:`jaxunlearn.experiment.run` that draws one bar a stage.

    Behind the latest bar stands for how long nothing was heard: a method prepares, or a program
    is compiled. Where the output is no terminal, one line a finished stage is printed instead.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[latest]}"),
            _Silence(self),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.heard, self.latest = time.monotonic(), ""

    def __enter__(self) -> "Bars":
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def __call__(self, name: str, step: Step | None) -> None:
        self.heard, self.latest = time.monotonic(), name
        if step is None:
            self._line(name, "there already")
            return
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=step.steps, latest="")
        values = {key: value[-1].mean() for key, value in step.history.items()}
        # one number fits beside the bar, the accuracy where there is one
        brief = next((f"{key} {value:.3f}" for key, value in values.items()), "")
        # of a chain each method has steps of its own
        self.progress.update(self.tasks[name], total=step.steps, completed=step.step, latest=brief)
        if step.step < step.steps:
            return
        if step.state is None:  # no training
            if step.seconds >= BRIEF:
                self._line(name, f"{step.steps} of {step.steps}, {step.seconds:.1f} s")
            return
        shown = "  ".join(f"{key} {value:.3f}" for key, value in values.items())
        self._line(name, f"{step.steps} steps, {step.seconds:.1f} s  {shown}")

    def _line(self, name: str, text: str) -> None:
        if self.progress.disable:
            self.console.print(f"{name:<24} {text}")
