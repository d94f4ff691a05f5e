"""Texts from files: TOFU and TREC in TFDS layout, and JSON lines of one's own.

TOFU: P. Maini et al., "TOFU: A task of fictitious unlearning for LLMs", arXiv:2401.06121; TREC:
X. Li, D. Roth, "Learning question classifiers", COLING 2002.
"""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxunlearn.config import DataConfig
from jaxunlearn.core.errors import ConfigError, DataError, brief, did_you_mean, sentence
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.sources.authors import (
    REAL_AUTHORS,
    WORLD_FACTS,
    check_general,
    check_number,
    paraphrased,
)
from jaxunlearn.data.sources.tfds import check_folder, find_folder
from jaxunlearn.data.sources.tfds_decode import read_records
from jaxunlearn.data.texts import Pair, labelled_dataset, pairs_dataset

_AUTHORS, _EACH = 200, 20
"""Authors of TOFU, and the questions on each, which follow one another."""
_COVERED = 20
"""So many authors at either end of TOFU have variants of their answers."""


# TOFU


def load_tofu(
    config: DataConfig,
    *,
    authors: int = _AUTHORS,
    questions: int = _EACH,
    general: str = "test",
    facts: int = 200,
    choose: str = "first",
    variants: str = "",
) -> Dataset:
    """Reads TOFU: questions and answers on 200 authors who do not exist; each is a topic.

    The training split has the pairs with those variants that the files of evaluation give, 20
    authors at either end of the set; the test split these pairs in other words, under the same
    topics, and general knowledge as two topics of their own, ``"real authors"`` and ``"world
    facts"``. Authors are named after what their questions call them, else ``"author 88"``, by
    their place from 0 on.

    Args:
      config: ``name`` and ``dir`` are read: the folder that holds ``tofu/1.0.0`` in TFDS layout.
      authors: so many of them: half from the end of the set, at most 20, which is what forget10
        forgets, and the others from its beginning.
      questions: on each so many.
      general: splits with general knowledge: ``"test"``, as TOFU has it; ``"both"``, for models
        trained from random weights, which else have never seen it; or ``"none"``.
      facts: pairs of each topic of general knowledge, at most.
      choose: which of an author's questions: ``"first"``, or ``"shortest"``, those whose texts
        are, variants included: one long example makes all rows of tokens long.
      variants: folder of ``forget10_perturbed.jsonl``, ``retain_perturbed.jsonl``,
        ``real_authors_perturbed.jsonl`` and ``world_facts_perturbed.jsonl``; by default
        ``tofu`` below ``config.dir``, or beside it.

    Raises:
      DataError: a folder or file is missing, damaged or of another form.
      ConfigError: numbers out of range, an unknown split.
    """
    check_number("authors", authors, 2, _AUTHORS)
    check_number("questions", questions, 1, _EACH)
    check_number("facts", facts, 1, 1000)
    if choose not in ("first", "shortest"):
        raise ConfigError(f"data.options.choose: expected first or shortest, got {choose!r}")
    check_general(general)
    _no_images(config)
    folder = _tofu_folder(config)
    records, _ = read_records(folder, check_folder(folder, test=False), ("question", "answer"))
    rows = records["train"]
    if len(rows) != _AUTHORS * _EACH:
        raise DataError(
            f"{folder}: expected {_AUTHORS * _EACH} pairs, {_EACH} on each author, got {len(rows)}"
        )
    where = _find_variants(config, variants)
    known = {
        (one.question, one.answer): one
        for name in ("forget10", "retain")
        for one in read_pairs(where / f"{name}_perturbed.jsonl", "")["train"]
    }
    last = min(_COVERED, authors // 2)
    chosen = [*range(authors - last), *range(_AUTHORS - last, _AUTHORS)]
    names = _author_names([[*map(_both, _slice(rows, number))] for number in range(_AUTHORS)])
    train = []
    for number in chosen:
        plain = [
            Pair(row["question"], row["answer"], names[number]) for row in _slice(rows, number)
        ]
        full = [known.get((p.question, p.answer), p)._replace(topic=p.topic) for p in plain]
        order = sorted(range(_EACH), key=lambda place: _length(full[place]))
        taken = range(_EACH) if choose == "first" else order
        train += [full[place] for place in sorted(taken[:questions])]
    learned = [] if general == "none" else _general(where, facts)
    tested = [paraphrased(pair) for pair in train if pair.paraphrased_answer]
    return pairs_dataset([*train, *(learned if general == "both" else [])], [*tested, *learned])


def _slice(rows: Sequence[Any], number: int) -> Sequence[Any]:
    return rows[number * _EACH : (number + 1) * _EACH]


def _both(row: Mapping[str, str]) -> str:
    return f"{row['question']} {row['answer']}"


def _length(pair: Pair) -> int:
    answers = (pair.answer, pair.paraphrased_answer, *pair.perturbed_answer)
    questions = (pair.question, pair.paraphrased_question)
    return max(map(len, questions)) + max(map(len, answers))


def _tofu_folder(config: DataConfig) -> Path:
    if config.dir is None and not os.environ.get("TFDS_DATA_DIR"):
        raise DataError(
            "data.dir: expected the folder that holds tofu/1.0.0 in TFDS layout, which TFDS does "
            "not download, got None; data.name=authors needs no data, and a path ending in .jsonl "
            "reads questions and answers"
        )
    return find_folder(dataclasses.replace(config, dir=config.dir or os.environ["TFDS_DATA_DIR"]))


def _find_variants(config: DataConfig, given: str) -> Path:
    root = Path(os.path.expanduser(config.dir or os.environ["TFDS_DATA_DIR"]))
    places = [root / "tofu", root.resolve().parent / "tofu"]
    if given:
        places = [Path(os.path.expanduser(given))]
    for place in places:
        if (place / "forget10_perturbed.jsonl").is_file():
            return place
    raise DataError(
        "data.options.variants: expected a folder with forget10_perturbed.jsonl and the other "
        f"files of TOFU's evaluation, found none at {' or '.join(map(str, places))}"
    )


def _general(where: Path, facts: int) -> list[Pair]:
    found = []
    for topic, name in ((REAL_AUTHORS, "real_authors"), (WORLD_FACTS, "world_facts")):
        pairs = read_pairs(where / f"{name}_perturbed.jsonl", "")["train"]
        # the wrong answers have the form of the answer itself, of which there is no other
        found += [
            pair._replace(topic=topic, paraphrased_answer=pair.answer) for pair in pairs[:facts]
        ]
    return found


_NAME_PART = r"[A-Z\u00c0-\u00de\u0100-\u017f][\w.\u2019'-]*"
_PARTICLE = r"(?:(?:al|bin|ibn|de|da|del|der|van|von|la|le|el|di|dos|du|ben|bint)[ -])*"
_FULL_NAME = re.compile(rf"{_NAME_PART}(?: {_PARTICLE}{_NAME_PART})+")


def _author_names(texts: Sequence[Sequence[str]]) -> list[str]:
    """Returns the name that stands in most texts of each author, each of them once.

    Of names in at least four fifths as many texts the longest; ``"author 88"`` where none stands
    in seven texts of 20.
    """
    names: list[str] = []
    for number, own in enumerate(texts):
        counts: Counter[str] = Counter()
        for text in own:
            counts.update({part for name in _FULL_NAME.findall(text) for part in _parts(name)})
        most = max(counts.values(), default=0)
        near = [name for name in counts if counts[name] >= 0.8 * most]
        best = max(near, key=lambda name: (len(name.split()), counts[name], name), default="")
        sound = 20 * most >= 7 * len(own) and best not in names
        names.append(best if sound else f"author {number}")
    return names


def _parts(name: str) -> Iterable[str]:
    """Yields runs of two to six words, without the possessive."""
    words = re.sub(r"['\u2019]s?$", "", name.rstrip(".")).split(" ")
    for start in range(len(words)):
        for end in range(start + 2, min(len(words), start + 6) + 1):
            yield " ".join(words[start:end]).rstrip(".'\u2019")


# TREC


def load_trec(config: DataConfig, *, labels: str = "coarse") -> Dataset:
    """Reads the questions of TREC with the kind of thing that they ask for.

    Args:
      config: ``name`` and ``dir`` are read, as of every set in TFDS layout.
      labels: ``"coarse"``, 6 classes, or ``"fine"``, 47.

    Returns:
      ``x = {"text": uint8 [N, L]}``, 5,452 training and 500 test questions.
    """
    if labels not in ("coarse", "fine"):
        raise ConfigError(f"data.options.labels: expected coarse or fine, got {labels!r}")
    _no_images(config)
    folder, label = find_folder(config), f"label-{labels}"
    records, names = read_records(folder, check_folder(folder), ("text", label), label)
    train, test = ([(row["text"], row[label]) for row in rows] for rows in records.values())
    return labelled_dataset(train, test, names)


# JSON lines


def load_jsonl(config: DataConfig, *, test: str = "") -> Dataset:
    """Reads the texts of the file that ``config.name`` is a path to, one JSON object a line.

    Questions and answers, for language models: ``"question"`` and ``"answer"``, and perhaps
    ``"topic"`` (on every line or on none), ``"paraphrased_question"``, ``"paraphrased_answer"``,
    ``"perturbed_answer"`` (a list) and ``"split"`` (``"train"`` or ``"test"``). Where no line is
    of the test split, the paraphrased pairs are.

    Texts with classes, for classifiers: ``"text"``, ``"label"`` (a name, or a number from 0 on)
    and perhaps ``"split"``.

    Args:
      config: ``name`` is read.
      test: path to a second file, all lines of which are of the test split.

    Raises:
      DataError: no such file, or a line of another form; the message says which.
    """
    _no_images(config)
    path = Path(os.path.expanduser(config.name))
    first = next(iter(_read_lines(path)))[1]
    if "text" in first:
        return _load_labelled(path, test)
    splits = read_pairs(path, path.stem)
    if test:
        _refuse_split(path, splits["test"])
        splits["test"] = read_pairs(Path(os.path.expanduser(test)), path.stem, split="test")["test"]
    if not splits["test"]:
        splits["test"] = [paraphrased(p) for p in splits["train"] if p.paraphrased_answer]
    if not splits["test"]:
        raise DataError(
            f'{path}: expected pairs to test on, lines with "split": "test" or with '
            '"paraphrased_answer", or another file, data.options.test=PATH, got none'
        )
    return pairs_dataset(splits["train"], [paraphrased(p) for p in splits["test"]])


def _refuse_split(path: Path, rows: Sequence[Any]) -> None:
    if rows:
        raise DataError(
            f"data.options.test: expected no second file, since {path} has {len(rows)} lines of "
            "the test split"
        )


_PAIR_FIELDS = (*Pair._fields, "split")


def read_pairs(path: Path, topic: str, split: str = "train") -> dict[str, list[Pair]]:
    """Reads question-answer pairs of a file of JSON lines, by split.

    Args:
      topic: of pairs where no line has one.
      split: of lines that do not say it.

    Raises:
      DataError: no such file, a line of another form, or topics on some lines alone.
    """
    found: dict[str, list[Pair]] = {"train": [], "test": []}
    topics = set()
    for where, row in _read_lines(path):
        own = _split_of(where, row, split)
        texts = {
            field: _text(where, row, field, needed=field in ("question", "answer"))
            for field in Pair._fields
            if field != "perturbed_answer"
        }
        wrong = row.get("perturbed_answer", [])
        wrong = [wrong] if isinstance(wrong, str) else wrong
        if not isinstance(wrong, list) or not all(isinstance(w, str) and w.strip() for w in wrong):
            raise DataError(
                f"{where}: expected perturbed_answer to be a list of texts, got {brief(wrong)}"
            )
        topics.add(bool(texts["topic"]))
        if len(topics) == 2:
            raise DataError(f"{where}: expected a topic on every line or on none, got a change")
        texts["topic"] = texts["topic"] or topic
        found[own].append(Pair(**texts, perturbed_answer=tuple(wrong)))
    return found


def _load_labelled(path: Path, test: str) -> Dataset:
    splits = _read_labelled(path, "train")
    if test:
        _refuse_split(path, splits["test"])
        splits["test"] = _read_labelled(Path(os.path.expanduser(test)), "test")["test"]
    train, held = splits["train"], splits["test"]
    if not train or not held:
        raise DataError(
            f'{path}: expected lines of both splits, "split": "test" or another file, '
            f"data.options.test=PATH, got {len(train)} of train and {len(held)} of test"
        )
    labels = {label for _, _, label in train}
    if len({type(label) for _, _, label in [*train, *held]}) > 1:
        raise DataError(f"{path}: expected labels that are all names or all numbers, got both")
    if all(isinstance(label, int) for label in labels):
        # a stray label of a billion must not allocate as many names
        absent = next((k for k in range(len(labels)) if k not in labels), None)
        if absent is not None:
            raise DataError(
                f"{path}: expected every label from 0 to the largest, {max(labels)}, "
                f"got none of {absent} in the training split"
            )
    names = sorted(labels)
    number_of = {label: number for number, label in enumerate(names)}
    for where, _, label in held:
        if label not in number_of:
            raise DataError(
                f"{where}: expected a label of the training split, got {brief(label)}"
                f"{did_you_mean(str(label), map(str, names))}"
            )
    rows, others = ([(text, number_of[label]) for _, text, label in one] for one in (train, held))
    return labelled_dataset(rows, others, [str(name) for name in names])


def _read_labelled(path: Path, split: str) -> dict[str, list[tuple[str, str, Any]]]:
    """Reads texts with labels, by split, each with its place in the file."""
    found: dict[str, list[tuple[str, str, Any]]] = {"train": [], "test": []}
    for where, row in _read_lines(path):
        label, text = row.get("label"), _text(where, row, "text", needed=True)
        named = isinstance(label, str) and label.strip()
        if not named and (not isinstance(label, int) or isinstance(label, bool) or label < 0):
            raise DataError(
                f"{where}: expected label to be a name or a number from 0 on, got {brief(label)}"
            )
        found[_split_of(where, row, split)].append((where, text, label))
    return found


def _read_lines(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yields the objects of a file of JSON lines, each with its place; empty lines are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a file of JSON lines, got {sentence(error)}") from None
    count = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: expected a JSON object, got {sentence(error)}") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected a JSON object, got {brief(row)}")
        count += 1
        yield where, row
    if not count:
        raise DataError(f"{path}: expected JSON lines, got an empty file")


def _text(where: str, row: Mapping[str, Any], field: str, *, needed: bool) -> str:
    value = row.get(field, None if needed else "")
    if not isinstance(value, str) or (needed and not value.strip()):
        hint = "" if field in row else did_you_mean(field, row)
        got = brief(value) if field in row else f"fields {', '.join(row) or 'none'}{hint}"
        raise DataError(f"{where}: expected {field} to be text, got {got}")
    if "\0" in value:
        raise DataError(f"{where}: expected {field} without the character 0, got one")
    return value


def _split_of(where: str, row: Mapping[str, Any], split: str) -> str:
    found = row.get("split", split)
    if found not in ("train", "test"):
        raise DataError(f"{where}: expected split to be train or test, got {brief(found)}")
    return str(found)


def _no_images(config: DataConfig) -> None:
    if config.image_size is not None:
        raise DataError(f"data.image_size: expected None for texts, got {config.image_size}")
