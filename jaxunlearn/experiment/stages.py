"""A run is a folder, and each model in it a stage that is made once.

A stage remembers what it depends on (its *inputs*). A run with the same inputs loads it; with
others it is an error, never an overwrite, unless forced. While it is being made its state is
saved beside it, so that a killed run resumes.
"""

import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import checkpoint
from jaxunlearn.checkpoint import check_replaceable
from jaxunlearn.core.errors import CheckpointError
from jaxunlearn.core.processes import several, shared
from jaxunlearn.core.types import State, Variables
from jaxunlearn.engine.driver import Progress, Resume

SAVE_EVERY = 30.0
"""Seconds between two saves of an unfinished stage, at least."""
FIRST_SAVE = 2.0
"""Seconds to the first, at least."""
SHARE = 0.05
"""Share of the time that saves may take, after the first: a slow one puts off the next."""


class Stop:
    """A wish to end the program once the model under way is saved.

    Attributes:
      asked: whether somebody wants it, by Ctrl-C say; only its owner sets it.
      looked: when a model under way could last be saved, by ``time.monotonic``.
      saving: whether one is being saved.
    """

    asked = False
    looked = float("-inf")
    saving = False


STOP = Stop()


UNFINISHED = ".unfinished"
"""What the name of an unfinished stage ends in."""


class Stage(NamedTuple):
    """Folder of a model, and all that it depends on.

    Attributes:
      path: the checkpoint's folder.
      inputs: JSON; equal inputs give equal numbers.
    """

    path: Path
    inputs: Mapping[str, Any]


def check_stage(stage: Stage, force: bool) -> bool:
    """Tells whether the stage is there already, as the first process finds it.

    Raises:
      CheckpointError: it is there, but with other inputs, and ``force`` is not set.
    """
    return bool(shared(_check_own(stage, force)))


def _check_own(stage: Stage, force: bool) -> bool:
    if not stage.path.exists():
        return False
    if force:
        # a folder of the user's in this place is found out before any training
        check_replaceable(stage.path, overwrite=True)
        return is_there(stage)
    there = checkpoint.read_record(stage.path).get("inputs")
    if there == _plain(stage.inputs):
        return True
    before, now = (inputs and inputs.get("jaxunlearn") for inputs in (there, stage.inputs))
    what = f"other settings ({_difference(there, stage.inputs)})"
    if before and before != now:
        what = f"jaxunlearn {before}, whose numbers this version, {now}, does not repeat"
    raise CheckpointError(
        f"{stage.path}: was made with {what}; "
        "give the run another name (name=...), or overwrite with --force"
    )


def is_there(stage: Stage) -> bool:
    """Tells whether a sound model lies there that was made with the stage's own settings."""
    try:
        checkpoint.verify(stage.path)
        return checkpoint.read_record(stage.path).get("inputs") == _plain(stage.inputs)
    except CheckpointError:
        return False


def read_stage(stage: Stage) -> dict[str, Any]:
    """Verifies a model against its manifest and returns its record, without its arrays."""
    try:
        checkpoint.verify(stage.path)
        return checkpoint.read_record(stage.path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; --force makes this model again") from error


def load_stage(stage: Stage, like: Variables) -> tuple[Variables, dict[str, Any]]:
    """Reads the model and its record, verified against its manifest."""
    try:
        return checkpoint.load(stage.path, like)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; --force makes this model again") from error


def state_of(stage: Stage) -> str:
    """Returns what tells the folder that lies in a stage's place now from any other; or nothing."""
    try:
        found = stage.path.stat()
    except OSError:
        return ""
    return f"{found.st_dev}-{found.st_ino}-{found.st_mtime_ns}"


def finish_stage(
    stage: Stage, variables: Variables, record: Mapping[str, Any], *, replaces: str = ""
) -> dict[str, Any]:
    """Saves a finished model and removes what was kept of its making.

    Args:
      replaces: what :func:`state_of` said when the stage was checked: that is replaced.

    Returns:
      The record as it is read again, so that a later run's report is the same to the letter.

    Raises:
      CheckpointError: something else lies there by now, which another process made.
    """
    full = {"inputs": _plain(stage.inputs), **record}
    if state_of(stage) != replaces:
        raise CheckpointError(
            f"{stage.path}: was made by another process meanwhile, and is left as it is; "
            "the same command again takes it from there"
        )
    checkpoint.save(stage.path, variables, full, overwrite=bool(replaces))
    Keeper(stage).forget()
    found: dict[str, Any] = json.loads(json.dumps(full, sort_keys=True))
    return found


class Keeper:
    """Saves the state of an unfinished stage now and then, and finds it again."""

    def __init__(self, stage: Stage) -> None:
        self.path = stage.path.with_name(stage.path.name + UNFINISHED)
        self.inputs = _plain(stage.inputs)
        self.saved = time.monotonic()
        self.blocked = 0.0
        self.saving: checkpoint.Saving | None = None

    def _pause(self) -> float:
        """Returns the seconds from the last save to the next."""
        if self.saving is None:
            return min(FIRST_SAVE, SAVE_EVERY)
        if not self.saving.done():
            return float("inf")
        self.saving.result()
        # where the devices are the processor itself, what is beside the program slows it down
        beside = self.saving.seconds if jax.default_backend() == "cpu" else 0.0
        return max(SAVE_EVERY, (self.blocked + beside) / SHARE)

    def keep(self, progress: Progress) -> None:
        """Saves the state after a chunk if the last save is some time ago, or the end is wanted.

        The program goes on while files are written, but for a wanted end.

        Raises:
          CheckpointError: the save before this one failed.
          KeyboardInterrupt: the end was wanted; the message says what is saved.
        """
        STOP.looked, ended = time.monotonic(), STOP.asked
        late = STOP.looked - self.saved >= self._pause()
        if progress.step == progress.steps:
            STOP.looked = float("-inf")
            return
        late, ended = shared([late or ended, ended])
        if not late:
            return
        record = {
            "inputs": self.inputs,
            "step": progress.step,
            "seconds": progress.seconds,
            "history": {name: value.tolist() for name, value in progress.history.items()},
        }
        STOP.saving = True
        try:
            begin = time.monotonic()
            state = progress.state
            self.saving = checkpoint.save_async(self.path, state, record, overwrite=True)
            if ended:
                self.saving.result()
        finally:
            STOP.saving = False
        self.saved = time.monotonic()
        self.blocked = self.saved - begin
        if ended:
            name = self.path.name.removesuffix(UNFINISHED)
            raise KeyboardInterrupt(f"{name} is saved at step {progress.step} of {progress.steps}")

    def find(self, fresh: State) -> Resume | None:
        """Returns the state of a killed run; ``None`` if it left nothing, or nothing of use.

        Raises:
          CheckpointError: of several processes, which go on together, this one cannot read it.
        """
        if not shared(self._is_of_use()):
            return None
        try:
            state, record = checkpoint.load(self.path, fresh)
        except CheckpointError:
            if several():
                raise
            # only a convenience: a damaged one costs time, not correctness
            return None
        history = {name: np.asarray(v, np.float32) for name, v in record["history"].items()}
        return Resume(state, record["step"], record["seconds"], history)

    def _is_of_use(self) -> bool:
        """Tells whether a state is there that was begun with the same settings."""
        try:
            if not self.path.exists():
                return False
            there = checkpoint.read_record(self.path).get("inputs")
        except CheckpointError:
            return False
        # of a program for several models, some may be there by now
        if there != self.inputs and "members" not in self.inputs:
            warnings.warn(
                f"{self.path}: was begun with other settings "
                f"({_difference(there, self.inputs)}), and is begun anew",
                stacklevel=3,
            )
        return bool(there == self.inputs)

    def forget(self) -> None:
        """Removes what was kept."""
        checkpoint.remove(self.path)


def _plain(value: Any) -> Any:
    """Returns a value as JSON gives it back: tuples are lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _difference(there: Any, asked: Any, prefix: str = "") -> str:
    there, asked = _plain(there), _plain(asked)
    if not (isinstance(there, dict) and isinstance(asked, dict)):
        return f"{prefix or 'inputs'}: {there!r} there, {asked!r} asked"
    found = [
        _difference(there.get(key), asked.get(key), f"{prefix}.{key}" if prefix else key)
        for key in sorted({*there, *asked})
        if there.get(key) != asked.get(key)
    ]
    return "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")
