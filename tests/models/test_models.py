"""The built-in networks: shapes, names, initialisation, and how mistakes are told."""

import functools
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.models import NETWORKS, Network, build, build_gan, check_model, functionalize

TOKENS = {
    "tokens": jax.ShapeDtypeStruct((3, 5), jnp.int32),
    "mask": jax.ShapeDtypeStruct((3, 5), jnp.bool_),
}
SMALL = {
    "mlp": ((8, 8, 1), {"features": (6, 5)}),
    "cnn": ((9, 8, 1), {"channels": (2, 3), "features": 5}),
    "resnet8": ((8, 8, 3), {"width": 2, "stages": (1,)}),
    "resnet18": ((8, 8, 3), {"width": 2, "stages": (1, 1)}),
    "text_transformer": (TOKENS, {"vocabulary": 9, "width": 4, "blocks": 1, "features": (3,)}),
    "text_bag": (TOKENS, {"vocabulary": 9, "width": 4, "features": (3,)}),
}


CLASSIFIERS = sorted(name for name, row in NETWORKS.items() if row.kind == "classifier")


class Deep(nnx.Module):
    def __init__(self, shape, num_classes, *, start=1.0, rngs):
        self.kernel = nnx.Param(jnp.full((*shape, num_classes), start))

    def __call__(self, x):
        return x @ self.kernel[...]


@functools.cache
def small(name, **options):
    """A model whose functions are compiled, the shape of its inputs and some of these."""
    shape, own = SMALL[name]
    model = build(name, shape, 4, {**own, **options})
    model = model._replace(
        **{call: jax.jit(function) for call, function in model._asdict().items()}
    )
    rng = np.random.default_rng(1)
    if shape is TOKENS:
        tokens = rng.integers(1, 9, (3, 5)).astype(np.int32)
        return model, shape, {"tokens": tokens, "mask": rng.random((3, 5)) < 0.7}
    return model, shape, rng.normal(size=(3, *shape)).astype(np.float32)


def test_every_model_has_a_small_form_here():
    assert set(SMALL) == set(CLASSIFIERS)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_contract(name):
    model, shape, x = small(name)
    variables = model.init(jax.random.key(0))
    before = jax.device_get(variables)
    logits = model.apply(variables, x)
    assert logits.shape == (3, 4)
    assert logits.dtype == jnp.float32
    assert variables["params"]["head"]["kernel"].shape[1] == 4
    chex.assert_tree_all_finite(logits)
    trained, after = model.apply_train(variables, x, jax.random.key(2))
    assert trained.shape == logits.shape
    variables, after = jax.device_get((variables, after))
    chex.assert_trees_all_equal(variables, before)
    chex.assert_trees_all_equal(after["params"], before["params"])
    assert ("batch_stats" in variables) == name.startswith("resnet")
    if "batch_stats" in variables:
        moved = jax.tree.map(lambda a, b: (a != b).any(), after, before)["batch_stats"]
        assert all(jax.tree.leaves(moved))
    assert check_model(model, shape, 4) == 4


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_half_precision_computes_but_keeps_parameters(name):
    model, _, x = small(name, dtype="bfloat16")
    variables = model.init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    logits, after = model.apply_train(variables, x, jax.random.key(2))
    assert logits.dtype == jnp.float32
    chex.assert_trees_all_equal_dtypes(variables, after)
    full, _ = small(name)[0].apply_train(variables, x, jax.random.key(2))
    chex.assert_trees_all_close(logits, full, atol=0.1)


@pytest.mark.parametrize("name", ["cnn", "resnet8"])
def test_initialisation_maps_over_keys(name):
    model, _, _ = small(name)
    keys = jax.random.split(jax.random.key(0), 2)
    mapped = jax.jit(jax.vmap(model.init))(keys)
    drawn = jax.device_get([model.init(key) for key in keys])
    loop = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
    chex.assert_trees_all_close(mapped, loop, rtol=1e-6)
    assert (loop["params"]["conv1"]["kernel"][0] != loop["params"]["conv1"]["kernel"][1]).all()


def test_initial_distribution_is_lecun_normal():
    init = build("mlp", (400,), 10, {"features": (300,)}).init
    params = jax.device_get(jax.jit(init)(jax.random.key(0)))["params"]
    kernel = np.asarray(params["fc1"]["kernel"])
    # 120,000 draws: the deviation's own standard error is 0.2 %
    assert kernel.std() * np.sqrt(400) == pytest.approx(1.0, abs=0.01)
    assert abs(kernel).max() * np.sqrt(400) <= 2 / 0.8796
    assert not params["fc1"]["bias"].any()


def test_the_papers_network():
    shapes = jax.eval_shape(build("cnn", (28, 28, 1), 10).init, jax.random.key(0))["params"]
    assert {name: layer["kernel"].shape for name, layer in shapes.items()} == {
        "conv1": (3, 3, 1, 32),
        "conv2": (3, 3, 32, 64),
        "fc1": (12544, 512),
        "head": (512, 10),
    }


def test_resnet_layers():
    shapes = jax.eval_shape(build("resnet18", (32, 32, 3), 10).init, jax.random.key(0))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 11_173_962
    assert shapes["stage4_block1"]["proj"]["kernel"].shape == (1, 1, 256, 512)
    assert set(shapes["stage1_block1"]) == {"conv1", "bn1", "conv2", "bn2"}
    assert set(shapes["stage1_block1"]["conv1"]) == {"kernel"}
    assert shapes["head"]["kernel"].shape == (512, 10)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("vgg", (8, 8, 1), {}, "model.name: expected one of mlp, cnn, resnet8, .*, got 'vgg'"),
        ("resnet9", (8, 8, 1), {}, "did you mean 'resnet8' or 'resnet18'"),
        (
            "dcgan",
            (8, 8, 1),
            {},
            "expected a classifier .mlp, cnn, resnet8, resnet18, .*., got 'dcgan', which is a gan",
        ),
        (
            "mlp",
            (8,),
            {"feature": 3},
            "model.options: expected one of features, dtype as option of mlp, got 'feature'; "
            "did you mean 'features'",
        ),
        ("mlp", (8,), {"features": (0,)}, "positive integers"),
        ("mlp", (8,), {"features": 3}, "features"),
        ("mlp", (8,), {"dtype": "float99"}, "float99"),
        ("cnn", (8,), {}, "images"),
        ("cnn", (8, 8, 1), {"channels": (3,)}, "two channels"),
        ("cnn", (8, 8, 1), {"features": "many"}, "many"),
        ("resnet8", (8,), {}, "images"),
        ("resnet8", (8, 8, 3), {"stages": ()}, "stages"),
    ],
)
def test_mistakes_are_told(name, shape, options, message):
    with pytest.raises(ConfigError, match=message):
        build(name, shape, 3, options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg", {}, "model.name: expected one of .*, mlp_gan, dcgan, stylegan2, .*, got 'vgg'"),
        (
            "mlp",
            {},
            "model.name: expected a gan .mlp_gan, dcgan, stylegan2., got 'mlp', which is a",
        ),
        ("dcgan", {"norms": "both"}, "one of latent, width, norm, dtype as option of dcgan"),
        ("dcgan", {"norm": "all"}, "as norm of dcgan, got 'all'"),
        ("dcgan", {"dtype": "float99"}, "float99"),
    ],
)
def test_mistakes_about_gans_are_told(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_gan(name, (8, 8, 1), 3, options)
    with pytest.raises(ConfigError, match=r"gan\.other\.name: expected one of"):
        build_gan("vgg", (8, 8, 1), where="gan.other")


def linear(shape, num_classes, **options):
    return functionalize(lambda variables, x: x @ variables["w"])


def test_networks_of_others(monkeypatch):
    """They may be functions, modules or models; their own initialisation is kept."""
    monkeypatch.setattr(NETWORKS, "_rows", {**NETWORKS._rows})
    NETWORKS.register("linear", Network(f"{__name__}:linear", "a function"))
    NETWORKS.register("deep", Network(f"{__name__}:Deep", "an NNX module"))
    logits = build("linear", (2,), 2, {"any": 1}).apply({"w": jnp.eye(2)}, jnp.ones((1, 2)))
    assert (logits == 1).all()
    drawn = build("deep", (2,), 3, {"start": 7.0}).init(jax.random.key(0))
    assert (drawn["params"]["kernel"] == 7).all()
    with pytest.raises(ConfigError, match="expected one of start as option of deep, got 'any'"):
        build("deep", (2,), 3, {"any": 1})


def test_reading_the_names_imports_no_network():
    code = """import sys
from jaxunlearn.models import NETWORKS
print(len(NETWORKS), "flax" in sys.modules)"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == [str(len(NETWORKS)), "False"]
