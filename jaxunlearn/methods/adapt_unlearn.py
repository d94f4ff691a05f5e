"""The samples that adapt-then-unlearn learns from: a generator's own images, sorted.

Adapt then unlearn: a GAN learns to draw the class alone, and the original moves away from it.

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

from jaxunlearn.core.errors import RequestError
from jaxunlearn.core.types import (
    Apply,
    Batch,
    Batches,
    Gan,
    Info,
    Key,
    Needs,
    Preparation,
    Sets,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.data.sets import labels_of
from jaxunlearn.gan import Guide, check_guide, draw_pool, images_of, share_drawn
from jaxunlearn.training.adversarial import (
    Players,
    average_in,
    begin_players,
    learn,
    players_result,
)
from jaxunlearn.training.descent import trained


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
    """A batch of samples of the class."""
    place = jax.random.randint(key, (count,), 0, jnp.maximum(drawn.size, 1))
    return _batch(drawn, place)


def draw_positives(drawn: Drawn, count: int, key: Key, most: int) -> Batch:
    """A batch of the first ``most`` samples that do not show the class."""
    there = jnp.minimum(len(drawn.order) - drawn.size, most)
    place = drawn.size + jax.random.randint(key, (count,), 0, jnp.maximum(there, 1))
    return _batch(drawn, place)


def _batch(drawn: Drawn, place: jax.Array) -> Batch:
    rows = drawn.order[place]
    return Batch(drawn.x[rows], drawn.y[rows], jnp.ones(len(rows)), rows)


def sorted_images(gan: Gan, guide: Guide, count: int) -> Preparation:
    """Draws and sorts the samples; on the host only to tell that there are any."""
    known = partial(_sorted_pool, gan=gan, apply=guide.model.apply, count=count)

    def shapes(variables: Variables, sets: Sets) -> Any:
        check_guide(guide, gan)
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(known, variables["ema"], guide.variables, sets.forget, key)

    def run(variables: Variables, sets: Sets, key: Key) -> Drawn:
        assert sets.forget is not None
        drawn = known(variables["ema"], guide.variables, sets.forget, key)
        found = int(drawn.size)
        if found in (0, count):
            wanted, seen = ("the generator draws", "none") if not found else (
                "leave others for the generator to draw", "all")  # fmt: skip
            raise RequestError(
                f"sets.forget: expected classes that {wanted}, got {labels_of(sets.forget)}, "
                f"which the guide sees in {seen} of {count} images"
            )
        return drawn

    return Preparation(run, shapes)


@partial(jax.jit, static_argnames=("gan", "apply", "count"))
def _sorted_pool(
    generator: Variables,
    guide: Variables,
    forget: Subset,
    key: Key,
    *,
    gan: Gan,
    apply: Apply,
    count: int,
) -> Drawn:
    # which labels the other classes have is not told to a method that sees no other set
    noise, asking = jax.random.split(key)
    asked = jax.random.randint(asking, (count,), 0, max(gan.num_classes, 1), jnp.int32)
    found = draw_pool(generator, guide, asked, noise, gan=gan, apply=apply)
    own = forget.examples.y[forget.indices]
    forgotten = jnp.zeros(found.logits.shape[1], bool).at[own].set(True)
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


class AdaptState(NamedTuple):
    """The second stage so far, and what the first left.

    Attributes:
      adapted: ``theta_N``, laid out like the trained part of the generator.
      alpha: ``float32 []``.
      drawn: the samples.
      turn: ``int32 []``, steps of the second stage.
      finite: ``bool []``, whether the first stage was.
    """

    players: Players
    adapted: Any
    alpha: jax.Array
    drawn: Drawn
    key: Key
    turn: jax.Array
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
      gan: see :func:`jaxunlearn.build_gan`. A conditional generator is asked for all labels
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
    _check(gan, guide, locals())
    optimizer = optimizer or optax.adam(2e-4, b1=0.5)
    most = pool if positives is None else positives
    of_distance = REPULSIONS[repulsion]

    def adapt(variables: Variables, drawn: Drawn, key: Key) -> tuple[Players, jax.Array]:
        def body(turn: jax.Array, carry: tuple[Players, jax.Array]) -> tuple[Players, jax.Array]:
            picking, learning = jax.random.split(jax.random.fold_in(key, turn))
            batch = draw_negatives(drawn, adapt_batch, picking)
            players, _, fine = learn(
                gan, optimizer, carry[0], batch, learning, r1=r1, r1_every=r1_every, turn=turn
            )
            return players, carry[1] & fine

        start = (begin_players(variables, optimizer), jnp.asarray(True))
        return jax.lax.fori_loop(0, adapt_steps, body, start)

    def init(variables: Variables, sets: Sets, key: Key, drawn: Drawn) -> AdaptState:
        # The first stage runs here: the second needs no more of it than theta_N, so that the
        # copy's optimizer and discriminator are gone, and steps are those of the second as
        # for any method. A step that chose between the stages would do both under vmap.
        del sets
        onward, adapting = jax.random.split(key)
        copy, finite = adapt(variables, drawn, adapting)
        players, adapted = begin_players(variables, optimizer), trained(copy.generator)
        moved = _square_distance(trained(players.generator), adapted)
        scale = 1 / moved if alpha is None else jnp.float32(alpha)
        finite &= jnp.isfinite(scale)
        return AdaptState(players, adapted, scale, drawn, onward, jnp.zeros((), jnp.int32), finite)

    def step(state: AdaptState, batches: Batches) -> tuple[AdaptState, Info]:
        assert batches.forget is not None
        labels = batches.forget.y
        onward, picking, learning, watching = jax.random.split(state.key, 4)
        batch = draw_positives(state.drawn, len(labels), picking, most)

        def repelled(theta: Any) -> tuple[jax.Array, jax.Array]:
            apart = _square_distance(theta, state.adapted)
            return gamma * of_distance(state.alpha * apart), apart

        # twice with one key: this is one step of both networks on one batch of generated
        # images (made once, by common subexpressions), each by an optimizer of its own
        play = partial(learn, gan, r1=r1, r1_every=r1_every, turn=state.turn)
        players, metrics, judged = play(optimizer, state.players, batch, learning, generator=False)
        players, more, drew = play(
            _with_loss(optimizer, repelled), players, batch, learning, discriminator=False
        )
        value, apart = repelled(trained(state.players.generator))
        players = players._replace(ema=average_in(players.ema, players.generator, ema))
        drawn = state.drawn
        share = share_drawn(
            gan, players.ema, guide.model.apply, drawn.guide, drawn.forgotten, labels, watching
        )
        metrics |= {**more, "repulsion": value, "apart": apart, "forget_share": share}
        after = state._replace(players=players, key=onward, turn=state.turn + 1)
        return after, Info(metrics, state.finite & judged & drew & jnp.isfinite(value))

    def result(state: AdaptState) -> Variables:
        return players_result(state.players)

    return Unlearner(init, step, result, Needs(forget=True), sorted_images(gan, guide, pool))


def _with_loss(
    optimizer: optax.GradientTransformation, loss: Callable[[Any], tuple[jax.Array, Any]]
) -> optax.GradientTransformation:
    """The optimizer of a sum: to the gradient it is given it adds that of ``loss``."""

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        more, _ = jax.grad(loss, has_aux=True)(params)
        return optimizer.update(jax.tree.map(jnp.add, gradient, more), state, params)

    return optax.GradientTransformation(optimizer.init, update)


def _square_distance(one: Any, other: Any) -> jax.Array:
    """``|one - other|^2`` over all leaves, ``float32 []``."""

    def of(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)))

    return sum(jax.tree.leaves(jax.tree.map(of, one, other)), start=jnp.zeros(()))


def _check(gan: Gan, guide: Guide, options: Mapping[str, Any]) -> None:
    """Raises for arguments out of range; ``options`` are those of the factory by name."""
    if not isinstance(gan, Gan):
        raise TypeError(f"gan: expected a Gan, got {type(gan).__name__}; build_gan makes one")
    check_guide(guide, gan)
    if options["repulsion"] not in REPULSIONS:
        names = tuple(REPULSIONS)
        raise ValueError(f"repulsion: expected one of {names}, got {options['repulsion']!r}")
    for name in ("adapt_steps", "adapt_batch", "positives", "pool", "r1_every"):
        value = options[name]
        if (type(value) is not int or value < 1) and not (name == "positives" and value is None):
            raise ValueError(f"{name}: expected a positive number, got {value!r}")
    for name in ("gamma", "r1"):
        if not options[name] >= 0:
            raise ValueError(f"{name}: expected a number of 0 or more, got {options[name]!r}")
    if options["alpha"] is not None and not options["alpha"] > 0:
        raise ValueError(f"alpha: expected a number above 0 or None, got {options['alpha']!r}")
    if not 0 <= options["ema"] < 1:
        raise ValueError(f"ema: expected a number from 0 to below 1, got {options['ema']!r}")
