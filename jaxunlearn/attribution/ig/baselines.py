"""Baselines: what an input is compared with, made from the input ``x [B, ...]``.

A baseline is an array or a function of ``x``. The functions made here are pytrees, so
that they can be arguments of a jitted function. As an array, and as what a function
returns, a baseline has one of the shapes

* ``[]``: one number everywhere;
* ``[...]``: one example, for all of ``x``;
* ``[B, ...]`` or ``[1, ...]``: one for each example;
* ``[n, B, ...]`` or ``[n, 1, ...]``: n of them, over which attributions are averaged.

Of an input that is a pytree, a baseline is one for every leaf of floats, or a pytree of
baselines, with ``None`` for leaves that stay as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution.starts import as_array
from jaxunlearn.core.errors import brief, is_count, is_number

Baseline = Callable[[jax.Array], jax.Array] | jax.typing.ArrayLike
"""An array, or a function from ``x [B, ...]`` to one, of a shape named above."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Zero:
    """See :func:`zero`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the baseline ``[B, ...]``."""
        return jnp.zeros_like(x)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noise:
    """See :func:`noise`."""

    key: jax.Array
    scale: jax.typing.ArrayLike
    mean: jax.typing.ArrayLike
    n: int = field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        """Draws the baselines ``[n, B, ...]``."""
        drawn = jax.random.normal(self.key, (self.n, *x.shape), x.dtype)
        return jnp.asarray(self.mean, x.dtype) + jnp.asarray(self.scale, x.dtype) * drawn


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampled:
    """See :func:`sampled`."""

    key: jax.Array
    examples: jax.Array
    n: int = field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        """Draws the baselines ``[n, B, ...]``."""
        rows = jax.random.randint(self.key, (self.n, x.shape[0]), 0, len(self.examples))
        return self.examples[rows]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blurred:
    """See :func:`blurred`."""

    sigma: float = field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the baseline ``[B, H, W, C]``."""
        if x.ndim != 4:
            raise ValueError(f"blurred: expected images [B, H, W, C], got shape {x.shape}")
        rows, columns = (jnp.asarray(_blur(n, self.sigma), x.dtype) for n in x.shape[1:3])
        return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x)


def zero() -> Zero:
    """Makes zeros: black, or the mean image where inputs are normalised."""
    return Zero()


def mean(examples: jax.typing.ArrayLike) -> jax.Array:
    """Returns the mean ``[...]`` of examples ``[N, ...]``: one baseline for all."""
    return jnp.mean(as_array("examples", examples), axis=0)


def several(examples: jax.typing.ArrayLike) -> jax.Array:
    """Returns ``[n, 1, ...]``: each of ``[n, ...]`` is a baseline for all; results are averaged.

    With examples of the training set this is Expected Gradients without its sampling; with it,
    :func:`sampled`.

    Source: Erion et al. 2021 (Expected Gradients).
    """
    return as_array("examples", examples)[:, None]


def sampled(key: jax.Array, examples: jax.typing.ArrayLike, n: int = 16) -> Sampled:
    """Draws n of some examples as baselines, anew for each example of ``x``: Expected Gradients.

    The mean of integrated gradients over baselines of a data set, estimated from a sample. Each
    path is integrated, so that parts add up to the score minus the mean score of the sample:
    ``quadrature.automatic(4)`` spends the gradients on baselines rather than nodes.
    Of a pytree, one for each leaf with the same key draws the same rows of all. Inside
    ``shard_map`` every shard draws alike, unless each is given a key of its own.

    Args:
      key: the same key draws the same baselines.
      examples: ``[N, ...]``, of the shape of those of ``x``.
      n: how many, with replacement.

    Raises:
      ValueError: if ``n`` is below 1, or there are no examples.

    Source: Erion et al. 2021 (Expected Gradients), with the integral along a path not sampled.
    """
    if not is_count(n):
        raise ValueError(f"sampled: expected n of at least 1, got {brief(n)}")
    found = as_array("examples", examples)
    if not found.ndim or not len(found):
        raise ValueError(f"sampled: expected examples [N, ...], got shape {found.shape}")
    return Sampled(key=key, examples=found, n=n)


def noise(
    key: jax.Array,
    n: int = 8,
    *,
    scale: jax.typing.ArrayLike = 1.0,
    mean: jax.typing.ArrayLike = 0.0,
) -> Noise:
    """Makes n baselines ``mean + scale * normal``, drawn for each example and averaged over.

    Inside ``shard_map`` every shard draws alike, unless each is given a key of its own.

    Args:
      key: the same key draws the same baselines.
      n: how many.
      scale: standard deviation.
      mean: a number, or an array that broadcasts against ``x`` at equal rank.

    Raises:
      ValueError: if ``n`` is below 1.
    """
    if not is_count(n):
        raise ValueError(f"noise: expected n of at least 1, got {brief(n)}")
    scales, means = (as_array(m, v, finite=True) for m, v in (("scale", scale), ("mean", mean)))
    return Noise(key=key, scale=scales, mean=means, n=n)


def blurred(sigma: float) -> Blurred:
    """Blurs images ``[B, H, W, C]`` by a Gaussian: what remains is where, not what.

    Behind the border of the image nothing is assumed: the kernel is cut there and
    normalised again, so that a constant image stays as it is.

    Args:
      sigma: standard deviation in pixels.

    Raises:
      ValueError: if ``sigma`` is not positive; when applied, if ``x`` has another rank.

    Source: Fong and Vedaldi 2017 (blur as the absence of a feature).
    """
    if not is_number(sigma) or sigma <= 0:
        raise ValueError(f"blurred: expected a positive sigma, got {brief(sigma)}")
    return Blurred(sigma=float(sigma))


def resolve_all(
    baseline: Any, x: Any, moves: Sequence[bool] | None = None
) -> list[jax.Array | None]:
    """Returns the baselines of each leaf of ``x``, ``[n or 1, B or 1, ...]``; ``None``: it stays.

    Args:
      baseline: a pytree like ``x`` of :data:`Baseline`, with ``None`` for what stays; or one,
        for every leaf of floats (drawn anew for each), or for the only leaf.
      x: a pytree of arrays.
      moves: for each leaf, whether it can move; default: all can.

    Raises:
      TypeError, ValueError: as :func:`resolve`; a baseline of what does not move; other
        numbers of baselines for other leaves; one where there is no leaf of floats, but several.
    """
    leaves, structure = jax.tree.leaves(x), cast(Any, jax.tree.structure(x))
    try:
        parts = structure.flatten_up_to(baseline)
    except ValueError:
        parts = _one_for_all(baseline, leaves, structure)
    if all(part is None for part in parts):
        raise ValueError("baseline: expected one for some leaf of x, got None")
    movable = moves or [True] * len(leaves)
    for part, leaf, own in zip(parts, leaves, movable, strict=True):
        if part is not None and not own:
            raise TypeError(f"baseline: expected None for a leaf of {leaf.dtype}, which stays")
    pairs = zip(parts, leaves, strict=True)
    found = [part if part is None else resolve(part, leaf) for part, leaf in pairs]
    counts = {len(part) for part in found if part is not None} - {1}
    if len(counts) > 1:
        raise ValueError(f"baseline: expected as many for each leaf, got {sorted(counts)}")
    return found


def _one_for_all(baseline: Any, leaves: list[jax.Array], structure: Any) -> list[Any]:
    if not (callable(baseline) or jax.tree_util.all_leaves([baseline])):
        raise ValueError(f"baseline: expected one or a pytree like x {structure}, got {baseline}")
    floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    if not any(floats) and len(leaves) > 1:
        raise ValueError(
            "baseline: expected a pytree like x, with None for what stays: x holds no floats"
        )
    parts = [baseline if own or not any(floats) else None for own in floats]
    if isinstance(baseline, Noise) and sum(floats) > 1:
        keys = jax.random.split(baseline.key, len(parts))
        return [p if p is None else replace(p, key=k) for p, k in zip(parts, keys, strict=True)]
    return parts


def resolve(baseline: Any, x: jax.Array) -> jax.Array:
    """Returns baselines ``[n, B or 1, ...]`` of the dtype of ``x``.

    Raises:
      TypeError: if ``x`` holds integers and the baseline does not.
      ValueError: if the shape is none of those of a :data:`Baseline`.
    """
    found = jnp.asarray(baseline(x) if callable(baseline) else baseline)
    if jnp.issubdtype(x.dtype, jnp.integer) and not jnp.issubdtype(found.dtype, jnp.integer):
        raise TypeError(f"baseline: expected integers as in x, got {found.dtype}")
    found = found.astype(x.dtype)
    if found.ndim == 0:
        return jnp.broadcast_to(found, (1, 1, *x.shape[1:]))
    wanted = x.shape[1:]
    if found.ndim == x.ndim - 1 and found.shape == wanted:
        return found[None, None]
    if found.ndim == x.ndim and found.shape[1:] == wanted and found.shape[0] in (1, x.shape[0]):
        return found[None]
    rows = found.shape[1:2]
    if found.ndim == x.ndim + 1 and found.shape[2:] == wanted and rows in ((1,), x.shape[:1]):
        return found
    raise ValueError(
        f"baseline: expected one for each example {x.shape}, one for all {wanted} or "
        f"several (n, {x.shape[0]} or 1, *{wanted}), got shape {found.shape}"
    )


def _blur(n: int, sigma: float) -> np.ndarray:
    """Returns ``[n, n]``: a Gaussian filter along an axis of that length, rows of sum 1."""
    apart = np.subtract.outer(np.arange(n), np.arange(n))
    kernel = np.exp(-0.5 * (apart / sigma) ** 2)
    return kernel / kernel.sum(axis=1, keepdims=True)
