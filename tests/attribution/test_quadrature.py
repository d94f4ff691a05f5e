"""Quadratures, and baselines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from jaxunlearn.attribution.ig import baselines, quadrature

DEGREES = {  # polynomials that n nodes integrate exactly
    quadrature.gauss_legendre: lambda n: 2 * n - 1,
    quadrature.midpoint: lambda n: 1,
    quadrature.right_riemann: lambda n: 0,
    quadrature.trapezoid: lambda n: 1,
}


@pytest.mark.parametrize("n", [2, 5, 32])
@pytest.mark.parametrize("rule", DEGREES, ids=lambda rule: rule.__name__)
def test_weights_sum_to_one_and_polynomials_are_exact(rule, n):
    nodes, weights = quadrature.check(rule(n))
    assert len(nodes) == len(weights) == n
    assert abs(weights.sum() - 1) <= 1e-14
    degree = DEGREES[rule](n)
    errors = [abs(weights @ nodes**k - 1 / (k + 1)) for k in range(degree + 2)]
    assert max(errors[:-1]) <= 1e-14
    assert errors[-1] > (0 if degree > 20 else 1e-7)


def test_a_border_lies_between_every_two_nodes():
    """What completion moves: between the nodes that it parts."""
    for n in (2, 3, 32, 200):
        nodes, weights = quadrature.gauss_legendre(n)
        borders = np.cumsum(weights)[:-1]
        assert np.all((nodes[:-1] < borders) & (borders < nodes[1:]))


def test_an_automatic_one_is_chosen_by_kinks():
    rule = quadrature.check(quadrature.automatic(5))
    for kinks, expected in ((True, quadrature.midpoint(5)), (False, quadrature.gauss_legendre(5))):
        for found, wanted in zip(quadrature.choose(rule, kinks), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    own = quadrature.trapezoid(3)
    assert quadrature.choose(own, True) is quadrature.choose(own, False) is own
    for wrong in (0, 2.5, True):
        with pytest.raises(ValueError, match="automatic: expected a number of nodes of at least 1"):
            quadrature.automatic(wrong)


def test_bad_quadratures_are_named():
    for rule in DEGREES:
        with pytest.raises(ValueError, match=rf"{rule.__name__}: expected .* at least . ?, got 0"):
            rule(0)
    with pytest.raises(ValueError, match=r"trapezoid: expected .* at least 2, got 1"):
        quadrature.trapezoid(1)
    with pytest.raises(ValueError, match=r"midpoint: expected .*, got 2.5"):
        quadrature.midpoint(2.5)
    with pytest.raises(ValueError, match=r"nodes \[n\] and weights \[n\], got \(2,\), \(1,\)"):
        quadrature.check(([0.1, 0.2], [1.0]))
    with pytest.raises(ValueError, match=r"ascending nodes within \[0, 1\], got \[0.2 0.1\]"):
        quadrature.check(([0.2, 0.1], [0.5, 0.5]))
    with pytest.raises(ValueError, match=r"ascending nodes within \[0, 1\]"):
        quadrature.check(([0.2, 1.1], [0.5, 0.5]))
    with pytest.raises(ValueError, match=r"weights of sum 1, got 0.95"):
        quadrature.check(([0.0, 1.0], [0.475, 0.475]))


# --- baselines


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 9, 2)), jnp.float32)


def test_every_shape_is_n_baselines(x):
    def shape(baseline):
        found = baselines.resolve(baseline, x)
        assert found.dtype == x.dtype
        return found.shape

    one = x.shape[1:]
    assert shape(0.5) == shape(np.zeros(one)) == (1, 1, *one)
    assert shape(x) == shape(lambda x: x) == shape(baselines.zero()) == (1, 3, *one)
    assert shape(x[:1]) == (1, 1, *one)
    assert shape(jnp.stack([x, x])) == (2, 3, *one)
    assert shape(baselines.several(np.zeros((5, *one)))) == (5, 1, *one)
    for wrong in (x[:2], x[0, 0], jnp.stack([x[:2], x[:2]]), x[None, None]):
        with pytest.raises(ValueError, match="baseline: expected one for each example"):
            shape(wrong)


def test_mean_and_zero(x):
    np.testing.assert_allclose(baselines.mean(x), np.mean(x, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(baselines.zero()(x), 0 * x)


def test_noise_is_that_of_its_key(x):
    noise = baselines.noise(jax.random.key(0), 400, scale=2.0, mean=0.5)
    found = jax.jit(lambda baseline, x: baseline(x))(noise, x)
    assert found.shape == (400, *x.shape)
    np.testing.assert_allclose(found, noise(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([found.mean(), found.std()], [0.5, 2.0], rtol=0.02)
    other = baselines.noise(jax.random.key(1), 400)(x)
    assert abs(np.corrcoef(found.ravel(), other.ravel())[0, 1]) < 0.02
    with pytest.raises(ValueError, match="noise: expected n of at least 1, got 0"):
        baselines.noise(jax.random.key(0), 0)


def test_blur_is_gaussian_and_keeps_constants():
    x = np.random.default_rng(0).normal(size=(2, 40, 31, 3)).astype(np.float32)
    found = jax.jit(lambda baseline, x: baseline(x))(baselines.blurred(1.5), jnp.asarray(x))
    expected = gaussian_filter(x, (0, 1.5, 1.5, 0), truncate=8)
    inside = (slice(None), slice(12, -12), slice(12, -12))
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-5)
    constant = jnp.full((1, 6, 7, 1), 3.0)
    np.testing.assert_allclose(baselines.blurred(2)(constant), constant, rtol=1e-5)
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="blurred: expected a positive sigma, got"):
            baselines.blurred(wrong)
