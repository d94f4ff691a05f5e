"""Cascaded unlearning of a GAN: steps that unlearn and steps that learn take turns.

What is known of the published method is its abstract (arXiv 2308.09881): a substitution
mechanism for the generator, a fake label for the discriminator, both in a cascade with
learning steps. The equations are a reconstruction, and no claim about the paper's body.

What cascaded unlearning refuses, before any work is done.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.types import (
    Batch,
    Batches,
    Gan,
    Info,
    Key,
    Needs,
    Sets,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.data.batches import fetch, random_slots
from jaxunlearn.gan import SUBSTITUTES, Guide, check_guide
from jaxunlearn.gan.inversion import SPACES
from jaxunlearn.methods.cascade.memory import Finding, Memory, remember
from jaxunlearn.methods.cascade.steps import (
    FAKE_LABELS,
    HOLDOUT_LABELS,
    Settings,
    Update,
    learn_both,
    one_of,
    part_of,
    rest,
    unlearn_both,
    watch,
)
from jaxunlearn.training.adversarial import Players, average_in, begin_players, players_result

__all__ = ["CascadeState", "cascade"]


class CascadeState(NamedTuple):
    """Networks and optimizers, what was found out before, and how far it is.

    Attributes:
      few: the retained images that learning is confined to; ``None`` for all.
    """

    players: Players
    memory: Memory
    few: Batch | None
    key: Key
    turn: jax.Array


def cascade(
    gan: Gan,
    *,
    guide: Guide,
    kind: str = "class",
    mode: str = "cascade",
    substitute: str = "other_class_nn",
    form: str = "image",
    psi: float = -0.5,
    label: str | None = None,
    soft: float = 0.5,
    label_strength: float = 1.0,
    strength: float = 3.0,
    features: float = 0.0,
    anneal: bool = True,
    horizon: int = 100,
    neighbourhood: float = 0.0,
    ratio: tuple[int, int] = (1, 1),
    few: int | None = None,
    space: str = "z",
    pool: int = 4096,
    latents: int = 512,
    references: int = 2048,
    inversion_steps: int = 400,
    optimizer: optax.GradientTransformation | None = None,
    r1: float = 0.0,
    r1_every: int = 16,
    ema: float = 0.97,
) -> Unlearner:
    """Makes a GAN forget a class or some items: substitutes, fake labels, in a cascade.

    A step unlearns, ``D <- grad L_D^u``, ``G <- grad L_G^u``, and then learns
    (:func:`jaxunlearn.training.adversarial.learn`) on retained images:

    * ``L_D^u``: ``label_strength`` times the fake label's loss on images to be forgotten
      (:func:`~jaxunlearn.methods.cascade.steps.fake_label_loss`);
    * ``L_G^u = s (mean_p (G(z_u) - x_s)_p^2 + features mean_i (phi(G z_u) - phi(x_s))_i^2)``,
      ``z_u`` latents of what is forgotten, ``x_s`` their substitutes
      (:func:`~jaxunlearn.gan.substitutes.substitute`), ``phi`` the guide's features;
      ``s = strength (1 - k / horizon)`` at step ``k``, or ``strength`` without ``anneal``.

    ``z_u`` are, of a class, those of ``pool`` random latents whose images the guide takes for
    it; of items, their inversion. Statistics of batch normalisation do not move in
    unlearning. Each network has one optimizer for both kinds of steps.

    Args:
      gan: see :func:`jaxunlearn.build_gan`.
      guide: a classifier of the same images, trained apart.
      kind: ``"class"`` or ``"items"``: what the request is.
      mode: ``"cascade"``; ``"unlearn_then_learn"``: first half of ``horizon`` steps the one,
        then the other; ``"learn_only"``: the fine-tuning control; ``"generator_only"``,
        ``"discriminator_only"``: the other network stays as it is.
      substitute, form, psi: what takes the place; see there.
      label, soft, label_strength: the fake label; by default ``"zero"`` for a class,
        ``"holdout_quantile"`` for items. Labels by hold-out images read ``unseen`` for a class,
        ``holdout`` for items.
      strength, features, anneal, horizon: of ``L_G^u``, above.
      neighbourhood: random shift of ``z_u``, in deviations of the prior: a ball is moved and
        not a point, so that the latent space stays continuous.
      ratio: a step does so many unlearning and so many learning updates, each on an equal
        part of its batches.
      few: learning sees so many retained images only, drawn once; substitutes are taken from
        ``references`` retained images all the same.
      space: where codes lie: ``"z"``, or ``"w"`` where there is a mapping network.
      pool, latents, references, inversion_steps: random latents, latents kept, retained images
        that substitutes are taken from, steps of the inversion.
      optimizer: default Adam with rate 2e-4 and ``b1 = .5``.
      r1, r1_every, ema: as in :func:`jaxunlearn.gan_retrain`; the average follows fast, for
        there are few steps.

    Returns:
      The unlearner. It reports ``loss_...``, ``score_forget`` (mean ``sigmoid(d)`` of the
      images to be forgotten), ``score_gap`` (its distance to that of hold-out images), and
      for a class ``forget_share``, that of the guide among the images of the step.

    Raises:
      ValueError: an argument out of range, or that do not go together. When run:
        ``RequestError`` for a class that the generator never draws.

    Source: a reconstruction from the abstract of arXiv 2308.09881.
    """
    label = label or ("zero" if kind == "class" else "holdout_quantile")
    check_cascade(gan, guide, locals())
    finding = Finding(
        kind, substitute, form, psi, space, pool, latents, references, inversion_steps
    )
    settings = Settings(
        gan, guide.model.apply, optimizer or optax.adam(2e-4, b1=0.5), kind, label, soft,
        label_strength, features, neighbourhood, space, r1, r1_every, mode != "discriminator_only",
        mode != "generator_only", substitute != "none",
    )  # fmt: skip
    unlearns = mode != "learn_only"
    compares = label in HOLDOUT_LABELS and unlearns and settings.discriminator
    needs = Needs(
        forget=True, retain=True,
        unseen=compares and kind == "class", holdout=compares and kind == "items",
    )  # fmt: skip

    def init(variables: Variables, sets: Sets, key: Key, memory: Memory) -> CascadeState:
        onward, choosing = jax.random.split(key)
        assert sets.retain is not None
        kept = None if few is None else _some(sets.retain, few, choosing)
        players = begin_players(variables, settings.optimizer)
        return CascadeState(players, memory, kept, onward, jnp.zeros((), jnp.int32))

    def step(state: CascadeState, batches: Batches) -> tuple[CascadeState, Info]:
        onward, drawing, watching, *keys = jax.random.split(state.key, 3 + sum(ratio))
        assert batches.retain is not None
        retained = _of_few(state.few, batches.retain, drawing)
        left = 1 - state.turn.astype(jnp.float32) / horizon
        scale = strength * (jnp.maximum(left, 0) if anneal else jnp.ones(()))

        def updates(turn: int) -> list[Update]:
            first: Update | None = None
            then: Update | None = None
            if turn < ratio[0] and unlearns:
                mine, key = part_of(batches, turn, ratio[0]), keys[turn]
                first = lambda p: unlearn_both(settings, p, state.memory, mine, scale, key)  # noqa: E731
            if turn < ratio[1]:
                own, other = part_of(retained, turn, ratio[1]), keys[ratio[0] + turn]
                then = lambda p: learn_both(settings, p, own, state.turn, other)  # noqa: E731
            if mode == "unlearn_then_learn":
                return [one_of(state.turn < horizon // 2, first or rest, then or rest)]
            return [update for update in (first, then) if update is not None]

        players, finite = state.players, jnp.asarray(True)
        metrics: dict[str, jax.Array] = {}
        for turn in range(max(ratio)):
            for update in updates(turn):
                players, more, fine = update(players)
                metrics, finite = {**metrics, **more}, finite & fine
        if settings.generator:
            players = players._replace(ema=average_in(players.ema, players.generator, ema))
        metrics |= watch(settings, players, state.memory, batches, watching)
        after = CascadeState(players, state.memory, state.few, onward, state.turn + 1)
        return after, Info(metrics, finite)

    def result(state: CascadeState) -> Variables:
        return players_result(state.players)

    moves = unlearns and settings.generator and settings.substitutes
    return Unlearner(init, step, result, needs, remember(gan, guide, finding, moves, few))


def _some(part: Subset, count: int, key: Key) -> Batch:
    """A few images of a set, drawn without repetition as long as there are enough."""
    slots = random_slots(part, key, count)
    positions = part.indices[slots]
    y = part.examples.y[positions]
    return Batch(fetch(part.examples, positions), y, jnp.ones(len(slots)), slots)


def _of_few(few: Batch | None, batch: Batch, key: Key) -> Batch:
    """A batch of the few images, where there are such."""
    if few is None:
        return batch
    rows = jax.random.randint(key, (len(batch.y),), 0, len(few.y))
    return jax.tree.map(lambda leaf: leaf[rows], few)


__all__ = ["KINDS", "MODES", "check_cascade"]

KINDS = ("class", "items")
MODES = ("cascade", "unlearn_then_learn", "learn_only", "generator_only", "discriminator_only")
FORMS = ("image", "latent")


def check_cascade(gan: Gan, guide: Guide, options: Mapping[str, Any]) -> None:
    """Raises :class:`ValueError` for options out of range, or that do not go together.

    Args:
      options: arguments of :func:`jaxunlearn.cascade` by name, ``label`` resolved.
    """
    if not isinstance(gan, Gan):
        raise TypeError(f"gan: expected a Gan, got {type(gan).__name__}; build_gan makes one")
    check_guide(guide, gan)
    words: dict[str, Sequence[str]] = {
        "kind": KINDS,
        "mode": MODES,
        "substitute": SUBSTITUTES,
        "form": FORMS,
        "label": FAKE_LABELS,
        "space": SPACES,
    }
    for name, allowed in words.items():
        if options[name] not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, got {options[name]!r}")
    whole = ("horizon", "pool", "latents", "references", "inversion_steps", "r1_every")
    for name in whole:
        if type(options[name]) is not int or options[name] < 1:
            raise ValueError(f"{name}: expected a positive number, got {options[name]!r}")
    for name in ("strength", "label_strength", "features", "neighbourhood", "r1"):
        if not options[name] >= 0:
            raise ValueError(f"{name}: expected a number of 0 or more, got {options[name]!r}")
    for name, low, high in (("soft", 0, 1), ("ema", 0, 1)):
        if not low <= options[name] <= high:
            raise ValueError(f"{name}: expected a number from 0 to 1, got {options[name]!r}")
    ratio, few = options["ratio"], options["few"]
    if (
        not isinstance(ratio, tuple | list)
        or len(ratio) != 2
        or any(type(n) is not int or n < 1 for n in ratio)
    ):
        raise ValueError(f"ratio: expected two positive numbers, got {ratio!r}")
    if few is not None and (type(few) is not int or few < 1):
        raise ValueError(f"few: expected a positive number or None, got {few!r}")
    if options["latents"] > options["pool"] and options["kind"] == "class":
        raise ValueError(
            f"latents: expected at most pool = {options['pool']}, got {options['latents']}"
        )
    if options["kind"] == "class" and options["substitute"] == "same_class_nn":
        raise ValueError(
            "substitute: expected another than 'same_class_nn' for a class, of which nothing "
            "is retained"
        )
    asks = options["substitute"] == "projection" or (
        options["substitute"] == "truncation" and options["space"] == "z"
    )
    if gan.num_classes and options["kind"] == "class" and asks:
        raise ValueError(
            "substitute: expected another for a conditional generator, which would be asked for "
            f"the class itself, got {options['substitute']!r}"
        )
    if options["space"] == "w" and not gan.maps:
        raise ValueError("space: expected 'z' for a generator without a mapping network, got 'w'")
