"""Links of a chain, one after the other, as one run that can be resumed within any of them.

The state of such a run holds a place for each link, so that it is of one form whichever link is
under way: zeros, which lie on the host, for those that are not, and for models still to be made.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
from jaxunlearn.engine.loop import Job, init, result
from jaxunlearn.engine.sharding import lay


class Link(NamedTuple):
    """Method of a chain with what is its own.

    Attributes:
      job: of the method.
      key: of its place.
      options: steps, chunk and stop.
    """

    job: Job
    key: Key
    options: Options


class Linked(NamedTuple):
    """State of the run.

    Attributes:
      link: number of the one under way, ``int64 []``.
      counts: steps done and examples seen by each finished one, ``int64 [links, 2]``.
      states: of each link.
      made: the model of each.
      prepared: what the preparation of each found.
    """

    link: np.ndarray
    counts: np.ndarray
    states: tuple[State, ...]
    made: tuple[Variables, ...]
    prepared: tuple[Any, ...]


def execute_chain(
    links: Sequence[Link],
    variables: Variables,
    sets: Sets,
    options: Options,
    follow: Callable[[Link, Variables, Outcome], Outcome],
    check: Callable[[Link, Variables], Variables],
) -> list[Outcome]:
    """Runs the links in turn and returns the outcome of each.

    Args:
      options: progress is told of steps of all links, diagnostics as ``<link>/<name>``.
      follow: makes of an outcome that from which the next link starts.
      check: raises where a link cannot start from variables, and returns these as it is given
        them.
    """
    before = check(links[0], variables)
    run = _Run(links, before, sets, options)
    for number, link in enumerate(links):
        before = check(link, before) if number else before
        if run.ready:  # made before the run was killed
            made = run.ready.pop(0)
        else:
            made = execute(link.job, before, sets, link.key, run.options(link))
        run.made.append(made)
        run.outcomes.append(follow(link, before, made))
        before = run.outcomes[number].variables
    return run.outcomes


class _Run:
    def __init__(
        self, links: Sequence[Link], variables: Variables, sets: Sets, options: Options
    ) -> None:
        self.given, self.count = options, len(links)
        self.made: list[Outcome] = []
        self.outcomes: list[Outcome] = []
        self.ready: list[Outcome] = []
        self.found: Resume | None = None
        if options.on_chunk is None and options.resume is None:
            return
        self.steps = [
            count_steps(one.job, visible_sets(one.job.unlearner.needs, sets), one.options.steps)
            for one in links
        ]
        self.blank = jax.tree.map(_zeros, _forms(links, variables, sets))
        found = options.resume(self._kept(None)) if options.resume else None
        if found is not None:
            self._take(found)

    def options(self, link: Link) -> Options:
        """Returns the options of the next link."""
        return link.options._replace(
            on_chunk=None if self.given.on_chunk is None else self._tell, resume=self._resume
        )

    def _kept(self, state: State) -> Linked:
        """Returns the state of the run, with that of the link under way, if there is one."""
        number, made = len(self.made), self.made
        states, models, prepared = self.blank
        counts = np.zeros((self.count, 2), np.int64)
        for place, one in enumerate(made):
            counts[place] = one.steps, one.examples
        return Linked(
            np.asarray(number, np.int64),
            counts,
            (*states[:number], states[number] if state is None else state, *states[number + 1 :]),
            (*(one.variables for one in made), *models[number:]),
            (*(one.prepared for one in made), *prepared[number:]),
        )

    def _tell(self, progress: Progress) -> None:
        assert self.given.on_chunk is not None
        number, before = len(self.made), sum(one.steps for one in self.made)
        ends = progress.step == progress.steps < self.steps[number]
        # one that a rule has ended must not be resumed behind its end: nothing is kept there
        steps = progress.step if ends else progress.steps + sum(self.steps[number + 1 :])
        self.given.on_chunk(progress._replace(
            state=self._kept(progress.state),
            step=before + progress.step,
            steps=before + steps,
            seconds=sum(one.seconds for one in self.made) + progress.seconds,
            history=name_by_link([*(one.history for one in self.made), progress.history]),
        ))  # fmt: skip

    def _resume(self, fresh: State) -> Resume | None:
        """Returns where the link under way goes on, its state laid out as a fresh one."""
        found, self.found = self.found, None
        if found is None:
            return None
        state = jax.tree.map(lambda leaf, like: lay(leaf, like.sharding), found.state, fresh)
        return found._replace(state=state)

    def _take(self, found: Resume) -> None:
        """Takes the finished links out of what was kept."""
        kept: Linked = found.state
        number = int(kept.link)
        parts: list[dict[str, np.ndarray]] = [{} for _ in range(self.count)]
        for name, values in found.history.items():
            label, _, own = name.partition("/")
            parts[int(label)][own] = values
        for place in range(number):
            steps, examples = map(int, kept.counts[place])
            self.ready.append(Outcome(
                jax.tree.map(jnp.asarray, kept.made[place]), parts[place], steps, examples,
                0.0, 0.0, prepared=kept.prepared[place],
            ))  # fmt: skip
        done = sum(one.steps for one in self.ready)
        self.found = found._replace(
            state=kept.states[number], step=found.step - done, history=parts[number]
        )


def name_by_link(histories: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins the diagnostics of links, as ``<link>/<name>``."""
    return {
        f"{number}/{name}": values
        for number, one in enumerate(histories)
        for name, values in one.items()
    }


def _forms(links: Sequence[Link], variables: Variables, sets: Sets) -> tuple[Any, Any, Any]:
    """Returns shapes and dtypes of the links' states, models and preparations."""
    states, models, found = list[Any](), list[Any](), list[Any]()
    for one in links:
        shown = visible_sets(one.job.unlearner.needs, sets)
        prepared = prepared_like(one.job.unlearner, variables, sets)
        # not within another program: what the functions keep of streams would be of that one
        state = init.eval_shape(variables, shown, one.key, prepared, job=one.job)
        variables = result.eval_shape(state, job=one.job)
        states.append(state)
        models.append(variables)
        found.append(prepared)
    return tuple(states), tuple(models), tuple(found)


def _zeros(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return np.zeros(leaf.shape, leaf.dtype)
