"""A data set divided by the requests of a run, and where its parts lie in the official splits."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxunlearn.config import Request
from jaxunlearn.data.dataset import Dataset
from jaxunlearn.data.requests import describe
from jaxunlearn.data.sets import make_sets, num_examples, stack_sets
from jaxunlearn.errors import RequestError
from jaxunlearn.types import Sets

__all__ = ["divide", "positions"]


def divide(data: Dataset, held: np.ndarray, requests: Sequence[Request]) -> Sets:
    """The sets of one request, or those of several stacked; the images are shared.

    Args:
      held: ``bool [N]``, which images of the test split no training nor evaluation sees.

    Raises:
      RequestError: of several requests, one has no examples in a part where others have.
      DataError: see :func:`jaxunlearn.data.sets.make_sets`.
    """
    # once on the device, for all of them
    x, y = jnp.asarray(data.train_x), jnp.asarray(data.train_y)
    unseen, test = (
        (jnp.asarray(data.test_x[part]), jnp.asarray(data.test_y[part])) for part in (held, ~held)
    )
    many = [
        make_sets(
            x, y, one, unseen=unseen, test=test, mean=data.mean, std=data.std,
            num_classes=len(data.class_names),
        )
        for one in requests
    ]  # fmt: skip
    if len(many) == 1:
        return many[0]
    for name in Sets._fields:
        there = [getattr(sets, name) is not None for sets in many]
        if any(there) and not all(there):
            lacking = describe(requests[there.index(False)])
            raise RequestError(
                f"request.each: expected {name} examples of every class or of none, got none "
                f"for {lacking!r}; see data.unseen"
            )
    return stack_sets(many)


def positions(sets: Sets, held: np.ndarray) -> dict[str, np.ndarray]:
    """Where in the official splits the examples of each set of one request lie."""
    unseen, test = np.flatnonzero(held), np.flatnonzero(~held)
    carved = {"unseen": unseen, "holdout": unseen, "test_forget": test, "test_retain": test}
    found = {}
    for name, part in sets._asdict().items():
        if part is not None:
            own = np.asarray(part.indices)[: num_examples(part)]
            found[name] = carved[name][own] if name in carved else own
    return found
