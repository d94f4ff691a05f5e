"""Purge of a finished run: removes what still holds the forgotten data, once records are sealed.

``erasure/purge.json`` is written before anything is removed. A purge that is killed goes on from
it; a run in the folder is refused from then on.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn import checkpoint, report
from jaxunlearn.core.errors import CheckpointError, printable
from jaxunlearn.core.files import hold, write_text
from jaxunlearn.core.seals import now, read_sealed, write_sealed
from jaxunlearn.data.requests import describe
from jaxunlearn.experiment.erasure import ERASURE, RECORD, neutral
from jaxunlearn.experiment.folder import LOCK, PURGE, purge_of
from jaxunlearn.experiment.holdings import Holdings, config_of, is_kept, list_holdings, walk_run
from jaxunlearn.experiment.pages import PAGE, try_page
from jaxunlearn.experiment.verification import compare_places, verify_run


def list_purge(folder: Path) -> Holdings:
    """Lists what :func:`purge` would do, and changes nothing.

    Raises:
      CheckpointError: see there.
    """
    done = purge_of(folder)
    _check(folder, done)
    return list_holdings(folder, done)


def purge(folder: Path) -> Holdings:
    """Removes from a run's folder, and from the cache, what still holds the forgotten data.

    The originals, models of others' use (guides, pools), states of unfinished models, positions,
    numbers of each example and pictures go; unlearned and retrained models, tables of means and
    records stay, and lose the positions and words that they list. A second purge removes what
    came back.

    Returns:
      What was removed, and what purges before it had; also in ``erasure/purge.json`` and
      ``erasure/purge.md``.

    Raises:
      CheckpointError: another process works in the folder; the run is not finished, its records
        do not verify, or it forgets each class by itself.
    """
    with hold(folder / LOCK, folder):
        done = purge_of(folder)
        _check(folder, done)
        listing = list_holdings(folder, done)
        begun = {
            "begun": now() if done is None else done["begun"],
            "removed": [one._asdict() for one in (*listing.gone, *listing.removed)],
            "kept": listing.kept,
            "beyond": listing.beyond,
            "models": report.load(folder).get("models", {}) if done is None else done["models"],
        }
        write_sealed(folder / PURGE, {**begun, "state": "begun"})
        for one in listing.removed:
            _remove(folder, one.path)
        _redact(folder, begun["models"])
        _renew_page(folder)
        write_text(folder / ERASURE / "purge.md", to_page(folder.resolve().name, begun))
        write_sealed(folder / PURGE, {**begun, "state": "done", "done": now()})
    return listing


def _check(folder: Path, done: Mapping[str, Any] | None) -> None:
    """Checks that a run is finished and its records hold; or that an earlier purge can go on."""
    made = report.load(folder)
    if done is not None:
        read_sealed(folder / PURGE)
        # digests change meanwhile; what stays is decided by places
        wrong, _ = compare_places(folder, made, done)
        if set(done.get("models", {})) != set(made.get("models") or {}):
            wrong.append(f"{folder / 'report.json'}: not the models that the purge began with")
        _refuse(folder, wrong)
        return
    if made.get("trials", {}).get("kind") == "class":
        raise CheckpointError(
            f"{folder}: expected a run that forgets one request, got one that forgets each class "
            "by itself: every model of it holds what the others forgot"
        )
    if not made.get("records"):
        raise CheckpointError(
            f"{folder}: expected a run with erasure records, got none; the same run again writes "
            "them"
        )
    found = verify_run(folder)
    # what an earlier run left has no part in the report, and is removed
    _refuse(folder, [line for line in found.wrong if line not in found.left])


def _refuse(folder: Path, wrong: Sequence[str]) -> None:
    if wrong:
        raise CheckpointError(
            f"{folder}: expected a run that verifies, got {len(wrong)} things that do not; the "
            f"first: {wrong[0]}"
        )


# Removal


def _remove(folder: Path, name: str) -> None:
    """Removes a file or a folder, which may be gone already; never through a link."""
    path = folder / name
    own = Path(name).is_absolute() or _is_within(folder, path.parent)
    if not own or path.is_symlink() or not path.exists():
        return
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    for parent in (path.parent, path.parent.parent):
        ours = parent.name in ("pictures", "helpers", "pools") or parent.parent.name == "pictures"
        if ours and parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def _redact(folder: Path, before: Mapping[str, str]) -> None:
    """Takes positions and words of the request out of what stays.

    Args:
      before: digests of the models by place, as they were at the begin.
    """
    changes = _words(folder)
    for name, digest in before.items():
        path = folder / name
        if (path / "manifest.json").is_file() and _is_within(folder, path):
            checkpoint.amend(path, _amended)
            if (new := checkpoint.digest(path)) != digest:
                changes[digest] = new
    own = {path.relative_to(folder).as_posix(): path for path in walk_run(folder)}
    files = [path for name, path in own.items() if is_kept(name) and not path.is_symlink()]
    for file in files:
        if file.name == RECORD:
            record = read_sealed(file)
            record["request"]["named"] = {"indices": None, "words": None}
            write_sealed(file, record)
        elif file.name in ("metrics.jsonl", "judgement.json", "report.md", "report.json"):
            _replace(file, changes)
    # the last, because it tells the words
    for file in files:
        if file.name == "config.json" and file.parent.name != "language":
            found = json.loads(file.read_text(encoding="utf-8"))
            write_text(file, json.dumps(_without(found), indent=2, sort_keys=True) + "\n")


def _renew_page(folder: Path) -> None:
    """Makes the page anew, which held pictures: of what is there now."""
    pages = [path for path in walk_run(folder) if path.name == PAGE and not path.is_symlink()]
    for page in pages:
        if is_kept(page.relative_to(folder).as_posix()):
            page.unlink()
    if folder / PAGE in pages:
        try_page(folder)


def _amended(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of a model's making without positions and words."""
    asked = record.get("config", {}).get("request", {})
    if asked.get("words") or asked.get("pairs"):
        record = {**record, "request": f"forget {len(asked['indices'])} texts"}
    return dict(_without(record))


def _without(value: Any) -> Any:
    """Returns JSON whose requests list neither positions nor words."""
    if not isinstance(value, Mapping):
        return value
    made = {key: _without(inner) for key, inner in value.items()}
    if isinstance(asked := made.get("request"), Mapping) and "indices" in asked:
        made["request"] = {**asked, "indices": [], **({"words": []} if "words" in asked else {})}
    return made


def _words(folder: Path) -> dict[str, str]:
    """Returns what tells words or a file of a request in titles, and what replaces it."""
    config = config_of(folder)
    if config is None or not (config.request.words or config.request.pairs):
        return {}
    asked = config.request
    return {describe(asked): neutral(asked, len(asked.indices))}


def _replace(file: Path, changes: Mapping[str, str]) -> None:
    text = before = file.read_text(encoding="utf-8")
    for old, new in changes.items():
        for form in (str, lambda word: json.dumps(word)[1:-1]):
            text = text.replace(form(old), form(new))
    if text != before:
        write_text(file, text)


def _is_within(folder: Path, path: Path) -> bool:
    """Tells whether no link on the way leads out of the folder."""
    return path.resolve().is_relative_to(folder.resolve())


# The page


def to_page(name: str, done: Mapping[str, Any]) -> str:
    """Returns what a purge did as a page in Markdown."""
    lines = [f"# Purge of the run {name}", ""]
    lines += [
        f"Begun on {done['begun']}. The records of what was forgotten had been sealed and verified "
        "before. Positions, and words that named what was to be forgotten, were taken out of what "
        "stays.",
        "",
        "## Removed",
        "",
        *(f"- `{one['path']}`: {one['what']}" for one in done["removed"]),
        "",
        "## Out of reach",
        "",
        "These were not touched. Whether they still hold the forgotten data is for you to see to.",
        "",
        *(f"- {one}" for one in done["beyond"]),
        "",
        "## Kept",
        "",
        "Unlearned models, each with its record; models that never saw the forgotten data; tables "
        "of means. An unlearned model that is not to be used is for you to remove.",
        "",
        *(f"- {one}" for one in done["kept"]),
    ]
    return printable("\n".join(lines) + "\n")
