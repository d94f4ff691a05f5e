"""Updates that a step of cascaded unlearning is made of, fake labels among them.

A retrained discriminator has never seen the forgotten images: it scores forgotten items as
it scores other unseen images, and images of a forgotten class as generated ones. The
fake labels are a reconstruction from the abstract of arXiv 2308.09881.
"""

from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core import errors
from jaxunlearn.core.types import Batch, Batches, Gan, Key, Variables
from jaxunlearn.gan import Guide, look, share_drawn
from jaxunlearn.methods.cascade.memory import Memory
from jaxunlearn.training import adversarial
from jaxunlearn.training.adversarial import Players, Updated
from jaxunlearn.training.descent import trained, with_trained

MODES = ("cascade", "unlearn_then_learn", "learn_only", "generator_only", "discriminator_only")
FAKE_LABELS = ("zero", "soft", "holdout_mean", "holdout_quantile", "holdout_logit_mse")
HOLDOUT_LABELS = tuple(name for name in FAKE_LABELS if name.startswith("holdout"))
"""Those that compare with images that no training saw."""


class Settings(NamedTuple):
    """Options that are fixed in all steps; see :func:`jaxunlearn.cascade`.

    Attributes:
      substitutes: whether there are any for the generator to learn.
    """

    gan: Gan
    guide: Guide
    optimizer: optax.GradientTransformation
    request: str
    mode: str
    label: str
    soft: float
    label_strength: float
    strength: float
    features: float
    anneal: bool
    steps: int
    neighbourhood: float
    ratio: tuple[int, int]
    space: str
    substitutes: bool

    @property
    def unlearns(self) -> bool:
        """Tells whether there are unlearning updates."""
        return self.mode != "learn_only"

    @property
    def generator(self) -> bool:
        """Tells whether the generator takes part."""
        return self.mode != "discriminator_only"

    @property
    def discriminator(self) -> bool:
        """Tells whether the discriminator takes part."""
        return self.mode != "generator_only"

    @property
    def moves(self) -> bool:
        """Tells whether the generator unlearns."""
        return self.unlearns and self.generator and self.substitutes

    @property
    def compares(self) -> bool:
        """Tells whether the fake label reads images that no training saw."""
        return self.unlearns and self.discriminator and self.label in HOLDOUT_LABELS

    def held_out(self, batches: Batches) -> Batch | None:
        """Returns images like those to be forgotten that no training saw, if there are any."""
        return batches.unseen if self.request == "class" else batches.holdout

    def check(self) -> None:
        """Raises :class:`ValueError` for options out of range."""
        errors.expect_one_of(MODES, mode=self.mode)
        errors.expect_one_of(FAKE_LABELS, label=self.label)
        errors.expect_counts(steps=self.steps)
        numbers = ("strength", "label_strength", "features", "neighbourhood")
        errors.expect_at_least(0, **{name: getattr(self, name) for name in numbers})
        errors.expect_between(0, 1, soft=self.soft)
        ratio = self.ratio
        if (
            not isinstance(ratio, tuple | list)
            or len(ratio) != 2
            or any(type(n) is not int or n < 1 for n in ratio)
        ):
            raise ValueError(f"ratio: expected two positive numbers, got {ratio!r}")


def fake_label_loss(
    name: str, logits: jax.Array, weight: jax.Array, holdout: jax.Array | None, soft: float = 0.5
) -> jax.Array:
    """Computes the discriminator's loss on images to be forgotten.

    ``BCE(d, t) = sp(d) - t d``, averaged, with ``t`` by name: ``zero``: 0; ``soft``: ``soft``;
    ``holdout_mean``: the mean of ``sigmoid(d)`` over hold-out images; ``holdout_quantile``:
    the image of rank ``r`` among those of its batch gets the quantile ``r`` of the
    hold-out's. ``holdout_logit_mse`` is ``(d - mean d_h)^2`` instead. No gradient flows
    through ``t``.

    Args:
      logits: ``d [B]`` of the images to be forgotten.
      weight: ``[B]``.
      holdout: ``[H]``, logits of the current discriminator on images no training saw;
        for :data:`HOLDOUT_LABELS`.
    """
    target: jax.Array | float = soft if name == "soft" else 0.0
    if name in HOLDOUT_LABELS:
        assert holdout is not None
        holdout = jax.lax.stop_gradient(holdout)
        if name == "holdout_logit_mse":
            return adversarial.mean_of(jnp.square(logits - jnp.mean(holdout)), weight)
        scores = jax.nn.sigmoid(holdout)
        if name == "holdout_mean":
            target = jnp.mean(scores)
        else:
            target = _quantiles(jax.lax.stop_gradient(logits), scores)
    return adversarial.mean_of(jax.nn.softplus(logits) - target * logits, weight)


def _quantiles(values: jax.Array, others: jax.Array) -> jax.Array:
    """Returns for each value the one of the others that has the same rank, ``[B]``.

    The value of rank ``r`` of ``n`` is the quantile ``(r + .5) / n``; that of others of rank
    ``s`` of ``m`` the quantile ``(s + .5) / m``, with straight lines between (Hazen).
    """
    rank = jnp.argsort(jnp.argsort(values)).astype(jnp.float32)
    place = (rank + 0.5) / len(values) * len(others) - 0.5
    return jnp.interp(place, jnp.arange(len(others), dtype=jnp.float32), jnp.sort(others))


Turn = Callable[[Players], Updated]
"""One update, of which all but the players is given."""


def unlearn_both(
    settings: Settings, memory: Memory, batches: Batches, scale: jax.Array, key: Key,
    players: Players,
) -> Updated:  # fmt: skip
    """Does ``D <- grad L_D^u``, then ``G <- grad L_G^u``, where they unlearn."""
    metrics: dict[str, jax.Array] = {}
    finite = jnp.asarray(True)
    if settings.discriminator:
        players, metrics, finite = _unlearn_discriminator(settings, players, batches)
    if settings.moves:
        assert batches.forget is not None
        count = len(batches.forget.y)
        players, more, fine = _unlearn_generator(settings, players, memory, scale, count, key)
        metrics, finite = {**metrics, **more}, finite & fine
    return players, metrics, finite


def _unlearn_discriminator(settings: Settings, players: Players, batches: Batches) -> Updated:
    gan, batch, holdout = settings.gan, batches.forget, settings.held_out(batches)
    assert batch is not None

    def loss(discriminator: Variables) -> tuple[jax.Array, Variables]:
        # in inference mode: statistics of forget images alone are not those of any data
        others = None
        if holdout is not None:
            others = gan.discriminate(discriminator, holdout.x, holdout.y)
        logits = gan.discriminate(discriminator, batch.x, batch.y)
        value = fake_label_loss(settings.label, logits, batch.weight, others, settings.soft)
        return settings.label_strength * value, discriminator

    players, value, finite = adversarial.learn_discriminator(settings.optimizer, players, loss)
    return players, {"loss_unlearn_discriminator": value}, finite


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
            seen, _ = look(settings.guide.model.apply, memory.guide, made)
            apart = jnp.mean(jnp.square(seen - memory.target_features[rows]))
            value = value + settings.features * apart
        return scale * value

    value, gradient = jax.value_and_grad(loss)(trained(players.generator))
    players, finite = adversarial.learn_generator(
        settings.optimizer, players, gradient, players.generator
    )
    return players, {"loss_unlearn_generator": value}, finite & jnp.isfinite(value)


def watch(
    settings: Settings, players: Players, memory: Memory, batches: Batches, key: Key
) -> dict[str, jax.Array]:
    """Computes metrics of how much is forgotten, after a step."""
    gan, batch, holdout = settings.gan, batches.forget, settings.held_out(batches)
    assert batch is not None

    def score(some: Batch) -> jax.Array:
        return jnp.mean(jax.nn.sigmoid(gan.discriminate(players.discriminator, some.x, some.y)))

    metrics = {"score_forget": score(batch)}
    if settings.request == "items" and settings.moves:
        inside = jnp.arange(len(memory.error)) < memory.size
        metrics["inversion_error"] = jnp.mean(memory.error, where=inside)
    if holdout is not None:
        metrics["score_gap"] = jnp.abs(metrics["score_forget"] - score(holdout))
    if settings.request == "class":
        guide = settings.guide._replace(variables=memory.guide)
        metrics["forget_share"] = share_drawn(
            gan, players.ema, guide, memory.forgotten, batch.y, key
        )
    return metrics


def part_of(tree: Any, number: int, count: int) -> Any:
    """Takes an equal part of batches, out of ``count``.

    Raises:
      ValueError: parts that are not equal.
    """

    def cut(leaf: jax.Array) -> jax.Array:
        size, left = divmod(len(leaf), count)
        if left:
            raise ValueError(
                f"ratio: expected parts that divide the batch of {len(leaf)} images, got {count}"
            )
        return leaf[number * size : (number + 1) * size]

    return tree if count == 1 else jax.tree.map(cut, tree)


def arrange(
    settings: Settings, count: jax.Array, unlearning: Sequence[Turn], learning: Sequence[Turn]
) -> Turn:
    """Makes one update of those of a step: of both kinds in turn, or of one kind at a time.

    Args:
      count: ``int32 []``, steps done before.
    """
    if settings.mode == "unlearn_then_learn":
        first = count < settings.steps // 2
        return _either(first, _in_turn(unlearning), _in_turn(learning))
    turns = chain.from_iterable(zip_longest(unlearning, learning))
    return _in_turn([turn for turn in turns if turn is not None])


def _in_turn(turns: Sequence[Turn]) -> Turn:
    """Makes one update of several, each of what the one before left; later metrics win."""

    def update(players: Players) -> Updated:
        metrics: dict[str, jax.Array] = {}
        finite = jnp.asarray(True)
        for turn in turns:
            players, more, fine = turn(players)
            metrics, finite = {**metrics, **more}, finite & fine
        return players, metrics, finite

    return update


def _either(first: jax.Array, one: Turn, other: Turn) -> Turn:
    """Makes an update that does one of two; metrics of the one that was not done are 0."""

    def update(players: Players) -> Updated:
        each = (one, other)
        names = {name for turn in each for name in jax.eval_shape(turn, players)[1]}
        blank = dict.fromkeys(sorted(names), jnp.zeros(()))

        def padded(turn: Turn) -> Turn:
            def run(players: Players) -> Updated:
                players, metrics, finite = turn(players)
                return players, {**blank, **metrics}, finite

            return run

        return jax.lax.cond(first, padded(one), padded(other), players)

    return update
