"""Runs as a user makes them, without what takes long and need be shown but once."""

import contextlib

from jaxunlearn import experiment
from jaxunlearn import report as files
from jaxunlearn.experiment import trial


def hurry(patch, *, report=False, pictures=False):
    """Has runs find their programs, and time them once; draws no more than is asked for."""
    patch.setattr(trial, "_cold_compilation", contextlib.nullcontext)
    patch.setattr(trial, "REPEATS", 1)
    if not report:
        patch.setattr(files, "save_png", lambda made, path: None)
    if not pictures:
        patch.setattr(experiment, "draw_album", lambda made: [])
