"""Two networks that learn against each other: their losses, their updates, methods made of these.

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

from jaxunlearn.core import errors
from jaxunlearn.core.types import (
    Batch,
    Batches,
    Gan,
    Info,
    Key,
    Needs,
    Preparation,
    Sets,
    Unlearner,
    Variables,
)  # fmt: skip
from jaxunlearn.training.descent import Context, apply_update, trained, with_trained


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


class GameState(NamedTuple):
    """State of a method that :func:`game` makes: the players so far, and what updates read.

    Attributes:
      original, prepared: see :class:`~jaxunlearn.training.descent.Context`.
    """

    players: Players
    original: Variables = None
    prepared: Any = None


Updated = tuple[Players, dict[str, jax.Array], jax.Array]
"""Players, metrics, ``bool []`` whether losses and updates were finite."""

Update = Callable[[Players, Batches, Context], Updated]
"""One step of a method, on the players."""


def game(
    update: Update,
    optimizer: optax.GradientTransformation,
    needs: Needs,
    *,
    fresh: Gan | None = None,
    begin: Callable[[Variables, Sets, Key, Any], Any] | None = None,
    prepare: Preparation | None = None,
) -> Unlearner:
    """Makes a method for GANs out of one update, as :func:`~jaxunlearn.training.descent.descent`
    makes one for classifiers out of an objective.

    A method is what its update does; going on with learning, for one::

        def update(players, batches, context):
            players, metrics, finite = learn(
                gan, optimizer, players, batches.retain, context.key, context.step
            )
            return average_in(players, 0.97), metrics, finite

        game(update, optimizer, Needs(retain=True))

    Args:
      update: of both networks, of one of them, or of the moving average alone.
      optimizer: any optax transformation; each network has a state of its own.
      needs: the sets that the update reads, and whether it reads the original.
      fresh: start from this GAN's ``init`` instead of the given variables.
      begin: ``variables, sets, key, prepared -> prepared``: what updates are to find in
        ``context.prepared``, computed in the compiled part before the first step.
      prepare: see :class:`jaxunlearn.core.types.Unlearner`; its finding is in the context.

    Raises:
      TypeError: ``optimizer`` is none.
    """
    errors.expect_optimizer(optimizer)

    def init(variables: Variables, sets: Sets, key: Key, prepared: Any = None) -> GameState:
        players = begin_players(variables if fresh is None else fresh.init(key), optimizer)
        if begin is not None:
            prepared = begin(variables, sets, key, prepared)
        return GameState(players, variables if needs.original else None, prepared)

    def step(
        state: GameState, batches: Batches, key: Key, count: jax.Array
    ) -> tuple[GameState, Info]:
        context = Context(key, count, state.original, state.prepared)
        players, metrics, finite = update(state.players, batches, context)
        return state._replace(players=players), Info(metrics, finite)

    def result(state: GameState) -> Variables:
        names = ("generator", "discriminator", "ema")
        return {name: getattr(state.players, name) for name in names}

    return Unlearner(init, step, result, needs, prepare)


def begin_players(variables: Variables, optimizer: optax.GradientTransformation) -> Players:
    """Returns the networks at the start, each with a fresh state of the optimizer."""
    generator, discriminator = variables["generator"], variables["discriminator"]
    with jax.numpy_dtype_promotion("standard"):
        own = [optimizer.init(trained(part)) for part in (generator, discriminator)]
    return Players(generator, discriminator, variables["ema"], *own)


def average_in(players: Players, decay: jax.Array | float) -> Players:
    """Updates the moving average: ``ema <- decay ema + (1 - decay) generator``, with running
    statistics.
    """
    ema = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new, players.ema, players.generator
    )
    return players._replace(ema=ema)


def mean_of(values: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Computes ``sum_i w_i v_i / sum_i w_i`` of ``[B]``, in float32."""
    values = values.astype(jnp.float32)
    if weight is None:
        return jnp.mean(values)
    return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1)


DiscriminatorLoss = Callable[[Variables], tuple[jax.Array, Variables]]
"""``discriminator -> (loss, discriminator)``, which differ in statistics alone."""


def learn_discriminator(
    optimizer: optax.GradientTransformation, players: Players, loss: DiscriminatorLoss
) -> tuple[Players, jax.Array, jax.Array]:
    """Does one update of the discriminator by any loss; returns players, loss, whether finite."""
    before = players.discriminator
    (value, moved), gradient = jax.value_and_grad(
        lambda params: loss(with_trained(before, params)), has_aux=True
    )(trained(before))
    params, state, finite = apply_update(
        optimizer, trained(before), players.discriminator_opt, gradient
    )
    after = with_trained(moved, params)
    players = players._replace(discriminator=after, discriminator_opt=state)
    return players, value, finite & jnp.isfinite(value)


def learn_generator(
    optimizer: optax.GradientTransformation, players: Players, gradient: Any, moved: Variables
) -> tuple[Players, jax.Array]:
    """Does one update of the generator by a gradient; returns players, and whether finite.

    Args:
      moved: the generator, of whose statistics those are taken.
    """
    params, state, finite = apply_update(
        optimizer, trained(players.generator), players.generator_opt, gradient
    )
    after = with_trained(moved, params)
    return players._replace(generator=after, generator_opt=state), finite


def real_or_generated(
    gan: Gan, batch: Batch, generated: jax.Array, key: Key, r1: jax.Array | float
) -> DiscriminatorLoss:
    """Returns ``L_D`` of a batch of real images and one of generated ones, of the same labels.

    Args:
      r1: the weight of the gradient's square; a plain 0 leaves it out.
    """
    ours, theirs, more = jax.random.split(key, 3)

    def loss(discriminator: Variables) -> tuple[jax.Array, Variables]:
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


def learn(
    gan: Gan,
    optimizer: optax.GradientTransformation,
    players: Players,
    batch: Batch,
    key: Key,
    count: jax.Array,
    *,
    r1: float = 0.0,
    r1_every: int = 1,
    generator: bool = True,
    discriminator: bool = True,
    penalty: Callable[[Any], jax.Array] | None = None,
) -> Updated:
    """Does one learning step of both networks on the same generated images.

    The images are generated once: the discriminator learns to tell them from ``batch``, then
    the generator follows the gradient that the new discriminator gives of them.

    Args:
      batch: real images.
      count: ``int32 []``, steps done before.
      r1, r1_every: the penalty is taken every so many steps, that much heavier.
      generator, discriminator: which of the two learn.
      penalty: of the generator's trained part, added to ``L_G`` and not to its metric.
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
            loss = real_or_generated(gan, batch, images, judging, weight)
            return learn_discriminator(optimizer, players, loss)

        if r1 == 0 or r1_every == 1:
            players, value, finite = update(float(r1))
        else:
            players, value, finite = jax.lax.cond(
                count % r1_every == 0, lambda: update(float(r1 * r1_every)), lambda: update(0.0)
            )
        metrics["loss_discriminator"] = value
    if generator:

        def judged(x: jax.Array) -> jax.Array:
            logits, _ = gan.discriminate_train(players.discriminator, x, batch.y, again)
            return mean_of(jax.nn.softplus(-logits))

        value, pushed = jax.value_and_grad(judged)(images)
        (gradient,) = pull(pushed)
        if penalty is not None:
            gradient = jax.tree.map(jnp.add, gradient, jax.grad(penalty)(trained(before)))
        players, fine = learn_generator(optimizer, players, gradient, moved)
        metrics["loss_generator"] = value
        finite = finite & fine & jnp.isfinite(value)
    return players, metrics, finite


def check_gan(gan: Gan, *, r1: float = 0.0, r1_every: int = 1, ema: float = 0.0) -> None:
    """Checks what all methods for GANs are given.

    Raises:
      TypeError: ``gan`` is no :class:`~jaxunlearn.core.types.Gan`.
      ValueError: ``r1`` or ``r1_every`` out of range; an average that never moves.
    """
    errors.expect("gan", gan, Gan, "; build_gan makes one")
    errors.expect_counts(r1_every=r1_every)
    errors.expect_at_least(0, r1=r1)
    if not errors.is_number(ema) or not 0 <= ema < 1:
        raise ValueError(f"ema: expected a number from 0 to below 1, got {ema!r}")
