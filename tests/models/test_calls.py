"""Arguments of a network's call: what tells training from inference, what draws at random."""

import sys
import types
from typing import Literal

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

import jaxunlearn as ju
from jaxunlearn.core.errors import ConfigError

KEY = jax.random.key(0)
X = jnp.ones((3, 4))


def difference(model, variables=None):
    """Training less inference."""
    variables = model.init(KEY) if variables is None else variables
    return float((model.apply_train(variables, X, KEY)[0] - model.apply(variables, X))[0, 0])


def module_with(argument, trains):
    """A Linen module whose call has this argument; 1 is added in training."""
    scope = {"linen": linen, "Literal": Literal}
    code = f"""
class Net(linen.Module):
    @linen.compact
    def __call__(self, x, {argument}):
        return linen.Dense(2)(x) + (1.0 if {trains} else 0.0)
"""
    exec(code, scope)
    return scope["Net"]()


KNOWN = {
    "train: bool = False": "train",
    "training=False": "training",
    "is_train: bool = False": "is_train",
    "*, is_training": "is_training",
    "deterministic: bool = True": "not deterministic",
    "use_running_average=True": "not use_running_average",
    "inference: bool = True": "not inference",
    "eval_mode=False": "not eval_mode",
    "mode='train'": "mode == 'train'",
    "mode='eval'": "mode != 'eval'",
    "mode: str = 'test'": "mode == 'train'",
    "mode: Literal['training', 'inference'] = 'inference'": "mode == 'training'",
    "phase='test'": "phase in ('train', 'fit')",
}


@pytest.mark.parametrize("argument", KNOWN)
def test_usual_switches_are_known(argument):
    assert difference(ju.functionalize(module_with(argument, KNOWN[argument]), X)) == 1


@pytest.mark.parametrize(
    ("argument", "trains", "name"),
    [
        ("learning: bool = False", "learning", "learning"),
        ("fit=False", "fit", "fit"),
        ("*, noisy", "noisy", "noisy"),
        ("mode='a'", "mode == 'b'", "mode"),
        ("mode='train'", "mode not in ('eval', 'test')", "mode"),
    ],
)
def test_other_switches_are_errors_until_they_are_told(argument, trains, name):
    network = module_with(argument, trains)
    with pytest.raises(ConfigError, match=f"argument {name!r} of .*__call__.*train=dict"):
        ju.functionalize(network, X)
    values = ("b", "a") if "'a'" in argument else ("train", "eval")
    train, test = values if "mode" in argument else (True, False)
    model = ju.functionalize(network, X, train={name: train}, test={name: test})
    assert difference(model) == 1
    assert ju.functionalize(network, X, train={name: train}, test={name: test}) is model
    with pytest.raises(ConfigError, match=f"of .*__call__ .*got '{name}s'"):
        ju.functionalize(network, X, train={name: train, f"{name}s": 1}, test={name: test})


def test_options_of_the_output_are_no_switches():
    assert difference(ju.functionalize(module_with("return_features=False", "False"), X)) == 0


def test_switches_among_fields():
    class Field(linen.Module):
        is_training: bool = False

        @linen.compact
        def __call__(self, x):
            return linen.Dense(2)(x) + float(self.is_training)

    class Attribute(nnx.Module):
        def __init__(self, rngs):
            self.head, self.training = nnx.Linear(4, 2, rngs=rngs), False

        def __call__(self, x):
            return self.head(x) + float(self.training)

    assert difference(ju.functionalize(Field(), X)) == 1
    module = Attribute(nnx.Rngs(0))
    assert difference(ju.functionalize(module), ju.variables_of(module)) == 1
    assert module.training is False


class Streams(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.Dense(2)(x)
        for name in ("drop_path", "noise") if train else ():
            x = x + jax.random.normal(self.make_rng(name), x.shape)
        return x


def test_streams_of_any_name_are_fed_in_training():
    named = ju.functionalize(Streams(), X, streams=("drop_path", "noise"))
    for model in (ju.functionalize(Streams(), X), named, ju.functionalize(Streams().apply)):
        variables = named.init(KEY)
        one, other = (model.apply_train(variables, X, jax.random.key(n))[0] for n in (0, 1))
        assert (one != other).all()
        assert (model.apply(variables, X) == model.apply(variables, X)).all()
    wrong = ju.functionalize(Streams(), X, streams=("noise",))
    with pytest.raises(ConfigError, match=r"drop_path"):
        ju.models.check_model(wrong, (4,))
    for streams in ("noise", (1,)):
        with pytest.raises(ConfigError, match="streams: expected a tuple of names"):
            ju.functionalize(Streams(), X, streams=streams)


def with_key(variables, x, key=None):
    return x if key is None else x + jax.random.normal(key, x.shape)


def with_streams(variables, x, *, rngs=None):
    return x if rngs is None else x + jax.random.normal(rngs["noise"], x.shape)


def test_functions_get_keys_in_training_alone():
    for model in (ju.functionalize(with_key), ju.functionalize(with_streams, streams=["noise"])):
        assert (model.apply({}, X) == X).all()
        one, other = (model.apply_train({}, X, jax.random.key(n))[0] for n in (0, 1))
        assert (one != other).all()


def with_axis(variables, x, train=False):
    mean = jax.lax.pmean(x.mean(axis=0), ("batch", "replica")) if train else jnp.zeros(4)
    return x - mean[None]


def test_an_axis_that_nobody_maps_over_is_the_batch():
    model = ju.functionalize(with_axis)
    assert not jax.jit(model.apply_train)({}, X, KEY)[0].any()
    mapped = jax.vmap(lambda x: model.apply_train({}, x, KEY)[0], axis_name="batch")
    there = mapped(jnp.stack([X, 3 * X]))
    assert there[:, 0, 0].tolist() == [-1, 1]

    def unknown(variables, x):
        return x + nowhere  # noqa: F821

    with pytest.raises(NameError, match="nowhere"):
        ju.functionalize(unknown).apply_train({}, X, KEY)


def of_package(name, kind):
    """An object whose class another package defines."""
    made = types.new_class(kind)
    made.__module__ = name
    made.__call__ = lambda self, x: x
    return made()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (of_package("keras.src.models.model", "Model"), r"a Keras model.*stateless_call"),
        (of_package("torch.nn.modules.module", "Module"), "a PyTorch module"),
        (lambda x: x @ X.T, r"got a function of \(x\)"),
        (jax.vmap(lambda image: image), r"got a function of \(image\)"),
        (lambda variables, x, temperature: x, r"\(variables, x, temperature\).*train=dict"),
        (lambda params, rng, x: x, r"\(params, rng, x\)"),
        (lambda key: {"params": {}}, "returns dict"),
        ("mlp", "got str"),
    ],
)
def test_what_is_no_network_is_told(network, message):
    with pytest.raises(ConfigError, match=message):
        ju.functionalize(network)
    assert "keras" not in sys.modules
