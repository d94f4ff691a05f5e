"""Low-rank adapters: what is trained in the place of kernels, over any tree of parameters.

A kernel ``W [in, out]`` becomes ``W + alpha / rank A B`` with ``A [in, rank]`` and
``B [rank, out]``; ``W`` stays as it is, so that it serves as the original, too, without a copy.

Source: Hu et al., arXiv 2106.09685.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.core.errors import ConfigError, expect_at_least, expect_counts, expect_patterns
from jaxunlearn.core.trees import named_leaves, path_name
from jaxunlearn.core.types import Key
from jaxunlearn.jaxprs.program import wide

QUERY_VALUE = (r"(^|/)(query|value)/kernel$",)
"""Kernels of queries and values: those that the paper adapts."""


class Adapters(NamedTuple):
    """Low-rank factors in trees like the parameters, ``None`` where a leaf has none.

    A path repeats that of the kernel behind ``a`` or ``b``, so that rules for where a kernel
    lies on a mesh, and patterns of what is trained, hold for its factors.

    Attributes:
      a: ``[in, rank]``, of at least 32 bits whatever the kernel has.
      b: ``[rank, out]``, likewise.
    """

    a: Any
    b: Any


class Lora(NamedTuple):
    """Size and place of low-rank adapters; hashable. :func:`make_lora` checks what it is given.

    Attributes:
      rank: ``r`` of every adapter.
      alpha: the adapters' product is added ``alpha / r`` times.
      on: regular expressions, found in the paths of the kernels that have an adapter, as those
        are inside the trained part, ``blocks_0/attention/query/kernel``; arrays of another
        rank than 2 have none.
    """

    rank: int
    alpha: float
    on: tuple[str, ...] = QUERY_VALUE

    def start(self, params: Any, key: Key) -> Adapters:
        """Draws adapters: ``A`` normal with variance ``1 / in``, ``B`` zero.

        The network is thus the same at the start, bit for bit.

        Raises:
          ConfigError: no kernel is adapted.
        """
        chosen = [
            path
            for path, leaf in named_leaves(params).items()
            if jnp.ndim(leaf) == 2 and any(re.search(pattern, path) for pattern in self.on)
        ]
        if not chosen:
            kernels = [path for path, leaf in named_leaves(params).items() if jnp.ndim(leaf) == 2]
            raise ConfigError(
                f"lora_on: expected patterns found in some of {kernels}, got {list(self.on)}"
            )
        keys = {path: jax.random.fold_in(key, 1 + place) for place, path in enumerate(chosen)}

        def down(path: Sequence[Any], leaf: jax.Array) -> jax.Array | None:
            own = keys.get(path_name(path))
            if own is None:
                return None
            size = (leaf.shape[0], self.rank)
            return jax.random.normal(own, size, wide(leaf.dtype)) * leaf.shape[0] ** -0.5

        def up(path: Sequence[Any], leaf: jax.Array) -> jax.Array | None:
            if path_name(path) not in keys:
                return None
            return jnp.zeros((self.rank, leaf.shape[1]), wide(leaf.dtype))

        along = jax.tree_util.tree_map_with_path
        return Adapters(along(down, params), along(up, params))

    def merge(self, params: Any, adapters: Adapters) -> Any:
        """Returns ``W + alpha / r A B``, of the dtype of ``W``, and all else as it is."""
        scale = self.alpha / self.rank

        def one(leaf: jax.Array, a: jax.Array | None, b: jax.Array | None) -> jax.Array:
            if a is None or b is None:
                return leaf
            return (leaf.astype(a.dtype) + scale * (a @ b)).astype(leaf.dtype)

        return jax.tree.map(one, params, adapters.a, adapters.b)


def make_lora(
    rank: int | None, alpha: float | None = None, on: tuple[str, ...] = QUERY_VALUE
) -> Lora | None:
    """Makes the adapters that a method's arguments ask for; ``None`` for no rank.

    Args:
      alpha: default ``2 rank``.

    Raises:
      ValueError: a rank below 1, a negative ``alpha``, no pattern or one that is none.
    """
    if rank is None:
        return None
    expect_counts(lora=rank)
    alpha = 2.0 * rank if alpha is None else alpha
    expect_at_least(0, lora_alpha=alpha)
    expect_patterns((), lora_on=on)
    return Lora(rank, float(alpha), tuple(on))
