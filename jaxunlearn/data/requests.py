"""Requests to forget, and the training examples that they mean."""

import dataclasses
import json
import numbers
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.config import SEEDS, Request
from jaxunlearn.core.errors import RequestError, brief, did_you_mean, expect, sentence


def forget_class(label: int | str) -> Request:
    """Requests to forget every training example of one class.

    Args:
      label: a whole number of any type, or the name of a class; see :func:`resolve`.

    Raises:
      TypeError: anything else.
    """
    several = isinstance(label, Sequence | set) and not isinstance(label, str | bytes)
    if several or getattr(label, "ndim", None):
        raise TypeError(f"label: expected one class, got {brief(label)}; use forget_classes")
    return Request(classes=(_label("label", label),))


def forget_classes(labels: Iterable[int | str]) -> Request:
    """Requests to forget every training example of several classes; see :func:`forget_class`."""
    found = _labels("labels", labels)
    if not found:
        raise RequestError("labels: expected several classes, got none")
    return Request(classes=found)


def forget_indices(indices: Any) -> Request:
    """Requests to forget training examples.

    Args:
      indices: positions, whole numbers of any type; or what ``np.where``, ``np.nonzero``,
        ``np.flatnonzero`` or ``np.argwhere`` return of one axis; or a mask, one boolean for
        each training example.

    Raises:
      TypeError: anything else.
      RequestError: nothing.
    """
    found = _positions("indices", indices)
    if not found:
        raise RequestError("indices: expected positions [M] or a mask [N], got none")
    return Request(indices=found)


def forget_random(share: float, seed: int = 0) -> Request:
    """Requests to forget a random share, between 0 and 1, of the training examples.

    Raises:
      TypeError: the share is no number, or the seed no whole one.
    """
    if not _share("share", share):
        raise RequestError(
            f"share: expected a share between 0 and 1, got {share}; forget_random(share, seed)"
        )
    return Request(share=_share("share", share), seed=_seed("seed", seed))


def forget_words(words: Iterable[str]) -> Request:
    """Requests to forget every training text in which one of these words or phrases stands.

    As a whole word, in capitals or not: "Basil" stands in "Basil's", and not in "Basilisk".

    Raises:
      TypeError: anything else than texts.
      RequestError: none.
    """
    found = _words("words", words)
    if not found:
        raise RequestError("words: expected words or phrases, got none")
    return Request(words=found)


def forget_pairs(path: str | os.PathLike[str]) -> Request:
    """Requests to forget the training texts that a file lists.

    Args:
      path: JSON lines, each with a ``"question"`` and perhaps an ``"answer"``, as they stand in
        the training split; without an answer every text with this question is meant.
    """
    return Request(pairs=os.fspath(path))


def resolve(
    request: Request, class_names: Sequence[str] = (), total: int | None = None, texts: Any = None
) -> Request:
    """Returns a request in plain numbers: labels for class names, positions for a mask.

    And positions for words and pairs, which are kept beside them, for the record.

    Whatever way a request comes in, it is checked here: nothing is rounded, cut or repeated to
    make another request of it.

    Args:
      class_names: of the labels; without them, a class has its number alone.
      total: of the training examples; ``None``, before they are known, leaves names and masks.
      texts: the training examples as a source of texts gives them, ``{"question": bytes [N, L],
        "answer": ...}``; where they are something else, words and pairs have to be resolved.

    Raises:
      TypeError: ``request`` is none.
      RequestError: a field holds something else than numbers, names or booleans; a name that no
        class has, or that several have; a mask of another length; words that stand in no text;
        a pair that is none of the training split, or a file that holds none.
    """
    expect("request", request, Request, "; forget_class(3) makes one")
    try:
        found = Request(
            classes=_labels("request.classes", request.classes),
            indices=_positions("request.indices", request.indices),
            share=_share("request.share", request.share),
            seed=_seed("request.seed", request.seed),
            each=_flag("request.each", request.each),
            in_turn=_flag("request.in_turn", request.in_turn),
            words=_words("request.words", request.words),
            pairs=_path("request.pairs", request.pairs),
        )
    except TypeError as error:
        raise RequestError(str(error)) from None
    if total is None:
        return found
    classes = tuple(_number_of(label, class_names) for label in found.classes)
    indices = _places(found.indices, total)
    if found.words or found.pairs:
        if found.words and found.pairs:
            _refuse(found)
        if not indices or _are_texts(texts):
            named = _places_of_texts(found, texts)
            if indices not in ((), named):  # of one that was resolved before they are the same
                _refuse(found)
            indices = named
    return dataclasses.replace(found, classes=classes, indices=indices)


def _are_texts(texts: Any) -> bool:
    return isinstance(texts, Mapping) and {"question", "answer"} <= set(texts)


def _places_of_texts(request: Request, texts: Any) -> tuple[int, ...]:
    """Returns the positions of the training texts that words or pairs name."""
    name = "request.words" if request.words else "request.pairs"
    if not _are_texts(texts):
        raise RequestError(
            f"{name}: expected training examples that are texts, with question and answer, got "
            f"others; see ju.data.resolve for examples that were texts before"
        )
    from jaxunlearn.data.texts import to_texts

    questions, answers = (to_texts(np.asarray(texts[one])) for one in ("question", "answer"))
    if request.words:
        ways = [_pattern(word) for word in request.words]
        whole = [_plain(f"{q}\n{a}") for q, a in zip(questions, answers, strict=True)]
        places = [n for n, text in enumerate(whole) if any(way.search(text) for way in ways)]
        if not places:
            raise RequestError(
                f"request.words: expected words of the training texts, got {brief(request.words)}, "
                f"none of which stands in any of the {len(whole)}"
            )
        return tuple(places)
    known: dict[tuple[str, ...], list[int]] = {}
    for place, both in enumerate(zip(questions, answers, strict=True)):
        question, answer = map(_plain, both)
        for key in ((question,), (question, answer)):
            known.setdefault(key, []).append(place)
    asked = _read_pairs(Path(os.path.expanduser(request.pairs)))
    strange = [(line, pair) for line, pair in asked if pair not in known]
    if strange:
        line, pair = strange[0]
        raise RequestError(
            f"request.pairs: expected pairs of the training split, got {len(strange)} of "
            f"{len(asked)} that are not there, the first in line {line}: {brief(pair[0])}"
        )
    return tuple(sorted({place for _, pair in asked for place in known[pair]}))


def _read_pairs(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Reads questions, perhaps with answers, each with the number of its line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise RequestError(f"request.pairs: expected JSON lines, got {sentence(error)}") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
            pair = [given["question"], *([given["answer"]] if "answer" in given else [])]
            sound = all(isinstance(one, str) for one in pair)
        except (ValueError, LookupError, TypeError, RecursionError):
            sound = False
        if not sound:
            raise RequestError(
                f"request.pairs: {path}, line {number}: expected an object with a question and "
                f"perhaps an answer, got {brief(line)}"
            )
        found.append((number, tuple(map(_plain, pair))))
    if not found:
        raise RequestError(f"request.pairs: expected pairs, got none in {path}")
    return found


def _plain(text: str) -> str:
    """Returns a text as it is compared: composed letters, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(_plain(word))}(?!\w)", re.IGNORECASE)


def _places(indices: tuple[int, ...] | tuple[bool, ...], total: int) -> tuple[int, ...]:
    """Returns positions; those of a mask, if it is one."""
    if not indices or not isinstance(indices[0], bool):
        return indices
    if len(indices) != total:
        raise RequestError(
            f"request.indices: expected a mask of the {total} training examples, got one of "
            f"{len(indices)}"
        )
    if not any(indices):
        raise RequestError(f"request.indices: the mask names none of the {total} examples")
    return tuple(np.flatnonzero(indices).tolist())


def _number_of(label: int | str, class_names: Sequence[str]) -> int:
    """Returns the number of a class that may be given by its name."""
    if not isinstance(label, str):
        return label
    found = [number for number, name in enumerate(class_names) if name == label]
    if len(found) == 1:
        return found[0]
    if found:
        raise RequestError(
            f"request.classes: expected the name of one class, got {label!r}, that of classes "
            f"{brief(found)}"
        )
    names = f"numbers or class names such as {brief(list(class_names))}"
    known = names if class_names else "numbers, as no class names are known here (class_names=)"
    raise RequestError(
        f"request.classes: expected {known}, got {brief(label)}{did_you_mean(label, class_names)}"
    )


def _label(name: str, value: Any) -> int | str:
    if isinstance(value, str):
        return str(value)
    return _whole(name, value, "a whole number or the name of a class")


def _labels(name: str, values: Any) -> tuple[int | str, ...]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        hint = "; forget_class takes one" if name == "labels" else ""
        raise TypeError(f"{name}: expected several classes, got {brief(values)}{hint}")
    given = _items(name, values, "several classes")
    if given and all(isinstance(one, bool | np.bool_) for one in given):
        raise TypeError(
            f"{name}: expected several classes, got {len(given)} booleans; forget_indices takes a "
            "mask"
        )
    return tuple(_label(name, one) for one in given)


def _positions(name: str, values: Any) -> tuple[int, ...] | tuple[bool, ...]:
    """Returns positions, or a mask as it is."""
    wanted = "positions [M] or a mask [N]"
    # as np.where and np.nonzero return them: an array for each axis
    if isinstance(values, tuple) and len(values) == 1 and getattr(values[0], "ndim", 0) == 1:
        (values,) = values
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected {wanted}, got {brief(values)}")
    if isinstance(values, tuple) and any(getattr(one, "ndim", 0) for one in values):
        raise TypeError(
            f"{name}: expected {wanted}, got {len(values)} arrays, as np.where returns them of "
            f"{len(values)} axes"
        )
    if getattr(values, "shape", ())[1:] == (1,) and values.dtype != bool:  # type: ignore[attr-defined]
        values = values[:, 0]  # type: ignore[index] # as np.argwhere returns them
    given = _items(name, values, wanted)
    flags = [isinstance(one, bool | np.bool_) for one in given]
    if given and all(flags):
        return tuple(bool(one) for one in given)
    return tuple(_whole(name, one, "whole numbers, or booleans alone") for one in given)


def _words(name: str, values: Any) -> tuple[str, ...]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected several words or phrases, got {brief(values)}")
    given = tuple(values)
    for one in given:
        if not isinstance(one, str) or not one.strip():
            raise TypeError(f"{name}: expected words or phrases, got {brief(one)}")
    return tuple(map(str, given))


def _path(name: str, value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}: expected the path of a file, got {brief(value)}")
    return str(value)


def _items(name: str, values: Any, wanted: str) -> list[Any]:
    """Returns the items of a list, an array ``[M]`` or anything else that has some."""
    if getattr(values, "ndim", 1) != 1:
        raise TypeError(f"{name}: expected {wanted}, got {brief(values)}")
    # an array's own numbers, at once: taken one by one, those of a device are slow
    return list(np.asarray(values) if hasattr(values, "dtype") else values)


def _whole(name: str, value: Any, wanted: str) -> int:
    array = np.asarray(value) if getattr(value, "ndim", None) == 0 else None
    if array is not None and array.dtype.kind in "iu":
        return int(array)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    raise TypeError(f"{name}: expected {wanted}, got {brief(value)}")


def _share(name: str, value: Any) -> float:
    if getattr(value, "ndim", None) == 0 and value.dtype.kind in "iuf":
        value = value.item()
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    raise TypeError(f"{name}: expected a number between 0 and 1, got {brief(value)}")


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise TypeError(f"{name}: expected true or false, got {brief(value)}")


def _seed(name: str, value: Any) -> int:
    seed = _whole(name, value, "a whole number")
    if not 0 <= seed < SEEDS:
        raise RequestError(f"{name}: expected a whole number from 0 to {SEEDS - 1:,}, got {seed}")
    return seed


def describe(request: Request) -> str:
    """Describes a request in a few words, for titles and messages."""
    if request.each:
        return "forget each class by itself"
    if request.in_turn:
        return f"forget in turn classes {_few(request.classes)}"
    if request.classes:
        noun = "class" if len(request.classes) == 1 else "classes"
        return f"forget {noun} {_few(request.classes)}"
    masked = bool(request.indices) and isinstance(request.indices[0], bool)
    number = sum(request.indices) if masked else len(request.indices)
    if request.words:
        return f"forget {number or 'the'} texts with {_few(request.words)}"
    if request.pairs:
        return f"forget {number or 'the'} texts of {Path(request.pairs).name}"
    if request.indices:
        return f"forget {number} given examples"
    return f"forget a random {request.share:.3g} of the examples (seed {request.seed})"


def _few(labels: Sequence[int | str]) -> str:
    shown = ", ".join(str(label) for label in labels[:3])
    return f"{shown} and {len(labels) - 3} more" if len(labels) > 3 else shown


def separate(request: Request, num_classes: int) -> list[Request]:
    """Lists the requests that one stands for: one for each class by itself or in turn, else itself.

    Raises:
      RequestError: ``each`` or ``in_turn`` beside indices or a share, or beside each other, of
        fewer than two classes, or of classes out of range.
    """
    if not request.each and not request.in_turn:
        return [request]
    name = "request.each" if request.each else "request.in_turn"
    if request.each and request.in_turn:
        raise RequestError("request.in_turn: expected one of each and in_turn, got both")
    if request.indices or request.share:
        raise RequestError(
            f"{name}: expected classes or nothing beside it, got "
            f"indices={brief(request.indices)}, share={request.share}"
        )
    _check_range("request.classes", request.classes, num_classes)
    given = list(request.classes) if request.in_turn else sorted(request.classes)
    labels = given or (list(range(num_classes)) if request.each else [])
    if len(labels) < 2:
        hint = "; request.classes= takes all" if request.each else ""
        raise RequestError(f"{name}: expected two classes or more, got {brief(labels)}{hint}")
    return [forget_class(label) for label in labels]


def forget_mask(request: Request, labels: np.ndarray, num_classes: int | None) -> np.ndarray:
    """Marks the training examples that are to be forgotten.

    Args:
      request: names exactly one of classes, indices and share; see :func:`resolve`.
      labels: ``int [N]``, the training labels; read only for classes.
      num_classes: ``K``; ``None`` where labels are not classes.

    Returns:
      ``bool [N]``, neither all false nor all true.

    Raises:
      RequestError: nothing, everything, several kinds at once, or out of range.
    """
    total = len(labels)
    request = resolve(request, total=total)
    if request.each or request.in_turn:
        word = "each" if request.each else "in_turn"
        raise RequestError(f"request.{word}: expected a single request here, got several")
    if sum([bool(request.classes), bool(request.indices), request.share != 0]) != 1:
        _refuse(request)
    if request.classes:
        if num_classes is None:
            raise RequestError(
                f"request.classes: expected labels that are classes, got others (labels='any') "
                f"for {describe(request)!r}; request indices, a mask or a share"
            )
        _check_range("request.classes", request.classes, num_classes)
        mask = np.isin(labels, request.classes)
    elif request.indices:
        _check_range("request.indices", request.indices, total)
        mask = np.zeros(total, bool)
        mask[list(request.indices)] = True
    else:
        if not 0 < request.share < 1:
            raise RequestError(
                f"request.share: expected a share between 0 and 1, got {request.share}"
            )
        order = np.random.default_rng(request.seed).permutation(total)
        mask = np.zeros(total, bool)
        mask[order[: round(request.share * total)]] = True
    if not mask.any():
        raise RequestError(f"request: {describe(request)} names none of the {total} examples")
    if mask.all():
        raise RequestError(
            f"request: {describe(request)} names all {total} examples; nothing would be retained"
        )
    return mask


def _refuse(request: Request) -> None:
    """Raises the error of a request that names nothing, or several kinds of things."""
    kinds = ("classes", "indices", "share", "words", "pairs")
    given = {name: getattr(request, name) for name in kinds if getattr(request, name)}
    shown = ", ".join(f"{name}={brief(value)}" for name, value in given.items())
    # the classes are perhaps those of a configuration, of which something else was overridden
    hint = "; request.classes= clears the classes" if request.classes else ""
    raise RequestError(
        "request: expected exactly one of classes, indices, share, words and pairs, got "
        f"{shown or 'none'}{hint}"
    )


def same_kind_mask(
    request: Request, labels: np.ndarray, forgotten: Any = (), retained: Any = ()
) -> np.ndarray:
    """Marks the examples of another split that are of the kind to be forgotten.

    For classes: those with such a label. Named or random examples have no kind: none, but of
    classes of which nothing is retained.

    Args:
      labels: of the other split.
      forgotten, retained: labels of the training examples.
    """
    gone = set(request.classes)
    if np.ndim(forgotten) == 1 and np.issubdtype(np.asarray(labels).dtype, np.integer):
        gone |= set(np.unique(forgotten).tolist()) - set(np.unique(retained).tolist())
    return np.isin(labels, list(gone)) if gone else np.zeros(len(labels), bool)


def _check_range(name: str, values: Sequence[Any], limit: int) -> None:
    bad = [value for value in values if not 0 <= value < limit]
    if bad:
        raise RequestError(f"{name}: expected numbers from 0 to {limit - 1}, got {brief(bad)}")
    if len(set(values)) != len(values):
        times = Counter(values)
        again = sorted(value for value in values if times[value] > 1)
        hint = "; a mask is of booleans" if set(values) <= {0, 1} else ""
        raise RequestError(f"{name}: expected each number once, got {brief(again)}{hint}")
