"""A membership attack as a loss: forgotten examples score as those that no training saw."""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import expect_one_of
from jaxunlearn.core.trees import precise
from jaxunlearn.core.types import Apply, Batches, Model, Needs, Unlearner, Variables
from jaxunlearn.methods.terms import expect_weights, momentum_sgd
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import Context, LossAndMore, accuracy, cross_entropy, descent

ATTACKS = ("logistic", "gaussian")
RIDGE, TURNS = 0.01, 20
"""Penalty of the logistic attack's slope, and Newton steps of its fit."""


def scaled_confidences(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes ``log(p_y / (1 - p_y)) = z_y - log sum_{k != y} exp z_k``; ``[B]``.

    Of trained networks these are near to normal, which confidences are not.

    Source: Carlini et al., IEEE S&P 2022 (arXiv 2112.03570).
    """
    logits = precise(logits)
    own = jnp.arange(logits.shape[-1])[None] == labels[:, None]
    right = jnp.sum(jnp.where(own, logits, 0), axis=-1)
    return right - jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=-1)


def fit_logistic(members: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Fits ``P(member | s) = sigmoid(a s + b)`` by Newton's method.

    Minimises the mean cross-entropy of both sides, which count alike, plus
    ``.005 a^2`` on scores scaled to deviation 1.

    Args:
      members, others: scores ``[n]``, ``[m]``.

    Returns:
      ``a`` and ``b``.
    """
    both = jnp.concatenate([members, others])
    centre, spread = jnp.mean(both), jnp.maximum(jnp.std(both), 1e-6)
    x = jnp.stack([(both - centre) / spread, jnp.ones_like(both)], axis=1)
    count = jnp.asarray([len(members), len(others)], both.dtype)
    share = jnp.repeat(0.5 / count, jnp.asarray([len(members), len(others)]),
                       total_repeat_length=len(both))  # fmt: skip
    y = (jnp.arange(len(both)) < len(members)).astype(both.dtype)
    ridge = jnp.asarray([RIDGE, 0], both.dtype)

    def turn(_: jax.Array, line: jax.Array) -> jax.Array:
        p = jax.nn.sigmoid(x @ line)
        slope = x.T @ (share * (p - y)) + ridge * line
        bend = x.T @ (x * (share * p * (1 - p))[:, None]) + jnp.diag(ridge + 1e-9)
        return line - jnp.linalg.solve(bend, slope)

    a, b = jax.lax.fori_loop(0, TURNS, turn, jnp.zeros(2, both.dtype))
    return a / spread, b - a * centre / spread


def membership(kind: str, scores: jax.Array, members: jax.Array, others: jax.Array) -> jax.Array:
    """Computes an attack's probability that examples with these scores are members.

    Args:
      kind: ``"logistic"``: :func:`fit_logistic`; ``"gaussian"``: from the odds of two normal
        densities with mean and variance of each side.
      scores: ``[B]``.
      members, others: scores that the attack is fitted on; no slope goes through them.
    """
    members, others = jax.lax.stop_gradient((members, others))
    if kind == "logistic":
        a, b = fit_logistic(members, others)
        return jax.nn.sigmoid(a * scores + b)

    def log_density(side: jax.Array) -> jax.Array:
        spread = jnp.maximum(jnp.std(side), 1e-3)
        return -jnp.square((scores - jnp.mean(side)) / spread) / 2 - jnp.log(spread)

    return jax.nn.sigmoid(log_density(members) - log_density(others))


def attack_loss(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    attack_weight: float = 1.0,
    retain_weight: float = 1.0,
    attack: str = "logistic",
) -> Unlearner:
    """Lowers what a membership attack sees in the forget set; a *reconstruction*, see the source.

    ``J = r l(B_r) + g D`` with ``D = mean_i (A(s_f)_(i) - A(s_h)_(i))^2``, the squared transport
    distance of the attack's outputs in order on forget and hold-out batches. ``s`` are
    :func:`scaled_confidences`; the attack ``A`` is fitted anew in every step, on the retained batch
    (members) against the hold-out batch. Its fit and the hold-out scores are fixed: forgotten
    examples move to the hold-out's scores and not past them, where an attack turned round would
    find them again.

    The network runs in inference mode. For items: of a whole class it makes examples as confident
    as those of other classes that were not seen, which is not forgetting it. Not exact. Small
    batches leave the attack to chance.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      optimizer: default SGD with rate .01, Nesterov momentum .9.
      attack_weight, retain_weight: ``g``, ``r``.
      attack: ``"logistic"`` or ``"gaussian"``, see :func:`membership`.

    Source: reconstructed from the abstract of "Silver linings in the shadows: harnessing
    membership inference for machine unlearning", arXiv 2407.00866, which names a classification
    and a membership loss; score, attack, distance and target are ours.
    """
    expect_weights(attack_weight=attack_weight, retain_weight=retain_weight)
    expect_one_of(ATTACKS, attack=attack)
    model = functionalize(model)
    optimizer = momentum_sgd(optimizer)

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        del context
        forget, retain, holdout = batches.forget, batches.retain, batches.holdout
        assert forget is not None
        assert retain is not None
        assert holdout is not None
        z_forget, z_retain, z_holdout = (
            model.apply(variables, batch.x) for batch in (forget, retain, holdout)
        )
        seen, known = (scaled_confidences(z, b.y) for z, b in
                       ((z_forget, forget), (z_retain, retain)))  # fmt: skip
        unknown = jax.lax.stop_gradient(scaled_confidences(z_holdout, holdout.y))
        judged = membership(attack, seen, known, unknown)
        wanted = membership(attack, unknown, known, unknown)
        apart = jnp.mean(jnp.square(jnp.sort(judged) - jnp.sort(wanted)))
        learn = cross_entropy(z_retain, retain.y, retain.weight)
        metrics = {
            "accuracy": accuracy(z_retain, retain),
            "accuracy_forget": accuracy(z_forget, forget),
            "advantage": jnp.mean(judged) - jnp.mean(wanted),
        }
        return retain_weight * learn + attack_weight * apart, (variables, metrics)

    needs = Needs(forget=True, retain=True, holdout=True)
    method = descent(objective, optimizer, needs, model=model)
    return method._replace(forgets=("items",), name="attack_loss")
