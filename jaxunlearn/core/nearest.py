"""What lies next to what: the nearest of many vectors.

Legend: ``n, m`` examples, ``F`` features.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.core.trees import in_chunks

CHUNK = 256
"""Examples compared with all others at a time: bounds the memory to CHUNK x m distances."""


def as_features(name: str, value: ArrayLike, least: int = 1) -> jax.Array:
    """Returns ``float32 [n, F]`` of what was given under ``name``.

    Raises:
      ValueError: not two axes, fewer than ``least`` examples, or no feature.
    """
    shape = np.shape(value)
    if len(shape) != 2 or shape[0] < least or shape[1] < 1:
        raise ValueError(f"{name}: expected [n, F] with n >= {least}, got shape {shape}")
    return jnp.asarray(value, jnp.float32)


def nearest(
    queries: ArrayLike,
    references: ArrayLike,
    *,
    query_labels: ArrayLike | None = None,
    reference_labels: ArrayLike | None = None,
    same: bool | None = None,
    valid: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Finds the nearest reference of each query, by the Euclidean distance.

    Works on traced arrays. Distances are computed by exact differences, in blocks
    of queries; of references at the same distance the first counts.

    Args:
      queries: ``[n, F]``.
      references: ``[m, F]``.
      query_labels: ``int [n]``, with ``same`` only.
      reference_labels: ``int [m]``, with ``same`` only.
      same: ``True``: among references of the query's label; ``False``: among those of another
        label; ``None``: among all. Static.
      valid: ``bool [m]``, references that count; ``None`` for all.

    Returns:
      Places ``int32 [n]`` and distances ``float32 [n]``. Where no reference is allowed:
      place -1 at distance ``inf``.

    Raises:
      ValueError: wrong shapes, or labels without ``same`` or the other way round.
    """
    queries, references = as_features("queries", queries), as_features("references", references)
    same_width("references", references, "queries", queries)
    labels = {"query_labels": query_labels, "reference_labels": reference_labels}
    for (name, given), side in zip(labels.items(), (queries, references), strict=True):
        if (given is None) != (same is None):
            wanted = "None without same" if same is None else f"labels for same={same}"
            raise ValueError(f"{name}: expected {wanted}, got {_kind(given)}")
        _check_length(name, given, len(side))
    _check_length("valid", valid, len(references))
    valid = None if valid is None else jnp.asarray(valid)
    if valid is not None and valid.dtype != jnp.bool_:
        raise ValueError(f"valid: expected bool [m], got {valid.dtype}")
    own = None if same is None else tuple(jnp.asarray(v, jnp.int32) for v in labels.values())
    return _nearest(queries, references, own, valid, same)


def same_width(name: str, x: jax.Array, other: str, y: jax.Array) -> None:
    """Raises a :class:`ValueError` unless both have as many features."""
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{name}: expected {y.shape[1]} features as in {other}, got {x.shape[1]}")


def _check_length(name: str, value: ArrayLike | None, length: int) -> None:
    if value is not None and np.shape(value) != (length,):
        raise ValueError(f"{name}: expected shape {(length,)}, got {np.shape(value)}")


def _kind(value: ArrayLike | None) -> str:
    return "None" if value is None else f"shape {np.shape(value)}"


def squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes squared distances ``[n, m]``; the compiler does not store ``[n, m, F]``."""
    return jnp.sum(jnp.square(a[:, None] - b[None]), axis=-1)


@partial(jax.jit, static_argnames="same")
def _nearest(
    queries: jax.Array,
    references: jax.Array,
    labels: tuple[jax.Array, ...] | None,
    valid: jax.Array | None,
    same: bool | None,
) -> tuple[jax.Array, jax.Array]:
    def some(places: jax.Array) -> tuple[jax.Array, jax.Array]:
        squared = squared_distances(queries[places], references)
        allowed = jnp.ones(squared.shape, bool)
        if valid is not None:
            allowed = allowed & valid[None]
        if labels is not None:
            alike = labels[0][places][:, None] == labels[1][None]
            allowed = allowed & (alike if same else ~alike)
        squared = jnp.where(allowed, squared, jnp.inf)
        place = jnp.argmin(squared, axis=1).astype(jnp.int32)
        return jnp.where(jnp.any(allowed, axis=1), place, -1), jnp.sqrt(jnp.min(squared, axis=1))

    return in_chunks(some, len(queries), CHUNK)
