"""What other implementations were found to get wrong, each against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from nets import lrp

from jaxunlearn.attribution import starts
from jaxunlearn.attribution.lrp import rules


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def array(*values):
    return jnp.asarray(values, jnp.float64)


def test_1_a_skip_is_split_by_value_and_relevance_does_not_double():
    variables = {"w": jnp.diag(array(0.5, -0.25, 0.75)), "head": jnp.ones((3, 1), jnp.float64)}

    def net(variables, x):
        for _ in range(2):
            x = x + jax.nn.relu(x @ variables["w"])
        return x @ variables["head"]

    x = array([1.0, 2.0, 3.0])
    r = lrp(net, rules.zero())(variables, x, start=starts.label(0, times_logit=True))
    np.testing.assert_allclose(r.input.sum() / r.logits.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(r.input, x * array(1.5**2, 1, 1.75**2)[None], rtol=1e-5)


def test_2_batch_norm_is_folded_in_execution_order_and_exactly():
    # registered the other way round than they are executed, and a scale below zero
    draw = np.random.default_rng(0).normal
    norm = {"weight": [-1.5, 0.5], "bias": [0.3, -0.2], "running_mean": [0.1, 0.4]}
    norm = {name: array(*value) for name, value in norm.items()}
    norm["running_var"] = array(0.7, 1.9)
    variables = {"a_bn": norm, "b_conv": {"kernel": jnp.asarray(draw(size=(3, 3, 1, 2)))}}
    x = jnp.asarray(draw(size=(2, 4, 4, 1)))

    def net(variables, x):
        y = nets.batch_norm(variables["a_bn"], nets.conv(variables["b_conv"], x))
        return y.reshape(2, -1)

    scale = norm["weight"] / jnp.sqrt(norm["running_var"] + 1e-5)
    folded = {
        "kernel": variables["b_conv"]["kernel"] * scale[None, None, None],
        "bias": norm["bias"] - norm["running_mean"] * scale,
    }
    for rule in (rules.epsilon(0.25), rules.gamma(), rules.alpha_beta(), rules.wsquare()):
        r = lrp(net, rule)(variables, x)
        expected = lrp(lambda v, x: nets.conv(v, x).reshape(2, -1), rule)(folded, x)
        np.testing.assert_allclose(r.logits, expected.logits, atol=1e-12)
        np.testing.assert_allclose(r.input, expected.input, atol=1e-12)


@pytest.mark.parametrize("act", [jax.nn.gelu, jax.nn.silu, jnp.tanh, jax.nn.softplus])
def test_3_smooth_activations_pass_relevance_and_keep_its_sum(act):
    variables = {"w": array([0.5, -1.0], [1.5, 0.25]), "head": array([1.0], [-0.5])}
    x = array([0.7, -0.3], [-1.0, 0.4])
    r = lrp(lambda v, x: act(x @ v["w"]) @ v["head"], rules.zero())(variables, x)
    np.testing.assert_allclose(r.input.sum(1), 1, rtol=1e-9)


def test_3_products_of_data_keep_the_sum():
    variables = {"a": array([1.0, 2.0], [-1.0, 0.5]), "b": array([0.5, 1.0], [2.0, -1.0])}
    x = array([0.7, -0.3], [-1.0, 0.4])

    def gated(v, x):
        return jnp.sum((x @ v["a"]) * jax.nn.sigmoid(x @ v["b"]), axis=1, keepdims=True)

    def bilinear(v, x):
        return jnp.einsum("bi,bi->b", x @ v["a"], x @ v["b"])[:, None]

    for net in (gated, bilinear):
        r = lrp(net, rules.zero())(variables, x)
        np.testing.assert_allclose(r.input.sum(1), 1, rtol=1e-4)


def test_4_each_use_of_a_shared_kernel_has_its_own_relevance():
    variables = {"w": array([1.0, 2.0], [3.0, 4.0])}
    x = array([1.0, 1.0])
    r = lrp(lambda v, x: jax.nn.relu(x @ v["w"]) @ v["w"], rules.zero())(
        variables, x, start=jnp.ones((1, 2))
    )
    h, z = np.array([4.0, 6.0]), np.array([22.0, 32.0])
    middle = h * (np.array([[1, 2], [3, 4]]) @ (1 / z))
    first = np.array([[1, 2], [3, 4]]) @ (middle / h)
    np.testing.assert_allclose(r.neurons["w#1"], [[1, 1]])
    np.testing.assert_allclose(r.neurons["w"], [middle], rtol=1e-12)
    np.testing.assert_allclose(r.input, [first], rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "cause"),
    [
        (rules.epsilon(), "dead"),
        (rules.zplus(), "dead"),
        (rules.zbox(0, 0), "dead"),
        (rules.gamma(), "dead"),
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_5_what_a_dead_window_swallows_is_in_the_ledger(rule, cause):
    variables = {"w": array([1.0, 2.0], [3.0, -4.0])}
    x = array([0.0, 0.0], [1.0, 0.0])
    r = lrp(lambda v, x: x @ v["w"], rule)(variables, x, start=jnp.ones((2, 2)))
    assert np.all(np.isfinite(r.input))
    np.testing.assert_allclose(getattr(r.ledger["w"], cause)[0], 2)
    np.testing.assert_allclose(r.ledger["w"].total[0], 2)
    assert abs(r.ledger["w"].total[1]) < 1e-4 or rule.name == "zbox"


def test_5_flat_and_wsquare_serve_a_window_of_zeros_as_any_other():
    variables = {"w": array([1.0, 2.0], [3.0, -4.0])}
    x = jnp.zeros((1, 2))
    flat = lrp(lambda v, x: x @ v["w"], rules.flat())(variables, x, start=jnp.ones((1, 2)))
    np.testing.assert_allclose(flat.input, [[1, 1]], rtol=1e-5)
    squared = lrp(lambda v, x: x @ v["w"], rules.wsquare())(variables, x, start=jnp.ones((1, 2)))
    np.testing.assert_allclose(squared.input, [[0.1 + 0.2, 0.9 + 0.8]], rtol=1e-5)


def test_6_relu_passes_all_relevance_where_its_input_is_zero():
    variables = {"w": jnp.eye(2), "head": array([1.0], [1.0])}
    x = array([0.0, 1.0])
    for act in (jax.nn.relu, lambda z: jnp.maximum(z, 0.0), lambda z: jnp.where(z > 0, z, 0.0)):
        r = lrp(lambda v, x, act=act: act(x @ v["w"]) @ v["head"], rules.flat())(variables, x)
        np.testing.assert_allclose(r.neurons["w"], [[0.5, 0.5]], rtol=1e-5)


def test_6_ties_of_a_max_pool_go_to_the_first_in_window_order():
    x = array([1.0, 1.0, 1.0, 1.0]).reshape(1, 2, 2, 1)
    for pool in (nets.max_pool, lambda x: jnp.max(x, axis=(1, 2), keepdims=True)):
        r = lrp(lambda v, x, pool=pool: pool(x).reshape(1, 1))({}, x)
        np.testing.assert_array_equal(r.input.ravel(), [1, 0, 0, 0])


def test_7_an_average_pool_counts_its_padding():
    x = array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
    net = lambda v, x: nets.avg_pool(x, 3, 2, 1).reshape(1, 1)  # noqa: E731
    r = lrp(net)({}, x)
    np.testing.assert_allclose(r.logits, [[10 / 9]])
    np.testing.assert_allclose(r.input.ravel(), np.array([1, 2, 3, 4]) / 10, rtol=1e-5)


def test_8_zeros_are_no_nan():
    """Of inputs, the contract table runs every rule on images of zeros."""
    every = [rules.epsilon(), rules.zplus(), rules.gamma(), rules.flat(), rules.alpha_beta(),
             rules.zero(), rules.wsquare(), rules.zbox(-1, 1)]  # fmt: skip
    empty = {"w": jnp.zeros((2, 2))}
    for rule in every:
        for x in (array([1.0, -1.0]), array([0.0, 0.0])):
            r = lrp(lambda v, x: x @ v["w"], rule)(empty, x)
            assert np.all(np.isfinite(r.input)), rule.name


def test_9_starts_say_what_they_are():
    logits = array([0.5, 2.0, -1.0], [3.0, 1.0, 2.5])
    y = jnp.array([1, 2])
    expected = [
        (starts.argmax(), [[0, 1, 0], [1, 0, 0]]),
        (starts.argmax(times_logit=True), [[0, 2, 0], [3, 0, 0]]),
        (starts.label(y), [[0, 1, 0], [0, 0, 1]]),
        (starts.label(y, times_logit=True), [[0, 2, 0], [0, 0, 2.5]]),
        (starts.margin(y), [[-1, 1, 0], [-1, 0, 1]]),
        (starts.margin(y, times_logit=True), [[-0.5, 2, 0], [-3, 0, 2.5]]),
    ]
    for start, values in expected:
        np.testing.assert_array_equal(start(logits), values)
    with pytest.raises(ValueError, match=r"margin: expected one label or labels \[2\], got"):
        starts.margin(jnp.zeros(3, int))(logits)


def test_10_a_path_in_layer_space_is_not_conductance_and_trapezoid_weights_sum_to_one():
    from jax.ad_checkpoint import checkpoint_name

    from jaxunlearn.attribution import conductance, layer_integrated_gradients
    from jaxunlearn.attribution.ig import quadrature

    # h = (x^2, x), f = h1 h2: straight in h from 0 to (1, 1), or along the curve of x
    def net(variables, x):
        h = checkpoint_name(jnp.concatenate([jnp.square(x), x], axis=1), "h")
        return (h[:, 0] * h[:, 1])[:, None]

    x = array([1.0])
    along_layer = layer_integrated_gradients(net, "h")({}, x)
    along_input = conductance(net, "h")({}, x)
    np.testing.assert_allclose(along_layer.attribution, [[1 / 2, 1 / 2]], atol=1e-9)
    np.testing.assert_allclose(along_input.attribution, [[2 / 3, 1 / 3]], atol=1e-9)
    for n in (2, 7, 50):
        assert abs(sum(quadrature.trapezoid(n).weights) - 1) < 1e-12


def test_10_where_the_relevance_is_asked_for_matters():
    """At a unit's output, at its input and at a named value: three things, all returned."""
    from jax.ad_checkpoint import checkpoint_name

    variables = {"w": array([1.0, -1.0], [2.0, 1.0]), "head": array([1.0], [2.0])}

    def net(v, x):
        hidden = checkpoint_name(jax.nn.relu(x @ v["w"]), "hidden")
        return checkpoint_name(hidden + 1.0, "hidden") @ v["head"]

    r = lrp(net, rules.zero())(variables, array([1.0, 1.0]))
    np.testing.assert_allclose(r.named["hidden"], r.neurons["w"])
    assert list(r.named) == ["hidden", "hidden#1"]
    np.testing.assert_allclose(r.named["hidden#1"], r.inputs["head"])
