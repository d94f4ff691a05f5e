"""Neuronal paths on networks of many kinds: what is edited, what is told, and that it forgets."""

import functools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxunlearn as ju
from jaxunlearn.attribution import head
from jaxunlearn.core.errors import NoEffectError
from jaxunlearn.core.types import Info, Needs, Unlearner
from jaxunlearn.jaxprs.structure import logits
from jaxunlearn.methods.neuron_path import weights as sites
from jaxunlearn.pictures import path as pictures
from tests import toy
from tests.methods.test_neuron_path import drawn, edited, passes

KEY = jax.random.key(1)


class Tokens(nn.Module):
    """A vision transformer or a mixer: blocks that add to a stream, a norm, a mean, a head."""

    attention: bool
    pool: str = "mean"
    classes: int = 10
    width: int = 16

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (4, 4), strides=(4, 4), name="patch")(x)
        x = x.reshape(len(x), -1, self.width)
        x = x + self.param("place", nn.initializers.normal(0.5), (1, *x.shape[1:]))
        y = nn.LayerNorm(name="norm1")(x)
        if self.attention:
            x = x + nn.MultiHeadDotProductAttention(2, name="attention")(y, y)
        else:
            y = nn.gelu(nn.Dense(8, name="mix")(y.swapaxes(1, 2)))
            x = x + nn.Dense(x.shape[1], name="back")(y).swapaxes(1, 2)
        y = nn.gelu(nn.Dense(2 * self.width, name="up")(nn.LayerNorm(name="norm2")(x)))
        x = x + nn.Dense(self.width, name="down")(y)
        x = nn.LayerNorm(name="norm")(x)
        x = x[:, 0] if self.pool == "first" else x.mean(axis=1)
        return nn.Dense(self.classes, name="head")(x)


IMAGE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
VIT, MIXER = Tokens(attention=True), Tokens(attention=False)


def layers_of(apply, variables, layers="all", x=IMAGE, weights=None):
    """The layers that are edited, by the last words of their names, and their places."""
    found = sites.find_layers(apply, ju.lrp(apply), variables, x, layers, weights, biases=False)
    names = [layer.name.removeprefix("inputs of ").removesuffix("/kernel") for layer in found]
    return {name.split("/")[-1]: layer for name, layer in zip(names, found, strict=True)}


def shapes(module, like=IMAGE):
    return jax.eval_shape(module.init, KEY, like)


# ---- what feeds the head decides


@pytest.mark.parametrize("module", [VIT, MIXER, Tokens(True, pool="first")], ids=str)
def test_behind_a_norm_the_class_is_edited_and_no_writer_to_the_stream(module):
    found = layers_of(module.apply, shapes(module))
    last = found.pop("head")
    assert last.signed
    (place,) = last.places
    assert place.classes == 1, "the class's weights alone"
    assert "up" in found
    assert not {"patch", "out", "down", "back"} & set(found), "all behind reads what they write"
    assert all(layer.read_by for layer in found.values())
    assert "patch" in layers_of(module.apply, shapes(module), ("patch",)), "where it is named"


def residual_sum(v, x):
    """A stream without a norm: a sum of branches that may be negative."""
    y = x @ v["a"]
    return (y + jax.nn.relu(y @ v["b"]) @ v["c"]) @ v["head"]


def rectified_sum(v, x):
    y = jax.nn.relu(x @ v["a"])
    return jax.nn.relu(y + y @ v["b"]) @ v["head"]


STREAM = {"a": drawn(6, 8), "b": drawn(8, 8), "c": drawn(8, 8), "head": drawn(8, 4)}


def test_a_rectified_sum_keeps_the_published_edit_and_a_signed_one_does_not():
    x = jax.ShapeDtypeStruct((1, 6), jnp.float32)
    rectified = layers_of(rectified_sum, STREAM, "last", x)["head"]
    assert [place.classes for place in rectified.places] == [None]
    assert not rectified.signed
    signed = layers_of(residual_sum, STREAM, "last", x)["head"]
    assert [place.classes for place in signed.places] == [1]
    named = layers_of(residual_sum, STREAM, "last", x, weights=("outgoing",))["head"]
    assert [place.classes for place in named.places] == [None]


@functools.cache
def digits():
    data = ju.data.load_dataset(ju.data.DataConfig(name="digits"))
    x, test_x = (np.asarray(part, np.float32) / 255 for part in (data.train_x, data.test_x))
    unseen, test = (test_x[:400], data.test_y[:400]), (test_x[400:], data.test_y[400:])
    return ju.make_sets(x, data.train_y, ju.forget_class(6), unseen=unseen, test=test)


@pytest.mark.parametrize("module", [VIT, MIXER], ids=["vit", "mixer"])
def test_a_trained_one_forgets_and_keeps_the_rest(module):
    model = ju.functionalize(module, jnp.zeros((1, 8, 8, 1)))
    config = ju.TrainConfig(epochs=12, learning_rate=5e-3, batch_size=64)
    original = ju.train(model, digits().train, KEY, config=config).variables
    methods = [ju.neuron_path(model), ju.neuron_path(model, layers="all")]
    made = [one for one, _ in passes(methods, original, digits())]

    @jax.jit
    def accuracies(variables):
        parts = (digits().test_forget, digits().test_retain)
        examples = [
            (part.examples.x[part.indices], part.examples.y[part.indices]) for part in parts
        ]
        return [jnp.mean(model.apply(variables, x).argmax(-1) == y) for x, y in examples]

    before = accuracies(original)
    assert min(before) > 0.8
    for variables in made:
        forget, retain = accuracies(variables)
        assert forget < 0.15
        assert retain > before[1] - 0.06


# ---- heads that are convolutions


def all_conv(behind, first=False, relu=False):
    """A 1x1 convolution as head, before the mean over positions or behind it."""
    layout = ("NCHW", "OIHW", "NCHW") if first else ("NHWC", "HWIO", "NHWC")
    positions = (2, 3) if first else (1, 2)

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)

    def net(v, x):
        x = jnp.moveaxis(x, -1, 1) if first else x
        x = jax.nn.relu(conv(jax.nn.relu(conv(x, v["a"])), v["b"]))
        if behind:
            return conv(x.mean(positions, keepdims=True), v["head"]).reshape(len(x), -1)
        x = conv(x, v["head"])
        return (jax.nn.relu(x) if relu else x).mean(positions)

    return net


def pooled_dense(v, x):
    """The same network with a dense head behind the mean."""
    for name in ("a", "b"):
        x = jax.lax.conv_general_dilated(
            x, v[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x)
    return x.mean((1, 2)) @ v["head"][0, 0]


def rng_drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


CONV = {"a": rng_drawn(1, 3, 3, 2, 5), "b": rng_drawn(2, 3, 3, 5, 6)}
CONV["head"] = rng_drawn(3, 1, 1, 6, 4)
TURNED = {name: leaf.transpose(3, 2, 0, 1) for name, leaf in CONV.items()}
PHOTOS = rng_drawn(4, 8, 5, 5, 2)
LAYERS = ({"layers": "last"}, {"layers": "all"}, {"layers": "all", "weights": ("outgoing",)})


def test_a_head_that_is_a_convolution_is_edited_as_a_dense_one():
    """Both ways round and in both layouts: the mean over positions is linear."""
    wanted = edited(pooled_dense, CONV, PHOTOS, *LAYERS, epsilon=1e-6)
    for behind in (False, True):
        for first in (False, True):
            given = TURNED if first else CONV
            found = edited(all_conv(behind, first), given, PHOTOS, *LAYERS, epsilon=1e-6)
            for one, dense in zip(found, wanted, strict=True):
                turned = {
                    name: leaf.transpose(2, 3, 1, 0) if first else leaf
                    for name, leaf in one.items()
                }
                chex.assert_trees_all_equal(turned, dense)


def test_a_head_that_is_rectified_is_edited():
    (found,) = edited(all_conv(False, relu=True), CONV, PHOTOS, {"layers": "last"})
    assert (np.asarray(found["head"]) == 0).any()


# ---- log-probabilities


def shifted(fn, how):
    def net(v, x):
        z = fn(v, x)
        if how == "log_softmax":
            return jax.nn.log_softmax(z)
        if how == "by hand":
            return z - jax.nn.logsumexp(z, axis=-1, keepdims=True)
        return z - jnp.max(z, axis=-1, keepdims=True)

    return net


@pytest.mark.parametrize("how", ["log_softmax", "by hand", "maximum"])
def test_log_probabilities_are_as_good_as_logits(how):
    cases = [(all_conv(False), CONV, PHOTOS), (residual_sum, STREAM, drawn(8, 6))]
    for fn, variables, x in cases:
        choices = [{}, {"layers": "all", "start": "margin"}]
        plain = edited(fn, variables, x, *choices)
        chex.assert_trees_all_close(edited(shifted(fn, how), variables, x, *choices), plain)
        unit = head(shifted(fn, how), variables, x)
        assert unit == head(fn, variables, x)
        np.testing.assert_allclose(logits(shifted(fn, how))(variables, x), fn(variables, x))


def test_probabilities_are_no_logits():
    with pytest.raises(ValueError, match="expected logits that are the outputs of the last"):
        edited(lambda v, x: jax.nn.softmax(residual_sum(v, x)), STREAM, drawn(8, 6))


@pytest.mark.parametrize("start", ["argmax", "label", "margin"])
def test_what_speaks_for_the_class_is_edited_whatever_the_sign_of_the_logit(start):
    """A shift of all logits changes no prediction, and no choice of neurons."""

    def net(shift):
        return lambda v, x: jax.nn.relu(x @ v["a"]) @ v["head"] + shift

    options = {"start": start, "epsilon": 0, "samples": 1}
    found = [edited(net(shift), STREAM, drawn(8, 6), **options) for shift in (0.0, 50.0, -50.0)]
    for one in found[1:]:
        chex.assert_trees_all_equal(one, found[0])


# ---- what tells nothing, or does nothing, is told

UNLIKE = {"specificity": 1.0, "samples": 12}


def refused(method, variables=None, **options):
    with pytest.raises(NoEffectError, match="expected a method that changes the model") as error:
        ju.unlearn(method, variables or toy.trained().variables, toy.sets(), KEY, **options)
    return str(error.value)


@pytest.mark.parametrize("layers", ["last", "all", ("fc1",)])
@pytest.mark.parametrize("calibrate", [False, True])
def test_votes_that_tell_nothing_fall_back_to_relevance(layers, calibrate):
    given = toy.trained().variables
    common = {"neurons": 3, "layers": layers, "calibrate": calibrate, "target": 1.0, **UNLIKE}
    many = {} if layers == "last" else {"per_sample": 50}
    votes = ju.neuron_path(toy.mlp(), **{"per_sample": 16, **common, **many})
    with pytest.warns(UserWarning, match="votes tell no neuron from another; ranked there by rel"):
        ((edited, metrics),) = passes([votes], given, toy.sets())
    ranked = ju.neuron_path(toy.mlp(), score="relevance", **common)
    ((wanted, _),) = passes([ranked], given, toy.sets())
    chex.assert_trees_all_equal(edited, wanted)
    assert (np.asarray(edited["params"]["fc1"]["kernel"]) == 0).any() or layers == "last"
    assert metrics["layers_by_relevance"] == (2 if layers == "all" else 1)


def test_votes_that_tell_something_are_counted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method = ju.neuron_path(toy.mlp(), neurons=3, per_sample=5, **UNLIKE)
        ((_, metrics),) = passes([method], toy.trained().variables, toy.sets())
    assert "layers_by_relevance" not in metrics


def stuck(history=("loss",)):
    """A method that gives back what it got."""

    def step(state, batches, key, count):
        return state, Info({name: jnp.float32(1) for name in history}, jnp.bool_(True))

    return Unlearner(lambda v, sets, key: v, step, lambda state: state, Needs(forget=True))


def test_a_method_that_changes_nothing_is_an_error():
    apart = ju.neuron_path(toy.mlp(), per_sample=5, neurons=4, specificity=1e6, samples=8)
    refused(apart)
    refused(stuck(), steps=2)
    refused(ju.engine.chain(stuck(), ju.finetune(toy.mlp())), steps=2)
    refused(stuck(), {"w": jnp.array([jnp.nan, 1.0])}, steps=1)
    sets = ju.data.stack_sets([toy.sets(ju.forget_class(label)) for label in (0, 1)])
    given = toy.trained().variables
    with pytest.raises(NoEffectError, match="bit for bit for 2 of 2 members"):
        ju.unlearn_many(stuck(), given, sets, jax.random.split(KEY, 2), steps=1)


def test_a_target_that_is_not_reached_is_a_warning():
    """No edit of a single neuron's sign makes these forget."""
    common = {"per_sample": 2, "neurons": 1, "edit": "scale", "scale": 0.99, "samples": 8}
    method = ju.neuron_path(toy.mlp(), calibrate=True, **common)
    given = toy.trained().variables
    with pytest.warns(UserWarning, match="target: expected an accuracy on unseen examples of at"):
        out = ju.unlearn(method, given, toy.sets(), KEY)
    assert out.history["accuracy_unseen"][-1] > 0.05
    sets = ju.data.stack_sets([toy.sets(ju.forget_class(label)) for label in (0, 1)])
    with pytest.warns(UserWarning, match="member [01]: target: expected an accuracy on unseen"):
        ju.unlearn_many(method, given, sets, jax.random.split(KEY, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reached = ju.neuron_path(toy.mlp(), calibrate=True, target=1.0, **common)
        ju.unlearn(reached, given, toy.sets(), KEY)


# ---- an edit that leaves no zeros


@pytest.mark.parametrize("weights", [("class",), ("outgoing",), ("incoming", "class")])
def test_resampled_weights_are_draws_from_the_others_of_their_kernel(weights):
    variables = {"a": rng_drawn(5, 6, 40), "head": rng_drawn(6, 40, 4)}
    net = lambda v, x: jax.nn.relu(x @ v["a"]) @ v["head"]  # noqa: E731
    common = {"weights": weights, "neurons": 7, "per_sample": 7}
    zero, drawn_anew = edited(net, variables, drawn(8, 6), {}, {"edit": "resample"}, **common)
    for name, before in variables.items():
        masked = np.asarray(zero[name]) == 0
        after = np.asarray(drawn_anew[name])
        np.testing.assert_array_equal(after[~masked], np.asarray(before)[~masked])
        assert np.isin(after[masked], np.asarray(before)[~masked]).all()
        assert not (after == 0).any()
    assert masked.any()


def test_resampling_keeps_the_distribution_and_follows_its_key():
    leaf, mask = rng_drawn(7, 300, 80) + 1, jnp.arange(80) < 40
    masks = {"w": mask[None, :]}
    one, same, other = (
        sites.edit_weights({"w": leaf}, masks, "resample", 1.0, jax.random.key(seed))["w"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one[:, :40] != other[:, :40]).mean() > 0.99
    for share in (0.1, 0.5, 0.9):
        found, wanted = (float(jnp.quantile(part, share)) for part in (one[:, :40], leaf[:, 40:]))
        assert abs(found - wanted) < 0.1
    everything = {"w": jnp.ones((1, 80), bool)}
    found = sites.edit_weights({"w": leaf}, everything, "resample", 1.0, KEY)["w"]
    assert np.isin(found, leaf).all()


# ---- pictures and the order of layers


def turned_net(v, x):
    """Features in front of the examples, kernels as PyTorch stores them, several axes."""
    h = jax.nn.relu(v["a"] @ x.T)
    h = jax.nn.relu(h.T @ v["b"].T).reshape(len(x), 4, 3)
    h = jax.nn.relu(jnp.einsum("bij,ijkl->bkl", h, v["c"]))
    return jnp.einsum("bkl,nkl->bn", h, v["d"])


def test_a_path_shows_edits_of_kernels_of_any_orientation():
    shapes = {"a": (9, 6), "b": (12, 9), "c": (4, 3, 2, 5), "d": (7, 2, 5)}
    variables = {name: rng_drawn(len(shape), *shape) for name, shape in shapes.items()}
    units = ju.attribution.structure(turned_net, variables, drawn(8, 6))
    assert [unit.out_axes for unit in units] == [(0,), (0,), (2, 3), (0,)]
    after = {**variables, "a": variables["a"].at[2].set(0), "d": variables["d"].at[3].set(0)}
    after["c"] = variables["c"].at[:, :, 1, 2].set(0)
    rings = pictures.edited(variables, after, units)
    assert {name: np.flatnonzero(ring).tolist() for name, ring in rings.items()} == {
        "a": [2], "b": [], "c": [7], "d": [3],
    }  # fmt: skip
    # attention: neurons of a head lie along two axes of a kernel
    given = VIT.init(KEY, jnp.zeros(IMAGE.shape))
    units = ju.attribution.structure(VIT.apply, given, jnp.zeros(IMAGE.shape))
    axes = {unit.kernel.split("/")[-2]: unit.out_axes for unit in units}
    assert axes["query"] == axes["key"] == axes["value"] == (1, 2)


def deep(v, x):
    """Names that are not in the order of the layers."""
    for name in ("z", "m", "a"):
        x = jax.nn.relu(x @ v[name])
    return x @ v["b"]


def test_layers_keep_their_order_under_jit():
    variables, order = {name: rng_drawn(8, 6, 6) for name in "abmz"}, ["z", "m", "a", "b"]
    for wrap in (lambda fn: fn, jax.jit):
        found = wrap(ju.lrp(deep))(variables, drawn(8, 6))
        assert list(found.neurons) == list(found.inputs) == list(found.ledger) == order
    convs = [unit.key for unit in ju.attribution.structure(all_conv(False), CONV, PHOTOS)]
    assert list(jax.jit(ju.lrp(all_conv(False)))(CONV, PHOTOS).neurons) == convs
