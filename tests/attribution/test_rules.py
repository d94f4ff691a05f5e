"""The rules one by one: what rounding does to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.attribution import lrp
from jaxunlearn.attribution.lrp import rules

ONE = np.ones((1, 1))


def in_both(rule, cases, *, relu=False, bias=0.0):
    """Returns the relevance of units in float32 and in float64, of starts of 1, and absorbed."""

    def net(v, x):
        return (jax.nn.relu(x) if relu else x) @ v[0] + v[1]

    def every(cases):
        found = [lrp(net, rule)(v, x, start=ONE) for v, x in cases]
        return [(r.input, sum(one.total for one in r.ledger.values())) for r in found]

    def run(dtype):
        given = [((np.array(v), np.array([[bias]])), np.array(x)) for v, x in cases]
        with jax.enable_x64(dtype == "float64"):
            return jax.jit(every)(jax.tree.map(lambda part: part.astype(dtype), given))

    return zip(run("float32"), run("float64"), strict=True)


# the negative part is a thousandth, a hundredth, a hundred-millionth of the positive one;
# the positive one is the smaller; and one that is not there at all
CANCELLING = [
    ([[1.0], [-1e-3]], [[100.0, 1.0]]),
    ([[2.0], [-3e-2], [0.5]], [[3.0, 1.0, 2.0]]),
    ([[1000.0], [-1e-5]], [[1.0, 1.0]]),
    ([[1.0], [1e-3], [2.0]], [[-1e-4, 1.0, 50.0]]),
    ([[0.1], [0.7], [0.3]], [[0.3, 0.1, 0.9]]),
]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("rule", [rules.alpha_beta(2, 1), rules.alpha_beta(3, 2, bias=False)])
def test_the_negative_part_has_its_digits(rule, relu):
    for found, expected in in_both(rule, CANCELLING, relu=relu):
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=2e-6)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=2e-6)


def test_the_negative_part_by_hand():
    ((found, _), _) = next(iter(in_both(rules.alpha_beta(), CANCELLING[:1])))
    np.testing.assert_allclose(found, [[2.0, -1 / (1 + 1e-3)]], rtol=1e-5)


@pytest.mark.parametrize("bias", [0.0, -100.0, 3.0])
def test_gamma_has_its_digits(bias):
    turned = [(-np.array(kernel) if bias > 0 else kernel, x) for kernel, x in CANCELLING]
    for found, expected in in_both(rules.gamma(), turned, bias=bias):
        np.testing.assert_allclose(found[0], expected[0], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("low", [-1024.0, -16.0])
def test_zbox_next_to_a_bound_has_its_digits(low):
    """The kernel is positive and the input close to the lower bound: the parts are small."""
    case = [[0.1], [0.7], [0.9]], np.array([[0.0625, 0.125, 0.0625]]) + low
    for found, expected in in_both(rules.zbox(low, 2000.0), [case]):
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
        np.testing.assert_allclose(found[0], [[1 / 24, 14 / 24, 9 / 24]], rtol=1e-4)


def test_the_extra_pass_works_in_every_transform():
    kernel, x = (jnp.asarray(np.asarray(part, np.float32)) for part in CANCELLING[0])
    relevance = lrp(lambda v, x: x @ v, rules.alpha_beta())
    one = jax.jit(lambda x: relevance(kernel, x, start=ONE).input)
    several = jnp.stack([x, x * 2, x[:, ::-1]])
    np.testing.assert_allclose(jax.vmap(one)(several), [one(x) for x in several], rtol=1e-6)
    slope = jax.jit(jax.grad(lambda x: one(x)[0, 1]))(x)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("pattern", [".*", "", ".", ".+", "^", "[^q]", "x*", "(a|)"])
def test_an_operation_for_everything_is_refused(pattern):
    """The whole network would be one step; a rule for all linear units is meant."""
    rule = rules.operation(lambda op, r: r)
    with pytest.raises(ValueError, match=r"for operation\(\), got .*, which matches all"):
        lrp(lambda v, x: x @ v, [(pattern, rule)])
    lrp(lambda v, x: x @ v, [(pattern, rules.zero())])(ONE, ONE, start=ONE)
