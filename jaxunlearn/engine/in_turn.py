"""Members of an ensemble that are made one after the other, as one run that can be resumed.

Members with streamed sets draw rows of their own; some networks must not run in a compiled loop
over members. The state of such a run is that of the member under way and the finished models.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.trees import stack
from jaxunlearn.core.types import Key, Sets, State, Variables
from jaxunlearn.engine.driver import (
    Options,
    Outcome,
    Progress,
    Resume,
    count_steps,
    execute,
    prepared_like,
    visible_sets,
)
from jaxunlearn.engine.loop import Job, result


class Kept(NamedTuple):
    """State of the run.

    Attributes:
      state: of the member under way.
      made: of each member the model, zeros where it is still to be made.
      prepared: what the preparation of each member found, likewise.
    """

    state: State
    made: tuple[Variables, ...]
    prepared: tuple[Any, ...]


class _Begun(Exception):
    """Tells that the run was killed in a later member than the first."""


def execute_in_turn(
    job: Job,
    arguments: Callable[[int], tuple[Variables, Sets, Key]],
    members: int,
    options: Options,
) -> Outcome:
    """Runs a job for each member; the outcome is stacked, its time that of all together.

    Args:
      job: of one member.
      arguments: variables, sets and key of a member.
      options: progress is told of steps of all members, diagnostics one behind the other.
    """
    run = _Run(job, arguments, members, options)
    while len(run.made) < members:
        try:
            run.made.append(execute(job, *arguments(len(run.made)), run.options()))
        except _Begun:
            continue
    return _stacked(run.made)


class _Run:
    def __init__(self, job: Job, arguments: Any, members: int, options: Options) -> None:
        self.job, self.given = job, options
        each = [arguments(number)[1] for number in range(members)]
        shown = [visible_sets(job.unlearner.needs, sets) for sets in each]
        self.steps = [count_steps(job, sets, options.steps) for sets in shown]
        variables = arguments(0)[0]
        variables = variables.inner if job.swept else variables
        self.prepared_like = prepared_like(job.unlearner, variables, each[0])
        self.made: list[Outcome] = []
        self.found: Resume | None = None
        self.blank: tuple[Any, Any] | None = None
        self.asked = options.resume is None

    def options(self) -> Options:
        """Returns the options of the next member."""
        return self.given._replace(
            on_chunk=None if self.given.on_chunk is None else self._tell, resume=self._resume
        )

    def _kept(self, state: State) -> Kept:
        if self.blank is None:
            model = jax.eval_shape(lambda state: result(state, job=self.job), state)
            like = model, self.prepared_like
            self.blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        spare = len(self.steps) - len(self.made)
        return Kept(
            state,
            (*(one.variables for one in self.made), *[self.blank[0]] * spare),
            (*(one.prepared for one in self.made), *[self.blank[1]] * spare),
        )

    def _tell(self, progress: Progress) -> None:
        each = [one.history for one in self.made]
        assert self.given.on_chunk is not None
        self.given.on_chunk(progress._replace(
            state=self._kept(progress.state),
            step=sum(self.steps[: len(each)]) + progress.step,
            steps=sum(self.steps),
            seconds=sum(one.seconds for one in self.made) + progress.seconds,
            history={
                name: np.concatenate([*(own[name] for own in each), values])
                for name, values in progress.history.items()
            },
        ))  # fmt: skip

    def _resume(self, fresh: State) -> Resume | None:
        """Returns where the member under way goes on; asks for the run once, with the first."""
        if not self.asked:
            self.asked = True
            assert self.given.resume is not None
            self.found = self.given.resume(self._kept(fresh))
            if self.found is not None:
                self._take(self.found)
                if self.made:
                    raise _Begun
        found, self.found = self.found, None
        return found

    def _take(self, found: Resume) -> None:
        """Takes the finished members out of what was kept."""
        ends = np.cumsum(self.steps)
        # one that has done its last step has made no model yet
        done = int(np.searchsorted(ends, found.step, side="left"))
        parts = {name: np.split(values, ends[:done]) for name, values in found.history.items()}
        for number in range(done):
            own = {name: values[number] for name, values in parts.items()}
            self.made.append(Outcome(
                found.state.made[number], own, self.steps[number], 0, 0.0, 0.0,
                prepared=found.state.prepared[number],
            ))  # fmt: skip
        self.found = found._replace(
            state=found.state.state,
            step=found.step - int(sum(self.steps[:done])),
            history={name: values[done] for name, values in parts.items()},
        )


def _stacked(each: list[Outcome]) -> Outcome:
    """Stacks outcomes; diagnostics of members with fewer steps than others end in zeros."""
    steps = max(one.steps for one in each)

    def padded(values: np.ndarray) -> np.ndarray:
        more = np.zeros((steps - len(values), *values.shape[1:]), values.dtype)
        return np.concatenate([values, more])

    return each[-1]._replace(
        variables=stack([one.variables for one in each]),
        history={
            name: np.stack([padded(one.history[name]) for one in each], axis=1)
            for name in each[-1].history
        },
        steps=steps,
        prepared=stack([one.prepared for one in each]),
        seconds=sum(one.seconds for one in each),
        compile_seconds=sum(one.compile_seconds for one in each),
    )
