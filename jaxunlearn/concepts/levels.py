"""Settings of a test against random concepts."""

import numpy as np

__all__ = ["check_levels"]


def check_levels(held_out: float, randoms: int, alpha: float) -> None:
    """Raises ``ValueError`` unless random concepts can tell a useful one at a level.

    Args:
      held_out: share of the examples that the quality is judged by.
      randoms: random concepts for each; the smallest p-value is ``1 / (1 + randoms)``.
      alpha: level.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out: expected a share between 0 and 1, got {held_out!r}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: expected a level between 0 and 1, got {alpha!r}")
    if randoms < 1 or 1 / (1 + randoms) >= alpha:
        least = int(np.floor(1 / alpha))
        raise ValueError(
            f"randoms: expected at least {least}, since with fewer no p-value is below "
            f"{alpha}, got {randoms!r}"
        )
