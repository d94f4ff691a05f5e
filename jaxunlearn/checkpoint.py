"""Checkpoints: a pytree of arrays and a JSON record in one folder, verified on reading.

A checkpoint is ``PATH/{record.json, manifest.json, variables/}``. Orbax writes the
arrays, under their leaf paths (``params/dense/kernel``), each process and device its
own part; the manifest lists the leaves and the sha256 of every file, because Orbax
restores overwritten bytes without a complaint. The folder is written beside ``PATH``
and renamed, so that ``PATH`` is either absent or complete.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxunlearn import __version__
from jaxunlearn.errors import CheckpointError

__all__ = ["load", "read_record", "remove", "save", "verify", "versions"]

_RECORD, _MANIFEST, _VARIABLES = "record.json", "manifest.json", "variables"


class _Spec(NamedTuple):
    """A leaf as stored: keys by the shape of their data, with the generator's name."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    impl: str | None = None

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def empty(self) -> bool:
        return 0 in self.shape  # Orbax refuses arrays without elements

    def template(self) -> np.ndarray:
        """An array of this shape that takes no memory."""
        dtype = np.uint32 if self.impl else jnp.dtype(self.dtype)
        return np.broadcast_to(np.zeros((), dtype), self.shape)


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
    leaves = _leaves(tree)
    _refuse(path, overwrite)
    temporary = _sibling(path, "tmp")
    _barrier("checked")  # no process may look at PATH after another began to change it
    if jax.process_index() == 0:
        _remove(temporary)  # of a save that was killed
        temporary.mkdir(parents=True)
    _barrier("begun")
    try:
        _write_arrays(temporary / _VARIABLES, leaves)
        if jax.process_index() == 0:
            (temporary / _RECORD).write_text(text + "\n")
            _write_manifest(temporary, [spec for spec, _ in leaves.values()])
            _publish(temporary, path)
    except Exception as error:
        if jax.process_index() == 0:
            _remove(temporary)
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
    record = json.loads((path / _RECORD).read_text())
    stored = {"/".join(spec.path): spec for spec in _specs(_read_manifest(path))}
    if like is None:
        arrays = _read_arrays(path, stored, {n: s.template() for n, s in stored.items()})
        return _nest({spec.path: arrays[name] for name, spec in stored.items()}), record
    wanted = _leaves(like)
    _compare(path, {name: spec for name, (spec, _) in wanted.items()}, stored)
    targets = {name: _target(leaf, stored[name]) for name, (_, leaf) in wanted.items()}
    arrays = _read_arrays(path, stored, targets)
    leaves = [_finish(arrays[n], leaf, stored[n]) for n, (_, leaf) in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), record


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record alone, verified; reads no arrays.

    Raises:
      CheckpointError: not a checkpoint, or the record or the manifest is damaged.
    """
    path = Path(path).absolute()
    _check_file(path, _RECORD, _read_manifest(path)["files"].get(_RECORD, {}))
    return json.loads((path / _RECORD).read_text())


def verify(path: str | os.PathLike[str]) -> None:
    """Compares every file with the manifest.

    Raises:
      CheckpointError: naming the first file that is missing, altered or unknown.
    """
    path = Path(path).absolute()
    files = _read_manifest(path)["files"]
    for name, entry in files.items():
        _check_file(path, name, entry)
    for name in sorted(set(_files(path)) - set(files)):
        raise CheckpointError(f"checkpoint {path}: {name} is not in the manifest")


def remove(path: str | os.PathLike[str]) -> None:
    """Removes a checkpoint, and what killed saves left beside it; there may be none.

    With several processes all of them call it.

    Raises:
      CheckpointError: ``path`` is something else.
    """
    path = Path(path).absolute()
    _refuse(path, overwrite=True)
    _barrier("found")
    if jax.process_index() == 0:
        for there in (path, _sibling(path, "tmp"), _sibling(path, "old")):
            _remove(there)
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


# ---------------------------------------------------------------- leaves


def _leaves(tree: Any) -> dict[str, tuple[_Spec, Any]]:
    """Leaf path -> (how it is stored, the leaf), in the order of the tree."""
    found: dict[str, tuple[_Spec, Any]] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)
        name = "/".join(path)
        if name in found:
            raise ValueError(f"expected distinct leaf paths, got {name!r} twice")
        leaf = leaf if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else np.asarray(leaf)
        if not _is_key(leaf) and leaf.dtype.kind in "OUSM":  # objects, texts, dates
            raise TypeError(f"leaf {name!r}: expected an array, got dtype {leaf.dtype}")
        found[name] = _spec(path, leaf), leaf
    return found


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _spec(path: tuple[str, ...], leaf: Any) -> _Spec:
    if not _is_key(leaf):
        return _Spec(path, tuple(leaf.shape), str(leaf.dtype))
    data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    # An abstract key tells its generator by its dtype only; that is what is compared.
    impl = str(jax.random.key_impl(leaf) if isinstance(leaf, jax.Array) else leaf.dtype)
    return _Spec(path, data.shape, str(leaf.dtype), impl)


def _compare(path: Path, wanted: dict[str, _Spec], stored: dict[str, _Spec]) -> None:
    for name in [*wanted, *(name for name in stored if name not in wanted)]:
        expected, got = wanted.get(name), stored.get(name)
        if not (expected and got) or expected[1:3] != got[1:3]:
            raise CheckpointError(
                f"checkpoint {path}: leaf {name!r}: "
                f"expected {expected or 'none'}, got {got or 'none'}"
            )


def _target(leaf: Any, spec: _Spec) -> Any:
    """What tells Orbax the kind of array to make: a sharded one or a NumPy array."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or (isinstance(leaf, jax.Array) and not leaf.committed):
        return spec.template()
    dtype = jnp.uint32 if spec.impl else leaf.dtype
    return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=sharding)


def _finish(array: Any, leaf: Any, spec: _Spec) -> Any:
    if isinstance(leaf, np.ndarray | np.generic):
        return array
    array = jnp.array(array) if isinstance(array, np.ndarray) else array
    return jax.random.wrap_key_data(array, impl=spec.impl) if spec.impl else array


def _nest(leaves: dict[tuple[str, ...], Any]) -> Any:
    if () in leaves:
        return leaves[()]
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = leaf
    return tree


# ---------------------------------------------------------------- arrays, by Orbax


def _write_arrays(path: Path, leaves: dict[str, tuple[_Spec, Any]]) -> None:
    arrays = {name: _storable(leaf) for name, (spec, leaf) in leaves.items() if not spec.empty}
    if arrays:  # Orbax refuses an empty tree
        ocp.save(path, arrays)


def _storable(leaf: Any) -> Any:
    array = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    if isinstance(array, jax.Array):
        # Orbax cannot save what one process of several holds alone, except from NumPy.
        local = jax.process_count() > 1 and array.is_fully_addressable
        return np.asarray(array) if local else array
    return np.asarray(array)


def _read_arrays(path: Path, stored: dict[str, _Spec], targets: dict[str, Any]) -> dict[str, Any]:
    arrays = {name: _empty(targets[name]) for name, spec in stored.items() if spec.empty}
    wanted = {name: target for name, target in targets.items() if name not in arrays}
    if wanted:
        with _reported(f"cannot read checkpoint {path}"):
            arrays |= ocp.load(path / _VARIABLES, wanted)
    return arrays


def _empty(target: Any) -> Any:
    array = np.zeros(target.shape, target.dtype)
    return array if isinstance(target, np.ndarray) else jax.device_put(array, target.sharding)


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turns any exception (Orbax has many kinds) into the one that users know."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{what}: {error}") from error


# ---------------------------------------------------------------- files


def _files(path: Path) -> list[str]:
    """Every file below ``path`` but the manifest, relative, sorted."""
    names = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sorted(name for name in names if name != _MANIFEST)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    """Of the manifest itself, without its own entry."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _write_manifest(path: Path, specs: list[_Spec]) -> None:
    files = {
        name: {"sha256": _sha256(path / name), "size": (path / name).stat().st_size}
        for name in _files(path)
    }
    manifest: dict[str, Any] = {"files": files, "leaves": [spec._asdict() for spec in specs]}
    manifest["digest"] = _digest(manifest)
    (path / _MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def _read_manifest(path: Path) -> dict[str, Any]:
    if not (path / _MANIFEST).is_file():
        former = _sibling(path, "old")
        hint = f"; the one it was to replace is in {former}" if former.exists() else ""
        raise CheckpointError(f"expected a checkpoint, got {path} without {_MANIFEST}{hint}")
    with _reported(f"checkpoint {path}: {_MANIFEST} is damaged"):
        manifest = json.loads((path / _MANIFEST).read_text())
        if manifest["digest"] != _digest(manifest):
            raise ValueError("sha256 differs")
    return manifest


def _specs(manifest: dict[str, Any]) -> list[_Spec]:
    return [
        _Spec(tuple(leaf["path"]), tuple(leaf["shape"]), leaf["dtype"], leaf["impl"])
        for leaf in manifest["leaves"]
    ]


def _check_file(path: Path, name: str, entry: dict[str, Any]) -> None:
    file = path / name
    if not file.is_file():
        raise CheckpointError(f"checkpoint {path}: {name} is missing")
    if (size := file.stat().st_size) != entry.get("size"):
        raise CheckpointError(
            f"checkpoint {path}: {name}: expected {entry.get('size')} bytes, got {size}"
        )
    if _sha256(file) != entry["sha256"]:
        raise CheckpointError(f"checkpoint {path}: {name} is damaged: sha256 differs")


def _refuse(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not overwrite:
        raise CheckpointError(f"{path} exists; --force replaces it")
    if not (path / _MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(
            f"expected a checkpoint to replace or remove, got {path}: left as it is"
        )


def _sibling(path: Path, kind: str) -> Path:
    # Fixed, so that all processes agree and a leftover is found again.
    return path.with_name(f".{path.name}.{kind}")


def _publish(temporary: Path, path: Path) -> None:
    former = _sibling(path, "old")
    if path.exists():
        _remove(former)
        path.rename(former)
    temporary.rename(path)
    _remove(former)


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _barrier(stage: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"jaxunlearn.checkpoint.{stage}")
