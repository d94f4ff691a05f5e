"""Progress bars of a run."""

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from jaxunlearn.engine.driver import Progress as Step


class Bars:
    """A listener of :func:`jaxunlearn.experiment.run` that draws one bar a stage.

    Where the output is no terminal, one line a finished stage is printed instead.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[latest]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}

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
        if step is None:
            self._line(name, "there already")
            return
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=step.steps, latest="")
        values = {key: value[-1].mean() for key, value in step.history.items()}
        # one number fits beside the bar, the accuracy where there is one
        first = next(iter(values.items()), ("", 0.0))
        brief = f"{first[0]} {first[1]:.3f}"
        # of a chain each method has steps of its own
        self.progress.update(self.tasks[name], total=step.steps, completed=step.step, latest=brief)
        shown = "  ".join(f"{key} {value:.3f}" for key, value in values.items())
        if step.step == step.steps:
            self._line(name, f"{step.steps} steps, {step.seconds:.1f} s  {shown}")

    def _line(self, name: str, text: str) -> None:
        if self.progress.disable:
            self.console.print(f"{name:<24} {text}")
