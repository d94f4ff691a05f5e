"""Integrated Gradients of inputs, as a transform of any JAX function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.axes import wide
from jaxunlearn.attribution.baselines import Baseline, resolve, zero
from jaxunlearn.attribution.parts import (
    Integrated,
    Part,
    averaged,
    check_chunk,
    finish,
    floats,
    one_array,
)
from jaxunlearn.attribution.paths import Nodes, between, integrate, nodes_of
from jaxunlearn.attribution.quadrature import DEFAULT, Quadrature, check
from jaxunlearn.attribution.scores import Score, Target, scorer
from jaxunlearn.attribution.seeds import argmax

__all__ = ["integrated_gradients", "straight"]


def integrated_gradients(
    fn: Callable[[Any, jax.Array], jax.Array],
    quadrature: Quadrature = DEFAULT,
    *,
    chunk: int = 1,
    complete: bool = False,
) -> Callable[..., Integrated]:
    """The function that attributes an output of ``fn`` to its input.

    With the target F and a baseline x':

        a_i = (x_i - x'_i) * integral over t in [0, 1] of dF/dx_i (x' + t (x - x'))

    The parts add up, ``sum(a) = F(x) - F(x')``, up to the error of the quadrature,
    which is returned as ``gap``. For a smooth ``fn``, 32 nodes leave rounding. Along a
    network of relu the gradient is a step function with more steps than nodes, and
    the gap falls as 1/n only, whatever the quadrature: some percent at 32 nodes.

    A forward and a backward pass are made per node and baseline, and a forward pass for
    ``x`` and each baseline, in one ``scan``: memory is that of ``chunk`` nodes. Nothing is
    jitted here. The result composes with ``jit``, ``vmap`` and ``grad``, works inside
    ``shard_map``, and keeps arrays that are sharded over the examples where they are.
    Examples must not influence each other (batch norm in inference mode).

    For a part of the input (the words of an answer), let the baseline equal ``x``
    elsewhere: what does not move has no attribution. For embeddings, let ``x`` be the
    embeddings, or name them and see
    :func:`~jaxunlearn.attribution.layers.layer_integrated_gradients`.

    Args:
      fn: ``(variables, x [B, ...]) -> logits [B, K]``, in inference mode;
        ``variables`` is any pytree of arrays.
      quadrature: nodes and weights (:mod:`jaxunlearn.attribution.quadrature`).
      chunk: nodes taken together, as a batch ``[B * chunk, ...]``. More than 1 pays on
        accelerators that a batch does not fill.
      complete: closes the gap by the least movement of the borders between the
        intervals that the nodes stand for (:mod:`jaxunlearn.attribution.paths`). The
        parts then add up; they are not more exact, and ``plain_gap`` still says how
        exact the quadrature is.

    Returns:
      ``attribute(variables, x, target=seeds.argmax(), baseline=baselines.zero()) ->
      Integrated``, with a :data:`~jaxunlearn.attribution.scores.Target` and a
      :data:`~jaxunlearn.attribution.baselines.Baseline`. It raises ``TypeError`` if ``x``
      is not one array of floats, and ``ValueError`` if output, target or baseline have
      a wrong shape.

    Raises:
      TypeError, ValueError: if ``quadrature`` or ``chunk`` is malformed.

    Source: Sundararajan et al. 2017, eq. 1; completion is our own.
    """
    quadrature, chunk = check(quadrature), check_chunk(chunk)

    def attribute(
        variables: Any,
        x: jax.Array,
        target: Target = argmax(),  # noqa: B008
        baseline: Baseline = zero(),  # noqa: B008
    ) -> Integrated:
        x = floats(x)

        def outputs(points: jax.Array) -> jax.Array:
            return fn(variables, points)

        logits = one_array(outputs(x))
        score = scorer(target, logits)
        end = score(logits)[:, 0]

        def one(start: jax.Array) -> Part:
            return straight(
                outputs, score, start, x, end, quadrature, chunk=chunk, complete=complete
            )

        return finish(averaged(one, resolve(baseline, x), x), end, logits)

    return attribute


def straight(
    outputs: Callable[[jax.Array], jax.Array],
    score: Score,
    start: jax.Array,
    stop: jax.Array,
    end: jax.Array,
    quadrature: Quadrature,
    *,
    chunk: int,
    complete: bool,
) -> Part:
    """Integrated gradients along the straight line between two values.

    Args:
      outputs: from points ``[B * c, ...]`` to outputs.
      score: from outputs to ``[B, c]``.
      start, stop: ``[B, ...]``, the ends of the line.
      end: ``[B]``, the score at ``stop``.
      quadrature, chunk, complete: see :func:`integrated_gradients`.
    """
    dtype = wide(stop.dtype)
    change = stop.astype(dtype) - start.astype(dtype)
    first = score(outputs(start))[:, 0]

    def contributions(part: Nodes) -> jax.Array:
        points = between(start, change, part.at, stop.dtype)
        slopes = jax.grad(lambda z: jnp.sum(score(outputs(z))))(points)
        slopes = slopes.reshape(change.shape[0], -1, *change.shape[1:])
        return slopes.astype(dtype) * change[:, None]

    total, gap = integrate(
        contributions,
        nodes_of(quadrature, dtype),
        (end - first).astype(dtype),
        change.shape,
        chunk=chunk,
        complete=complete,
    )
    return Part(total, gap, first)
