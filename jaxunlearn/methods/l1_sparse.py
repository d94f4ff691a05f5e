"""Fine-tuning that makes weights vanish."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import (
    brief,
    expect_at_least,
    expect_counts,
    expect_one_of,
    expect_positive,
    expect_shares,
)
from jaxunlearn.core.types import Apply, Batches, Info, Key, Model, Needs, Unlearner, Variables
from jaxunlearn.methods.retrain import learn_retained
from jaxunlearn.methods.terms import mean_loss
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import (
    Context,
    DescentState,
    LossAndMore,
    Losses,
    descent,
    trained,
    with_trained,
)

FORMS = ("proximal", "subgradient")


def soft_threshold(params: Any, threshold: float | jax.Array) -> Any:
    """Computes ``sign(theta) max(|theta| - t, 0)``, the proximal step of ``t |theta|_1``."""

    def shrink(leaf: jax.Array) -> jax.Array:
        left = jnp.maximum(jnp.abs(leaf) - jnp.asarray(threshold, leaf.dtype), 0)
        return jnp.sign(leaf) * left

    return jax.tree.map(shrink, params)


def l1_sparse(
    model: Model | Apply,
    *,
    steps: int,
    optimizer: optax.GradientTransformation | None = None,
    learning_rate: float = 0.01,
    gamma: float = 5e-4,
    penalised: float = 1.0,
    form: str = "proximal",
    augment: str = "none",
    losses: Losses | None = None,
) -> Unlearner:
    """Minimises ``l(B_r) + gamma_t |theta|_1`` with ``gamma_t = gamma (1 - t / (u T))``.

    ``T`` steps, ``u`` the share of them that are penalised; afterwards ``gamma_t`` is 0. The
    proximal form sets ``theta <- S(theta - u(grad l), eta gamma_t)`` with
    ``S(theta, t) = sign(theta) max(|theta| - t, 0)``: weights become 0. The subgradient
    ``gamma_t sign(theta)``, as public code adds it to the gradient, only makes them hover about
    it. It reads nothing of the forget set, and forgets as fine-tuning does.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      steps: ``T``; a run tells it.
      optimizer: default SGD with Nesterov momentum .9 and ``learning_rate``.
      learning_rate: ``eta``: that of the optimizer, which does not tell it.
      gamma: not negative; 0 is fine-tuning.
      penalised: ``u``, above 0 and at most 1.
      form: ``"proximal"`` or ``"subgradient"``.
      augment: a name in ``AUGMENTATIONS``.
      losses: ``variables, batch -> [B]``, in the place of the cross-entropy in training mode;
        without ``augment``.

    Raises:
      ValueError: a number out of range, an unknown form, or ``augment`` with ``losses``.

    Source: Jia et al., Model sparsity can simplify machine unlearning, NeurIPS 2023 (arXiv
    2304.04934); the proximal form: Parikh and Boyd, Proximal algorithms, 2014.
    """
    expect_counts(steps=steps)
    expect_positive(learning_rate=learning_rate)
    expect_at_least(0, gamma=gamma)
    expect_shares(" of the steps", penalised=penalised)
    expect_one_of(FORMS, form=form)
    if losses is not None and augment != "none":
        raise ValueError(f"augment: expected 'none' with losses of one's own, got {brief(augment)}")
    model = functionalize(model)
    if optimizer is None:
        optimizer = optax.sgd(learning_rate, momentum=0.9, nesterov=True)
    learn = learn_retained(model, augment)

    def weight_at(count: jax.Array) -> jax.Array:
        done = count.astype(float) / (penalised * steps)
        return gamma * jnp.maximum(1 - done, 0)

    def fit(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        if losses is None:
            return learn(variables, batches, context)
        assert batches.retain is not None
        loss, told = mean_loss(model, losses, variables, batches.retain, "accuracy")
        return loss, (variables, told)

    def penalise(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        loss, more = fit(variables, batches, context)
        leaves = jax.tree.leaves(trained(variables))
        size = sum(jnp.sum(jnp.abs(leaf)).astype(loss.dtype) for leaf in leaves)
        return loss + weight_at(context.step).astype(loss.dtype) * size, more

    objective = fit if form == "proximal" else penalise
    method = descent(objective, optimizer, Needs(retain=True), model=model)
    if form == "subgradient":
        return method

    def step(
        state: DescentState, batches: Batches, key: Key, count: jax.Array
    ) -> tuple[DescentState, Info]:
        assert method.step is not None
        state, info = method.step(state, batches, key, count)
        params = soft_threshold(trained(state.variables), learning_rate * weight_at(count))
        return state._replace(variables=with_trained(state.variables, params)), info

    return method._replace(step=step)
