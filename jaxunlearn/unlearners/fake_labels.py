"""Fake labels: what the discriminator is to say of what it should not have seen.

A retrained discriminator has never seen the forgotten images: it scores forgotten items as
it scores other unseen images, and images of a forgotten class as generated ones. The
labels are a reconstruction from the abstract of arXiv 2308.09881.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.training.adversarial import mean_of

__all__ = ["FAKE_LABELS", "HOLDOUT_LABELS", "fake_label_loss"]

FAKE_LABELS = ("zero", "soft", "holdout_mean", "holdout_quantile", "holdout_logit_mse")
HOLDOUT_LABELS = ("holdout_mean", "holdout_quantile", "holdout_logit_mse")
"""Those that compare with images that no training saw."""


def fake_label_loss(
    name: str,
    logits: jax.Array,
    weight: jax.Array,
    holdout: jax.Array | None,
    soft: float = 0.5,
) -> jax.Array:
    """The discriminator's loss on images to be forgotten.

    ``BCE(d, t) = sp(d) - t d``, averaged, with ``t`` by name: ``zero``: 0; ``soft``: ``soft``;
    ``holdout_mean``: the mean of ``sigmoid(d)`` over hold-out images; ``holdout_quantile``:
    the image of rank ``r`` among those of its batch gets the quantile ``r`` of the
    hold-out's. ``holdout_logit_mse`` is ``(d - mean d_h)^2`` instead. No gradient flows
    through ``t``.

    Args:
      logits: ``d [B]`` of the images to be forgotten.
      weight: ``[B]``.
      holdout: ``[H]``, logits of the current discriminator on images no training saw.
    """
    if name in HOLDOUT_LABELS:
        assert holdout is not None
        holdout = jax.lax.stop_gradient(holdout)
    if name == "holdout_logit_mse":
        assert holdout is not None
        return mean_of(jnp.square(logits - jnp.mean(holdout)), weight)
    target: jax.Array | float = soft if name == "soft" else 0.0
    if name == "holdout_mean":
        assert holdout is not None
        target = jnp.mean(jax.nn.sigmoid(holdout))
    elif name == "holdout_quantile":
        assert holdout is not None
        target = _quantiles(jax.lax.stop_gradient(logits), jax.nn.sigmoid(holdout))
    return mean_of(jax.nn.softplus(logits) - target * logits, weight)


def _quantiles(values: jax.Array, others: jax.Array) -> jax.Array:
    """For each value the one of the others that has the same rank, ``[B]``.

    The value of rank ``r`` of ``n`` is the quantile ``(r + .5) / n``; that of others of rank
    ``s`` of ``m`` the quantile ``(s + .5) / m``, with straight lines between (Hazen).
    """
    rank = jnp.argsort(jnp.argsort(values)).astype(jnp.float32)
    place = (rank + 0.5) / len(values) * len(others) - 0.5
    return jnp.interp(place, jnp.arange(len(others), dtype=jnp.float32), jnp.sort(others))
