"""Datamodel matching: what a retrained network would say is predicted, and then learned."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.linalg import cho_factor, cho_solve

from jaxunlearn.core.errors import expect_at_least, expect_one_of, expect_positive
from jaxunlearn.core.trees import in_chunks
from jaxunlearn.core.types import (
    Apply,
    Batch,
    Batches,
    Key,
    Model,
    Needs,
    Sets,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.data.batches import pick
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.jaxprs.cuts import cut_at_features
from jaxunlearn.jaxprs.structure import structure
from jaxunlearn.methods.shares import CHUNK
from jaxunlearn.methods.terms import flat
from jaxunlearn.models import functionalize
from jaxunlearn.training.curvature import sum_over
from jaxunlearn.training.descent import (
    Context,
    DescentState,
    LossAndMore,
    accuracy,
    descent,
    example_mean,
)

OUTPUTS = ("class_logits", "labels")


class Moments(NamedTuple):
    """Sums over a set that least squares need.

    Attributes:
      gram: ``sum_i phi_i phi_i'``, ``[p, p]``.
      cross: ``sum_i phi_i e_y(i)'``, ``[p, K]``, with rows ``e`` of 0 and one 1.
      logits: ``sum_i e_y(i) f(x_i)'``, ``[K, K]``.
      counts: examples of each class, ``[K]``.
    """

    gram: jax.Array
    cross: jax.Array
    logits: jax.Array
    counts: jax.Array


class Targets(NamedTuple):
    """Outputs to be matched, by place in each set.

    Attributes:
      forget, retain: ``[M, K]``.
    """

    forget: jax.Array
    retain: jax.Array


def without_forget(
    forget: Moments, retain: Moments, ridge: float | jax.Array, outputs: str
) -> jax.Array:
    """Computes ``A_r^-1 b_r - A^-1 b``: how the solution changes if a set is left out, exactly.

    ``A = X'X + l I`` and ``b = X'Y`` over all, ``A_r`` and ``b_r`` over what is retained. Of one
    input it changes outputs by ``-x' A^-1 X_S' (I - H_SS)^-1 r_S``, with ``S`` left out, residuals
    ``r_S`` and ``H = X A^-1 X'``: the block formula, by Woodbury's identity, without a matrix of
    examples.

    Args:
      forget, retain: their sums.
      ridge: ``l``.
      outputs: see :func:`datamodel`.

    Returns:
      ``[p, K]``.
    """
    whole = jax.tree.map(jnp.add, forget, retain)
    wanted = jnp.eye(len(whole.counts), dtype=whole.gram.dtype)
    if outputs == "class_logits":
        wanted = whole.logits / jnp.maximum(whole.counts, 1)[:, None]

    def solution(moments: Moments) -> jax.Array:
        dtype = moments.gram.dtype
        penalty = jnp.asarray(ridge, dtype) * jnp.eye(len(moments.gram), dtype=dtype)
        factor = cho_factor(moments.gram + penalty)
        found: jax.Array = cho_solve(factor, moments.cross @ wanted)
        return found

    return solution(retain) - solution(whole)


def datamodel(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    ridge: float = 1.0,
    retain_weight: float = 1.0,
    outputs: str = "class_logits",
) -> Unlearner:
    """Minimises ``mean_f |f(x) - t(x)|^2 + w mean_r |f(x) - t(x)|^2``, oracle matching.

    ``t`` is what a retrained network is predicted to say, by a datamodel of the last layer:
    ``t(x) = f_o(x) + phi(x)' (W_r - W)``, where ``W`` is the ridge regression on the original's
    features ``phi``, what the last linear unit reads, over all training examples and ``W_r`` that
    over the retain set. That is the exact effect of leaving the forget set out of the regression,
    see :func:`without_forget`; on the network it is an estimate: features stay as they are, and
    its head was not trained by least squares. (*A reconstruction*: the paper estimates datamodels
    of all layers by retraining on many random subsets, or by TRAK.)

    Targets are found once, before the first step; ``p^2`` numbers for ``p`` features. The network
    runs in inference mode. For classes and items. Exact for a linear model that is the ridge
    regression on labels, with ``outputs="labels"`` and as many steps as its fit needs.

    Args:
      model: see :func:`jaxunlearn.functionalize`; with a linear unit that all inputs go through.
      optimizer: default Adam with rate 5e-4.
      ridge: the penalty ``l |W|^2`` beside a sum over examples, positive; of the bias, too,
        where the last unit has one.
      retain_weight: ``w``, not negative.
      outputs: what the regression is fitted to: ``"class_logits"``, for each label the mean of
        the original's logits, so that predictions have their size; ``"labels"``, 0 and 1.

    Raises:
      ValueError: a number out of range, an unknown word; when run, for a network without a
        linear unit or with a skip around the last.

    Source: Georgiev et al., "Attribute-to-delete: machine unlearning via datamodel matching",
    arXiv 2410.23232; TRAK: Park et al., ICML 2023.
    """
    expect_positive(ridge=ridge)
    expect_at_least(0, retain_weight=retain_weight)
    expect_one_of(OUTPUTS, outputs=outputs)
    model = functionalize(model)
    optimizer = optax.adam(5e-4) if optimizer is None else optimizer
    cut = cut_at_features(model.apply)

    def matched(variables: Variables, batch: Batch, wanted: jax.Array) -> tuple[jax.Array, Any]:
        logits = model.apply(variables, batch.x)
        left = logits.astype(wanted.dtype) - wanted[batch.slot]
        return example_mean(jnp.sum(jnp.square(left), axis=-1), batch.weight), logits

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        forget, retain = batches.forget, batches.retain
        assert forget is not None
        assert retain is not None
        away, z_forget = matched(variables, forget, context.prepared.forget)
        kept, z_retain = matched(variables, retain, context.prepared.retain)
        metrics = {
            "error_forget": away,
            "error": kept,
            "accuracy": accuracy(z_retain, retain),
            "accuracy_forget": accuracy(z_forget, forget),
        }
        return away + retain_weight * kept, (variables, metrics)

    method = descent(objective, optimizer, Needs(forget=True, retain=True), model=model)

    def init(variables: Variables, sets: Sets, key: Key) -> DescentState:
        forget, retain = sets.forget, sets.retain
        assert forget is not None
        assert retain is not None
        bias = structure(model.apply, variables, inputs_like(retain))[-1].bias is not None

        def read(x: Any) -> tuple[jax.Array, jax.Array]:
            features = cut.upper(variables, x)
            logits = cut.lower(variables, features, x)
            rows = flat(features)
            if bias:
                rows = jnp.concatenate([rows, jnp.ones_like(rows[:, :1])], axis=1)
            return rows, logits.astype(rows.dtype)

        def moments(batch: Batch) -> Moments:
            features, logits = read(batch.x)
            weight = batch.weight.astype(features.dtype)[:, None]
            own = weight * jax.nn.one_hot(batch.y, logits.shape[-1], dtype=features.dtype)
            return Moments(
                (weight * features).T @ features, features.T @ own, own.T @ logits, own.sum(axis=0)
            )

        change = without_forget(
            sum_over(moments, forget), sum_over(moments, retain), ridge, outputs
        )

        def targets(part: Subset) -> jax.Array:
            def one(slots: jax.Array) -> jax.Array:
                features, logits = read(pick(part, slots, slots >= 0, labels=True).x)
                return logits + features @ change

            found: jax.Array = in_chunks(one, len(part.indices), CHUNK)
            return found

        prepared = Targets(targets(forget), targets(retain))
        return method.init(variables, sets, key, prepared)

    return method._replace(init=init)
