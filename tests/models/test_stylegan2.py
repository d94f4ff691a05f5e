"""StyleGAN2: its layers against their definitions, and what its networks promise."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxunlearn.core.errors import ConfigError
from jaxunlearn.models import build_gan
from jaxunlearn.models.adapt import functionalize
from jaxunlearn.models.style_layers import (
    Dense,
    Modulated,
    Normals,
    double,
    halve,
    normalise,
    with_deviation,
)
from jaxunlearn.models.stylegan2 import StyleDiscriminator, StyleMapping, StyleSynthesis

STYLE, WIDTH = 16, 8
SMALL = {"latent": 12, "style": STYLE, "width": WIDTH, "layers": 2}
NUMBERS = ("NHWC", "HWIO", "NHWC")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# operation by operation each would be a program of its own
double, halve = jax.jit(double), jax.jit(halve)
with_deviation = jax.jit(with_deviation, static_argnums=1)


@functools.cache
def small(shape=(8, 8, 1), **options):
    gan = build_gan("stylegan2", shape, 4, {**SMALL, **options})
    calls = ("style", "synthesize", "synthesize_train", "discriminate", "discriminate_train")
    gan = gan._replace(**{name: jax.jit(getattr(gan, name)) for name in calls})
    return gan, jax.jit(gan.init)(jax.random.key(0))


def noisy(generator, strength=0.5):
    """The generator with a strength for the noise of every layer."""

    def set_strength(path, leaf):
        return jnp.full_like(leaf, strength) if path[-1].key == "noise" else leaf

    return jax.tree_util.tree_map_with_path(set_strength, generator)


def modulated_layer(wide, narrow, **options):
    normals = Normals()
    layer = Modulated(wide, narrow, STYLE, normals=normals, **options)
    normals.draw(jax.random.key(0))
    return layer


def modulate(layer, x, w):
    return jax.jit(lambda x, w: layer.modulated(x, w))(x, w)


def kernels_of(layer, w):
    """The source's definition: for each image a kernel of its own, ``[B, h, w, C, O]``."""
    scale = np.asarray(jax.jit(lambda w: layer.affine(w))(w))[:, None, None, :, None]
    kernel = np.asarray(layer.kernel[...])
    kernels = scale * kernel[None] / np.sqrt(np.prod(kernel.shape[:-1]))
    if layer.linear:
        return kernels
    return kernels / np.sqrt((kernels**2).sum(axis=(1, 2, 3), keepdims=True) + 1e-8)


@pytest.mark.parametrize("options", [{}, {"size": 1, "linear": True}])
def test_scaling_activations_is_a_kernel_for_each_image(options):
    layer, x, w = modulated_layer(5, 6, **options), normal(1, 3, 8, 8, 5), normal(2, 3, STYLE)

    def own(image, kernel):
        return lax.conv_general_dilated(
            image[None], kernel, (1, 1), "SAME", dimension_numbers=NUMBERS
        )[0]

    expected = jax.jit(lambda x, k: lax.map(lambda pair: own(*pair), (x, k)))(
        x, jnp.asarray(kernels_of(layer, w))
    )
    np.testing.assert_allclose(modulate(layer, x, w), expected, atol=1e-5)


def test_upsampling_is_the_transposed_convolution_and_the_blur_of_the_source():
    layer, x, w = modulated_layer(4, 5, up=True), normal(1, 2, 4, 4, 4), normal(2, 2, STYLE)
    kernels = kernels_of(layer, w)
    spread = np.zeros((2, 9, 9, 5))
    for i, j in np.ndindex(3, 3):
        spread[:, i : i + 8 : 2, j : j + 8 : 2] += np.einsum(
            "bhwc,bco->bhwo", np.asarray(x), kernels[:, i, j]
        )
    padded = np.pad(spread, ((0, 0), (1, 1), (1, 1), (0, 0)))
    blur = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    expected = sum(blur[i, j] * padded[:, i : i + 8, j : j + 8] for i, j in np.ndindex(4, 4))
    np.testing.assert_allclose(modulate(layer, x, w), expected, atol=1e-5)


def test_demodulated_maps_have_unit_variance():
    # inner pixels: at the border a part of the kernel sees zeros
    layer, x = modulated_layer(32, 16), normal(1, 16, 16, 16, 32)
    y = np.asarray(modulate(layer, x, 3 * normal(2, 16, STYLE)))[:, 1:-1, 1:-1]
    assert 0.9 < y.var() < 1.1


def test_dense_layers_start_alike_whatever_the_rate():
    x = normal(1, 512, 64)
    for multiplier in (1.0, 0.01):
        normals = Normals()
        layer = Dense(64, 48, normals=normals, multiplier=multiplier, bias=1.0)
        normals.draw(jax.random.key(0))
        y = np.asarray(jax.jit(lambda x, layer=layer: layer(x))(x))
        assert 0.9 < y.std() < 1.1
        assert 0.5 < y.mean() < 1.5
        assert 0.9 < np.asarray(layer.kernel[...]).std() * multiplier < 1.1


def test_resampling_keeps_what_is_constant_or_linear():
    ones = jnp.ones((2, 4, 4, 3))
    np.testing.assert_allclose(double(ones), np.ones((2, 8, 8, 3)), rtol=1e-6)
    np.testing.assert_allclose(halve(ones), np.ones((2, 2, 2, 3)), rtol=1e-6)
    rows, columns = np.indices((8, 8), np.float32)
    plane = (rows + 10 * columns)[None, :, :, None]
    halved, doubled = (np.asarray(resample(plane))[0, :, :, 0] for resample in (halve, double))
    np.testing.assert_allclose(halved[1:3, 1:3], [[27.5, 47.5], [29.5, 49.5]], rtol=1e-6)
    np.testing.assert_allclose(doubled[3, 3:6], [13.75 + k * 5 for k in range(3)], rtol=1e-6)
    image = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    for resample in (halve, double):
        turned = np.asarray(resample(image.swapaxes(1, 2))).swapaxes(1, 2)
        np.testing.assert_allclose(resample(image), turned, atol=1e-6)


def test_deviation_over_the_batch():
    x = np.random.default_rng(0).normal(size=(6, 4, 4, 3)).astype(np.float32)
    # 6 images in groups of 3: the most that divide the batch and are at most 4
    seen = np.asarray(with_deviation(x, 4))
    channel = seen[..., -1]
    expected = [np.sqrt(x[g].var(axis=0) + 1e-8).mean() for g in ([0, 1, 2], [3, 4, 5])]
    np.testing.assert_allclose(channel[:, 0, 0], np.repeat(expected, 3), rtol=1e-5)
    assert (channel == channel[:, :1, :1]).all()
    chex.assert_trees_all_equal(seen[..., :-1], x)
    mixed = np.asarray(with_deviation(x[[2, 0, 1, 5, 4, 3]], 4))[..., -1]
    np.testing.assert_allclose(mixed, channel, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(with_deviation(x[:5], 4))[..., -1], 1e-4, rtol=1e-5)


def test_deviation_of_equal_images_has_a_gradient():
    def total(x):
        return jnp.sum(with_deviation(x, 4)[..., -1])

    def steepness(x):
        slopes = jax.grad(total)(x)
        return jnp.sum(jnp.square(slopes)), slopes

    second, first = jax.jit(jax.grad(steepness, has_aux=True))(jnp.ones((4, 4, 4, 2)))
    chex.assert_tree_all_finite((first, second))


def test_normalise():
    x = np.asarray(jax.jit(normalise)(5 * normal(0, 3, 7)))
    np.testing.assert_allclose((x**2).mean(axis=1), np.ones(3), rtol=1e-5)


@pytest.mark.parametrize("conditional", [False, True])
def test_labels_are_read_by_conditional_networks_alone(conditional):
    gan, variables = small(conditional=True) if conditional else small()
    assert gan.num_classes == 4 * conditional
    z, x = normal(1, 4, 12), normal(2, 4, 8, 8, 1)
    labels = jnp.zeros(4, jnp.int32), jnp.arange(4)
    one, other = (gan.style(variables["generator"], z, y) for y in labels)
    np.testing.assert_array_equal((one != other).any(axis=1), [False, *[conditional] * 3])
    one, other = (gan.discriminate(variables["discriminator"], x, y) for y in labels)
    np.testing.assert_array_equal(one != other, [False, *[conditional] * 3])


def test_the_scale_of_a_latent_is_not_read():
    gan, variables = small()
    y = jnp.zeros(4, jnp.int32)
    one, other = (gan.style(variables["generator"], a * normal(1, 4, 12), y) for a in (1, 3))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_noise_is_for_training():
    gan, variables = small()
    generator, w = variables["generator"], normal(1, 3, STYLE)
    make = gan.synthesize_train
    keys = jax.random.split(jax.random.key(5))
    still = [make(generator, w, key)[0] for key in keys]
    chex.assert_trees_all_equal(*still)
    np.testing.assert_allclose(still[0], gan.synthesize(generator, w), atol=1e-5)
    (one, after), (other, _) = (make(noisy(generator), w, key) for key in keys)
    # every image has noise of its own, also of the same style
    assert float(jnp.abs(one - other).min(axis=(1, 2, 3)).max()) > 0
    alike, _ = make(noisy(generator), jnp.broadcast_to(w[:1], w.shape), keys[0])
    assert bool((alike[0] != alike[1]).any())
    chex.assert_trees_all_equal(after, noisy(generator))
    chex.assert_trees_all_equal(*(gan.synthesize(noisy(generator), w) for _ in range(2)))
    np.testing.assert_allclose(gan.synthesize(noisy(generator), w), still[0], atol=1e-5)


def test_a_style_for_each_layer():
    gan, variables = small()
    module = nnx.eval_shape(lambda: StyleSynthesis((8, 8, 1), STYLE, width=WIDTH, rngs=nnx.Rngs(0)))
    assert module.num_styles == 4
    w = normal(1, 2, STYLE)
    each = jnp.broadcast_to(w[:, None], (2, 4, STYLE))
    x = gan.synthesize(variables["generator"], w)
    chex.assert_trees_all_equal(x, gan.synthesize(variables["generator"], each))
    for layer in range(4):
        moved = gan.synthesize(variables["generator"], each.at[:, layer].add(1.0))
        assert float(jnp.abs(moved - x).max()) > 1e-3
    with pytest.raises(ConfigError, match=r"w: expected \[B, 4, W\], got \(2, 3, 16\)"):
        gan.synthesize(variables["generator"], each[:, :3])


@pytest.mark.parametrize(("shape", "dtype"), [((16, 16, 3), None), ((8, 8, 1), "bfloat16")])
def test_shapes_types_and_gradients(shape, dtype):
    gan, variables = small(shape, dtype=dtype, conditional=True)
    assert (gan.latent, gan.shape, gan.couples, gan.maps) == (12, shape, True, True)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    z, y = normal(1, 4, 12), jnp.arange(4)
    key, own = jax.random.key(3), variables["discriminator"]

    def make(generator):
        w = gan.style(generator, z, y)
        return w, gan.synthesize_train(generator, w, key)[0]

    def judge(discriminator, x):
        return gan.discriminate_train(discriminator, x, y, key)[0]

    def play(generator, discriminator):
        w, x = make(generator)
        d = judge(discriminator, x)
        return jnp.sum(d), (w, x, d)

    # gradients in full precision: in the scan below
    learns = dtype is not None
    both = jax.jit(
        jax.grad(play, (0, 1), has_aux=True) if learns else lambda g, d: ((), play(g, d)[1])
    )
    gradients, (w, x, d) = both(noisy(variables["generator"]), own)
    chex.assert_shape([w, x, d], [(4, STYLE), (4, *shape), (4,)])
    assert {leaf.dtype for leaf in (w, x, d)} == {jnp.dtype(jnp.float32)}
    chex.assert_tree_all_finite((w, x, d, gradients))
    # nothing is drawn in vain: every parameter of the generator and the discriminator learns
    for gradient in gradients:
        moved = jax.tree_util.tree_map(lambda g: bool((g != 0).any()), gradient["params"])
        assert all(jax.tree.leaves(moved)), moved
    assert 0.2 < float(jnp.std(x)) < 5


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_penalty_of_steep_logits_has_a_gradient(dtype):
    gan, variables = small(dtype=dtype)
    x, y = normal(2, 4, 8, 8, 1), jnp.arange(4)

    def r1(discriminator):
        def total(x):
            return jnp.sum(gan.discriminate_train(discriminator, x, y, jax.random.key(3))[0])

        return jnp.sum(jnp.square(jax.grad(total)(x)))

    penalty, gradient = jax.jit(jax.value_and_grad(r1))(variables["discriminator"])
    assert penalty.dtype == jnp.float32
    assert float(penalty) > 0
    chex.assert_tree_all_finite((penalty, gradient))


def test_half_precision_is_near_the_full_one():
    gan, variables = small()
    half, _ = small(dtype="bfloat16")
    w = normal(1, 3, STYLE)
    full, rough = (g.synthesize(variables["generator"], w) for g in (gan, half))
    assert 0 < float(jnp.abs(full - rough).max()) < 0.1 * float(jnp.std(full)) + 0.05


def test_without_groups_images_are_judged_apart():
    x, y = normal(2, 4, 8, 8, 1), jnp.zeros(4, jnp.int32)
    for (gan, variables), apart in ((small(group=1), True), (small(), False)):
        assert gan.couples is not apart
        together = gan.discriminate(variables["discriminator"], x, y)
        alone = gan.discriminate(variables["discriminator"], x[:1], y[:1])
        assert np.allclose(together[:1], alone, atol=1e-4) is apart


def test_two_steps_in_a_scan():
    gan, variables = small()
    z, y = normal(1, 4, 12), jnp.zeros(4, jnp.int32)

    def step(players, key):
        generator, discriminator = players

        def loss(generator, discriminator):
            x, _ = gan.synthesize_train(generator, gan.style(generator, z, y), key)
            return jnp.mean(gan.discriminate_train(discriminator, x, y, key)[0])

        value, (up, down) = jax.value_and_grad(loss, argnums=(0, 1))(generator, discriminator)
        generator = jax.tree.map(lambda p, g: p + 0.01 * g, generator, up)
        return (generator, jax.tree.map(lambda p, g: p - 0.01 * g, discriminator, down)), value

    begin = variables["generator"], variables["discriminator"]
    keys = jax.random.split(jax.random.key(4))
    players, values = jax.jit(lambda p: lax.scan(step, p, keys))(begin)
    chex.assert_tree_all_finite((players, values))
    assert float(values[0]) != float(values[1])


def test_nothing_is_dilated_or_grouped():
    gan, variables = small((16, 16, 3), dtype="bfloat16")
    text = str(
        jax.make_jaxpr(
            lambda v, w: gan.discriminate(
                v["discriminator"], gan.synthesize(v["generator"], w), jnp.zeros(4, jnp.int32)
            )
        )(variables, normal(1, 4, STYLE))
    )
    # synthesis: 5 layers and 3 images; discriminator: the image, 3 for each side, the last
    assert len(re.findall(r"conv_general_dilated\[", text)) == 8 + 8
    for option, plain in (
        ("lhs_dilation", "(1, 1)"),
        ("rhs_dilation", "(1, 1)"),
        ("window_strides", "(1, 1)"),
        ("feature_group_count", "1"),
        ("batch_group_count", "1"),
    ):
        assert set(re.findall(rf"{option}=(\(.*?\)|\d+)", text)) == {plain}


def test_larger_maps_have_fewer_channels():
    model = functionalize(lambda rngs: StyleSynthesis((64, 64, 3), STYLE, width=8, rngs=rngs))
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    widths = {side: params[f"conv{side}"]["bias"].shape[0] for side in (4, 8, 16, 32, 64)}
    assert widths == {4: 8, 8: 8, 16: 8, 32: 8, 64: 4}


def test_initialisation_is_drawn_once():
    gan, _ = small()
    text = str(jax.make_jaxpr(gan.init)(jax.random.key(0)))
    assert len(re.findall(r"erf_inv", text)) == 3


@pytest.mark.parametrize("shape", [(16, 8, 3), (12, 12, 3), (4, 4, 3), (28, 28, 1), (16, 16)])
def test_shapes_refused(shape):
    with pytest.raises(ConfigError, match=re.escape("as shape square images (H, W, C)")) as told:
        build_gan("stylegan2", shape, 4, SMALL)
    assert str(shape) in str(told.value)


@pytest.mark.parametrize("name", ["latent", "style", "layers", "width", "group"])
@pytest.mark.parametrize("value", [0, 2.5])
def test_options_refused(name, value):
    match = rf"expected an integer of at least 1 as {name} of stylegan2, got {value!r}"
    with pytest.raises(ConfigError, match=re.escape(match)):
        build_gan("stylegan2", (16, 16, 3), 4, {**SMALL, name: value})


def test_negative_classes_refused():
    rngs = nnx.Rngs(0)
    with pytest.raises(ConfigError, match="at least 0 as num_classes of stylegan2, got -1"):
        StyleMapping(4, 4, -1, layers=1, rngs=rngs)
    with pytest.raises(ConfigError, match="at least 0 as num_classes of stylegan2, got -1"):
        StyleDiscriminator((8, 8, 1), -1, width=4, group=1, rngs=rngs)
