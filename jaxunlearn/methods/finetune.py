"""Fine-tuning on what is retained."""

import optax

from jaxunlearn.core.types import Apply, Model, Needs, Unlearner
from jaxunlearn.methods.retrain import learn_retained
from jaxunlearn.methods.terms import momentum_sgd
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import descent


def finetune(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    augment: str = "none",
) -> Unlearner:
    """Descends ``theta <- theta - eta grad l(B_r)``: hopes that what is not repeated is forgotten.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      optimizer: default SGD with Nesterov momentum .9 and rate .01.
      augment: a name in ``AUGMENTATIONS``.
    """
    model, optimizer = functionalize(model), momentum_sgd(optimizer)
    return descent(learn_retained(model, augment), optimizer, Needs(retain=True), model=model)
