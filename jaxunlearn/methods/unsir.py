"""UNSIR: noise learned as the class impairs what the network knows of it, then it is repaired."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core.errors import expect_at_least, expect_counts, expect_positive, expect_shares
from jaxunlearn.core.trees import choose
from jaxunlearn.core.types import (
    Apply,
    Batches,
    Inputs,
    Key,
    Model,
    Needs,
    Preparation,
    Sets,
    Unlearner,
    Variables,
)
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.data.sets import labels_of
from jaxunlearn.methods.shares import Kept, keep, redraw, share_of
from jaxunlearn.methods.terms import expect_float_inputs
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import (
    Context,
    DescentState,
    LossAndMore,
    accuracy,
    cross_entropies,
    cross_entropy,
    descent,
)


class Material(NamedTuple):
    """Examples that the network is impaired and repaired with.

    Attributes:
      noise: ``[M, ...]``, inputs of the network.
      labels: ``int32 [M]``, the class that each is noise of.
      retain: the share of the retain set that is learned from; ``None`` for all of it.
    """

    noise: Inputs
    labels: jax.Array
    retain: Kept | None


def unsir(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    noises: int = 256,
    noise_steps: int = 40,
    noise_rate: float = 0.1,
    norm_weight: float = 0.1,
    noise_share: float = 0.36,
    impair: float = 0.6,
    share: float = 0.2,
    steps: int = 100,
) -> Unlearner:
    """Makes noise that the network takes least for the class, learns it as the class, and repairs.

    1. *Noise*: ``N`` from the standard normal, then steps of Adam that lower
       ``-mean_i l(N_i, c) + p mean_i |N_i|^2``: what the class is not, at a loss as high as can be.
    2. *Impair*: ``l`` on batches of retained examples, a share of which is noise with the label
       ``c``: the weights that told the class are overwritten.
    3. *Repair*: ``l`` on batches of retained examples alone.

    No example of the class is read: the classes to be forgotten are the outputs of the network
    that no retained example has, each with as much of the noise. Batches run in training mode,
    the network that noise is made against in inference mode. One optimizer serves both phases,
    and its moments go on. For classes only; not exact. The defaults are harsh (Adam at .02): with
    few steps of repair, what is retained suffers.

    Args:
      model: see :func:`jaxunlearn.functionalize`; of inputs that are floats.
      optimizer: default Adam with rate .02, in the repair .01.
      noises: inputs made of noise, for all classes together.
      noise_steps, noise_rate, norm_weight: steps and rate of Adam, and ``p``; the loss without
        ``p`` has no bound.
      noise_share: of the rows of a batch while impairing, rounded.
      impair: share of the steps that do; the others repair.
      share: of the retain set that is learned from, of each class, drawn once at random.
      steps: how many the method will do.

    Raises:
      ValueError: an argument out of range. From the run, before any step: all outputs have
        retained examples, or inputs that are no floats.

    Source: Tarun et al., "Fast yet effective machine unlearning", arXiv 2111.08947.
    """
    expect_counts(noises=noises, noise_steps=noise_steps, steps=steps)
    expect_positive(noise_rate=noise_rate)
    expect_at_least(0, norm_weight=norm_weight)
    expect_shares(noise_share=noise_share, impair=impair, share=share)
    model = functionalize(model)
    impaired = jnp.round(jnp.asarray(impair, jnp.float32) * steps).astype(jnp.int32)
    repaired_from = jnp.maximum(impaired, 1)
    if optimizer is None:
        optimizer = optax.adam(lambda count: jnp.where(count < repaired_from, 0.02, 0.01))

    def prepare(variables: Variables, sets: Sets, key: Key) -> jax.Array:
        """Finds the classes without retained examples, ``bool [K]``."""
        del key
        assert sets.retain is not None
        found = np.ones(shapes(variables, sets).shape, bool)
        found[labels_of(sets.retain)] = False
        if not found.any():
            raise ValueError(
                f"sets: expected outputs of the network without retained examples, got examples "
                f"of all {len(found)}"
            )
        return jnp.asarray(found)

    def shapes(variables: Variables, sets: Sets) -> jax.ShapeDtypeStruct:
        assert sets.retain is not None
        like = inputs_like(sets.retain)
        expect_float_inputs(like)
        logits = jax.eval_shape(model.apply, variables, like)
        return jax.ShapeDtypeStruct(logits.shape[-1:], jnp.dtype(bool))

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        material: Material = context.prepared
        batch = redraw(material.retain, batches.retain, context.step)
        assert batch is not None
        choice_key, dropout_key = jax.random.split(context.key)
        rows = jnp.arange(len(batch.y), dtype=jnp.int32)
        impairs = context.step < repaired_from
        count = jnp.round(jnp.asarray(noise_share, jnp.float32) * len(rows))
        noisy = (rows < count.astype(jnp.int32)) & impairs
        chosen = jax.random.randint(choice_key, rows.shape, 0, noises, jnp.int32)

        drawn = jax.tree.map(lambda n, x: n[chosen].astype(x.dtype), material.noise, batch.x)
        x = choose(noisy, drawn, batch.x)
        y = jnp.where(noisy, material.labels[chosen].astype(batch.y.dtype), batch.y)
        logits, moved = model.apply_train(variables, x, dropout_key)
        loss = cross_entropy(logits, y, batch.weight)
        right = batch._replace(weight=jnp.where(noisy, 0, batch.weight))
        metrics = {"impairs": impairs.astype(jnp.float32), "accuracy": accuracy(logits, right)}
        return loss, (moved, metrics)

    needs = Needs(retain=True)
    method = descent(
        objective, optimizer, needs, prepare=Preparation(prepare, shapes), model=model
    )  # fmt: skip

    def init(variables: Variables, sets: Sets, key: Key, classes: jax.Array) -> DescentState:
        assert sets.retain is not None
        noise_key, choice_key, order_key = jax.random.split(key, 3)
        like = inputs_like(sets.retain, noises)
        labels = jnp.argsort(~classes, stable=True)[
            jnp.arange(noises) % jnp.maximum(jnp.sum(classes), 1)
        ].astype(jnp.int32)
        start = random_like(like, noise_key)
        noise, _ = raise_noise(
            lambda x: model.apply(variables, x), start, labels,
            steps=noise_steps, rate=noise_rate, norm_weight=norm_weight,
        )  # fmt: skip
        kept = None
        if share < 1:
            slots, size = share_of(sets.retain, share, choice_key, len(classes))
            kept = keep(sets.retain, slots, size, order=order_key)
        return method.init(variables, sets, key, Material(noise, labels, kept))

    return method._replace(init=init, forgets=("class",), name="unsir")


def random_like(like: Inputs, key: Key) -> Inputs:
    """Draws inputs from the standard normal, of shapes and dtypes."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    pairs = zip(keys, leaves, strict=True)
    drawn = [jax.random.normal(own, leaf.shape, leaf.dtype) for own, leaf in pairs]
    return jax.tree.unflatten(structure, drawn)


def raise_noise(
    apply: Callable[[Inputs], jax.Array],
    noise: Inputs,
    labels: jax.Array,
    *,
    steps: int = 40,
    rate: float | jax.Array = 0.1,
    norm_weight: float | jax.Array = 0.1,
) -> tuple[Inputs, jax.Array]:
    """Raises the loss of inputs by steps of Adam on ``-mean_i l(N_i, c_i) + p mean_i |N_i|^2``.

    Args:
      apply: ``x [M, ...] -> logits [M, K]``.
      noise: ``N [M, ...]`` to start from.
      labels: ``int [M]``, the classes ``c``.
      steps, rate, norm_weight: static number of steps, rate of Adam, ``p``.

    Returns:
      The noise, and the mean ``l`` before each step and behind the last, ``[steps + 1]``.
    """
    adam = optax.adam(rate)

    def objective(noise: Inputs) -> tuple[jax.Array, jax.Array]:
        loss = jnp.mean(cross_entropies(apply(noise), labels))
        squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(noise)]
        norm = sum(squares, jnp.zeros((), loss.dtype)) / len(labels)
        return jnp.asarray(norm_weight, loss.dtype) * norm - loss, loss

    def one(carry: tuple[Inputs, optax.OptState], _: None) -> tuple[Any, jax.Array]:
        noise, opt_state = carry
        gradient, loss = jax.grad(objective, has_aux=True)(noise)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = adam.update(gradient, opt_state)
            return (optax.apply_updates(noise, updates), opt_state), loss

    with jax.numpy_dtype_promotion("standard"):
        start = adam.init(noise)
    (noise, _), losses = jax.lax.scan(one, (noise, start), length=steps)
    return noise, jnp.append(losses, objective(noise)[1])
