"""Files that are whole or not there: written beside their place, then renamed to it.

And ``.npz`` files of others, which may be anything.
"""

import os
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxunlearn.core.errors import DataError


def write_atomic(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Writes a file so that whoever reads it finds the former or the new one, never a part.

    Args:
      path: of the file; folders that it needs are made, a former file is replaced. A link is
        followed.
      write: called with the file, open for writing bytes. If it raises, or the program is
        stopped, the former file is left as it was.

    Raises:
      OSError: the file cannot be written there.
    """
    # a link keeps pointing to the file
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # processes that write the same file do not write into each other's
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
        read, or holds something else.
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
        raise DataError(f"{wanted}: {error}") from error
    with archive:
        required = archive.files if required is None else required
        if any(key not in archive for key in required):
            keys = " and ".join(filter(None, (", ".join(required[:-1]), required[-1])))
            raise DataError(
                f"{path}: expected the keys {keys}, got {', '.join(archive.files) or 'none'}"
            )
        there = [*required, *(key for key in optional if key in archive)]
        return {key: _read_key(path, archive, key, key in strings) for key in there}


def _read_key(path: Path, archive: Any, key: str, strings: bool) -> np.ndarray:
    kind = "strings [n]" if strings else "numbers (dtype bool, integer or float)"
    try:
        found = np.asarray(archive[key])
    # a damaged or pickled member raises one of many types, depending on the damage
    except Exception as error:
        raise DataError(
            f"{path}: {key}: expected an array of {kind}, got one that cannot be read: {error}"
        ) from error
    if found.dtype.kind not in ("US" if strings else "biuf") or (strings and found.ndim != 1):
        raise DataError(f"{path}: {key}: expected {kind}, got {found.dtype} {list(found.shape)}")
    return np.char.decode(found, "utf-8", "replace") if found.dtype.kind == "S" else found
