"""The folder of a run: held by one process, free of what killed runs left, its models known."""

import contextlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxunlearn import checkpoint
from jaxunlearn.core.errors import CheckpointError, ConfigError, sentence
from jaxunlearn.core.files import hold
from jaxunlearn.core.processes import meet, several, shared
from jaxunlearn.experiment.stages import UNFINISHED
from jaxunlearn.kinds import KINDS
from jaxunlearn.models import NETWORKS

LOCK = "run.lock"
FILES = ("config.json", "sets.npz", "judgement.json", "metrics.jsonl", "examples.npz", "drawn.json")
"""Files of a run, beside reports and pictures."""
KEPT = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
"""Files of what language models need elsewhere."""

SHARED_WITHIN = 10.0
"""Seconds in which processes see what the first has written."""
MOST_WAIT = 3.0
"""Seconds that the end of a run waits for a save."""

PURGE = "erasure/purge.json"
"""Says what a purge removed, is about to remove, and could not reach."""

TRIAL = r"((?P<trial>(seed|class|turn)_\d+)/)?"
MODEL = re.compile(rf"{TRIAL}(?P<place>original|helpers|pools|unlearned|retrained)(/[^/]+)?")
"""Places of a run's models in its folder; what lies elsewhere is the user's."""

_HALF = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")
_ASIDE = re.compile(r"\.(?P<name>.+)\.(tmp|old)")


@contextlib.contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Holds the folder of a run, so that no two programs work in it.

    Raises:
      CheckpointError: another process holds it; the message says which, and since when. Or it was
        purged.
      ConfigError: several processes of one program have other folders, or the same name on disks
        that they do not share.
    """
    with contextlib.ExitStack() as stack:
        # of several processes of one program, the first stands for all
        wrong, nonce = "", uuid.uuid4().hex
        if jax.process_index() == 0:
            try:
                check_not_purged(folder)
                stack.enter_context(hold(folder / LOCK, folder, nonce=nonce))
            except CheckpointError as error:
                wrong = str(error)
        wrong, nonce, place = shared([wrong, nonce, os.path.abspath(folder)])
        if wrong:
            raise CheckpointError(wrong)
        _check_same(folder, nonce, place)
        meet("held")
        # no save may go on in a folder that is no longer held; one that takes long is given up
        stack.callback(checkpoint.wait, folder, MOST_WAIT)
        yield


def _check_same(folder: Path, nonce: str, place: str) -> None:
    """Checks that a folder is the one that the first process holds, before any work is lost.

    Args:
      nonce: what the first process wrote into its lock.
      place: the folder of the first process.
    """
    if not several():
        return
    number, own = jax.process_index(), os.path.abspath(folder)
    if own != place:
        raise ConfigError(
            f"runs: expected the folder of process 0, {place}, got {own} in process {number}"
        )
    end = time.monotonic() + SHARED_WITHIN
    while not _holds(folder, nonce):
        if time.monotonic() > end:
            raise ConfigError(
                f"runs: expected the folder of process 0 on a file system that all share, got "
                f"another {own} in process {number}"
            )
        time.sleep(0.1)


def _holds(folder: Path, nonce: str) -> bool:
    """Tells whether the lock of a folder has this mark."""
    try:
        os.listdir(folder.parent)  # of a file system of other machines what is new
        os.listdir(folder)
        return bool(json.loads((folder / LOCK).read_bytes())["nonce"] == nonce)
    except (OSError, ValueError, TypeError, KeyError):  # not there yet, or half-written
        return False


def purge_of(folder: Path) -> dict[str, Any] | None:
    """Returns what a purge wrote down; ``None`` where there was none.

    Raises:
      CheckpointError: it is damaged.
    """
    try:
        found = json.loads((folder / PURGE).read_text(encoding="utf-8"))
        if not {"state", "begun", "removed"} <= set(found):
            raise ValueError("expected state, begun and removed")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder / PURGE}: is damaged: {sentence(error)}") from error
    return dict(found)


def check_not_purged(folder: Path) -> None:
    """Checks that nothing was purged from the folder of a run, which would be made again.

    Raises:
      CheckpointError: it was, or is being purged.
    """
    gone = purge_of(folder)
    if gone is not None:
        raise CheckpointError(
            f"{folder}: was purged on {gone['begun']}: its original and whatever else held the "
            "forgotten data are gone, and are not made again; give the run another name (name=...)"
        )


def mend_run(folder: Path) -> None:
    """Removes files and checkpoints that killed runs left half-written, and moves former ones back.

    Folders and files of the user's are left alone, and what unfinished models were kept.
    """
    for path in _walk(folder) if jax.process_index() == 0 else ():
        half, aside = _HALF.fullmatch(path.name), _ASIDE.fullmatch(path.name)
        if path.is_file() and not path.is_symlink() and half:
            name = half["name"]
            if name in (*FILES, *KEPT) or name.startswith("report.") or name.endswith(".png"):
                path.unlink()
        elif path.is_dir() and aside:
            checkpoint.clean(path.with_name(aside["name"]))
    meet("mended")


def drop_unfinished(folder: Path, wanted: Collection[Path]) -> None:
    """Removes unfinished models that a run does not go on with: they hold what was forgotten.

    Args:
      wanted: places of those that it goes on with.
    """
    found = []
    for path in _walk(folder):
        # a link, or a checkpoint that is none of a run's, is the user's
        if path.name.endswith(UNFINISHED) and path not in wanted and not path.is_symlink():
            with contextlib.suppress(CheckpointError):
                if "step" in checkpoint.read_record(path):
                    found.append(str(path))
    for name in shared(found):
        checkpoint.remove(name)


def _walk(folder: Path) -> Iterator[Path]:
    """Yields what lies in a run's folder and its folders, without the inside of checkpoints."""
    for place, names, files in os.walk(folder):
        found = [Path(place) / name for name in (*names, *files)]
        names[:] = [
            name for name in names if not name.startswith(".") and not name.endswith(UNFINISHED)
            and not (Path(place) / name / "manifest.json").exists()
        ]  # fmt: skip
        yield from found


def models_of(folder: Path) -> list[Path]:
    """Lists the finished models of a run, complete or damaged."""
    return sorted(
        path
        for path in _walk(folder)
        if path.is_dir() and (path / "manifest.json").exists() and path.name[0] != "."
    )


def export_model(stage: Path, folder: Path) -> None:
    """Writes a model of a run as others read it: a language model as Hugging Face has it.

    Args:
      stage: the model's checkpoint, ``runs/tofu_mini/unlearned/npo``.
      folder: appears when it is complete.

    Raises:
      CheckpointError: no model of a run there, a damaged one, or the folder is in use.
      ConfigError: the model's kind has no such form.
    """
    record = checkpoint.read_record(stage)
    config = record.get("config")
    if not isinstance(config, dict) or "stage" not in record:
        raise CheckpointError(f"model: expected one of a run, RUN/original, got {stage}")
    kind = KINDS[NETWORKS.find(config["model"]["name"], "model.name").kind].kind
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"folder: expected a new or an empty one, got {folder} in use")
    folder = Path(os.path.abspath(folder))
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        kind.export(stage, temporary)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
