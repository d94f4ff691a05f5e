"""Gradient ascent on what is to be forgotten."""

import jax
import optax

from jaxunlearn.core.types import Apply, Batches, Model, Needs, Unlearner, Variables
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import Context, LossAndMore, accuracy, cross_entropy, descent


def gradient_ascent(
    model: Model | Apply, *, optimizer: optax.GradientTransformation | None = None
) -> Unlearner:
    """Climbs ``theta <- theta + eta grad l(B_f)``: needs no retained data, and shows it.

    The network runs in inference mode: batch statistics of forget images alone would
    ruin every other class.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      optimizer: default SGD with rate .001; its sign is not to be turned.
    """
    model = functionalize(model)
    optimizer = optax.sgd(1e-3) if optimizer is None else optimizer

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        del context
        batch = batches.forget
        assert batch is not None
        logits: jax.Array = model.apply(variables, batch.x)
        loss = cross_entropy(logits, batch.y, batch.weight)
        return -loss, (variables, {"accuracy_forget": accuracy(logits, batch)})

    return descent(objective, optimizer, Needs(forget=True), model=model)
