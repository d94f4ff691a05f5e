"""Models of trials that share an original: those that are missing, made in one program."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax.numpy as jnp

from jaxunlearn.data.sets import stack_sets
from jaxunlearn.engine import unlearn_many
from jaxunlearn.engine.driver import Outcome, member_of
from jaxunlearn.experiment.plan import Plan
from jaxunlearn.experiment.stages import Keeper, Stage
from jaxunlearn.experiment.trial import Made, Trial, is_fault_of_method, named, timed

Member = tuple[Trial, str]
"""A trial and a stage of it, ``retrained/0``."""


def make_retrained(home: Trial, trials: Sequence[Trial]) -> None:
    """Makes the retrained models of each trial: the first timed alone, the others together."""
    count = home.plan.config.retrained
    members = [(trial, f"retrained/{number}") for trial in trials for number in range(count)]
    trials[0].make("retrained/0")
    with _in_one_program(home, "retrained/others", members[1:], cold=False) as made:
        for (trial, name), one in zip(members[1:], made, strict=True):
            trial.make(name, one)


def make_unlearned(home: Trial, trials: Sequence[Trial], label: str) -> None:
    """Makes a method's model of each trial, all in one program; each notes how it failed."""
    name = f"unlearned/{label}"
    members = [(trial, name) for trial in trials]
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(_in_one_program(home, name, members, cold=True))
        except Exception as error:
            if not is_fault_of_method(error):
                raise
            # some trial's: each by itself, so that the others' are not lost
            made = [None] * len(trials)
        for trial, one in zip(trials, made, strict=True):
            trial.make(name, one)


def shared_keepers(home: Plan) -> list[Keeper]:
    """Lists what keeps the unfinished models that a program makes together."""
    names = ["retrained/others", *(f"unlearned/{label}" for label in home.methods)]
    return [Keeper(_shared(home, name, [])) for name in names]


def _shared(home: Plan, name: str, members: Sequence[Stage]) -> Stage:
    inputs = {"members": [stage.inputs for stage in members]}
    return Stage(home.folder / name.replace("/", "_"), inputs)


@contextlib.contextmanager
def _in_one_program(
    home: Trial, name: str, members: Sequence[Member], *, cold: bool
) -> Iterator[list[Made | None]]:
    """Yields what one program made of each member; ``None``: is there already, or made alone.

    Args:
      name: what progress is told of.
      cold: whether its time counts.
    """
    missing = [(trial, stage) for trial, stage in members if not trial.there(stage)]
    shared = _shared(home.plan, name, [trial.stages[stage] for trial, stage in missing])
    made: dict[Member, Made] = {}
    if len(missing) > 1 and home.plan.sharding is None:
        once, hooks = _program(missing, home.plan.config.at_a_time), home.hooks(shared, name)
        with named(name):
            many = timed(once, hooks) if cold else once(**hooks)
        for place, member in enumerate(missing):
            made[member] = Made(member_of(many, place), len(missing))
    yield [made.get(member) for member in members]
    Keeper(shared).forget()  # only now, that all are saved


def _program(members: Sequence[Member], at_a_time: int | None) -> Callable[..., Outcome]:
    """Returns what makes the models of all members, given hooks."""
    tasks = [trial.task(stage) for trial, stage in members]
    sets = [trial.sets_of(stage) for trial, stage in members]
    alike = all(one is sets[0] for one in sets)
    return partial(
        unlearn_many,
        tasks[0].method,
        tasks[0].start(),
        sets[0] if alike else stack_sets(sets),
        jnp.stack([task.key for task in tasks]),
        at_a_time=at_a_time,
        **tasks[0].options,
    )
