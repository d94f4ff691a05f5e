"""Stop rules: when a run has gone far enough, judged by what its method reports.

A rule is a function of a chunk's diagnostics, ``{name: [steps] array} -> bool``; it is asked
after each chunk, and true ends the run. Rules combine: ``any_of(within(loss=.1), reached(
accuracy=.99))``.
"""

from collections.abc import Callable

import numpy as np

History = dict[str, np.ndarray]
Rule = Callable[[History], bool]


def within(**limits: float) -> Rule:
    """Stops when all of these metrics, averaged over a chunk, are at most their limits.

    ``unlearn(..., stop=within(forget_share=.005))``. Metrics that a method does not report
    are an error when first looked for.
    """
    return _compared(limits, lambda mean, limit: mean <= limit)


def reached(**limits: float) -> Rule:
    """Stops when all of these metrics, averaged over a chunk, are at least their limits."""
    return _compared(limits, lambda mean, limit: mean >= limit)


def any_of(*rules: Rule) -> Rule:
    """Stops when one of the rules does; all are asked, so that a misspelt metric is found."""
    return lambda history: any(tuple(rule(history) for rule in rules))


def all_of(*rules: Rule) -> Rule:
    """Stops when all of the rules do, after the same chunk."""
    return lambda history: all(tuple(rule(history) for rule in rules))


def _compared(limits: dict[str, float], fulfils: Callable[[float, float], bool]) -> Rule:
    def stop(history: History) -> bool:
        missing = sorted(set(limits) - set(history))
        if missing:
            raise ValueError(f"stop: expected metrics among {sorted(history)}, got {missing}")
        means = {name: float(np.mean(history[name])) for name in limits}
        return all(fulfils(means[name], limit) for name, limit in limits.items())

    return stop
