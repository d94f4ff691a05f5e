"""What relevance is absorbed on its way, and by what."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.jaxprs.axes import Axis, per_index


class Loss(NamedTuple):
    """What a rule absorbs, element by element of the outputs of its step.

    Attributes:
      bias: by the bias, batch norm's shift included.
      stabilizer: by what keeps a denominator from zero.
      dead: by units without any contribution to share it among (a window of zeros).
    """

    bias: jax.Array
    stabilizer: jax.Array
    dead: jax.Array


class Absorbed(NamedTuple):
    """An entry of the ledger: the relevance of a step's outputs minus that of its inputs.

    Attributes:
      bias, stabilizer, dead: ``[B]``, see :class:`Loss`.
      other: ``[B]``, the measured rest: what fell on constants (padding, a class token) or
        was absorbed by a rule that does not account for it; zero up to rounding elsewhere.
    """

    bias: jax.Array
    stabilizer: jax.Array
    dead: jax.Array
    other: jax.Array

    @property
    def total(self) -> jax.Array:
        """``[B]``: the whole difference."""
        return self.bias + self.stabilizer + self.dead + self.other


def no_loss(like: jax.Array) -> Loss:
    """Nothing absorbed."""
    nothing = jnp.zeros_like(like)
    return Loss(nothing, nothing, nothing)


def entry(
    above: list[tuple[jax.Array, Axis | None]],
    below: list[tuple[jax.Array, Axis | None]],
    loss: Loss | None,
) -> Absorbed:
    """The entry of one step.

    Args:
      above: relevance of each output, with the axis of the examples; ``None`` for one example.
      below: the same of each input.
      loss: shaped like the first output; ``None`` if the rule does not say.
    """
    gap = _total(above) - _total(below)
    nothing = jnp.zeros_like(gap)
    if loss is None:
        return Absorbed(nothing, nothing, nothing, gap)
    bias, stabilizer, dead = (per_index(cause, above[0][1]) for cause in loss)
    return Absorbed(bias, stabilizer, dead, gap - bias - stabilizer - dead)


def _total(parts: list[tuple[jax.Array, Axis | None]]) -> jax.Array:
    return jnp.sum(jnp.stack([per_index(*one) for one in parts]), axis=0)
