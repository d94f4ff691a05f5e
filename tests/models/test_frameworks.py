"""Networks of Haiku and Equinox: recognised, trained, unlearned, and handed back."""

import importlib.util

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.core.errors import ConfigError
from tests import toy

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(5), (6, *toy.SHAPE))
MISSING = [name for name in ("haiku", "equinox") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"needs {' and '.join(MISSING)} (extra test-frameworks)"
)


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Other packages rely on promotion of types and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def make_haiku(norm=True):
    import haiku as hk

    def network(x, is_training):
        x = hk.Linear(12)(x.reshape(len(x), -1))
        if norm:
            x = hk.BatchNorm(True, True, 0.9, cross_replica_axis="i")(x, is_training)
        x = jax.nn.relu(x)
        if is_training:
            x = hk.dropout(hk.next_rng_key(), 0.3, x)
        return hk.Linear(toy.NUM_CLASSES)(x)

    return (hk.transform_with_state if norm else hk.transform)(network)


def make_equinox(norm=True):
    import equinox as eqx

    class Net(eqx.Module):
        layers: list
        norm: eqx.nn.BatchNorm | None
        drop: eqx.nn.Dropout

        def __init__(self, key):
            one, other = jax.random.split(key)
            self.layers = [
                eqx.nn.Linear(36, 12, key=one), eqx.nn.Linear(12, toy.NUM_CLASSES, key=other)
            ]  # fmt: skip
            self.norm = eqx.nn.BatchNorm(12, "batch", mode="batch") if norm else None
            self.drop = eqx.nn.Dropout(0.3)

        def __call__(self, x, *rest, key=None):
            x = self.layers[0](x.reshape(-1))
            if self.norm is None:
                return self.layers[1](self.drop(jax.nn.relu(x), key=key))
            x, state = self.norm(x, rest[0])
            return self.layers[1](self.drop(jax.nn.relu(x), key=key)), state

    return eqx.nn.make_with_state(Net) if norm else Net


NETWORKS = {
    "haiku": lambda: ju.functionalize(make_haiku(), X[:1]),
    "haiku without state": lambda: ju.functionalize(make_haiku(False), X[:1]),
    "equinox": lambda: ju.functionalize(lambda key: make_equinox()(key)),
    "equinox without state": lambda: ju.functionalize(make_equinox(False)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_two_modes_differ_and_the_key_decides(name):
    model = NETWORKS[name]()
    variables = model.init(KEY)
    train, apply = jax.jit(model.apply_train), jax.jit(model.apply)
    logits, after = train(variables, X, KEY)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, variables)
    chex.assert_trees_all_equal(after["params"], variables["params"])
    assert (train(variables, X, jax.random.key(1))[0] != logits).any()
    chex.assert_trees_all_equal(apply(variables, X), apply(variables, X))
    assert ("without" in name) == ("state" not in variables)
    if "state" in variables:
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), after["state"], variables["state"])
        assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", ["haiku", "equinox"])
def test_train_unlearn_and_judge(name):
    model, sets = NETWORKS[name](), toy.sets()
    config = ju.TrainConfig(epochs=15, batch_size=32, learning_rate=5e-3)
    original = ju.train(model, ju.whole(sets.forget.examples), KEY, config=config)
    assert original.history["accuracy"][-5:].mean() > 0.8
    path = ju.neuron_path(model, per_sample=5, neurons=4, samples=8)
    models = {
        "original": original,
        "path": ju.unlearn(path, original.variables, sets, KEY),
        "labels": ju.unlearn(ju.random_label(model), original.variables, sets, KEY, steps=20),
    }
    report = ju.evaluate(model, models, original.variables, sets)
    rows = {row["name"]: row["values"] for row in report["rows"]}
    assert rows["accuracy_forget"]["labels"] < rows["accuracy_forget"]["original"]


def test_equinox_modules_come_back_as_modules():
    import equinox as eqx

    pair = make_equinox()(KEY)
    model, variables = ju.functionalize(pair), ju.variables_of(pair)
    assert set(variables["params"]["layers"]) == {"0", "1"}
    made = ju.unlearn(ju.finetune(model), variables, toy.sets(), KEY, steps=2)
    module, state = ju.into(pair, made.variables)
    assert type(module) is type(pair[0])
    assert isinstance(module.layers, list)
    chex.assert_trees_all_equal(ju.variables_of((module, state)), made.variables)
    expected = jax.vmap(lambda x: eqx.nn.inference_mode(module)(x, state)[0])(X)
    chex.assert_trees_all_close(model.apply(made.variables, X), expected, atol=1e-5)
    alone = make_equinox(False)(KEY)
    back = ju.into(alone, ju.variables_of(make_equinox(False)(jax.random.key(9))))
    assert (back.layers[0].weight != alone.layers[0].weight).any()


def test_equinox_modules_are_variables_of_a_function():
    """As the glue without ``functionalize(module)`` has it."""
    import equinox as eqx

    params, static = eqx.partition(make_equinox(False)(KEY), eqx.is_inexact_array)

    def network(variables, x):
        return jax.vmap(eqx.nn.inference_mode(eqx.combine(variables, static)))(x)

    made = ju.unlearn(ju.finetune(network), params, toy.sets(), KEY, steps=2)
    assert jax.tree.structure(made.variables) == jax.tree.structure(params)
    assert (made.variables.layers[0].weight != params.layers[0].weight).any()


def transformations():
    import equinox as eqx
    import haiku as hk

    module = make_equinox(False)(KEY)
    return {
        "vmap": (lambda: ju.functionalize(jax.vmap(module)), "give the module itself"),
        "filter_vmap": (lambda: ju.functionalize(eqx.filter_vmap(module)), "the module itself"),
        "apply": (lambda: ju.functionalize(make_haiku().apply), "give the pair"),
        "hk function": (lambda: ju.functionalize(hk.Linear), "expected an instance of Linear"),
        "haiku streams": (
            lambda: ju.functionalize(make_haiku(), streams=("noise",)), "streams: expected none"
        ),
        "init": (lambda: ju.functionalize(make_haiku()).init(KEY), "sample_input"),
        "module": (lambda: ju.functionalize(module).init(KEY), "variables_of"),
        "dict": (lambda: ju.functionalize(lambda key: {}), "returns dict"),
    }  # fmt: skip


def test_what_was_expected_is_said():
    for call, message in transformations().values():
        with pytest.raises(ConfigError, match=message):
            call()


def test_variables_of_another_equinox_network_are_named():
    model = ju.functionalize(make_equinox(False))
    variables = model.init(KEY)
    variables["params"]["layers"]["1"]["weight"] = np.zeros((toy.NUM_CLASSES, 11), np.float32)
    with pytest.raises(ConfigError, match=r"\[4, 12\] at params/layers/1/weight.*got \[4, 11\]"):
        ju.unlearn(
            ju.finetune(model, optimizer=optax.sgd(0.1)), variables, toy.sets(), KEY, steps=1
        )
    with pytest.raises(ConfigError, match="params/layers/1/weight"):
        ju.lrp(model.apply)(variables, jnp.zeros((1, *toy.SHAPE)))
