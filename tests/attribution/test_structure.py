"""The chain of linear units, who feeds whom, and the features before the head."""

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from jax import lax

from jaxunlearn.attribution import features, structure


def zeros(*shape):
    return nets.array(np.zeros(shape))


def layer(*shape):
    return {"kernel": zeros(*shape), "bias": zeros(shape[-1])}


def norm(n):
    return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), zeros(n))


def producers(fn, variables, x):
    return {unit.kernel.split("/")[-2]: unit.producer for unit in structure(fn, variables, x)}


@pytest.fixture
def mlp():
    return {"params": {"fc1": layer(6, 8), "fc2": layer(8, 7), "fc3": layer(7, 3)}}


def test_mlp_is_a_chain(mlp):
    first, second, third = structure(nets.mlp_relu, mlp, zeros(2, 6))
    assert first.producer is None
    assert second == (
        "params/fc2/kernel",
        "dot_general",
        7,
        8,
        "params/fc2/bias",
        "params/fc1/kernel",
        "params/fc2/kernel",
        0,
        1,
        (1,),
    )
    assert third.producer == "params/fc2/kernel"


def test_shapes_are_enough(mlp):
    like = jax.eval_shape(lambda: (mlp, zeros(2, 6)))
    assert structure(nets.mlp_relu, *like) == structure(nets.mlp_relu, mlp, zeros(2, 6))


def test_batch_norm_and_pools_keep_channels_apart_but_flattening_does_not():
    p = {"conv1": layer(5, 5, 3, 6), "conv2": layer(3, 3, 6, 12), "bn1": norm(6), "bn2": norm(12)}
    variables = {"params": p | {"fc1": layer(108, 32), "fc2": layer(32, 10)}}
    assert producers(nets.lenet_bn_maxpool, variables, zeros(2, 16, 16, 3)) == {
        "conv1": None,
        "conv2": "params/conv1/kernel",
        "fc1": None,
        "fc2": "params/fc1/kernel",
    }


def test_flattening_one_pixel_and_the_global_average_keep_channels_apart():
    variables = {"params": {"conv": layer(4, 4, 3, 6), "fc": layer(6, 2)}}

    def flattened(v, x):
        x = jax.nn.relu(nets.conv(v["params"]["conv"], x))
        return nets.dense(v["params"]["fc"], x.reshape(x.shape[0], -1))

    def averaged(v, x):
        x = jax.nn.relu(nets.conv(v["params"]["conv"], x, pad=2))
        return nets.dense(v["params"]["fc"], x.mean((1, 2)))

    for fn in (flattened, averaged):
        assert producers(fn, variables, zeros(2, 4, 4, 3))["fc"] == "params/conv/kernel"


def test_a_sum_of_branches_has_no_producer():
    p = {name: layer(4, 4) for name in ("stem", "a", "b", "head")}

    def net(v, x):
        p = v["params"]
        h = jax.nn.relu(nets.dense(p["stem"], x))
        h = jax.nn.relu(h + nets.dense(p["b"], jax.nn.relu(nets.dense(p["a"], h))))
        return nets.dense(p["head"], h)

    assert producers(net, {"params": p}, zeros(2, 4)) == {
        "stem": None,
        "a": "params/stem/kernel",
        "b": "params/a/kernel",
        "head": None,
    }


def test_operations_that_mix_or_reorder_features_end_the_chain(mlp):
    mixing = {
        "sort": lambda h: jnp.sort(h, axis=-1),
        "reverse": lambda h: h[:, ::-1],
        "softmax": jax.nn.softmax,
        "roll": lambda h: jnp.concatenate([h[:, 1:], h[:, :1]], axis=1),
    }
    for name, mix in mixing.items():

        def net(v, x, mix=mix):
            h = mix(nets.dense(v["params"]["fc1"], x))
            return nets.dense(v["params"]["fc2"], h)

        assert producers(net, mlp, zeros(2, 6))["fc2"] is None, name


def test_the_producer_column_is_the_input_feature():
    """The promise itself: zero column n, and feature n alone falls silent."""
    rng = np.random.default_rng(0)
    golden = nets.load("lenet_bn_maxpool")
    variables = nets.variables_of(golden, jnp.float32)
    x = jnp.asarray(nets.channels_last(golden["x"]))
    assert structure(nets.lenet_bn_maxpool, variables, x)[-1].producer == "params/fc1/kernel"
    before = features(nets.lenet_bn_maxpool)(variables, x)
    n = int(rng.integers(32))
    kernel = variables["params"]["fc1"]["kernel"]
    variables["params"]["fc1"]["kernel"] = kernel.at[:, n].set(0)
    after = features(nets.lenet_bn_maxpool)(variables, x)
    silent = jnp.maximum(variables["params"]["fc1"]["bias"][n], 0)
    np.testing.assert_allclose(after, before.at[:, n].set(silent), atol=1e-6)


def test_features_are_what_the_last_unit_reads(mlp):
    rng = np.random.default_rng(0)
    mlp = jax.tree.map(lambda v: nets.array(rng.normal(size=v.shape)), mlp)
    x = nets.array(rng.normal(size=(4, 6)))
    h = jax.jit(features(nets.mlp_relu))(mlp, x)
    assert h.shape == (4, 7)
    np.testing.assert_allclose(
        nets.dense(mlp["params"]["fc3"], h), nets.mlp_relu(mlp, x), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="linear operation"):
        features(lambda v, x: jnp.tanh(x))(mlp, x)


def test_grouped_convolutions_count_their_inputs():
    def net(v, x):
        y = lax.conv_general_dilated(
            x,
            v["kernel"],
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )
        return y.mean((1, 2))

    (unit,) = structure(net, {"kernel": zeros(3, 3, 1, 8)}, zeros(1, 5, 5, 4))
    assert (unit.in_features, unit.out_features) == (4, 8)


# --- the axes of a kernel as it is stored


def axes_of(fn, variables, x):
    return [(unit.in_axis, unit.out_axis) for unit in structure(fn, variables, x)]


DENSE = {
    "as it is": ((4, 3), lambda w: w, (0, 1)),
    "transposed": ((3, 4), lambda w: w.T, (1, 0)),
    "transposed twice": ((4, 3), lambda w: w.T.T, (0, 1)),
    "inside jit": ((3, 4), lambda w: jax.jit(jnp.transpose)(w), (1, 0)),
    "cast": ((3, 4), lambda w: w.T.astype(jnp.bfloat16).astype(jnp.float32), (1, 0)),
    "scaled by constants": ((3, 4), lambda w: -(w * 2 / jnp.arange(1.0, 5.0)[None]).T, (1, 0)),
    "frozen": ((3, 4), lambda w: jax.lax.stop_gradient(w).T, (1, 0)),
    "squeezed": ((3, 1, 4, 1), lambda w: jnp.squeeze(w).T, (2, 0)),
    "expanded": ((4, 3), lambda w: w[None, :, None].reshape(4, 3), (0, 1)),
    "merged": ((2, 2, 3), lambda w: w.reshape(4, 3), (None, 2)),
    "split, which is not followed": ((4, 3), lambda w: w.reshape(2, 2, 3).reshape(4, 3), (None, 1)),
    "flat": ((12,), lambda w: w.reshape(4, 3), (None, None)),
    "reshaped across axes": ((3, 4), lambda w: w.reshape(4, 3), (None, None)),
    "column first": ((3, 4), lambda w: lax.reshape(w, (4, 3), (1, 0)), (1, 0)),
    "one row for all": ((3,), lambda w: jnp.broadcast_to(w[None], (4, 3)), (None, 0)),
    "reversed": ((4, 3), lambda w: w[::-1], (None, 1)),
    "standardised": ((4, 3), lambda w: w - jnp.mean(w, 0, keepdims=True), (None, None)),
    "part of it": ((5, 3), lambda w: w[1:], (None, None)),
    "shifted": ((4, 3), lambda w: w + 1, (None, None)),
    "inverted": ((4, 3), lambda w: 1 / w, (None, None)),
}


@pytest.mark.parametrize("case", DENSE)
def test_the_axes_of_a_dense_kernel_are_those_of_its_leaf(case):
    shape, change, expected = DENSE[case]
    variables = {"w": zeros(*shape)}
    (unit,) = structure(lambda v, x: x @ change(v["w"]), variables, zeros(2, 4))
    assert unit.kernel == "w"
    assert (unit.in_features, unit.out_features) == (4, 3)
    assert (unit.in_axis, unit.out_axis) == expected


def test_the_kernel_may_stand_on_either_side():
    for fn in (lambda v, x: (v["w"] @ x.T).T, jax.vmap(lambda v, x: v["w"] @ x, (None, 0))):
        assert axes_of(fn, {"w": zeros(3, 4)}, zeros(2, 4)) == [(1, 0)]


@pytest.mark.parametrize(
    "kernel",
    [lambda v: jnp.ones((4, 3)), lambda v: v["a"] @ v["b"], lambda v: v["w"] + v["a"] @ v["b"]],
    ids=["constant", "product", "sum"],
)
def test_a_kernel_that_is_no_leaf_has_no_axes(kernel):
    variables = {"a": zeros(4, 2), "b": zeros(2, 3), "w": zeros(4, 3)}
    assert axes_of(lambda v, x: x @ kernel(v), variables, zeros(2, 4)) == [(None, None)]


def test_axes_that_are_several_are_none():
    contracted = lambda v, x: jnp.einsum("bhd,hdo->bo", x, v["w"])  # noqa: E731
    made = lambda v, x: jnp.einsum("bi,ihd->bhd", x, v["w"])  # noqa: E731
    assert axes_of(contracted, {"w": zeros(2, 3, 5)}, zeros(4, 2, 3)) == [(None, 2)]
    assert axes_of(made, {"w": zeros(5, 2, 3)}, zeros(4, 5)) == [(0, None)]


LAYOUTS = {"HWIO": (2, 3), "OIHW": (1, 0), "IOHW": (0, 1), "OHWI": (3, 0)}


def conv_of(layout, **options):
    def net(v, x):
        numbers = ("NHWC", layout, "NHWC")
        y = lax.conv_general_dilated(
            x, v["w"], (1, 1), "SAME", dimension_numbers=numbers, **options
        )
        return y.mean((1, 2))

    return net


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_axes_of_a_convolution_are_those_of_its_layout(layout):
    sizes = {"H": 3, "W": 3, "I": 4, "O": 6}
    variables = {"w": zeros(*(sizes[c] for c in layout))}
    assert axes_of(conv_of(layout), variables, zeros(2, 5, 5, 4)) == [LAYOUTS[layout]]
    moved = lambda v, x: conv_of("HWIO")(  # noqa: E731
        {"w": v["w"].transpose([layout.index(c) for c in "HWIO"])[::-1, ::-1]}, x
    )
    assert axes_of(moved, variables, zeros(2, 5, 5, 4)) == [LAYOUTS[layout]]


def test_groups_keep_the_neurons_apart_but_not_the_inputs():
    grouped = conv_of("HWIO", feature_group_count=2)
    assert axes_of(grouped, {"w": zeros(3, 3, 2, 6)}, zeros(2, 5, 5, 4)) == [(None, 3)]
    batches = conv_of("HWIO", batch_group_count=2)
    assert axes_of(batches, {"w": zeros(3, 3, 4, 6)}, zeros(2, 5, 5, 4)) == [(None, None)]


def test_the_axes_hold_what_they_promise():
    """Zero one index of ``out_axis``: a neuron falls silent; of ``in_axis``: an input is unread."""
    rng = np.random.default_rng(0)
    w, x = (nets.array(rng.normal(size=s)) for s in ((4, 4, 3, 3), (2, 5, 5, 4)))
    net = conv_of("OIHW")
    (unit,) = structure(net, {"w": w}, x)

    def without(axis, n):
        return {"w": jnp.moveaxis(jnp.moveaxis(w, axis, 0).at[n].set(0), 0, axis)}

    silent = net({"w": w}, x).at[:, 1].set(0)
    np.testing.assert_allclose(net(without(unit.out_axis, 1), x), silent, rtol=1e-5, atol=1e-5)
    unread = net({"w": w}, x.at[..., 2].set(0))
    np.testing.assert_allclose(net(without(unit.in_axis, 2), x), unread, rtol=1e-5, atol=1e-5)
