"""Runs as a user makes them, without what takes long and need be shown but once."""

import contextlib

import jax

from jaxunlearn import experiment
from jaxunlearn import report as files
from jaxunlearn.experiment import trial


@contextlib.contextmanager
def counted_programs():
    """Yields a list that grows by one with every program that is compiled, or found compiled."""
    found = []

    def note(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def hurry(patch, *, report=False, pictures=False):
    """Has runs find their programs, and time them once; draws no more than is asked for."""
    patch.setattr(trial, "_cold_compilation", contextlib.nullcontext)
    patch.setattr(trial, "REPEATS", 1)
    if not report:
        patch.setattr(files, "save_png", lambda made, path: None)
    if not pictures:
        patch.setattr(experiment, "draw_album", lambda made: [])
