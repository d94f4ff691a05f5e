import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxunlearn as ju
from jaxunlearn.config import TrainConfig
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.engine.communication import read_collectives
from jaxunlearn.engine.sharding import (
    PRESETS,
    check_divides,
    make_sharding,
    place,
    spec_of,
    tell_undivided,
)
from tests import meshes, toy


def test_presets():
    assert make_sharding("single").mesh.size == 1
    assert make_sharding("data").mesh.shape == {"data": 8}
    assert make_sharding("data=2,model=4").mesh.shape == {"data": 2, "model": 4}
    assert make_sharding("fsdp_tensor").mesh.shape == {"data": 4, "model": 2}
    # axes of one's own by these names have the rules of the preset, and no others have any
    assert make_sharding("data=2,model=4").rules == PRESETS["fsdp_tensor"]
    assert make_sharding("a=2,b=4").rules == make_sharding("data=8").rules == ()


@pytest.mark.parametrize(
    ("devices", "shape"),
    [(1, (1, 1)), (4, (2, 2)), (6, (3, 2)), (24, (6, 4)), (256, (32, 8)), (4096, (512, 8))],
)
def test_two_axes_of_any_number_of_devices(devices, shape):
    mesh = make_sharding("fsdp_tensor", devices=1 if devices == 1 else devices).mesh
    assert tuple(mesh.shape.values()) == shape


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("params/blocks_0/attention/query/kernel", (64, 64), P("data", "model")),
        ("opt_state/0/mu/params/blocks_0/attention/output/kernel", (64, 64), P("model", "data")),
        ("params/blocks_11/mlp/down/kernel", (128, 64), P("model", "data")),
        ("params/blocks_0/mlp/up/bias", (128,), P("model")),
        ("params/blocks_0/mlp/down/bias", (64,), P(None)),
        ("params/blocks_0/norm1/scale", (64,), P(None)),
        ("params/norm/scale", (64,), P(None)),
        ("params/embed/embedding", (256, 64), P("model", "data")),
        ("params/head/kernel", (64, 256), P("data", "model")),
        ("params/block1/fc2/kernel", (32, 8), P("model", "data")),
        ("params/fc2/kernel", (32, 8), P("data", "model")),
        ("params/stage1_block1/conv1/kernel", (3, 3, 16, 32), P(None, None, "data", "model")),
        ("batch_stats/stage1_block1/bn1/mean", (32,), P("model")),
        ("params/conv1/kernel", (3, 3, 3, 16), P(None, None, None, "model")),
        ("generator/params/synthesis/norm1/scale", (64,), P("model")),
        ("params/head/bias", (3,), P(None)),
    ],
)
def test_fsdp_tensor_knows_the_networks(path, shape, spec):
    assert spec_of(path, shape, make_sharding("fsdp_tensor")) == spec


@pytest.mark.parametrize(
    ("mesh", "rules", "devices", "message"),
    [
        ("fsdp", (), 7, "mesh: expected sizes that divide parameters, got data=7, which divides n"),
        ("data=1,model=5", (), 5, "got model=5, which divides none of this network's"),
        ("data=8", (("nothing", ("data",)),), 8, "got data=8, which divides none"),
    ],
)
def test_an_axis_that_divides_nothing_is_refused(mesh, rules, devices, message):
    variables = jax.eval_shape(toy.mlp().init, jax.random.key(0))
    with pytest.raises(ConfigError, match=message):
        check_divides(variables, make_sharding(mesh, rules, jax.devices()[:devices]))
    with pytest.raises(ConfigError, match=message):
        ju.unlearn(
            toy.method("finetune"), toy.trained().variables, toy.sets(), jax.random.key(0),
            steps=1, sharding=make_sharding(mesh, rules, jax.devices()[:devices]),
        )  # fmt: skip


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
        ("tpu", (), "expected one of single, data, fsdp, fsdp_tensor or axes such as 'data=2,mod"),
        ("data=3", (), "expected axes for 8 devices"),
        ("data=2,data=4", (), "expected each axis once, got data twice in 'data=2,data=4'"),
        ("a=2,model=2,a=2", (), "expected each axis once, got a twice"),
        ("data=4611686018427387905,model=8", (), "expected one of single, data"),
        ("a=274877906945,b=67108864", (), "axes for 8 devices, got .* = 18446744073776660480"),
        ("data", (("w", ("model",)),), r"axes among \['data'\], got \['model'\]"),
        ("data", (("(", ("data",)),), "expected a regular expression"),
    ],
)
def test_wrong_meshes_are_refused(mesh, rules, message):
    with pytest.raises(ConfigError, match=message):
        make_sharding(mesh, rules)


@pytest.mark.parametrize(("mesh", "devices"), [("data", 8), ("model=4,data=2", 4)])
def test_batches_that_do_not_divide_are_told(mesh, devices):
    sharding = make_sharding(mesh)
    with pytest.warns(UserWarning, match=f"batches of 10 do not divide over {devices} devices"):
        tell_undivided(10, sharding)
    tell_undivided(16, sharding)  # a warning is an error here
    tell_undivided(10, None)


@pytest.mark.parametrize("devices", [2, 3, 7])
def test_devices_that_make_no_two_axes_are_told(devices):
    with pytest.raises(ConfigError, match=f"at least 4, for fsdp_tensor, got {devices}; 'data=1"):
        make_sharding("fsdp_tensor", devices=devices)


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
@pytest.mark.parametrize("mesh", ["data", "fsdp", "fsdp_tensor"])
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


def compiled(monkeypatch, method, mesh):
    """The program of a chunk of steps on eight devices, and where its state lies."""
    programs, sharding = meshes.watch(monkeypatch), make_sharding(mesh)
    ju.unlearn(
        method, toy.trained().variables, toy.sets(), jax.random.key(0), steps=1, batch_size=40,
        sharding=sharding,
    )  # fmt: skip
    return meshes.steps_among(programs)[0], sharding


def adam():
    return ju.finetune(toy.mlp(), optimizer=optax.adam(1e-3))


@pytest.mark.parametrize(
    ("mesh", "gathers"),
    [
        ("data", {}),
        ("fsdp", {(36, 24): 1, (24, 16): 1}),  # four columns of the head do not divide
    ],
)
def test_a_step_gathers_each_layer_once(monkeypatch, mesh, gathers):
    program, sharding = compiled(monkeypatch, adam(), mesh)
    meshes.expect_steps_in_place(program, sharding)
    assert meshes.expect_needed_gathers(program, sharding, 40) == gathers
    sent = read_collectives(program.as_text())
    assert {one.kind for one in sent} == {"all-reduce", *(["all-gather"] if gathers else [])}
    # every gradient is summed over all devices, once
    summed = sum(one.bytes for one in sent if one.kind == "all-reduce")
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(toy.trained().variables["params"]))
    assert size <= summed <= size + 200


def test_a_generator_draws_its_part_of_the_batch(monkeypatch):
    """Else each device would draw and learn all images: no gradient of a generator is summed."""
    programs, sharding = meshes.watch(monkeypatch), make_sharding("data")
    gan, variables = toy.method("gan_finetune"), toy.trained_gan().variables
    ju.unlearn(
        gan, variables, toy.sets(gan=True), jax.random.key(0), steps=1, batch_size=40,
        sharding=sharding,
    )  # fmt: skip
    sent = read_collectives(meshes.steps_among(programs)[-1].as_text())
    summed = sum(one.bytes for one in sent if one.kind == "all-reduce")
    players = (variables["generator"]["params"], variables["discriminator"]["params"])
    assert summed >= sum(leaf.nbytes for leaf in jax.tree.leaves(players))


def test_gathers_that_nobody_needs_are_found(monkeypatch):
    """The contract's own check: an optimizer's state put together, and a kernel that lies whole."""
    method = adam()

    def step(state, batches, key, number):
        state, info = method.step(state, batches, key, number)
        whole = NamedSharding(make_sharding("fsdp").mesh, P())
        seen = jax.lax.with_sharding_constraint(state.opt_state, whole)
        norms = jax.tree.map(lambda leaf: jnp.cumsum(leaf.ravel())[-1], seen)
        total = sum(leaf for leaf in jax.tree.leaves(norms) if leaf.dtype == jnp.float32)
        return state, info._replace(metrics={**info.metrics, "sum": total})

    program, sharding = compiled(monkeypatch, method._replace(step=step), "fsdp")
    with pytest.raises(AssertionError, match=r"\(\(\d+, \d+\), 3\)"):
        meshes.expect_needed_gathers(program, sharding, 40)
    program, _ = compiled(monkeypatch, adam(), "fsdp")
    with pytest.raises(AssertionError, match="lies whole, and is gathered"):
        meshes.expect_needed_gathers(program, make_sharding("data"), 40)


@pytest.mark.parametrize(
    ("line", "kind", "size", "group", "sent"),
    [
        ("%a.1 = f32[16,64]{1,0} all-gather(%p), replica_groups=[1,8]<=[8], dimensions={1}",
         "all-gather", 4096, 8, 3584),
        ("ROOT %r = (f32[4]{0}, /*index=1*/bf16[2,3]{1,0}) all-reduce(%x, %y), "
         "replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add", "all-reduce", 28, 4, 42),
        ("  %s = f32[8]{0} reduce-scatter(%x), replica_groups=mesh['x'=2,'y'=4] {'y'}",
         "reduce-scatter", 128, 4, 96),
        ("%g = (f32[2]{0}, f32[16]{0}) all-gather-start(%x), replica_groups=[1,8]<=[8]",
         "all-gather", 64, 8, 56),
        ("%t = (s32[1,2]{1,0}, s32[1,2]{1,0}) all-to-all(%x, %y), replica_groups={{0,1}}",
         "all-to-all", 16, 2, 8),
        ("%c = pred[10]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}",
         "collective-permute", 10, 2, 10),
    ],
)  # fmt: skip
def test_what_devices_exchange_is_read(line, kind, size, group, sent):
    (one,) = read_collectives(f"HloModule m\n{line}\n  %d = f32[] add(%all-reduce.1, %x)\n")
    assert (one.kind, one.bytes, one.group, one.sent) == (kind, size, group, sent)


def test_one_device_sends_nothing():
    assert not read_collectives("%a = f32[] all-reduce(%x), replica_groups={{0},{1}}")


def test_the_original_may_lie_on_the_mesh_already():
    sharding = make_sharding("fsdp")
    laid = place(toy.trained().variables, sharding)
    out = ju.unlearn(
        toy.method("neuron_path"), laid, toy.sets(), jax.random.key(0), sharding=sharding
    )
    assert not out.variables["params"]["fc1"]["kernel"].sharding.is_fully_replicated
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(laid))
