"""Decoded data sets kept on disk: one folder of ``.npy`` files each.

An entry is checked against its fingerprint when it is read, so that a damaged
one counts as absent; a cache that cannot be written costs time, nothing else.
"""

import json
import os
import shutil
import uuid
import warnings
from pathlib import Path

import numpy as np

from jaxunlearn.data.dataset import ARRAYS, Dataset, fingerprint

__all__ = ["cache_root", "read_entry", "write_entry"]

_META = "meta.json"


def cache_root(configured: str | None) -> Path:
    """The cache folder, which need not exist.

    ``configured``, else ``$JAXUNLEARN_CACHE``, else ``jaxunlearn`` below
    ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    chosen = configured or os.environ.get("JAXUNLEARN_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen))
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG specification has relative paths ignored
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    return Path(base) / "jaxunlearn"


def read_entry(folder: Path) -> Dataset | None:
    """The data set written to ``folder``, or ``None`` if it is absent or damaged."""
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        arrays = {key: np.load(folder / f"{key}.npy", allow_pickle=False) for key in ARRAYS}
        names = tuple(meta["class_names"])
        if fingerprint(arrays, names) != meta["fingerprint"]:
            return None
        shape = (1,) * (arrays["train_x"].ndim - 2) + (-1,)
        mean, std = (np.asarray(meta[k], np.float32).reshape(shape) for k in ("mean", "std"))
        return Dataset(
            **arrays, class_names=names, mean=mean, std=std, fingerprint=meta["fingerprint"]
        )
    # whatever is wrong with an entry, the remedy is to decode anew
    except Exception:
        return None


def write_entry(folder: Path, dataset: Dataset) -> None:
    """Writes ``folder`` as a whole or not at all; a failure is a warning."""
    # not tempfile, whose folders nobody else could read in a shared cache
    temporary = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        _write_files(temporary, dataset)
        _move(temporary, folder)
    except OSError as error:
        warnings.warn(
            f"decoded images are not kept, the next run decodes them again: "
            f"cannot write the cache folder {folder.parent} ({error})",
            stacklevel=2,
        )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_files(folder: Path, dataset: Dataset) -> None:
    for key in ARRAYS:
        np.save(folder / f"{key}.npy", getattr(dataset, key), allow_pickle=False)
    meta = {
        "class_names": dataset.class_names,
        "mean": dataset.mean.ravel().tolist(),
        "std": dataset.std.ravel().tolist(),
        "fingerprint": dataset.fingerprint,
    }
    (folder / _META).write_text(json.dumps(meta), encoding="utf-8")


def _move(temporary: Path, folder: Path) -> None:
    try:
        os.rename(temporary, folder)
    except OSError:
        # a damaged entry, or one that another process has just finished
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
