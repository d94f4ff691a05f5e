"""The names of data sets, and the error for a wrong one."""

import difflib
from collections.abc import Iterable

from jaxunlearn.core.errors import DataError

SOURCES: dict[str, str] = {
    "digits": "handwritten digits 8x8 grey, 10 classes, 997 + 800; embedded (scikit-learn)",
    "mnist": "handwritten digits 28x28 grey, 10 classes, 60,000 + 10,000; TFDS",
    "fashion_mnist": "articles of clothing 28x28 grey, 10 classes, 60,000 + 10,000; TFDS",
    "cifar10": "animals and vehicles 32x32 colour, 10 classes, 50,000 + 10,000; TFDS",
}
"""The built-in names and what they are, one line each. Any other TFDS image set
goes by its TFDS name, any other folder in TFDS layout by its name below
``data.dir``, and arrays of one's own by a path ending in ``.npz``."""


def unknown(name: str, known: Iterable[str]) -> DataError:
    """The error to raise; ``known`` are the names that may have been meant."""
    return DataError(
        f"data.name: expected one of {', '.join(SOURCES)}, another TFDS image set, a folder in "
        f"TFDS layout below data.dir, or a path ending in .npz; got {name!r}{hint(name, known)}"
    )


def hint(name: str, known: Iterable[str]) -> str:
    """A sentence with the known names that resemble ``name``, or nothing."""
    close = difflib.get_close_matches(name, set(known) - {name}, n=3)
    return f". Did you mean {' or '.join(map(repr, close))}?" if close else ""
