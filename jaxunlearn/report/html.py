"""Pages in HTML: one file that holds all of it, opens from disk and asks for nothing else.

A page is data (:class:`Page`); its look stands in ``templates``. Texts are escaped, wherever they
come from; what is markup already (:class:`~markupsafe.Markup`) was made by the charts. Colours
stand in :data:`THEMES` alone.
"""

import base64
import functools
import hashlib
import html
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.core.files import write_text

MOST_BYTES = 2_000_000
"""Bytes of pictures in one page at most; they are made smaller until they fit."""
_WIDEST = 1400
_SMALL = 60_000
_STEPS = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2)

THEMES = {
    "light": {
        "paper": "#ffffff", "sheet": "#f6f7f9", "ink": "#1b1f24", "muted": "#59616b",
        "line": "#d9dee4", "accent": "#0b5cad", "good": "#0b6b3a", "bad": "#b3261e",
        "band": "#e4e8ed", "hit": "#0b5cad", "miss": "#b3261e", "over": "#ffffff",
        "warm1": "#fbe9dd", "warm2": "#f7cfb4", "warm3": "#f0ae85",
        "c0": "#0072b2", "c1": "#c44e00", "c2": "#00805d", "c3": "#a8508a", "c4": "#8f6a00",
        "c5": "#3b7ea6",
    },
    "dark": {
        "paper": "#14171b", "sheet": "#1d2126", "ink": "#e8ebee", "muted": "#a3abb5",
        "line": "#343a42", "accent": "#7db8f0", "good": "#63cf93", "bad": "#ff9a90",
        "band": "#2a3037", "hit": "#7db8f0", "miss": "#ff9a90", "over": "#10131a",
        "warm1": "#3a2a20", "warm2": "#5a3a26", "warm3": "#7e4a28",
        "c0": "#58aee6", "c1": "#f2894a", "c2": "#35c79b", "c3": "#e29cc6", "c4": "#e6b840",
        "c5": "#a9d3ef",
    },
}  # fmt: skip
"""Colours by theme and use; ``c0`` to ``c5`` after Okabe and Ito, for the colour-blind too."""


class Words(NamedTuple):
    """Words on a metric: what a row of a table means.

    Attributes:
      label, ideal, format: as in tables.
      means, better, example, misleads, source: see ``jaxunlearn/metrics/about.toml``; may be empty.
    """

    label: str
    ideal: str = ""
    format: str = ".3f"
    means: str = ""
    better: str = ""
    example: str = ""
    misleads: str = ""
    source: str = ""


class Cell(NamedTuple):
    """Cell of a table.

    Attributes:
      text: shown.
      kind: ``"best"``, ``"failed"``, ``"same"`` (as retrained) or nothing.
      note: shown when it is pointed at.
      below: stands small below.
    """

    text: str
    kind: str = ""
    note: str = ""
    below: str = ""


class Row(NamedTuple):
    """Row of a table: its name, what stands small below, its cells, a drawing of them.

    Attributes:
      key: name of a metric that has words, or nothing.
    """

    head: str
    cells: Sequence[Cell]
    key: str = ""
    below: str = ""
    strip: str = ""


class Table(NamedTuple):
    """Table of a page.

    Attributes:
      first: head of the first column.
      heads: of the others.
      groups: title (may be empty) and rows of each group; groups with a title fold.
      fixed: whether the second column stays put, too, on wide screens.
      strips: whether rows have drawings.
      note: below it.
    """

    first: str
    heads: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Row]]]
    fixed: bool = False
    strips: bool = False
    note: str = ""


class Bar(NamedTuple):
    """Bar of a chart of bars: a share of the longest, a lighter part behind, the value in words."""

    label: str
    share: float
    behind: float
    text: str
    kind: str = ""


class Picture(NamedTuple):
    """Picture of a page.

    Attributes:
      source: a data URL.
      width, height: in dots.
      title: below it.
      alt: what it shows.
    """

    source: str
    width: int
    height: int
    title: str
    alt: str


class Example(NamedTuple):
    """Example of a set: an image or a text, what it is, and a value.

    Attributes:
      head: what it is: class or topic, and position.
      value: below it.
      image: a data URL, or nothing.
      alt: what the image shows.
      text: before the words.
      words: with how strongly each is marked, 0 to 3.
    """

    head: str
    value: str
    image: str = ""
    alt: str = ""
    text: str = ""
    words: Sequence[tuple[str, int]] = ()


class Part(NamedTuple):
    """Part of a section.

    Attributes:
      kind: ``"table"``, ``"charts"``, ``"bars"``, ``"pictures"``, ``"examples"``, ``"settings"``,
        ``"list"``, ``"text"`` or ``"pair"``.
      content: a :class:`Table`; lists of charts, :class:`Bar`, :class:`Picture`, pairs or texts; of
        examples a name, words on it and :class:`Example` each; a text; of a pair charts, and bars
        with their title, side by side.
      title: above it.
    """

    kind: str
    content: Any
    title: str = ""


class Section(NamedTuple):
    """Section of a page; one that is not ``open`` is folded until it is asked for."""

    key: str
    title: str
    parts: Sequence[Part]
    lead: str = ""
    open: bool = True


class Page(NamedTuple):
    """Page of a run, a bench, a study or a comparison.

    Attributes:
      kicker: above the title: what it is.
      title: its name.
      lead: what was best, in one sentence.
      facts: name and value, below.
      sections: in their order.
      words: on metrics, by name; those that tables name are told at the end.
      made_of: digest of what the page was made of.
    """

    kicker: str
    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    words: Mapping[str, Words] = {}
    made_of: str = ""


def write_html(page: Page, path: str | os.PathLike[str]) -> None:
    """Writes a page as one file; an existing one is replaced.

    Raises:
      OSError: it cannot be written there.
    """
    write_text(path, to_html(page))


def to_html(page: Page) -> str:
    """Returns a page as HTML."""
    named = {row.key for table in _tables(page) for _, rows in table.groups for row in rows}
    words = {name: one for name, one in page.words.items() if name in named and one.means}
    sections = [section for section in page.sections if section.parts]
    return str(
        _templates().get_template("page.html.j2").render(
            page=page, sections=sections, words=words, themes=THEMES
        )
    )  # fmt: skip


def _tables(page: Page) -> Iterable[Table]:
    for section in page.sections:
        for part in section.parts:
            if part.kind == "table":
                yield part.content


@functools.cache
def _templates() -> Any:
    # imported here: most of what imports this room writes no page
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("jaxunlearn.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"prose": prose, "breaks": breaks}
    return made


def prose(text: str) -> Any:
    """Returns a text as markup, ```code``` set as code."""
    from markupsafe import Markup

    parts = re.split(r"`([^`]*)`", text)
    return Markup(
        "".join(
            f"<code>{html.escape(part)}</code>" if n % 2 else html.escape(part)
            for n, part in enumerate(parts)
        )
    )


def breaks(text: str) -> Any:
    """Returns a name as markup that may be broken behind an underscore, a slash or a dot."""
    from markupsafe import Markup

    return Markup(re.sub(r"([_/]|\.(?=[a-z]))(?=\w)", r"\1<wbr>", html.escape(text)))


def embed_pictures(files: Sequence[tuple[Path, str, str]]) -> list[Picture]:
    """Returns pictures for a page; two that are the same, byte for byte, stand there once.

    They are kept as they are if small; larger ones get few colours and, where all together would
    take more than :data:`MOST_BYTES`, fewer dots. One that cannot be read is left out.

    Args:
      files: of each picture the file, its title and what it shows.
    """
    wanted: dict[str, tuple[bytes, str, str]] = {}
    for file, title, alt in files:
        try:
            content = file.read_bytes()
        except OSError:
            continue
        key = hashlib.sha256(content).hexdigest()
        known = wanted.get(key)
        together = f"{known[1]}; {title}" if known else title
        wanted[key] = (content, together, known[2] if known else alt)
    found: list[Picture] = []
    for scale in _STEPS:
        made = [_compressed(content, scale) for content, _, _ in wanted.values()]
        found = [
            Picture(
                f"data:{one[0]};base64,{base64.b64encode(one[1]).decode()}", *one[2], title, alt
            )
            for one, (_, title, alt) in zip(made, wanted.values(), strict=True)
            if one is not None
        ]
        if sum(len(one.source) for one in found) <= MOST_BYTES * 4 / 3:
            break
    return found


def _compressed(content: bytes, scale: float) -> tuple[str, bytes, tuple[int, int]] | None:
    from PIL import Image

    try:
        image: Any = Image.open(io.BytesIO(content))
        image.load()
    except (OSError, ValueError, SyntaxError):
        return None
    width, height = image.size
    factor = min(1.0, _WIDEST / width) * scale
    if factor == 1 and len(content) <= _SMALL:
        return "image/png", content, image.size
    flat = Image.new("RGB", image.size, "white")
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        flat.paste(image, mask=image.getchannel("A"))
    else:
        flat.paste(image)
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        flat = flat.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    flat.save(file, "WEBP", quality=82, method=2)
    return "image/webp", file.getvalue(), flat.size
