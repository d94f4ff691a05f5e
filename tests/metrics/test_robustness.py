"""Attacks on results: rounding and pruning by hand, and what training brings back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.metrics import comparison, measure, robustness
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


def test_a_probe_on_each_layer_finds_what_the_last_one_hides():
    """Of a head that never names the class, the layers before it are as they were."""
    variables, sets = toy.trained().variables, toy.sets()
    head = variables["params"]["head"]
    silent = {**head, "bias": head["bias"].at[1].set(-1e3)}
    hidden = {**variables, "params": {**variables["params"], "head": silent}}
    curves = {}
    for name, own in (("original", variables), ("hidden", hidden)):
        evidence = ClassifierEvidence(toy.mlp(), own, sets, KEY)
        found = measure(evidence, evidence, names=["probe_by_layer", "linear_probe"]).values
        curves[name] = found["probe_by_layer"]
        assert curves[name][1] == found["linear_probe"], "what the head reads"
    assert curves["hidden"] == curves["original"], "the classifier reads any constant away"
    assert len(curves["original"]) == 3
    assert min(curves["original"]) > 0.8
    destroyed = ClassifierEvidence(toy.mlp(), jax.tree.map(jnp.zeros_like, hidden), sets, KEY)
    assert comparison.probe_by_layer(destroyed) == [0.5] * 3


def test_layers_of_many_numbers_are_made_small():
    values = np.random.default_rng(0).normal(size=(4, 30, 30, 3))
    np.testing.assert_allclose(comparison._fewer(values), values.mean(axis=(1, 2)))
    few = np.arange(12.0).reshape(2, 2, 3)
    np.testing.assert_array_equal(comparison._fewer(few), few.reshape(2, -1))
    wide = np.random.default_rng(1).normal(size=(5, 4000))
    small = comparison._fewer(wide)
    assert small.shape == (5, comparison.MOST_FEATURES)
    distances = [np.linalg.norm(one[0] - one[1]) for one in (wide, small)]
    assert distances[1] == pytest.approx(distances[0], rel=0.1), "projections keep distances"
