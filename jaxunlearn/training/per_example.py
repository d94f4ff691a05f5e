"""Gradients of each example by itself, in chunks: for Fisher information, norms, influence.

The gradient of a dense layer's kernel is, for one example, of rank one: ``dW = a d^T``. Where
squares or norms are asked for it is never formed: ``sum_b (a_b d_b^T)^2 = (A^2)^T D^2`` is one
matrix product for a chunk.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jaxunlearn.core.errors import expect_counts, expect_one_of
from jaxunlearn.core.types import Batch, Subset, Variables
from jaxunlearn.data.examples import fetch
from jaxunlearn.data.sets import num_examples
from jaxunlearn.jaxprs.flatten import bind
from jaxunlearn.jaxprs.primitives import row_of
from jaxunlearn.jaxprs.program import traced
from jaxunlearn.jaxprs.replay import replay
from jaxunlearn.training.descent import trained, with_trained

Loss = Callable[[Variables, Batch], jax.Array]
"""``variables, batch -> loss []``, of a batch of one example."""

REDUCTIONS = ("none", "mean_square", "mean_abs", "norm")
MEANS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "mean_square": jnp.square,
    "mean_abs": jnp.abs,
}
CHUNK = 128
"""Examples whose gradients are computed at once."""

_SHAPING = ("transpose", "reshape", "squeeze", "convert_element_type", "copy")


def per_example_gradients(
    loss: Loss, variables: Variables, part: Subset, *, reduce: str = "none", chunk: int = CHUNK
) -> Any:
    """Computes the gradient ``g_i`` of each example's loss in the trained parameters.

    The diagonal of the empirical Fisher information of a classifier::

        def loss(variables, batch):
            return ju.training.cross_entropy(model.apply(variables, batch.x), batch.y, batch.weight)

        fisher = per_example_gradients(loss, variables, sets.forget, reduce="mean_square")

    Programs are compiled for a chunk, and found again where ``loss`` is the same function.

    Args:
      loss: of a batch of one example, ``x [1, ...]``, ``y [1]``, weight 1; the network in inference
        mode.
      part: ``M`` examples, in their order.
      reduce: ``"none"``: all gradients, as many numbers as ``M`` models have; ``"mean_square"``:
        ``sum_i g_i^2 / M``, number by number; ``"mean_abs"``: ``sum_i |g_i| / M``; ``"norm"``:
        ``|g_i|`` over all parameters.
      chunk: examples at a time, which bounds the memory.

    Returns:
      A tree like the trained parameters, of ``"none"`` with leaves ``[M, ...]``; of ``"norm"``
      ``float32 [M]``.

    Raises:
      ValueError: another reduction, no examples, or a chunk below 1.
    """
    expect_one_of(REDUCTIONS, reduce=reduce)
    expect_counts(chunk=chunk)
    count = num_examples(part)
    if not count:
        raise ValueError("part: expected at least one example, got none")
    chunk = min(chunk, count)
    found = _start(trained(variables), how=reduce, count=count)
    for start in range(0, count, chunk):
        # the last chunk goes back to examples that were seen before: those do not count again
        first = min(start, count - chunk)
        places = first + np.arange(chunk, dtype=np.int32)
        new = (places >= start).astype(np.float32)
        found = _further(found, variables, part, places, new, loss=loss, how=reduce)
    if reduce in MEANS:
        return jax.tree.map(lambda leaf: leaf / count, found)
    return found


def mean_importance(
    loss: Loss, variables: Variables, part: Subset, *, reduce: str = "mean_square",
    chunk: int = CHUNK,
) -> Any:  # fmt: skip
    """Computes the same mean over a set inside of compiled code, whatever its size.

    Args:
      reduce: ``"mean_square"`` or ``"mean_abs"``.

    Returns:
      A tree like the trained parameters.
    """
    expect_one_of(tuple(MEANS), reduce=reduce)
    chunk = min(chunk, len(part.indices))
    start = _start(trained(variables), how=reduce, count=0)

    def add(turn: jax.Array, found: Any) -> Any:
        slots = turn * chunk + jnp.arange(chunk, dtype=jnp.int32)
        counted = slots < part.size
        places, weight = jnp.where(counted, slots, 0), counted.astype(jnp.float32)
        own = _chunk(variables, part, places, weight, loss, reduce)
        return jax.tree.map(jnp.add, found, own)

    total = lax.fori_loop(0, -(-part.size // chunk), add, start)
    count = jnp.maximum(part.size, 1)
    return jax.tree.map(lambda leaf: leaf / count.astype(leaf.dtype), total)


@functools.partial(jax.jit, static_argnames=("how", "count"))
def _start(params: Any, *, how: str, count: int) -> Any:
    if how == "norm":
        return jnp.zeros(count)
    lead = (count,) if how == "none" else ()
    return jax.tree.map(lambda leaf: jnp.zeros((*lead, *leaf.shape), leaf.dtype), params)


class _Outer(NamedTuple):
    """Gradient of rank one, whose shape follows from equations that only move its numbers."""

    left: jax.Array
    right: jax.Array


@functools.partial(jax.jit, static_argnames=("loss", "how"), donate_argnums=0)
def _further(
    found: Any, variables: Variables, part: Subset, places: jax.Array, new: jax.Array, *,
    loss: Loss, how: str,
) -> Any:  # fmt: skip
    """Adds a chunk: a sum over its gradients, or those in their places."""
    own = _chunk(variables, part, places, new, loss, how)
    if how in MEANS:
        return jax.tree.map(jnp.add, found, own)

    def put(whole: jax.Array, leaf: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(whole, leaf.astype(whole.dtype), places[0], axis=0)

    return jax.tree.map(put, found, own)


def _chunk(
    variables: Variables, part: Subset, places: jax.Array, weight: jax.Array, loss: Loss, how: str
) -> Any:
    """Computes gradients of some examples, or a sum over them, or their norms."""
    positions = part.indices[places]
    x, y = fetch(part.examples, positions), part.examples.y[positions]

    def gradient(params: Any, x: Any, y: jax.Array) -> Any:
        one = Batch(
            jax.tree.map(lambda leaf: leaf[None], x), y[None], jnp.ones(1), jnp.zeros(1, jnp.int32)
        )
        return jax.grad(lambda own: loss(with_trained(variables, own), one))(params)

    params = trained(variables)
    first = jax.tree.map(lambda leaf: leaf[0], x)
    closed, shapes = traced(_inlined(gradient, params, first, y[0]), params, first, y[0])
    sources = [_outer(closed.jaxpr, var) for var in closed.jaxpr.outvars]
    # of a gradient of rank one the two factors, of others the gradient
    wanted = [
        list(source[0].invars) if source else [var]
        for source, var in zip(sources, closed.jaxpr.outvars, strict=True)
    ]
    cut = closed.jaxpr.replace(outvars=[var for own in wanted for var in own])

    def factors(x: Any, y: jax.Array) -> list[Any]:
        return jax.core.eval_jaxpr(cut, closed.consts, *jax.tree.leaves((params, x, y)))

    values = iter(jax.vmap(factors)(x, y))
    leaves = []
    for source, own in zip(sources, wanted, strict=True):
        arrays = [next(values) for _ in own]
        leaves.append(_REDUCE[how](arrays, weight, source))
    if how == "norm":
        return jnp.sqrt(functools.reduce(jnp.add, leaves))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


Source = tuple[Any, list[Any]] | None
"""The matrix product that a gradient of rank one is, and the equations that shape it."""


def _inlined(fn: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """Returns the same function without calls, such as ``jit``, in its trace."""
    closed, shapes = traced(fn, *args)

    def run(*args: Any) -> Any:
        outs = replay(
            closed, jax.tree.leaves(args), lambda *_: None,
            lambda eqn: row_of(eqn.primitive.name).role == "call",
        )  # fmt: skip
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    return run


def _outer(jaxpr: Any, var: Any) -> Source:
    """Finds out whether a value is the product of two vectors, shaped; and how."""
    made_by = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    shaping: list[Any] = []
    while (eqn := made_by.get(var)) is not None and eqn.primitive.name in _SHAPING:
        shaping.insert(0, eqn)
        var = eqn.invars[0]
    if eqn is None or eqn.primitive is not lax.dot_general_p:
        return None
    (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    summed = math.prod(left[axis] for axis in contracted)
    literal = any(isinstance(atom, core.Literal) for atom in eqn.invars)
    return (eqn, shaping) if summed == 1 and not batch and not literal else None


def _shaped(product: jax.Array, source: Source) -> jax.Array:
    """Gives ``[m, n]`` the shape of the gradient."""
    assert source is not None
    eqn, shaping = source
    found = product.reshape(eqn.outvars[0].aval.shape)
    for step in shaping:
        (found,) = bind(step, [found])
    return found


def _flat(arrays: list[jax.Array]) -> list[jax.Array]:
    return [leaf.reshape(len(leaf), -1) for leaf in arrays]


def _all(arrays: list[jax.Array], weight: jax.Array, source: Source) -> jax.Array:
    if source is None:
        return arrays[0]
    left, right = _flat(arrays)
    return jax.vmap(lambda a, d: _shaped(a[:, None] * d[None], source))(left, right)


def _sum_of(
    function: Callable[[jax.Array], jax.Array], arrays: list[jax.Array], weight: jax.Array,
    source: Source,
) -> jax.Array:  # fmt: skip
    """Adds up squares or absolute values, which a product of two vectors keeps apart."""
    if source is None:
        # a product with the weights: XLA's sum over the leading axis is slow on CPUs
        values = function(arrays[0])
        total = weight.astype(values.dtype) @ values.reshape(len(weight), -1)
        return total.reshape(values.shape[1:]).astype(values.dtype)
    left, right = (function(leaf) for leaf in _flat(arrays))
    return _shaped((left * weight[:, None].astype(left.dtype)).T @ right, source)


def _squared_norms(arrays: list[jax.Array], weight: jax.Array, source: Source) -> jax.Array:
    sums = [jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=1) for leaf in _flat(arrays)]
    return functools.reduce(jnp.multiply, sums)


_REDUCE: dict[str, Callable[[list[jax.Array], jax.Array, Source], jax.Array]] = {
    "none": _all,
    "norm": _squared_norms,
    **{name: functools.partial(_sum_of, function) for name, function in MEANS.items()},
}
