"""Attacks on results: what comes back when a classifier is rounded, pruned or trained?

Every attack makes another model of one, and is done to the original and to the retrained models
alike: what counts is whether an unlearned model gains more from it than these do. The same attacks
make whole tables, ``attack=`` of a run.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.core.trees import to_device
from jaxunlearn.core.types import Key, Model, Sets, Subset, Variables
from jaxunlearn.data.sets import num_examples
from jaxunlearn.engine import unlearn
from jaxunlearn.engine.predict import predict
from jaxunlearn.metrics.classification import ClassifierEvidence
from jaxunlearn.metrics.registry import Evidence, Metric, Missing
from jaxunlearn.metrics.relearning import trainer
from jaxunlearn.training.descent import trained, with_trained

FEW = 16
"""Forget examples that an attacker who relearns has."""
STEPS = 30
"""Steps of training after which an attack is judged."""
RATE = 1e-3
"""Learning rate of these, of Adam."""


def round_weights(variables: Variables, bits: int) -> Variables:
    """Rounds every kernel to ``bits`` bits, symmetrically for each output channel.

        s = max |w| / (2 ** (bits - 1) - 1),   w' = s round(w / s)

    over all but the last axis, on which the output channels lie. Vectors (biases, scales) stay as
    they are, and so does what is not trained.

    Args:
      bits: from 2 to 16.

    Source: rounding to nearest, the simplest of the methods of arXiv 2601.15538 (QUAIL).
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits: expected a whole number from 2 to 16, got {bits}")
    most = 2 ** (bits - 1) - 1

    def one(leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2 or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        step = jnp.max(jnp.abs(leaf), axis=tuple(range(leaf.ndim - 1)), keepdims=True) / most
        safe = jnp.where(step > 0, step, jnp.ones_like(step))
        return (safe * jnp.round(leaf / safe)).astype(leaf.dtype)

    return with_trained(variables, jax.tree.map(one, trained(variables)))


def prune_weights(variables: Variables, share: float) -> Variables:
    """Sets the smallest weights of each kernel to 0, that share of them, by magnitude.

    Args:
      share: from 0 to below 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share: expected a number from 0 to below 1, got {share}")

    def one(leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2 or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        cut = jnp.quantile(jnp.abs(leaf).astype(jnp.float32), share)
        return jnp.where(jnp.abs(leaf) < cut.astype(leaf.dtype), jnp.zeros_like(leaf), leaf)

    return with_trained(variables, jax.tree.map(one, trained(variables)))


def train_on(
    model: Model, variables: Variables, part: Subset, key: Key, *, steps: int = STEPS
) -> Variables:
    """Trains a model on a set, the network in inference mode; Adam with rate :data:`RATE`."""
    made = unlearn(
        trainer(model.apply, "adam", RATE), variables, Sets(forget=part), key, steps=steps,
        batch_size=min(64, num_examples(part)),
    )  # fmt: skip
    return made.variables


class Attack(NamedTuple):
    """Row of :data:`ATTACKS`.

    Attributes:
      label: what tables call it.
      apply: ``model, variables, sets, key -> variables``.
    """

    label: str
    apply: Callable[[Model, Variables, Sets, Key], Variables]


def _rounded(bits: int) -> Attack:
    return Attack(f"rounding to {bits} bits", lambda m, v, sets, key: round_weights(v, bits))


def _pruned(percent: int) -> Attack:
    return Attack(
        f"pruning {percent} % of the weights",
        lambda m, v, sets, key: prune_weights(v, percent / 100),
    )


def _relearn(model: Model, variables: Variables, sets: Sets, key: Key) -> Variables:
    part = sets.forget
    if part is None or num_examples(part) == 0:
        raise Missing("forget")
    own = np.asarray(part.indices)[: num_examples(part)]
    # the first of the set: the same for every model
    few = part._replace(indices=to_device(own[:FEW]), size=to_device(len(own[:FEW]), np.int32))
    return train_on(model, variables, few, key)


def _tune(model: Model, variables: Variables, sets: Sets, key: Key) -> Variables:
    part = sets.holdout if num_examples(sets.holdout) else sets.retain
    if part is None or num_examples(part) == 0:
        raise Missing("retain")
    return train_on(model, variables, part, key)


ATTACKS: dict[str, Attack] = {
    **{f"rounding_{bits}": _rounded(bits) for bits in (8, 4, 3)},
    **{f"pruning_{percent}": _pruned(percent) for percent in (30, 70)},
    "relearning_few": Attack(f"{STEPS} steps on {FEW} forget images", _relearn),
    "tuning_others": Attack(f"{STEPS} steps on other images", _tune),
}
"""Attacks by name. *Other* images are held-out ones of what is retained, else retained ones."""


def after(evidence: Evidence, attack: Attack) -> Variables:
    """Returns what an attack makes of a model; models under one key are attacked alike."""
    key = derive(evidence.key, Purpose.ATTACK)
    return attack.apply(evidence.model, evidence.variables, evidence.sets, key)


def attacked(evidence: ClassifierEvidence, attack: str) -> float:
    """Computes the accuracy on what was forgotten after an attack, as large as retrained is ideal.

    On test images of the forgotten class, on the forget set itself where items are forgotten.
    """
    part = evidence.sets.test_forget
    part = part if num_examples(part) else evidence.part("forget")
    assert part is not None
    return predict(evidence.model.apply, after(evidence, ATTACKS[attack]), part).accuracy


ROWS: dict[str, Metric] = {
    f"after_{name}": Metric(
        f"accuracy, forget, after {attack.label}", "truth", "as retrained", ".3f",
        functools.partial(attacked, attack=name), ("predictions", "weights"), extra=True,
    )
    for name, attack in ATTACKS.items()
}  # fmt: skip
"""What an attack brings back."""
