"""SCRUB: steps away from the original on what is to be forgotten, steps towards it elsewhere."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.core.errors import (
    expect_at_least,
    expect_counts,
    expect_flags,
    expect_one_of,
    expect_positive,
    expect_shares,
)
from jaxunlearn.core.trees import choose
from jaxunlearn.core.types import (
    Apply,
    Batches,
    Info,
    Key,
    Model,
    Needs,
    Sets,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.methods.shares import forget_fraction
from jaxunlearn.methods.terms import expect_weights, kl_divergences
from jaxunlearn.models import functionalize
from jaxunlearn.training.curvature import mean_over
from jaxunlearn.training.descent import (
    Context,
    DescentState,
    LossAndMore,
    accuracy,
    cross_entropy,
    descent,
    example_mean,
    trained,
    with_trained,
)

TURNS = ("rounds", "steps")
"""Ways in which steps of both kinds take turns."""


class Rewound(NamedTuple):
    """State that remembers models.

    Attributes:
      inner: of the method itself.
      rounds: what is trained, at the end of each round, leaves ``[rounds, ...]``.
      last: ``int32 []``, the round that the last step was in.
      forget, reference: the sets on which errors are compared.
    """

    inner: DescentState
    rounds: Any
    last: jax.Array
    forget: Subset
    reference: Subset


def is_max_step(
    count: jax.Array, length: int, share: jax.Array | float, turns: str, rounds: int
) -> jax.Array:
    """Tells whether a step raises the divergence, ``bool []``; the first of a round never does.

    Args:
      count: ``int32 []``, steps done.
      length: steps in a round.
      share: of a round's steps that do, at most 1.
      turns: ``"rounds"``: one after the other behind the first step, at least one where the round
        has two; ``"steps"``: evenly among the others.
      rounds: that have such steps.
    """
    place = count % length
    share = jnp.asarray(share, jnp.float32)
    if turns == "rounds":
        among = jnp.maximum(jnp.round(share * length).astype(jnp.int32), 1)
        found = place <= jnp.minimum(among, length - 1)
    else:
        before, after = (jnp.floor(share * (place + n).astype(jnp.float32)) for n in (0, 1))
        found = after > before
    return found & (place >= 1) & (count // length < rounds)


def scrub(
    model: Model | Apply,
    *,
    optimizer: optax.GradientTransformation | None = None,
    loss_weight: float = 0.99,
    kl_weight: float = 0.001,
    temperature: float = 4.0,
    rounds: int = 3,
    max_rounds: int = 2,
    max_share: float | None = None,
    turns: str = "rounds",
    rewind: bool = False,
    request: str = "class",
    steps: int = 100,
) -> Unlearner:
    """Climbs the divergence from the original on forget batches, and descends it on retain batches.

    With ``D(B) = T^2 mean KL(p_o || p_S)``, softmaxes of logits divided by ``T``:

    * max step: ``J = -D(B_f)``;
    * min step: ``J = g l(B_r) + a D(B_r)``.

    ``steps`` are divided into ``rounds``, the epochs of the paper; the first ``max_rounds`` of
    them have max steps, the others are repair. A round begins with a min step: at ``S = T_o`` the
    divergence is smallest and its gradient 0, so that a max step there would do nothing (and an
    optimizer that divides by the gradient's size would follow the rounding). ``D`` has no bound:
    many max steps ruin the network.

    The network runs in inference mode: batch statistics of forget images alone would ruin every
    other class. For classes and items; not exact.

    Args:
      model: see :func:`jaxunlearn.functionalize`.
      optimizer: default Adam with rate 5e-4.
      loss_weight, kl_weight, temperature: ``g``, ``a``, ``T``; small sets had 1, .5 and 2.
      rounds, max_rounds: see above; small sets had 10 and 3.
      max_share: of a round's steps that are max steps, above 0 and at most 1; its first step never
        is one. ``None``: the forget set's share of both sets, as when each is passed through once.
      turns: ``"rounds"``: a round's max steps follow each other behind its first step;
        ``"steps"``: they are spread among the others.
      rewind: keep the model of each round's end, and return that whose error on the forget set is
        nearest to the last model's error on examples of the same kind that no training saw
        (SCRUB+R): less is forgotten, and a membership attack finds less.
      request: ``"class"`` or ``"items"``: these examples are ``unseen``, or ``holdout``.
      steps: how many the method will do.

    Source: Kurmanji et al., "Towards unbounded machine unlearning", NeurIPS 2023.
    """
    expect_weights(loss_weight=loss_weight, kl_weight=kl_weight)
    expect_positive(temperature=temperature)
    expect_counts(rounds=rounds, steps=steps)
    expect_at_least(0, max_rounds=max_rounds)
    expect_one_of(TURNS, turns=turns)
    expect_one_of(("class", "items"), request=request)
    expect_flags(rewind=rewind)
    if max_share is not None:
        expect_shares(max_share=max_share)
    model = functionalize(model)
    optimizer = optax.adam(5e-4) if optimizer is None else optimizer
    length = max(1, -(-steps // rounds))

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        forget, retain = batches.forget, batches.retain
        assert forget is not None
        assert retain is not None
        away = is_max_step(context.step, length, context.prepared, turns, max_rounds)
        # one pass through each network, whichever kind of step it is
        batch = choose(away, forget, retain)
        logits = model.apply(variables, batch.x)
        teacher = model.apply(context.original, batch.x)
        apart = example_mean(kl_divergences(teacher, logits, temperature), batch.weight)
        apart *= temperature**2
        learn = loss_weight * cross_entropy(logits, batch.y, batch.weight) + kl_weight * apart
        right = accuracy(logits, batch)
        metrics = {"max_step": away.astype(jnp.float32), "kl": apart, "accuracy": right}
        return jnp.where(away, -apart, learn), (variables, metrics)

    beside = {"unseen" if request == "class" else "holdout": rewind}
    needs = Needs(forget=True, retain=True, original=True, **beside)
    method = descent(objective, optimizer, needs, model=model)

    def start(variables: Variables, sets: Sets, key: Key) -> DescentState:
        forget, retain = sets.forget, sets.retain
        assert forget is not None
        assert retain is not None
        share = forget_fraction(forget, retain) if max_share is None else max_share
        return method.init(variables, sets, key, jnp.asarray(share, jnp.float32))

    if not rewind:
        return method._replace(init=start)
    step_once = method.step
    assert step_once is not None

    def init(variables: Variables, sets: Sets, key: Key) -> Rewound:
        assert sets.forget is not None
        reference = sets.unseen if request == "class" else sets.holdout
        assert reference is not None
        stack = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (rounds, *leaf.shape)), trained(variables)
        )
        state = start(variables, sets, key)
        return Rewound(state, stack, jnp.int32(0), sets.forget, reference)

    def step(state: Rewound, batches: Batches, key: Key, count: jax.Array) -> tuple[Rewound, Info]:
        inner, info = step_once(state.inner, batches, key, count)
        number = jnp.minimum(count // length, rounds - 1)
        # what a round wrote last is its end
        stack = jax.tree.map(
            lambda all_, leaf: all_.at[number].set(leaf), state.rounds, trained(inner.variables)
        )
        return state._replace(inner=inner, rounds=stack, last=number), info

    def result(state: Rewound) -> Variables:
        variables = state.inner.variables
        at = rewound_to(model, variables, state.rounds, state.last, state.forget, state.reference)
        return with_trained(variables, jax.tree.map(lambda leaf: leaf[at], state.rounds))

    return Unlearner(init, step, result, needs, model=model)


def rewound_to(
    model: Model,
    variables: Variables,
    rounds: Any,
    last: jax.Array,
    forget: Subset,
    reference: Subset,
) -> jax.Array:
    """Finds the round whose forget error is nearest to the last round's error on a reference.

    Args:
      rounds: trained parameters at the ends of rounds, leaves ``[R, ...]``.
      last: ``int32 []``; later rounds are left out.

    Returns:
      ``int32 []``; of equal ones the first.
    """

    def error(params: Any, part: Subset) -> jax.Array:
        whole = with_trained(variables, params)

        def wrong(batch: Any) -> jax.Array:
            missed = jnp.argmax(model.apply(whole, batch.x), axis=-1) != batch.y
            return jnp.sum(missed.astype(jnp.float32) * batch.weight)

        return mean_over(wrong, part)

    wanted = error(jax.tree.map(lambda leaf: leaf[last], rounds), reference)
    errors = jax.lax.map(lambda params: error(params, forget), rounds)
    reached = jnp.arange(len(errors)) <= last
    return jnp.argmin(jnp.where(reached, jnp.abs(errors - wanted), jnp.inf)).astype(jnp.int32)
