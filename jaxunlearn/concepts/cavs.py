"""Concept activation vectors: a linear machine for each concept, tested on held-out examples."""

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.concepts.bank import Bank, check_levels, make_bank

_LEAST = 4
_TOLERANCE = 1e-4
# without regularisation to speak of the last digits take long, and do not matter
_ITERATIONS = 3000
# what scikit-learn draws for ``random_state=0``
_SEED = int(np.random.RandomState(0).randint(np.iinfo("i").max))


class _Fit(NamedTuple):
    """One concept's border ``vector . e + intercept = 0`` and its quality."""

    vector: np.ndarray
    intercept: float
    accuracy: float
    p_value: float


def fit_bank(
    sets: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    strengths: Sequence[float] = (0.001, 0.01, 0.1, 1.0, 10.0),
    held_out: float = 0.3,
    randoms: int = 20,
    alpha: float = 0.05,
    seed: int = 0,
    warn: bool = True,
) -> Bank:
    """Fits one concept vector to the examples that show a concept and those that do not.

    A linear support vector machine (squared hinge, both sides of equal weight) is fitted
    to features that are centred and divided by one number, their mean deviation: so its
    ``C`` means the same for every network, and no feature that hardly ever moves is blown
    up. The vector is returned in the units of the features given.

    Each side is split at random in three. ``C`` is chosen on the second part (of equal
    ones the first in ``strengths``), the machine fitted anew to the first two, and its
    balanced accuracy taken on the third, which nothing has seen. The same is done
    ``randoms`` times, with the chosen ``C``, for random concepts: the same examples,
    shuffled, the first p called positive. With r of these at least as accurate,

        p = (1 + r) / (1 + randoms)

    is the p-value of a permutation test, exact at any number of randoms; 20 is the least
    with which it can be below .05. A concept is useful if ``p < alpha`` and its accuracy
    is above .5. Each concept is tested by itself: of twenty meaningless ones, one may pass.

    Args:
      sets: name -> (positives ``[p, n]``, negatives ``[q, n]``), features of examples.
      strengths: values of ``C`` to choose from.
      held_out: share of each side in the third part; the second is this share of the rest.
      randoms: random concepts for each concept.
      alpha: level of significance.
      seed: fixes all draws.
      warn: whether to name concepts that are not useful in a ``UserWarning``.

    Raises:
      ValueError: no concept, fewer than 4 examples on a side, features that are not
        finite or of different ``n``, an option out of range, or no useful concept.

    Source: Kim et al. 2018 (TCAV); Yuksekgonul et al. 2023 for the values of ``C``. The
    test on examples that did not choose ``C`` and its p-value are our choice.
    """
    _check_options(strengths, held_out, randoms, alpha)
    pools = _check_sets(sets)
    fits = []
    for number, (pool, positives) in enumerate(pools.values()):
        rng = np.random.default_rng([seed, number])
        fits.append(_fit_concept(pool, positives, strengths, held_out, randoms, rng))
    accuracy, p_value = (np.array([getattr(f, k) for f in fits]) for k in ("accuracy", "p_value"))
    useful = (p_value < alpha) & (accuracy > 0.5)
    _tell(list(pools), useful, accuracy, warn)
    return make_bank(
        list(pools),
        np.stack([fit.vector for fit in fits]),
        np.array([fit.intercept for fit in fits]),
        useful=useful,
        accuracy=accuracy,
        p_value=p_value,
    )


def _check_options(strengths: Sequence[float], held_out: float, randoms: int, alpha: float) -> None:
    if not len(strengths) or not all(np.isfinite(c) and c > 0 for c in strengths):
        raise ValueError(f"strengths: expected positive numbers, got {strengths!r}")
    check_levels(held_out, randoms, alpha)


def _check_sets(
    sets: Mapping[str, tuple[ArrayLike, ArrayLike]],
) -> dict[str, tuple[np.ndarray, int]]:
    """Returns for each name the examples ``[p + q, n]``, positives first, and ``p``."""
    if not sets:
        raise ValueError("sets: expected at least one concept, got none")
    pools: dict[str, tuple[np.ndarray, int]] = {}
    for name, pair in sets.items():
        sides = [np.asarray(side, np.float32) for side in pair]
        for side, kind in zip(sides, ("positives", "negatives"), strict=True):
            where = f"sets[{name!r}] {kind}"
            if side.ndim != 2:
                raise ValueError(f"{where}: expected shape [N, n], got {list(side.shape)}")
            if len(side) < _LEAST:
                raise ValueError(f"{where}: expected at least {_LEAST} examples, got {len(side)}")
            width = next(iter(pools.values()))[0].shape[1] if pools else sides[0].shape[1]
            if side.shape[1] != width:
                raise ValueError(f"{where}: expected {width} features, got {side.shape[1]}")
            if not np.isfinite(side).all():
                raise ValueError(f"{where}: expected finite numbers, got NaN or infinity")
        pools[name] = (np.concatenate(sides), len(sides[0]))
    return pools


def _fit_concept(
    pool: np.ndarray,
    positives: int,
    strengths: Sequence[float],
    held_out: float,
    randoms: int,
    rng: np.random.Generator,
) -> _Fit:
    mean = pool.mean(axis=0)
    scale = float(np.sqrt(np.mean((pool - mean) ** 2))) or 1.0
    x, y = (pool - mean) / scale, np.arange(len(pool)) < positives
    fit, choose, test = _split(y, held_out, rng)
    strength = _choose(x, y, fit, choose, strengths)
    known = np.concatenate([fit, choose])
    vector, intercept = _machine(x[known], y[known], strength)
    accuracy = _balanced(vector, intercept, x[test], y[test])
    others = [_random(x, y, strength, held_out, rng) for _ in range(randoms)]
    p_value = (1 + np.sum(np.array(others) >= accuracy)) / (1 + randoms)
    vector = vector / scale
    return _Fit(vector, intercept - float(vector @ mean), accuracy, float(p_value))


def _split(
    y: np.ndarray, held_out: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws positions to fit to, to choose ``C`` on, to test on; some of both sides in each."""
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for side in (True, False):
        order = rng.permutation(np.flatnonzero(y == side))
        test = min(max(1, round(held_out * len(order))), len(order) - 2)
        choose = min(max(1, round(held_out * (len(order) - test))), len(order) - test - 1)
        pieces = np.split(order, [len(order) - test - choose, len(order) - test])
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
    fit, chosen, tested = (np.concatenate(part) for part in parts)
    return fit, chosen, tested


def _choose(
    x: np.ndarray, y: np.ndarray, fit: np.ndarray, choose: np.ndarray, strengths: Sequence[float]
) -> float:
    """Chooses the ``C`` of the best balanced accuracy on ``choose``."""
    scores = [
        _balanced(*_machine(x[fit], y[fit], strength), x[choose], y[choose])
        for strength in strengths
    ]
    return strengths[int(np.argmax(scores))]


def _random(
    x: np.ndarray, y: np.ndarray, strength: float, held_out: float, rng: np.random.Generator
) -> float:
    """Computes the held-out accuracy of a concept without meaning."""
    x = x[rng.permutation(len(x))]
    fit, choose, test = _split(y, held_out, rng)
    known = np.concatenate([fit, choose])
    return _balanced(*_machine(x[known], y[known], strength), x[test], y[test])


def _machine(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Fits a linear machine; returns vector ``[n]`` and intercept of the border."""
    count, solve = len(y), _solver()
    if solve is None:
        return _checked_machine(x, y, strength)
    balanced = count / (2 * np.array([count - y.sum(), y.sum()]))
    # 1: the dual problem, smaller where examples are fewer than features; 2: the primal one
    kind = 1 if count < x.shape[1] else 2
    rows, sides = np.ascontiguousarray(x, np.float64), y.astype(np.float64)
    found, _ = solve(
        rows, sides, False, kind, _TOLERANCE, 1.0, strength, balanced, _ITERATIONS, _SEED, 0.1,
        np.ones(count),
    )  # fmt: skip
    return found[0, :-1], float(found[0, -1])


@functools.cache
def _solver() -> Any:
    """Returns what solves the problem of a linear machine in scikit-learn; ``None`` if not found.

    A bank takes hundreds of small machines, and the checks of each take longer than it does.
    """
    try:
        from sklearn.svm._liblinear import set_verbosity_wrap, train_wrap

        set_verbosity_wrap(0)  # it prints every step, unless it is told not to
        train_wrap(
            np.eye(2), np.arange(2.0), False, 2, _TOLERANCE, 1.0, 1.0, np.ones(2), 1, _SEED, 0.1,
            np.ones(2),
        )  # fmt: skip
        return train_wrap
    except (ImportError, TypeError, ValueError):  # it is not public: another version, perhaps
        return None


def _checked_machine(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Fits the same machine by scikit-learn's own class, which checks what it is given."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    machine = LinearSVC(
        C=strength, dual="auto", class_weight="balanced", tol=_TOLERANCE, max_iter=_ITERATIONS,
        random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(x, y)
    return machine.coef_[0], float(machine.intercept_[0])


def _balanced(vector: np.ndarray, intercept: float, x: np.ndarray, y: np.ndarray) -> float:
    """Computes the mean of the two sides' shares on the right side of the border."""
    right = (x @ vector + intercept > 0) == y
    return float((right[y].mean() + right[~y].mean()) / 2)


def _tell(names: list[str], useful: np.ndarray, accuracy: np.ndarray, warn: bool) -> None:
    if not useful.any():
        raise ValueError(
            "sets: expected a concept that is told better than random ones, got none: held-out "
            f"accuracies from {accuracy.min():.2f} to {accuracy.max():.2f}, chance .50; more "
            "examples, or concepts that the network knows, may help"
        )
    if warn and not useful.all():
        listed = ", ".join(
            f"{name} ({share:.2f})"
            for name, share, good in zip(names, accuracy, useful, strict=True)
            if not good
        )
        warnings.warn(
            "concepts not told better than random ones are left out (held-out accuracy, "
            f"chance .50): {listed}",
            UserWarning,
            stacklevel=3,
        )
