"""The folder of a checkpoint: complete or absent, every file with its sha256.

The manifest lists the files because Orbax restores overwritten bytes without a
complaint. It needs no sum of its own: altered, it no longer agrees with the files.
"""

import hashlib
import json
import shutil
from pathlib import Path

from jaxunlearn.core.errors import CheckpointError

RECORD, LEAVES, VARIABLES = "record.json", "leaves.json", "variables"
"""What lies beside the manifest: the caller's record, the table of leaves, the arrays."""

_MANIFEST = "manifest.json"


def write(path: Path) -> None:
    """Lists all files below ``path``, in its manifest."""
    sums = {name: _sha256(path / name) for name in _files(path)}
    (path / _MANIFEST).write_text(json.dumps(sums, indent=2) + "\n")


def check_file(path: Path, name: str) -> None:
    """Compares one file with the manifest; raises :class:`CheckpointError`."""
    _compare(path, name, _read(path)[name])


def check_all(path: Path) -> None:
    """Compares every file; raises a :class:`CheckpointError` that names the first fault."""
    sums = _read(path)
    for name, expected in sums.items():
        _compare(path, name, expected)
    for name in _files(path):
        if name not in sums:
            raise CheckpointError(f"checkpoint {path}: {name} is not in {_MANIFEST}")


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Raises a :class:`CheckpointError` unless ``path`` is free, or may be replaced."""
    if not path.exists():
        return
    if not overwrite:
        raise CheckpointError(f"{path} exists; overwrite=True (--force) replaces it")
    if not (path / _MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(
            f"expected a checkpoint to replace or remove, got {path}: left as it is"
        )


def sibling(path: Path, kind: str) -> Path:
    """Where a folder is made (``"tmp"``), or its former lies while replaced (``"old"``)."""
    # fixed, so that all processes agree and a leftover is found again
    return path.with_name(f".{path.name}.{kind}")


def publish(temporary: Path, path: Path) -> None:
    """Renames a complete folder to ``path``; a former one is removed after that."""
    former = sibling(path, "old")
    if path.exists():
        remove(former)
        path.rename(former)
    temporary.rename(path)
    remove(former)


def remove(path: Path) -> None:
    """Removes a folder, which need not exist."""
    if path.exists():
        shutil.rmtree(path)


def _read(path: Path) -> dict[str, str]:
    """File -> sha256."""
    if not (path / _MANIFEST).is_file():
        former = sibling(path, "old")
        hint = f"; the one it was to replace is in {former}" if former.exists() else ""
        raise CheckpointError(f"expected a checkpoint, got {path} without {_MANIFEST}{hint}")
    try:
        sums = json.loads((path / _MANIFEST).read_text())
        if not isinstance(sums, dict) or not {RECORD, LEAVES} <= set(sums):
            raise ValueError(f"expected the sha256 of {RECORD} and {LEAVES}")
    except (OSError, ValueError) as error:  # text that is no JSON is a ValueError, too
        raise CheckpointError(f"checkpoint {path}: {_MANIFEST} is damaged: {error}") from error
    return sums


def _compare(path: Path, name: str, expected: str) -> None:
    if not (path / name).is_file():
        raise CheckpointError(f"checkpoint {path}: {name} is missing, but in {_MANIFEST}")
    if _sha256(path / name) != expected:
        raise CheckpointError(
            f"checkpoint {path}: {name} is damaged: its sha256 is not the one in {_MANIFEST}"
        )


def _files(path: Path) -> list[str]:
    """Every file below ``path`` but the manifest, relative, sorted."""
    names = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sorted(name for name in names if name != _MANIFEST)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
