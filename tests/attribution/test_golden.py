"""Parity with the reference: every layer, three rules, four networks."""

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from jaxunlearn.attribution import lrp, rules

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
    "avgpool_net": {
        "conv1": ("relu1", "input"),
        "conv2": ("relu2", "pool1"),
        "fc": ("fc", "gap"),
    },
}
RULES = {
    "epsilon": rules.epsilon(1e-6),
    "epsilon0.25": rules.epsilon(0.25),
    "zplus": rules.zplus(),
}


def worst_error(name, rule, dtype):
    golden = nets.load(name)
    variables = nets.variables_of(golden, dtype)
    x = jnp.asarray(nets.channels_last(golden["x"]), dtype)
    relevance = jax.jit(lrp(getattr(nets, name), RULES[rule]))
    r = relevance(variables, x, seed=jnp.asarray(golden["R_out"], dtype))
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


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CASES)
def test_float64_agrees_with_the_reference(name, rule):
    with jax.enable_x64(True):
        assert worst_error(name, rule, jnp.float64) <= 1e-9


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CASES)
def test_float32_agrees_with_the_reference(name, rule):
    assert worst_error(name, rule, jnp.float32) <= 5e-4
