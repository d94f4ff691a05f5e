"""Texts as arrays: padded UTF-8 bytes, so that a data set of texts is one of arrays.

And question-answer pairs with their variants as the data set that language sources give.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.core.errors import DataError, brief
from jaxunlearn.data.dataset import Dataset, make_dataset


def to_bytes(texts: Sequence[Any]) -> np.ndarray:
    """Encodes texts as UTF-8, padded with zeros at the end.

    Args:
      texts: ``N`` texts, or ``N`` lists of texts, whose shorter ones are filled with empty texts.

    Returns:
      ``uint8 [N, L]`` or ``[N, P, L]``, of the longest text and the longest list, at least 1.

    Raises:
      DataError: something else than text, or a text with the character 0, which is the padding.
    """
    if not all(isinstance(text, str) for text in texts):
        if any(isinstance(inner, str) for inner in texts):
            raise DataError("texts: expected texts, or lists of texts, got both")
        width = max([1, *map(len, texts)])
        flat = [text for inner in texts for text in [*inner, *[""] * (width - len(inner))]]
        return to_bytes(flat).reshape(len(texts), width, -1)
    try:
        encoded = [text.encode("utf-8") for text in texts]
    except UnicodeEncodeError as error:
        raise DataError(f"texts: expected Unicode, got a lone surrogate: {error}") from None
    for number, text in enumerate(encoded):
        if b"\0" in text:
            raise DataError(
                f"texts: expected no character 0, got one in text {number}, {brief(texts[number])}"
            )
    longest = max([1, *map(len, encoded)])
    found = np.array(encoded, f"S{longest}").reshape(len(encoded))
    return found.view(np.uint8).reshape(len(encoded), longest)


def to_texts(array: np.ndarray) -> list[Any]:
    """Decodes padded bytes: the inverse of :func:`to_bytes`.

    Args:
      array: ``uint8 [..., L]``.

    Returns:
      Texts, as lists nested like the leading axes.

    Raises:
      DataError: other arrays, or bytes that are no UTF-8.
    """
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim < 2 or not array.shape[-1]:
        raise DataError(f"texts: expected bytes uint8 [..., L], got {brief(array)}")
    rows = np.ascontiguousarray(array).reshape(-1, array.shape[-1])
    flat = rows.view(f"S{rows.shape[1]}")[:, 0].tolist()
    try:
        texts = [text.decode("utf-8") for text in flat]
    except UnicodeDecodeError as error:
        raise DataError(f"texts: expected UTF-8, got {error.reason}") from None
    found = np.empty(len(texts), object)
    found[:] = texts
    nested: list[Any] = found.reshape(array.shape[:-1]).tolist()
    return nested


class Pair(NamedTuple):
    """Question, answer and topic; variants are empty where there are none.

    Attributes:
      question, answer: the pair itself.
      topic: its class, such as the author that it is about.
      paraphrased_question, paraphrased_answer: the same in other words.
      perturbed_answer: wrong answers in the form of the paraphrased one.
    """

    question: str
    answer: str
    topic: str
    paraphrased_question: str = ""
    paraphrased_answer: str = ""
    perturbed_answer: tuple[str, ...] = ()


def pairs_dataset(train: Sequence[Pair], test: Sequence[Pair]) -> Dataset:
    """Makes a data set of question-answer pairs.

    Returns:
      The set; its ``x`` has ``"question"`` and ``"answer"``, bytes ``uint8 [N, L]``, and
      those variants that any pair has: ``"paraphrased_question"``, ``"paraphrased_answer"``,
      ``uint8 [N, L]``, and ``"perturbed_answer"``, ``uint8 [N, P, L]``. Labels are topics, in the
      order in which they are met. Both splits have the same fields, of the same lengths.

    Raises:
      DataError: a split is empty, or a pair lacks its question, answer or topic.
    """
    for name, pairs in (("training", train), ("test", test)):
        if not pairs:
            raise DataError(f"pairs: expected some in the {name} split, got none")
        for number, pair in enumerate(pairs):
            if not (pair.question.strip() and pair.answer.strip() and pair.topic.strip()):
                raise DataError(
                    f"pairs: expected a question, an answer and a topic, got pair {number} of the "
                    f"{name} split without, {brief(pair.question)}"
                )
    topics = list(dict.fromkeys(pair.topic for pair in [*train, *test]))
    number_of = {topic: number for number, topic in enumerate(topics)}
    x: dict[str, np.ndarray] = {}
    for field in Pair._fields:
        values = [getattr(pair, field) for pair in [*train, *test]]
        if field != "topic" and any(values):
            x[field] = to_bytes(values)
    y = np.array([number_of[pair.topic] for pair in [*train, *test]], np.int32)
    return make_dataset(_split(x, y, len(train)), topics)


def labelled_dataset(
    train: Sequence[tuple[str, int]], test: Sequence[tuple[str, int]], class_names: Sequence[str]
) -> Dataset:
    """Makes a data set of texts with classes, ``x = {"text": uint8 [N, L]}``."""
    x = {"text": to_bytes([text for text, _ in [*train, *test]])}
    y = np.array([label for _, label in [*train, *test]], np.int32)
    return make_dataset(_split(x, y, len(train)), class_names)


def _split(x: Mapping[str, np.ndarray], y: np.ndarray, count: int) -> dict[str, Any]:
    """Divides arrays of both splits, which share their lengths, after ``count`` examples."""
    return {
        "train_x": {name: leaf[:count] for name, leaf in x.items()},
        "train_y": y[:count],
        "test_x": {name: leaf[count:] for name, leaf in x.items()},
        "test_y": y[count:],
    }
