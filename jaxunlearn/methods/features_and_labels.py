"""Features and labels corrected in closed form; certificates for linear models."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import (
    ConfigError,
    brief,
    expect_at_least,
    expect_counts,
    expect_numbers,
    expect_one_of,
    expect_positive,
)
from jaxunlearn.core.trees import in_chunks
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
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.methods.influence import expect_curvature
from jaxunlearn.methods.random_label import wrong_labels
from jaxunlearn.methods.shares import as_subset, keep, occurring
from jaxunlearn.models import functionalize
from jaxunlearn.training.curvature import (
    CHUNK,
    CURVATURES,
    curvature_product,
    losses_of,
    solve_damped,
    sum_gradient,
)
from jaxunlearn.training.descent import Losses, trained, with_trained
from jaxunlearn.training.edit import edit

Correction = str | Callable[[Batch], Batch]
CORRECTIONS = ("delete", "random_label")


def first_order(
    model: Model | Apply,
    *,
    rate: float = 1e-4,
    correction: Correction = "delete",
    losses: Losses | None = None,
) -> Unlearner:
    """Moves by ``theta - t G`` with ``G = sum_z~ grad l(z~) - sum_z grad l(z)``.

    ``z`` are the examples of the forget set, ``z~`` what they should have been. Deleted, there is
    no ``z~``: then this is one step of ascent. Sums, not means, of the original in inference
    mode, so that ``t`` depends on how many they are; no step.

    For classes and items; not exact. Examples that are fitted perfectly have no gradient, and
    are not forgotten by deleting them.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      rate: ``t``, positive; 2e-5 in the paper for a network of 1.8 million parameters.
      correction: ``"delete"``; ``"random_label"``: labels drawn from the others that occur in
        the forget set, or from all where it has but one; or a function of a batch, as the
        network takes it, that returns it with ``x`` or ``y`` replaced by what is right, such as
        ``lambda batch: batch._replace(x=batch.x.at[:, 3].set(0))``.
      losses: ``variables, batch -> [B]``, in the place of the cross-entropy.

    Source: Warnecke et al., "Machine unlearning of features and labels", NDSS 2023 (arXiv
    2108.11577).
    """
    expect_positive(rate=rate)
    _expect_correction(correction)
    model = functionalize(model)
    own = losses_of(model) if losses is None else losses

    def change(variables: Variables, sets: Sets, key: Key) -> Variables:
        assert sets.forget is not None
        right = _corrected(correction, model, variables, sets.forget, key)
        found = _change_of_gradient(own, variables, sets.forget, right)
        return _moved(variables, found, -jnp.asarray(rate))

    return edit(change, Needs(forget=True), model=model)


def second_order(
    model: Model | Apply,
    *,
    scale: float = 1.0,
    damping: float = 0.1,
    ridge: float = 0.0,
    correction: Correction = "delete",
    curvature: str = "gauss_newton",
    iterations: int = 20,
    losses: Losses | None = None,
) -> Unlearner:
    """Moves by ``theta - s H^-1 G``, one Newton step of the objective on the corrected data.

    ``G`` is that of :func:`first_order`, ``H`` the curvature of
    ``sum_i l_i + (r/2) |theta|^2 + (d n / 2) |theta|^2`` over all ``n`` corrected examples: the
    retain set and ``z~``. Conjugate gradients solve for the step, each turn a pass over them; the
    original in inference mode; no step.

    Exact where losses are quadratic and the original is the minimum of
    ``sum_i l_i + (r/2) |theta|^2``, with ``s = 1``, ``d = 0`` and as many turns as parameters; the
    curvature of the data before they were corrected errs. For linear models what is left can be
    certified: :func:`gradient_residual`, :func:`certified_noise`. For classes and items; not exact
    on networks, where examples that are fitted perfectly have no gradient.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      scale: ``s``.
      damping: ``d``, not negative, added to the mean curvature.
      ridge: ``r``, not negative: a penalty that does not grow with the number of examples.
      correction: see :func:`first_order`.
      curvature: ``"gauss_newton"``, never negative, of the cross-entropy; or ``"hessian"``.
      iterations: of conjugate gradients, at most.
      losses: ``variables, batch -> [B]``, in the place of the cross-entropy, without the penalty;
        with the Hessian alone.

    Raises:
      ValueError: a number out of range, an unknown word, or Gauss-Newton with ``losses``.

    Source: as :func:`first_order`; the paper solves by a recursion over batches.
    """
    expect_numbers(scale=scale)
    expect_at_least(0, damping=damping, ridge=ridge)
    expect_one_of(CURVATURES, curvature=curvature)
    expect_counts(iterations=iterations)
    expect_curvature(curvature, losses)
    _expect_correction(correction)
    model = functionalize(model)
    own = losses_of(model) if losses is None else losses

    def change(variables: Variables, sets: Sets, key: Key) -> Variables:
        forget, retain = sets.forget, sets.retain
        assert forget is not None
        assert retain is not None
        right = _corrected(correction, model, variables, forget, key)
        parts = [retain] if right is None else [retain, right]
        count = sum(part.size for part in parts)
        assert isinstance(count, jax.Array)
        products = [curvature_product(curvature, model, own, variables, part) for part in parts]

        def product(v: Any) -> Any:
            shares = [part.size.astype(float) / count.astype(float) for part in parts]
            each = [one(v) for one in products]
            return jax.tree.map(
                lambda *leaves: sum(
                    share.astype(leaf.dtype) * leaf
                    for share, leaf in zip(shares, leaves, strict=True)
                ),
                *each,
            )

        found = _change_of_gradient(own, variables, forget, right)
        mean = jax.tree.map(lambda leaf: leaf / count.astype(leaf.dtype), found)
        added = damping + ridge / count.astype(float)
        step = solve_damped(product, mean, added, iterations)
        return _moved(variables, step, -jnp.asarray(scale))

    return edit(change, Needs(forget=True, retain=True), model=model)


def _expect_correction(correction: Correction) -> None:
    if not callable(correction) and correction not in CORRECTIONS:
        raise ValueError(
            f"correction: expected one of {CORRECTIONS} or a function of a batch, "
            f"got {brief(correction)}"
        )


def _corrected(
    correction: Correction, model: Model, variables: Variables, forget: Subset, key: Key
) -> Subset | None:
    """Returns the examples as they should have been; ``None`` where they are deleted."""
    if correction == "delete":
        return None
    slots = jnp.arange(len(forget.indices), dtype=jnp.int32)
    if callable(correction):
        fix = correction

        def fixed(own: jax.Array) -> tuple[Any, jax.Array]:
            batch = pick(forget, own, own < forget.size, labels=True)
            right = fix(batch)
            if not isinstance(right, Batch) or right.y.shape != batch.y.shape:
                raise ConfigError(
                    "correction: expected a function that returns a batch of as many examples, "
                    f"got {brief(right)}"
                )
            return right.x, right.y

        x, y = in_chunks(fixed, len(slots), CHUNK)
        return as_subset(x, y, forget.size)
    copied = keep(forget, slots, forget.size).part
    outputs = jax.eval_shape(model.apply, variables, inputs_like(forget)).shape[-1]
    drawn = wrong_labels(copied.examples.y, occurring([forget], outputs), key)
    return copied._replace(examples=copied.examples._replace(y=drawn))


def _change_of_gradient(
    losses: Losses, variables: Variables, forget: Subset, right: Subset | None
) -> Any:
    """Computes ``G``, a sum."""
    wrong = sum_gradient(losses, variables, forget)
    if right is None:
        return jax.tree.map(jnp.negative, wrong)
    return jax.tree.map(jnp.subtract, sum_gradient(losses, variables, right), wrong)


def _moved(variables: Variables, step: Any, factor: jax.Array) -> Variables:
    params = jax.tree.map(
        lambda theta, own: theta + factor.astype(theta.dtype) * own.astype(theta.dtype),
        trained(variables), step,
    )  # fmt: skip
    return with_trained(variables, params)


def gradient_residual(
    losses: Losses,
    variables: Variables,
    parts: Sequence[Subset],
    *,
    ridge: float | jax.Array = 0.0,
    noise: Any = None,
) -> jax.Array:
    """Computes ``|sum_i grad l_i + r theta + b|``: how far a model is from trained on some data.

    0 at the minimum of ``sum_i l_i + (r/2) |theta|^2 + b' theta``.

    Args:
      losses: ``variables, batch -> [B]``, without the penalty.
      parts: sets whose union is meant, such as the retain set and corrected examples.
      ridge: ``r``.
      noise: ``b``, a tree like the trained parameters; ``None`` for 0.

    Returns:
      ``[]``.

    Source: Guo et al., "Certified data removal", ICML 2020; Warnecke et al., NDSS 2023.
    """
    params = trained(variables)
    total = jax.tree.map(lambda theta: jnp.asarray(ridge, theta.dtype) * theta, params)
    for part in parts:
        total = jax.tree.map(jnp.add, total, sum_gradient(losses, variables, part))
    if noise is not None:
        total = jax.tree.map(jnp.add, total, noise)
    norm: jax.Array = optax.tree.norm(total)
    return norm


def certified_noise(residual: float, epsilon: float, delta: float) -> float:
    """Computes ``u c / epsilon`` with ``c = sqrt(2 ln(1.5 / delta))``.

    The least deviation of the noise ``b`` in ``sum_i l_i + (r/2) |theta|^2 + b' theta``, drawn from
    ``N(0, s^2 I)`` before training, with which a strongly convex model whose residual gradient
    is at most ``u`` is ``(epsilon, delta)``-indistinguishable from one trained on the corrected
    data.

    Args:
      residual: ``u``, a bound of :func:`gradient_residual`.
      epsilon: positive.
      delta: above 0 and at most 1.

    Raises:
      ValueError: a number out of range.

    Source: as :func:`gradient_residual`; ``c`` as Warnecke et al. have it.
    """
    expect_at_least(0, residual=residual)
    expect_positive(epsilon=epsilon, delta=delta)
    if delta > 1:
        raise ValueError(f"delta: expected a number above 0, at most 1, got {delta}")
    return float(residual) * math.sqrt(2 * math.log(1.5 / delta)) / epsilon
