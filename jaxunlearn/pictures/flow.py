"""The relevance that flows between neurons of one layer and neurons of another."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution import Relevance, Rule, Unit, lrp
from jaxunlearn.attribution import rules as rules_of
from jaxunlearn.attribution.affine import Affine
from jaxunlearn.attribution.rules import Propagated, Rules
from jaxunlearn.types import Apply, Variables

__all__ = ["Flow", "edited", "messages", "totals"]


class Flow(NamedTuple):
    """The relevance of one network, means over the examples.

    Attributes:
      input: shaped like one example.
      neurons: key of a layer -> ``[features]``, summed over positions.
      logits: ``[B, K]``.
    """

    input: np.ndarray
    neurons: dict[str, np.ndarray]
    logits: np.ndarray


def totals(
    fn: Apply, rules: Rules, units: Sequence[Unit]
) -> Callable[[Variables, jax.Array, Any], Flow]:
    """The function ``(variables, x, seed) -> Flow`` of some layers, compiled.

    Args:
      fn: ``(variables, x [B, ...]) -> logits [B, K]``.
      rules: of the propagation.
      units: the layers.
    """

    @jax.jit
    def compute(variables: Variables, x: jax.Array, seed: Any) -> Any:
        found = lrp(fn, rules)(variables, x, seed)
        neurons = {unit.key: _per_neuron(found, unit) for unit in units}
        return jnp.mean(found.input, axis=0), neurons, found.logits

    def run(variables: Variables, x: jax.Array, seed: Any) -> Flow:
        return Flow(*jax.tree.map(np.asarray, compute(variables, x, seed)))

    return run


def messages(
    fn: Apply, rules: Rules, units: Sequence[Unit], earlier: Unit, later: Unit
) -> Callable[[Variables, jax.Array, Any, np.ndarray, np.ndarray], np.ndarray]:
    """What neurons of one layer receive from neurons of a later one, compiled.

    ``M[k, j] = mean over examples, sum over positions of R_j``, counting of the
    relevance of ``j`` only what came through neuron ``k`` of the later layer. Every rule
    is linear in the relevance: with ``m_k`` times as much passed on by ``k``,
    ``R_j(m) = R_j(0) + sum_k m_k M[k, j]``, so ``M`` is the derivative, exactly, and
    ``R_j(0)`` what comes by other ways (skips). Between two dense layers with a
    relu, under the epsilon rule: ``M[k, j] = mean of a_j w_jk R_k / stab(z_k)``. What
    lies between the two, other layers as well, is crossed by its own rules.

    Args:
      fn: ``(variables, x [B, ...]) -> logits [B, K]``.
      rules: of the propagation.
      units: all layers of ``fn``.
      earlier, later: the two.

    Returns:
      ``(variables, x, seed, neurons of earlier [n], neurons of later [m]) -> [m, n]``.

    Source: the messages of Bach et al. 2015 (eq. 27), through any layers as in
    Achtibat et al. 2023 (arXiv 2206.03208, conditional relevance).
    """

    @jax.jit
    def received(variables: Variables, x: jax.Array, seed: Any, passed: jax.Array) -> jax.Array:
        def relevance(share: jax.Array) -> jax.Array:
            found = lrp(fn, _scaled(rules, units, later, share))(variables, x, seed)
            return _per_neuron(found, earlier)

        nothing = jnp.zeros(later.out_features, jnp.float32)
        _, push = jax.linearize(relevance, nothing)
        return jax.vmap(push)(jax.nn.one_hot(passed, later.out_features, dtype=jnp.float32))

    def run(
        variables: Variables, x: jax.Array, seed: Any, sources: np.ndarray, passed: np.ndarray
    ) -> np.ndarray:
        return np.asarray(received(variables, x, seed, jnp.asarray(passed)))[:, sources]

    return run


def edited(
    original: Variables, unlearned: Variables, units: Sequence[Unit]
) -> dict[str, np.ndarray]:
    """Which share of its weights an edit changed, for every neuron.

    The larger of the shares of the weights into it and of those out of it; the
    latter only where another layer reads exactly this one's neurons. Zero where the neurons lie
    along no one axis of a stored kernel.

    Args:
      original, unlearned: variables of one structure.
      units: all layers.

    Returns:
      key of a layer -> ``[features]`` of 0 to 1.

    Raises:
      ValueError: if the leaves of the two differ in path or shape.
    """
    before, after = _leaves(original), _leaves(unlearned)
    if {path: leaf.shape for path, leaf in before.items()} != {
        path: leaf.shape for path, leaf in after.items()
    }:
        raise ValueError("unlearned: expected the leaves and shapes of original, got others")

    def share(unit: Unit, axis: int | None, size: int) -> np.ndarray:
        if axis is None or unit.kernel not in before:
            return np.zeros(size)
        changed = before[unit.kernel] != after[unit.kernel]
        along: np.ndarray = np.moveaxis(changed, axis, 0).reshape(changed.shape[axis], -1)
        return along.mean(1) if len(along) == size else np.zeros(size)

    found = {unit.key: share(unit, unit.out_axis, unit.out_features) for unit in units}
    for unit in units:
        for made in units:
            if made.kernel == unit.producer:
                outgoing = share(unit, unit.in_axis, made.out_features)
                found[made.key] = np.maximum(found[made.key], outgoing)
    return found


def _leaves(variables: Variables) -> dict[str, np.ndarray]:
    named, _ = jax.tree_util.tree_flatten_with_path(variables)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in named
        if not jax.dtypes.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    }


def _per_neuron(found: Relevance, unit: Unit) -> jax.Array:
    """``[features]``: the mean over examples of the sum over positions."""
    values = found.neurons[unit.key]
    if values.size % (len(values) * unit.out_features):
        raise ValueError(f"layers: expected layers with neurons, got {unit.key} {values.shape}")
    flat = values.reshape(len(values), -1, unit.out_features)
    return jnp.mean(jnp.sum(flat.astype(jnp.float32), axis=1), axis=0)


def _scaled(rules: Rules, units: Sequence[Unit], later: Unit, share: jax.Array) -> Rules:
    """The same rules, with a share of the relevance of each neuron of one layer passed on."""
    rest = [] if isinstance(rules, Rule) or callable(rules) else list(rules)
    place = [unit.key for unit in units].index(later.key)
    rule = rules_of.assign(rules, units)[place]
    alone = f"^{re.escape(later.key)}$"
    return [(alone, _only(rule, later, share)), *(rest or [("", rule)])]


def _only(rule: Rule, unit: Unit, share: jax.Array) -> Rule:
    def propagate(
        affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array
    ) -> jax.Array | Propagated:
        made = () if affine.step.dims is None else affine.step.dims.made
        sizes = [size if d in made else 1 for d, size in enumerate(relevance.shape)]
        if math.prod(sizes) != unit.out_features:
            raise NotImplementedError(
                f"layers: the neurons of {unit.key} do not lie where its operation puts them"
            )
        passed = relevance * share.reshape(sizes).astype(relevance.dtype)
        return rule.propagate(affine, a, z, passed)

    return Rule(f"{rule.name}, scaled", propagate)
