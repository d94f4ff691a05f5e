"""What methods that compute the new model do to a toy, refuse, and cannot do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.core.errors import ConfigError, NoEffectError
from jaxunlearn.data.examples import fetch
from jaxunlearn.methods import METHODS
from jaxunlearn.methods.features_and_labels import certified_noise
from jaxunlearn.methods.shares import sample_of
from jaxunlearn.methods.ssd import adaptive_threshold, dampen
from tests import toy

FAMILY = (
    "ssd", "loss_free_ssd", "fisher", "ntk", "influence", "first_order", "second_order",
    "datamodel",
)  # fmt: skip
KEY = jax.random.key(3)


def accuracies(method, **options):
    """The shares of the forget and the retain set that are told right."""
    sets = toy.sets()
    made = ju.unlearn(method, toy.trained().variables, sets, KEY, batch_size=16, **options)
    found = []
    for part in (sets.forget, sets.retain):
        places = part.indices[: int(part.size)]
        logits = toy.mlp().apply(made.variables, fetch(part.examples, places))
        found.append(float(jnp.mean(jnp.argmax(logits, axis=1) == part.examples.y[places])))
    return found


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("ssd", {"threshold": 1.2}, {}),
        ("ssd", {"importance": "batch", "importance_batch": 16}, {}),
        ("loss_free_ssd", {}, {}),
        ("ntk", {"trapezium": True, "samples": 32}, {}),
        ("influence", {}, {}),
        ("datamodel", {}, {"steps": 100}),
    ],
)
def test_a_class_is_forgotten_and_the_others_are_not(name, options, steps):
    forget, retain = accuracies(METHODS.find(name).factory(toy.mlp(), **options), **steps)
    assert forget < 0.3
    assert retain > 0.9


def test_the_gradient_of_what_is_fitted_perfectly_forgets_nothing():
    assert accuracies(ju.first_order(toy.mlp()))[0] == 1


def test_thresholds_above_all_ratios_leave_everything_as_it_is():
    with pytest.raises(NoEffectError):
        accuracies(ju.ssd(toy.mlp(), threshold=180 / 50))


def test_the_adaptive_threshold_chooses_a_share_of_the_weights():
    rng = np.random.default_rng(0)
    own, whole = ({"w": jnp.asarray(rng.uniform(0.1, 1, 10_000), jnp.float32)} for _ in "ab")
    least = adaptive_threshold(own, whole, jnp.float32(0.1))
    shrunk = dampen({"w": jnp.ones(10_000)}, own, whole, least, 0.0)["w"] == 0
    assert int(shrunk.sum()) == round(10_000 * np.log(11) / 100)


def test_weights_that_nothing_depends_on_have_no_ratio():
    own, whole = {"w": jnp.array([0.0, 2, 1])}, {"w": jnp.array([0.0, 1, 1])}
    assert adaptive_threshold(own, whole, jnp.float32(0.0)) == 2
    assert dampen({"w": jnp.ones(3)}, own, whole, 1.0, 1.0)["w"].tolist() == [1, 0.5, 1]


def test_a_sample_depends_on_the_size_alone():
    part = toy.sets().retain
    padded = part._replace(indices=jnp.concatenate([part.indices, part.indices[:7]]))
    for count in (20, 1000):
        one, other = (sample_of(whole, count, KEY) for whole in (part, padded))
        size = min(count, int(part.size))
        assert int(one.size) == int(other.size) == size
        assert one.indices[:size].tolist() == other.indices[:size].tolist()
        assert len(set(one.indices[:size].tolist())) == size


@pytest.mark.parametrize("name", FAMILY)
def test_numbers_worth_tuning_may_be_traced(name):
    model, row = toy.mlp(), METHODS.find(name)
    assert row.tune

    def init(options):
        return row.factory(model, **options).init(toy.trained().variables, toy.sets(), KEY)

    jax.eval_shape(init, {option: jnp.float32(low) for option, (low, _) in row.tune.items()})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ssd", {"threshold": 0}, "threshold: expected a positive number, got 0"),
        ("ssd", {"dampening": -1}, "dampening: expected a number of 0 or more, got -1"),
        ("ssd", {"importance": "set"}, "importance: expected one of"),
        ("loss_free_ssd", {"adaptive": 1}, "adaptive: expected True or False, got 1"),
        ("loss_free_ssd", {"importance_batch": 0}, "importance_batch: expected a positive number"),
        ("fisher", {"noise": 0}, "noise: expected a positive number, got 0"),
        ("fisher", {"samples": 0}, "samples: expected a positive number, got 0"),
        ("fisher", {"losses": lambda v, b: b.weight}, "form: expected 'empirical' with losses"),
        ("ntk", {"ridge": 0}, "ridge: expected a positive number, got 0"),
        ("ntk", {"chunk": 0.5}, "chunk: expected a positive number, got 0.5"),
        ("influence", {"damping": -1}, "damping: expected a number of 0 or more, got -1"),
        ("influence", {"losses": lambda v, b: b.weight}, "curvature: expected 'hessian' with"),
        ("first_order", {"rate": 0}, "rate: expected a positive number, got 0"),
        ("first_order", {"correction": "relabel"}, "correction: expected one of"),
        ("second_order", {"ridge": -1}, "ridge: expected a number of 0 or more, got -1"),
        ("second_order", {"losses": lambda v, b: b.weight}, "curvature: expected 'hessian' with"),
        ("datamodel", {"outputs": "logits"}, "outputs: expected one of"),
        ("datamodel", {"ridge": float("nan")}, "ridge: expected a positive number, got nan"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        METHODS.find(name).factory(toy.mlp(), **options)


@pytest.mark.parametrize(
    "wrong", [lambda batch: batch.x, lambda batch: batch._replace(y=batch.y[:1])]
)
def test_a_correction_must_return_a_batch(wrong):
    with pytest.raises(ConfigError, match="correction: expected a function that returns a batch"):
        accuracies(ju.first_order(toy.mlp(), correction=wrong))


def test_certificates_grow_with_the_residual_and_fall_with_epsilon():
    assert certified_noise(2.0, 0.5, 0.1) == pytest.approx(4 * np.sqrt(2 * np.log(15)))
    for epsilon, delta in ((0, 0.1), (1, 0), (1, 1.5)):
        with pytest.raises(ValueError, match="expected a"):
            certified_noise(1.0, epsilon, delta)
