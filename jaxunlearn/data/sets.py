"""Sets that methods and metrics read, made of arrays and a request to forget.

Also a data set divided by the requests of a run, and the places of its parts in the official
splits.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from jaxunlearn.config import Request
from jaxunlearn.core.errors import DataError, RequestError, expect
from jaxunlearn.core.trees import stack, to_device
from jaxunlearn.core.types import Examples, Inputs, Sets, Subset
from jaxunlearn.data.dataset import Dataset, part_statistics
from jaxunlearn.data.examples import as_examples, normalise, reader_of, stored
from jaxunlearn.data.requests import describe, forget_mask, resolve, same_kind_mask
from jaxunlearn.data.streams import Stream, stored_shapes


def subset(examples: Examples, indices: ArrayLike, capacity: int | None = None) -> Subset:
    """Returns the examples at ``indices``, padded to ``capacity`` places (default: none spare)."""
    chosen = np.asarray(indices, np.int32)
    places = max(len(chosen), 1) if capacity is None else capacity
    if len(chosen) > places:
        raise ValueError(f"capacity: expected at least {len(chosen)}, got {capacity}")
    padded = np.resize(chosen, places) if len(chosen) else np.zeros(places, np.int32)
    return Subset(examples, to_device(padded), to_device(len(chosen), np.int32))


def whole(examples: Examples) -> Subset:
    """Returns all examples as one subset."""
    return subset(examples, np.arange(len(examples.y)))


def random_subsets(part: Subset, count: int, share: float = 0.5, seed: int = 0) -> Subset:
    """Draws subsets at random, without replacement, stacked for ``train_many``.

    Half of the examples for each of many models: every example is then known to about half of the
    models, which attacks on each example compare.

    Args:
      part: of which they are drawn.
      count: ``R`` subsets.
      share: of the examples in each, the number rounded down.

    Returns:
      A subset with ``indices [R, M]`` and ``size [R]``; equal seeds draw equal subsets.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: expected a number above 0, below 1, got {share}")
    own = np.asarray(part.indices)[: num_examples(part)]
    size = max(1, int(share * len(own)))
    rng = np.random.default_rng(seed)
    rows = np.stack([np.sort(rng.permutation(own)[:size]) for _ in range(count)])
    return Subset(part.examples, to_device(rows), to_device(np.full(count, size, np.int32)))


def num_examples(part: Subset | None) -> int:
    """Counts the examples of a subset, on the host; of stacked subsets the smallest number."""
    return 0 if part is None else int(np.min(np.asarray(part.size)))


def labels_of(part: Subset) -> list[int]:
    """Lists the classes that a subset has examples of."""
    own = np.asarray(part.examples.y)[np.asarray(part.indices)[: num_examples(part)]]
    return [int(label) for label in np.unique(own)]


def forgets_class(sets: Sets) -> bool:
    """Tells whether whole classes are forgotten, none of which is retained."""
    if sets.forget is None or sets.retain is None:
        return False
    y = sets.forget.examples.y
    if y.ndim != 1 or not jnp.issubdtype(y.dtype, jnp.integer):  # numbers, no classes
        return False
    return not set(labels_of(sets.forget)) & set(labels_of(sets.retain))


def make_sets(
    x: Inputs,
    y: ArrayLike,
    request: Request,
    *,
    unseen: tuple[Inputs, ArrayLike] | None = None,
    test: tuple[Inputs, ArrayLike] | None = None,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    reader: Callable[[Inputs], Inputs] | None = None,
    labels: str = "class",
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
) -> Sets:
    """Divides training, unseen and test examples by a request.

    Args:
      x, y: the training split: an array ``[N, ...]`` or a pytree of such, and integer labels
        ``[N]``.
      request: what to forget.
      unseen: examples and labels that no training sees; become ``unseen`` (the
        kind to be forgotten) and ``holdout`` (everything else).
      test: examples and labels for evaluation; become ``test_forget`` and
        ``test_retain``.
      mean, std, reader: normalisation, or any function that makes inputs of the network of
        the examples of a batch, see :func:`as_examples`.
      labels: ``"class"``, or ``"any"`` for labels ``[N, ...]`` that are not classes, such as
        sequences: then nothing can be requested by class.
      num_classes: ``K``; by default the number of names, or the largest training label plus one.
      class_names: of the labels ``0 .. K - 1``: then ``forget_class("cat")`` is understood.

    Returns:
      The sets; a part without examples is ``None``.

    Raises:
      DataError, RequestError, ValueError: see :func:`as_examples`, ``forget_mask``.
    """
    expect("request", request, Request, "; forget_class(3) makes one")
    read = functools.partial(as_examples, mean=mean, std=std, reader=reader, labels=labels)
    train = read(x, y, name="x, y")
    own = np.asarray(train.y)
    if not own.size:
        raise DataError(f"x, y: expected examples, got arrays {list(own.shape)} without any")
    if labels != "class":
        num_classes = None
    elif num_classes is None:
        num_classes = len(class_names) or int(own.max()) + 1
    _check_labels("x, y", own, num_classes)
    request = resolve(request, class_names, len(own), x)
    forget = forget_mask(request, own, num_classes)
    sets = Sets(forget=_where(train, forget), retain=_where(train, ~forget))
    for name, arrays, (alike, other) in (
        ("unseen", unseen, ("unseen", "holdout")),
        ("test", test, ("test_forget", "test_retain")),
    ):
        if arrays is not None:
            kept = _beside(train, arrays, read, num_classes, name)
            kind = same_kind_mask(request, np.asarray(kept.y), own[forget], own[~forget])
            sets = sets._replace(**{alike: _where(kept, kind), other: _where(kept, ~kind)})
    return sets


def _beside(
    train: Examples,
    arrays: tuple[Inputs, ArrayLike],
    read: Callable[..., Examples],
    num_classes: int | None,
    name: str,
) -> Examples:
    """Checks another split, which must have the form of the training split."""
    if not isinstance(arrays, tuple) or len(arrays) != 2:
        raise DataError(f"{name}: expected (x, y), got {type(arrays).__name__}")
    kept = read(*arrays, name=name)
    _check_labels(name, kept.y, num_classes)
    wanted, found = _form(train), _form(kept)
    if wanted != found:
        raise DataError(f"{name}: expected examples {wanted} as in training, got {found}")
    return kept


def _form(examples: Examples) -> str:
    """Describes the shapes of one example's input and, where it is not a class, of its label."""
    shapes = {path: list(leaf.shape[1:]) for path, leaf in stored_shapes(examples.x).items()}
    text = ", ".join(f"{path} {shape}" if path else f"{shape}" for path, shape in shapes.items())
    return f"{text} with labels {list(examples.y.shape[1:])}" if examples.y.ndim > 1 else text


def _check_labels(name: str, labels: ArrayLike, num_classes: int | None) -> None:
    found = np.asarray(labels)
    if num_classes is not None and found.size and not 0 <= found.min() <= found.max() < num_classes:
        raise DataError(
            f"{name}: expected labels from 0 to {num_classes - 1}, "
            f"got {found.min()} to {found.max()}"
        )


def _where(examples: Examples, mask: np.ndarray) -> Subset | None:
    return subset(examples, np.flatnonzero(mask)) if mask.any() else None


def stratified_mask(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Marks ``count`` examples at random, each class by its share (rounded down or up).

    Labels that are no classes, ``[N, ...]``, have no shares.

    Raises:
      DataError: not between 0 and the number of examples.
    """
    if not 0 <= count < len(labels):
        raise DataError(
            f"data.unseen: expected fewer than the {len(labels)} test images, got {count}"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
        # sorted by class, then every (N / count)-th: shares differ by less than one example
        order = order[np.argsort(labels[order], kind="stable")]
    mask = np.zeros(len(labels), bool)
    mask[order[(np.arange(count) * len(labels)) // max(count, 1)]] = True
    return mask


def alone(sets: Sets) -> Sets:
    """Returns the sets without the examples of others in their arrays: places are slots.

    Streamed ones are read when they are asked for, and not many at once.
    """
    parts = {name: part for name, part in sets._asdict().items() if part is not None}
    streams = {name: p.examples.x for name, p in parts.items() if isinstance(p.examples.x, Stream)}
    asked = {
        name: ((None if name in streams else p.examples.x, p.examples.y), p.indices)
        for name, p in parts.items()
    }
    made = {}
    for name, ((x, y), places) in _rows_alone(asked).items():
        if name in streams:
            x = streams[name].withhold(f"sets.{name}", parts[name].indices)
        examples = parts[name].examples._replace(x=x, y=y)
        made[name] = Subset(examples, places, parts[name].size)
    return Sets(**made)


def alone_like(sets: Sets) -> Sets:
    """Returns shapes and dtypes of the sets that :func:`alone` makes; streams stay streams."""
    parts = {name: part for name, part in sets._asdict().items() if part is not None}
    streams = {name: p.examples.x for name, p in parts.items() if isinstance(p.examples.x, Stream)}

    def with_x(name: str, part: Subset, x: Any) -> Subset:
        return part._replace(examples=part.examples._replace(x=x)) if name in streams else part

    bare = Sets(**{name: with_x(name, part, ()) for name, part in parts.items()})
    found = jax.eval_shape(alone, bare)
    own = {name: x.withhold(f"sets.{name}") for name, x in streams.items()}
    return found._replace(**{n: with_x(n, getattr(found, n), x) for n, x in own.items()})


@functools.partial(jax.jit, inline=True)
def _rows_alone(asked: dict[str, tuple[Any, jax.Array]]) -> dict[str, tuple[Any, jax.Array]]:
    """Takes rows of trees at the places beside them, all in one program; numbers them anew."""

    def one(tree: Any, at: jax.Array) -> tuple[Any, jax.Array]:
        return jax.tree.map(lambda leaf: leaf[at], tree), jnp.arange(len(at), dtype=jnp.int32)

    return {name: one(*given) for name, given in asked.items()}


def request(sets: Sets, number: int) -> Sets:
    """Returns the sets of one request of several that were stacked; of one alone all of them."""

    def one(part: Subset) -> Subset:
        examples = part.examples._replace(reader=reader_of(part.examples, number))
        return Subset(examples, part.indices[number], part.size[number])

    return Sets(*(part if part is None or part.size.ndim == 0 else one(part) for part in sets))


def stack_sets(many: Sequence[Sets]) -> Sets:
    """Stacks the sets of several requests on the same arrays for one mapped program.

    ``indices`` become ``[R, M]`` and ``size`` ``[R]``, padded to the largest; the
    examples stay shared, one copy. Where they are normalised by different statistics, these
    become ``[R, ...]``.

    Raises:
      ValueError: the sets do not share their arrays, or other readers than those that normalise,
        or a part is missing in one.
    """
    stacked = {}
    for name in Sets._fields:
        parts = [getattr(sets, name) for sets in many]
        if all(part is None for part in parts):
            continue
        if any(part is None for part in parts):
            raise ValueError(f"sets: expected {name} in all or in none, got it in some")
        shared = jax.tree.leaves(parts[0].examples.x)
        streams = [part.examples.x for part in parts if isinstance(part.examples.x, Stream)]
        if any(one is not parts[0].examples.x for one in streams) or any(
            own is not one
            for part in parts
            for own, one in zip(jax.tree.leaves(part.examples.x), shared, strict=True)
        ):
            raise ValueError(
                f"sets: expected {name} to share one device array in all requests, got copies; "
                "pass jax arrays to make_sets"
            )
        places = max(part.indices.shape[0] for part in parts)
        padded = [subset(p.examples, np.asarray(p.indices)[: int(p.size)], places) for p in parts]
        reader = _stacked_reader(name, [part.examples.reader for part in parts])
        stacked[name] = Subset(
            parts[0].examples._replace(reader=reader), *stack([part[1:] for part in padded])
        )
    return Sets(**stacked)


def _stacked_reader(name: str, readers: Sequence[Any]) -> Any:
    leaves, trees = zip(*(jax.tree.flatten(reader) for reader in readers), strict=True)
    if all(tree == trees[0] for tree in trees):
        if all(np.array_equal(a, b) for own in leaves for a, b in zip(own, leaves[0], strict=True)):
            return readers[0]
        if readers[0].func is normalise:
            return stack(readers)
    raise ValueError(f"sets: expected {name} to have one reader in all requests, got several")


def normalise_by_retained(sets: Sets) -> Sets:
    """Returns the same sets, normalised by mean and deviation of the retained examples alone.

    Whatever is trained on what is retained then knows nothing of the other examples: statistics
    of the whole training split tell of these, too. Of stacked sets, each request has its own.
    Sets that are not normalised by ``mean`` and ``std`` are returned as they are.

    Raises:
      DataError: streamed examples, all of which would have to be read.
    """
    retain = sets.retain
    if retain is None or retain.examples.reader.func is not normalise:
        return sets
    if isinstance(retain.examples.x, Stream):
        raise retain.examples.x.withhold("sets.retain").refusal()
    x, several = np.asarray(retain.examples.x), retain.size.ndim > 0
    pairs = zip(np.atleast_2d(retain.indices), np.atleast_1d(retain.size), strict=True)
    found = part_statistics(x, [rows[:size] for rows, size in pairs])
    mean, std = (np.stack(side) if several else side[0] for side in zip(*found, strict=True))
    reader = Partial(normalise, mean=to_device(mean), std=to_device(std))
    return Sets(*(
        part and part._replace(examples=part.examples._replace(reader=reader)) for part in sets
    ))  # fmt: skip


def divide(data: Dataset, held: np.ndarray, requests: Sequence[Request]) -> Sets:
    """Makes the sets of one request, or those of several, stacked; the examples are shared.

    Args:
      held: ``bool [N]``, which images of the test split no training nor evaluation sees.

    Raises:
      RequestError: of several requests, one has no examples in a part where others have.
      DataError: see :func:`jaxunlearn.data.sets.make_sets`.
    """
    many = divide_each(data, held, requests)
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


def divide_each(data: Dataset, held: np.ndarray, requests: Sequence[Request]) -> list[Sets]:
    """Makes the sets of each request by itself, on the same arrays; see :func:`divide`."""

    def on_device(name: str, rows: Any) -> tuple[Inputs, jax.Array]:
        x, y = getattr(data, f"{name}_x"), getattr(data, f"{name}_y")
        if isinstance(x, Stream):
            return x[rows], stored(y[rows], name)
        return jax.tree.map(lambda leaf: stored(leaf[rows], name), (x, y))

    # once on the device, for all of them
    (x, y), unseen = on_device("train", ...), on_device("test", held)
    test = on_device("test", ~held)
    return [
        make_sets(
            x, y, one, unseen=unseen, test=test, mean=data.mean, std=data.std, reader=data.reader,
            labels=data.labels, num_classes=len(data.class_names),
        )
        for one in requests
    ]  # fmt: skip


def positions(sets: Sets, held: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the positions in the official splits of the examples of each set of one request."""
    unseen, test = np.flatnonzero(held), np.flatnonzero(~held)
    carved = {"unseen": unseen, "holdout": unseen, "test_forget": test, "test_retain": test}
    found = {}
    for name, part in sets._asdict().items():
        if part is not None:
            own = np.asarray(part.indices)[: num_examples(part)]
            found[name] = carved[name][own] if name in carved else own
    return found
