"""Sums over a whole set, in compiled code: gradients, and products with a matrix of curvature.

For methods that solve for the new model instead of walking to it: what is summed goes through
the network a chunk at a time, so that neither activations nor a matrix of all parameters are ever
held.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import expect_one_of
from jaxunlearn.core.trees import precise
from jaxunlearn.core.types import Apply, Batch, Model, Subset, Variables
from jaxunlearn.data.batches import in_order
from jaxunlearn.training.descent import Losses, cross_entropies, trained, with_trained

CHUNK = 128
"""Examples that go through a network together."""

CURVATURES = ("gauss_newton", "hessian")


def losses_of(model: Model) -> Losses:
    """Returns the function of the cross-entropy of each example, in inference mode."""
    return lambda variables, batch: cross_entropies(model.apply(variables, batch.x), batch.y)


def sum_over(fn: Callable[[Batch], Any], part: Subset, chunk: int = CHUNK) -> Any:
    """Adds up ``fn(batch)`` over a set as it lies, in compiled code.

    Args:
      fn: of a batch whose padding has weight 0, to a tree of arrays.
      part: its size may be an array; what is behind it is not computed.
      chunk: examples in a batch, at most.

    Returns:
      The tree; its sum cannot be differentiated in reverse.
    """
    size = min(chunk, len(part.indices))
    like = jax.eval_shape(lambda: fn(in_order(part, jnp.int32(0), size)))
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

    def add(turn: jax.Array, total: Any) -> Any:
        return jax.tree.map(jnp.add, total, fn(in_order(part, turn, size)))

    return jax.lax.fori_loop(0, -(-part.size // size), add, blank)


def mean_over(fn: Callable[[Batch], Any], part: Subset, chunk: int = CHUNK) -> Any:
    """Divides :func:`sum_over` by the number of examples."""
    return _per_example(sum_over(fn, part, chunk), part)


def _per_example(total: Any, part: Subset) -> Any:
    count = jnp.maximum(part.size, 1)
    return jax.tree.map(lambda leaf: leaf / count.astype(leaf.dtype), total)


def _total(values: jax.Array, batch: Batch) -> jax.Array:
    return jnp.sum(values * batch.weight.astype(values.dtype))


def sum_gradient(losses: Losses, variables: Variables, part: Subset, chunk: int = CHUNK) -> Any:
    """Computes ``sum_i grad l_i`` in the trained parameters, over a whole set."""

    def gradient(batch: Batch) -> Any:
        def total(params: Any) -> jax.Array:
            return _total(losses(with_trained(variables, params), batch), batch)

        return jax.grad(total)(trained(variables))

    return sum_over(gradient, part, chunk)


def mean_gradient(losses: Losses, variables: Variables, part: Subset, chunk: int = CHUNK) -> Any:
    """Divides :func:`sum_gradient` by the number of examples."""
    return _per_example(sum_gradient(losses, variables, part, chunk), part)


def hessian_product(
    losses: Losses, variables: Variables, part: Subset, direction: Any, chunk: int = CHUNK
) -> Any:
    """Computes ``H v`` with ``H = (1/n) sum_i grad^2 l_i``, by a gradient of a gradient.

    Args:
      direction: ``v``, a tree like the trained parameters.
    """

    def product(batch: Batch) -> Any:
        def total(params: Any) -> jax.Array:
            return _total(losses(with_trained(variables, params), batch), batch)

        # backwards twice: a convolution with a derivative of its own knows no forward mode
        return jax.grad(lambda params: optax.tree.vdot(jax.grad(total)(params), direction))(
            trained(variables)
        )

    return mean_over(product, part, chunk)


def gauss_newton_product(
    apply: Apply, variables: Variables, part: Subset, direction: Any, chunk: int = CHUNK
) -> Any:
    """Computes ``G v`` with ``G = (1/n) sum_i J_i' (diag(p_i) - p_i p_i') J_i``; never negative.

    The Hessian of the cross-entropy without the curvature of the network; of a linear model both
    are one. ``J v`` is the derivative in ``u`` of ``<J' u, v>``: backwards twice.

    Args:
      apply: ``variables, x -> logits [B, K]``.
      direction: ``v``, a tree like the trained parameters.

    Source: Schraudolph 2002, Fast curvature matrix-vector products.
    """

    def product(batch: Batch) -> Any:
        logits, pull = jax.vjp(
            lambda params: apply(with_trained(variables, params), batch.x), trained(variables)
        )
        moved = jax.grad(lambda u: optax.tree.vdot(pull(u)[0], direction))(jnp.zeros_like(logits))
        p = jax.nn.softmax(precise(logits))
        moved = moved.astype(p.dtype)
        weight = batch.weight.astype(p.dtype)[:, None]
        bent = weight * p * (moved - jnp.sum(p * moved, axis=-1, keepdims=True))
        return pull(bent.astype(logits.dtype))[0]

    return mean_over(product, part, chunk)


def solve_damped(
    product: Callable[[Any], Any], gradient: Any, damping: float | jax.Array, iterations: int
) -> Any:
    """Solves ``(A + d I) v = g`` by conjugate gradients: exact after as many turns as parameters.

    Args:
      product: ``v -> A v``, symmetric and not negative.
      gradient: ``g``.
      damping: ``d``, not negative.
      iterations: at most; fewer where the residual has fallen to 1e-6 of ``|g|``, 1e-12 in
        double precision.
    """

    def damped(v: Any) -> Any:
        return jax.tree.map(
            lambda av, own: av + jnp.asarray(damping, own.dtype) * own, product(v), v
        )

    precise = all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(gradient))
    found, _ = jax.scipy.sparse.linalg.cg(
        damped, gradient, tol=1e-12 if precise else 1e-6, maxiter=iterations
    )
    return found


def curvature_product(
    kind: str, model: Model, losses: Losses, variables: Variables, part: Subset, chunk: int = CHUNK
) -> Callable[[Any], Any]:
    """Returns ``v -> A v`` with the matrix of that name, of a set.

    Args:
      kind: ``"gauss_newton"``, of the cross-entropy, or ``"hessian"``, of these losses.
    """
    expect_one_of(CURVATURES, kind=kind)
    if kind == "hessian":
        return lambda v: hessian_product(losses, variables, part, v, chunk)
    return lambda v: gauss_newton_product(model.apply, variables, part, v, chunk)
