"""A report on disk."""

import json
import os
from pathlib import Path
from typing import Any

from jaxunlearn.errors import UserError
from jaxunlearn.report.markdown import to_markdown
from jaxunlearn.report.picture import save_png

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
