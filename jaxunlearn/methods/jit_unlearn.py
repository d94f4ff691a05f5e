"""Just in time: the network is made smooth around what is to be forgotten, in one pass."""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import expect_counts, expect_one_of, expect_positive
from jaxunlearn.core.trees import choose, precise
from jaxunlearn.core.types import (
    Apply,
    Batches,
    Info,
    Inputs,
    Key,
    Model,
    Needs,
    Unlearner,
    Variables,
)
from jaxunlearn.methods.terms import split_floats
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import Context, DescentState, LossAndMore, descent, example_mean

GRADIENTS = ("stopped", "true")


def mean_slopes(
    apply: Apply, variables: Variables, x: Inputs, moved: Inputs, gradient: str
) -> jax.Array:
    """Computes ``(1/n) sum_k |f(x_i) - f(x_ik)| / |x_i - x_ik|``; ``[B]``, in float32 or better.

    A pair of equal inputs, or of equal predictions, counts 0 and has no slope.

    Args:
      apply: ``variables, x -> logits [B, K]``.
      x: ``[B, ...]``.
      moved: ``[n B, ...]``, all examples behind each other ``n`` times.
      gradient: ``"stopped"``: ``f(x_ik)`` is fixed; ``"true"``.
    """
    here = apply(variables, x)
    other = variables if gradient == "true" else jax.lax.stop_gradient(variables)
    there = apply(other, moved)
    change = _square_distances(here, there)
    distance = sum(map(_square_distances, *(split_floats(one)[0] for one in (x, moved))))
    counts = (distance > 0) & (change > 0)
    ratio = jnp.where(counts, change / jnp.where(counts, distance, 1).astype(change.dtype), 1)
    return jnp.mean(jnp.where(counts, jnp.sqrt(ratio), 0), axis=0)


def _square_distances(one: jax.Array, several: jax.Array) -> jax.Array:
    """Computes ``|a_i - b_ik|^2`` of ``[B, ...]`` and ``[n B, ...]``; ``[n, B]``."""
    one, several = precise((one, several))
    apart = one[None] - several.reshape(-1, *one.shape)
    return jnp.sum(jnp.square(apart), axis=range(2, apart.ndim))


def just_in_time(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    sigma: float = 0.5,
    noises: int = 25,
    gradient: str = "stopped",
) -> Unlearner:
    """Lowers how much predictions change with noise on the inputs to be forgotten.

    ``J = sum_i (1/n) sum_k |f(x_i) - f(x_ik)| / |x_i - x_ik|`` over a batch, with
    ``x_ik = x_i + N(0, s^2)`` kept between the batch's smallest and largest number; ``f`` are the
    logits. One pass over the forget set, which is all that is read, without labels.

    The published code lets the slope through ``f(x_i)`` alone. Of a linear network ``f = W x``
    that is ``-W e x' / (|W e| |e|)``, odd in the noise: on average nothing, where the true slope
    ``W e e' / (|W e| |e|)`` shrinks ``W``. The two do not agree on deeper networks either.

    The network runs in inference mode. For classes and items; not exact: nothing holds what is
    retained, and rate and ``s`` decide how much of it goes too.

    Args:
      model: see :func:`jaxunlearn.functionalize`; of inputs that are floats.
      optimizer: default SGD with rate 3e-4; vision transformers had .1 to 1.5.
      sigma: ``s``, in the units of what the network takes; .01 for items, in the paper.
      noises: ``n``; that many copies of a batch go through the network at once.
      gradient: ``"stopped"`` as published; ``"true"``: of all that is above.

    Raises:
      ConfigError: when traced, for inputs without floats.

    Source: Foster et al., "Zero-shot machine unlearning at scale via Lipschitz regularization",
    arXiv 2402.01401.
    """
    expect_positive(sigma=sigma)
    expect_counts(noises=noises)
    expect_one_of(GRADIENTS, gradient=gradient)
    model = functionalize(model)
    optimizer = optax.sgd(3e-4) if optimizer is None else optimizer

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        batch = batches.forget
        assert batch is not None
        own, _ = split_floats(batch.x)
        repeated, joined = split_floats(
            jax.tree.map(lambda leaf: jnp.concatenate([leaf] * noises), batch.x)
        )
        weight, moved = batch.weight, []
        counted = (weight > 0) | ~jnp.any(weight > 0)
        for number, (leaf, several) in enumerate(zip(own, repeated, strict=True)):
            inside = counted.reshape(-1, *[1] * (leaf.ndim - 1))
            low = jnp.min(jnp.where(inside, leaf, jnp.inf))
            high = jnp.max(jnp.where(inside, leaf, -jnp.inf))
            key = jax.random.fold_in(context.key, number)
            noise = jax.random.normal(key, several.shape, leaf.dtype)
            moved.append(jnp.clip(several + jnp.asarray(sigma, leaf.dtype) * noise, low, high))
        each = mean_slopes(model.apply, variables, batch.x, joined(moved), gradient)
        mean = example_mean(each, weight)
        return mean * jnp.sum(weight).astype(mean.dtype), (variables, {"slope": mean})

    needs = Needs(forget=True, labels=False, once=True)
    method = descent(objective, optimizer, needs, model=model)
    step_once = method.step
    assert step_once is not None

    def step(
        state: DescentState, batches: Batches, key: Key, count: jax.Array
    ) -> tuple[DescentState, Info]:
        assert batches.forget is not None
        moved, info = step_once(state, batches, key, count)
        # behind the end of a smaller set momentum would go on
        any_left = jnp.any(batches.forget.weight > 0)
        return choose(any_left, moved, state), info

    return method._replace(step=step)
