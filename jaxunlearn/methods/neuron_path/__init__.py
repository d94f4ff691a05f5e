"""Zero-shot class unlearning by relevance and neuronal path perturbation (paper 1).

Chang, Zhu, Wu, Zhou, "Zero-shot class unlearning via layer-wise relevance analysis
and neuronal path perturbation", arXiv 2410.23693. No training image is used: the
method declares that it needs unseen examples alone.

The steps of the algorithm, each in a module of its own: which neurons there are and
where their weights lie (``path_sites``), which of them carry the class
(``path_budget``), what is done to their weights (``path_edit``), and how many of them
it takes (``path_calibrate``).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.attribution import lrp
from jaxunlearn.attribution.lrp import rules as _rules
from jaxunlearn.attribution.lrp.rules import Rules
from jaxunlearn.core.types import (
    Apply,
    Batch,
    Batches,
    Info,
    Key,
    Model,
    Needs,
    Sets,
    Unlearner,
    Variables,
)
from jaxunlearn.data.batches import inputs_like
from jaxunlearn.methods.neuron_path import arguments as check
from jaxunlearn.methods.neuron_path.budget import (
    Tallies,
    choose,
    count,
    empty,
    grid,
    keep,
    ranking,
    room,
    smallest,
)
from jaxunlearn.methods.neuron_path.weights import (
    EDITS,
    WEIGHTS,
    Layer,
    edit_weights,
    find_layers,
    masks,
)
from jaxunlearn.models import functionalize

__all__ = ["EDITS", "WEIGHTS", "PathState", "neuron_path"]


class PathState(NamedTuple):
    """What a pass over unseen images accumulates.

    Attributes:
      variables: the original, unchanged until the result is asked for.
      unseen: for each layer, what was counted over examples of what is to be forgotten.
      holdout: the same over examples of other classes, where these are compared.
      classes: ``float32 [K]``, how many samples of each class to be forgotten were seen.
      budget: ``float32 []``, as given, or as calibrated on the examples so far.
      shown: the examples so far, where the budget is calibrated.
      key: for the noise edits.
      layers: static.
    """

    variables: Variables
    unseen: Tallies
    holdout: Tallies | None
    classes: jax.Array
    budget: jax.Array
    shown: Batches
    key: Key
    layers: tuple[Layer, ...]


def neuron_path(
    model: Model | Apply,
    *,
    layers: str | tuple[str, ...] = "last",
    per_sample: int = 50,
    neurons: int | None = None,
    share: float | None = None,
    cumulative: float | None = None,
    samples: int = 36,
    score: str = "votes",
    specificity: float = 0.0,
    seed: str = "argmax",
    epsilon: float = 0.1,
    rules: Rules | None = None,
    edit: str = "zero",
    scale: float = 1.0,
    weights: tuple[str, ...] | None = None,
    biases: bool = False,
    calibrate: bool = False,
    target: float = 0.05,
    guard: bool = False,
) -> Unlearner:
    """Finds the neurons that carry a class and edits their weights.

    For each unseen sample of the class, LRP runs from one logit (relevance 1) down to
    the activations ``a``; with the published rule
    ``R_j = a_j sum_k w_jk R_k / (z_k + eps sign(z_k))``, the bias being part of ``z``.
    In each layer the ``per_sample`` neurons of largest signed relevance are noted; the
    ``neurons`` noted most often form S (equal counts: the larger summed relevance
    first). Then, biases untouched::

        incoming   kernel[..., n]  of the layer that produces neuron n in S
        outgoing   kernel[n, ...]  of the layers that read neuron n
        class      head[n, c]      for the classes c of the samples

    are edited. The kernels may be stored in any order of axes (``x @ W.T``, a
    convolution's ``[out, in, h, w]``): the trace tells which is which. The published
    method is the default; the arguments marked * are our own.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      layers: * ``"last"``: the penultimate neurons, as published; ``"all"``: those of
        every linear unit but the head, and what the head reads; or regular expressions,
        each found in the path of some unit's kernel. Relevance is summed over positions.
      per_sample: K of the paper; for ``score="votes"``. Outside of the last layer K
        and H are capped at a layer's width.
      neurons: H of the paper, for each layer. Default 80, where no other budget is given.
      share: * the budget as a share of each layer's neurons, rounded, at least one.
      cumulative: * as many neurons, in the order of their scores, as hold this share of
        the layer's positive relevance.
      samples: N of the paper; at most so many examples of each set are looked at.
      score: ``"votes"`` (published), or * ``"relevance"``: the mean over the samples.
      specificity: * how many times the score of unseen samples of other classes
        (``Sets.holdout``, with seeds of their own) is subtracted. Neurons whose score
        is not positive are never edited.
      seed: ``"argmax"`` (published), * ``"label"``, or * ``"margin"``: the label's
        logit less that of its best rival.
      epsilon: of the published rule; 0 is LRP-0. Not used where ``rules`` are given.
      rules: * any of :mod:`jaxunlearn.attribution.lrp.rules`.
      edit: ``"zero"``; the paper's controls ``"gaussian"`` and ``"laplace"``, which add
        N(0, scale) or Laplace(0, scale), drawn for each kernel with a key of its own, in
        the shape in which it is stored; * ``"scale"``: times ``scale``; * ``"sign"``:
        times -1.
      scale: see ``edit``; positive.
      weights: any of :data:`WEIGHTS`. Default, as published: ``("incoming", "class")``
        where each penultimate neuron is a unit of one layer (MLP, CNN), and
        ``("outgoing",)`` where it is not (a residual network's pooled sum) or is
        no index of one axis of a stored kernel. Inner layers have no ``"class"``. A
        layer that has none of these weights is left out of ``"all"``, and is an error
        where it is named.
      biases: * whether ``"incoming"`` includes the bias of a neuron, where one is added
        straight to the unit's output.
      calibrate: * takes the smallest budget, of up to 15 between the given one and its
        128th part, with which the edited model's accuracy on the unseen samples so far
        is at most ``target``; where there is none, that of the lowest accuracy. On
        examples that it was not chosen by, expect a little more. Diagnostics
        ``budget``, ``accuracy_unseen`` and ``accuracy_holdout`` tell what was taken.
      target: * see ``calibrate``; from 0 to 1.
      guard: * of the budgets that reach ``target``, the one with the best accuracy on
        the other classes' unseen samples; always so where ``specificity`` is positive.

    Returns:
      A method of a single pass; it needs ``unseen``, and ``holdout`` with
      ``specificity`` or ``guard``.

    Raises:
      ValueError: an argument out of range; two budgets; ``"incoming"`` asked of a
        network whose penultimate neurons belong to no single layer, or to one with no
        such axis; a head that does not read ``[B, n]``, or whose kernel is no leaf of
        the variables with an axis of inputs and one of classes; more neurons than
        there are; no layer, or no such weights of a layer, where asked for.

    Note:
      The layers before the first edited one are untouched: a linear probe on their
      features still finds the class. Read the probe and relearn rows of the report.

      A neuron whose incoming weights are zero is constant, not silent: its bias is
      left, and behind a batch norm the shift ``beta - gamma mean / std``, which no
      argument takes away. ``"outgoing"`` weights take out all that a reader gets; only
      readers behind no sum of branches and no flattened positions are known.
    """
    budget = check.budget(neurons, share, cumulative)
    check.numbers(per_sample, samples, specificity, epsilon, scale, target)
    check.words(layers, score, seed, edit, weights)
    check.together(edit, scale, weights, biases, calibrate, guard)
    model = functionalize(model)
    if rules is None:
        rules = _rules.epsilon(epsilon) if epsilon > 0 else _rules.zero()
    relevance = lrp(model.apply, rules=rules)
    compared = specificity > 0
    guarded = calibrate and (guard or compared)

    def init(variables: Variables, sets: Sets, key: Key) -> PathState:
        assert sets.unseen is not None
        x = inputs_like(sets.unseen)
        found = find_layers(model.apply, relevance, variables, x, layers, weights, biases)
        if layers == "last":
            check.width(found[0], per_sample if score == "votes" else 1, budget)
        zeros = tuple(empty(layer.width) for layer in found)
        num_classes = jax.eval_shape(model.apply, variables, x).shape[-1]
        return PathState(
            variables=variables,
            unseen=zeros,
            holdout=zeros if compared else None,
            classes=jnp.zeros(num_classes, jnp.float32),
            budget=jnp.asarray(budget.value, jnp.float32),
            shown=Batches(
                unseen=room(sets.unseen, samples) if calibrate else None,
                holdout=room(sets.holdout, samples) if guarded else None,
            ),
            key=key,
            layers=found,
        )

    def look(state: PathState, batch: Batch) -> list[jax.Array]:
        """The relevance of each layer's neurons, ``[B, n]``."""
        found = relevance(state.variables, batch.x, seed=check.SEEDS[seed](batch.y))
        return [layer.relevance(found) for layer in state.layers]

    def chosen(state: PathState) -> list[jax.Array]:
        """The neurons to edit in each layer, ``bool [n]``."""
        others = state.holdout or (None,) * len(state.layers)
        ranked = [
            ranking(own, other, score, specificity)
            for own, other in zip(state.unseen, others, strict=True)
        ]
        return [choose(one, budget.kind, state.budget) for one in ranked]

    def result(state: PathState) -> Variables:
        where = masks(state.variables, state.layers, chosen(state), state.classes > 0)
        return edit_weights(state.variables, where, edit, scale, state.key)

    def calibrated(state: PathState, batches: Batches) -> tuple[PathState, dict[str, jax.Array]]:
        """The state with the budget that suits the examples so far, and what it achieves."""
        shown = keep(state.shown, batches)

        def edited(value: jax.Array) -> Variables:
            return result(state._replace(budget=value))

        value, metrics = smallest(edited, model.apply, grid(budget), shown, target)
        return state._replace(budget=value, shown=shown), metrics

    def step(state: PathState, batches: Batches) -> tuple[PathState, Info]:
        batch, other = batches.unseen, batches.holdout
        assert batch is not None
        values = look(state, batch)
        metrics = {"relevance": jnp.sum(values[-1] * batch.weight[:, None])}
        labels = jax.nn.one_hot(batch.y, len(state.classes), dtype=jnp.float32)
        state = state._replace(
            unseen=count(state.unseen, values, batch.weight, per_sample),
            classes=state.classes + jnp.sum(labels * batch.weight[:, None], axis=0),
        )
        if state.holdout is not None and other is not None:
            more = look(state, other)
            counted = count(state.holdout, more, other.weight, per_sample)
            state, values = state._replace(holdout=counted), values + more
        if calibrate:
            state, found = calibrated(state, batches)
            metrics |= found
        metrics["neurons"] = jnp.sum(jnp.concatenate(chosen(state)), dtype=jnp.float32)
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(r)) for r in values]))
        return state, Info(metrics, finite)

    holdout = compared or guarded
    needs = Needs(unseen=True, holdout=holdout, once=True, samples=samples)
    return Unlearner(init, step, result, needs)
