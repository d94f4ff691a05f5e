"""The Python side of a run: check, compile, loop over chunks, read diagnostics."""

import contextlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxunlearn.core.errors import DivergenceError, NoEffectError, RequestError
from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.core.processes import gathered
from jaxunlearn.core.trees import member, stack, to_device
from jaxunlearn.core.types import (
    Batches,
    Info,
    Key,
    Needs,
    Sets,
    State,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.data.batches import rows_like, streamed
from jaxunlearn.data.dataset import check_differ
from jaxunlearn.data.sets import alone, alone_like, forgets_class, num_examples, request
from jaxunlearn.engine.feed import Rows, readable_sets, rows_of_steps
from jaxunlearn.engine.loop import (
    Job,
    advance,
    has_weight_gradient_convolution,
    held_result,
    init,
    member_specs,
    result,
    sets_axes,
    unchanged,
    variables_axes,
)
from jaxunlearn.engine.sharding import Sharding, lay, place, replicate, tell_undivided
from jaxunlearn.engine.stop import Rule

CHUNK = 32
"""Steps between two looks at the diagnostics, where the loop is compiled."""

COMPILING = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
"""What jax tells of compilation; tracing, which may nest, is not counted."""


class Outcome(NamedTuple):
    """Result of a run.

    Attributes:
      variables: the new model; shares no memory with the one given.
      history: each diagnostic as ``[steps]``, or ``[steps, members]``.
      steps: steps done.
      examples: examples seen, counted with repetition, by one member.
      seconds: wall time without compilation and callbacks; laying out the arrays included.
      compile_seconds: time to trace, lower and compile; of a preparation, whose programs
        are its own, to lower and compile.
      prepared: what the method's preparation found, if it has one.
      memory: bytes that the largest of the compiled programs holds on one device while it
        runs: arguments (the data of its sets included), results and temporaries, an
        argument given up for a result counted once. ``None`` if the compiler does not tell.
        Allocators report a peak too, but that of the whole process: it never falls, so that
        of several runs in one process only the largest could be told.
    """

    variables: Variables
    history: dict[str, np.ndarray]
    steps: int
    examples: int
    seconds: float
    compile_seconds: float
    memory: int | None = None
    prepared: Any = None


class Resume(NamedTuple):
    """State of a killed run after ``step`` steps, and the time it had taken."""

    state: State
    step: int
    seconds: float
    history: dict[str, np.ndarray]


class Progress(NamedTuple):
    """State of a run after a chunk, for a callback; ``state`` is donated by the next chunk.

    Copy or save ``state`` before returning. Where ``step`` is ``steps`` the run ends, also by a
    rule of :mod:`jaxunlearn.engine.stop`.
    """

    state: State
    step: int
    steps: int
    seconds: float
    history: dict[str, np.ndarray]


OnChunk = Callable[[Progress], None]
ResumeFrom = Callable[[State], Resume | None]


class Options(NamedTuple):
    """Settings of the way through the steps; see :func:`jaxunlearn.unlearn`."""

    steps: int | None = None
    chunk: int | None = None
    stop: Rule | None = None
    on_chunk: OnChunk | None = None
    resume: ResumeFrom | None = None


class _Clock:
    """Clock that keeps compilation and callbacks apart from the run itself; memory too."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.compiling = 0.0
        self.outside = 0.0
        self.memory = 0

    @contextlib.contextmanager
    def account(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - begin)

    @contextlib.contextmanager
    def split(self) -> Iterator[None]:
        """Counts the compilation of programs that are not the run's own, apart."""
        spent: list[float] = []

        def note(event: str, duration_secs: float, **_: str | int) -> None:
            if event in COMPILING:
                spent.append(duration_secs)

        jax.monitoring.register_event_duration_secs_listener(note)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(note)
            self.compiling += sum(spent)

    def compile(self, jitted: Any, *args: Any, **options: Any) -> None:
        # jit keeps the program, so that the call that follows finds it
        with self.account("compiling"):
            program = jitted.lower(*args, **options).compile()
            self.memory = max(self.memory, _held(program))

    def running(self) -> float:
        return time.perf_counter() - self.start - self.compiling - self.outside


def execute(job: Job, variables: Variables, sets: Sets, key: Key, options: Options) -> Outcome:
    """Runs a job; see :func:`jaxunlearn.unlearn`."""
    _expect_suited(job.unlearner, sets)
    sets = visible_sets(job.unlearner.needs, sets)
    steps = count_steps(job, sets, options.steps)
    if job.unlearner.step is not None:
        tell_undivided(job.batch_size, job.sharding)
    clock = _Clock()
    told = sets, key  # as they are on the host, for what is read there
    if job.sharding is not None:
        variables = place(variables, job.sharding)
        sets, key = replicate((sets, key), job.sharding)
    if job.mesh is not None:
        axes = (variables_axes(job), sets_axes(job), 0)
        variables, sets, key = divide_members(job.mesh, axes, (variables, sets, key))
    before = clock.running()
    with readable_sets(told[0]):
        with clock.split():
            prepared = jax.block_until_ready(_prepare(job, variables, sets, key))
        preparing = clock.running() - before
        clock.compile(init, variables, sets, key, prepared, job=job)
        state = jax.block_until_ready(init(variables, sets, key, prepared, job=job))
    done, history = 0, {}
    with clock.account("outside"):
        found = options.resume(state) if options.resume else None
    if found is not None:
        state, done, history = found.state, found.step, dict(found.history)
        clock.start -= found.seconds
        clock.outside += preparing  # which the time of the killed run holds already

    chunk = CHUNK
    feed: Iterator[Rows | None] = itertools.repeat(None)
    rows: Rows | None = None
    if done < steps:
        with clock.account("compiling"):
            chunk = _chunk_length(job, variables, sets, key, prepared, options.chunk)
        if streamed(sets):
            starts = range(done, steps, chunk)
            feed = rows_of_steps(
                *told, starts, batch_size=job.batch_size, length=chunk, sharding=job.sharding
            )
            with clock.split():
                rows = next(feed, None)
        zero = np.int32(0)
        clock.compile(advance, state, sets, key, zero, zero, rows, job=job, length=chunk)
    with clock.account("outside"):
        _expect_examples(job, variables, sets)
    while done < steps:
        count = min(chunk, steps - done)
        state, infos = advance(
            state, sets, key, np.int32(done), np.int32(count), rows, job=job, length=chunk
        )
        spent, rows = rows, next(feed, None)  # while the device computes
        latest = _read(infos, count, done, job.mapped)
        jax.tree.map(lambda leaf: leaf.delete(), spent)
        done += count
        history = {
            name: np.concatenate([history[name], new]) if name in history else new
            for name, new in latest.items()
        }
        # asked first: a state that ends the run is not one to go on from
        ended = options.stop is not None and options.stop(latest)
        if options.on_chunk is not None:
            progress = Progress(state, done, done if ended else steps, clock.running(), history)
            with clock.account("outside"):
                options.on_chunk(progress)
        if ended:
            break
    with clock.account("compiling"):
        held = held_result(state, job)
    if held is None:
        clock.compile(result, state, job=job)
    made = jax.block_until_ready(result(state, job=job) if held is None else held.variables)
    with clock.account("outside"):
        _expect_effect(job, variables, made)
        _remark(job, history)
    seen = _examples_seen(job, sets, done)
    return Outcome(
        made, history, done, seen, clock.running(), clock.compiling, clock.memory or None, prepared
    )


def _chunk_length(
    job: Job, variables: Variables, sets: Sets, key: Key, prepared: Any, asked: int | None
) -> int:
    """Returns the steps of a chunk; one by default where rows are streamed, to bound the memory."""
    if streamed(sets) and (asked or 1) == 1:
        return 1
    slow = loops_badly(job, variables, sets, key, prepared)
    return min(asked or CHUNK, 1 if slow else CHUNK)


def divide_members(mesh: Mesh, axes: Any, tree: Any) -> Any:
    """Lays each device's members on it, and what they share on all; may share memory."""

    def laid(spec: PartitionSpec, part: Any) -> Any:
        where = NamedSharding(mesh, spec)
        return jax.tree.map(lambda leaf: lay(leaf, where), part)

    is_spec = lambda node: isinstance(node, PartitionSpec)  # noqa: E731
    return jax.tree.map(laid, member_specs(mesh, axes), tree, is_leaf=is_spec)


def _expect_examples(job: Job, variables: Variables, sets: Sets) -> None:
    """Raises a ``DataError`` where a network is trained on examples that are all alike."""
    if job.unlearner.model is None and variables is not None:  # of no network that is known
        return
    for name, part in (("sets.forget", sets.forget), ("sets.retain", sets.retain)):
        leaves = [] if part is None else jax.tree.leaves(part.examples.x)
        if leaves and all(leaf.is_fully_addressable for leaf in leaves):
            check_differ(name, leaves)


def _expect_suited(unlearner: Unlearner, sets: Sets) -> None:
    """Raises a :class:`RequestError` for a request that the method does not suit."""
    if {"class", "items"} <= set(unlearner.forgets) or sets.forget is None or sets.retain is None:
        return  # not told which
    for number in range(max(1, sets.forget.size.size)):
        asked = "class" if forgets_class(request(sets, number)) else "items"
        if asked not in unlearner.forgets:
            told = {"class": "classes", "items": "items"}
            able = " or ".join(told[one] for one in unlearner.forgets)
            raise RequestError(
                f"sets: {unlearner.name} forgets {able}, got a request for {told[asked]}"
            )


def _expect_effect(job: Job, before: Variables, after: Variables) -> None:
    """Raises :class:`NoEffectError` where a model, or a member, is what it was before."""
    before = before.inner if job.swept else before
    if len({jax.tree.structure(before), jax.tree.structure(after)}) > 1:
        return  # a model made from nothing
    # of the job only how members are mapped: all methods share the program
    alike = job._replace(unlearner=None, batch_size=0, sharding=None)  # type: ignore[arg-type]
    same = np.asarray(gathered(unchanged(before, after, job=alike)))
    if np.any(same):
        which = f" for {int(same.sum())} of {same.size} members" if job.mapped else ""
        raise NoEffectError(
            f"unlearner: expected a method that changes the model, got variables equal to those "
            f"given, bit for bit{which}; is its budget, learning rate or number of steps too small?"
        )


def _remark(job: Job, history: Mapping[str, np.ndarray]) -> None:
    """Warns of what the method says of its last step; of several members of each one."""
    remarks = job.unlearner.remarks
    if remarks is None or not history:
        return
    last = {name: np.ravel(values[-1]) for name, values in history.items()}
    for number in range(max(values.size for values in last.values())):
        named = f"member {number}: " if job.mapped else ""
        for words in remarks({name: float(values[number]) for name, values in last.items()}):
            warnings.warn(f"{named}{words}", stacklevel=2)


def prepare(unlearner: Unlearner, variables: Variables, sets: Sets, key: Key) -> Any:
    """Runs a method's preparation on the sets that it declared; ``None`` if it has none.

    Args:
      key: of the run.
    """
    if unlearner.prepare is None:
        return None
    visible = visible_sets(unlearner.needs, sets)
    with readable_sets(visible):
        shown = alone(visible)
        return unlearner.prepare.run(variables, shown, derive(key, Purpose.PREPARATION))


def prepared_like(unlearner: Unlearner, variables: Variables, sets: Sets) -> Any:
    """Returns shapes and dtypes of what a preparation will find; ``None`` if there is none.

    It is told shapes and dtypes of the sets that the method declared, and no values.
    """
    if unlearner.prepare is None:
        return None
    shown = alone_like(visible_sets(unlearner.needs, sets))
    return unlearner.prepare.shapes(variables, shown)


def _prepare(job: Job, variables: Variables, sets: Sets, key: Key) -> Any:
    """Runs the preparation; of several members one after the other."""
    if job.unlearner.prepare is None:
        return None
    # of one member; what cannot work is told before any work
    variables = variables.inner if job.swept else variables
    like = jax.eval_shape(lambda v: member(v, 0), variables) if job.mapped_variables else variables
    prepared_like(job.unlearner, like, request(sets, 0))
    if not job.mapped:
        found = prepare(job.unlearner, variables, sets, key)
        return found if job.sharding is None else _on_mesh(found, job.sharding)
    if job.mesh is not None:  # each process prepares all members for itself
        variables, sets, key = gathered((variables, sets, key))
    each = [
        prepare(
            job.unlearner,
            member(variables, n) if job.mapped_variables else variables,
            request(sets, n),
            key[n],
        )
        for n in range(len(key))
    ]
    stacked = stack(each)
    return stacked if job.mesh is None else divide_members(job.mesh, 0, stacked)


def _on_mesh(found: Any, sharding: Sharding) -> Any:
    """Lays out what a preparation found, but for what it divided over the mesh itself."""

    def one(leaf: Any) -> Any:
        own = getattr(leaf, "sharding", None)
        kept = isinstance(own, NamedSharding) and own.mesh == sharding.mesh
        return leaf if kept else replicate(leaf, sharding)

    return jax.tree.map(one, found)


def _held(program: Any) -> int:
    """Returns the bytes a compiled program holds on one device; 0 if the compiler is silent."""
    told = program.memory_analysis()
    if told is None:
        return 0
    whole = told.argument_size_in_bytes + told.output_size_in_bytes + told.temp_size_in_bytes
    return whole - told.alias_size_in_bytes


def visible_sets(needs: Needs, sets: Sets) -> Sets:
    """Returns only the sets a method declared; :class:`RequestError` if one is missing."""
    names = [name for name in Batches._fields if getattr(needs, name)]
    for name in names:
        if num_examples(getattr(sets, name)) == 0:
            raise RequestError(
                f"sets: the method needs {name} examples, got none; "
                f"present: {[n for n in Batches._fields if num_examples(getattr(sets, n))]}"
            )
    shown = {name: getattr(sets, name) for name in names}
    if not needs.labels:
        shown = {name: _without_labels(part) for name, part in shown.items()}
    return Sets(**shown)


def _without_labels(part: Subset) -> Subset:
    y = part.examples.y
    hidden = to_device(np.full(y.shape, -1, y.dtype))
    return part._replace(examples=part.examples._replace(y=hidden))


def count_steps(job: Job, sets: Sets, steps: int | None) -> int:
    """Returns how many steps a run takes; of a single pass what follows from its sets."""
    needs = job.unlearner.needs
    if not needs.once:
        if steps is None or steps < 1:
            raise ValueError(f"steps: expected a positive number for this method, got {steps}")
        return steps
    if steps is not None:
        raise ValueError(f"steps: expected None for a method of a single pass, got {steps}")
    if job.unlearner.step is None:
        return 0
    largest = max(int(np.max(np.asarray(part.size))) for part in sets if part is not None)
    return math.ceil(min(largest, needs.samples or largest) / job.batch_size)


def loops_badly(job: Job, variables: Variables, sets: Sets, key: Key, prepared: Any) -> bool:
    """Tells whether this is a CPU and the step must not run in a compiled loop there.

    Args:
      prepared: arrays, or their shapes and dtypes.
    """
    if jax.default_backend() != "cpu" or job.unlearner.step is None:
        return False
    zero = np.int32(0)
    state = jax.eval_shape(partial(init, job=job), variables, sets, key, prepared)
    rows = rows_like(sets, job.batch_size, CHUNK)
    traced = advance.trace(state, sets, key, zero, zero, rows, job=job, length=CHUNK)
    return has_weight_gradient_convolution(traced.jaxpr)


def _read(infos: Info, count: int, start: int, mapped: bool) -> dict[str, np.ndarray]:
    """Reads a chunk's diagnostics, ``[count]`` or ``[count, R]``; raises on NaN."""
    host = jax.device_get(gathered(infos))
    if mapped:
        host = jax.tree.map(lambda leaf: np.moveaxis(leaf, 0, 1), host)
    host = jax.tree.map(lambda leaf: leaf[:count], host)
    bad = np.flatnonzero(~host.finite.reshape(count, -1).all(axis=1))
    if len(bad):
        values = {name: leaf[bad[0]].tolist() for name, leaf in host.metrics.items()}
        raise DivergenceError(
            f"step {start + int(bad[0])}: expected a finite loss and update, got one that is not, "
            f"with {values}; a smaller learning rate may help"
        )
    return dict(host.metrics)


def _examples_seen(job: Job, sets: Sets, steps: int) -> int:
    needs = job.unlearner.needs
    parts = [part for part in sets if part is not None]
    if not needs.once:
        return steps * job.batch_size * len(parts)
    sizes = [int(np.max(np.asarray(part.size))) for part in parts]
    return sum(min(size, needs.samples or size) for size in sizes)


def member_of(many: Outcome, number: int) -> Outcome:
    """Takes one model out of an ensemble's outcome, with its share of the time.

    The memory stays that of the program for all of them: one alone may need more than its
    share.
    """
    count = jax.tree.leaves(many.variables)[0].shape[0]
    variables, prepared = member((many.variables, many.prepared), number)
    return many._replace(
        variables=variables,
        history={name: value[:, number] for name, value in many.history.items()},
        prepared=prepared,
        seconds=many.seconds / count,
        compile_seconds=many.compile_seconds / count,
    )
