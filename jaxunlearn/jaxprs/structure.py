"""The parts of a function, read off its trace: linear units, features, logits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxunlearn.jaxprs.flatten import Flattener
from jaxunlearn.jaxprs.program import Program, evaluate, trace
from jaxunlearn.jaxprs.steps import Plan, plan
from jaxunlearn.jaxprs.units import Unit, leaf_axes

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


def spatial_axes(fn: Apply, variables: Any, x: Any) -> dict[str, tuple[int, ...]]:
    """Returns the axes that a convolution moves along, of each kernel stored in ``variables``.

    Args: as in :func:`structure`.

    Returns:
      Key path -> axes of the leaf, ``(0, 1)`` of ``[h, w, in, out]``; kernels whose axes cannot
      be followed are left out.

    Source: own.
    """
    program = trace(fn, variables, x)
    found: dict[str, tuple[int, ...]] = {}
    for op in program.ops:
        if op.name != "conv_general_dilated":
            continue
        kernel, stored = op.ins[1], leaf_axes(program, op.ins[1])
        leaf, moved = program.leaf(kernel), op.params["dimension_numbers"].rhs_spec[2:]
        if leaf is not None and all(dim in stored for dim in moved):
            found.setdefault(program.paths[leaf], tuple(stored[dim] for dim in moved))
    return found


def head(fn: Apply, variables: Any, x: Any) -> Unit | None:
    """Returns the linear unit whose outputs the logits are, one by one, in their order.

    Up to a shift that is common to all classes (``log_softmax``), and a mean over positions.

    Args: as in :func:`structure`.

    Returns:
      The unit; ``None`` where the logits are made otherwise (a sum or product of two
      units, a part of one).

    Source: own.
    """
    planned = plan(trace(fn, variables, x))
    found = planned.neurons.get(_unshifted(planned))
    if found is None or found[1].dim != 1:
        return None
    return planned.units[found[0]]


def _unshifted(planned: Plan) -> int:
    """Returns the logits that the output is, up to a shift that is common to all classes."""
    value, made_by = planned.program.out, {step.outs[0]: step for step in planned.steps}
    while value in made_by and made_by[value].kind == "pass":
        step = made_by[value]
        # what is taken off is a statistic of the logits: their maximum, their logsumexp
        shift = step.ops[0].name == "sub" and len(planned.program.data_ins(step.ops[0])) > 1
        if value in planned.neurons and not shift:
            break
        value = step.ins[0]
    return value


def logits(fn: Apply) -> Apply:
    """Returns the function that computes the logits where ``fn`` yields their ``log_softmax``.

    Args:
      fn: ``(variables, x [B, ...]) -> logits or log-probabilities [B, K]``.

    Returns:
      A pure function ``(variables, x) -> logits``; it computes what ``fn`` does where that
      yields logits.

    Source: own.
    """

    def unshifted(variables: Any, x: Any) -> jax.Array:
        program = trace(fn, variables, x)
        value = _unshifted(plan(program))
        found: jax.Array = evaluate(program, variables, x, until=value)[value]
        return found

    return unshifted


def sums_to_one(closed: Any) -> bool:
    """Tells that a function ends in a softmax: it divides what it returns by the sum of it.

    Args:
      closed: its jaxpr, of one output; nothing is computed.

    Source: own.
    """
    flat = Flattener()
    (out,) = flat.inline(closed, [flat.new(aval) for aval in closed.in_avals])
    made_by = {value: op for op in flat.ops for value in op.outs}

    def behind(value: int) -> int:
        """Returns the value that was only moved, repeated or rounded to make this one."""
        while value in made_by and (made_by[value].row.keeps or made_by[value].row.still):
            value = made_by[value].ins[0]
        return value

    last = made_by.get(behind(out))
    if last is None or last.name != "div":
        return False
    total = made_by.get(behind(last.ins[1]))
    return (
        total is not None
        and total.name == "reduce_sum"
        and behind(total.ins[0]) == behind(last.ins[0])
    )


class Read(NamedTuple):
    """What the last linear unit reads.

    Attributes:
      shape: of the value.
      examples: the axis of the examples; ``None`` where it cannot be told.
      features: the axis of the unit's inputs; ``None`` where it is not one.
      nonnegative: whether it is known to have no negative element.
    """

    shape: tuple[int, ...]
    examples: int | None
    features: int | None
    nonnegative: bool


def read_by_head(fn: Apply, variables: Any, x: Any) -> Read:
    """Tells what the last linear unit of ``fn`` reads.

    Args: as in :func:`structure`.

    Raises:
      ValueError: there is no linear unit.

    Source: own.
    """
    planned = plan(trace(fn, variables, x))
    step = next((s for s in reversed(planned.steps) if s.kind == "linear"), None)
    if step is None or step.dims is None:
        raise ValueError("fn: expected at least one linear operation with a constant kernel")
    value = step.ins[0]
    axis, contracted = planned.examples.get(value), step.dims.contracted
    return Read(
        shape=planned.program.shape(value),
        examples=None if axis is None else axis.dim,
        features=contracted[0][0] if len(contracted) == 1 else None,
        nonnegative=step.nonnegative,
    )


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
