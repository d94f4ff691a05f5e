"""Registries: what there is by name, of this package, of others, and of the running program.

A registry holds rows. Those of other packages come in by entry points: a package that
declares, in its ``pyproject.toml``::

    [project.entry-points."jaxunlearn.methods"]
    push_pull = "their_package.push_pull:ROW"

has its row ``push_pull`` among the methods, as if it were our own.
"""

import importlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from jaxunlearn.core.errors import ConfigError, brief, did_you_mean

Row = TypeVar("Row")


class UnknownNameError(ConfigError, KeyError):
    """No row has this name; the message lists the names and the nearest."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would quote it


class Registry(Mapping[str, Row], Generic[Row]):
    """Rows by name: a mapping whose lookup of an unknown name says which names there are.

    Args:
      noun: what the rows are, as messages and :meth:`register` call them (``"methods"``);
        entry points are read from the group ``jaxunlearn.<noun>``.
      kind: the type of a row.
      rows: the built-in ones, in the order in which they are listed.
    """

    def __init__(self, noun: str, kind: type[Row], rows: Mapping[str, Row]) -> None:
        self.noun = noun
        self.kind = kind
        self._rows = dict(rows)
        self._points: dict[str, importlib.metadata.EntryPoint] | None = None

    def register(self, name: str, row: Row, *, overwrite: bool = False) -> None:
        """Adds a row for the running program.

        Raises:
          TypeError: the row is of another type.
          ConfigError: the name is taken and ``overwrite`` is not set.
        """
        if not isinstance(row, self.kind):
            raise TypeError(
                f"{self.noun}.{name}: expected {self.kind.__name__}, got {type(row).__name__}"
            )
        if not overwrite and name in self:
            raise ConfigError(f"{self.noun}: expected a name not yet taken, got {name!r}")
        self._rows[name] = row

    def __getitem__(self, name: str) -> Row:
        if isinstance(name, str) and name in self._rows:
            return self._rows[name]
        point = self._others().get(name) if isinstance(name, str) else None
        if point is None:
            raise UnknownNameError(
                f"{self.noun}: expected one of {', '.join(self)}, got {brief(name)}"
                f"{did_you_mean(str(name), self)}"
            )
        try:
            row = point.load()
            self.register(name, row, overwrite=True)
        # another package's code: whatever it raises, the package is named
        except Exception as error:
            raise ConfigError(
                f"{self.noun}.{name}: expected {point.value} to be a {self.kind.__name__} that "
                f"can be imported, got {type(error).__name__}: {error}"
            ) from error
        return self._rows[name]

    def find(self, name: str, key: str = "") -> Row:
        """Returns the row of a name.

        Args:
          key: what a message calls the place where the name was given; default: the noun.

        Raises:
          ConfigError: there is none; the message lists the names and the nearest.
        """
        if name not in self:
            raise UnknownNameError(
                f"{key or self.noun}: expected one of {', '.join(self)}, got {brief(name)}"
                f"{did_you_mean(str(name), self)}"
            )
        return self[name]

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):  # of a list, say, no name can be made
            return False
        return name in self._rows or name in self._others()

    def __iter__(self) -> Iterator[str]:
        yield from self._rows
        yield from (name for name in self._others() if name not in self._rows)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _others(self) -> Mapping[str, importlib.metadata.EntryPoint]:
        """Finds entry points of other packages, once; they are loaded when asked for."""
        if self._points is None:
            found = importlib.metadata.entry_points(group=f"jaxunlearn.{self.noun}")
            self._points = {point.name: point for point in found}
        return self._points


def load(target: Any) -> Any:
    """Imports an object by ``"module:name"``, so that a row costs nothing until it is used.

    What is no string is the object itself.
    """
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def exports(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Makes ``__all__``, ``__getattr__`` and ``__dir__`` of a room whose names import on use.

    Args:
      package: the room's ``__name__``.
      homes: module -> the names that it defines.
    """
    where = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in where:
            hint = did_you_mean(name, where)
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")
        return getattr(importlib.import_module(where[name]), name)

    return sorted(where), get, lambda: sorted(where)
