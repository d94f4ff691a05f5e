"""NTK scrubbing: what retraining would change, of the network made linear in its weights."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.scipy.linalg import cho_factor, cho_solve

from jaxunlearn.core.errors import expect_counts, expect_flags, expect_numbers, expect_positive
from jaxunlearn.core.trees import in_chunks, precise
from jaxunlearn.core.types import (
    Apply,
    Batch,
    Key,
    Model,
    Needs,
    Sets,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.data.batches import pick
from jaxunlearn.methods.shares import as_subset, sample_of
from jaxunlearn.models import functionalize
from jaxunlearn.training.curvature import sum_over
from jaxunlearn.training.descent import trained, with_trained
from jaxunlearn.training.edit import edit


def ntk(
    model: Model | Apply,
    *,
    scale: float = 1.0,
    ridge: float = 0.01,
    samples: int = 64,
    chunk: int = 4,
    start: Variables | None = None,
    trapezium: bool = False,
) -> Unlearner:
    """Moves by ``theta + s (w(D_r) - w(D))``, the difference of two solutions that are linear.

    ``w(S) = -G (G' G + n l I)^-1 (f_0 - y)`` is how far the network made linear in its weights goes
    when it is fitted to the set ``S`` of ``n`` examples by least squares with a penalty
    ``n l |w|^2``: columns of ``G`` are the gradients of each output of each example, ``f_0`` what
    the linear network says without that move, ``y`` labels as rows of 0 and 1. Made linear at
    the original, moves and penalty are counted from 0, and ``f_0 = f - G' theta``; with ``start``
    at that, and counted from it, as the paper does.

    Of each set a random sample is read, weighted so that it stands for all. It is solved in the
    dual form: with ``m`` examples read and ``K`` outputs a matrix of ``(m K)^2`` numbers, and
    gradients ``2 c K P`` of two chunks of ``c`` examples at a time, of ``P`` parameters; it takes
    ``m^2 K / c`` backward passes. The original in inference mode; no step.

    Exact for a linear model that is the solution of such least squares on all that is read. For
    classes and items. A network trained on another loss is no such solution: the move then tells
    a direction, and ``s`` how far.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      scale: ``s``.
      ridge: ``l``, positive; the weight decay of training.
      samples: of each set, at most.
      chunk: ``c``.
      start: variables that training started from; ``None``: see above.
      trapezium: multiplies ``s`` by ``(|d| + 2 |cos(d, e)| |e|) / |d|``, with the move ``d`` and
        what the linear network does not explain, ``e = theta - theta_0 - w(D_r)``. Where ``e`` is
        large this goes far too far.

    Raises:
      ValueError: a number out of range.

    Source: Golatkar et al., "Forgetting outside the box", ECCV 2020 (arXiv 2003.02960).
    """
    expect_numbers(scale=scale)
    expect_positive(ridge=ridge)
    expect_counts(samples=samples, chunk=chunk)
    expect_flags(trapezium=trapezium)
    model = functionalize(model)

    def change(variables: Variables, sets: Sets, key: Key) -> Variables:
        assert sets.forget is not None
        assert sets.retain is not None
        read = tuple(
            sample_of(part, samples, own)
            for part, own in zip((sets.forget, sets.retain), jax.random.split(key), strict=True)
        )
        batch, stands_for = _joined(read, (sets.forget.size, sets.retain.size))
        part = as_subset(batch.x, batch.y, jnp.int32(len(batch.y)))
        at = variables if start is None else start
        origin = jax.tree.map(jnp.zeros_like, trained(at)) if start is None else trained(start)
        away = jax.tree.map(jnp.subtract, trained(at), origin)
        said = linear_outputs(model.apply, at, part, away, chunk)
        dtype = said.dtype
        errors = said - jax.nn.one_hot(batch.y, said.shape[-1], dtype=dtype)
        kernel = tangent_kernel(model.apply, at, part, chunk)
        retained = jnp.arange(len(batch.y)) >= len(read[0].indices)
        alone, whole = (
            _dual(kernel, errors, jnp.where(kept, stands_for, 0), ridge)
            for kept in (retained, jnp.ones_like(retained))
        )
        move = _pulled(model.apply, at, part, whole - alone, chunk)
        factor = jnp.asarray(scale, dtype)
        if trapezium:
            fitted = _pulled(model.apply, at, part, -alone, chunk)
            left = jax.tree.map(lambda t, o, w: t - o - w, trained(variables), origin, fitted)
            factor *= trapezium_factor(move, left).astype(dtype)
        params = jax.tree.map(
            lambda theta, d: theta + factor.astype(theta.dtype) * d, trained(variables), move
        )
        return with_trained(variables, params)

    return edit(change, Needs(forget=True, retain=True), model=model)


def _joined(read: tuple[Subset, ...], sizes: tuple[jax.Array, ...]) -> tuple[Batch, jax.Array]:
    """Returns all that is read as one batch; and how many examples each stands for, 0 if padded."""
    batches, weights = [], []
    for part, size in zip(read, sizes, strict=True):
        slots = jnp.arange(len(part.indices), dtype=jnp.int32)
        batch = pick(part, slots, slots < part.size, labels=True)
        batches.append(batch)
        weights.append(jnp.where(slots < part.size, size / part.size, 0))
    return jax.tree.map(lambda *both: jnp.concatenate(both), *batches), jnp.concatenate(weights)


def _pass(apply: Apply, variables: Variables, x: Any) -> tuple[jax.Array, Any]:
    """Returns the outputs, and the function from cotangents to gradients."""
    return jax.vjp(lambda params: apply(with_trained(variables, params), x), trained(variables))


def linear_outputs(
    apply: Apply, variables: Variables, part: Subset, away: Any, chunk: int
) -> jax.Array:
    """Computes ``f(x) - G' a``, what the network made linear says ``a`` before these variables.

    Args:
      part: examples as one batch holds them, without padding.
      away: ``a``, a tree like the trained parameters.

    Returns:
      ``[m, K]``, in float32 or better.
    """

    def one(slots: jax.Array) -> jax.Array:
        outputs, pull = _pass(apply, variables, pick(part, slots, slots >= 0, labels=True).x)
        # backwards twice: a convolution with a derivative of its own knows no forward mode
        change = jax.grad(lambda u: optax.tree.vdot(pull(u)[0], away))(jnp.zeros_like(outputs))
        found: jax.Array = precise(outputs) - precise(change)
        return found

    return in_chunks(one, len(part.indices), chunk)


def tangent_kernel(apply: Apply, variables: Variables, part: Subset, chunk: int) -> jax.Array:
    """Computes ``<grad f_k(x_i), grad f_l(x_j)>`` of all outputs of all examples.

    Args:
      part: examples as one batch holds them, without padding.
      chunk: examples whose gradients are held at once, twice.

    Returns:
      ``[m, K, m, K]``.
    """
    count = len(part.indices)

    def gradients(slots: jax.Array) -> Any:
        def one(x: Any) -> Any:
            outputs, pull = _pass(apply, variables, jax.tree.map(lambda leaf: leaf[None], x))
            units = jnp.eye(outputs.shape[-1], dtype=outputs.dtype)
            return jax.vmap(lambda unit: pull(unit[None])[0])(units)

        return jax.vmap(one)(pick(part, slots, slots >= 0, labels=True).x)

    def rows(slots: jax.Array) -> jax.Array:
        left = gradients(slots)

        def products(others: jax.Array) -> jax.Array:
            def inner(a: jax.Array, b: jax.Array) -> jax.Array:
                a, b = (precise(g).reshape(*g.shape[:2], -1) for g in (a, b))
                return jnp.einsum("jlp,ikp->jikl", b, a, precision="highest")

            found = jax.tree.map(inner, left, gradients(others))
            return functools.reduce(jnp.add, jax.tree.leaves(found))

        return jnp.transpose(in_chunks(products, count, chunk), (1, 2, 0, 3))

    found: jax.Array = in_chunks(rows, count, chunk)
    return found


def _dual(
    kernel: jax.Array, errors: jax.Array, stands_for: jax.Array, ridge: float | jax.Array
) -> jax.Array:
    """Solves ``(G' G + n l W^-1) a = f_0 - y`` over examples of weight above 0; ``[m, K]``.

    Args:
      kernel: ``[m, K, m, K]``.
      errors: ``[m, K]``.
      stands_for: ``[m]``, the diagonal of ``W``; its sum is ``n``. Others than positive get 0.
    """
    size = errors.size
    weight = jnp.repeat(stands_for.astype(errors.dtype), errors.shape[1])
    counted = weight > 0
    total = jnp.sum(stands_for).astype(errors.dtype) * jnp.asarray(ridge, errors.dtype)
    diagonal = jnp.where(counted, total / jnp.where(counted, weight, 1), 1)
    matrix = jnp.where(counted[:, None] & counted[None], kernel.reshape(size, size), 0)
    found = cho_solve(
        cho_factor(matrix + jnp.diag(diagonal)), jnp.where(counted, errors.reshape(size), 0)
    )
    return found.reshape(errors.shape)


def _pulled(apply: Apply, variables: Variables, part: Subset, dual: jax.Array, chunk: int) -> Any:
    """Computes ``G a``, a tree like the trained parameters."""

    def one(batch: Batch) -> Any:
        outputs, pull = _pass(apply, variables, batch.x)
        own = dual[batch.slot] * batch.weight.astype(dual.dtype)[:, None]
        return pull(own.astype(outputs.dtype))[0]

    return sum_over(one, part, chunk)


def trapezium_factor(move: Any, left: Any) -> jax.Array:
    """Computes ``(|d| + 2 |cos(d, e)| |e|) / |d|``.

    The paper has ``sin(a - pi/2)`` for angles ``a`` above a right one, which is ``-cos a``.

    Args:
      move, left: ``d`` and ``e``, trees.
    """
    size, far = optax.tree.norm(move), optax.tree.norm(left)
    product = jnp.abs(optax.tree.vdot(move, left))
    there = size * far > 0
    cosine = jnp.where(there, product / jnp.where(there, size * far, 1), 0)
    return 1 + 2 * cosine * far / jnp.where(size > 0, size, 1)
