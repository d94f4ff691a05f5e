"""Maps over images: colours are where the numbers put them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.attribution import lrp
from jaxunlearn.models import build
from jaxunlearn.pictures import heatmaps, style
from tests.pictures.reading import DPI, at, codes, greys, pixels


def test_the_channels_of_largest_summed_relevance():
    values = np.zeros((2, 2, 4))
    values[0, 0] = [1, -5, 2, 0]
    values[1, 1] = [1, 1, 2, 0.5]
    chosen, sums = heatmaps.top_channels(values, 3)
    np.testing.assert_array_equal(chosen, [1, 2, 0])
    np.testing.assert_array_equal(sums, [-4, 4, 2])


def test_the_heat_map_has_the_pixels_of_the_relevance(tmp_path):
    """Read from the picture: red, white, white, blue."""
    relevance = np.array([[[1.0, 0.0], [0.0, -1.0]]])
    heatmaps.save_heatmaps(tmp_path / "map.png", np.zeros((1, 2, 2)), relevance)
    shown = pixels(tmp_path / "map.png")
    assert shown.shape[1] == pytest.approx(DPI * (1.0 + 3 * 1.05 + 2 * 0.07 + 0.2), abs=1)
    left, top, cell = DPI * (1.0 + 1.05 + 0.07), DPI * (0.6 + 0.2), DPI * 1.05
    colours = style.diverging()
    for i in range(2):
        for j in range(2):
            found = shown[int(top + cell * (0.25 + 0.5 * i)), int(left + cell * (0.25 + 0.5 * j))]
            expected = np.array(colours((relevance[0, i, j] + 1) / 2)[:3]) * 255
            np.testing.assert_allclose(found, expected, atol=1.5)


@pytest.fixture(scope="module")
def grey():
    """Images, and the relevance of what a network says of them."""
    model = build("cnn", (6, 6, 1), 4, {"channels": (3, 5), "features": 7})
    x = jax.random.normal(jax.random.key(1), (3, 6, 6, 1))
    return x, jax.jit(lrp(model.apply))(model.init(jax.random.key(0)), x)


@pytest.fixture(scope="module")
def colourful():
    """The same of images in colour, and of a network without parts of its own."""

    def network(variables, x):
        axes = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        h = jax.lax.conv_general_dilated(x, variables["conv"], (1, 1), "SAME", **axes)
        return jax.nn.relu(h).reshape(len(x), -1) @ variables["head"]

    keys = jax.random.split(jax.random.key(0), 3)
    sizes = {"conv": (3, 3, 3, 4), "head": (144, 4)}
    variables = {
        name: jax.random.normal(key, size)
        for key, (name, size) in zip(keys[:2], sizes.items(), strict=True)
    }
    x = jax.random.normal(keys[2], (3, 6, 6, 3))
    return x, jax.jit(lrp(network))(variables, x)


@pytest.mark.parametrize("kind", ["grey", "colourful"])
@pytest.mark.usefixtures("coarse")
def test_one_call_draws_every_layer(tmp_path, kind, request):
    x, relevance = request.getfixturevalue(kind)
    few, all_of_them = tmp_path / "few.png", tmp_path / "deeper" / "all.png"
    heatmaps.save_heatmaps(few, x, relevance, layers=1)
    heatmaps.save_heatmaps(
        all_of_them, x[:2], jax.tree.map(lambda leaf: leaf[:2], relevance), channels=9,
        layers=list(relevance.neurons), names=["a", "b $x$"], title="Relevance",
    )  # fmt: skip
    shown = pixels(all_of_them)
    assert pixels(few).shape[1] < shown.shape[1]
    assert len(np.unique(codes(shown))) > 100


def test_layers_with_positions_are_maps_and_all_others_bars():
    neurons = {
        "params/conv/kernel": np.ones((2, 4, 4, 3)),
        "params/block/tokens/kernel": np.ones((2, 9, 16), jnp.bfloat16),
        "params/pooled/kernel": np.ones((2, 1, 1, 6)),
        "params/heads/kernel": np.ones((2, 16, 3, 8)),
        "params/head/kernel": np.ones((2, 4)),
    }
    made = heatmaps._layers(type("R", (), {"neurons": neurons}), list(neurons), 2, (2, 8, 8))
    assert [layer.maps for layer in made] == [2, 0, 0, 0, 0]
    assert [layer.name for layer in made] == ["conv", "tokens", "pooled", "heads", "head"]
    assert made[1].within == "block"
    assert "8 of 16" in made[1].about
    assert "2 of 3 channels, 4×4" in made[0].about  # noqa: RUF001


def test_layers_are_spread_over_the_network():
    known = [f"w{i}" for i in range(10)]
    assert heatmaps._keys(known, 3) == ["w0", "w4", "w8"]
    assert heatmaps._keys(known, 0) == []
    assert heatmaps._keys(["w0", "w1"], 5) == ["w0"]


@pytest.mark.usefixtures("coarse")
def test_bfloat16_tokens_are_drawn(tmp_path):
    neurons = {"a": jax.random.normal(jax.random.key(0), (1, 9, 16)).astype(jnp.bfloat16)}
    found = type("R", (), {"input": jnp.ones((1, 4, 4, 3), jnp.bfloat16), "neurons": neurons})
    heatmaps.save_heatmaps(tmp_path / "r.png", found.input, found, layers="a")
    assert pixels(tmp_path / "r.png").size


def test_mistakes_in_heat_maps_are_named(tmp_path, grey):
    x, found = grey
    file = tmp_path / "map.png"

    def draw(relevance=found, images=x, **options):
        heatmaps.save_heatmaps(file, images, relevance, **options)

    with pytest.raises(ValueError, match=r"layers: expected some of params/conv1/kernel, .*'fc9'"):
        draw(layers=["fc9"])
    with pytest.raises(ValueError, match="channels: expected a positive number, got 0"):
        draw(channels=0)
    with pytest.raises(ValueError, match="layers: expected a number >= 0"):
        draw(layers=-1)
    with pytest.raises(ValueError, match="names: expected 3, one for each image, got 1"):
        draw(names=["one"])
    with pytest.raises(ValueError, match=r"relevance: expected a value for each .*\[2, 6, 6\]"):
        draw(images=x[:2])
    broken = {**found.neurons, "params/fc1/kernel": found.neurons["params/fc1/kernel"] * jnp.nan}
    with pytest.raises(ValueError, match=r"neurons\['params/fc1/kernel'\]: expected finite"):
        draw(found._replace(neurons=broken))
    assert not file.exists()


def test_maps_are_enlarged_as_images_are():
    values = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    found = heatmaps.enlarged(np.asarray(values, np.float64), (16, 15))
    expected = jax.image.resize(values, (2, 3, 16, 15), "bilinear")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(heatmaps.enlarged(np.ones((1, 1)), (3, 2)), np.ones((3, 2)))
    np.testing.assert_array_equal(heatmaps.enlarged(np.eye(3), (3, 3)), np.eye(3))


def test_the_maps_of_a_row_have_one_scale(tmp_path):
    values = np.stack([np.full((2, 2), v) for v in (1.0, -0.5, 0.0, 8.0, 0.0, -8.0)])
    images = greys(2)
    heatmaps.save_maps(tmp_path / "heatmaps.png", images, values.reshape(2, 3, 2, 2), list("abc"))
    shown, side = pixels(tmp_path / "heatmaps.png"), heatmaps._MAP + heatmaps._NEAR
    wide = 2 * style.PAD + 4 * side - heatmaps._NEAR
    assert shown.shape[1] == pytest.approx(DPI * wide, abs=1)
    for row, (scale, heats) in enumerate(((1.0, (1, -0.5, 0)), (8.0, (8, 0, -8)))):
        top = (
            heatmaps._MAP_TOP
            + heatmaps._ABOVE
            + row * (heatmaps._MAP + heatmaps._ABOVE)
            + heatmaps._MAP / 2
        )
        grey = images[row, :1, :1]
        found = [at(shown, style.PAD + k * side + heatmaps._MAP / 2, top) for k in range(4)]
        np.testing.assert_allclose(found[0], 255 * grey[0, 0], atol=1)
        for colour, heat in zip(found[1:], heats, strict=True):
            expected = 255 * style.overlay(grey, np.array([[float(heat)]]), scale)[0, 0]
            np.testing.assert_allclose(colour, expected, atol=1.5)


def test_mistakes_in_maps_are_named(tmp_path):
    file = tmp_path / "heatmaps.png"
    with pytest.raises(ValueError, match=r"maps: expected shape \[2, 3, h, w\], as images and nam"):
        heatmaps.save_maps(file, greys(2), np.ones((2, 2, 4, 4)), list("abc"))
    with pytest.raises(ValueError, match="maps: expected finite numbers, got 16 NaN"):
        heatmaps.save_maps(file, greys(1), np.full((1, 1, 4, 4), np.nan), ["a"])
    with pytest.raises(ValueError, match=r"maps: expected at least one cell, got \[1, 1, 0, 4\]"):
        heatmaps.save_maps(file, greys(1), np.ones((1, 1, 0, 4)), ["a"])
    with pytest.raises(ValueError, match=r"images: expected \[B, H, W\]"):
        heatmaps.save_maps(file, np.ones((8, 8)), np.ones((1, 1, 4, 4)), ["a"])
    assert not file.exists()


def test_colours_may_come_first():
    values = np.random.default_rng(0).normal(size=(2, 5, 4, 3))
    expected = values.sum(-1)
    for shown in (values, np.moveaxis(values, -1, 1)):
        np.testing.assert_allclose(heatmaps._heats(shown, (2, 5, 4)), expected)
