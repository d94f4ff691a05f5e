"""What all gradient methods share: a state, a step, a result.

A method differs in its objective, in the sets it reads and in where it starts.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.types import (
    Batch,
    Batches,
    Info,
    Key,
    Model,
    Needs,
    Sets,
    Unlearner,
    Variables,
)


class DescentState(NamedTuple):
    """The model so far, the optimizer's state, and the key for the next step."""

    variables: Variables
    opt_state: optax.OptState
    key: Key


LossAndMore = tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]
Objective = Callable[[Variables, Batches, Key], LossAndMore]
"""``variables, batches, key -> (loss [], (variables, metrics))``; only the collections
that are not trained are taken from the variables returned."""


def trained(variables: Variables) -> Any:
    """The part that is trained: the ``"params"`` collection, or all where there is none."""
    if isinstance(variables, Mapping) and "params" in variables:
        return variables["params"]
    return variables


def with_trained(variables: Variables, params: Any) -> Variables:
    """The same variables with another trained part."""
    if isinstance(variables, Mapping) and "params" in variables:
        return {**variables, "params": params}
    return params


def cross_entropy(logits: jax.Array, labels: jax.Array, weight: jax.Array) -> jax.Array:
    """``sum_i w_i (logsumexp_k z_ik - z_iy) / sum_i w_i``, in float32.

    Args:
      logits: ``[B, K]``; labels: ``int [B]``; weight: ``[B]``.

    Raises:
      ConfigError: while tracing, if the model's output is not ``[B, K]``.
    """
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != len(labels):
        got = type(logits).__name__ if shape is None else list(shape)
        raise ConfigError(f"model: expected logits [B, K] = [{len(labels)}, K], got {got}")
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1)


def accuracy(logits: jax.Array, batch: Batch) -> jax.Array:
    """The weighted share of examples whose largest logit is the label's."""
    right = (jnp.argmax(logits, axis=-1) == batch.y).astype(jnp.float32)
    return jnp.sum(right * batch.weight) / jnp.maximum(jnp.sum(batch.weight), 1)


def descent(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    needs: Needs,
    *,
    fresh: Model | None = None,
    only: Callable[[Variables], Collection[str]] | None = None,
) -> Unlearner:
    """A method that follows the gradient of an objective.

    Args:
      objective: what is minimised.
      optimizer: any optax transformation.
      needs: the sets that the objective reads.
      fresh: start from this model's ``init`` instead of the given variables.
      only: from variables to the key paths (joined by ``/``) of the leaves that are
        trained; the others stay as they are, and no gradient of them is computed.
    """

    def part(variables: Variables) -> Any:
        return trained(variables) if only is None else _pick(variables, only(variables))

    def with_part(variables: Variables, params: Any) -> Variables:
        return with_trained(variables, params) if only is None else _put(variables, params)

    def init(variables: Variables, sets: Sets, key: Key) -> DescentState:
        del sets
        start, onward = jax.random.split(key)
        if fresh is not None:
            variables = fresh.init(start)
        with jax.numpy_dtype_promotion("standard"):
            opt_state = optimizer.init(part(variables))
        return DescentState(variables, opt_state, onward)

    def step(state: DescentState, batches: Batches) -> tuple[DescentState, Info]:
        onward, key = jax.random.split(state.key)

        def loss_of(params: Any) -> Any:
            return objective(with_part(state.variables, params), batches, key)

        params = part(state.variables)
        (loss, (moved, metrics)), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        # optax counts steps in integers: it does not run under strict promotion
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradient, state.opt_state, params)
            params = optax.apply_updates(params, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(updates))
        info = Info({"loss": loss, **metrics}, finite)
        return DescentState(with_part(moved, params), opt_state, onward), info

    def result(state: DescentState) -> Variables:
        return state.variables

    return Unlearner(init, step, result, needs)


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _pick(variables: Variables, paths: Collection[str]) -> dict[str, jax.Array]:
    """Some of the leaves, by key path."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {_path(keys): leaf for keys, leaf in leaves if _path(keys) in paths}


def _put(variables: Variables, leaves: Mapping[str, jax.Array]) -> Variables:
    """The same variables with some leaves replaced."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: leaves.get(_path(keys), leaf), variables
    )
