"""Types of attributes and arguments that a docstring tells together, for the pages of the API.

``width, height: in dots.`` has no type on a page, since there is no attribute of that name; here it
gets those of both: ``width, height (int): in dots.``
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import griffe

NO_BREAK = "\N{NO-BREAK SPACE}"
_TOGETHER = re.compile(r"^( +)((?:\*{0,2}\w+, )+\*{0,2}\w+):(?= |$)", re.M)


class TypesTogether(griffe.Extension):
    """Extension of griffe, which reads the docstrings of the site."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Adds the types of attributes."""
        _add(cls, cls.members)

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Adds the types of arguments."""
        _add(func, {one.name: one for one in func.parameters})


def _add(owner: griffe.Object, known: Mapping[str, Any]) -> None:
    if owner.docstring is not None:
        owner.docstring.value = add_types(
            owner.docstring.value, lambda name: getattr(known.get(name), "annotation", None)
        )


def add_types(text: str, type_of: Callable[[str], Any]) -> str:
    """Returns a docstring with the types of names that stand together; all of them, or none."""

    def typed(match: re.Match[str]) -> str:
        found = [type_of(name.strip("* ")) for name in match[2].split(",")]
        if any(one is None for one in found):
            return match[0]
        # two of one type have it once
        types = ", ".join(dict.fromkeys(map(str, found)))
        # what stands before the first space is taken for the name
        return f"{match[1]}{match[2].replace(' ', NO_BREAK)} ({types}):"

    return _TOGETHER.sub(typed, text)
