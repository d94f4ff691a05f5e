"""Fine-tuning on retained examples and poisoned copies, whatever made the copies."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import (
    expect_at_least,
    expect_one_of,
    expect_optimizer,
    expect_patterns,
    expect_shares,
)
from jaxunlearn.core.types import (
    Batches,
    Info,
    Inputs,
    Key,
    Model,
    Needs,
    Preparation,
    Sets,
    Unlearner,
    Variables,
)
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.jaxprs.cuts import cut_at_features
from jaxunlearn.methods.shares import Kept, as_subset, keep, redraw, share_of
from jaxunlearn.training.descent import (
    Context,
    DescentState,
    LossAndMore,
    accuracy,
    cross_entropy,
    descent,
)
from jaxunlearn.training.optimizers import PARTS, only, part_mask

STATISTICS = ("frozen", "moving")

NEEDS = Needs(forget=True, retain=True)


class Tuning(NamedTuple):
    """Arguments of the fine-tuning; as in :func:`jaxunlearn.concept_poison`."""

    data: float
    train: str | tuple[str, ...]
    statistics: str
    forget_weight: float | None
    optimizer: optax.GradientTransformation | None

    def check(self) -> None:
        """Raises ``ValueError`` for an argument out of range."""
        expect_one_of(STATISTICS, statistics=self.statistics)
        expect_patterns(PARTS, train=self.train)
        expect_shares(data=self.data)
        if self.optimizer is not None:
            expect_optimizer(self.optimizer)
        if self.forget_weight is not None:
            expect_at_least(0, forget_weight=self.forget_weight)


class Keys(NamedTuple):
    """Keys of the parts of the method."""

    poison: Key
    order: Key
    forget: Key
    retain: Key


def keys_of(key: Key) -> Keys:
    """Divides the key that the runner gives to ``init``."""
    return Keys(*jax.random.split(key, 4))


class Source(NamedTuple):
    """Facts that poisoned copies are made of.

    Attributes:
      variables: the original.
      sets: ``forget`` and ``retain``.
      prepared: what the method found out before.
      key: of what is drawn.
      slots: ``int32 [C]``, which of the forget set are copied, places in its order.
      made: what is kept of poisoned inputs, ``[c, ...] -> [c, ...]``.
    """

    variables: Variables
    sets: Sets
    prepared: Any
    key: Key
    slots: jax.Array
    made: Callable[[Inputs], Inputs]


class Material(NamedTuple):
    """Examples that the network is fine-tuned on.

    Attributes:
      forget: the poisoned copies.
      retain: ``None``: batches as they are drawn.
      weight: ``float32 []``, of the loss of the copies.
    """

    forget: Kept
    retain: Kept | None
    weight: jax.Array


def tune_on_poison(
    model: Model,
    poison: Callable[[Source], tuple[Inputs, jax.Array]],
    prepare: Preparation,
    tuning: Tuning,
    name: str,
) -> Unlearner:
    """Makes the method that fine-tunes on ``l(B_r, y) + w l(B_p, y')``.

    Where the head alone is trained on frozen statistics, the features are computed once, and
    steps run on these.

    Args:
      model: the network.
      poison: makes the copies and their labels, ``int32 [C]``; compiled within ``init``.
      prepare: what is found out before, on the host.
      tuning: checked arguments.
      name: what messages call the method.
    """
    data, train, statistics, forget_weight, _ = tuning
    optimizer = tuning.optimizer or optax.sgd(1e-3, momentum=0.9)
    cached = train == "head" and statistics == "frozen"
    cut = cut_at_features(model.apply)

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        assert batches.forget is not None
        material: Material = context.prepared
        forget = redraw(material.forget, batches.forget, context.step)
        retain = redraw(material.retain, batches.retain, context.step)
        assert forget is not None
        assert retain is not None
        both = jax.tree.map(lambda *parts: jnp.concatenate(parts), forget.x, retain.x)
        moved = variables
        if cached:
            logits = cut.lower(variables, both, batches.forget.x)
        elif statistics == "frozen":
            logits = model.apply(variables, both)
        else:
            logits, moved = model.apply_train(variables, both, context.key)
        z_forget, z_retain = jnp.split(logits, [len(forget.y)])
        loss = cross_entropy(z_retain, retain.y, retain.weight)
        loss += material.weight * cross_entropy(z_forget, forget.y, forget.weight)
        metrics = {
            "accuracy": accuracy(z_retain, retain),
            "accuracy_poisoned": accuracy(z_forget, forget),
        }
        return loss, (moved, metrics)

    def method(variables: Variables, x: Any) -> Unlearner:
        """Returns the fine-tuning of the part of a network that takes ``x``."""
        trained = part_mask(train, model.apply, variables, x)
        return descent(objective, only(optimizer, trained), NEEDS)

    def init(variables: Variables, sets: Sets, key: Key, found: Any) -> DescentState:
        assert sets.forget is not None
        assert sets.retain is not None
        keys, x = keys_of(key), inputs_like(sets.forget)
        num_classes = jax.eval_shape(model.apply, variables, x).shape[-1]
        orders = jax.random.split(keys.order) if data < 1 else (None, None)

        def features(x: Inputs) -> jax.Array:
            return cut.upper(variables, x)

        slots, size = share_of(sets.forget, data, keys.forget, num_classes)
        made = features if cached else lambda x: x
        copies, labels = poison(Source(variables, sets, found, keys.poison, slots, made))
        forget = Kept(as_subset(copies, labels, size), orders[0])
        retain, retained = None, sets.retain.size
        if cached or data < 1:
            slots, retained = share_of(sets.retain, data, keys.retain, num_classes)
            kept_as = features if cached else None
            retain = keep(sets.retain, slots, retained, made=kept_as, order=orders[1])
        weight = size.astype(jnp.float32) / jnp.maximum(retained, 1).astype(jnp.float32)
        if forget_weight is not None:
            weight = jnp.asarray(forget_weight, jnp.float32)
        material = Material(forget, retain, weight)
        return method(variables, x).init(variables, Sets(), key)._replace(prepared=material)

    def step(
        state: DescentState, batches: Batches, key: Key, count: jax.Array
    ) -> tuple[DescentState, Info]:
        assert batches.forget is not None
        descend = method(state.variables, batches.forget.x).step
        assert descend is not None
        return descend(state, batches, key, count)

    def result(state: DescentState) -> Variables:
        return state.variables

    return Unlearner(init, step, result, NEEDS, prepare, model=model, forgets=("class",), name=name)
