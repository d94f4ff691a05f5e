"""Weights whose gradients tell forget and retain sets least apart, drawn anew."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import ConfigError, expect_at_least, expect_shares, is_known
from jaxunlearn.core.trees import named_leaves, path_name
from jaxunlearn.core.types import Apply, Key, Model, Needs, Sets, Subset, Unlearner, Variables
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.jaxprs.structure import structure
from jaxunlearn.methods.retrain import learn_retained
from jaxunlearn.methods.shares import sample_of
from jaxunlearn.models import functionalize
from jaxunlearn.training.curvature import losses_of, mean_gradient
from jaxunlearn.training.descent import DescentState, descent, trained, with_trained
from jaxunlearn.training.optimizers import Scaled, largest, scaled


def smallest_masks(kernels: dict[str, jax.Array], share: float | jax.Array) -> dict[str, jax.Array]:
    """Returns, of each kernel, the mask of exactly ``round(share n)`` smallest ``|g|``.

    Args:
      kernels: gradients by key path.
      share: of the ``n`` numbers of a kernel; of equal ones the first are chosen.
    """

    def mask(gradient: jax.Array) -> jax.Array:
        exact: Any = share * gradient.size
        count = round(exact) if is_known(exact) else jnp.round(exact).astype(jnp.int32)
        return largest(-jnp.abs(gradient), count)

    return {path: mask(gradient) for path, gradient in kernels.items()}


def _like_forget(retain: Subset, forget: Subset, key: Key) -> Subset:
    """Draws as many retained examples as there are to be forgotten."""
    drawn = sample_of(retain, len(forget.indices), key)
    return drawn._replace(size=jnp.minimum(drawn.size, forget.size))


def msg(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    share: float = 0.3,
    others: float = 0.1,
    augment: str = "none",
) -> Unlearner:
    """Draws weights with the smallest ``|g|`` anew, then descends ``l(B_r)``.

    Masked small gradients: ``g = (1/n) (sum_r grad l - sum_f grad l)`` over the forget set and as
    many retained examples, drawn at random, of the original in inference mode. In each kernel
    exactly ``round(s n)`` weights with the smallest ``|g|`` get new numbers of the network's own
    ``init``. They learn at the full gradient, all other parameters at a fraction of theirs; an
    optimizer that divides by the size of gradients, such as Adam, takes that fraction out again.

    Args:
      model: with an ``init``, see :func:`jaxunlearn.functionalize`.
      optimizer: default SGD with momentum .9, rate .001 and weight decay 5e-4.
      share: ``s``, above 0 and at most 1.
      others: factor of all other gradients, not negative.
      augment: a name in ``AUGMENTATIONS``.

    Raises:
      ConfigError: the network has no kernel that is seen, or cannot draw fresh variables.

    Source: the second of the winners of the NeurIPS 2023 challenge on unlearning, as in Cadet et
    al., Deep Unlearn, arXiv 2410.01276.
    """
    expect_shares(share=share)
    expect_at_least(0, others=others)
    model = functionalize(model)
    if optimizer is None:
        optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(1e-3, momentum=0.9))
    objective, needs = learn_retained(model, augment), Needs(forget=True, retain=True)
    method = descent(objective, scaled(optimizer), needs, model=model)

    def init(variables: Variables, sets: Sets, key: Key) -> DescentState:
        assert sets.forget is not None
        assert sets.retain is not None
        x = inputs_like(sets.forget)
        found = {unit.kernel for unit in structure(model.apply, variables, x)}
        drawing, fresh = jax.random.split(key)
        retained = _like_forget(sets.retain, sets.forget, drawing)
        losses = losses_of(model)
        gradient = jax.tree.map(
            jnp.subtract,
            mean_gradient(losses, variables, retained),
            mean_gradient(losses, variables, sets.forget),
        )
        # key paths are those of all variables
        paths = named_leaves(with_trained(variables, gradient))
        masks = smallest_masks({path: paths[path] for path in paths if path in found}, share)
        if not masks:
            raise ConfigError("model: expected kernels of linear layers, got none that is seen")

        def choose(keys: Any, old: jax.Array, new: jax.Array) -> jax.Array:
            mask = masks.get(path_name(keys))
            return old if mask is None else jnp.where(mask, new, old)

        def factor(keys: Any, leaf: jax.Array) -> jax.Array:
            mask, rest = masks.get(path_name(keys)), jnp.asarray(others, leaf.dtype)
            one = jnp.ones((), leaf.dtype)
            return jnp.full_like(leaf, rest) if mask is None else jnp.where(mask, one, rest)

        start = jax.tree_util.tree_map_with_path(choose, variables, model.init(fresh))
        state: DescentState = method.init(start, sets, key)
        assert isinstance(state.opt_state, Scaled)
        factors = trained(jax.tree_util.tree_map_with_path(factor, variables))
        return state._replace(opt_state=state.opt_state._replace(factors=factors))

    return method._replace(init=init)
