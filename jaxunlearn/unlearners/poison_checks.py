"""What concept poisoning refuses before any work."""

import math

from jaxunlearn.concepts import Concepts, check_bank
from jaxunlearn.unlearners.poison import LABELS, PLACES
from jaxunlearn.unlearners.shares import check_share

__all__ = ["STATISTICS", "fitting", "inference", "numbers", "words"]

STATISTICS = ("frozen", "moving")


def words(place: str, label: str, statistics: str) -> None:
    """Raises ``ValueError`` for a word that is not among the choices."""
    choices = {"place": PLACES, "label": LABELS, "statistics": STATISTICS}
    given = {"place": place, "label": label, "statistics": statistics}
    for name, value in given.items():
        if value not in choices[name]:
            raise ValueError(f"{name}: expected one of {', '.join(choices[name])}, got {value!r}")


def numbers(
    patches: int, place: str, data: float, forget_weight: float | None, patch: float | None
) -> None:
    """Raises ``ValueError`` for a number out of its range."""
    if patches < 1 or (patches > 1 and place != "top"):
        raise ValueError(f"patches: expected 1, or more with place 'top', got {patches}")
    check_share(data, "data")
    if forget_weight is not None and not 0 <= forget_weight < math.inf:
        raise ValueError(f"forget_weight: expected a number >= 0, got {forget_weight}")
    if patch is not None:
        check_share(patch, "patch", " of the image's side (a larger patch does not fit)")


def inference(bank: str, concepts: int, examples: int) -> None:
    """Raises ``ValueError`` for concepts that cannot be inferred from any network."""
    check_bank(bank)
    for name, value, least in (("concepts", concepts, 2), ("examples", examples, 1)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")


def fitting(inferred: Concepts, classes: int, features: int) -> None:
    """Raises ``ValueError`` for concepts that were inferred from another network."""
    got = (inferred.values.shape[0], inferred.bank.vectors.shape[1])
    if got != (classes, features):
        raise ValueError(
            f"inferred: expected concepts of {classes} classes and {features} features, "
            f"got {got[0]} and {got[1]}"
        )
