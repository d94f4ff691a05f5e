"""Processes that read and decode the records of a stream; nothing here imports JAX.

A worker is a fresh interpreter, not a fork (JAX has threads) and not a spawned one (which would
run the caller's script again): functions typed at a prompt serve, and no script needs a guard.
Positions go to it, examples come back a few at a time, straight into the batch that is being
put together, so that a worker never holds more than a few of them.
"""

import contextlib
import io
import mmap
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.core.errors import DataError, brief, sentence

BLOCK = 8
"""Examples that a worker sends together."""

LIMIT = 600.0
"""Seconds that a worker may take to start, or to read one block."""
MOST = 2**28
"""Bytes of a source and decode that are sent to each worker; larger ones belong into files."""

_SERVE = "from jaxunlearn.data.stream_workers import serve; serve({}, {})"


class Form(NamedTuple):
    """Shape and dtype of one array of an example."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Recipe(NamedTuple):
    """Way from a position to an example.

    Attributes:
      source: ``source[position] -> record``, perhaps ``__getitems__`` of several.
      decode: ``record -> x`` or ``(x, label)``; ``None``: records are that already.
      name: what errors call the source.
      forms: of the arrays of an ``x``, in the order of :func:`arrays_of`.
    """

    source: Any
    decode: Callable[[Any], Any] | None
    name: str
    forms: tuple[Form, ...] = ()


def pair_of(record: Any, decode: Callable[[Any], Any] | None) -> tuple[Any, Any]:
    """Returns ``(x, label)`` of a record; the label is ``None`` where it has none."""
    made = record if decode is None else decode(record)
    if isinstance(made, tuple) and len(made) == 2:
        return made
    if isinstance(made, Mapping) and "label" in made:
        rest = {name: value for name, value in made.items() if name != "label"}
        # the image of {"image": ..., "label": ...} alone
        return (next(iter(rest.values())) if len(rest) == 1 else rest), made["label"]
    return made, None


def arrays_of(x: Any) -> list[np.ndarray]:
    """Lists the arrays of an example, in JAX's order, in at most 32 bits as sets hold them."""
    if isinstance(x, Mapping):
        return [array for name in sorted(x) for array in arrays_of(x[name])]
    if isinstance(x, tuple | list):
        return [array for part in x for array in arrays_of(part)]
    array = np.asarray(x)
    if array.dtype.kind == "f":
        return [array.astype(np.float32, copy=False)]
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        small = array.astype(np.int32)
        if not np.array_equal(small, array):
            raise ValueError("integers beyond 32 bits")
        return [small]
    if array.dtype.kind not in "iub":
        raise TypeError(f"an array of {array.dtype}")
    return [array]


def first_example(recipe: Recipe) -> Any:
    """Returns the ``x`` of the first record, whose form is that of all."""
    ((_, record),) = _records(recipe, np.zeros(1, np.int64))
    with _explained(recipe, 0):
        x = pair_of(record, recipe.decode)[0]
        arrays_of(x)
    return x


def read_into(recipe: Recipe, positions: np.ndarray, out: Sequence[np.ndarray]) -> None:
    """Reads examples into arrays ``[M, ...]``, one for each form.

    Raises:
      DataError: there is no such record, it does not decode, or its form is another.
    """
    for place, (position, record) in enumerate(_records(recipe, positions)):
        with _explained(recipe, position):
            found = arrays_of(pair_of(record, recipe.decode)[0])
            if [(array.shape, array.dtype) for array in found] != [*recipe.forms]:
                raise DataError(
                    f"{recipe.name}: expected examples of one form, {told_forms(recipe.forms)}, "
                    f"got {told_forms(found)} at position {position}; data.image_size= (or decode) "
                    "makes images alike"
                )
            for array, kept in zip(found, out, strict=True):
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    raise ValueError("NaN, infinity or more than float32 holds")
                kept[place] = array


def read_labels(recipe: Recipe, positions: np.ndarray) -> np.ndarray:
    """Reads the labels that records hold, ``[M]``; :class:`DataError` where one has none."""
    labels = []
    for position, record in _records(recipe, positions):
        with _explained(recipe, position):
            label = pair_of(record, recipe.decode)[1]
        if label is None:
            raise DataError(
                f"{recipe.name}: expected records (x, label) or with a 'label', got one without "
                f"at position {position}; labels can be given beside the stream"
            )
        labels.append(label)
    return np.asarray(labels)


def told_forms(arrays: Sequence[Any]) -> str:
    """Describes arrays by dtype and shape."""
    return ", ".join(f"{array.dtype} {list(array.shape)}" for array in arrays) or "no arrays"


def _records(recipe: Recipe, positions: np.ndarray) -> Iterator[tuple[int, Any]]:
    """Yields positions with their records, read a few together where the source can."""
    several = getattr(recipe.source, "__getitems__", None)
    for start in range(0, len(positions), BLOCK):
        some = [int(position) for position in positions[start : start + BLOCK]]
        together: Any = None
        if several is not None:
            # which of them is damaged, reading them one by one tells
            with contextlib.suppress(Exception):
                together = several(some)
        for number, position in enumerate(some):
            if together is not None and len(together) == len(some):
                yield position, together[number]
            else:
                with _explained(recipe, position):
                    record = recipe.source[position]
                yield position, record


@contextlib.contextmanager
def _explained(recipe: Recipe, position: int) -> Iterator[None]:
    """Turns whatever a source or a decoder raises into one line that names the record."""
    try:
        yield
    except DataError:
        raise
    except (IndexError, KeyError) as error:
        raise DataError(
            f"{recipe.name}: expected as many records as its length says, {len(recipe.source):,}, "
            f"got none at position {position} ({type(error).__name__}: {sentence(error)})"
        ) from error
    except Exception as error:
        raise DataError(
            f"{recipe.name}: expected a record that decodes at position {position}, got "
            f"{type(error).__name__}: {sentence(error)}"
        ) from error


class Workers:
    """Processes that serve one recipe, until they are closed or the program ends."""

    def __init__(self, recipe: Recipe, count: int) -> None:
        self.name = recipe.name
        given = _pickled(recipe)
        self._workers = [_Worker(number, given) for number in range(count)]

    def read_into(self, positions: np.ndarray, out: Sequence[np.ndarray]) -> None:
        """Reads examples into arrays ``[M, ...]``; see :func:`read_into`."""
        self._each("examples", positions, lambda worker, rows: worker.take([a[rows] for a in out]))

    def read_labels(self, positions: np.ndarray) -> np.ndarray:
        """Reads labels ``[M]``; see :func:`read_labels`."""
        found: dict[int, np.ndarray] = {}
        self._each(
            "labels", positions, lambda worker, rows: found.update({rows.start: worker.told()})
        )
        blocks = [found[start] for start in sorted(found)]
        return np.concatenate(blocks) if blocks else np.zeros(0, np.int32)

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.close()

    def _each(
        self, what: str, positions: np.ndarray, take: Callable[["_Worker", slice], None]
    ) -> None:
        """Divides positions among the workers and takes what they send, a block of each in turn."""
        shares = np.array_split(np.arange(len(positions)), len(self._workers))
        busy = [pair for pair in zip(self._workers, shares, strict=True) if len(pair[1])]
        try:
            for worker, share in busy:
                worker.ask((what, positions[share]))
            for start in range(0, max((len(share) for _, share in busy), default=0), BLOCK):
                for worker, share in busy:
                    if start < len(share):
                        first = share[0] + start
                        take(worker, slice(first, min(first + BLOCK, share[-1] + 1)))
        except BaseException:
            # what they would still send belongs to nobody
            self.close()
            raise


class _Worker:
    """One process, with the pipes to and from it."""

    def __init__(self, number: int, given: bytes) -> None:
        self.number = number
        theirs, ours = os.pipe()
        back, sent = os.pipe()
        # a worker computes nothing on devices, and must not take their memory
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE.format(theirs, sent)],
            stdin=subprocess.DEVNULL, pass_fds=(theirs, sent), env=env,
        )  # fmt: skip
        os.close(theirs)
        os.close(sent)
        self.to = Connection(ours, readable=False)
        self.back = Connection(back, writable=False)
        self._sent = given

    def ask(self, request: tuple[str, np.ndarray]) -> None:
        with self._alive():
            if self._sent:
                self.to.send_bytes(self._sent)
                self._sent = b""
            self.to.send(request)

    def take(self, out: Sequence[np.ndarray]) -> None:
        self.told()
        with self._alive():
            for array in out:
                if array.nbytes:
                    self._wait()
                    self.back.recv_bytes_into(array.data.cast("B"))

    def told(self) -> Any:
        """Returns what the worker says; raises the error that it reports."""
        with self._alive():
            self._wait()
            kind, told = self.back.recv()
        if kind == "error":
            raise DataError(told)
        return told

    def _wait(self) -> None:
        """Waits until the worker says something, which one that hangs never does."""
        if not self.back.poll(LIMIT):
            raise DataError(
                f"workers: expected worker {self.number} to read a block of {BLOCK} records within "
                f"{LIMIT:g} seconds, got no answer; the source or decode hangs"
            )

    def close(self) -> None:
        for end in (self.to, self.back):
            with contextlib.suppress(OSError):
                end.close()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:  # stopped, or in a decoder that takes no signals
            self.process.kill()
            self.process.wait()

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
            code = self.process.poll()
            raise DataError(
                f"workers: expected worker {self.number} to go on reading, it ended "
                f"{'by signal ' + str(-code) if code and code < 0 else f'with status {code}'}"
            ) from error


class _TooLarge(Exception):
    pass


class _Sent(io.BytesIO):
    """Bytes for a worker, which end before they fill memory."""

    def write(self, part: Any, /) -> int:
        if self.tell() + memoryview(part).nbytes > MOST:
            raise _TooLarge
        return super().write(part)


def _mapped(array: Any) -> Any:
    """Describes a memory-mapped array, or a view of one, by its file."""
    # a copy in memory has no map, and what was written to a private one is in no file
    if array.filename is None or array._mmap is None or array.mode == "c":
        return array.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    low, high = np.lib.array_utils.byte_bounds(array)
    start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    before = low - np.frombuffer(array._mmap, np.uint8).ctypes.data
    place = (os.fspath(array.filename), start + before, high - low)
    return _map, (place, array.dtype, array.shape, array.strides, array.ctypes.data - low)


def _map(
    place: tuple[str, int, int], dtype: Any, shape: tuple[int, ...], strides: Any, first: int
) -> np.ndarray:
    """Maps what :func:`_mapped` describes."""
    name, offset, length = place
    if not length or not np.prod(shape):
        return np.empty(shape, dtype)
    whole = np.memmap(name, np.uint8, "r", offset, (length,))
    return np.ndarray(shape, dtype, whole, first, strides)


def _pickled(recipe: Recipe) -> bytes:
    try:
        import cloudpickle
    except ImportError:
        raise DataError(
            "workers: expected cloudpickle, which sends sources to other processes, found none: "
            "pip install 'jaxunlearn[stream]', or workers=0 reads in this process"
        ) from None
    try:
        sent = _Sent()
        # a table beside cloudpickle's own, which the whole program shares
        table = cloudpickle.CloudPickler.dispatch_table.new_child({np.memmap: _mapped})
        type("Pickler", (cloudpickle.CloudPickler,), {"dispatch_table": table})(sent).dump(recipe)
        return sent.getvalue()
    except _TooLarge:
        raise DataError(
            f"workers: expected a source that workers open by themselves, as each gets a copy of "
            f"it, got {brief(recipe.source)} of more than {MOST:,} bytes; np.memmap or "
            "np.load(mmap_mode='r') leave arrays in files, workers=0 reads in this process"
        ) from None
    except Exception as error:
        raise DataError(
            f"workers: expected a source and decode that can be sent to other processes, got "
            f"{brief(recipe.source)}: {sentence(error)}; workers=0 reads in this process"
        ) from error


def serve(theirs: int, sent: int) -> None:
    """Runs a worker: reads what it is asked for until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks decides when it ends
    os.dup2(2, 1)  # what a decoder prints must not pass for data, nor hide errors
    asked, back = Connection(theirs, writable=False), Connection(sent, readable=False)
    try:
        recipe: Recipe = pickle.loads(asked.recv_bytes())
    except EOFError:
        return
    except Exception as error:
        back.send(("error", f"workers: a worker cannot read the source: {sentence(error)}"))
        return
    with contextlib.suppress(EOFError, OSError):
        while True:
            what, positions = asked.recv()
            try:
                for start in range(0, len(positions), BLOCK):
                    some = positions[start : start + BLOCK]
                    if what == "labels":
                        back.send(("labels", read_labels(recipe, some)))
                        continue
                    out = [np.empty((len(some), *form.shape), form.dtype) for form in recipe.forms]
                    read_into(recipe, some, out)
                    back.send(("examples", len(some)))
                    for array in out:
                        if array.nbytes:
                            back.send_bytes(array.data.cast("B"))
            except DataError as error:
                back.send(("error", str(error)))
