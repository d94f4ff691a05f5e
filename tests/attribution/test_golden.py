"""Parity with the reference: every layer, all rules and composites, four networks."""

import functools

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from jaxunlearn.attribution import lrp
from jaxunlearn.attribution.lrp import rules

CASES = {
    # network: the taps of the reference at each unit's output and input; relevance
    # crosses activations unchanged, so that a tap behind one serves as well.
    "mlp_relu": {"fc1": ("fc1", "input"), "fc2": ("fc2", "act1"), "fc3": ("fc3", "act2")},
    "mlp_leaky": {"fc1": ("fc1", "input"), "fc2": ("fc2", "act1"), "fc3": ("fc3", "act2")},
    "lenet_bn_maxpool": {
        "conv1": ("relu1", "input"),
        "conv2": ("relu2", "pool1"),
        "fc1": ("fc1", "pool2"),
        "fc2": ("fc2", "relu3"),
    },
    "avgpool_net": {"conv1": ("relu1", "input"), "conv2": ("relu2", "pool1"), "fc": ("fc", "gap")},
}
REST = ("", rules.epsilon())
RULES = {
    "epsilon": rules.epsilon(1e-6),
    "epsilon0.25": rules.epsilon(0.25),
    "epsilon_nobias": rules.epsilon(bias=False),
    "gamma0.25": rules.gamma(0.25),
    "gamma0.25_nobias": rules.gamma(0.25, bias=False),
    "alpha2beta1": rules.alpha_beta(2, 1),
    "alpha2beta1_nobias": rules.alpha_beta(2, 1, bias=False),
    "zplus": rules.zplus(),
    "zplus_nobias": rules.zplus(bias=False),
    "flat": rules.flat(),
    "wsquare": rules.wsquare(),
    "wsquare_nobias": rules.wsquare(bias=False),
    "zbox_all": rules.zbox(-3, 3),
    "flat_first+epsilon": [(0, rules.flat()), REST],
    "wsquare_first+epsilon": [(0, rules.wsquare()), REST],
    "zbox_first+epsilon": [(0, rules.zbox(-3, 3)), REST],
    "zbox_first+zplus": [(0, rules.zbox(-3, 3)), ("", rules.zplus())],
    "EpsilonPlus": rules.epsilon_plus(),
    "EpsilonPlusFlat": rules.epsilon_plus_flat(),
    "EpsilonGammaBox": rules.epsilon_gamma_box(-3, 3),
    "EpsilonAlpha2Beta1": rules.epsilon_alpha2_beta1(),
    "EpsilonAlpha2Beta1Flat": rules.epsilon_alpha2_beta1_flat(),
}


@functools.cache
def relevances(name, dtype):
    """Of all rules, from one program for each network: to compile 22 takes three times as long."""
    golden = nets.load(name)
    variables = nets.variables_of(golden, dtype)
    x = nets.array(nets.channels_last(golden["x"]), dtype)
    start = nets.array(golden["R_out"], dtype)

    @jax.jit
    def every_rule(variables, x, start):
        found = {key: lrp(getattr(nets, name), rule) for key, rule in RULES.items()}
        whole = {key: relevance(variables, x, start=start) for key, relevance in found.items()}
        # the ledger is no part of the reference, and takes a fifth of the time
        return {key: r._replace(ledger={}, total=None) for key, r in whole.items()}

    return every_rule(variables, x, start)


def worst_error(name, rule, dtype):
    golden, r = nets.load(name), relevances(name, dtype)[rule]
    assert r.input.dtype == dtype

    def error(found, tap):
        tap = "input" if tap == "input" else f"out:{tap}"
        expected = nets.channels_last(golden[f"R/{rule}/{tap}"])
        found = np.asarray(found, np.float64).reshape(expected.shape)
        return np.max(np.abs(found - expected)) / np.max(np.abs(expected))

    errors = [error(r.input, "input")]
    for layer, (out, into) in CASES[name].items():
        key = f"params/{layer}/kernel"
        # ``pool2`` is flattened on its way to ``fc1``: the same elements, reshaped.
        errors += [error(r.neurons[key], out), error(r.inputs[key], into)]
    np.testing.assert_allclose(r.logits, golden["logits"], rtol=1e-4, atol=1e-5)
    assert list(r.neurons) == [f"params/{layer}/kernel" for layer in CASES[name]]
    return max(errors)


@pytest.mark.parametrize("name", CASES)
def test_float64_agrees_with_the_reference(name):
    with jax.enable_x64(True):
        errors = {rule: worst_error(name, rule, jnp.float64) for rule in RULES}
    assert {rule: error for rule, error in errors.items() if not error <= 1e-9} == {}


@pytest.mark.parametrize("name", CASES)
def test_float32_agrees_with_the_reference(name):
    errors = {rule: worst_error(name, rule, jnp.float32) for rule in RULES}
    most = {rule: 1e-3 if "nobias" in rule else 5e-4 for rule in RULES}
    assert {rule: error for rule, error in errors.items() if not error <= most[rule]} == {}


def test_every_rule_of_the_reference_is_here():
    for name in CASES:
        found = {key.split("/")[1] for key in nets.load(name) if key.startswith("R/")}
        assert found == set(RULES)
