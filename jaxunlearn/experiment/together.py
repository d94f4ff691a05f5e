"""The models of trials that share an original: those that are missing, made in one program."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax.numpy as jnp

from jaxunlearn.core.errors import DivergenceError
from jaxunlearn.data.sets import stack_sets
from jaxunlearn.engine import unlearn_many
from jaxunlearn.engine.driver import Outcome
from jaxunlearn.experiment.stages import Keeper, Stage
from jaxunlearn.experiment.work import Made, Record, Work, named, timed
from jaxunlearn.metrics.evaluate import member_of

Member = tuple[Work, str]
"""A trial and a stage of it, ``retrained/0``."""


def make_originals(home: Work, works: Sequence[Work]) -> list[Record]:
    """The record of the original as each trial judges it; it is trained once.

    Args:
      home: where lies what the trials share.
      works: one for each trial; ``home`` itself, if there is but one.
    """
    record = home.original()
    return [record if work is home else work.adopt(home, record) for work in works]


def make_retrained(home: Work, works: Sequence[Work]) -> list[list[Record]]:
    """The retrained models of each trial: the first timed alone, the others in one program."""
    count = home.plan.config.oracles
    members = [(work, number) for work in works for number in range(count)]
    records = [works[0].oracle(0)]
    others = [(work, f"retrained/{number}") for work, number in members[1:]]
    with _together(home, "retrained/others", others, cold=False) as made:
        for (work, number), one in zip(members[1:], made, strict=True):
            records.append(work.oracle(number, one))
    return [records[place : place + count] for place in range(0, len(records), count)]


def make_unlearned(home: Work, works: Sequence[Work], label: str) -> list[Record | DivergenceError]:
    """A method's model of each trial, all in one program; or how it failed there."""
    name = f"unlearned/{label}"
    members = [(work, name) for work in works]
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(_together(home, name, members, cold=True))
        except DivergenceError:
            # some trial's: each by itself, so that the others' are not lost
            made = [None] * len(works)
        return [_or_failure(work, label, one) for work, one in zip(works, made, strict=True)]


def _or_failure(work: Work, label: str, made: Made | None) -> Record | DivergenceError:
    try:
        return work.method(label, made)
    except DivergenceError as error:
        return error


@contextlib.contextmanager
def _together(
    home: Work, name: str, members: Sequence[Member], *, cold: bool
) -> Iterator[list[Made | None]]:
    """What one program made of each member; ``None``: is there already, or is made alone.

    Args:
      name: what progress is told of.
      cold: whether its time counts.
    """
    missing = [(work, stage) for work, stage in members if not work.there(stage)]
    inputs = {"members": [work.stages[stage].inputs for work, stage in missing]}
    shared = Stage(home.plan.folder / name.replace("/", "_"), inputs)
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
    """What makes the models of all members, given hooks."""
    tasks = [work.task(stage) for work, stage in members]
    sets = [work.plan.sets for work, _ in members]
    alike = all(one is sets[0] for one in sets)
    return partial(
        unlearn_many,
        tasks[0].method,
        tasks[0].variables,
        sets[0] if alike else stack_sets(sets),
        jnp.stack([task.key for task in tasks]),
        at_a_time=at_a_time,
        **tasks[0].options,
    )
