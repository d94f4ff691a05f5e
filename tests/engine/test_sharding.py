import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxunlearn as ju
from jaxunlearn.config import TrainConfig
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.engine.sharding import make_sharding, place, spec_of
from tests import toy


def test_presets():
    assert make_sharding("single").mesh.size == 1
    assert make_sharding("data").mesh.shape == {"data": 8}
    assert make_sharding("data=2,model=4").mesh.shape == {"data": 2, "model": 4}


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("params/conv1/kernel", (3, 3, 8, 16), P(None, None, None, "data")),
        ("params/fc1/bias", (16,), P("data")),
        ("params/head/bias", (10,), P(None)),  # 10 is not divisible by 8
        ("opt_state/0/count", (), P()),
    ],
)
def test_fsdp_divides_the_last_dimension_where_it_can(path, shape, spec):
    assert spec_of(path, shape, make_sharding("fsdp")) == spec


def test_the_first_rule_that_matches_wins():
    rules = (("head", (None, None)), ("kernel", ("model", None)))
    sharding = make_sharding("data=2,model=4", rules)
    assert spec_of("head/kernel", (8, 8), sharding) == P(None, None)
    assert spec_of("fc1/kernel", (8, 8), sharding) == P("model", None)
    assert spec_of("conv/kernel", (3, 3, 4, 8), sharding) == P(None, None, "model", None)
    assert spec_of("fc1/bias", (8,), sharding) == P(None)


@pytest.mark.parametrize(
    ("mesh", "rules", "message"),
    [
        ("tpu", (), "expected one of single, data, fsdp or axes such as 'data=2,model=4'"),
        ("data=3", (), "expected axes for 8 devices"),
        ("data", (("w", ("model",)),), r"axes among \['data'\], got \['model'\]"),
        ("data", (("(", ("data",)),), "expected a regular expression"),
    ],
)
def test_wrong_meshes_are_refused(mesh, rules, message):
    with pytest.raises(ConfigError, match=message):
        make_sharding(mesh, rules)


@functools.cache
def on_one_device(network):
    """How a network is trained and edited, and what comes of it on one device."""
    options = {
        "cnn": {"channels": (8, 8), "features": 16},
        "resnet8": {"width": 8, "stages": (1, 1)},
    }
    model = ju.models.build(network, toy.SHAPE, 4, options[network])
    config = TrainConfig(epochs=0.4, batch_size=16, optimizer="sgd", learning_rate=0.05)
    method = ju.neuron_path(model, per_sample=4, neurons=4, samples=8, weights=("class",))
    key = jax.random.key(0)

    def train(**options):
        return ju.train(model, toy.sets().retain, key, config=config, **options).variables

    def edit(variables, **options):
        return ju.unlearn(method, variables, toy.sets(), key, **options).variables

    one = train()
    return train, edit, one, edit(one)


@pytest.mark.parametrize("network", ["cnn", "resnet8"])
@pytest.mark.parametrize("mesh", ["data", "fsdp"])
def test_networks_with_convolutions_train_alike_on_eight_devices(network, mesh):
    sharding = make_sharding(mesh)
    train, edit, one, edited = on_one_device(network)
    many = train(sharding=sharding)
    edited_many = edit(one, sharding=sharding)
    for got, wanted in ((many, one), (edited_many, edited)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(got):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            reference = dict(_named(wanted))[where]
            np.testing.assert_allclose(leaf, reference, atol=1e-5, err_msg=where)
            spec = NamedSharding(sharding.mesh, spec_of(where, leaf.shape, sharding))
            assert leaf.sharding.is_equivalent_to(spec, leaf.ndim), where
    kernel = many["params"]["conv1"]["kernel"]
    assert kernel.sharding.is_fully_replicated == (mesh == "data")


def _named(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def test_the_original_may_lie_on_the_mesh_already():
    sharding = make_sharding("fsdp")
    laid = place(toy.trained().variables, sharding)
    out = ju.unlearn(
        toy.method("neuron_path"), laid, toy.sets(), jax.random.key(0), sharding=sharding
    )
    assert not out.variables["params"]["fc1"]["kernel"].sharding.is_fully_replicated
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(laid))
