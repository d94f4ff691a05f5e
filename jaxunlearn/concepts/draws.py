"""Examples drawn at random and evenly over groups."""

import numpy as np

__all__ = ["evenly"]


def evenly(groups: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of at most ``count`` examples, as many of each group as there are.

    A group that is used up leaves its places to the others.

    Args:
      groups: integers ``[N]``, the group of each example.
      count: at least 0.
      rng: draws within the groups.

    Returns:
      ``int [min(count, N)]``, ascending.
    """
    order = rng.permutation(len(groups))
    by_group = order[np.argsort(groups[order], kind="stable")]
    _, sizes = np.unique(groups, return_counts=True)
    # the number of each example within its group: all first ones, then all second ones
    turn = np.concatenate([np.arange(size) for size in sizes]) if len(sizes) else np.arange(0)
    return np.sort(by_group[np.argsort(turn, kind="stable")][:count])
