"""Wrong labels, learned by the weights that the forget set's loss depends on most."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core.errors import expect_shares, is_known
from jaxunlearn.core.types import Apply, Key, Model, Sets, Unlearner, Variables
from jaxunlearn.methods.random_label import random_label
from jaxunlearn.models import functionalize
from jaxunlearn.training.curvature import losses_of, mean_gradient
from jaxunlearn.training.descent import DescentState
from jaxunlearn.training.optimizers import Scaled, largest, scaled


def saliency_mask(gradient: Any, share: float | jax.Array) -> Any:
    """Returns the mask of the largest ``|g|`` of all parameters together.

    Args:
      gradient: a tree like the parameters.
      share: of all numbers that are chosen, their count rounded down; of equal ones the first.

    Returns:
      A tree of ``bool`` like these.
    """
    form: Any
    leaves, form = jax.tree.flatten(gradient)
    exact = jnp.result_type(jnp.float32, *(leaf.dtype for leaf in leaves))
    flat = jnp.concatenate([jnp.abs(leaf).astype(exact).reshape(-1) for leaf in leaves])
    count = share * flat.size
    # a product of floats may lie just below the whole number that is meant
    count = math.floor(count + 1e-6) if is_known(count) else jnp.floor(count).astype(jnp.int32)
    sizes = [leaf.size for leaf in leaves]
    chosen = iter(jnp.split(largest(flat, count), np.cumsum(sizes)[:-1]))
    return form.unflatten([next(chosen).reshape(leaf.shape) for leaf in leaves])


def salun(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    share: float = 0.5,
    forget_weight: float = 1.0,
) -> Unlearner:
    """Does the steps of :func:`jaxunlearn.random_label` on a mask of the weights.

    The mask holds the share of all weights with the largest ``|(1/n_f) sum_f grad l|``, of the
    original in inference mode, found once. All others stay as they were to the bit, under weight
    decay and momentum too; running batch statistics move.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      optimizer: default SGD with momentum .9, rate .013 and weight decay 5e-4.
      share: of the weights, above 0 and at most 1; 1 is :func:`jaxunlearn.random_label`.
      forget_weight: of the loss of wrong labels, not negative.

    Source: Fan et al., SalUn, ICLR 2024 (arXiv 2310.12508).
    """
    expect_shares(share=share)
    model = functionalize(model)
    if optimizer is None:
        optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.013, momentum=0.9))
    method = random_label(model, optimizer=scaled(optimizer), forget_weight=forget_weight)

    def init(variables: Variables, sets: Sets, key: Key) -> DescentState:
        assert sets.forget is not None
        state: DescentState = method.init(variables, sets, key)
        assert isinstance(state.opt_state, Scaled)
        gradient = mean_gradient(losses_of(model), variables, sets.forget)
        mask = saliency_mask(gradient, share)
        return state._replace(opt_state=state.opt_state._replace(factors=mask))

    return method._replace(init=init)
