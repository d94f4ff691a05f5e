"""Attribute tables, such as the classes that have wings, and examples that show them."""

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.concepts.bank import evenly
from jaxunlearn.core.errors import DataError, did_you_mean

TABLES: dict[str, str] = {
    "cifar10": "cifar10",
    "digits": "mnist",
    "fashion_mnist": "fashion_mnist",
    "mnist": "mnist",
}
"""Data sets that have a table, and its file."""


class Table(NamedTuple):
    """Attributes of classes.

    Attributes:
      classes: names of the ``K`` classes, in the order of the labels.
      names: of the ``m`` attributes.
      meanings: one sentence for each attribute.
      has: ``bool [m, K]``, which classes have it; in no row all or none.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    meanings: tuple[str, ...]
    has: np.ndarray


def load_table(name_or_path: str | Path) -> Table:
    """Reads a table of attributes.

    A file of one's own looks like this, with the classes in the order of the labels::

        classes = ["cat", "dog", "bird"]

        [attributes.fur]
        meaning = "It is covered with hair."
        classes = ["cat", "dog"]

    Args:
      name_or_path: one of :data:`TABLES`, or the path of a file ending in ``.toml``.

    Raises:
      DataError: an unknown name, or a file that is missing or of another form.
    """
    where = str(name_or_path)
    if where in TABLES:
        built_in = resources.files("jaxunlearn.concepts") / "tables" / f"{TABLES[where]}.toml"
        return _table(where, built_in.read_text(encoding="utf-8"))
    if not where.endswith(".toml"):
        raise DataError(
            f"table: expected one of {', '.join(TABLES)} or a path ending in .toml, "
            f"got {where!r}{did_you_mean(where, TABLES)}"
        )
    if not Path(where).is_file():
        raise DataError(f"{where}: expected a table of attributes, got no such file")
    try:
        return _table(where, Path(where).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: expected UTF-8 text, got {error}") from error


def _table(where: str, text: str) -> Table:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{where}: expected TOML, got text that is not: {error}") from error
    classes = _strings(f"{where}: classes", content.get("classes"))
    found = content.get("attributes")
    if not isinstance(found, dict) or not found:
        raise DataError(f"{where}: expected tables [attributes.NAME], got none")
    rows, meanings = [], []
    for name, attribute in found.items():
        meaning, row = _attribute(f"{where}: attributes.{name}", attribute, classes)
        meanings.append(meaning)
        rows.append(row)
    return Table(classes, tuple(found), tuple(meanings), np.stack(rows))


def _attribute(where: str, attribute: Any, classes: tuple[str, ...]) -> tuple[str, np.ndarray]:
    """Reads the meaning of an attribute, and marks the classes that have it."""
    if not isinstance(attribute, dict) or set(attribute) != {"meaning", "classes"}:
        got = ", ".join(attribute) if isinstance(attribute, dict) else repr(attribute)
        raise DataError(f"{where}: expected the keys meaning and classes, got {got or 'none'}")
    meaning = attribute["meaning"]
    if not isinstance(meaning, str) or not meaning.strip():
        raise DataError(f"{where}: meaning: expected a sentence, got {meaning!r}")
    having = _strings(f"{where}: classes", attribute["classes"])
    for name in having:
        if name not in classes:
            raise DataError(
                f"{where}: classes: expected some of {', '.join(classes)}, "
                f"got {name!r}{did_you_mean(name, classes)}"
            )
    row = np.isin(classes, having)
    if row.all():
        raise DataError(f"{where}: expected a class without it, got all {len(classes)}")
    return meaning, row


def _strings(where: str, value: Any) -> tuple[str, ...]:
    """Reads a list of different strings, at least one."""
    wanted = isinstance(value, list) and value and all(isinstance(v, str) for v in value)
    if not wanted or len(set(value)) != len(value):
        raise DataError(f"{where}: expected a list of different names, at least one, got {value!r}")
    return tuple(value)


def attribute_sets(
    table: Table,
    features: ArrayLike,
    labels: ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    examples: int = 100,
    seed: int = 0,
) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Draws examples that show each attribute and examples that do not, for concept vectors.

    Both are drawn evenly over their classes. The attribute is the class's, not the
    image's: a bird that sits still counts as an example of wings, and concepts of the
    same classes cannot be told apart.

    Args:
      table: of the data set.
      features: ``[N, n]``.
      labels: integers ``[N]``, positions in ``table.classes``.
      class_names: names of the labels' classes, where their order is another one.
      examples: at most so many on each side.
      seed: fixes the draws; each attribute has draws of its own.

    Returns:
      name -> (positives ``[p, n]``, negatives ``[q, n]``), for
      :func:`~jaxunlearn.concepts.fit_bank`.

    Raises:
      DataError: labels beyond the table's classes, a class name that is not in the table,
        or an attribute that no example or every example has.
      ValueError: wrong shapes, or no positive number of examples.
    """
    x, y = np.asarray(features), np.asarray(labels)
    if x.ndim != 2 or y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            "features, labels: expected features [N, n] and integers [N], "
            f"got {list(x.shape)} and {y.dtype} {list(y.shape)}"
        )
    if examples < 1:
        raise ValueError(f"examples: expected at least 1, got {examples!r}")
    rows = having(table, class_names)
    if y.size and not 0 <= y.min() <= y.max() < rows.shape[1]:
        raise DataError(
            f"labels: expected 0 to {rows.shape[1] - 1}, the {rows.shape[1]} classes of the "
            f"table, got {y.min()} to {y.max()}"
        )
    sets = {}
    for number, (name, row) in enumerate(zip(table.names, rows, strict=True)):
        rng = np.random.default_rng([seed, number])
        sides = [np.flatnonzero(row[y] == side) for side in (True, False)]
        for side, kind in zip(sides, ("with", "without"), strict=True):
            if not len(side):
                raise DataError(f"attribute {name!r}: expected examples {kind} it, got none")
        chosen = [side[evenly(y[side], examples, rng)] for side in sides]
        sets[name] = (x[chosen[0]], x[chosen[1]])
    return sets


def having(table: Table, class_names: Sequence[str] | None) -> np.ndarray:
    """Marks, ``bool [m, K]``, the classes with each attribute, in the order of the labels.

    Raises:
      DataError: a name that the table does not have.
    """
    if class_names is None:
        return table.has
    for name in class_names:
        if name not in table.classes:
            raise DataError(
                f"class_names: expected some of {', '.join(table.classes)}, "
                f"got {name!r}{did_you_mean(name, table.classes)}"
            )
    return table.has[:, [table.classes.index(name) for name in class_names]]
