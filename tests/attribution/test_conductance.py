"""Layers: straight in their own space, or with the input; values named inside a function."""

import functools

import chex
import jax
import jax.numpy as jnp
import named_nets
import nets
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxunlearn.attribution.ig import (
    conductance,
    integrated_gradients,
    layer_integrated_gradients,
    quadrature,
)
from jaxunlearn.jaxprs.replay import named

LAYERS = {
    "mlp_relu": ["act1", "act2"],
    "mlp_leaky": ["act1", "act2"],
    "lenet_bn_maxpool": ["relu1", "relu2", "pool2", "relu3"],
    "avgpool_net": ["relu1", "relu2"],
}
CASES = [(net, layer) for net, layers in LAYERS.items() for layer in layers]


def relative_error(found, expected):
    return np.max(np.abs(np.asarray(found) - expected)) / np.max(np.abs(expected))


def tail(variables, x):
    return jax.nn.gelu(x @ variables["w1"])


def head(variables, h):
    return jnp.tanh(h) @ variables["w2"]


def fn(variables, x):
    return head(variables, checkpoint_name(tail(variables, x), "h"))


@pytest.fixture
def case():
    return {"w1": nets.draw(0, 6, 8) / 2, "w2": nets.draw(1, 8, 3)}, nets.draw(2, 4, 6)


# --- the reference


@pytest.mark.parametrize(("net", "layer"), CASES)
def test_layer_ig_agrees_with_the_reference(net, layer):
    with jax.enable_x64(True):
        golden, (variables, x, target) = named_nets.load(net)
        rule = quadrature.gauss_legendre(50)
        attribute = layer_integrated_gradients(named_nets.NETS[net], layer, rule, chunk=10)
        r = jax.jit(attribute)(variables, x, target)
        assert relative_error(r.attribution, golden[f"layer_ig/{layer}/attr"]) <= 1e-8
        np.testing.assert_allclose(r.gap, golden[f"layer_ig/{layer}/delta"], atol=1e-9)


@pytest.mark.parametrize(("net", "layer"), CASES)
def test_conductance_agrees_with_the_reference(net, layer):
    with jax.enable_x64(True):
        golden, (variables, x, target) = named_nets.load(net)
        rule = quadrature.gauss_legendre(51)  # 50 intervals
        net = named_nets.NETS[net]
        r = jax.jit(conductance(net, layer, rule, chunk=10, differences=True))(variables, x, target)
        expected = golden[f"conductance/{layer}/attr"]
        assert relative_error(r.attribution, expected) <= 1e-12
        np.testing.assert_allclose(r.gap, golden[f"conductance/{layer}/delta"], atol=1e-12)
        # the integral itself, and another thing than layer IG
        r = jax.jit(conductance(net, layer, rule))(variables, x, target)
        assert relative_error(r.attribution, expected) <= 0.05
        if layer in ("act1", "pool2"):
            assert relative_error(golden[f"layer_ig/{layer}/attr"], expected) >= 0.05


@pytest.mark.parametrize("net", LAYERS)
def test_the_names_do_not_change_the_networks(net):
    with jax.enable_x64(True):
        _, (variables, x, _) = named_nets.load(net)
        out = named_nets.NETS[net](variables, x)
        np.testing.assert_array_equal(out, getattr(nets, net)(variables, x))


# --- from border to border


def fine(net, layer, n, **options):
    return jax.jit(conductance(named_nets.NETS[net], layer, quadrature.midpoint(n), **options))


def of_examples(values):
    return np.abs(np.asarray(values)).reshape(len(values), -1).sum(1)


@pytest.mark.parametrize(("net", "layer"), [("mlp_leaky", "act2"), ("lenet_bn_maxpool", "relu3")])
def test_in_front_of_a_linear_head_conductance_is_exact(net, layer):
    with jax.enable_x64(True):
        _, (variables, x, target) = named_nets.load(net)
        for n in (1, 7):
            r = fine(net, layer, n)(variables, x, target)
            kernel = list(variables["params"].values())[-1]["kernel"]
            run = named(named_nets.NETS[net], layer)
            moved = run(variables, x)[1] - run(variables, 0 * x)[1]
            assert relative_error(r.attribution, moved * kernel.T[target]) <= 1e-14
            np.testing.assert_allclose(r.gap, 0, atol=1e-14)


@pytest.mark.parametrize(("net", "layer"), [("mlp_relu", "act1"), ("avgpool_net", "relu1")])
def test_conductance_of_networks_with_kinks_is_more_exact_than_the_reference(net, layer):
    with jax.enable_x64(True):
        _, (variables, x, _) = named_nets.load(net)
        drawn = np.std(x) * np.random.default_rng(0).normal(size=(5, *x.shape[1:]))
        exact = fine(net, layer, 200, chunk=10)(variables, drawn)

        def error(n, **options):
            attribute = conductance(named_nets.NETS[net], layer, n, **options)
            off = jax.jit(attribute)(variables, drawn).attribution - exact.attribution
            return np.mean(of_examples(off) / of_examples(exact.attribution))

        # as many intervals as the reference has
        theirs = error(quadrature.gauss_legendre(21), differences=True)
        assert error(quadrature.automatic(20)) <= 0.7 * theirs
        assert error(quadrature.automatic(20), complete=True) <= 0.7 * theirs


@pytest.mark.parametrize("chunk", [1, 3])
def test_several_layers_in_one_call_are_each_as_alone(chunk):
    with jax.enable_x64(True):
        net, layers = "lenet_bn_maxpool", ("relu1", "pool2", "relu3")
        _, (variables, x, target) = named_nets.load(net)
        together = fine(net, layers, 8, chunk=chunk)(variables, x, target)
        assert set(together) == {*layers}
        for layer in layers:
            alone = fine(net, layer, 8)(variables, x, target)
            chex.assert_trees_all_close(together[layer], alone, atol=1e-12)
    smooth = {"w1": nets.draw(0, 6, 8) / 2, "w2": nets.draw(1, 8, 3)}

    def deep(variables, x):
        h = checkpoint_name(tail(variables, x), "h")
        return head(variables, checkpoint_name(jnp.sin(h), "g"))

    x = nets.draw(2, 4, 6)
    both = jax.jit(conductance(deep, ["h", "g"], chunk=chunk))(smooth, x, 1)
    for layer in ("h", "g"):
        alone = jax.jit(conductance(deep, layer, chunk=chunk))(smooth, x, 1)
        chex.assert_trees_all_close(both[layer], alone, atol=1e-5)


# --- by hand


def test_layer_ig_is_not_conductance():
    """``y = (x, x^2)``, ``F = y1 y2``: straight (1/2, 1/2), on the input's way (1/3, 2/3)."""

    def cube(_, x):
        y = checkpoint_name(jnp.concatenate([x, x**2], axis=1), "y")
        return y[:, :1] * y[:, 1:]

    x = jnp.ones((1, 1))
    straight = layer_integrated_gradients(cube, "y")(None, x, 0)
    bent = conductance(cube, "y")(None, x, 0)
    np.testing.assert_allclose(straight.attribution, [[1 / 2, 1 / 2]], rtol=1e-5)
    np.testing.assert_allclose(bent.attribution, [[1 / 3, 2 / 3]], rtol=1e-5)
    np.testing.assert_allclose(straight.gap, 0, atol=1e-6)
    np.testing.assert_allclose(bent.gap, 0, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 5])
def test_conductance_of_every_layer_sums_to_the_difference(case, chunk):
    variables, x = case
    baseline = nets.draw(3, 6)

    def deep(variables, x):
        x = checkpoint_name(x, "input")
        h = checkpoint_name(tail(variables, x), "h")
        return checkpoint_name(head(variables, h), "out")

    plain = integrated_gradients(deep)(variables, x, 1, baseline)
    for layer in ("input", "h", "out"):
        attribute = jax.jit(conductance(deep, layer, chunk=chunk))
        r = attribute(variables, x, 1, baseline)
        np.testing.assert_allclose(r.gap, 0, atol=1e-5)
        np.testing.assert_allclose(r.score - r.baseline_score, plain.attribution.sum(1), atol=1e-5)
        if layer == "input":
            np.testing.assert_allclose(r.attribution, plain.attribution, atol=1e-5)
        if layer == "out":
            np.testing.assert_allclose(r.attribution[:, 1], plain.attribution.sum(1), atol=1e-5)
            np.testing.assert_array_equal(r.attribution[:, [0, 2]], 0)


@pytest.mark.parametrize("chunk", [1, 5])
def test_layer_ig_is_ig_of_the_head(case, chunk):
    variables, x = case
    baseline = nets.draw(3, 4, 6)
    h, start = tail(variables, x), tail(variables, baseline)
    expected = integrated_gradients(head)(variables, h, 2, start)
    found = jax.jit(layer_integrated_gradients(fn, "h", chunk=chunk))(variables, x, 2, baseline)
    chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_layer_ig_of_several_layers_is_that_of_each(case):
    variables, x = case

    def deep(variables, x):
        h = checkpoint_name(tail(variables, x), "h")
        return head(variables, checkpoint_name(jnp.sin(h), "g"))

    rule = quadrature.gauss_legendre(6)
    for own in (True, False):
        options = {"multiply_by_inputs": own}
        both = layer_integrated_gradients(deep, ("g", "h"), rule, **options)(variables, x, 1)
        for layer in ("g", "h"):
            alone = layer_integrated_gradients(deep, layer, rule, **options)(variables, x, 1)
            chex.assert_trees_all_close(both[layer], alone, atol=1e-6)


@pytest.mark.parametrize("transform", [conductance, layer_integrated_gradients])
def test_layers_where_arrays_of_the_examples_are_closed_over(case, transform):
    variables, x = case
    gate = nets.draw(6, 4, 3)

    def closed(variables, x):
        return jax.nn.relu(fn(variables, x)) * gate

    rule = quadrature.midpoint(4)
    expected, found = (transform(closed, "h", rule, chunk=c)(variables, x, 1) for c in (1, 3))
    chex.assert_trees_all_close(found, expected, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 5])
def test_a_skip_around_the_layer_stays(case, chunk):
    variables, x = case

    def skip(variables, x):
        h = checkpoint_name(tail(variables, x), "h")
        return head(variables, h) * x[:, :3]

    r = layer_integrated_gradients(skip, "h", chunk=chunk)(variables, x, 1)
    h = tail(variables, x)
    expected = integrated_gradients(head)(variables, h, 1).attribution * x[:, 1:2]
    np.testing.assert_allclose(r.attribution, expected, atol=1e-5)
    np.testing.assert_allclose(r.baseline_score, 0, atol=1e-6)  # head(0) = 0, times x
    np.testing.assert_allclose(r.gap, 0, atol=1e-5)


def test_embeddings_of_tokens():
    table, w = nets.draw(0, 11, 5), nets.draw(1, 5, 3)
    tokens = jnp.array([[3, 1, 4, 0], [5, 9, 2, 6]])
    pad = 10

    def language(variables, tokens):
        table, w = variables
        h = checkpoint_name(table[tokens], "embedding")
        return jnp.tanh(jnp.sum(jnp.sin(h), axis=1)) @ w

    answer = jnp.array([False, False, True, True])
    baseline = jnp.where(answer[None], pad, tokens)
    attribute = jax.jit(layer_integrated_gradients(language, "embedding", chunk=8))
    r = attribute((table, w), tokens, 1, baseline)
    assert r.attribution.shape == (2, 4, 5)
    np.testing.assert_array_equal(r.attribution[:, :2], 0)
    assert np.all(np.abs(r.attribution[:, 2:].sum((1, 2))) > 1e-3)
    ends = [language((table, w), t)[:, 1] for t in (tokens, baseline)]
    np.testing.assert_allclose(r.attribution.sum((1, 2)), ends[0] - ends[1], atol=1e-5)
    with pytest.raises(TypeError, match="baseline: expected integers as in x, got float32"):
        attribute((table, w), tokens, 1, 0.0)


def test_several_baselines_are_averaged(case):
    variables, x = case
    several = nets.draw(5, 3, 4, 6)
    for transform in (conductance, layer_integrated_gradients):
        attribute = jax.jit(transform(fn, "h", complete=True))
        each = [attribute(variables, x, 1, b).attribution for b in several]
        found = attribute(variables, x, 1, several)
        np.testing.assert_allclose(found.attribution, np.mean(each, axis=0), atol=1e-5)


def test_both_compose_with_vmap_and_grad(case):
    variables, x = case
    for transform in (conductance, layer_integrated_gradients):
        attribute = transform(fn, "h", quadrature.gauss_legendre(4), chunk=2)
        models = jax.tree.map(lambda v: jnp.stack([v, 0.5 * v]), variables)
        found = jax.vmap(attribute, in_axes=(0, None, None))(models, x, 1).attribution
        halved = attribute(jax.tree.map(lambda v: 0.5 * v, variables), x, 1).attribution
        np.testing.assert_allclose(found[1], halved, atol=1e-5)
        # head is linear in w2, and so is what is attributed
        slope = jax.grad(
            lambda s, f=attribute: jnp.sum(f(variables | {"w2": s * variables["w2"]}, x, 1)[0])
        )(1.0)
        np.testing.assert_allclose(slope, jnp.sum(found[0]), rtol=1e-4)


def test_only_the_head_runs_on_the_path():
    variables = {"w1": nets.draw(0, 300, 8), "w2": nets.draw(1, 8, 3)}
    x = nets.draw(2, 64, 300)

    def flops(attribute):
        return jax.jit(attribute).lower(variables, x, 0).compile().cost_analysis()["flops"]

    # the tail, 40 times dearer than the head: for x and for the baseline, once
    assert flops(layer_integrated_gradients(fn, "h")) <= 2.5 * 2 * 64 * 300 * 8
    # that of another function at every node, if it is no linear layer of the input itself
    assert flops(integrated_gradients(lambda v, x: fn(v, jnp.sin(x)))) >= 3.5 * 2 * 64 * 300 * 8


# --- names


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        h = checkpoint_name(linen.gelu(linen.Dense(8, name="fc1")(x)), "h")
        return linen.Dense(3, name="fc2")(h)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.fc1, self.fc2 = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.fc2(checkpoint_name(nnx.gelu(self.fc1(x)), "h"))


def test_linen_and_nnx_agree():
    model, x = NnxNet(nnx.Rngs(0)), nets.draw(0, 4, 6)
    graph, state = nnx.split(model)
    variables = {"params": nnx.to_pure_dict(state)}
    applies = LinenNet().apply, lambda v, x: nnx.merge(graph, v["params"])(x)
    for transform in (conductance, layer_integrated_gradients):
        found = [jax.jit(transform(apply, "h"))(variables, x) for apply in applies]
        chex.assert_trees_all_close(*found, atol=1e-6)
        np.testing.assert_allclose(found[0].gap, 0, atol=1e-5)


@jax.custom_vjp
def steep(x):
    return x * 2


steep.defvjp(lambda x: (x * 2, None), lambda _, g: (g * 5,))


@pytest.mark.parametrize(
    "wrap", [jax.jit, jax.checkpoint, jax.custom_jvp], ids=lambda w: w.__name__
)
def test_a_name_inside_calls_is_found(case, wrap):
    variables, x = case
    named_tail = wrap(lambda variables, x: checkpoint_name(tail(variables, x), "h"))
    if wrap is jax.custom_jvp:
        named_tail.defjvp(functools.partial(jax.jvp, lambda v, x: tail(v, x)))

    def inside(variables, x):
        return head(variables, jax.jit(named_tail)(variables, x) * 1)

    out, h = named(inside, "h")(variables, x)
    np.testing.assert_allclose(h, tail(variables, x), rtol=1e-6)
    np.testing.assert_allclose(out, fn(variables, x), rtol=1e-5)
    out, h = named(inside, "h")(variables, x, 2 * h)
    np.testing.assert_allclose(out, head(variables, 2 * tail(variables, x)), rtol=1e-5)


def test_gradients_of_their_own_are_kept():
    """On both sides of the name: relu has gradient 0 at 0, ``steep`` 5."""

    def net(_, x):
        return jax.nn.relu(steep(checkpoint_name(jax.nn.relu(steep(x)), "h")))

    run = named(net, "h")
    x = jnp.array([[0.0, 1.0]])
    head_gradient = jax.grad(lambda h: jnp.sum(run(None, x, h)[0]))(x)
    np.testing.assert_array_equal(head_gradient, [[0, 5]])
    tail_gradient = jax.grad(lambda x: jnp.sum(run(None, x)[1]))(x)
    np.testing.assert_array_equal(tail_gradient, [[0, 5]])
    # conductance takes that behind the name, and the change itself in front of it
    r = conductance(net, "h")(None, x, 1)
    np.testing.assert_allclose(r.attribution, [[0, 10]], rtol=1e-5)

    def smooth(_, x):
        return steep(checkpoint_name(steep(x), "h"))

    # without kinks both, where forward mode would refuse
    r = conductance(smooth, "h")(None, x, 1)
    np.testing.assert_allclose(r.attribution, [[0, 25]], rtol=1e-5)


def test_bad_arguments_are_named(case):
    variables, x = case
    with pytest.raises(TypeError, match="layer: expected a name given by checkpoint_name, got 3"):
        conductance(fn, 3)
    with pytest.raises(TypeError, match="layer: expected a name given by checkpoint_name, got 3"):
        conductance(fn, ["h", 3])
    for names in ([], ["h", "h"]):
        with pytest.raises(ValueError, match=r"layer: expected one name or several others, got"):
            conductance(fn, names)
    with pytest.raises(ValueError, match=r"layer: expected .* of \['h'\], got 'g', .* gives to 0"):
        layer_integrated_gradients(fn, "g")(variables, x)

    def twice(variables, x):
        return fn(variables, x) + fn(variables, 2 * x)

    with pytest.raises(ValueError, match=r"layer: .* got 'h', which it gives to 2"):
        conductance(twice, "h")(variables, x)

    def loop(_, x):
        return lax.scan(lambda c, _: (checkpoint_name(jnp.sin(c), "h"), None), x, length=3)[0]

    with pytest.raises(NotImplementedError, match=r"layer: expected 'h' outside of loops.* a scan"):
        conductance(loop, "h")(variables, x)
    with pytest.raises(ValueError, match=r"value: expected .* \(4, 8\), got \(4, 7\)"):
        named(fn, "h")(variables, x, jnp.zeros((4, 7)))
    with pytest.raises(ValueError, match=r"differences: .* got 1 and complete=False"):
        conductance(fn, "h", quadrature.midpoint(1), differences=True)
    with pytest.raises(ValueError, match=r"differences: .* got 32 and complete=True"):
        conductance(fn, "h", differences=True, complete=True)
    with pytest.raises(TypeError, match="fn: expected one array as output, got a tuple"):
        conductance(lambda _, x: (checkpoint_name(x, "h"), x), "h")(variables, x)
    with pytest.raises(TypeError, match="x: expected floats, got int32"):
        conductance(fn, "h")(variables, jnp.zeros((4, 6), jnp.int32))
