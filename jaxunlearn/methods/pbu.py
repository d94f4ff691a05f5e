"""Partially blinded unlearning: ascent that is held where the predictions depend on weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import expect_at_least, expect_one_of
from jaxunlearn.core.types import (
    Apply,
    Batch,
    Batches,
    Key,
    Model,
    Needs,
    Sets,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.methods.terms import mean_loss
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import (
    Context,
    DescentState,
    LossAndMore,
    Losses,
    cross_entropies,
    descent,
    trained,
)
from jaxunlearn.training.per_example import mean_importance

FORMS = ("proximal", "repository")


def pbu(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    forget_weight: float = 721.0,
    fisher_weight: float = 100.0,
    distance_weight: float = 4001.0,
    form: str = "proximal",
    losses: Losses | None = None,
) -> Unlearner:
    """Climbs the loss of what is to be forgotten, and is drawn back to the original.

    ``J = -a mean_f l + b (theta - theta_o)' F (theta - theta_o) + g |theta - theta_o|^2`` with the
    diagonal ``F`` of the Fisher information on the forget set:
    ``F_i = (1/n) sum_x sum_k p_k(x) (d log p_k(x) / d theta_i)^2``.

    For a loss of curvature ``h`` the end exists where ``a h < 2 (b F + g)``; else the method
    diverges. Cross-entropy is less curved the larger it grows, but the loss has no bound: the
    published runs collapse after a few epochs. Stop them in time, for a class by
    ``stop=ju.stop.within(accuracy_forget=0.01)``.

    The network runs in inference mode. Reads the forget set alone; for classes and items; not
    exact.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      optimizer: default Adam with rate 1e-4.
      forget_weight, fisher_weight, distance_weight: ``a``, ``b``, ``g``.
      form: ``"proximal"`` as above; ``"repository"``: ``b theta' F (theta - theta_o)`` as the
        published code has it, which draws weights to half of the original's even with ``a = 0``.
      losses: ``variables, batch -> losses [B]``, in the place of the cross-entropy. ``F`` then
        is the mean of their squared gradients.

    Source: Panda et al., "Partially blinded unlearning: class unlearning for deep networks from
    Bayesian perspective", arXiv 2403.16246.
    """
    expect_at_least(
        0, forget_weight=forget_weight, fisher_weight=fisher_weight,
        distance_weight=distance_weight,
    )  # fmt: skip
    expect_one_of(FORMS, form=form)
    model = functionalize(model)
    optimizer = optax.adam(1e-4) if optimizer is None else optimizer

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        batch, fisher = batches.forget, context.prepared
        assert batch is not None
        loss, told = mean_loss(model, losses, variables, batch, "accuracy_forget")
        params, original = trained(variables), trained(context.original)
        moved = jax.tree.map(jnp.subtract, params, original)
        left = moved if form == "proximal" else params
        held = optax.tree.vdot(jax.tree.map(jnp.multiply, fisher, left), moved)
        far = optax.tree.norm(moved, squared=True)
        objective = -forget_weight * loss + fisher_weight * held + distance_weight * far
        return objective, (variables, {"loss_forget": loss, "square_distance": far, **told})

    method = descent(objective, optimizer, Needs(forget=True, original=True), model=model)

    def init(variables: Variables, sets: Sets, key: Key) -> DescentState:
        assert sets.forget is not None
        if losses is None:
            fisher = fisher_diagonal(model.apply, variables, sets.forget)
        else:
            own = losses
            fisher = mean_importance(lambda v, one: jnp.sum(own(v, one)), variables, sets.forget)
        return method.init(variables, sets, key, fisher)

    return method._replace(init=init)


def fisher_diagonal(apply: Apply, variables: Variables, part: Subset) -> Any:
    """Computes ``(1/n) sum_x sum_k p_k(x) (grad log p_k(x))^2`` of the trained parameters.

    Exact: over all classes, none of them drawn. Labels are not read.

    Args:
      apply: ``variables, x -> logits [B, K]``.
    """
    count = jax.eval_shape(apply, variables, inputs_like(part)).shape[-1]

    def loss(variables: Variables, one: Batch) -> jax.Array:
        found = cross_entropies(apply(variables, one.x), one.y)
        # whose squared gradient is p (grad log p)^2
        return jnp.sum(jnp.exp(-jax.lax.stop_gradient(found) / 2) * found)

    def add(label: jax.Array, total: Any) -> Any:
        alike = jnp.full_like(part.examples.y, label)
        named = part._replace(examples=part.examples._replace(y=alike))
        return jax.tree.map(jnp.add, total, mean_importance(loss, variables, named))

    blank = jax.tree.map(jnp.zeros_like, trained(variables))
    return jax.lax.fori_loop(0, count, add, blank)
