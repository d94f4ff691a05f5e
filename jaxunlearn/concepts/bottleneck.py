"""Post-hoc concept bottleneck: a linear classifier on concept margins, and what follows from it.

The scores of the concepts for each class, and for each class a donor that lends it a patch.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxunlearn.attribution import integrated_gradients
from jaxunlearn.attribution.ig.quadrature import DEFAULT, Automatic, Rule
from jaxunlearn.concepts.bank import Bank, margins
from jaxunlearn.core.trees import to_device

# logit of a class without examples: no softmax or argmax ever takes it
_ABSENT = -1000.0
STRENGTH, L1_RATIO = 1e-5, 0.99
"""Of the penalty of the weights on concepts."""

EPOCHS, LEARNING_RATE, L2 = 20, 0.01, 1e-3
"""Of the residual."""

_STEPS = 1000
_BATCH = 64


class Bottleneck(NamedTuple):
    """A linear classifier that reads concept margins, and beside it the features.

    Attributes:
      weights: ``float32 [K, m]``; 0 for concepts that are not useful and for classes
        without examples.
      bias: ``float32 [K]``; -1000 for classes without examples.
      residual_weights: ``float32 [K, n]``; zeros unless hybrid.
      residual_bias: ``float32 [K]``; zeros unless hybrid.
    """

    weights: jax.Array
    bias: jax.Array
    residual_weights: jax.Array
    residual_bias: jax.Array


def fit_bottleneck(
    bank: Bank,
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    strength: float = STRENGTH,
    l1_ratio: float = L1_RATIO,
    hybrid: bool = True,
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
    l2: float = L2,
    seed: int = 0,
) -> Bottleneck:
    """Fits the classifier on margins, then its residual alone.

    With the margins z of mean 0 and deviation 1 over the examples, the weights minimise

        mean cross-entropy(W z + b) + strength * (l1_ratio |W|_1 + (1 - l1_ratio)/2 |W|^2)

    of all classes together, so that the logits are those of one softmax; the weights
    returned are for the margins as they are. Weights that do not pay are exactly 0. The
    solver is accelerated proximal gradient descent, 1000 steps from 0: deterministic, and
    one compiled program.

    Hybrid: ``R`` and ``r`` minimise ``cross-entropy(W m + b + R e + r) + l2/2 |R|^2`` with
    Adam in batches of 64, W and b being fixed; the features are centred and divided by
    their mean deviation for the fit, and the result is folded back.

    Args:
      bank: m concepts of n features.
      features: ``[N, n]``.
      labels: integers ``[N]``. Classes without examples take no part: weights 0, bias -1000.
      num_classes: ``K``.
      strength, l1_ratio: see above.
      hybrid: whether a residual is fitted.
      epochs, learning_rate, l2: of the residual.
      seed: order of the residual's batches.

    Raises:
      ValueError: wrong shapes, labels out of range, features that are not finite, or an
        option out of range.

    Source: Yuksekgonul et al. 2023 (PCBM and PCBM-h); one softmax instead of one against
    the rest is our choice.
    """
    x, y = _check(bank, features, labels, num_classes)
    if not strength >= 0 or not 0 <= l1_ratio <= 1:
        raise ValueError(
            "strength, l1_ratio: expected at least 0, and from 0 to 1, "
            f"got {strength!r}, {l1_ratio!r}"
        )
    if epochs < 1 or not learning_rate > 0 or not l2 >= 0:
        raise ValueError(
            "epochs, learning_rate, l2: expected at least 1, above 0, at least 0, "
            f"got {epochs!r}, {learning_rate!r}, {l2!r}"
        )
    return _fit(
        bank, x, y, np.uint32(seed % 2**32), strength, l1_ratio, learning_rate, l2,
        num_classes=num_classes, epochs=epochs if hybrid else None,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("num_classes", "epochs"))
def _fit(
    bank: Bank, x: jax.Array, y: jax.Array, seed: jax.Array,
    strength: float, l1_ratio: float, learning_rate: float, l2: float,
    *, num_classes: int, epochs: int | None,
) -> Bottleneck:  # fmt: skip
    """Fits concepts, and a residual unless ``epochs`` is ``None``, in one program."""
    weights, bias = _fit_concepts(bank, x, y, strength, l1_ratio, num_classes)
    zeros = jnp.zeros((num_classes, x.shape[1]), jnp.float32)
    found = Bottleneck(weights, bias, zeros, jnp.zeros(num_classes, jnp.float32))
    if epochs is None:
        return found
    key = jax.random.key(seed)
    residual = _fit_residual(bank, found, x, y, key, learning_rate, l2, epochs)
    return found._replace(residual_weights=residual[0], residual_bias=residual[1])


def concept_logits(bottleneck: Bottleneck, found: jax.Array) -> jax.Array:
    """Computes ``W m + b``, ``[B, K]``, of margins ``[B, m]``, without the residual."""
    along = jnp.matmul(found, bottleneck.weights.T, precision=jax.lax.Precision.HIGHEST)
    return along + bottleneck.bias[None]


def bottleneck_logits(bank: Bank, bottleneck: Bottleneck, features: jax.Array) -> jax.Array:
    """Computes ``W m + b + R e + r``, ``[B, K]``, of features ``[B, n]``; pure, for any transform.

    Raises:
      ValueError: see :func:`~jaxunlearn.concepts.margins`.
    """
    residual = features.astype(bank.vectors.dtype) @ bottleneck.residual_weights.T
    concepts = concept_logits(bottleneck, margins(bank, features))
    return concepts + residual + bottleneck.residual_bias[None]


def bottleneck_accuracy(
    bank: Bank, bottleneck: Bottleneck, features: ArrayLike, labels: ArrayLike
) -> dict[str, float]:
    """Computes the accuracy ``"concepts"`` without the residual, and ``"hybrid"`` with it.

    Args:
      bank, bottleneck: as fitted.
      features: ``[N, n]``.
      labels: integers ``[N]``: true ones, or the network's own predictions, to see how far
        the bottleneck agrees with it.

    Raises:
      ValueError: wrong shapes or labels out of range.
    """
    x, y = _check(bank, features, labels, len(bottleneck.bias))
    return {name: float(share) for name, share in _accuracies(bank, bottleneck, x, y).items()}


@jax.jit
def _accuracies(
    bank: Bank, bottleneck: Bottleneck, x: jax.Array, y: jax.Array
) -> dict[str, jax.Array]:
    plain = concept_logits(bottleneck, margins(bank, x))
    logits = {"concepts": plain, "hybrid": bottleneck_logits(bank, bottleneck, x)}
    return {name: jnp.mean(jnp.argmax(z, axis=1) == y) for name, z in logits.items()}


def _check(
    bank: Bank, features: ArrayLike, labels: ArrayLike, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    x, y = np.asarray(features), np.asarray(labels)
    width = bank.vectors.shape[1]
    if x.ndim != 2 or x.shape[1] != width or not len(x):
        raise ValueError(f"features: expected shape [N, {width}], got {list(x.shape)}")
    if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels: expected integers [{len(x)}], got {y.dtype} {list(y.shape)}")
    if not 0 <= y.min() <= y.max() < num_classes:
        raise ValueError(f"labels: expected 0 to {num_classes - 1}, got {y.min()} to {y.max()}")
    if not np.isfinite(x).all():
        raise ValueError("features: expected finite numbers, got NaN or infinity")
    return to_device(x, np.float32), to_device(y, np.int32)


def _present(y: jax.Array, num_classes: int) -> jax.Array:
    """Returns ``bool [K]``, true for classes with examples."""
    return jnp.zeros(num_classes, bool).at[y].set(True)


def _fit_concepts(
    bank: Bank, x: jax.Array, y: jax.Array, strength: float, l1_ratio: float, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    found = margins(bank, x)
    mean, spread = jnp.mean(found, axis=0), jnp.std(found, axis=0)
    # the margins of a concept that is not useful are constant
    moves = spread > 1e-6 * (1 + jnp.abs(mean))
    spread = jnp.where(moves, spread, 1)
    z = jnp.where(moves[None], (found - mean[None]) / spread[None], 0)
    with jax.default_matmul_precision("highest"):
        weights, bias = _elastic_net(z, y, num_classes, strength, l1_ratio)
    weights = weights / spread[None]
    bias = bias - weights @ mean
    return weights, jnp.where(_present(y, num_classes), bias, _ABSENT)


def _elastic_net(
    z: jax.Array, y: jax.Array, num_classes: int, strength: float, l1_ratio: float
) -> tuple[jax.Array, jax.Array]:
    """Finds weights ``[K, m]`` and bias ``[K]`` by FISTA with restarts (O'Donoghue 2015)."""
    inputs = jnp.concatenate([z, jnp.ones((len(z), 1), z.dtype)], axis=1)
    wanted = jax.nn.one_hot(y, num_classes, dtype=z.dtype)
    present = _present(y, num_classes)
    ridge, lasso = strength * (1 - l1_ratio), strength * l1_ratio
    penalised = jnp.ones(inputs.shape[1], z.dtype).at[-1].set(0)[None]
    # the curvature of a softmax's cross-entropy is at most 1/2
    step = 1 / (jnp.linalg.norm(inputs.T @ inputs / len(z), 2) / 2 + ridge)

    def gradient(w: jax.Array) -> jax.Array:
        logits = jnp.where(present[None], inputs @ w.T, -jnp.inf)
        slope = (jax.nn.softmax(logits) - wanted).T @ inputs / len(z)
        return slope + ridge * penalised * w

    def forward(_: int, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        w, ahead, speed = carry
        moved = ahead - step * gradient(ahead)
        least = step * lasso * penalised
        new = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - least, 0)
        back = jnp.sum((ahead - new) * (new - w)) > 0
        faster = jnp.where(back, 1.0, (1 + jnp.sqrt(1 + 4 * speed**2)) / 2)
        momentum = jnp.where(back, 0.0, (speed - 1) / faster)
        return new, new + momentum * (new - w), faster

    start = jnp.zeros((num_classes, inputs.shape[1]), z.dtype)
    w, _, _ = jax.lax.fori_loop(0, _STEPS, forward, (start, start, jnp.ones((), z.dtype)))
    return w[:, :-1], w[:, -1]


def _fit_residual(
    bank: Bank,
    bottleneck: Bottleneck,
    x: jax.Array,
    y: jax.Array,
    key: jax.Array,
    learning_rate: float,
    l2: float,
    epochs: int,
) -> tuple[jax.Array, jax.Array]:
    """Trains ``R [K, n]`` and ``r [K]``; what the concepts say stays as it is."""
    base = concept_logits(bottleneck, margins(bank, x))
    mean = jnp.mean(x, axis=0)
    spread = jnp.sqrt(jnp.mean((x - mean[None]) ** 2))
    spread = jnp.where(spread > 0, spread, 1)
    z = (x - mean[None]) / spread
    batch = min(_BATCH, len(x))
    steps = len(x) // batch
    optimizer = optax.adam(learning_rate)

    def loss(params: tuple[jax.Array, jax.Array], rows: jax.Array) -> jax.Array:
        weights, bias = params
        logits = base[rows] + z[rows] @ weights.T + bias[None]
        errors = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y[rows])
        return jnp.mean(errors) + l2 / 2 * jnp.sum(weights**2)

    def one(carry: tuple, rows: jax.Array) -> tuple[tuple, None]:
        params, state = carry
        slopes = jax.grad(loss)(params, rows)
        # optax mixes dtypes in its scalars
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(slopes, state)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry: tuple, own: jax.Array) -> tuple[tuple, None]:
        order = jax.random.permutation(own, len(x))[: steps * batch]
        return jax.lax.scan(one, carry, order.reshape(steps, batch))

    classes = len(bottleneck.bias)
    params = (jnp.zeros((classes, x.shape[1]), x.dtype), jnp.zeros(classes, x.dtype))
    start = (params, optimizer.init(params))
    ((weights, bias), _), _ = jax.lax.scan(epoch, start, jax.random.split(key, epochs))
    weights = weights / spread
    return weights, bias - weights @ mean


class Scores(NamedTuple):
    """The share of each concept in the logit of each class.

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
    features: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    quadrature: Rule = DEFAULT,
    baseline: str = "mean",
) -> Scores:
    """Computes integrated gradients of each class's logit with respect to the concept margins.

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
    _check_baseline(baseline)
    # one program; nodes and weights of one's own are no key of programs
    score = _score_in_one if isinstance(quadrature, Automatic) else _score
    return score(bank, bottleneck, features, labels, num_classes, quadrature, baseline)


def _check_baseline(baseline: str) -> None:
    if baseline not in ("mean", "zero"):
        raise ValueError(f"baseline: expected 'mean' or 'zero', got {baseline!r}")


def _score(
    bank: Bank, bottleneck: Bottleneck, features: ArrayLike, labels: ArrayLike,
    num_classes: int, quadrature: Rule, baseline: str,
) -> Scores:  # fmt: skip
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


_score_in_one = jax.jit(_score, static_argnums=(4, 5, 6))


def fit_and_score(
    bank: Bank,
    features: ArrayLike,
    targets: ArrayLike,
    num_classes: int,
    *,
    labels: ArrayLike | None = None,
    hybrid: bool = True,
    baseline: str = "mean",
    seed: int = 0,
) -> tuple[Bottleneck, Scores]:
    """Fits the classifier and scores its concepts in one program.

    Args:
      bank, features, num_classes, hybrid, seed: see :func:`fit_bottleneck`.
      targets: integers ``[N]``, that it is fitted to.
      labels: integers ``[N]``, by which examples are of a class; by default ``targets``.
      baseline: see :func:`concept_scores`.

    Raises:
      ValueError: see these two.
    """
    x, y = _check(bank, features, targets, num_classes)
    _, own = _check(bank, features, targets if labels is None else labels, num_classes)
    _check_baseline(baseline)
    return _fit_and_score(
        bank, x, y, own, np.uint32(seed % 2**32),
        num_classes=num_classes, hybrid=hybrid, baseline=baseline,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("num_classes", "hybrid", "baseline"))
def _fit_and_score(
    bank: Bank, x: jax.Array, y: jax.Array, labels: jax.Array, seed: jax.Array,
    *, num_classes: int, hybrid: bool, baseline: str,
) -> tuple[Bottleneck, Scores]:  # fmt: skip
    epochs = EPOCHS if hybrid else None
    options = STRENGTH, L1_RATIO, LEARNING_RATE, L2
    found = _fit(bank, x, y, seed, *options, num_classes=num_classes, epochs=epochs)
    return found, _score(bank, found, x, labels, num_classes, DEFAULT, baseline)


@partial(jax.jit, static_argnames="top")
def choose_donor(
    values: jax.Array, weights: jax.Array, useful: jax.Array, allowed: jax.Array, top: int = 5
) -> Donor:
    """Chooses the donor of each class; pure, for ``jit`` and ``vmap``.

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
    """Checks that every class has a donor; on the host.

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
