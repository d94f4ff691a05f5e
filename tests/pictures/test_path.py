"""The path of a class: what is drawn is what was computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.attribution import lrp, starts, structure
from jaxunlearn.attribution.lrp import rules
from jaxunlearn.engine import unlearn
from jaxunlearn.models import build
from jaxunlearn.pictures import network, path
from tests import toy
from tests.pictures.reading import pixels


def dense(variables, x):
    return jax.nn.relu(x @ variables["w1"]) @ variables["w2"] + variables["b2"][None]


def dense_variables(sizes=(5, 4, 3)):
    keys = jax.random.split(jax.random.key(3), 3)
    return {
        "w1": jax.random.normal(keys[0], sizes[:2]),
        "w2": jax.random.normal(keys[1], sizes[1:]),
        "b2": jax.random.normal(keys[2], sizes[2:]),
    }


def test_messages_between_dense_layers_by_hand():
    variables, x = dense_variables(), jax.random.normal(jax.random.key(0), (6, 5))
    units = structure(dense, variables, x)
    seed = starts.label(2, times_logit=True)
    send = path.messages(dense, rules.epsilon(0.1), units, *units)
    found = send(variables, x, seed, np.arange(4), np.array([2, 0]))
    a = jax.nn.relu(x @ variables["w1"])
    z = a @ variables["w2"] + variables["b2"][None]
    s = z[:, 2] / (z[:, 2] + 0.1 * jnp.sign(z[:, 2]))
    by_hand = jnp.mean(a * variables["w2"][None, :, 2] * s[:, None], axis=0)
    np.testing.assert_allclose(found[0], by_hand, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[1], 0)  # another class has no relevance


@pytest.fixture(scope="module")
def stacked():
    """A network with a flattening and a pool, its inputs, and the relevance of its neurons."""
    model = build("cnn", (6, 6, 1), 4, {"channels": (3, 5), "features": 7})
    key = jax.random.key(0)
    variables, x = model.init(key), jax.random.uniform(key, (3, 6, 6, 1))
    units, seed = (structure(model.apply, variables, x), starts.label(1, times_logit=True))
    total = path.totals(model.apply, path._RULES, units)(variables, x, seed)
    return model.apply, variables, x, units, seed, total


@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_messages_of_all_neurons_add_up_to_the_relevance(stacked, earlier):
    """Through a flattening and a pool, where no neuron of one is an input of the other."""
    fn, variables, x, units, seed, total = stacked
    for later in range(earlier + 1, 4):
        count = [np.arange(units[i].out_features) for i in (earlier, later)]
        send = path.messages(fn, path._RULES, units, units[earlier], units[later])
        received = send(variables, x, seed, *count)
        expected = total.neurons[units[earlier].key]
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(received.sum(0), expected, rtol=1e-4, atol=1e-6)


def test_what_passes_a_layer_by_is_no_message_of_it():
    def skipping(variables, x):
        h = jax.nn.relu(x @ variables["w1"])
        return (h + jax.nn.relu(h @ variables["branch"])) @ variables["w2"]

    variables = {**dense_variables(), "branch": jax.random.normal(jax.random.key(8), (4, 4))}
    x = jax.random.normal(jax.random.key(0), (6, 5))
    units = structure(skipping, variables, x)
    seed, epsilon, n = starts.label(0), rules.epsilon(0.1), np.arange(4)
    first, branch, head = units
    received = path.messages(skipping, epsilon, units, first, branch)(variables, x, seed, n, n)
    seen = jax.jit(lrp(skipping, epsilon))(variables, x, seed)
    total = {key: np.asarray(values).mean(0) for key, values in seen.neurons.items()}
    np.testing.assert_allclose(
        received.sum(0), np.asarray(seen.inputs["branch"]).mean(0), rtol=1e-4, atol=1e-6
    )
    assert np.abs(received.sum(0) - total["w1"]).max() > 0.01
    parallel = path.messages(skipping, epsilon, units, branch, head)
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
    units = structure(fork, variables, x)
    send = path.messages(fork, rules.epsilon(), units, units[0], units[1])
    received = send(variables, x, starts.argmax(), np.arange(4), np.arange(4))
    np.testing.assert_array_equal(received, 0)


def test_the_shares_of_edited_weights():
    before = dense_variables()
    x = jax.ShapeDtypeStruct((1, 5), jnp.float32)
    units = structure(dense, before, x)
    after = {
        **before,
        "w1": before["w1"].at[:, 1].set(0).at[:2, 3].set(0),
        "w2": before["w2"].at[0, :].add(1.0).at[1, 2].set(0),
    }
    shares = path.edited(before, after, units)
    # neuron 0 by its outgoing weights, 1 and 3 by their incoming ones
    np.testing.assert_allclose(shares["w1"], [1, 1, 0, 2 / 5])
    np.testing.assert_allclose(shares["w2"], [1 / 4, 1 / 4, 2 / 4])
    np.testing.assert_array_equal(path.edited(before, before, units)["w1"], 0)
    with pytest.raises(ValueError, match="unlearned: expected the leaves and shapes of original"):
        path.edited(before, {**after, "w2": after["w2"][:2]}, units)


def test_the_neurons_that_are_drawn():
    first, second = np.array([3.0, -4.0, 0.1, 0.5]), np.array([0.0, 0.0, -9.0, 0.0])
    np.testing.assert_array_equal(path.choose([first, second], 3), [0, 2, 1])
    np.testing.assert_array_equal(path.choose([first, second], 4), [0, 1, 2, 3])


def test_one_call_draws_the_path_before_and_after(tmp_path):
    model, trained, sets = toy.mlp(), toy.trained().variables, toy.sets()
    out = unlearn(toy.method("neuron_path"), trained, sets, jax.random.key(0))
    x, y = toy.blobs()[2]
    x = x.astype(jnp.float32) / 255
    path.save_path(tmp_path / "path.png", model, trained, out.variables, x[y == 1], 1, title="1")
    path.save_path(tmp_path / "same.png", model, trained, trained, x[y == 1], 1, title="1")
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


@pytest.mark.usefixtures("coarse")
def test_deep_networks_stand_one_above_the_other(tmp_path):
    image, shapes = np.ones((4, 4, 3)), []
    for count in (3, 4, 5):
        three = np.arange(3)
        column = network.Column("fc", "", three, three - 1.0, three / 2)
        columns = [column] * count
        panel = network.Panel("original", "", image, columns, [np.ones((3, 3))] * (count - 1))
        network.draw(tmp_path / "path.png", [panel, panel._replace(title="unlearned")], None)
        shapes.append(pixels(tmp_path / "path.png").shape)
    assert shapes[1][0] == shapes[0][0]
    assert shapes[2][0] > 1.5 * shapes[0][0]


def test_as_many_layers_as_are_wanted_and_labels_of_several_classes(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(network, "draw", lambda path, panels, title: drawn.append(panels))
    model = build("mlp", (6, 6, 1), 4, {"features": (6,) * 4})
    variables, x = model.init(jax.random.key(0)), jnp.ones((2, 6, 6, 1))
    path.save_path(tmp_path / "3.png", model, variables, variables, x, jnp.array([0, 1]), layers=3)
    for panel in drawn[0]:
        assert [column.name for column in panel.columns] == ["fc1", "fc3", "head"]
        assert panel.about.startswith("the labels: predicted for ")


@pytest.mark.usefixtures("coarse")
def test_a_plain_function_of_vectors(tmp_path):
    variables, x = dense_variables(), jax.random.normal(jax.random.key(0), (6, 5))
    edited = {**variables, "w2": variables["w2"].at[:, 0].set(0)}
    layers = [unit.key for unit in structure(dense, variables, x)]
    path.save_path(tmp_path / "path.png", dense, variables, edited, x, 0, layers=layers, neurons=2)
    assert pixels(tmp_path / "path.png").size


def test_mistakes_in_paths_are_named(tmp_path):
    variables, x = dense_variables(), jnp.ones((2, 5))
    file = tmp_path / "path.png"

    def draw(unlearned=variables, **options):
        path.save_path(file, dense, variables, unlearned, x, 0, **options)

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
