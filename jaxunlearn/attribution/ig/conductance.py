"""Conductance: what flows through the units of a layer while the input goes straight."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn.attribution.ig import integral
from jaxunlearn.attribution.ig.baselines import Baseline, resolve_all, zero
from jaxunlearn.attribution.ig.integral import Moving, Nodes, Part, Traces
from jaxunlearn.attribution.ig.quadrature import DEFAULT, Automatic, Rule, check, choose
from jaxunlearn.attribution.starts import Score, Target, argmax, scorer
from jaxunlearn.core.errors import expect_flags
from jaxunlearn.core.trees import divide_like
from jaxunlearn.jaxprs.kinks import jaxpr_has_kinks
from jaxunlearn.jaxprs.program import wide
from jaxunlearn.jaxprs.replay import Tapped, tapped


def conductance(
    fn: Callable[[Any, Any], jax.Array],
    layer: str | Sequence[str],
    quadrature: Rule = DEFAULT,
    *,
    chunk: int | None = None,
    complete: bool = False,
    differences: bool = False,
) -> Callable[..., Any]:
    """Returns the function that attributes an output of ``fn`` to a layer on the input's way.

    While the input goes straight, ``x(t) = x' + t (x - x')``, the layer goes its own way
    ``y(t) = tail(x(t))``:

        a_j = integral over t in [0, 1] of dF/dy_j (x(t)) * dy_j/dt

    The integrated gradients that flow through each unit; of the input itself, these
    gradients. They add up to ``F(x) - F(x')`` if nothing goes around the layer.

    Where ``fn`` has kinks (:func:`~jaxunlearn.jaxprs.kinks.has_kinks`), each node
    stands for an interval of the length of its weight, and gives the gradient there times the
    change of the layer from one border of its interval to the other:

        a_j ~ sum over k of dF/dy_j (x(t_k)) * (y_j(b_{k+1}) - y_j(b_k))

    What lies in front of the layer then adds no error, and where what lies behind is linear
    there is none. Where ``fn`` is smooth it is the derivative of the layer, at the node. Per node,
    the tail is run once more than for integrated gradients, or differentiated once more.

    Args:
      fn: ``(variables, x) -> logits [B, K]``, in inference mode.
      layer: the name that ``fn`` gives to the layer by ``jax.ad_checkpoint.checkpoint_name``;
        or several, whose gradients one backward pass gives.
      quadrature, chunk, complete: see
        :func:`~jaxunlearn.attribution.ig.integrated_gradients`.
      differences: the change of the layer from each node to the next, with the gradient at
        the first of the two (as captum 0.9, to compare with it). The ends of the path
        before the first node and behind the last are then left out.

    Returns:
      ``attribute(variables, x, target=starts.argmax(), baseline=baselines.zero()) ->
      Integrated``, with an ``attribution`` shaped like the layer; of several layers a dict of
      these by name, each of which adds up.

    Raises:
      TypeError: if ``layer`` or ``quadrature`` is malformed.
      ValueError: if ``layer``, ``quadrature`` or ``chunk`` is malformed, if ``differences``
        has less than two nodes, or goes with ``complete``.

    Source: Dhamdhere et al. 2018, eq. 2 and 3; the borders are our own.
    """
    rule, chunk = check(quadrature), integral.check_chunk(chunk)
    expect_flags(complete=complete, differences=differences)
    count = rule.n if isinstance(rule, Automatic) else len(rule.nodes)
    if differences and (complete or count < 2):
        raise ValueError(
            "differences: expected two nodes or more and complete=False, got "
            f"{count} and complete={complete}"
        )
    names = integral.check_layers(layer)
    run = tapped(fn, names)

    def attribute(
        variables: Any,
        x: Any,
        target: Target = argmax(),  # noqa: B008
        baseline: Baseline | Any = zero(),  # noqa: B008
    ) -> Any:
        given = integral.moving(x)
        logits, values = run(variables, given.x)
        score = scorer(target, logits)
        end = score(logits)[:, 0]
        dtype = max((wide(v.dtype) for v in values.values()), key=lambda d: jnp.finfo(d).bits)
        traces = Traces(fn, variables, given.x)
        closed = traces.closed(given.x)
        kinks = jaxpr_has_kinks(closed, given.own)
        nodes = integral.nodes_of(choose(rule, kinks), dtype, differences=differences)
        rows = integral.chunk_of(chunk, closed, len(logits), len(nodes.at))
        if not traces.accepts(given.points(rows)):
            rows = 1  # arrays of the examples are closed over
        by_borders = kinks or differences

        def one(leaves: list[jax.Array]) -> dict[str, Part]:
            start = given.part(leaves)
            outputs, before = run(variables, given.whole(start))
            first = score(outputs)[:, 0]
            path = _Path(run, variables, score, start, given)
            if differences:
                before = path.layers(nodes.at[:1])
            sums = integral.integrate(
                path.by_borders if by_borders else path.by_derivative,
                nodes,
                (end - first).astype(dtype),
                values,
                chunk=rows,
                complete=complete,
                carry=before if by_borders else None,
            )
            return {name: Part(*found, first) for name, found in sums.items()}

        parts = integral.averaged(one, resolve_all(baseline, given.x, given.own), given.x)
        found = {name: integral.finish(parts[name], end, logits) for name in names}
        found = divide_like(given.x, found)
        return found[layer] if isinstance(layer, str) else found

    return attribute


class _Path:
    """The layers along the straight path of an input."""

    def __init__(
        self, run: Tapped, variables: Any, score: Score, start: list[jax.Array], given: Moving
    ) -> None:
        self.run, self.variables, self.score, self.given = run, variables, score, given
        self.stop = given.part(jax.tree.leaves(given.x))
        dtype = integral.widest(self.stop)
        self.start = start
        ends = zip(self.stop, start, strict=True)
        self.change = [z.astype(dtype) - a.astype(dtype) for z, a in ends]

    def points(self, at: jax.Array) -> list[jax.Array]:
        """Returns the moving leaves there, ``[B * c, ...]``."""
        found: list[jax.Array] = integral.between(self.start, self.change, at, self.stop)
        return found

    def layers(self, at: jax.Array) -> dict[str, jax.Array]:
        """Returns the layers there, ``[B * c, ...]``."""
        return self.run(self.variables, self.given.whole(self.points(at)))[1]

    def slopes(self, at: jax.Array, like: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the gradients to the layers, each with all others as they follow from it."""

        def of(shifts: dict[str, jax.Array]) -> jax.Array:
            change = {name: lambda own, by=by: own + by for name, by in shifts.items()}
            return jnp.sum(self.score(self.run(self.variables, whole, change)[0]))

        whole = self.given.whole(self.points(at))
        return jax.grad(of)(jax.tree.map(jnp.zeros_like, like))

    def by_borders(
        self, before: dict[str, jax.Array], part: Nodes
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Steps from border to border: gradients at the nodes times the change between."""
        after = self.layers(part.end)
        slopes = self.slopes(part.at, after)

        def found(name: str) -> jax.Array:
            reached = self._by_example(after[name])
            left = jnp.concatenate([before[name][:, None], reached[:, :-1]], axis=1)
            moved = reached.astype(wide(left.dtype)) - left.astype(wide(left.dtype))
            # nodes contribute what they do per length: integrate multiplies by the weight
            weight = integral.stretch(part.weight[None], moved.ndim)
            moved = jnp.where(weight == 0, 0, moved / jnp.where(weight == 0, 1, weight))
            return self._by_example(slopes[name]).astype(moved.dtype) * moved

        reached = {name: self._by_example(value)[:, -1] for name, value in after.items()}
        return reached, {name: found(name) for name in after}

    def by_derivative(self, carry: None, part: Nodes) -> tuple[None, dict[str, jax.Array]]:
        """Steps from node to node: gradients times derivatives."""
        pairs = zip(self.change, self.stop, strict=True)
        along = [integral.repeat(c.astype(z.dtype), len(part.at)) for c, z in pairs]
        values, moved = _derivative(
            lambda points: self.run(self.variables, self.given.whole(points))[1],
            self.points(part.at),
            along,
        )
        slopes = self.slopes(part.at, values)

        def found(slope: jax.Array, moved: jax.Array) -> jax.Array:
            dtype = wide(moved.dtype)
            return self._by_example(slope.astype(dtype) * moved.astype(dtype))

        return carry, jax.tree.map(found, slopes, moved)

    def _by_example(self, value: jax.Array) -> jax.Array:
        return value.reshape(len(self.stop[0]), -1, *value.shape[1:])


def _derivative(
    layers: Callable[[list[jax.Array]], Any], points: list[jax.Array], along: list[jax.Array]
) -> tuple[Any, Any]:
    """Returns the values and their directional derivatives.

    By reverse mode twice: forward mode refuses functions that have a gradient of their own.
    """
    values, pull = jax.vjp(layers, points)
    _, push = jax.vjp(lambda cotangent: pull(cotangent)[0], jax.tree.map(jnp.zeros_like, values))
    return values, push(along)[0]
