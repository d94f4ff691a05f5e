"""The runner: one compiled loop for every method.

It shows a method only the sets that it declared, draws batches on the device,
compiles a chunk of steps once, donates the state, and looks at the diagnostics
between chunks. Training is a method like any other (``retrain`` on all data).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.errors import expect
from jaxunlearn.core.trees import member
from jaxunlearn.core.types import Key, Sets, Unlearner, Variables
from jaxunlearn.data.sets import request
from jaxunlearn.engine.driver import (
    OnChunk,
    Options,
    Outcome,
    ResumeFrom,
    execute,
    loops_badly,
    visible_sets,
)
from jaxunlearn.engine.loop import Job
from jaxunlearn.engine.sharding import Sharding

__all__ = ["unlearn", "unlearn_many", "within"]


def unlearn(
    unlearner: Unlearner,
    variables: Variables,
    sets: Sets,
    key: Key,
    *,
    steps: int | None = None,
    batch_size: int = 128,
    chunk: int | None = None,
    sharding: Sharding | None = None,
    stop: Callable[[dict[str, np.ndarray]], bool] | None = None,
    on_chunk: OnChunk | None = None,
    resume: ResumeFrom | None = None,
) -> Outcome:
    """Runs a method and returns the new model; ``variables`` stay untouched.

    Args:
      unlearner: the method.
      variables: the original model; ``None`` for a method that makes its own.
      sets: the sets of the request; only those declared in ``needs`` are passed on.
      key: fixes every random choice.
      steps: how many; not for a method with ``needs.once``, whose number follows
        from the size of its sets.
      batch_size: ``B``, of each set.
      chunk: steps compiled into one loop, at most. Default: 32; always 1 on CPU if the
        step holds XLA's weight gradient of a convolution, ruinous in a loop there.
      sharding: mesh and rules; ``None`` leaves the arrays where they are.
      stop: called after each chunk with that chunk's diagnostics, each ``[steps]``;
        true ends the run.
      on_chunk: called after each chunk, to show progress or to save the state.
      resume: called with the fresh state; may return where to continue instead.

    Returns:
      The outcome; running it again with the same arguments gives the same numbers.

    Raises:
      RequestError: a set that the method needs is missing or empty.
      DivergenceError: a step reported a loss or update that is not finite.
      ValueError: ``steps`` given or missing contrary to ``needs``, or stacked sets.
    """
    _check_kinds(unlearner, sets, sharding)
    if any(part is not None and part.size.ndim for part in sets):
        raise ValueError("sets: expected those of one request, got stacked ones: use unlearn_many")
    job = Job(unlearner, _fitting(unlearner, batch_size), sharding)
    return execute(job, variables, sets, key, Options(steps, chunk, stop, on_chunk, resume))


def unlearn_many(
    unlearner: Unlearner,
    variables: Variables,
    sets: Sets,
    keys: Key,
    *,
    stacked_variables: bool = False,
    steps: int | None = None,
    batch_size: int = 128,
    chunk: int | None = None,
    vectorise: bool | None = None,
    at_a_time: int | None = None,
    on_chunk: OnChunk | None = None,
    resume: ResumeFrom | None = None,
) -> Outcome:
    """:func:`unlearn` for many seeds, requests or models in one program.

    Args:
      keys: ``[R]``, one for each member.
      sets: shared, or stacked by ``stack_sets`` with one request for each member.
      stacked_variables: whether ``variables`` have a leading axis ``R``.
      vectorise: all members at once, or one after the other (default on CPU).
      at_a_time: where memory is short, so many vectorised members at a time.

    The other arguments, and what is raised: as in :func:`unlearn`; and ``ValueError``
    where the leading axes of keys, sets and variables differ.

    Returns:
      An outcome whose variables have a leading axis ``R``; every member equals its
      own single run up to rounding.
    """
    _check_kinds(unlearner, sets, None)
    mapped_sets = _check_members(variables if stacked_variables else None, sets, keys)
    at_once = jax.default_backend() != "cpu" if vectorise is None else vectorise
    options = Options(steps, chunk, None, on_chunk, resume)
    alone = Job(unlearner, _fitting(unlearner, batch_size))
    job = alone._replace(
        mapped=True,
        mapped_variables=stacked_variables,
        mapped_sets=mapped_sets,
        vectorise=at_once,
        at_a_time=at_a_time,
    )

    def arguments(n: int) -> tuple[Variables, Sets, Key]:
        own = member(variables, n) if stacked_variables else variables
        return own, request(sets, n), keys[n]

    if at_once or not _loops_badly(alone, *arguments(0)):
        return execute(job, variables, sets, keys, options)
    # one program for all would hold a loop over members, ruinous for such convolutions
    options = options._replace(resume=None)
    return _stack([execute(alone, *arguments(n), options) for n in range(len(keys))])


def within(**limits: float) -> Callable[[dict[str, np.ndarray]], bool]:
    """A stop rule: all of these metrics, averaged over a chunk, are at most their limits.

    ``unlearn(..., stop=within(forget_share=.005))``. Metrics that a method does not report
    are an error when first looked for.
    """

    def stop(history: dict[str, np.ndarray]) -> bool:
        missing = sorted(set(limits) - set(history))
        if missing:
            raise ValueError(f"stop: expected metrics among {sorted(history)}, got {missing}")
        return all(float(np.mean(history[name])) <= limit for name, limit in limits.items())

    return stop


def _check_kinds(unlearner: Unlearner, sets: Sets, sharding: Sharding | None) -> None:
    expect("unlearner", unlearner, Unlearner)
    expect("sets", sets, Sets, "; make_sets or stack_sets makes them")
    if sharding is not None:
        expect("sharding", sharding, Sharding, "; make_sharding makes one")


def _check_members(stacked: Variables, sets: Sets, keys: Key) -> bool:
    """Whether the sets are stacked; :class:`ValueError` if leading axes differ."""
    if keys.ndim != 1:
        raise ValueError(f"keys: expected one key a member, [R], got {list(keys.shape)}")
    present = {name: part for name, part in sets._asdict().items() if part is not None}
    sizes = {name: part.size.shape for name, part in present.items()}
    mapped = any(sizes.values())
    if mapped and any(size != keys.shape for size in sizes.values()):
        raise ValueError(f"sets: expected all stacked for {len(keys)} members, got sizes {sizes}")
    if any(leaf.shape[:1] != keys.shape for leaf in jax.tree.leaves(stacked)):
        raise ValueError(f"variables: expected a leading axis of {len(keys)} members in all leaves")
    return mapped


def _fitting(unlearner: Unlearner, batch_size: int) -> int:
    """A method that looks at few samples does not pay for a padded batch."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a positive number, got {batch_size}")
    return min(batch_size, unlearner.needs.samples or batch_size)


def _loops_badly(job: Job, variables: Variables, sets: Sets, key: Key) -> bool:
    sets = visible_sets(job.unlearner.needs, sets)
    prepare = job.unlearner.prepare
    prepared = None if prepare is None else prepare.shapes(variables, sets)
    return loops_badly(job, variables, sets, key, prepared)


def _stack(outcomes: list[Outcome]) -> Outcome:
    return outcomes[0]._replace(
        variables=jax.tree.map(lambda *leaves: jnp.stack(leaves), *(o.variables for o in outcomes)),
        history={
            name: np.stack([o.history[name] for o in outcomes], axis=1)
            for name in outcomes[0].history
        },
        prepared=jax.tree.map(lambda *leaves: jnp.stack(leaves), *(o.prepared for o in outcomes)),
        seconds=sum(o.seconds for o in outcomes),
        compile_seconds=sum(o.compile_seconds for o in outcomes),
    )
