"""Integrated Gradients: against the reference, cases done by hand, what they compose with."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import named_nets
import nets
import networks
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxunlearn.attribution import lrp, starts
from jaxunlearn.attribution.ig import baselines, integrated_gradients, quadrature

RULES = {
    "gausslegendre": quadrature.gauss_legendre,
    "riemann_middle": quadrature.midpoint,
    "riemann_right": quadrature.right_riemann,
    "riemann_trapezoid": quadrature.trapezoid,
}


@functools.cache
def compiled(net, rule=quadrature.gauss_legendre, n=32, many=False, **options):
    """Once for each network, quadrature and options, whatever asks.

    Of many nodes or examples, what runs for seconds is worth the time to be compiled well.
    """
    attribute = integrated_gradients(getattr(nets, net), rule(n), **options)
    level = {"xla_backend_optimization_level": 2} if many else None
    return jax.jit(attribute, compiler_options=level)


LEFT_OVER = ("gausslegendre", 20)


def smooth_net(variables, x):
    """A network without kinks."""
    w1, w2 = variables
    return jax.nn.gelu(x @ w1, approximate=False) @ w2


def relative_error(found, expected):
    return np.max(np.abs(np.asarray(found) - expected)) / np.max(np.abs(expected))


@pytest.fixture
def smooth():
    return (nets.draw(0, 6, 8) / 2, nets.draw(1, 8, 3)), nets.draw(2, 4, 6)


# --- the reference


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("net", named_nets.NETS)
def test_agrees_with_the_reference(net, rule):
    with jax.enable_x64(True):
        golden, (variables, x, target) = named_nets.load(net)
        keys = [key for key in golden if key.endswith("/input") and f"{rule}-" in key]
        for key in keys:
            n = int(key.split("/")[1].rsplit("-", 1)[1])
            own = golden["ig/baseline2"]
            # of 20 nodes 6 are left over by 7; elsewhere none, and the loop is compiled once
            attribute = compiled(net, RULES[rule], n, chunk=7 if (rule, n) == LEFT_OVER else 10)
            r = attribute(variables, x, target, own if "baseline2" in key else np.zeros_like(own))
            # the reference divides by n what n - 1 intervals are, in this rule alone
            off = n / (n - 1) if rule == "riemann_trapezoid" else 1
            # it holds its weights in float32
            assert relative_error(r.attribution, off * golden[key]) <= 5e-8, key
            if off == 1:
                expected = golden[key.replace("/input", "/delta")]
                np.testing.assert_allclose(r.gap, expected, atol=5e-9)
        assert len(keys) >= 1


@pytest.mark.parametrize("net", named_nets.NETS)
def test_completed_gap_of_drawn_inputs_is_below_a_thousandth_too(net):
    with jax.enable_x64(True):
        _, (variables, x, _) = named_nets.load(net)
        drawn = np.std(x) * np.random.default_rng(0).normal(size=(100, *x.shape[1:]))
        r = compiled(net, complete=True, many=True)(variables, drawn)
        assert np.all(r.relative_gap <= 1e-3)


@pytest.mark.parametrize("net", named_nets.NETS)
def test_completed_gap_is_below_a_thousandth_at_32_nodes(net):
    with jax.enable_x64(True):
        golden, (variables, x, target) = named_nets.load(net)
        completed, plain = compiled(net, complete=True), compiled(net)
        fine = compiled(net, quadrature.midpoint, 1500, chunk=50, many=True)
        own = golden["ig/baseline2"]
        for baseline in (np.zeros_like(own), own):
            r, before, exact = (f(variables, x, target, baseline) for f in (completed, plain, fine))
            assert np.all(r.relative_gap <= 1e-3)
            np.testing.assert_allclose(r.plain_gap, before.gap)
            assert np.all(np.abs(before.gap) > np.abs(r.gap))

            # adding up is not bought with what the parts are

            def error(found, exact=exact):
                return float(np.abs(found.attribution - exact.attribution).sum())

            assert error(r) <= 1.1 * error(before)


def test_a_smooth_function_leaves_rounding_at_32_nodes(smooth):
    with jax.enable_x64(True):
        variables, x = jax.tree.map(lambda v: v.astype(jnp.float64), smooth)
        for complete in (False, True):
            r = jax.jit(integrated_gradients(smooth_net, complete=complete))(variables, x)
            assert np.all(r.relative_gap <= 1e-10)
            assert np.all(np.abs(r.score - r.baseline_score) > 0.1)
    r = jax.jit(integrated_gradients(smooth_net))(*smooth)
    assert np.all(np.abs(r.gap) <= 1e-5)


# --- by hand


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_a_linear_function_is_exact(rule, complete):
    w, x, b = nets.draw(0, 5, 3), nets.draw(1, 4, 5), nets.draw(2, 4, 5)
    attribute = integrated_gradients(lambda w, x: x @ w, RULES[rule](6), complete=complete)
    r = attribute(w, x, jnp.array([0, 1, 2, 0]), b)
    np.testing.assert_allclose(r.attribution, (x - b) * w.T[np.array([0, 1, 2, 0])], atol=1e-5)
    np.testing.assert_allclose(r.gap, 0, atol=1e-5)


@pytest.mark.parametrize(
    "rule", [quadrature.gauss_legendre(1), quadrature.midpoint(3), quadrature.trapezoid(2)]
)
def test_a_quadratic_form_is_exact(rule):
    a, x, b = nets.draw(0, 5, 5), nets.draw(1, 4, 5), nets.draw(2, 5)
    r = integrated_gradients(lambda a, x: jnp.sum(x @ a * x, 1, keepdims=True), rule)(a, x, 0, b)
    expected = (x - b[None]) * ((x + b[None]) / 2 @ (a + a.T))
    np.testing.assert_allclose(r.attribution, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(r.score - r.baseline_score, expected.sum(1), rtol=1e-4, atol=1e-4)


def test_the_right_sum_is_off_by_what_it_should():
    """Of x^2 from 0 to 1, with n nodes: 2 (1 + 2 + ... + n) / n^2 = 1 + 1/n."""
    x = jnp.ones((1, 1))
    r = integrated_gradients(lambda _, x: x**2, quadrature.right_riemann(4))(None, x, 0)
    np.testing.assert_allclose(r.attribution, [[1.25]], rtol=1e-6)
    np.testing.assert_allclose(r.gap, [0.25], rtol=1e-6)
    np.testing.assert_allclose(r.relative_gap, [0.25], rtol=1e-6)


def test_completion_moves_the_border_next_to_a_kink():
    """relu(x - c) between two nodes: the border moves to the kink, where it is exact."""
    kink = 0.4
    rule = quadrature.midpoint(2)

    def fn(_, x):
        return jax.nn.relu(x - kink)

    x = jnp.ones((1, 1))
    plain = integrated_gradients(fn, rule)(None, x, 0)
    np.testing.assert_allclose(plain.attribution, [[0.5]], rtol=1e-6)
    r = integrated_gradients(fn, rule, complete=True)(None, x, 0)
    np.testing.assert_allclose(r.attribution, [[1 - kink]], rtol=1e-6)
    np.testing.assert_allclose(r.gap, 0, atol=1e-6)
    np.testing.assert_allclose(r.plain_gap, plain.gap)


def test_no_border_moves_by_more_than_an_interval():
    """Most of this gap is no matter of borders, and stays."""
    rule = quadrature.Quadrature(np.array([0.9, 0.96]), np.array([0.1, 0.9]))
    attribute = integrated_gradients(lambda _, x: 100 * jax.nn.relu(x - 0.95), rule, complete=True)
    r = attribute(None, jnp.ones((1, 1)), 0)
    np.testing.assert_allclose(r.plain_gap, [90 - 5], rtol=1e-4)
    np.testing.assert_allclose(r.gap, [85 - 100 * 0.06], rtol=1e-4)


def test_what_equals_the_baseline_has_no_part(smooth):
    variables, x = smooth
    moves = jnp.arange(6) < 2
    baseline = jnp.where(moves[None], 0, x)
    r = integrated_gradients(smooth_net)(variables, x, 1, baseline)
    np.testing.assert_array_equal(r.attribution[:, 2:], 0)
    np.testing.assert_allclose(r.attribution.sum(1), r.score - r.baseline_score, atol=1e-5)


# --- targets and baselines


def test_targets(smooth):
    variables, x = smooth
    attribute = integrated_gradients(smooth_net)
    logits = smooth_net(variables, x)
    y = jnp.argmax(logits, axis=1)
    one_hot = jax.nn.one_hot(y, 3)
    for same in (
        y,
        starts.argmax(),
        starts.label(y),
        one_hot,
        lambda out: jnp.sum(out * one_hot, 1),
    ):
        chex.assert_trees_all_close(attribute(variables, x, same), attribute(variables, x))
    found = attribute(variables, x, 2)
    np.testing.assert_allclose(found.score, logits[:, 2], rtol=1e-6)
    np.testing.assert_allclose(found.logits, logits)

    margin = attribute(variables, x, starts.margin(0)).attribution
    rival = jnp.argmax(logits.at[:, 0].set(-jnp.inf), axis=1)
    parts = (attribute(variables, x, y).attribution for y in (0, rival))
    np.testing.assert_allclose(margin, next(parts) - next(parts), atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_function_as_target_is_evaluated_on_the_way(smooth, chunk):
    variables, x = smooth
    y = jnp.array([0, 2, 1, 1])

    def log_likelihood(out):
        return jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], axis=1)[:, 0]

    r = jax.jit(integrated_gradients(smooth_net, chunk=chunk), static_argnums=2)(
        variables, x, log_likelihood
    )
    ends = [log_likelihood(smooth_net(variables, v)) for v in (x, 0 * x)]
    np.testing.assert_allclose(r.score, ends[0], rtol=1e-5)
    np.testing.assert_allclose(r.attribution.sum(1), ends[0] - ends[1], atol=1e-5)


def test_outputs_may_have_more_axes(smooth):
    """A sequence of logits, of which a function takes one number."""
    variables, x = smooth

    def fn(variables, x):
        return jnp.stack([smooth_net(variables, x), smooth_net(variables, 2 * x)], axis=1)

    r = integrated_gradients(fn, chunk=4)(variables, x, lambda out: out[:, 1, 2])
    assert r.logits.shape == (4, 2, 3)
    np.testing.assert_allclose(r.gap, 0, atol=1e-5)
    np.testing.assert_allclose(r.score, smooth_net(variables, 2 * x)[:, 2], rtol=1e-6)


def test_an_output_may_have_no_classes(smooth):
    variables, x = smooth

    def of_class(variables, x):
        return smooth_net(variables, x)[:, 1]

    r = jax.jit(integrated_gradients(of_class, chunk=4))(variables, x)
    expected = integrated_gradients(smooth_net)(variables, x, 1)
    chex.assert_trees_all_close(r._replace(logits=expected.logits), expected, atol=1e-5)
    np.testing.assert_allclose(r.logits, expected.score, atol=1e-6)
    squared = integrated_gradients(of_class)(variables, x, lambda out: out**2)
    np.testing.assert_allclose(squared.score, expected.score**2, rtol=1e-5)


def test_labels_of_an_output_with_positions(smooth):
    variables, x = smooth
    y = jnp.array([[0, 1], [2, 2], [1, 0], [0, 0]])

    def sequence(variables, x):
        return jnp.stack([smooth_net(variables, x), smooth_net(variables, 2 * x)], axis=1)

    attribute = integrated_gradients(sequence, chunk=4)
    r = jax.jit(attribute)(variables, x, y)
    parts = [integrated_gradients(smooth_net)(variables, k * x, y[:, k - 1]) for k in (1, 2)]
    np.testing.assert_allclose(r.attribution, sum(p.attribution for p in parts), atol=1e-5)
    np.testing.assert_allclose(r.score, sum(p.score for p in parts), atol=1e-5)
    same = attribute(variables, x, 1).attribution
    np.testing.assert_allclose(same, attribute(variables, x, jnp.ones_like(y)).attribution)
    with pytest.raises(ValueError, match=r"label: expected one label or labels \[4, 2\], got"):
        attribute(variables, x, y[:, 0])


@pytest.mark.parametrize("transform", [integrated_gradients, lrp])
@pytest.mark.parametrize("make", [starts.label, starts.margin])
def test_a_label_that_is_no_class_is_caught_under_jit(smooth, transform, make):
    variables, x = smooth
    attribute = jax.jit(lambda y: transform(smooth_net)(variables, x, make(y))[0])
    found = attribute(jnp.array([0, 3, 2, -1]))
    expected = attribute(jnp.array([0, 0, 2, 0]))
    np.testing.assert_array_equal(found[::2], expected[::2])
    assert np.isnan(found[1::2]).all()


def test_a_masked_logit_is_left_out(smooth):
    variables, x = smooth

    def masked(variables, x):
        return smooth_net(variables, x).at[:, 2].set(-jnp.inf)

    found = integrated_gradients(masked)(variables, x, 1)
    expected = integrated_gradients(smooth_net)(variables, x, 1)
    np.testing.assert_allclose(found.attribution, expected.attribution, atol=1e-6)


def test_several_baselines_are_averaged(smooth):
    variables, x = smooth
    several = nets.draw(5, 3, 1, 6)
    attribute = jax.jit(integrated_gradients(smooth_net, complete=True))
    r = attribute(variables, x, 1, several)
    each = [attribute(variables, x, 1, b) for b in several]
    for field in ("attribution", "gap", "plain_gap", "baseline_score"):
        mean = np.mean([getattr(one, field) for one in each], axis=0)
        np.testing.assert_allclose(getattr(r, field), mean, atol=1e-5)


# --- composition


def test_chunks_change_nothing(smooth):
    variables, x = smooth
    for complete in (False, True):
        expected = jax.jit(integrated_gradients(smooth_net, complete=complete))(variables, x)
        for chunk in (5, 32, 100):
            attribute = integrated_gradients(smooth_net, chunk=chunk, complete=complete)
            chex.assert_trees_all_close(jax.jit(attribute)(variables, x), expected, atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_arrays_of_the_examples_that_are_closed_over(smooth, chunk):
    """Such a function takes no other number of examples; one in ``x`` with None moves not."""
    variables, x = smooth
    gate = nets.draw(6, 4, 3)
    rule = quadrature.gauss_legendre(8)

    def closed(variables, x):
        return smooth_net(variables, x) * gate

    def given(variables, pair):
        return smooth_net(variables, pair[0]) * pair[1]

    found = jax.jit(integrated_gradients(closed, rule, chunk=chunk))(variables, x, 1)
    beside = jax.jit(integrated_gradients(given, rule, chunk=chunk))
    expected = beside(variables, (x, gate), 1, (0.0, None))
    np.testing.assert_array_equal(expected.attribution[1], 0)
    expected = expected._replace(attribution=expected.attribution[0])
    chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_without_the_change_of_the_input_it_is_the_mean_gradient(smooth):
    variables, x = smooth
    baseline = nets.draw(3, 6)
    for complete in (False, True):
        whole, slopes = (
            jax.jit(integrated_gradients(smooth_net, complete=complete, multiply_by_inputs=own))(
                variables, x, 1, baseline
            )
            for own in (True, False)
        )
        np.testing.assert_allclose(
            slopes.attribution * (x - baseline[None]), whole.attribution, atol=1e-6
        )
        chex.assert_trees_all_close(
            slopes._replace(attribution=None), whole._replace(attribution=None)
        )


def test_the_trace_chooses_the_quadrature():
    with jax.enable_x64(True):
        for net, rule in (
            ("mlp_relu", quadrature.midpoint),
            ("mlp_gelu", quadrature.gauss_legendre),
        ):
            fn, variables, x = networks.NETWORKS[net.replace("_relu", "")]()
            found = integrated_gradients(fn, quadrature.automatic(5))(variables, x, 1)
            expected = integrated_gradients(fn, rule(5))(variables, x, 1)
            chex.assert_trees_all_equal(found, expected)


def test_memory_is_that_of_a_chunk():
    variables, x = (nets.draw(0, 300, 400), nets.draw(1, 400, 3)), nets.draw(2, 64, 300)

    def bytes_of(n, chunk):
        attribute = jax.jit(integrated_gradients(smooth_net, quadrature.midpoint(n), chunk=chunk))
        return attribute.lower(variables, x).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(256, 1) <= 1.05 * bytes_of(8, 1)
    assert bytes_of(256, 64) >= 10 * bytes_of(256, 1)


def test_jit_changes_nothing_and_traces_once(smooth):
    variables, x = smooth
    traces = []

    def counted(variables, x):
        traces.append(x.shape)
        return smooth_net(variables, x)

    attribute = jax.jit(integrated_gradients(counted))
    found = attribute(variables, x)
    first = len(traces)
    for i in range(3):
        attribute(variables, x + i)
    assert len(traces) == first <= 4
    chex.assert_trees_all_close(found, integrated_gradients(smooth_net)(variables, x), atol=1e-5)


def test_vmap_is_a_loop_over_models_and_examples(smooth):
    variables, x = smooth
    models = jax.tree.map(lambda v: jnp.stack([v, 0.5 * v]), variables)
    attribute = jax.jit(integrated_gradients(smooth_net, chunk=4, complete=True))
    found = jax.vmap(attribute, in_axes=(0, None, None))(models, x, 1)
    for i in range(2):
        expected = attribute(jax.tree.map(lambda v, i=i: v[i], models), x, 1)
        chex.assert_trees_all_close(jax.tree.map(lambda v, i=i: v[i], found), expected, atol=1e-5)
    alone = jax.vmap(lambda row: attribute(variables, row[None], 1).attribution[0])(x)
    np.testing.assert_allclose(alone, attribute(variables, x, 1).attribution, atol=1e-5)


def test_attributions_have_gradients(smooth):
    with jax.enable_x64(True):
        variables, x = jax.tree.map(lambda v: v.astype(jnp.float64), smooth)

        step = 1e-5
        for complete in (False, True):
            rule = quadrature.gauss_legendre(4)
            attribute = integrated_gradients(smooth_net, rule, complete=complete)

            @jax.jit
            def loss(scale, attribute=attribute):
                moved = jax.tree.map(lambda v: scale * v, variables)
                return jnp.sum(attribute(moved, x, 1).attribution ** 2)

            found = jax.jit(jax.grad(loss))(1.0)
            ends = [loss(1 + sign * step) for sign in (1, -1)]
            np.testing.assert_allclose(found, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4])
def test_sharded_over_examples_without_communication(chunk):
    golden = nets.load("lenet_bn_maxpool")
    variables = nets.variables_of(golden, jnp.float32)
    x, y = nets.draw(0, 16, 16, 16, 3), jnp.arange(16) % 10
    transform = integrated_gradients(
        nets.lenet_bn_maxpool, quadrature.gauss_legendre(6), chunk=chunk, complete=True
    )
    attribute = jax.jit(transform)
    expected = attribute(variables, x, y)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, same = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    args = jax.device_put(variables, same), *jax.device_put((x, y), rows)
    program = attribute.lower(*args).compile().as_text()
    assert "while" in program
    assert not re.findall(r"all-reduce|all-gather|all-to-all|collective-permute", program)
    found = jax.block_until_ready(attribute(*args))
    assert found.attribution.sharding.is_equivalent_to(rows, 4)
    chex.assert_trees_all_close(found, expected, atol=1e-5)

    specs = {"mesh": mesh, "in_specs": (P(), P("data"), P("data")), "out_specs": P("data")}
    mapped = jax.jit(jax.shard_map(lambda v, x, y: transform(v, x, y), **specs))
    chex.assert_trees_all_close(mapped(variables, x, y), expected, atol=1e-5)


def test_half_precision_is_summed_in_float32(smooth):
    variables, x = smooth
    halved = jax.tree.map(lambda v: v.astype(jnp.bfloat16), (variables, x))
    r = jax.jit(integrated_gradients(smooth_net))(*halved, 1)
    assert r.attribution.dtype == r.gap.dtype == r.score.dtype == jnp.float32
    assert r.logits.dtype == jnp.bfloat16
    expected = integrated_gradients(smooth_net)(variables, x, 1)
    np.testing.assert_allclose(r.attribution, expected.attribution, atol=0.03)


# --- errors


def test_bad_arguments_are_named(smooth):
    variables, x = smooth
    with pytest.raises(ValueError, match=r"chunk: expected .* at least 1, got 0"):
        integrated_gradients(smooth_net, chunk=0)
    with pytest.raises(TypeError, match="quadrature: expected gauss_legendre"):
        integrated_gradients(smooth_net, 32)
    attribute = integrated_gradients(smooth_net)
    with pytest.raises(TypeError, match="x: expected floats, got int32"):
        attribute(variables, jnp.zeros((4, 6), jnp.int32))
    with pytest.raises(TypeError, match=r"x: expected an array or a pytree of arrays, got \(\)"):
        attribute(variables, ())
    with pytest.raises(TypeError, match="fn: expected one array as output, got a tuple"):
        integrated_gradients(lambda _, x: (x, x))(variables, x)
    with pytest.raises(ValueError, match=r"fn: expected an output .*\[B\], got shape \(\)"):
        integrated_gradients(lambda _, x: jnp.sum(x))(variables, x)
    with pytest.raises(ValueError, match=r"label: expected an output \[B, K\] for labels, got"):
        integrated_gradients(lambda _, x: x[:, 0])(variables, x, 0)
    with pytest.raises(ValueError, match=r"label: expected labels from 0 to 2, got 3$"):
        attribute(variables, x, jnp.array([0, 1, 3, 2]))
    with pytest.raises(TypeError, match="y: expected integers, got float32"):
        attribute(variables, x, starts.label(1.0))
    with pytest.raises(ValueError, match=r"label: expected one label or labels \[4\], got"):
        attribute(variables, x, jnp.arange(3))
    with pytest.raises(ValueError, match=r"target: expected labels \[4\].*got shape \(4, 2\)"):
        attribute(variables, x, lambda out: out[:, :2])
    with pytest.raises(ValueError, match=r"baseline: expected .*\(4, 6\).*got shape \(5,\)"):
        attribute(variables, x, 0, jnp.zeros(5))
    with pytest.raises(ValueError, match=r"blurred: expected images \[B, H, W, C\], got"):
        attribute(variables, x, 0, baselines.blurred(1))
