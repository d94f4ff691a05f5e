"""Terms of objectives on texts, and the frame that methods for language models share.

An objective is ``g F + a R``: a term ``F`` of what is to be forgotten, which is what methods
differ in, and one of what is retained. Both count the tokens of answers alone
(``jaxunlearn.language.likelihood``), and examples of weight 0 not at all.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core import errors
from jaxunlearn.core.trees import in_chunks
from jaxunlearn.core.types import (
    Batch,
    Batches,
    Key,
    LanguageModel,
    Needs,
    Preparation,
    Sets,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.data.examples import fetch, take
from jaxunlearn.language.likelihood import Texts, answer_nll, mean_nll
from jaxunlearn.training.descent import Context, DescentState, LossAndMore, Objective, descent
from jaxunlearn.training.lora import Lora, make_lora

CHUNK = 16
"""Texts of a set that go through the original together."""

RETAIN = ("nll", "kl", "embedding")
"""Terms of what is retained; see :func:`retain_term`."""


class Tuning(NamedTuple):
    """How a method trains, beside its own term; :func:`tuning` checks and makes one.

    Attributes:
      optimizer: any optax transformation.
      lora: adapters that are trained instead of all parameters, or ``None``.
      retain: a name in :data:`RETAIN`.
      retain_weight, forget_weight: ``a`` and ``g``.
    """

    optimizer: optax.GradientTransformation
    lora: Lora | None
    retain: str = "nll"
    retain_weight: float = 0.0
    forget_weight: float = 1.0


def tuning(
    model: LanguageModel,
    optimizer: optax.GradientTransformation | None,
    lora: int | None,
    lora_alpha: float | None,
    lora_on: tuple[str, ...],
    *,
    retain: str = "nll",
    retain_weight: float = 0.0,
    forget_weight: float = 1.0,
) -> Tuning:
    """Checks what all methods for language models are given.

    Args:
      optimizer: default AdamW with rate 1e-5 and decay .01, as the field fine-tunes.

    Raises:
      TypeError: ``model`` is no language model.
      ValueError: a negative weight, an unknown term, adapters that cannot be made.
    """
    errors.expect("model", model, LanguageModel, "; ju.language.build_decoder makes one")
    errors.expect_one_of(RETAIN, retain=retain)
    errors.expect_at_least(0, retain_weight=retain_weight, forget_weight=forget_weight)
    made = make_lora(lora, lora_alpha, lora_on)
    optimizer = optimizer or optax.adamw(1e-5, weight_decay=0.01)
    return Tuning(optimizer, made, retain, retain_weight, forget_weight)


def token_mean(values: jax.Array, answer: jax.Array, weight: jax.Array) -> jax.Array:
    """Computes the mean over the answers' tokens of a batch.

    ``sum_i w_i sum_t a_it v_it / sum_i w_i sum_t a_it``, where the rest of ``v`` may be anything
    that is finite.

    Args:
      values: ``[B, T]``, at the places of the tokens.
      answer: ``bool [B, T]``.
      weight: ``[B]``.
    """
    counted = weight[:, None] * answer.astype(weight.dtype)
    return jnp.sum(counted * values) / jnp.maximum(jnp.sum(counted), 1)


def log_softmax_before(logits: jax.Array) -> jax.Array:
    """Returns the log-probabilities that each token was drawn from, ``float32 [..., T, V]``.

    Logits at ``t`` are of the token at ``t + 1``: the first token's, which nothing predicts,
    repeat the second's, and no answer begins there.
    """
    moved = jnp.concatenate([logits[..., :1, :], logits[..., :-1, :]], axis=-2)
    return jax.nn.log_softmax(moved.astype(jnp.float32), axis=-1)


def token_kl(reference: jax.Array, logits: jax.Array) -> jax.Array:
    """Computes ``KL(p_ref || p) = sum_v p_ref (log p_ref - log p)`` for every token.

    Args:
      reference, logits: ``[..., T, V]``, those at ``t`` of the token at ``t + 1``.

    Returns:
      ``float32 [..., T]``, at the places of the tokens themselves.
    """
    theirs, ours = log_softmax_before(reference), log_softmax_before(logits)
    return jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)


def retain_term(
    model: LanguageModel,
    name: str,
    variables: Variables,
    batch: Batch,
    context: Context,
    logits: jax.Array | None,
) -> jax.Array:
    """Computes the term of what is retained, a mean over the answers' tokens.

    ``"nll"``: ``-log p(x_t)``. ``"kl"``: ``KL(p_o || p)`` to the original. ``"embedding"``:
    ``mean_d (h - h_o)^2`` of the residual stream behind the last block, with the original's.

    Args:
      logits: of the batch; not read by ``"embedding"``.
    """
    texts, weight = batch.x, batch.weight
    if name == "embedding":
        ours = model.states(variables, texts)[-1]
        theirs = model.states(context.original, texts)[-1]
        return token_mean(square_distance(ours, theirs), texts["answer"], weight)
    assert logits is not None
    if name == "nll":
        return mean_nll(logits, texts, weight)
    reference = model.apply(context.original, texts)
    return token_mean(token_kl(reference, logits), texts["answer"], weight)


def square_distance(ours: jax.Array, theirs: jax.Array) -> jax.Array:
    """Computes ``mean_d (h_d - h'_d)^2`` in float32, of ``[..., D]``."""
    return jnp.mean(jnp.square(ours.astype(jnp.float32) - theirs.astype(jnp.float32)), axis=-1)


def whole_texts(x: Any) -> Texts:
    """Returns tokens, mask and answer mask alone of what may hold variants beside."""
    return {name: x[name] for name in ("tokens", "mask", "answer")}


def forward_all(
    model: LanguageModel, variables: Variables, parts: Sequence[Any], key: Key
) -> tuple[list[jax.Array], Variables]:
    """Passes several batches of texts through the network as one, in training mode.

    Returns:
      The logits of each; the variables, which differ in what is not trained.
    """
    texts = [whole_texts(x) for x in parts]
    sizes = [len(x["tokens"]) for x in texts]
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *texts)
    logits, moved = model.apply_train(variables, together, key)
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes) - 1)]
    return jnp.split(logits, ends), moved


def reference_nll(
    model: LanguageModel,
    variables: Variables,
    part: Subset,
    texts_of: Callable[[Any, jax.Array], Texts],
    several: int = 1,
) -> jax.Array:
    """Computes the original's ``-sum_t log p(x_t)`` of texts of every example of a set.

    Texts go through the network a few at a time.

    Args:
      texts_of: ``inputs of a batch, places [b] -> texts [b, T]``; the place of text ``p`` of the
        example in slot ``i`` of the set is ``several i + p``.
      several: texts of an example.

    Returns:
      ``float32 [M, several]``.
    """

    def some(places: jax.Array) -> jax.Array:
        texts = texts_of(fetch(part.examples, part.indices[places // several]), places)
        return answer_nll(model.apply(variables, whole_texts(texts)), texts)[0]

    count = len(part.indices)
    return in_chunks(some, count * several, CHUNK).reshape(count, several)


def texts_on_host(part: Subset) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the texts of a set as they are stored, and their topics, as arrays of NumPy."""
    at = np.asarray(part.indices)[: int(part.size)]
    x = jax.tree.map(np.asarray, take(part.examples.x, at))
    return x, np.asarray(part.examples.y)[at]


Begin = Callable[[Variables, Sets, Key, Any], Any]
"""``variables, sets, key, prepared -> prepared``: what an objective reads in every step, computed
in the compiled part before the first one."""

ForgetTerm = Callable[[Sequence[jax.Array], Batch, Context], jax.Array]
"""``logits of each text, batch, context -> F []``; the first text is the batch's own."""


def forgetting(
    model: LanguageModel,
    term: ForgetTerm,
    own: Tuning,
    *,
    original: bool = False,
    beside: Callable[[Batch, Context], Sequence[Texts]] | None = None,
    begin: Begin | None = None,
    prepare: Preparation | None = None,
) -> Unlearner:
    """Makes the method that minimises ``g F + a R``; without ``a`` no retained text is read.

    Args:
      term: ``F``.
      original: whether it reads the original's variables in every step.
      beside: further texts of a forget batch that the network is to read.
      begin: what the term is to find in ``context.prepared``.
      prepare: see :class:`~jaxunlearn.core.types.Unlearner`.
    """
    retained = own.retain_weight > 0
    with_logits = retained and own.retain != "embedding"
    needs = Needs(
        forget=True, retain=retained, original=original or (retained and own.retain != "nll")
    )

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        forget, retain = batches.forget, batches.retain
        assert forget is not None
        parts = [forget.x, *(() if beside is None else beside(forget, context))]
        if with_logits:
            assert retain is not None
            parts.append(retain.x)
        logits, moved = forward_all(model, variables, parts, context.key)
        theirs = logits.pop() if with_logits else None
        found = term(logits, forget, context)
        metrics = {"forget": found, "nll_forget": mean_nll(logits[0], forget.x, forget.weight)}
        loss = own.forget_weight * found
        if retained:
            assert retain is not None
            kept = retain_term(model, own.retain, variables, retain, context, theirs)
            loss, metrics["retain"] = loss + own.retain_weight * kept, kept
        return loss, (moved, metrics)

    return descend(model, objective, own, needs, begin, prepare)


def descend(
    model: LanguageModel,
    objective: Objective,
    own: Tuning,
    needs: Needs,
    begin: Begin | None = None,
    prepare: Preparation | None = None,
) -> Unlearner:
    """Makes the method that follows an objective's gradient, as :func:`forgetting` does."""
    method = descent(objective, own.optimizer, needs, prepare=prepare, model=model, lora=own.lora)
    if begin is None:
        return method
    found = begin

    def init(variables: Variables, sets: Sets, key: Key, prepared: Any = None) -> DescentState:
        return method.init(variables, sets, key, found(variables, sets, key, prepared))

    return method._replace(init=init)
