"""Errors that a user can mend; the command line prints them without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave is wrong; the message says what was expected."""


class ConfigError(UserError):
    """A configuration names an unknown key or holds a value of the wrong kind."""


class DataError(UserError):
    """A data set is missing, incomplete or not of the expected form."""


class RequestError(UserError):
    """A request to forget cannot be met: nothing, everything, or out of range."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or would be overwritten."""


class DivergenceError(UserError):
    """A loss or a parameter stopped being finite; the message gives the step."""


def expect(name: str, value: object, kind: type, hint: str = "") -> None:
    """Raises a ``TypeError`` "name: expected X, got Y" for a value of another type."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {kind.__name__}, got {type(value).__name__}{hint}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` with the known names nearest to ``name``, or nothing."""
    close = difflib.get_close_matches(name, set(known) - {name}, n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
