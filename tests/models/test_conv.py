"""The convolution and the pooling against XLA's own gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxunlearn.models import conv, max_pool

NUMBERS = ("NHWC", "HWIO", "NHWC")


def plain(x, kernel, strides, padding, **kwargs):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=NUMBERS, **kwargs
    )


def draw(*shapes, dtype=jnp.float32):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]


def gradients(function, x, kernel, *args, **kwargs):
    return values(function, x, kernel, *args, **kwargs)[0]


def values(function, x, kernel, *args, **kwargs):
    """Gradients, and the values beside them."""

    def objective(x, kernel):
        y = function(x, kernel, *args, **kwargs)
        return jnp.sin(y).sum(), y

    return jax.jit(jax.grad(objective, (0, 1), has_aux=True))(x, kernel)


@pytest.mark.parametrize(
    ("size", "kernel_size", "strides", "padding", "dilation"),
    [
        ((6, 6), (3, 3), (1, 1), "SAME", (1, 1)),
        ((6, 6), (3, 3), (1, 1), "VALID", (1, 1)),
        ((7, 5), (3, 3), (2, 2), "SAME", (1, 1)),
        ((8, 8), (3, 3), (2, 2), "SAME", (1, 1)),
        ((8, 7), (3, 2), (2, 3), "VALID", (1, 1)),
        ((5, 6), (1, 1), (2, 2), "VALID", (1, 1)),
        ((9, 9), (3, 3), (1, 2), "SAME_LOWER", (2, 2)),
        ((6, 7), (2, 3), (1, 1), ((3, 0), (-1, 2)), (1, 1)),
    ],
)
@pytest.mark.parametrize(("channels", "outputs"), [(2, 4), (5, 2)])
def test_gradients_equal_xla(size, kernel_size, strides, padding, dilation, channels, outputs):
    x, kernel = draw((3, *size, channels), (*kernel_size, channels, outputs))
    (found, y), (expected, same) = (
        values(function, x, kernel, strides, padding, rhs_dilation=dilation)
        for function in (conv, plain)
    )
    chex.assert_trees_all_equal(y, same)
    chex.assert_trees_all_close(found, expected, atol=1e-5)


# blocks of 25, and of 29 with a rest
@pytest.mark.parametrize(("images", "channels", "outputs"), [(125, 40, 48), (127, 48, 40)])
def test_gradients_of_many_images_come_in_blocks(images, channels, outputs):
    x, kernel = draw((images, 10, 10, channels), (3, 3, channels, outputs))
    args = (x, kernel, (1, 1), "SAME")
    found, expected = gradients(conv, *args), gradients(plain, *args)
    for ours, theirs in zip(found, expected, strict=True):
        chex.assert_trees_all_close(ours, theirs, atol=1e-6 * float(jnp.abs(theirs).max()))
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda k: conv(x, k, (1, 1), "SAME").sum()))(kernel))
    assert "scan" in jaxpr


@pytest.mark.parametrize("special", [{"feature_group_count": 2}, {"lhs_dilation": (2, 1)}])
def test_anything_else_is_the_plain_operation(special):
    x, kernel = draw((2, 5, 5, 4), (3, 3, 4 // special.get("feature_group_count", 1), 4))
    args = ((1, 1), ((1, 1), (1, 1)))
    chex.assert_trees_all_close(
        gradients(conv, x, kernel, *args, **special), gradients(plain, x, kernel, *args, **special)
    )


def test_one_dimension_is_the_plain_operation():
    layer = nnx.Conv(2, 3, (3,), conv_general_dilated=conv, rngs=nnx.Rngs(0))
    (x,) = draw((2, 5, 2))
    expected = nnx.Conv(2, 3, (3,), rngs=nnx.Rngs(0))(x)
    chex.assert_trees_all_equal(layer(x), expected)


def test_half_precision():
    x, kernel = draw((3, 6, 6, 2), (3, 3, 2, 4), dtype=jnp.bfloat16)
    ours = gradients(conv, x, kernel, (1, 1), "SAME")
    assert {leaf.dtype for leaf in ours} == {jnp.dtype(jnp.bfloat16)}
    chex.assert_trees_all_close(ours, gradients(plain, x, kernel, (1, 1), "SAME"), rtol=0.1)


def test_maps_and_loops():
    xs, kernels = draw((2, 3, 5, 5, 2), (2, 3, 3, 2, 4))
    expected = [gradients(plain, x, k, (1, 1), "SAME") for x, k in zip(xs, kernels, strict=True)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected)

    def one(pair):
        return gradients(conv, *pair, (1, 1), "SAME")

    chex.assert_trees_all_close(jax.vmap(one)((xs, kernels)), expected, atol=1e-5)
    chex.assert_trees_all_close(lax.map(one, (xs, kernels)), expected, atol=1e-5)


def test_second_derivatives():
    x, kernel = draw((2, 5, 5, 2), (3, 3, 2, 2))

    def hessian_product(function, over):
        def gradient(k):
            return jax.grad(lambda k: jnp.sin(function(x, k, (1, 1), "SAME")).sum())(k)

        if over == "forward":
            return jax.jvp(gradient, (kernel,), (jnp.ones_like(kernel),))[1]
        return jax.grad(lambda k: gradient(k).sum())(kernel)

    for over in ("forward", "reverse"):
        ours, theirs = (
            jax.jit(lambda f=function, over=over: hessian_product(f, over))()
            for function in (conv, plain)
        )
        chex.assert_trees_all_close(ours, theirs, atol=1e-4)


def test_forward_pass_keeps_the_primitives():
    # relevance propagation reads them
    x, kernel = draw((2, 4, 4, 2), (3, 3, 2, 2))
    text = str(jax.make_jaxpr(lambda x, k: max_pool(conv(x, k, (1, 1), "SAME")))(x, kernel))
    assert "conv_general_dilated" in text
    assert "reduce_window_max" in text


@pytest.mark.parametrize(("size", "window"), [((6, 4), 2), ((7, 5), 2), ((7, 9), 3)])
def test_pooling_equals_xla(size, window):
    (x,) = draw((2, *size, 3))
    x = np.maximum(np.round(x), 0.0)  # many ties
    sides = (window, window)

    def gradient(pool):
        def objective(x):
            y = pool(x)
            return jnp.sin(y + jnp.cos(pool(x))).sum(), y

        return jax.jit(jax.grad(objective, has_aux=True))(x)

    found, y = gradient(lambda x: max_pool(x, window))
    expected, same = gradient(lambda x: nnx.max_pool(x, sides, sides))
    chex.assert_trees_all_equal(y, same)
    chex.assert_trees_all_close(found, expected)
