"""The way back: relevance from the output to the input, one step after the other.

What a step does not pass on is entered into the ledger.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution.lrp import assign, crossings, transposes
from jaxunlearn.attribution.lrp.rule import Affine, Loss, Propagated, Rule, as_floats, widened
from jaxunlearn.jaxprs.primitives import REFUSED, Axis
from jaxunlearn.jaxprs.program import Program, where, wide
from jaxunlearn.jaxprs.steps import Plan, Step

_ABSORBING = (
    "linear", "pool", "affine", "sum", "matmul", "softmax", "logsumexp", "choice",
    "mix", "lookup",
)  # fmt: skip
_Value = TypeVar("_Value")

Crossed = tuple[list[jax.Array], Loss | None]
"""Relevance of each of a step's inputs, and what was absorbed, if the rule says so."""


class Absorbed(NamedTuple):
    """An entry of the ledger: the relevance of a step's outputs minus that of its inputs.

    Attributes:
      bias, stabilizer, dead: ``[B]``, see :class:`Loss`.
      other: ``[B]``, the measured rest: what fell on constants (padding, a class token) or
        was absorbed by a rule that does not account for it; zero up to rounding elsewhere.
    """

    bias: jax.Array
    stabilizer: jax.Array
    dead: jax.Array
    other: jax.Array

    @property
    def total(self) -> jax.Array:
        """Returns the whole difference, ``[B]``."""
        return self.bias + self.stabilizer + self.dead + self.other


class Sweep:
    """One pass back through a plan; collects what :class:`Relevance` shows.

    Attributes:
      neurons, inputs, named, ledger: as in ``Relevance``, in the order they were met.
    """

    def __init__(self, planned: Plan, rules: assign.Rules, env: dict[int, Any], eps: float) -> None:
        assign.check_found(rules, planned)
        self.planned = planned
        self.rules = rules
        self.eps = eps
        self.unlike: set[int] = set()
        """Values whose relevance is no multiple of them, by the rule of what reads them."""
        self.chosen = assign.assign(rules, planned.units)
        self.env = widened(env)
        if masks(planned.program):
            self.env = {value: crossings.bounded(one) for value, one in self.env.items()}
        self.found: dict[int, jax.Array] = {}
        self.neurons: dict[str, jax.Array] = {}
        self.inputs: dict[str, jax.Array] = {}
        self.named: dict[str, jax.Array] = {}
        self.ledger: dict[str, Absorbed] = {}

    def run(self, start: jax.Array) -> list[jax.Array | None]:
        """Returns the relevance of each leaf of ``x`` that is followed, from that of the output."""
        program = self.planned.program
        self.found[program.out] = start
        for step in reversed(self.planned.steps):
            if step.unit is not None or any(v in self.found for v in step.outs):
                self.back(step)

        def reached(leaf: int) -> jax.Array:
            first = self.found.get(leaf)
            missing = jnp.zeros(program.shape(leaf), start.dtype)
            return missing if first is None else transposes.amount(first)

        return [reached(leaf) if leaf in program.data else None for leaf in program.xs]

    def in_order(self, values: dict[str, _Value]) -> dict[str, _Value]:
        """Returns values in execution order, which is how a person reads a network.

        ``jit`` sorts the keys of a dictionary, but not of an ordered one.
        """
        return OrderedDict(reversed(values.items()))

    def back(self, step: Step) -> None:
        """Takes one step back."""
        above = [self.take(v) for v in step.outs]
        below, loss = self.cross(step, above)
        rests = self.rests(step) if step.kind != "gate" else []
        open_at_zero = any(rest is not None for rest in rests)
        if open_at_zero:
            below = [
                r if rest is None else r * crossings.moved(self.env[v], rest)
                for r, v, rest in zip(below, step.ins, rests, strict=True)
            ]
        into = [v for v in step.ins if v in self.planned.program.data]
        for value, relevance in zip(into, below, strict=True):
            assert relevance.shape == self.planned.program.shape(value), step.key
            known = self.found.get(value)
            self.found[value] = relevance if known is None else known + relevance
        if step.unit is not None:
            self.neurons[step.key] = self.features_last(step.outs[0], transposes.amount(above[0]))
            self.inputs[step.key] = transposes.amount(below[0])
        if step.name == "name":
            self.named[step.key] = transposes.amount(above[0])
        own = step.kind == "own" or assign.for_operation(self.rules, step.name) is not None
        fills = step.ops[0].row.fills
        if own or loss is not None or step.kind in _ABSORBING or fills or open_at_zero:
            self.account(step, above, list(zip(into, below, strict=True)), loss)

    def rests(self, step: Step) -> list[Any]:
        """Returns what each of a step's inputs is where its argument is zero, if that is known."""
        program = self.planned.program
        return [crossings.at_zero(ops, program, self.env) for ops in step.functions]

    def take(self, value: int) -> jax.Array:
        """Takes the relevance of a value, all of whose consumers have been crossed."""
        relevance = self.found.pop(value, None)
        if relevance is None:
            like = self.env[value]
            floating = jnp.issubdtype(like.dtype, jnp.inexact)
            return jnp.zeros(like.shape, like.dtype if floating else jnp.float32)
        return relevance

    def cross(self, step: Step, above: list[jax.Array]) -> Crossed:
        """Returns the relevance of a step's inputs that depend on the data."""
        env, op = self.env, step.ops[0]
        if step.kind == "own":
            return self.by_operation(step, above), None
        own = None if step.unit is not None else assign.for_operation(self.rules, step.name)
        if own is not None and not (step.kind == "pool" and isinstance(own, Rule)):
            raise ValueError(
                f"rules: expected rules.operation(...) for the primitive {step.name!r}, which is "
                f"no linear unit, got {own.name}"
            )
        if step.mixes:
            raise ValueError(_mixture(step, self.planned))
        a, z = env[step.ins[0]], env[step.outs[0]]
        if step.kind in transposes.COVERED or transposes.is_complex(step, env):
            return transposes.cross(step, self.planned.program, env, above, self.eps)
        if step.kind in ("linear", "pool", "affine"):
            a = as_floats(a, above[0])
        match step.kind:
            case "linear":
                assert step.unit is not None
                rule = self.chosen[step.unit]
                if not rule.by_value:
                    self.unlike.add(step.ins[0])
                return self.by_rule(rule, step, a, z, above[0])
            case "affine" if step.outs[0] in self.unlike:
                self.unlike.add(step.ins[0])
                return [crossings.passed(above[0], a)], None
            case "pool" | "affine":
                if isinstance(own, Rule):
                    return self.by_rule(own, step, a, z, above[0])
                affine = Affine(self.planned.program, step, env)
                return crossings.by_value(affine, above[0], a, self.eps)
            case "pass":
                if step.outs[0] in self.unlike:
                    self.unlike.add(step.ins[0])
                return [crossings.passed(above[0], a)], None
            case "sum":
                return crossings.summed(op, above[0], z, [env[v] for v in step.ins], self.eps)
            case "layout":
                return crossings.layout(op, self.planned.program, env, above), None
            case "max":
                return [crossings.winner(op, a, z, above[0])], None
            case "choice":
                first = len(op.ins) - len(step.ins)
                data = [i for i in self.planned.program.data_ins(op) if i >= first]
                return crossings.chosen(op, above[0], z, [env[v] for v in op.ins], data)
            case "gate":
                rests = self.rests(step) or [None, None]
                return crossings.gate(above[0], [env[v] for v in step.ins], rests)
            case "matmul":
                return crossings.matmul(op, above[0], z, [env[v] for v in step.ins], self.eps)
            case "softmax":
                below, loss = crossings.softmax(above[0], a, z, step.axes)
                return [below], loss
            case "logsumexp":
                below, loss = crossings.logsumexp(above[0], a, z, step.axes, self.eps)
                return [below], loss
            case _:
                raise NotImplementedError(_refusal(step))

    def by_rule(
        self, rule: Rule, step: Step, a: jax.Array, z: jax.Array, above: jax.Array
    ) -> Crossed:
        affine = Affine(self.planned.program, step, self.env)
        out = rule.propagate(affine, a, z, above)
        below, loss = out if isinstance(out, Propagated) else (out, None)
        if below.shape != a.shape:
            raise ValueError(
                f"rules: expected {rule.name} to return relevance {a.shape} for {step.key}, "
                f"got {below.shape}"
            )
        return [below], loss

    def by_operation(self, step: Step, above: list[jax.Array]) -> list[jax.Array]:
        rule = assign.for_operation(self.rules, step.name)
        assert isinstance(rule, assign.OperationRule)
        below = rule.propagate(assign.operation_of(step, self.planned.program, self.env), above)
        shapes = [self.planned.program.shape(v) for v in step.ins]
        if not isinstance(below, list | tuple):
            raise ValueError(
                f"rules: expected {rule.name} to return a list of relevances for {step.key}, one "
                f"of each operand in operation.data, got {type(below).__name__}"
            )
        found = [getattr(r, "shape", type(r).__name__) for r in below]
        if found != shapes:
            raise ValueError(
                f"rules: expected {rule.name} to return relevance {shapes} for {step.key}, "
                f"got {found}"
            )
        return [jnp.asarray(r) for r in below]

    def features_last(self, value: int, relevance: jax.Array) -> jax.Array:
        """Returns ``[B, ..., features]`` also where an operation put its neurons elsewhere."""
        examples, neurons = self.planned.examples.get(value), self.planned.neurons.get(value)
        shape = relevance.shape
        if examples is None or neurons is None:
            return relevance
        if not (examples.exact(shape) and neurons[1].exact(shape)):
            return relevance
        if examples.dim == neurons[1].dim:
            return relevance
        return jnp.moveaxis(relevance, (examples.dim, neurons[1].dim), (0, -1))

    def account(
        self,
        step: Step,
        above: list[jax.Array],
        below: list[tuple[int, jax.Array]],
        loss: Loss | None,
    ) -> None:
        """Enters what the step absorbed into the ledger."""
        axes: Mapping[int, Axis | None] = self.planned.examples
        touched = (*step.outs, *(value for value, _ in below))
        if self.planned.program.shape(self.planned.program.xs[0])[0] == 1:
            axes = dict.fromkeys(touched)  # one example: wherever it lies
        if any(v not in axes for v in touched):
            return
        self.ledger[step.key] = _entry(
            [(r, axes[v]) for v, r in zip(step.outs, above, strict=True)],
            [(r, axes[v]) for v, r in below],
            loss,
        )


def masks(program: Program) -> bool:
    """Tells that infinity is written into a function, as what a mask puts for what is hidden."""
    for op in program.ops:
        bound = op.row.role == "choice" and op.name != "select_n"
        for value in () if bound else op.ins:
            constant = program.consts.get(value)
            if constant is None or isinstance(constant, jax.core.Tracer):
                continue
            floats = jnp.issubdtype(program.avals[value].dtype, jnp.floating)
            small = floats and np.size(constant) <= 10_000
            if small and np.isinf(np.asarray(constant, np.float64)).any():
                return True
    return False


def _mixture(step: Step, planned: Plan) -> str:
    op = step.ops[0]
    return (
        "fn: expected outputs that each depend on their own example alone, got "
        f"'{op.name}' over the examples, at {where(op)}; is batch norm in training mode?"
    )


def _refusal(step: Step) -> str:
    op = step.ops[0]
    reason = REFUSED.get(op.name)
    return (
        f"relevance propagation does not cover the primitive '{op.name}' on {len(step.ins)} "
        f"value(s) that depend on the data{f' ({reason})' if reason else ''}, at {where(op)}; to "
        f"say how relevance crosses it, add ('{op.name}', rules.operation(propagate)) to the rules"
    )


def _entry(
    above: list[tuple[jax.Array, Axis | None]],
    below: list[tuple[jax.Array, Axis | None]],
    loss: Loss | None,
) -> Absorbed:
    """Returns the entry of one step.

    Args:
      above: relevance of each output, with the axis of the examples; ``None`` for one example.
      below: the same of each input.
      loss: shaped like the first output; ``None`` if the rule does not say.
    """
    other = _summed(above) - _summed(below)
    causes = [jnp.zeros_like(other)] * 3
    for place, cause in enumerate(loss or ()):
        if cause.ndim or not above[0][0].ndim:  # otherwise it absorbs nothing
            causes[place] = _per_index(cause, above[0][1])
            other = other - causes[place]
    bias, stabilizer, dead = causes
    return Absorbed(bias, stabilizer, dead, other)


def _summed(parts: list[tuple[jax.Array, Axis | None]]) -> jax.Array:
    first, *others = (_per_index(*one) for one in parts)
    return sum(others, first)


def _per_index(values: jax.Array, axis: Axis | None) -> jax.Array:
    """Returns the sum over all but an axis, ``[size]``, in float32 or wider; ``[1]`` over all."""
    values = transposes.amount(values)
    if axis is None:
        return jnp.sum(values, dtype=wide(values.dtype)).reshape(1)
    shape = values.shape
    inner = axis.inner * math.prod(shape[axis.dim + 1 :])
    return jnp.sum(values.reshape(-1, axis.size, inner), axis=(0, 2), dtype=wide(values.dtype))
