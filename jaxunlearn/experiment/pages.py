"""Pages of runs, benches and metric studies: ``report.html`` in their folders, for people.

A page is made of the files in the folder alone, so that it can be made again at any time.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxunlearn import __version__, report
from jaxunlearn.core.errors import UserError, sentence
from jaxunlearn.core.files import is_writer, sha256
from jaxunlearn.metrics.about import text_of
from jaxunlearn.metrics.registry import METRICS
from jaxunlearn.pictures import PICTURES
from jaxunlearn.report.html import Page, Words, write_html
from jaxunlearn.report.html_bench import make_bench_page, make_comparison, make_study_page
from jaxunlearn.report.html_run import make_run_page

PAGE = "report.html"


def write_page(folder: Path) -> Path:
    """Writes the page of a finished run, bench or metric study; returns its path.

    Raises:
      UserError: the folder holds none of them.
      OSError: the page cannot be written.
    """
    write_html(page_of(folder)._replace(made_of=_digest(folder)), folder / PAGE)
    return folder / PAGE


def try_page(folder: Path) -> None:
    """Writes a page at the end of a run, unless one of the same is there.

    One that cannot be made costs only itself, a warning.
    """
    if not is_writer():
        return
    try:
        if not _is_there(folder):
            write_page(folder)
    # whatever goes wrong, the numbers are there
    except Exception as error:
        problem = f"{type(error).__name__}: {sentence(error)}"
        warnings.warn(f"{folder / PAGE} could not be made: {problem}", stacklevel=2)


def _is_there(folder: Path) -> bool:
    """Tells whether the page was made of what is in the folder now."""
    try:
        with (folder / PAGE).open(encoding="utf-8") as file:
            begin = file.read(1000)
    except (OSError, ValueError):
        return False
    return f'<meta name="made-of" content="{_digest(folder)}">' in begin


def _digest(folder: Path) -> str:
    """Returns what changes with any file that a page is made of, and with the version."""
    patterns = ("*.json", "*.npz", "attacks/*/report.json", "pictures/**/*", "*/pictures/**/*",
                "erasure/*/record.json", "*/erasure/*/record.json")  # fmt: skip
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    parts = [
        f"{path.relative_to(folder).as_posix()} {sha256(path)}"
        for path in sorted(found)
        # values of single models, whose means are in the report
        if path.name not in ("judgement.json", "drawn.json")
    ]
    return hashlib.sha256("\n".join([__version__, *parts]).encode()).hexdigest()


def page_of(folder: Path) -> Page:
    """Returns the page of what a folder holds.

    Raises:
      UserError: it holds neither a report nor a bench nor a metric study.
    """
    if (folder / "report.json").is_file():
        return make_run_page(report.load(folder), folder, words_of(), summaries())
    for name, make in (("bench.json", make_bench_page), ("metrics.json", make_study_page)):
        if (folder / name).is_file():
            return make(read_json(folder / name), words_of(), _configuration(folder))
    raise UserError(
        f"run: expected a folder with a report.json, bench.json or metrics.json, got {folder}"
    )


def write_comparison(first: Path, second: Path, path: Path) -> Path:
    """Writes the page of two finished runs side by side; returns its path.

    Raises:
      UserError: one of the folders holds no report.
      OSError: the page cannot be written.
    """
    sides = [
        (folder.resolve().name, report.load(folder), _configuration(folder))
        for folder in (first, second)
    ]
    write_html(make_comparison(sides[0], sides[1], words_of()), path)
    return path


def _configuration(folder: Path) -> Mapping[str, Any]:
    """Returns the configuration of a run or a bench; nothing where it cannot be read."""
    try:
        return read_json(folder / "config.json")
    except UserError:
        return {}


def words_of() -> dict[str, Words]:
    """Returns the words on every metric, those of other packages as far as they have any."""
    found = {}
    for name in METRICS:
        try:
            row = METRICS[name]
        except UserError:  # of another package, that cannot be imported
            continue
        text = text_of(name)
        more = {} if text is None else {
            part: getattr(text, part)
            for part in ("means", "better", "example", "misleads", "source")
        }  # fmt: skip
        found[name] = Words(row.label, row.ideal, row.format, **more)
    return found


def summaries() -> dict[str, str]:
    """Returns what each picture shows, in one line; long names first, which others begin."""
    found = {}
    for name in sorted(PICTURES, key=len, reverse=True):
        try:
            found[name] = PICTURES[name].summary
        except UserError:  # of another package
            continue
    return found


def read_json(file: Path) -> Mapping[str, Any]:
    """Reads a report that is JSON.

    Raises:
      UserError: it is not.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"expected a report, got {file}: {sentence(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"expected a report, got {file}")
    return found
