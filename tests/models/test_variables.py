"""Variables in whatever containers: checked at the door, given back as what they were."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.core import freeze
from flax.training.train_state import TrainState

import jaxunlearn as ju
from jaxunlearn.core.errors import ConfigError
from tests import toy

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(5), (6, *toy.SHAPE))


class Net(linen.Module):
    norm: str | None = None

    @linen.compact
    def __call__(self, x, is_train: bool = False):
        x = linen.Dense(12, name="fc")(x.reshape(len(x), -1))
        x = linen.BatchNorm(not is_train, axis_name="batch", name="bn")(x)
        return linen.Dense(toy.NUM_CLASSES, name="head")(linen.relu(x))


class Held(NamedTuple):
    params: Any
    batch_stats: Any


@jax.tree_util.register_pytree_node_class
class Own(Mapping):
    """A mapping that JAX knows without its keys."""

    def __init__(self, held):
        self.held = held

    def __getitem__(self, name):
        return self.held[name]

    def __iter__(self):
        return iter(self.held)

    def __len__(self):
        return len(self.held)

    def tree_flatten(self):
        return list(self.held.values()), tuple(self.held)

    @classmethod
    def tree_unflatten(cls, names, values):
        return cls(dict(zip(names, values, strict=True)))


def owned(tree):
    return Own({k: owned(v) for k, v in tree.items()}) if isinstance(tree, dict) else tree


MODEL = ju.functionalize(Net(), X[:1])
CONTAINERS = {
    "frozen": freeze,
    "named tuple": lambda v: Held(**v),
    "mapping": owned,
    "mixed": lambda v: Held(freeze(v["params"]), owned(v["batch_stats"])),
}
METHODS = {
    "finetune": (ju.finetune(MODEL), {"steps": 2}),
    "retrain": (ju.retrain(MODEL, optimizer=optax.adam(1e-3)), {"steps": 2}),
    "neuron_path": (ju.neuron_path(MODEL, per_sample=5, neurons=4, samples=8), {}),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_come_back_as_what_they_were(container):
    plain = MODEL.init(KEY)
    given = CONTAINERS[container](plain)
    made = None
    for method, options in METHODS.values():
        made = ju.unlearn(method, given, toy.sets(), KEY, batch_size=16, **options).variables
        expected = ju.unlearn(method, plain, toy.sets(), KEY, batch_size=16, **options).variables
        assert jax.tree.structure(made) == jax.tree.structure(given)
        chex.assert_trees_all_close(ju.into(plain, made), expected, atol=1e-6)
    many = ju.unlearn_many(*_finetune(given), jax.random.split(KEY, 2), steps=1, batch_size=16)
    assert jax.tree.structure(many.variables) == jax.tree.structure(given)
    report = ju.evaluate(MODEL, {"original": given, "made": made}, plain, toy.sets())
    assert {"original", "made"} <= set(report["rows"][0]["values"])


def _finetune(variables):
    return METHODS["finetune"][0], variables, toy.sets()


def test_numbers_become_arrays_of_a_fixed_type():
    def network(variables, x):
        return x.reshape(len(x), -1) @ variables["w"] * variables["scale"]

    given = {"w": jnp.full((36, 4), 0.1), "scale": 1.0}
    made = ju.unlearn(ju.finetune(network), given, toy.sets(), KEY, steps=40).variables
    assert made["scale"].dtype == jnp.float32
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), MODEL.init(KEY))
    with jax.numpy_dtype_promotion("standard"):
        after = MODEL.apply_train(half, X, KEY)[1]
    chex.assert_trees_all_equal_shapes_and_dtypes(after, half)


def changed(**collections):
    return {**MODEL.init(KEY), **collections}


def without(tree, *path):
    head, *rest = path
    return {k: without(v, *rest) if k == head else v for k, v in tree.items() if k != head or rest}


WRONG = {
    "no statistics": (lambda: without(changed(), "batch_stats"), r"expected batch_stats/bn/mean"),
    "no leaf": (lambda: without(changed(), "params", "bn", "scale"), r"expected params/bn/scale"),
    "params alone": (lambda: changed()["params"], r"did you mean \{'params': \.\.\.\}"),
    "shape": (
        lambda: changed(batch_stats={"bn": {"mean": jnp.zeros(5), "var": jnp.ones(12)}}),
        r"float32 \[12\] at batch_stats/bn/mean.*got \[5\]",
    ),
    "dtype": (
        lambda: changed(batch_stats={"bn": {"mean": jnp.zeros(12, int), "var": jnp.ones(12)}}),
        "batch_stats/bn/mean.*got int32",
    ),
    "stacked": (lambda: jax.vmap(MODEL.init)(jax.random.split(KEY, 2)), "several models"),
    "objects": (lambda: changed(params={"fc": object()}), "got object at params/fc"),
    "text": (lambda: np.array(["a"]), "got ndarray"),
    "list": (lambda: [toy.trained()], "a list of 1 outcomes"),
    "outcome": (toy.trained, r"give its \.variables"),
    "model": (lambda: MODEL, "which holds functions"),
    "path": (lambda: "runs/a", r"checkpoint\.load"),
    "nothing": (lambda: None, "got None"),
    "module": (lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)), r"variables_of\(module\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_variables_are_checked_once_before_anything_is_compiled(name):
    make, message = WRONG[name]
    with pytest.raises((TypeError, ConfigError), match=f"variables: expected.*{message}|{message}"):
        ju.unlearn(*_finetune(make()), KEY, steps=1)


@pytest.mark.parametrize("name", ["no statistics", "shape", "outcome"])
def test_judging_checks_them_too(name):
    make, message = WRONG[name]
    if name != "outcome":
        models = {"original": MODEL.init(KEY), "b": make()}
        with pytest.raises(ConfigError, match=f"models.b: {message}|models.b: expected {message}"):
            ju.evaluate(MODEL, models, MODEL.init(KEY), toy.sets())
    with pytest.raises((TypeError, ConfigError), match=message):
        ju.lrp(toy.mlp().apply)(make(), X) if name == "outcome" else ju.unlearn(
            *_finetune(make()), KEY, steps=1
        )


def test_keys_and_batches_are_told():
    variables = MODEL.init(KEY)
    for key, kind in ((1, TypeError), (jax.random.split(KEY), ValueError), (None, TypeError)):
        with pytest.raises(kind, match=r"key: expected jax\.random\.key\(seed\)"):
            ju.unlearn(*_finetune(variables), key, steps=1)
    with pytest.raises((TypeError, ValueError), match="keys: expected one key a member"):
        ju.unlearn_many(*_finetune(variables), KEY, steps=1)
    with pytest.raises(TypeError, match=r"a batch x \[B, \.\.\.\].*shape \[6, 6, 1\]"):
        ju.lrp(toy.mlp().apply)(toy.trained().variables, X[0])
    with pytest.raises(TypeError, match=r"a batch x \[B, \.\.\.\].*shape \[6, 6, 1\]"):
        ju.integrated_gradients(toy.mlp().apply)(toy.trained().variables, X[0])
    with pytest.raises(TypeError, match=r"fn: expected a function.*got Model; give its \.apply"):
        ju.lrp(toy.mlp())(toy.trained().variables, X)


def test_the_way_home():
    class Listed(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(36, 12, rngs=rngs), nnx.Linear(12, 4, rngs=rngs)])
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.layers[1](self.drop(nnx.relu(self.layers[0](x.reshape(len(x), -1)))))

    module = Listed(nnx.Rngs(0))
    before = jax.device_get(ju.variables_of(module))
    model = ju.functionalize(module)
    made = ju.unlearn(ju.finetune(model), ju.variables_of(module), toy.sets(), KEY, steps=2)
    back = ju.into(module, made.variables)
    assert type(back) is Listed
    assert isinstance(back.layers, nnx.List)
    chex.assert_trees_all_equal(ju.variables_of(back), made.variables)
    chex.assert_trees_all_equal(ju.variables_of(module), before)
    state = ju.into(nnx.state(module), made.variables)
    assert isinstance(state, nnx.State)
    chex.assert_trees_all_equal(ju.variables_of(state), made.variables)


class Training(TrainState):
    batch_stats: Any = None


def test_training_states_are_read_and_given_back():
    drawn = MODEL.init(KEY)
    state = Training.create(apply_fn=Net().apply, tx=optax.adam(1e-3), **drawn)
    variables = ju.variables_of(state)
    chex.assert_trees_all_equal(variables, drawn)
    back = ju.into(state, jax.tree.map(lambda leaf: leaf + 1, variables))
    chex.assert_trees_all_equal(ju.variables_of(back), jax.tree.map(lambda a: a + 1, drawn))
    assert type(back) is Training
    assert back.step == state.step
    whole = TrainState.create(apply_fn=Net().apply, tx=optax.adam(1e-3), params=freeze(drawn))
    assert ju.into(whole, drawn).params == freeze(drawn)
    with pytest.raises(ConfigError, match="expected batch_stats/bn/mean"):
        ju.into(state, {"params": drawn["params"]})
    with pytest.raises(TypeError, match="Linen module, which has none"):
        ju.into(Net(), drawn)
    with pytest.raises(TypeError, match="got dict"):
        ju.variables_of(drawn)


def test_pairs_of_haiku_are_read_and_given_back():
    params, state = {"fc": {"w": jnp.ones((2, 3))}}, {"bn/ema": {"average": jnp.zeros(3)}}
    variables = ju.variables_of((params, state))
    assert variables == {"params": params, "state": state}
    back = ju.into((freeze(params), state), jax.tree.map(lambda leaf: leaf + 1, variables))
    assert type(back) is tuple
    assert [type(part) for part in back] == [type(freeze(params)), dict]
    chex.assert_trees_all_close(back[0]["fc"]["w"], params["fc"]["w"] + 1)
    own = ju.into((params, state), (params, state))
    assert own == (params, state), "a function may have pairs as its variables"
    with pytest.raises(TypeError, match="got dict, which holds variables as they are"):
        ju.variables_of(variables)


def test_a_pair_in_the_place_of_variables_is_told():
    model, variables = ju.functionalize(Net(), X), changed()
    pair = (variables["params"], variables["batch_stats"])
    with pytest.raises(ConfigError, match=r"got none; of Haiku give ju\.variables_of\(\(params"):
        ju.unlearn(ju.finetune(model), pair, toy.sets(), KEY, steps=1)


def linear(variables, x):
    return x.reshape(len(x), -1) @ variables["w"]


def own_softmax(variables, x):
    e = jnp.exp(linear(variables, x))
    return e / e.sum(axis=-1, keepdims=True)


ENDS = {
    "softmax": (lambda v, x: jax.nn.softmax(linear(v, x)), True),
    "own": (own_softmax, True),
    "jitted": (jax.jit(lambda v, x: linen.softmax(linear(v, x)).reshape(-1, 4)), True),
    "log": (lambda v, x: jax.nn.log_softmax(linear(v, x)), False),
    "logits": (linear, False),
    "mixture": (lambda v, x: linear(v, x) / linear(v, x).sum(-1).mean(), False),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_softmax_at_the_end_is_warned_of(name, recwarn):
    network, warned = ENDS[name]
    variables = {"w": jax.random.normal(KEY, (36, 4)) / 6}
    model = ju.functionalize(network, init=lambda key: variables)
    doors = [
        lambda: ju.unlearn(ju.finetune(model), variables, toy.sets(), KEY, steps=1),
        lambda: ju.train(
            model, toy.sets().retain, KEY, config=ju.TrainConfig(epochs=0.1, batch_size=32)
        ),
        lambda: ju.evaluate(model, {"original": variables}, variables, toy.sets()),
    ]
    for door in doors:
        if warned:
            with pytest.warns(UserWarning, match="expected logits, got outputs in"):
                door()
        else:
            door()
    assert not [w for w in recwarn if "expected logits" in str(w.message)]


def test_random_labels_are_those_that_occur():
    """A head of more outputs than classes: the others are never learned."""
    from jaxunlearn.methods.concept_poison.poison import poison_labels
    from jaxunlearn.methods.random_label import wrong_labels
    from jaxunlearn.methods.shares import occurring

    occurs = jnp.zeros(9, bool).at[jnp.array([1, 4, 5, 8])].set(True)
    labels = jnp.tile(jnp.array([1, 4, 5, 8], jnp.int32), 500)
    wrong = np.asarray(wrong_labels(labels, occurs, KEY))
    assert set(wrong.tolist()) == {1, 4, 5, 8}
    assert (wrong != np.asarray(labels)).all()
    assert np.bincount(wrong).max() < 600
    alone = wrong_labels(jnp.full(50, 2, jnp.int32), jnp.zeros(4, bool).at[2].set(True), KEY)
    assert (np.asarray(alone) != 2).all()
    poisoned = poison_labels("random", labels, labels, 9, KEY, occurs)
    assert set(np.asarray(poisoned).tolist()) == {1, 4, 5, 8}
    sets = toy.sets()
    assert np.asarray(occurring([sets.forget, sets.retain], 9)).tolist() == [True] * 4 + [False] * 5

    def wide(variables, x):
        return x.reshape(len(x), -1) @ variables["w"]

    given = {"w": jnp.zeros((36, 9))}
    method = ju.random_label(wide, optimizer=optax.sgd(1.0))
    made = ju.unlearn(method, given, sets, KEY, steps=30, batch_size=16).variables["w"]
    unused = np.asarray(made[:, 4:])
    # nothing tells the outputs without a class apart
    np.testing.assert_allclose(unused, unused[:, :1].repeat(5, 1), atol=1e-4)
    assert (unused.sum(0) < 0).all()
