"""Which part of a network is fine-tuned."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.attribution import structure
from jaxunlearn.training.descent import trained
from jaxunlearn.types import Apply, Variables

__all__ = ["PARTS", "check_part", "paths_of"]

PARTS = ("head", "last_block", "all")


def check_part(part: str | tuple[str, ...]) -> None:
    """Raises ``ValueError`` for what is neither one of :data:`PARTS` nor a tuple of patterns."""
    known = part in PARTS if isinstance(part, str) else bool(part) and _are_patterns(part)
    if not known:
        raise ValueError(
            f"train: expected one of {', '.join(PARTS)} or a tuple of regular expressions, "
            f"got {part!r}"
        )


def _are_patterns(part: Any) -> bool:
    try:
        return isinstance(part, tuple) and all(re.compile(pattern) for pattern in part)
    except (re.error, TypeError):
        return False


def paths_of(
    part: str | tuple[str, ...], apply: Apply, variables: Variables, shape: Sequence[int]
) -> frozenset[str]:
    """Key paths of the leaves of a part, joined by ``/``.

    ``"head"``: kernel and bias of the last linear unit. ``"last_block"``: these, and all
    parameters under the same top-level name as the unit before it
    (``params/stage3_block1/...``). ``"all"``: every parameter. Otherwise those
    in whose path one of the regular expressions is found.

    Args:
      apply: ``(variables, x) -> logits [B, K]``.
      variables: arrays, or their shapes and dtypes.
      shape: of one input.

    Raises:
      ValueError: no parameter belongs to the part.
    """
    prefix = "" if trained(variables) is variables else "params/"
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    paths = [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in leaves]
    paths = [path for path in paths if path.startswith(prefix)]
    if part == "all":
        return frozenset(paths)
    if isinstance(part, tuple):
        found = {path for path in paths if any(re.search(pattern, path) for pattern in part)}
    else:
        x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        units = structure(apply, variables, x)
        head = units[-1]
        found = {path for path in paths if path in (head.kernel, head.bias)}
        before = next((u.kernel for u in reversed(units) if u.kernel != head.kernel), None)
        if part == "last_block" and before is not None:
            block = prefix + before.removeprefix(prefix).split("/")[0]
            found |= {path for path in paths if path == block or path.startswith(f"{block}/")}
    if not found:
        raise ValueError(f"train: expected a part with parameters among {paths}, got {part!r}")
    return frozenset(found)
