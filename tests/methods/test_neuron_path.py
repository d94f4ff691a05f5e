"""Neuronal paths: every choice against cases worked out by hand or in NumPy.

Most of the time of such tests is compilation: choices on one network are made in one program.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.core.types import Batches, Sets
from jaxunlearn.data.batches import draw_batches
from jaxunlearn.data.sets import request
from jaxunlearn.engine.sharding import make_sharding
from jaxunlearn.methods.neuron_path import budget as budgets
from tests import toy

KEY = jax.random.key(1)


def passes(methods, variables, sets):
    """The model that each method makes in a pass over the sets, and the diagnostics of its step.

    In one program and without the runner, with which the methods run at the end of this file.
    """

    def one(method, variables, sets):
        needs = method.needs
        names = [name for name in Batches._fields if getattr(needs, name)]
        shown = Sets(**{name: getattr(sets, name) for name in names})
        state = method.init(variables, shown, KEY)
        batches = draw_batches(shown, KEY, jnp.int32(0), needs.samples, needs)
        state, info = method.step(state, batches, KEY, jnp.int32(0))
        return method.result(state), info.metrics

    return jax.jit(lambda *given: [one(method, *given) for method in methods])(variables, sets)


class Choices:
    """Models that a network becomes by several choices, all made when one is first looked up."""

    def __init__(self, apply, variables, sets, common, choices):
        self.apply, self.variables, self.sets, self.common = apply, variables, sets, common
        self.choices = [{**common, **one} for one in choices]

    @functools.cached_property
    def made(self):
        methods = [ju.neuron_path(self.apply, **one) for one in self.choices]
        return passes(methods, self.variables(), self.sets())

    def __call__(self, **options):
        wanted = {**self.common, **options}
        if wanted in self.choices:
            return self.made[self.choices.index(wanted)][0]
        return passes([ju.neuron_path(self.apply, **wanted)], self.variables(), self.sets())[0][0]


# ---- as published: a network small enough to do by hand


def by_hand(variables, x):
    hidden = jax.nn.relu(x @ variables["params"]["fc"]["w"] + variables["params"]["fc"]["b"][None])
    return hidden @ variables["params"]["out"]["w"] + variables["params"]["out"]["b"][None]


HAND = {
    "params": {
        "fc": {"w": jnp.eye(4), "b": jnp.full(4, 0.5)},
        "out": {
            # neurons 0 and 1 speak for class 0, 2 and 3 for class 1
            "w": jnp.array([[4.0, 0.0], [3.0, 0.5], [0.5, 3.0], [0.0, 4.0]]),
            "b": jnp.zeros(2),
        },
    }
}


def hand_sets():
    x = np.array([[1, 1, 0, 0], [2, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 2]], np.float32)
    y = np.array([0, 0, 1, 1])
    return ju.make_sets(x, y, ju.forget_class(0), unseen=(x, y))


hand_made = Choices(
    by_hand, lambda: HAND, hand_sets, {"per_sample": 2, "neurons": 2, "samples": 2},
    [
        {}, {"weights": ("class",)}, {"weights": ("outgoing",)}, {"weights": ("incoming",)},
        {"neurons": 1, "weights": ("outgoing",)},
        {"per_sample": 1, "neurons": 4, "weights": ("outgoing",)},
        {"edit": "gaussian", "weights": ("class",)}, {"edit": "laplace", "weights": ("class",)},
        {"edit": "sign"}, {"edit": "scale", "scale": 0.25},
    ],
)  # fmt: skip


def hand_run(**options):
    return hand_made(**options)["params"]


def test_relevant_neurons_lose_incoming_and_class_weights():
    params = hand_run()
    np.testing.assert_array_equal(params["fc"]["w"], np.diag([0, 0, 1, 1]))
    np.testing.assert_array_equal(params["out"]["w"], [[0, 0], [0, 0.5], [0.5, 3], [0, 4]])
    np.testing.assert_array_equal(params["fc"]["b"], HAND["params"]["fc"]["b"])


@pytest.mark.parametrize(
    ("weights", "out"),
    [
        (("class",), [[0, 0], [0, 0.5], [0.5, 3], [0, 4]]),
        (("outgoing",), [[0, 0], [0, 0], [0.5, 3], [0, 4]]),
        (("incoming",), [[4, 0], [3, 0.5], [0.5, 3], [0, 4]]),
    ],
)
def test_the_edited_weights_are_a_choice(weights, out):
    params = hand_run(weights=weights)
    np.testing.assert_array_equal(params["out"]["w"], out)
    untouched = (np.asarray(params["fc"]["w"]) == np.eye(4)).all()
    assert untouched == ("incoming" not in weights)


def test_equal_counts_are_ordered_by_relevance():
    params = hand_run(neurons=1, weights=("outgoing",))
    np.testing.assert_array_equal(params["out"]["w"][:2], [[0, 0], [3, 0.5]])


def test_neurons_never_noted_are_not_edited():
    params = hand_run(per_sample=1, neurons=4, weights=("outgoing",))
    np.testing.assert_array_equal(params["out"]["w"][1:], HAND["params"]["out"]["w"][1:])


@pytest.mark.parametrize("edit", ["gaussian", "laplace"])
def test_noise_is_added_to_the_same_weights(edit):
    change = np.asarray(
        hand_run(edit=edit, weights=("class",))["out"]["w"] - HAND["params"]["out"]["w"]
    )
    assert (change[:2, 0] != 0).all()
    assert not change[2:].any()
    assert not change[:, 1].any()


def test_noise_has_the_asked_scale():
    wide = {"params": {"w1": jnp.ones((3, 4000)), "head": jnp.ones((4000, 2))}}
    apply = lambda v, x: jax.nn.relu(x @ v["params"]["w1"]) @ v["params"]["head"]  # noqa: E731
    x, y = np.ones((4, 3), np.float32), np.array([0, 0, 1, 1])
    sets = ju.make_sets(x, y, ju.forget_class(0), unseen=(x, y))
    common = {"per_sample": 4000, "neurons": 4000, "weights": ("outgoing",), "scale": 2.0}
    methods = [ju.neuron_path(apply, edit=edit, **common) for edit in ("gaussian", "laplace")]
    made = passes(methods, wide, sets)
    for (variables, _), spread in zip(made, (2.0, 2.0 * 2**0.5), strict=True):
        np.testing.assert_allclose(np.std(variables["params"]["head"] - 1), spread, rtol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neurons": 0}, "neurons: expected a positive number, got 0"),
        ({"edit": "burn"}, "edit: expected one of"),
        ({"start": "loss"}, "start: expected one of .'argmax', 'label', 'margin'., got 'loss'"),
        ({"epsilon": -1.0}, "epsilon: expected a number of 0 or more"),
        ({"weights": ("all",)}, "weights: expected some of"),
        ({"scale": -1}, "scale: expected a positive number, got -1"),
        ({"scale": 0.0}, "scale: expected a positive number, got 0.0"),
        ({"neurons": 5}, "expected at most the 4 inputs of params/out/w, got 5"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        hand_run(**options)


@functools.cache
def residual():
    model = ju.models.build("resnet8", toy.SHAPE, 4, {"width": 4})
    return model, jax.jit(model.init)(KEY)


RESIDUAL = {"per_sample": 2, "samples": 8}

residual_made = Choices(
    lambda variables, x: residual()[0].apply(variables, x), lambda: residual()[1], toy.sets,
    RESIDUAL,
    [
        {"neurons": 3},
        {"share": 0.5, "layers": "all"},
        {"share": 0.5, "layers": ("inputs of params/head/kernel",)},
        {"share": 0.5, "layers": "all", "weights": ("outgoing",)},
    ],
)  # fmt: skip


def test_a_residual_network_has_no_single_producer():
    with pytest.raises(ValueError, match="not the units of one layer"):
        residual_made(neurons=3, weights=("incoming",))
    head = np.asarray(residual_made(neurons=3)["params"]["head"]["kernel"])
    assert (head == 0).all(axis=1).sum() == 3, "as published: all outgoing weights of S"


# ---- however the kernels are stored


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


def dense_net(variables, x):
    return jax.nn.relu(x @ variables["fc"]) @ variables["head"]


def conv_net(variables, x):
    y = jax.lax.conv_general_dilated(
        x, variables["fc"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(y).mean((1, 2)) @ variables["head"]


def torch_net(variables, x):
    """The same two, stored as PyTorch stores them."""
    if x.ndim == 2:
        return jax.nn.relu(x @ variables["fc"].T) @ variables["head"].T
    y = jax.lax.conv_general_dilated(
        x, variables["fc"], (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
    return jax.nn.relu(y).mean((1, 2)) @ variables["head"].T


STORED = {
    # network, its kernels, examples, how PyTorch orders the axes of the first kernel
    "dense": (dense_net, {"fc": (6, 5), "head": (5, 4)}, (8, 6), (1, 0)),
    "square": (dense_net, {"fc": (4, 4), "head": (4, 4)}, (8, 4), (1, 0)),
    "conv": (conv_net, {"fc": (3, 3, 2, 5), "head": (5, 4)}, (8, 6, 6, 2), (3, 2, 0, 1)),
    "square conv": (conv_net, {"fc": (4, 4, 4, 4), "head": (4, 4)}, (8, 5, 5, 4), (3, 2, 0, 1)),
}


def edited(apply, variables, x, *choices, **options):
    """The model, or the models of several choices."""
    y = np.array([1, 1, 1, 1, 2, 2, 0, 0])
    sets = ju.make_sets(np.asarray(x), y, ju.forget_class(1), unseen=(np.asarray(x), y))
    options = {"per_sample": 2, "neurons": 2, "samples": 4} | options
    methods = [ju.neuron_path(apply, **{**options, **one}) for one in choices or ({},)]
    made = [variables for variables, _ in passes(methods, variables, sets)]
    return made if choices else made[0]


PARTS = (None, ("incoming",), ("outgoing",), ("class",))


@functools.cache
def stored_both_ways(case):
    """The kernels as PyTorch stores them, and both networks by the part that is edited."""
    apply, shapes, examples, order = STORED[case]
    variables, x = {name: drawn(*shape) for name, shape in shapes.items()}, drawn(*examples)
    stored = {"fc": variables["fc"].transpose(order), "head": variables["head"].T}
    choices = [{"weights": weights} for weights in PARTS]
    plain, torch = edited(apply, variables, x, *choices), edited(torch_net, stored, x, *choices)
    return stored, dict(zip(PARTS, zip(plain, torch, strict=True), strict=True))


@pytest.mark.parametrize("weights", PARTS)
@pytest.mark.parametrize("case", STORED)
def test_the_same_weights_are_edited_however_they_are_stored(case, weights):
    order = STORED[case][-1]
    stored, found = stored_both_ways(case)
    plain, torch = found[weights]
    np.testing.assert_array_equal(torch["fc"], plain["fc"].transpose(order))
    np.testing.assert_array_equal(torch["head"], plain["head"].T)

    axes = tuple(range(1, stored["fc"].ndim))
    neurons = (np.asarray(torch["fc"]) == 0).all(axis=axes)
    assert neurons.sum() == (2 if weights in (None, ("incoming",)) else 0)
    gone = np.asarray(torch["head"]) == 0  # [classes, neurons]
    assert gone[1].sum() == (0 if weights == ("incoming",) else 2)
    assert gone[0].sum() == (2 if weights == ("outgoing",) else 0)
    if weights is None:
        np.testing.assert_array_equal(gone[1], neurons)


def test_noise_falls_on_the_axis_of_the_neurons():
    variables = {"fc": drawn(4, 4), "head": drawn(4, 4).T}
    noisy = edited(torch_net, variables, drawn(8, 4), edit="gaussian", weights=("outgoing",))
    moved = np.asarray(noisy["head"] != variables["head"])
    assert moved.all(axis=0).sum() == 2
    assert moved.sum() == 8


def test_a_kernel_that_is_producer_and_head_is_edited_as_both():
    tied = lambda v, x: jax.nn.relu(x @ v["w"]) @ v["w"].T  # noqa: E731
    w = drawn(4, 4)
    found = edited(tied, {"w": w}, drawn(8, 4), weights=("outgoing",))["w"]
    assert (np.asarray(found) == 0).all(axis=0).sum() == 2, "columns of w are rows of w.T"
    with pytest.raises(ValueError, match="the units of w do not lie along one axis"):
        edited(tied, {"w": w}, drawn(8, 4), weights=("incoming",))

    twice = lambda v, x: jax.nn.relu(x @ v["w"]) @ v["w"]  # noqa: E731
    found = np.asarray(edited(twice, {"w": w}, drawn(8, 4), weights=("incoming", "outgoing"))["w"])
    gone = (found == 0).all(axis=0)
    assert gone.sum() == 2
    np.testing.assert_array_equal((found == 0).all(axis=1), gone)


CONSTANT = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda v, h: h @ CONSTANT, r"got constant:dot_general with axes None and None"),
        (lambda v, h: h @ (v["head"] + 1), r"got head with axes None and None"),
        (lambda v, h: h @ v["flat"].reshape(4, 3), r"got flat with axes None and None"),
        (lambda v, h: (v["head"].T @ h.T).T, r"expected head to read \[1, 4\].*got \[4, 1\]"),
    ],
    ids=["constant", "shifted", "flat", "data turned"],
)
def test_a_head_that_cannot_be_edited_is_refused(head, message):
    variables = {"fc": drawn(4, 4), "head": drawn(4, 3), "flat": drawn(12)}
    with pytest.raises(ValueError, match=message):
        edited(lambda v, x: head(v, jax.nn.relu(x @ v["fc"])), variables, drawn(8, 4))


def test_a_producer_without_an_axis_is_refused_or_left_alone():
    apply = lambda v, x: jax.nn.relu(x @ v["fc"].reshape(4, 4)) @ v["head"]  # noqa: E731
    variables = {"fc": drawn(16), "head": drawn(4, 3)}
    with pytest.raises(ValueError, match="'outgoing' or 'class', as the units of fc do not lie"):
        edited(apply, variables, drawn(8, 4), weights=("incoming",))
    found = edited(apply, variables, drawn(8, 4))
    np.testing.assert_array_equal(found["fc"], variables["fc"])
    assert (np.asarray(found["head"]) == 0).all(axis=1).sum() == 2, "all outgoing weights"


# ---- paths: all layers of a network, against NumPy


def deep_net(variables, x):
    for name in ("fc1", "fc2"):
        x = jax.nn.relu(x @ variables[name]["w"] + variables[name]["b"][None])
    return x @ variables["head"]["w"] + variables["head"]["b"][None]


def deep_variables():
    """In every layer two neurons or more have positive relevance: no vote goes to equals."""
    rng = np.random.default_rng(39)
    sizes = {"fc1": (4, 8), "fc2": (8, 6), "head": (6, 3)}
    return {
        name: {"w": drawn_from(rng, *shape) / 2, "b": jnp.ones(shape[1])}
        for name, shape in sizes.items()
    }


def drawn_from(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def deep_sets(request=None):
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(24, 4)).astype(np.float32), np.arange(24) % 3
    return ju.make_sets(x, y, request or ju.forget_class(1), unseen=(x, y))


def one_class(x, y):
    """Unseen examples; class 0 is to be forgotten, and one more example to be retained."""
    x, y = np.asarray(x, np.float32), np.asarray(y)
    train = np.concatenate([x, np.zeros_like(x[:1])]), np.append(y, 1)
    return ju.make_sets(*train, ju.forget_class(0), unseen=(x, y))


DEEP = {"samples": 24, "epsilon": 1e-3, "layers": "all", "per_sample": 2}


def path(**options):
    return ju.neuron_path(deep_net, **{**DEEP, **options})


def rule_named(name):
    return getattr(ju.rules, name)()


RULES = {name: rule_named(name) for name in ("zplus", "gamma", "epsilon_plus", "zero")}

deep_run = Choices(
    deep_net, lambda: deep_variables(), lambda: deep_sets(), DEEP,
    [
        *({"neurons": 2, "score": score, "specificity": specificity}
          for score in ("votes", "relevance") for specificity in (0.0, 0.7)),
        *({"share": share, "score": "relevance"} for share in (0.25, 0.01, 1.0)),
        *({"cumulative": share, "score": "relevance"} for share in (0.3, 0.8, 1.0)),
        {"neurons": 2}, {"neurons": 2, "layers": "last"},
        {"neurons": 2, "layers": ("fc1",)}, {"neurons": 2, "layers": ("fc2",)},
        {"neurons": 2, "layers": ("fc2", "^fc1/w$")},
        {"neurons": 7, "per_sample": 7, "score": "votes"},
        {"share": 0.5, "per_sample": 7, "layers": "last", "score": "relevance"},
        {"neurons": 2, "weights": ("outgoing",)},
        {"neurons": 2, "weights": ("incoming", "outgoing")},
        {"neurons": 2, "weights": ("class",)},
        {"neurons": 2, "weights": ("class",), "layers": "last"},
        *({"neurons": 2, "score": "relevance", "rules": RULES[name]}
          for name in ("zplus", "gamma", "epsilon_plus")),
        *({"neurons": 2, "score": "relevance", "start": start} for start in ("label", "margin")),
        {"neurons": 2, "epsilon": 0}, {"neurons": 2, "rules": RULES["zero"]},
    ],
)  # fmt: skip


def by_numpy(label, eps=1e-3):
    """Relevance of ``fc1`` and ``fc2`` for each unseen example of some labels, ``[N, n]``."""
    v = jax.tree.map(np.asarray, deep_variables())
    examples = deep_sets().forget.examples
    x = np.asarray(examples.x)[np.isin(np.asarray(examples.y), label)]
    values = [x]
    for name in ("fc1", "fc2", "head"):
        z = values[-1] @ v[name]["w"] + v[name]["b"]
        values.append(z if name == "head" else np.maximum(z, 0))
    relevance = np.eye(3)[values[-1].argmax(1)]
    found = {}
    for name, below, a, z in (("head", "fc2", values[2], values[3]), ("fc2", "fc1", *values[1:3])):
        # behind a relu z is its positive part, and where that is 0 there is no relevance
        s = relevance / (z + np.where(z >= 0, eps, -eps))
        found[below] = relevance = a * (s @ v[name]["w"].T)
    return found


def scores(relevance, score, per_sample=2):
    if score == "relevance":
        return relevance.mean(0)
    noted = np.argsort(-relevance, axis=1)[:, :per_sample]
    return np.bincount(noted.ravel(), minlength=relevance.shape[1]) / len(relevance)


def ranked(score, relevance):
    order = sorted(range(len(score)), key=lambda n: (-score[n], -relevance[n]))
    return [n for n in order if score[n] > 0]


def silent(variables, name):
    """Neurons without incoming weights."""
    return set(np.flatnonzero((np.asarray(variables[name]["w"]) == 0).all(axis=0)))


@pytest.mark.parametrize("specificity", [0.0, 0.7])
@pytest.mark.parametrize("score", ["votes", "relevance"])
def test_the_neurons_of_every_layer_are_ranked(score, specificity):
    edited = deep_run(neurons=2, score=score, specificity=specificity)
    own, others = by_numpy([1]), by_numpy([0, 2])
    for name in ("fc1", "fc2"):
        contrast, mean = (
            scores(own[name], kind) - specificity * scores(others[name], kind)
            for kind in (score, "relevance")
        )
        assert silent(edited, name) == set(ranked(contrast, mean)[:2]), name
    chosen = silent(edited, "fc2")
    lost = np.asarray(edited["head"]["w"]) == 0
    np.testing.assert_array_equal(lost[:, 1], [n in chosen for n in range(6)])
    assert not lost[:, [0, 2]].any(), "the head loses its weights of the class alone"
    for name in ("fc1", "fc2", "head"):
        np.testing.assert_array_equal(edited[name]["b"], deep_variables()[name]["b"])


@pytest.mark.parametrize(("share", "many"), [(0.25, (2, 2)), (0.01, (1, 1)), (1.0, (8, 6))])
def test_a_share_is_of_each_layers_width(share, many):
    found = deep_run(share=share, score="relevance")
    for name, wanted in zip(("fc1", "fc2"), many, strict=True):
        mean = by_numpy([1])[name].mean(0)
        assert silent(found, name) == set(ranked(mean, mean)[:wanted])


@pytest.mark.parametrize("cumulative", [0.3, 0.8, 1.0])
def test_the_smallest_set_that_holds_a_share_of_the_relevance(cumulative):
    found = deep_run(cumulative=cumulative, score="relevance")
    for name in ("fc1", "fc2"):
        mean = by_numpy([1])[name].mean(0)
        chosen = sorted(silent(found, name), key=lambda n: mean[n])
        positive = mean[mean > 0].sum()
        assert mean[chosen].sum() >= cumulative * positive - 1e-6
        assert mean[chosen[1:]].sum() < cumulative * positive, "one less is too few"
        assert (mean[chosen] > 0).all()


RANKED = budgets.Ranking(  # in order 3, 0, 2, 1
    order=jnp.array([3, 0, 2, 1], jnp.int32),
    score=jnp.array([2.0, 0.0, 1.0, 2.0]),
    relevance=jnp.array([3.0, 1.0, -2.0, 4.0]),
)


@pytest.mark.parametrize(
    ("kind", "value", "chosen"),
    [
        ("neurons", 1, [3]),
        ("neurons", 3, [0, 2, 3]),
        ("neurons", 4, [0, 2, 3]),  # neuron 1 has score 0
        ("share", 0.6, [0, 3]),
        ("share", 0.1, [3]),
        ("cumulative", 0.5, [3]),  # 4 of 8
        ("cumulative", 0.51, [0, 3]),
        ("cumulative", 0.875, [0, 3]),
        ("cumulative", 1.0, [0, 2, 3]),  # neuron 1 holds the rest, but has score 0
    ],
)
def test_budgets_by_hand(kind, value, chosen):
    found = budgets.choose(RANKED, kind, jnp.float32(value))
    assert np.flatnonzero(found).tolist() == chosen


def test_a_layer_without_positive_relevance_keeps_its_neurons():
    nothing = RANKED._replace(relevance=jnp.zeros(4), score=jnp.zeros(4))
    for kind in ("neurons", "share", "cumulative"):
        assert not budgets.choose(nothing, kind, jnp.float32(1)).any()


def test_layers_may_be_named():
    before, edited = deep_variables(), deep_run(layers=("fc1",), neurons=2)
    assert silent(edited, "fc1") == silent(deep_run(neurons=2), "fc1")
    for name in ("fc2", "head"):
        np.testing.assert_array_equal(edited[name]["w"], before[name]["w"])
    both = deep_run(layers=("fc2", "^fc1/w$"), neurons=2)
    chex.assert_trees_all_equal(both, deep_run(neurons=2))
    last = deep_run(layers=("fc2",), neurons=2)
    chex.assert_trees_all_equal(last, deep_run(layers="last", neurons=2))


def test_budgets_are_capped_in_every_layer_but_not_in_the_last_alone():
    edited = deep_run(neurons=7, per_sample=7, score="votes")
    assert len(silent(edited, "fc1")) == 7
    assert len(silent(edited, "fc2")) == 6
    with pytest.raises(ValueError, match="at most the 6 inputs of head/w, got 7"):
        deep_run(neurons=7, layers="last")
    with pytest.raises(ValueError, match="at most the 6 inputs of head/w, got 7"):
        deep_run(share=0.5, per_sample=7, layers="last")
    deep_run(share=0.5, per_sample=7, layers="last", score="relevance")


def test_outgoing_weights_are_rows_of_whoever_reads_the_neuron():
    before = deep_variables()
    chosen = {name: silent(deep_run(neurons=2), name) for name in ("fc1", "fc2")}
    edited = deep_run(neurons=2, weights=("outgoing",))
    np.testing.assert_array_equal(edited["fc1"]["w"], before["fc1"]["w"])
    for name, reader in (("fc1", "fc2"), ("fc2", "head")):
        rows = (np.asarray(edited[reader]["w"]) == 0).all(axis=1)
        assert set(np.flatnonzero(rows)) == chosen[name]
    both = deep_run(neurons=2, weights=("incoming", "outgoing"))
    wanted = np.array(before["fc2"]["w"])
    wanted[sorted(chosen["fc1"])] = 0
    wanted[:, sorted(chosen["fc2"])] = 0
    np.testing.assert_array_equal(both["fc2"]["w"], wanted)


def test_the_class_is_a_matter_of_the_head():
    edited = deep_run(neurons=2, weights=("class",))
    last = deep_run(neurons=2, weights=("class",), layers="last")
    chex.assert_trees_all_equal(edited, last)
    with pytest.raises(ValueError, match="the neurons of fc1/w are not what the head reads"):
        deep_run(layers=("fc1",), weights=("class",))


def test_what_is_counted_of_a_batch():
    relevance = jnp.array([[3.0, 1.0, 2.0], [-1.0, 5.0, -2.0], [9.0, 9.0, 9.0]])
    (tally,) = budgets.add_batch(
        (budgets.start_tally(3),), [relevance], jnp.array([1.0, 1.0, 0.0]), per_sample=[2]
    )
    np.testing.assert_array_equal(tally.votes, [2, 1, 1])
    np.testing.assert_array_equal(tally.relevance, [2, 6, 0])
    assert tally.examples == 2


@pytest.mark.parametrize(
    "options", [{}, {"specificity": 0.5}, {"calibrate": True, "guard": True}], ids=str
)
def test_padding_and_batches_do_not_count(options):
    # 8 examples of the class and 16 others in steps of 5
    method = path(neurons=2, **options)
    ((whole, metrics),) = passes([method], deep_variables(), deep_sets())
    parts = ju.unlearn(method, deep_variables(), deep_sets(), KEY, batch_size=5)
    assert parts.steps == (4 if options else 2)
    chex.assert_trees_all_close(whole, parts.variables)
    for name, value in parts.history.items():
        if name != "relevance":
            np.testing.assert_allclose(value[-1], metrics[name], err_msg=name)


def test_of_two_classes_both_columns_go():
    sets = deep_sets(ju.data.forget_classes([0, 2]))
    method = path(neurons=2, weights=("class",))
    out = ju.unlearn(method, deep_variables(), sets, KEY)
    assert out.steps == 1
    lost = np.asarray(out.variables["head"]["w"]) == 0
    assert lost.sum() == 4
    np.testing.assert_array_equal(lost[:, 0], lost[:, 2])


@functools.cache
def relevances():
    """Of the examples to be forgotten, by rule, and by the start with the published rule."""
    unseen = deep_sets().unseen
    x, y = (leaf[unseen.indices] for leaf in unseen.examples[:2])

    def all_of(variables):
        wanted = {
            name: ju.lrp(deep_net, rules=RULES[name])(variables, x, start=ju.starts.argmax())
            for name in ("zplus", "gamma", "epsilon_plus")
        }
        published = ju.lrp(deep_net, rules=ju.rules.epsilon(DEEP["epsilon"]))
        label, margin = (
            getattr(ju.starts, name)(y, times_logit=True) for name in ("label", "margin")
        )
        # as the class's logit says: 1 or -1; of two logits their difference
        wanted["label"] = published(variables, x, start=lambda z: jnp.sign(label(z)))
        wanted["margin"] = published(variables, x, start=margin)
        return {name: found.neurons for name, found in wanted.items()}

    return jax.jit(all_of)(deep_variables())


@pytest.mark.parametrize("name", ["zplus", "gamma", "epsilon_plus", "label", "margin"])
def test_any_rule_and_any_start_serve(name):
    choice = {"rules": RULES[name]} if name in RULES else {"start": name}
    edited = deep_run(score="relevance", neurons=2, **choice)
    for layer in ("fc1", "fc2"):
        mean = np.asarray(relevances()[name][f"{layer}/w"]).mean(0)
        assert silent(edited, layer) == set(ranked(mean, mean)[:2])


def test_without_epsilon_it_is_lrp_0():
    chex.assert_trees_all_equal(
        deep_run(epsilon=0, neurons=2), deep_run(rules=RULES["zero"], neurons=2)
    )


# ---- layers of other kinds


def test_relevance_is_summed_over_positions():
    """Four pixels through a 1x1 convolution: neuron by neuron as in a dense layer."""

    def net(v, x):
        y = jax.lax.conv_general_dilated(
            x, v["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(y).sum((1, 2)) @ v["mix"] @ v["head"]

    variables = {
        "conv": jnp.eye(3)[None, None],
        "mix": jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
        "head": jnp.eye(2),
    }
    # channel 0 has the brightest pixel, channel 1 the larger sum
    x = np.zeros((2, 2, 2, 3), np.float32)
    x[..., 0, 0, 0], x[..., 1] = 3, 1
    method = ju.neuron_path(net, layers=("conv",), neurons=1, score="relevance")
    ((edited, _),) = passes([method], variables, one_class(x, [0, 0]))
    np.testing.assert_array_equal(edited["conv"][0, 0], np.diag([1, 0, 1]))


def test_relevance_of_a_layer_applied_twice_is_added():
    def net(v, x):
        first, second = x[:, :2] @ v["shared"], x[:, 2:] @ v["shared"]
        return (jax.nn.relu(first) + jax.nn.relu(second)) @ v["head"]

    # neuron 0 leads the first time, neuron 1 the second time and by more
    variables = {"shared": jnp.eye(2), "head": jnp.ones((2, 2)) * jnp.array([[1.0, 0.0]])}
    sets = one_class([[2, 1, 0, 5]] * 2, [0, 0])
    method = ju.neuron_path(net, layers=("shared",), neurons=1, per_sample=1)
    ((edited, _),) = passes([method], variables, sets)
    np.testing.assert_array_equal(edited["shared"], np.diag([1, 0]))


def test_a_residual_network_has_inner_layers_and_what_the_head_reads():
    def run(**more):
        return residual_made(share=0.5, **more)["params"]

    edited = run(layers="all")
    kernels = {k: v["kernel"] for k, v in flat(edited).items() if "kernel" in v}
    assert len(kernels) == 5
    for name, kernel in kernels.items():
        axes = (1,) if name == "head" else (0, 1, 2)
        assert (np.asarray(kernel) == 0).all(axis=axes).any(), name
    alone = run(layers=("inputs of params/head/kernel",))
    np.testing.assert_array_equal(alone["head"]["kernel"], edited["head"]["kernel"])
    stem = next(iter(kernels))
    read = flat(run(layers="all", weights=("outgoing",)))
    assert not (np.asarray(read[stem]["kernel"]) == 0).all(axis=(0, 1, 2)).any()
    with pytest.raises(ValueError, match="biases: expected one added straight to what"):
        run(layers="all", biases=True)


def flat(tree, path=""):
    """The layers of nested parameters."""
    if any(not isinstance(value, dict) for value in tree.values()):
        return {path: tree}
    return {k: v for name, part in tree.items() for k, v in flat(part, path or name).items()}


def test_a_layer_that_is_flattened_has_no_outgoing_weights():
    model = ju.models.build("cnn", toy.SHAPE, 4, {"channels": (3, 4), "features": 5})
    before = jax.jit(model.init)(KEY)

    def run(**options):
        method = ju.neuron_path(model, neurons=2, weights=("outgoing",), samples=8, **options)
        ((edited, _),) = passes([method], before, toy.sets())
        return edited["params"]

    with pytest.raises(ValueError, match=r"no unit is known to read the neurons of .*conv2"):
        run(layers=("conv2",))
    edited = run(layers="all")
    gone = (np.asarray(edited["conv2"]["kernel"]) == 0).all(axis=(0, 1, 3))
    assert gone.sum() == 2, "what conv2 reads of conv1"
    np.testing.assert_array_equal(edited["fc1"]["kernel"], before["params"]["fc1"]["kernel"])


# ---- edits


@pytest.mark.parametrize(
    ("options", "factor"), [({"edit": "sign"}, -1), ({"edit": "scale", "scale": 0.25}, 0.25)]
)
def test_weights_are_multiplied(options, factor):
    params = hand_run(**options)
    np.testing.assert_array_equal(params["fc"]["w"], np.diag([factor, factor, 1, 1]))
    head = np.array(HAND["params"]["out"]["w"])
    head[:2, 0] *= factor
    np.testing.assert_array_equal(params["out"]["w"], head)


@pytest.mark.parametrize("shape", [(4,), (1, 4)])
def test_the_bias_of_a_neuron_goes_with_its_incoming_weights(shape):
    def net(v, x):
        return jax.nn.relu(x @ v["w"] + v["b"].reshape(1, 4)) @ v["out"]

    hand = HAND["params"]
    variables = {"w": hand["fc"]["w"], "b": hand["fc"]["b"].reshape(shape), "out": hand["out"]["w"]}
    method = ju.neuron_path(net, per_sample=2, neurons=2, biases=True)
    ((edited, _),) = passes([method], variables, hand_sets())
    np.testing.assert_array_equal(edited["b"], np.reshape([0, 0, 0.5, 0.5], shape))
    np.testing.assert_array_equal(edited["w"], np.diag([0, 0, 1, 1]))


def test_the_shift_of_a_batch_norm_stays():
    def net(v, x):
        return jax.nn.relu((x @ v["w"]) * v["gamma"][None] + v["beta"][None]) @ v["out"]

    hand = HAND["params"]
    variables = {"w": hand["fc"]["w"], "gamma": jnp.ones(4), "beta": jnp.full(4, 0.5)}
    variables["out"] = hand["out"]["w"]
    options = {"per_sample": 2, "neurons": 2, "weights": ("incoming",)}
    ((edited, _),) = passes([ju.neuron_path(net, **options)], variables, hand_sets())
    read = jax.jit(ju.attribution.features(net))(edited, jnp.ones((1, 4)))
    np.testing.assert_array_equal(read, [[0.5, 0.5, 1.5, 1.5]])
    with pytest.raises(ValueError, match="biases: expected one added straight to what w yields"):
        passes([ju.neuron_path(net, biases=True, **options)], variables, hand_sets())


# ---- specificity: what serves every class is left


def test_a_neuron_that_serves_other_classes_is_spared():
    def net(v, x):
        return jax.nn.relu(x @ v["w"]) @ v["out"]

    # of (3, 1) neuron 0 holds 3/4 for class 0; of (3, 0) all for class 1
    variables = {"w": jnp.eye(2), "out": jnp.array([[1.0, 2.0], [1.0, -5.0]])}
    x, y = np.array([[3, 1], [3, 0]], np.float32), np.array([0, 1])
    sets = ju.make_sets(x, y, ju.forget_class(0), unseen=(x, y))

    votes = {"score": "votes", "per_sample": 1}
    cases = [
        ({"neurons": 1}, [0]),
        ({"neurons": 1, "specificity": 0.6}, [1]),  # .75 - .6, .25 - 0
        ({"neurons": 2, "specificity": 0.6}, [0, 1]),
        ({"neurons": 2, "specificity": 1.0}, [1]),
        ({"neurons": 1, **votes}, [0]),
        ({"neurons": 1, "specificity": 1.0, **votes}, []),
        ({"cumulative": 0.7, "specificity": 0.6}, [0, 1]),  # .25 of .4 is too little
    ]
    common = {"score": "relevance", "epsilon": 0, "weights": ("outgoing",)}
    methods = [ju.neuron_path(net, **{**common, **options}) for options, _ in cases]
    for (edited, _), case in zip(passes(methods, variables, sets), cases, strict=True):
        silenced = np.flatnonzero((np.asarray(edited["out"]) == 0).all(axis=1)).tolist()
        assert silenced == case[1], case


def test_other_classes_are_looked_at_only_where_they_are_compared():
    for options, seen in (
        ({}, False),
        ({"calibrate": True}, False),
        ({"specificity": 0.5}, True),
        ({"calibrate": True, "guard": True}, True),
    ):
        needs = ju.neuron_path(deep_net, **options).needs
        assert needs.holdout == seen
        assert needs.unseen
        assert not needs.forget
        assert not needs.retain


# ---- calibration


def stacked_up(variables, x):
    """Class 0 is the sum of neurons 0, 1, 2; class 1 is neuron 3."""
    return jax.nn.relu(x @ variables["w"]) @ variables["out"] + variables["b"][None]


STACK = {
    "w": jnp.eye(4),
    "out": jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
    "b": jnp.zeros(2),
}


def calibrated(rivals, others=(), **options):
    """``rivals``: the logit of class 1 in samples of class 0 whose neurons hold 3, 2 and 1."""
    x = [[3, 2, 1, rival] for rival in rivals] + list(others)
    sets = one_class(x, [0] * len(rivals) + [1] * len(others))
    variables, metrics = calibrating(**options)(STACK, sets)
    gone = np.flatnonzero((np.asarray(variables["out"]) == 0).all(axis=1))
    return len(gone), {name: float(value) for name, value in metrics.items()}


@functools.cache
def calibrating(**options):
    """A pass with these options, compiled once for sets of one size."""
    fixed = {"neurons": 4, "per_sample": 3, "weights": ("outgoing",), "calibrate": True}
    method = ju.neuron_path(stacked_up, **{**fixed, **options})
    return jax.jit(lambda variables, sets: passes([method], variables, sets)[0])


def test_the_grid_ends_at_the_budget():
    assert budgets.smaller_budgets(budgets.Budget("neurons", 4)) == (1, 2, 3, 4)
    values = budgets.smaller_budgets(budgets.Budget("cumulative", 0.8))
    assert len(values) == 15
    assert values[-1] == 0.8
    assert list(values) == sorted(values)
    assert budgets.smaller_budgets(budgets.Budget("neurons", 80))[0] == 1


@pytest.mark.parametrize(
    ("rivals", "target", "wanted", "accuracy"),
    [
        ((4, 4), 0.05, 1, 0),  # 3 are left of 6: below 4 without neuron 0
        ((2, 2), 0.05, 2, 0),
        ((2, 0.5), 0.05, 3, 0),
        ((2, 0.5), 0.5, 2, 0.5),  # one of two is enough
        ((2, -1), 0.05, 2, 0.5),  # the other is never lost: no more than what helps
    ],
)
def test_the_smallest_budget_that_forgets(rivals, target, wanted, accuracy):
    many, found = calibrated(rivals, target=target)
    assert many == wanted
    assert found["budget"] == wanted
    assert found["neurons"] == wanted
    assert found["accuracy_unseen"] == accuracy
    assert "accuracy_holdout" not in found


def test_shares_are_calibrated_as_well():
    assert calibrated((2, 2), neurons=None, share=1.0)[0] == 2
    many, found = calibrated((2, 2), neurons=None, cumulative=1.0, epsilon=1e-6)
    assert many == 2
    assert 3 / 6 < found["budget"] <= 5 / 6


def test_a_guarded_budget_is_the_best_for_the_others():
    # (0, 5, 0, 4) is named 0 until neuron 1 is gone
    others = [(0, 5, 0, 4), (0, 0, 0, 4)]
    many, found = calibrated((4, 4), others)
    assert (many, found["accuracy_unseen"]) == (1, 0)
    many, found = calibrated((4, 4), others, guard=True)
    assert (many, found["accuracy_unseen"], found["accuracy_holdout"]) == (2, 0, 1)
    assert "accuracy_holdout" in calibrated((4, 4), others, specificity=0.1)[1]


# ---- all classes at once

PATHS = {
    "votes": {"share": 0.25, "per_sample": 5},
    "calibrated": {
        "cumulative": 0.8,
        "score": "relevance",
        "specificity": 0.5,
        "calibrate": True,
        "edit": "gaussian",
    },
}
BATCH = 6
"""Of 9 to 12 examples: two steps, the second padded; and two devices can divide it."""


@functools.cache
def toy_path(name):
    return ju.neuron_path(toy.mlp(), layers="all", samples=12, **PATHS[name])


@functools.cache
def alone(name, sets, label):
    """The model of one request by itself."""
    given, key = toy.trained().variables, jax.random.key(label)
    return ju.unlearn(toy_path(name), given, sets(label), key, batch_size=BATCH).variables


LABELS = (0, 1, 3)


def of_own_size(label):
    return toy.sets(ju.forget_class(label))


@functools.cache
def stacked():
    return ju.data.stack_sets([of_own_size(label) for label in LABELS])


def of_one_size(label):
    """Padded, so that one program suits several labels."""
    return request(stacked(), LABELS.index(label))


@pytest.mark.parametrize(("name", "vectorise"), [("votes", True), ("calibrated", False)])
@pytest.mark.filterwarnings("ignore:.*on unseen examples of at most")
def test_all_classes_in_one_program_equal_the_loop(name, vectorise):
    method, results = toy_path(name), []

    def result(state):
        results.append("traced")
        return method.result(state)

    given, keys = toy.trained().variables, jnp.stack([jax.random.key(label) for label in LABELS])
    many = ju.unlearn_many(
        method._replace(result=result), given, stacked(), keys, vectorise=vectorise,
        batch_size=BATCH,
    ).variables  # fmt: skip
    assert results == ["traced"], "one program for three classes"
    for number, label in enumerate(LABELS):
        one = jax.tree.map(lambda leaf, n=number: leaf[n], many)
        own = name == "calibrated" and label == 1
        expected = alone(name, of_own_size if own else of_one_size, label)
        chex.assert_trees_all_close(one, expected, atol=1e-5, rtol=0)
        edited, before = (tree["params"]["fc1"]["kernel"] for tree in (one, given))
        assert (np.asarray(edited) != before).any()


@pytest.mark.filterwarnings("ignore:.*on unseen examples of at most")
def test_a_calibrated_path_on_eight_devices_equals_one():
    sharding = make_sharding("data=2,model=4", ((r"kernel$", ("model",)),))
    many = ju.unlearn(
        toy_path("calibrated"), toy.trained().variables, toy.sets(), jax.random.key(1),
        sharding=sharding, batch_size=BATCH,
    ).variables  # fmt: skip
    one = alone("calibrated", of_own_size, 1)
    chex.assert_trees_all_close(*jax.device_get((many, one)), atol=1e-5, rtol=0)


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "fc1"}, "layers: expected one of .'last', 'all'. or a tuple of regular"),
        ({"layers": ()}, "layers: expected one of .'last', 'all'. or a tuple of regular"),
        ({"layers": ("(",)}, r"layers: expected regular expressions, got '\('"),
        ({"layers": ("fc1", "fc9")}, "patterns found in fc1/w, fc2/w, got 'fc9'"),
        ({"layers": ("head",)}, "patterns found in fc1/w, fc2/w, got 'head'"),
        ({"neurons": 3, "share": 0.5}, "expected at most one, got neurons=3, share=0.5"),
        ({"share": 0.0}, "share: expected a share above 0, at most 1, got 0.0"),
        ({"cumulative": 1.5}, "cumulative: expected a share above 0, at most 1, got 1.5"),
        ({"score": "sum"}, "score: expected one of"),
        ({"specificity": -1.0}, "specificity: expected a number of 0 or more, got -1.0"),
        ({"edit": "scale"}, "scale: expected another factor than 1"),
        ({"biases": True, "weights": ("class",)}, "biases: expected weights with 'incoming'"),
        ({"target": 1.5}, "target: expected a number from 0 to 1, got 1.5"),
        ({"guard": True}, "guard: expected calibrate=True beside it, got False"),
        ({"per_sample": 0}, "per_sample: expected a positive number, got 0"),
        ({"samples": 0}, "samples: expected a positive number, got 0"),
    ],
)
def test_wrong_choices_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        deep_run(**options)
