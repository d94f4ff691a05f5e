"""Checkpoints: a pytree of arrays and a JSON record in one folder, verified on reading.

A checkpoint is ``PATH/{record.json, leaves.json, variables/, manifest.json}``. The folder
is written beside ``PATH`` and renamed, so that ``PATH`` is either absent or complete.
"""

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxunlearn import __version__
from jaxunlearn.checkpoint import arrays as leaves
from jaxunlearn.checkpoint import folder as manifest
from jaxunlearn.checkpoint.folder import RECORD
from jaxunlearn.core.errors import CheckpointError

__all__ = ["load", "read_record", "remove", "save", "verify", "versions"]


def save(
    path: str | os.PathLike[str], tree: Any, record: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Writes a checkpoint; ``path`` appears only once it is complete.

    With several processes all of them call it, on a file system they share.

    Args:
      path: folder to be made, with its parents.
      tree: pytree of arrays, numbers and typed keys, sharded in any way. An array that
        only one process holds is taken from process 0.
      record: whatever JSON can hold: configuration, :func:`versions`, metrics.
      overwrite: replace a checkpoint at ``path``, which is removed after the new one is
        complete.

    Raises:
      CheckpointError: ``path`` exists (and ``overwrite`` is not set, or it is no
        checkpoint), or writing failed.
      TypeError: ``record`` is not JSON, or a leaf is not an array.
    """
    path = Path(path).absolute()
    text = json.dumps(record, indent=2, sort_keys=True)
    flat = leaves.flatten(tree)
    manifest.check_replaceable(path, overwrite)
    temporary = manifest.sibling(path, "tmp")
    _barrier("checked")  # no process may look at PATH after another began to change it
    try:
        if jax.process_index() == 0:
            manifest.remove(temporary)  # of a save that was killed
            temporary.mkdir(parents=True)
        _barrier("begun")
        leaves.write(temporary, flat)
        if jax.process_index() == 0:
            (temporary / RECORD).write_text(text + "\n")
            manifest.write(temporary)
            manifest.publish(temporary, path)
    except Exception as error:
        if jax.process_index() == 0:
            manifest.remove(temporary)
        raise CheckpointError(f"cannot write checkpoint {path}: {error}") from error
    _barrier("done")


def load(path: str | os.PathLike[str], like: Any = None) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint, every file verified; the arrays are bit-equal to those saved.

    Args:
      path: the checkpoint's folder.
      like: pytree of arrays or ``jax.ShapeDtypeStruct`` of the same leaf paths, shapes
        and dtypes. A leaf with a sharding is read into it, each device its part (the
        sharding need not be that of the save); a NumPy array or a number comes back as
        a NumPy array; any other leaf as an uncommitted array on the default device.

    Returns:
      ``(tree, record)``. Without ``like`` the tree is nested dictionaries of NumPy
      arrays: sequences and NamedTuples as dictionaries by position or field name, keys
      as their ``uint32`` data, containers without leaves left out.

    Raises:
      CheckpointError: not a checkpoint, damaged, or not like ``like``.
    """
    path = Path(path).absolute()
    verify(path)
    record = json.loads((path / RECORD).read_text())
    return leaves.read(path, like), record


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record alone, verified; reads no arrays.

    Raises:
      CheckpointError: not a checkpoint, or the record or the manifest is damaged.
    """
    path = Path(path).absolute()
    manifest.check_file(path, RECORD)
    return json.loads((path / RECORD).read_text())


def verify(path: str | os.PathLike[str]) -> None:
    """Compares every file with the manifest.

    Raises:
      CheckpointError: naming the first file that is missing, altered or unknown.
    """
    manifest.check_all(Path(path).absolute())


def remove(path: str | os.PathLike[str]) -> None:
    """Removes a checkpoint, and what killed saves left beside it; there may be none.

    With several processes all of them call it.

    Raises:
      CheckpointError: ``path`` is something else.
    """
    path = Path(path).absolute()
    manifest.check_replaceable(path, overwrite=True)
    _barrier("found")
    if jax.process_index() == 0:
        for there in (path, manifest.sibling(path, "tmp"), manifest.sibling(path, "old")):
            manifest.remove(there)
    _barrier("removed")


def versions() -> dict[str, Any]:
    """What a result may depend on: versions of Python and libraries, and the devices."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "jaxunlearn": __version__,
        **{name: importlib.metadata.version(name) for name in names},
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def _barrier(stage: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"jaxunlearn.checkpoint.{stage}")
