"""A function run again from its jaxpr, equation by equation, some of them changed.

For two purposes: its convolutions are brought into the form that is fast in loops on a CPU, and
a value that ``jax.ad_checkpoint.checkpoint_name`` marked is read or replaced. Calls are stepped
into only where something in them is to be changed: all else keeps its own derivative (the
gradient 0 of ``jax.nn.relu`` at 0, a convolution's custom one).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from jaxunlearn.core.errors import did_you_mean
from jaxunlearn.jaxprs.flatten import bind, held_by
from jaxunlearn.jaxprs.primitives import row_of
from jaxunlearn.jaxprs.program import traced

Change = Callable[[Any, list[Any]], list[Any] | None]
"""From an equation and its operands to its outputs; ``None``: as it is."""


def replay(body: Any, args: list[Any], change: Change, touched: Callable[[Any], bool]) -> list[Any]:
    """Computes the outputs of a (closed) jaxpr at flat operands, some equations changed.

    Args:
      body: the jaxpr.
      args: its operands.
      change: what an equation gives instead.
      touched: whether an equation is, or calls what is, to be changed.
    """
    jaxpr, consts = getattr(body, "jaxpr", body), getattr(body, "consts", ())
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else env[atom]

    def run(eqn: Any, ins: list[Any]) -> list[Any]:
        if not touched(eqn):
            return bind(eqn, ins)
        outs = change(eqn, ins)
        if outs is not None:
            return outs
        inner = held_by(eqn)
        return bind(eqn, ins) if inner is None else replay(inner, ins, change, touched)

    for eqn in jaxpr.eqns:
        outs = run(eqn, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def equations(part: Any) -> Iterator[Any]:
    """Yields the equations of a jaxpr and of all that it calls; of an equation, those it calls."""
    if hasattr(part, "eqns"):
        for eqn in part.eqns:
            yield eqn
            yield from equations(eqn)
        return
    for param in part.params.values():
        for one in param if isinstance(param, tuple | list) else (param,):
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def canonical(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the same function; on a CPU, with its convolutions in the form for loops.

    Outside of loops XLA brings every convolution to channels last, with kernels
    ``[..., in, out]``, and computes it as a matrix product. Inside a loop it does not, and what
    is not in this form already takes several times as long, the more the more channels there
    are: the gradient of the input of a channels-last convolution, and both passes of a
    channels-first one. On other platforms, where the compiler chooses layouts, nothing changes.
    Convolutions inside of loops, branches and ``remat`` of ``fn`` stay as they are.

    Source: own, measured.
    """

    def run(*args: Any) -> Any:
        closed, shapes = traced(fn, *args)
        outs = replay(closed, jax.tree_util.tree_leaves(args), _change, _touched)
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(shapes), outs)

    return run


def _calls(eqn: Any) -> bool:
    """Tells that an equation can be stepped into and nothing is lost."""
    return row_of(eqn.primitive.name).role == "call"


def _touched(eqn: Any) -> bool:
    if _calls(eqn):
        return any(not _calls(inner) and _touched(inner) for inner in equations(eqn))
    if eqn.primitive is not lax.conv_general_dilated_p or eqn.params["batch_group_count"] != 1:
        return False
    return eqn.params["dimension_numbers"] != _numbers(len(eqn.invars[0].aval.shape))


def _change(eqn: Any, ins: list[Any]) -> list[Any] | None:
    if _calls(eqn):
        return None
    params = dict(eqn.params)
    numbers = params.pop("dimension_numbers")
    wanted = _numbers(ins[0].ndim)

    def bind(numbers: Any, *operands: jax.Array) -> jax.Array:
        return lax.conv_general_dilated_p.bind(*operands, dimension_numbers=numbers, **params)

    def channels_last(image: jax.Array, kernel: jax.Array) -> jax.Array:
        image = _axes(image, numbers.lhs_spec, wanted.lhs_spec)
        kernel = _axes(kernel, numbers.rhs_spec, wanted.rhs_spec)
        return _axes(bind(wanted, image, kernel), wanted.out_spec, numbers.out_spec)

    def unchanged(image: jax.Array, kernel: jax.Array) -> jax.Array:
        return bind(numbers, image, kernel)

    return [lax.platform_dependent(*ins, cpu=channels_last, default=unchanged)]


def _numbers(ndim: int) -> lax.ConvDimensionNumbers:
    """Returns the layout batch, space, channels; space, in, out."""
    space = tuple(range(1, ndim - 1))
    image = (0, ndim - 1, *space)
    return lax.ConvDimensionNumbers(image, (ndim - 1, ndim - 2, *range(ndim - 2)), image)


def _axes(array: jax.Array, own: Sequence[int], wanted: Sequence[int]) -> jax.Array:
    """Moves each axis ``own[i]`` to ``wanted[i]``."""
    source = {there: here for here, there in zip(own, wanted, strict=True)}
    return jnp.transpose(array, [source[axis] for axis in range(array.ndim)])


Named = Callable[..., tuple[jax.Array, jax.Array]]
"""``(variables, x, value=None) -> (output, value)``."""

Tapped = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
"""``(variables, x, change=None) -> (output, values by name)``."""


def named(fn: Callable[[Any, jax.Array], jax.Array], name: str) -> Named:
    """Returns ``fn`` together with a value on its way, which can be replaced.

    Args:
      fn: ``(variables, x [B, ...]) -> [B, K]``; in it, once,
        ``h = jax.ad_checkpoint.checkpoint_name(h, name)``.
      name: the name.

    Returns:
      ``run(variables, x, value=None) -> (output, value)``: what ``fn`` returns and the
      named value. Where ``value`` is given, ``fn`` goes on from it; what does not go
      through the name (a skip around it) is still that of ``x``. It raises as that of
      :func:`tapped`, and ``ValueError`` if ``value`` has another shape.

    Raises:
      TypeError: if ``name`` is not a string.
    """
    tap = tapped(fn, [name])

    def run(
        variables: Any, x: jax.Array, value: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        out, values = tap(variables, x, {name: lambda own: _swap(own, value)})
        return out, values[name]

    return run


def tapped(fn: Callable[[Any, Any], jax.Array], names: Sequence[str]) -> Tapped:
    """Returns ``fn`` together with several values on its way, each of which can be changed.

    Args:
      fn: as in :func:`named`, with each of the names in it once.
      names: the names.

    Returns:
      ``run(variables, x, change=None) -> (output, values by name)``; ``change`` holds by name
      functions of a value, and ``fn`` goes on from what they return, which is also what is
      returned. It raises ``TypeError`` if the output is not one array, ``ValueError`` if a name
      is not there, or there more than once, and ``NotImplementedError`` if it stands in a
      loop or a branch.

    Raises:
      TypeError: if a name is not a string.
    """
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"layer: expected a name given by checkpoint_name, got {name!r}")
    wanted = frozenset(names)

    def touched(eqn: Any) -> bool:
        return _name(eqn) in wanted or any(_name(inner) in wanted for inner in equations(eqn))

    def run(
        variables: Any, x: Any, change: Mapping[str, Callable[[Any], Any]] | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        closed, shape = traced(fn, variables, x)
        if not jax.tree_util.all_leaves([shape]):
            raise TypeError(f"fn: expected one array as output, got a {type(shape).__name__}")
        for name in names:
            _check(closed.jaxpr, name)
        changes = change or {}
        seen: dict[str, jax.Array] = {}

        def at_name(eqn: Any, ins: list[Any]) -> list[Any] | None:
            name = _name(eqn)
            if name is None or name not in wanted:
                return None
            seen[name] = changes[name](ins[0]) if name in changes else ins[0]
            return [seen[name]]

        args = jax.tree_util.tree_leaves((variables, x))
        (out,) = replay(closed, args, at_name, touched)
        return out, seen

    return run


def _check(jaxpr: Any, name: str) -> None:
    """Raises if the name is not given to one value, outside of loops."""
    names = [own for own in map(_name, equations(jaxpr)) if own is not None]
    if names.count(name) != 1:
        raise ValueError(
            "layer: expected a name that fn gives to one value by jax.ad_checkpoint."
            f"checkpoint_name, of {sorted(set(names))}, got {name!r}, which it gives to "
            f"{names.count(name)}{did_you_mean(name, names)}"
        )
    for eqn in equations(jaxpr):
        loop = row_of(eqn.primitive.name).role == "loop"
        if loop and any(_name(inner) == name for inner in equations(eqn)):
            raise NotImplementedError(
                f"layer: expected {name!r} outside of loops and branches, "
                f"got it in a {eqn.primitive.name}"
            )


def _swap(own: jax.Array, value: jax.Array | None) -> jax.Array:
    if value is None:
        return own
    if value.shape != own.shape:
        raise ValueError(f"value: expected the shape of the layer {own.shape}, got {value.shape}")
    return value.astype(own.dtype)


def _name(eqn: Any) -> str | None:
    return eqn.params["name"] if eqn.primitive.name == "name" else None
