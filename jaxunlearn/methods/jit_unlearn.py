"""Just in time: the network is made smooth around what is to be forgotten, in one pass."""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import expect_counts, expect_one_of, expect_positive
from jaxunlearn.core.types import Apply, Batches, Info, Key, Model, Needs, Unlearner, Variables
from jaxunlearn.methods.terms import split_floats
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import Context, DescentState, LossAndMore, descent

GRADIENTS = ("stopped", "true")


def slopes_along(moved: jax.Array, noise: jax.Array) -> jax.Array:
    """Computes ``|f(x) - f(x + e)| / |e|`` of squares of both; 0, without a slope, where one is 0.

    Args:
      moved, noise: ``|f(x) - f(x + e)|^2`` and ``|e|^2``, of any one shape.
    """
    there = (noise > 0) & (moved > 0)
    return jnp.where(there, jnp.sqrt(jnp.where(there, moved / jnp.where(there, noise, 1), 1)), 0)


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
        several = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * noises), batch.x)
        repeated, joined = split_floats(several)
        moved, distance = [], jnp.zeros((noises, len(batch.weight)))
        counted = (batch.weight > 0) | ~jnp.any(batch.weight > 0)
        for number, leaf in enumerate(own):
            inside = counted.reshape(-1, *[1] * (leaf.ndim - 1))
            low = jnp.min(jnp.where(inside, leaf, jnp.inf))
            high = jnp.max(jnp.where(inside, leaf, -jnp.inf))
            key = jax.random.fold_in(context.key, number)
            noise = jax.random.normal(key, repeated[number].shape, leaf.dtype)
            near = jnp.clip(repeated[number] + jnp.asarray(sigma, leaf.dtype) * noise, low, high)
            moved.append(near)
            squares = jnp.square(near - repeated[number]).reshape(*distance.shape, -1)
            distance += jnp.sum(squares.astype(distance.dtype), axis=-1)
        other = variables if gradient == "true" else jax.lax.stop_gradient(variables)
        here, there = model.apply(variables, batch.x), model.apply(other, joined(moved))
        here, there = (z.astype(distance.dtype) for z in (here, there))
        change = jnp.square(here[None] - there.reshape(noises, *here.shape))
        change = jnp.sum(change.reshape(*distance.shape, -1), axis=-1)
        each = jnp.mean(slopes_along(change, distance), axis=0)
        weight = batch.weight.astype(each.dtype)
        total = jnp.sum(each * weight)
        return total, (variables, {"slope": total / jnp.maximum(jnp.sum(weight), 1)})

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
        return jax.tree.map(lambda new, old: jnp.where(any_left, new, old), moved, state), info

    return method._replace(step=step)
