"""Gradient ascent on what is to be forgotten, held by descent on what is retained."""

import optax

from jaxunlearn.core.errors import brief, is_known, is_number
from jaxunlearn.core.types import Apply, Batches, Model, Needs, Unlearner, Variables
from jaxunlearn.methods.terms import mean_loss, momentum_sgd
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import Context, LossAndMore, Losses, descent


def neggrad_plus(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    retain_weight: float = 0.95,
    losses: Losses | None = None,
) -> Unlearner:
    """Descends ``a l(B_r) - (1 - a) l(B_f)``.

    The network runs in inference mode: batch statistics stay those of the original. With two
    quadratic losses of one curvature and the minima ``r`` and ``f`` it ends at
    ``(a r - (1 - a) f) / (2a - 1)``; for ``a <= 1/2`` there is no minimum. The cross-entropy of
    the forget set has no bound, so that below 1 too many steps ruin the model in any case: give
    the run a ``stop`` on ``accuracy_forget``.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      optimizer: default SGD with Nesterov momentum .9 and rate .01.
      retain_weight: ``a``, above 1/2 and at most 1.
      losses: ``variables, batch -> [B]``, in the place of the cross-entropy.

    Raises:
      ValueError: another ``retain_weight``.

    Source: Kurmanji et al., Towards unbounded machine unlearning, NeurIPS 2023; weight and mode
    as in Cadet et al., Deep Unlearn, arXiv 2410.01276.
    """
    if is_known(retain_weight) and not (is_number(retain_weight) and 0.5 < retain_weight <= 1):
        raise ValueError(
            "retain_weight: expected a number above 0.5, at most 1, without which the objective "
            f"has no minimum, got {brief(retain_weight)}"
        )
    model, optimizer = functionalize(model), momentum_sgd(optimizer)

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        del context
        assert batches.forget is not None
        assert batches.retain is not None
        retained, told = mean_loss(model, losses, variables, batches.retain, "accuracy")
        known, more = mean_loss(model, losses, variables, batches.forget, "accuracy_forget")
        loss = retain_weight * retained - (1 - retain_weight) * known
        return loss, (variables, {**told, **more, "loss_forget": known})

    return descent(objective, optimizer, Needs(forget=True, retain=True), model=model)
