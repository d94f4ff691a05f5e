"""Zero-shot class unlearning by relevance and neuronal path perturbation (paper 1).

Chang, Zhu, Wu, Zhou, "Zero-shot class unlearning via layer-wise relevance analysis
and neuronal path perturbation", arXiv 2410.23693. No training image is used: the
method declares that it needs unseen examples alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.attribution import Unit, features, lrp, rules, seeds, structure
from jaxunlearn.models import functionalize
from jaxunlearn.types import Apply, Batches, Info, Key, Model, Needs, Sets, Unlearner, Variables

__all__ = ["EDITS", "WEIGHTS", "PathState", "neuron_path"]

EDITS = ("zero", "gaussian", "laplace")
WEIGHTS = ("incoming", "outgoing", "class")


@jax.tree_util.register_static
@dataclass(frozen=True)
class Site:
    """What is edited and where, known from the trace.

    Attributes:
      head: the last linear unit.
      producer: the unit whose neurons the head reads, if there is one.
      targets: some of :data:`WEIGHTS`.
    """

    head: Unit
    producer: Unit | None
    targets: tuple[str, ...]


class PathState(NamedTuple):
    """What a pass over unseen images accumulates.

    Attributes:
      variables: the original, unchanged until the result is asked for.
      counts: ``float32 [n]``, in how many samples a neuron was among the K most relevant.
      total: ``float32 [n]``, its summed relevance; orders neurons of equal count.
      classes: ``float32 [K]``, how many samples of each class were seen.
      key: for the noise edits.
      site: static.
    """

    variables: Variables
    counts: jax.Array
    total: jax.Array
    classes: jax.Array
    key: Key
    site: Site


def neuron_path(
    model: Model | Apply,
    *,
    per_sample: int = 50,
    neurons: int = 80,
    samples: int = 36,
    epsilon: float = 0.1,
    seed: str = "argmax",
    edit: str = "zero",
    weights: tuple[str, ...] | None = None,
    scale: float = 1.0,
) -> Unlearner:
    """Finds the penultimate neurons that carry a class and edits their weights.

    For each unseen sample of the class, LRP-epsilon runs from one logit (relevance 1)
    to the penultimate activations ``a``:
    ``R_j = a_j sum_k w_jk R_k / (z_k + eps sign(z_k))``, the bias being part of ``z``.
    The ``per_sample`` neurons of largest signed relevance are noted; the ``neurons``
    noted most often form S (equal counts: the larger summed relevance first). Then,
    biases untouched::

        incoming   kernel[..., n]  of the layer that produces neuron n in S
        outgoing   head[n, :]
        class      head[n, c]      for the classes c of the samples

    are set to zero, or N(0, scale) or Laplace(0, scale) noise is added (the paper's
    control). Noise is drawn for each kernel with a key of its own, in the shape in
    which it is stored. The kernels may be stored in any order of axes (``x @ W.T``,
    a convolution's ``[out, in, h, w]``): the trace tells which is which.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      per_sample: K of the paper.
      neurons: H of the paper.
      samples: N of the paper; at most so many unseen examples are looked at.
      epsilon: of the LRP rule.
      seed: ``"argmax"`` (published) or ``"label"``.
      edit: one of :data:`EDITS`.
      weights: any of :data:`WEIGHTS`. Default, as published: ``("incoming", "class")``
        where each penultimate neuron is a unit of one layer (MLP, CNN), and
        ``("outgoing",)`` where it is not (a residual network's pooled sum) or is
        no index of one axis of a stored kernel.
      scale: of the noise; positive.

    Raises:
      ValueError: an argument out of range; ``"incoming"`` asked of a network whose
        penultimate neurons belong to no single layer, or to one with no such axis;
        a head that does not read ``[B, n]``, or whose kernel is no leaf of the
        variables with an axis of inputs and one of classes; more neurons than
        there are.

    Note:
      The layers before the penultimate one are untouched: a linear probe on their
      features still finds the class. Read the probe and relearn rows of the report.
    """
    _check(per_sample, neurons, samples, epsilon, seed, edit, weights, scale)
    model = functionalize(model)
    relevance = lrp(model.apply, rules=rules.epsilon(epsilon))

    def init(variables: Variables, sets: Sets, key: Key) -> PathState:
        assert sets.unseen is not None
        shape = (1, *sets.unseen.examples.x.shape[1:])
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        units = structure(model.apply, variables, x)
        read = jax.eval_shape(features(model.apply), variables, x).shape
        _check_head(units[-1], read, max(per_sample, neurons))
        site = _site(units, weights)
        zeros = jnp.zeros(site.head.in_features, jnp.float32)
        classes = jnp.zeros(site.head.out_features, jnp.float32)
        return PathState(variables, zeros, zeros, classes, key, site)

    def step(state: PathState, batches: Batches) -> tuple[PathState, Info]:
        batch = batches.unseen
        assert batch is not None
        source = seeds.argmax() if seed == "argmax" else seeds.label(batch.y)
        found = relevance(state.variables, batch.x, seed=source)
        r = found.inputs[state.site.head.key].astype(jnp.float32)
        weight = batch.weight[:, None]
        _, top = jax.lax.top_k(r, per_sample)
        chosen = jnp.zeros_like(r).at[jnp.arange(len(r))[:, None], top].set(1)
        labels = jax.nn.one_hot(batch.y, len(state.classes), dtype=jnp.float32)
        info = Info({"relevance": jnp.sum(r * weight)}, jnp.all(jnp.isfinite(r)))
        return state._replace(
            counts=state.counts + jnp.sum(chosen * weight, axis=0),
            total=state.total + jnp.sum(r * weight, axis=0),
            classes=state.classes + jnp.sum(labels * weight, axis=0),
        ), info

    def result(state: PathState) -> Variables:
        return _edit(state.variables, _masks(state, neurons), edit, scale, state.key)

    return Unlearner(init, step, result, Needs(unseen=True, once=True, samples=samples))


def _site(units: tuple[Unit, ...], weights: tuple[str, ...] | None) -> Site:
    """The head, what feeds it, and which of their weights to edit."""
    head, producer = units[-1], _producer(units)
    if weights is None:
        known = producer is not None and producer.out_axis is not None
        weights = ("incoming", "class") if known else ("outgoing",)
    if "incoming" in weights:
        _check_producer(head, producer)
    return Site(head, producer, tuple(weights))


def _producer(units: tuple[Unit, ...]) -> Unit | None:
    """The unit whose neurons the last one reads."""
    found = [unit for unit in units if unit.kernel == units[-1].producer]
    if len({unit.out_axis for unit in found}) > 1:
        # Applied twice, once transposed: its neurons lie along no one axis.
        return found[0]._replace(out_axis=None)
    return found[0] if found else None


def _masks(state: PathState, neurons: int) -> dict[str, jax.Array]:
    """What to edit of each kernel; broadcasts against it as it is stored."""
    head, producer, targets = state.site.head, state.site.producer, state.site.targets
    order = jnp.lexsort((-state.total, -state.counts))
    chosen = jnp.zeros(len(order), bool).at[order[:neurons]].set(True) & (state.counts > 0)

    def along(mask: jax.Array, kernel: str, axis: int | None) -> jax.Array:
        rank = _leaf(state.variables, kernel).ndim
        return jnp.expand_dims(mask, [d for d in range(rank) if d != axis])

    masks: dict[str, jax.Array] = {}
    if {"outgoing", "class"} & set(targets):
        masks[head.kernel] = along(chosen, head.kernel, head.in_axis)
    if "class" in targets and "outgoing" not in targets:
        masks[head.kernel] &= along(state.classes > 0, head.kernel, head.out_axis)
    if "incoming" in targets:
        assert producer is not None
        incoming = along(chosen, producer.kernel, producer.out_axis)
        # One kernel may be both.
        masks[producer.kernel] = masks.get(producer.kernel, jnp.array(False)) | incoming
    return masks


def _edit(
    variables: Variables, masks: Mapping[str, jax.Array], edit: str, scale: float, key: Key
) -> Variables:
    """The same tree with the masked weights edited; masks broadcast against the kernels."""

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in masks:
            return leaf
        if edit == "zero":
            return jnp.where(masks[name], jnp.zeros_like(leaf), leaf)
        draw = jax.random.normal if edit == "gaussian" else jax.random.laplace
        # one key a kernel, in the order of the names
        own = jax.random.fold_in(key, sorted(masks).index(name))
        return jnp.where(masks[name], leaf + scale * draw(own, leaf.shape, leaf.dtype), leaf)

    return jax.tree_util.tree_map_with_path(one, variables)


def _leaf(variables: Variables, path: str) -> jax.Array:
    for where, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if jax.tree_util.keystr(where, simple=True, separator="/") == path:
            return leaf
    raise KeyError(path)


def _check(
    per_sample: int, neurons: int, samples: int, epsilon: float, seed: str, edit: str,
    weights: tuple[str, ...] | None, scale: float,
) -> None:  # fmt: skip
    counts = {"per_sample": per_sample, "neurons": neurons, "samples": samples}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    if epsilon < 0:
        raise ValueError(f"epsilon: expected a number >= 0, got {epsilon}")
    if seed not in ("argmax", "label"):
        raise ValueError(f"seed: expected 'argmax' or 'label', got {seed!r}")
    if edit not in EDITS:
        raise ValueError(f"edit: expected one of {EDITS}, got {edit!r}")
    if weights is not None and (not weights or set(weights) - set(WEIGHTS)):
        raise ValueError(f"weights: expected some of {WEIGHTS}, got {weights!r}")
    if not scale > 0:
        raise ValueError(f"scale: expected a positive number, got {scale}")


def _check_head(head: Unit, read: tuple[int, ...], asked: int) -> None:
    """Whether it reads ``[B, n]``, is stored with an axis for each side, and is wide enough."""
    if None in (head.in_axis, head.out_axis):
        raise ValueError(
            "model: expected a last linear operation whose kernel is a leaf of the variables, "
            "or one transposed, reshaped or scaled by constants, with one axis of inputs and "
            f"one of classes, got {head.kernel} with axes {head.in_axis} and {head.out_axis}"
        )
    if read != (1, head.in_features):
        raise ValueError(
            f"model: expected {head.key} to read [1, {head.in_features}] for one image, "
            f"got {list(read)}"
        )
    if asked > head.in_features:
        raise ValueError(
            f"per_sample, neurons: expected at most the {head.in_features} inputs of "
            f"{head.kernel}, got {asked}"
        )


def _check_producer(head: Unit, producer: Unit | None) -> None:
    """Whether incoming weights can be told."""
    if producer is not None and producer.out_axis is not None:
        return
    reason = f"the inputs of {head.kernel} are not the units of one layer"
    if producer is not None:
        reason = f"the units of {producer.kernel} do not lie along one axis of a stored kernel"
    raise ValueError(f"weights: expected 'outgoing' or 'class', as {reason}, got 'incoming'")
