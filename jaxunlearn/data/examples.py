"""Labelled examples as they are stored, and the readers that make inputs of them.

A reader turns the stored examples of a batch into what the network takes: ``reader(x)``, from
one pytree of arrays with the leading axis ``B`` to another. It is a
:class:`jax.tree_util.Partial`, so that equal functions with other arrays share one program:
``Partial(normalise, mean=mean, std=std)``.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from jaxunlearn.core.errors import DataError, brief
from jaxunlearn.core.trees import named_leaves, to_device
from jaxunlearn.core.types import Examples, Inputs, Subset
from jaxunlearn.data.streams import Stream, stored_shapes

LABELS = ("class", "any")
"""Kinds of labels: one class of each example, or any array with an entry for each."""


def as_examples(
    x: Inputs,
    y: ArrayLike,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    *,
    reader: Callable[[Inputs], Inputs] | None = None,
    labels: str = "class",
    name: str = "x, y",
) -> Examples:
    """Checks labelled inputs and puts them on the device.

    Args:
      x: an array ``[N, ...]`` (a list is read as one), or a pytree of arrays with the leading
        axis ``N``, ``{"tokens": ..., "mask": ...}``. Floats are kept as float32, all else as
        it is; integers of 64 bits become int32. Or a stream, see :func:`jaxunlearn.data.stream`,
        whose examples are not put on the device.
      y: integers ``[N]``; with ``labels="any"`` numbers ``[N, ...]``.
      mean, std: of an ``x`` that is one array, in its units; broadcast against one example,
        whose shape they leave as it is: the network gets ``(x - mean) / std``. Where only one
        is given, the other is 0, or 255 for ``uint8`` and 1 else. They should not be taken over
        examples that are to be forgotten: a model retrained on the others would know of them.
      reader: instead of them, a function of a batch of ``x`` that returns what the network
        takes, with the same leading axis. Equal functions share compiled programs: give one
        object, not a new ``lambda`` each time, and what it reads as arguments of a
        :class:`jax.tree_util.Partial`. By default bytes (``uint8``) are divided by 255 and
        all else is unchanged.
      labels: ``"class"``, or ``"any"`` for kinds of models whose labels are something else,
        such as a sequence.
      name: what errors call the arrays.

    Raises:
      DataError: lengths differ, an array holds no numbers or such as are not finite, the
        labels are not integers of 32 bits, ``std`` is not positive or ``mean`` not finite, or
        one of them has a shape that an example has not, the reader drops the leading axis.
      ValueError: ``mean`` or ``std`` beside ``reader``, unknown ``labels``.
    """
    if reader is not None and not (mean is None and std is None):
        raise ValueError("reader: expected either a reader or mean and std, got both")
    if labels not in LABELS:
        raise ValueError(f"labels: expected one of {LABELS}, got {labels!r}")
    # device arrays pass through untouched, so that sets of many requests share them
    x, classes = jax.tree.map(_array, np.asarray(x) if isinstance(x, list) else x), _array(y)
    found = f"{classes.dtype} {list(classes.shape)}"
    integers = np.issubdtype(classes.dtype, np.integer)
    if labels == "class" and not (integers and classes.ndim == 1):
        raise DataError(
            f"{name}: expected integer labels [N], got {found}; "
            "labels='any' takes those of another kind"
        )
    if classes.ndim == 0:
        raise DataError(f"{name}: expected labels [N, ...], got {found}")
    count, leaves = len(classes), stored_shapes(x)
    if not leaves:
        raise DataError(f"{name}: expected inputs, got a tree without arrays")
    for path, leaf in leaves.items():
        # of one array alone, numbers [N] are as likely the labels, given in the wrong place
        if leaf.ndim < (1 if path else 2) or len(leaf) != count:
            raise DataError(
                f"{name}: expected {count} examples for {count} labels, got an array "
                f"{list(leaf.shape)}{path and f' at {path}'}"
            )
    x = jax.tree.map(lambda leaf: stored(leaf, name), x)
    if integers and classes.dtype.itemsize <= 4:
        largest = int(np.max(np.asarray(classes))) if count else 0
        if largest >= 2**31:
            raise DataError(f"{name}: expected labels of 32 bits, got {largest}")
        classes = classes.astype(np.int32)
    classes = stored(classes, name)
    examples = Examples(x, classes, _reader_of(stored_shapes(x), mean, std, reader, name))
    if reader is not None:
        inputs_like(examples)
    return examples


def _array(value: ArrayLike) -> Any:
    return value if isinstance(value, jax.Array) else np.asarray(value)


def stored(array: Any, name: str) -> jax.Array:
    """Checks the numbers of an array and puts it on the device, in at most 32 bits."""
    if jnp.issubdtype(array.dtype, jnp.floating):
        with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite
            finite = np.isfinite(np.asarray(array, np.float32)).all()
        if not finite:
            raise DataError(
                f"{name}: expected finite numbers, got NaN, infinity or more than float32 holds"
            )
        return to_device(array, jnp.float32)
    if array.dtype.kind not in "iub":
        raise DataError(f"{name}: expected numbers, got an array of {array.dtype}")
    # jax has no 64-bit integers by default
    if array.dtype.itemsize < 8:
        return to_device(array)
    if array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise DataError(f"{name}: expected integers of 32 bits, got {array.min()} to {array.max()}")
    return to_device(array, jnp.int32)


def _reader_of(
    leaves: dict[str, Any],
    mean: ArrayLike | None,
    std: ArrayLike | None,
    reader: Callable[[Inputs], Inputs] | None,
    name: str,
) -> Partial:
    if reader is not None:
        return reader if isinstance(reader, Partial) else Partial(reader)
    x = leaves.get("")  # of examples that are one array
    bytes_alone = x is not None and x.dtype == jnp.uint8
    if mean is None and std is None and not bytes_alone:
        return Partial(scale_bytes, largest=jnp.float32(255))
    if x is None:
        raise DataError(
            f"{name}: expected one array to normalise by mean and std, got a tree of "
            f"{', '.join(leaves)}; a reader can do that"
        )
    shape = x.shape[1:]
    center = _statistic("mean", 0.0 if mean is None else mean, shape)
    spread = _statistic("std", (255.0 if bytes_alone else 1.0) if std is None else std, shape)
    return Partial(normalise, mean=center, std=spread)


def _statistic(name: str, value: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Returns a statistic of the rank of an example; :class:`DataError` says what is wrong."""
    try:
        found = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise DataError(f"{name}: expected numbers, got {brief(value)}") from None
    # zeros, and what float32 takes for them, would make infinities of the examples
    wrong = ~np.isfinite(found)
    if name == "std":
        wrong |= ~(found >= np.finfo(np.float32).tiny)
    if wrong.any():
        wanted = "positive numbers" if name == "std" else "finite numbers"
        raise DataError(
            f"{name}: expected {wanted}, got {found[wrong].flat[0]:g} in {wrong.sum()} of "
            f"{wrong.size} places"
        )
    try:
        fits = np.broadcast_shapes(found.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise DataError(
            f"{name}: expected a shape that fits one example, {list(shape)}, "
            f"got {list(found.shape)}"
        )
    return to_device(found.reshape((1,) * (len(shape) - found.ndim) + found.shape))


def unchanged(x: Inputs) -> Inputs:
    """Returns the inputs as stored, floats as float32: a reader."""

    def one(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, x)


def scale_bytes(x: Inputs, largest: jax.Array) -> Inputs:
    """Divides leaves of uint8 by ``largest``, all else :func:`unchanged`: the default reader."""

    def one(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.float32) / largest if leaf.dtype == jnp.uint8 else unchanged(leaf)

    return jax.tree.map(one, x)


def normalise(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Returns ``(x - mean) / std`` in float32: a reader.

    Args:
      x: ``[B, ...]``, integers or floats.
      mean, std: of the rank of one example, and broadcast against it.
    """
    return (x.astype(jnp.float32) - mean[None]) / std[None]


def has_readers(examples: Examples) -> bool:
    """Tells whether statistics are stacked, ``[R, ...]``: those of several requests, in order."""
    reader = examples.reader
    if getattr(reader, "func", None) is not normalise:
        return False
    return bool(reader.keywords["mean"].ndim == examples.x.ndim)


def reader_of(examples: Examples, number: int) -> Partial:
    """Returns the reader of one request of several; the one that all share, where they do."""
    if not has_readers(examples):
        return examples.reader
    # of shapes instead of arrays no place can be taken
    return jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else leaf[number]
        ),
        examples.reader,
    )


def inputs_like(part: Subset | Examples, batch: int = 1) -> Any:
    """Returns shapes and dtypes of what the network gets, as ``jax.ShapeDtypeStruct``.

    Args:
      part: arrays, or their shapes and dtypes.
      batch: ``B``, the leading axis.

    Raises:
      DataError: the reader does not return arrays with the leading axis ``B``.
    """
    examples = part.examples if isinstance(part, Subset) else part
    stored = stored_like(examples.x, batch)
    reader = reader_of(examples, 0)
    found = jax.eval_shape(lambda reader, x: reader(x), reader, stored)
    shapes = {name: leaf.shape for name, leaf in named_leaves(found).items()}
    if not shapes or any(shape[:1] != (batch,) for shape in shapes.values()):
        raise DataError(
            f"reader: expected inputs with the leading axis of the batch, {batch}, got {shapes}"
        )
    return found


def stored_like(x: Inputs, *axes: int) -> Any:
    """Returns shapes and dtypes of stored examples behind some axes, of arrays or a stream."""
    if isinstance(x, Stream):
        return x.like(*axes)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape[1:]), leaf.dtype), x)


def array_shape(part: Subset | Examples, name: str = "sets") -> tuple[int, ...]:
    """Returns the shape of one input, ``(H, W, C)``, where the network takes one array.

    Args:
      name: what errors call the examples.

    Raises:
      DataError: it takes a tree of several.
    """
    like = inputs_like(part)
    if not isinstance(like, jax.ShapeDtypeStruct):
        raise DataError(
            f"{name}: expected inputs that are one array, got {', '.join(named_leaves(like))}"
        )
    return tuple(like.shape[1:])


def fetch(examples: Examples, positions: ArrayLike) -> Inputs:
    """Returns some examples as the network takes them, ``reader(x[positions])``.

    Raises:
      DataError: streamed examples that are no method's in a program, or too many at once.
    """
    if isinstance(examples.x, Stream):
        return examples.reader(take(examples.x, positions))
    return _read(examples.reader, examples.x, positions)


# outside of programs, one for both; within one as if it stood there
@functools.partial(jax.jit, inline=True)
def _read(reader: Partial, x: Inputs, positions: jax.Array) -> Inputs:
    return reader(take(x, positions))


@functools.partial(jax.jit, inline=True)
def _rows(x: Inputs, positions: jax.Array) -> Inputs:
    return jax.tree.map(lambda leaf: leaf[positions], x)


def take(x: Inputs, positions: ArrayLike) -> Inputs:
    """Returns some examples as they are stored; errors are those of :func:`fetch`."""
    if not isinstance(x, Stream):
        return _rows(x, positions)
    return x.read_on_device(positions)


def resident(part: Subset) -> Subset:
    """Reads a streamed subset whole and puts it on the device; a resident one is as it was.

    For methods and metrics that read the forget set at once, while the rest is streamed:
    ``sets._replace(forget=ju.data.resident(sets.forget))``. Batches stay the same.
    """
    examples = part.examples
    if not isinstance(examples.x, Stream):
        return part
    x = jax.tree.map(to_device, examples.x.read(part.indices))
    own = examples._replace(x=x, y=examples.y[part.indices])
    return part._replace(examples=own, indices=jnp.arange(len(part.indices), dtype=jnp.int32))
