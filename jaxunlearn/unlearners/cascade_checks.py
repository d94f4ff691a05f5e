"""What cascaded unlearning refuses, before any work is done."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxunlearn.latents import SUBSTITUTES, Guide, check_guide
from jaxunlearn.latents.inversion import SPACES
from jaxunlearn.types import Gan
from jaxunlearn.unlearners.fake_labels import FAKE_LABELS

__all__ = ["KINDS", "MODES", "check_cascade"]

KINDS = ("class", "items")
MODES = (
    "cascade",
    "unlearn_then_learn",
    "learn_only",
    "generator_only",
    "discriminator_only",
)
FORMS = ("image", "latent")


def check_cascade(gan: Gan, guide: Guide, options: Mapping[str, Any]) -> None:
    """Raises :class:`ValueError` for options out of range, or that do not go together.

    Args:
      options: arguments of :func:`jaxunlearn.cascade` by name, ``label`` resolved.
    """
    if not isinstance(gan, Gan):
        raise TypeError(f"gan: expected a Gan, got {type(gan).__name__}; build_gan makes one")
    check_guide(guide, gan)
    words: dict[str, Sequence[str]] = {
        "kind": KINDS,
        "mode": MODES,
        "substitute": SUBSTITUTES,
        "form": FORMS,
        "label": FAKE_LABELS,
        "space": SPACES,
    }
    for name, allowed in words.items():
        if options[name] not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, got {options[name]!r}")
    whole = ("horizon", "pool", "latents", "references", "inversion_steps", "r1_every")
    for name in whole:
        if type(options[name]) is not int or options[name] < 1:
            raise ValueError(f"{name}: expected a positive number, got {options[name]!r}")
    for name in ("strength", "label_strength", "features", "neighbourhood", "r1"):
        if not options[name] >= 0:
            raise ValueError(f"{name}: expected a number of 0 or more, got {options[name]!r}")
    for name, low, high in (("soft", 0, 1), ("ema", 0, 1)):
        if not low <= options[name] <= high:
            raise ValueError(f"{name}: expected a number from 0 to 1, got {options[name]!r}")
    ratio, few = options["ratio"], options["few"]
    if (
        not isinstance(ratio, tuple | list)
        or len(ratio) != 2
        or any(type(n) is not int or n < 1 for n in ratio)
    ):
        raise ValueError(f"ratio: expected two positive numbers, got {ratio!r}")
    if few is not None and (type(few) is not int or few < 1):
        raise ValueError(f"few: expected a positive number or None, got {few!r}")
    if options["latents"] > options["pool"] and options["kind"] == "class":
        raise ValueError(
            f"latents: expected at most pool = {options['pool']}, got {options['latents']}"
        )
    if options["kind"] == "class" and options["substitute"] == "same_class_nn":
        raise ValueError(
            "substitute: expected another than 'same_class_nn' for a class, of which nothing "
            "is retained"
        )
    asks = options["substitute"] == "projection" or (
        options["substitute"] == "truncation" and options["space"] == "z"
    )
    if gan.num_classes and options["kind"] == "class" and asks:
        raise ValueError(
            "substitute: expected another for a conditional generator, which would be asked for "
            f"the class itself, got {options['substitute']!r}"
        )
    if options["space"] == "w" and not gan.maps:
        raise ValueError("space: expected 'z' for a generator without a mapping network, got 'w'")
