"""Logits of a whole subset, as one compiled program."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.types import Apply, Inputs, Subset, Variables
from jaxunlearn.data.batches import in_order
from jaxunlearn.data.sets import num_examples
from jaxunlearn.data.streams import Stream
from jaxunlearn.engine.feed import batches_in_order


@partial(jax.jit, static_argnames=("apply", "batch_size", "batches"))
def _outputs(
    variables: Variables, part: Subset, *, apply: Apply, batch_size: int, batches: int
) -> jax.Array:
    def one(step: jax.Array) -> jax.Array:
        return apply(variables, in_order(part, step, batch_size).x)

    out = jax.lax.map(one, jnp.arange(batches, dtype=jnp.int32))
    return out.reshape(-1, *out.shape[2:])


@partial(jax.jit, static_argnames="apply")
def _outputs_of_rows(variables: Variables, reader: Any, rows: Inputs, *, apply: Apply) -> jax.Array:
    return apply(variables, reader(rows))


def _streamed_outputs(
    apply: Apply, variables: Variables, part: Subset, batch_size: int
) -> np.ndarray:
    """Computes a batch while the next one is read."""
    positions = np.asarray(part.indices)[: num_examples(part)]
    found: list[np.ndarray] = []
    feed = batches_in_order(part.examples.x, positions, batch_size)
    rows = next(feed, None)
    while rows is not None:
        computed = _outputs_of_rows(variables, part.examples.reader, rows, apply=apply)
        spent, rows = rows, next(feed, None)  # while the device computes
        found.append(np.asarray(computed))
        jax.tree.map(lambda leaf: leaf.delete(), spent)
    return np.concatenate(found)


class Predictions:
    """Outputs of a model on one subset, on the host.

    Attributes:
      logits: ``float32 [M, K]``.
      labels: ``int [M]``.

    What is computed of logits that are not finite (a wrecked model's) is a ``ValueError``.
    """

    def __init__(self, logits: np.ndarray, labels: np.ndarray) -> None:
        self.logits = logits
        self.labels = labels

    @property
    def classes(self) -> np.ndarray:
        """Returns the class of the largest logit, ``int [M]``."""
        return self._finite().argmax(axis=1)

    @property
    def log_softmax(self) -> np.ndarray:
        """Returns ``float64 [M, K]``."""
        z = self._finite().astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    @property
    def softmax(self) -> np.ndarray:
        """Returns ``float64 [M, K]``."""
        return np.exp(self.log_softmax)

    @property
    def losses(self) -> np.ndarray:
        """Returns the cross-entropy of each example, ``float64 [M]``."""
        return -self.log_softmax[np.arange(len(self.labels)), self.labels]

    @property
    def accuracy(self) -> float:
        """Returns the share of examples whose largest logit is the label's."""
        return float(np.mean(self.classes == self.labels))

    @property
    def are_probabilities(self) -> bool:
        """Tells whether outputs lie in [0, 1] and sum to 1, as those of a softmax do."""
        z = self.logits
        if z.ndim != 2 or z.shape[1] < 2 or not np.isfinite(z).all():
            return False
        return bool(z.min() >= 0 and np.allclose(z.sum(axis=1, dtype=np.float64), 1, atol=1e-2))

    def _finite(self) -> np.ndarray:
        wrong = ~np.isfinite(self.logits).reshape(len(self.logits), -1).all(axis=1)
        if wrong.any():
            raise ValueError(
                f"expected finite outputs, got NaN or infinity for {wrong.sum()} of "
                f"{len(wrong)} examples"
            )
        return self.logits


def predict(apply: Apply, variables: Variables, part: Subset, batch_size: int = 500) -> Predictions:
    """Runs a network over a subset in order.

    Args:
      apply: ``variables, x -> [B, K]``; any per-example output serves, features too.
      part: what to run on; not empty.
    """
    size = num_examples(part)
    batch_size = min(batch_size, part.indices.shape[0])
    batches = math.ceil(part.indices.shape[0] / batch_size)
    if isinstance(part.examples.x, Stream):
        out = _streamed_outputs(apply, variables, part, batch_size)
    else:
        out = _outputs(variables, part, apply=apply, batch_size=batch_size, batches=batches)
    labels = np.asarray(part.examples.y)[np.asarray(part.indices)[:size]]
    return Predictions(np.asarray(out, np.float32)[:size], labels)
