"""Attacks on results: rounding and pruning by hand, and what training brings back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.metrics import robustness
from jaxunlearn.metrics.classification import ClassifierEvidence
from tests import toy

KEY = jax.random.key(0)


def test_rounding_by_hand():
    w = jnp.array([[7.0, 0.4], [-3.4, -0.1], [0.6, 0.0]])
    variables = {"params": {"kernel": w, "bias": jnp.array([0.123, 4.5])}, "stats": {"m": w + 0.1}}
    found = robustness.round_weights(variables, 4)  # from -7 to 7 steps
    step = np.array([1.0, 0.4 / 7])
    np.testing.assert_allclose(
        found["params"]["kernel"], step * np.round(np.asarray(w) / step), rtol=1e-6
    )
    assert found["params"]["kernel"][:, 0].tolist() == [7, -3, 1]
    assert found["params"]["bias"].tolist() == variables["params"]["bias"].tolist()
    assert found["stats"]["m"] is variables["stats"]["m"]
    again = robustness.round_weights(found, 4)["params"]["kernel"]
    np.testing.assert_allclose(again, found["params"]["kernel"], rtol=1e-6)
    with pytest.raises(ValueError, match="bits: expected a whole number from 2 to 16, got 1"):
        robustness.round_weights(variables, 1)


def test_a_channel_of_zeros_stays_so():
    found = robustness.round_weights({"kernel": jnp.zeros((3, 2))}, 8)
    assert found["kernel"].tolist() == [[0, 0]] * 3


def test_pruning_by_hand():
    w = jnp.array([[1.0, -5.0, 2.0, 4.0], [-3.0, 6.0, 8.0, -7.0]])
    found = robustness.prune_weights({"params": {"kernel": w, "bias": w[0]}}, 0.3)["params"]
    assert found["kernel"].tolist() == [[0, -5, 0, 4], [0, 6, 8, -7]]
    assert found["bias"].tolist() == w[0].tolist()
    with pytest.raises(ValueError, match="share: expected a number from 0 to below 1, got 1"):
        robustness.prune_weights({"kernel": w}, 1)


@pytest.mark.parametrize("name", robustness.ATTACKS)
def test_every_attack_leaves_the_model_as_it_was(name):
    variables = toy.trained().variables
    before = jax.tree.map(np.array, variables)
    attack = robustness.ATTACKS[name].apply
    made = attack(toy.mlp(), variables, toy.sets(), KEY)
    again = attack(toy.mlp(), variables, toy.sets(), KEY)
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(again), strict=True):
        assert np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(before), strict=True):
        assert np.array_equal(a, b)
    assert jax.tree.structure(made) == jax.tree.structure(variables)


def test_coarse_rounding_brings_back_what_an_edit_of_weights_took():
    """The edited kernels are rounded to the steps of the largest weight: the edit is lost."""
    sets = toy.sets()
    edited = ju.unlearn(toy.method("neuron_path"), toy.trained().variables, sets, KEY).variables
    found = {
        name: robustness.attacked(ClassifierEvidence(toy.mlp(), edited, sets, KEY), name)
        for name in ("rounding_8", "rounding_3", "relearning_few", "tuning_others")
    }
    assert found["rounding_8"] < 0.5 < 0.8 < found["rounding_3"]
    assert found["tuning_others"] < 0.5
    assert found["relearning_few"] > 0.8
