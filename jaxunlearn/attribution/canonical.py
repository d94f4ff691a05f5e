"""Convolutions as XLA's CPU back end wants them inside a loop.

Outside of loops it brings every convolution to channels last, with kernels
``[..., in, out]``, and computes it as a matrix product. Inside a loop it does not, and what
is not in this form already takes several times as long, the more the more channels there
are: the gradient of the input of a channels-last convolution, and both passes of a
channels-first one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxunlearn.attribution.replay import equations, replay
from jaxunlearn.attribution.trace import traced

__all__ = ["canonical"]

# what can be stepped into and nothing is lost
_CALLS = ("jit", "pjit", "closed_call", "core_call")


def canonical(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; on a CPU, with its convolutions in the form for loops.

    On other platforms, where the compiler chooses layouts, nothing changes. Convolutions
    inside of loops, branches and ``remat`` of ``fn`` stay as they are.

    Source: own, measured.
    """

    def run(*args: Any) -> Any:
        closed, shapes = traced(fn, *args)
        outs = replay(closed, jax.tree_util.tree_leaves(args), _change, _touched)
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(shapes), outs)

    return run


def _touched(eqn: Any) -> bool:
    if eqn.primitive.name in _CALLS:
        return any(
            inner.primitive.name not in _CALLS and _touched(inner) for inner in equations(eqn)
        )
    if eqn.primitive is not lax.conv_general_dilated_p or eqn.params["batch_group_count"] != 1:
        return False
    return eqn.params["dimension_numbers"] != _numbers(len(eqn.invars[0].aval.shape))


def _change(eqn: Any, ins: list[Any]) -> list[Any] | None:
    if eqn.primitive.name in _CALLS:
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
    """Batch, space, channels; space, in, out."""
    space = tuple(range(1, ndim - 1))
    image = (0, ndim - 1, *space)
    return lax.ConvDimensionNumbers(image, (ndim - 1, ndim - 2, *range(ndim - 2)), image)


def _axes(array: jax.Array, own: Sequence[int], wanted: Sequence[int]) -> jax.Array:
    """Moves each axis ``own[i]`` to ``wanted[i]``."""
    source = {there: here for here, there in zip(own, wanted, strict=True)}
    return jnp.transpose(array, [source[axis] for axis in range(array.ndim)])
