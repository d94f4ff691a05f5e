"""Cascaded unlearning of a GAN: updates that unlearn and updates that learn take turns.

What is known of the published method is its abstract (arXiv 2308.09881): a substitution
mechanism for the generator, a fake label for the discriminator, both in a cascade with
learning steps. The equations are a reconstruction, and no claim about the paper's body.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.types import Batch, Batches, Gan, Key, Needs, Unlearner
from jaxunlearn.gan import Guide, check_guide
from jaxunlearn.methods.cascade.memory import Memory, Search, remember
from jaxunlearn.methods.cascade.steps import Settings, arrange, part_of, unlearn_both, watch
from jaxunlearn.training.adversarial import Players, Updated, average_in, check_gan, game, learn
from jaxunlearn.training.descent import Context

__all__ = ["cascade"]


def cascade(
    gan: Gan,
    *,
    guide: Guide,
    request: str = "class",
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
    steps: int = 100,
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
      (:data:`~jaxunlearn.methods.cascade.memory.SUBSTITUTES`), ``phi`` the guide's features;
      ``s = strength (1 - k / steps)`` at step ``k``, or ``strength`` without ``anneal``.

    ``z_u`` are, of a class, those of ``pool`` random latents whose images the guide takes for
    it; of items, their inversion. Statistics of batch normalisation do not move in
    unlearning. Each network has one optimizer for both kinds of steps.

    Args:
      gan: see :func:`jaxunlearn.models.build_gan`.
      guide: a classifier of the same images, trained apart.
      request: ``"class"`` or ``"items"``: what is to be forgotten.
      mode: ``"cascade"``; ``"unlearn_then_learn"``: first half of ``steps`` the one,
        then the other; ``"learn_only"``: the fine-tuning control; ``"generator_only"``,
        ``"discriminator_only"``: the other network stays as it is.
      substitute, form, psi: what takes the place; see there.
      label, soft, label_strength: the fake label; by default ``"zero"`` for a class,
        ``"holdout_quantile"`` for items. Labels by hold-out images read ``unseen`` for a class,
        ``holdout`` for items.
      strength, features, anneal, steps: of ``L_G^u``, above.
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
    check_gan(gan, r1=r1, r1_every=r1_every, ema=ema)
    check_guide(guide, gan)
    search = Search(
        request=request, substitute=substitute, form=form, psi=psi, space=space, pool=pool,
        latents=latents, references=references, inversion_steps=inversion_steps, few=few,
    )  # fmt: skip
    settings = Settings(
        gan=gan, guide=guide, optimizer=optimizer or optax.adam(2e-4, b1=0.5), request=request,
        mode=mode, label=label or ("zero" if request == "class" else "holdout_quantile"),
        soft=soft, label_strength=label_strength, strength=strength, features=features,
        anneal=anneal, steps=steps, neighbourhood=neighbourhood, ratio=ratio, space=space,
        substitutes=substitute != "none",
    )  # fmt: skip
    search.check(gan)
    settings.check()
    needs = Needs(
        forget=True, retain=True, unseen=settings.compares and request == "class",
        holdout=settings.compares and request == "items",
    )  # fmt: skip

    def update(players: Players, batches: Batches, context: Context) -> Updated:
        memory: Memory = context.prepared
        assert batches.retain is not None
        drawing, watching, *keys = jax.random.split(context.key, 2 + sum(ratio))
        retained = _of_few(memory.few, batches.retain, drawing)
        left = jnp.maximum(1 - context.step.astype(jnp.float32) / steps, 0)
        scale = strength * (left if anneal else jnp.ones(()))
        unlearning = [
            partial(unlearn_both, settings, memory, part_of(batches, turn, ratio[0]), scale, key)
            for turn, key in enumerate(keys[: ratio[0]]) if settings.unlearns
        ]  # fmt: skip
        learning = [
            partial(
                learn, gan, settings.optimizer, key=key, count=context.step,
                batch=part_of(retained, turn, ratio[1]), r1=r1, r1_every=r1_every,
                generator=settings.generator, discriminator=settings.discriminator,
            )
            for turn, key in enumerate(keys[ratio[0] :])
        ]  # fmt: skip
        turns = arrange(settings, context.step, unlearning, learning)
        players, metrics, finite = turns(players)
        if settings.generator:
            players = average_in(players, ema)
        return players, {**metrics, **watch(settings, players, memory, batches, watching)}, finite

    prepare = remember(gan, guide, search, settings.moves)
    return game(update, settings.optimizer, needs, prepare=prepare)


def _of_few(few: Batch | None, batch: Batch, key: Key) -> Batch:
    """Returns a batch of the few images, where there are such."""
    if few is None:
        return batch
    rows = jax.random.randint(key, (len(batch.y),), 0, len(few.y))
    return jax.tree.map(lambda leaf: leaf[rows], few)
