"""Files that are whole or not there: written beside their place, then renamed to it.

Of several processes of one program the first alone writes.

And files that say that a place is in use, and ``.npz`` files of others, which may be anything.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import socket
import sys
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxunlearn.core.errors import CheckpointError, DataError, brief, printable, sentence

try:
    import fcntl
except ImportError:  # Windows has other locks: there, places are not held
    fcntl = None  # type: ignore[assignment]


def write_atomic(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Writes a file so that whoever reads it finds the former or the new one, never a part.

    Of several processes of one JAX program the first writes, for all.

    Args:
      path: of the file; folders that it needs are made, a former file is replaced. A link is
        followed.
      write: called with the file, open for writing bytes. If it raises, or the program is
        stopped, the former file is left as it was.

    Raises:
      OSError: the file cannot be written there; the error names it.
    """
    if not is_writer():
        return
    # a link keeps pointing to the file
    path = Path(os.path.realpath(path))
    # processes that write the same file do not write into each other's
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    except OSError as error:
        # a full disk tells no name, other errors that of the temporary file
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_writer() -> bool:
    """Tells whether this process writes files: the only one of its program, or the first."""
    jax = sys.modules.get("jax")  # not imported for the sake of one that has not begun
    return jax is None or jax.process_index() == 0


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes bytes as a whole file; see :func:`write_atomic`."""
    write_atomic(path, lambda file: file.write(data))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes text as a whole file, in UTF-8; see :func:`write_atomic`."""
    write_atomic(path, lambda file: file.write(text.encode("utf-8")))


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name as a whole ``.npz`` file; see :func:`write_atomic`.

    Raises:
      ValueError: an array of another type than numbers, booleans or strings.
    """
    found = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in found.items():
        # NumPy would write bfloat16 as bytes of no meaning, and objects as programs
        if array.dtype.kind not in "biufcSU":
            raise ValueError(f"{path}: {name}: expected an array of numbers, got {array.dtype}")
    write_atomic(path, lambda file: np.savez(file, allow_pickle=False, **found))


def read_object(file: Path) -> dict[str, Any]:
    """Reads an object of JSON; an empty one where there is none, or it cannot be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def between_marks(page: str, begin: str, end: str, text: str) -> str:
    """Returns a page with other text between its two marks.

    Raises:
      ValueError: the page has no marks.
    """
    before, first, rest = page.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"page: expected {begin} and {end}, got neither or one")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def sha256(path: Path) -> str:
    """Computes the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def hold(path: Path, place: object, *, keep: bool = False, **more: str) -> Iterator[None]:
    """Holds a place for this process: the file ``path`` names host, process and start.

    The operating system lets go of it when the process ends in any way; the file that a killed
    one left is taken over. Where there are no such locks (Windows, some network file systems)
    nothing is held.

    Args:
      place: what messages call the place.
      keep: leave the file there at the end.
      **more: what else the file says.

    Raises:
      CheckpointError: another process holds it, or ``path`` is a file of another kind.
      OSError: the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "start": time.strftime("%F %T %z")}
    owner |= more
    while True:
        # never through a link, which would empty the file that it points to
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        file = os.open(path, flags, 0o644)
        try:
            if not _lock(file):
                raise CheckpointError(f"{place}: in use by {_named(os.read(file, 1000))}")
            before = os.read(file, 1000)
            if before and not before.startswith(b'{"host":'):
                raise CheckpointError(f"expected no file of another kind, got {path}")
            try:
                same = os.path.samestat(os.stat(path), os.fstat(file))
            except FileNotFoundError:  # who held it has just removed it
                same = False
            if same:
                break
        except BaseException:
            os.close(file)
            raise
        os.close(file)
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(owner).encode(), 0)
        yield
    finally:
        if not keep:
            path.unlink(missing_ok=True)
        os.close(file)


def is_held(path: Path) -> bool:
    """Tells whether some process, this one perhaps, holds the place of a file; see :func:`hold`."""
    try:
        file = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        return not _lock(file)
    finally:
        os.close(file)


def _lock(file: int) -> bool:
    """Locks an open file; returns false if it is locked already."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # this file system has none
        return True
    return True


def _named(text: bytes) -> str:
    """Returns who holds a place, as its file says; it is empty for an instant."""
    try:
        owner = json.loads(text)
        named = f"process {owner['pid']} on {owner['host']} since {owner['start']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
    return printable(named)


def most_bytes() -> int:
    """Returns the most that an array read from a file may take: the memory of this machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**36


def read_npz(
    path: str | os.PathLike[str],
    required: Sequence[str] | None,
    optional: Sequence[str] = (),
    *,
    strings: Collection[str] = (),
    name: str = "path",
) -> dict[str, np.ndarray]:
    """Reads arrays by name from an ``.npz`` file, of which nothing is known.

    Args:
      path: of the file; what else it holds is not read.
      required: names of arrays that must be there; ``None``: all that are there.
      optional: names of those that may be.
      strings: which of them hold strings ``[n]``; the others hold numbers of any shape.
      name: what errors call the place where the path was given.

    Returns:
      Those that are there, in the order of ``required`` and ``optional``; strings as ``str``.

    Raises:
      DataError: no file, another kind of file or a damaged one, an array is missing, cannot be
        read, holds something else, or the arrays take more than :func:`most_bytes`, which is
        found out before they are unpacked.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing"
        raise DataError(f"{name}: expected an .npz file, got {what} at {path}")
    wanted = f"{path}: expected an .npz archive, got a file of another kind or a damaged one"
    if not zipfile.is_zipfile(path):
        raise DataError(wanted)
    try:
        archive = np.load(path, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{wanted}: {sentence(error)}") from error
    with archive:
        required = archive.files if required is None else required
        if any(key not in archive for key in required):
            keys = " and ".join(filter(None, (", ".join(required[:-1]), required[-1])))
            raise DataError(
                f"{path}: expected the keys {keys}, got {', '.join(archive.files) or 'none'}"
            )
        there = [*required, *(key for key in optional if key in archive)]
        _check_sizes(path, archive.zip, there)
        return {key: _read_key(path, archive, key, key in strings) for key in there}


def read_places(path: str | os.PathLike[str], name: str) -> tuple[int, ...] | tuple[bool, ...]:
    """Reads positions, or a mask of booleans, from a file.

    Args:
      path: ``.npy`` with an array ``[M]`` of whole numbers or booleans; or ``.txt`` or ``.csv``
        with whole numbers between commas or spaces, or on lines of their own.
      name: what errors call the place where the path was given.

    Raises:
      DataError: no such file, or it holds something else.
    """
    path = Path(os.path.expanduser(path))
    ending = path.suffix.lower()
    if ending not in (".npy", ".txt", ".csv"):
        raise DataError(f"{name}: expected a .npy, .txt or .csv file, got {brief(str(path))}")
    if not path.is_file():
        got = f"{brief(str(path))}, which is {'a folder' if path.is_dir() else 'not there'}"
        raise DataError(f"{name}: expected a .npy, .txt or .csv file, got {got}")
    if ending == ".npy":
        if path.stat().st_size > most_bytes():
            raise DataError(f"{path}: expected a file that fits into memory, got a larger one")
        try:
            found = np.load(path, allow_pickle=False)
        # damaged or pickled in one of many ways
        except Exception as error:
            raise DataError(f"{path}: expected an array, got {sentence(error)}") from error
        if isinstance(found, np.ndarray) and found.ndim == 2 and found.shape[1] == 1:
            found = found if found.dtype == bool else found[:, 0]  # of np.argwhere
        if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in "iub":
            raise DataError(f"{path}: expected whole numbers or booleans [M], got {brief(found)}")
        return tuple(found.tolist())
    try:
        words = path.read_text(encoding="utf-8-sig").replace(",", " ").split()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected text, got {sentence(error)}") from error
    wrong = [word for word in words if not re.fullmatch(r"[+-]?[0-9]{1,18}", word)]
    if wrong or not words:
        raise DataError(f"{path}: expected whole numbers, got {brief(wrong) if wrong else 'none'}")
    return tuple(map(int, words))


def _check_sizes(path: Path, archive: zipfile.ZipFile, keys: Sequence[str]) -> None:
    """Checks, before anything is unpacked, that arrays fit into memory and are as long as told."""
    rest = most_bytes()
    names = set(archive.namelist())
    for key in keys:
        info = archive.getinfo(key if key in names else f"{key}.npy")
        rest -= info.file_size
        if rest < 0:
            raise DataError(
                f"{path}: {key}: expected arrays of at most {most_bytes():,} bytes together, "
                f"the memory of this machine, got one of {info.file_size:,}"
            )
        told = _told_size(archive, info)
        if told is not None and told > info.file_size:
            raise DataError(
                f"{path}: {key}: expected an array as long as its header says, {told:,} bytes, "
                f"got {info.file_size:,}"
            )


def _told_size(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int | None:
    """Returns how many bytes a header announces; ``None`` where it is read with the array."""
    form = np.lib.format
    try:
        with archive.open(info) as file:
            version = form.read_magic(file)
            read = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
            shape, _, dtype = read(file)
    # damaged in one of many ways, which reading the array names
    except Exception:
        return None
    # objects are refused when they are read
    return None if dtype.hasobject else math.prod(shape) * dtype.itemsize


def _read_key(path: Path, archive: Any, key: str, strings: bool) -> np.ndarray:
    kind = "strings [n]" if strings else "numbers (dtype bool, integer or float)"
    try:
        found = np.asarray(archive[key])
    # a damaged or pickled member raises one of many types, depending on the damage
    except Exception as error:
        raise DataError(
            f"{path}: {key}: expected an array of {kind}, got one that cannot be read: "
            f"{sentence(error)}"
        ) from error
    if found.dtype.kind not in ("US" if strings else "biuf") or (strings and found.ndim != 1):
        raise DataError(f"{path}: {key}: expected {kind}, got {found.dtype} {list(found.shape)}")
    return np.char.decode(found, "utf-8", "replace") if found.dtype.kind == "S" else found
