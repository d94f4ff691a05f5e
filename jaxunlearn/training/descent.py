"""Gradient methods: a state, a step, a result that all of them share.

A method differs in its objective, in the sets it reads and in where it starts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import ConfigError, expect_optimizer
from jaxunlearn.core.trees import named_leaves, precise
from jaxunlearn.core.types import (
    Batch,
    Batches,
    Info,
    Key,
    LanguageModel,
    Model,
    Needs,
    Preparation,
    Sets,
    Unlearner,
    Variables,
)
from jaxunlearn.core.variables import children
from jaxunlearn.training.lora import Adapters, Lora


class Context(NamedTuple):
    """Facts that an objective may use beside the model and the batches.

    Attributes:
      key: of this step alone.
      step: ``int32 []``, steps done before this one.
      original: the variables that the method was given, unchanged: the teacher of a method
        that has one. ``None`` unless ``Needs.original`` asks for it.
      prepared: found by the method's preparation; ``None`` without one.
    """

    key: Key
    step: jax.Array
    original: Variables
    prepared: Any


class DescentState(NamedTuple):
    """State of a gradient method: the model so far, the optimizer's state, and what objectives
    read (see :class:`Context`).

    Attributes:
      variables: those that are trained; under adapters those that they are added to, whose
        trained part stays that of the original.
      original: under adapters without a trained part.
      adapters: trained in the place of parameters.
    """

    variables: Variables
    opt_state: optax.OptState
    original: Variables = None
    prepared: Any = None
    adapters: Adapters | None = None


LossAndMore = tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]
Losses = Callable[[Variables, Batch], jax.Array]
"""``variables, batch -> losses [B]``, of each example by itself."""

Objective = Callable[[Variables, Batches, Context], LossAndMore]
"""``variables, batches, context -> (loss [], (variables, metrics))``; only the collections
that are not trained are taken from the variables returned."""


def trained(variables: Variables) -> Any:
    """Returns the part that is trained: the ``"params"`` collection, or all where there is none."""
    return children(variables)[0].get("params", variables)


def with_trained(variables: Variables, params: Any) -> Variables:
    """Returns the same variables with another trained part."""
    held, form = children(variables)
    if "params" not in held:
        return params
    return form.unflatten({**held, "params": params}.values())


def _expect_floats(params: Any) -> None:
    for path, leaf in named_leaves(params).items():
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ConfigError(
                f"variables: expected floats in what is trained, got {jnp.result_type(leaf)} at "
                f"{path}; what is not trained stands beside 'params'"
            )


def cross_entropy(logits: jax.Array, labels: jax.Array, weight: jax.Array) -> jax.Array:
    """Computes ``sum_i w_i (logsumexp_k z_ik - z_iy) / sum_i w_i``, in float32 or better.

    Args:
      logits: ``[B, K]``; labels: ``int [B]``; weight: ``[B]``.

    Raises:
      ConfigError: while tracing, if the model's output is not ``[B, K]``.
    """
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != len(labels):
        got = type(logits).__name__ if shape is None else list(shape)
        raise ConfigError(f"model: expected logits [B, K] = [{len(labels)}, K], got {got}")
    return example_mean(cross_entropies(logits, labels), weight)


def cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes ``logsumexp_k z_ik - z_iy`` of ``[B, K]``, in float32 or better."""
    logits = precise(logits)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def example_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """Computes ``sum_i w_i v_i / sum_i w_i`` of ``[B]``."""
    weight = weight.astype(values.dtype)
    return jnp.sum(weight * values) / jnp.maximum(jnp.sum(weight), 1)


def accuracy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Computes the weighted share of examples whose largest logit is the label's."""
    right = (jnp.argmax(logits, axis=-1) == batch.y).astype(jnp.float32)
    return example_mean(right, batch.weight)


def descent(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    needs: Needs,
    *,
    fresh: Model | LanguageModel | None = None,
    prepare: Preparation | None = None,
    model: Model | LanguageModel | None = None,
    lora: Lora | None = None,
) -> Unlearner:
    """Makes a method that follows the gradient of an objective, ``theta <- theta - u(grad J)``.

    A method with a teacher is one function::

        def objective(variables, batches, context):
            ours = model.apply(variables, batches.retain.x)
            teacher = model.apply(context.original, batches.retain.x)
            return kl(teacher, ours), (variables, {})

        descent(objective, optax.adam(1e-3), Needs(retain=True, original=True))

    To train a part of the network, mask the optimizer (``training.optimizers.only``): what is
    not trained costs no gradient either.

    Args:
      objective: what is minimised.
      optimizer: any optax transformation.
      needs: the sets that the objective reads, and whether it reads the original.
      fresh: start from this model's ``init`` instead of the given variables.
      prepare, model: see :class:`jaxunlearn.core.types.Unlearner`; what is prepared is in the
        context.
      lora: low-rank adapters that are trained in the place of parameters; the result has them
        merged. What is not adapted is not trained, and an original costs no second copy.

    Raises:
      TypeError: ``optimizer`` is none.
    """
    expect_optimizer(optimizer)

    def init(variables: Variables, sets: Sets, key: Key, prepared: Any = None) -> DescentState:
        del sets
        start = variables if fresh is None else fresh.init(key)
        params = trained(start)
        _expect_floats(params)
        adapters = None if lora is None else lora.start(params, key)
        with jax.numpy_dtype_promotion("standard"):
            opt_state = optimizer.init(params if adapters is None else adapters)
        original = None
        if needs.original:
            original = variables if lora is None else with_trained(variables, ())
        return DescentState(start, opt_state, original, prepared, adapters)

    def merged(base: Any, params: Any) -> Any:
        return params if lora is None else lora.merge(base, params)

    def step(
        state: DescentState, batches: Batches, key: Key, count: jax.Array
    ) -> tuple[DescentState, Info]:
        context = Context(key, count, original_of(state), state.prepared)
        base = trained(state.variables)

        def loss_of(params: Any) -> Any:
            return objective(with_trained(state.variables, merged(base, params)), batches, context)

        params = base if lora is None else state.adapters
        (loss, (moved, metrics)), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        params, opt_state, finite = apply_update(optimizer, params, state.opt_state, gradient)
        info = Info({"loss": loss, **metrics}, jnp.isfinite(loss) & finite)
        state = state._replace(opt_state=opt_state)
        if lora is None:
            return state._replace(variables=with_trained(moved, params)), info
        return state._replace(variables=with_trained(moved, base), adapters=params), info

    def result(state: DescentState) -> Variables:
        params = state.adapters
        if params is None:
            return state.variables
        return with_trained(state.variables, merged(trained(state.variables), params))

    return Unlearner(init, step, result, needs, prepare, model=model)


def original_of(state: DescentState) -> Variables:
    """Returns the variables that the method was given; ``None`` where none were kept."""
    if state.adapters is None or state.original is None:
        return state.original
    return with_trained(state.original, trained(state.variables))


def apply_update(
    optimizer: optax.GradientTransformation, params: Any, opt_state: optax.OptState, gradient: Any
) -> tuple[Any, optax.OptState, jax.Array]:
    """Does one update of an optimizer; the last result tells whether it was finite, ``bool []``."""
    # optax counts steps in integers: it does not run under strict promotion
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params, opt_state, jnp.isfinite(optax.tree.norm(updates))
