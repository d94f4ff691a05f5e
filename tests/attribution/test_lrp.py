"""Relevance propagation as a transform: what it composes with, covers and refuses."""

import chex
import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from nets import lrp

from jaxunlearn.attribution import starts
from jaxunlearn.attribution.lrp import rules


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def dense_of(seed, n_in, n_out):
    return {
        "kernel": nets.draw(seed, n_in, n_out) / n_in**0.5,
        "bias": nets.draw(seed + 1, n_out) * 0.1,
    }


@pytest.fixture
def mlp():
    sizes = (("fc1", 6, 8), ("fc2", 8, 7), ("fc3", 7, 3))
    return {"params": {name: dense_of(i, a, b) for i, (name, a, b) in enumerate(sizes)}}


# --- one set of weights, three ways to write the network


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(4, (3, 3), name="conv1")(x))
        x = linen.avg_pool(x, (2, 2), (2, 2))
        return linen.Dense(3, name="head")(x.reshape(x.shape[0], -1))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.head = nnx.Linear(36, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.avg_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        return self.head(x.reshape(x.shape[0], -1))


def plain_net(variables, x):
    p = variables["params"]
    x = nets.avg_pool(jax.nn.relu(nets.conv(p["conv1"], x, pad=1)), 2, 2, 0)
    return nets.dense(p["head"], x.reshape(x.shape[0], -1))


def nnx_apply(model):
    graph, state = nnx.split(model)

    def apply(variables, x):
        return nnx.merge(graph, variables["params"])(x)

    return apply, {"params": nnx.to_pure_dict(state)}


@pytest.mark.parametrize("rule", [rules.epsilon(0.1), rules.zplus()], ids=lambda r: r.name)
def test_nnx_linen_and_plain_functions_agree(rule):
    x = nets.draw(0, 2, 6, 6, 2)
    apply, variables = nnx_apply(NnxNet(nnx.Rngs(0)))
    variables["params"]["conv1"]["bias"] = nets.draw(1, 4)
    expected = jax.jit(lrp(plain_net, rule))(variables, x)
    assert set(expected.neurons) == {"params/conv1/kernel", "params/head/kernel"}
    with jax.numpy_dtype_promotion("standard"):  # Flax's own avg_pool divides by an integer
        for other in (apply, LinenNet().apply):
            found = jax.jit(lrp(other, rule))(variables, x)
            chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


# --- conservation


class Block(nnx.Module):
    def __init__(self, n_in, n_out, stride, rngs):
        settings = {"use_bias": False, "rngs": rngs}
        self.conv1 = nnx.Conv(n_in, n_out, (3, 3), strides=stride, **settings)
        self.bn1 = nnx.BatchNorm(n_out, use_running_average=True, rngs=rngs)
        self.conv2 = nnx.Conv(n_out, n_out, (3, 3), **settings)
        self.bn2 = nnx.BatchNorm(n_out, use_running_average=True, rngs=rngs)
        self.projects = n_in != n_out
        if self.projects:
            self.proj = nnx.Conv(n_in, n_out, (1, 1), strides=stride, **settings)

    def __call__(self, x):
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        return nnx.relu(y + (self.proj(x) if self.projects else x))


class Residual(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(2, 4, (3, 3), use_bias=False, rngs=rngs)
        self.block1 = Block(4, 4, 1, rngs)
        self.block2 = Block(4, 6, 2, rngs)
        self.head = nnx.Linear(6, 3, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = self.block2(self.block1(nnx.relu(self.conv1(x))))
        return self.head(x.mean((1, 2)))


def residual(shifted=False):
    """Batch norms with scales of both signs, and shifts only where asked."""
    apply, variables = nnx_apply(Residual(nnx.Rngs(1)))

    def change(path, value):
        name = path[-1].key
        noise = nets.draw(sum(map(ord, jax.tree_util.keystr(path))), *value.shape)
        if name == "scale":
            return 1 + noise * 0.8
        if name == "var":
            return jnp.exp(noise * 0.3)
        return noise * 0.1 if shifted and name in ("mean", "bias") else value

    return apply, jax.tree_util.tree_map_with_path(change, variables)


@pytest.mark.parametrize("rule", [rules.epsilon(1e-12), rules.zero()], ids=lambda r: r.name)
def test_relevance_is_conserved_without_biases_across_skips_and_batch_norm(rule):
    apply, variables = residual()
    with jax.enable_x64(True):
        variables, x = jax.tree.map(
            lambda v: v.astype(jnp.float64), (variables, nets.draw(3, 3, 8, 8, 2))
        )
        r = jax.jit(lrp(apply, rule))(variables, x)
        start = np.ones(3)
        assert set(r.neurons) < set(r.ledger)
        for absorbed in (r.ledger[key] for key in r.neurons):
            np.testing.assert_allclose(absorbed.total, 0, atol=1e-7)
        np.testing.assert_allclose(r.input.sum((1, 2, 3)), start, atol=1e-3)
        np.testing.assert_allclose(r.total, start - r.input.sum((1, 2, 3)), atol=1e-12)


def test_the_gap_is_what_biases_absorb():
    apply, variables = residual(shifted=True)
    r = jax.jit(lrp(apply, rules.epsilon(0.1)))(variables, nets.draw(3, 3, 8, 8, 2))
    for key, neurons in r.neurons.items():
        expected = neurons.reshape(3, -1).sum(1) - r.inputs[key].reshape(3, -1).sum(1)
        np.testing.assert_allclose(r.ledger[key].total, expected, atol=1e-5)
        assert np.max(np.abs(expected)) > 1e-6


def test_batch_norm_is_folded_exactly_for_rules_that_need_the_kernel():
    p = {"kernel": nets.draw(0, 3, 3, 2, 4)}
    norm = {"weight": nets.draw(1, 4), "bias": nets.draw(2, 4), "running_mean": nets.draw(3, 4)}
    norm["running_var"] = jnp.exp(nets.draw(4, 4))
    scale = norm["weight"] / jnp.sqrt(norm["running_var"] + 1e-5)
    shift = norm["bias"] - norm["running_mean"] * scale
    folded = {"kernel": p["kernel"] * scale[None, None, None], "bias": shift}

    def flat(y):
        return y.reshape(y.shape[0], -1)

    x = nets.draw(5, 2, 5, 5, 2)
    for rule in (rules.zplus(), rules.epsilon(0.1)):
        one = lrp(lambda v, x: flat(nets.batch_norm(v["bn"], nets.conv(v["c"], x))), rule)
        two = lrp(lambda v, x: flat(nets.conv(v["c"], x)), rule)
        a, b = one({"c": p, "bn": norm}, x), two({"c": folded}, x)
        np.testing.assert_allclose(a.input, b.input, rtol=1e-4, atol=1e-6)


# --- composition


def test_jit_changes_nothing_and_traces_once(mlp):
    x = nets.draw(0, 4, 6)
    counted = chex.assert_max_traces(nets.mlp_relu, n=1)
    jitted = jax.jit(lrp(counted))
    for y in (jnp.array([0, 1, 2, 0]), jnp.array([2, 2, 1, 1])):
        r = jitted(mlp, x, start=starts.label(y))
        expected = lrp(nets.mlp_relu)(mlp, x, start=starts.label(y))
        chex.assert_trees_all_close(r, expected, rtol=1e-5, atol=1e-6)


def test_vmap_is_a_loop_over_models_and_examples(mlp):
    relevance = jax.jit(lrp(nets.mlp_relu, rules.zplus()))
    models = jax.tree.map(lambda v: jnp.stack([v, -v, 2 * v]), mlp)
    x = nets.draw(0, 4, 6)
    loop = [relevance(jax.tree.map(lambda v, i=i: v[i], models), x) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop)
    mapped = jax.vmap(relevance, in_axes=(0, None))(models, x)
    chex.assert_trees_all_close(mapped, stacked, rtol=1e-5, atol=1e-6)
    one = jax.vmap(lambda one: relevance(mlp, one[None]).input[0])(x)
    chex.assert_trees_all_close(one, relevance(mlp, x).input, rtol=1e-5, atol=1e-6)


def test_it_steps_inside_remat_jit_and_custom_gradients(mlp):
    @jax.custom_vjp
    def times(x, w):
        return lax.dot_general(x, w, (((1,), (0,)), ((), ())))

    times.defvjp(lambda x, w: (times(x, w), None), lambda _, g: (g, g))

    def wrapped(variables, x):
        p = variables["params"]
        layer = jax.checkpoint(lambda q, h: jax.jit(times)(h, q["kernel"]) + q["bias"][None])
        h = jax.nn.relu(layer(p["fc1"], x))
        return nets.dense(p["fc3"], jax.nn.relu(layer(p["fc2"], h)))

    x = nets.draw(0, 4, 6)
    expected = lrp(nets.mlp_relu)(mlp, x)
    chex.assert_trees_all_close(lrp(wrapped)(mlp, x), expected, rtol=1e-5, atol=1e-6)


# --- single steps, against numbers worked out by hand


@pytest.mark.parametrize(
    "act",
    [
        jax.nn.relu,
        jax.nn.gelu,
        jax.nn.silu,
        jax.nn.elu,
        jax.nn.softplus,
        jnp.tanh,
        jax.nn.relu6,
        jax.nn.hard_swish,
        lambda z: jnp.where(z > 0, z, 0.1 * z),
        lambda z: jnp.maximum(z, 0.0),
        lambda z: z * z,
    ],
    ids=lambda act: getattr(act, "__name__", "act"),
)
def test_activations_pass_relevance_unchanged(mlp, act):
    def net(variables, x):
        p = variables["params"]
        return nets.dense(p["fc2"], act(nets.dense(p["fc1"], x)))

    r = lrp(net)(mlp, nets.draw(0, 4, 6))
    chex.assert_trees_all_equal(r.neurons["params/fc1/kernel"], r.inputs["params/fc2/kernel"])


def test_a_sum_is_split_by_value_and_does_not_double():
    variables = {"kernel": jnp.eye(2)}
    r = lrp(lambda v, x: jnp.tanh(x @ v["kernel"]) + x)(variables, jnp.array([[1.0, 2.0]]))
    share = np.tanh(2.0) / (np.tanh(2.0) + 2)
    np.testing.assert_allclose(r.neurons["kernel"], [[0, share]], rtol=1e-5)
    np.testing.assert_allclose(r.input.sum(), 1, rtol=1e-5)


def test_max_pool_ties_go_to_the_first_in_window_order():
    x = jnp.array([[[[2.0], [2.0], [1.0]], [[2.0], [0.0], [1.0]], [[1.0], [1.0], [1.0]]]])

    def pooled(_, x):
        y = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")
        return y.reshape(1, -1)

    r = lrp(pooled)({}, x, start=jnp.ones((1, 4)))
    expected = [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    np.testing.assert_array_equal(r.input[0, :, :, 0], expected)


def test_global_max_goes_to_the_first_winner():
    x = jnp.array([[[[1.0, 5.0], [3.0, 5.0]], [[3.0, 0.0], [2.0, 1.0]]]])
    r = lrp(lambda _, x: jnp.max(x, axis=(1, 2)))({}, x, start=jnp.ones((1, 2)))
    expected = np.zeros(x.shape)
    expected[0, 0, 1, 0] = expected[0, 0, 0, 1] = 1
    np.testing.assert_array_equal(r.input, expected)


def test_layouts_move_relevance_back(mlp):
    def net(variables, x):
        left, right = jnp.split(x, 2, axis=1)
        turned = jnp.concatenate([right[:, ::-1], left], axis=1)
        padded = jnp.pad(turned, ((0, 0), (1, 1)))[:, 1:-1]
        return nets.mlp_relu(variables, padded.T.T.reshape(-1, 2, 3).reshape(-1, 6))

    x = nets.draw(0, 4, 6)
    inner = lrp(nets.mlp_relu)(mlp, x[:, jnp.array([5, 4, 3, 0, 1, 2])])
    r = lrp(net)(mlp, x)
    np.testing.assert_allclose(r.input[:, jnp.array([5, 4, 3, 0, 1, 2])], inner.input, rtol=1e-5)


def test_integer_images_are_normalised_inside_the_function(mlp):
    images = jnp.arange(24, dtype=jnp.uint8).reshape(4, 2, 3)
    pixels = images.reshape(4, 6).astype(jnp.float32)

    def net(variables, x):
        x = (x.reshape(4, 6).astype(jnp.float32) - 12.0) / 7.0
        return nets.mlp_relu(variables, x)

    inner = lrp(nets.mlp_relu)(mlp, (pixels - 12.0) / 7.0)
    flat = [(0, rules.flat()), ("", rules.epsilon())]
    # by value: the mean absorbs its share; in front of a rule that is not by value it takes nothing
    by_value = inner.input * pixels / (pixels - 12.0 + 1e-9)
    r = lrp(net)(mlp, images)
    np.testing.assert_allclose(
        jnp.delete(r.input.reshape(-1), 12), jnp.delete(by_value.reshape(-1), 12), rtol=1e-4
    )
    np.testing.assert_allclose(
        lrp(net, flat)(mlp, images).input.reshape(4, 6),
        lrp(nets.mlp_relu, flat)(mlp, (pixels - 12.0) / 7.0).input,
        rtol=1e-5,
    )


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32])
@pytest.mark.parametrize("net", [lambda v, x: x @ v, lambda v, x: x.sum(1, keepdims=True) * v[:1]])
def test_integers_that_a_layer_reads_as_they_are_get_relevance(net, dtype):
    x, v = jnp.arange(8).reshape(2, 4), nets.draw(0, 4, 3)
    with jax.numpy_dtype_promotion("standard"):
        r = lrp(net)(v, x.astype(dtype))
        expected = lrp(net)(v, x.astype(jnp.float32))
    np.testing.assert_allclose(r.input, expected.input, rtol=1e-6)


def test_neurons_come_last_whatever_the_order_of_the_operation():
    variables = {"kernel": nets.draw(0, 5, 3)}  # out, in

    def net(variables, x):
        return lax.dot_general(variables["kernel"], x, (((1,), (1,)), ((), ()))).T

    x = nets.draw(1, 4, 3)
    r = lrp(net)(variables, x)
    assert r.neurons["kernel"].shape == (4, 5)
    straight = lrp(lambda v, x: x @ v["kernel"].T)(variables, x)
    chex.assert_trees_all_close(r, straight, rtol=1e-5, atol=1e-6)


def test_a_kernel_used_twice_has_two_entries():
    variables = {"kernel": nets.draw(0, 4, 4)}
    r = lrp(lambda v, x: jnp.tanh(x @ v["kernel"]) @ v["kernel"])(variables, nets.draw(1, 2, 4))
    assert list(r.neurons) == ["kernel", "kernel#1"]
    chex.assert_trees_all_equal(r.neurons["kernel"], r.inputs["kernel#1"])


def test_zero_input_is_not_nan(mlp):
    every = [rules.epsilon(), rules.zero(), rules.zplus()]
    relevances = jax.jit(lambda v, x: {rule.name: lrp(nets.mlp_relu, rule)(v, x) for rule in every})
    for variables in (mlp, jax.tree.map(jnp.zeros_like, mlp)):
        for name, r in relevances(variables, jnp.zeros((2, 6))).items():
            chex.assert_tree_all_finite(r)
            np.testing.assert_array_equal(r.input, 0, err_msg=name)


# --- rules and starts


def test_the_first_matching_rule_wins(mlp):
    x = nets.draw(0, 4, 6)
    mixed = lrp(nets.mlp_relu, [("fc3", rules.epsilon(0.5)), ("dot_general", rules.zplus())])(
        mlp, x
    )
    head = lrp(nets.mlp_relu, rules.epsilon(0.5))(mlp, x)
    key = "params/fc3/kernel"
    chex.assert_trees_all_close(mixed.inputs[key], head.inputs[key])
    assert not np.allclose(mixed.input, head.input)
    with pytest.raises(ValueError, match="params/fc1/kernel"):
        lrp(nets.mlp_relu, [("fc[23]", rules.epsilon())])(mlp, x)


def test_starts(mlp):
    logits = jnp.array([[1.0, 3.0, 2.0], [5.0, 4.0, 5.0]])
    np.testing.assert_array_equal(starts.argmax()(logits), [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(starts.argmax(times_logit=True)(logits), [[0, 3, 0], [5, 0, 0]])
    np.testing.assert_array_equal(starts.label(2)(logits), [[0, 0, 1], [0, 0, 1]])
    y = jnp.array([0, 1])
    np.testing.assert_array_equal(starts.label(y, times_logit=True)(logits), [[1, 0, 0], [0, 4, 0]])
    with pytest.raises(ValueError, match="labels"):
        starts.label(jnp.array([0, 1, 2]))(logits)


def test_bad_arguments_are_named(mlp):
    x = nets.draw(0, 4, 6)
    with pytest.raises(ValueError, match="eps"):
        rules.epsilon(0.0)
    with pytest.raises(TypeError, match="rules"):
        lrp(nets.mlp_relu, [("fc1", "epsilon")])
    with pytest.raises(ValueError, match="regular expression"):
        lrp(nets.mlp_relu, [("(", rules.epsilon())])
    with pytest.raises(ValueError, match="start"):
        lrp(nets.mlp_relu)(mlp, x, start=jnp.ones(3))
    with pytest.raises(ValueError, match="logits"):
        lrp(lambda v, x: x)(mlp, jnp.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="depends on x"):
        lrp(lambda v, x: jnp.ones((2, 3)))(mlp, x)
    with pytest.raises(TypeError, match="one array"):
        lrp(lambda v, x: (x, x))(mlp, x)


# --- what is not covered says so


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("cumlogsumexp", lambda z: lax.cumlogsumexp(z, axis=1)),
        ("while", lambda z: lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c + 1, z)),
        ("reduce", lambda z: lax.reduce(z, 0.0, lambda a, b: a + 2 * b, (1,))[:, None] * z),
        ("pow", lambda z: jnp.abs(z) ** z[:, ::-1]),
    ],
)
def test_an_unknown_operation_is_named_with_its_line(mlp, name, step):
    def net(variables, x):
        return nets.dense(
            variables["params"]["fc2"], step(nets.dense(variables["params"]["fc1"], x))
        )

    with pytest.raises(NotImplementedError, match=rf"'{name}'.*test_lrp\.py:\d+"):
        lrp(net)(mlp, nets.draw(0, 4, 6))
