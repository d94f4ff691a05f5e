"""Convolutions in loops: the same numbers, in the form that is fast on a CPU."""

import re

import chex
import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from jax import lax

from jaxunlearn.attribution.ig import integrated_gradients
from jaxunlearn.jaxprs.replay import canonical


def convolution(numbers, **options):
    def fn(kernel, x):
        return lax.conv_general_dilated(
            x, kernel, padding="SAME", dimension_numbers=numbers, **options
        )

    return fn


CONVOLUTIONS = {
    "channels first": (
        convolution(("NCHW", "OIHW", "NCHW"), window_strides=(2, 1)),
        (5, 4, 3, 2),
        (2, 4, 6, 7),
    ),
    "mixed": (
        convolution(("NHWC", "OIHW", "CNHW"), window_strides=(1, 1)),
        (5, 4, 3, 2),
        (2, 6, 7, 4),
    ),
    "dilated": (
        convolution(("NHWC", "HWIO", "NHWC"), window_strides=(1, 1), rhs_dilation=(2, 1)),
        (3, 2, 4, 5),
        (2, 6, 7, 4),
    ),
    "groups": (
        convolution(("NCHW", "OIHW", "NCHW"), window_strides=(1, 1), feature_group_count=2),
        (6, 2, 3, 3),
        (2, 4, 6, 7),
    ),
    "one axis": (convolution(("NCW", "OIW", "NCW"), window_strides=(2,)), (5, 4, 3), (2, 4, 7)),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_canonical_convolutions_compute_the_same(case):
    fn, kernel_shape, shape = CONVOLUTIONS[case]
    kernel, x = nets.draw(0, *kernel_shape), nets.draw(1, *shape)

    def both(x):
        out = jax.jit(fn)(kernel, x)
        return out, jax.grad(lambda x: jnp.sum(jnp.sin(fn(kernel, x))))(x)

    def hessian(both):
        return jax.jit(jax.grad(lambda x: jnp.sum(both(x)[1] ** 2)))(x)

    chex.assert_trees_all_close(jax.jit(canonical(both))(x), jax.jit(both)(x), atol=1e-5)
    np.testing.assert_allclose(hessian(canonical(both)), hessian(both), atol=1e-3)


def test_convolutions_in_the_loop_have_the_fast_form():
    golden = nets.load("lenet_bn_maxpool")
    variables = nets.variables_of(golden, jnp.float32)
    x = jnp.asarray(nets.channels_last(golden["x"]))
    for baseline in (0.0, nets.draw(0, 2, *x.shape)):
        attribute = jax.jit(integrated_gradients(nets.lenet_bn_maxpool))
        program = attribute.lower(variables, x, 0, baseline).compile().as_text()
        assert set(re.findall(r"dim_labels=(\S+?),", program)) == {"b01f_01io->b01f"}
