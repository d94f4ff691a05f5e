"""GKT: a fresh network learns from the original on generated images that are not of the class."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core.errors import (
    expect_at_least,
    expect_counts,
    expect_optimizer,
    expect_positive,
    expect_shares,
)
from jaxunlearn.core.trees import choose, precise
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
from jaxunlearn.data.dataset import is_channels_first
from jaxunlearn.data.examples import array_shape, inputs_like
from jaxunlearn.jaxprs.cuts import layers
from jaxunlearn.jaxprs.structure import features
from jaxunlearn.methods.shares import occurring
from jaxunlearn.methods.terms import expect_float_inputs, kl_divergences
from jaxunlearn.models import functionalize
from jaxunlearn.models.convolution import conv
from jaxunlearn.training.descent import accuracy, apply_update, example_mean, trained, with_trained


class GktState(NamedTuple):
    """State of two players.

    Attributes:
      student: variables of the fresh network.
      student_opt: its optimizer's state.
      generator: parameters.
      generator_opt: its optimizer's state.
      original: the teacher.
      classes: ``bool [K]``, to be forgotten.
      order: key of what is drawn.
    """

    student: Variables
    student_opt: optax.OptState
    generator: Any
    generator_opt: optax.OptState
    original: Variables
    classes: jax.Array
    order: Key


def gkt(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    generator_rate: float = 1e-3,
    student_steps: int = 10,
    limit: float = 0.01,
    attention_weight: float = 250.0,
    latent: int = 128,
    width: int = 128,
) -> Unlearner:
    """Distils the original into a fresh network, on generated inputs that it takes for others.

    A generator ``G`` makes a batch of inputs of noise. The *band-pass filter* keeps those with
    ``softmax(T(x))[c] <= limit`` for every class ``c`` to be forgotten. In cycles:

    * one step of the generator on ``-mean KL(T || S) / K``: inputs that the student has not
      learned yet;
    * ``student_steps`` steps of the student on ``mean KL(T || S) / K + a sum_l mean (A_l(S) -
      A_l(T))^2``, with the attention ``A = mean_C(v^2) / |mean_C(v^2)|`` over the positions of
      each layer's output ``v [B, h, w, C]``; of a network without positions the squares of its
      penultimate features in the place of their mean.

    Means are over inputs that pass. Where none does, nothing is learned, and the generator is
    drawn anew. The student's logits are those of training mode; attention and the generator's
    gradient are of inference mode. Rates are constant; the published code halves them on plateaus.

    Reads no training example: of ``unseen`` ones it takes the shape and the classes to be
    forgotten, and reports on them the accuracy of the student, ``accuracy_unseen``. For classes
    only; not exact. *It leaks*: the original itself has loss 0 on whatever passes the filter, so
    that the class comes back as the student becomes like it: after success, more steps undo it.
    Stop early; a lower ``limit`` puts it off.

    Args:
      model: see :func:`jaxunlearn.functionalize`; it must be able to draw variables, and its input
        is one array of floats.
      optimizer: of the student; default Adam with rate .001, gradients clipped to norm 5.
      generator_rate: of the same for the generator.
      student_steps: in a cycle, positive.
      limit: of the probability of a class to be forgotten, above 0.
      attention_weight: ``a``.
      latent, width: of the generator: numbers of noise, channels or units.

    Raises:
      ValueError: an argument out of range. From the run: inputs that are no array of floats.

    Source: Chundawat et al., "Zero-shot machine unlearning", arXiv 2201.05629.
    """
    expect_counts(student_steps=student_steps, latent=latent, width=width)
    expect_positive(generator_rate=generator_rate)
    expect_shares(limit=limit)
    expect_at_least(0, attention_weight=attention_weight)
    model = functionalize(model)
    optimizer = _clipped_adam(1e-3) if optimizer is None else optimizer
    expect_optimizer(optimizer)
    player, cycle = _clipped_adam(generator_rate), student_steps + 1

    def init(variables: Variables, sets: Sets, key: Key) -> GktState:
        assert sets.unseen is not None
        student_key, generator_key, order = jax.random.split(key, 3)
        like = inputs_like(sets.unseen)
        shape = array_shape(sets.unseen)
        expect_float_inputs(like)
        classes = jax.eval_shape(model.apply, variables, like).shape[-1]
        student = model.init(student_key)
        generator = draw_generator(generator_key, shape, latent, width, like.dtype)
        with jax.numpy_dtype_promotion("standard"):
            states = optimizer.init(trained(student)), player.init(generator)
        return GktState(
            student, states[0], generator, states[1], variables,
            occurring([sets.unseen], classes), order,
        )  # fmt: skip

    def step(
        state: GktState, batches: Batches, key: Key, count: jax.Array
    ) -> tuple[GktState, Info]:
        batch = batches.unseen
        assert batch is not None
        shape, dtype = batch.x.shape[1:], batch.x.dtype
        noise_key = jax.random.fold_in(state.order, count // cycle)
        z = jax.random.normal(noise_key, (len(batch.y), latent), dtype)

        def seen(generator: Any) -> tuple[Inputs, jax.Array, jax.Array]:
            """Returns what the teacher sees and says, and what passes."""
            x = generate(generator, z, shape)
            logits = model.apply(state.original, x)
            return x, logits, passes(logits, state.classes, limit)

        def provoke(state: GktState) -> tuple[GktState, jax.Array, jax.Array, jax.Array]:
            def loss_of(generator: Any) -> tuple[jax.Array, jax.Array]:
                x, teacher, weight = seen(generator)
                apart = kl_divergences(teacher, model.apply(state.student, x))
                return -example_mean(apart, weight) / teacher.shape[-1], jnp.mean(weight)

            (loss, passed), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.generator)
            made, opt_state, finite = apply_update(
                player, state.generator, state.generator_opt, gradient
            )
            fresh = draw_generator(key, shape, latent, width, dtype)
            with jax.numpy_dtype_promotion("standard"):
                anew = fresh, player.init(fresh)
            kept = choose(passed > 0, (made, opt_state), anew)
            return state._replace(generator=kept[0], generator_opt=kept[1]), loss, passed, finite

        def distil(state: GktState) -> tuple[GktState, jax.Array, jax.Array, jax.Array]:
            x, teacher, weight = seen(state.generator)
            wanted = attention(model.apply, state.original, x)

            def loss_of(params: Any) -> tuple[jax.Array, Variables]:
                student = with_trained(state.student, params)
                logits, moved = model.apply_train(student, x, key)
                loss = example_mean(kl_divergences(teacher, logits), weight) / logits.shape[-1]
                for own, theirs in zip(attention(model.apply, student, x), wanted, strict=True):
                    far = precise(jnp.mean(jnp.square(own - theirs), axis=1))
                    loss += jnp.asarray(attention_weight, loss.dtype) * example_mean(far, weight)
                return loss, moved

            params = trained(state.student)
            (loss, moved), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
            params, opt_state, finite = apply_update(optimizer, params, state.student_opt, gradient)
            passed = jnp.mean(weight)
            kept = choose(
                passed > 0, (with_trained(moved, params), opt_state),
                (state.student, state.student_opt),
            )  # fmt: skip
            return state._replace(student=kept[0], student_opt=kept[1]), loss, passed, finite

        generates = count % cycle == 0
        state, loss, passed, finite = jax.lax.cond(generates, provoke, distil, state)
        told = accuracy(model.apply(state.student, batch.x), batch)
        metrics = {
            "loss": loss,
            "passed": passed,
            "generates": generates.astype(jnp.float32),
            "accuracy_unseen": told,
        }
        return state, Info(metrics, jnp.isfinite(loss) & finite)

    return Unlearner(
        init, step, lambda state: state.student, Needs(unseen=True, original=True),
        model=model, forgets=("class",), name="gkt",
    )  # fmt: skip


def passes(logits: jax.Array, classes: jax.Array, limit: float | jax.Array) -> jax.Array:
    """Tells which inputs pass the band-pass filter: 1 where no class is likelier than the limit.

    Args:
      logits: of the teacher, ``[B, K]``.
      classes: ``bool [K]``, to be forgotten.

    Returns:
      ``float32 [B]``.
    """
    p = jax.nn.softmax(precise(logits))
    likeliest = jnp.max(jnp.where(classes[None], p, 0), axis=-1)
    return (likeliest <= jnp.asarray(limit, p.dtype)).astype(jnp.float32)


def attention(apply: Apply, variables: Variables, x: jax.Array) -> list[jax.Array]:
    """Computes where each layer of a network is active, ``[B, positions]`` of length 1.

    Squares of outputs, averaged over channels; where no layer has positions, the squares of the
    penultimate features.
    """
    maps = layers(apply).maps(variables, x) or (features(apply)(variables, x),)
    found = []
    for value in maps:
        squares = jnp.square(value)
        flat = (jnp.mean(squares, axis=-1) if value.ndim > 2 else squares).reshape(len(value), -1)
        # a layer that is silent has no direction, and no gradient that is infinite
        tiny = jnp.asarray(1e-24, flat.dtype)
        found.append(flat * jax.lax.rsqrt(jnp.sum(jnp.square(flat), axis=1) + tiny)[:, None])
    return found


def draw_generator(
    key: Key, shape: tuple[int, ...], latent: int, width: int, dtype: Any = jnp.float32
) -> Any:
    """Draws the parameters of a generator of inputs of this shape.

    Of images, ``[H, W, C]`` or ``[C, H, W]``: a dense layer to a quarter of the sides, then twice
    pixels repeated and a 3x3 convolution, and a last convolution. Of other inputs: dense layers.
    """
    if len(shape) != 3:
        sizes: list[tuple[int, ...]] = [(latent, width), (width, width), (width, math.prod(shape))]
    else:
        height, across, channels = _image(shape)
        small = -(-height // 4) * -(-across // 4) * width
        sizes = [
            (latent, small),
            (3, 3, width, width),
            (3, 3, width, width // 2 or 1),
            (3, 3, width // 2 or 1, channels),
        ]
    # drawn together: random numbers take long to compile
    counts = [math.prod(size) for size in sizes]
    parts = jnp.split(jax.random.normal(key, (sum(counts),), dtype), np.cumsum(counts)[:-1])
    drawn = [
        {
            "kernel": part.reshape(size) * math.prod(size[:-1]) ** -0.5,
            "scale": jnp.ones(size[-1], dtype),
            "shift": jnp.zeros(size[-1], dtype),
        }
        for part, size in zip(parts, sizes, strict=True)
    ]
    # the last layer is normalised, and not scaled again
    return [*drawn[:-1], {"kernel": drawn[-1]["kernel"]}]


def generate(generator: Any, z: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Generates inputs ``[B, ...]`` of noise ``[B, latent]``.

    They are normalised over the batch, so that each channel has mean 0 and deviation 1.
    """
    first, *others = generator
    value = z @ first["kernel"]
    if len(shape) != 3:
        for layer, following in zip(generator, others, strict=False):
            value = _activated(value, layer) @ following["kernel"]
        return _normalised(value).reshape(-1, *shape)
    height, across, _ = _image(shape)
    value = _activated(value, first).reshape(len(z), -(-height // 4), -(-across // 4), -1)
    for layer in others[:2]:
        value = jnp.repeat(jnp.repeat(value, 2, axis=1), 2, axis=2)
        value = _activated(conv(value, layer["kernel"], (1, 1), "SAME"), layer)
    value = conv(value, others[2]["kernel"], (1, 1), "SAME")[:, :height, :across]
    value = _normalised(value)
    return jnp.moveaxis(value, -1, 1) if is_channels_first(shape) else value


def _image(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[1:], shape[0]) if is_channels_first(shape) else shape


def _normalised(value: jax.Array) -> jax.Array:
    axes = tuple(range(value.ndim - 1))
    centred = value - jnp.mean(value, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=axes, keepdims=True)
    return centred * jax.lax.rsqrt(variance + jnp.asarray(1e-5, value.dtype))


def _activated(value: jax.Array, layer: Any) -> jax.Array:
    ahead = (None,) * (value.ndim - 1)
    value = _normalised(value) * layer["scale"][ahead] + layer["shift"][ahead]
    return jax.nn.leaky_relu(value, 0.2)


def _clipped_adam(rate: Any) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(5.0), optax.adam(rate))
