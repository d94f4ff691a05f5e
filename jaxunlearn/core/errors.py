"""Errors that a user can mend; the command line prints them without a traceback."""

import difflib
import numbers
import re
import reprlib
import unicodedata
from collections.abc import Iterable
from typing import Any


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
    allowed = tuple(known)
    for name, value in words.items():
        if not isinstance(value, str | None) or value not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, got {brief(value)}")


def expect_flags(**flags: object) -> None:
    """Raises a ``ValueError`` "name: expected True or False" for anything else."""
    for name, value in flags.items():
        if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
            raise ValueError(f"{name}: expected True or False, got {brief(value)}")


def expect_counts(**counts: object) -> None:
    """Raises a ``ValueError`` "name: expected a positive number" unless it is a whole one."""
    for name, value in counts.items():
        if not is_count(value):
            raise ValueError(f"{name}: expected a positive number, got {brief(value)}")


def expect_texts(**values: object) -> None:
    """Raises a ``TypeError`` "name: expected a tuple of texts" for anything else, one text too."""
    for name, value in values.items():
        if not isinstance(value, tuple | list) or not all(isinstance(one, str) for one in value):
            raise TypeError(f"{name}: expected a tuple of texts, got {brief(value)}")


def expect_optimizer(optimizer: object) -> None:
    """Raises a ``TypeError`` for what is no optax transformation, such as a name."""
    parts = (getattr(optimizer, part, None) for part in ("init", "update"))
    if isinstance(optimizer, type) or not all(map(callable, parts)):
        raise TypeError(
            "optimizer: expected an optax transformation, such as optax.adam(1e-3), got "
            f"{brief(optimizer)}"
        )


def is_known(value: object) -> bool:
    """Tells whether a number can be compared now: one that a program is traced with cannot.

    Such a number stands for many, those of a sweep; JAX need not be imported to see it.
    """
    return all(kind.__name__ != "Tracer" for kind in type(value).__mro__)


def is_count(value: object) -> bool:
    """Tells a whole number of any type above zero; a boolean is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) > 0


def is_number(value: object) -> bool:
    """Tells a single number, of any type, that float32 holds; a boolean is none."""
    if isinstance(value, bool) or getattr(value, "shape", ()) != ():
        return False
    if not isinstance(value, numbers.Real):  # an array without axes
        dtype = str(getattr(value, "dtype", "bool"))
        if not dtype.lstrip("b").startswith(("float", "int", "uint")):
            return False
    return abs(value) <= 3.4028235e38  # type: ignore[arg-type, no-any-return]


def expect_numbers(**values: object) -> None:
    """Raises a ``ValueError`` "name: expected a number" for what is none, also for NaN."""
    for name, value in values.items():
        if is_known(value) and not is_number(value):
            raise ValueError(f"{name}: expected a number, got {brief(value)}")


def expect_at_least(least: float, **values: Any) -> None:
    """Raises a ``ValueError`` "name: expected a number of ... or more", also for NaN."""
    for name, value in values.items():
        if is_known(value) and not (is_number(value) and value >= least):
            raise ValueError(f"{name}: expected a number of {least} or more, got {brief(value)}")


def expect_positive(hint: str = "", /, **values: Any) -> None:
    """Raises a ``ValueError`` "name: expected a positive number" for another one, also for NaN."""
    for name, value in values.items():
        if is_known(value) and not (is_number(value) and value > 0):
            raise ValueError(f"{name}: expected a positive number, got {brief(value)}{hint}")


def expect_between(least: float, most: float, **values: Any) -> None:
    """Raises a ``ValueError`` "name: expected a number from ... to ..." for another one."""
    for name, value in values.items():
        if is_known(value) and not (is_number(value) and least <= value <= most):
            raise ValueError(
                f"{name}: expected a number from {least} to {most}, got {brief(value)}"
            )


def expect_at_most(most: float, **numbers: float) -> None:
    """Raises a :class:`ConfigError` "name: expected at most ...", also for NaN."""
    for name, value in numbers.items():
        if not value <= most:
            raise ConfigError(f"{name}: expected at most {most:,}, got {value:,}")


def expect_shares(of: str = "", /, **shares: Any) -> None:
    """Raises a ``ValueError`` "name: expected a share above 0, at most 1" for another number."""
    for name, value in shares.items():
        if is_known(value) and not (is_number(value) and 0 < value <= 1):
            raise ValueError(f"{name}: expected a share{of} above 0, at most 1, got {brief(value)}")


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
                f"got {brief(value)}"
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


_QUOTES = reprlib.Repr()
_QUOTES.maxlevel, _QUOTES.maxstring, _QUOTES.maxother, _QUOTES.maxlong = 3, 100, 100, 40
_QUOTES.maxtuple = _QUOTES.maxlist = _QUOTES.maxset = _QUOTES.maxfrozenset = 3
_QUOTES.maxdict = _QUOTES.maxdeque = _QUOTES.maxarray = 3


def brief(value: object) -> str:
    """Returns a value as messages quote it: one line, three items at most, arrays by shape."""
    shape = getattr(value, "shape", ())
    if shape and isinstance(shape, tuple):
        return f"{type(value).__name__} {getattr(value, 'dtype', '')} {list(shape)}"
    try:
        return printable(" ".join(_QUOTES.repr(value).split()))
    except Exception:  # of a type of the user's, or a number of more digits than Python writes
        return f"a {type(value).__name__} that cannot be written"


def sentence(error: BaseException) -> str:
    """Returns the message of any error as one line of at most 500 characters."""
    text = printable(" ".join(str(error).split()))
    # what went wrong stands at the begin or at the end
    return text if len(text) <= 500 else f"{text[:300]} ... {text[-190:]}"


def printable(text: str) -> str:
    """Returns a text without what terminals obey: control characters are written as escapes.

    Line breaks and tabs stay. What turns the direction of writing is escaped too, since it can
    make one text look like another.
    """
    return "".join(
        character.encode("unicode_escape").decode() if _obeyed(character) else character
        for character in text
    )


def _obeyed(character: str) -> bool:
    control = unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"
    return (
        control
        or character in "\u061c\u200e\u200f\u2028\u2029"
        or ("\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069")
    )
