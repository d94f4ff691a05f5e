"""Verification of a finished run: its models, its erasure records, and, asked to, its numbers."""

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn import checkpoint
from jaxunlearn.config import SECTIONS, Config, Request, section
from jaxunlearn.core.errors import CheckpointError, DataError, UserError, sentence
from jaxunlearn.core.seals import digest_of, read_sealed, text_digest
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.requests import forget_mask
from jaxunlearn.data.sources import load_dataset
from jaxunlearn.experiment.erasure import (
    ERASURE,
    PAGE,
    RECORD,
    Record,
    contents_digest,
    positions_digest,
    rows_of,
    weights_digest,
)
from jaxunlearn.experiment.folder import MODEL, PURGE, TRIAL, models_of, purge_of
from jaxunlearn.experiment.helpers import with_helpers
from jaxunlearn.experiment.plan import groups, helper_stages, make_plan, trials
from jaxunlearn.experiment.trial import Trial
from jaxunlearn.kinds import KINDS, load_sections
from jaxunlearn.metrics.registry import SINGLE, applying, measure
from jaxunlearn.metrics.table import Judged
from jaxunlearn.models import NETWORKS
from jaxunlearn.report import load, other_models

NEAR = {"rel_tol": 1e-3, "abs_tol": 1e-4}
"""Numbers measured again may differ by so much: other machines round otherwise."""


class Verified(NamedTuple):
    """Outcome of a verification.

    Attributes:
      wrong: a line for each thing that is not as it was.
      told: lines on what was compared, and on what could not be.
      left: those of ``wrong`` on models and records of which the report has nothing at all; an
        earlier run in the folder may have left them.
    """

    wrong: list[str]
    told: list[str]
    left: list[str]


def verify_run(folder: Path, *, metrics: bool = False) -> Verified:
    """Compares a finished run with what was written and judged.

    Every model is compared with its manifest; every record with its seal, with the report that
    names it and with its models; what the report names with what is there, both ways; the request
    with the data, where they are there: nothing is downloaded.

    Args:
      metrics: measure everything again, and compare.

    Raises:
      UserError: there is no finished run; or metrics cannot be measured, since something that they
        need is gone.
    """
    report, gone = load(folder), purge_of(folder)
    if metrics and gone:
        raise UserError(
            f"metrics: expected a run with its original, got {folder}, which was purged on "
            f"{gone['begun']}; without --metrics the records are verified"
        )
    wrong, told = _models(folder, report, gone)
    found, left = compare_places(folder, report, gone)
    wrong += found + left
    records, found = read_records(folder, report)
    wrong += found
    if not isinstance(report.get("records"), Mapping):
        told.append(
            "no erasure records: the run is of an earlier version; run again, it writes them"
        )
    elif report["records"]:
        number = len({*report["records"], *_records_in(folder)})
        told.append(f"{len(records)} of {number} erasure records are sealed as the report says:")
        told += [f"  {name} {record['seal']}" for name, record in records.items()]
        found, more = _requests(folder, records)
        wrong += found
        told += more
    if gone:
        lines, more = _gone(folder, gone)
        wrong += lines
        told += more
    if metrics and records and not wrong:
        found, more = _measured(folder, records)
        wrong += found
        told += more
    elif metrics:
        why = "the rest does not agree" if wrong else "there are no records to compare with"
        wrong.append(f"metrics: not measured again, since {why}")
    return Verified(wrong, told, left)


def compare_places(
    folder: Path, report: Mapping[str, Any], gone: Mapping[str, Any] | None
) -> tuple[list[str], list[str]]:
    """Compares the models, records and trials that a report names with those in the folder.

    Returns:
      A line for each that one has and the other has not; and one for each model or record of
      which the report has nothing at all: it was added, or left by an earlier run.
    """
    file, there = folder / "report.json", _records_in(folder)
    told, sealed = report.get("models"), report.get("records")
    if not isinstance(told, Mapping) or not told:
        what = "the models that it was made of, by their places"
        return [f"{file}: models: expected {what}, got none; the same run again writes them"], []
    known = set(sealed) if isinstance(sealed, Mapping) else set()
    removed = {one["path"] for one in gone["removed"]} if gone else set()
    wrong = [
        f"{file}: models: expected places of the run's models, got {name}"
        for name in told
        if MODEL.fullmatch(name) is None
    ]
    left = [
        f"{path}: a model that report.json does not name: it was added, or left by an earlier run"
        for path in models_of(folder)
        if (name := path.relative_to(folder).as_posix()) not in {*told, *removed}
        and (own := MODEL.fullmatch(name)) and own["place"] not in ("helpers", "pools")
    ]  # fmt: skip
    for place in sorted(there - known):
        if _model_of(place) in told:
            wrong.append(f"{folder / place}: a record that report.json does not name")
        elif not any(f"{place}/{name}" in removed for name in (RECORD, PAGE)):
            left.append(f"{folder / place}: a record of a model that report.json does not name")
    wrong += [
        f"{file}: models: expected {_model_of(place)}, which has a record, got none"
        for place in sorted(known)
        if _model_of(place) not in told
    ]
    with_record = {_model_of(place) for place in known | there}
    wrong += [
        f"{folder / name}: expected a record of this unlearned model, got none"
        for name in told
        if isinstance(sealed, Mapping) and "unlearned/" in name and name not in with_record
    ]
    trials = report.get("trials") or {}
    named = {f"{trials['kind']}_{number}" for number in trials["numbers"]} if trials else set()
    held = {own["trial"] for name in told if (own := MODEL.fullmatch(name)) and own["trial"]}
    if named != held:
        shown = [", ".join(sorted(one)) or "none" for one in (held, named)]
        wrong.append(f"{file}: trials: expected {shown[0]}, as its models say, got {shown[1]}")
    return wrong, left


def _records_in(folder: Path) -> set[str]:
    """Returns the places of a run that hold an erasure record, or a part of one."""
    found = {
        path.parent.relative_to(folder).as_posix()
        for name in (RECORD, PAGE)
        for head in ("", "*/")
        for path in folder.glob(f"{head}{ERASURE}/*/{name}")
    }
    return {place for place in found if re.fullmatch(rf"{TRIAL}{ERASURE}/[^/]+", place)}


def _model_of(place: str) -> str:
    """Returns the place of the unlearned model that the record at a place is of."""
    head, _, label = place.rpartition(f"{ERASURE}/")
    return f"{head}unlearned/{label}"


def read_records(folder: Path, report: Mapping[str, Any]) -> tuple[dict[str, Record], list[str]]:
    """Reads the records that a report names, and compares each with all that it names itself.

    Returns:
      Those that agree, by place; and a line for each that does not.
    """
    told, wrong, sound = report.get("records"), [], {}
    gone = {one["path"] for one in (purge_of(folder) or {}).get("removed", ())}
    for name, seal in told.items() if isinstance(told, Mapping) else ():
        try:
            record = read_sealed(folder / name / RECORD)
            if record["seal"] != seal:
                raise CheckpointError(f"{folder / name}: not the record that report.json names")
            _check_record(folder, folder / name, record, gone, report.get("models") or {})
            sound[name] = record
        except CheckpointError as error:
            wrong.append(str(error))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            wrong.append(f"{folder / name}: expected an erasure record: {sentence(error)}")
    return sound, wrong


def _check_record(
    folder: Path, place: Path, record: Record, gone: set[str], judged: Mapping[str, str]
) -> None:
    if text_digest((place / PAGE).read_bytes().decode("utf-8")) != record["page_sha256"]:
        raise CheckpointError(f"{place / PAGE}: was altered: it is not the page of its record")
    asked, named = record["request"], record["request"]["named"]
    for key, sums, digest in (
        ("indices", "indices_sha256", lambda rows: positions_digest(np.asarray(rows))),
        ("words", "words_sha256", digest_of),
    ):
        if named[key] is not None and digest(named[key]) != asked[sums]:
            raise CheckpointError(f"{place / RECORD}: request.named.{key} was altered")
    for attack, wanted in record["reports_sha256"].items():
        file = folder / "attacks" / attack if attack else folder
        if digest_of(load(file)["rows"]) != wanted:
            raise CheckpointError(
                f"{file / 'report.json'}: not the table that {place.name}'s record was made of"
            )
    home, models = place.parent.parent, record["models"]
    own = {models["after"]["place"]: models["after"]["weights_sha256"], **models["retrained"]}
    before = models["before"]
    if models["after"]["place"] != f"unlearned/{place.name}":
        raise CheckpointError(f"{place}: the record of another model, {models['after']['place']}")
    for name, wanted in {**own, before["place"]: before["weights_sha256"]}.items():
        # the original of several requests lies with the run, a model of the turn before beside
        stage = next((p for p in (home / name, folder / name) if p.exists()), home / name)
        if os.path.relpath(stage, folder) in gone or os.path.relpath(folder / name, folder) in gone:
            continue
        if Path(os.path.relpath(stage, folder)).as_posix() not in judged:
            raise CheckpointError(
                f"{folder / 'report.json'}: models: expected {name}, which the record {place} is "
                "of, got none"
            )
        if weights_digest(stage) != wanted:
            raise CheckpointError(f"{stage}: not the model that the record {place} is of")


def _models(
    folder: Path, report: Mapping[str, Any], gone: Mapping[str, Any] | None
) -> tuple[list[str], list[str]]:
    """Compares the models with their manifests, and with those that the report was made of."""
    wrong, models = [], models_of(folder)
    for path in models:
        try:
            checkpoint.verify(path)
        except CheckpointError as error:
            wrong.append(str(error))
    told = [f"{len(models) - len(wrong)} of {len(models)} models are as they were written"]
    removed = {one["path"] for one in gone["removed"]} if gone else set()
    for home in (folder, *(file.parent for file in sorted(folder.glob("attacks/*/report.json")))):
        table = report if home is folder else load(home)
        where = (home / "report.json").relative_to(folder).as_posix()
        places = [
            Path(os.path.relpath(home / one, folder)).as_posix()
            for one in other_models(table, home)
        ]
        wrong += [
            f"{folder / place}: not the model judged in {where}"
            for place in places
            if place not in removed
        ]
    return wrong, told


def _gone(folder: Path, gone: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Says what a purge removed, and what of that is there again."""
    if gone["state"] != "done":
        return [f"{folder}: a purge was begun and not finished; the same purge again goes on"], []
    back = [one["path"] for one in gone["removed"] if (folder / one["path"]).exists()]
    # other runs of the same data fill the cache again, as they may
    cached = [path for path in back if os.path.isabs(path)]
    wrong = [f"{folder / p}: was purged, and is there again" for p in back if p not in cached]
    try:
        read_sealed(folder / PURGE)
    except CheckpointError as error:
        wrong.append(str(error))
    told = [f"{path}: was purged, and was made again by another run" for path in cached]
    return wrong, [summary_of(gone), *told]


def summary_of(gone: Mapping[str, Any]) -> str:
    """Returns a line on what a purge removed."""
    paths = [one["path"] for one in gone["removed"]]
    shown = ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
    return f"purged on {gone['begun']}: gone are {shown or 'nothing'}; see {ERASURE}/purge.md"


# The request


def _requests(folder: Path, records: Mapping[str, Record]) -> tuple[list[str], list[str]]:
    """Compares the forgotten examples with the records, where the data are there."""
    if not records:
        return [], []
    try:
        config = read_config(folder)
        data = _read_data(config)
    except (UserError, OSError, LookupError, TypeError) as error:
        return [], [f"the forgotten examples: not compared, the data are not there: {error}"]
    wrong, told = [], []
    for name, record in records.items():
        asked = record["request"]
        if data.fingerprint != asked["data"]["fingerprint"]:
            told.append("the forgotten examples: not compared, the data set is another by now")
            continue
        rows = _positions(config, record, data)
        if rows is None:
            told.append("the forgotten examples: not compared, their positions are left out")
            continue
        found = {"indices": positions_digest(rows), "contents": contents_digest(data, rows)}
        differ = [key for key, value in found.items() if value != asked[f"{key}_sha256"]]
        if differ:
            wrong.append(f"{folder / name}: the data hold other {' and '.join(differ)}")
        else:
            told.append("the forgotten examples are those of the records")
    return wrong, list(dict.fromkeys(told))


def _positions(config: Config, record: Record, data: Dataset) -> np.ndarray | None:
    """Returns the positions that a request means; ``None`` where they are left out."""
    own = {k: _tuples(v) for k, v in record["configuration"]["request"].items()}
    own["indices"] = config.request.indices or tuple(record["request"]["named"]["indices"] or ())
    if record["request"]["kind"] in ("classes", "share"):
        own["indices"] = ()
    elif not own["indices"]:
        return None
    asked = Request(**{**own, "words": (), "pairs": ""})
    classes = len(data.class_names) if data.labels == "class" else None
    return np.flatnonzero(forget_mask(asked, np.asarray(data.train_y), classes))


def _read_data(config: Config) -> Dataset:
    """Reads the data as the run did; what is not on this machine is not downloaded."""
    place = config.data.dir
    if place is None and not config.data.name.endswith((".npz", ".jsonl")):
        place = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    kind = KINDS[NETWORKS.find(config.model.name, "model.name").kind].kind
    data = load_dataset(dataclasses.replace(config.data, dir=place))
    return kind.read(data, section(config, kind.name) if kind.section else None)


def read_config(folder: Path) -> Config:
    """Reads the configuration that a run wrote down.

    Raises:
      DataError: there is none, or it is damaged.
    """
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        load_sections(found["kinds"])
        return _made(Config, found)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{folder / 'config.json'}: cannot be read: {sentence(error)}") from error


def _made(kind: Any, given: Mapping[str, Any]) -> Any:
    """Makes a dataclass of JSON; what it does not know is left out."""
    made: dict[str, Any] = {}
    for one in dataclasses.fields(kind):
        if one.name not in given:
            continue
        value, usual = given[one.name], one.default
        if one.default_factory is not dataclasses.MISSING:
            usual = one.default_factory()
        if dataclasses.is_dataclass(usual):
            made[one.name] = _made(type(usual), value)
        elif one.name == "kinds":
            made[one.name] = {n: _made(SECTIONS[n], own) for n, own in value.items()}
        else:
            made[one.name] = _tuples(value)
    return kind(**made)


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# The numbers


def _measured(folder: Path, records: Mapping[str, Record]) -> tuple[list[str], list[str]]:
    """Measures every model again and compares with the records."""
    folder = folder.resolve()
    config = dataclasses.replace(read_config(folder), name=folder.name)
    wrong, number = [], 0
    lacking = {(place, name) for place, one in records.items() for name in ("", *one["attacks"])}
    for place, attack, rows in _rows_again(config, folder):
        record = records.get(place)
        if record is None:
            continue
        if (place, attack) not in lacking:
            continue  # an attack that the record has no table of
        lacking.remove((place, attack))
        table = record["attacks"][attack]["table"] if attack else record["table"]
        again = {row["name"]: row for row in rows}
        for row in table:
            if row["group"] == "cost" or row["unlearned"] is None:
                continue
            for key in ("original", "unlearned", "retrained"):
                number += 1
                told, found = row[key], again.get(row["name"], {}).get(key)
                if not _agree(told, found):
                    after = f" after {attack}" if attack else ""
                    wrong.append(
                        f"{folder / place}: {row['name']}{after}, {key}: {told} recorded, "
                        f"{found} measured"
                    )
    told = [f"{number - len(wrong)} of {number} numbers were measured again as recorded"]
    for place, attack in sorted(lacking):
        after = f" after {attack}" if attack else ""
        wrong.append(f"{folder / place}: the numbers{after} could not be measured again")
    return wrong, told


def _agree(told: float | None, found: float | None) -> bool:
    if told is None or found is None:
        return told is found
    return math.isclose(told, found, **NEAR) or (math.isnan(told) and math.isnan(found))


def _rows_again(config: Config, folder: Path) -> Iterator[tuple[str, str, list[Record]]]:
    """Yields place of the record, attack and rows of every unlearned model."""
    plan = make_plan(config, folder.parent)
    for group in groups(plan):
        lost = [s.path for s in helper_stages(group).values() if not s.path.exists()]
        if lost:
            raise CheckpointError(f"metrics: expected {lost[0]} to judge by, got nothing there")
        whole = with_helpers(group, False, lambda name, progress: None)
        home = Trial(whole, False, lambda name, progress: None)
        for one in trials(whole):
            trial = home if one is whole else Trial(one, False, home.listener, home)
            for attack in ("", *config.attacks):
                for label, values in _values(trial, attack):
                    place = (one.folder / ERASURE / label).relative_to(folder).as_posix()
                    yield place, attack, rows_of(values, label, None)
            trial.let_go()


def _values(trial: Trial, attack: str) -> Iterator[tuple[str, Judged]]:
    """Yields the values of every unlearned model of a trial, with those beside it."""
    plan = trial.plan
    there = [name for name, stage in trial.stages.items() if stage.path.exists()]
    seen = {name: trial.evidence(name, attack) for name in there if name.startswith("retrained/")}
    names = applying(plan.kind.evidence, SINGLE, plan.config.metrics)
    others, original = list(seen.values()), trial.evidence("original", attack)

    def values(name: str) -> dict[str, Any]:
        found = measure(trial.evidence(name, attack), original, others, names=names)
        return {m: v for m, v in found.values.items() if m not in found.failed}

    before, rest = values("original"), [values(name) for name in seen]
    for name in there:
        if name.startswith("unlearned/"):
            label = name.removeprefix("unlearned/")
            with contextlib.suppress(UserError):  # as in the run: it has no values after the attack
                yield label, Judged({"original": before, label: values(name)}, rest)
