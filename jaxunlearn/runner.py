"""The runner: one compiled loop for every method.

It shows a method only the sets that it declared, draws batches on the device,
compiles a chunk of steps once, donates the state, and looks at the diagnostics
between chunks. Training is a method like any other (``retrain`` on all data).
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.data.sampling import draw_batches
from jaxunlearn.data.sets import num_examples
from jaxunlearn.ensemble import ensemble
from jaxunlearn.errors import DivergenceError, RequestError
from jaxunlearn.scannable import has_weight_gradient_convolution
from jaxunlearn.sharding import Sharding, constrain, constrain_batches, place, replicate
from jaxunlearn.types import Batches, Info, Key, Sets, State, Subset, Unlearner, Variables

__all__ = ["OnChunk", "Outcome", "Progress", "Resume", "ResumeFrom", "unlearn", "unlearn_many"]

CHUNK = 32
"""Steps between two looks at the diagnostics, where the loop is compiled."""


class Outcome(NamedTuple):
    """What a run gives back.

    Attributes:
      variables: the new model; shares no memory with the one given.
      history: each diagnostic as ``[steps]``, or ``[steps, members]``.
      steps: steps done.
      examples: examples seen, counted with repetition, by one member.
      seconds: wall time without compilation, data transfer of ``sets`` included.
      compile_seconds: time to trace, lower and compile.
    """

    variables: Variables
    history: dict[str, np.ndarray]
    steps: int
    examples: int
    seconds: float
    compile_seconds: float


class Resume(NamedTuple):
    """Where a killed run stood: the state after ``step`` steps and the time spent."""

    state: State
    step: int
    seconds: float
    history: dict[str, np.ndarray]


class Progress(NamedTuple):
    """What a callback sees after each chunk; ``state`` is donated by the next one.

    Copy or save ``state`` before returning.
    """

    state: State
    step: int
    steps: int
    seconds: float
    history: dict[str, np.ndarray]


OnChunk = Callable[[Progress], None]
ResumeFrom = Callable[[State], Resume | None]


class _Plan(NamedTuple):
    """All that is static in the compiled functions."""

    unlearner: Unlearner
    batch_size: int
    sharding: Sharding | None
    mapped: bool
    mapped_variables: bool
    mapped_sets: bool
    vectorise: bool


def _over(plan: _Plan, fn: Callable[..., Any], in_axes: tuple[Any, ...]) -> Callable[..., Any]:
    return ensemble(fn, in_axes, vectorise=plan.vectorise) if plan.mapped else fn


def _sets_axes(plan: _Plan) -> Any:
    if not plan.mapped_sets:
        return None
    present = [name for name in Batches._fields if getattr(plan.unlearner.needs, name)]
    return Sets(**{name: Subset(None, 0, 0) for name in present})  # type: ignore[arg-type]


@partial(jax.jit, static_argnames="plan")
def _init(variables: Variables, sets: Sets, key: Key, *, plan: _Plan) -> State:
    def one(variables: Variables, sets: Sets, key: Key) -> State:
        state = constrain(plan.unlearner.init(variables, sets, key), plan.sharding)
        # jit hands an unchanged input back as the same array; a donated copy of it
        # would take the user's model along
        return jax.tree.map(jnp.copy, state)

    axes = (0 if plan.mapped_variables else None, _sets_axes(plan), 0)
    return _over(plan, one, axes)(variables, sets, key)


@partial(jax.jit, static_argnames=("plan", "length"), donate_argnames="state")
def _advance(
    state: State, sets: Sets, key: Key, start: jax.Array, count: jax.Array, *, plan: _Plan,
    length: int,
) -> tuple[State, Info]:  # fmt: skip
    """``count`` steps, at most ``length``; diagnostics fill ``[length]`` places."""

    def step(state: State, sets: Sets, key: Key, number: jax.Array) -> tuple[State, Info]:
        batches = draw_batches(sets, key, number, plan.batch_size, plan.unlearner.needs)
        state, info = plan.unlearner.step(state, constrain_batches(batches, plan.sharding))
        return constrain(state, plan.sharding), info

    def one(state: State, sets: Sets, key: Key) -> tuple[State, Info]:
        if length == 1:
            state, info = step(state, sets, key, start)
            return state, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], info)
        blank = jax.eval_shape(step, state, sets, key, start)[1]
        infos = jax.tree.map(lambda leaf: jnp.zeros((length, *leaf.shape), leaf.dtype), blank)

        def body(turn: jax.Array, carry: tuple[State, Info]) -> tuple[State, Info]:
            state, info = step(carry[0], sets, key, start + turn)
            write = jax.tree.map(lambda all_, leaf: all_.at[turn].set(leaf), carry[1], info)
            return state, write

        # a count that is an array: the last, shorter chunk runs in the same program
        return jax.lax.fori_loop(0, count, body, (state, infos))

    return _over(plan, one, (0, _sets_axes(plan), 0))(state, sets, key)


@partial(jax.jit, static_argnames="plan")
def _result(state: State, *, plan: _Plan) -> Variables:
    def one(state: State) -> Variables:
        return constrain(plan.unlearner.result(state), plan.sharding)

    return _over(plan, one, (0,))(state)


class _Clock:
    """Compilation apart from everything else."""

    def __init__(self, already: float) -> None:
        self.start = time.perf_counter() - already
        self.compiling = 0.0

    def compile(self, make: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        made = make()
        self.compiling += time.perf_counter() - begin
        return made

    def running(self) -> float:
        return time.perf_counter() - self.start - self.compiling


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
      chunk: steps compiled into one loop. Default: 32, but 1 on CPU if the step
        holds XLA's weight gradient of a convolution, which is ruinous in a loop there.
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
      ValueError: ``steps`` given or missing contrary to ``needs``.
    """
    plan = _Plan(unlearner, _fitting(unlearner, batch_size), sharding, False, False, False, False)
    return _run(plan, variables, sets, key, steps, chunk, stop, on_chunk, resume)


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
    on_chunk: OnChunk | None = None,
    resume: ResumeFrom | None = None,
) -> Outcome:
    """:func:`unlearn` for many seeds, requests or models in one program.

    Args:
      keys: ``[R]``, one for each member.
      sets: shared, or stacked by ``stack_sets`` with one request for each member.
      stacked_variables: whether ``variables`` have a leading axis ``R``.
      vectorise: all members at once, or one after the other (default on CPU).

    The other arguments, and what is raised: as in :func:`unlearn`.

    Returns:
      An outcome whose variables have a leading axis ``R``; every member equals its
      own single run up to rounding.
    """
    mapped_sets = any(part is not None and part.size.ndim == 1 for part in sets)
    batch_size = _fitting(unlearner, batch_size)
    at_once = jax.default_backend() != "cpu" if vectorise is None else vectorise
    plan = _Plan(unlearner, batch_size, None, True, stacked_variables, mapped_sets, at_once)
    return _run(plan, variables, sets, keys, steps, chunk, None, on_chunk, resume)


def _fitting(unlearner: Unlearner, batch_size: int) -> int:
    """A method that looks at few samples does not pay for a padded batch."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a positive number, got {batch_size}")
    return min(batch_size, unlearner.needs.samples or batch_size)


def _visible(plan: _Plan, sets: Sets) -> Sets:
    """Only what the method declared, checked."""
    needs = plan.unlearner.needs
    names = [name for name in Batches._fields if getattr(needs, name)]
    for name in names:
        if num_examples(getattr(sets, name)) == 0:
            raise RequestError(
                f"sets: the method needs {name} examples, got none; "
                f"present: {[n for n in Batches._fields if num_examples(getattr(sets, n))]}"
            )
    shown = {name: getattr(sets, name) for name in names}
    if not needs.labels:
        hide = lambda s: s._replace(  # noqa: E731
            examples=s.examples._replace(y=jnp.full_like(s.examples.y, -1))
        )
        shown = {name: hide(part) for name, part in shown.items()}
    return Sets(**shown)


def _count_steps(plan: _Plan, sets: Sets, steps: int | None) -> int:
    needs = plan.unlearner.needs
    if not needs.once:
        if steps is None or steps < 1:
            raise ValueError(f"steps: expected a positive number for this method, got {steps}")
        return steps
    if steps is not None:
        raise ValueError(f"steps: expected None for a method of a single pass, got {steps}")
    largest = max(int(np.max(np.asarray(part.size))) for part in sets if part is not None)
    return math.ceil(min(largest, needs.samples or largest) / plan.batch_size)


def _run(plan, variables, sets, key, steps, chunk, stop, on_chunk, resume) -> Outcome:  # type: ignore[no-untyped-def]
    sets = _visible(plan, sets)
    steps = _count_steps(plan, sets, steps)
    clock = _Clock(0.0)
    if plan.sharding is not None:
        variables = place(variables, plan.sharding)
        sets, key = replicate((sets, key), plan.sharding)
    split = jax.vmap(jax.random.split) if plan.mapped else jax.random.split
    keys = split(key)
    first, order = (keys[:, 0], keys[:, 1]) if plan.mapped else (keys[0], keys[1])

    clock.compile(lambda: _init.lower(variables, sets, first, plan=plan).compile())
    state = jax.block_until_ready(_init(variables, sets, first, plan=plan))
    done, history = 0, {}
    found = resume(state) if resume else None
    if found is not None:
        state, done, history = found.state, found.step, dict(found.history)
        clock.start -= found.seconds

    zero = jnp.int32(0)
    if chunk is None:
        chunk = CHUNK
        if jax.default_backend() == "cpu":
            trace = lambda: _advance.trace(  # noqa: E731
                state, sets, order, zero, zero, plan=plan, length=CHUNK
            )
            if has_weight_gradient_convolution(clock.compile(trace).jaxpr):
                chunk = 1
    call = partial(_advance, plan=plan, length=chunk)
    clock.compile(
        lambda: _advance.lower(state, sets, order, zero, zero, plan=plan, length=chunk).compile()
    )
    while done < steps:
        count = min(chunk, steps - done)
        state, infos = call(state, sets, order, jnp.int32(done), jnp.int32(count))
        latest = _read(infos, count, done, plan.mapped)
        done += count
        history = {k: np.concatenate([history[k], v]) if k in history else v
                   for k, v in latest.items()}  # fmt: skip
        if on_chunk is not None:
            on_chunk(Progress(state, done, steps, clock.running(), history))
        if stop is not None and stop(latest):
            break
    clock.compile(lambda: _result.lower(state, plan=plan).compile())
    made = jax.block_until_ready(_result(state, plan=plan))
    seen = _examples_seen(plan, sets, done)
    return Outcome(made, history, done, seen, clock.running(), clock.compiling)


def _read(infos: Info, count: int, start: int, mapped: bool) -> dict[str, np.ndarray]:
    """A chunk's diagnostics on the host, ``[count]`` or ``[count, R]``; raises on NaN."""
    host = jax.device_get(infos)
    if mapped:
        host = jax.tree.map(lambda leaf: np.moveaxis(leaf, 0, 1), host)
    host = jax.tree.map(lambda leaf: leaf[:count], host)
    bad = np.flatnonzero(~host.finite.reshape(count, -1).all(axis=1))
    if len(bad):
        values = {name: leaf[bad[0]].tolist() for name, leaf in host.metrics.items()}
        raise DivergenceError(
            f"step {start + int(bad[0])}: expected finite loss and parameters, got {values}; "
            "a smaller learning rate may help"
        )
    return dict(host.metrics)


def _examples_seen(plan: _Plan, sets: Sets, steps: int) -> int:
    needs = plan.unlearner.needs
    parts = [part for part in sets if part is not None]
    if not needs.once:
        return steps * plan.batch_size * len(parts)
    sizes = [int(np.max(np.asarray(part.size))) for part in parts]
    return sum(min(size, needs.samples or size) for size in sizes)
