"""Fisher forgetting: noise, large where the retained examples do not depend on a weight."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core.errors import expect_counts, expect_one_of, expect_positive
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
from jaxunlearn.methods.pbu import fisher_diagonal
from jaxunlearn.methods.shares import sample_of
from jaxunlearn.models import functionalize
from jaxunlearn.training.curvature import losses_of
from jaxunlearn.training.descent import Losses, trained, with_trained
from jaxunlearn.training.edit import edit
from jaxunlearn.training.per_example import mean_importance

FORMS = ("expected", "empirical")


def fisher(
    model: Model | Apply,
    *,
    noise: float = 1e-6,
    largest: float = 1e3,
    form: str = "expected",
    samples: int | None = None,
    losses: Losses | None = None,
) -> Unlearner:
    """Adds noise ``N(0, s)`` with ``s = a min(1 / (F_r + 1e-8), c)`` to each weight.

    ``F_r`` is the diagonal of the Fisher information on the retain set: weights that retained
    examples do not depend on are drowned, whoever depended on them. Expected, it is
    ``(1/n) sum_x sum_k p_k(x) (grad log p_k(x))^2`` over all ``K`` classes, ``K`` gradients an
    example, without labels; empirical ``(1/n) sum_x (grad l(x, y))^2``, one gradient. The
    original in inference mode; one pass, and no step.

    For classes and items; it reads nothing of the forget set, so that it forgets what retained
    examples do not use, and no more. Not exact: on deep networks accuracy of all classes falls
    before what is to be forgotten is gone. The mean of a head's row is not set to 0 for a class, as
    published code does it, nor are variances averaged over the inputs of a neuron.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      noise: ``a``, positive; the paper has 1e-9 to 1e-6.
      largest: ``c``, positive: bounds the variance, to ``a c``.
      form: ``"expected"`` or ``"empirical"``.
      samples: retained examples that are read, drawn at random; ``None`` for all.
      losses: ``variables, batch -> [B]``, in the place of the cross-entropy of the labels;
        of the empirical form alone.

    Raises:
      ValueError: a number out of range, an unknown form, losses with the expected one.

    Source: Golatkar et al., "Eternal sunshine of the spotless net", CVPR 2020 (arXiv 1911.04933).
    """
    expect_positive(noise=noise, largest=largest)
    expect_one_of(FORMS, form=form)
    if samples is not None:
        expect_counts(samples=samples)
    if losses is not None and form == "expected":
        raise ValueError("form: expected 'empirical' with losses of one's own, got 'expected'")
    model = functionalize(model)
    own = losses_of(model) if losses is None else losses

    def information(variables: Variables, part: Subset) -> Any:
        if form == "expected":
            return fisher_diagonal(model.apply, variables, part)

        def loss(variables: Variables, one: Batch) -> jax.Array:
            return jnp.sum(own(variables, one))

        return mean_importance(loss, variables, part)

    def change(variables: Variables, sets: Sets, key: Key) -> Variables:
        assert sets.retain is not None
        choose, draw = jax.random.split(key)
        part = sets.retain if samples is None else sample_of(sets.retain, samples, choose)
        found = information(variables, part)
        params = trained(variables)
        numbers = jax.tree.unflatten(
            jax.tree.structure(params), range(len(jax.tree.leaves(params)))
        )

        def move(theta: jax.Array, f: jax.Array, number: int) -> jax.Array:
            variance = jnp.minimum(1 / (f + 1e-8), jnp.asarray(largest, f.dtype))
            deviation = jnp.sqrt(jnp.asarray(noise, f.dtype) * variance).astype(theta.dtype)
            own = jax.random.fold_in(draw, number)
            return theta + deviation * jax.random.normal(own, theta.shape, theta.dtype)

        return with_trained(variables, jax.tree.map(move, params, found, numbers))

    return edit(change, Needs(retain=True, labels=form == "empirical"), model=model)
