"""Fresh variables of the built-in networks, in one random draw.

A draw for every kernel makes the initialisation of a small convolutional network
compile for seconds; one long draw, cut into kernels, compiles in a fraction of
one, and maps over keys.

The built-in networks by name.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.types import Key, Model, Variables
from jaxunlearn.models.adapt import functionalize
from jaxunlearn.models.classifiers import MLP, PaperCNN
from jaxunlearn.models.resnet import ResNet

# standard deviation of the standard normal distribution cut off at two
_CUT_DEVIATION = 0.87962566103423978


def lecun_normal(shapes: Variables, key: Key) -> Variables:
    """LeCun-normal kernels; ones for ``scale`` and ``var``, zeros for all else.

    A kernel is ``n / (sqrt(fan_in) 0.8796)``, where ``n`` is standard normal, cut off
    at two: its variance is ``1 / fan_in``, the product of all dimensions but the last.

    Args:
      shapes: nested dictionaries of arrays or ``jax.ShapeDtypeStruct``, by the names
        that Flax gives: ``kernel``, ``bias``, ``scale``, ``mean``, ``var``.
      key: consumed.

    Returns:
      Arrays of the same structure, shapes and dtypes.

    Source: LeCun et al. 1998, Efficient BackProp; the distribution is Flax's default.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    named = [(path[-1].key, leaf) for path, leaf in leaves]
    total = sum(math.prod(leaf.shape) for name, leaf in named if name == "kernel")
    noise = jax.random.truncated_normal(key, -2.0, 2.0, (total,), jnp.float32)
    values, start = [], 0
    for name, leaf in named:
        if name == "kernel":
            size = math.prod(leaf.shape)
            deviation = 1.0 / (_CUT_DEVIATION * math.sqrt(math.prod(leaf.shape[:-1])))
            value = deviation * noise[start : start + size].reshape(leaf.shape)
            start += size
        else:
            value = jnp.full(leaf.shape, 1.0 if name in ("scale", "var") else 0.0)
        values.append(value.astype(leaf.dtype))
    return jax.tree.unflatten(structure, values)


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
    (:func:`jaxunlearn.models.build.lecun_normal`).

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
