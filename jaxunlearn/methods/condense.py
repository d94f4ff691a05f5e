"""Condensation: a few images stand for those that are far from what is to be forgotten."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from jaxunlearn.core.errors import expect_at_least, expect_counts, expect_optimizer, expect_positive
from jaxunlearn.core.trees import choose, in_chunks
from jaxunlearn.core.types import (
    Apply,
    Batches,
    Examples,
    Info,
    Inputs,
    Key,
    Model,
    Needs,
    Preparation,
    Sets,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.data.examples import array_shape, fetch, inputs_like
from jaxunlearn.data.sets import num_examples
from jaxunlearn.jaxprs.cuts import cut_at_features
from jaxunlearn.jaxprs.structure import structure
from jaxunlearn.methods.cf_k import last_layers
from jaxunlearn.methods.shares import CHUNK, Kept, redraw
from jaxunlearn.methods.terms import expect_float_inputs, flat
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import (
    Context,
    DescentState,
    LossAndMore,
    accuracy,
    cross_entropy,
    descent,
    trained,
)
from jaxunlearn.training.optimizers import only

BEGINNING, MIDDLE, FINAL = range(3)
"""Parts of a network that take turns."""


class Buckets(NamedTuple):
    """Numbers of the buckets that examples are in, each of one class; -1 for padding.

    Attributes:
      forget: ``int32 [M_f]``, in the order of the set.
      retain: ``int32 [M_r]``.
      labels: ``int32 [N]``, the class of each bucket; -1 for one that is not used.
    """

    forget: jax.Array
    retain: jax.Array
    labels: jax.Array


class Material(NamedTuple):
    """Sets that are drawn from in the place of the retain set.

    Attributes:
      condensed: images of the buckets without an example to be forgotten.
      reduced: these, and the retained examples of the other buckets.
    """

    condensed: Kept
    reduced: Kept


def condense(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    bucket_size: int = 10,
    condense_steps: int = 100,
    condense_rate: float = 1e-3,
    rounds: int = 30,
    opening: int = 5,
    steps: int = 100,
) -> Unlearner:
    """Fine-tunes parts of a network in turn on a retain set that is condensed where it can be.

    1. *Buckets*: k-means of the penultimate features ``phi`` of each class, ``n / bucket_size`` of
       them, rounded up, over all training examples.
    2. *Condensation*: the image of a bucket is ``s = sum_i w_i x_i`` over its ``n`` examples, with
       weights that start at ``1 / n`` and follow Adam on ``|mean_i phi(x_i) - phi(s)|^2``.
    3. *Reduced retain set*: condensed images of the buckets without an example to be forgotten,
       and of the others the retained examples as they are.
    4. *Turns*: in each round the beginning of the network learns the reduced set, then in the
       first ``opening`` rounds the final part learns the condensed images, afterwards the middle
       the reduced set. Beginning and final part are a third of the linear layers each, rounded
       down, at least one; the middle is what lies between, or, where nothing does, everything.

    The paper also prepares the original before any request: several times a fresh final part
    learns the condensed images, and then the middle the data. That is left out. With
    ``bucket_size=1`` the condensed images are the examples themselves, and it is fine-tuning in
    turns. It runs in training mode; batch statistics of all parts move.

    For items: of a whole class no bucket is mixed with others, so that nothing but condensed
    images of other classes is learned, and *the class stays*, as the published results show. Not
    exact. The random 10 % of the paper touch most buckets: the reduced set is hardly smaller.

    Args:
      model: see :func:`jaxunlearn.functionalize`; its input is one array of floats.
      optimizer: default Adam with rate .003.
      bucket_size: examples of a class for each bucket, on average.
      condense_steps, condense_rate: steps and rate of Adam on the weights.
      rounds, opening: see above.
      steps: how many the method will do, all rounds together; a round has two or more.

    Raises:
      ValueError: an argument out of range. From the run: inputs that are no array of floats.

    Source: Khan et al., dataset condensation driven machine unlearning, arXiv 2402.00195.
    """
    expect_counts(bucket_size=bucket_size, rounds=rounds, steps=steps)
    expect_at_least(0, condense_steps=condense_steps, opening=opening)
    expect_positive(condense_rate=condense_rate)
    model = functionalize(model)
    own = optax.adam(3e-3) if optimizer is None else optimizer
    expect_optimizer(own)
    length = max(2, -(-steps // rounds))
    cut = cut_at_features(model.apply)

    def features(variables: Variables, x: Inputs) -> jax.Array:
        return flat(cut.upper(variables, x))

    @jax.jit
    def described(variables: Variables, part: Subset) -> jax.Array:
        return in_chunks(
            lambda rows: features(variables, fetch(part.examples, part.indices[rows])),
            len(part.indices), CHUNK,
        )  # fmt: skip

    def prepare(variables: Variables, sets: Sets, key: Key) -> Buckets:
        parts = _both(sets)
        sizes = [num_examples(part) for part in parts]
        found = [
            np.asarray(described(variables, part))[:size]
            for part, size in zip(parts, sizes, strict=True)
        ]
        classes = [
            np.asarray(part.examples.y)[np.asarray(part.indices)[:size]]
            for part, size in zip(parts, sizes, strict=True)
        ]
        seed = int(jax.random.bits(key, (), jnp.uint32))
        places, labels = divide(np.concatenate(found), np.concatenate(classes), bucket_size, seed)
        like = shapes(variables, sets)
        padded = [np.full(leaf.shape, -1, np.int32) for leaf in like]
        padded[0][: sizes[0]], padded[1][: sizes[1]] = np.split(places, [sizes[0]])
        padded[2][: len(labels)] = labels
        return Buckets(*(jnp.asarray(leaf) for leaf in padded))

    def shapes(variables: Variables, sets: Sets) -> Buckets:
        forget, retain = _both(sets)
        like = inputs_like(forget)
        array_shape(forget)
        expect_float_inputs(like)
        classes = jax.eval_shape(model.apply, variables, like).shape[-1]
        counts = len(forget.indices), len(retain.indices)
        buckets = min(-(-sum(counts) // bucket_size) + classes, sum(counts))
        return Buckets(*(jax.ShapeDtypeStruct((n,), jnp.int32) for n in (*counts, buckets)))  # type: ignore[arg-type]

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        material: Material = context.prepared
        final = _turn(context.step, length, opening) == FINAL
        condensed, reduced = (redraw(kept, batches.retain, context.step) for kept in material)
        batch = choose(final, condensed, reduced)
        logits, moved = model.apply_train(variables, batch.x, context.key)
        loss = cross_entropy(logits, batch.y, batch.weight)
        return loss, (moved, {"accuracy": accuracy(logits, batch)})

    needs = Needs(forget=True, retain=True)

    def method(variables: Variables, x: Any) -> Unlearner:
        """Returns the fine-tuning of the parts of a network that takes ``x``."""
        masks = [trained(mask) for mask in parts_of(model.apply, variables, x)]
        return descent(objective, in_turns(own, masks, length, opening), needs)

    def init(variables: Variables, sets: Sets, key: Key, buckets: Buckets) -> DescentState:
        forget, retain = _both(sets)
        x = jnp.concatenate([_inputs(part) for part in (forget, retain)])
        y = retain.examples.y[retain.indices].astype(jnp.int32)
        places = jnp.concatenate([buckets.forget, buckets.retain])
        images = condensed_images(
            lambda x: features(variables, x), x, places, len(buckets.labels),
            steps=condense_steps, rate=condense_rate,
        )  # fmt: skip
        touched = _counts(buckets.forget, len(buckets.labels)) > 0
        untouched = (buckets.labels >= 0) & ~touched
        mixed = (buckets.retain >= 0) & touched[jnp.maximum(buckets.retain, 0)]
        orders = jax.random.split(key)
        condensed = _chosen(images, buckets.labels, untouched, orders[0])
        reduced = _chosen(
            jnp.concatenate([images, x[len(forget.indices) :]]),
            jnp.concatenate([buckets.labels, y]), jnp.concatenate([untouched, mixed]),
            orders[1],
        )  # fmt: skip
        material = Material(condensed, reduced)
        state: DescentState = method(variables, inputs_like(forget)).init(variables, Sets(), key)
        return state._replace(prepared=material)

    def step(
        state: DescentState, batches: Batches, key: Key, count: jax.Array
    ) -> tuple[DescentState, Info]:
        assert batches.retain is not None
        descend = method(state.variables, batches.retain.x).step
        assert descend is not None
        return descend(state, batches, key, count)

    return Unlearner(
        init, step, lambda state: state.variables, needs, Preparation(prepare, shapes), model=model,
        name="condense",
    )  # fmt: skip


def divide(
    features: np.ndarray, labels: np.ndarray, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divides examples of each class into buckets by k-means, on the host.

    Args:
      features: ``[N, F]``.
      labels: ``int [N]``.
      size: examples for each bucket, on average; 1 gives each one of its own.
      seed: of the first centres.

    Returns:
      ``int32 [N]``, numbers of the buckets; ``int32 [buckets]``, the class of each.
    """
    from sklearn.cluster import KMeans

    places = np.empty(len(labels), np.int32)
    classes: list[int] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = -(-len(rows) // size)
        found = np.arange(len(rows))
        if size > 1:
            found = KMeans(count, n_init=1, random_state=seed).fit_predict(features[rows])
        places[rows] = len(classes) + found
        classes += [label] * count
    return places, np.asarray(classes, np.int32)


def condensed_images(
    features: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    places: jax.Array,
    buckets: int,
    *,
    steps: int = 100,
    rate: float | jax.Array = 1e-3,
) -> jax.Array:
    """Weighs the examples of each bucket so that the features of their sum are their mean ones.

    Args:
      features: ``x [B, ...] -> [B, F]``.
      x: ``[N, ...]``.
      places: ``int [N]``, numbers of buckets; negative for examples that do not count.
      buckets: how many there are.
      steps, rate: of Adam on the weights.

    Returns:
      ``[buckets, ...]``; 0 for a bucket without examples. That of one example is the example.
    """
    counts = _counts(places, buckets)
    outside = jnp.where(places < 0, buckets, places)

    def summed(values: jax.Array) -> jax.Array:
        blank = jnp.zeros((buckets, *values.shape[1:]), values.dtype)
        return blank.at[outside].add(values, mode="drop")

    def spread(values: jax.Array, like: jax.Array) -> jax.Array:
        return values.astype(like.dtype).reshape(-1, *[1] * (like.ndim - 1))

    def in_turn(x: jax.Array) -> jax.Array:
        return in_chunks(jax.checkpoint(lambda rows: features(x[rows])), len(x), CHUNK)

    start = (1 / jnp.maximum(counts, 1).astype(x.dtype))[places]
    means = in_turn(x)
    means = summed(means) / spread(jnp.maximum(counts, 1), means)
    # of one example there is nothing to weigh; and where the features of the mean are the mean
    # ones already, Adam would follow the rounding
    free, adam = counts[places] > 1, optax.adam(rate, eps=1e-3)

    def objective(weights: jax.Array) -> jax.Array:
        far = jnp.square(in_turn(summed(spread(weights, x) * x)) - means)
        return jnp.sum(jnp.where(counts[:, None] > 1, far, 0))

    def one(_: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        weights, opt_state = carry
        gradient = jax.grad(objective)(weights)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = adam.update(gradient, opt_state)
        return jnp.where(free, weights + updates, weights), opt_state

    with jax.numpy_dtype_promotion("standard"):
        state = adam.init(start)
    weights, _ = jax.lax.fori_loop(0, steps, one, (start, state))
    return summed(spread(weights, x) * x)


def parts_of(apply: Apply, variables: Variables, x: Any) -> tuple[Any, Any, Any]:
    """Returns the masks of beginning, middle and final part of a network, trees of truths."""
    count = len(dict.fromkeys(unit.kernel for unit in structure(apply, variables, x)))
    third = max(1, count // 3)
    whole = last_layers(apply, variables, x, count)
    final = last_layers(apply, variables, x, third)
    if count == 1:
        return whole, whole, whole
    behind = last_layers(apply, variables, x, count - third)
    beginning = jax.tree.map(lambda late: not late, behind)
    middle = jax.tree.map(lambda late, last: late and not last, behind, final)
    return beginning, middle if any(jax.tree.leaves(middle)) else whole, final


class Turns(NamedTuple):
    """State of :func:`in_turns`: steps done, and of each part the state of its optimizer."""

    done: jax.Array
    parts: tuple[optax.OptState, ...]


def in_turns(
    optimizer: optax.GradientTransformation, masks: Sequence[Any], length: int, opening: int
) -> optax.GradientTransformation:
    """Trains one part of the parameters in each step; the others rest, with their moments.

    Args:
      masks: of the beginning, the middle and the final part, trees of truths.
      length, opening: steps in a round, and the rounds in which the final part is trained.
    """
    parts = [only(optimizer, mask) for mask in masks]

    def init(params: Any) -> Turns:
        return Turns(jnp.int32(0), tuple(part.init(params) for part in parts))

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Turns]:
        turn, made = _turn(state.done, length, opening), []
        each = [p.update(gradient, s, params) for p, s in zip(parts, state.parts, strict=True)]
        updates = jax.tree.map(lambda *own: jax.lax.select_n(turn, *own), *(u for u, _ in each))
        for number, (own, before) in enumerate(zip(each, state.parts, strict=True)):
            made.append(choose(turn == number, own[1], before))
        return updates, Turns(state.done + 1, tuple(made))

    return optax.GradientTransformation(init, update)


def _turn(count: jax.Array, length: int, opening: int) -> jax.Array:
    """Returns the part that a step trains, ``int32 []``."""
    later = jnp.where(count // length < opening, FINAL, MIDDLE)
    return jnp.where(count % length * 2 < length, BEGINNING, later).astype(jnp.int32)


def _both(sets: Sets) -> tuple[Subset, Subset]:
    assert sets.forget is not None
    assert sets.retain is not None
    return sets.forget, sets.retain


def _inputs(part: Subset) -> jax.Array:
    x: jax.Array = in_chunks(
        lambda rows: fetch(part.examples, part.indices[rows]), len(part.indices), CHUNK
    )
    return x


def _counts(places: jax.Array, buckets: int) -> jax.Array:
    own = jnp.where(places < 0, buckets, places)
    return jnp.zeros(buckets, jnp.int32).at[own].add(1, mode="drop")


def _chosen(x: jax.Array, y: jax.Array, where: jax.Array, order: Key) -> Kept:
    """Returns the set of the examples where a mask is true."""
    first = jnp.argsort(~where, stable=True).astype(jnp.int32)
    examples = Examples(x, y, Partial(_as_made))
    return Kept(Subset(examples, first, jnp.sum(where, dtype=jnp.int32)), order)


def _as_made(x: Inputs) -> Inputs:
    return x
