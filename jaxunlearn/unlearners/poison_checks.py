"""What concept poisoning refuses before any work."""

import math

from jaxunlearn.unlearners.poison import LABELS, PLACES

__all__ = ["STATISTICS", "numbers", "words"]

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
    if not 0 < data <= 1:
        raise ValueError(f"data: expected a share above 0, at most 1, got {data}")
    if forget_weight is not None and not 0 <= forget_weight < math.inf:
        raise ValueError(f"forget_weight: expected a number >= 0, got {forget_weight}")
    if patch is not None and not 0 < patch <= 1:
        raise ValueError(
            f"patch: expected a share of the image's side, at most 1 (a larger patch does not "
            f"fit), got {patch}"
        )
