"""The runner: one compiled loop for every method.

It shows a method only the sets that it declared, draws batches on the device, compiles a chunk
of steps once, donates the state, and looks at the diagnostics between chunks. Training is a
method like any other (``retrain`` on all data). Methods compose: ``chain(edit, repair)``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.errors import ConfigError, expect
from jaxunlearn.core.keys import Purpose, check_key, derive
from jaxunlearn.core.trees import member
from jaxunlearn.core.types import Batches, Key, Model, Sets, Subset, Unlearner, Variables
from jaxunlearn.core.variables import check_variables, in_form_of
from jaxunlearn.data.batches import streamed
from jaxunlearn.data.examples import has_readers, inputs_like
from jaxunlearn.data.sets import request
from jaxunlearn.engine import stop as stop
from jaxunlearn.engine.chains import Link, execute_chain, name_by_link
from jaxunlearn.engine.driver import (
    OnChunk,
    Options,
    Outcome,
    ResumeFrom,
    execute,
    loops_badly,
    prepared_like,
    visible_sets,
)
from jaxunlearn.engine.in_turn import execute_in_turn
from jaxunlearn.engine.loop import Job
from jaxunlearn.engine.sharding import Sharding, check_divides
from jaxunlearn.engine.sweep import Sweep, Swept, sweep
from jaxunlearn.models.adapt import check_given

__all__ = ["Chain", "Outcome", "Sweep", "chain", "stop", "sweep", "unlearn", "unlearn_many"]


class Chain(NamedTuple):
    """Methods one after the other; :func:`chain` makes one.

    Attributes:
      links: each method with the arguments of :func:`unlearn` that are its own.
    """

    links: tuple[tuple[Unlearner, Mapping[str, Any]], ...]


def chain(*links: Unlearner | tuple[Unlearner, Mapping[str, Any]]) -> Chain:
    """Composes methods: each starts from the model that the one before it made.

    ``unlearn(chain(neuron_path(model), finetune(model)), variables, sets, key, steps=50)`` edits,
    then repairs. Each method sees only the sets that it declares itself: an edit that needs no
    training data stays zero-shot, whatever follows. A chain that was killed goes on within the
    link that was under way; diagnostics are kept as ``<link>/<name>``.

    Args:
      links: methods, at least one; or pairs of a method and its own ``steps``, ``batch_size``,
        ``chunk`` or ``stop``, which take the place of those given to :func:`unlearn`.

    Raises:
      TypeError: a link is neither.
    """
    made: list[tuple[Unlearner, Mapping[str, Any]]] = []
    for number, link in enumerate(links):
        method, options = (link, {}) if isinstance(link, Unlearner) else link
        expect(f"links[{number}]", method, Unlearner)
        unknown = set(options) - {"steps", "batch_size", "chunk", "stop"}
        if unknown:
            raise TypeError(
                f"links[{number}]: expected steps, batch_size, chunk or stop, got {sorted(unknown)}"
            )
        made.append((method, dict(options)))
    if not made:
        raise TypeError("links: expected at least one method, got none")
    return Chain(tuple(made))


def unlearn(
    unlearner: Unlearner | Chain,
    variables: Variables,
    sets: Sets,
    key: Key,
    *,
    steps: int | None = None,
    batch_size: int = 128,
    chunk: int | None = None,
    sharding: Sharding | None = None,
    stop: stop.Rule | None = None,
    on_chunk: OnChunk | None = None,
    resume: ResumeFrom | None = None,
) -> Outcome:
    """Runs a method and returns the new model; ``variables`` stay untouched.

    Args:
      unlearner: the method, or a chain of methods.
      variables: the original model; ``None`` for a method that makes its own.
      sets: the sets of the request; only those declared in ``needs`` are passed on.
      key: fixes every random choice.
      steps: how many; not for a method with ``needs.once``, whose number follows
        from the size of its sets. In a chain: of each method that takes a number.
      batch_size: ``B``, of each set.
      chunk: steps compiled into one loop, at most. Default: 32, and 1 where a set is streamed,
        of which three chunks are held at once; always 1 on CPU if the step holds XLA's weight
        gradient of a convolution, ruinous in a loop there.
      sharding: mesh and rules; ``None`` leaves the arrays where they are.
      stop: a rule of :mod:`jaxunlearn.engine.stop`, called after each chunk with that chunk's
        diagnostics, each ``[steps]``; true ends the run.
      on_chunk: called after each chunk, to show progress or to save the state.
      resume: called with the fresh state; may return where to continue instead.

    Returns:
      The outcome; running it again with the same arguments gives the same numbers.

    Raises:
      RequestError: a set that the method needs is missing or empty.
      DivergenceError: a step reported a loss or update that is not finite.
      ValueError: ``steps`` given or missing contrary to ``needs``, or stacked sets.
      ConfigError: variables that are not the network's, labels that it has no output for, or
        an axis of the mesh that divides no parameter.
      DataError: the examples of a set are all alike.
    """
    variables = _checked(unlearner, variables, sets, sharding, batch_size)
    check_divides(variables, sharding)
    check_key(key)
    if any(part is not None and part.size.ndim for part in sets):
        raise ValueError("sets: expected those of one request, got stacked ones: use unlearn_many")
    options = Options(steps, chunk, stop, on_chunk, resume)
    if isinstance(unlearner, Chain):
        return _unlearn_chain(unlearner, variables, sets, key, batch_size, sharding, options)
    job = Job(unlearner, _fitting(unlearner, batch_size), sharding)
    made = execute(job, variables, sets, key, options)
    return _as_given(variables, made)


def _unlearn_chain(
    links: Chain,
    variables: Variables,
    sets: Sets,
    key: Key,
    batch_size: int,
    sharding: Sharding | None,
    options: Options,
) -> Outcome:
    """Runs the links in turn; diagnostics are kept as ``<link>/<name>``."""
    made: list[Link] = []
    for number, (method, own) in enumerate(links.links):
        given: dict[str, Any] = {"batch_size": batch_size, "chunk": options.chunk}
        if not method.needs.once:  # whose steps follow from its sets
            given |= {"steps": options.steps, "stop": options.stop}
        chosen = {**given, **own}
        job = Job(method, _fitting(method, chosen.pop("batch_size")), sharding)
        made.append(Link(job, derive(key, Purpose.LINK, number), Options(**chosen)))

    def check(link: Link, before: Variables) -> Variables:
        found = _checked(link.job.unlearner, before, sets, sharding, link.job.batch_size)
        check_divides(found, sharding)
        return found

    def follow(link: Link, before: Variables, outcome: Outcome) -> Outcome:
        return _as_given(before, outcome)

    return _joined(execute_chain(made, variables, sets, options, follow, check))


def _joined(outcomes: list[Outcome]) -> Outcome:
    """Joins what the links of a chain took and reported."""
    return outcomes[-1]._replace(
        history=name_by_link([one.history for one in outcomes]),
        steps=sum(one.steps for one in outcomes),
        examples=sum(one.examples for one in outcomes),
        seconds=sum(one.seconds for one in outcomes),
        compile_seconds=sum(one.compile_seconds for one in outcomes),
        memory=max((one.memory or 0 for one in outcomes), default=0) or None,
        prepared=[one.prepared for one in outcomes],
    )


def unlearn_many(
    unlearner: Unlearner | Chain | Sweep,
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
    sharding: Sharding | None = None,
    on_chunk: OnChunk | None = None,
    resume: ResumeFrom | None = None,
) -> Outcome:
    """Runs a method for many seeds, subsets, requests, models or settings in one program.

    Args:
      unlearner: a method or a chain; or one for each member, that differ in numbers
        (``ju.sweep``).
      keys: ``[R]``, one for each member.
      sets: shared, or stacked by ``stack_sets`` with one request for each member.
      stacked_variables: whether ``variables`` have a leading axis ``R``.
      vectorise: all members at once, or one after the other (default on CPU).
      at_a_time: where memory is short, so many vectorised members at a time.
      sharding: a mesh over whose first axis the members are divided; each device makes its own,
        and nothing is sent between them. Its rules are not read.

    The other arguments and errors are those of :func:`unlearn`; and ``ValueError``
    where the leading axes of keys, sets and variables differ, or for streamed sets on a mesh.

    Returns:
      An outcome whose variables have a leading axis ``R``; every member equals its
      own single run up to rounding.
    """
    swept = unlearner.options if isinstance(unlearner, Sweep) else None
    unlearner = unlearner.method if isinstance(unlearner, Sweep) else unlearner
    variables = _checked(unlearner, variables, sets, sharding, batch_size, stacked_variables)
    check_key(keys, "keys", several=True)
    mapped_sets = _check_members(variables if stacked_variables else None, sets, keys)
    _check_division(len(keys), sharding)
    if sharding is not None and streamed(sets):
        raise ValueError(
            "sharding: expected None for many models of streamed sets, which are made one after "
            "the other, got a mesh; unlearn and train divide each batch over one"
        )
    at_once = jax.default_backend() != "cpu" if vectorise is None else vectorise
    if isinstance(unlearner, Chain):
        outcomes: list[Outcome] = []
        for number, (method, own) in enumerate(unlearner.links):
            if "stop" in own:
                raise ValueError("stop: expected none where many run in one program, got a rule")
            given = {"steps": None if method.needs.once else steps, **own}
            own_keys = jax.vmap(lambda key, n=number: derive(key, Purpose.LINK, n))(keys)
            made = unlearn_many(
                method, variables, sets, own_keys, stacked_variables=stacked_variables,
                vectorise=vectorise, at_a_time=at_a_time, sharding=sharding, on_chunk=on_chunk,
                **{"batch_size": batch_size, "chunk": chunk, **given},
            )  # fmt: skip
            outcomes.append(made)
            variables, stacked_variables = made.variables, True
        return _joined(outcomes)
    options = Options(steps, chunk, None, on_chunk, resume)
    given = variables
    if swept is not None:
        _check_numbers(swept, len(keys))
        variables = Swept(swept, variables)
    alone = Job(unlearner, _fitting(unlearner, batch_size), swept=swept is not None)
    job = alone._replace(
        mapped=True,
        mapped_variables=stacked_variables,
        mapped_sets=mapped_sets,
        mapped_readers=any(part is not None and has_readers(part.examples) for part in sets),
        vectorise=at_once,
        at_a_time=at_a_time,
        mesh=None if sharding is None else sharding.mesh,
    )

    def variables_of(n: int) -> Variables:
        own = member(given, n) if stacked_variables else given
        return own if swept is None else Swept(member(swept, n), own)

    def arguments(n: int) -> tuple[Variables, Sets, Key]:
        return variables_of(n), request(sets, n), keys[n]

    # of shapes alone: members are taken out only where each runs by itself
    like = jax.eval_shape(lambda: (variables_of(0), keys[0]))

    apart = bool(streamed(sets))  # each member draws rows of its own
    if not apart and (at_once or not _loops_badly(alone, like[0], request(sets, 0), like[1])):
        return _as_given(given, execute(job, variables, sets, keys, options))
    # one program for all would hold a loop over members, ruinous for some convolutions
    made = execute_in_turn(alone, arguments, len(keys), options)
    return _as_given(given, made)


def _check_division(members: int, sharding: Sharding | None) -> None:
    """Raises a :class:`ValueError` where the devices do not divide the members."""
    if sharding is not None:
        axis = sharding.mesh.axis_names[0]
        devices = sharding.mesh.shape[axis]
        if members % devices or devices != sharding.mesh.size:
            raise ValueError(
                f"sharding: expected one axis of devices that divide the {members} members, got "
                f"{dict(sharding.mesh.shape)}"
            )


def _check_numbers(options: Mapping[str, jax.Array], members: int) -> None:
    """Raises a :class:`ValueError` where a sweep has not as many numbers as there are members."""
    counts = {name: len(values) for name, values in options.items()}
    if set(counts.values()) != {members}:
        raise ValueError(f"unlearner: expected numbers of {members} members, got {counts}")


def _checked(
    unlearner: Unlearner | Chain,
    variables: Variables,
    sets: Sets,
    sharding: Sharding | None,
    batch_size: int,
    stacked: bool = False,
) -> Variables:
    """Checks what a run is given, against the network where the method tells it.

    Returns:
      The variables, numbers among them as arrays.
    """
    if not isinstance(unlearner, Chain):
        expect("unlearner", unlearner, Unlearner)
    variables = check_variables(variables)
    expect("sets", sets, Sets, "; make_sets or stack_sets makes them")
    if sharding is not None:
        expect("sharding", sharding, Sharding, "; make_sharding makes one")
    # the links of a chain are checked one by one
    if isinstance(unlearner, Chain) or unlearner.model is None:
        return variables
    if variables is None:
        raise TypeError("variables: expected those of a model, got None")
    names = [name for name in Batches._fields if getattr(unlearner.needs, name)]
    parts = {name: part for name in names if (part := getattr(sets, name)) is not None}
    if parts:
        one = jax.eval_shape(lambda v: member(v, 0), variables) if stacked else variables
        outputs = check_given(unlearner.model, one, inputs_like(next(iter(parts.values())), 2))
        shape = [batch_size, *outputs[0].shape[1:]]
        labelled = all(part.examples.y.ndim == 1 for part in parts.values())
        of_classes = isinstance(unlearner.model, Model) and labelled and len(outputs) == 1
        if of_classes and len(shape) > 2:
            raise ConfigError(f"model: expected logits [B, K] = [{batch_size}, K], got {shape}")
        for name, part in parts.items():
            _check_labels(part, outputs, f"sets.{name}")
    return variables


def _check_labels(part: Subset, outputs: Sequence[Any], name: str) -> None:
    """Raises where classes of the examples are more than the network knows."""
    y, places = part.examples.y, np.asarray(part.indices)
    logits = len(outputs) == 1 and len(outputs[0].shape) == 2
    classes_here = y.ndim == 1 and jnp.issubdtype(y.dtype, jnp.integer) and places.size
    if not logits or not classes_here or not y.is_fully_addressable:
        return
    own, classes = np.asarray(y)[places], outputs[0].shape[1]
    if own.min() < 0 or own.max() >= classes:
        got = own.min() if own.min() < 0 else own.max()
        raise ConfigError(
            f"{name}: expected labels from 0 to {classes - 1}, as the network has {classes} "
            f"outputs, got {got}"
        )


def _as_given(variables: Variables, made: Outcome) -> Outcome:
    """Puts the new model into the containers of the given one, also where it was drawn anew."""
    if variables is None:
        return made
    try:
        return made._replace(variables=in_form_of(variables, made.variables))
    except ConfigError:  # a method may make another network
        return made


def _check_members(stacked: Variables, sets: Sets, keys: Key) -> bool:
    """Tells whether the sets are stacked; :class:`ValueError` if leading axes differ."""
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
    """Returns the batch size; a method that looks at few samples pays for no padding."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected a positive number, got {batch_size}")
    return min(batch_size, unlearner.needs.samples or batch_size)


def _loops_badly(job: Job, variables: Variables, sets: Sets, key: Key) -> bool:
    sets = visible_sets(job.unlearner.needs, sets)
    prepared = prepared_like(job.unlearner, variables.inner if job.swept else variables, sets)
    return loops_badly(job, variables, sets, key, prepared)
