"""Adapt then unlearn: a GAN learns to draw the class alone, and the original moves away from it.

Tiwary, Guha, Panda, Prathosh, "Adapt then Unlearn: Exploring Parameter Space Semantics for
Unlearning in Generative Adversarial Networks", arXiv 2309.14054. A reconstruction from the
description of the two stages and of the three forms of repulsion, and no claim about the
paper's numbers; the paper's regularizer of the first stage (elastic weight consolidation)
is left out, a classifier stands in for the person who sorts the images, and the scale of the
repulsion is ours.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core import errors
from jaxunlearn.core.keys import derive
from jaxunlearn.core.types import (
    Apply,
    Batch,
    Batches,
    Gan,
    Key,
    Needs,
    Preparation,
    Sets,
    Unlearner,
    Variables,
)
from jaxunlearn.data.sets import labels_of
from jaxunlearn.gan import Guide, check_guide, draw_pool, images_of, share_drawn
from jaxunlearn.training import adversarial
from jaxunlearn.training.adversarial import Players, Updated
from jaxunlearn.training.descent import Context, trained


class Drawn(NamedTuple):
    """Images of the original generator, sorted by what the guide takes them for.

    Attributes:
      x: ``[P, ...]``.
      y: ``int32 [P]``, labels that a conditional generator was asked for.
      order: ``int32 [P]``: places of the negative samples (taken for a class to be
        forgotten), then those of the positive ones.
      size: ``int32 []``, number of negative samples.
      forgotten: ``bool [K]``, classes to be forgotten.
      guide: the guide's variables.
    """

    x: jax.Array
    y: jax.Array
    order: jax.Array
    size: jax.Array
    forgotten: jax.Array
    guide: Variables


def draw_negatives(drawn: Drawn, count: int, key: Key) -> Batch:
    """Draws a batch of samples of the class."""
    place = jax.random.randint(key, (count,), 0, jnp.maximum(drawn.size, 1))
    return _batch(drawn, place)


def draw_positives(drawn: Drawn, count: int, key: Key, most: int) -> Batch:
    """Draws a batch of the first ``most`` samples that do not show the class."""
    there = jnp.minimum(len(drawn.order) - drawn.size, most)
    place = drawn.size + jax.random.randint(key, (count,), 0, jnp.maximum(there, 1))
    return _batch(drawn, place)


def _batch(drawn: Drawn, place: jax.Array) -> Batch:
    rows = drawn.order[place]
    return Batch(drawn.x[rows], drawn.y[rows], jnp.ones(len(rows)), rows)


def sorted_images(gan: Gan, guide: Guide, count: int) -> Preparation:
    """Returns the preparation that draws and sorts the samples: a :class:`Drawn`.

    On the host only to tell that there are any.
    """
    draw = partial(_sorted_pool, gan=gan, apply=guide.model.apply, count=count)

    def shapes(variables: Variables, sets: Sets) -> Any:
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(draw, variables["ema"], guide.variables, sets, key)

    def run(variables: Variables, sets: Sets, key: Key) -> Drawn:
        drawn = draw(variables["ema"], guide.variables, sets, key)
        found = int(drawn.size)
        if found in (0, count):
            assert sets.forget is not None
            wanted, seen = ("the generator draws", "none") if not found else (
                "leave others for the generator to draw", "all")  # fmt: skip
            raise errors.RequestError(
                f"sets.forget: expected classes that {wanted}, got {labels_of(sets.forget)}, "
                f"which the guide sees in {seen} of {count} images"
            )
        return drawn

    return Preparation(run, shapes)


@partial(jax.jit, static_argnames=("gan", "apply", "count"))
def _sorted_pool(
    generator: Variables,
    guide: Variables,
    sets: Sets,
    key: Key,
    *,
    gan: Gan,
    apply: Apply,
    count: int,
) -> Drawn:
    assert sets.forget is not None
    # which labels the other classes have is not told to a method that sees no other set
    noise, asking = jax.random.split(key)
    asked = jax.random.randint(asking, (count,), 0, max(gan.num_classes, 1), jnp.int32)
    found = draw_pool(generator, guide, asked, noise, gan=gan, apply=apply)
    forgotten = found.classes(sets.forget.examples.y[sets.forget.indices])
    shows = forgotten[found.label]
    order = jnp.argsort(~shows).astype(jnp.int32)
    size = jnp.sum(shows, dtype=jnp.int32)
    return Drawn(images_of(gan, generator, found.w), found.y, order, size, forgotten, guide)


REPULSIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "el2": lambda u: jnp.exp(-u),
    "il2": lambda u: 1 / u,
    "nl2": lambda u: -u,
}
"""Name -> what is made of ``u = alpha |theta - theta_N|^2``."""


class Adapted(NamedTuple):
    """Finding of the first stage.

    Attributes:
      theta: ``theta_N``, laid out like the trained part of the generator.
      alpha: ``float32 []``.
      drawn: the samples.
      finite: ``bool []``, whether the first stage was.
    """

    theta: Any
    alpha: jax.Array
    drawn: Drawn
    finite: jax.Array


def adapt_unlearn(
    gan: Gan,
    *,
    guide: Guide,
    adapt_steps: int = 200,
    adapt_batch: int = 64,
    repulsion: str = "el2",
    gamma: float = 0.1,
    alpha: float | None = None,
    positives: int | None = None,
    pool: int = 4096,
    optimizer: optax.GradientTransformation | None = None,
    r1: float = 0.0,
    r1_every: int = 16,
    ema: float = 0.97,
) -> Unlearner:
    """Adapts a copy to the class, then trains the original on the rest and away from the copy.

    The original draws ``pool`` images; the guide calls those of the class negative, the
    others positive samples.

    1. *Adapt*, before the first step: a copy of both networks learns the negative samples
       (:func:`jaxunlearn.training.adversarial.learn`); its generator is ``theta_N``.
    2. *Unlearn*, each step: the original networks learn the positive samples, the generator
       ``theta`` by ``mean sp(-d(G z)) + gamma f(alpha |theta - theta_N|^2)``; ``f(u)`` is
       ``exp(-u)`` (``"el2"``), ``1 / u`` (``"il2"``) or ``-u`` (``"nl2"``, which has no bound).

    No training image is read; of the forget set only the labels, which name the class.

    Args:
      gan: see :func:`jaxunlearn.models.build_gan`. A conditional generator is asked for all labels
        alike.
      guide: a classifier of the same images, trained apart.
      adapt_steps: of the first stage; they are not counted as steps of the run.
      adapt_batch: images a step of the first stage; the second takes the batch size of the run.
      repulsion: ``"el2"``, ``"il2"`` or ``"nl2"``.
      gamma: weight of the repulsion. Adam takes only the direction of a gradient, so that a
        repulsion much steeper than the loss drowns it: quality goes first.
      alpha: scale of the distance; by default ``1 / |theta_0 - theta_N|^2``, ``theta_0`` the
        original: ``u`` is 1 at the start whatever the network and the length of the first
        stage. The published ``il2`` and ``nl2`` have 1.
      positives: the second stage sees so many positive samples at most; ``None`` for all.
      pool: images drawn.
      optimizer: default Adam with rate 2e-4 and ``b1 = .5``, for both stages.
      r1, r1_every, ema: as in :func:`jaxunlearn.gan_retrain`; the average follows fast, for
        there are few steps.

    Returns:
      A method of as many steps as one asks for, which needs ``forget`` alone. It reports
      ``loss_discriminator``, ``loss_generator`` (without the repulsion), ``repulsion`` (with
      ``gamma``), ``apart``, which is ``|theta - theta_N|^2``, both before the step, and
      ``forget_share``, that of the guide among images of the average after it. Its
      preparation is a :class:`Drawn`.

    Raises:
      TypeError: ``gan`` is no :class:`~jaxunlearn.core.types.Gan`.
      ValueError: an argument out of range, or a guide that does not fit. When run:
        ``RequestError`` for a class that the generator never draws, or if it draws no other.

    Source: reconstructed from arXiv 2309.14054.
    """
    adversarial.check_gan(gan, r1=r1, r1_every=r1_every, ema=ema)
    check_guide(guide, gan)
    errors.expect_one_of(REPULSIONS, repulsion=repulsion)
    most = pool if positives is None else positives
    errors.expect_counts(
        adapt_steps=adapt_steps, adapt_batch=adapt_batch, pool=pool, positives=most
    )
    errors.expect_at_least(0, gamma=gamma)
    if alpha is not None and (not errors.is_number(alpha) or alpha <= 0):
        raise ValueError(f"alpha: expected a number above 0 or None, got {errors.brief(alpha)}")
    optimizer = optax.adam(2e-4, b1=0.5) if optimizer is None else optimizer
    of_distance = REPULSIONS[repulsion]
    play = partial(adversarial.learn, gan, optimizer, r1=r1, r1_every=r1_every)

    def adapt(variables: Variables, sets: Sets, key: Key, drawn: Drawn) -> Adapted:
        # Before the first step: the second stage needs no more of the first than theta_N, so
        # that the copy's optimizer and discriminator are gone, and steps are those of the second
        # as for any method. A step that chose between the stages would do both under vmap.
        del sets

        def body(count: jax.Array, carry: tuple[Players, jax.Array]) -> tuple[Players, jax.Array]:
            picking, learning = jax.random.split(derive(key, count))
            batch = draw_negatives(drawn, adapt_batch, picking)
            players, _, fine = play(carry[0], batch, learning, count)
            return players, carry[1] & fine

        start = (adversarial.begin_players(variables, optimizer), jnp.asarray(True))
        copy, finite = jax.lax.fori_loop(0, adapt_steps, body, start)
        theta = trained(copy.generator)
        moved = _square_distance(trained(variables["generator"]), theta)
        scale = 1 / moved if alpha is None else jnp.float32(alpha)
        return Adapted(theta, scale, drawn, finite & jnp.isfinite(scale))

    def update(players: Players, batches: Batches, context: Context) -> Updated:
        adapted: Adapted = context.prepared
        drawn = adapted.drawn
        assert batches.forget is not None
        labels = batches.forget.y
        picking, learning, watching = jax.random.split(context.key, 3)
        batch = draw_positives(drawn, len(labels), picking, most)

        def apart(theta: Any) -> jax.Array:
            return _square_distance(theta, adapted.theta)

        def repelled(theta: Any) -> jax.Array:
            return gamma * of_distance(adapted.alpha * apart(theta))

        theta = trained(players.generator)
        metrics = {"repulsion": repelled(theta), "apart": apart(theta)}
        players, losses, finite = play(players, batch, learning, context.step, penalty=repelled)
        players = adversarial.average_in(players, ema)
        own = guide._replace(variables=drawn.guide)
        share = share_drawn(gan, players.ema, own, drawn.forgotten, labels, watching)
        finite &= adapted.finite & jnp.isfinite(metrics["repulsion"])
        return players, {**losses, **metrics, "forget_share": share}, finite

    prepare = sorted_images(gan, guide, pool)
    made = adversarial.game(update, optimizer, Needs(forget=True), begin=adapt, prepare=prepare)
    return made._replace(forgets=("class",), name="adapt_unlearn")


def _square_distance(one: Any, other: Any) -> jax.Array:
    """Computes ``|one - other|^2`` over all leaves, ``float32 []``."""

    def of(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)))

    return sum(jax.tree.leaves(jax.tree.map(of, one, other)), start=jnp.zeros(()))
