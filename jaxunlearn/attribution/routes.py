"""How relevance crosses the steps that have no kernel and no product of data."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.flatten import Op
from jaxunlearn.attribution.kinds import INDEXED
from jaxunlearn.attribution.ledger import Loss
from jaxunlearn.attribution.rules import share
from jaxunlearn.attribution.trace import Program, bind

__all__ = ["NORM_EPS", "chosen", "layout", "looked_up", "passed", "summed"]

NORM_EPS = 1e-6
"""Stabiliser of sums, average pools and products of data."""


def passed(relevance: jax.Array, like: Any) -> jax.Array:
    """Relevance as it is, summed where one element of the input fed several."""
    relevance = _unbroadcast(relevance, like.shape)
    if jnp.issubdtype(like.dtype, jnp.floating):
        relevance = relevance.astype(like.dtype)
    return relevance


def _unbroadcast(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    values = jnp.sum(values, axis=tuple(range(values.ndim - len(shape))))
    axes = tuple(d for d, size in enumerate(shape) if size != values.shape[d])
    return jnp.sum(values, axis=axes, keepdims=True)


def summed(
    op: Op, relevance: jax.Array, z: jax.Array, operands: list[Any]
) -> tuple[list[jax.Array], Loss]:
    """Relevance of a sum or difference of data, by value: ``R_i = v_i R / stab(z)``.

    Not shared out by halves and not passed to each: relevance would double at every skip.
    """
    s, loss = share(relevance, z, None, NORM_EPS)
    first, second = operands
    second = -second if op.name == "sub" else second
    return [_unbroadcast(v * s, v.shape) for v in (first, second)], loss


def chosen(op: Op, relevance: jax.Array, values: list[Any]) -> list[jax.Array]:
    """Relevance of an element-wise choice (maxout, ``where``) goes to what was chosen."""
    nothing = jnp.zeros_like(relevance)
    if op.name == "select_n":
        which, cases = values[0], values[1:]
        here = [which == place for place in range(len(cases))]
    else:
        first, second = cases = values
        wins = first >= second if op.name == "max" else first <= second
        here = [wins, ~wins]
    return [
        _unbroadcast(jnp.where(mine, relevance, nothing), jnp.shape(case))
        for mine, case in zip(here, cases, strict=True)
    ]


def looked_up(op: Op, relevance: jax.Array, indices: Any) -> jax.Array:
    """Relevance of rows read from a table goes to the positions they were read at."""
    offset = op.params["dimension_numbers"].offset_dims if op.name == "gather" else None
    if offset is None or indices.shape[-1] != 1:
        raise NotImplementedError("relevance of positions in several dimensions is not covered")
    return jnp.sum(relevance, axis=offset).reshape(indices.shape)


def layout(
    op: Op, program: Program, env: dict[int, Any], relevance: list[jax.Array]
) -> list[jax.Array]:
    """Relevance moved back to where its elements came from.

    Args:
      op: a linear operation that moves, copies or drops elements.
      program: where it stands.
      env: the values of the forward pass.
      relevance: of each output of the operation.

    Returns:
      The relevance of each operand that depends on the data; positions get none.
    """
    data = [0] if op.name in INDEXED else program.data_ins(op)
    dtype = relevance[0].dtype
    element = env[op.ins[data[0]]].dtype

    def constant(value: Any) -> Any:
        # Integer images are moved about as well; relevance is never an integer.
        return value.astype(dtype) if value.dtype == element != dtype else value

    def move(*values: jax.Array) -> list[jax.Array]:
        moved = iter(values)
        return bind(
            op, [next(moved) if i in data else constant(env[v]) for i, v in enumerate(op.ins)]
        )

    likes = [program.avals[op.ins[i]].update(dtype=dtype) for i in data]
    return list(jax.linear_transpose(move, *likes)(relevance))
