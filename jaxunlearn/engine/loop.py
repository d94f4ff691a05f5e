"""The three compiled functions of a run: init, a chunk of steps, result.

They are compiled once for each job; ``jax.jit`` keeps the programs. Not every step may run
inside a compiled loop on CPU: XLA's weight gradient of a convolution is many times slower there
(jax issue 12868). The convolution of the built-in models avoids it; a user's own model may not.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Var
from jax.sharding import Mesh, PartitionSpec

from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.core.trees import ensemble
from jaxunlearn.core.types import (
    Batches,
    Examples,
    Info,
    Inputs,
    Key,
    Sets,
    State,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.data.batches import draw_batches
from jaxunlearn.data.sets import alone
from jaxunlearn.engine.communication import dividing_products
from jaxunlearn.engine.sharding import Sharding, constrain, constrain_batches, dividing
from jaxunlearn.engine.sweep import Swept


class Job(NamedTuple):
    """Settings that are static in the compiled functions.

    Attributes:
      unlearner: the method.
      batch_size: ``B``, of each set.
      sharding: mesh and rules, or ``None``.
      mapped: whether state, keys and diagnostics have a leading axis of members.
      mapped_variables, mapped_sets: whether these have it, too.
      mapped_readers: whether the statistics that examples are normalised by have it.
      swept: whether the variables are ``Swept``, with numbers of each member.
      vectorise: members at once, or one after the other.
      at_a_time: vectorised members at a time; ``None`` for all.
      mesh: over whose first axis the members are divided, each device doing its own; or ``None``.
    """

    unlearner: Unlearner
    batch_size: int
    sharding: Sharding | None = None
    mapped: bool = False
    mapped_variables: bool = False
    mapped_sets: bool = False
    mapped_readers: bool = False
    swept: bool = False
    vectorise: bool = False
    at_a_time: int | None = None
    mesh: Mesh | None = None


def _over(job: Job, fn: Callable[..., Any], in_axes: tuple[Any, ...]) -> Callable[..., Any]:
    if not job.mapped:
        return fn
    mapped = ensemble(fn, in_axes, vectorise=job.vectorise, batch_size=job.at_a_time)
    if job.mesh is None:
        return mapped
    # members have nothing to do with each other: each device maps over its own
    specs = member_specs(job.mesh, in_axes)
    out = PartitionSpec(job.mesh.axis_names[0])
    return jax.shard_map(mapped, mesh=job.mesh, in_specs=specs, out_specs=out, check_vma=False)


def member_specs(mesh: Mesh, axes: Any) -> Any:
    """Returns where arguments lie whose axis 0 is that of the members, or which they share."""
    first = PartitionSpec(mesh.axis_names[0])
    return jax.tree.map(
        lambda axis: PartitionSpec() if axis is None else first,
        axes,
        is_leaf=lambda node: node is None,
    )


def variables_axes(job: Job) -> Any:
    """Returns which leaves of the variables have an axis of members, as a prefix of their tree."""
    own = 0 if job.mapped_variables else None
    return Swept(0, own) if job.swept else own  # type: ignore[arg-type]


def sets_axes(job: Job) -> Any:
    """Returns which leaves of the sets have an axis of members, as a prefix of their tree."""
    if not job.mapped_sets:
        return None
    present = [name for name in Batches._fields if getattr(job.unlearner.needs, name)]
    examples = Examples(None, None, 0) if job.mapped_readers else None  # type: ignore[arg-type]
    return Sets(**{name: Subset(examples, 0, 0) for name in present})  # type: ignore[arg-type]


def init_key(key: Key) -> Key:
    """Returns the key that a method's ``init`` gets, of the key of the run."""
    return derive(key, Purpose.INIT)


def begin(unlearner: Unlearner, variables: Variables, sets: Sets, key: Key, prepared: Any) -> State:
    """Calls a method's own ``init``, with what it prepared, if it prepares anything."""
    if unlearner.prepare is None:
        return unlearner.init(variables, sets, key)
    return unlearner.init(variables, sets, key, prepared)


@partial(jax.jit, static_argnames="job")
def init(variables: Variables, sets: Sets, key: Key, prepared: Any, *, job: Job) -> State:
    """Returns the state before the first step; it shares no memory with what was given."""

    def one(variables: Variables, sets: Sets, key: Key, prepared: Any) -> State:
        shown = alone(sets)  # free where the method reads none of the examples
        state = begin(job.unlearner, variables, shown, init_key(key), prepared)
        # jit hands an unchanged input back as the same array; a donated copy of it
        # would take the user's model along
        copied = jax.tree.map(jnp.copy, constrain(state, job.sharding))
        # of copies, too, a compiler chooses the places: steps would be compiled for that choice
        return constrain(copied, job.sharding)

    axes = (variables_axes(job), sets_axes(job), 0, 0)
    return _over(job, one, axes)(variables, sets, key, prepared)


@partial(jax.jit, static_argnames=("job", "length"), donate_argnames="state")
def advance(
    state: State, sets: Sets, key: Key, start: jax.Array, count: jax.Array,
    rows: Mapping[str, Inputs] | None = None, *, job: Job, length: int,
) -> tuple[State, Info]:  # fmt: skip
    """Does ``count`` steps, at most ``length``; diagnostics fill ``[length]`` places.

    Args:
      rows: of streamed sets the stored examples of these steps, ``[length, B, ...]``, by name.
    """

    def step(
        state: State, sets: Sets, key: Key, number: jax.Array, turn: Any = 0
    ) -> tuple[State, Info]:
        order, own = derive(key, Purpose.BATCHES), derive(key, Purpose.STEPS, number)
        given = jax.tree.map(lambda leaf: leaf[turn], rows)
        batches = draw_batches(sets, order, number, job.batch_size, job.unlearner.needs, given)
        batches = constrain_batches(batches, job.sharding)
        assert job.unlearner.step is not None
        with dividing(job.sharding):
            taken = dividing_products(job.unlearner.step, job.sharding)
            state, info = taken(state, batches, own, number)
        return constrain(state, job.sharding), info

    def one(state: State, sets: Sets, key: Key) -> tuple[State, Info]:
        if length == 1:
            state, info = step(state, sets, key, start)
            return state, jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], info)

        # traced once, for the shapes of its diagnostics too; in the program as if it stood there
        @partial(jax.jit, inline=True)
        def after(state: State, turn: jax.Array) -> tuple[State, Info]:
            return step(state, sets, key, start + turn, turn)

        blank = jax.eval_shape(after, state, 0)[1]
        infos = jax.tree.map(lambda leaf: jnp.zeros((length, *leaf.shape), leaf.dtype), blank)

        def body(turn: jax.Array, carry: tuple[State, Info]) -> tuple[State, Info]:
            state, info = after(carry[0], turn)
            write = jax.tree.map(lambda all_, leaf: all_.at[turn].set(leaf), carry[1], info)
            return state, write

        # a count that is an array: the last, shorter chunk runs in the same program
        state, infos = jax.lax.fori_loop(0, count, body, (state, infos))
        # a compiler places what a loop carries anew; the next chunk would be compiled once more
        return constrain(state, job.sharding), infos

    return _over(job, one, (0, sets_axes(job), 0))(state, sets, key)


@partial(jax.jit, static_argnames="job")
def result(state: State, *, job: Job) -> Variables:
    """Returns the new model."""

    def one(state: State) -> Variables:
        return constrain(job.unlearner.result(state), job.sharding)

    return _over(job, one, (0,))(state)


class Held(NamedTuple):
    """New model that a state holds as it is."""

    variables: Variables


def held_result(state: State, job: Job) -> Held | None:
    """Returns the new model where the method's ``result`` only takes it out of the state.

    ``None`` where it is computed, or where a mesh says how it is to lie: there ``result`` is
    compiled.
    """
    if job.sharding is not None:
        return None
    # as its program traces it, which keeps what it traced
    traced = result.trace(state, job=job)
    jaxpr = traced.jaxpr.jaxpr
    leaves = dict(zip(jaxpr.invars, jax.tree.leaves(state), strict=True))
    taken = [var for var in jaxpr.outvars if isinstance(var, Var) and var in leaves]
    if jaxpr.eqns or len(taken) < len(jaxpr.outvars):
        return None
    form = jax.tree.structure(traced.out_info)
    return Held(jax.tree.unflatten(form, [leaves[var] for var in taken]))


@partial(jax.jit, static_argnames="job")
def unchanged(before: Variables, after: Variables, *, job: Job) -> jax.Array:
    """Tells whether two models are equal bit for bit, ``bool []``, or of each member."""

    def one(before: Variables, after: Variables) -> jax.Array:
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        return jnp.all(jnp.stack([_equal(a, b) for a, b in pairs]))

    return _over(job, one, (0 if job.mapped_variables else None, 0))(before, after)


def _equal(a: jax.Array, b: jax.Array) -> jax.Array:
    if a.shape != b.shape:
        return jnp.asarray(False)
    same = a == b
    if jnp.issubdtype(a.dtype, jnp.inexact):
        same |= jnp.isnan(a) & jnp.isnan(b)
    return jnp.all(same)


def has_weight_gradient_convolution(jaxpr: Jaxpr | ClosedJaxpr) -> bool:
    """Tells whether a jaxpr computes a convolution's weight gradient as a convolution on CPU.

    Such a convolution contracts over the batch: jax writes it with the batch of the
    left operand in the place of its features. Branches that
    ``jax.lax.platform_dependent`` keeps for other platforms do not count.
    """
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name == "conv_general_dilated":
            numbers = eqn.params["dimension_numbers"]
            if numbers.lhs_spec[0] != numbers.out_spec[0]:
                return True
        if any(has_weight_gradient_convolution(inner) for inner in _inner_on_cpu(eqn.params)):
            return True
    return False


def _inner_on_cpu(params: dict[str, Any]) -> list[Jaxpr | ClosedJaxpr]:
    platforms = params.get("branches_platforms")
    if platforms is not None:
        chosen = next(n for n, names in enumerate(platforms) if names is None or "cpu" in names)
        return [params["branches"][chosen]]
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Jaxpr | ClosedJaxpr):
                found.append(item)
    return found
