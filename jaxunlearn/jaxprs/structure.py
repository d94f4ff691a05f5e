"""The parts of a function, read off its trace: linear units, features, cuts.

It is cut in two at a value that all of the data goes through.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.jaxprs.primitives import Op
from jaxunlearn.jaxprs.program import Program, bind, evaluate, trace
from jaxunlearn.jaxprs.replay import canonical
from jaxunlearn.jaxprs.steps import plan
from jaxunlearn.jaxprs.units import Unit

Apply = Callable[[Any, Any], jax.Array]
"""``variables, x -> output [B, ...]``, with ``x`` an array or a pytree of arrays."""


def structure(fn: Apply, variables: Any, x: Any) -> tuple[Unit, ...]:
    """Returns the linear units of ``fn(variables, x)``, in execution order.

    Works on any function that JAX can trace, also one with operations that
    relevance propagation does not cover: no unit is then the producer of
    another across such an operation. Units inside loops are not seen.

    Args:
      fn: ``(variables, x [B, ...]) -> logits [B, K]``.
      variables: a pytree of arrays, or of their shapes and dtypes.
      x: the data, an array or a pytree of arrays with one leading axis; or shapes and dtypes.

    Raises:
      TypeError, ValueError: as :func:`jaxunlearn.jaxprs.program.trace`.

    Source: own.
    """
    return plan(trace(fn, variables, x)).units


def head(fn: Apply, variables: Any, x: Any) -> Unit | None:
    """Returns the linear unit whose outputs the logits are, one by one, in their order.

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


def features(fn: Apply) -> Apply:
    """Returns the function that computes what the last linear unit of ``fn`` reads.

    With a linear head these are the penultimate features, ``[B, n]``: what a
    linear probe is fitted to.

    Args:
      fn: ``(variables, x [B, ...]) -> logits [B, K]``.

    Returns:
      A pure function ``(variables, x) -> features``, shaped as the unit's
      operation sees them. It raises ``ValueError`` if ``fn`` has no linear unit.

    Source: own.
    """

    def penultimate(variables: Any, x: Any) -> jax.Array:
        program = trace(fn, variables, x)
        value = read_last(program)
        feature: jax.Array = evaluate(program, variables, x, until=value)[value]
        return feature

    return penultimate


def read_last(program: Program) -> int:
    """Returns the value that the last linear unit reads.

    Raises:
      ValueError: there is no linear unit.
    """
    last = next((s for s in reversed(plan(program).steps) if s.kind == "linear"), None)
    if last is None:
        raise ValueError("fn: expected at least one linear operation with a constant kernel")
    return last.ins[0]


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

    def place(program: Program) -> int:
        value = read_last(program)
        if not _needed(program, given=value)[1].isdisjoint(program.xs):
            raise ValueError("fn: expected all of x to go through the last linear unit, got a skip")
        return value

    return _cut(fn, place)


def cut_at_map(fn: Apply) -> Cut:
    """Cuts at the last value with positions, ``[B, h, w, C]`` with more than one position.

    In a convolutional network what is pooled or flattened before the head. Whatever of ``x``
    it is made from goes through it alone; other leaves of ``x`` may join behind. Where no inner
    value is of this form, the value is ``x`` itself, or a leaf of it.

    Args:
      fn: ``(variables, x [B, ...]) -> output``, channels last.

    Returns:
      The two functions. While tracing they raise ``ValueError`` if there is no such value.

    Source: own.
    """

    def place(program: Program) -> int:
        data = [leaf for leaf in program.xs if leaf in program.data]
        batch = program.shape(data[0])[:1]
        inner = [value for op in reversed(program.ops) for value in op.outs]
        for value in [*inner, *data]:
            shape = program.shape(value) if value in program.data else ()
            spatial = len(shape) == 4 and shape[:1] == batch and math.prod(shape[1:3]) > 1
            if spatial and not _around(program, value).intersection(data):
                return value
        shapes = [list(program.shape(leaf)) for leaf in data]
        raise ValueError(
            "fn: expected a network of images [B, H, W, C], got none of its values of this form "
            f"for x {shapes[0] if len(shapes) == 1 else shapes}"
        )

    return _cut(fn, place)


def _cut(fn: Apply, place: Callable[[Program], int]) -> Cut:
    def upper(variables: Any, x: Any) -> jax.Array:
        def run(variables: Any, x: Any) -> jax.Array:
            program = trace(fn, variables, x)
            start = dict(zip(program.xs, jax.tree_util.tree_leaves(x), strict=True))
            return _evaluate(program, variables, start, wanted=place(program))

        return canonical(run)(variables, x)

    def lower(variables: Any, value: jax.Array, x: Any) -> jax.Array:
        # shapes are part of a program: it is traced anew for as many examples as there are
        like = _like(x, value.shape[0])
        program = trace(fn, variables, like)
        leaves = [None] if isinstance(like, jax.ShapeDtypeStruct) else jax.tree_util.tree_leaves(x)
        given = place(program)
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
