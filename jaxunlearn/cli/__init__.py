"""The command line. Nothing heavy is imported before a command is known to run."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status (1: something the user can mend)."""
    from jaxunlearn.core.errors import UserError

    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse leaves words behind an option over
    if rest and (options.command is not _run or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.words = [*getattr(options, "words", []), *rest]
    try:
        return options.command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr, flush=True)
        # a compilation still under way would crash an orderly exit
        os._exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxunlearn", description="Makes JAX models forget, and shows what they still know."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="train, unlearn, retrain, compare",
        description="Runs an experiment; without CONFIG the embedded one, on scanned digits.",
        epilog="example: jaxunlearn run mnist_neuron_path data.dir=DIR request.classes=3",
    )
    run.add_argument("words", nargs="*", metavar="[CONFIG] [KEY=VALUE ...]")
    run.add_argument(
        "--force", action="store_true", help="overwrite models of this run made with other settings"
    )
    run.set_defaults(command=_run)
    show = commands.add_parser("show", help="print the table of a finished run")
    show.add_argument("run", help="a run's folder, or its name")
    show.set_defaults(command=_show)
    listing = commands.add_parser(
        "list", help="configurations, methods, models, data, metrics, ..."
    )
    listing.set_defaults(command=_list)
    for command in (run, show, listing):
        command.add_argument("--runs", default="runs", metavar="DIR", help="default: %(default)s")
    return parser


def _run(options: argparse.Namespace) -> int:
    from jaxunlearn.config.overrides import load_config
    from jaxunlearn.core.errors import ConfigError

    _load_sections()
    names = [word for word in options.words if "=" not in word]
    if len(names) > 1:
        raise ConfigError(f"run: expected one configuration and key=value words, got {names}")
    config = load_config(names[0] if names else None, [w for w in options.words if "=" in w])

    from rich.console import Console

    from jaxunlearn.cli.progress import Bars
    from jaxunlearn.experiment import run
    from jaxunlearn.report import print_report

    console = Console()
    _use_compilation_cache()
    with Bars(console) as bars:
        made = run(config, options.runs, force=options.force, listener=bars)
    print_report(made, console)
    folder = Path(options.runs) / config.name
    console.print(f"saved in {folder}: report.png, report.md, report.json, checkpoints")
    return 0


def _load_sections() -> None:
    """Imports kinds of models of other packages, whose settings are keys of the configuration."""
    import importlib.metadata

    if importlib.metadata.entry_points(group="jaxunlearn.kinds"):
        from jaxunlearn.kinds import KINDS, load_sections

        load_sections(KINDS)


def _show(options: argparse.Namespace) -> int:
    from jaxunlearn.core.errors import UserError
    from jaxunlearn.report import load, print_report

    for folder in (Path(options.run), Path(options.runs) / options.run):
        if (folder / "report.json").is_file():
            print_report(load(folder))
            return 0
    found = _finished(Path(options.runs))
    raise UserError(
        f"show: expected a folder with a report.json or one of {found} in {options.runs}, "
        f"got {options.run!r}"
    )


def _list(options: argparse.Namespace) -> int:
    from jaxunlearn.config.overrides import list_configs
    from jaxunlearn.data.sources import SOURCES
    from jaxunlearn.engine.sharding import PRESETS
    from jaxunlearn.kinds import KINDS
    from jaxunlearn.methods import METHODS
    from jaxunlearn.metrics import METRICS
    from jaxunlearn.models import NETWORKS
    from jaxunlearn.pictures import PICTURES

    _section("configurations", {name: _first_line(p) for name, p in list_configs().items()})
    _section("methods", _lines(_rows(METHODS)))
    _section("kinds of models", _lines(_rows(KINDS)))
    networks = _rows(NETWORKS)
    for kind in dict.fromkeys(getattr(row, "kind", "not known") for row in networks.values()):
        own = {n: row for n, row in networks.items() if getattr(row, "kind", "not known") == kind}
        _section(f"models ({kind})", _lines(own))
    _section("data", _lines(_rows(SOURCES)))
    _section("metrics", _lines(_rows(METRICS), "label"))
    _section("pictures", _lines(_rows(PICTURES)))
    _section("meshes", dict.fromkeys(PRESETS, ""))
    _section("finished runs", dict.fromkeys(_finished(Path(options.runs)), ""))
    return 0


def _rows(registry: Any) -> dict[str, Any]:
    """Returns the rows by name, or what is wrong with one of another package."""
    from jaxunlearn.core.errors import ConfigError

    found: dict[str, Any] = {}
    for name in registry:
        try:
            found[name] = registry[name]
        except ConfigError as error:
            found[name] = error
    return found


def _lines(rows: dict[str, Any], text: str = "summary") -> dict[str, str]:
    return {
        name: f"cannot be used: {row}" if isinstance(row, Exception) else getattr(row, text)
        for name, row in rows.items()
    }


def _section(title: str, rows: Any) -> None:
    print(f"{title}:")
    for name, summary in rows.items():
        print(f"  {name:<20} {summary}".rstrip())


def _first_line(path: Path) -> str:
    import ast

    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def _finished(runs: Path) -> list[str]:
    return sorted(path.parent.name for path in runs.glob("*/report.json"))


def _use_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless the user decided otherwise."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        from jaxunlearn.data.dataset import cache_root

        jax.config.update("jax_compilation_cache_dir", str(cache_root(None) / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        # an entry that a killed run left half-written is compiled again, which is all
        warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
