"""Gradient ascent on what is to be forgotten."""

import optax

from jaxunlearn.core.types import Apply, Batches, Model, Needs, Unlearner, Variables
from jaxunlearn.methods.terms import mean_loss
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import Context, LossAndMore, Losses, descent


def gradient_ascent(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    losses: Losses | None = None,
) -> Unlearner:
    """Climbs ``theta <- theta + eta grad l(B_f)``: needs no retained data, and shows it.

    The network runs in inference mode: batch statistics of forget images alone would
    ruin every other class.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      optimizer: default SGD with rate .001; its sign is not to be turned.
      losses: ``variables, batch -> [B]``, in the place of the cross-entropy.
    """
    model = functionalize(model)
    optimizer = optax.sgd(1e-3) if optimizer is None else optimizer

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        del context
        assert batches.forget is not None
        loss, told = mean_loss(model, losses, variables, batches.forget, "accuracy_forget")
        return -loss, (variables, told)

    return descent(objective, optimizer, Needs(forget=True), model=model)
