"""The built-in networks by name."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.errors import ConfigError
from jaxunlearn.models.cnn import PaperCNN
from jaxunlearn.models.functionalize import functionalize
from jaxunlearn.models.initial import lecun_normal
from jaxunlearn.models.mlp import MLP
from jaxunlearn.models.resnet import ResNet
from jaxunlearn.types import Model

__all__ = ["MODELS", "build"]

MODELS: Mapping[str, tuple[Callable[..., Any], str]] = {
    "mlp": (MLP, "dense layers with ReLU; for tabular data and the embedded digits"),
    "cnn": (PaperCNN, "two convolutions and two dense layers, the neuronal-path paper's for MNIST"),
    "resnet8": (
        functools.partial(ResNet, stages=(1, 1, 1), width=16),
        "residual network small enough for CPUs",
    ),
    "resnet18": (ResNet, "residual network with the CIFAR stem"),
}
"""Name -> (constructor ``input_shape, num_classes, *, options, rngs``, what it is)."""


def build(
    name: str,
    input_shape: Sequence[int],
    num_classes: int,
    options: Mapping[str, Any] | None = None,
) -> Model:
    """A built-in network as pure functions.

    Its final layer is named ``head``. ``init`` draws all kernels at once
    (:func:`jaxunlearn.models.initial.lecun_normal`).

    Args:
      name: one of ``MODELS``.
      input_shape: shape of one example.
      num_classes: ``K``.
      options: keyword arguments of the network's constructor.

    Returns:
      The model.

    Raises:
      ConfigError: for an unknown name or option, or a value that the network refuses.
    """
    if name not in MODELS:
        raise ConfigError(f"expected one of {', '.join(sorted(MODELS))} as model, got {name!r}")
    constructor, options = MODELS[name][0], dict(options or {})
    valid = _option_names(constructor)
    for option in options:
        if option not in valid:
            raise ConfigError(
                f"expected one of {', '.join(valid)} as option of {name}, got {option!r}"
            )
    shape = tuple(input_shape)
    try:
        jnp.dtype(
            options.get("dtype") or jnp.float32
        )  # which Flax would read no sooner than the first call
        model = functionalize(lambda rngs: constructor(shape, num_classes, **options, rngs=rngs))
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"expected options that fit {name}, got {options!r}: {error}") from error
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model._replace(init=functools.partial(lecun_normal, shapes))


def _option_names(constructor: Callable[..., Any]) -> list[str]:
    if isinstance(constructor, functools.partial):
        constructor = constructor.func
    # of __init__, since the metaclass of NNX hides the constructor's arguments
    parameters = inspect.signature(constructor.__init__).parameters.values()  # type: ignore[misc]
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "rngs"]
