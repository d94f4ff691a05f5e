"""Concept banks: directions in the feature space, and how far an example lies along each.

Shapes, here and in the whole folder: ``n`` features (what the head of the network
reads), ``m`` concepts, ``K`` classes, ``N`` examples, ``B`` examples of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

__all__ = ["Bank", "make_bank", "margins"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bank:
    """Concept vectors in the feature space.

    Attributes:
      names: one word or phrase for each concept; static.
      vectors: ``float32 [m, n]``, of any length other than zero.
      intercepts: ``float32 [m]``: the border of a concept is ``C e + b = 0``.
      useful: ``bool [m]``, whether a concept is significant and better than chance.
        The others are masked, not dropped: shapes do not depend on values.
      accuracy: ``float32 [m]``, balanced accuracy on held-out examples, chance being
        .5; NaN where nothing was fitted.
      p_value: ``float32 [m]``, against random concepts; NaN where unknown.
    """

    names: tuple[str, ...] = field(metadata={"static": True})
    vectors: jax.Array
    intercepts: jax.Array
    useful: jax.Array
    accuracy: jax.Array
    p_value: jax.Array


def make_bank(
    names: Sequence[str],
    vectors: ArrayLike,
    intercepts: ArrayLike | None = None,
    *,
    useful: ArrayLike | None = None,
    accuracy: ArrayLike | None = None,
    p_value: ArrayLike | None = None,
) -> Bank:
    """Checks concept vectors of one's own and puts them on the device.

    Args:
      names: m different strings.
      vectors: ``[m, n]``.
      intercepts: ``[m]``; 0 by default.
      useful: ``bool [m]``; all, by default.
      accuracy, p_value: ``[m]``; NaN by default.

    Raises:
      ValueError: no concept, names that repeat or do not fit, a wrong shape, numbers
        that are not finite, or the vector of a useful concept is zero.
    """
    rows = np.asarray(vectors, np.float32)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"vectors: expected shape [m, n], got {list(rows.shape)}")
    count = len(rows)
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"names: expected {count} different names, got {list(names)}")
    mask = np.ones(count, bool) if useful is None else np.asarray(useful, bool)
    offsets = np.zeros(count) if intercepts is None else np.asarray(intercepts)
    unknown = np.full(count, np.nan)
    numbers: dict[str, Any] = {
        "intercepts": offsets,
        "useful": mask,
        "accuracy": unknown if accuracy is None else np.asarray(accuracy),
        "p_value": unknown if p_value is None else np.asarray(p_value),
    }
    for name, value in numbers.items():
        if value.shape != (count,):
            raise ValueError(f"{name}: expected shape [{count}], got {list(value.shape)}")
    for name, value in (("vectors", rows), ("intercepts", offsets)):
        if not np.isfinite(value).all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    zero = mask & ~rows.any(axis=1)
    if zero.any():
        raise ValueError(
            f"vectors: expected no zero vector, got one for {names[int(zero.argmax())]!r}"
        )
    return Bank(
        names=tuple(str(name) for name in names),
        vectors=jnp.asarray(rows),
        intercepts=jnp.asarray(offsets, jnp.float32),
        useful=jnp.asarray(mask),
        accuracy=jnp.asarray(numbers["accuracy"], jnp.float32),
        p_value=jnp.asarray(numbers["p_value"], jnp.float32),
    )


def margins(bank: Bank, features: jax.Array) -> jax.Array:
    """How far examples lie on a concept's side of its border: ``(C e + b) / ||C||``.

    Args:
      bank: m concepts of n features.
      features: ``[B, n]``.

    Returns:
      ``float32 [B, m]``, in the units of the features; 0 for concepts that are not useful.

    Raises:
      ValueError: if the features have another shape.

    Source: Yuksekgonul et al. 2023 (post-hoc concept bottleneck models), section 2.
    """
    width = bank.vectors.shape[1]
    if features.ndim != 2 or features.shape[1] != width:
        raise ValueError(f"features: expected shape [B, {width}], got {list(features.shape)}")
    norms = jnp.linalg.norm(bank.vectors, axis=1)
    # the vector of a concept that is not useful may be zero
    norms = jnp.where(norms > 0, norms, 1)
    # accelerators round to fewer digits by default, which scores would show as a gap
    along = jnp.matmul(
        features.astype(bank.vectors.dtype), bank.vectors.T, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.where(bank.useful[None], (along + bank.intercepts[None]) / norms[None], 0)
