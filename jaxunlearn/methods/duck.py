"""DUCK: features of what is to be forgotten are drawn to the centroid of another class."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import expect_positive
from jaxunlearn.core.trees import in_chunks
from jaxunlearn.core.types import (
    Apply,
    Batch,
    Batches,
    Key,
    Model,
    Needs,
    Sets,
    Unlearner,
    Variables,
)
from jaxunlearn.data.examples import fetch, inputs_like
from jaxunlearn.jaxprs.cuts import cut_at_features
from jaxunlearn.methods.shares import CHUNK
from jaxunlearn.methods.terms import cosines, expect_weights, flat
from jaxunlearn.models import functionalize
from jaxunlearn.training.curvature import sum_over
from jaxunlearn.training.descent import (
    Context,
    DescentState,
    LossAndMore,
    accuracy,
    cross_entropy,
    descent,
    example_mean,
)


class Targets(NamedTuple):
    """Where features are drawn to.

    Attributes:
      centroids: ``[K, n]``, mean features of the retained examples of each class, of the original;
        0 for a class without any.
      nearest: ``int32 [M]``, the class of the centroid of each example of the forget set.
    """

    centroids: jax.Array
    nearest: jax.Array


def nearest_wrong(features: jax.Array, labels: jax.Array, centroids: jax.Array) -> jax.Array:
    """Finds the centroid of largest cosine among those of other classes; ``int32 [B]``.

    Args:
      features: ``[B, n]``.
      labels: ``int [B]``.
      centroids: ``[K, n]``; those that are 0 are left out.
    """
    near = cosines(features[:, None], centroids[None])
    other = jnp.arange(len(centroids))[None] != labels[:, None]
    there = jnp.any(centroids != 0, axis=1)[None]
    return jnp.argmax(jnp.where(other & there, near, -jnp.inf), axis=1).astype(jnp.int32)


def duck(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    forget_weight: float = 1.0,
    retain_weight: float = 1.4,
    temperature: float = 2.0,
) -> Unlearner:
    """Draws features of what is to be forgotten to the nearest centroid of a wrong class.

    ``J = l1 mean_f (1 - cos(phi(x), c_k(x))) + l2 mean_r l(h(phi(x)) / T, y)`` with features
    ``phi``, what the last linear unit reads, and the rest ``h``. Centroids ``c`` are the means of
    the original's features over the whole retain set; ``k(x)`` is the class other than the label
    whose centroid has the largest cosine with the original's features. Both stay as they are from
    the beginning. The first term is 0 where features are parallel to their centroid: a forgotten
    class is then confidently predicted as its neighbours, which a retrained model need not do.

    The network runs in inference mode. For classes and items; not exact. Features move on when
    all is forgotten: ``stop=ju.stop.within(accuracy_forget=0.01)`` is the paper's end for
    a class. Its second phase, of smaller rate and weight, is left out, and each forget batch is
    seen with one retain batch, not with up to forty.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      optimizer: default Adam with rate 4e-4.
      forget_weight, retain_weight, temperature: ``l1``, ``l2``, ``T``.

    Raises:
      ValueError: when run, for a network without a linear unit or with a skip around the last.

    Source: Cotogni et al., "DUCK: distance-based unlearning via centroid kinematics",
    arXiv 2312.02052.
    """
    expect_weights(forget_weight=forget_weight, retain_weight=retain_weight)
    expect_positive(temperature=temperature)
    model = functionalize(model)
    optimizer = optax.adam(4e-4) if optimizer is None else optimizer
    cut = cut_at_features(model.apply)

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        forget, retain, targets = batches.forget, batches.retain, context.prepared
        assert forget is not None
        assert retain is not None
        found = cut.upper(variables, forget.x)
        wanted = targets.centroids[targets.nearest[forget.slot]]
        apart = 1 - cosines(flat(found), wanted)
        away = example_mean(apart, forget.weight)
        z_retain = model.apply(variables, retain.x)
        learn = cross_entropy(z_retain / temperature, retain.y, retain.weight)
        metrics = {
            "distance": away,
            "accuracy": accuracy(z_retain, retain),
            "accuracy_forget": accuracy(cut.lower(variables, found, forget.x), forget),
        }
        return forget_weight * away + retain_weight * learn, (variables, metrics)

    needs = Needs(forget=True, retain=True)
    method = descent(objective, optimizer, needs, model=model)

    def init(variables: Variables, sets: Sets, key: Key) -> DescentState:
        forget, retain = sets.forget, sets.retain
        assert forget is not None
        assert retain is not None
        logits = jax.eval_shape(model.apply, variables, inputs_like(retain))

        def by_class(batch: Batch) -> tuple[jax.Array, jax.Array]:
            found = flat(cut.upper(variables, batch.x))
            own = jax.nn.one_hot(batch.y, logits.shape[-1], dtype=found.dtype)
            own *= batch.weight.astype(found.dtype)[:, None]
            return own.T @ found, jnp.sum(own, axis=0)

        totals, counts = sum_over(by_class, retain)
        centroids = totals / jnp.maximum(counts, 1)[:, None]

        def nearest(slots: jax.Array) -> jax.Array:
            places = forget.indices[slots]
            found = flat(cut.upper(variables, fetch(forget.examples, places)))
            return nearest_wrong(found, forget.examples.y[places], centroids)

        found = in_chunks(nearest, len(forget.indices), CHUNK)
        return method.init(variables, sets, key, Targets(centroids, found))

    return method._replace(init=init)
