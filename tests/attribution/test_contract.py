"""Every rule on every network: relevance is accounted for, and the transforms compose."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS

from jaxunlearn.attribution import lrp, starts
from jaxunlearn.attribution.lrp import rules

REST = ("", rules.epsilon())
RULES = {
    "zero": rules.zero(),
    "epsilon": rules.epsilon(0.1),
    "epsilon_nobias": rules.epsilon(bias=False),
    "norm": rules.norm(),
    "gamma": rules.gamma(),
    "alpha_beta": rules.alpha_beta(),
    "zplus": rules.zplus(),
    "zbox": [(0, rules.zbox(-3, 3)), REST],
    "wsquare": [(0, rules.wsquare()), REST],
    "flat": rules.flat(),
    "identity": [("rec|query|key|value|out", rules.identity()), REST],
    "epsilon_plus": rules.epsilon_plus(),
    "epsilon_plus_flat": rules.epsilon_plus_flat(),
    "epsilon_gamma_box": rules.epsilon_gamma_box(-3, 3),
    "epsilon_alpha2_beta1": rules.epsilon_alpha2_beta1(),
    "epsilon_alpha2_beta1_flat": rules.epsilon_alpha2_beta1_flat(),
    "own": lambda affine, a, z, relevance: a * affine.transpose(relevance / (1 + jnp.abs(z))),
}
# to compile in half the time: each program runs twice
FAST = {"xla_backend_optimization_level": 0}
START = starts.label(1, times_logit=True)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def double(tree):
    return jax.tree.map(lambda v: v.astype(jnp.float64), tree)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NETWORKS)
def test_relevance_is_accounted_for_and_the_transform_composes(name, rule):
    with jax.enable_x64(True):
        fn, variables, x = NETWORKS[name]()
        variables, x = double(variables), double(x)
        plain = lrp(fn, RULES[rule])
        alone = [plain(variables, one, start=START) for one in (x, -x)]
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(alone))
        scale = max(1.0, *(float(np.max(np.abs(v))) for v in jax.tree.leaves(alone)))
        check_ledger(alone[0], rule, 1e-11 * scale)
        # one program, traced once, equals a loop without jit
        traces = []
        counted = lrp(lambda v, x: traces.append(1) or fn(v, x), RULES[rule])
        mapped = jax.jit(
            jax.vmap(lambda x: counted(variables, x, start=START)), compiler_options=FAST
        )
        expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
        found = mapped(jnp.stack([x, -x]))
        chex.assert_trees_all_close(totals(found), totals(expected), atol=1e-9 * scale)
        mapped(jnp.stack([x, x]))
        assert len(traces) == 1


def totals(r):
    """A sum of contributions that is zero but for rounding is dead in one program, and
    held by the stabiliser in another.
    """
    return r._replace(ledger={key: entry.total for key, entry in r.ledger.items()})


def check_ledger(r, rule, tolerance):
    """What is left at the input and what was absorbed on the way is what was put in."""
    size = len(r.input)
    absorbed = sum(entry.total for entry in r.ledger.values())
    left = np.sum(r.input.reshape(size, -1), axis=1)
    np.testing.assert_allclose(left + absorbed, r.logits[:, 1], atol=tolerance)
    np.testing.assert_allclose(absorbed, r.total, atol=tolerance)
    assert set(r.neurons) <= set(r.ledger)
    for key, entry in r.ledger.items():
        if key in r.neurons and r.neurons[key].shape[0] == r.inputs[key].shape[0] == size:
            above, below = (np.sum(v[key].reshape(size, -1), 1) for v in (r.neurons, r.inputs))
            np.testing.assert_allclose(entry.total, above - below, atol=tolerance)
        # built-in rules say where all of it went; a class token takes what falls on it
        if rule != "own" and not key.startswith("concatenate"):
            np.testing.assert_allclose(entry.other, 0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_examples_do_not_mix(name):
    fn, variables, x = NETWORKS[name]()
    relevance = jax.jit(lrp(fn, rules.epsilon(0.1)))
    together = relevance(variables, x, start=START)
    alone = [relevance(variables, one[None], start=START) for one in x]
    inputs = jnp.concatenate([one.input for one in alone])
    np.testing.assert_allclose(together.input, inputs, rtol=2e-3, atol=1e-4)
    for one in alone:
        absorbed = sum(entry.total for entry in one.ledger.values())
        np.testing.assert_allclose(absorbed, one.total, atol=1e-3)
    assert all(value.total.shape == (len(x),) for value in together.ledger.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_it_can_be_differentiated(name):
    fn, variables, x = NETWORKS[name]()

    rule = rules.gamma() if name == "lenet" else rules.epsilon(0.1)

    def kept(variables):
        return jnp.sum(jnp.square(lrp(fn, rule)(variables, x, start=START).input))

    gradient = jax.jit(jax.grad(kept))(variables)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("name", "rule"),
    [*((name, "epsilon") for name in NETWORKS), ("lenet", "gamma"), ("resnet", "alpha_beta")],
)
def test_bfloat16_stays_close(name, rule):
    fn, variables, x = NETWORKS[name]()
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), (variables, x))
    r = jax.jit(lrp(fn, RULES[rule]))(*half, start=START)
    assert r.input.dtype == jnp.bfloat16
    assert all(np.all(np.isfinite(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(r))
    assert all(entry.total.dtype == jnp.float32 for entry in r.ledger.values())
    expected = jax.jit(lrp(fn, RULES[rule]))(
        *jax.tree.map(lambda v: v.astype(jnp.float32), half), start=START
    )
    np.testing.assert_allclose(r.logits.astype(jnp.float32), expected.logits, atol=0.1)
    largest = np.max(np.abs(expected.input))
    np.testing.assert_allclose(
        r.input.astype(jnp.float32), expected.input, rtol=0, atol=0.25 * largest
    )
