"""A report as a terminal table, Markdown and a picture.

A report is plain JSON: ``title``; ``columns``, the models in order, from
``original`` over the unlearned ones to ``retrained``; ``rows``; ``notes``, sentences;
``environment``, versions. A row is one metric::

    {"metric": "test accuracy, retained classes", "group": "utility", "format": ".3f",
     "ideal": "as retrained", "values": {"original": 0.98, ...}, "spread": 0.004,
     "floor": 0.003, "best": ["neuron_path"]}

``format`` is ``"s"`` (seconds), ``"B"`` (bytes), ``"x"`` (a ratio), ``"d"`` (a count) or a
Python format; ``spread`` the standard deviation over the retrained models, ``floor`` the
mean difference between two of them, ``best`` the unlearned models closest to the ideal; the
last three may be ``None`` or absent, and a value too.

A report may hold ``curves`` (``label``, ``along``, ``values``: a list for each model, and
their ``spread`` over the retrained ones), for the picture; ``trials``, if it sums up several
seeds or classes::

    {"kind": "class", "numbers": [1, 3], "names": ["", "cat"]}

its rows then hold ``each`` (the values, in the order of the trials), ``intervals`` and
``differences`` as :func:`jaxunlearn.metrics.table.summarise` makes them, and classes are told
one by one; and ``published``, numbers of a paper, as
:func:`jaxunlearn.metrics.table.compare` does.

A report on disk.
"""

import json
import os
from pathlib import Path
from typing import Any

from jaxunlearn.core.errors import UserError
from jaxunlearn.report.picture import save_png
from jaxunlearn.report.terminal import print_report, to_table
from jaxunlearn.report.text import to_markdown

__all__ = ["load", "print_report", "save", "save_png", "to_markdown", "to_table"]


__all__ = ["load", "save"]


def save(report: dict[str, Any], folder: str | os.PathLike[str]) -> None:
    """Writes ``report.json``, ``report.md`` and ``report.png`` into ``folder``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
    save_png(report, folder / "report.png")


def load(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The report that :func:`save` wrote into ``folder``.

    Raises:
      UserError: there is none, or it is not JSON.
    """
    file = Path(folder) / "report.json"
    try:
        report = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"expected a report, got {file}: {error}") from error
    if not isinstance(report, dict) or not {"title", "columns", "rows"} <= set(report):
        raise UserError(f"expected a report with title, columns and rows, got {file}")
    return report
