import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.attribution.maps import concept_maps, grad_cam
from jaxunlearn.jaxprs.cuts import cut_at_features, cut_at_map, layers

KEY = jax.random.key(0)
NETWORKS = {"mlp": (6, 6, 1), "cnn": (8, 8, 1), "resnet8": (8, 8, 3)}
OPTIONS = {
    "mlp": {"features": (12, 7)},
    "cnn": {"channels": (3, 4), "features": 9},
    "resnet8": {"width": 4},
}
MAPS = {"mlp": (6, 6, 1), "cnn": (4, 4, 4), "resnet8": (2, 2, 16)}


@functools.cache
def network(name):
    model = ju.models.build(name, NETWORKS[name], 5, OPTIONS[name])
    x = jax.random.normal(jax.random.key(1), (3, *NETWORKS[name]))
    return model.apply, jax.jit(model.init)(KEY), x


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("cut", [cut_at_features, cut_at_map])
def test_both_halves_make_the_whole(name, cut):
    apply, variables, x = network(name)
    upper, lower = cut(apply)
    value = jax.jit(upper)(variables, x)
    lower = jax.jit(lower, static_argnums=2)
    expected = jax.jit(apply)(variables, x)
    np.testing.assert_allclose(lower(variables, value, x.shape[1:]), expected, atol=1e-5, rtol=0)
    # the lower half depends on the value alone, and takes any number of examples
    other = lower(variables, jnp.zeros_like(value[:2]), x.shape[1:])
    assert other.shape == (2, 5)
    np.testing.assert_allclose(other[0], other[1], atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_where_it_is_cut(name):
    apply, variables, x = network(name)
    assert jax.eval_shape(cut_at_map(apply).upper, variables, x).shape == (3, *MAPS[name])
    features = jax.jit(cut_at_features(apply).upper)(variables, x)
    expected = jax.jit(ju.attribution.features(apply))(variables, x)
    np.testing.assert_allclose(features, expected, atol=1e-6)


def test_a_skip_around_the_head_is_told():
    def around(v, x):
        return jnp.tanh(x @ v["a"]) @ v["b"] + x[:, :2]

    v = {"a": jnp.ones((4, 3)), "b": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match="expected all of x to go through the last linear unit"):
        cut_at_features(around).upper(v, jnp.ones((2, 4)))


def test_a_network_without_positions_is_told():
    with pytest.raises(ValueError, match=r"expected a network of images \[B, H, W, C\], got none"):
        cut_at_map(lambda v, x: x @ v).upper(jnp.ones((4, 2)), jnp.ones((3, 4)))


def pooled(v, x):
    """Channels are features: the map of a concept is exact."""
    return jnp.mean(jax.nn.relu(x), axis=(1, 2)) @ v


def test_a_concepts_map_adds_up_behind_an_average():
    v = jax.random.normal(KEY, (3, 5))
    x = jax.random.normal(jax.random.key(2), (4, 6, 5, 3))
    direction = jax.random.normal(jax.random.key(3), (4, 3))
    maps = jax.jit(concept_maps(pooled))(v, x, direction)
    by_hand = jnp.sum(jax.nn.relu(x) * direction[:, None, None], -1) / 30
    np.testing.assert_allclose(maps, by_hand, atol=1e-6)
    features = jnp.mean(jax.nn.relu(x), axis=(1, 2))
    np.testing.assert_allclose(maps.sum((1, 2)), jnp.sum(features * direction, -1), atol=1e-5)


def test_grad_cam_by_hand():
    v = jax.random.normal(KEY, (3, 5))
    x = jax.random.normal(jax.random.key(2), (4, 6, 5, 3))
    weights = jax.nn.one_hot(jnp.array([0, 4, 2, 2]), 5)
    maps = grad_cam(pooled)(v, x, weights)
    # the slope of a mean is 1/30 everywhere
    alpha = weights @ v.T / 30
    by_hand = jnp.maximum(jnp.sum(jax.nn.relu(x) * alpha[:, None, None], -1), 0)
    np.testing.assert_allclose(maps, by_hand, atol=1e-6)
    assert maps.min() == 0


def test_maps_of_a_network_with_dense_layers_find_what_lights_up():
    """A dense layer that reads one corner: the map is there and nowhere else."""

    def corner(v, x):
        return jax.nn.relu(x.reshape(len(x), -1) @ v["fc"]) @ v["head"]

    kernel = np.zeros((4, 4, 2), np.float32)
    kernel[0, 3] = 1
    v = {"fc": jnp.asarray(kernel.reshape(16, 2)), "head": jnp.ones((2, 3))}
    x = jnp.ones((2, 4, 4, 1))
    maps = concept_maps(corner)(v, x, jnp.ones((2, 2)))
    assert float(maps[0, 0, 3]) == 2
    assert float(jnp.sum(maps[0])) == 2


# --- the layout is followed, the target is that of every attribution


def conv(x, kernel, layout):
    numbers = (layout, "HWIO", layout)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def draw(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


IMAGES = {"k": draw(3, 3, 2, 4), "s": draw(3, 3, 4, 4), "h": draw(4, 5), "f": draw(120, 5)}
POSITIONS = {"NHWC": (1, 2), "NCHW": (2, 3)}


def skipping(layout, v, x):
    """The last map is a sum of branches, behind it comes a mean that keeps its axes."""
    first = jax.nn.relu(conv(x, v["k"], layout))
    h = jax.nn.relu(first + conv(first, v["s"], layout))
    h = jnp.mean(h, axis=POSITIONS[layout], keepdims=True)
    return h.reshape(len(x), -1) @ v["h"]


def flattened(layout, v, x):
    h = jnp.tanh(conv(x, v["k"], layout))
    return (jnp.moveaxis(h, 1, -1) if layout == "NCHW" else h).reshape(len(x), -1) @ v["f"]


def last_convolution(layout, v, x):
    """The head is a convolution, the logits its mean."""
    h = jax.nn.relu(conv(x, v["k"], layout))
    return jnp.mean(conv(h, v["h"][None, None], layout), axis=POSITIONS[layout])


def both_layouts(maps, net, given):
    x = draw(3, 6, 5, 2)
    last, first = (maps(functools.partial(net, layout)) for layout in POSITIONS)
    found = jax.jit(first)(IMAGES, jnp.moveaxis(x, -1, 1), given)
    np.testing.assert_allclose(found, jax.jit(last)(IMAGES, x, given), atol=1e-5)
    assert found.shape == (3, 6, 5)
    assert float(jnp.ptp(found)) > 0


@pytest.mark.parametrize("net", [skipping, flattened, last_convolution])
def test_grad_cam_does_not_depend_on_the_layout(net):
    both_layouts(grad_cam, net, jnp.arange(3))


@pytest.mark.parametrize(("net", "size"), [(skipping, 4), (flattened, 120)])
def test_concept_maps_do_not_depend_on_the_layout(net, size):
    both_layouts(concept_maps, net, draw(3, size))


def test_channels_first_by_hand():
    """Without a convolution before it, the mean over the positions says where they lie."""
    x = jnp.arange(8.0).reshape(1, 2, 2, 2)
    v = jnp.array([[2.0], [3.0]])
    maps = grad_cam(lambda v, x: jnp.mean(x, axis=(2, 3)) @ v)(v, x, 0)
    np.testing.assert_allclose(maps, [[[3, 4.25], [5.5, 6.75]]])


def test_targets_of_grad_cam():
    net, x, y = functools.partial(skipping, "NHWC"), draw(3, 6, 5, 2), jnp.array([4, 0, 2])
    cam = grad_cam(net)
    expected = cam(IMAGES, x, jax.nn.one_hot(y, 5))
    for target in (y, ju.starts.label(y), lambda logits: logits[jnp.arange(3), y]):
        np.testing.assert_allclose(cam(IMAGES, x, target), expected, atol=1e-6)
    np.testing.assert_allclose(cam(IMAGES, x, 2)[2], expected[2], atol=1e-6)
    np.testing.assert_array_equal(cam(IMAGES, x), cam(IMAGES, x, ju.starts.argmax()))
    with pytest.raises(ValueError, match="expected labels from 0 to 4"):
        cam(IMAGES, x, jnp.array([0, 1, 5]))
    with pytest.raises(ValueError, match=r"expected one label or labels \[3\], got shape \(2,\)"):
        cam(IMAGES, x, jnp.array([0, 1]))
    with pytest.raises(ValueError, match=r"target: expected labels \[3\].* got shape \(3, 4\)"):
        cam(IMAGES, x, jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"directions: expected .* \[3, 4\] as the features"):
        concept_maps(net)(IMAGES, x, jnp.ones((3, 5)))


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_read_and_replaced(name):
    apply, variables, x = network(name)
    opened = layers(apply)
    values = jax.jit(opened.values)(variables, x)
    keys = opened.keys(variables, x)
    assert list(keys) == [unit.key for unit in ju.attribution.structure(apply, variables, x)]
    assert [len(value) for value in values] == [len(x)] * len(keys)
    expected = apply(variables, x)
    patched = jax.jit(opened.patched, static_argnums=2)
    for number, value in enumerate(values):
        found = patched(variables, x, number, value)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    # the head's outputs are the logits
    moved = patched(variables, x, len(keys) - 1, values[-1] + 1)
    np.testing.assert_allclose(moved, expected + 1, atol=1e-5)
    # the values of other images at the first layer make it theirs, where nothing skips it
    other = jax.random.normal(jax.random.key(5), x.shape)
    if name != "resnet8":
        theirs = patched(variables, x, 0, opened.values(variables, other)[0])
        np.testing.assert_allclose(theirs, apply(variables, other), atol=1e-5)
