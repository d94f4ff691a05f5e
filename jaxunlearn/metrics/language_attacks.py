"""What brings answers back, and what is left inside: scores of tokens, rounding, learning again.

Programs are compiled once for a network and a shape of texts; all models of a table share them.

Legend: ``B`` texts of a batch, ``N`` of a set, ``T`` tokens, ``V`` vocabulary, ``L`` blocks.
"""

import functools
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.core.trees import named_leaves, path_name
from jaxunlearn.core.types import Batches, Key, LanguageModel, Needs, Sets, Unlearner, Variables
from jaxunlearn.engine import unlearn
from jaxunlearn.language.likelihood import Texts, answer_nll, mean_nll, token_logprobs
from jaxunlearn.methods.shares import as_subset
from jaxunlearn.metrics.robustness import round_weights
from jaxunlearn.training.descent import Context, LossAndMore, descent

MOST_TEXTS, MOST_NUMBERS = 32, 2**25
"""Texts that go through a network together, fewer where their logits are more numbers than that."""

POOL = 64
"""Texts that learning again draws its batches from, at most."""

Host = Mapping[str, np.ndarray]


class TokenScores(NamedTuple):
    """Scores of the tokens of texts given the right ones before, ``[N, T]``, read in answers alone.

    Attributes:
      logprobs: ``log p(x_t)``.
      margins: ``log p(x_t) / (1 - p(x_t))``, from logits.
      means, deviations: of ``log p(z)`` where ``z`` is drawn from ``p``.
      greedy: where the likeliest token is the text's.
      answer: where they are read.
    """

    logprobs: np.ndarray
    margins: np.ndarray
    means: np.ndarray
    deviations: np.ndarray
    greedy: np.ndarray
    answer: np.ndarray


@partial(jax.jit, static_argnames="model")
def _score(variables: Variables, x: Texts, *, model: LanguageModel) -> tuple[jax.Array, ...]:
    logits = model.apply(variables, x).astype(jnp.float32)
    before, chosen = logits[:, :-1], x["tokens"][:, 1:, None]
    logp = jax.nn.log_softmax(before)
    p = jnp.exp(logp)
    mean = jnp.sum(p * logp, axis=-1)
    deviation = jnp.sqrt(jnp.sum(p * jnp.square(logp - mean[..., None]), axis=-1))
    own = jnp.take_along_axis(before, chosen, axis=-1)[..., 0]
    places = jnp.arange(before.shape[-1], dtype=chosen.dtype)
    others = jax.nn.logsumexp(jnp.where(places[None, None] == chosen, -jnp.inf, before), axis=-1)
    greedy = jnp.argmax(before, axis=-1) == chosen[..., 0]
    later = [jnp.pad(one, [(0, 0), (1, 0)]) for one in (own - others, mean, deviation, greedy)]
    return token_logprobs(logits, x), *later


def score_tokens(model: LanguageModel, variables: Variables, texts: Host) -> TokenScores:
    """Scores texts under a model, a batch at a time.

    Args:
      texts: ``"tokens"``, ``"mask"``, ``"answer"`` ``[N, T]``; other entries are not read.

    Raises:
      ValueError: of a wrecked model, whose log-probabilities are not finite.
    """
    score = partial(_score, variables, model=model)
    answer = np.asarray(texts["answer"], bool)
    made = TokenScores(*[*_by_batch(model, variables, score, texts), answer])
    sound = np.asarray(np.isfinite(np.where(answer, made.logprobs, 0)).all(axis=1))
    if not sound.all():
        raise ValueError(
            "variables: expected finite log-probabilities, got NaN or infinity for "
            f"{np.sum(~sound)} of {len(sound)} texts"
        )
    return made


def _by_batch(model: LanguageModel, variables: Variables, run: Any, texts: Host) -> list[Any]:
    """Runs ``texts [B, T] -> arrays [B, ...]`` on all, in batches of one size, and joins them."""
    x = {name: np.asarray(texts[name]) for name in ("tokens", "mask", "answer")}
    count, length = x["tokens"].shape
    size = batch_of(model, variables, length)
    parts = []
    for at in range(0, count, size):
        rows = np.arange(at, at + size) % count  # the last batch is filled up
        parts.append(run({name: jnp.asarray(leaf[rows]) for name, leaf in x.items()}))
    return [
        np.concatenate([np.asarray(p) for p in each])[:count] for each in zip(*parts, strict=True)
    ]


def batch_of(model: LanguageModel, variables: Variables, length: int) -> int:
    """Returns how many texts of a length go through a network together."""
    one = {
        "tokens": jax.ShapeDtypeStruct((1, length), jnp.int32),
        "mask": jax.ShapeDtypeStruct((1, length), bool),
    }
    numbers = int(np.prod(jax.eval_shape(model.apply, variables, one).shape))
    return int(np.clip(MOST_NUMBERS // numbers, 1, MOST_TEXTS))


# Rounding


@partial(jax.jit, static_argnames="bits")
def rounded(variables: Variables, bits: int) -> Variables:
    """Rounds kernels to few bits, as models are often run: that can undo what unlearning did.

    Kernels are the arrays whose path ends in ``kernel``, see ``robustness.round_weights``;
    embeddings stay as they are, as in common codes.
    """
    kernels = {
        path: leaf for path, leaf in named_leaves(variables).items() if path.endswith("kernel")
    }
    found = round_weights(kernels, bits)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: found.get(path_name(path), leaf), variables
    )


# Learning again


@functools.lru_cache(maxsize=16)
def _learner(model: LanguageModel, rate: float) -> Unlearner:
    # one object for one network, so that all models of a table share one program
    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        del context
        batch = batches.forget
        assert batch is not None
        logits = model.apply(variables, batch.x)
        total, count = answer_nll(logits, batch.x)
        each = jnp.exp(-total / jnp.maximum(count, 1))
        probability = jnp.sum(batch.weight * each) / jnp.maximum(jnp.sum(batch.weight), 1)
        return mean_nll(logits, batch.x, batch.weight), (variables, {"probability": probability})

    return descent(objective, optax.adam(rate), Needs(forget=True))


def learn_again(
    model: LanguageModel,
    variables: Variables,
    texts: Host,
    key: Key,
    *,
    steps: int,
    batch_size: int,
    rate: float | None = None,
) -> tuple[Variables, np.ndarray]:
    """Trains a model on a few texts, in full: is what it forgot near at hand?

    Adam on ``-mean log p`` of answer tokens; models compared under one key see the same batches.

    Args:
      texts: ``[N, T]`` each; of more than :data:`POOL`, the first are taken.
      rate: of Adam; default ``.1 / D``, ``D`` the width of the network (.0008 at 128, .00005 at
        2048).

    Returns:
      The new variables, and ``[steps]``, the mean ``exp(-nll / n)`` of each batch before its step.

    Raises:
      DivergenceError: a step was not finite.
    """
    tokens = np.asarray(texts["tokens"])
    count = min(len(tokens), POOL)
    if rate is None:
        one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        rate = 0.1 / jax.eval_shape(model.embed, variables, one).shape[-1]
    rows = np.arange(POOL) % count  # one capacity for all: one program
    x = {name: jnp.asarray(np.asarray(texts[name])[rows]) for name in ("tokens", "mask", "answer")}
    part = as_subset(x, jnp.zeros(POOL, jnp.int32), jnp.asarray(count, jnp.int32))
    found = unlearn(
        _learner(model, rate), variables, Sets(forget=part), derive(key, Purpose.RELEARNING),
        steps=steps, batch_size=batch_size,
    )  # fmt: skip
    return found.variables, found.history["probability"]


# Depth


@partial(jax.jit, static_argnames="model")
def _drops(
    original: Variables, other: Variables, x: Texts, *, model: LanguageModel
) -> tuple[jax.Array]:
    assert model.apply_patched is not None
    patched = model.apply_patched
    states = model.states(other, x)
    read = x["answer"]
    number = jnp.maximum(jnp.sum(read, axis=-1), 1).astype(jnp.float32)
    # a token is predicted from the place before it
    before = jnp.pad(read[:, 1:], [(0, 0), (0, 1)])

    def right(logits: jax.Array) -> jax.Array:
        return jnp.sum(token_logprobs(logits, x), axis=-1) / number

    def at(layer: jax.Array) -> jax.Array:
        chosen = jnp.arange(len(states), dtype=jnp.int32) == layer
        return right(patched(original, x, states, chosen[:, None, None] & before[None]))

    whole = right(model.apply(original, x))
    found = jax.lax.map(at, jnp.arange(1, len(states), dtype=jnp.int32))
    return ((whole[None] - found).T,)


def knowledge_drops(
    model: LanguageModel, original: Variables, other: Variables, texts: Host
) -> np.ndarray:
    """Computes what is lost when the original goes on from another model's states, ``[N, L]``.

    ``d_il``: the fall of the mean log-probability of some tokens of answer ``i`` when, at the
    places that they are predicted from, the residual stream behind block ``l`` is the other
    model's. Large: the other lacks the knowledge up to there.

    Args:
      texts: ``"answer"`` marks the tokens that are looked at.

    Raises:
      ValueError: states of a wrecked model.

    Source: the unlearning depth score, as ``gnueaj/unlearning-depth-score`` has it.
    """
    run = partial(_drops, original, other, model=model)
    (found,) = _by_batch(model, original, run, texts)
    if not np.isfinite(found).all():
        raise ValueError("variables: expected finite states in all blocks, got others")
    return np.asarray(found)
