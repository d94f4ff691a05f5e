"""Pictures: what is drawn is what was computed, and the file is a picture."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxunlearn as ju
from jaxunlearn.core.errors import UserError
from jaxunlearn.pictures import heatmaps as grid
from jaxunlearn.pictures import path, style
from jaxunlearn.pictures import path as flow
from jaxunlearn.pictures import style as images
from tests import toy


def dense(variables, x):
    return jax.nn.relu(x @ variables["w1"]) @ variables["w2"] + variables["b2"][None]


def dense_variables(sizes=(5, 4, 3)):
    keys = jax.random.split(jax.random.key(3), 3)
    return {
        "w1": jax.random.normal(keys[0], sizes[:2]),
        "w2": jax.random.normal(keys[1], sizes[1:]),
        "b2": jax.random.normal(keys[2], sizes[2:]),
    }


def cnn():
    return ju.build("cnn", (6, 6, 1), 4, {"channels": (3, 5), "features": 7})


@pytest.fixture
def photographs():
    return jax.random.uniform(jax.random.key(0), (3, 6, 6, 1))


def pixels(file):
    picture = Image.open(file)
    picture.verify()  # the whole file
    return np.asarray(Image.open(file).convert("RGB"))


# ---------------------------------------------------------------- colours


def test_zero_is_white_and_the_signs_have_their_colours():
    colours = style.diverging()
    assert colours(0.5) == (1, 1, 1, 1)
    assert colours((0.0 - -3) / 6) == (1, 1, 1, 1)
    red, _, blue, _ = colours(1.0)
    assert red > 2 * blue
    red, _, blue, _ = colours(0.0)
    assert blue > 2 * red


def test_the_scale_is_the_quantile_and_never_zero():
    values = np.arange(-1000.0, 1001.0)
    assert images.scale_of(values) == pytest.approx(np.quantile(np.abs(values), 0.995))
    single = np.zeros(1000)
    single[7] = -2.0
    assert images.scale_of(single) == 2.0
    assert images.scale_of(np.zeros(4)) == 1.0


def test_an_overlay_shows_the_image_where_nothing_is_relevant():
    picture = np.full((1, 3, 3), 0.5)
    mixed = images.overlay(picture, np.array([[0.0, 2.0, -9.0]]), scale=2.0)
    assert np.ptp(mixed[0, 0]) == 0
    colours = style.diverging()
    np.testing.assert_allclose(mixed[0, 1], colours(1.0)[:3])
    np.testing.assert_allclose(mixed[0, 2], colours(0.0)[:3])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 51, 255], np.uint8), [0, 0.2, 1]),
        (np.array([0, 0.2, 0.5], np.float32), [0, 0.2, 0.5]),
        (np.array([-1, 0, 3], np.float32), [0, 0.25, 1]),
        (jnp.array([-1, 0, 3], jnp.bfloat16), [0, 0.25, 1]),
        (np.array([7, 7, 7], np.float32), [0, 0, 0]),
    ],
)
def test_images_of_every_kind_become_colours(values, expected):
    shown = images.to_rgb(values.reshape(1, 1, 3))
    assert shown.shape == (1, 1, 3, 3)
    np.testing.assert_allclose(shown[0, 0], np.repeat(np.array(expected)[:, None], 3, 1), rtol=1e-6)


def test_what_is_no_image_is_named():
    with pytest.raises(ValueError, match=r"images: expected \[B, H, W\].* got \(2, 4, 4, 2\)"):
        images.to_rgb(np.zeros((2, 4, 4, 2)))
    with pytest.raises(ValueError, match="images: expected finite numbers, got 2 NaN"):
        images.to_rgb(np.array([[[np.nan, 0, np.inf]]]))


# ---------------------------------------------------------------- heat maps


def test_the_channels_of_largest_summed_relevance():
    values = np.zeros((2, 2, 4))
    values[0, 0] = [1, -5, 2, 0]
    values[1, 1] = [1, 1, 2, 0.5]
    chosen, sums = grid.top_channels(values, 3)
    np.testing.assert_array_equal(chosen, [1, 2, 0])
    np.testing.assert_array_equal(sums, [-4, 4, 2])


def test_the_heat_map_has_the_pixels_of_the_relevance(tmp_path):
    """Read from the picture: red, white, white, blue."""
    relevance = np.array([[[1.0, 0.0], [0.0, -1.0]]])
    ju.save_heatmaps(tmp_path / "map.png", np.zeros((1, 2, 2)), relevance)
    shown = pixels(tmp_path / "map.png")
    assert shown.shape[1] == round(160 * (1.0 + 3 * 1.05 + 2 * 0.07 + 0.2))
    left, top, cell = 160 * (1.0 + 1.05 + 0.07), 160 * (0.6 + 0.2), 160 * 1.05
    colours = style.diverging()
    for i in range(2):
        for j in range(2):
            found = shown[int(top + cell * (0.25 + 0.5 * i)), int(left + cell * (0.25 + 0.5 * j))]
            expected = np.array(colours((relevance[0, i, j] + 1) / 2)[:3]) * 255
            np.testing.assert_allclose(found, expected, atol=1.5)


@pytest.mark.parametrize("colours", [1, 3])
def test_one_call_draws_every_layer(tmp_path, colours):
    model = ju.build("cnn", (6, 6, colours), 4, {"channels": (3, 5), "features": 7})
    x = jax.random.normal(jax.random.key(1), (2, 6, 6, colours))
    relevance = jax.jit(ju.lrp(model.apply))(model.init(jax.random.key(0)), x)
    few, all_of_them = tmp_path / "few.png", tmp_path / "deeper" / "all.png"
    ju.save_heatmaps(few, x, relevance, layers=1)
    ju.save_heatmaps(
        all_of_them, x, relevance, layers=list(relevance.neurons), channels=9,
        names=["a", "b $x$"], title="Relevance",
    )  # fmt: skip
    assert pixels(few).shape[1] < pixels(all_of_them).shape[1]
    assert len(np.unique(pixels(all_of_them).reshape(-1, 3), axis=0)) > 100


def test_layers_with_positions_are_maps_and_all_others_bars():
    from jaxunlearn.pictures import heatmaps

    neurons = {
        "params/conv/kernel": jnp.ones((2, 4, 4, 3)),
        "params/block/tokens/kernel": jnp.ones((2, 9, 16), jnp.bfloat16),
        "params/pooled/kernel": jnp.ones((2, 1, 1, 6)),
        "params/heads/kernel": jnp.ones((2, 16, 3, 8)),
        "params/head/kernel": jnp.ones((2, 4)),
    }
    made = heatmaps._layers(type("R", (), {"neurons": neurons}), list(neurons), 2, (2, 8, 8))
    assert [layer.maps for layer in made] == [2, 0, 0, 0, 0]
    assert [layer.name for layer in made] == ["conv", "tokens", "pooled", "heads", "head"]
    assert made[1].within == "block"
    assert "8 of 16" in made[1].about
    assert "2 of 3 channels, 4×4" in made[0].about  # noqa: RUF001


def test_layers_are_spread_over_the_network():
    from jaxunlearn.pictures.heatmaps import _keys

    known = [f"w{i}" for i in range(10)]
    assert _keys(known, 3) == ["w0", "w4", "w8"]
    assert _keys(known, 0) == []
    assert _keys(["w0", "w1"], 5) == ["w0"]


def test_bfloat16_tokens_are_drawn(tmp_path):
    neurons = {"a": jax.random.normal(jax.random.key(0), (1, 9, 16)).astype(jnp.bfloat16)}
    found = type("R", (), {"input": jnp.ones((1, 4, 4, 3), jnp.bfloat16), "neurons": neurons})
    ju.save_heatmaps(tmp_path / "r.png", jnp.ones((1, 4, 4, 3), jnp.bfloat16), found, layers="a")
    assert pixels(tmp_path / "r.png").size


def test_mistakes_in_heat_maps_are_named(tmp_path, photographs):
    model = cnn()
    found = jax.jit(ju.lrp(model.apply))(model.init(jax.random.key(0)), photographs)
    file = tmp_path / "map.png"
    with pytest.raises(ValueError, match=r"layers: expected some of params/conv1/kernel, .*'fc9'"):
        ju.save_heatmaps(file, photographs, found, layers=["fc9"])
    with pytest.raises(ValueError, match="channels: expected a positive number, got 0"):
        ju.save_heatmaps(file, photographs, found, channels=0)
    with pytest.raises(ValueError, match="layers: expected a number >= 0"):
        ju.save_heatmaps(file, photographs, found, layers=-1)
    with pytest.raises(ValueError, match="names: expected 3, one for each image, got 1"):
        ju.save_heatmaps(file, photographs, found, names=["one"])
    with pytest.raises(ValueError, match=r"relevance: expected a value for each .*\[2, 6, 6\]"):
        ju.save_heatmaps(file, photographs[:2], found)
    broken = {**found.neurons, "params/fc1/kernel": found.neurons["params/fc1/kernel"] * jnp.nan}
    with pytest.raises(ValueError, match=r"neurons\['params/fc1/kernel'\]: expected finite"):
        ju.save_heatmaps(file, photographs, found._replace(neurons=broken))
    assert not file.exists()
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="path: expected a file that can be written"):
        ju.save_heatmaps(tmp_path / "taken" / "map.png", photographs, found)


# ---------------------------------------------------------------- flow


def test_messages_between_dense_layers_by_hand():
    variables, x = dense_variables(), jax.random.normal(jax.random.key(0), (6, 5))
    units = ju.structure(dense, variables, x)
    seed = ju.seeds.label(2, times_logit=True)
    send = flow.messages(dense, ju.rules.epsilon(0.1), units, *units)
    found = send(variables, x, seed, np.arange(4), np.array([2, 0]))
    a = jax.nn.relu(x @ variables["w1"])
    z = a @ variables["w2"] + variables["b2"][None]
    s = z[:, 2] / (z[:, 2] + 0.1 * jnp.sign(z[:, 2]))
    by_hand = jnp.mean(a * variables["w2"][None, :, 2] * s[:, None], axis=0)
    np.testing.assert_allclose(found[0], by_hand, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[1], 0)  # another class has no relevance


@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_messages_of_all_neurons_add_up_to_the_relevance(photographs, earlier):
    """Through a flattening and a pool, where no neuron of one is an input of the other."""
    model = cnn()
    variables = model.init(jax.random.key(0))
    units = ju.structure(model.apply, variables, photographs)
    seed, rules = ju.seeds.label(1, times_logit=True), path._RULES
    total = flow.totals(model.apply, rules, units)(variables, photographs, seed)
    for later in range(earlier + 1, 4):
        count = [np.arange(units[i].out_features) for i in (earlier, later)]
        send = flow.messages(model.apply, rules, units, units[earlier], units[later])
        received = send(variables, photographs, seed, *count)
        expected = total.neurons[units[earlier].key]
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(received.sum(0), expected, rtol=1e-4, atol=1e-6)


def test_what_passes_a_layer_by_is_no_message_of_it():
    def skipping(variables, x):
        h = jax.nn.relu(x @ variables["w1"])
        return (h + jax.nn.relu(h @ variables["branch"])) @ variables["w2"]

    variables = {**dense_variables(), "branch": jax.random.normal(jax.random.key(8), (4, 4))}
    x = jax.random.normal(jax.random.key(0), (6, 5))
    units = ju.structure(skipping, variables, x)
    seed, rules, n = ju.seeds.label(0), ju.rules.epsilon(0.1), np.arange(4)
    total = flow.totals(skipping, rules, units)(variables, x, seed).neurons
    first, branch, head = units
    received = flow.messages(skipping, rules, units, first, branch)(variables, x, seed, n, n)
    seen = ju.lrp(skipping, rules)(variables, x, seed)
    np.testing.assert_allclose(
        received.sum(0), np.asarray(seen.inputs["branch"]).mean(0), rtol=1e-4, atol=1e-6
    )
    assert np.abs(received.sum(0) - total["w1"]).max() > 0.01
    parallel = flow.messages(skipping, rules, units, branch, head)
    np.testing.assert_allclose(
        parallel(variables, x, seed, n, np.arange(3)).sum(0), total["branch"], rtol=1e-4, atol=1e-6
    )


def test_branches_side_by_side_send_each_other_nothing():
    def fork(variables, x):
        left, right = x @ variables["left"], x @ variables["right"]
        return (jax.nn.relu(left) + jax.nn.relu(right)) @ variables["w2"]

    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"left": (5, 4), "right": (5, 4), "w2": (4, 3)}
    variables = {n: jax.random.normal(k, s) for (n, s), k in zip(shapes.items(), keys, strict=True)}
    x = jax.random.normal(jax.random.key(1), (6, 5))
    units = ju.structure(fork, variables, x)
    send = flow.messages(fork, ju.rules.epsilon(), units, units[0], units[1])
    received = send(variables, x, ju.seeds.argmax(), np.arange(4), np.arange(4))
    np.testing.assert_array_equal(received, 0)


def test_the_shares_of_edited_weights():
    before = dense_variables()
    x = jax.ShapeDtypeStruct((1, 5), jnp.float32)
    units = ju.structure(dense, before, x)
    after = {
        **before,
        "w1": before["w1"].at[:, 1].set(0).at[:2, 3].set(0),
        "w2": before["w2"].at[0, :].add(1.0).at[1, 2].set(0),
    }
    shares = flow.edited(before, after, units)
    # neuron 0 by its outgoing weights, 1 and 3 by their incoming ones
    np.testing.assert_allclose(shares["w1"], [1, 1, 0, 2 / 5])
    np.testing.assert_allclose(shares["w2"], [1 / 4, 1 / 4, 2 / 4])
    np.testing.assert_array_equal(flow.edited(before, before, units)["w1"], 0)
    with pytest.raises(ValueError, match="unlearned: expected the leaves and shapes of original"):
        flow.edited(before, {**after, "w2": after["w2"][:2]}, units)


# ---------------------------------------------------------------- path


def test_the_neurons_that_are_drawn():
    first, second = np.array([3.0, -4.0, 0.1, 0.5]), np.array([0.0, 0.0, -9.0, 0.0])
    np.testing.assert_array_equal(path.choose([first, second], 3), [0, 2, 1])
    np.testing.assert_array_equal(path.choose([first, second], 4), [0, 1, 2, 3])


def test_one_call_draws_the_path_before_and_after(tmp_path):
    model, trained, sets = toy.mlp(), toy.trained().variables, toy.sets()
    out = ju.unlearn(toy.method("neuron_path"), trained, sets, jax.random.key(0))
    x, y = toy.blobs()[2]
    x = x.astype(jnp.float32) / 255
    ju.save_path(tmp_path / "path.png", model, trained, out.variables, x[y == 1], 1, title="1")
    ju.save_path(tmp_path / "same.png", model, trained, trained, x[y == 1], 1, title="1")
    before, after = pixels(tmp_path / "same.png"), pixels(tmp_path / "path.png")
    assert before.shape == after.shape
    half, body = before.shape[1] // 2, slice(200, -150)

    def coloured(picture, side):
        part = picture[body, :half] if side == "left" else picture[body, half : 2 * half]
        return np.ptp(part.astype(int), axis=-1).mean()

    def dark(picture):
        return (picture[body] < 60).all(-1).sum()

    # one network twice looks the same twice; zeroed neurons carry nothing and have rings
    assert coloured(before, "left") == pytest.approx(coloured(before, "right"), rel=0.02)
    assert coloured(after, "right") < 0.7 * coloured(after, "left")
    assert dark(after) > 1.2 * dark(before)


def test_deep_networks_stand_one_above_the_other(tmp_path):
    model = ju.build("mlp", (6, 6, 1), 4, {"features": (6,) * 4})
    variables = model.init(jax.random.key(0))
    x = jnp.ones((2, 6, 6, 1))
    for count in (3, 5):
        file = tmp_path / f"{count}.png"
        ju.save_path(file, model, variables, variables, x, jnp.array([0, 1]), layers=count)
    wide, tall = pixels(tmp_path / "3.png").shape, pixels(tmp_path / "5.png").shape
    assert tall[0] > 1.5 * wide[0]


def test_a_plain_function_of_vectors(tmp_path):
    variables, x = dense_variables(), jax.random.normal(jax.random.key(0), (6, 5))
    edited = {**variables, "w2": variables["w2"].at[:, 0].set(0)}
    layers = [unit.key for unit in ju.structure(dense, variables, x)]
    ju.save_path(tmp_path / "path.png", dense, variables, edited, x, 0, layers=layers, neurons=2)
    assert pixels(tmp_path / "path.png").size


def test_mistakes_in_paths_are_named(tmp_path):
    variables, x = dense_variables(), jnp.ones((2, 5))
    file = tmp_path / "path.png"

    def draw(unlearned=variables, **options):
        ju.save_path(file, dense, variables, unlearned, x, 0, **options)

    with pytest.raises(ValueError, match="neurons: expected a positive number, got 0"):
        draw(neurons=0)
    with pytest.raises(ValueError, match="layers: expected at least 2, or keys, got 1"):
        draw(layers=1)
    with pytest.raises(ValueError, match="layers: expected some of w1, w2, got 'w3'"):
        draw(layers=["w1", "w3"])
    with pytest.raises(ValueError, match="layers: expected keys in execution order"):
        draw(layers=["w2", "w1"])
    with pytest.raises(ValueError, match=r"unlearned: expected finite relevance, got NaN.* w1"):
        draw({**variables, "w1": variables["w1"] * jnp.nan})
    assert not file.exists()


def test_matplotlib_waits_until_something_is_drawn():
    code = "import sys, jaxunlearn.pictures; print('matplotlib' in sys.modules)"
    here = {**os.environ, "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=here,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert out.stdout.strip() == "False", out.stderr
