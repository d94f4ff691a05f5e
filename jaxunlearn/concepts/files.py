"""Concept banks as ``.npz`` files: text embeddings made elsewhere, banks kept for later."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.concepts.bank import Bank, make_bank
from jaxunlearn.errors import DataError

__all__ = ["load_bank", "save_bank"]

_OPTIONAL = ("intercepts", "useful", "accuracy", "p_value")


def load_bank(path: str | Path, features: int) -> Bank:
    """Reads concept vectors, for example text embeddings of concept words.

    The file holds ``vectors [m, n]`` and ``names [m]``, and may hold ``intercepts``,
    ``useful``, ``accuracy`` and ``p_value``, each ``[m]``. The vectors must lie in the
    space that the network's head reads: text embeddings serve a network whose features
    are the image embeddings of the same model.

    Args:
      path: of the ``.npz`` file.
      features: ``n``, what the head reads.

    Raises:
      DataError: the file is missing, is no such archive or damaged, lacks an array, or
        holds one of another form or of another ``n``.
    """
    path = Path(path)
    with _open(path) as archive:
        missing = [key for key in ("vectors", "names") if key not in archive]
        if missing:
            raise DataError(
                f"{path}: expected the arrays vectors and names, "
                f"got {', '.join(archive.files) or 'none'}"
            )
        keys = ["vectors", "names", *(key for key in _OPTIONAL if key in archive)]
        found = {key: _array(path, archive, key) for key in keys}
    vectors = found["vectors"]
    if vectors.ndim == 2 and vectors.shape[1] != features:
        raise DataError(
            f"{path}: vectors: expected shape [m, {features}], as many columns as the head of "
            f"the network reads features, got {list(vectors.shape)}"
        )
    try:
        return make_bank([str(name) for name in found.pop("names")], **found)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def save_bank(path: str | Path, bank: Bank) -> None:
    """Writes a bank as an ``.npz`` file that :func:`load_bank` reads.

    Raises:
      ValueError: the name does not end in ``.npz``.
    """
    if Path(path).suffix != ".npz":
        raise ValueError(f"path: expected one ending in .npz, got {str(path)!r}")
    keys = ("vectors", *_OPTIONAL)
    arrays: dict[str, Any] = {key: np.asarray(getattr(bank, key)) for key in keys}
    np.savez(path, names=np.asarray(bank.names), **arrays)


def _open(path: Path) -> Any:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing"
        raise DataError(f"{path}: expected an .npz file, got {what}")
    wanted = f"{path}: expected an .npz archive, got a file of another kind or a damaged one"
    if not zipfile.is_zipfile(path):
        raise DataError(wanted)
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{wanted}: {error}") from error


def _array(path: Path, archive: Any, key: str) -> np.ndarray:
    try:
        found = np.asarray(archive[key])
    # a damaged or pickled member raises one of many types, depending on the damage
    except Exception as error:
        raise DataError(f"{path}: {key}: expected an array, got one unreadable: {error}") from error
    wanted = "US" if key == "names" else "biuf"
    if found.dtype.kind not in wanted or (key == "names" and found.ndim != 1):
        kind = "strings [m]" if key == "names" else "numbers"
        raise DataError(f"{path}: {key}: expected {kind}, got {found.dtype} {list(found.shape)}")
    return found.astype(str) if key == "names" else found
