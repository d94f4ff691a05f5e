"""Erasure records: each unlearned model of a run has one, a file for machines and a page to read.

They lie in ``erasure/<label>`` beside ``unlearned/<label>``: ``record.json`` and ``record.md``.
A record is sealed (``core/seals.py``), and its page with it. Two lists, the positions of the
forgotten examples and the words that named them, stand under ``request.named``, which the seal
leaves out: it covers their SHA-256 instead, so that they can be purged and it still holds.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn import checkpoint
from jaxunlearn.config import Config, Request, to_dict
from jaxunlearn.core.errors import CheckpointError
from jaxunlearn.core.files import write_text
from jaxunlearn.core.seals import digest_of, now, plain, read_sealed, text_digest, write_sealed
from jaxunlearn.core.statistics import estimate
from jaxunlearn.core.trees import named_leaves, to_device
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.requests import describe
from jaxunlearn.data.sets import num_examples
from jaxunlearn.data.streams import Stream
from jaxunlearn.experiment.plan import Plan
from jaxunlearn.methods import METHODS
from jaxunlearn.metrics.about import text_of
from jaxunlearn.metrics.relearning import RELEARN_STEPS
from jaxunlearn.metrics.table import Judged, summarise
from jaxunlearn.report.erasure_page import ALIKE, BEYOND, PLAIN, TRACE, UNCLEAR, UNKNOWN, to_page

ERASURE = "erasure"
"""Folder of a run, or of a trial, with its records."""
RECORD, PAGE = "record.json", "record.md"
_FORMAT = 1
_LARGE = 2**30
_BLOCK = 2**26  # bytes of streamed examples that are read together

Record = dict[str, Any]


class Subject(NamedTuple):
    """Trial of a run, judged: its unlearned models are to have records.

    Attributes:
      values: of its models.
      made: record of the making of every model, by stage.
      places: of the checkpoints, by stage.
      notes: of the judgement.
      attacked: values of its models after each attack.
    """

    plan: Plan
    values: Judged
    made: Mapping[str, Record]
    places: Mapping[str, Path]
    notes: Sequence[str]
    attacked: Mapping[str, Judged]


def write_records(
    plan: Plan, subjects: Sequence[Subject], reports: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Writes the record of every unlearned model; one that says the same already is kept.

    Args:
      plan: of the whole run.
      reports: on all trials, as they are (``""``) and after each attack.

    Returns:
      The seals, by the place of the record's folder in the run's.
    """
    sums = {name: digest_of(one["rows"]) for name, one in reports.items()}
    seals: dict[str, str] = {}
    before: Subject | None = None
    for one in subjects:
        about = _about_request(one.plan)
        for label in one.plan.methods:
            if f"unlearned/{label}" not in one.places:
                continue  # it failed
            record = {**_record(plan, one, label, before, reports), "reports_sha256": sums}
            record["request"] = {**about, **record["request"]}
            place = one.plan.folder / ERASURE / label
            name = place.relative_to(plan.folder).as_posix()
            seals[name] = _write(place, plain(record))
        before = one
    return seals


def _record(
    plan: Plan, one: Subject, label: str, before: Subject | None,
    reports: Mapping[str, Mapping[str, Any]],
) -> Record:  # fmt: skip
    own, stage = one.plan, f"unlearned/{label}"
    made = one.made[stage]
    start = "original"
    place = one.places["original"]
    if own.trial is not None and own.trial.kind == "turn" and before is not None:
        start, place = f"{before.plan.folder.name}/{stage}", before.places[stage]
    retrained = [name for name in one.places if name.startswith("retrained/")]
    table = rows_of(one.values, label, reports[""])
    attacks: dict[str, Record] = {
        name: {
            "label": own.kind.attacks[name].label,
            "table": rows_of(values, label, reports[name]),
        }
        for name, values in one.attacked.items()
    }
    options = {k: v for k, v in own.options[label].items() if k != "method"}
    runner = {k: v for k, v in own.methods[label][1].items() if k in ("steps", "batch_size")}
    name = own.options[label].get("method", label)
    config: dict[str, Any] = to_dict(own.config)
    config["request"] |= {"indices": [], "words": [], "pairs": ""}
    return {
        "format": _FORMAT,
        "run": plan.config.name,
        "trial": None if own.trial is None else own.trial._asdict(),
        "model": stage,
        "request": {"data": {"name": own.config.data.name, "fingerprint": own.data.fingerprint}},
        "method": {
            "label": label,
            "name": name if "chain" not in options else "chain",
            "summary": METHODS[name].summary if name in METHODS else "",
            "options": {**options, **runner},
        },
        "configuration": config,
        "versions": made["versions"],
        "seed": own.config.seed,
        "models": {
            "before": {"place": start, "weights_sha256": weights_digest(place)},
            "after": {"place": stage, "weights_sha256": weights_digest(one.places[stage])},
            "retrained": {n: weights_digest(one.places[n]) for n in retrained},
        },
        "retraining": {
            "number": len(retrained),
            "examples": own.retained,
            "given_start": own.kind.supplied(own.settings).start,
            **to_dict(own.config.train),
        },
        "table": table,
        "attacks": attacks,
        "findings": [
            {"attack": attack, **{key: row[key] for key in ("name", "group", "finding")}}
            for attack in ("", *attacks)
            for row in (attacks[attack]["table"] if attack else table)
            if row["group"] != "cost"
        ],
        "notes": [*one.notes],
        "limits": _limits(plan, one, label, table),
    }


# The request


def _about_request(plan: Plan) -> Record:
    """Describes a request: in words, by fingerprints, and the lists that may be left out."""
    forget, asked, own = plan.sets.forget, plan.config.request, plan.config.record
    assert forget is not None
    rows = np.sort(np.asarray(forget.indices)[: num_examples(forget)])
    kinds = ("words", "pairs", "classes", "indices", "share")
    kind = next(name for name in kinds if getattr(asked, name))
    named = {"indices": rows.tolist() if own.indices else None, "words": None}
    if asked.words:
        named["words"] = list(asked.words) if own.indices else None
    places, contents = positions_digest(rows), contents_digest(plan.data, rows)
    made = hashlib.sha256(f"{plan.data.fingerprint} {places}".encode()).hexdigest()[:16]
    return {
        "id": own.id or f"request-{made}",
        "kind": kind,
        "text": neutral(asked, len(rows)),
        "size": len(rows),
        "of": len(plan.data.train_y),
        "indices_sha256": places,
        "contents_sha256": contents,
        "words_sha256": digest_of(list(asked.words)) if asked.words else None,
        "named": named,
    }


def describe_for_titles(config: Config) -> str:
    """Describes the request of a run for titles, which whoever gets the page can read.

    With ``record.indices=false`` without what may name a person.
    """
    asked = config.request
    return describe(asked) if config.record.indices else neutral(asked, len(asked.indices))


def neutral(asked: Request, size: int) -> str:
    """Describes a request without words, names of classes or of files, which may name a person.

    A run knows its classes by number, however they were given.
    """
    if asked.words:
        return f"forget {size} texts in which certain words stand"
    if asked.pairs:
        return f"forget {size} texts that a file lists"
    if any(isinstance(label, str) for label in asked.classes):
        number = len(asked.classes)
        return f"forget {'a class' if number == 1 else f'{number} classes'} given by name"
    return describe(asked)


def positions_digest(rows: np.ndarray) -> str:
    """Computes the SHA-256 of positions: ascending, as little-endian 64-bit integers."""
    return hashlib.sha256(np.sort(np.asarray(rows)).astype("<i8").tobytes()).hexdigest()


def _of_inputs(x: Any) -> dict[str, Any]:
    return {f"x/{name}".rstrip("/"): leaf for name, leaf in named_leaves(x).items()}


def contents_digest(data: Dataset, rows: np.ndarray) -> str:
    """Computes the SHA-256 of training examples, as the network's reader is given them.

    Of each array, inputs then labels, in turn: JSON of name, dtype and shape, then the bytes of
    the examples in ascending order of their positions.
    """
    digest = hashlib.sha256()
    x, y, rows = data.train_x, data.train_y, np.sort(rows)
    leaves = {} if isinstance(x, Stream) else _of_inputs(x)
    for name, like in _of_inputs(x.like(len(rows))).items() if isinstance(x, Stream) else ():
        digest.update(json.dumps([name, like.dtype.str, like.shape]).encode())
        # each array has a pass of its own, as memory may not hold the others meanwhile
        for block in np.array_split(rows, max(1, -(-len(rows) * x.nbytes // len(x) // _BLOCK))):
            digest.update(np.ascontiguousarray(_of_inputs(x.read(block))[name]).tobytes())
    for name, leaf in {**leaves, "y": y}.items():
        # a large array stays on its device; the examples are of at most 32 bits, as there
        whole = leaf if leaf.nbytes > _LARGE else np.asarray(leaf)
        part = np.ascontiguousarray(to_device(whole[rows]))
        digest.update(json.dumps([name, part.dtype.str, part.shape]).encode())
        digest.update(part.tobytes())
    return digest.hexdigest()


# The table


def rows_of(values: Judged, label: str, report: Mapping[str, Any] | None) -> list[Record]:
    """Returns a row for each metric of one unlearned model, with what its numbers mean.

    ``interval`` is half the width of the 95 % interval of the retrained models' mean,
    ``over_examples`` that of a mean over examples of a single model.

    Args:
      report: on all trials; of several seeds a row holds their mean, too.
    """
    own = {row["name"]: row for row in summarise("", [values])["rows"]}
    whole = {row["name"]: row for row in report["rows"]} if report else {}
    trials = (report or {}).get("trials", {})
    seeds = trials.get("kind") == "seed"
    rows = []
    for name, row in {**(whole if seeds else {}), **own}.items():
        told = own.get(name, {**row, "values": {}, "spread": None, "floor": None})
        found = _row(name, told, values, label)
        if seeds and label in whole[name]["values"]:
            found["over"] = _over(whole[name], label, len(trials["numbers"]))
        found["finding"] = _judge(found, len(values.retrained))
        if found["unlearned"] is not None or found.get("over"):
            rows.append(found)
    return rows


def _row(name: str, row: Mapping[str, Any], values: Judged, label: str) -> Record:
    several = [own.get(name) for own in values.retrained]
    finite = [v for v in several if isinstance(v, int | float) and math.isfinite(v)]
    known = row["values"]
    return {
        **{key: row[key] for key in ("name", "metric", "group", "format", "ideal")},
        "means": _means(name, row["metric"]),
        "original": known.get("original"),
        "unlearned": known.get(label),
        "retrained": known.get("retrained"),
        "interval": estimate(finite).interval if finite and row["group"] != "cost" else None,
        "floor": row.get("floor"),
        "over_examples": {
            key: row["over_examples"][model]
            for key, model in (("original", "original"), ("unlearned", label))
            if model in row.get("over_examples", {})
        },
    }


def _over(row: Mapping[str, Any], label: str, number: int) -> Record:
    """Returns mean and interval over seeds, and the difference to the retrained models."""
    gap = row.get("differences", {}).get(label)
    halves = row.get("intervals", {})
    return {
        "number": number,
        "floor": row.get("floor"),
        **{
            f"{key}{ending}": part.get(name)
            for key, name in (("unlearned", label), ("retrained", "retrained"))
            for ending, part in (("", row["values"]), ("_interval", halves))
        },
        "difference": None if gap is None else dict(gap),
    }


def _judge(row: Mapping[str, Any], number: int) -> str:
    """Tells what the difference to the retrained models means.

    Of several seeds, whether the 95 % interval of the paired difference holds 0. Of one, no
    difference is one of at most the floor, an unclear one would be that of one retrained model
    more, 95 times in 100.
    """
    over = row.get("over") or {}
    gap = over.get("difference")
    if gap and gap["mean"] is not None and gap["interval"] is not None:
        difference, alike, unclear = gap["mean"], gap["interval"], gap["interval"]
    elif row["unlearned"] is None or row["retrained"] is None or number < 2:
        return UNKNOWN
    else:
        difference = row["unlearned"] - row["retrained"]
        alike = row["floor"] or 0.0
        # t sd sqrt(1 + 1 / n)
        unclear = max(alike, (row["interval"] or 0.0) * math.sqrt(number + 1))
    if not math.isfinite(difference):
        return UNKNOWN
    if abs(difference) <= alike + 1e-9:
        return ALIKE
    if abs(difference) <= unclear:
        return UNCLEAR
    way = (row["original"] or 0.0) - (row["retrained"] or 0.0)
    return TRACE if difference * way > 0 else BEYOND


def _means(name: str, metric: str) -> str:
    """Returns a sentence on a metric; the technical one where there is no plain one."""
    if name in PLAIN:
        return PLAIN[name][1]
    text = text_of(name)
    return text.means if text else f"See `jaxunlearn explain {name}`: {metric}."


# Limits


def _limits(plan: Plan, one: Subject, label: str, table: Sequence[Record]) -> list[str]:
    """Lists in plain words how far the tests reach; what the model still knows comes first."""
    rows = {row["name"]: row for row in table if row["unlearned"] is not None}
    found = [*_probes(rows), *_relearning(rows, one.plan.settings)]
    number = sum(name.startswith("retrained/") for name in one.places) * plan.config.seeds
    if number < 2:
        found.append(
            "There is one model to compare with. How much two such models differ by chance is not "
            "known, and so no difference can be judged."
        )
    else:
        found.append(
            f"There are {number} models to compare with. What differs by less than they do from "
            "each other cannot be seen."
        )
    if plan.config.seeds == 1:
        found.append(
            "The method was run once, with one choice of chance. Another run could come out "
            "otherwise."
        )
    elif plan.config.seeds > 1:
        found.append(
            f"The method was run {plan.config.seeds} times, from the beginning; each of the models "
            "has a record of its own."
        )
    left = [n for n in one.plan.kind.attacks if n not in one.plan.config.attacks]
    if left:
        found.append(f"Attacks that are known and were not tried: {', '.join(left)}.")
    found += one.plan.kind.limits(one.plan.settings)
    found += [
        "Only examples of the request were forgotten. What other examples tell of the same person "
        "or matter is still in the model, and in those that it was compared with.",
        "The record says nothing of copies: of the model before, of the data, of anything that "
        "was made from them and lies elsewhere. `jaxunlearn purge` removes what lies in this "
        "folder, pictures and texts of forgotten examples on its page `report.html` included, and "
        "lists what it cannot reach.",
    ]
    if one.plan.sets.forget is not None and num_examples(one.plan.sets.forget) < 10:
        found.append(
            "The positions are few: who knows the data set could find them from their fingerprint "
            "by trying all."
        )
    return found


def _probes(rows: Mapping[str, Record]) -> list[str]:
    name = next((n for n in ("linear_probe", "discriminator_probe") if n in rows), None)
    if name is None:
        return []
    own, rest = rows[name]["unlearned"], rows[name]["retrained"]
    compared = ""
    if rest is not None:
        compared = f"; in those that never saw it, {100 * rest:.1f} in 100 times"
    text = (
        "A simple classifier that reads what the model computes inside still tells the forgotten "
        f"kind from others, {100 * own:.1f} in 100 times (50 is a coin toss){compared}. "
    )
    if rest is not None and own <= rest + (rows[name]["floor"] or 0.0):
        text += "So much is learnt from the kept examples alone: it is no trace of the forgotten."
    else:
        text += "The model does not say what it was to forget, and holds some of it inside."
    return [text]


def _relearning(rows: Mapping[str, Record], settings: Any) -> list[str]:
    name = next((n for n in ("relearn_steps", "steps_to_relearn") if n in rows), None)
    if name is None:
        return []
    most = RELEARN_STEPS if name == "relearn_steps" else getattr(settings, "relearning_steps", None)
    own, rest, floor = (rows[name][key] for key in ("unlearned", "retrained", "floor"))

    def told(steps: float) -> str:
        if most is not None and steps >= most:
            return f"not within {most} steps of training"
        return f"after {steps:.0f} {'step' if round(steps) == 1 else 'steps'} of training"

    text = f"Shown the forgotten examples again, the model knows them {told(own)}"
    if rest is None:
        return [f"{text}."]
    text += f", those that never saw them {told(rest)}. "
    if own < rest - (floor or 0.0):
        return [text + "It learns them faster, so that something of them is left."]
    return [text + "It learns them no faster than these."]


# Files


def weights_digest(path: Path) -> str:
    """Returns the SHA-256 of a checkpoint's weights: its manifest without the record of its making.

    That is :func:`digest_of` the SHA-256 of each file, by its name, but ``record.json``.

    Raises:
      CheckpointError: no checkpoint.
    """
    sums = checkpoint.read_manifest(path)
    return digest_of({name: value for name, value in sums.items() if name != RECORD})


def _write(place: Path, record: Record) -> str:
    """Writes record and page; one that says the same keeps its date."""
    with contextlib.suppress(CheckpointError, OSError, ValueError, KeyError):
        there = read_sealed(place / RECORD)
        page = (place / PAGE).read_bytes().decode("utf-8")
        same = {k: v for k, v in there.items() if k not in ("made", "page_sha256", "seal")}
        if same == record and there["page_sha256"] == text_digest(page):
            return str(there["seal"])
    record = {**record, "made": {"date": now(), "jaxunlearn": checkpoint.versions()["jaxunlearn"]}}
    page = to_page(record)
    write_text(place / PAGE, page)
    return write_sealed(place / RECORD, {**record, "page_sha256": text_digest(page)})
