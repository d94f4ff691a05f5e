"""Requests to forget, and the training examples that they mean."""

from collections.abc import Iterable

import numpy as np

from jaxunlearn.config import Request
from jaxunlearn.core.errors import RequestError


def forget_class(label: int) -> Request:
    """Requests to forget every training example of one class."""
    if np.ndim(label) != 0:
        raise TypeError(f"label: expected one class, got {label!r}; use forget_classes")
    return forget_classes([label])


def forget_classes(labels: Iterable[int]) -> Request:
    """Requests to forget every training example of several classes."""
    return Request(classes=tuple(int(label) for label in labels))


def forget_indices(indices: Iterable[int] | np.ndarray) -> Request:
    """Requests to forget the training examples at positions, or of a mask ``bool [N]``."""
    given = np.asarray(indices if hasattr(indices, "dtype") else list(indices))
    positions = np.flatnonzero(given) if given.dtype == bool else given
    return Request(indices=tuple(int(index) for index in positions))


def forget_random(share: float, seed: int = 0) -> Request:
    """Requests to forget a random share, between 0 and 1, of the training examples."""
    return Request(share=float(share), seed=seed)


def describe(request: Request) -> str:
    """Describes a request in a few words, for titles and messages."""
    if request.each:
        return "forget each class by itself"
    if request.in_turn:
        return "forget in turn classes " + ", ".join(str(label) for label in request.classes)
    if request.classes:
        noun = "class" if len(request.classes) == 1 else "classes"
        return f"forget {noun} " + ", ".join(str(label) for label in request.classes)
    if request.indices:
        return f"forget {len(request.indices)} given examples"
    return f"forget a random {request.share:.3g} of the examples (seed {request.seed})"


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
            f"indices={request.indices}, share={request.share}"
        )
    _check_range("request.classes", request.classes, num_classes)
    given = list(request.classes) if request.in_turn else sorted(request.classes)
    labels = given or (list(range(num_classes)) if request.each else [])
    if len(labels) < 2:
        hint = "; request.classes= takes all" if request.each else ""
        raise RequestError(f"{name}: expected two classes or more, got {labels}{hint}")
    return [forget_class(label) for label in labels]


def forget_mask(request: Request, labels: np.ndarray, num_classes: int | None) -> np.ndarray:
    """Marks the training examples that are to be forgotten.

    Args:
      request: names exactly one of classes, indices and share.
      labels: ``int [N]``, the training labels; read only for classes.
      num_classes: ``K``; ``None`` where labels are not classes.

    Returns:
      ``bool [N]``, neither all false nor all true.

    Raises:
      RequestError: nothing, everything, several kinds at once, or out of range.
    """
    if request.each or request.in_turn:
        word = "each" if request.each else "in_turn"
        raise RequestError(f"request.{word}: expected a single request here, got several")
    kinds = [bool(request.classes), bool(request.indices), request.share != 0]
    if sum(kinds) != 1:
        raise RequestError(
            "request: expected exactly one of classes, indices and share, got "
            f"classes={request.classes}, indices={request.indices}, share={request.share}"
        )
    total = len(labels)
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


def same_kind_mask(request: Request, labels: np.ndarray) -> np.ndarray:
    """Marks the examples of another split that are of the kind to be forgotten.

    For classes: those with such a label. Named or random examples have no kind:
    none.
    """
    return np.isin(labels, request.classes) if request.classes else np.zeros(len(labels), bool)


def _check_range(name: str, values: tuple[int, ...], limit: int) -> None:
    bad = [value for value in values if not 0 <= value < limit]
    if bad:
        raise RequestError(f"{name}: expected numbers from 0 to {limit - 1}, got {bad}")
    if len(set(values)) != len(values):
        raise RequestError(f"{name}: expected each number once, got {list(values)}")
