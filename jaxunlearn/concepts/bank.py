"""Concept banks: directions in the feature space, and how far an example lies along each.

Shapes, here and in the whole folder: ``n`` features (what the head of the network
reads), ``m`` concepts, ``K`` classes, ``N`` examples, ``B`` examples of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.core.errors import DataError
from jaxunlearn.core.files import read_npz, write_npz
from jaxunlearn.core.trees import to_device


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
        vectors=to_device(rows),
        intercepts=to_device(offsets, np.float32),
        useful=to_device(mask),
        accuracy=to_device(numbers["accuracy"], np.float32),
        p_value=to_device(numbers["p_value"], np.float32),
    )


@partial(jax.jit, inline=True)
def margins(bank: Bank, features: jax.Array) -> jax.Array:
    """Computes how far examples lie on a concept's side of its border, ``(C e + b) / ||C||``.

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


def check_levels(held_out: float, randoms: int, alpha: float) -> None:
    """Checks that random concepts can tell a useful one at a level.

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


def evenly(groups: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws positions of at most ``count`` examples, as many of each group as there are.

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


_OPTIONAL = ("intercepts", "useful", "accuracy", "p_value")


def load_bank(path: str | Path, features: int) -> Bank:
    """Reads concept vectors, for example text embeddings of concept words.

    The file holds ``vectors [m, n]`` and ``names [m]``, and may hold ``intercepts``,
    ``useful``, ``accuracy`` and ``p_value``, each ``[m]``. The vectors must lie in the
    space that the network's head reads: text embeddings serve a network whose features
    are the image embeddings of the same model.

    Args:
      path: of the ``.npz`` file.
      features: ``n``, what the head reads.

    Raises:
      DataError: the file is missing, is no such archive or damaged, lacks an array, or
        holds one of another form or of another ``n``.
    """
    required = ("vectors", "names")
    found = read_npz(path, required, _OPTIONAL, strings=("names",), name="bank")
    vectors = found["vectors"]
    if vectors.ndim == 2 and vectors.shape[1] != features:
        raise DataError(
            f"{path}: vectors: expected shape [m, {features}], as many columns as the head of "
            f"the network reads features, got {list(vectors.shape)}"
        )
    try:
        return make_bank([str(name) for name in found.pop("names")], **found)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def save_bank(path: str | Path, bank: Bank) -> None:
    """Writes a bank as an ``.npz`` file that :func:`load_bank` reads.

    Raises:
      ValueError: the name does not end in ``.npz``.
    """
    if Path(path).suffix != ".npz":
        raise ValueError(f"path: expected one ending in .npz, got {str(path)!r}")
    keys = ("vectors", *_OPTIONAL)
    arrays: dict[str, Any] = {key: np.asarray(getattr(bank, key)) for key in keys}
    write_npz(path, {"names": np.asarray(bank.names), **arrays})
