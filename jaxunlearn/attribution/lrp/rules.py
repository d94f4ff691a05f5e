"""The rules: what of an output's relevance each input gets.

In order: those that weigh by the contributions as they are (LRP-0, epsilon, norm) or pass;
those for the first layer, whose input is not what a relu let through; those that tell positive
from negative contributions; published assignments of rules to the layers of a convolutional
network, in which "first" is the first linear unit in execution order.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxunlearn.attribution.lrp.assign import Pattern, Rules
from jaxunlearn.attribution.lrp.assign import operation as operation
from jaxunlearn.attribution.lrp.rule import Affine, Loss, Propagated, Rule, no_loss, share
from jaxunlearn.attribution.starts import as_array
from jaxunlearn.core.errors import (
    brief,
    expect_at_least,
    expect_flags,
    expect_numbers,
    expect_positive,
)

_CONVOLUTION = "conv_general_dilated"
_REST = ""


def epsilon(eps: float = 1e-6, *, bias: bool = True) -> Rule:
    """Makes the epsilon rule: ``R_a = a * W' (R / stab(z))``.

    One transposed operation; the forward pass is used again.

    Args:
      eps: what keeps the division from zero; it absorbs relevance.
      bias: whether ``c`` is part of ``z`` and absorbs its share.

    Raises:
      ValueError: if ``eps`` is not positive (see :func:`zero`).

    Source: Bach et al. 2015, eq. 58.
    """
    expect_positive("; LRP-0 is zero()", eps=eps)
    expect_flags(bias=bias)
    return _by_contribution(f"epsilon({eps:g})", eps, bias)


def zero(*, bias: bool = True) -> Rule:
    """Makes LRP-0: ``R_a = a * W' (R / z)``; what sits on ``z = 0`` is dropped.

    Args:
      bias: as in :func:`epsilon`.

    Source: Bach et al. 2015, eq. 56.
    """
    expect_flags(bias=bias)
    return _by_contribution("zero", 0.0, bias)


def norm(eps: float = 1e-6) -> Rule:
    """Weighs each input by its share of the output: the epsilon rule of the operation itself.

    What average pools and sums of data follow.

    Raises:
      ValueError: if ``eps`` is not positive.

    Source: Anders et al. 2021 (zennit, "Norm").
    """
    expect_positive(eps=eps)
    return _by_contribution("norm", eps, True)


def _by_contribution(name: str, eps: float, bias: bool) -> Rule:
    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> Propagated:
        del z
        s, loss = share(relevance, affine.linear(), affine.bias() if bias else None, eps)
        return Propagated(a * affine.transpose(s), loss)

    return Rule(name, propagate)


def identity() -> Rule:
    """Makes the pass rule: ``R_a = R``, for a unit whose input has the shape of its output.

    Raises:
      ValueError: when applied, if the shapes differ.

    Source: Montavon et al. 2019, for layers that are left out.
    """

    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> Propagated:
        del affine
        if a.shape != z.shape:
            raise ValueError(
                "rules: expected a unit that keeps its shape for identity(), "
                f"got {a.shape} -> {z.shape}"
            )
        return Propagated(relevance, no_loss(relevance))

    return Rule("identity", propagate, by_value=False)


def zbox(low: ArrayLike, high: ArrayLike, eps: float = 1e-6) -> Rule:
    """Makes the z-box rule, for inputs that lie between bounds, such as pixels.

    ``s = R / stab(W a - W+ l - W- h)``; ``R_a = a * W' s - l * W+' s - h * W-' s``.

    Args:
      low, high: the bounds ``l`` and ``h``, broadcast against the input as the unit reads it
        (normalised pixels if the function is given normalised pixels).
      eps: keeps the division from zero.

    Raises:
      ValueError: if a lower bound is above its upper bound, or ``eps`` is not positive.

    Source: Montavon et al. 2017, eq. 17 (z^B).
    """
    expect_positive(eps=eps)
    lows, highs = (as_array(n, v, finite=True) for n, v in (("low", low), ("high", high)))
    traced = isinstance(lows, jax.core.Tracer) or isinstance(highs, jax.core.Tracer)
    if not traced and not np.all(np.asarray(lows) <= np.asarray(highs)):
        raise ValueError(f"low, high: expected low <= high, got {brief(low)} and {brief(high)}")

    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> Propagated:
        del z
        kernel = affine.kernel()
        up, down = jnp.maximum(kernel, 0), jnp.minimum(kernel, 0)
        over, under = (
            a - jnp.broadcast_to(jnp.asarray(bound, a.dtype), a.shape) for bound in (low, high)
        )
        # W = W+ + W-: two operations each way, not three, and no difference of sums
        parts = affine.forward(over, up) + affine.forward(under, down)
        s, loss = share(relevance, parts, None, eps)
        below = over * affine.transpose(s, up) + under * affine.transpose(s, down)
        return Propagated(below, loss)

    return Rule("zbox", propagate, by_value=False)


def wsquare(eps: float = 1e-6, *, bias: bool = True) -> Rule:
    """Makes the w2 rule: by squared weights, whatever the input.

    ``s = R / stab(W^2 1 + c^2)``; ``R_a = W^2' s``.

    Args:
      eps: keeps the division from zero.
      bias: whether ``c^2`` is part of the denominator and absorbs its share.

    Raises:
      ValueError: if ``eps`` is not positive.

    Source: Montavon et al. 2017, eq. 11.
    """
    expect_positive(eps=eps)
    expect_flags(bias=bias)

    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> Propagated:
        del z
        kernel = jnp.square(affine.kernel())
        shift = jnp.square(affine.bias()) if bias else None
        s, loss = share(relevance, affine.forward(jnp.ones_like(a), kernel), shift, eps)
        return Propagated(affine.transpose(s, kernel), loss)

    return Rule("wsquare", propagate, by_value=False)


def flat(eps: float = 1e-6) -> Rule:
    """Makes the flat rule: alike to all inputs of a unit (all weights 1, no bias).

    Args:
      eps: keeps the division from zero.

    Raises:
      ValueError: if ``eps`` is not positive.

    Source: Lapuschkin et al. 2019.
    """
    expect_positive(eps=eps)

    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> Propagated:
        del z
        kernel = jnp.ones_like(affine.kernel())
        s, loss = share(relevance, affine.forward(jnp.ones_like(a), kernel), None, eps)
        return Propagated(affine.transpose(s, kernel), loss)

    return Rule("flat", propagate, by_value=False)


def zplus(eps: float = 1e-6, *, bias: bool = True) -> Rule:
    """Makes the z+ rule: only what raises the output counts.

    ``s = R / stab(W+ a+ + W- a- + c+)``; ``R_a = a+ * W+' s + a- * W-' s``.

    Args:
      eps: keeps the division from zero.
      bias: whether ``c+`` is part of the denominator and absorbs its share.

    Raises:
      ValueError: if ``eps`` is not positive.

    Source: Montavon et al. 2017 (deep Taylor), extended to inputs of both signs.
    """
    expect_positive(eps=eps)
    expect_flags(bias=bias)

    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> Propagated:
        del z
        up, _ = _parts(affine)
        shift = jnp.maximum(affine.bias(), 0) if bias else None
        s, loss = share(relevance, _raised(affine, a), shift, eps)
        if affine.nonnegative:
            return Propagated(a * affine.transpose(s, up), loss)
        return Propagated(_returned(affine, a, s, None), loss)

    return Rule("zplus", propagate)


def alpha_beta(
    alpha: float = 2.0, beta: float = 1.0, eps: float = 1e-6, *, bias: bool = True
) -> Rule:
    """Makes the alpha-beta rule: what raises and what lowers the output, weighed apart.

    ``s = R / stab(p)``, ``t = R / stab(n)``, and ``R_a = alpha (a+ * W+' s + a- * W-' s)
    - beta (a+ * W-' t + a- * W+' t)``.

    Args:
      alpha, beta: their difference is 1, neither is negative.
      eps: keeps the divisions from zero.
      bias: whether ``c+`` and ``c-`` are part of the denominators.

    Raises:
      ValueError: if ``alpha - beta`` is not 1, one is negative, or ``eps`` is not positive.

    Source: Bach et al. 2015, eq. 60.
    """
    expect_positive(eps=eps)
    expect_numbers(alpha=alpha, beta=beta)
    expect_flags(bias=bias)
    if beta < 0 or abs(alpha - beta - 1) > 1e-9:
        raise ValueError(f"alpha, beta: expected alpha - beta = 1, both >= 0, got {alpha}, {beta}")

    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> Propagated:
        del z
        raised = _raised(affine, a)
        lowered = -_lowered(affine, a, raised, needed=relevance != 0)
        c = affine.bias() if bias else jnp.zeros_like(lowered)
        s, gained = share(alpha * relevance, raised, jnp.maximum(c, 0), eps)
        t, lost = share(-beta * relevance, lowered, jnp.maximum(-c, 0), eps)
        loss = Loss(*(one + other for one, other in zip(gained, lost, strict=True)))
        return Propagated(_returned(affine, a, s, -t), loss)

    return Rule(f"alpha_beta({alpha:g}, {beta:g})", propagate)


def gamma(gamma: float = 0.25, eps: float = 1e-6, *, bias: bool = True) -> Rule:
    """Makes the gamma rule for inputs and outputs of both signs.

    What has the sign of the output counts ``1 + gamma`` times::

        z > 0:  s = R / stab(z + gamma p),  contributions of p times 1 + gamma
        z < 0:  s = R / stab(z + gamma n),  contributions of n times 1 + gamma

    and what sits on ``z = 0`` is dropped.

    Args:
      gamma: not negative; 0 is the epsilon rule, large values come close to z+.
      eps: keeps the division from zero.
      bias: whether ``c`` is part of the denominators; the sign is that of ``z`` either way.

    Raises:
      ValueError: if ``gamma`` is negative or ``eps`` not positive.

    Source: Montavon et al. 2019, in the signed form of Andeol et al. 2021.
    """
    expect_positive(eps=eps)
    expect_at_least(0, gamma=gamma)
    expect_flags(bias=bias)

    def propagate(affine: Affine, a: jax.Array, z: jax.Array, relevance: jax.Array) -> Propagated:
        linear, raised = affine.linear(), _raised(affine, a)
        up, more = z > 0, 1 + gamma
        # where z < 0 the lowered part is the larger one: the difference has its digits
        part = jnp.where(up, raised, jnp.minimum(linear - raised, 0))
        shift = None
        if bias:
            c = affine.bias()
            shift = c + gamma * jnp.where(up, jnp.maximum(c, 0), jnp.minimum(c, 0))
        silent = jnp.where(z == 0, relevance, 0)
        s, loss = share(relevance - silent, linear + gamma * part, shift, eps)
        below = _returned(affine, a, s * jnp.where(up, more, 1), s * jnp.where(up, 1, more))
        return Propagated(below, loss._replace(dead=loss.dead + silent))

    return Rule(f"gamma({gamma:g})", propagate)


# With ``p = W+ a+ + W- a- + c+`` and ``n = W+ a- + W- a+ + c-``, the output is ``z = p + n``: one
# extra forward operation serves all three (``n = z - p``), two where the input has both signs;
# and one or two transposed ones, twice as many for both signs.


def _parts(affine: Affine) -> tuple[jax.Array, jax.Array]:
    kernel = affine.kernel()
    return jnp.maximum(kernel, 0), jnp.minimum(kernel, 0)


def _raised(affine: Affine, a: jax.Array) -> jax.Array:
    """Returns the sum of the positive contributions, ``W+ a+ + W- a-``."""
    up, down = _parts(affine)
    if affine.nonnegative:
        return affine.forward(a, up)
    return affine.forward(jnp.maximum(a, 0), up) + affine.forward(jnp.minimum(a, 0), down)


def _lowered(affine: Affine, a: jax.Array, raised: jax.Array, needed: jax.Array) -> jax.Array:
    """Returns the sum of the negative contributions, ``W- a+ + W+ a-``.

    What is left of the output, at no pass. Where that difference, at a place that is needed,
    has lost more than a third of its digits, it is summed by passes of its own.
    """
    linear = affine.linear()

    def left() -> jax.Array:
        return jnp.minimum(linear - raised, 0)

    def summed() -> jax.Array:
        up, down = _parts(affine)
        if affine.nonnegative:
            return affine.forward(a, down)
        return affine.forward(jnp.maximum(a, 0), down) + affine.forward(jnp.minimum(a, 0), up)

    terms = raised + jnp.abs(linear)
    lost = needed & (raised - linear < affine.rounding ** (1 / 3) * terms)
    return jax.lax.cond(jnp.any(lost), summed, left)


def _returned(affine: Affine, a: jax.Array, s: jax.Array, t: jax.Array | None) -> jax.Array:
    """Sends ``s`` back along the positive contributions, ``t`` along the negative ones."""
    up, down = _parts(affine)

    def along(first: jax.Array, second: jax.Array) -> jax.Array:
        back = affine.transpose(s, first)
        return back if t is None else back + affine.transpose(t, second)

    if affine.nonnegative:
        return a * along(up, down)
    return jnp.maximum(a, 0) * along(up, down) + jnp.minimum(a, 0) * along(down, up)


def epsilon_plus(eps: float = 1e-6) -> Rules:
    """Assigns z+ to convolutions, epsilon to dense layers.

    Source: Montavon et al. 2019; Anders et al. 2021.
    """
    return [(_CONVOLUTION, zplus()), (_REST, epsilon(eps))]


def epsilon_plus_flat(eps: float = 1e-6) -> Rules:
    """Assigns flat to the first unit, z+ to other convolutions, epsilon to dense layers.

    Source: Anders et al. 2021.
    """
    return [(0, flat()), *_pairs(zplus(), eps)]


def epsilon_alpha2_beta1(eps: float = 1e-6) -> Rules:
    """Assigns alpha-beta with 2 and 1 to convolutions, epsilon to dense layers.

    Source: Bach et al. 2015; Anders et al. 2021.
    """
    return _pairs(alpha_beta(2, 1), eps)


def epsilon_alpha2_beta1_flat(eps: float = 1e-6) -> Rules:
    """Assigns flat to the first unit, otherwise as :func:`epsilon_alpha2_beta1`.

    Source: Anders et al. 2021.
    """
    return [(0, flat()), *_pairs(alpha_beta(2, 1), eps)]


def epsilon_gamma_box(low: ArrayLike, high: ArrayLike, eps: float = 1e-6) -> Rules:
    """Assigns z-box to a first convolution, gamma with .25 to others, epsilon to dense layers.

    Args:
      low, high: bounds of the input, see :func:`zbox`.
      eps: of the dense layers.

    Source: Montavon et al. 2019; Anders et al. 2021.
    """
    return [((0, _CONVOLUTION), zbox(low, high)), *_pairs(gamma(0.25), eps)]


def _pairs(convolution: Rule, eps: float) -> list[tuple[Pattern, Rule]]:
    return [(_CONVOLUTION, convolution), (_REST, epsilon(eps))]
