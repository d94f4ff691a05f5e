"""Every method on networks that are not ours: Flax Linen, Flax NNX, a plain function."""

import functools

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx

import jaxunlearn as ju
from jaxunlearn.config import TrainConfig
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.engine.predict import predict
from tests import toy

KEY = jax.random.key(3)
PIXELS, WIDTH = 36, 12


class LinenNet(linen.Module):
    """With or without batch normalisation between its two layers."""

    norm: bool = True

    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.Dense(WIDTH, name="fc")(x.reshape(len(x), -1))
        if self.norm:
            x = linen.BatchNorm(use_running_average=not train, name="bn")(x)
        return linen.Dense(toy.NUM_CLASSES, name="head")(linen.relu(x))


class NnxNet(nnx.Module):
    def __init__(self, norm: bool = True, *, rngs: nnx.Rngs):
        self.fc = nnx.Linear(PIXELS, WIDTH, rngs=rngs)
        self.bn = nnx.BatchNorm(WIDTH, rngs=rngs) if norm else None
        self.head = nnx.Linear(WIDTH, toy.NUM_CLASSES, rngs=rngs)

    def __call__(self, x):
        x = self.fc(x.reshape(len(x), -1))
        return self.head(nnx.relu(x if self.bn is None else self.bn(x)))


def plain(variables, x):
    p = variables["params"]
    x = jax.nn.relu(x.reshape(len(x), -1) @ p["fc"]["kernel"] + p["fc"]["bias"][None])
    return x @ p["head"]["kernel"] + p["head"]["bias"][None]


def draw(key):
    one, other = jax.random.split(key)
    return {
        "params": {
            "fc": {"kernel": jax.random.normal(one, (PIXELS, WIDTH)) / 6, "bias": jnp.zeros(WIDTH)},
            "head": {
                "kernel": jax.random.normal(other, (WIDTH, toy.NUM_CLASSES)) / 3,
                "bias": jnp.zeros(toy.NUM_CLASSES),
            },
        }
    }


SAMPLE = jax.ShapeDtypeStruct((1, *toy.SHAPE), jnp.float32)
NETWORKS = {
    "linen": lambda: ju.functionalize(LinenNet(), SAMPLE),
    "nnx": lambda: ju.functionalize(NnxNet),
    "function": lambda: ju.functionalize(plain, init=draw),
}


# those that take texts, kernels with positions, or an ensemble have networks of their own
OWN = {*toy.ON_TEXTS, *toy.ON_IMAGES, "sisa"}
ON_IMAGES = {name: row for name, row in toy.METHODS.items() if name not in OWN}

INFERENCE = {
    "attack_loss", "boundary_expand", "boundary_shrink", "concept_poison", "datamodel", "dlfd",
    "duck", "first_order", "fisher", "gradient_ascent", "influence", "just_in_time",
    "loss_free_ssd", "neggrad_plus", "neuron_path", "ntk", "pbu", "scrub", "second_order", "ssd",
}  # fmt: skip
"""Methods that use the network in inference mode, or in no mode at all."""


@functools.cache
def original(kind):
    config = TrainConfig(epochs=25, batch_size=32, learning_rate=5e-3)
    everything = ju.whole(toy.sets().forget.examples)
    return ju.train(NETWORKS[kind](), everything, KEY, config=config)


# on Linen's network all run; the others differ from it in what makes functions of them, which
# no method sees: there one method of each sort runs, and the rest by -m long
OF_EACH_SORT = ("concept_poison", "finetune", "neuron_path", "scrub", "ssd")
PAIRS = [
    pytest.param(
        kind, name, marks=[pytest.mark.long] * (kind != "linen" and name not in OF_EACH_SORT)
    )
    for kind in NETWORKS
    for name in sorted(ON_IMAGES)
]


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_every_method_runs(kind, name):
    make, options = toy.METHODS[name]
    given = original(kind).variables
    before = jax.device_get(given)
    sets = toy.sets_of(name)
    made = ju.unlearn(make(NETWORKS[kind]()), given, sets, KEY, batch_size=16, **options)
    chex.assert_trees_all_equal(jax.device_get(given), before)
    chex.assert_trees_all_equal_shapes_and_dtypes(made.variables, given)
    chex.assert_tree_all_finite(made.variables)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), made.variables, given)
    assert moved["params"]["head"]["kernel"]
    assert all(
        found != (name in INFERENCE) for found in jax.tree.leaves(moved.get("batch_stats", {}))
    )
    assert ("batch_stats" in given) == (kind != "function")


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_original_learns(kind):
    assert original(kind).history["accuracy"][-5:].mean() > 0.9


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda m: ju.neuron_path(m, per_sample=5, neurons=4, samples=8), {}),
        (lambda m: ju.finetune(m, optimizer=optax.sgd(0.1)), {"steps": 1}),
    ],
    ids=["neuron_path", "finetune"],
)
def test_the_same_weights_are_unlearned_alike(make, options):
    given = original("function").variables

    def unlearned(network):
        out = ju.unlearn(make(network), given, toy.sets(), KEY, batch_size=16, **options)
        return out.variables

    expected = unlearned(plain)
    changed = expected["params"]["head"]["kernel"] - given["params"]["head"]["kernel"]
    assert abs(changed).max() > 1e-3
    others = {
        "linen": LinenNet(norm=False),
        "linen apply": LinenNet(norm=False).apply,
        "nnx": functools.partial(NnxNet, norm=False),
    }
    for network in others.values():
        chex.assert_trees_all_close(unlearned(network), expected, atol=1e-5, rtol=0)


def test_the_same_function_is_not_traced_again():
    traced = []

    def counted(variables, x):
        traced.append(x.shape)
        return plain(variables, x)

    variables, sets = draw(KEY), toy.sets()
    config = TrainConfig(epochs=1, batch_size=32)

    def go():
        ju.train(ju.functionalize(counted, init=draw), sets.retain, KEY, config=config)
        predict(ju.functionalize(counted).apply, variables, sets.forget)
        return len(traced)

    assert go() == go()


WRONG = {
    "one logit": (lambda logits: logits[:, 0], r"got \[16\]"),
    "three axes": (lambda logits: logits[:, None], r"got \[16, 1, 4\]"),
    "one row": (lambda logits: logits[:1], r"got \[1, 4\]"),
}


@pytest.mark.parametrize(("change", "got"), WRONG.values(), ids=WRONG)
def test_logits_of_another_shape_are_told(change, got):
    model = ju.functionalize(lambda variables, x: change(plain(variables, x)), init=draw)
    with pytest.raises(ConfigError, match=r"expected logits of shape \[B, K\] = \[2, K\]"):
        ju.train(model, toy.sets().retain, KEY, config=TrainConfig(epochs=1, batch_size=16))
    method = ju.gradient_ascent(model)
    message = r"model: expected logits \[B, K\] = \[16, K\], " + got
    with pytest.raises(ConfigError, match=message):
        ju.unlearn(method, draw(KEY), toy.sets(), KEY, steps=1, batch_size=16)


def test_every_method_tells_that_logits_have_three_axes():
    model = ju.functionalize(lambda variables, x: plain(variables, x)[:, None], init=draw)
    for name, (make, options) in ON_IMAGES.items():
        with pytest.raises(ValueError, match=r"expected logits \[B, K\]"):
            ju.unlearn(make(model), draw(KEY), toy.sets_of(name), KEY, batch_size=16, **options)
