"""Examples that do not fit: read when a batch asks for them, in the place of an array ``[N, ...]``.

A :class:`Stream` stands where a data set's ``x`` would: ``ju.make_sets(ju.data.stream(source), y,
request)``. Labels and positions lie in memory, records do not. For JAX it is a node without
arrays: programs take it, know the shapes of its examples, and are given the rows of their batch
beside it.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.extend.core import get_opaque_trace_state

from jaxunlearn.core.errors import DataError, brief
from jaxunlearn.core.trees import named_leaves, to_device
from jaxunlearn.data.stream_workers import (
    Form,
    Recipe,
    Workers,
    arrays_of,
    check_last,
    empty_rows,
    first_example,
    read_into,
    read_labels,
    row_bytes,
    told_forms,
)


def stream(
    source: Any,
    *,
    decode: Callable[[Any], Any] | None = None,
    workers: int = 0,
    name: str = "source",
) -> "Stream":
    """Makes a random-access source stand for the ``x`` of a data set.

    Args:
      source: ``len(source)`` records, ``source[position]``: a list, a memory-mapped array, what
        ``tfds.data_source`` and grain's and array_record's data sources are. Records are arrays,
        mappings or tuples of arrays, all of one form; a tuple of two is ``(x, label)``, and so
        is a mapping with a ``"label"``.
      decode: ``record -> x`` or ``(x, label)``, run where records are read.
      workers: processes that read and decode; 0: a thread of this one. They start at the first
        batch and need ``pip install 'jaxunlearn[stream]'``.
      name: what errors call the source.

    Returns:
      The stream. Sets are made of it and labels as of an array; :attr:`Stream.labels` are those
      that its records hold.

    Raises:
      DataError: no records, or a first or last one that is missing or does not decode.
      ValueError: ``workers`` below 0.
      TypeError: a source without length and positions, or ``decode`` that cannot be called.
    """
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:
        raise ValueError(f"workers: expected a number of processes, 0 or more, got {workers!r}")
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise TypeError(
            f"source: expected one with len(source) and source[position], got {brief(source)}"
        )
    if decode is not None and not callable(decode):
        raise TypeError(f"decode: expected a function of a record, got {brief(decode)}")
    if len(source) < 1:
        raise DataError(f"{name}: expected records, got a source without any")
    return Stream(_Shared(Recipe(source, decode, name), workers))


class _Shared:
    """Source of one or several streams, with its workers, which start when they are needed."""

    def __init__(self, recipe: Recipe, workers: int) -> None:
        first = first_example(recipe)
        arrays, self.tree = arrays_of(first), jax.tree.structure(first)
        if not arrays or len(jax.tree.leaves(first)) != len(arrays):
            raise DataError(
                f"{recipe.name}: expected records of arrays, in mappings or tuples, got "
                f"{brief(first)}"
            )
        self.recipe = recipe._replace(
            forms=tuple(Form(array.shape, array.dtype) for array in arrays)
        )
        check_last(self.recipe)
        self.count, self._lock = workers, threading.Lock()
        self._workers: Workers | None = None

    def read(self, positions: np.ndarray) -> list[np.ndarray]:
        """Reads examples, arrays ``[M, ...]``; may be called by several threads."""
        with self._reading() as workers:
            if workers is not None:
                return workers.read(positions)
            forms, count = self.recipe.forms, len(positions)
            out = empty_rows(forms, count, np.empty(row_bytes(forms, count), np.uint8))
            read_into(self.recipe, positions, out)
            return out

    def labels(self) -> np.ndarray:
        every = np.arange(len(self.recipe.source))
        with self._reading() as workers:
            if workers is None:
                return read_labels(self.recipe, every)
            return workers.read_labels(every)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Workers | None]:
        with self._lock:
            if self.count and self._workers is None:
                self._workers = Workers(self.recipe, self.count)
                weakref.finalize(self, self._workers.close)
            try:
                yield self._workers
            except BaseException:
                self._workers = None  # they ended with the error; others start at the next batch
                raise


AT_ONCE = 2**30
"""Bytes of a streamed set that a method may read at once."""


class _Outline:
    """Form of a stream without its records: all that compiled programs are given of it."""

    def __init__(self, recipe: Recipe, tree: Any) -> None:
        self.recipe, self.tree = recipe._replace(source=None, decode=None), tree


class Stream:
    """Examples of a source that are read when they are asked for; :func:`stream` makes one.

    ``x[rows]`` is the stream of some of them. Programs know the form of its examples alone, so
    that what was compiled for one stream serves all of that form; they cannot return one.

    Attributes:
      withheld: the name of the set that a method was given, ``"sets.forget"``, under which its
        programs read, and not much at once; empty where examples may be read freely.
    """

    def __init__(
        self, shared: _Shared | _Outline, places: np.ndarray | None = None, withheld: str = ""
    ) -> None:
        self._shared, self._places, self.withheld = shared, places, withheld

    def __len__(self) -> int:
        return len(self._read().recipe.source) if self._places is None else len(self._places)

    def _read(self) -> _Shared:
        """Returns what reads the records; an error in a program, whose streams have none."""
        if isinstance(self._shared, _Outline):
            raise self.refusal()
        return self._shared

    @property
    def form(self) -> tuple[Any, ...]:
        """Returns the tree, shapes and dtypes of an example: what programs depend on."""
        return self._shared.tree, self._shared.recipe.forms

    def __repr__(self) -> str:
        if isinstance(self._shared, _Outline):
            return f"Stream({self.described} of {self._shared.recipe.name})"
        return f"Stream({len(self):,} of {self._shared.recipe.name})"

    def __getitem__(self, rows: Any) -> "Stream":
        """Returns the stream of some rows: positions, a mask, or a slice."""
        every = np.arange(len(self)) if self._places is None else self._places
        return Stream(self._shared, every[rows], self.withheld)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise self.refusal()

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns ``(N, ...)`` of examples that are one array."""
        return (len(self), *self._one().shape)

    @property
    def ndim(self) -> int:
        """Returns the rank of :attr:`shape`."""
        return 1 + len(self._one().shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Returns the dtype of examples that are one array."""
        return self._one().dtype

    @property
    def is_array(self) -> bool:
        """Tells whether an example is one array, not a tree of several."""
        return bool(jax.tree_util.treedef_is_leaf(self._shared.tree))

    @property
    def nbytes(self) -> int:
        """Returns the bytes of all examples."""
        return len(self) * sum(form.nbytes for form in self._shared.recipe.forms)

    @property
    def described(self) -> str:
        """Returns dtype and shape of an example in words."""
        return told_forms(self._shared.recipe.forms)

    def _one(self) -> Form:
        if not self.is_array:
            raise AttributeError("a stream of trees has no shape or dtype")
        return self._shared.recipe.forms[0]

    def like(self, *axes: int) -> Any:
        """Returns shapes and dtypes of examples behind some axes, ``jax.ShapeDtypeStruct``."""
        forms = self._shared.recipe.forms
        leaves = [jax.ShapeDtypeStruct((*axes, *form.shape), form.dtype) for form in forms]
        return jax.tree.unflatten(self._shared.tree, leaves)

    @property
    def labels(self) -> np.ndarray:
        """Reads the labels that the records hold, ``[N]``: one pass over all records.

        Raises:
          DataError: a record without a label, or one that cannot be read.
        """
        found = self._read().labels()
        return found if self._places is None else found[self._places]

    def read(self, rows: Any) -> Any:
        """Reads examples: a tree of NumPy arrays ``[*rows.shape, ...]``.

        Args:
          rows: positions in this stream, integers of any shape.

        Raises:
          DataError: a position below 0 or beyond the end; a record that is missing or does not
            decode; a worker that died or hangs.
        """
        rows = np.asarray(rows)
        if wrong := rows[(rows < 0) | (rows >= len(self))].tolist():
            raise DataError(
                f"{self._shared.recipe.name}: expected positions 0 to {len(self) - 1:,} of the "
                f"stream, got {wrong[0]:,}"
            )
        places = rows.ravel() if self._places is None else self._places[rows.ravel()]
        found = self._read().read(places)
        shaped = [array.reshape(*rows.shape, *array.shape[1:]) for array in found]
        return jax.tree.unflatten(self._shared.tree, shaped)

    def withhold(self, name: str, rows: Any = None) -> "Stream":
        """Returns the stream of some rows, or of all, under the name of a method's set."""
        known = not isinstance(rows, jax.core.Tracer | None)
        if isinstance(self._shared, _Outline) or not known:
            return Stream(self._shared, self._places, name)  # of the same form
        return Stream(self._shared, self[np.asarray(rows)]._places, name)

    def read_on_device(self, rows: Any) -> Any:
        """Reads examples as arrays on the device, ``[*rows.shape, ...]``; within programs, too.

        There the records are asked for while it runs, of the stream that :func:`readable` has
        opened under this one's name: one program serves all of a form.

        Raises:
          DataError: within a program a stream of no method's set; more than a method may read
            at once; and see :meth:`read`.
        """
        size = int(np.prod(np.shape(rows), dtype=np.int64))
        within = isinstance(rows, jax.core.Tracer) or isinstance(self._shared, _Outline)
        if within and not self.withheld:
            raise self.refusal()
        if self.withheld and size * sum(f.nbytes for f in self._shared.recipe.forms) > AT_ONCE:
            raise self.refusal()
        if not within:
            return jax.tree.map(to_device, self.read(rows))
        return jax.pure_callback(
            partial(_read_opened, self.withheld, self.like()), self.like(*np.shape(rows)), rows,
            vmap_method="expand_dims",
        )  # fmt: skip

    def refusal(self) -> DataError:
        """Returns the error of a reader of the whole."""
        what = self.withheld or self._shared.recipe.name
        part = self.withheld or "part"
        return DataError(
            f"{what}: expected resident examples, as they are read whole here, got a streamed "
            f"set; ju.data.resident({part}) reads a small one into memory"
        )


_opened: Mapping[str, Stream] = {}
_failed: list[BaseException] = []
_turn = threading.RLock()


@contextlib.contextmanager
def readable(streams: Mapping[str, Stream]) -> Iterator[None]:
    """Lets programs that end within read streams, by name; one thread at a time.

    Raises:
      DataError: something is wrong with a record; what programs made after that is void.
    """
    global _opened
    with _turn:
        before, _opened = _opened, streams
        try:
            yield
        finally:
            _opened = before
            if _failed:
                raise _failed.pop() from None


def _read_opened(name: str, like: Any, rows: Any) -> Any:
    """Reads examples for a program, which goes on with zeros when something is wrong.

    It would tell of an error in many lines, and only whoever waits for it.
    """
    if name not in _opened:
        raise DataError(
            f"{name}: expected streamed examples to be read before the first step, got a program "
            "that reads them later"
        )
    if not _failed:
        try:
            return _opened[name].read(rows)
        except Exception as error:
            _failed.append(error)
    shape = np.shape(rows)
    return jax.tree.map(lambda leaf: np.zeros((*shape, *leaf.shape), leaf.dtype), like)


class _Node:
    """Part of a tree's structure that stands for a stream, equal to others of its form.

    Compiled programs are kept with the structures of what they were first given: so it must
    not keep the stream, with its workers, alive.
    """

    def __init__(self, outline: Stream, original: "weakref.ref[Stream] | None") -> None:
        self.outline, self.original = outline, original

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Node) and self._told() == other._told()

    def __hash__(self) -> int:
        return hash(self._told())

    def _told(self) -> tuple[Any, ...]:
        """Returns what a program depends on: with the name, under which it reads."""
        return self.outline.withheld, *self.outline.form


with jax.core.eval_context():
    _OUTSIDE = get_opaque_trace_state(convention="flax")


def _in_program() -> bool:
    """Tells whether JAX is tracing a program, in this thread."""
    return bool(get_opaque_trace_state(convention="flax") != _OUTSIDE)


def _flatten(x: Stream) -> tuple[tuple[()], _Node]:
    known = x._shared
    if isinstance(known, _Outline):
        return (), _Node(x, None)
    outline = Stream(_Outline(known.recipe, known.tree), withheld=x.withheld)
    return (), _Node(outline, None if _in_program() else weakref.ref(x))


def _unflatten(node: _Node, _: Any) -> Stream:
    if _in_program():
        return node.outline
    if node.original is None:
        if node.outline.withheld:  # a method that keeps a set
            raise node.outline.refusal()
        name = node.outline._shared.recipe.name
        raise DataError(
            f"{name}: expected a program that returns arrays, got one that returns a streamed "
            "set, whose records it does not know; take the set that it was given"
        )
    return node.original() or node.outline


jax.tree_util.register_pytree_node(Stream, _flatten, _unflatten)


def stored_shapes(x: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes ``[N, ...]`` and dtypes of stored examples by path, of arrays or a stream."""
    tree = x.like(len(x)) if isinstance(x, Stream) else x
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for path, leaf in named_leaves(tree).items()
    }
