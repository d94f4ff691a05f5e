"""What can be wrong with the arguments of ``neuron_path``, found before any work."""

import re
from collections.abc import Callable

import jax

from jaxunlearn.attribution import starts as seeds
from jaxunlearn.attribution.lrp import Seed
from jaxunlearn.methods.neuron_path.budget import SCORES, Budget
from jaxunlearn.methods.neuron_path.weights import EDITS, WEIGHTS, Layer

SEEDS: dict[str, Callable[[jax.Array], Seed]] = {
    "argmax": lambda y: seeds.argmax(),
    "label": lambda y: seeds.label(y),
    "margin": lambda y: seeds.margin(y),
}
"""Labels ``[B]`` -> where relevance starts from."""

PUBLISHED = 80


def budget(neurons: int | None, share: float | None, cumulative: float | None) -> Budget:
    """The one budget that is given, or the published one."""
    given = {"neurons": neurons, "share": share, "cumulative": cumulative}
    asked = {kind: value for kind, value in given.items() if value is not None}
    if len(asked) > 1:
        shown = ", ".join(f"{kind}={value}" for kind, value in asked.items())
        raise ValueError(f"neurons, share, cumulative: expected at most one, got {shown}")
    if not asked:
        return Budget("neurons", PUBLISHED)
    kind, value = asked.popitem()
    if kind == "neurons" and value < 1:
        raise ValueError(f"neurons: expected a positive number, got {value}")
    if kind != "neurons" and not 0 < value <= 1:
        raise ValueError(f"{kind}: expected a number above 0, at most 1, got {value}")
    return Budget(kind, value)


def numbers(
    per_sample: int, samples: int, specificity: float, epsilon: float, scale: float, target: float
) -> None:
    """Whether each number is in its range."""
    for name, count in (("per_sample", per_sample), ("samples", samples)):
        if count < 1:
            raise ValueError(f"{name}: expected a positive number, got {count}")
    for name, value in (("specificity", specificity), ("epsilon", epsilon)):
        if not value >= 0:
            raise ValueError(f"{name}: expected a number >= 0, got {value}")
    if not scale > 0:
        raise ValueError(f"scale: expected a positive number, got {scale}")
    if not 0 <= target <= 1:
        raise ValueError(f"target: expected a number from 0 to 1, got {target}")


def words(
    layers: str | tuple[str, ...], score: str, seed: str, edit: str, weights: tuple[str, ...] | None
) -> None:
    """Whether each word is known, and each pattern one."""
    for name, word, known in (
        ("score", score, SCORES),
        ("seed", seed, tuple(SEEDS)),
        ("edit", edit, EDITS),
    ):
        if word not in known:
            raise ValueError(f"{name}: expected one of {known}, got {word!r}")
    if weights is not None and (not weights or set(weights) - set(WEIGHTS)):
        raise ValueError(f"weights: expected some of {WEIGHTS}, got {weights!r}")
    if layers in ("last", "all"):
        return
    if isinstance(layers, str) or not layers:
        raise ValueError(
            f"layers: expected 'last', 'all' or a tuple of regular expressions, got {layers!r}"
        )
    for pattern in layers:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"layers: expected regular expressions, got {pattern!r}: {error}"
            ) from None


def together(
    edit: str,
    scale: float,
    weights: tuple[str, ...] | None,
    biases: bool,
    calibrate: bool,
    guard: bool,
) -> None:
    """Whether arguments go with each other."""
    if edit == "scale" and scale == 1:
        raise ValueError("scale: expected another factor than 1 for edit='scale', got 1")
    if biases and weights is not None and "incoming" not in weights:
        raise ValueError(f"biases: expected weights with 'incoming', got {weights!r}")
    if guard and not calibrate:
        raise ValueError("guard: expected calibrate=True beside it, got False")


def width(layer: Layer, per_sample: int, asked: Budget) -> None:
    """Whether the last layer has as many neurons as are asked for."""
    most = max(per_sample, asked.value if asked.kind == "neurons" else 1)
    if most > layer.width:
        kernel = layer.read_by[0].kernel
        raise ValueError(
            f"per_sample, neurons: expected at most the {layer.width} inputs of {kernel}, "
            f"got {most}"
        )
