"""The methods: one file each, and one row here."""

import importlib
import inspect
from collections.abc import Callable
from typing import NamedTuple

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.types import Unlearner

__all__ = ["METHODS", "Method", "load_method", "method_options"]


class Method(NamedTuple):
    """A row of the registry.

    Attributes:
      target: ``"module:factory"``; the factory takes a model and keyword arguments.
      summary: one line for ``jaxunlearn list``.
      gan: whether it is for GANs; else for classifiers.
    """

    target: str
    summary: str
    gan: bool = False


METHODS: dict[str, Method] = {
    "retrain": Method("jaxunlearn.methods.retrain:retrain", "train from scratch on the retain set"),
    "finetune": Method("jaxunlearn.methods.finetune:finetune", "fine-tune on the retain set"),
    "gradient_ascent": Method(
        "jaxunlearn.methods.gradient_ascent:gradient_ascent", "climb the loss of the forget set"
    ),
    "random_label": Method(
        "jaxunlearn.methods.random_label:random_label",
        "fine-tune with wrong labels on the forget set",
    ),
    "neuron_path": Method(
        "jaxunlearn.methods.neuron_path:neuron_path",
        "zero the neurons most relevant to a class, found on unseen images (paper 1)",
    ),
    "concept_poison": Method(
        "jaxunlearn.methods.concept_poison:concept_poison",
        "fine-tune on copies with another class's concept and label (paper 2)",
    ),
    "cascade": Method(
        "jaxunlearn.methods.cascade:cascade",
        "substitutes for the generator, a fake label for the discriminator (paper 3)",
        gan=True,
    ),
    "adapt_unlearn": Method(
        "jaxunlearn.methods.adapt_unlearn:adapt_unlearn",
        "away from a GAN adapted to the class, on generated images (Adapt then Unlearn)",
        gan=True,
    ),
    "discriminator_ascent": Method(
        "jaxunlearn.methods.discriminator_ascent:discriminator_ascent",
        "climb the discriminator's loss on the forget set",
        gan=True,
    ),
    "gan_retrain": Method(
        "jaxunlearn.methods.gan_retrain:gan_retrain",
        "train both networks from scratch on the retain set",
        gan=True,
    ),
    "gan_finetune": Method(
        "jaxunlearn.methods.gan_retrain:gan_finetune", "go on learning on the retain set", gan=True
    ),
}


def load_method(name: str) -> Callable[..., Unlearner]:
    """The factory of a registered method; :class:`ConfigError` for an unknown name."""
    if name not in METHODS:
        raise ConfigError(f"methods: expected one of {sorted(METHODS)}, got {name!r}")
    module, _, factory = METHODS[name].target.partition(":")
    return getattr(importlib.import_module(module), factory)


def method_options(name: str) -> dict[str, inspect.Parameter]:
    """The keyword arguments that a method's factory takes, by name."""
    parameters = inspect.signature(load_method(name)).parameters
    return {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
