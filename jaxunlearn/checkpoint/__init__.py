"""Checkpoints: a pytree of arrays and a JSON record in one folder, verified on reading.

A checkpoint is ``PATH/{record.json, leaves.json, variables/, manifest.json}``. The folder
is written beside ``PATH`` and renamed, so that ``PATH`` is either absent or complete; the
manifest lists every file with its sha256.

Beside ``PATH`` lie, while it is written, ``.NAME.tmp`` (the new one) and ``.NAME.old`` (the one
that it replaces), each with a file ``.writing`` that tells them from folders of the user's.

A save may go on beside the program (:func:`save_async`); whatever this process does next with
that checkpoint waits for its end.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxunlearn import __version__
from jaxunlearn.checkpoint import arrays
from jaxunlearn.core.errors import CheckpointError, sentence
from jaxunlearn.core.files import hold, is_held, sha256, write_text
from jaxunlearn.core.processes import fail, meet, meet_beside, several

__all__ = [
    "Saving",
    "amend",
    "check_replaceable",
    "clean",
    "digest",
    "load",
    "read_manifest",
    "read_record",
    "remove",
    "save",
    "save_async",
    "verify",
    "versions",
    "wait",
]

_RECORD, _MANIFEST, _WRITING = "record.json", "manifest.json", ".writing"
_OWN = (_RECORD, _MANIFEST, _WRITING, arrays.LEAVES)


def save(
    path: str | os.PathLike[str], tree: Any, record: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Writes a checkpoint; ``path`` appears only once it is complete and was read back.

    With several processes of one program all of them call it, on a file system they share.

    Args:
      path: folder to be made, with its parents. A link is followed.
      tree: pytree of arrays, numbers and typed keys, sharded in any way. An array that
        only one process holds is taken from process 0.
      record: whatever JSON can hold: configuration, :func:`versions`, metrics.
      overwrite: replace a checkpoint at ``path``, which is removed after the new one is
        complete.

    Raises:
      CheckpointError: ``path`` exists (and ``overwrite`` is not set, or it is no
        checkpoint), also if it was made while this one was written; another program is
        writing it; or writing failed.
      TypeError: ``record`` is not JSON, or a leaf is not an array.
    """
    path, text, leaves = _asked(path, tree, record, overwrite)
    _write(path, text, leaves, overwrite)


class Saving:
    """A save under way beside the program.

    Attributes:
      path: of the checkpoint.
      seconds: that it took, once it is done; without what :func:`save_async` itself took.
    """

    def __init__(self, path: Path, write: Callable[[], None]) -> None:
        self.path, self.seconds = path, 0.0
        self._write: Callable[[], None] | None = write
        self._error: Exception | None = None
        # as if killed, where the program ends before: what it left is removed by the next save
        self._thread = threading.Thread(target=self._run, name=f"save {path.name}", daemon=True)

    def _run(self) -> None:
        begin = time.perf_counter()
        try:
            if self._write is not None:
                self._write()
        except Exception as error:
            if several():  # they would wait for this one, and nobody may ask for the result
                fail(sentence(error))
            self._error = error
            traceback.clear_frames(error.__traceback__)
        self._write = None  # whoever keeps this must not keep the copied arrays
        self.seconds = time.perf_counter() - begin

    def done(self) -> bool:
        """Tells whether it has ended, in whatever way."""
        return not self._thread.is_alive()

    def result(self, timeout: float | None = None) -> None:
        """Waits for its end.

        Args:
          timeout: seconds to wait at most.

        Raises:
          CheckpointError: it failed; nothing was put in the place of the former checkpoint.
        """
        self._thread.join(timeout)
        if self._error is not None:
            raise self._error


def save_async(
    path: str | os.PathLike[str], tree: Any, record: dict[str, Any], *, overwrite: bool = False
) -> Saving:
    """Writes a checkpoint while the program goes on; returns once the arrays are copied.

    The arrays may be changed or donated after that. Arguments are those of :func:`save`, and so
    are errors that are known before anything is written; the others are raised by
    ``Saving.result``. One save is under way at a time: another one waits for it.

    With several processes of one program all of them call it, and wait for each other here.
    """
    path, text, leaves = _asked(path, tree, record, overwrite)
    leaves = arrays.copied(leaves)
    # of several processes all have to begin at the same place of the program
    write = partial(_write, path, text, leaves, overwrite)
    saving = Saving(path, _begin(path, text, leaves, overwrite) if several() else write)
    _UNDER_WAY.append(saving)
    saving._thread.start()
    return saving


_UNDER_WAY: list[Saving] = []


def wait(folder: str | os.PathLike[str] = "/", timeout: float | None = None) -> None:
    """Waits for saves under way in or below a folder, whether or not they succeed.

    Args:
      timeout: seconds to wait for each at most.
    """
    place = _resolve(folder)
    for saving in list(_UNDER_WAY):
        if saving.path.is_relative_to(place):
            with contextlib.suppress(Exception):
                saving.result(timeout)
            if saving.done() and saving in _UNDER_WAY:
                _UNDER_WAY.remove(saving)


def _asked(
    path: str | os.PathLike[str], tree: Any, record: dict[str, Any], overwrite: bool
) -> tuple[Path, str, arrays.Leaves]:
    """Checks what is to be saved, and that no other save is under way."""
    text = json.dumps(record, indent=2, sort_keys=True)
    leaves = arrays.flatten(tree)
    wait()
    path = _resolve(path)
    check_replaceable(path, overwrite)
    return path, text, leaves


def _write(path: Path, text: str, flat: arrays.Leaves, overwrite: bool) -> None:
    _begin(path, text, flat, overwrite)()


def _begin(path: Path, text: str, flat: arrays.Leaves, overwrite: bool) -> Callable[[], None]:
    """Begins a save; returns what ends it, which may be called in a thread."""
    temporary, held = _sibling(path, "tmp"), contextlib.ExitStack()
    meet("checkpoint/checked")  # no process may look at PATH after another began to change it
    if jax.process_index() == 0:
        for leftover in (temporary, _sibling(path, "old")):
            _check_leftover(path, leftover)
    with _undone_by_errors(path, held):
        if jax.process_index() == 0:
            _remove_folder(temporary)  # of a save that was killed
            temporary.mkdir(parents=True)
            held.enter_context(hold(temporary / _WRITING, path, keep=True))
        meet("checkpoint/begun")
        # no function with a closure, which an error's traceback would keep with its arrays
        return partial(_end, path, text, overwrite, held, arrays.begin(temporary, flat))


def _end(
    path: Path, text: str, overwrite: bool, held: contextlib.ExitStack, finish: Callable[[], None]
) -> None:
    temporary = _sibling(path, "tmp")
    with _undone_by_errors(path, held):
        finish()
        meet_beside("checkpoint/written")
        if jax.process_index() == 0:
            (temporary / _RECORD).write_text(text + "\n")
            _write_manifest(temporary)
            _publish(temporary, path, overwrite)
    held.close()
    if jax.process_index() == 0:
        # the lock moved with its folder
        (path / _WRITING).unlink(missing_ok=True)
    meet_beside("checkpoint/done")


@contextlib.contextmanager
def _undone_by_errors(path: Path, held: contextlib.ExitStack) -> Iterator[None]:
    """Removes what was begun, and lets go of it, where that fails."""
    try:
        yield
    except Exception as error:
        if jax.process_index() == 0:
            _remove_folder(_sibling(path, "tmp"))
        held.close()
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"cannot write checkpoint {path}: {sentence(error)}") from error


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
    wait(path)
    verify(path)
    record = _parse_record(path)
    return arrays.read(path, like), record


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the record alone, verified; reads no arrays.

    Raises:
      CheckpointError: not a checkpoint, or the record or the manifest is damaged.
    """
    path = Path(path).absolute()
    _compare(path, _RECORD, read_manifest(path)[_RECORD])
    return _parse_record(path)


def verify(path: str | os.PathLike[str]) -> None:
    """Compares every file with the manifest.

    Raises:
      CheckpointError: naming the first file that is missing, altered or unknown.
    """
    path = Path(path).absolute()
    sums = read_manifest(path)
    for name, expected in sums.items():
        _compare(path, name, expected)
    for name in _files(path):
        if name not in sums:
            raise CheckpointError(f"checkpoint {path}: {name} is not in {_MANIFEST}")


def read_manifest(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns the sha256 of each file of a checkpoint but the manifest, by its name there.

    Raises:
      CheckpointError: not a checkpoint, or a damaged manifest.
    """
    path = Path(path).absolute()
    if not (path / _MANIFEST).is_file():
        former = _sibling(path, "old")
        hint = f"; the one it was to replace is in {former}" if former.exists() else ""
        raise CheckpointError(f"expected a checkpoint, got {path} without {_MANIFEST}{hint}")
    try:
        sums = json.loads((path / _MANIFEST).read_text())
        if not isinstance(sums, dict) or not {_RECORD, arrays.LEAVES} <= set(sums):
            raise ValueError(f"expected the sha256 of {_RECORD} and {arrays.LEAVES}")
    except (OSError, ValueError, RecursionError) as error:  # text that is no JSON is a ValueError
        raise CheckpointError(
            f"checkpoint {path}: {_MANIFEST} is damaged: {sentence(error)}"
        ) from error
    return sums


def digest(path: str | os.PathLike[str]) -> str:
    """Returns the sha256 of a checkpoint's manifest, which changes with any of its files.

    Raises:
      CheckpointError: not a checkpoint.
    """
    path = Path(path).absolute()
    read_manifest(path)
    return sha256(path / _MANIFEST)


def amend(path: str | os.PathLike[str], change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Changes the record of a checkpoint, and leaves its arrays as they are.

    If the program is stopped meanwhile, the same call again finishes the work: until then the
    checkpoint is damaged.

    Args:
      change: returns the new record, and a record that it made as it is.

    Raises:
      CheckpointError: not a checkpoint, or the record is damaged otherwise.
    """
    path = _resolve(path)
    sums, record = read_manifest(path), _parse_record(path)
    text = json.dumps(change(record), indent=2, sort_keys=True) + "\n"
    if text != (path / _RECORD).read_text():
        _compare(path, _RECORD, sums[_RECORD])
        write_text(path / _RECORD, text)
    new = {**sums, _RECORD: sha256(path / _RECORD)}
    if new != sums:
        write_text(path / _MANIFEST, json.dumps(new, indent=2) + "\n")


def remove(path: str | os.PathLike[str]) -> None:
    """Removes a checkpoint, and what killed saves left beside it; there may be none.

    With several processes all of them call it.

    Raises:
      CheckpointError: ``path`` is something else.
    """
    path = _resolve(path)
    wait(path)
    check_replaceable(path, overwrite=True)
    meet("checkpoint/found")
    if jax.process_index() == 0:
        _remove_folder(path)
        for there in _leftovers(path):
            _remove_folder(there)
    meet("checkpoint/removed")


def clean(path: str | os.PathLike[str]) -> None:
    """Mends what killed saves left beside a checkpoint, which may or may not be there.

    A former one that was moved aside comes back where the new one did not take its place;
    the rest is removed, but folders of any other kind.
    """
    path = _resolve(path)
    wait(path)
    former = _sibling(path, "old")
    if not path.exists() and former in _leftovers(path) and (former / _MANIFEST).is_file():
        former.rename(path)
        (path / _WRITING).unlink(missing_ok=True)
    for there in _leftovers(path):
        _remove_folder(there)


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Checks that a checkpoint may be written to ``path``.

    Raises:
      CheckpointError: there is one and ``overwrite`` is not set, or there is something else.
    """
    if not path.exists():
        return
    if not overwrite:
        raise CheckpointError(f"{path} exists; overwrite=True (--force) replaces it")
    if strange := _strange(path):
        raise CheckpointError(
            f"expected a checkpoint to replace or remove, got {path} with {strange}: left as it is"
        )


def versions() -> dict[str, Any]:
    """Returns what a result may depend on: versions of Python and libraries, and the devices."""
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


def _write_manifest(path: Path) -> None:
    """Lists all files below ``path`` in its manifest, each with its sha256.

    The files are listed because Orbax restores overwritten bytes without a complaint. The
    manifest needs no sum of its own: altered, it no longer agrees with the files.
    """
    sums = {name: sha256(path / name) for name in _files(path)}
    (path / _MANIFEST).write_text(json.dumps(sums, indent=2) + "\n")


def _sibling(path: Path, kind: str) -> Path:
    """Returns the folder where one is made (``"tmp"``), or its former kept (``"old"``)."""
    # fixed, so that all processes agree and a leftover is found again
    return path.with_name(f".{path.name}.{kind}")


def _resolve(path: str | os.PathLike[str]) -> Path:
    """Returns the place that a path, perhaps a link, stands for."""
    return Path(os.path.realpath(path))


def _strange(path: Path) -> str:
    """Returns what shows that a folder is no checkpoint, not even a damaged one; else nothing."""
    if not path.is_dir():
        return "what is no folder"
    names = sorted(entry.name for entry in path.iterdir())
    strange = [n for n in names if n not in _OWN and not n.startswith(arrays.VARIABLES)]
    if strange:
        return f"{strange[0]} in it"
    known = {_RECORD, _MANIFEST, _WRITING, arrays.LEAVES} & set(names)
    return "" if known or not names else f"{names[0]} alone in it"


def _leftovers(path: Path) -> list[Path]:
    """Lists what killed saves left beside a checkpoint."""
    # a complete checkpoint may be the user's own, of this very name
    return [
        there
        for there in (_sibling(path, "tmp"), _sibling(path, "old"))
        if there.is_dir() and not there.is_symlink() and not _strange(there)
        and not is_held(there / _WRITING)
        and ((there / _WRITING).exists() or not (there / _MANIFEST).exists())
    ]  # fmt: skip


def _check_leftover(path: Path, there: Path) -> None:
    """Checks that what lies in a place that saving needs may be removed."""
    if not (there.exists() or there.is_symlink()) or there in _leftovers(path):
        return
    if is_held(there / _WRITING):
        with hold(there / _WRITING, path):  # which says who holds it
            return
    raise CheckpointError(
        f"cannot write checkpoint {path}: expected nothing at {there}, which it needs "
        "while it is written, got a folder of another kind: left as it is"
    )


def _publish(temporary: Path, path: Path, overwrite: bool) -> None:
    """Renames a complete folder to ``path``; a former one is removed after that."""
    former = _sibling(path, "old")
    if overwrite and path.exists():
        _remove_folder(former)
        (path / _WRITING).touch()
        path.rename(former)
    try:
        # fails where another program made one meanwhile, which is never replaced
        temporary.rename(path)
    except OSError as error:
        if former.exists() and not path.exists():
            former.rename(path)
            (path / _WRITING).unlink(missing_ok=True)
        if path.exists():
            raise CheckpointError(
                f"{path}: was made by another process meanwhile, and is left as it is; "
                "the same command again takes it from there"
            ) from error
        raise
    _remove_folder(former)


def _remove_folder(path: Path) -> None:
    """Removes a folder, which need not exist."""
    if path.exists():
        shutil.rmtree(path)


def _parse_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads((path / _RECORD).read_text())
        if not isinstance(record, dict):
            raise ValueError("expected an object")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"checkpoint {path}: {_RECORD} is damaged: {sentence(error)}"
        ) from error
    return record


def _compare(path: Path, name: str, expected: str) -> None:
    if not (path / name).is_file():
        raise CheckpointError(f"checkpoint {path}: {name} is missing, but in {_MANIFEST}")
    if sha256(path / name) != expected:
        raise CheckpointError(
            f"checkpoint {path}: {name} is damaged: its sha256 is not the one in {_MANIFEST}"
        )


def _files(path: Path) -> list[str]:
    """Lists every file below ``path`` but the manifest, relative, sorted."""
    names = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sorted(name for name in names if name not in (_MANIFEST, _WRITING))
