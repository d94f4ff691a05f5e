"""Fake labels: what the discriminator is to say of what it should not have seen.

A retrained discriminator has never seen the forgotten images: it scores forgotten items as
it scores other unseen images, and images of a forgotten class as generated ones. The
labels are a reconstruction from the abstract of arXiv 2308.09881.

The updates that a step of cascaded unlearning is made of.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.types import Apply, Batch, Batches, Gan, Key, Variables
from jaxunlearn.gan import look, share_drawn
from jaxunlearn.methods.cascade.memory import Memory
from jaxunlearn.training.adversarial import (
    Players,
    learn,
    learn_discriminator,
    learn_generator,
    mean_of,
)
from jaxunlearn.training.descent import trained, with_trained

FAKE_LABELS = ("zero", "soft", "holdout_mean", "holdout_quantile", "holdout_logit_mse")
HOLDOUT_LABELS = ("holdout_mean", "holdout_quantile", "holdout_logit_mse")
"""Those that compare with images that no training saw."""


def fake_label_loss(
    name: str, logits: jax.Array, weight: jax.Array, holdout: jax.Array | None, soft: float = 0.5
) -> jax.Array:
    """The discriminator's loss on images to be forgotten.

    ``BCE(d, t) = sp(d) - t d``, averaged, with ``t`` by name: ``zero``: 0; ``soft``: ``soft``;
    ``holdout_mean``: the mean of ``sigmoid(d)`` over hold-out images; ``holdout_quantile``:
    the image of rank ``r`` among those of its batch gets the quantile ``r`` of the
    hold-out's. ``holdout_logit_mse`` is ``(d - mean d_h)^2`` instead. No gradient flows
    through ``t``.

    Args:
      logits: ``d [B]`` of the images to be forgotten.
      weight: ``[B]``.
      holdout: ``[H]``, logits of the current discriminator on images no training saw.
    """
    if name in HOLDOUT_LABELS:
        assert holdout is not None
        holdout = jax.lax.stop_gradient(holdout)
    if name == "holdout_logit_mse":
        assert holdout is not None
        return mean_of(jnp.square(logits - jnp.mean(holdout)), weight)
    target: jax.Array | float = soft if name == "soft" else 0.0
    if name == "holdout_mean":
        assert holdout is not None
        target = jnp.mean(jax.nn.sigmoid(holdout))
    elif name == "holdout_quantile":
        assert holdout is not None
        target = _quantiles(jax.lax.stop_gradient(logits), jax.nn.sigmoid(holdout))
    return mean_of(jax.nn.softplus(logits) - target * logits, weight)


def _quantiles(values: jax.Array, others: jax.Array) -> jax.Array:
    """For each value the one of the others that has the same rank, ``[B]``.

    The value of rank ``r`` of ``n`` is the quantile ``(r + .5) / n``; that of others of rank
    ``s`` of ``m`` the quantile ``(s + .5) / m``, with straight lines between (Hazen).
    """
    rank = jnp.argsort(jnp.argsort(values)).astype(jnp.float32)
    place = (rank + 0.5) / len(values) * len(others) - 0.5
    return jnp.interp(place, jnp.arange(len(others), dtype=jnp.float32), jnp.sort(others))


Updated = tuple[Players, dict[str, jax.Array], jax.Array]
"""Players, metrics, whether all was finite."""

Update = Callable[[Players], Updated]


class Settings(NamedTuple):
    """What is fixed in all steps; see :func:`jaxunlearn.cascade`.

    Attributes:
      guide: the classifier's ``apply``.
      generator, discriminator: whether the network unlearns and learns.
      substitutes: whether the generator has substitutes to learn.
    """

    gan: Gan
    guide: Apply
    optimizer: optax.GradientTransformation
    kind: str
    label: str
    soft: float
    label_strength: float
    features: float
    neighbourhood: float
    space: str
    r1: float
    r1_every: int
    generator: bool
    discriminator: bool
    substitutes: bool


def unlearn_both(
    settings: Settings,
    players: Players,
    memory: Memory,
    batches: Batches,
    scale: jax.Array,
    key: Key,
) -> Updated:
    """``D <- grad L_D^u``, then ``G <- grad L_G^u``, where they unlearn."""
    first, second = jax.random.split(key)
    metrics: dict[str, jax.Array] = {}
    finite = jnp.asarray(True)
    assert batches.forget is not None
    if settings.discriminator:
        players, metrics, finite = _unlearn_discriminator(settings, players, batches, first)
    if settings.generator and settings.substitutes:
        count = len(batches.forget.y)
        players, more, fine = _unlearn_generator(settings, players, memory, scale, count, second)
        metrics, finite = {**metrics, **more}, finite & fine
    return players, metrics, finite


def holdout_of(settings: Settings, batches: Batches) -> Batch | None:
    """Images like those to be forgotten that no training saw, if they were asked for."""
    return batches.unseen if settings.kind == "class" else batches.holdout


def _unlearn_discriminator(
    settings: Settings, players: Players, batches: Batches, key: Key
) -> Updated:
    gan, batch, holdout = settings.gan, batches.forget, holdout_of(settings, batches)
    assert batch is not None

    def loss(discriminator: Variables, key: Key) -> tuple[jax.Array, Variables]:
        del key
        # in inference mode: statistics of forget images alone are not those of any data
        others = None
        if holdout is not None:
            others = gan.discriminate(discriminator, holdout.x, holdout.y)
        logits = gan.discriminate(discriminator, batch.x, batch.y)
        value = fake_label_loss(settings.label, logits, batch.weight, others, settings.soft)
        return settings.label_strength * value, discriminator

    players, value, finite = learn_discriminator(settings.optimizer, players, loss, key)
    return players, {"loss_unlearn_discriminator": value}, finite & jnp.isfinite(value)


def _unlearn_generator(
    settings: Settings, players: Players, memory: Memory, scale: jax.Array, count: int, key: Key
) -> Updated:
    gan = settings.gan
    which, where = jax.random.split(key)
    rows = jax.random.randint(which, (count,), 0, jnp.maximum(memory.size, 1))
    code, y = memory.code[rows], memory.y[rows]
    if settings.neighbourhood:
        shift = jax.random.normal(where, code.shape) * memory.spread[None]
        code = code + settings.neighbourhood * shift

    def loss(params: Any) -> jax.Array:
        own = with_trained(players.generator, params)
        w = gan.style(own, code, y) if settings.space == "z" else code
        made = gan.synthesize(own, w)
        value = jnp.mean(jnp.square(made - memory.target[rows]))
        if settings.features:
            seen, _ = look(settings.guide, memory.guide, made)
            apart = jnp.mean(jnp.square(seen - memory.target_features[rows]))
            value = value + settings.features * apart
        return scale * value

    value, gradient = jax.value_and_grad(loss)(trained(players.generator))
    players, finite = learn_generator(settings.optimizer, players, gradient, players.generator)
    return players, {"loss_unlearn_generator": value}, finite & jnp.isfinite(value)


def learn_both(
    settings: Settings, players: Players, batch: Batch, turn: jax.Array, key: Key
) -> Updated:
    """A learning step on retained images, of the networks that take part."""
    return learn(
        settings.gan, settings.optimizer, players, batch, key, r1=settings.r1,
        r1_every=settings.r1_every, turn=turn, generator=settings.generator,
        discriminator=settings.discriminator,
    )  # fmt: skip


def watch(
    settings: Settings, players: Players, memory: Memory, batches: Batches, key: Key
) -> dict[str, jax.Array]:
    """What tells how much is forgotten, after a step."""
    gan, batch, holdout = settings.gan, batches.forget, holdout_of(settings, batches)
    assert batch is not None

    def score(some: Batch) -> jax.Array:
        return jnp.mean(jax.nn.sigmoid(gan.discriminate(players.discriminator, some.x, some.y)))

    found = {"score_forget": score(batch)}
    if settings.kind == "items" and settings.substitutes:
        inside = jnp.arange(len(memory.error)) < memory.size
        found["inversion_error"] = jnp.mean(memory.error, where=inside)
    if holdout is not None:
        found["score_gap"] = jnp.abs(found["score_forget"] - score(holdout))
    if settings.kind == "class":
        found["forget_share"] = share_drawn(
            gan, players.ema, settings.guide, memory.guide, memory.forgotten, batch.y, key
        )
    return found


def part_of(tree: Any, number: int, count: int) -> Any:
    """An equal part of batches, out of ``count``."""

    def cut(leaf: jax.Array) -> jax.Array:
        size, left = divmod(len(leaf), count)
        if left:
            raise ValueError(
                f"ratio: expected parts that divide the batch of {len(leaf)} images, got {count}"
            )
        return leaf[number * size : (number + 1) * size]

    return tree if count == 1 else jax.tree.map(cut, tree)


def rest(players: Players) -> Updated:
    """No update."""
    return players, {}, jnp.asarray(True)


def one_of(first: jax.Array, one: Update, other: Update) -> Update:
    """Either of two updates; metrics of the one that was not done are 0."""

    def update(players: Players) -> Updated:
        names = {
            name: jnp.zeros(())
            for each in (one, other)
            for name in jax.eval_shape(each, players)[1]
        }

        def padded(each: Update) -> Update:
            def run(players: Players) -> Updated:
                players, metrics, finite = each(players)
                return players, {**names, **metrics}, finite

            return run

        return jax.lax.cond(first, padded(one), padded(other), players)

    return update
