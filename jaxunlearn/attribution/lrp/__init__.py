"""Layer-wise relevance propagation as a transform of any JAX function."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution.lrp.assign import Rules, check, operations
from jaxunlearn.attribution.lrp.rule import Rule
from jaxunlearn.attribution.lrp.rules import epsilon
from jaxunlearn.attribution.lrp.sweep import Absorbed, Sweep
from jaxunlearn.attribution.starts import argmax, as_array
from jaxunlearn.core.errors import expect_at_least
from jaxunlearn.core.trees import divide_like
from jaxunlearn.jaxprs.program import evaluate, trace, wide
from jaxunlearn.jaxprs.steps import plan

__all__ = ["Relevance", "Start", "lrp"]

Start = Callable[[jax.Array], jax.Array] | jax.typing.ArrayLike
"""A function of the logits (:mod:`jaxunlearn.attribution.starts`), or an array ``[B, K]``."""

_DEFAULT = epsilon()


class Relevance(NamedTuple):
    """Relevance of every layer.

    The keys of ``neurons`` and ``inputs`` are those of
    :class:`~jaxunlearn.jaxprs.units.Unit`: the '/'-joined key path of a linear
    unit's kernel, such as ``params/fc1/kernel``.

    Attributes:
      input: a pytree like ``x``. ``None`` stands for a leaf of integers or bools that is not
        followed, such as a mask (:func:`lrp`).
      neurons: per unit ``[B, ..., out features]``, at the outputs of the unit,
        behind bias and batch norm and before the activation.
      inputs: per unit, at its input, shaped as its operation reads it.
      named: relevance of what ``jax.ad_checkpoint.checkpoint_name`` marked, by name.
      ledger: per step that can absorb relevance, what it did absorb, ``[B]`` by cause.
        Units have their key, other steps the name of their primitive (``add``,
        ``reduce_sum#1``, ``softmax``). A step in which the examples cannot be told
        apart has no entry. Summed over all entries this is ``total``.
      total: ``[B]``, the sum of the start minus the sum of ``input``.
      logits: ``[B, K]``, the output of the function.
      start: ``[B, K]``, what relevance started from.
    """

    input: Any
    neurons: dict[str, jax.Array]
    inputs: dict[str, jax.Array]
    named: dict[str, jax.Array]
    ledger: dict[str, Absorbed]
    total: jax.Array
    logits: jax.Array
    start: jax.Array

    @property
    def gap(self) -> jax.Array:
        """Returns ``[B]``: the start less the input and all entries of the ledger.

        Zero up to rounding; where it is not, relevance was lost or made, and nothing says where.
        """
        entries = (entry.total.astype(self.total.dtype) for entry in self.ledger.values())
        return self.total - sum(entries, jnp.zeros_like(self.total))

    @property
    def arrived(self) -> jax.Array:
        """Returns ``[B]``: the share of the start that arrived at the input.

        ``|sum R_input| / |sum start|``; where the start cancels (a margin),
        ``sum |R_input| / sum |start|``.
        """
        reached, amount = self._sums(self.input)
        start, most = self._sums(self.start)
        cancels = jnp.abs(start) < 1e-3 * most
        return jnp.where(cancels, amount, jnp.abs(reached)) / jnp.where(
            cancels, most, jnp.abs(start)
        )

    @property
    def spread(self) -> jax.Array:
        """Returns ``[B]``: ``sum |R_input| / sum |start|``, large where relevance cancels."""
        return self._sums(self.input)[1] / self._sums(self.start)[1]

    @property
    def telling(self) -> jax.Array:
        """Returns ``[B]``, bool: whether the map of an example shows anything.

        It does not where less than 1 % of the start arrived at the input (the rest fell on
        biases), where its relevance is a thousand times the start (rounding and cancellation),
        or where it is no number.
        """
        return (self.arrived >= 0.01) & (self.spread <= 1000)

    def _sums(self, tree: Any) -> tuple[jax.Array, jax.Array]:
        """Returns the sum of each example, and that of the absolute values."""
        leaves = [leaf.astype(self.total.dtype) for leaf in jax.tree.leaves(tree)]
        values = [leaf.reshape(leaf.shape[0], -1) for leaf in leaves]
        total = sum((v.sum(1) for v in values), jnp.zeros_like(self.total))
        return total, sum((jnp.abs(v).sum(1) for v in values), jnp.zeros_like(self.total))

    def check(self, tolerance: float = 1e-3) -> None:
        """Warns if, for an example, the gap is above a share of ``sum |start|``, or no number.

        :func:`lrp` does so itself where its results are not traced; of what a jitted function
        returned it is asked for here.
        """
        allowed = tolerance * np.asarray(jnp.sum(jnp.abs(self.start), axis=1))
        gap = np.abs(np.asarray(self.gap))
        wrong = ~(gap <= allowed)
        if wrong.any() and not np.isfinite(gap[wrong]).all():
            warnings.warn(
                f"the logits, the start or the relevance of {int((~np.isfinite(gap)).sum())} of "
                f"{gap.size} examples is no number",
                stacklevel=3,
            )
        elif wrong.any():
            worst = int(np.argmax(gap - allowed))
            warnings.warn(
                f"the relevance of {int(wrong.sum())} of {gap.size} examples does not add up: "
                f"input and ledger miss the start by up to {gap[worst]:.2g} (example {worst}). "
                "Examples that see each other, as the nodes of a graph do, a rule of one's own, "
                "or relevance so large that it is rounding may be why",
                stacklevel=3,
            )


def lrp(
    fn: Callable[[Any, Any], jax.Array], rules: Rules = _DEFAULT, *, eps: float | None = None
) -> Callable[..., Relevance]:
    """Returns the function that computes the relevance of every layer of ``fn``.

    The function is traced to its primitive operations, which are grouped:

    * a linear operation with a constant kernel and what follows it of ``+ - * /``
      with constants (bias, batch norm in inference), folded exactly: ``rules``;
    * a function of one data value, element by element (relu, gelu, a scaling, ...): relevance
      passes unchanged. What a function is at zero (1/2 of a sigmoid) is a constant, too: it
      absorbs where a sum, an average or a product of data reads the function; in front of a
      linear unit an activation passes all, as is the custom;
    * a sum or difference: by value. A constant that is added behind no linear operation (the
      bias of a layer norm, a position embedding, batch norm in front of a relu) is a term like
      any other, and absorbs its share. Two exceptions: a number that is part of a function
      (``log(1 + exp(x))``), and what lies in front of a unit whose rule is not by value
      (``flat``, ``wsquare``, ``zbox``, ``identity``): there constants take nothing;
    * layout, slices, gathers, elements written at positions, sorted or picked by size: relevance
      returns to where its elements came from;
    * average pools, sums over positions and along edges (``segment_sum``), Fourier transforms,
      linear equations with a fixed matrix: by value, the epsilon rule of the operation;
    * comparisons, ``argmax`` and what is made of them alone are constants, unless nothing else
      leads to ``x``;
    * complex numbers: both parts have relevance of their own; that of their size goes to the
      parts by their squares;
    * maxima: all to the winner, of equals to the first; a bound that is reached absorbs;
    * a normaliser (layer, group and RMS norm): none to it, all to what it divides;
    * logits up to a shift common to all classes (``log_softmax``, ``x - max(x)``): passes to
      the logits; ``logsumexp``: its first-order expansion;
    * products of data: matrices half to each by the epsilon rule, gates (and what is divided
      by anything but a normaliser) half to each, products over positions to all alike;
    * softmax: its first-order expansion;
    * ``jit``, ``remat``, ``custom_jvp``, ``custom_vjp`` are stepped into; ``scan``, and a
      ``while`` that counts, are written out step by step; of ``cond`` and ``switch`` the branch
      that was taken gets all.

    ``x`` is an array, or a pytree of arrays with one leading axis (an image with its
    metadata, tokens with their mask). Of several, relevance goes to floats, and to integers
    that rows of a table are looked up at (tokens); where there are neither, to all integers.
    Other integers and bools (masks, lengths) are taken for constants, and their leaf is ``None``.

    Only the passes that a rule needs are made: the forward pass is used again, and
    inputs that are known not to be negative have no negative half. Nothing is jitted
    here: ``jax.jit(lrp(fn))`` traces ``fn`` once. The result composes with ``vmap`` and
    ``grad`` and works inside ``shard_map``; of examples that a mesh divides relevance is
    divided likewise (:func:`~jaxunlearn.core.trees.divide_like`).

    Args:
      fn: ``(variables, x) -> logits [B, K]``, in inference mode; ``variables`` is any pytree
        of arrays, ``x`` an array ``[B, ...]`` or a pytree of such.
      rules: one rule, or pairs ``(pattern, rule)``
        (:data:`~jaxunlearn.attribution.lrp.assign.Rules`).
      eps: the stabiliser of all that is shared out by value but the linear units, whose rules
        have their own: sums, averages, added constants, products of matrices. By default 1e-6;
        0 if every rule is ``zero()``: on a network that is linear in pieces (and one whose
        norms divide by a fixed number) LRP-0 is then the gradient times the input.

    Returns:
      ``relevance(variables, x, start=starts.argmax()) -> Relevance``. It raises
      ``NotImplementedError`` naming primitive and line where relevance meets an
      operation that is not covered, ``TypeError`` if the output is not one array, and
      ``ValueError`` if the leaves of ``x`` have no common leading axis, if the output is not
      ``[B, K]``, does not depend on ``x`` or mixes the examples (batch norm in training mode),
      or if the start does not have its shape.

    Raises:
      TypeError, ValueError: if ``rules`` is malformed, or ``eps`` negative.

    Source: Bach et al. 2015 (the rules), Achtibat et al. 2024 (attention); the
    transform is our own.
    """
    check(rules)
    if eps is not None:
        expect_at_least(0, eps=eps)
    made = [rules] if isinstance(rules, Rule) or callable(rules) else [rule for _, rule in rules]
    exact = all(isinstance(rule, Rule) and rule.name == "zero" for rule in made)
    stabilizer = eps if eps is not None else 0.0 if exact else 1e-6

    def relevance(variables: Any, x: Any, start: Start = argmax()) -> Relevance:  # noqa: B008
        planned = plan(trace(fn, variables, x), operations(rules))
        env = evaluate(planned.program, variables, x)
        logits = env[planned.program.out]
        above = _start(start, logits)
        sweep = Sweep(planned, rules, env, stabilizer)
        first = sweep.run(above)
        total = _per_example(above)
        for leaf in jax.tree.leaves(first):
            total = total - _per_example(leaf).astype(total.dtype)
        found = Relevance(
            input=jax.tree.unflatten(jax.tree.structure(x), first),
            neurons=sweep.in_order(sweep.neurons),
            inputs=sweep.in_order(sweep.inputs),
            named=sweep.in_order(sweep.named),
            ledger=sweep.in_order(sweep.ledger),
            total=total,
            logits=logits,
            start=above,
        )
        found = divide_like(x, found)
        if not isinstance(total, jax.core.Tracer):
            found.check()
        return found

    return relevance


def _start(start: Start, logits: jax.Array) -> jax.Array:
    if logits.ndim != 2:
        raise ValueError(f"fn: expected logits [B, K], got shape {logits.shape}")
    if getattr(start, "__module__", None) == argmax.__module__ and hasattr(start, "__name__"):
        raise TypeError(f"start: expected a start, got the function {start.__name__}; call it")
    above = as_array("start", start(logits) if callable(start) else start)
    if above.shape != logits.shape:
        labels = above.shape == logits.shape[:1] and jnp.issubdtype(above.dtype, jnp.integer)
        hint = "; for labels, starts.label(y)" if labels else ""
        raise ValueError(
            f"start: expected the shape of the logits {logits.shape}, got {above.shape}{hint}"
        )
    return above.astype(wide(logits.dtype))


def _per_example(values: jax.Array) -> jax.Array:
    return jnp.sum(values, axis=tuple(range(1, values.ndim)), dtype=wide(values.dtype))
