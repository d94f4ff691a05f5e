"""Whether a network fits its data, found out before anything is computed."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.errors import ConfigError
from jaxunlearn.types import Model, Variables

__all__ = ["check_model"]


def check_model(
    model: Model,
    input_shape: Sequence[int],
    num_classes: int | None = None,
    variables: Variables | None = None,
    labels: jax.Array | None = None,
) -> int:
    """Whether a model maps images to logits; nothing is computed.

    Args:
      model: the model.
      input_shape: shape of one example.
      num_classes: ``K``; ``None`` accepts any.
      variables: arrays or ``jax.ShapeDtypeStruct``; ``None`` for those that the
        model would draw.

      labels: ``[N]``; where given, ``K`` must be large enough for them.

    Returns:
      ``K``.

    Raises:
      ConfigError: if the network refuses such inputs, its output is not
        ``[B, K]``, or training changes the structure of its variables.
    """
    batch = 2
    x = jax.ShapeDtypeStruct((batch, *input_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    if variables is None:
        variables = jax.eval_shape(model.init, key)
    try:
        logits = jax.eval_shape(model.apply, variables, x)
        trained, after = jax.eval_shape(model.apply_train, variables, x, key)
    except ConfigError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError) as error:
        raise ConfigError(
            f"expected a network for inputs of shape {x.shape}, got {type(error).__name__}: {error}"
        ) from error
    wanted = f"[{batch}, {'K' if num_classes is None else num_classes}]"
    for mode, output in (("inference", logits), ("training", trained)):
        shape = getattr(output, "shape", None)
        if shape is None:
            got: Any = type(output).__name__
        elif len(shape) == 2 and shape[0] == batch and num_classes in (None, shape[1]):
            got = None
        else:
            got = list(shape)
        if got is not None:
            raise ConfigError(
                f"expected logits of shape [B, K] = {wanted} for inputs of shape "
                f"{list(x.shape)}, got {got} in {mode} mode"
            )
    if _form(variables) != _form(after):
        raise ConfigError(
            "expected apply_train to return variables of the structure, shapes and dtypes "
            "that it was given, got others"
        )
    classes = int(logits.shape[1])
    if labels is not None and int(jnp.max(labels)) >= classes:
        raise ConfigError(
            f"model: expected logits for labels up to {int(jnp.max(labels))}, got {classes} classes"
        )
    return classes


def _form(variables: Variables) -> Any:
    leaves, structure = jax.tree.flatten(variables)
    return structure, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
