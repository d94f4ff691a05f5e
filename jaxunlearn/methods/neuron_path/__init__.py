"""Zero-shot class unlearning by relevance and neuronal path perturbation (paper 1).

Chang, Zhu, Wu, Zhou, "Zero-shot class unlearning via layer-wise relevance analysis
and neuronal path perturbation", arXiv 2410.23693. No training image is used: the
method declares that it needs unseen examples alone.

``weights``: the neurons of a network, where their weights lie, and edits of these. ``budget``:
the neurons that carry the class, and how many of them it takes.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn.attribution import lrp, starts
from jaxunlearn.attribution.lrp import Start
from jaxunlearn.attribution.lrp import rules as _rules
from jaxunlearn.core import errors
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
from jaxunlearn.data.examples import inputs_like
from jaxunlearn.jaxprs.structure import logits
from jaxunlearn.methods.neuron_path import budget as budgets
from jaxunlearn.methods.neuron_path import weights as sites
from jaxunlearn.models import functionalize

STARTS: dict[str, Callable[[jax.Array], Start]] = {
    "argmax": lambda y: _signed(starts.argmax(times_logit=True)),
    "label": lambda y: _signed(starts.label(y, times_logit=True)),
    "margin": lambda y: starts.margin(y, times_logit=True),
}
"""From labels ``[B]`` to the relevance that propagation starts from."""


def _signed(start: Callable[[jax.Array], jax.Array]) -> Start:
    """Returns 1 where a logit is positive, -1 where it is negative.

    Propagation divides by the logit: with 1 on a negative one, the neurons that speak against
    the class would come out as those that speak for it.
    """
    return lambda logits: jnp.sign(start(logits))


class PathState(NamedTuple):
    """Counts that a pass over unseen images accumulates.

    Attributes:
      variables: the original, unchanged: the result is made of it.
      unseen: for each layer, what was counted over examples of what is to be forgotten.
      holdout: the same over examples of other classes, where these are compared.
      classes: ``float32 [K]``, how many samples of each class to be forgotten were seen.
      budget: ``float32 []``, as given, or as calibrated on the examples so far.
      shown: the examples so far, where the budget is calibrated.
      noise: key of the edits that draw; ``None`` for the others.
      layers: static.
    """

    variables: Variables
    unseen: budgets.Tallies
    holdout: budgets.Tallies | None
    classes: jax.Array
    budget: jax.Array
    shown: Batches
    noise: Key | None
    layers: tuple[sites.Layer, ...]


def neuron_path(
    model: Model | Apply,
    *,
    layers: str | tuple[str, ...] = "last",
    per_sample: int | None = None,
    neurons: int | None = None,
    share: float | None = None,
    cumulative: float | None = None,
    samples: int = 36,
    score: str = "votes",
    specificity: float = 0.0,
    start: str = "argmax",
    epsilon: float = 0.1,
    rules: _rules.Rules | None = None,
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
    convolution's ``[out, in, h, w]``), and the head may be a convolution in front of a mean over
    positions or behind it: the trace tells which is which. A negative logit starts with -1, so
    that what speaks for the class has positive relevance. Log-probabilities are as good as
    logits. The published method is the default; the arguments marked * are our own.

    A network is *signed* where its head reads what no one layer makes and what may be negative:
    behind a layer norm or a sum of branches without a relu (vision transformers, mixers,
    ConvNeXt). The relevance of a class is there spread over all features, and each of them
    serves all classes: the defaults are those published for a vision transformer.

    Args:
      model: see :func:`jaxunlearn.functionalize`; of logits or log-probabilities.
      layers: * ``"last"``: the penultimate neurons, as published; ``"all"``: those of
        every linear unit but the head, and what the head reads; in signed networks without
        the units that no other reads one by one, which write to what everything behind reads
        (patch embeddings, projections at the end of a block). Or regular expressions,
        each found in the path of some unit's kernel. Relevance is summed over positions.
      per_sample: K of the paper; for ``score="votes"``. Default 50; in signed networks 400/768
        of a layer's width. Outside of the last layer K and H are capped at a layer's width.
      neurons: H of the paper, for each layer. Default 80, where no other budget is given; in
        signed networks ``share=500/768`` of what the head reads, and * .02 of every other layer.
      share: * the budget as a share of each layer's neurons, rounded, at least one.
      cumulative: * as many neurons, in the order of their scores, as hold this share of
        the layer's positive relevance.
      samples: N of the paper; at most so many examples of each set are looked at.
      score: ``"votes"`` (published), or * ``"relevance"``: the mean over the samples.
      specificity: * how many times the score of unseen samples of other classes
        (``Sets.holdout``, with starts of their own) is subtracted. Neurons whose score
        is not positive are never edited. Where K is a layer's whole width, votes tell no neuron
        from another: that layer is ranked by relevance, which a warning and the diagnostic
        ``layers_by_relevance`` tell.
      start: ``"argmax"`` (published), * ``"label"``, or * ``"margin"``: the label's
        logit less that of its best rival, both as large as they are.
      epsilon: of the published rule; 0 is LRP-0. Not used where ``rules`` are given.
      rules: * any of :mod:`jaxunlearn.attribution.lrp.rules`.
      edit: ``"zero"``; the paper's controls ``"gaussian"`` and ``"laplace"``, which add
        N(0, scale) or Laplace(0, scale), drawn for each kernel with a key of its own, in
        the shape in which it is stored; * ``"scale"``: times ``scale``; * ``"sign"``:
        times -1; * ``"resample"``: each weight is drawn, with replacement, from those of the
        same kernel that are not edited, so that no zeros betray the edit.
      scale: see ``edit``; positive.
      weights: any of :data:`WEIGHTS`. Default, as published: ``("incoming", "class")``
        where each penultimate neuron is a unit of one layer (MLP, CNN), ``("class",)`` in
        signed networks (vision transformers), and ``("outgoing",)`` where else it is not (a
        residual network's pooled sum) or is no index of one axis of a stored kernel.
        Inner layers have no ``"class"``. A
        layer that has none of these weights is left out of ``"all"``, and is an error
        where it is named.
      biases: * whether ``"incoming"`` includes the bias of a neuron, where one is added
        straight to the unit's output.
      calibrate: * takes the smallest budget, of up to 15 between the given one and its
        128th part, with which the edited model's accuracy on the unseen samples so far
        is at most ``target``; where there is none, that of the lowest accuracy, with a warning. On
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
        such axis; a head that does not read ``[B, ..., n]``, or whose kernel is no leaf of
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
    given = budgets.budget_of(neurons, share, cumulative)
    errors.expect_counts(samples=samples)
    if per_sample is not None:
        errors.expect_counts(per_sample=per_sample)
    errors.expect_at_least(0, specificity=specificity, epsilon=epsilon)
    errors.expect_one_of(budgets.SCORES, score=score)
    errors.expect_one_of(STARTS, start=start)
    errors.expect_patterns(("last", "all"), layers=layers)
    sites.check_edit(edit, scale, weights, biases)
    errors.expect_between(0, 1, target=target)
    errors.expect_flags(calibrate=calibrate, guard=guard)
    if guard and not calibrate:
        raise ValueError("guard: expected calibrate=True beside it, got False")
    model = functionalize(model)
    if rules is None:
        rules = _rules.epsilon(epsilon) if epsilon > 0 else _rules.zero()
    relevance = lrp(logits(model.apply), rules=rules)
    compared = specificity > 0
    guarded = calibrate and (guard or compared)

    def budget_of(found: tuple[sites.Layer, ...]) -> budgets.Budget:
        signed = any(layer.signed for layer in found)
        return given or budgets.default_budget(signed, len(found) == 1)

    def factor_of(layer: sites.Layer, found: tuple[sites.Layer, ...]) -> float:
        """Returns how many times the budget of the others a layer has, of the default one."""
        more = given is None and layer.signed and len(found) > 1
        return budgets.SIGNED_SHARE / budgets.PATH_SHARE if more else 1.0

    def noted(layer: sites.Layer) -> int:
        """Returns K."""
        if per_sample is None and layer.signed:
            return max(round(budgets.SIGNED_NOTED * layer.width), 1)
        return per_sample or budgets.NOTED

    def scored_by(layer: sites.Layer) -> str:
        alike = compared and noted(layer) >= layer.width
        return "relevance" if alike else score

    def by_relevance(found: tuple[sites.Layer, ...]) -> list[str]:
        """Lists layers in which votes cannot tell neurons apart."""
        return [layer.name for layer in found if scored_by(layer) != score]

    def init(variables: Variables, sets: Sets, key: Key) -> PathState:
        assert sets.unseen is not None
        x = inputs_like(sets.unseen)
        found = sites.find_layers(model.apply, relevance, variables, x, layers, weights, biases)
        budget = budget_of(found)
        if layers == "last":
            most = max(
                noted(found[0]) if score == "votes" else 1,
                budget.value if budget.kind == "neurons" else 1,
            )
            found[0].expect_width("per_sample, neurons", most)
        if by_relevance(found):
            warnings.warn(
                "neuron_path: expected per_sample below the width of "
                f"{', '.join(by_relevance(found))}, where votes tell no neuron from another; "
                "ranked there by relevance",
                stacklevel=2,
            )
        zeros = tuple(budgets.start_tally(layer.width) for layer in found)
        num_classes = jax.eval_shape(model.apply, variables, x).shape[-1]
        return PathState(
            variables=variables,
            unseen=zeros,
            holdout=zeros if compared else None,
            classes=jnp.zeros(num_classes, jnp.float32),
            budget=jnp.asarray(budget.value, jnp.float32),
            shown=Batches(
                unseen=budgets.make_room(sets.unseen, samples) if calibrate else None,
                holdout=budgets.make_room(sets.holdout, samples) if guarded else None,
            ),
            noise=key if edit in sites.DRAWN else None,
            layers=found,
        )

    def look(state: PathState, batch: Batch) -> list[jax.Array]:
        """Computes the relevance of each layer's neurons, ``[B, n]``."""
        found = relevance(state.variables, batch.x, start=STARTS[start](batch.y))
        return [layer.relevance(found) for layer in state.layers]

    def chosen(state: PathState) -> list[jax.Array]:
        """Marks the neurons to edit in each layer, ``bool [n]``."""
        others = state.holdout or (None,) * len(state.layers)
        ranked = [
            budgets.rank_neurons(own, other, scored_by(layer), specificity)
            for layer, own, other in zip(state.layers, state.unseen, others, strict=True)
        ]
        kind = budget_of(state.layers).kind
        return [
            budgets.choose(one, kind, state.budget * factor_of(layer, state.layers))
            for layer, one in zip(state.layers, ranked, strict=True)
        ]

    def counted(
        tallies: budgets.Tallies, values: list[jax.Array], batch: Batch, state: PathState
    ) -> budgets.Tallies:
        most = [min(noted(layer), layer.width) for layer in state.layers]
        return budgets.add_batch(tallies, values, batch.weight, most)

    def result(state: PathState) -> Variables:
        where = sites.masks_of(state.variables, state.layers, chosen(state), state.classes > 0)
        return sites.edit_weights(state.variables, where, edit, scale, state.noise)

    def calibrated(state: PathState, batches: Batches) -> tuple[PathState, dict[str, jax.Array]]:
        """Finds the budget that suits the examples so far, and tells what it achieves."""
        shown = budgets.add_examples(state.shown, batches)

        def edited(value: jax.Array) -> Variables:
            return result(state._replace(budget=value))

        values = budgets.smaller_budgets(budget_of(state.layers))
        value, metrics = budgets.calibrate_budget(edited, model.apply, values, shown, target)
        return state._replace(budget=value, shown=shown), metrics

    def step(
        state: PathState, batches: Batches, key: Key, count: jax.Array
    ) -> tuple[PathState, Info]:
        del key, count
        batch, other = batches.unseen, batches.holdout
        assert batch is not None
        values = look(state, batch)
        metrics = {"relevance": jnp.sum(values[-1] * batch.weight[:, None])}
        labels = jax.nn.one_hot(batch.y, len(state.classes), dtype=jnp.float32)
        state = state._replace(
            unseen=counted(state.unseen, values, batch, state),
            classes=state.classes + jnp.sum(labels * batch.weight[:, None], axis=0),
        )
        if state.holdout is not None and other is not None:
            more = look(state, other)
            holdout = counted(state.holdout, more, other, state)
            state, values = state._replace(holdout=holdout), values + more
        if calibrate:
            state, found = calibrated(state, batches)
            metrics |= found
        metrics["neurons"] = jnp.sum(jnp.concatenate(chosen(state)), dtype=jnp.float32)
        if by_relevance(state.layers):
            metrics["layers_by_relevance"] = jnp.float32(len(by_relevance(state.layers)))
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(r)) for r in values]))
        return state, Info(metrics, finite)

    def remarks(last: Mapping[str, float]) -> list[str]:
        if not calibrate or last["accuracy_unseen"] <= target:
            return []
        return [
            f"target: expected an accuracy on unseen examples of at most {target}, got "
            f"{last['accuracy_unseen']:.3g} at best; a larger budget may reach it"
        ]

    needs = Needs(unseen=True, holdout=compared or guarded, once=True, samples=samples)
    return Unlearner(
        init, step, result, needs, remarks=remarks, model=model, forgets=("class",),
        name="neuron_path",
    )  # fmt: skip
