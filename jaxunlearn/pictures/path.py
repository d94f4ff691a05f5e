"""The path of a class through a network: the relevance that flows between its neurons."""

import functools
import itertools
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution import Relevance, Rule, Unit, lrp, starts, structure
from jaxunlearn.attribution.lrp.assign import Rules, assign
from jaxunlearn.attribution.lrp.rule import Affine, Propagated
from jaxunlearn.attribution.lrp.rules import epsilon_plus
from jaxunlearn.core.trees import named_leaves, to_device
from jaxunlearn.core.types import Apply, Model, Variables
from jaxunlearn.jaxprs.structure import logits
from jaxunlearn.models import functionalize
from jaxunlearn.pictures import network, style


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
    """Compiles the function ``(variables, x, start) -> Flow`` of some layers.

    Args:
      fn: ``(variables, x [B, ...]) -> logits [B, K]``.
      rules: of the propagation.
      units: the layers.
    """

    @jax.jit
    def compute(variables: Variables, x: jax.Array, start: Any) -> Any:
        found = lrp(fn, rules)(variables, x, start)
        neurons = {unit.key: _per_neuron(found, unit) for unit in units}
        return jnp.mean(found.input, axis=0), neurons, found.logits

    def run(variables: Variables, x: jax.Array, start: Any) -> Flow:
        return Flow(*jax.tree.map(np.asarray, compute(variables, x, start)))

    return run


def messages(
    fn: Apply, rules: Rules, units: Sequence[Unit], earlier: Unit, later: Unit
) -> Callable[[Variables, jax.Array, Any, np.ndarray, np.ndarray], np.ndarray]:
    """Compiles the function that tells what neurons of a layer receive from those of a later one.

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
      ``(variables, x, start, neurons of earlier [n], neurons of later [m]) -> [m, n]``.

    Source: the messages of Bach et al. 2015 (eq. 27), through any layers as in
    Achtibat et al. 2023 (arXiv 2206.03208, conditional relevance).
    """

    @jax.jit
    def received(variables: Variables, x: jax.Array, start: Any, passed: jax.Array) -> jax.Array:
        def relevance(share: jax.Array) -> jax.Array:
            found = lrp(fn, _scaled(rules, units, later, share))(variables, x, start)
            return _per_neuron(found, earlier)

        nothing = jnp.zeros(later.out_features, jnp.float32)
        _, push = jax.linearize(relevance, nothing)
        return jax.vmap(push)(jax.nn.one_hot(passed, later.out_features, dtype=jnp.float32))

    def run(
        variables: Variables, x: jax.Array, start: Any, sources: np.ndarray, passed: np.ndarray
    ) -> np.ndarray:
        return np.asarray(received(variables, x, start, passed))[:, sources]

    return run


def edited(
    original: Variables, unlearned: Variables, units: Sequence[Unit]
) -> dict[str, np.ndarray]:
    """Returns the share of its weights that an edit changed, for every neuron.

    The larger of the shares of the weights into it and of those out of it; the
    latter only where another layer reads exactly this one's neurons. Zero where it is not known
    which axes of a stored kernel the neurons lie along.

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

    def share(unit: Unit, axes: tuple[int, ...], size: int) -> np.ndarray:
        if not axes or unit.kernel not in before:
            return np.zeros(size)
        changed = before[unit.kernel] != after[unit.kernel]
        first = np.moveaxis(changed, axes, range(len(axes)))
        along: np.ndarray = first.reshape(math.prod(first.shape[: len(axes)]), -1)
        return along.mean(1) if len(along) == size else np.zeros(size)

    found = {unit.key: share(unit, unit.out_axes, unit.out_features) for unit in units}
    for unit in units:
        for made in units:
            if made.kernel == unit.producer and unit.in_axis is not None:
                outgoing = share(unit, (unit.in_axis,), made.out_features)
                found[made.key] = np.maximum(found[made.key], outgoing)
    return found


def _leaves(variables: Variables) -> dict[str, np.ndarray]:
    return {
        path: np.asarray(leaf)
        for path, leaf in named_leaves(variables).items()
        if not jax.dtypes.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    }


def _per_neuron(found: Relevance, unit: Unit) -> jax.Array:
    """Returns ``[features]``, the mean over examples of the sum over positions."""
    values = found.neurons[unit.key]
    if values.size % (len(values) * unit.out_features):
        raise ValueError(f"layers: expected layers with neurons, got {unit.key} {values.shape}")
    flat = values.reshape(len(values), -1, unit.out_features)
    return jnp.mean(jnp.sum(flat.astype(jnp.float32), axis=1), axis=0)


def _scaled(rules: Rules, units: Sequence[Unit], later: Unit, share: jax.Array) -> Rules:
    """Returns the same rules, but each neuron of one layer passes on a share of its relevance."""
    rest = [] if isinstance(rules, Rule) or callable(rules) else list(rules)
    place = [unit.key for unit in units].index(later.key)
    rule = assign(rules, units)[place]
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


# z+ keeps stacks of convolutions from noise, dense layers keep both signs
_RULES = epsilon_plus()


@style.picture
def save_path(
    path: str | os.PathLike[str],
    model: Model | Apply,
    original: Variables,
    unlearned: Variables,
    x: jax.typing.ArrayLike,
    y: jax.typing.ArrayLike,
    *,
    rules: Rules = _RULES,
    layers: int | Sequence[str] = 6,
    neurons: int = 12,
    title: str | None = None,
) -> None:
    """Draws which neurons carry a class, before and after unlearning, as PNG.

    A column is a layer, a circle one of its neurons (output units or channels), a line the
    relevance that flows from a neuron to one of the column before. Relevance starts
    as the logit of ``y`` and is the mean over the examples, summed over positions; the
    two networks are on one scale:

    * circle: ``R_k``, red positive, blue negative; colour and area relative to the
      largest of its column in either network;
    * line: ``M[k, j]``, what of ``R_j`` came through ``k``
      (:func:`jaxunlearn.pictures.path.messages`); width relative to the largest between
      the two columns in either network; none between branches side by side;
    * ring: the share of a neuron's weights (incoming or outgoing, the larger) that differ
      between the two networks, a full ring being all of them;
    * picture: the mean image under the mean relevance of its pixels.

    Both show the same neurons: the ``neurons`` of largest ``|R_k|`` in either.

    Args:
      path: of the PNG; an existing file is replaced.
      model: see :func:`jaxunlearn.functionalize`.
      original, unlearned: variables of one structure.
      x: ``[B, ...]``, examples of the class as the network reads them; 16 to 64 are enough.
      y: the class, or labels ``int [B]``.
      rules: of the propagation; by default z+ for convolutions, epsilon for all else.
      layers: keys of the layers to draw (:func:`jaxunlearn.attribution.structure`), in execution
        order, or at most how many, spread evenly and the last among them.
      neurons: at most so many of a layer.
      title: of the picture.

    Raises:
      ValueError: arguments out of range, a layer that is not there, ``unlearned`` of
        another structure, a relevance that is not finite.
      NotImplementedError: relevance propagation does not cover the network.
      UserError: the file cannot be written.

    Source: own; the neuronal path is that of arXiv 2410.23693.
    """
    if neurons < 1:
        raise ValueError(f"neurons: expected a positive number, got {neurons}")
    apply, x, y = functionalize(model).apply, to_device(x), np.asarray(y)
    fn, keyed = logits(apply), _keyed(rules)
    units = structure(fn, original, x)
    shown = _shown(units, layers)
    rings = edited(original, unlearned, units)
    start = starts.label(to_device(y), times_logit=True)
    compute = _totals(apply, keyed, tuple(shown))
    flows = [compute(variables, x, start) for variables in (original, unlearned)]
    _check_finite(flows)
    chosen = [choose([f.neurons[u.key] for f in flows], neurons) for u in shown]
    lines: list[list[np.ndarray]] = [[], []]
    for place, (earlier, later) in enumerate(itertools.pairwise(shown)):
        send = _messages(apply, keyed, tuple(units), earlier, later)
        for number, variables in enumerate((original, unlearned)):
            received = send(variables, x, start, chosen[place], chosen[place + 1])
            lines[number].append(received)
    columns = [_columns(flow, shown, chosen, rings) for flow in flows]
    pictures = _pictures(np.asarray(x), flows)
    panels = [
        network.Panel(name, _about(flow, y), picture, made, edges)
        for name, flow, picture, made, edges in zip(
            ("original", "unlearned"), flows, pictures, columns, lines, strict=True
        )
    ]
    network.draw(path, panels, title)


# of one network and its layers, whatever was made of it, one program each


@functools.lru_cache(maxsize=8)
def _totals(apply: Apply, rules: Any, units: tuple[Unit, ...]) -> Callable[..., Flow]:
    return totals(logits(apply), _listed(rules), units)


@functools.lru_cache(maxsize=64)
def _messages(
    apply: Apply, rules: Any, units: tuple[Unit, ...], earlier: Unit, later: Unit
) -> Callable[..., np.ndarray]:
    return messages(logits(apply), _listed(rules), units, earlier, later)


def _keyed(rules: Rules) -> Any:
    return tuple(map(tuple, rules)) if isinstance(rules, list) else rules


def _listed(rules: Any) -> Rules:
    return rules if isinstance(rules, Rule) or callable(rules) else list(rules)


def choose(strengths: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Returns ``int [n]``, the neurons of a layer to draw, from top to bottom.

    All in their own order if there are no more than ``count``; otherwise those of largest
    magnitude in either network, ordered by their relevance in the first.
    """
    first = strengths[0]
    if len(first) <= count:
        return np.arange(len(first))
    largest = np.max(np.abs(np.stack(strengths)), axis=0)
    kept = np.argsort(-largest, kind="stable")[:count]
    ordered: np.ndarray = kept[np.argsort(-first[kept], kind="stable")]
    return ordered


def _shown(units: Sequence[Unit], layers: int | Sequence[str]) -> list[Unit]:
    if isinstance(layers, int):
        if layers < 2:
            raise ValueError(f"layers: expected at least 2, or keys, got {layers}")
        return style.spread(units, layers)
    known = {unit.key: place for place, unit in enumerate(units)}
    style.known("layers", layers, known)
    order = [known[key] for key in layers]
    if order != sorted(set(order)) or not order:
        raise ValueError(f"layers: expected keys in execution order, got {list(layers)}")
    return [units[place] for place in order]


def _check_finite(flows: Sequence[Flow]) -> None:
    for name, flow in zip(("original", "unlearned"), flows, strict=True):
        for key, values in flow.neurons.items():
            if not np.isfinite(values).all():
                raise ValueError(f"{name}: expected finite relevance, got NaN or inf at {key}")


def _columns(
    flow: Flow, shown: Sequence[Unit], chosen: Sequence[np.ndarray], rings: dict[str, np.ndarray]
) -> list[network.Column]:
    made = []
    nested = any(style.short(unit.key)[1] for unit in shown)
    for unit, neurons in zip(shown, chosen, strict=True):
        strength, ring = flow.neurons[unit.key], rings[unit.key]
        whole = np.abs(strength).sum()
        share = np.abs(strength[neurons]).sum() / whole if whole else 0.0
        name, within = style.short(unit.key)
        about = [within] if nested else []
        about += [f"{len(neurons)} of {unit.out_features}", f"{share:.0%} of |R|"]
        about += [f"{int((ring == 1).sum())} rewritten"] if (ring == 1).any() else []
        words = "\n".join(about)
        made.append(network.Column(name, words, neurons, strength[neurons], ring[neurons]))
    return made


def _about(flow: Flow, y: jax.typing.ArrayLike) -> str:
    labels = np.broadcast_to(np.asarray(y), flow.logits.shape[:1])
    logit = flow.logits[np.arange(len(labels)), labels].mean()
    right = int((flow.logits.argmax(-1) == labels).sum())
    words = f"class {labels[0]}" if (labels == labels[0]).all() else "the labels"
    return f"{words}: predicted for {right} of {len(labels)}, mean logit {style.signed(logit, 3)}"


def _pictures(x: np.ndarray, flows: Sequence[Flow]) -> list[np.ndarray | None]:
    """Returns the mean image under the relevance of each network, on one scale."""
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
        return [None for _ in flows]
    mean = style.to_rgb(x.astype(np.float32).mean(axis=0, keepdims=True))[0]
    heats = [flow.input.astype(np.float64).reshape(*mean.shape[:2], -1).sum(-1) for flow in flows]
    scale = style.scale_of(np.stack(heats))
    return [style.overlay(mean, heat, scale) for heat in heats]
