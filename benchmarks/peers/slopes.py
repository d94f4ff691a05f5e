"""Relevance in the form of a gradient, written apart from the engine, to compare with it.

LRP-0 is the input times the gradient of a function that has the same values and other slopes,
of each logit over its value, times the start: of a smooth ``f`` element by element, the secant
``(f(a) - f(0)) / a``, in front of a linear layer ``f(a) / a``; of what is linear in pieces, and
of a softmax, its own; of a product of two values, and of a quotient, half the partial
derivatives, and all that a function lets through at zero (a sigmoid's half); of a normaliser,
none. The function is evaluated from its jaxpr, so that the gradient is JAX's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_POINTWISE = {
    "abs", "add", "and", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "cos", "cosh",
    "div", "eq", "eq_to", "erf", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt",
    "integer_pow", "is_finite", "le", "le_to", "log", "log1p", "logistic", "lt", "lt_to", "max",
    "min", "mul", "ne", "neg", "not", "or", "pow", "rsqrt", "select_n", "sign", "sin", "sinh",
    "sqrt", "square", "stop_gradient", "sub", "tan", "tanh",
}  # fmt: skip
_LINEAR = {"add", "convert_element_type", "copy", "div", "mul", "neg", "sub"}
_SMOOTH = {
    "cbrt", "cos", "cosh", "erf", "erfc", "exp", "exp2", "expm1", "integer_pow", "log", "log1p",
    "logistic", "pow", "rsqrt", "sin", "sinh", "sqrt", "square", "tan", "tanh",
}  # fmt: skip
_BOUNDS = {"clamp", "max", "min"}
_LAYOUT = {"broadcast_in_dim", "reshape", "squeeze", "transpose", "expand_dims"}
_MOVES = _LAYOUT | {"rev", "slice", "split", "tile", "unstack"}
_LAYERS = ("dot_general", "conv_general_dilated")
_STATISTICS = {"reduce_sum", "reduce_max", "reduce_window_sum"}

_stop = jax.lax.stop_gradient


class _Value(NamedTuple):
    """A value of the forward pass.

    Attributes:
      exact: the array.
      slope: the same, with the slopes of a root where it is one of a chain of functions.
      whole: the same for a linear layer; ``None``: no other.
      data: it depends on the input.
      smooth: the chain is not linear in pieces.
      root: what a chain of functions of one value began with; ``None``: nothing before it.
      at_zero: the chain's value where its root is 0, a scalar.
      statistic: it is made of sums and maxima alone.
      inverted: and divides.
      shift: it is a maximum, or the logarithm of such a value: subtracted, it carries nothing.
      exp_of: what the exponential was taken of.
      sum_of: the value it is the sum of, and along which axes.
      linear: the chain only scales and shifts.
      shifts: what it adds or is bounded by, by the number of the operation.
      unshifted: the value that a shift was subtracted from.
    """

    exact: Any
    slope: Any
    data: bool = False
    root: Any = None
    at_zero: Any = None
    statistic: bool = False
    inverted: bool = False
    shift: bool = False
    exp_of: Any = None
    sum_of: Any = None
    unshifted: Any = None
    whole: Any = None
    linear: bool = True
    smooth: bool = False
    shifts: frozenset[int] = frozenset()


class _Notes:
    """What a first run finds out for the second.

    Attributes:
      count: element-wise operations so far.
      inside: those that add a number, or are bounded by one, in the middle of a function, as in
        ``a relu6(a + 3)``.
      first: this is the first run.
    """

    def __init__(self) -> None:
        self.count, self.first = 0, True
        self.inside: set[int] = set()


def relevance(fn: Callable[[Any, Any], jax.Array], variables: Any, x: Any, start: Any) -> Any:
    """Returns LRP-0 of the input, shaped like ``x``.

    Raises:
      NotImplementedError: where the data decides how long a loop runs, or on a branch.
    """
    notes, closed = _Notes(), jax.make_jaxpr(fn)(variables, x)

    def total(x: Any) -> jax.Array:
        notes.count = 0
        args = [_Value(leaf, leaf) for leaf in jax.tree.leaves(variables)]
        (out,) = _run(closed.jaxpr, closed.consts, [*args, _Value(x, x, data=True)], notes)
        return jnp.sum(out.slope * _stop(start / out.exact))

    jax.eval_shape(total, x)
    notes.first = False
    return x * jax.grad(total)(x)


def _run(jaxpr: Any, consts: Any, args: list[_Value], notes: _Notes) -> list[_Value]:
    env: dict[Any, _Value] = {v: _Value(c, c) for v, c in zip(jaxpr.constvars, consts, strict=True)}
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> _Value:
        return _Value(atom.val, atom.val) if isinstance(atom, core.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        outs = _equation(eqn, [read(atom) for atom in eqn.invars], notes)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(eqn: Any, ins: list[Any]) -> list[Any]:
    out = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def _equation(eqn: Any, ins: list[_Value], notes: _Notes) -> list[_Value]:
    name, data = eqn.primitive.name, [i for i, v in enumerate(ins) if v.data]
    if not data:
        return [_Value(out, out) for out in _bind(eqn, [v.exact for v in ins])]
    inner = next((eqn.params[key] for key in _CALLS if key in eqn.params), None)
    if name == "scan":
        return _scan(eqn, ins, notes)
    if name in ("while", "cond"):
        raise NotImplementedError(f"{name} on data")
    if inner is not None:
        return _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), ins, notes)
    if name in _POINTWISE:
        return _pointwise(eqn, ins, data, notes)
    if name in _LAYERS and len(data) == 2:
        return _halves(eqn, ins)
    if name in _LAYERS:
        return _ordinary(eqn, [v._replace(slope=_for_layer(v)) for v in ins])
    outs = _ordinary(eqn, ins)
    if name in _MOVES and ins[0].root is not None:
        outs = _moved(eqn, ins[0], outs)
    of_statistics = name in _LAYOUT and all(ins[i].statistic for i in data)
    if name in _STATISTICS or of_statistics:
        known = ins[0] if of_statistics else _Value(None, None)
        if name == "reduce_sum":
            known = known._replace(sum_of=(ins[0], tuple(eqn.params["axes"])))
        known = known._replace(statistic=True, shift=known.shift or name == "reduce_max")
        kept = {key: getattr(known, key) for key in ("statistic", "inverted", "shift", "sum_of")}
        outs = [out._replace(**kept) for out in outs]
    return outs


def _moved(eqn: Any, value: _Value, outs: list[_Value]) -> list[_Value]:
    """Lets a chain go on behind elements that were laid out anew, as one of the moved root."""
    exact, slope, whole = (
        _bind(eqn, [one]) for one in (value.root.exact, value.root.slope, _for_layer(value))
    )
    kept = {key: getattr(value, key) for key in ("at_zero", "linear", "smooth", "shifts")}
    return [
        out._replace(root=_Value(e, s, True), whole=w, **kept)
        for out, e, s, w in zip(outs, exact, slope, whole, strict=True)
    ]


def _for_layer(value: _Value) -> Any:
    return value.slope if value.whole is None else value.whole


def _ordinary(eqn: Any, ins: list[_Value]) -> list[_Value]:
    outs = _bind(eqn, [v.slope for v in ins])
    return [_Value(_stop(out), out, data=True) for out in outs]


def _scan(eqn: Any, ins: list[_Value], notes: _Notes) -> list[_Value]:
    p = eqn.params
    body, first, last = p["jaxpr"], p["num_consts"], p["num_consts"] + p["num_carry"]
    carry, rows = ins[first:last], []
    order = list(range(p["length"]))
    for i in reversed(order) if p["reverse"] else order:
        row = [_Value(v.exact[i], v.slope[i], v.data) for v in ins[last:]]
        outs = _run(body.jaxpr, body.consts, [*ins[:first], *carry, *row], notes)
        carry = [v._replace(data=True) for v in outs[: p["num_carry"]]]
        rows.append(outs[p["num_carry"] :])
    rows = rows[::-1] if p["reverse"] else rows
    stacked = [
        _Value(jnp.stack([v.exact for v in column]), jnp.stack([v.slope for v in column]), True)
        for column in zip(*rows, strict=True)
    ]
    return [*carry, *stacked]


def _pointwise(eqn: Any, ins: list[_Value], data: list[int], notes: _Notes) -> list[_Value]:
    name = eqn.primitive.name
    statistic = all(ins[i].statistic for i in data)
    chain = _chain(eqn, ins, data, notes)
    if chain is None:
        if name == "div" and _is_softmax(ins):
            (chain,) = _softmax(ins)
        elif name == "sub" and ins[1].shift:
            (chain,) = _unshifted(eqn, ins)
        elif name in ("mul", "div"):
            (chain,) = _product(eqn, ins)
        elif name == "select_n" and 0 in data:
            (chain,) = _ordinary(eqn, [ins[0]._replace(slope=ins[0].exact), *ins[1:]])
        else:
            (chain,) = _ordinary(eqn, ins)
    inverts = name == "rsqrt" or (name == "div" and data == [1])
    inverts = inverts or (name == "integer_pow" and eqn.params["y"] < 0)
    inverted = statistic and (inverts or any(ins[i].inverted for i in data))
    shift = statistic and (name == "log" or any(ins[i].shift for i in data))
    exp_of = (ins[0].unshifted or ins[0]) if name == "exp" else None
    kept = ins[data[0]].sum_of if name in ("convert_element_type", "stop_gradient") else None
    return [
        chain._replace(
            statistic=statistic, inverted=inverted, shift=shift, exp_of=exp_of, sum_of=kept
        )
    ]


def _is_softmax(ins: list[_Value]) -> bool:
    above, below = ins
    return (
        above.exp_of is not None
        and below.sum_of is not None
        and below.sum_of[0].exact is above.exact
    )


def _softmax(ins: list[_Value]) -> list[_Value]:
    above, below = ins
    p = jax.nn.softmax(above.exp_of.slope, axis=below.sum_of[1])
    return [_Value(_stop(p), p, True)]


def _unshifted(eqn: Any, ins: list[_Value]) -> list[_Value]:
    """All to the value that a shift is subtracted from."""
    (exact,) = _bind(eqn, [_stop(v.exact) for v in ins])
    value = ins[0].unshifted or ins[0]  # shifted twice: a maximum, then a logarithm
    there = value.exact != 0
    secant = jnp.where(there, exact / jnp.where(there, value.exact, 1), 0)
    slope = _stop(secant) * value.slope
    return [_Value(exact, slope + _stop(exact - slope), True, unshifted=value)]


def _chain(eqn: Any, ins: list[_Value], data: list[int], notes: _Notes) -> _Value | None:
    """Returns the next value of a chain of functions of one value; ``None``: it is none."""
    roots = {id(_root(ins[i]).exact): _root(ins[i]) for i in data}
    shapes = {jnp.shape(v.exact) for v in roots.values()}
    (exact,) = _bind(eqn, [_stop(v.exact) for v in ins])
    if len(roots) != 1 or shapes != {jnp.shape(exact)} or jnp.iscomplexobj(exact):
        return None
    if any(
        jnp.size(v.exact) > 1 and not _even(v.exact) for i, v in enumerate(ins) if i not in data
    ):
        return None
    notes.count += 1
    name, moved = eqn.primitive.name, [ins[i].shifts for i in data]
    smooth = any(ins[i].smooth for i in data) or name in _SMOOTH
    smooth = smooth or (name in ("mul", "div") and len(data) > 1) or (name == "div" and data == [1])
    linear = name in _LINEAR and all(ins[i].linear for i in data)
    shifts = frozenset().union(*moved)
    if len(data) > 1:  # what one operand was shifted by, and not the other
        notes.inside |= shifts.difference(frozenset.intersection(*moved))
    floats = jnp.issubdtype(exact.dtype, jnp.floating)
    if len(data) > 1 and floats and not smooth:
        return None  # a sum, or a choice
    bounded = not smooth and (name in _BOUNDS or (linear and name in ("add", "sub")))
    if len(data) == 1 and bounded and _constant(ins, data):
        if not (notes.first or notes.count in notes.inside):
            return None
        shifts |= {notes.count}
    (root,) = roots.values()
    zero = jnp.zeros((), root.exact.dtype)
    ends = [
        (v.at_zero if v.root is not None else zero) if i in data else jnp.ravel(v.exact)[0]
        for i, v in enumerate(ins)
    ]
    try:
        (at_zero,) = _bind(eqn, ends)
    except TypeError:
        return None
    if not floats:
        return _Value(exact, exact, True, root, at_zero, shifts=shifts)
    known = jnp.where(smooth & jnp.isfinite(at_zero), at_zero, 0)
    there = root.exact != 0

    def along(change: Any) -> Any:
        secant = jnp.where(there, change / jnp.where(there, root.exact, 1), 0)
        slope = (_stop(secant) * root.slope).astype(exact.dtype)
        return slope + _stop(exact - slope)

    return _Value(
        exact, along(exact - known), True, root, at_zero, whole=along(exact),
        linear=linear, smooth=smooth, shifts=shifts,
    )  # fmt: skip


def _constant(ins: list[_Value], data: list[int]) -> Any:
    """Tells that one of the operands which are no data is not known to be 0."""
    values = [v.exact for i, v in enumerate(ins) if i not in data]
    return any(isinstance(v, jax.core.Tracer) or bool(np.any(np.asarray(v) != 0)) for v in values)


def _even(constant: Any) -> bool:
    """Tells that a constant is the same everywhere, as a broadcast number is."""
    return not isinstance(constant, jax.core.Tracer) and np.ptp(np.asarray(constant)) == 0


def _root(value: _Value) -> _Value:
    return value if value.root is None else value.root


def _product(eqn: Any, ins: list[_Value]) -> list[_Value]:
    """Half of each partial derivative; none of what normalises."""
    if len([v for v in ins if v.data]) < 2:
        return _ordinary(eqn, ins)
    divides = eqn.primitive.name == "div"
    places = (1,) if divides else (1, 0)
    fixed = next((i for i in places if ins[i].statistic and (divides or ins[i].inverted)), None)
    if fixed is not None:
        held = ins[fixed]
        return _ordinary(eqn, [*ins[:fixed], held._replace(slope=held.exact), *ins[fixed + 1 :]])
    (above, below), (exact,) = ins, _bind(eqn, [_stop(v.exact) for v in ins])
    a, b = above.exact, below.exact
    to_first = (b + _rest(below)) / 2 / (b * b if divides else 1)
    to_second = (a + _rest(above)) / 2 / (b * b if divides else 1)
    both = above.slope * _stop(to_first) + below.slope * _stop(to_second)
    return [_Value(exact, both + _stop(exact - both), True)]


def _rest(value: _Value) -> Any:
    """What a function lets through at zero; 0 for any other value, and where it is infinite."""
    return 0 if value.at_zero is None else jnp.where(jnp.isfinite(value.at_zero), value.at_zero, 0)


def _halves(eqn: Any, ins: list[_Value]) -> list[_Value]:
    first, second = ins
    (one,) = _bind(eqn, [first.slope, _stop(second.exact)])
    (two,) = _bind(eqn, [_stop(first.exact), second.slope])
    both = (one + two) / 2
    return [_Value(_stop(both), both, True)]
