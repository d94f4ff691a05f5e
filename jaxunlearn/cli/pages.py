"""Commands that make pages for a browser: of one run, and of two side by side."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

HELD = ("report.json", "bench.json", "metrics.json")
"""Files of which one makes a folder a finished run, bench or metric study."""
RUN = "a run's folder, or its name"


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``report`` and ``compare``."""
    made = commands.add_parser(
        "report",
        help="write the page of a run, a bench or a metric study, for a browser",
        description="Writes report.html into the folder anew, one file that needs nothing else, "
        "and prints its path; every run does so at its end.",
    )
    both = commands.add_parser(
        "compare",
        help="write a page of two runs side by side",
        description="Writes compare_A_B.html into the folder of runs: settings that differ, and "
        "every model of both with the change beside the floor.",
    )
    for command, run in ((made, _report), (both, _compare)):
        command.add_argument("run", help=RUN)
        command.add_argument("--open", action="store_true", help="open it in a browser")
        command.set_defaults(command=run)
    both.add_argument("other", help="another one")


def show_page(page: Path, is_wanted: bool) -> None:
    """Opens a page in a browser, where it is wanted and there is one."""
    import webbrowser

    if is_wanted and not (page.is_file() and webbrowser.open(page.resolve().as_uri())):
        print(f"no browser could be opened; open {page} in one", file=sys.stderr)


def _report(options: argparse.Namespace) -> int:
    from jaxunlearn.core.errors import printable
    from jaxunlearn.experiment.pages import write_page

    page = write_page(find_run(options.run, options.runs))
    print(printable(str(page)))
    show_page(page, options.open)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from jaxunlearn.core.errors import UserError, printable
    from jaxunlearn.experiment.pages import write_comparison

    folders = [find_run(word, options.runs) for word in (options.run, options.other)]
    for folder in folders:
        if not (folder / "report.json").is_file():
            raise UserError(f"compare: expected two runs, got {folder}, which is none")
    names = [folder.resolve().name for folder in folders]
    page = Path(options.runs) / f"compare_{names[0]}_{names[1]}.html"
    print(printable(str(write_comparison(folders[0], folders[1], page))))
    show_page(page, options.open)
    return 0


def find_run(word: str, runs: str, held: Sequence[str] = HELD) -> Path:
    """Finds the folder that a path or a name means.

    Args:
      held: files of which it has to hold one.

    Raises:
      UserError: there is none.
    """
    from jaxunlearn.core.errors import UserError

    for folder in (Path(word), Path(runs) / word):
        if any((folder / name).is_file() for name in held):
            return folder
    found = sorted({path.parent.name for name in held for path in Path(runs).glob(f"*/{name}")})
    files = f"one of {', '.join(held)}," if len(held) > 1 else f"a {held[0]}"
    raise UserError(
        f"run: expected a folder with {files} or one of {found} in {runs}, got {word!r}"
    )
