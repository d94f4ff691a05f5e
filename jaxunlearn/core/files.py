"""Files that are whole or not there: written beside their place, then renamed to it."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np


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
