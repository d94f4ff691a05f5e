"""A function cut at a value on its way, or gone on with from another value of it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.jaxprs.flatten import bind
from jaxunlearn.jaxprs.primitives import Axis, Op
from jaxunlearn.jaxprs.program import Program, evaluate, trace
from jaxunlearn.jaxprs.replay import canonical
from jaxunlearn.jaxprs.steps import plan
from jaxunlearn.jaxprs.structure import Apply, read_last
from jaxunlearn.jaxprs.units import carry, contraction


class Cut(NamedTuple):
    """``fn(variables, x) = lower(variables, upper(variables, x), x)``.

    Attributes:
      upper: ``variables, x -> value [B, ...]``; on a CPU with its convolutions in
        the form that loops want (:mod:`jaxunlearn.jaxprs.replay`).
      lower: ``variables, value [B, ...], x -> output [B, ...]``. Of ``x`` only what does not go
        through the value is read; where all of one array does, the shape of one example serves.
    """

    upper: Apply
    lower: Callable[[Any, jax.Array, Any], jax.Array]


def cut_at_features(fn: Apply) -> Cut:
    """Cuts at what the last linear unit reads, ``[B, n]`` where the head is linear.

    Args:
      fn: ``(variables, x [B, ...]) -> logits [B, K]``.

    Returns:
      The two functions. While tracing they raise ``ValueError`` if ``fn`` has no linear unit,
      or if something of ``x`` goes around it.

    Source: own.
    """

    def place(program: Program) -> tuple[int, None]:
        value = read_last(program)
        # of a linear model the value is x itself
        if _needed(program, given=value)[1].intersection(program.xs) - {value}:
            raise ValueError("fn: expected all of x to go through the last linear unit, got a skip")
        return value, None

    return _cut(fn, place)


def cut_at_map(fn: Apply) -> Cut:
    """Cuts at the last value with positions, given as ``[B, h, w, C]`` whatever its layout.

    In a convolutional network what is pooled or flattened before the head. Whatever of ``x``
    it is made from goes through it alone; other leaves of ``x`` may join behind. Where no inner
    value is of this form, the value is ``x`` itself, or a leaf of it. Which axis the channels
    run along is followed in the trace: that of a linear unit's neurons, or what the next linear
    unit sums over; the last, where neither is known.

    Args:
      fn: ``(variables, x [B, ...]) -> output``, channels first or last.

    Returns:
      The two functions. While tracing they raise ``ValueError`` if there is no such value.

    Source: own.
    """
    return _cut(fn, _map)


class Layers(NamedTuple):
    """Values behind the linear units of a network, to be read and replaced; see :func:`layers`.

    Attributes:
      keys: ``variables, x -> keys of the units``, in execution order; shapes serve for arrays.
      values: ``variables, x -> ([B, ...], ...)``: the outputs of each unit, its bias added, as
        the function lays them out.
      patched: ``variables, x, number, value -> output``: goes on from another value of the unit
        at that place; what does not go through it (a skip) is that of ``variables`` and ``x``.
      maps: ``variables, x -> ([B, ..., C], ...)``: of the values those with positions, whatever
        their layout; empty for a network without.
    """

    keys: Callable[[Any, Any], tuple[str, ...]]
    values: Callable[[Any, Any], tuple[jax.Array, ...]]
    patched: Callable[[Any, Any, int, jax.Array], jax.Array]
    maps: Callable[[Any, Any], tuple[jax.Array, ...]]


def layers(fn: Apply) -> Layers:
    """Opens a network at all its linear units whose outputs keep the examples apart.

    Args:
      fn: ``(variables, x [B, ...]) -> output``.

    Source: own; patching as in the analysis of language models (Meng et al., NeurIPS 2022).
    """

    def places(program: Program) -> dict[str, int]:
        planned = plan(program)
        return {
            step.key: step.outs[0]
            for step in planned.steps
            if step.kind == "linear" and step.outs[0] in planned.examples
        }

    def keys(variables: Any, x: Any) -> tuple[str, ...]:
        return tuple(places(trace(fn, variables, x)))

    def values(variables: Any, x: Any) -> tuple[jax.Array, ...]:
        program = trace(fn, variables, x)
        env = evaluate(program, variables, x)
        return tuple(env[value] for value in places(program).values())

    def patched(variables: Any, x: Any, number: int, value: jax.Array) -> jax.Array:
        program = trace(fn, variables, x)
        place = [*places(program).values()][number]
        start = dict(zip(program.xs, jax.tree_util.tree_leaves(x), strict=True))
        return _evaluate(program, variables, start | {place: value}, given=place)

    def maps(variables: Any, x: Any) -> tuple[jax.Array, ...]:
        program = trace(fn, variables, x)
        env, made = evaluate(program, variables, x), _made_channels(program)
        found = []
        for value in places(program).values():
            shape, axis = program.shape(value), made.get(value)
            channels = len(shape) - 1
            if axis is not None and axis.dim and axis.exact(shape):
                channels = axis.dim
            if len(shape) > 2:
                found.append(jnp.moveaxis(env[value], channels, -1))
        return tuple(found)

    return Layers(keys, values, patched, maps)


def _map(program: Program) -> tuple[int, int]:
    """Returns the last value with more than one position, and the dimension of its channels."""
    data = [leaf for leaf in program.xs if leaf in program.data]
    batch = program.shape(data[0])[:1]
    made = _made_channels(program)
    inner = [value for op in reversed(program.ops) for value in op.outs]
    for value in [*inner, *data]:
        shape = program.shape(value) if value in program.data else ()
        if len(shape) != 4 or shape[:1] != batch:
            continue
        channel = _channel(program, value, made)
        positions = math.prod(shape[1:]) // max(shape[channel], 1)
        if positions > 1 and not _around(program, value).intersection(data):
            return value, channel
    shapes = [list(program.shape(leaf)) for leaf in data]
    raise ValueError(
        "fn: expected a network of images [B, H, W, C], got none of its values of this form "
        f"for x {shapes[0] if len(shapes) == 1 else shapes}"
    )


def _channel(program: Program, value: int, made: dict[int, Axis]) -> int:
    shape = program.shape(value)
    axis = made.get(value)
    if axis is not None and axis.dim and axis.exact(shape):
        return axis.dim
    return next((dim for dim in (3, 1, 2) if _read_along(program, value, dim)), 3)


def _made_channels(program: Program) -> dict[int, Axis]:
    """Returns, for values made by linear units, where the features of the last of them run.

    Behind a sum of branches, too, where all that are known run along one axis.
    """
    found: dict[int, Axis] = {}
    for op in program.ops:
        data = program.data_ins(op)
        if op.row.role == "linear":
            dims = contraction(op, program, data[0]) if len(data) == 1 else None
            if dims is not None and len(dims.made) == 1:
                (dim,) = dims.made
                found[op.outs[0]] = Axis(dim, 1, program.shape(op.outs[0])[dim])
            continue
        axes = {carry(op, program, i, found[op.ins[i]]) for i in data if op.ins[i] in found}
        axis = axes.pop() if len(axes) == 1 else None
        if axis is not None:
            found.update((out, axis) for out in op.outs)
    return found


def _read_along(program: Program, value: int, dim: int) -> bool:
    """Tells that a dimension is what the next linear unit sums over, or the output runs along."""
    found = {value: Axis(dim, 1, program.shape(value)[dim])}
    for op in program.ops:
        for place in program.data_ins(op):
            axis = found.get(op.ins[place])
            if axis is None:
                continue
            if op.row.role == "linear":
                pairs = contraction(op, program, place).contracted
                whole = axis.exact(program.shape(op.ins[place]))
                if whole and [first for first, _ in pairs] == [axis.dim]:
                    return True
                continue
            onward = carry(op, program, place, axis)
            if onward is not None:
                found.update((out, onward) for out in op.outs)
    last = found.get(program.out)
    return last is not None and last.dim > 0 and last.exact(program.shape(program.out))


def _cut(fn: Apply, place: Callable[[Program], tuple[int, int | None]]) -> Cut:
    """Cuts at a value; where the dimension of its channels is given, too, that is moved last."""

    def upper(variables: Any, x: Any) -> jax.Array:
        def run(variables: Any, x: Any) -> jax.Array:
            program = trace(fn, variables, x)
            start = dict(zip(program.xs, jax.tree_util.tree_leaves(x), strict=True))
            wanted, channel = place(program)
            value = _evaluate(program, variables, start, wanted=wanted)
            return value if channel is None else jnp.moveaxis(value, channel, -1)

        return canonical(run)(variables, x)

    def lower(variables: Any, value: jax.Array, x: Any) -> jax.Array:
        # shapes are part of a program: it is traced anew for as many examples as there are
        like = _like(x, value.shape[0])
        program = trace(fn, variables, like)
        leaves = [None] if isinstance(like, jax.ShapeDtypeStruct) else jax.tree_util.tree_leaves(x)
        given, channel = place(program)
        if channel is not None:
            value = jnp.moveaxis(value, -1, channel)
        start = dict(zip(program.xs, leaves, strict=True)) | {given: value}
        return _evaluate(program, variables, start, given=given)

    return Cut(upper, lower)


def _like(x: Any, count: int) -> Any:
    """Returns shapes and dtypes of ``count`` examples like those of ``x``, or of a shape."""
    if isinstance(x, tuple) and all(isinstance(size, int) for size in x):
        return jax.ShapeDtypeStruct((count, *x), jnp.float32)
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct((count, *v.shape[1:]), v.dtype), x)


def _around(program: Program, value: int) -> set[int]:
    """Returns what a value is made from and the output needs besides the value."""
    made_from = _needed(program, wanted=value)[1]
    return made_from & _needed(program, given=value)[1] - {value}


def _needed(
    program: Program, *, given: int | None = None, wanted: int | None = None
) -> tuple[list[Op], set[int]]:
    """Returns the operations from a value (or the input) to another (or the output).

    And all values that they read.
    """
    values = {program.out if wanted is None else wanted}
    ops = []
    for op in reversed(program.ops):
        if (values - {given}).intersection(op.outs):
            values.update(op.ins)
            ops.append(op)
    return ops[::-1], values


def _evaluate(
    program: Program,
    variables: Any,
    start: dict[int, Any],
    *,
    given: int | None = None,
    wanted: int | None = None,
) -> jax.Array:
    """Computes a value (default: the output) from known ones, of which ``given`` hides others."""
    env: dict[int, Any] = dict(program.consts)
    env.update(zip(program.leaves, jax.tree_util.tree_leaves(variables), strict=True))
    env.update(start)
    for op in _needed(program, given=given, wanted=wanted)[0]:
        outs = bind(op, [env[v] for v in op.ins])
        env.update((v, out) for v, out in zip(op.outs, outs, strict=True) if v not in start)
    result: jax.Array = env[program.out if wanted is None else wanted]
    return result
