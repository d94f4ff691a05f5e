"""Fine-tuning with wrong labels on what is to be forgotten."""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import expect_at_least
from jaxunlearn.core.types import Apply, Batches, Key, Model, Needs, Sets, Unlearner, Variables
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.methods.shares import occurring
from jaxunlearn.methods.terms import forward_both, momentum_sgd
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import (
    Context,
    DescentState,
    LossAndMore,
    accuracy,
    cross_entropy,
    descent,
)


def wrong_labels(labels: jax.Array, occurs: jax.Array, key: Key) -> jax.Array:
    """Draws labels uniformly from the others that occur; ``int [B]``.

    Args:
      labels: ``int [B]``, of classes that occur.
      occurs: ``bool [K]``; where fewer than two classes do, all ``K`` are drawn from.
    """
    occurs = occurs | (jnp.sum(occurs) < 2)
    rank = jnp.cumsum(occurs, dtype=labels.dtype) - 1
    classes = jnp.argsort(~occurs, stable=True).astype(labels.dtype)  # those that occur first
    count = jnp.sum(occurs, dtype=labels.dtype)
    shift = jax.random.randint(key, labels.shape, 1, count, labels.dtype)
    return classes[(rank[labels] + shift) % count]


def random_label(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    forget_weight: float = 1.0,
) -> Unlearner:
    """Minimises ``l(B_r, y) + w l(B_f, y')`` with ``y' != y`` drawn anew at every visit.

    Labels are drawn from those that occur in the two sets: a head may have more outputs. Both
    batches go through the network as one, so that batch statistics see the mixture. (Graves
    et al., "Amnesiac machine learning", AAAI 2021; Golatkar et al., CVPR 2020.)

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      optimizer: default SGD with Nesterov momentum .9 and rate .01.
      forget_weight: ``w``, not negative.
    """
    expect_at_least(0, forget_weight=forget_weight)
    model = functionalize(model)
    optimizer = momentum_sgd(optimizer)

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        forget, retain = batches.forget, batches.retain
        assert forget is not None
        assert retain is not None
        label_key, dropout_key = jax.random.split(context.key)
        z_forget, z_retain, moved = forward_both(model, variables, forget, retain, dropout_key)
        wrong = wrong_labels(forget.y, context.prepared, label_key)
        loss = cross_entropy(z_retain, retain.y, retain.weight)
        loss += forget_weight * cross_entropy(z_forget, wrong, forget.weight)
        metrics = {
            "accuracy": accuracy(z_retain, retain),
            "accuracy_forget": accuracy(z_forget, forget),
        }
        return loss, (moved, metrics)

    method = descent(objective, optimizer, Needs(forget=True, retain=True), model=model)

    def init(variables: Variables, sets: Sets, key: Key) -> DescentState:
        assert sets.forget is not None
        assert sets.retain is not None
        shape = jax.eval_shape(model.apply, variables, inputs_like(sets.forget)).shape
        return method.init(variables, sets, key, occurring([sets.forget, sets.retain], shape[-1]))

    return method._replace(init=init)
