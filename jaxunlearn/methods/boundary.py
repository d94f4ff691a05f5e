"""Decision boundaries moved over what is to be forgotten: shrunk, or expanded by a class."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import expect_positive
from jaxunlearn.core.trees import named_leaves, path_name
from jaxunlearn.core.types import (
    Apply,
    Batches,
    Inputs,
    Key,
    Model,
    Needs,
    Sets,
    Unlearner,
    Variables,
)
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.jaxprs.structure import head
from jaxunlearn.methods.terms import split_floats
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import (
    Context,
    DescentState,
    LossAndMore,
    accuracy,
    cross_entropies,
    cross_entropy,
    descent,
    example_mean,
    trained,
    with_trained,
)


def _default(optimizer: optax.GradientTransformation | None) -> optax.GradientTransformation:
    return optax.sgd(1e-5, momentum=0.9) if optimizer is None else optimizer


def sign_attack(
    apply: Apply, variables: Variables, x: Inputs, y: jax.Array, bound: float | jax.Array
) -> Inputs:
    """Computes ``x + e sign(grad_x l(f(x), y))``, the fast gradient sign method.

    Args:
      x: ``[B, ...]``; leaves of integers, such as masks, stay as they are.
      bound: ``e``, in the units of what the network takes.

    Raises:
      ConfigError: while tracing, where no leaf holds floats.

    Source: Goodfellow et al., ICLR 2015 (arXiv 1412.6572).
    """
    floats, joined = split_floats(x)

    def total(floats: list[jax.Array]) -> jax.Array:
        return jnp.sum(cross_entropies(apply(variables, joined(floats)), y))

    slopes = jax.grad(total)(floats)
    return joined(
        [a + jnp.asarray(bound, a.dtype) * jnp.sign(g) for a, g in zip(floats, slopes, strict=True)]
    )


def boundary_shrink(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    bound: float = 0.1,
) -> Unlearner:
    """Minimises ``l(B_f, y')`` with ``y' = argmax_k f_o(x + e sign(grad_x l(f_o(x), y)))_k``.

    Each example is given to the class across the nearest boundary of the original ``f_o``. A
    label that the attack does not turn stays the true one, and the example is learned again: of a
    linear network of two classes with ``z = (0, w x)`` labels turn where the margin is below
    ``e |w|_1``. The share that turned is told as ``turned``; raise the bound where it is small.
    Inference mode: batch statistics of the forget set alone would ruin the other classes.

    Args:
      model: see :func:`jaxunlearn.functionalize`; its inputs are floats.
      optimizer: default SGD with momentum .9 and rate 1e-5.
      bound: ``e``, positive, in the units of what the network takes.

    Source: Chen et al., Boundary unlearning, CVPR 2023 (arXiv 2303.11570).
    """
    expect_positive(bound=bound)
    model = functionalize(model)

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        batch, original = batches.forget, context.original
        assert batch is not None
        moved = sign_attack(model.apply, original, batch.x, batch.y, bound)
        nearest = jnp.argmax(model.apply(original, moved), axis=-1).astype(batch.y.dtype)
        logits = model.apply(variables, batch.x)
        loss = cross_entropy(logits, nearest, batch.weight)
        turned = example_mean((nearest != batch.y).astype(loss.dtype), batch.weight)
        return loss, (variables, {"turned": turned, "accuracy_forget": accuracy(logits, batch)})

    return descent(objective, _default(optimizer), Needs(forget=True, original=True), model=model)


class Head(NamedTuple):
    """Linear unit whose outputs the logits are.

    Attributes:
      kernel: key path in the variables.
      axis: of the kernel, along which its neurons lie.
      bias: key path, ``[..., K]``; or ``None``.
    """

    kernel: str
    axis: int
    bias: str | None


def find_head(apply: Apply, variables: Variables, x: Inputs) -> Head | None:
    """Returns the head of a network; ``None`` where its parameters cannot be told."""
    unit, leaves = head(apply, variables, x), named_leaves(variables)
    if unit is None or unit.out_axis is None or unit.kernel not in leaves:
        return None
    if unit.bias is not None and leaves[unit.bias].shape[-1:] != (unit.out_features,):
        return None
    return Head(unit.kernel, unit.out_axis, unit.bias)


def draw_row(apply: Apply, variables: Variables, x: Inputs, key: Key) -> Any:
    """Draws the parameters of one more class: ``n`` weights from ``N(0, 1/n)``, the bias 0.

    The class reads what the head reads; where the logits are not the outputs of a linear unit,
    it reads the logits.

    Returns:
      ``{"weights": ..., "bias": []}``, the former shaped as a neuron's part of the head's kernel.
    """
    found = find_head(apply, variables, x)
    if found is None:
        like = jax.eval_shape(lambda v, x: apply(v, x)[0], variables, x)
    else:
        kernel, axis = named_leaves(variables)[found.kernel], found.axis
        like = jax.eval_shape(lambda kernel: jnp.moveaxis(kernel, axis, 0)[0], kernel)
    scale = jnp.asarray(max(like.size, 1) ** -0.5, like.dtype)
    weights = scale * jax.random.normal(key, like.shape, like.dtype)
    return {"weights": weights, "bias": jnp.zeros((), like.dtype)}


def expanded_logits(apply: Apply, variables: Variables, row: Any, x: Inputs) -> jax.Array:
    """Computes the logits of a network and of the class of :func:`draw_row`, ``[B, K + 1]``.

    The row stands in the place of the head's first neuron in a second pass, so that any network
    keeps its own code and its own derivatives.
    """
    logits = apply(variables, x)
    found = find_head(apply, variables, x)
    if found is None:
        own = logits @ row["weights"].astype(logits.dtype) + row["bias"].astype(logits.dtype)
        return jnp.concatenate([logits, own[:, None]], axis=1)

    def put(keys: Any, leaf: jax.Array) -> jax.Array:
        if path_name(keys) == found.kernel:
            neurons = jnp.moveaxis(leaf, found.axis, 0)
            return jnp.moveaxis(neurons.at[0].set(row["weights"]), 0, found.axis)
        return leaf.at[..., 0].set(row["bias"]) if path_name(keys) == found.bias else leaf

    other = apply(jax.tree_util.tree_map_with_path(put, variables), x)
    own = other[:, 0]
    if found.bias is None:
        own += row["bias"].astype(own.dtype)
    if logits.shape[1] > 1:  # log-probabilities are shifted, all by the same
        own += logits[:, 1] - other[:, 1]
    return jnp.concatenate([logits, own[:, None]], axis=1)


def boundary_expand(
    model: Model | Apply, *, optimizer: optax.GradientTransformation | None = None
) -> Unlearner:
    """Minimises ``l(B_f, K)`` under one more class ``K``, which is cut off afterwards.

    Logits are ``[f(x), w h(x) + b]`` with what the head reads, ``h(x)``, and a fresh ``w``; all of
    the network learns. Where the logits are not the outputs of a linear unit, the class reads
    these. The result has the original's ``K`` classes: a forgotten example gets the likeliest of
    them. Much of the change is cut off with the class. No labels are read. Inference mode, as in
    :func:`boundary_shrink`.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      optimizer: default SGD with momentum .9 and rate 1e-5.

    Source: Chen et al., Boundary unlearning, CVPR 2023 (arXiv 2303.11570).
    """
    model = functionalize(model)

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        del context
        batch = batches.forget
        assert batch is not None
        logits = expanded_logits(model.apply, _network(variables), variables["params"]["row"],
                                 batch.x)  # fmt: skip
        shadow = jnp.full(len(batch.weight), logits.shape[1] - 1, jnp.int32)
        loss = cross_entropy(logits, shadow, batch.weight)
        told = accuracy(logits, batch._replace(y=shadow))
        return loss, (variables, {"share_expanded": told})

    needs = Needs(forget=True, labels=False)
    method = descent(objective, _default(optimizer), needs, model=model)

    def init(variables: Variables, sets: Sets, key: Key) -> DescentState:
        assert sets.forget is not None
        row = draw_row(model.apply, variables, inputs_like(sets.forget), key)
        params = {"network": trained(variables), "row": row}
        whole = {"params": params, "rest": with_trained(variables, ())}
        state: DescentState = method.init(whole, sets, key)
        return state

    def result(state: DescentState) -> Variables:
        return _network(state.variables)

    return method._replace(init=init, result=result)


def _network(variables: Variables) -> Variables:
    """Returns the network's own variables without the extra class."""
    return with_trained(variables["rest"], variables["params"]["network"])
