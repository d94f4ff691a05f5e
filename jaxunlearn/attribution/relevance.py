"""Layer-wise relevance propagation as a transform of any JAX function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.attribution import routes
from jaxunlearn.attribution import rules as _rules
from jaxunlearn.attribution.affine import Affine
from jaxunlearn.attribution.axes import per_index
from jaxunlearn.attribution.rules import Rules
from jaxunlearn.attribution.seeds import argmax
from jaxunlearn.attribution.trace import evaluate, trace, where
from jaxunlearn.attribution.units import Plan, Step, Unit, plan

__all__ = ["Relevance", "Seed", "lrp"]

Seed = Callable[[jax.Array], jax.Array] | jax.typing.ArrayLike
"""A function of the logits (:mod:`jaxunlearn.attribution.seeds`), or an array ``[B, K]``."""

_DEFAULT = _rules.epsilon()


class Relevance(NamedTuple):
    """Relevance of every layer.

    The keys are those of :class:`~jaxunlearn.attribution.units.Unit`: the
    '/'-joined key path of a linear unit's kernel, such as ``params/fc1/kernel``.

    Attributes:
      input: shaped like ``x``.
      neurons: per unit ``[B, ..., out features]``, at the outputs of the unit,
        behind bias and batch norm and before the activation.
      inputs: per unit, at its input, shaped as its operation reads it.
      gap: per unit ``[B]``, what its bias and stabiliser absorbed: the sum of
        the relevance of its outputs minus that of its input. Absent for a unit
        in which the examples cannot be told apart.
      total: ``[B]``, the same for the whole network: sum of the seed minus sum
        of ``input``; it includes what sums and pools absorbed.
      logits: ``[B, K]``, the output of the function.
    """

    input: jax.Array
    neurons: dict[str, jax.Array]
    inputs: dict[str, jax.Array]
    gap: dict[str, jax.Array]
    total: jax.Array
    logits: jax.Array


def lrp(
    fn: Callable[[Any, jax.Array], jax.Array], rules: Rules = _DEFAULT
) -> Callable[..., Relevance]:
    """The function that computes the relevance of every layer of ``fn``.

    The function is traced to its primitive operations, which are grouped:

    * a linear operation with a constant kernel and what follows it of ``+ - * /``
      with constants (bias, batch norm in inference), folded exactly: ``rules``;
    * element by element with one data value (relu, gelu, ..., and scaling or
      shifting by constants behind no linear operation, such as normalisation of
      the input): relevance passes unchanged;
    * a sum of data: ``R_i = v_i R / stab(v_1 + v_2)``, stabiliser 1e-6;
    * layout: relevance returns to where its elements came from;
    * average pools and sums: the epsilon rule of the operation, 1e-6;
    * maxima: all to the winner, of equals to the first.

    Nothing is jitted here: ``jax.jit(lrp(fn))`` traces ``fn`` once. The result
    maps under ``jax.vmap``.

    Args:
      fn: ``(variables, x [B, ...]) -> logits [B, K]``, in inference mode;
        ``variables`` is any pytree of arrays.
      rules: one rule, or pairs ``(pattern, rule)``
        (:data:`~jaxunlearn.attribution.rules.Rules`).

    Returns:
      ``relevance(variables, x, seed=seeds.argmax()) -> Relevance``. It raises
      ``NotImplementedError`` naming primitive and line where the data meets an
      operation that is not covered (products of data, softmax, layer norm,
      loops, ...), ``TypeError`` if ``x`` or the output is not one array, and
      ``ValueError`` if the output is not ``[B, K]``, does not depend on ``x``,
      or the seed does not have its shape.

    Raises:
      TypeError, ValueError: if ``rules`` is malformed.

    Source: Bach et al. 2015 (the rules); the transform is our own.
    """
    _rules.check(rules)

    def relevance(variables: Any, x: jax.Array, seed: Seed = argmax()) -> Relevance:  # noqa: B008
        planned = plan(trace(fn, variables, x))
        _check_covered(planned)
        chosen = [_rules.select(rules, unit) for unit in planned.units]
        env = evaluate(planned.program, variables, x)
        logits = env[planned.program.out]
        start = _seed(seed, logits)
        found = {planned.program.out: start}
        result: dict[str, dict[str, jax.Array]] = {"neurons": {}, "inputs": {}, "gap": {}}
        for step in reversed(planned.steps):
            if step.kind == "linear":
                assert step.unit is not None
                unit, rule = planned.units[step.unit], chosen[step.unit]
                _linear(planned, step, unit, rule, env, found, result)
            else:
                _cross(planned, step, env, found)
        first = found.get(planned.program.x)
        if first is None:
            first = jnp.zeros(jnp.shape(x), start.dtype)
        # Back to execution order, which is how a person reads a network.
        ordered = {name: dict(reversed(values.items())) for name, values in result.items()}
        total = _per_example(start) - _per_example(first)
        return Relevance(input=first, total=total, logits=logits, **ordered)

    return relevance


def _check_covered(planned: Plan) -> None:
    for step in planned.steps:
        if step.kind == "unknown":
            raise NotImplementedError(
                f"relevance propagation does not cover the primitive '{step.ops[0].name}' on "
                f"{len(step.ins)} value(s) that depend on the data, at {where(step.ops[0])}"
            )


def _seed(seed: Seed, logits: jax.Array) -> jax.Array:
    if logits.ndim != 2:
        raise ValueError(f"fn: expected logits [B, K], got shape {logits.shape}")
    start = jnp.asarray(seed(logits) if callable(seed) else seed)
    if start.shape != logits.shape:
        raise ValueError(
            f"seed: expected the shape of the logits {logits.shape}, got {start.shape}"
        )
    return start.astype(logits.dtype)


def _per_example(values: jax.Array) -> jax.Array:
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def _add(found: dict[int, jax.Array], value: int, relevance: jax.Array) -> None:
    found[value] = found[value] + relevance if value in found else relevance


def _linear(
    planned: Plan,
    step: Step,
    unit: Unit,
    rule: _rules.Rule,
    env: dict[int, Any],
    found: dict[int, jax.Array],
    result: dict[str, dict[str, jax.Array]],
) -> None:
    """Crosses a linear unit and notes what there is to know of it."""
    (a,), (z,) = step.ins, step.outs
    above = found.pop(z, None)
    if above is None:
        above = jnp.zeros_like(env[z])
    below = rule.propagate(Affine(planned.program, step, env), env[a], env[z], above)
    _add(found, a, below)
    result["neurons"][unit.key] = _features_last(planned, z, above)
    result["inputs"][unit.key] = below
    out, into = planned.examples.get(z), planned.examples.get(a)
    if out is not None and into is not None:
        result["gap"][unit.key] = per_index(above, out) - per_index(below, into)


def _features_last(planned: Plan, value: int, relevance: jax.Array) -> jax.Array:
    """``[B, ..., features]`` also where an operation put its neurons elsewhere."""
    examples, neurons = planned.examples.get(value), planned.neurons.get(value)
    shape = relevance.shape
    if examples is None or neurons is None:
        return relevance
    if not (examples.exact(shape) and neurons[1].exact(shape)):
        return relevance
    if examples.dim == neurons[1].dim:
        return relevance
    return jnp.moveaxis(relevance, (examples.dim, neurons[1].dim), (0, -1))


def _cross(planned: Plan, step: Step, env: dict[int, Any], found: dict[int, jax.Array]) -> None:
    """Crosses a step without a kernel."""
    op, program = step.ops[0], planned.program
    if not any(v in found for v in step.outs):
        return
    above = [found.pop(v, None) for v in step.outs]
    values = [
        jnp.zeros_like(env[v]) if r is None else r for v, r in zip(step.outs, above, strict=True)
    ]
    a, z = env[step.ins[0]], env[step.outs[0]]
    if step.kind == "pass":
        below = [routes.passed(values[0], a)]
    elif step.kind == "sum":
        below = routes.sum_of_data(values[0], z, [env[v] for v in step.ins])
    elif step.kind == "layout":
        below = routes.layout(op, program, env, values)
    elif step.kind == "max":
        below = [routes.winner(op, a, z, values[0])]
    else:
        norm = _rules.epsilon(routes.NORM_EPS)
        below = [norm.propagate(Affine(program, step, env), a, z, values[0])]
    for value, relevance in zip(step.ins, below, strict=True):
        _add(found, value, relevance)
