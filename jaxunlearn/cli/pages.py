"""Commands that make pages for a browser: of one run, and of two side by side."""

import argparse
import sys
from pathlib import Path

HELD = ("report.json", "bench.json", "metrics.json")
"""Files of which one makes a folder a finished run, bench or metric study."""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``report`` and ``compare``."""
    made = commands.add_parser(
        "report",
        help="write the page of a run, a bench or a metric study, for a browser",
        description="Writes report.html into the folder anew, one file that needs nothing else, "
        "and prints its path; every run does so at its end.",
    )
    made.add_argument("run", help="a run's folder, or its name")
    made.add_argument("--open", action="store_true", help="open it in a browser")
    made.set_defaults(command=_report)
    both = commands.add_parser(
        "compare",
        help="write a page of two runs side by side",
        description="Writes compare_A_B.html into the folder of runs: settings that differ, and "
        "every model of both with the change beside the floor.",
    )
    both.add_argument("run", help="a run's folder, or its name")
    both.add_argument("other", help="another one")
    both.add_argument("--open", action="store_true", help="open it in a browser")
    both.set_defaults(command=_compare)


def show_page(page: Path, is_wanted: bool) -> None:
    """Opens a page in a browser, where it is wanted and there is one."""
    import webbrowser

    if is_wanted and not (page.is_file() and webbrowser.open(page.resolve().as_uri())):
        print(f"no browser could be opened; open {page} in one", file=sys.stderr)


def _report(options: argparse.Namespace) -> int:
    from jaxunlearn.core.errors import printable
    from jaxunlearn.experiment.pages import write_page

    page = write_page(_find(options.run, options.runs))
    print(printable(str(page)))
    show_page(page, options.open)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from jaxunlearn.core.errors import UserError, printable
    from jaxunlearn.experiment.pages import write_comparison

    folders = [_find(word, options.runs) for word in (options.run, options.other)]
    for folder in folders:
        if not (folder / "report.json").is_file():
            raise UserError(f"compare: expected two runs, got {folder}, which is none")
    names = [folder.resolve().name for folder in folders]
    page = Path(options.runs) / f"compare_{names[0]}_{names[1]}.html"
    print(printable(str(write_comparison(folders[0], folders[1], page))))
    show_page(page, options.open)
    return 0


def _find(word: str, runs: str) -> Path:
    from jaxunlearn.core.errors import UserError

    for folder in (Path(word), Path(runs) / word):
        if any((folder / name).is_file() for name in HELD):
            return folder
    found = sorted({path.parent.name for name in HELD for path in Path(runs).glob(f"*/{name}")})
    raise UserError(
        f"run: expected a folder with one of {', '.join(HELD)}, or one of {found} in {runs}, "
        f"got {word!r}"
    )
