"""Integrated Gradients of inputs and layers, and conductance, as transforms of any JAX function.

Layer Integrated Gradients and conductance attribute to the units of a layer that the function
names. The former draw a straight line between two values of the layer, on which lie values
that no input may have; conductance follows the layer while the input goes straight.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.ig import integral
from jaxunlearn.attribution.ig.baselines import Baseline, resolve_all, zero
from jaxunlearn.attribution.ig.conductance import conductance
from jaxunlearn.attribution.ig.integral import Integrated, Moving, Nodes, Part, Traces
from jaxunlearn.attribution.ig.quadrature import DEFAULT, Rule, check, choose
from jaxunlearn.attribution.ig.sharing import shared
from jaxunlearn.attribution.starts import Score, Target, argmax, scorer
from jaxunlearn.core.errors import expect_flags
from jaxunlearn.core.trees import divide_like
from jaxunlearn.jaxprs.kinks import jaxpr_has_kinks
from jaxunlearn.jaxprs.replay import named, tapped

__all__ = ["conductance", "integrated_gradients", "layer_integrated_gradients"]


def integrated_gradients(
    fn: Callable[[Any, Any], jax.Array],
    quadrature: Rule = DEFAULT,
    *,
    chunk: int | None = None,
    complete: bool = False,
    multiply_by_inputs: bool = True,
) -> Callable[..., Integrated]:
    """Returns the function that attributes an output of ``fn`` to its input.

    With the target F and a baseline x':

        a_i = (x_i - x'_i) * integral over t in [0, 1] of dF/dx_i (x' + t (x - x'))

    The parts add up, ``sum(a) = F(x) - F(x')``, up to the error of the quadrature,
    which is returned as ``gap``. For a smooth ``fn``, 32 nodes leave rounding. Along a
    network of relu the gradient is a step function with more steps than nodes, and
    the gap falls as 1/n only, whatever the quadrature: some percent at 32 nodes.

    A forward and a backward pass are made per node and baseline, and a forward pass for
    ``x`` and each baseline, in one ``scan``: memory is that of ``chunk`` nodes. Dense layers and
    patch convolutions that read the input first are affine along the path: they run twice and
    are pulled back once (:mod:`jaxunlearn.attribution.ig.sharing`). Nothing is
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
      fn: ``(variables, x) -> logits [B, K]``, in inference mode, or an output ``[B]`` or
        ``[B, ...]``; ``variables`` is any pytree of arrays, ``x`` an array ``[B, ...]`` or a
        pytree of such. Arrays of the examples may be closed over, or be leaves of ``x`` whose
        baseline is ``None``.
      quadrature: nodes and weights (:mod:`jaxunlearn.attribution.ig.quadrature`); by default
        the trace chooses them, see :func:`~jaxunlearn.attribution.ig.quadrature.automatic`.
      chunk: nodes taken together, as a batch ``[B * chunk, ...]``; by default what is fastest on
        the machine (:func:`~jaxunlearn.attribution.ig.integral.chunk_of`), 1 needs the least
        memory.
      complete: closes the gap by the least movement of the borders between the
        intervals that the nodes stand for (:mod:`jaxunlearn.attribution.ig.integral`). The
        parts then add up; they are not more exact, and ``plain_gap`` still says how
        exact the quadrature is.
      multiply_by_inputs: if not, the attribution is the mean gradient on the path, without
        ``x_i - x'_i``; the gaps stay those of the products.

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
    expect_flags(complete=complete, multiply_by_inputs=multiply_by_inputs)

    def attribute(
        variables: Any,
        x: Any,
        target: Target = argmax(),  # noqa: B008
        baseline: Baseline | Any = zero(),  # noqa: B008
    ) -> Integrated:
        given = integral.moving(x)
        run = Traces(fn, variables, given.x)
        logits = run(given.x)
        score = scorer(target, logits)
        end = score(logits)[:, 0]
        along = _Line(run, given, score, end, rule, chunk, complete, multiply_by_inputs)

        def one(leaves: list[jax.Array]) -> Part:
            part = along(given.part(leaves))
            return part._replace(attribution=given.spread(part.attribution))

        part = integral.averaged(one, resolve_all(baseline, given.x, given.own), given.x)
        return divide_like(given.x, integral.finish(part, end, logits))

    return attribute


class _Line:
    """Integrated gradients along straight lines that end at one input.

    Args:
      run: the function.
      given: its input.
      score: from outputs to ``[B, c]``.
      end: ``[B]``, the score at the input.
      rule, chunk, complete, multiply_by_inputs: see :func:`integrated_gradients`.
    """

    def __init__(
        self,
        run: Traces,
        given: Moving,
        score: Score,
        end: jax.Array,
        rule: Rule,
        chunk: int | None,
        complete: bool,
        multiply_by_inputs: bool,
    ) -> None:
        self.run, self.given, self.score, self.end = run, given, score, end
        self.stop = given.part(jax.tree.leaves(given.x))
        self.dtype = integral.widest(self.stop)
        closed = run.closed(given.x)
        self.quadrature = choose(rule, jaxpr_has_kinks(closed, given.own))
        count = len(self.quadrature.nodes)
        self.chunk = integral.chunk_of(chunk, closed, len(self.stop[0]), count)
        self.complete, self.multiply = complete, multiply_by_inputs
        self.shared = shared(run, given, self.chunk)
        if self.shared is not None:
            # pulled back once, for all nodes of all baselines
            self.layers, self.pull = jax.vjp(self.shared.lower, self.stop)

    def __call__(self, start: list[jax.Array]) -> Part:
        """Returns the result for one start, ``[B, ...]`` each."""
        first = self.score(self.run(self.given.whole(start)))[:, 0]
        change = self._change(start, self.stop)
        if self.shared is None:
            found = self._slopes(self._outputs, start, self.stop, first)
            slopes = found.total
        else:
            found = self._slopes(self.shared.upper, self.shared.lower(start), self.layers, first)
            pairs = zip(found.total, self.layers, strict=True)
            slopes = self.pull([total.astype(layer.dtype) for total, layer in pairs])[0]
            slopes = [slope.astype(self.dtype) for slope in slopes]
        attribution = jax.tree.map(jnp.multiply, slopes, change) if self.multiply else slopes
        return Part(attribution, found.gap, found.plain_gap, first)

    def _outputs(self, points: list[jax.Array]) -> jax.Array:
        return self.run(self.given.whole(points))

    def _change(self, start: list[jax.Array], stop: list[jax.Array]) -> list[jax.Array]:
        ends = zip(stop, start, strict=True)
        return [z.astype(self.dtype) - a.astype(self.dtype) for z, a in ends]

    def _slopes(
        self,
        outputs: Callable[[list[jax.Array]], jax.Array],
        start: list[jax.Array],
        stop: list[jax.Array],
        first: jax.Array,
    ) -> integral.Sum:
        """Computes the mean gradient along a line."""
        change = self._change(start, stop)

        def slopes(carry: None, part: Nodes) -> tuple[None, dict[str, Any]]:
            points = integral.between(start, change, part.at, stop)
            found = jax.grad(lambda z: jnp.sum(self.score(outputs(z))))(points)
            pairs = zip(found, change, strict=True)
            return carry, {
                _ALL: [g.reshape(len(c), -1, *c.shape[1:]).astype(self.dtype) for g, c in pairs]
            }

        return integral.integrate(
            slopes,
            integral.nodes_of(self.quadrature, self.dtype),
            (self.end - first).astype(self.dtype),
            {_ALL: change},
            chunk=self.chunk,
            complete=self.complete,
            change=change,
        )[_ALL]


_ALL = "all"
"""The name of the one sum that is made here."""


def layer_integrated_gradients(
    fn: Callable[[Any, Any], jax.Array],
    layer: str | Sequence[str],
    quadrature: Rule = DEFAULT,
    *,
    chunk: int | None = None,
    complete: bool = False,
    multiply_by_inputs: bool = True,
) -> Callable[..., Any]:
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
      layer: the name; or several, each with a path of its own while the others follow from it.
      quadrature, chunk, complete, multiply_by_inputs: see
        :func:`~jaxunlearn.attribution.ig.integrated_gradients`.

    Returns:
      ``attribute(variables, x, target=starts.argmax(), baseline=baselines.zero()) ->
      Integrated``, with an ``attribution`` shaped like the layer; of several layers a dict of
      these by name. It raises ``ValueError`` if ``fn`` does not give that name to one value.

    Raises:
      TypeError, ValueError: if ``layer``, ``quadrature`` or ``chunk`` is malformed.

    Source: Sundararajan et al. 2017, eq. 1, of ``head``.
    """
    rule, chunk = check(quadrature), integral.check_chunk(chunk)
    expect_flags(complete=complete, multiply_by_inputs=multiply_by_inputs)
    names = integral.check_layers(layer)
    tap = tapped(fn, names)

    def attribute(
        variables: Any,
        x: Any,
        target: Target = argmax(),  # noqa: B008
        baseline: Baseline | Any = zero(),  # noqa: B008
    ) -> Any:
        x = integral.arrays(x)
        structure = jax.tree.structure(x)
        logits, values = tap(variables, x)
        score = scorer(target, logits)
        end = score(logits)[:, 0]
        starts = resolve_all(baseline, x)

        def of(name: str) -> Integrated:
            run = named(fn, name)

            def head(variables: Any, pair: tuple[jax.Array, Any]) -> jax.Array:
                return run(variables, pair[1], pair[0])[0]

            given = Moving((values[name], x), (True, *(False,) * len(jax.tree.leaves(x))))
            traces = Traces(head, variables, given.x)
            along = _Line(traces, given, score, end, rule, chunk, complete, multiply_by_inputs)

            def one(start: list[jax.Array]) -> Part:
                part = along([run(variables, jax.tree.unflatten(structure, start))[1]])
                return part._replace(attribution=part.attribution[0])

            return divide_like(x, integral.finish(integral.averaged(one, starts, x), end, logits))

        found = {name: of(name) for name in names}
        return found[layer] if isinstance(layer, str) else found

    return attribute
