"""How the transform is used: rules by pattern, rules of one's own, other frameworks, devices."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec
from nets import lrp, transform
from networks import NETWORKS, Draws

from jaxunlearn.attribution import starts, structure
from jaxunlearn.attribution.ig import (
    conductance,
    integrated_gradients,
    layer_integrated_gradients,
    quadrature,
)
from jaxunlearn.attribution.lrp import rules
from jaxunlearn.engine.sharding import make_sharding, place, replicate
from jaxunlearn.jaxprs.program import trace
from jaxunlearn.jaxprs.steps import plan

DRAW = Draws(11)
X = DRAW(4, 6)
MLP = {"params": {"fc1": DRAW.dense(6, 8), "fc2": DRAW.dense(8, 3)}}


def plain(variables, x):
    p = variables["params"]
    return nets.dense(p["fc2"], jax.nn.relu(nets.dense(p["fc1"], x)))


def marked(variables, x):
    p = variables["params"]
    hidden = checkpoint_name(jax.nn.relu(nets.dense(p["fc1"], x)), "hidden")
    return nets.dense(p["fc2"], hidden)


# --- one set of weights, four ways to write the network


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3, name="fc2")(linen.relu(linen.Dense(8, name="fc1")(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.fc1 = nnx.Linear(6, 8, rngs=rngs)
        self.fc2 = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.fc2(nnx.relu(self.fc1(x)))


@jax.tree_util.register_dataclass
@dataclass
class Layer:
    """As Equinox has it: a module is a pytree, a call takes one example."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return self.weight @ x + self.bias


@jax.tree_util.register_dataclass
@dataclass
class Tree:
    fc1: Layer
    fc2: Layer

    def __call__(self, x):
        return self.fc2(jax.nn.relu(self.fc1(x)))


@pytest.mark.parametrize(
    "rule",
    [rules.epsilon(0.1), rules.gamma(), rules.alpha_beta(), rules.epsilon_plus_flat()],
    ids=["epsilon", "gamma", "alpha_beta", "epsilon_plus_flat"],
)
def test_linen_nnx_equinox_style_and_plain_functions_agree(rule):
    expected = jax.jit(lrp(plain, rule))(MLP, X)
    graph, _ = nnx.split(Nnx(nnx.Rngs(0)))
    p = MLP["params"]
    tree = Tree(*(Layer(p[name]["kernel"].T, p[name]["bias"]) for name in ("fc1", "fc2")))
    others = {
        "linen": (Linen().apply, MLP),
        "nnx": (lambda v, x: nnx.merge(graph, v["params"])(x), MLP),
        "equinox": (lambda module, x: jax.vmap(module)(x), tree),
    }
    for name, (fn, variables) in others.items():
        r = jax.jit(lrp(fn, rule))(variables, X)
        np.testing.assert_allclose(r.input, expected.input, rtol=2e-5, atol=1e-6, err_msg=name)
        for mine, theirs in ((r.neurons, expected.neurons), (r.inputs, expected.inputs)):
            for a, b in zip(mine.values(), theirs.values(), strict=True):
                np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6, err_msg=name)
        if name != "equinox":
            assert list(r.neurons) == list(expected.neurons)
    assert list(r.neurons) == ["fc1/weight", "fc2/weight"]


# --- which rule for what


def test_the_first_pattern_that_matches_wins():
    fn, variables, x = NETWORKS["lenet"]()
    by_pattern = lrp(fn, [("conv2", rules.zplus()), (-1, rules.epsilon(0.3)), ("", rules.flat())])
    by_position = lrp(fn, [(0, rules.flat()), (1, rules.zplus()), ("", rules.epsilon(0.3))])
    both = [(("conv", 0), rules.flat()), ("conv_general_dilated", rules.zplus())]
    by_both = lrp(fn, [*both, ("dot_general", rules.epsilon(0.3))])
    ways = jax.jit(lambda *a: [way(*a).input for way in (by_pattern, by_position, by_both)])
    expected, *others = ways(variables, x)
    for found in others:
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"expected a pattern for 'params/fc/kernel'"):
        lrp(fn, both)(variables, x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3, "expected a Rule or pairs"),
        ("epsilon", "expected a Rule or pairs.*got 'epsilon'"),
        ([("fc", "epsilon")], "expected a list of pairs"),
        ([(True, rules.zero())], "expected a list of pairs"),
        ([((), rules.zero())], "expected a list of pairs"),
        (("", rules.zero()), "expected a list of pairs"),
        (rules.epsilon, r"got the function epsilon; call it: epsilon\(...\)"),
        ([("", rules.zplus)], "got the function zplus; call it"),
        ([(0, rules.operation(lambda *args: args))], "expected the name of a primitive"),
        ([("(", rules.zero())], "is not a regular expression"),
    ],
)
def test_malformed_rules_are_refused_before_anything_is_traced(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        lrp(plain, wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rules.epsilon(0),
        lambda: rules.gamma(-1),
        lambda: rules.alpha_beta(2, 2),
        lambda: rules.alpha_beta(0, -1),
        lambda: rules.zbox(1, 0),
        lambda: rules.flat(0),
        lambda: rules.wsquare(-1),
        lambda: rules.norm(0),
        lambda: rules.zplus(0),
    ],
)
def test_arguments_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()


def test_starts_are_checked():
    with pytest.raises(TypeError, match="got the function argmax; call it"):
        lrp(plain)(MLP, X, start=starts.argmax)
    with pytest.raises(ValueError, match="expected labels from 0 to 2, got 3"):
        transform(plain)(MLP, X, start=starts.label(3))  # numbers can be read outside of jit


def test_a_rule_of_ones_own_is_a_function():
    def halves(affine, a, z, relevance):
        return rules.epsilon().propagate(affine, a, z, relevance).relevance / 2

    r = lrp(plain, [("fc2", halves), ("", rules.epsilon())])(MLP, X)
    expected = lrp(plain, rules.epsilon())(MLP, X)
    np.testing.assert_allclose(r.input, expected.input / 2, rtol=1e-5)
    np.testing.assert_allclose(r.ledger["params/fc2/kernel"].other.sum(), 2, atol=1.0)
    with pytest.raises(ValueError, match=r"expected wrong to return relevance \(4, 8\)"):
        lrp(plain, [("fc2", _named(lambda *args: args[-1])), ("", rules.zero())])(MLP, X)


def _named(fn):
    fn.__name__ = "wrong"
    return fn


def test_an_unknown_primitive_can_be_taught():
    def net(variables, x):
        return nets.dense(
            variables["params"]["fc2"], jnp.sort(nets.dense(variables["params"]["fc1"], x), axis=-1)
        )

    with pytest.raises(NotImplementedError, match=r"'cumlog.*rules\.operation\(propagate\)"):
        lrp(lambda v, x: lax.cumlogsumexp(x, 1))(MLP, X)

    def unsort(operation, relevance):
        (z,), (above,) = operation.ins, relevance
        order = jnp.argsort(jnp.argsort(z, axis=-1), axis=-1)
        return [jnp.take_along_axis(above, order, axis=-1)]

    r = lrp(net, [("sort", rules.operation(unsort)), ("", rules.epsilon())])(MLP, X)
    key = "params/fc1/kernel"
    np.testing.assert_allclose(
        np.sort(r.neurons[key]), np.sort(r.inputs["params/fc2/kernel"]), rtol=1e-6
    )
    np.testing.assert_allclose(r.neurons[key], lrp(net)(MLP, X).neurons[key], rtol=1e-6)
    bad = rules.operation(lambda operation, relevance: [relevance[0][:1]])._replace(name="bad")
    taught = lrp(net, [("sort", bad), ("", rules.epsilon())])
    with pytest.raises(ValueError, match=r"expected bad to return relevance \[\(4, 8\)\] for sort"):
        taught(MLP, X)


def test_a_covered_primitive_can_be_given_another_rule():
    variables = {"w": jnp.eye(2)}
    net = lambda v, x: jnp.tanh(x @ v["w"]) + x  # noqa: E731
    half = rules.operation(lambda operation, relevance: [relevance[0] / 2, relevance[0] / 2])
    r = lrp(net, [("add", half), ("", rules.epsilon())])(variables, jnp.array([[1.0, 2.0]]))
    np.testing.assert_allclose(r.neurons["w"], [[0, 0.5]])
    pooled = lambda v, x: jnp.sum(x, axis=2)  # noqa: E731
    x = jnp.array([[[1.0, 3.0], [2.0, 2.0]]])
    r = lrp(pooled, [("reduce_sum", rules.epsilon(4.0)), ("", rules.zero())])({}, x)
    np.testing.assert_allclose(r.input, [[[1 / 8, 3 / 8], [0, 0]]])


# --- attention, lookups, loops


def test_layer_norm_and_softmax_by_hand():
    x = jnp.array([[1.0, 2.0, 4.0]])
    p = np.asarray(jax.nn.softmax(x))
    start = jnp.array([[1.0, 0.0, 0.5]])
    r = lrp(lambda v, x: jax.nn.softmax(x, axis=-1))({}, x, start=start)
    expected = np.asarray(x) * (np.asarray(start) - p * np.asarray(start).sum())
    np.testing.assert_allclose(r.input, expected, rtol=1e-5)
    np.testing.assert_allclose(r.ledger["softmax"].bias, 1.5 - expected.sum(1), rtol=1e-5)
    masked = jax.nn.softmax(jnp.where(jnp.array([[True, True, False]]), x, -jnp.inf), axis=-1)
    assert masked[0, 2] == 0
    r = lrp(
        lambda v, x: jax.nn.softmax(
            jnp.where(jnp.array([[True, True, False]]), x, -jnp.inf), axis=-1
        )
    )({}, x, start=jnp.array([[1.0, 0.5, 0.0]]))
    assert np.all(np.isfinite(r.input))
    assert r.input[0, 2] == 0

    def normed(v, x):
        return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)

    np.testing.assert_allclose(lrp(normed)({}, x, start=start).input, start, rtol=1e-6)


def test_relevance_of_looked_up_rows_goes_to_the_tokens():
    variables = {"table": DRAW(7, 5), "head": DRAW(5, 3)}
    ids = jnp.array([[1, 2, 6], [0, 0, 3]])

    def net(v, ids):
        return jnp.mean(v["table"][ids], axis=1) @ v["head"]

    r = lrp(net, rules.zero())(variables, ids, start=starts.label(0, times_logit=True))
    contribution = (variables["table"][ids] / 3) @ variables["head"][:, 0]
    np.testing.assert_allclose(r.input, contribution, rtol=1e-3, atol=1e-4)
    assert r.ledger["reduce_sum"].total.shape == (2,)


def test_a_scan_is_the_loop_written_out():
    fn, variables, x = NETWORKS["gated"]()

    def loop(variables, x):
        p = variables["params"]
        h = jnp.zeros((x.shape[0], 5))
        for t in range(x.shape[1]):
            new = jnp.tanh(nets.dense(p["in"], x[:, t]) + nets.dense(p["rec"], h))
            h = jax.nn.sigmoid(nets.dense(p["gate"], x[:, t])) * new
        return nets.dense(p["head"], h)

    r, expected = lrp(fn)(variables, x), lrp(loop)(variables, x)
    np.testing.assert_allclose(r.input, expected.input, rtol=1e-4, atol=1e-5)
    uses = [unit.key for unit in structure(fn, variables, x)]
    assert uses == list(r.neurons)
    assert [key for key in uses if "gate" in key] == [
        f"params/gate/kernel{again}" for again in ("", "#1", "#2")
    ]


def test_scanned_layers_have_their_slices():
    variables = {"layers": DRAW(3, 4, 4, scale=0.5)}

    def net(v, x):
        return lax.scan(lambda h, w: (jax.nn.relu(h @ w), h), x, v["layers"], reverse=True)[0]

    def loop(v, x):
        for n in (2, 1, 0):
            x = jax.nn.relu(x @ v["layers"][n])
        return x

    x = jnp.abs(DRAW(2, 4))
    r, expected = lrp(net)(variables, x), lrp(loop)(variables, x)
    assert list(r.neurons) == ["layers", "layers#1", "layers#2"]
    np.testing.assert_allclose(r.input, expected.input, rtol=1e-5)


def kinds(fn, variables, x):
    return [(step.kind, step.name) for step in plan(trace(fn, variables, x)).steps]


def test_normalisers_are_told_from_gates():
    y = jnp.abs(DRAW(2, 4)) + 0.1
    start = jnp.ones((2, 4))

    def local(v, y):
        return y / (2 + lax.reduce_window(y * y, 0.0, lax.add, (1, 3), (1, 1), "SAME")) ** 0.75

    normalisers = [
        lambda v, y: y / jnp.sqrt(jnp.einsum("bd,bd->b", y, y))[:, None],
        lambda v, y: y * lax.rsqrt(jnp.mean(y * y, axis=1, keepdims=True)),
        lambda v, y: y / jnp.linalg.norm(y, axis=1, keepdims=True),
        local,
    ]
    for fn in normalisers:
        np.testing.assert_allclose(lrp(fn)({}, y, start=start).input, start, rtol=1e-5)
    gates = [
        lambda v, y: y * jnp.sqrt(jnp.mean(y * y, axis=1, keepdims=True)),
        lambda v, y: y * jax.nn.sigmoid(jnp.mean(y, axis=1, keepdims=True)),
    ]
    for fn in gates:
        assert ("gate", "mul") in kinds(fn, {}, y)


def test_a_masked_softmax_is_one():
    x, mask = jnp.array([[1.0, 2.0, 4.0]]), jnp.array([[True, True, False]])
    start = jnp.array([[1.0, 0.5, 0.0]])
    one = lrp(lambda v, x: jax.nn.softmax(x, axis=-1, where=mask))({}, x, start=start)
    other = lrp(lambda v, x: jax.nn.softmax(jnp.where(mask, x, -jnp.inf), axis=-1))(
        {}, x, start=start
    )
    np.testing.assert_allclose(one.input, other.input, rtol=1e-5)
    assert "softmax" in one.ledger


def test_batch_norm_is_folded_behind_a_moved_layout():
    variables = {"k": DRAW(3, 3, 2, 4), "g": jnp.array([1.5, -0.5, 2.0, 0.7]), "b": DRAW(4)}
    variables["h"] = DRAW(36, 3)
    x = DRAW(2, 5, 5, 2)

    def straight(v, x):
        y = jax.nn.relu(
            nets.conv({"kernel": v["k"]}, x) * v["g"][None, None, None] + v["b"][None, None, None]
        )
        return jnp.moveaxis(y, -1, 1).reshape(2, -1) @ v["h"]

    def moved(v, x):
        def one(x):
            y = jnp.moveaxis(nets.conv({"kernel": v["k"]}, x[None])[0], -1, 0)
            return jax.nn.relu(y * v["g"][:, None, None] + v["b"][:, None, None]).reshape(-1)

        return jax.vmap(one)(x) @ v["h"]

    for rule in (rules.zplus(), rules.gamma(), rules.epsilon()):
        ways = lrp(straight, rule), lrp(moved, rule)
        a, b = jax.jit(lambda *a, ways=ways: [way(*a).input for way in ways])(variables, x)
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


def test_a_mask_of_positions_is_a_step_of_its_own():
    draw = Draws(2)  # what is explained is large beside the stabiliser
    variables = {"a": draw(5, 4), "h": draw(4, 3)}
    mask = jnp.array([1.0, 1.0, 0.0])

    def net(v, x):
        y = jax.nn.relu((x @ v["a"]) * mask[None, :, None])
        return jnp.mean(y, axis=1) @ v["h"]

    r = lrp(net, rules.zplus())(variables, jnp.abs(draw(2, 3, 5)))
    assert np.all(r.input[:, 2] == 0)
    np.testing.assert_allclose(r.input.sum((1, 2)), 1, rtol=1e-3)


def test_a_resizing_of_the_input_is_not_the_first_layer():
    variables = {"k": DRAW(3, 3, 2, 4), "h": DRAW(4, 3)}

    def net(v, x):
        x = jax.image.resize(x, (2, 8, 8, 2), "bilinear")
        return jnp.mean(jax.nn.relu(nets.conv({"kernel": v["k"]}, x)), axis=(1, 2)) @ v["h"]

    x = DRAW(2, 4, 4, 2)
    patterns = (0, "k")
    ways = [lrp(net, [(one, rules.flat()), ("", rules.epsilon())]) for one in patterns]
    by_place, by_name = jax.jit(lambda *a: [way(*a).inputs["k"] for way in ways])(variables, x)
    np.testing.assert_array_equal(by_place, by_name)


@pytest.mark.parametrize("of_data", [False, True])
def test_images_as_a_kernel_get_relevance_by_value(of_data):
    def net(v, x):
        return lax.conv(x[:1] if of_data else v, x[:, :, 1:, 1:], (1, 1), "SAME").reshape(1, -1)

    x = DRAW(1, 2, 3, 3)
    start = jnp.ones(net(DRAW(1, 2, 3, 3), x).shape)
    r = lrp(net)(DRAW(1, 2, 3, 3), x, start=start)
    absorbed = sum(entry.total for entry in r.ledger.values())
    np.testing.assert_allclose(r.input.sum() + absorbed.sum(), start.sum(), rtol=1e-5)
    assert jnp.all(jnp.any(r.input[:, :, 1:, 1:] != 0, axis=1))


def test_a_unit_rule_for_an_operation_that_is_no_unit_is_refused():
    with pytest.raises(
        ValueError, match=r"expected rules.operation\(...\) for the primitive 'add'"
    ):
        lrp(lambda v, x: jnp.tanh(x @ v) + x, [("add", rules.zero()), ("", rules.zero())])(
            jnp.eye(3), DRAW(2, 3)
        )


def test_cancellation_does_not_turn_alpha_beta_round():
    net = lambda v, x: jax.nn.relu(x) @ v  # noqa: E731
    r = lrp(net, rules.alpha_beta())(jnp.array([[1000.0], [-1e-5]]), jnp.ones((1, 2)))
    np.testing.assert_allclose(r.input[0, 0], 2, rtol=1e-5)
    assert -1 <= r.input[0, 1] <= 0


def test_where_and_half_precision_relus_prove_their_sign():
    for act in (lambda z: jnp.where(z > 0, z, 0), jax.nn.relu):
        for dtype in (jnp.float32, jnp.bfloat16):
            half = jax.tree.map(lambda v, d=dtype: v.astype(d), (MLP, X))
            net = lambda v, x, act=act: nets.dense(  # noqa: E731
                v["params"]["fc2"], act(nets.dense(v["params"]["fc1"], x))
            )
            linear = [s for s in plan(trace(net, *half)).steps if s.kind == "linear"]
            assert [s.nonnegative for s in linear] == [False, True]


# --- devices


ON_MESHES = {
    "lrp": lrp(plain, rules.epsilon(0.01)),
    "ig": integrated_gradients(plain, quadrature.gauss_legendre(4)),
    "layer_ig": layer_integrated_gradients(marked, "hidden", quadrature.gauss_legendre(4)),
    "conductance": conductance(marked, "hidden", quadrature.gauss_legendre(4)),
}
WIDE = {"params": {"fc1": DRAW.dense(6, 16), "fc2": DRAW.dense(16, 8)}}


@pytest.mark.parametrize("mesh", ["fsdp", "data=2,model=4", "data"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ON_MESHES)
def test_relevance_is_divided_as_the_examples_are(name, compiled, mesh):
    transform = jax.jit(ON_MESHES[name]) if compiled else ON_MESHES[name]
    sharding, x = make_sharding(mesh), DRAW(16, 6)
    rows = NamedSharding(sharding.mesh, PartitionSpec("data"))
    given = place(WIDE, sharding), jax.device_put(x, rows)
    found = transform(*given)
    size = 16 // sharding.mesh.shape["data"]
    expected = jax.tree.leaves(transform(WIDE, x))
    for one, leaf in zip(expected, jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(leaf, one, atol=1e-5)
        assert {part.data.shape[0] for part in leaf.addressable_shards} == {size}
    if compiled:
        before = transform._cache_size()
        transform(*given)
        assert transform._cache_size() == before


def test_examples_that_do_not_divide_stay_as_they_are():
    sharding = make_sharding("data")
    x = replicate(DRAW(12, 6), sharding)
    found = jax.jit(ON_MESHES["lrp"])(place(WIDE, sharding), x)
    assert found.input.sharding.is_fully_replicated
    np.testing.assert_allclose(found.input, ON_MESHES["lrp"](WIDE, np.asarray(x)).input, atol=1e-5)


def test_it_works_inside_shard_map():
    fn, variables, x = NETWORKS["resnet"]()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.concatenate([x, x[:1]])
    relevance = lrp(fn, rules.epsilon_plus_flat())
    y = jnp.array([0, 1, 2, 0])

    def local(variables, x, y):
        r = relevance(variables, x, start=starts.label(y))
        return r.input, r.neurons, {key: entry.total for key, entry in r.ledger.items()}

    spec = PartitionSpec("data")
    sharded = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=(PartitionSpec(), spec, spec), out_specs=spec)
    )
    expected = jax.jit(local)(variables, x, y)
    for a, b in zip(*map(jax.tree.leaves, (sharded(variables, x, y), expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def gated(v, x):
    """Gates, sums and bounds of functions that hold parameters, and are open at zero by them."""
    h, u = x @ v["w"], x @ v["u"]
    opened = h * jax.nn.sigmoid(1.3 * u + v["b"])
    return jnp.maximum(jax.nn.softplus(v["c"] + u) + opened, v["c"]) @ v["head"]


@pytest.mark.parametrize("where", ["everywhere", "each device"])
def test_functions_of_parameters_work_inside_shard_map(where):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"w": (5, 6), "u": (5, 6), "head": (6, 3)}
    v = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=False)}
    v |= {"b": jnp.float32(0.4), "c": jnp.float32(0.2)}
    x = jax.random.normal(keys[3], (8, 5))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    alone = where == "each device"

    def parts(v, x):
        r = lrp(gated)(v, x, start=starts.label(1))
        return r.input, {key: entry.total for key, entry in r.ledger.items()}

    def local(v, x):
        return parts(jax.tree.map(lambda leaf: leaf[0], v) if alone else v, x)

    spec, given = PartitionSpec("data"), v
    if alone:
        given = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), v)
    specs = (spec if alone else PartitionSpec(), spec)
    sharded = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=spec))(given, x)
    expected = jax.jit(parts)(v, x)
    assert set(sharded[1]) >= set(expected[1]) >= {"mul", "w", "head"}
    np.testing.assert_allclose(sharded[0], expected[0], rtol=1e-4, atol=1e-5)
    for key, total in sharded[1].items():
        np.testing.assert_allclose(total, expected[1].get(key, 0 * total), rtol=1e-4, atol=1e-5)


def test_a_maximum_that_absorbs_nothing_has_no_entry():
    def net(v, x):
        pooled = jnp.max(jax.nn.relu(x.reshape(2, 4, 3) @ v), axis=1)
        return jnp.max(pooled.reshape(2, 2, 2), axis=2)

    r = lrp(net)(jnp.ones((3, 4)), jnp.arange(24.0).reshape(2, 12), start=starts.argmax())
    assert not [key for key in r.ledger if "max" in key]
    np.testing.assert_allclose(r.gap, 0, atol=1e-5)


def test_named_values_are_returned_where_they_lie():
    from jax.ad_checkpoint import checkpoint_name

    def net(variables, x):
        p = variables["params"]
        h = checkpoint_name(jax.nn.relu(nets.dense(p["fc1"], x)), "hidden")
        return nets.dense(p["fc2"], h)

    r = jax.jit(lrp(net))(MLP, X)
    np.testing.assert_array_equal(r.named["hidden"], r.neurons["params/fc1/kernel"])
