"""What the concepts contribute to the classes, and the donors that follow from it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.attribution import integrated_gradients
from jaxunlearn.attribution.ig.quadrature import DEFAULT, Quadrature
from jaxunlearn.concepts.bank import Bank, margins
from jaxunlearn.concepts.bottleneck import Bottleneck, concept_logits


class Scores(NamedTuple):
    """What each concept adds to the logit of each class.

    Attributes:
      values: ``float32 [K, m]``, in logits; 0 for concepts that are not useful and for
        classes without examples.
      gap: ``float32 [K]``, the completeness gap: by how much the concepts' parts fail to
        sum to the change of the logit, mean of the absolute values over the class.
    """

    values: jax.Array
    gap: jax.Array


class Donor(NamedTuple):
    """For each class the class that lends it a patch.

    Attributes:
      label: ``int32 [K]``, the donor; -1 where there is none.
      concept: ``int32 [K]``, the target concept: the class's first. The patch is pasted
        where it peaks. -1 where no concept speaks for the class.
      donor_concept: ``int32 [K]``, the concept that the two share. The patch is taken
        around its peak. -1 where there is no donor.
    """

    label: jax.Array
    concept: jax.Array
    donor_concept: jax.Array


def concept_scores(
    bank: Bank,
    bottleneck: Bottleneck,
    features: jax.Array,
    labels: jax.Array,
    num_classes: int,
    *,
    quadrature: Quadrature = DEFAULT,
    baseline: str = "mean",
) -> Scores:
    """Integrated gradients of each class's logit with respect to the concept margins.

    For examples of class k, with margins m, the baseline m' and ``F = W m + b``:

        a_i = (m_i - m'_i) * integral over t in [0, 1] of dF_k/dm_i (m' + t (m - m'))

    averaged over the examples of the class. For this linear F it is ``W_ki (m_i - m'_i)``
    with a gap of rounding. The residual of a hybrid does not move along the path, so that
    it takes no part.

    Args:
      bank, bottleneck: as fitted.
      features: ``[N, n]``.
      labels: ``int [N]``.
      num_classes: ``K``.
      quadrature: nodes and weights of the integral.
      baseline: ``"mean"``, the mean margins of all examples given: what is more of a
        concept than is usual; ``"zero"``: the borders of the concepts.

    Raises:
      ValueError: an unknown baseline, or wrong shapes or labels.

    Source: arXiv 2405.15662 (scores of concepts by integrated gradients).
    """
    if baseline not in ("mean", "zero"):
        raise ValueError(f"baseline: expected 'mean' or 'zero', got {baseline!r}")
    found = margins(bank, jnp.asarray(features))
    y = jnp.asarray(labels, jnp.int32)
    start = jnp.mean(found, axis=0) if baseline == "mean" else jnp.zeros_like(found[0])
    attribute = integrated_gradients(concept_logits, quadrature)
    result = attribute(bottleneck, found, target=y, baseline=start)
    counts = jax.ops.segment_sum(jnp.ones(y.shape, jnp.float32), y, num_classes)
    counts = jnp.maximum(counts, 1)
    values = jax.ops.segment_sum(result.attribution, y, num_classes) / counts[:, None]
    gap = jax.ops.segment_sum(jnp.abs(result.gap), y, num_classes) / counts
    return Scores(values.astype(jnp.float32), gap.astype(jnp.float32))


def choose_donor(
    values: jax.Array, weights: jax.Array, useful: jax.Array, allowed: jax.Array, top: int = 5
) -> Donor:
    """The donor of each class; pure, for ``jit`` and ``vmap``.

    The ``top`` concepts of class k are gone through in the order of their scores. The
    first that is also the first concept of another class makes that class the donor; of
    several such classes, the one in which it scores higher. If none is, the donor is the
    class with the largest weight on the first concept of k, if that weight is positive.
    Only useful concepts of positive score count; of equal ones the first.

    Args:
      values: ``[K, m]``, see :func:`concept_scores`.
      weights: ``[K, m]`` of the bottleneck.
      useful: ``bool [m]``.
      allowed: ``bool [K, K]``; ``[k, d]``: whether class d may lend to class k. A class
        never lends to itself.
      top: how many concepts of a class are gone through.

    Raises:
      ValueError: no positive ``top``.

    Source: arXiv 2405.15662.
    """
    if top < 1:
        raise ValueError(f"top: expected at least 1 concept, got {top!r}")
    classes, concepts = values.shape
    count = min(top, concepts)
    allowed = allowed & ~jnp.eye(classes, dtype=bool)
    scores = jnp.where(useful[None] & (values > 0), values, 0)
    first = jnp.argmax(scores, axis=1)
    speaks = jnp.max(scores, axis=1) > 0
    found, order = jax.lax.top_k(scores, count)
    # [k, rank, d]: whether the concept of that rank in k is the first of d
    shared = (first[None, None] == order[:, :, None]) & speaks[None, None] & allowed[:, None]
    shared &= (found > 0)[:, :, None]
    rank = jnp.argmax(jnp.any(shared, axis=2), axis=1)
    lent = jnp.take_along_axis(order, rank[:, None], axis=1)[:, 0]
    own = jnp.take_along_axis(shared, rank[:, None, None], axis=1)[:, 0]
    strength = jnp.where(own, scores[:, lent].T, -jnp.inf)
    leaning = jnp.where(allowed, weights[:, first].T, -jnp.inf)
    sharing = jnp.any(own, axis=1)
    weighty = speaks & (jnp.max(leaning, axis=1) > 0)
    label = jnp.where(sharing, jnp.argmax(strength, axis=1), jnp.argmax(leaning, axis=1))
    any_donor = sharing | weighty
    return Donor(
        label=jnp.where(any_donor, label, -1).astype(jnp.int32),
        concept=jnp.where(speaks, first, -1).astype(jnp.int32),
        donor_concept=jnp.where(any_donor, jnp.where(sharing, lent, first), -1).astype(jnp.int32),
    )


def check_donor(
    donor: Donor,
    concepts: Sequence[str],
    classes: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Raises where a class has no donor; on the host.

    Args:
      donor: of ``K`` classes.
      concepts: their names, for the message.
      classes: those that need one; all by default.
      class_names: for the message.

    Raises:
      ValueError: naming the first class without a donor, and why it has none.
    """
    labels, first = np.asarray(donor.label), np.asarray(donor.concept)
    wanted: Any = range(len(labels)) if classes is None else np.atleast_1d(np.asarray(classes))
    for k in wanted:
        if labels[k] >= 0:
            continue
        name = f"{int(k)}" if class_names is None else f"{int(k)} ({class_names[int(k)]})"
        why = (
            "no useful concept speaks for it"
            if first[k] < 0
            else "no class that may lend one has a positive weight on its concept "
            + repr(concepts[first[k]])
        )
        raise ValueError(f"concepts: expected a donor for class {name}, got none: {why}")
