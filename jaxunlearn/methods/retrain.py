"""Training from scratch: on the retain set it makes a retrained model, on all data the original."""

import jax
import optax

from jaxunlearn.core.types import Apply, Batches, Model, Needs, Unlearner, Variables
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import (
    Context,
    LossAndMore,
    Objective,
    accuracy,
    cross_entropy,
    descent,
)
from jaxunlearn.training.optimizers import make_augment


def learn_retained(model: Model, augment: str = "none") -> Objective:
    """Returns the objective ``mean_r l(f(x_r), y_r)`` on retain batches, in training mode."""
    change = make_augment(augment)

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        batch = batches.retain
        assert batch is not None
        augment_key, dropout_key = jax.random.split(context.key)
        logits, moved = model.apply_train(variables, change(batch.x, augment_key), dropout_key)
        loss = cross_entropy(logits, batch.y, batch.weight)
        return loss, (moved, {"accuracy": accuracy(logits, batch)})

    return objective


def retrain(
    model: Model | Apply, *, optimizer: optax.GradientTransformation, augment: str = "none"
) -> Unlearner:
    """Forgets exactly: a fresh model trained on the retain set alone.

    ``theta = train(init(key), D_r)``. The given variables are not used. With
    ``Sets(retain=sets.train)`` this is ordinary training.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      optimizer: any optax transformation.
      augment: a name in ``AUGMENTATIONS``.
    """
    model = functionalize(model)
    return descent(learn_retained(model, augment), optimizer, Needs(retain=True), fresh=model)
