"""Starts and targets: what of the output is attributed, made from the logits ``[B, K]``.

A start is the relevance that propagation starts from; a target, of Integrated Gradients, may
also be a number that is evaluated on the way. Logits are meant, before any softmax. A start is
a pytree, so that it can be an argument of a jitted function.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.errors import brief, expect_flags
from jaxunlearn.jaxprs.program import wide


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ArgMax:
    """See :func:`argmax`."""

    times_logit: bool = field(default=False, metadata={"static": True})

    def __call__(self, logits: jax.Array) -> jax.Array:
        """Returns the start, ``[B, K]``."""
        return _one_hot(jnp.argmax(logits, axis=-1), logits, self.times_logit)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Label:
    """See :func:`label`."""

    y: jax.Array
    times_logit: bool = field(default=False, metadata={"static": True})

    def __call__(self, logits: jax.Array) -> jax.Array:
        """Returns the start, ``[B, K]``."""
        return _one_hot(_labels("label", self.y, logits), logits, self.times_logit)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Margin:
    """See :func:`margin`."""

    y: jax.Array
    times_logit: bool = field(default=False, metadata={"static": True})

    def __call__(self, logits: jax.Array) -> jax.Array:
        """Returns the start, ``[B, K]``."""
        y = _labels("margin", self.y, logits)
        others = jnp.where(jax.nn.one_hot(y, logits.shape[-1], dtype=bool), -jnp.inf, logits)
        rival = _one_hot(jnp.argmax(others, axis=-1), logits, self.times_logit)
        return _one_hot(y, logits, self.times_logit) - rival


def argmax(*, times_logit: bool = False) -> ArgMax:
    """Puts 1 on the largest logit (the first of equals), 0 elsewhere.

    Args:
      times_logit: the logit itself instead of 1.

    Source: arXiv 2410.23693 (with 1); Bach et al. 2015 (with the logit).
    """
    expect_flags(times_logit=times_logit)
    return ArgMax(times_logit=times_logit)


def as_array(name: str, value: Any, *, finite: bool = False) -> jax.Array:
    """Returns a value as an array.

    Args:
      name: of the argument, for the error.
      value: numbers in any form that JAX takes.
      finite: whether they have to be real ones, none of them infinite or NaN.

    Raises:
      TypeError: if they are none.
      ValueError: one is infinite or NaN.
    """
    try:
        if not isinstance(value, jax.Array) and np.asarray(value).dtype.kind in "USOMm":
            raise TypeError
        found = jnp.asarray(value)
        if finite and not any(jnp.issubdtype(found.dtype, k) for k in (jnp.floating, jnp.integer)):
            raise TypeError
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}: expected numbers, got {brief(value)}") from None
    if (
        finite
        and not isinstance(found, jax.core.Tracer)
        and not np.isfinite(np.asarray(found)).all()
    ):
        raise ValueError(f"{name}: expected finite numbers, got {brief(value)}")
    return found


def label(y: jax.typing.ArrayLike, *, times_logit: bool = False) -> Label:
    """Puts 1 on the logit of a class, 0 elsewhere.

    Args:
      y: ``int [B]``, or one class for all examples; of an output ``[B, T, K]`` ``int [B, T]``,
        or one class for all positions.
      times_logit: the logit itself instead of 1.

    Raises:
      TypeError: if ``y`` holds no integers.
      ValueError: when applied, if it has another shape or no class of the output. Under
        ``jit``, where a label is not known, what such an example gives is NaN.
    """
    expect_flags(times_logit=times_logit)
    return Label(y=_integers("y", as_array("y", y)), times_logit=times_logit)


def margin(y: jax.typing.ArrayLike, *, times_logit: bool = False) -> Margin:
    """Puts 1 on the logit of a class, -1 on the largest of the others, 0 elsewhere.

    What speaks for the class and against its best rival, rather than for both.

    Args:
      y: ``int [B]``, or one class for all examples.
      times_logit: the logits themselves instead of 1 and -1: the sum is their difference.

    Raises:
      TypeError, ValueError: as :func:`label`.

    Source: own; as a start of contrasts, Gu et al. 2018 (contrastive LRP).
    """
    expect_flags(times_logit=times_logit)
    return Margin(y=_integers("y", as_array("y", y)), times_logit=times_logit)


def _labels(name: str, y: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns labels of the shape of the logits but for their last axis.

    Raises:
      TypeError: if they are no integers.
      ValueError: if they have another shape, or a known one is no class.
    """
    wanted, classes = logits.shape[:-1], logits.shape[-1] if logits.ndim else 0
    if logits.ndim < 2:
        raise ValueError(f"{name}: expected an output [B, K] for labels, got shape {logits.shape}")
    _integers(name, jnp.asarray(y))
    if jnp.shape(y) not in ((), wanted):
        raise ValueError(
            f"{name}: expected one label or labels {[*wanted]}, got shape {jnp.shape(y)}"
        )
    if not isinstance(y, jax.core.Tracer):
        known = np.asarray(y)
        wrong = known[(known < 0) | (known >= classes)]
        if wrong.size:
            raise ValueError(f"{name}: expected labels from 0 to {classes - 1}, got {wrong[0]}")
    return jnp.broadcast_to(jnp.asarray(y), wanted)


def _integers(name: str, y: jax.Array) -> jax.Array:
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integers, got {y.dtype}")
    return y


def _one_hot(y: jax.Array, logits: jax.Array, times_logit: bool) -> jax.Array:
    """Returns 1 or the logit where the class is; NaN for what is no class, seen too late to raise.

    Zeros would be a relevance that says nothing and looks like one.
    """
    classes = logits.shape[-1]
    start = jax.nn.one_hot(y, classes, dtype=logits.dtype)
    known = jnp.expand_dims((y >= 0) & (y < classes), -1)
    start = jnp.where(known, start, jnp.nan)
    return start * logits if times_logit else start


Target = Callable[[jax.Array], jax.Array] | jax.typing.ArrayLike
"""What is attributed:

* ``int [B]``, or one integer: the logit of a class; of an output ``[B, T, K]`` ``int [B, T]``, or
  one integer: the sum over positions of these logits;
* a start of this module, or any function ``[B, K] -> [B, K]``: a
  weighted sum of the logits, with weights that are made once, from the output at ``x``;
* ``float [B, K]``: those weights themselves;
* a function ``[B, K] -> [B]``: evaluated anew at every point of the path.

An output ``[B]`` is attributed as it is, by default, or through a function ``[B] -> [B]``.
"""

Score = Callable[[jax.Array], jax.Array]
"""From outputs ``[B * c, K]``, the c points of an example side by side, to ``[B, c]``."""


def scorer(target: Any, output: jax.Array) -> Score:
    """Returns the scalar whose gradient is taken, in float32 or wider.

    Args:
      target: a :data:`Target`.
      output: ``[B, K]`` (or ``[B]`` or ``[B, ...]``), the output at ``x``.

    Raises:
      TypeError: if labels are no integers.
      ValueError: if the output has no axis of examples, or the target fits neither
        ``[B]`` nor its shape.
    """
    if output.ndim < 1:
        raise ValueError(f"fn: expected an output [B, K] or [B], got shape {output.shape}")
    batch, dtype = output.shape[0], wide(output.dtype)

    def points(outputs: jax.Array) -> jax.Array:
        return outputs.reshape(batch, -1, *output.shape[1:])

    if output.ndim == 1 and isinstance(target, ArgMax):
        return lambda outputs: points(outputs).astype(dtype)
    weights = _first(target, output)
    if callable(target) and weights.shape == (batch,):
        alongside = jax.vmap(target, in_axes=1, out_axes=1)
        return lambda outputs: alongside(points(outputs)).astype(dtype)
    if weights.shape != output.shape:
        raise ValueError(
            f"target: expected labels {[*output.shape[:-1]]}, a function to [{batch}], or weights "
            f"of the shape of the output {output.shape}, got shape {weights.shape}"
        )
    weights = weights.astype(dtype)[:, None]

    def weighted(outputs: jax.Array) -> jax.Array:
        # a masked logit may be infinite: one without weight is left out, not multiplied
        terms = jnp.where(weights == 0, 0, weights * points(outputs).astype(dtype))
        return jnp.sum(terms, axis=tuple(range(2, terms.ndim)))

    return weighted


def _first(target: Any, output: jax.Array) -> jax.Array:
    if callable(target):
        return jnp.asarray(target(output))
    values = jnp.asarray(target)
    return label(values)(output) if jnp.issubdtype(values.dtype, jnp.integer) else values
