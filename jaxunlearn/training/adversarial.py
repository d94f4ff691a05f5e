"""A generator and a discriminator that learn against each other: losses and updates.

``sp`` is softplus, ``d`` the discriminator's logit. The non-saturating losses are
``L_D = mean_r sp(-d(x_r)) + mean sp(d(G z))`` and ``L_G = mean sp(-d(G z))``; R1 adds
``r1 / 2 mean_r |grad_x d(x_r)|^2`` to the former.

Source: Goodfellow et al., arXiv 1406.2661; Mescheder et al., arXiv 1801.04406 (R1);
Karras et al., arXiv 1912.04958 (R1 every so many steps).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.types import Batch, Gan, Key, Variables
from jaxunlearn.training.descent import trained, with_trained


class Players(NamedTuple):
    """The networks of a GAN and the states of their optimizers.

    Attributes:
      generator, discriminator, ema: as in the variables of a :class:`~jaxunlearn.core.types.Gan`.
      generator_opt, discriminator_opt: optax states.
    """

    generator: Variables
    discriminator: Variables
    ema: Variables
    generator_opt: optax.OptState
    discriminator_opt: optax.OptState


def begin_players(variables: Variables, optimizer: optax.GradientTransformation) -> Players:
    """The networks at the start, each with a fresh state of the optimizer."""
    generator, discriminator = variables["generator"], variables["discriminator"]
    with jax.numpy_dtype_promotion("standard"):
        own = [optimizer.init(trained(part)) for part in (generator, discriminator)]
    return Players(generator, discriminator, variables["ema"], *own)


def players_result(players: Players) -> Variables:
    """The variables of the GAN."""
    return {
        "generator": players.generator,
        "discriminator": players.discriminator,
        "ema": players.ema,
    }


def mean_of(values: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """``sum_i w_i v_i / sum_i w_i`` of ``[B]``, in float32."""
    values = values.astype(jnp.float32)
    if weight is None:
        return jnp.mean(values)
    return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1)


def descend(
    optimizer: optax.GradientTransformation,
    variables: Variables,
    opt_state: optax.OptState,
    gradient: Any,
) -> tuple[Variables, optax.OptState, jax.Array]:
    """One update of the trained part; the last of the results: whether it was finite."""
    params = trained(variables)
    # optax counts steps in integers: it does not run under strict promotion
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    return with_trained(variables, params), opt_state, jnp.isfinite(optax.tree.norm(updates))


def average_in(ema: Variables, generator: Variables, decay: jax.Array | float) -> Variables:
    """``decay ema + (1 - decay) generator``, of running statistics too."""
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, generator)


DiscriminatorLoss = Callable[[Variables, Key], tuple[jax.Array, Variables]]
"""``discriminator, key -> (loss, discriminator)``, which differ in statistics alone."""


def learn_discriminator(
    optimizer: optax.GradientTransformation, players: Players, loss: DiscriminatorLoss, key: Key
) -> tuple[Players, jax.Array, jax.Array]:
    """One update of the discriminator by any loss; gives players, loss, whether finite."""
    before = players.discriminator

    def of(params: Any) -> tuple[jax.Array, Variables]:
        return loss(with_trained(before, params), key)

    (value, moved), gradient = jax.value_and_grad(of, has_aux=True)(trained(before))
    after, state, finite = descend(optimizer, moved, players.discriminator_opt, gradient)
    return players._replace(discriminator=after, discriminator_opt=state), value, finite


def real_or_generated(
    gan: Gan, batch: Batch, generated: jax.Array, r1: jax.Array | float
) -> DiscriminatorLoss:
    """``L_D`` of a batch of real images and one of generated ones, of the same labels.

    Args:
      r1: the weight of the gradient's square; a plain 0 leaves it out.
    """

    def loss(discriminator: Variables, key: Key) -> tuple[jax.Array, Variables]:
        ours, theirs, more = jax.random.split(key, 3)
        if gan.couples:
            real, moved = gan.discriminate_train(discriminator, batch.x, batch.y, ours)
            fake, moved = gan.discriminate_train(moved, generated, batch.y, theirs)
        else:
            both = jnp.concatenate([batch.x, generated])
            labels = jnp.concatenate([batch.y, batch.y])
            logits, moved = gan.discriminate_train(discriminator, both, labels, ours)
            real, fake = jnp.split(logits, 2)
        value = mean_of(jax.nn.softplus(-real), batch.weight) + mean_of(jax.nn.softplus(fake))
        if isinstance(r1, float) and r1 == 0:
            return value, moved
        steep = jax.grad(
            lambda x: jnp.sum(gan.discriminate_train(discriminator, x, batch.y, more)[0])
        )(batch.x)
        square = jnp.sum(jnp.square(steep).reshape(len(steep), -1), axis=1)
        return value + 0.5 * r1 * mean_of(square, batch.weight), moved

    return loss


def learn_generator(
    optimizer: optax.GradientTransformation, players: Players, gradient: Any, moved: Variables
) -> tuple[Players, jax.Array]:
    """One update of the generator by a gradient; gives players, and whether it was finite."""
    after, state, finite = descend(optimizer, moved, players.generator_opt, gradient)
    return players._replace(generator=after, generator_opt=state), finite


def learn(
    gan: Gan,
    optimizer: optax.GradientTransformation,
    players: Players,
    batch: Batch,
    key: Key,
    *,
    r1: float,
    r1_every: int,
    turn: jax.Array,
    generator: bool = True,
    discriminator: bool = True,
) -> tuple[Players, dict[str, jax.Array], jax.Array]:
    """One learning step of both networks on the same generated images.

    The images are generated once: the discriminator learns to tell them from ``batch``, then
    the generator follows the gradient that the new discriminator gives of them.

    Args:
      batch: real images.
      r1, r1_every: the penalty is taken every so many steps, that much heavier.
      turn: ``int32 []``, number of the step.
      generator, discriminator: which of the two learn.

    Returns:
      Players, losses, whether all was finite.
    """
    noise, drawing, judging, again = jax.random.split(key, 4)
    z = jax.random.normal(noise, (len(batch.y), gan.latent))
    before = players.generator

    def forward(params: Any) -> tuple[jax.Array, Variables]:
        own = with_trained(before, params)
        return gan.synthesize_train(own, gan.style(own, z, batch.y), drawing)

    images, pull, moved = jax.vjp(forward, trained(before), has_aux=True)
    metrics, finite = {}, jnp.asarray(True)
    if discriminator:

        def update(weight: float) -> tuple[Players, jax.Array, jax.Array]:
            loss = real_or_generated(gan, batch, images, weight)
            return learn_discriminator(optimizer, players, loss, judging)

        if r1 == 0 or r1_every == 1:
            players, value, finite = update(float(r1))
        else:
            players, value, finite = jax.lax.cond(
                turn % r1_every == 0, lambda: update(float(r1 * r1_every)), lambda: update(0.0)
            )
        metrics["loss_discriminator"] = value
    if generator:

        def judged(x: jax.Array) -> jax.Array:
            logits, _ = gan.discriminate_train(players.discriminator, x, batch.y, again)
            return mean_of(jax.nn.softplus(-logits))

        value, gradient = jax.value_and_grad(judged)(images)
        players, fine = learn_generator(optimizer, players, pull(gradient)[0], moved)
        metrics["loss_generator"] = value
        finite = finite & fine & jnp.isfinite(value)
    return players, metrics, finite
