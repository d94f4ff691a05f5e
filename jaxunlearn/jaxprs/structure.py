"""What a function is made of, read off its trace: its linear units in order, and
the features that the last of them reads.

A function cut in two, at a value that all of the data goes through.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.jaxprs.program import Program, bind, evaluate, trace
from jaxunlearn.jaxprs.replay import canonical
from jaxunlearn.jaxprs.steps import plan
from jaxunlearn.jaxprs.units import Unit


def structure(
    fn: Callable[[Any, jax.Array], jax.Array], variables: Any, x: Any
) -> tuple[Unit, ...]:
    """The linear units of ``fn(variables, x)``, in execution order.

    Works on any function that JAX can trace, also one with operations that
    relevance propagation does not cover: no unit is then the producer of
    another across such an operation. Units inside loops are not seen.

    Args:
      fn: ``(variables, x [B, ...]) -> logits [B, K]``.
      variables: a pytree of arrays, or of their shapes and dtypes.
      x: the data, or its shape and dtype.

    Raises:
      TypeError: if ``x`` or the output is not one array.
      ValueError: if the output does not depend on ``x``.

    Source: own.
    """
    return plan(trace(fn, variables, x)).units


def head(fn: Callable[[Any, jax.Array], jax.Array], variables: Any, x: Any) -> Unit | None:
    """The linear unit whose outputs the logits are, one by one, in their order.

    Args: as in :func:`structure`.

    Returns:
      The unit; ``None`` where the logits are made otherwise (a sum or product of two
      units, a part of one).

    Source: own.
    """
    planned = plan(trace(fn, variables, x))
    found = planned.neurons.get(planned.program.out)
    if found is None or found[1].dim != 1:
        return None
    return planned.units[found[0]]


def features(fn: Callable[[Any, jax.Array], jax.Array]) -> Callable[[Any, jax.Array], jax.Array]:
    """The function that computes what the last linear unit of ``fn`` reads.

    With a linear head these are the penultimate features, ``[B, n]``: what a
    linear probe is fitted to.

    Args:
      fn: ``(variables, x [B, ...]) -> logits [B, K]``.

    Returns:
      A pure function ``(variables, x) -> features``, shaped as the unit's
      operation sees them. It raises ``ValueError`` if ``fn`` has no linear unit.

    Source: own.
    """

    def penultimate(variables: Any, x: jax.Array) -> jax.Array:
        program = trace(fn, variables, x)
        value = read_last(program)
        feature: jax.Array = evaluate(program, variables, x, until=value)[value]
        return feature

    return penultimate


def read_last(program: Program) -> int:
    """The value that the last linear unit reads.

    Raises:
      ValueError: there is no linear unit.
    """
    last = next((s for s in reversed(plan(program).steps) if s.kind == "linear"), None)
    if last is None:
        raise ValueError("fn: expected at least one linear operation with a constant kernel")
    return last.ins[0]


Apply = Callable[[Any, jax.Array], jax.Array]


class Cut(NamedTuple):
    """``fn(variables, x) = lower(variables, upper(variables, x), x.shape[1:])``.

    Attributes:
      upper: ``variables, x [B, ...] -> value [B, ...]``; on a CPU with its convolutions in
        the form that loops want (:mod:`jaxunlearn.jaxprs.replay`).
      lower: ``variables, value [B, ...], shape of one x -> output [B, ...]``.
    """

    upper: Apply
    lower: Callable[[Any, jax.Array, Sequence[int]], jax.Array]


def cut_at_features(fn: Apply) -> Cut:
    """Cut at what the last linear unit reads, ``[B, n]`` where the head is linear.

    Args:
      fn: ``(variables, x [B, ...]) -> logits [B, K]``.

    Returns:
      The two functions. While tracing they raise ``ValueError`` if ``fn`` has no linear unit,
      or if something of ``x`` goes around it.

    Source: own.
    """

    def place(program: Program) -> int:
        value = read_last(program)
        if program.x in _needed(program, value)[1]:
            raise ValueError("fn: expected all of x to go through the last linear unit, got a skip")
        return value

    return _cut(fn, place)


def cut_at_map(fn: Apply) -> Cut:
    """Cut at the last value with positions, ``[B, h, w, C]`` with more than one position.

    In a convolutional network what is pooled or flattened before the head. Where no inner
    value is of this form and all of ``x`` goes through it, the value is ``x`` itself.

    Args:
      fn: ``(variables, x [B, ...]) -> output``, channels last.

    Returns:
      The two functions. While tracing they raise ``ValueError`` if there is no such value.

    Source: own.
    """

    def place(program: Program) -> int:
        batch = program.shape(program.x)[:1]
        inner = [value for op in reversed(program.ops) for value in op.outs]
        for value in [*inner, program.x]:
            shape = program.shape(value) if value in program.data else ()
            spatial = len(shape) == 4 and shape[:1] == batch and math.prod(shape[1:3]) > 1
            if spatial and (value == program.x or program.x not in _needed(program, value)[1]):
                return value
        raise ValueError(
            "fn: expected a network of images [B, H, W, C], got none of its values of this form "
            f"for x {list(program.shape(program.x))}"
        )

    return _cut(fn, place)


def _cut(fn: Apply, place: Callable[[Program], int]) -> Cut:
    def upper(variables: Any, x: jax.Array) -> jax.Array:
        def run(variables: Any, x: jax.Array) -> jax.Array:
            program = trace(fn, variables, x)
            return _evaluate(program, variables, {program.x: x}, place(program))

        return canonical(run)(variables, x)

    def lower(variables: Any, value: jax.Array, shape: Sequence[int]) -> jax.Array:
        # shapes are part of a program: it is traced anew for as many examples as there are
        like = jax.ShapeDtypeStruct((value.shape[0], *shape), jnp.float32)
        program = trace(fn, variables, like)
        return _evaluate(program, variables, {place(program): value}, program.out)

    return Cut(upper, lower)


def _needed(program: Program, given: int, wanted: int | None = None) -> tuple[list[Any], set[int]]:
    """The operations between a value and another (default: the output), and all they read."""
    values = {program.out if wanted is None else wanted}
    ops = []
    for op in reversed(program.ops):
        if (values - {given}).intersection(op.outs):
            values.update(op.ins)
            ops.append(op)
    return ops[::-1], values


def _evaluate(program: Program, variables: Any, start: dict[int, Any], wanted: int) -> jax.Array:
    (given,) = start
    env: dict[int, Any] = dict(program.consts)
    env.update(zip(program.leaves, jax.tree_util.tree_leaves(variables), strict=True))
    env.update(start)
    for op in _needed(program, given, wanted)[0]:
        outs = bind(op, [env[v] for v in op.ins])
        env.update((v, out) for v, out in zip(op.outs, outs, strict=True) if v not in start)
    result: jax.Array = env[wanted]
    return result
