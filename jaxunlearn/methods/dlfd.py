"""DLFD: learns retained examples that noise moves away from the forget set's distribution."""

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import (
    expect_at_least,
    expect_between,
    expect_counts,
    expect_numbers,
    expect_one_of,
    expect_positive,
    is_known,
)
from jaxunlearn.core.types import Apply, Batches, Model, Needs, Unlearner, Variables
from jaxunlearn.methods.attack_loss import fit_logistic
from jaxunlearn.methods.terms import cosines, split_floats
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import (
    Context,
    LossAndMore,
    accuracy,
    cross_entropies,
    cross_entropy,
    descent,
)

TRANSPORTS = ("noisy", "clean")
"""Retained examples whose distance from the forget set counts."""


def sinkhorn_plan(cost: jax.Array, blur: float | jax.Array, iterations: int) -> jax.Array:
    """Computes the plan ``T`` of least ``<T, C> + e sum T log T`` with uniform marginals.

    By turns of both potentials in logarithms, so that a small ``e`` does not underflow.

    Args:
      cost: ``C``, ``[n, m]``.
      blur: ``e``.
      iterations: turns; after the last one columns sum to ``1 / m``.

    Returns:
      ``[n, m]``.

    Source: Cuturi 2013, Sinkhorn distances.
    """
    rows, columns = cost.shape
    log_row, log_column = -jnp.log(float(rows)), -jnp.log(float(columns))
    scaled = -cost / jnp.asarray(blur, cost.dtype)

    def turn(_: jax.Array, potentials: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        _, other = potentials
        own = log_row.astype(cost.dtype) - jax.nn.logsumexp(scaled + other[None], axis=1)
        other = log_column.astype(cost.dtype) - jax.nn.logsumexp(scaled + own[:, None], axis=0)
        return own, other

    start = (jnp.zeros(rows, cost.dtype), jnp.zeros(columns, cost.dtype))
    own, other = jax.lax.fori_loop(0, iterations, turn, start)
    return jnp.exp(scaled + own[:, None] + other[None])


def transport(
    one: jax.Array, other: jax.Array, *, blur: float | jax.Array = 0.01, iterations: int = 50
) -> jax.Array:
    """Computes the optimal transport ``sum T C`` between two batches of features.

    ``C_ij = max(0, 1 - cos(a_i, b_j))``. Its slope is taken at a fixed plan: that is the slope of
    the regularised distance, whose plan is where it is least.

    Args:
      one, other: ``[n, K]`` and ``[m, K]``.
      blur, iterations: of :func:`sinkhorn_plan`.
    """
    one, other = (z.astype(jnp.promote_types(z.dtype, jnp.float32)) for z in (one, other))
    cost = jnp.maximum(1 - cosines(one[:, None], other[None]), 0)
    plan = sinkhorn_plan(jax.lax.stop_gradient(cost), blur, iterations)
    return jnp.sum(plan * cost)


def attack_accuracy(members: jax.Array, others: jax.Array) -> jax.Array:
    """Computes the balanced accuracy of a threshold on the losses that it was fitted on.

    Args:
      members, others: losses ``[n]``, ``[m]``.
    """
    slope, offset = fit_logistic(members, others)
    caught, passed = (slope * side + offset > 0 for side in (members, others))
    return (jnp.mean(caught, dtype=jnp.float32) + 1 - jnp.mean(passed, dtype=jnp.float32)) / 2


def dlfd(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    transport_weight: float = 3.0,
    loss_weights: tuple[float, float] = (0.0, 1.0),
    noise_steps: int = 15,
    noise_rate: float = 0.4,
    transports: str = "noisy",
    blur: float = 0.01,
    iterations: int = 50,
    skip_below: float = 0.15,
    request: str = "class",
    steps: int = 100,
) -> Unlearner:
    """Fine-tunes on retained examples that are moved away from those to be forgotten.

    In each step noise is found for the retained batch, from ``delta = 0`` by ``noise_steps`` times
    ``delta <- delta + s sign grad [g OT(f(x_r + delta), f(x_f)) - w l(f(x_r + delta), y_r)]``,
    then ``J = l(f(x_r + delta), y_r)`` is descended. ``f`` are the logits, ``OT`` is
    :func:`transport`, and ``w`` grows from step to step. What is moved stays between the smallest
    and the largest number of the two batches.

    Behind the first step the noise is left out, ``delta = 0``, while a membership attack fails:
    where ``|accuracy - .5|`` is below ``skip_below``. The attack is a threshold on losses, fitted
    on the forget batch against a batch that no training saw. Without these steps of ordinary
    fine-tuning nothing but moved examples is learned, and what is retained is soon forgotten too:
    at the published rate nearly every pixel ends at a bound.

    The network runs in inference mode. For items: of a class both batches lose alike, and the
    attack fails whether it is forgotten or not. Not exact.

    Args:
      model: see :func:`jaxunlearn.functionalize`; of inputs that are floats.
      optimizer: default SGD with rate .008, momentum .9 and weight decay 5e-4.
      transport_weight: ``g``.
      loss_weights: ``w`` of the first and of the last step.
      noise_steps, noise_rate: how often, and ``s``, in the units of what the network takes.
      transports: ``"noisy"`` as above; ``"clean"``: ``OT(f(x_r), f(x_f))`` as in the published
        code, which does not depend on the noise: that then lowers the loss and nothing else.
      blur, iterations: of the transport.
      skip_below: from 0, never, to .5, always; in small batches an attack is right by chance.
      request: ``"class"`` or ``"items"``: examples that no training saw are ``unseen``, or
        ``holdout``; with ``skip_below=0`` none are read.
      steps: how many the method will do.

    Raises:
      ConfigError: when traced, for inputs without floats.

    Source: Choi and Na, "Distribution-level feature distancing for machine unlearning", AAAI 2025
    (arXiv 2409.14747).
    """
    expect_at_least(0, transport_weight=transport_weight)
    if not isinstance(loss_weights, tuple | list) or len(loss_weights) != 2:
        raise ValueError(f"loss_weights: expected two numbers, got {loss_weights!r}")
    first, last = loss_weights
    expect_numbers(loss_weights=first)
    expect_numbers(loss_weights=last)
    expect_counts(noise_steps=noise_steps, iterations=iterations, steps=steps)
    expect_positive(noise_rate=noise_rate, blur=blur)
    expect_one_of(TRANSPORTS, transports=transports)
    expect_one_of(("class", "items"), request=request)
    expect_between(0, 0.5, skip_below=skip_below)
    attacks = not is_known(skip_below) or skip_below > 0
    model = functionalize(model)
    if optimizer is None:
        optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.008, momentum=0.9))

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        forget, retain = batches.forget, batches.retain
        assert forget is not None
        assert retain is not None
        own, joined = split_floats(retain.x)
        theirs, _ = split_floats(forget.x)
        ends = [(jnp.minimum(a.min(), b.min()), jnp.maximum(a.max(), b.max()))
                for a, b in zip(own, theirs, strict=True)]  # fmt: skip
        done = jnp.minimum(context.step.astype(jnp.float32) / max(steps - 1, 1), 1)
        loss_weight = first + (last - first) * done
        fixed = jax.lax.stop_gradient(variables)
        z_forget = model.apply(fixed, forget.x)
        found = jnp.float32(1)
        if attacks:
            other = batches.unseen if request == "class" else batches.holdout
            assert other is not None
            unknown = cross_entropies(model.apply(fixed, other.x), other.y)
            found = attack_accuracy(cross_entropies(z_forget, forget.y), unknown)
        skips = (jnp.abs(found - 0.5) < skip_below) & (context.step > 0)
        z_clean = model.apply(fixed, retain.x)

        def moved(noise: list[jax.Array]) -> list[jax.Array]:
            return [jnp.clip(a + d, *e) for a, d, e in zip(own, noise, ends, strict=True)]

        def far(logits: jax.Array) -> jax.Array:
            return transport(logits, z_forget, blur=blur, iterations=iterations)

        def gain(noise: list[jax.Array]) -> jax.Array:
            logits = model.apply(fixed, joined(moved(noise)))
            loss = cross_entropy(logits, retain.y, retain.weight)
            apart = far(logits if transports == "noisy" else z_clean)
            return transport_weight * apart - loss_weight.astype(loss.dtype) * loss

        def climb(_: jax.Array, noise: list[jax.Array]) -> list[jax.Array]:
            slopes = jax.grad(gain)(noise)
            return [d + jnp.asarray(noise_rate, d.dtype) * jnp.sign(g)
                    for d, g in zip(noise, slopes, strict=True)]  # fmt: skip

        turns = jnp.where(skips, 0, noise_steps)
        noise = jax.lax.fori_loop(0, turns, climb, [jnp.zeros_like(a) for a in own])
        logits = model.apply(variables, joined(moved(noise)))
        loss = cross_entropy(logits, retain.y, retain.weight)
        metrics = {
            "accuracy": accuracy(logits, retain),
            "transport_before": far(z_clean),
            "transport": far(jax.lax.stop_gradient(logits)),
            "moved": 1 - skips.astype(jnp.float32),
        }
        if attacks:
            metrics["attack"] = found
        return loss, (variables, metrics)

    beside = {"unseen" if request == "class" else "holdout": attacks}
    needs = Needs(forget=True, retain=True, **beside)
    return descent(objective, optimizer, needs, model=model)
