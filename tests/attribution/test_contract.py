"""Every rule, and every network: relevance is accounted for, and the transforms compose.

All rules run on one network with a step of every kind, and on each network a rule of each sort:
one that reads the outputs alone, one that tells signs apart, one for each layer.
"""

import contextlib
import functools
from typing import get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS

from jaxunlearn.attribution import lrp, starts
from jaxunlearn.attribution.lrp import rules
from jaxunlearn.jaxprs.program import trace
from jaxunlearn.jaxprs.steps import Kind, plan

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
START = starts.label(1, times_logit=True)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def changed(tree, change):
    """A tree whose floats are changed, on the host: there is nothing to compile."""
    floats = lambda v: jnp.issubdtype(v.dtype, jnp.floating)  # noqa: E731
    return jax.tree.map(lambda v: jax.device_put(change(np.asarray(v))) if floats(v) else v, tree)


def cast(tree, dtype):
    return changed(tree, lambda v: v.astype(dtype))


def leaves(tree):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


@functools.cache
def relevance_of(name, rule):
    """Compiled once for each network and rule, whatever asks."""
    return jax.jit(lrp(NETWORKS[name]()[0], RULES[rule]))


def test_one_network_has_a_step_of_every_kind():
    steps = plan(trace(*NETWORKS["every_step"]())).steps
    assert {step.kind for step in steps} == set(get_args(Kind)) - {"unknown", "own"}


SORTS = ("epsilon", "alpha_beta", "epsilon_gamma_box")


@contextlib.contextmanager
def told(about):
    """A failure says what it is about."""
    try:
        yield
    except AssertionError as error:
        error.add_note(about)
        raise


@pytest.mark.parametrize("name", NETWORKS)
def test_relevance_is_accounted_for_and_the_transform_composes(name):
    own = RULES if name == "every_step" else SORTS
    with jax.enable_x64(True):
        fn, *rest = NETWORKS[name]()
        variables, x = cast(rest, jnp.float64)
        both = [x, changed(x, np.negative)]
        zero = changed(x, np.zeros_like)
        # one program of all rules, each traced once, equals a loop, on one network without jit
        traces = []
        counted = {
            rule: lrp(lambda v, x: traces.append(1) or fn(v, x), RULES[rule]) for rule in own
        }
        mapped = jax.jit(
            jax.vmap(lambda x: {rule: r(variables, x, start=START) for rule, r in counted.items()})
        )
        found, silent = (
            mapped(jax.tree.map(lambda *leaves: np.stack(leaves), *pair))
            for pair in (both, (zero, zero))
        )
        assert len(traces) == len(own)
        plain = {rule: lrp(fn, RULES[rule]) for rule in own}

        def loop(variables, x):
            return {rule: relevance(variables, x, start=START) for rule, relevance in plain.items()}

        loop = loop if name == "every_step" else jax.jit(loop)
        alone = [loop(variables, one) for one in both]
        for rule in own:
            with told(f"rule {rule}"):
                assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(silent[rule]))
                check(found[rule], [one[rule] for one in alone], rule)


def check(found, alone, rule):
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(alone))
    scale = max(1.0, *(float(np.max(np.abs(v))) for v in jax.tree.leaves(alone)))
    check_ledger(alone[0], rule, 1e-11 * scale)
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *map(totals, alone))
    chex.assert_trees_all_close(totals(found), expected, atol=1e-9 * scale)


def totals(r):
    """A sum of contributions that is zero but for rounding is dead in one program, and
    held by the stabiliser in another.
    """
    return r._replace(ledger={key: entry.total for key, entry in r.ledger.items()})


def check_ledger(r, rule, tolerance):
    """What is left at the input and what was absorbed on the way is what was put in."""
    size = len(r.logits)
    absorbed = sum(entry.total for entry in r.ledger.values())
    left = sum(np.sum(leaf.reshape(size, -1), axis=1) for leaf in leaves(r.input))
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
    _, variables, x = NETWORKS[name]()
    relevance = relevance_of(name, "epsilon")
    together = relevance(variables, x, start=START)
    size = len(together.logits)
    alone = [
        relevance(variables, jax.tree.map(lambda v, i=i: v[i : i + 1], x), start=START)
        for i in range(size)
    ]
    for whole, *parts in zip(*(leaves(r.input) for r in (together, *alone)), strict=True):
        np.testing.assert_allclose(whole, np.concatenate(parts), rtol=2e-3, atol=1e-4)
    for one in alone:
        absorbed = sum(entry.total for entry in one.ledger.values())
        np.testing.assert_allclose(absorbed, one.total, atol=1e-3)
    assert all(value.total.shape == (size,) for value in together.ledger.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_it_can_be_differentiated(name):
    fn, variables, x = NETWORKS[name]()

    rule = rules.gamma() if name == "lenet" else rules.epsilon(0.1)

    def kept(variables):
        found = jax.tree.leaves(lrp(fn, rule)(variables, x, start=START).input)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in found)

    gradient = jax.jit(jax.grad(kept))(variables)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("name", "rule"),
    [*((name, "epsilon") for name in NETWORKS), ("lenet", "gamma"), ("resnet", "alpha_beta")],
)
def test_bfloat16_stays_close(name, rule):
    half = cast(NETWORKS[name]()[1:], jnp.bfloat16)
    relevance = relevance_of(name, rule)
    r = relevance(*half, start=START)
    # relevance is carried in float32, whatever the network computes in
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((r.input, r.neurons)))
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves(r))
    assert all(entry.total.dtype == jnp.float32 for entry in r.ledger.values())
    expected = relevance(*cast(half, jnp.float32), start=START)
    np.testing.assert_allclose(*leaves([r.logits, expected.logits]), atol=0.1)
    for found, wanted in zip(leaves(r.input), leaves(expected.input), strict=True):
        largest = np.max(np.abs(wanted))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=0.25 * largest)
