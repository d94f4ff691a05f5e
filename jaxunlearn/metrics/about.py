"""Texts that say what each metric means: for the command line, and the page of the manual.

``python -m jaxunlearn.metrics.about docs/metrics.md`` writes the page's paragraphs anew.
"""

import functools
import inspect
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from jaxunlearn.core.errors import ConfigError, brief, did_you_mean
from jaxunlearn.core.files import between_marks
from jaxunlearn.metrics import METRICS
from jaxunlearn.metrics.registry import GROUPS, Metric

PARTS = ("means", "better", "example", "misleads", "source")
KINDS = {
    "classifiers": "Classifiers",
    "gans": "GANs",
    "language": "Language models",
    "costs": "Costs",
}
"""Tables of the file of texts, and their headings."""
BEGIN, END = "<!-- from jaxunlearn/metrics/about.toml -->", "<!-- end -->"
WIDTH = 110


class Text(NamedTuple):
    """What a metric, or a family of them, means.

    Attributes:
      metrics: the names that share it.
      kind: one of :data:`KINDS`.
      means: the definition.
      better: which way is better.
      example: a worked value.
      misleads: when the number misleads.
      source: where the definition is from.
      title: of a family; a metric's is its label.
    """

    metrics: tuple[str, ...]
    kind: str
    means: str
    better: str
    example: str
    misleads: str
    source: str
    title: str = ""


@functools.cache
def texts() -> tuple[Text, ...]:
    """Reads the texts, in the order of the file."""
    file = resources.files("jaxunlearn.metrics") / "about.toml"
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    return tuple(
        Text(tuple(row.pop("metrics", (name,))), kind, **row)
        for kind, rows in content.items()
        for name, row in rows.items()
    )


def text_of(name: str) -> Text | None:
    """Returns the text of a metric; ``None`` of one of another package."""
    return next((one for one in texts() if name in one.metrics), None)


def explain(name: str, others: Iterable[str] = ()) -> str:
    """Returns what a metric means, which way is better, a worked value and when it misleads.

    Of a metric without a text, of another package, the docstring of its function.

    Args:
      name: as ``jaxunlearn list metrics`` has it, or as papers call it (``"ZRF"``); several may
        share that.
      others: names that are explained elsewhere, which a message may mean.

    Raises:
      ConfigError: no metric has this name.
    """
    if name in METRICS:
        return _explain((name,))
    shorts = {METRICS[n].short: n for one in texts() for n in one.metrics if METRICS[n].short}
    found = [n for n in METRICS if text_of(n) and METRICS[n].short.lower() == name.lower() != ""]
    if not found:
        near = did_you_mean(name, [*METRICS, *shorts, *others])
        raise ConfigError(
            f"metric: expected a name of `jaxunlearn list metrics` or `methods`, got {brief(name)}"
            f"{near or did_you_mean(name.lower(), others)}"
        )
    return "\n\n".join(_explain((n,)) for n in found)


def explain_all() -> str:
    """Returns what all metrics mean, families together; those of other packages in the end."""
    found = [_explain(one.metrics) for one in texts()]
    for name in METRICS:
        if text_of(name) is None:
            try:
                found.append(_explain((name,)))
            except ConfigError as error:  # another package's, that cannot be imported
                found.append(f"{name}: cannot be used: {error}")
    return "\n\n".join(found)


def _explain(names: Sequence[str]) -> str:
    """Explains metrics that share a text."""
    row, text = METRICS[names[0]], text_of(names[0])
    if text is None:
        lines = {"means": _docstring(row), "better": row.ideal}
    else:
        lines = {part: getattr(text, part) for part in PARTS}
    lines = {"group": row.group, **lines, "shown": _shown(names[0], row)}
    heads = [f"{name}: {METRICS[name].label}" for name in names]
    if row.short and len(names) == 1:
        heads[0] += f" ({row.short})"
    return "\n".join([*heads, *(_wrapped(f"  {part:<9} ", line) for part, line in lines.items())])


def _docstring(row: Metric) -> str:
    function = row.function
    while isinstance(function, functools.partial):
        function = function.func
    return " ".join((inspect.getdoc(function) or "no text").split())


def _shown(name: str, row: Metric) -> str:
    if row.function is None:
        return "In every table: it is recorded when a model is made."
    beside = {
        "retrained": ", beside retrained models",
        "both": ", beside retrained models",
        "ensemble": ", of several models beside several retrained ones",
    }.get(row.scope, "")
    if not row.extra:
        return f"In every table{beside}."
    return (
        f"Where asked for{beside}: `jaxunlearn run metrics={name}`, `ju.evaluate(..., "
        f'metrics=("{name}",))`; `metrics=all` asks for all.'
    )


def _wrapped(begin: str, text: str, width: int = 100) -> str:
    # code stays on one line; no line begins like an item of a list
    whole = re.sub(r"`[^`]*`", lambda found: found[0].replace(" ", "\0"), text)
    whole = re.sub(r" (?=(\d+[.)]|[-+*#>]) )", "\0", whole)
    made = textwrap.fill(
        whole, width, initial_indent=begin, subsequent_indent=" " * len(begin),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return made.replace("\0", " ")


def paragraphs() -> str:
    """Returns all texts as Markdown: kinds of models, groups, one paragraph a metric or family."""
    lines = []
    for kind, heading in KINDS.items():
        own = [one for one in texts() if one.kind == kind]
        lines.append(f"## {heading}")
        for group in GROUPS:
            inside = [one for one in own if METRICS[one.metrics[0]].group == group]
            if inside and kind != "costs":
                lines.append(f"### {heading}: {group}")
            lines += map(_paragraph, inside)
    return "\n\n".join(lines)


def _paragraph(text: Text) -> str:
    rows = [METRICS[name] for name in text.metrics]
    names = ", ".join(f"`{name}`" for name in text.metrics)
    title = text.title or "; ".join(row.label for row in rows)
    shorts = ", ".join(row.short for row in rows if row.short)
    asked = "; where asked for" if rows[0].extra else ""
    return _wrapped(
        "",
        f"**{title}** ({names}{f'; {shorts}' if shorts else ''}{asked}). {text.means} *Better:* "
        f"{text.better} *Worked value:* {text.example} *Misleads:* {text.misleads} *Source:* "
        f"{text.source}",
        WIDTH,
    )


def with_paragraphs(page: str) -> str:
    """Returns a page of the manual with the texts as they are now, between its two marks.

    Raises:
      ValueError: the page has no marks.
    """
    return between_marks(page, BEGIN, END, paragraphs())


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.write_text(with_paragraphs(place.read_text(encoding="utf-8")), encoding="utf-8")
