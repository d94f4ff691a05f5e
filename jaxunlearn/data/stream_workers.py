"""Processes that read and decode the records of a stream; nothing here imports JAX.

A worker is a fresh interpreter, not a fork (JAX has threads) and not a spawned one (which would
run the caller's script again): functions typed at a prompt serve, and no script needs a guard.
Positions go to it, a few at a time and to whoever is idle; it writes their examples into memory
that it shares with this process, in the places that they have in the batch. So an example is
copied once between the decoder and what goes to the device, and never lies in two places.
"""

import contextlib
import io
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.core.errors import DataError, brief, sentence

BLOCK = 8
"""Examples that a worker is asked for together."""
AHEAD = 2
"""Blocks that a worker has been asked for: when one is done, it need not wait for the next."""
LABELS = 512
"""Labels that a worker is asked for together."""
SPARE = 4
"""Slots of shared memory that nobody uses, and which are kept."""

LIMIT = 600.0
"""Seconds that a worker may take to start, or to read one block."""
MOST = 2**28
"""Bytes of a source and decode that are sent to each worker; larger ones belong into files."""

_SERVE = "from jaxunlearn.data.stream_workers import serve; serve({})"


class Form(NamedTuple):
    """Shape and dtype of one array of an example."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Returns the bytes of the array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


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


def check_last(recipe: Recipe) -> None:
    """Reads the last record: a source that is shorter than it says is told before any work."""
    forms, last = recipe.forms, len(recipe.source) - 1
    if last > 0:
        out = empty_rows(forms, 1, np.empty(row_bytes(forms, 1), np.uint8))
        read_into(recipe, np.array([last]), out)


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
            with contextlib.suppress(Exception, SystemExit):
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
    except BaseException as error:  # an exit, too, would end the program without a word
        if isinstance(error, KeyboardInterrupt) and _can_be_interrupted():
            raise
        raise DataError(
            f"{recipe.name}: expected a record that decodes at position {position}, got "
            f"{type(error).__name__}: {sentence(error)}"
        ) from error


def _can_be_interrupted() -> bool:
    """Tells whether Ctrl-C reaches this thread: workers ignore it, only a first one is told."""
    first = threading.current_thread() is threading.main_thread()
    return first and signal.getsignal(signal.SIGINT) != signal.SIG_IGN


def empty_rows(forms: Sequence[Form], count: int, buffer: np.ndarray) -> list[np.ndarray]:
    """Cuts arrays ``[count, ...]``, one for each form, out of bytes; see :func:`row_bytes`.

    They lie so that JAX copies them even on CPU: those that it could take as they are would be
    let go of much later.
    """
    begin, arrays = -buffer.ctypes.data % 64, []
    for form in forms:
        size = count * form.nbytes
        arrays.append(buffer[begin + 16 :][:size].view(form.dtype).reshape(count, *form.shape))
        begin += -(-(size + 16) // 64) * 64
    return arrays


def row_bytes(forms: Sequence[Form], count: int) -> int:
    """Returns how many bytes :func:`empty_rows` needs at most."""
    return 64 + sum(count * form.nbytes + 80 for form in forms)


class Workers:
    """Processes that serve one recipe, until they are closed or the program ends."""

    def __init__(self, recipe: Recipe, count: int) -> None:
        self.name, self.forms = recipe.name, recipe.forms
        given = _pickled(recipe)
        self._workers = [_Worker(number, given) for number in range(count)]
        self._slots, self._spare = 0, list[_Slot]()

    def read(self, positions: np.ndarray) -> list[np.ndarray]:
        """Reads examples, arrays ``[M, ...]`` in shared memory, used again when they are let go.

        Raises:
          DataError: see :func:`read_into`; a worker died or hangs.
        """
        count, starts = len(positions), range(0, len(positions), BLOCK)
        with self._closing():
            slot = self._slot(row_bytes(self.forms, count))
            # a view of its own: when nobody has any array of it, the slot is free
            rows = np.frombuffer(slot.memory, np.uint8)
            weakref.finalize(rows, self._give_back, slot).atexit = False
            places = [(slot.number, count, start) for start in starts]
            blocks = [positions[start : start + BLOCK] for start in starts]
            self._each([("examples", *both) for both in zip(blocks, places, strict=True)])
        return empty_rows(self.forms, count, rows)

    def read_labels(self, positions: np.ndarray) -> np.ndarray:
        """Reads labels ``[M]``; see :func:`read_labels`."""
        starts = range(0, len(positions), LABELS)
        with self._closing():
            blocks = self._each([("labels", positions[n : n + LABELS], None) for n in starts])
        return np.concatenate(blocks) if blocks else np.zeros(0, np.int32)

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.close()

    def _slot(self, size: int) -> "_Slot":
        """Returns a slot that nobody uses; those that are too small, or too many, are given up."""
        spare, self._spare = self._spare, []
        fits = [slot for slot in spare if len(slot.memory) >= size][:SPARE]
        for slot in spare:
            if slot not in fits:
                self._tell(("drop", slot.number, 0))
        self._spare += fits[1:]
        if fits:
            return fits[0]
        slot, self._slots = _Slot(self._slots, size), self._slots + 1
        self._tell(("slot", slot.number, size), slot)
        os.close(slot.file)  # the mappings stay
        return slot

    def _tell(self, request: tuple[Any, ...], slot: "_Slot | None" = None) -> None:
        for worker in self._workers:
            worker.ask(request, slot)

    def _give_back(self, slot: "_Slot") -> None:
        self._spare.append(slot)

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        """Ends the workers with an error: what they would still do belongs to nobody."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _each(self, asked: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Has blocks read by whoever is idle; returns what is told of each, in order."""
        found: list[Any] = [None] * len(asked)
        waiting = list(range(len(asked)))[::-1]
        begun: dict[_Worker, list[int]] = {worker: [] for worker in self._workers}

        def ask(worker: _Worker) -> None:
            if waiting:
                begun[worker].append(waiting.pop())
                worker.ask(asked[begun[worker][-1]])

        for worker in self._workers * AHEAD:
            ask(worker)
        while busy := [worker for worker in self._workers if begun[worker]]:
            ready = wait([worker.line for worker in busy], LIMIT)
            for worker in busy:
                if worker.line in ready or not ready:  # one that says nothing tells why
                    found[begun[worker].pop(0)] = worker.told()
                    ask(worker)
        return found


class _Slot:
    """Memory that this process shares with its workers; it lies in no file that has a name."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        if hasattr(os, "memfd_create"):  # on Linux
            self.file = os.memfd_create("rows")
        else:
            self.file, name = tempfile.mkstemp()
            os.unlink(name)
        os.ftruncate(self.file, size)
        self.memory = mmap.mmap(self.file, size)


class _Worker:
    """One process, with the line to it."""

    def __init__(self, number: int, given: bytes) -> None:
        self.number = number
        self._socket, theirs = socket.socketpair()
        self.line = Connection(os.dup(self._socket.fileno()))
        # a worker computes nothing on devices, and must not take their memory
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE.format(theirs.fileno())],
            stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=env,
        )  # fmt: skip
        theirs.close()
        self._sent = given

    def ask(self, request: tuple[Any, ...], slot: _Slot | None = None) -> None:
        """Sends a request, and perhaps the memory that it names."""
        with self._alive():
            if self._sent:
                self.line.send_bytes(self._sent)
                self._sent = b""
            self.line.send(request)
            if slot is not None:
                socket.send_fds(self._socket, [b"0"], [slot.file])

    def told(self) -> Any:
        """Returns what the worker says; raises the error that it reports."""
        with self._alive():
            if not self.line.poll():  # the caller waited
                raise DataError(
                    f"workers: expected worker {self.number} to read a block of {BLOCK} records "
                    f"within {LIMIT:g} seconds, got no answer; the source or decode hangs"
                )
            kind, told = self.line.recv()
        if kind == "error":
            raise DataError(told)
        return told

    def close(self) -> None:
        for end in (self.line, self._socket):
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
            raise DataError(
                f"workers: expected worker {self.number} to go on reading, it ended "
                f"{_told_end(self.process.poll())}"
            ) from error


def _told_end(code: int | None) -> str:
    """Describes how a process ended, by what ``poll`` says; ``None`` where it does not say."""
    if code is None:
        return "without saying why"
    if code >= 0:
        return f"with status {code}"
    known = {one.value: f" ({one.name})" for one in signal.Signals}
    return f"by signal {-code}{known.get(-code, '')}"


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


def serve(number: int) -> None:
    """Runs a worker: reads what it is asked for until nobody asks any more.

    Args:
      number: of the socket on which it is asked.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks decides when it ends
    os.dup2(2, 1)  # what a decoder prints must not pass for data, nor hide errors
    files, line = socket.socket(fileno=os.dup(number)), Connection(number)
    try:
        recipe: Recipe = pickle.loads(line.recv_bytes())
    except EOFError:
        return
    except Exception as error:
        line.send(("error", f"workers: a worker cannot read the source: {sentence(error)}"))
        return
    slots: dict[int, np.ndarray] = {}
    with contextlib.suppress(EOFError, OSError):
        while True:
            what, given, more = line.recv()
            if what == "slot":
                (file,) = socket.recv_fds(files, 1, 1)[1]
                slots[given] = np.frombuffer(mmap.mmap(file, more), np.uint8)
                os.close(file)
                continue
            if what == "drop":
                del slots[given]
                continue
            try:
                if what == "labels":
                    line.send((what, read_labels(recipe, given)))
                    continue
                slot, count, start = more
                rows = empty_rows(recipe.forms, count, slots[slot])
                read_into(recipe, given, [array[start : start + len(given)] for array in rows])
                line.send((what, None))
            except DataError as error:
                line.send(("error", str(error)))
