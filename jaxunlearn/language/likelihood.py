"""Likelihood of answers: one mask says which tokens are the answer's, for all that reads it.

Texts are a mapping ``{"tokens": int32 [..., T], "mask": bool [..., T], "answer": bool [..., T]}``:
a prompt with its answer behind it. ``"answer"`` is true on the answer's tokens, its end included,
and never at the first place, before which nothing stands.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Texts = Mapping[str, jax.Array]
"""Tokens, mask and answer mask; see the module's docstring."""


def token_logprobs(logits: jax.Array, texts: Texts) -> jax.Array:
    """Computes ``log p(x_t | x_<t)`` where ``x_t`` is a token of the answer, elsewhere 0.

    Args:
      logits: ``[..., T, V]``, those at ``t`` of the token at ``t + 1``.

    Returns:
      ``float32 [..., T]``, at the places of the tokens themselves.
    """
    before = logits[..., :-1, :].astype(jnp.float32)
    chosen = jnp.take_along_axis(before, texts["tokens"][..., 1:, None], axis=-1)[..., 0]
    found = chosen - jax.nn.logsumexp(before, axis=-1)
    found = jnp.where(texts["answer"][..., 1:], found, 0)
    return jnp.pad(found, [(0, 0)] * (found.ndim - 1) + [(1, 0)])


def answer_nll(logits: jax.Array, texts: Texts) -> tuple[jax.Array, jax.Array]:
    """Computes ``-sum_t log p(x_t | x_<t)`` over the answer's tokens, and their number, ``[...]``.

    An answer without tokens has 0 and 0.
    """
    total = -jnp.sum(token_logprobs(logits, texts), axis=-1)
    return total, jnp.sum(texts["answer"], axis=-1).astype(jnp.float32)


def mean_nll(logits: jax.Array, texts: Texts, weight: jax.Array | None = None) -> jax.Array:
    """Computes the mean over all answer tokens of a batch, ``sum_i w_i nll_i / sum_i w_i n_i``."""
    total, count = answer_nll(logits, texts)
    weight = jnp.ones_like(total) if weight is None else weight
    return jnp.sum(weight * total) / jnp.maximum(jnp.sum(weight * count), 1)
