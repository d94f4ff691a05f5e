"""Crossings by the transpose: what moves or mixes values, picks them by size, complex numbers.

A complex value is its two parts: so is its relevance, a complex number whose parts are the
relevance of the parts of the value, and whose amount is their sum.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxunlearn.attribution.lrp.crossings import to_shape
from jaxunlearn.attribution.lrp.rule import Loss, bind_wide, no_loss, share
from jaxunlearn.jaxprs.primitives import Op
from jaxunlearn.jaxprs.program import Program, where
from jaxunlearn.jaxprs.steps import Step

Crossed = tuple[list[jax.Array], Loss]


COVERED = ("lookup", "mix", "order", "factors", "write")
"""Kinds of steps that :func:`cross` knows, whatever their numbers."""


def cross(
    step: Step, program: Program, env: dict[int, Any], above: list[jax.Array], eps: float
) -> tuple[list[jax.Array], Loss | None]:
    """Returns the relevance of a step's operands that depend on the data, and what was absorbed."""
    op = step.ops[0]
    ins, outs = ([env[v] for v in some] for some in (op.ins, op.outs))
    data = [i for i in program.data_ins(op) if i in op.values]
    match step.kind:
        case "lookup":
            return looked_up(op, program, env, above[0], eps)
        case "mix":
            return mixed(op, program, env, above[0], eps)
        case "order":
            return picked(op, ins, outs, data, above), None
        case "factors":
            return [factored(op, above[0], ins[0])], None
        case "write":
            return written(op, above[0], outs[0], ins, data), None
    return in_parts(step, program, env, above[0], eps)


def amount(relevance: jax.Array) -> jax.Array:
    """Returns relevance as real numbers: of a complex value that of both parts."""
    return relevance.real + relevance.imag if jnp.iscomplexobj(relevance) else relevance


def mixed(
    op: Op, program: Program, env: dict[int, Any], relevance: jax.Array, eps: float
) -> Crossed:
    """Sends relevance back along an operation that is linear in its operands, and no unit.

    The epsilon rule of the operation itself, ``R_i = v_i * T'(R / stab(z))``, of the transform
    of Fourier, the solution of linear equations, the sum over the edges of a graph. Operands
    that are constants absorb their share. What is linear in each of two operands sends half to
    each, as a product of matrices does.

    Args:
      op: the operation.
      program: where it stands.
      env: the values of the forward pass.
      relevance: of its result.
      eps: the stabiliser.
    """
    ins = [env[v] for v in op.ins]
    first = 0 if op.row.fixed is None else op.row.fixed(op.params)
    data = program.data_ins(op)
    places = [i for i in data if i in op.values and i >= first]
    if len(places) < len([i for i in data if i in op.values]):
        raise NotImplementedError(
            f"relevance of the matrix that '{op.name}' solves for is not covered, at {where(op)}"
        )

    def run(*values: Any) -> Any:
        given = dict(zip(places, values, strict=True))
        return _applied(op, [given.get(i, v) for i, v in enumerate(ins)])

    each = op.row.role in ("linear", "bilinear")
    shifted = not each and any(i >= first and i not in places for i in op.values)
    below, loss = _by_value(run, [ins[i] for i in places], relevance, eps, shifted)
    return [r / len(places) if each else r for r in below], loss


def _by_value(
    run: Callable[..., Any], values: Sequence[Any], relevance: Any, eps: float, shifted: bool
) -> Crossed:
    """Shares relevance out among the operands of an affine function by value."""
    real, dtype = [_real(v, relevance) for v in values], amount(relevance).dtype

    def times(v: Any, one: Any) -> Any:
        return v.astype(dtype) * one.astype(dtype)

    z, back = jax.vjp(run, *real)
    shift = run(*map(jnp.zeros_like, real)) if shifted else None
    s, loss = _shared(relevance, z, shift, eps)
    # the transpose of JAX is that of complex numbers: of pairs of reals it is the conjugate's
    below = [jnp.conj(one) for one in back(jnp.conj(s).astype(z.dtype))]
    return [_parts(times, v, one) for v, one in zip(real, below, strict=True)], loss


def _real(value: Any, relevance: jax.Array) -> Any:
    """Returns integers as numbers that can be differentiated."""
    inexact = jnp.issubdtype(value.dtype, jnp.inexact)
    return value if inexact else value.astype(amount(relevance).dtype)


def _parts(fn: Callable[..., Any], *values: Any) -> Any:
    """Applies a function of real numbers to both parts of complex ones."""
    if not any(map(jnp.iscomplexobj, values)):
        return fn(*values)
    return lax.complex(fn(*map(jnp.real, values)), fn(*map(jnp.imag, values)))


def _shared(relevance: Any, z: Any, shift: Any, eps: float) -> tuple[Any, Loss]:
    """Shares out relevance, of complex values that of either part by itself."""

    def part(of: Callable[[Any], Any]) -> tuple[Any, Loss]:
        portion = of(relevance)
        total = of(z).astype(portion.dtype)
        own = None if shift is None else of(shift).astype(portion.dtype)
        return share(portion, total if own is None else total - own, own, eps, drop=True)

    if not jnp.iscomplexobj(z):
        return part(lambda v: v)
    (s, loss), (t, other) = part(jnp.real), part(jnp.imag)
    return lax.complex(s, t), jax.tree.map(jnp.add, loss, other)


def _applied(op: Op, ins: list[Any]) -> Any:
    if "update_jaxpr" in op.params:  # which knows one type of numbers
        fn = lax.scatter_sub if op.name == "scatter-sub" else lax.scatter_add
        return _scatter(fn, op, *ins)
    return bind_wide(op, ins)[0]


def _scatter(fn: Callable[..., Any], op: Op, target: Any, indices: Any, updates: Any) -> Any:
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    return fn(target, indices, updates, **{name: op.params[name] for name in names})


def written(
    op: Op, relevance: jax.Array, z: jax.Array, ins: list[Any], data: list[int]
) -> list[jax.Array]:
    """Sends relevance of what was written at positions to what stands there.

    To the old element where nothing was written, else to the new one; of an extreme to the one
    that is largest (or smallest), of equals to the first; of a product to all factors alike.

    Args:
      op: the operation.
      relevance, z: of its result.
      ins: all its operands: old elements, positions, new ones.
      data: which of them are to get relevance.
    """
    target, indices, updates = ins

    def sums(values: Any) -> Any:
        return _scatter(lax.scatter_add, op, jnp.zeros(z.shape, values.dtype), indices, values)

    def read(values: Any) -> Any:
        """Returns at every new element what stands where it was written."""
        values = values.astype(relevance.dtype)
        return jax.vjp(sums, jnp.zeros(updates.shape, values.dtype))[1](values)[0]

    if op.name == "scatter-mul":
        one = jnp.full(updates.shape, float(2 in data), relevance.dtype)
        part = relevance / jnp.maximum(sums(one) + float(0 in data), 1)
        return [part if place == 0 else read(part) for place in data]
    number = jnp.arange(1, updates.size + 1, dtype=jnp.int32).reshape(updates.shape)
    if op.name == "scatter":
        who = _scatter(lax.scatter, op, jnp.zeros(z.shape, jnp.int32), indices, number)
    else:
        none = updates.size + 1
        wins = jnp.where(updates.astype(relevance.dtype) == read(z), number, none)
        who = _scatter(lax.scatter_min, op, jnp.full(z.shape, none, jnp.int32), indices, wins)
        who = jnp.where(target == z, 0, who)
    # they are read as floats, which hold no large number exactly
    halves = [(read(part(who)), part(number)) for part in (lambda n: n // 4096, lambda n: n % 4096)]
    mine = jnp.all(jnp.stack([one == two.astype(one.dtype) for one, two in halves]), axis=0)
    old, new = jnp.where(who == 0, relevance, 0), jnp.where(mine, read(relevance), 0)
    return [old if place == 0 else new for place in data]


def looked_up(
    op: Op, program: Program, env: dict[int, Any], relevance: jax.Array, eps: float
) -> tuple[list[jax.Array], Loss | None]:
    """Sends relevance of rows of a table to the positions that they were read from.

    Of what is added at positions: by value to the new elements, from there to their positions.
    Positions in several dimensions get a part each; a part that is constant gets none.
    """
    numbers = op.params.get("dimension_numbers")
    if numbers is None:  # a slice, whose positions are numbers of their own
        places = program.data_ins(op)
        return [jnp.sum(relevance) / len(places) for _ in places], None
    loss = None
    window = getattr(numbers, "offset_dims", None)
    if window is None:
        if op.name != "scatter-add":
            raise NotImplementedError(
                f"relevance of positions that '{op.name}' writes at is not covered, at {where(op)}"
            )
        target, indices, new = (env[v] for v in op.ins)
        real = [_real(target, relevance), indices, _real(new, relevance)]

        def add(values: Any) -> Any:
            return _applied(op, [real[0], indices, values])

        (relevance,), loss = _by_value(add, [real[2]], relevance, eps, shifted=True)
        window = numbers.update_window_dims
    rows = jnp.sum(relevance, axis=window)
    parts = jnp.asarray(_varying(program, op.ins[1]), rows.dtype)
    return [rows[..., None] * parts.reshape((1,) * rows.ndim + (-1,))], loss


def _varying(program: Program, value: int) -> list[float]:
    """Returns the part of relevance that each component of positions gets: of constants, none."""
    size, op = program.shape(value)[-1], program.made_by.get(value)
    if size == 1 or op is None or op.name != "concatenate":
        return [1 / size] * size
    own = [float(v in program.data) for v in op.ins for _ in range(program.shape(v)[-1])]
    return [one / sum(own) for one in own]


def picked(
    op: Op, ins: list[Any], outs: list[Any], data: list[int], relevance: list[jax.Array]
) -> list[jax.Array]:
    """Sends relevance of elements that were picked by size along one dimension to where they were.

    Of a sort, of the largest elements, of running maxima.
    """
    a, p = ins[0], op.params
    axis = p.get("dimension", p.get("axis", p.get("reduction_dimension", -1))) % a.ndim
    place = lax.broadcasted_iota(jnp.int32, a.shape, axis)
    if "num_keys" in p:
        *_, origin = lax.sort((*ins, place), axis, True, num_keys=p["num_keys"])
        pairs = [(ins[i], relevance[i]) for i in data]
    elif len(outs) > 1:
        origin, pairs = outs[1], [(a, relevance[0])]
    else:
        origin, pairs = _running(outs[0], place, axis, p["reverse"]), [(a, relevance[0])]

    def back(values: Any, above: jax.Array) -> jax.Array:
        like = jax.ShapeDtypeStruct(values.shape, above.dtype)
        take = jax.linear_transpose(
            lambda v: jnp.take_along_axis(v, origin, axis, mode="promise_in_bounds"), like
        )
        moved: jax.Array = take(above)[0]
        return moved

    return [back(*pair) for pair in pairs]


def _running(z: Any, place: Any, axis: int, reverse: bool) -> Any:
    """Returns where a running extreme was first reached: where it is another than before."""
    size = z.shape[axis]
    before = jnp.roll(z, -1 if reverse else 1, axis)
    first = place == (size - 1 if reverse else 0)
    new = first | (z != before)
    if reverse:
        return lax.cummin(jnp.where(new, place, size), axis, reverse=True)
    return lax.cummax(jnp.where(new, place, 0), axis)


def factored(op: Op, relevance: jax.Array, a: jax.Array) -> jax.Array:
    """Sends relevance of a product over positions to all factors alike, as a gate does."""
    p = op.params
    if "axes" in p:
        count = max(1, a.size // max(1, relevance.size))
        return jnp.broadcast_to(jnp.expand_dims(relevance / count, p["axes"]), a.shape)
    axis, reverse, size = p["axis"], p["reverse"], a.shape[p["axis"]]
    place = lax.broadcasted_iota(jnp.int32, a.shape, axis)
    number: Any = size - place if reverse else place + 1
    return lax.cumsum(relevance / number.astype(relevance.dtype), axis, reverse=not reverse)


def is_complex(step: Step, env: dict[int, Any]) -> bool:
    """Tells that a step that does more than move numbers has complex ones."""
    values = (*step.ins, *step.outs)
    moves = step.kind in ("layout", "lookup", "unknown")
    return not moves and any(jnp.iscomplexobj(env[v]) for v in values)


def in_parts(
    step: Step, program: Program, env: dict[int, Any], relevance: Any, eps: float
) -> Crossed:
    """Sends relevance of a step of complex numbers to the parts of its operands.

    By the epsilon rule where the step is linear or affine, with its constants absorbing their
    share, and where it is a product. Any other function of one value gives both parts of it by
    their squares: of ``|z|`` that is its gradient times ``z``.
    """
    data = [v for v in step.ins if v in program.data]
    values, op = [env[v] for v in data], step.ops[0]
    direct = len(data) == len(program.data_ins(op))
    linear = op.row.affine in ("scale", "shift", "flip") and not program.inverts(
        op, program.data_ins(op)
    )
    affine = step.kind in ("linear", "pool", "affine", "sum") or op.name == "conj" or linear
    product = step.kind == "matmul" or (step.kind == "gate" and op.name == "mul")

    def run(*given: Any) -> Any:
        known = dict(zip(data, given, strict=True))
        for one in step.ops:
            outs = bind_wide(one, [known[v] if v in known else env[v] for v in one.ins])
            known.update(zip(one.outs, outs, strict=True))
        return known[step.outs[0]]

    if direct and product:
        below, loss = _by_value(run, values, relevance, eps, shifted=False)
        return [r / 2 for r in below], loss
    if direct and affine:
        return _by_value(run, values, relevance, eps, shifted=True)
    each = amount(relevance) / len(values)
    return [_by_squares(each, v) for v in values], no_loss(amount(relevance))


def _by_squares(relevance: jax.Array, value: Any) -> jax.Array:
    """Gives relevance to the parts of a complex value by their squares, of zero half to each."""
    relevance = to_shape(relevance, value.shape)
    if not jnp.iscomplexobj(value):
        return relevance
    first, second = jnp.square(value.real), jnp.square(value.imag)
    whole = first + second
    part = jnp.where(whole == 0, 0.5, first / jnp.where(whole == 0, 1, whole))
    return lax.complex(relevance * part, relevance * (1 - part))
