"""Tells of each method what it does, where it applies and what it may see.

``python -m jaxunlearn.methods.about docs/methods.md`` writes the table of the manual anew.
"""

import inspect
import sys
from pathlib import Path
from typing import Any

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.files import between_marks
from jaxunlearn.core.types import Batches, Needs
from jaxunlearn.methods import METHODS, TRAITS, Method, method_options

BEGIN, END = "<!-- from jaxunlearn/methods/__init__.py -->", "<!-- end -->"


def explain_method(name: str) -> str:
    """Returns the docstring of a method, the requests that it suits, its traits and options.

    Raises:
      ConfigError: no method has this name.
    """
    row = METHODS.find(name)
    text = inspect.getdoc(row.factory) or "no text"
    options = [f"{key}={_default(p)}" for key, p in method_options(name).items()]
    lines = [
        f"{name}: {row.summary}",
        *(f"  {line}".rstrip() for line in text.splitlines()),
        "",
        f"  kind     {row.kind}",
        f"  forgets  {', '.join(row.forgets)}",
        *([f"  traits   {'; '.join(TRAITS[one] for one in row.traits)}"] if row.traits else []),
        f"  options  {', '.join(options) or 'none'}",
    ]
    return "\n".join(lines)


def _default(parameter: inspect.Parameter) -> str:
    return "..." if parameter.default is parameter.empty else repr(parameter.default)


def reads(row: Method, model: Any) -> str:
    """Returns the sets that a method declares, as it is made of a network without options."""
    required = {
        key: _stand_in(key)
        for key, p in inspect.signature(row.factory).parameters.items()
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty
    }
    needs: Needs = row.factory(model, **required).needs
    names = [name for name in Batches._fields if getattr(needs, name)]
    return ", ".join(names) + ("" if needs.labels else " (no labels)")


def _stand_in(key: str) -> Any:
    import optax

    known = {"optimizer": optax.sgd(1e-3), "steps": 10, "bank": None}
    if key not in known:
        raise ConfigError(f"{key}: expected a default, got a required argument")
    return known[key]


def table() -> str:
    """Returns the methods for classifiers as a Markdown table, each name a link to its file."""
    from jaxunlearn.models import build

    model = build("mlp", (8, 8, 1), 10)
    lines = [
        "| method | forgets | reads | what it does | traits |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in METHODS.items():
        if row.kind != "classifier" or not isinstance(row.target, str):
            continue
        path = row.target.partition(":")[0].replace(".", "/")
        here = Path(__file__).parents[2]
        file = f"{path}.py" if (here / f"{path}.py").is_file() else f"{path}/__init__.py"
        traits = ", ".join(row.traits).replace("_", "-")
        lines.append(
            f"| [`{name}`](../{file}) | {', '.join(row.forgets)} | {reads(row, model)} "
            f"| {row.summary} | {traits} |"
        )
    return "\n".join(lines)


def with_table(page: str) -> str:
    """Returns a page of the manual with the table as it is now, between its two marks.

    Raises:
      ValueError: the page has no marks.
    """
    return between_marks(page, BEGIN, END, table())


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.write_text(with_table(place.read_text(encoding="utf-8")), encoding="utf-8")
