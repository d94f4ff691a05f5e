"""Ctrl-C: the model under way is saved, and the program says how to go on."""

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxunlearn.experiment.stages import Stop

GRACE = 5.0
"""Seconds after Ctrl-C in which a run ends by itself; then it is ended."""


def how_to_go_on(words: Sequence[str], saved: str = "") -> str:
    """Returns the line that an interrupted command ends with.

    Args:
      words: of the command.
      saved: which model was saved, and where.
    """
    where = f"; {saved}" if saved else ""
    return f"interrupted{where}; to go on: {shlex.join(['jaxunlearn', *words])}"


@contextlib.contextmanager
def ended_by_interrupts(words: Sequence[str], wish: "Stop") -> Iterator[None]:
    """Ends the process some seconds after Ctrl-C, whatever it is at; at once after the second.

    A model that is being trained is saved after its next steps. Python tells a program of Ctrl-C
    between two of its own steps: not while XLA compiles or computes, and an exception raised
    within a callback of a library may be lost. What is written appears whole or not at all, so
    that the end may come at any time; a save that has begun is waited for.

    Args:
      words: of the command, as the last line repeats them.
      wish: what tells those who train a model that they shall save it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = f"{how_to_go_on(words)}\n".encode()
    over = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        while told := os.read(reader, 1):
            if told[0] == signal.SIGINT and not over.wait(GRACE):
                while wish.saving:
                    time.sleep(0.05)
                os.write(2, last)
                os._exit(130)
        os.close(reader)

    def stop(number: int, frame: FrameType | None) -> None:
        if wish.asked:
            os.write(2, last)
            os._exit(130)
        wish.asked = True
        if time.monotonic() - wish.looked > GRACE:
            raise KeyboardInterrupt  # nothing is being trained that could be saved
        print("\nsaving; Ctrl-C again ends at once", file=sys.stderr, flush=True)

    threading.Thread(target=watch, daemon=True).start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    former = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        over.set()
        signal.signal(signal.SIGINT, former)
        signal.set_wakeup_fd(before)
        os.close(writer)
        wish.asked = False
