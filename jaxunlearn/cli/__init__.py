"""The command line. Nothing heavy is imported before a command is known to run."""

import argparse
import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.cli.pages import HELD, RUN, add_commands, find_run, show_page

__all__ = ["main"]

_SECTIONS = (
    "configurations", "methods", "kinds", "models", "data", "metrics", "pictures", "meshes", "runs",
)  # fmt: skip

_FORCE = "overwrite models of this run made with other settings"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status (1: something the user can mend).

    Errors are one line; with ``--debug`` the traceback stands before it.
    """
    from jaxunlearn.cli.interrupts import how_to_go_on
    from jaxunlearn.core.errors import UserError, printable, sentence

    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    options, rest = parser.parse_known_args(arguments)
    # argparse leaves words behind an option over
    if rest and (not hasattr(options, "words") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.words = [*getattr(options, "words", []), *rest]
    options.typed = arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal cannot show is no reason to end
            stream.reconfigure(errors="backslashreplace")
    try:
        with _brief_warnings():
            return options.command(options)
    except BrokenPipeError:
        # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        text = " ".join(printable(str(error)).split())
        if not isinstance(error, UserError | OSError):
            text = f"{type(error).__name__}: {sentence(error)} (--debug shows where)"
        if joined := sys.modules.get("jaxunlearn.core.processes"):
            joined.fail(text)  # ends here where there are others, who hear of it
        print(f"error: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        print(how_to_go_on(arguments, str(stopped)), file=sys.stderr, flush=True)
        # a compilation still under way would crash an orderly exit
        os._exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxunlearn", description="Makes JAX models forget, and shows what they still know."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="train, unlearn, retrain, compare",
        description="Runs an experiment; without CONFIG the embedded one, on scanned digits.",
        epilog="example: jaxunlearn run mnist_neuron_path data.dir=DIR request.classes=3; as two "
        "processes, the same in a second shell with --process-id 1: jaxunlearn run mesh=data "
        "--processes 2 --coordinator localhost:23456 --process-id 0",
    )
    run.add_argument("words", nargs="*", metavar="[CONFIG] [KEY=VALUE ...]")
    run.add_argument("--force", action="store_true", help=_FORCE)
    run.add_argument("--open", action="store_true", help="open the report in a browser at the end")
    run.add_argument(
        "--processes",
        help="that work together, each started by you with the same words: their number, with the "
        "two options below, or 'cluster' to ask SLURM, Open MPI or the cloud",
    )
    run.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    run.add_argument("--process-id", type=int, help="number of this process, from 0")
    run.add_argument(
        "--wait", type=float, metavar="SECONDS", help="in which all processes have to come (60)"
    )
    run.set_defaults(command=_run)
    judged = commands.add_parser(
        "judge-metrics",
        help="find out which metrics to believe, by two pools of models",
        description="Trains a pool of models with the forget set and one without, and judges every "
        "metric by whether it tells them apart; without CONFIG on the embedded digits.",
    )
    judged.add_argument("words", nargs="*", metavar="[CONFIG] [KEY=VALUE ...]")
    judged.add_argument("--pool", type=int, default=30, help="models in each pool (30)")
    judged.add_argument("--force", action="store_true", help=_FORCE)
    judged.set_defaults(command=_judge_metrics)
    bench = commands.add_parser(
        "bench",
        help="every method beside retrained models, with intervals and a floor",
        description="Runs methods x seeds x requests on one table; with --tune chooses options of "
        "every method under an equal budget instead.",
        epilog="example: jaxunlearn bench bench_digits methods=finetune,scrub requests=class",
    )
    bench.add_argument("words", nargs="*", metavar="CONFIG [KEY=VALUE ...]")
    bench.add_argument(
        "--tune", action="store_true", help="tune methods on a seed of its own, and write a preset"
    )
    bench.add_argument(
        "--presets", metavar="FILE", help="that --tune writes; default: presets.json of the run"
    )
    bench.add_argument(
        "--force", action="store_true", help="make again what was made with other settings"
    )
    bench.set_defaults(command=_bench)
    add_commands(commands)
    show = commands.add_parser("show", help="print the table of a finished run")
    show.add_argument("run", help=RUN)
    show.set_defaults(command=_show)
    verify = commands.add_parser(
        "verify",
        help="compare models and erasure records of a run with what was written and judged",
    )
    verify.add_argument("run", help=RUN)
    verify.add_argument(
        "--metrics", action="store_true", help="measure everything again, and compare"
    )
    verify.set_defaults(command=_verify)
    purged = commands.add_parser(
        "purge",
        help="remove what still holds the forgotten data, once a run is finished",
        description="Removes originals, unfinished models, pictures, lists and numbers of single "
        "examples and cached copies of the data; unlearned and retrained models and the erasure "
        "records stay. Lists what it removed and what it cannot reach.",
    )
    purged.add_argument("run", help=RUN)
    purged.add_argument("--dry-run", action="store_true", help="list, and remove nothing")
    purged.set_defaults(command=_purge)
    export = commands.add_parser(
        "export", help="write a language model of a run as a checkpoint of Hugging Face"
    )
    export.add_argument("model", help="a model of a run: RUN/unlearned/npo, RUN/original")
    export.add_argument("folder", help="to be made: weights, configuration and tokenizer")
    export.set_defaults(command=_export)
    listing = commands.add_parser(
        "list", help="configurations, methods, models, data, metrics, ..."
    )
    listing.add_argument(
        "section", nargs="?", help=f"one of {', '.join(_SECTIONS)}; default: all of them"
    )
    listing.set_defaults(command=_list)
    explained = commands.add_parser(
        "explain", help="what a metric means and when it misleads; what a method does and where"
    )
    explained.add_argument(
        "name", nargs="?", help="a metric or a method, as `jaxunlearn list` says"
    )
    explained.add_argument("--all", action="store_true", help="all metrics")
    explained.set_defaults(command=_explain)
    plan = commands.add_parser(
        "plan",
        help="bytes that a run needs on each device, before anything is made",
        description="Tells what each stage of a run needs on each device, from shapes alone; "
        "ends with 1 where it does not fit.",
        epilog="example: jaxunlearn plan tofu_llama language.base=FOLDER --devices 8 --memory 80GB",
    )
    plan.add_argument("words", nargs="*", metavar="[CONFIG] [KEY=VALUE ...]")
    plan.add_argument(
        "--devices", type=int, metavar="N", help="of the mesh; default: those of this machine"
    )
    plan.add_argument("--memory", metavar="SIZE", help="that a device has: 80GB, 40GiB")
    plan.add_argument("--json", action="store_true", help="print all of it as JSON")
    plan.set_defaults(command=_plan)
    doctor = commands.add_parser(
        "doctor", help="what this machine has, and what is missing or broken"
    )
    doctor.add_argument(
        "--data-dir", metavar="DIR", help="data sets in TFDS layout; default: TFDS's own folder"
    )
    doctor.set_defaults(command=_doctor)
    completion = commands.add_parser(
        "completion",
        help="write a script that completes commands in your shell",
        description="Prints a script that completes commands, options, names and keys.",
        epilog="bash: jaxunlearn completion bash > ~/.local/share/bash-completion/completions/"
        "jaxunlearn; zsh: ... zsh > DIR/_jaxunlearn, of a DIR in $fpath; fish: ... fish > "
        "~/.config/fish/completions/jaxunlearn.fish",
    )
    completion.add_argument("shell", help="bash, zsh or fish")
    completion.set_defaults(command=_completion)
    for command in commands.choices.values():
        command.add_argument("--runs", default="runs", metavar="DIR", help="default: %(default)s")
        command.add_argument(
            "--debug", action="store_true", help="print the traceback of an error, too"
        )
    return parser


class _Version(argparse.Action):
    """Prints the version and ends, without importing anything before it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from jaxunlearn import __version__

        print(f"jaxunlearn {__version__}")
        parser.exit()


@contextlib.contextmanager
def _brief_warnings() -> Iterator[None]:
    """Has warnings printed as one line, without the code that they come from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextlib.contextmanager
def _listened(options: argparse.Namespace, console: Any) -> Iterator[Any]:
    """Yields a listener that draws bars; Ctrl-C saves what is under way."""
    from jaxunlearn.cli.interrupts import ended_by_interrupts
    from jaxunlearn.cli.progress import Bars
    from jaxunlearn.experiment.stages import STOP

    with ended_by_interrupts(options.typed, STOP), Bars(console) as bars:
        yield bars


def _config_of(options: argparse.Namespace) -> Any:
    """Returns the configuration that a command's words name, with their settings."""
    from jaxunlearn.config.overrides import load_config
    from jaxunlearn.core.errors import ConfigError

    _load_sections()
    names = [word for word in options.words if "=" not in word]
    if len(names) > 1:
        raise ConfigError(f"expected one configuration and key=value words, got {names}")
    return load_config(names[0] if names else None, [w for w in options.words if "=" in w])


def _join(options: argparse.Namespace) -> None:
    """Joins the other processes of a run, where there are any."""
    from jaxunlearn.core.errors import ConfigError

    given = options.processes, options.coordinator, options.process_id
    if given == (None, None, None):
        if options.wait is not None:
            raise ConfigError("--wait: expected beside --processes, got it alone")
        return
    from jaxunlearn.core.processes import join

    if options.processes == "cluster":
        return join(None, options.coordinator, options.process_id, options.wait)
    if options.processes is not None and not options.processes.isdecimal():
        raise ConfigError(f"processes: expected a number or 'cluster', got {options.processes!r}")
    number = options.processes and int(options.processes)
    join(number, options.coordinator, options.process_id, options.wait)


def _run(options: argparse.Namespace) -> int:
    _join(options)
    config = _config_of(options)
    if joined := sys.modules.get("jaxunlearn.core.processes"):
        from jaxunlearn.config import to_dict
        from jaxunlearn.core.errors import ConfigError

        joined.agree("config", to_dict(config))
        if joined.several() and config.mesh == "single":
            raise ConfigError(
                "mesh: expected one over the devices of all processes, data or fsdp for example, "
                "got 'single'"
            )

    from rich.console import Console

    from jaxunlearn.core.errors import printable
    from jaxunlearn.core.files import is_writer
    from jaxunlearn.experiment import run
    from jaxunlearn.report import print_report

    # the first of several processes speaks for all
    console = Console(quiet=not is_writer())
    _set_up()
    with _listened(options, console) as bars:
        made = run(config, options.runs, force=options.force, listener=bars)
    print_report(made, console)
    folder = Path(options.runs) / config.name
    console.print(f"saved in {folder}: report.json, report.md, report.png, checkpoints")
    _name_pages(console, folder, options.open and is_writer())
    for reason in made.get("failures", ()):
        print(f"error: {printable(reason)}", file=sys.stderr)
    return 1 if made.get("failures") else 0


def _name_pages(console: Any, folder: Path, open_it: bool = False) -> None:
    """Says where the page and the pictures of a run lie."""
    if (folder / "pictures").is_dir():
        console.print(f"pictures: {folder / 'pictures'}", soft_wrap=True, markup=False)
    if (page := folder / "report.html").is_file():
        console.print(f"report: {page}", soft_wrap=True, markup=False)
        show_page(page, open_it)


def _plan(options: argparse.Namespace) -> int:
    config = _config_of(options)

    import json

    from rich.console import Console

    from jaxunlearn.experiment.memory import account, fits, parse_bytes, to_tables

    memory = None if options.memory is None else parse_bytes(options.memory)
    found = account(config, devices=options.devices, memory=memory)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        tables, notes = to_tables(found)
        Console().print(tables[0], "", tables[1], "", *(f"- {note}" for note in notes), sep="\n")
    return 0 if fits(found) else 1


def _judge_metrics(options: argparse.Namespace) -> int:
    config = _config_of(options)

    from rich.console import Console

    from jaxunlearn.experiment.metric_study import judge_metrics, to_table

    console = Console()
    _set_up()
    with _listened(options, console) as bars:
        made = judge_metrics(
            config, options.runs, pool=options.pool, force=options.force, listener=bars
        )
    console.print(to_table(made), *(f"- {note}" for note in made["notes"]), sep="\n")
    folder = Path(options.runs) / config.name
    console.print(f"saved in {folder}: metrics.png, metrics.md, metrics.json, pools")
    _name_pages(console, folder)
    return 0


def _bench(options: argparse.Namespace) -> int:
    from jaxunlearn.config.overrides import load_bench
    from jaxunlearn.core.errors import ConfigError, printable

    _load_sections()
    names = [word for word in options.words if "=" not in word]
    if len(names) != 1:
        raise ConfigError(f"expected one configuration and key=value words, got {names}")
    config = load_bench(names[0], [word for word in options.words if "=" in word])
    if options.presets and not options.tune:
        raise ConfigError("--presets: expected beside --tune, got it alone; preset=FILE reads one")

    from rich.console import Console

    from jaxunlearn.experiment.bench import run_bench
    from jaxunlearn.experiment.bench_report import to_tables
    from jaxunlearn.experiment.bench_tuning import presets_file, to_table, tune_bench

    console = Console()
    _set_up()
    if options.tune:
        words = [*options.words, "--tune"]
        words += ["--presets", options.presets] if options.presets else []
        with _listened(options, console) as bars:
            found = tune_bench(
                config, options.runs, presets=options.presets, force=options.force,
                command=" ".join(["jaxunlearn bench", *words]), listener=bars,
            )  # fmt: skip
        console.print(to_table(found))
        print(printable(f"saved in {presets_file(config, options.runs, options.presets)}"))
        return 0
    with _listened(options, console) as bars:
        made = run_bench(config, options.runs, force=options.force, listener=bars)
    notes = (f"- {note}" for note in made["notes"])
    console.print(*to_tables(made, console.width), *notes, sep="\n")
    folder = Path(options.runs) / config.base.name
    console.print(f"saved in {folder}: bench.png, bench.md, bench.json, checkpoints")
    _name_pages(console, folder)
    for reason in made["failures"]:
        print(f"error: {printable(reason)}", file=sys.stderr)
    return 1 if made["failures"] else 0


def _load_sections() -> None:
    """Imports kinds of models of other packages, whose settings are keys of the configuration."""
    import importlib.metadata

    if importlib.metadata.entry_points(group="jaxunlearn.kinds"):
        from jaxunlearn.kinds import KINDS, load_sections

        load_sections(KINDS)


def _show(options: argparse.Namespace) -> int:
    from jaxunlearn.experiment.folder import purge_of
    from jaxunlearn.experiment.verification import summary_of
    from jaxunlearn.report import load, other_models, print_report

    folder = find_run(options.run, options.runs, HELD[:1])
    report, gone = load(folder), purge_of(folder)
    print_report(report)
    removed = [one["path"] for one in gone["removed"]] if gone else []
    if others := [name for name in other_models(report, folder) if name not in removed]:
        print(f"other models by now than those judged here: {_names(others)}; run it again")
    if gone:
        print(_names([summary_of(gone)]))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from jaxunlearn.core.errors import printable
    from jaxunlearn.experiment.verification import verify_run

    found = verify_run(find_run(options.run, options.runs, HELD[:1]), metrics=options.metrics)
    for line in (*found.wrong, *found.told):
        print(printable(line))
    return 1 if found.wrong else 0


def _purge(options: argparse.Namespace) -> int:
    from jaxunlearn.core.errors import printable
    from jaxunlearn.experiment.purge import list_purge, purge

    folder = find_run(options.run, options.runs, HELD[:1])
    found = list_purge(folder) if options.dry_run else purge(folder)
    verb = "would remove" if options.dry_run else "removed"
    lines = [f"{verb} {one.path}: {one.what}" for one in found.removed]
    if found.gone:
        lines.append(f"gone since an earlier purge: {_names([one.path for one in found.gone])}")
    lines += [f"keeps {one}" for one in found.kept if ": " in one]
    lines += [f"cannot reach {one}" for one in found.beyond]
    if not options.dry_run:
        lines.append(f"all of it is listed in {folder / 'erasure' / 'purge.md'}")
    print(*map(printable, lines), sep="\n")
    return 0


def _export(options: argparse.Namespace) -> int:
    from jaxunlearn.core.errors import printable
    from jaxunlearn.experiment.folder import export_model

    places = (Path(options.model), Path(options.runs) / options.model)
    stage = next((place for place in places if place.is_dir()), places[0])
    export_model(stage, Path(options.folder))
    print(printable(f"saved in {options.folder}"))
    return 0


def _explain(options: argparse.Namespace) -> int:
    from jaxunlearn.core.errors import ConfigError, printable
    from jaxunlearn.methods import METHODS
    from jaxunlearn.methods.about import explain_method
    from jaxunlearn.metrics.about import explain, explain_all

    name = options.name
    # papers write SalUn and SCRUB
    method = name if name in METHODS else {n.lower(): n for n in METHODS}.get((name or "").lower())
    if (name is None) != options.all:
        raise ConfigError(
            "explain: expected the name of a metric or --all, or of a method, got both or neither"
        )
    if options.all:
        print(printable(explain_all()))
    else:
        print(printable(explain_method(method) if method else explain(name, METHODS)))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from jaxunlearn.cli.doctor import colour, examine, summary
    from jaxunlearn.core.errors import printable

    console, found = Console(), []
    for one in examine(Path(options.runs), options.data_dir):
        found.append(one)
        state = Text(f"{one.state:<7}", colour(one.state))
        console.print(state, f"{one.subject:<9}", Text(printable(one.text)), soft_wrap=True)
    if broken := summary(found):
        print(f"error: {printable(broken)}", file=sys.stderr)
        return 1
    return 0


def _completion(options: argparse.Namespace) -> int:
    from jaxunlearn.cli.completion import SHELLS, script
    from jaxunlearn.core.errors import ConfigError, brief

    if options.shell not in SHELLS:
        raise ConfigError(f"shell: expected one of {', '.join(SHELLS)}, got {brief(options.shell)}")
    print(script(_parser(), options.shell, _SECTIONS), end="")
    return 0


def _names(names: Sequence[str]) -> str:
    from jaxunlearn.core.errors import printable

    return printable(", ".join(names))


def _list(options: argparse.Namespace) -> int:
    from jaxunlearn.config.overrides import list_configs
    from jaxunlearn.core.errors import ConfigError, brief, did_you_mean
    from jaxunlearn.data.sources import SOURCES
    from jaxunlearn.engine.sharding import PRESETS
    from jaxunlearn.kinds import KINDS
    from jaxunlearn.methods import METHODS
    from jaxunlearn.metrics import METRICS
    from jaxunlearn.models import NETWORKS
    from jaxunlearn.pictures import PICTURES

    def models() -> None:
        networks = _rows(NETWORKS)
        for kind in dict.fromkeys(getattr(row, "kind", "not known") for row in networks.values()):
            own = {n: r for n, r in networks.items() if getattr(r, "kind", "not known") == kind}
            _section(f"models ({kind})", _lines(own))

    configs = {name: _first_line(path) for name, path in list_configs().items()}
    runs = dict.fromkeys(_finished(Path(options.runs)), "")
    shown = {
        "configurations": lambda: _section("configurations", configs),
        "methods": lambda: _section("methods", _lines(_rows(METHODS))),
        "kinds": lambda: _section("kinds of models", _lines(_rows(KINDS))),
        "models": models,
        "data": lambda: _section("data", _lines(_rows(SOURCES))),
        "metrics": lambda: _section("metrics", _lines(_rows(METRICS), "label")),
        "pictures": lambda: _section("pictures", _lines(_rows(PICTURES))),
        "meshes": lambda: _section("meshes", dict.fromkeys(PRESETS, "")),
        "runs": lambda: _section("finished runs", runs),
    }
    assert tuple(shown) == _SECTIONS
    if options.section is not None and options.section not in shown:
        raise ConfigError(
            f"list: expected one of {', '.join(shown)}, got {brief(options.section)}"
            f"{did_you_mean(options.section, shown)}"
        )
    for name in [options.section] if options.section else shown:
        shown[name]()
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
    from jaxunlearn.core.errors import printable

    print(f"{title}:")
    for name, summary in rows.items():
        print(printable(f"  {name:<20} {summary}".rstrip()))


def _first_line(path: Path) -> str:
    import ast

    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def _finished(runs: Path) -> list[str]:
    return sorted(path.parent.name for path in runs.glob("*/report.json"))


def _set_up() -> None:
    """Keeps compiled programs between runs and memory between steps, unless told otherwise."""
    from jaxunlearn.core.host import keep_memory

    keep_memory()  # before any thread has a heap of its own
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        from jaxunlearn.data.dataset import cache_root

        jax.config.update("jax_compilation_cache_dir", str(cache_root(None) / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        # an entry that a killed run left half-written is compiled again, which is all
        # nor need it be written: a full disk, say
        warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
