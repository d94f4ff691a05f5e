"""Influence unlearning: one Newton step away from what is to be forgotten."""

import jax
import jax.numpy as jnp

from jaxunlearn.core.errors import expect_at_least, expect_counts, expect_numbers, expect_one_of
from jaxunlearn.core.types import Apply, Key, Model, Needs, Sets, Unlearner, Variables
from jaxunlearn.methods.shares import forget_fraction, sample_of
from jaxunlearn.models import functionalize
from jaxunlearn.training.curvature import (
    CURVATURES,
    curvature_product,
    losses_of,
    mean_gradient,
    solve_damped,
)
from jaxunlearn.training.descent import Losses, trained, with_trained
from jaxunlearn.training.edit import edit


def influence(
    model: Model | Apply,
    *,
    scale: float = 1.0,
    damping: float = 0.1,
    curvature: str = "gauss_newton",
    iterations: int = 20,
    samples: int | None = None,
    losses: Losses | None = None,
) -> Unlearner:
    """Moves by ``theta + s (H_r + d I)^-1 v``, ``v = sum_f g_i / n - n_f / (n n_r) sum_r g_i``.

    ``g_i`` is the gradient of an example's loss, ``n = n_f + n_r``. ``H_r``, the mean curvature of
    the retain set, is known by its products with vectors alone: conjugate gradients solve for the
    step, each turn one pass over the retain set, or a sample of it; the memory is that of a few
    copies of the parameters. The original in inference mode; no step.

    Exact where losses are quadratic, the original is their minimum, ``s = 1``, ``d = 0`` and there
    are as many turns as parameters: the curvature is that of the *retain* set, since that of
    all examples errs by the forget set's. On networks it is one step of a model that holds near the
    original; where examples are fitted perfectly their gradients, and the step, are 0. What is
    called "WoodFisher" in public code moves along the first example's gradient alone.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      scale: ``s``.
      damping: ``d``, not negative; the step is at most ``s |v| / d``, and where examples are
        fitted well, so that ``H_r`` is small, near it.
      curvature: ``"gauss_newton"``, never negative, of the cross-entropy; ``"hessian"``, which a
        network may bend both ways: then only damping above its lowest value helps.
      iterations: of conjugate gradients, at most.
      samples: retained examples that ``H_r`` is taken over, drawn at random; ``None`` for all.
      losses: ``variables, batch -> [B]``, in the place of the cross-entropy, penalties included;
        with the Hessian alone.

    Raises:
      ValueError: a number out of range, an unknown curvature, or Gauss-Newton with ``losses``.

    Source: Koh and Liang, "Understanding black-box predictions via influence functions", ICML
    2017; as a baseline: Izzo et al., AISTATS 2021, and Jia et al., NeurIPS 2023.
    """
    expect_numbers(scale=scale)
    expect_at_least(0, damping=damping)
    expect_one_of(CURVATURES, curvature=curvature)
    expect_counts(iterations=iterations)
    if samples is not None:
        expect_counts(samples=samples)
    expect_curvature(curvature, losses)
    model = functionalize(model)
    own = losses_of(model) if losses is None else losses

    def change(variables: Variables, sets: Sets, key: Key) -> Variables:
        forget, retain = sets.forget, sets.retain
        assert forget is not None
        assert retain is not None
        away, kept = (mean_gradient(own, variables, part) for part in (forget, retain))
        share = forget_fraction(forget, retain)
        v = jax.tree.map(lambda f, r: share.astype(f.dtype) * (f - r), away, kept)
        part = retain if samples is None else sample_of(retain, samples, key)
        product = curvature_product(curvature, model, own, variables, part)
        found = solve_damped(product, v, damping, iterations)
        params = jax.tree.map(
            lambda theta, step: theta + jnp.asarray(scale, theta.dtype) * step,
            trained(variables), found,
        )  # fmt: skip
        return with_trained(variables, params)

    return edit(change, Needs(forget=True, retain=True), model=model)


def expect_curvature(curvature: str, losses: Losses | None) -> None:
    """Raises a ``ValueError`` for Gauss-Newton, which is the cross-entropy's, of other losses."""
    if losses is not None and curvature != "hessian":
        raise ValueError(
            f"curvature: expected 'hessian' with losses of one's own, got {curvature!r}"
        )
