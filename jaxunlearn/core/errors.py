"""Errors that a user can mend; the command line prints them without a traceback."""

import difflib
import numbers
import re
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


class NoEffectError(UserError):
    """A method returned the model that it was given, bit for bit."""


def expect(name: str, value: object, kind: type, hint: str = "") -> None:
    """Raises a ``TypeError`` "name: expected X, got Y" for a value of another type."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {kind.__name__}, got {type(value).__name__}{hint}")


def expect_one_of(known: Iterable[str], **words: object) -> None:
    """Raises a ``ValueError`` "name: expected one of ..." for a word that is not known."""
    for name, value in words.items():
        if value not in (allowed := tuple(known)):
            raise ValueError(f"{name}: expected one of {allowed}, got {value!r}")


def expect_counts(**counts: object) -> None:
    """Raises a ``ValueError`` "name: expected a positive number" unless it is a whole one."""
    for name, value in counts.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < 1:
            raise ValueError(f"{name}: expected a positive number, got {value!r}")


def expect_at_least(least: float, **numbers: float) -> None:
    """Raises a ``ValueError`` "name: expected a number of ... or more", also for NaN."""
    for name, value in numbers.items():
        if not value >= least:
            raise ValueError(f"{name}: expected a number of {least} or more, got {value!r}")


def expect_shares(of: str = "", /, **shares: float) -> None:
    """Raises a ``ValueError`` "name: expected a share above 0, at most 1" for another number."""
    for name, value in shares.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name}: expected a share{of} above 0, at most 1, got {value!r}")


def expect_patterns(words: Iterable[str], **values: object) -> None:
    """Raises a ``ValueError`` for what is neither a known word nor a tuple of regular expressions.

    Messages begin "name: expected one of ... or a tuple of regular expressions", or, of a
    pattern that is none, "name: expected regular expressions".
    """
    allowed = tuple(words)
    for name, value in values.items():
        if isinstance(value, str) and value in allowed:
            continue
        if not isinstance(value, tuple | list) or not value:
            raise ValueError(
                f"{name}: expected one of {allowed} or a tuple of regular expressions, "
                f"got {value!r}"
            )
        for pattern in value:
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise ValueError(
                    f"{name}: expected regular expressions, got {pattern!r}: {error}"
                ) from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` with the known names nearest to ``name``, or nothing."""
    close = difflib.get_close_matches(name, set(known) - {name}, n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
