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

from jaxunlearn.attribution import lrp, rules, seeds, structure
from jaxunlearn.models import functionalize
from jaxunlearn.types import Apply, Batches, Info, Key, Model, Needs, Sets, Unlearner, Variables

__all__ = ["EDITS", "WEIGHTS", "PathState", "neuron_path"]

EDITS = ("zero", "gaussian", "laplace")
WEIGHTS = ("incoming", "outgoing", "class")


@jax.tree_util.register_static
@dataclass(frozen=True)
class Site:
    """Where the edit takes place: parameter paths, known from the trace."""

    head: str
    producer: str | None


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
    control).

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
        ``("outgoing",)`` where it is not (a residual network's pooled sum).
      scale: of the noise.

    Raises:
      ValueError: an argument out of range; ``"incoming"`` asked of a network whose
        penultimate neurons belong to no single layer; more neurons than there are.

    Note:
      The layers before the penultimate one are untouched: a linear probe on their
      features still finds the class. Read the probe and relearn rows of the report.
    """
    _check(per_sample, neurons, samples, epsilon, seed, edit, weights)
    model = functionalize(model)
    relevance = lrp(model.apply, rules=rules.epsilon(epsilon))

    def init(variables: Variables, sets: Sets, key: Key) -> PathState:
        assert sets.unseen is not None
        shape = (1, *sets.unseen.examples.x.shape[1:])
        units = structure(model.apply, variables, jax.ShapeDtypeStruct(shape, jnp.float32))
        head = units[-1]
        site = Site(head.kernel, head.producer)
        width, num_classes = _leaf(variables, head.kernel).shape
        _check_site(site, width, weights, max(per_sample, neurons))
        zeros = jnp.zeros(width, jnp.float32)
        classes = jnp.zeros(num_classes, jnp.float32)
        return PathState(variables, zeros, zeros, classes, key, site)

    def step(state: PathState, batches: Batches) -> tuple[PathState, Info]:
        batch = batches.unseen
        assert batch is not None
        source = seeds.argmax() if seed == "argmax" else seeds.label(batch.y)
        found = relevance(state.variables, batch.x, seed=source)
        r = found.inputs[state.site.head].astype(jnp.float32)
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
        order = jnp.lexsort((-state.total, -state.counts))
        chosen = jnp.zeros(len(order), bool).at[order[:neurons]].set(True) & (state.counts > 0)
        targets = weights or (("incoming", "class") if state.site.producer else ("outgoing",))
        masks: dict[str, jax.Array] = {}
        if "incoming" in targets:
            assert state.site.producer is not None
            masks[state.site.producer] = chosen
        if "outgoing" in targets:
            masks[state.site.head] = chosen[:, None]
        elif "class" in targets:
            masks[state.site.head] = chosen[:, None] & (state.classes > 0)[None, :]
        return _edit(state.variables, masks, edit, scale, state.key)

    return Unlearner(init, step, result, Needs(unseen=True, once=True, samples=samples))


def _edit(
    variables: Variables, masks: Mapping[str, jax.Array], edit: str, scale: float, key: Key
) -> Variables:
    """The same tree with the masked weights edited; masks broadcast against the kernels."""

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in masks:
            return leaf
        mask = jnp.broadcast_to(masks[name].reshape((1,) * (leaf.ndim - masks[name].ndim)
                                                    + masks[name].shape), leaf.shape)  # fmt: skip
        if edit == "zero":
            return jnp.where(mask, jnp.zeros_like(leaf), leaf)
        draw = jax.random.normal if edit == "gaussian" else jax.random.laplace
        # one key a kernel, in the order of the names
        own = jax.random.fold_in(key, sorted(masks).index(name))
        return jnp.where(mask, leaf + scale * draw(own, leaf.shape, leaf.dtype), leaf)

    return jax.tree_util.tree_map_with_path(one, variables)


def _leaf(variables: Variables, path: str) -> jax.Array:
    for where, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if jax.tree_util.keystr(where, simple=True, separator="/") == path:
            return leaf
    raise KeyError(path)


def _check(
    per_sample: int, neurons: int, samples: int, epsilon: float, seed: str, edit: str,
    weights: tuple[str, ...] | None,
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


def _check_site(site: Site, width: int, weights: tuple[str, ...] | None, asked: int) -> None:
    if asked > width:
        raise ValueError(
            f"per_sample, neurons: expected at most the {width} inputs of {site.head}, got {asked}"
        )
    if site.producer is None and weights is not None and "incoming" in weights:
        raise ValueError(
            f"weights: expected 'outgoing' or 'class', as the inputs of {site.head} are not "
            "the units of one layer, got 'incoming'"
        )
