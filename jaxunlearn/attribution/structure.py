"""What a function is made of, read off its trace: its linear units in order, and
the features that the last of them reads.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxunlearn.attribution.steps import plan
from jaxunlearn.attribution.trace import Program, evaluate, trace
from jaxunlearn.attribution.units import Unit

__all__ = ["features", "head", "read_last", "structure"]


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
