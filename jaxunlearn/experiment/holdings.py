"""Holdings of a run: what of it holds the forgotten data, what does not, what is out of reach.

What may stay is listed by kind, not what has to go: a model without a record goes as well. What a
run did not make is left and listed. Links are not followed: they are out of reach.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn import checkpoint, report
from jaxunlearn.config import Config
from jaxunlearn.core.errors import CheckpointError, DataError
from jaxunlearn.core.files import read_object
from jaxunlearn.core.seals import read_sealed
from jaxunlearn.data.dataset import cache_root
from jaxunlearn.data.sources.folders import is_folder
from jaxunlearn.experiment.erasure import ERASURE, PAGE, RECORD
from jaxunlearn.experiment.folder import KEPT, LOCK, MODEL, TRIAL
from jaxunlearn.experiment.stages import UNFINISHED
from jaxunlearn.experiment.verification import read_config
from jaxunlearn.pictures import PICTURES
from jaxunlearn.report.erasure_page import TRACE

_ASIDE = re.compile(r"\.(?P<name>.+)\.(tmp|old)")
_KEEP = (
    "config.json", "report.json", "report.md", "report.png", "judgement.json", "metrics.jsonl",
    "metrics.json", "metrics.md", "metrics.png", "report.html",
)  # fmt: skip
"""Files of a run without anything of single examples; of the page a purge sees to that."""
_DROP = {
    "sets.npz": "positions of the forgotten examples, and of the others, which tell these",
    "examples.npz": "numbers of each example",
    "drawn.json": "which pictures were drawn",
}
_OWN = re.compile(rf"{TRIAL}(attacks/[^/]+/)?(?P<name>[^/]+)")
_PICTURE = re.compile(rf"{TRIAL}pictures/([^/]+/)?(?P<name>[^/]+)\.(png|md|json)")
_RECORD = re.compile(rf"{TRIAL}{ERASURE}/[^/]+/({re.escape(RECORD)}|{re.escape(PAGE)})")
_OF_MODEL = re.compile(rf"{TRIAL}language/(config\.json|{'|'.join(map(re.escape, KEPT))})")
"""Places of a run's own files; whatever lies elsewhere is the user's."""


_HOME = {"report.json": "run", "bench.json": "bench", "metrics.json": "study of metrics"}
"""Files that tell what a folder beside the run is."""


class Found(NamedTuple):
    """Something of a run that a purge removes.

    Attributes:
      path: in the run's folder; of a cache the whole path.
      what: it is, in words.
    """

    path: str
    what: str


class Holdings(NamedTuple):
    """What a purge does.

    Attributes:
      removed: goes.
      kept: what of the run stays; of an unlearned model how many tests found something.
      beyond: what it cannot reach, in words.
      gone: an earlier purge removed it, and it is not there again.
    """

    removed: list[Found]
    kept: list[str]
    beyond: list[str]
    gone: list[Found]


def list_holdings(folder: Path, done: Mapping[str, Any] | None) -> Holdings:
    """Lists what a run holds.

    Args:
      done: what an earlier purge wrote down: it goes, wherever it is.
    """
    made = report.load(folder)
    listing = Holdings([], [], [], [])
    config = config_of(folder)
    for path in walk_run(folder):
        _sort(folder, path, made, listing)
    if config is not None and (config.request.words or config.request.pairs):
        what = "picture of the table, whose title names what was forgotten"
        titled = [name for name in listing.kept if name.split("/")[-1] == "report.png"]
        listing.removed.extend(Found(name, what) for name in titled)
        listing.kept[:] = [name for name in listing.kept if name not in titled]
    fingerprint = _fingerprint(folder, made)
    of_set, perhaps = _cache_entries(config, fingerprint)
    listing.removed.extend(
        Found(str(entry), "decoded copy of the data set, in the cache") for entry in of_set
    )
    what = "page that compares this run with another, with what was asked for"
    listing.removed.extend(Found(str(page), what) for page in _comparisons(folder))
    if done is not None:  # what an earlier purge began with
        there = {one.path for one in listing.removed}
        for one in (Found(each["path"], each["what"]) for each in done["removed"]):
            if one.path not in there:
                is_there = os.path.lexists(folder / one.path)
                (listing.removed if is_there else listing.gone).append(one)
    told = _findings(folder, made)
    listing.kept[:] = sorted(f"{name}{told.get(name, '')}" for name in listing.kept)
    listing.beyond.extend(f"{entry}: a decoded copy, perhaps of this set" for entry in perhaps)
    listing.beyond.extend(_out_of_reach(folder, config, fingerprint))
    return listing


def _findings(folder: Path, made: Mapping[str, Any]) -> dict[str, str]:
    """Returns what the record of each unlearned model found, by the model's place."""
    found = {}
    for place in made.get("records", {}):
        with contextlib.suppress(CheckpointError, LookupError, TypeError):
            record = read_sealed(folder / place / RECORD)
            tests = [one for one in record["findings"] if one["group"] != "utility"]
            traces = sum(one["finding"] == TRACE for one in tests)
            head, _, label = place.rpartition(f"{ERASURE}/")
            found[f"{head}unlearned/{label}"] = (
                f": {traces} of {len(tests)} tests may have found a trace of what was forgotten"
            )
    return found


def walk_run(folder: Path) -> Iterator[Path]:
    """Yields files, links and checkpoints of a run; neither links nor checkpoints are entered."""
    for place, names, files in os.walk(folder):
        inside = []
        for name in sorted(names):
            path = Path(place) / name
            if path.is_symlink() or _is_checkpoint(path):
                yield path
            else:
                inside.append(name)
        names[:] = inside
        for name in sorted(files):
            yield Path(place) / name


def _is_checkpoint(path: Path) -> bool:
    """Tells a checkpoint, also a damaged or half-written one."""
    parts = ("manifest.json", "leaves.json", ".writing", "variables")
    return any((path / name).exists() for name in parts)


def _sort(folder: Path, path: Path, made: Mapping[str, Any], listing: Holdings) -> None:
    """Puts something of a run on the list where it belongs."""
    name = path.relative_to(folder).as_posix()
    if path.is_symlink():
        listing.beyond.append(f"{name}, a link: neither it nor what it points to was touched")
    elif path.is_dir():
        _sort_model(folder, path, made, listing)
    elif name == LOCK or name.startswith(f"{ERASURE}/purge."):
        return
    elif what := _what_of(name):
        listing.removed.append(Found(name, what))
    elif is_record(name) and name.rpartition("/")[0] not in made.get("records", ()):
        listing.removed.append(Found(name, "record of a model that is in no report"))
    elif is_kept(name):
        listing.kept.append(name)
    else:
        listing.beyond.append(f"{name}: not made by a run, and left as it is")


def _what_of(name: str) -> str:
    """Returns what a file that goes is; nothing of any other."""
    if picture := _PICTURE.fullmatch(name):
        # of several files, heatmaps_3.png
        word = picture["name"]
        known = any(word == p or word.startswith(f"{p}_") for p in PICTURES)
        return "picture, which may show forgotten examples" if known else ""
    own = _OWN.fullmatch(name)
    if own is None:
        return ""
    half = re.fullmatch(r"\.(?P<name>.+)\.\d+\.tmp", own["name"])
    if half and half["name"] in (*_KEEP, *_DROP):
        return "file that was not written to its end"
    return _DROP.get(own["name"], "")


def is_kept(name: str) -> bool:
    """Tells the files of a run that stay, by their place in its folder."""
    own = _OWN.fullmatch(name)
    kept = own is not None and own["name"] in _KEEP
    return kept or is_record(name) or _OF_MODEL.fullmatch(name) is not None


def is_record(name: str) -> bool:
    """Tells the files of an erasure record, by their place in the run's folder."""
    return _RECORD.fullmatch(name) is not None


def _sort_model(folder: Path, path: Path, made: Mapping[str, Any], listing: Holdings) -> None:
    """Puts a checkpoint on the list where it belongs."""
    name = path.relative_to(folder).as_posix()
    aside = _ASIDE.fullmatch(path.name)
    usual = name.removesuffix(UNFINISHED)
    if aside:
        usual = f"{name.removesuffix(path.name)}{aside['name']}"
    own = MODEL.fullmatch(usual)
    earlier = made.get("trials", {}).get("kind") == "turn" and not name.startswith(
        f"turn_{max(made['trials']['numbers'])}/"
    )
    whats = {
        "original": "the model before, trained on all examples",
        "helpers": "model that led or judged others, trained on all examples",
        "pools": "models made to judge tests by, trained on all examples",
    }
    if own is None or (name not in made.get("models", {}) and not _is_ours(path)):
        listing.beyond.append(f"{name}: a checkpoint that is none of the run's, left as it is")
    elif usual != name:
        listing.removed.append(Found(name, "state of a model that was not finished"))
    elif own["place"] in whats:
        listing.removed.append(Found(name, whats[own["place"]]))
    elif earlier:
        what = "model that had yet to forget what was asked for later"
        listing.removed.append(Found(name, what))
    elif name in made.get("models", {}):
        listing.kept.append(name)
    else:
        listing.removed.append(Found(name, "model that is in no report, left from another run"))


def _is_ours(path: Path) -> bool:
    """Tells whether a run made a checkpoint; of a damaged one it cannot be told, and it is."""
    try:
        return bool({"stage", "step"} & set(checkpoint.read_record(path)))
    except CheckpointError:
        return True


def config_of(folder: Path) -> Config | None:
    """Reads the configuration of a run; ``None`` where it is damaged."""
    try:
        return read_config(folder)
    except DataError:
        return None


def _fingerprint(folder: Path, made: Mapping[str, Any]) -> str:
    """Returns the fingerprint of the data, as the records tell it."""
    for name in made.get("records", {}):
        try:
            record = read_sealed(folder / name / RECORD)
            return str(record["request"]["data"]["fingerprint"])
        except (CheckpointError, LookupError, TypeError):
            continue
    return ""


def _cache_entries(config: Config | None, fingerprint: str) -> tuple[list[Path], list[Path]]:
    """Lists the decoded copies of a data set, and those that may be of it; links are left alone.

    A copy is of the set if the fingerprint is the same, or the name and the folder that it was
    read from: then in another size, say. It may be where the name alone is the same.
    """
    root = cache_root(config.data.cache if config else None)
    certain: list[Path] = []
    perhaps: list[Path] = []
    for meta in sorted(root.glob("*/meta.json")) if root.is_dir() else ():
        if meta.is_symlink() or meta.parent.is_symlink():
            continue
        found = read_object(meta)
        source = found.get("source")
        source = source if isinstance(source, Mapping) else {}
        # of an earlier version, which wrote no source down, the folder's name begins with the set's
        old = meta.parent.name.removesuffix("-labels").rpartition("-")[0]
        if fingerprint and found.get("fingerprint") == fingerprint:
            certain.append(meta.parent)
        elif config is None or not _is_of(config.data.name, str(source.get("name") or old)):
            continue
        elif source.get("name") == config.data.name and _is_below(source.get("folder"), config):
            certain.append(meta.parent)
        else:
            perhaps.append(meta.parent)
    return certain, perhaps


def _is_of(name: str, other: str) -> bool:
    """Tells whether two names are of one data set, in any version, as folders are named or not."""
    first, second = (re.sub("[^A-Za-z0-9_.]", "-", one.partition(":")[0]) for one in (name, other))
    return first == second or second.startswith(f"{first}-")


def _is_below(place: Any, config: Config) -> bool:
    """Tells whether a copy was read from the folder that the run reads."""
    root = config.data.dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    whole = Path(os.path.realpath(os.path.expanduser(root)))
    return isinstance(place, str) and Path(place).is_relative_to(whole)


def _comparisons(folder: Path) -> list[Path]:
    """Lists the pages beside a run that compare it with another; see ``jaxunlearn compare``."""
    name, found = folder.resolve().name, []
    for page in sorted(folder.resolve().parent.glob("compare_*.html")):
        both = page.name.removeprefix("compare_").removesuffix(".html")
        pairs = [(name, both.removeprefix(f"{name}_")), (both.removesuffix(f"_{name}"), name)]
        pairs = [pair for pair in pairs if "_".join(pair) == both]
        if page.is_symlink() or not page.is_file() or not pairs:
            continue
        with contextlib.suppress(OSError), page.open(encoding="utf-8", errors="replace") as file:
            begin = file.read(1000)
            # the name alone does not say where that of the first run ends
            if any(f"<title>{escape(' and '.join(pair))} " in begin for pair in pairs):
                found.append(page)
    return found


# What is out of reach


def _out_of_reach(folder: Path, config: Config | None, fingerprint: str) -> Iterator[str]:
    """Yields what a purge does not reach, in words."""
    if config is not None:
        data = config.data
        if is_folder(data.name):
            yield f"your own folder {data.name}, which the data were read from"
        elif data.name.endswith((".npz", ".jsonl")):
            yield f"your own file {data.name}, which the data were read from"
        elif data.dir is not None:
            yield f"the folder {data.dir}, which the data were read from (TFDS and others)"
        else:
            yield (
                f"the data set {data.name} where it came from: a package, or the folder of TFDS "
                "($TFDS_DATA_DIR, else ~/tensorflow_datasets)"
            )
        if config.request.pairs:
            yield f"your own file {config.request.pairs}, which lists what was to be forgotten"
        for section in config.kinds.values():
            for name in ("base", "original", "tokenizer"):
                if isinstance(place := getattr(section, name, None), str):
                    yield f"your own {place}, a model or a tokenizer that the run began with"
    if (folder / "language").is_dir():
        yield (
            "words of the training texts in the tokenizer, folder language: the models that stay "
            "cannot be used without it"
        )
    yield from _beside(folder, config, fingerprint)
    yield "copies of the models, of the pictures and of the data: exported, sent or published ones"
    yield "backups and snapshots of the disk, and what a disk keeps of removed files"
    yield "compiled programs in the cache of JAX, which hold programs and no data sets"


def _beside(folder: Path, config: Config | None, fingerprint: str) -> Iterator[str]:
    """Yields what lies beside a run, once each: made of the same data, or by no run at all."""
    own, homes, same, alike = folder.resolve(), set(), set(), set()
    for place, names, files in os.walk(own.parent):
        path = Path(place)
        names[:] = sorted(n for n in names if n[0] != "." and path / n != own)
        model, asked = "manifest.json" in files, read_object(path / "config.json")
        if model:
            names[:] = []
        elif path == own.parent or not ({*_HOME} & {*files} or {"data", "base"} & {*asked}):
            continue
        home = _home(path, own.parent)
        homes.add(home)
        if model:
            inputs = read_object(path / "record.json").get("inputs")
            if isinstance(inputs, Mapping) and fingerprint in (inputs.get("fingerprint") or "-",):
                same.add(home)
        elif config is not None:
            whole = asked["base"] if isinstance(asked.get("base"), dict) else asked
            data = whole["data"] if isinstance(whole.get("data"), dict) else {}
            if data.get("name") == config.data.name and data.get("dir") == config.data.dir:
                alike.add(home)
    for home in sorted(same | alike):
        kind = next((what for file, what in _HOME.items() if (own.parent / home / file).is_file()),
                    "run")  # fmt: skip
        told = "the same data" if home in same else f"the data set {config and config.data.name}"
        yield f"another {kind} of {told}: {home}"
    tops = {home.split("/")[0] for home in homes} | {own.name}
    pages = {page.name for page in _comparisons(folder)}
    rest = sorted(p.name for p in own.parent.iterdir() if p.name not in tops | pages)
    if rest := [name for name in rest if name[0] != "."]:
        more = f" and {len(rest) - 10} more" if len(rest) > 10 else ""
        yield f"what no run made, beside this one: {', '.join(rest[:10])}{more}"


def _home(path: Path, runs: Path) -> str:
    """Returns the place among the runs of that which a folder in it belongs to."""
    parts = path.relative_to(runs).parts
    for end in range(1, len(parts)):
        home = runs.joinpath(*parts[:end])
        if any((home / name).is_file() for name in (*_HOME, "config.json")):
            return "/".join(parts[:end])
    inner = re.compile(r"original|helpers|pools|unlearned|retrained|(seed|class|turn)_\d+")
    end = next((n for n, part in enumerate(parts) if n and inner.fullmatch(part)), len(parts))
    return "/".join(parts[:end])
