"""The last layers of a network alone: forgotten by going on with them, or trained anew."""

from typing import Any

import jax
import optax

from jaxunlearn.core.errors import ConfigError, expect_counts
from jaxunlearn.core.trees import path_name
from jaxunlearn.core.types import (
    Apply,
    Batches,
    Info,
    Inputs,
    Key,
    Model,
    Needs,
    Sets,
    Unlearner,
    Variables,
)
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.jaxprs.program import trace
from jaxunlearn.jaxprs.steps import plan
from jaxunlearn.methods.retrain import learn_retained
from jaxunlearn.methods.terms import momentum_sgd
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import DescentState, descent, trained
from jaxunlearn.training.optimizers import only


def last_layers(apply: Apply, variables: Variables, x: Inputs, layers: int) -> Any:
    """Returns the mask of what a network reads from its ``k``-th last linear layer on.

    Layers are linear units in the order in which they run, one that runs several times counted
    where it does first. A leaf belongs to the layers that are trained if the data meet it there
    or later: kernels and biases, and scales and batch statistics behind them. With all the layers
    of the network the mask is true everywhere.

    Args:
      apply: ``(variables, x) -> logits [B, K]``.
      x: inputs, or their shapes and dtypes.
      layers: ``k``.

    Returns:
      A tree of truths like ``variables``.

    Raises:
      ConfigError: there are fewer layers.
    """
    program = trace(apply, variables, x)
    steps = [step for step in plan(program).steps if step.kind == "linear"]
    kernels = list(dict.fromkeys(step.key.partition("#")[0] for step in steps))
    if layers > len(kernels):
        raise ConfigError(
            f"layers: expected at most {len(kernels)}, the linear layers of the network, got "
            f"{layers}"
        )
    if layers == len(kernels):
        return jax.tree.map(lambda _: True, variables)
    first = next(step for step in steps if step.key == kernels[-layers])
    began, met = False, dict.fromkeys(program.paths, False)
    early: set[int] = set()
    for op in program.ops:
        began = began or op.outs[0] == first.ops[0].outs[0]
        if program.data_ins(op):
            places = {place for value in op.ins for place in program.origins.get(value, ())}
            if not began:
                early |= places
            met.update((program.paths[place], True) for place in places - early)
    return jax.tree_util.tree_map_with_path(lambda keys, _: met[path_name(keys)], variables)


def cf_k(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    layers: int = 1,
    augment: str = "none",
) -> Unlearner:
    """Fine-tunes the last ``k`` linear layers on the retain set; all before stays bit-equal.

    Batch normalisation before them uses the statistics of the batch, as in training, and keeps
    its running ones. What the frozen layers know of the forget set stays.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      optimizer: default SGD with Nesterov momentum .9 and rate .01.
      layers: ``k``; see :func:`last_layers`.
      augment: a name in ``AUGMENTATIONS``.

    Raises:
      ConfigError: the network has fewer layers.

    Source: Goel et al., Towards adversarial evaluations for inexact machine unlearning, arXiv
    2201.06640: catastrophically forgetting the last k layers.
    """
    return _tune_last(functionalize(model), momentum_sgd(optimizer), layers, augment, fresh=False)


def eu_k(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    layers: int = 1,
    augment: str = "none",
) -> Unlearner:
    """Draws the last ``k`` linear layers anew and trains them on the retain set, and these alone.

    With all layers it is :func:`jaxunlearn.retrain`, bit for bit: exact. Otherwise the layers
    before, which stay bit-equal, still know the forget set.

    Args:
      model: with an ``init``, see :func:`jaxunlearn.functionalize`.
      optimizer, layers, augment: as in :func:`cf_k`.

    Raises:
      ConfigError: the network has fewer layers, or cannot draw fresh variables.

    Source: Goel et al., arXiv 2201.06640: exact unlearning of the last k layers.
    """
    return _tune_last(functionalize(model), momentum_sgd(optimizer), layers, augment, fresh=True)


def _tune_last(
    model: Model, optimizer: optax.GradientTransformation, layers: int, augment: str, *,
    fresh: bool,
) -> Unlearner:  # fmt: skip
    expect_counts(layers=layers)
    objective, needs = learn_retained(model, augment), Needs(retain=True)

    def method(mask: Any) -> Unlearner:
        params = trained(mask)
        whole = all(jax.tree.leaves(params))
        return descent(objective, optimizer if whole else only(optimizer, params), needs)

    def init(variables: Variables, sets: Sets, key: Key) -> DescentState:
        assert sets.retain is not None
        mask = last_layers(model.apply, variables, inputs_like(sets.retain), layers)
        start = _chosen(mask, model.init(key), variables) if fresh else variables
        state: DescentState = method(mask).init(start, sets, key)
        return state

    def step(
        state: DescentState, batches: Batches, key: Key, count: jax.Array
    ) -> tuple[DescentState, Info]:
        assert batches.retain is not None
        mask = last_layers(model.apply, state.variables, batches.retain.x, layers)
        descend = method(mask).step
        assert descend is not None
        after, info = descend(state, batches, key, count)
        # running statistics of frozen layers moved, too
        kept = _chosen(mask, after.variables, state.variables)
        return after._replace(variables=kept), info

    return descent(objective, optimizer, needs, model=model)._replace(init=init, step=step)


def _chosen(mask: Any, ours: Variables, theirs: Variables) -> Variables:
    """Takes the leaves where a mask is true from one tree, and all others from another."""
    return jax.tree.map(lambda take, a, b: a if take else b, mask, ours, theirs)
