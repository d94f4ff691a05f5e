"""What concept poisoning refuses before any work.

Which part of a network is fine-tuned.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.attribution import structure
from jaxunlearn.concepts import Concepts, check_bank
from jaxunlearn.core.types import Apply, Variables
from jaxunlearn.methods.concept_poison.poison import LABELS, PLACES
from jaxunlearn.methods.shares import check_share
from jaxunlearn.training.descent import trained

STATISTICS = ("frozen", "moving")


def words(place: str, label: str, statistics: str) -> None:
    """Raises ``ValueError`` for a word that is not among the choices."""
    choices = {"place": PLACES, "label": LABELS, "statistics": STATISTICS}
    given = {"place": place, "label": label, "statistics": statistics}
    for name, value in given.items():
        if value not in choices[name]:
            raise ValueError(f"{name}: expected one of {', '.join(choices[name])}, got {value!r}")


def numbers(
    patches: int, place: str, data: float, forget_weight: float | None, patch: float | None
) -> None:
    """Raises ``ValueError`` for a number out of its range."""
    if patches < 1 or (patches > 1 and place != "top"):
        raise ValueError(f"patches: expected 1, or more with place 'top', got {patches}")
    check_share(data, "data")
    if forget_weight is not None and not 0 <= forget_weight < math.inf:
        raise ValueError(f"forget_weight: expected a number >= 0, got {forget_weight}")
    if patch is not None:
        check_share(patch, "patch", " of the image's side (a larger patch does not fit)")


def inference(bank: str, concepts: int, examples: int) -> None:
    """Raises ``ValueError`` for concepts that cannot be inferred from any network."""
    check_bank(bank)
    for name, value, least in (("concepts", concepts, 2), ("examples", examples, 1)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")


def fitting(inferred: Concepts, classes: int, features: int) -> None:
    """Raises ``ValueError`` for concepts that were inferred from another network."""
    got = (inferred.values.shape[0], inferred.bank.vectors.shape[1])
    if got != (classes, features):
        raise ValueError(
            f"inferred: expected concepts of {classes} classes and {features} features, "
            f"got {got[0]} and {got[1]}"
        )


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
