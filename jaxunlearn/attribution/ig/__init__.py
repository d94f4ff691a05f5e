"""Integrated Gradients of inputs and layers, and conductance, as transforms of any JAX function.

Layer Integrated Gradients and conductance attribute to the units of a layer that the function
names. The former draw a straight line between two values of the layer, on which lie values
that no input may have; conductance follows the layer while the input goes straight.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.ig import integral
from jaxunlearn.attribution.ig.baselines import Baseline, resolve_all, zero
from jaxunlearn.attribution.ig.conductance import conductance
from jaxunlearn.attribution.ig.integral import Integrated, Nodes, Part
from jaxunlearn.attribution.ig.quadrature import DEFAULT, Quadrature, Rule, check, choose
from jaxunlearn.attribution.starts import Score, Target, argmax, scorer
from jaxunlearn.jaxprs.kinks import has_kinks
from jaxunlearn.jaxprs.replay import named

__all__ = ["conductance", "integrated_gradients", "layer_integrated_gradients"]


def integrated_gradients(
    fn: Callable[[Any, Any], jax.Array],
    quadrature: Rule = DEFAULT,
    *,
    chunk: int = 1,
    complete: bool = False,
) -> Callable[..., Integrated]:
    """Returns the function that attributes an output of ``fn`` to its input.

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
    :func:`~jaxunlearn.attribution.ig.layer_integrated_gradients`. ``x`` is an array, or a
    pytree of arrays with one leading axis; integers and bools in it (metadata, masks) stay as
    they are, and have ``None`` in place of an attribution.

    Args:
      fn: ``(variables, x) -> logits [B, K]``, in inference mode; ``variables`` is any pytree
        of arrays, ``x`` an array ``[B, ...]`` or a pytree of such.
      quadrature: nodes and weights (:mod:`jaxunlearn.attribution.ig.quadrature`).
      chunk: nodes taken together, as a batch ``[B * chunk, ...]``. More than 1 pays on
        accelerators that a batch does not fill.
      complete: closes the gap by the least movement of the borders between the
        intervals that the nodes stand for (:mod:`jaxunlearn.attribution.ig.integral`). The
        parts then add up; they are not more exact, and ``plain_gap`` still says how
        exact the quadrature is.

    Returns:
      ``attribute(variables, x, target=starts.argmax(), baseline=baselines.zero()) ->
      Integrated``, with a :data:`~jaxunlearn.attribution.starts.Target` and a
      :data:`~jaxunlearn.attribution.ig.baselines.Baseline`, or a pytree of those. It raises
      ``TypeError`` if ``x`` holds no floats, and ``ValueError`` if output, target or baseline
      have a wrong shape.

    Raises:
      TypeError, ValueError: if ``quadrature`` or ``chunk`` is malformed.

    Source: Sundararajan et al. 2017, eq. 1; completion is our own.
    """
    rule, chunk = check(quadrature), integral.check_chunk(chunk)

    def attribute(
        variables: Any,
        x: Any,
        target: Target = argmax(),  # noqa: B008
        baseline: Baseline | Any = zero(),  # noqa: B008
    ) -> Integrated:
        given = integral.moving(x)
        stop = given.part(jax.tree.leaves(given.x))

        def outputs(points: list[jax.Array]) -> jax.Array:
            return fn(variables, given.whole(points))

        logits = integral.one_array(outputs(stop))
        score = scorer(target, logits)
        end = score(logits)[:, 0]
        kinks = has_kinks(fn, variables, given.x)

        def one(leaves: list[jax.Array]) -> Part:
            start = given.part(leaves)
            return _straight(
                outputs,
                score,
                start,
                stop,
                end,
                choose(rule, kinks),
                chunk=chunk,
                complete=complete,
            )

        part = integral.averaged(one, resolve_all(baseline, given.x, given.own), given.x)
        spread = given.spread(part.attribution)
        return integral.finish(part._replace(attribution=spread), end, logits)

    return attribute


_ALL = "all"
"""The name of the one sum that is made here."""


def _straight(
    outputs: Callable[[Any], jax.Array],
    score: Score,
    start: Any,
    stop: Any,
    end: jax.Array,
    quadrature: Quadrature,
    *,
    chunk: int,
    complete: bool,
) -> Part:
    """Computes integrated gradients along the straight line between two values.

    Args:
      outputs: from points ``[B * c, ...]`` to outputs.
      score: from outputs to ``[B, c]``.
      start, stop: ``[B, ...]``, the ends of the line; or pytrees of such.
      end: ``[B]``, the score at ``stop``.
      quadrature, chunk, complete: see :func:`integrated_gradients`.
    """
    dtype = integral.widest(stop)
    change = jax.tree.map(lambda z, a: z.astype(dtype) - a.astype(dtype), stop, start)
    first = score(outputs(start))[:, 0]

    def slopes(carry: None, part: Nodes) -> tuple[None, dict[str, Any]]:
        points = integral.between(start, change, part.at, stop)
        found = jax.grad(lambda z: jnp.sum(score(outputs(z))))(points)

        def by_example(slope: jax.Array, change: jax.Array) -> jax.Array:
            return slope.reshape(len(change), -1, *change.shape[1:]).astype(dtype)

        return carry, {_ALL: jax.tree.map(by_example, found, change)}

    found = integral.integrate(
        slopes,
        integral.nodes_of(quadrature, dtype),
        (end - first).astype(dtype),
        {_ALL: change},
        chunk=chunk,
        complete=complete,
        change=change,
    )[_ALL]
    total = jax.tree.map(jnp.multiply, found.total, change)
    return Part(total, found.gap, found.plain_gap, first)


def layer_integrated_gradients(
    fn: Callable[[Any, Any], jax.Array],
    layer: str,
    quadrature: Rule = DEFAULT,
    *,
    chunk: int = 1,
    complete: bool = False,
) -> Callable[..., Integrated]:
    """Returns the function that attributes an output of ``fn`` to the values of a layer.

    With ``fn = head(tail(x))``, the layer's values ``y = tail(x)`` and ``y' = tail(x')``:

        a_j = (y_j - y'_j) * integral over t in [0, 1] of dF/dy_j (y' + t (y - y'))

    The layer is the value that ``fn`` marks by ``h = checkpoint_name(h, layer)`` (from
    ``jax.ad_checkpoint``); of two functions it is
    ``lambda v, x: head(v, checkpoint_name(tail(v, x), layer))``. Only ``head`` is run on the
    path. What goes around the layer (a skip) stays that of ``x``, and
    ``baseline_score`` is the target with the layer alone at its baseline.

    At the embeddings, ``x`` may be integers: tokens, with pad tokens as baseline; or tokens
    with their mask, with a baseline ``{"tokens": pads, "mask": None}``, of which the mask stays.
    A baseline in the space of the layer is
    ``integrated_gradients(head)(variables, y, baseline=...)``.

    Args:
      fn: ``(variables, x) -> logits [B, K]``, in inference mode.
      layer: the name.
      quadrature, chunk, complete: see
        :func:`~jaxunlearn.attribution.ig.integrated_gradients`.

    Returns:
      ``attribute(variables, x, target=starts.argmax(), baseline=baselines.zero()) ->
      Integrated``, with an ``attribution`` shaped like the layer. It raises ``ValueError``
      if ``fn`` does not give that name to one value.

    Raises:
      TypeError, ValueError: if ``layer``, ``quadrature`` or ``chunk`` is malformed.

    Source: Sundararajan et al. 2017, eq. 1, of ``head``.
    """
    rule, chunk = check(quadrature), integral.check_chunk(chunk)
    run = named(fn, layer)

    def attribute(
        variables: Any,
        x: Any,
        target: Target = argmax(),  # noqa: B008
        baseline: Baseline | Any = zero(),  # noqa: B008
    ) -> Integrated:
        x = integral.arrays(x)
        leaves, structure = jax.tree.flatten(x)
        logits, stop = run(variables, x)
        score = scorer(target, logits)
        end = score(logits)[:, 0]
        kinks = has_kinks(lambda v, y: run(v, x, y)[0], variables, stop)

        def outputs(values: jax.Array) -> jax.Array:
            count = len(values) // len(leaves[0])
            return run(variables, jax.tree.map(lambda v: integral.repeat(v, count), x), values)[0]

        def one(start: list[jax.Array]) -> Part:
            first = run(variables, jax.tree.unflatten(structure, start))[1]
            return _straight(
                outputs,
                score,
                first,
                stop,
                end,
                choose(rule, kinks),
                chunk=chunk,
                complete=complete,
            )

        return integral.finish(integral.averaged(one, resolve_all(baseline, x), x), end, logits)

    return attribute
