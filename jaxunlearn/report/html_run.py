"""Page of a run: its report and what lies beside it in the folder, section by section.

What an older run did not keep, or a purge removed, is left out, and so is what cannot be read.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.report import html_charts as charts
from jaxunlearn.report.erasure_page import FINDINGS, PLAIN
from jaxunlearn.report.html import (
    Bar,
    Cell,
    Example,
    Page,
    Part,
    Row,
    Section,
    Table,
    Words,
    embed_pictures,
)
from jaxunlearn.report.summary import (
    best_sentence,
    gap_rows,
    is_as_retrained,
    mean_gap,
    request_of,
    unlearned,
)
from jaxunlearn.report.text import (
    FAILED,
    ORIGINAL,
    RETRAINED,
    cell,
    environment,
    failures,
    grids,
    number,
    trial_kind,
)

Report = Mapping[str, Any]

_GROUPS = {
    "forgetting": "forgetting: does it still say it?",
    "utility": "utility: what use is it still?",
    "privacy": "privacy: can one tell that it was trained on it?",
    "truth": "truth: is it still inside?",
    "cost": "cost",
}
_NATIVE = {
    name: f"{name}.json" for name in ("confusions", "losses", "scores", "answer_losses", "exposed")
}
"""Pictures that are drawn from their numbers where these lie beside them."""
_MOST_DRAWN = 12


def make_run_page(
    report: Report, folder: Path, words: Mapping[str, Words], pictures: Mapping[str, str]
) -> Page:
    """Makes the page of a run.

    Args:
      report: see :mod:`jaxunlearn.report`.
      folder: of the run; its pictures, records and configuration are read from there.
      words: on metrics, by name.
      pictures: what each picture shows in one line, by name.
    """
    name, _, asked = str(report["title"]).partition(": ")
    sections = [
        Section("time", "Gap and time", _gap_and_time(report)),
        Section("table", "Table", list(_tables(report)), _table_lead(report)),
        Section("inside", "Is it still inside?", _curves(report)),
        Section("losses", "Can one tell what was trained on?", _losses(folder)),
        Section("confusions", "Who is taken for whom?", _confusions(folder)),
        Section("exposed", "Most exposed examples", _exposed(report, folder, words), _EXPOSED_LEAD),
        Section("pictures", "Pictures", _pictures(folder, pictures)),
        Section("attacks", "After attacks", list(_attacks(folder)), open=False),
        Section("record", "Erasure record", list(_records(folder, report)), open=False),
        Section("configuration", "Configuration", _configuration(folder), open=False),
        Section("notes", "Notes", _notes(report), open=False),
    ]
    title = f"{name}: {asked}" if asked else name
    return Page("Run", title, best_sentence(report), _facts(report), sections, words)


def _facts(report: Report) -> list[tuple[str, str]]:
    facts = [("to be forgotten", request_of(report)), ("methods", str(len(unlearned(report))))]
    rows = {row.get("name"): row["values"] for row in report["rows"]}
    if (seconds := rows.get("seconds", {}).get(RETRAINED)) is not None:
        facts.append(("retraining takes", number(seconds, "s")))
    for note in report.get("notes", []):
        if note.startswith("examples: "):
            sizes = dict(
                part.rsplit(" ", 1) for part in note.removeprefix("examples: ").split(", ")
            )
            both = [f"{name} {sizes[name]}" for name in ("forget", "retain") if name in sizes]
            facts.append(("examples", ", ".join(both)))
    versions = report.get("environment", {})
    if "device" in versions:
        facts.append(("device", f"{versions['device']}, jax {versions.get('jax', '?')}"))
    return facts


# Tables


def _table_lead(report: Report) -> str:
    kind = trial_kind(report)
    several = f" ± is the 95 % interval of the mean over {kind}s." if kind else ""
    return (
        "★ closest to the ideal. Underlined: differs from the retrained models by no more than "
        "two of these differ from each other (the floor, below their value)." + several
    )


def _tables(report: Report) -> Iterator[Part]:
    models = _ordered(report["columns"])
    groups = []
    for group, rows in groupby(report["rows"], lambda row: row.get("group", "")):
        made = [_row(row, models) for row in rows]
        groups.append((_GROUPS.get(group, group), made))
    note = "; ".join(failures(report))
    yield Part("table", Table("metric", models, groups, RETRAINED in models, True, note))
    for grid in grids(report)[1:]:
        lines = [
            (
                name,
                [
                    Row(
                        " ".join(word for word in line.words if word),
                        [Cell(text, "same" if marked else "") for text, marked in
                         (line.cells[c] for c in grid.columns)],
                    )
                    for line in own
                ],
            )
            for name, own in grid.groups
        ]  # fmt: skip
        below = f"Underlined: {grid.marks}." if grid.marks else "; ".join(filter(None, grid.notes))
        head = grid.heads[-1] if len(grid.heads) == 1 else ", ".join(grid.heads)
        yield Part("table", Table(head, grid.columns, lines, note=below), grid.title)


def _ordered(columns: Sequence[str]) -> list[str]:
    """Returns the retrained models first: all others are compared with them."""
    return [name for name in columns if name == RETRAINED] + [
        name for name in columns if name != RETRAINED
    ]


def _row(row: Mapping[str, Any], models: Sequence[str]) -> Row:
    cells = []
    for name in models:
        text, kind = cell(row, name), ""
        if text == FAILED:
            kind = "failed"
        elif name in (row.get("best") or ()):
            kind = "best"
        elif name not in (ORIGINAL, RETRAINED) and is_as_retrained(row, name):
            kind = "same"
        note = " ".join(str((row.get("failed") or {}).get(name, "")).split())
        half = (row.get("over_examples") or {}).get(name)
        if half:
            note = f"±{number(half, row['format'])}, 95 % over examples"
        floor = row.get("floor") if name == RETRAINED else None
        below = "" if floor is None else f"floor {number(floor, row['format'])}"
        cells.append(Cell(text, kind, note, below))
    below = f"ideal: {row.get('ideal') or '-'}"
    return Row(row["metric"], cells, row.get("name", ""), below, charts.strip(row, models))


# Charts


def _gap_and_time(report: Report) -> list[Part]:
    rows = {row.get("name"): row for row in report["rows"]}
    found = None
    seconds = rows.get("seconds", {}).get("values", {})
    models, counted = report["columns"], gap_rows(report)
    gaps = {name: mean_gap(report, name) for name in unlearned(report)}
    known = [row["floor"] for row in counted if row.get("floor") is not None]
    points = {
        name: (float(seconds[name]), gap) for name, gap in gaps.items()
        if gap is not None and seconds.get(name)
    }  # fmt: skip
    if points:
        floor = sum(known) / len(known) if known else None
        note = (
            f"Gap: mean distance from the retrained models over {len(counted)} metrics whose ideal "
            "they are. Lower left is better; in the grey, retrained models differ as much."
        )
        found = charts.scatter(
            "Gap against time", points, models, ("time of the method", "gap"), floor=floor,
            note=note,
        )  # fmt: skip
    if bars := _time_bars(report, seconds, rows.get("compile_seconds", {}).get("values", {})):
        title = "Time, and time to compile (lighter)"
        return [Part("pair", ([found], title, bars)) if found else Part("bars", bars, title)]
    return [Part("charts", [found])] if found else []


def _time_bars(report: Report, run: Mapping[str, Any], built: Mapping[str, Any]) -> list[Bar]:
    names = [name for name in (RETRAINED, *unlearned(report)) if run.get(name)]
    whole = {name: (float(run[name]), float(built.get(name) or 0)) for name in names}
    longest = max((sum(both) for both in whole.values()), default=0.0)
    ratios: Mapping[str, Any] = next(
        (r["values"] for r in report["rows"] if r.get("name") == "speedup"), {}
    )
    made = []
    for name, (own, compiled) in whole.items():
        text = f"{number(own, 's')} + {number(compiled, 's')}"
        if ratios.get(name):
            text += f" · {number(ratios[name], 'x')}"
        kind = charts.series_class(name, report["columns"])
        made.append(Bar(name, own / longest, compiled / longest, text, kind))
    return made


def _curves(report: Report) -> list[Part]:
    found = []
    for curve in report.get("curves", []):
        first = int(curve["along"] in ("layers", "kernels"))
        chart = charts.curves(
            curve["label"], curve["values"], report["columns"], (curve["along"], ""), first=first,
            spread=curve.get("spread"),
        )  # fmt: skip
        found += [chart] if chart else []
    return [Part("charts", found)] if found else []


def _losses(folder: Path) -> list[Part]:
    parts = []
    for name in ("losses.json", "scores.json", "answer_losses.json"):
        for file in _beside(folder, name):
            content = _read(file)
            try:
                parts += _distributions(content)
            except (LookupError, TypeError, ValueError):
                continue
    return parts


def _distributions(content: Mapping[str, Any]) -> list[Part]:
    models, edges, words = content["models"], content["edges"], content["words"]
    names, shown = list(models), []
    for model in [*names[: _MOST_DRAWN - 1], *names[-1:]] if len(names) > _MOST_DRAWN else names:
        shown.append(charts.histogram(model, models[model], edges[model], words))
    parts = [Part("charts", shown, f"Distribution of the {words}")]
    if curves := content.get("roc"):
        lines = {name: (own["false"], own["true"]) for name, own in curves.items()}
        areas = {name: own["auc"] for name, own in curves.items()}
        note = content.get("about", "")
        title = f"Attack by the {words}"
        parts.insert(0, Part("charts", [charts.roc(title, lines, names, areas, note)]))
    return parts


def _confusions(folder: Path) -> list[Part]:
    for file in _beside(folder, "confusions.json"):
        content = _read(file)
        try:
            found = [
                charts.confusion(model, matrix, content["names"], content["forgotten"])
                for model, matrix in content["models"].items()
            ]
        except (LookupError, TypeError, ValueError):
            continue
        if shown := [chart for chart in found if chart]:
            return [Part("charts", shown)]
    return []


def _exposed(report: Report, folder: Path, words: Mapping[str, Words]) -> list[Part]:
    """Returns the forget examples of each method that give most away, as far as they may be shown.

    A run whose record is to list no positions shows none, and no example either.
    """
    asked = _read(folder / "config.json")
    listed = _lists_positions(asked)
    for name in ("exposed", "exposed_answers", "exposed_images") if listed else ():
        for file in _beside(folder, f"{name}.json"):
            try:
                if found := list(_shown(_read(file), report["columns"])):
                    return found
            except (LookupError, TypeError, ValueError, AttributeError):
                continue
    return _exposed_values(report, folder, words, listed)


def _lists_positions(config: Any) -> bool:
    """Tells whether a run's record and page may name single examples."""
    own = config.get("record") if isinstance(config, Mapping) else None
    return not isinstance(own, Mapping) or own.get("indices", True) is not False


def _shown(content: Mapping[str, Any], models: Sequence[str]) -> Iterator[Part]:
    """Yields the examples that a picture's numbers hold, model by model."""
    rows = []
    for name in models:
        if name not in content["models"]:
            continue
        own = content["models"][name]
        made = [_example(content["examples"][str(one["place"])], one) for one in own["first"]]
        rows.append((name, f"median {own['median']:.3f}", made))
    if rows:
        words = content["words"]
        yield Part("examples", rows)
        yield Part("text", f"Below each its position in the data set, and the value: {words}.")
        if any(one.words for _, _, made in rows for one in made):
            yield Part("text", _MARKED)


_MARKED = (
    "Marked words are likelier than a retrained model finds them, at least 3, 30 and 300 times: "
    "the darker, the more."
)
_LIKELIER = (0.11, 0.34, 0.57)
"""Scores of words from which they are marked: natural logarithms of these, divided by ten."""


def _example(content: Mapping[str, Any], one: Mapping[str, Any]) -> Example:
    """Returns an example; what is no picture of ours is none."""
    name, position = str(content["name"]), int(content["position"])
    image = str(content.get("image", ""))
    marked = [
        (str(word), sum(float(score) >= least for least in _LIKELIER))
        for word, score in one["marked"]
    ]
    return Example(
        f"{name} · no. {position}", f"{one['value']:.3f}",
        image if image.startswith("data:image/png;base64,") else "",
        f"forgotten example {position}, of {name}", str(content.get("text", "")), marked,
    )  # fmt: skip


def _exposed_values(
    report: Report, folder: Path, words: Mapping[str, Words], listed: bool
) -> list[Part]:
    """Returns a table of the values alone, where no example lies there."""
    found = _arrays(folder / "examples.npz")
    places = _arrays(folder / "sets.npz").get("forget") if listed else None
    name = next((n for n in _EXPOSING if any(key.endswith(f"/{n}") for key in found)), "")
    rows = []
    for label in unlearned(report):
        # of several trials the first
        keys = sorted(key for key in found if f"/{key}".endswith(f"/unlearned/{label}/{name}"))
        values = found[keys[0]] if keys else np.zeros(0)
        if values.ndim != 1 or not np.isfinite(values).all() or not len(values):
            continue
        first = np.argsort(-values, kind="stable")[:_MOST_EXPOSED]
        known = places is not None and len(places) == len(values) and "/unlearned/" not in keys[0]
        own = [int(places[n]) if known and places is not None else int(n) for n in first]
        cells = [
            Cell(f"{place}", below=f"{values[n]:.3f}") for place, n in zip(own, first, strict=True)
        ]
        cells += [Cell("-")] * (_MOST_EXPOSED - len(cells))
        rows.append(Row(label, [*cells, Cell(f"{np.median(values):.3f}")]))
    if not rows:
        return []
    heads = [*(f"{n}." for n in range(1, _MOST_EXPOSED + 1)), "median"]
    label = words[name].label if name in words else name
    where = (
        "in the data set (of several seeds in the forget set)" if listed else "in the forget set"
    )
    note = f"Positions {where}, below them: {label}."
    return [Part("table", Table("method", heads, [("", rows)], note=note))]


_EXPOSING = ("lira", "js_to_retrained", "probability_forget")
"""Values of each forget example that are large where it is exposed; the first that are there."""
_EXPOSED_LEAD = "Forgotten examples that give most away that a model once saw them."
_MOST_EXPOSED = 5


# What lies beside the report


def _arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}


def _beside(folder: Path, name: str) -> list[Path]:
    """Lists files of this name among the pictures of a run, or of the trial that was drawn."""
    found = sorted(folder.glob(f"pictures/{name}")) or sorted(folder.glob(f"*/pictures/{name}"))[:1]
    return [file for file in found if not file.is_symlink() and not file.parent.is_symlink()]


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def _pictures(folder: Path, about: Mapping[str, str]) -> list[Part]:
    files = []
    places = [folder / "pictures"] if (folder / "pictures").is_dir() else []
    places = places or sorted(folder.glob("*/pictures"))[:1]
    for place in places:
        for file in sorted([*place.glob("*.png"), *place.glob("*/*.png")]):
            name = next((n for n in about if file.stem == n or file.stem.startswith(f"{n}_")), "")
            drawn = _NATIVE.get(name)
            # what a link points to is none of the run's, and no purge reaches it
            linked = file.is_symlink() or file.parent.is_symlink() or place.is_symlink()
            if not name or linked or (drawn and file.with_name(drawn).is_file()):
                continue
            label = "" if file.parent == place else f"{file.parent.name}: "
            number_ = file.stem.removeprefix(name).strip("_")
            title = f"{label}{about[name]}" + (f" ({number_})" if number_ else "")
            files.append((file, title, f"Picture. {title}. {_told(file)}".strip()))
    made = embed_pictures(files)
    return [Part("pictures", made)] if made else []


def _told(file: Path) -> str:
    """Returns the begin of the text that lies beside a picture, if any."""
    try:
        text = file.with_suffix(".md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    return " ".join(text.replace("|", " ").replace("#", " ").split())[:400]


def _attacks(folder: Path) -> Iterator[Part]:
    for file in sorted(folder.glob("attacks/*/report.json")):
        report = _read(file)
        try:
            part = next(_tables(report))
            title = str(report["title"]).rpartition(", after ")[2]
            yield part._replace(title=f"After {title}")
        except (LookupError, TypeError, ValueError, AttributeError, StopIteration):
            continue


def _records(folder: Path, report: Report) -> Iterator[Part]:
    first = True
    for place in report.get("records", {}):
        record = _read(folder / place / "record.json")
        try:
            parts = list(_record(record, first))
        except (LookupError, TypeError, ValueError, AttributeError):
            continue
        yield from parts
        first = False


def _record(record: Mapping[str, Any], first: bool) -> Iterator[Part]:
    request, method = record["request"], record["method"]
    if first:
        yield Part("settings", [
            ("request", str(request.get("id"))),
            ("asked for", str(request.get("text"))),
            ("examples", f"{request.get('size')} of {request.get('of')}"),
            ("positions, SHA-256", str(request.get("indices_sha256"))[:16]),
            ("contents, SHA-256", str(request.get("contents_sha256"))[:16]),
            ("retrained models", str(record["retraining"]["number"])),
        ])  # fmt: skip
    rows = []
    findings = {one["name"]: one["finding"] for one in record["findings"] if not one["attack"]}
    for one in record["table"]:
        if one["name"] not in PLAIN:
            continue
        told = findings.get(one["name"], "")
        cells = [
            Cell(number(one.get(n), one["format"])) for n in ("original", "unlearned", "retrained")
        ]
        cells.append(Cell(FINDINGS.get(told, "-"), "same" if told == "alike" else ""))
        rows.append(Row(PLAIN[one["name"]][0], cells, one["name"]))
    heads = ["before", "after", "never saw", "finding"]
    place = record["models"]["after"]
    note = f"Seal {record['seal'][:16]}; weights {place['weights_sha256'][:16]}."
    title = f"{record['model']}: {method.get('summary') or method['name']}"
    yield Part("table", Table("test", heads, [("", rows)], note=note), title)
    if record.get("limits"):
        yield Part("list", record["limits"])


def _configuration(folder: Path) -> list[Part]:
    found = _read(folder / "config.json")
    pairs = list(flatten(found)) if isinstance(found, Mapping) else []
    if not _lists_positions(found):
        named = ("request.indices", "request.words", "request.pairs")
        pairs = [(key, "left out" if key in named else value) for key, value in pairs]
    return [Part("settings", pairs)] if pairs else []


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yields settings by their dotted names; long lists are counted, empty ones left out.

    Positions of forgotten examples are counted always, beside a part of their SHA-256.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        if value and name.endswith("request.indices"):
            digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()
            yield name, f"{len(value)} values, SHA-256 {digest[:8]}"
        elif len(value) > 12:
            yield name, f"{len(value)} values"
        elif value:
            yield name, ", ".join(map(str, value))
    elif value is not None and value != "":
        yield name, str(value)


def _notes(report: Report) -> list[Part]:
    notes = list(report.get("notes", []))
    versions = environment(report)
    return [Part("list", [*notes, *([versions] if versions else [])])] if notes or versions else []
