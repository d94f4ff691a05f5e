"""From arrays and a request to the sets that methods and metrics read.

A data set divided by the requests of a run, and where its parts lie in the official splits.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.config import Request
from jaxunlearn.core.errors import DataError, RequestError, expect
from jaxunlearn.core.types import Examples, Sets, Subset
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.requests import describe, forget_mask, same_kind_mask


def as_examples(
    x: ArrayLike,
    y: ArrayLike,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    *,
    name: str = "x, y",
) -> Examples:
    """Checks labelled arrays and puts them on the device.

    Args:
      x: ``[N, ...]``, integers (kept as they are) or floats (kept as float32).
      y: integers ``[N]``.
      mean, std: broadcast against one example, in the units of ``x``. By default
        0 and 255 for ``uint8``, 0 and 1 otherwise.
      name: what errors call the arrays.

    Raises:
      DataError: lengths differ, or the labels are not integers.
    """
    # device arrays pass through untouched, so that sets of many requests share them
    x, y = (a if isinstance(a, jax.Array) else np.asarray(a) for a in (x, y))
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{name}: expected integer labels [N], got {y.dtype} {list(y.shape)}")
    if x.ndim < 2 or len(x) != len(y):
        raise DataError(
            f"{name}: expected {len(y)} examples for {len(y)} labels, got an array {list(x.shape)}"
        )
    if np.issubdtype(x.dtype, np.floating) and not np.isfinite(np.asarray(x)).all():
        raise DataError(f"{name}: expected finite numbers, got NaN or infinity")
    kept: np.dtype[Any] = np.dtype(np.float32)
    if np.issubdtype(x.dtype, np.integer):
        # jax has no 64-bit integers by default
        kept = x.dtype if x.dtype.itemsize < 8 else np.dtype(np.int32)
    scale = 255.0 if x.dtype == np.uint8 else 1.0
    shape = (1,) * (x.ndim - 1)
    center = jnp.zeros(shape) if mean is None else _statistic(mean, x.ndim - 1)
    spread = jnp.full(shape, scale) if std is None else _statistic(std, x.ndim - 1)
    return Examples(jnp.asarray(x, kept), jnp.asarray(y, jnp.int32), center, spread)


def _statistic(value: ArrayLike, rank: int) -> jax.Array:
    array = jnp.asarray(value, jnp.float32)
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def subset(examples: Examples, indices: ArrayLike, capacity: int | None = None) -> Subset:
    """The examples at ``indices``, padded to ``capacity`` places (default: none spare)."""
    chosen = np.asarray(indices, np.int32)
    places = max(len(chosen), 1) if capacity is None else capacity
    if len(chosen) > places:
        raise ValueError(f"capacity: expected at least {len(chosen)}, got {capacity}")
    padded = np.resize(chosen, places) if len(chosen) else np.zeros(places, np.int32)
    return Subset(examples, jnp.asarray(padded), jnp.asarray(len(chosen), jnp.int32))


def whole(examples: Examples) -> Subset:
    """All examples as one subset."""
    return subset(examples, np.arange(len(examples.y)))


def num_examples(part: Subset | None) -> int:
    """How many examples a subset holds, on the host; of stacked subsets the smallest."""
    return 0 if part is None else int(np.min(np.asarray(part.size)))


def labels_of(part: Subset) -> list[int]:
    """The classes that a subset has examples of."""
    own = np.asarray(part.examples.y)[np.asarray(part.indices)[: num_examples(part)]]
    return [int(label) for label in np.unique(own)]


def make_sets(
    x: ArrayLike,
    y: ArrayLike,
    request: Request,
    *,
    unseen: tuple[ArrayLike, ArrayLike] | None = None,
    test: tuple[ArrayLike, ArrayLike] | None = None,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    num_classes: int | None = None,
) -> Sets:
    """Divides training, unseen and test examples by a request.

    Args:
      x, y: the training split, ``[N, ...]`` and integer labels ``[N]``.
      request: what to forget.
      unseen: examples and labels that no training sees; become ``unseen`` (the
        kind to be forgotten) and ``holdout`` (everything else).
      test: examples and labels for evaluation; become ``test_forget`` and
        ``test_retain``.
      mean, std: normalisation, see :func:`as_examples`.
      num_classes: ``K``; by default the largest training label plus one.

    Returns:
      The sets; a part without examples is ``None``.

    Raises:
      DataError, RequestError: see :func:`as_examples`, ``forget_mask``.
    """
    expect("request", request, Request, "; forget_class(3) makes one")
    train = as_examples(x, y, mean, std, name="x, y")
    labels = np.asarray(train.y)
    if num_classes is None:
        num_classes = int(labels.max()) + 1
    _check_labels("x, y", labels, num_classes)
    forget = forget_mask(request, labels, num_classes)
    sets = Sets(forget=_where(train, forget), retain=_where(train, ~forget))
    if unseen is not None:
        kept = _beside(train, unseen, mean, std, num_classes, "unseen")
        alike = same_kind_mask(request, np.asarray(kept.y))
        sets = sets._replace(unseen=_where(kept, alike), holdout=_where(kept, ~alike))
    if test is not None:
        kept = _beside(train, test, mean, std, num_classes, "test")
        alike = same_kind_mask(request, np.asarray(kept.y))
        sets = sets._replace(test_forget=_where(kept, alike), test_retain=_where(kept, ~alike))
    return sets


def _beside(
    train: Examples,
    arrays: tuple[ArrayLike, ArrayLike],
    mean: ArrayLike | None,
    std: ArrayLike | None,
    num_classes: int,
    name: str,
) -> Examples:
    """Another split, of the same form as the training split."""
    if not isinstance(arrays, tuple) or len(arrays) != 2:
        raise DataError(f"{name}: expected (x, y), got {type(arrays).__name__}")
    kept = as_examples(*arrays, mean, std, name=name)
    _check_labels(name, kept.y, num_classes)
    if kept.x.shape[1:] != train.x.shape[1:]:
        raise DataError(
            f"{name}: expected examples {list(train.x.shape[1:])} as in training, "
            f"got {list(kept.x.shape[1:])}"
        )
    return kept


def _check_labels(name: str, labels: ArrayLike, num_classes: int) -> None:
    found = np.asarray(labels)
    if found.size and not 0 <= found.min() <= found.max() < num_classes:
        raise DataError(
            f"{name}: expected labels from 0 to {num_classes - 1}, "
            f"got {found.min()} to {found.max()}"
        )


def _where(examples: Examples, mask: np.ndarray) -> Subset | None:
    return subset(examples, np.flatnonzero(mask)) if mask.any() else None


def stratified_mask(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Marks ``count`` examples at random, each class by its share (rounded down or up).

    Raises:
      DataError: not between 0 and the number of examples.
    """
    if not 0 <= count < len(labels):
        raise DataError(
            f"data.unseen: expected fewer than the {len(labels)} test images, got {count}"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    # sorted by class, then every (N / count)-th: shares differ by less than one example
    order = order[np.argsort(labels[order], kind="stable")]
    mask = np.zeros(len(labels), bool)
    mask[order[(np.arange(count) * len(labels)) // max(count, 1)]] = True
    return mask


def alone(sets: Sets) -> Sets:
    """The same sets without the examples of others in their arrays: places are slots."""

    def one(part: Subset) -> Subset:
        x, y = (array[part.indices] for array in part.examples[:2])
        examples = part.examples._replace(x=x, y=y)
        return Subset(examples, jnp.arange(len(part.indices), dtype=jnp.int32), part.size)

    return Sets(*(part if part is None else one(part) for part in sets))


def request(sets: Sets, number: int) -> Sets:
    """The sets of one request of several that were stacked; of one alone they are its own."""
    return Sets(*(
        part if part is None or part.size.ndim == 0
        else part._replace(indices=part.indices[number], size=part.size[number])
        for part in sets
    ))  # fmt: skip


def stack_sets(many: Sequence[Sets]) -> Sets:
    """Sets of several requests on the same arrays, stacked for one mapped program.

    ``indices`` become ``[R, M]`` and ``size`` ``[R]``, padded to the largest; the
    examples stay shared, one copy.

    Raises:
      ValueError: the sets do not share their arrays, or a part is missing in one.
    """
    stacked = {}
    for name in Sets._fields:
        parts = [getattr(sets, name) for sets in many]
        if all(part is None for part in parts):
            continue
        if any(part is None for part in parts):
            raise ValueError(f"sets: expected {name} in all or in none, got it in some")
        if any(part.examples.x is not parts[0].examples.x for part in parts):
            raise ValueError(
                f"sets: expected {name} to share one device array in all requests, got copies; "
                "pass jax arrays to make_sets"
            )
        places = max(part.indices.shape[0] for part in parts)
        padded = [subset(p.examples, np.asarray(p.indices)[: int(p.size)], places) for p in parts]
        stacked[name] = Subset(
            parts[0].examples,
            jnp.stack([part.indices for part in padded]),
            jnp.stack([part.size for part in padded]),
        )
    return Sets(**stacked)


def divide(data: Dataset, held: np.ndarray, requests: Sequence[Request]) -> Sets:
    """The sets of one request, or those of several stacked; the images are shared.

    Args:
      held: ``bool [N]``, which images of the test split no training nor evaluation sees.

    Raises:
      RequestError: of several requests, one has no examples in a part where others have.
      DataError: see :func:`jaxunlearn.data.sets.make_sets`.
    """
    # once on the device, for all of them
    x, y = jnp.asarray(data.train_x), jnp.asarray(data.train_y)
    unseen, test = (
        (jnp.asarray(data.test_x[part]), jnp.asarray(data.test_y[part])) for part in (held, ~held)
    )
    many = [
        make_sets(
            x, y, one, unseen=unseen, test=test, mean=data.mean, std=data.std,
            num_classes=len(data.class_names),
        )
        for one in requests
    ]  # fmt: skip
    if len(many) == 1:
        return many[0]
    for name in Sets._fields:
        there = [getattr(sets, name) is not None for sets in many]
        if any(there) and not all(there):
            lacking = describe(requests[there.index(False)])
            raise RequestError(
                f"request.each: expected {name} examples of every class or of none, got none "
                f"for {lacking!r}; see data.unseen"
            )
    return stack_sets(many)


def positions(sets: Sets, held: np.ndarray) -> dict[str, np.ndarray]:
    """Where in the official splits the examples of each set of one request lie."""
    unseen, test = np.flatnonzero(held), np.flatnonzero(~held)
    carved = {"unseen": unseen, "holdout": unseen, "test_forget": test, "test_retain": test}
    found = {}
    for name, part in sets._asdict().items():
        if part is not None:
            own = np.asarray(part.indices)[: num_examples(part)]
            found[name] = carved[name][own] if name in carved else own
    return found
