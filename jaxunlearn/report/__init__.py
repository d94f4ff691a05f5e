"""A report as a terminal table, Markdown, JSON and a picture.

A report is plain JSON: ``title``; ``columns``, the models in order, from
``original`` over the unlearned ones to ``retrained``; ``rows``; ``notes``, sentences;
``environment``, versions. A row is one metric::

    {"metric": "test accuracy, retained classes", "group": "utility", "format": ".3f",
     "ideal": "as retrained", "values": {"original": 0.98, ...}, "spread": 0.004,
     "floor": 0.003, "best": ["neuron_path"], "failed": {"scrub": "predictions are NaN"}}

``format`` is ``"s"`` (seconds), ``"B"`` (bytes), ``"x"`` (a ratio), ``"d"`` (a count) or a
Python format; ``spread`` the standard deviation over the retrained models, ``floor`` the
mean difference between two of them, ``best`` the unlearned models closest to the ideal,
``failed`` why there is no value of a model; the last four may be ``None`` or absent, and a
value too. The row of a mean over examples of a single trial may hold ``over_examples``: by model
half the width of a 95 % interval, by bootstrap.

A report may hold ``failures``, sentences on methods that could not make their model (the first of
the notes); ``models`` (see :func:`other_models`); ``curves`` (``label``, ``along``,
``values``: a list for each model, and their ``spread`` over the retrained ones), for the
picture; ``trials``, if it sums up several seeds or classes::

    {"kind": "class", "numbers": [1, 3], "names": ["", "cat"]}

its rows then hold ``each`` (the values, in the order of the trials), ``intervals`` and
``differences`` as :func:`jaxunlearn.metrics.table.summarise` makes them, and classes are told
one by one; and ``published``, numbers of a paper, as
:func:`jaxunlearn.metrics.table.compare` does.
"""

import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.core import files
from jaxunlearn.core.errors import UserError, sentence
from jaxunlearn.report.picture import save_png
from jaxunlearn.report.terminal import print_report, to_table
from jaxunlearn.report.text import expect_report, to_markdown

__all__ = ["load", "other_models", "print_report", "save", "save_png", "to_markdown", "to_table"]


def save(
    report: Mapping[str, Any],
    folder: str | os.PathLike[str],
    examples: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a report into a folder: ``report.json``, ``report.md`` and ``report.png``.

    Each file is whole or as it was before. In the JSON, NaN and infinity are null. The picture
    is last, and that of another report is removed first: one that cannot be drawn costs only
    itself, a warning and its former file. That of an equal report is left as it is. Of several
    processes the first alone writes, and removes.

    Args:
      folder: made where it is not there.
      examples: name -> array, the values of each example behind the table, written into
        ``examples.npz`` (``numpy.load`` reads it), by default those that the report holds;
        without them, that file is left alone.

    Raises:
      OSError: a file cannot be written there.
      ValueError: ``examples`` holds what is no array of numbers, booleans or strings.
    """
    if isinstance(folder, Mapping):
        raise TypeError("folder: expected a path, got a report; report.save(report, folder)")
    expect_report(report)
    folder, report = Path(folder), dict(report)
    held = report.pop("examples", None)
    examples = held if examples is None else examples
    if not files.is_writer():
        return  # nothing to write, and the picture of the process that does is not to be removed
    text = json.dumps(_plain(report), indent=2, allow_nan=False) + "\n"
    picture = folder / "report.png"
    drawn = _holds(folder / "report.json", text) and picture.is_file()
    if not drawn:
        picture.unlink(missing_ok=True)  # of another report: never beside this one
    files.write_text(folder / "report.json", text)
    files.write_text(folder / "report.md", to_markdown(report))
    if examples is not None:
        files.write_npz(folder / "examples.npz", examples)
    if drawn:
        return
    try:
        save_png(report, picture)
    # whatever goes wrong in drawing, the numbers are there
    except Exception as error:
        picture.unlink(missing_ok=True)
        problem = f"{type(error).__name__}: {error}"
        warnings.warn(f"{picture} could not be drawn: {problem}", stacklevel=2)


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        return False


def load(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the report that :func:`save` wrote into a folder.

    Raises:
      UserError: there is none, or it is not JSON.
    """
    file = Path(folder) / "report.json"
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"expected a report, got {file}: {sentence(error)}") from error
    if not isinstance(report, dict) or not {"title", "columns", "rows"} <= set(report):
        raise UserError(f"expected a report with title, columns and rows, got {file}")
    try:
        to_markdown(report)
    except Exception as error:  # of any type, by what is nested otherwise
        raise UserError(
            f"expected a report that can be shown, got {file}: {type(error).__name__}: "
            f"{sentence(error)}"
        ) from error
    return report


def other_models(report: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[str]:
    """Lists the checkpoints of a run that are not those that its report was made of.

    Args:
      report: its ``models`` hold the digest of each checkpoint, that of its manifest, by the
        place in the folder.
    """

    def digest(name: str) -> str | None:
        try:
            return files.sha256(Path(folder) / name / "manifest.json")
        except OSError:
            return None

    told = report.get("models")
    found = told.items() if isinstance(told, Mapping) else ()
    return [name for name, wanted in found if digest(name) != wanted]


def _plain(value: Any) -> Any:
    """Returns the same with null for NaN and infinity, which JSON has not."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
