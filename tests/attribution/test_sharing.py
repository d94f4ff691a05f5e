"""The first linear layers along a straight path: what is shared, and that nothing changes."""

import chex
import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxunlearn.attribution import ig
from jaxunlearn.attribution.ig import (
    integrated_gradients,
    layer_integrated_gradients,
    quadrature,
    sharing,
)
from jaxunlearn.attribution.ig.integral import Traces, moving

W = nets.draw(0, 48, 5) / 7
V = {"w": W, "b": nets.draw(1, 5), "head": nets.draw(2, 5, 3), "patch": nets.draw(3, 4, 4, 3, 6)}
V |= {"top": nets.draw(4, 6, 3), "bound": nets.draw(5, 40, 48), "long": nets.draw(6, 240, 7)}
V |= {"last": nets.draw(7, 7, 3)}
FLAT, IMAGE = nets.draw(8, 4, 48), nets.draw(9, 4, 8, 8, 3)


def conv(x, kernel, step, padding="VALID"):
    return lax.conv_general_dilated(
        x, kernel, (step, step), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def dense(v, x):
    return jax.nn.relu(x @ v["w"] + v["b"][None]) @ v["head"]


def patches(v, x):
    h = conv((x - 0.5) / 2, v["patch"], 4).reshape(len(x), 4, 6)
    token = jnp.broadcast_to(v["top"][:1, :1], (len(x), 1, 6))
    h = jnp.concatenate([token, h], axis=1)
    return jnp.sum(jax.nn.gelu(h), axis=1) @ v["top"]


def called(v, x):
    """A first layer inside calls, the second read by a norm and a skip."""

    @jax.jit
    def first(x):
        return checkpoint_name(x @ v["w"], "h") + v["b"][None]

    h = first(x)
    return (jax.nn.softmax(h) + h) @ v["head"]


def around(v, x):
    """The input also goes around its first layer."""
    return dense(v, x) + jnp.sum(jnp.sin(x), axis=1, keepdims=True)


def twice(v, x):
    """One affine value behind another that is read elsewhere."""
    h = x @ v["w"]
    return jnp.tanh(x[:, :5] * h) @ v["head"] + jax.nn.relu(h) @ v["head"]


def rows(v, x):
    """Examples and rows of an image merged, and parted behind the layer."""
    h = x.reshape(-1, 48) @ v["w"]
    return jnp.sum(jnp.tanh(h.reshape(len(x), -1, 5)), axis=1) @ v["head"]


def of_pytree(v, x):
    joined = jnp.concatenate([x["image"].reshape(len(x["age"]), -1), x["age"]], axis=1)
    shown = jnp.where(x["kind"][:, None] > 0, 1.0, 0.5)
    return jnp.tanh(joined[:, :240] @ v["long"] * shown) @ v["last"]


X = {
    "image": nets.draw(10, 4, 8, 10, 3),
    "age": nets.draw(11, 4, 2),
    "kind": jnp.array([0, 1, 0, 2]),
}
SHARED = {
    "dense": (dense, FLAT),
    "patches": (patches, IMAGE),
    "called": (called, FLAT),
    "around": (around, FLAT),
    "twice": (twice, FLAT),
    "rows": (rows, nets.draw(12, 4, 4, 48)),
    "of_pytree": (of_pytree, X),
}
ALONE = {
    "an overlapping convolution": (
        lambda v, x: jnp.sum(jax.nn.relu(conv(x, v["patch"], 2, "SAME")), axis=(1, 2)) @ v["top"],
        IMAGE,
    ),
    "a curve first": (lambda v, x: dense(v, jnp.sin(x)), FLAT),
    "few inputs": (lambda v, x: jnp.tanh(x @ v["w"][:8]) @ v["head"], FLAT[:, :8]),
    "examples behind positions": (
        lambda v, x: jnp.sum(jnp.tanh(jnp.swapaxes(x, 0, 1) @ v["w"]), axis=0) @ v["head"],
        nets.draw(13, 4, 4, 48),
    ),
    "no gradient": (
        lambda v, x: dense(v, x * 1.0 + lax.stop_gradient(jnp.cos(x))) * x[:, :3],
        FLAT,
    ),
}


def is_shared(fn, x, chunk=3):
    given = moving(x)
    return sharing.shared(Traces(fn, V, given.x), given, chunk) is not None


@pytest.fixture
def unshared(monkeypatch):
    """What integrated gradients are without."""

    def run(fn, *args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(ig, "shared", lambda *_: None)
            return jax.jit(integrated_gradients(fn, **options))(*args)

    return run


@pytest.mark.parametrize("name", SHARED)
def test_sharing_changes_nothing(unshared, name):
    fn, x = SHARED[name]
    assert is_shared(fn, x)
    for options in ({"chunk": 1, "multiply_by_inputs": False}, {"chunk": 3, "complete": True}):
        options["quadrature"] = quadrature.automatic(7)
        expected = unshared(fn, V, x, 1, 0.25, **options)
        found = jax.jit(integrated_gradients(fn, **options))(V, x, 1, 0.25)
        chex.assert_trees_all_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALONE)
def test_what_is_not_worth_it_or_not_by_example_is_not_shared(name):
    fn, x = ALONE[name]
    assert not any(is_shared(fn, x, chunk) for chunk in (1, 4))


def test_the_first_layer_runs_twice_and_is_pulled_back_once():
    variables = {"w": nets.draw(0, 400, 8), "b": nets.draw(1, 8), "head": nets.draw(2, 8, 3)}
    x = nets.draw(3, 32, 400)

    def flops(n):
        attribute = jax.jit(integrated_gradients(dense, quadrature.midpoint(n), chunk=n))
        return attribute.lower(variables, x, 0).compile().cost_analysis()["flops"]

    layer = 2 * 32 * 400 * 8
    # at x, at the baseline, both again as ends of the line, and one pullback
    assert flops(2) <= 5.5 * layer
    assert flops(40) - flops(2) <= layer


def test_several_baselines_and_gradients_of_what_is_shared(unshared):
    several = nets.draw(5, 3, 1, 48)
    options = {"quadrature": quadrature.gauss_legendre(4)}
    expected = unshared(called, V, FLAT, 1, several, **options)
    attribute = integrated_gradients(called, **options)
    chex.assert_trees_all_close(jax.jit(attribute)(V, FLAT, 1, several), expected, atol=1e-5)

    def total(scale):
        return jnp.sum(attribute(V | {"head": scale * V["head"]}, FLAT, 1).attribution)

    value, slope = jax.jit(jax.value_and_grad(total))(1.0)
    np.testing.assert_allclose(slope, value, rtol=1e-4)


def test_a_layer_s_head_is_shared_too(unshared):
    def fn(v, x):
        h = checkpoint_name(jnp.sin(x), "h")
        return dense(v, h)

    r = jax.jit(layer_integrated_gradients(fn, "h", quadrature.automatic(6)))(V, FLAT, 1)
    ends = jnp.sin(FLAT), jnp.sin(0 * FLAT)
    expected = unshared(dense, V, ends[0], 1, ends[1], quadrature=quadrature.automatic(6))
    chex.assert_trees_all_close(r, expected, atol=1e-5)
