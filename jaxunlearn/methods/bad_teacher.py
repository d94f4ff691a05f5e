"""Two teachers: the original for what is retained, a random network for what is to be forgotten."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import expect_between, expect_positive, expect_shares
from jaxunlearn.core.types import Apply, Batches, Key, Model, Needs, Sets, Unlearner, Variables
from jaxunlearn.methods.shares import Kept, keep, redraw, share_of
from jaxunlearn.methods.terms import forward_both, kl_divergences
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import Context, DescentState, LossAndMore, descent, example_mean


class Beside(NamedTuple):
    """What the steps read beside the original.

    Attributes:
      random: variables of the random teacher.
      retain: the share of the retain set that is learned from; ``None`` for all of it.
    """

    random: Variables
    retain: Kept | None


def bad_teacher(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    forget_weight: float = 0.5,
    temperature: float = 1.0,
    share: float = 0.3,
) -> Unlearner:
    """Imitates the original on retained examples, and a random network on those to be forgotten.

    ``J = (1 - f) mean_r KL(T_o || S) + f mean_f KL(T_random || S)``. The random teacher is drawn
    by the model's own ``init``; the student starts as the original, so that at the start the first
    term is 0 (but for batch statistics). The teachers run in inference mode, the student in
    training mode with both batches as one. Of what is to be forgotten the student learns the
    predictions of *one* random network, not those of a retrained one: confidences come out flat.

    Reads no labels; for classes and items; not exact.

    Args:
      model: see :func:`jaxunlearn.functionalize`; it must be able to draw variables.
      optimizer: default Adam with rate 1e-4.
      forget_weight: ``f``, from 0 to 1. The published loss is a mean over the two sets mixed:
        ``f = n_f / (n_f + share n_r)``.
      temperature: both logits are divided by it.
      share: of the retain set that is learned from, drawn once at random.

    Source: Chundawat et al., "Can bad teaching induce forgetting?", AAAI 2023.
    """
    expect_between(0, 1, forget_weight=forget_weight)
    expect_positive(temperature=temperature)
    expect_shares(share=share)
    model = functionalize(model)
    optimizer = optax.adam(1e-4) if optimizer is None else optimizer

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        beside: Beside = context.prepared
        forget, retain = batches.forget, redraw(beside.retain, batches.retain, context.step)
        assert forget is not None
        assert retain is not None
        z_forget, z_retain, moved = forward_both(model, variables, forget, retain, context.key)
        random = model.apply(beside.random, forget.x)
        original = model.apply(context.original, retain.x)
        away = example_mean(kl_divergences(random, z_forget, temperature), forget.weight)
        stay = example_mean(kl_divergences(original, z_retain, temperature), retain.weight)
        loss = (1 - forget_weight) * stay + forget_weight * away
        return loss, (moved, {"kl_forget": away, "kl_retain": stay})

    needs = Needs(forget=True, retain=True, labels=False, original=True)
    method = descent(objective, optimizer, needs, model=model)

    def init(variables: Variables, sets: Sets, key: Key) -> DescentState:
        assert sets.retain is not None
        teacher_key, choice_key, order_key = jax.random.split(key, 3)
        kept, examples = None, sets.retain.examples
        if share < 1:
            # without labels all are of one class
            alike = examples._replace(y=jnp.zeros_like(examples.y))
            slots, size = share_of(sets.retain._replace(examples=alike), share, choice_key, 1)
            kept = keep(sets.retain, slots, size, order=order_key)
        return method.init(variables, sets, key, Beside(model.init(teacher_key), kept))

    return method._replace(init=init)
