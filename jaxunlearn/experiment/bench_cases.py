"""Requests of a bench with their sets, all on the same arrays."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxunlearn.config import Request, SubClass
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.types import Sets
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.requests import resolve, separate
from jaxunlearn.data.sets import divide_each, forgets_class, normalise_by_retained
from jaxunlearn.experiment.plan import Plan


class Case(NamedTuple):
    """Request of a bench with its sets; of a name there may be several, one for each class.

    Attributes:
      name: that the configuration gave.
      turn: number of one among requests in turn; else ``None``.
      sets: that methods are given.
      judged: that models are judged on: of requests in turn all that was forgotten so far.
      retraining: the same as retrained models read them.
    """

    name: str
    request: Request
    turn: int | None
    sets: Sets
    judged: Sets
    retraining: Sets

    @property
    def kind(self) -> str:
        """Returns ``"class"`` or ``"items"``."""
        return "class" if forgets_class(self.sets) else "items"


def make_cases(requests: Mapping[str, Request | SubClass], plan: Plan) -> list[Case]:
    """Makes the sets of all requests on the same arrays."""
    data = plan.data
    asked: list[tuple[str, Request, int | None, Request]] = []
    for name, given in requests.items():
        given = _cluster(given, data) if isinstance(given, SubClass) else given
        found = resolve(given, plan.class_names, len(data.train_y), data.train_x)
        singles = separate(found, len(plan.class_names))
        for number, one in enumerate(singles):
            so_far = tuple(label for each in singles[: number + 1] for label in each.classes)
            turn = number if found.in_turn else None
            asked.append((name, one, turn, one if turn is None else Request(classes=so_far)))
    wanted = [one for _, one, _, _ in asked] + [judged for *_, judged in asked]
    made = divide_each(data, plan.held, wanted)
    by_retained = plan.retraining is not plan.sets
    cases = []
    for n, (name, one, turn, _) in enumerate(asked):
        sets, judged = made[n], made[len(asked) + n]
        if turn is None:
            judged = sets
        else:  # what was forgotten before is neither forgotten again nor retained
            sets = sets._replace(retain=judged.retain, holdout=judged.holdout)
        retraining = normalise_by_retained(judged) if by_retained else judged
        cases.append(Case(name, one, turn, sets, judged, retraining))
    return cases


def _cluster(asked: SubClass, data: Dataset) -> Request:
    """Returns the request for the smallest cluster of a class, by k-means of its pixels."""
    from sklearn.cluster import KMeans

    places = np.flatnonzero(np.asarray(data.train_y) == asked.label)
    if len(places) < asked.clusters:
        raise ConfigError(
            f"requests: expected {asked.clusters} examples or more of class {asked.label}, "
            f"got {len(places)}"
        )
    pixels = np.asarray(data.train_x)[places].reshape(len(places), -1).astype(np.float64)
    found = KMeans(asked.clusters, n_init=4, random_state=0).fit_predict(pixels)
    smallest = np.argmin(np.bincount(found, minlength=asked.clusters))
    return Request(indices=tuple(places[found == smallest].tolist()))
