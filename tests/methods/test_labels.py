"""Methods with changed labels, masks or structure: what the equations leave open."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.config import Config, TrainConfig
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.core.types import Batches, Examples, Model, Sets, Subset
from jaxunlearn.data.batches import in_order
from jaxunlearn.engine.predict import predict
from jaxunlearn.experiment.methods import Problem, build_method
from jaxunlearn.jaxprs.structure import features
from jaxunlearn.kinds import kind_of
from jaxunlearn.methods import METHODS
from jaxunlearn.methods.boundary import draw_row, expanded_logits, find_head
from jaxunlearn.methods.cf_k import last_layers
from jaxunlearn.methods.ct import swap_axes
from jaxunlearn.methods.l1_sparse import l1_sparse, soft_threshold
from jaxunlearn.methods.msg import smallest_masks
from jaxunlearn.methods.salun import saliency_mask
from jaxunlearn.training.descent import apply_update
from jaxunlearn.training.optimizers import largest, scaled
from tests import toy

KEY = jax.random.key(5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("neggrad_plus", {"retain_weight": 0.5}, "retain_weight: expected a number above 0.5"),
        ("neggrad_plus", {"retain_weight": 1.1}, "retain_weight: expected a number above 0.5"),
        ("neggrad_plus", {"retain_weight": float("nan")}, "retain_weight: expected a number"),
        ("salun", {"share": 0.0}, "share: expected a share above 0, at most 1, got 0.0"),
        ("salun", {"forget_weight": -1.0}, "forget_weight: expected a number of 0 or more"),
        ("l1_sparse", {"steps": 0}, "steps: expected a positive number, got 0"),
        ("l1_sparse", {"steps": 2, "gamma": -1.0}, "gamma: expected a number of 0 or more"),
        ("l1_sparse", {"steps": 2, "learning_rate": 0.0}, "learning_rate: expected a positive"),
        ("l1_sparse", {"steps": 2, "penalised": 2.0}, "penalised: expected a share of the steps"),
        ("l1_sparse", {"steps": 2, "form": "dual"}, "form: expected one of"),
        (
            "l1_sparse",
            {"steps": 2, "augment": "crop_flip", "losses": lambda v, batch: batch.weight},
            "augment: expected 'none' with losses of one's own, got 'crop_flip'",
        ),
        ("boundary_shrink", {"bound": 0.0}, "bound: expected a positive number, got 0.0"),
        ("cf_k", {"layers": 0}, "layers: expected a positive number, got 0"),
        ("eu_k", {"layers": 1.5}, "layers: expected a positive number, got 1.5"),
        ("msg", {"share": 2.0}, "share: expected a share above 0, at most 1, got 2.0"),
        ("msg", {"others": -0.1}, "others: expected a number of 0 or more, got -0.1"),
    ],
)
def test_bad_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(ju, name)(toy.mlp(), **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ct", {}, "expected a network with square convolution kernels larger than 1x1"),
        ("cf_k", {"layers": 4}, "layers: expected at most 3, the linear layers of the network"),
        ("eu_k", {"layers": 9}, "layers: expected at most 3, the linear layers of the network"),
    ],
)
def test_networks_that_do_not_suit(name, options, message):
    method = getattr(ju, name)(toy.mlp(), **options)
    with pytest.raises(ConfigError, match=message):
        ju.unlearn(method, toy.trained().variables, toy.sets(), KEY, steps=2)


def test_an_attack_needs_inputs_of_floats():
    method = ju.boundary_shrink(toy.text_classifier())
    with pytest.raises(ConfigError, match=r"x: expected inputs of floats, .*got \['bool', 'int32'"):
        ju.unlearn(method, toy.trained_on_questions().variables, toy.question_sets(), KEY, steps=2)


@pytest.mark.parametrize("name", ["eu_k", "msg"])
def test_what_is_drawn_anew_needs_an_init(name):
    method = getattr(ju, name)(toy.mlp().apply)
    with pytest.raises(ConfigError, match="to draw fresh variables, got a function alone"):
        ju.unlearn(method, toy.trained().variables, toy.sets(), KEY, steps=2)


def retained(name, **options):
    """Accuracies on forget and retain sets behind some steps."""
    method = getattr(ju, name)(toy.mlp(), **options)
    out = ju.unlearn(
        method, toy.trained().variables, toy.sets(), KEY, steps=60, batch_size=16
    )  # fmt: skip
    parts = (toy.sets().forget, toy.sets().retain)
    return [predict(toy.mlp().apply, out.variables, part).accuracy for part in parts]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("neggrad_plus", {}),
        ("salun", {"optimizer": optax.adam(3e-3)}),
        ("boundary_expand", {"optimizer": optax.sgd(1e-2, momentum=0.9)}),
        ("eu_k", {"optimizer": optax.adam(1e-2)}),
    ],
)
def test_they_forget_the_class_and_keep_the_others(name, options):
    forget, retain = retained(name, **options)
    assert forget < 0.2
    assert retain > 0.9


def test_a_boundary_shrinks_only_where_the_attack_reaches_it():
    near, far = (
        retained("boundary_shrink", optimizer=optax.sgd(1e-2), bound=bound)[0]
        for bound in (0.01, 0.5)
    )
    assert near == 1
    assert far < 0.2


def small(apply, init, x):
    """Methods whose numbers can be swept, on a network and four examples."""
    examples = Examples(x, jnp.array([0, 1, 2, 1]), jax.tree_util.Partial(lambda x: x))
    part = Subset(examples, jnp.arange(4), jnp.int32(4))
    return ju.functionalize(apply, init=init), Sets(forget=part, retain=part)


@pytest.mark.parametrize(
    ("name", "swept", "more"),
    [
        ("neggrad_plus", {"retain_weight": (0.7, 0.95)}, {}),
        ("salun", {"share": (0.3, 0.8)}, {}),
        ("l1_sparse", {"gamma": (0.0, 0.4), "learning_rate": (0.1, 0.3)}, {"steps": 2}),
        ("boundary_shrink", {"bound": (0.1, 3.0)}, {"optimizer": optax.sgd(0.1)}),
        ("msg", {"share": (0.2, 0.7), "others": (0.0, 0.5)}, {}),
    ],
)
def test_swept_numbers_equal_single_runs(name, swept, more):
    def init(key):
        return {"params": {"w": jax.random.normal(key, (5, 3))}}

    x = jax.random.normal(KEY, (4, 5))
    model, sets = small(lambda v, x: x @ v["params"]["w"], init, x)
    start, run = init(jax.random.key(8)), {"steps": 2, "batch_size": 4}

    def make(**numbers):
        return getattr(ju, name)(model, **numbers, **more)

    keys = jax.random.split(KEY, 2)
    many = ju.unlearn_many(ju.sweep(make, **swept), start, sets, keys, **run)
    for place, key in enumerate(keys):
        method = make(**{option: values[place] for option, values in swept.items()})
        alone = ju.unlearn(method, start, sets, key, **run).variables["params"]["w"]
        np.testing.assert_allclose(many.variables["params"]["w"][place], alone, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 4, 7, 12])
def test_exactly_so_many_are_largest(count):
    values = jnp.array([[3.0, 1, 3, 2], [2, 2, 0, 3], [1, 3, 1, 0]])
    by_hand = np.zeros(12, bool)
    by_hand[np.argsort(-np.ravel(values), kind="stable")[:count]] = True
    np.testing.assert_array_equal(np.ravel(largest(values, count)), by_hand)
    np.testing.assert_array_equal(np.ravel(jax.jit(largest)(values, count)), by_hand)


def test_masks_hold_the_share_that_was_asked_for():
    tree = {"a": jnp.ones((7, 3)), "b": -2 * jnp.ones(5), "c": jnp.zeros(())}
    mask = saliency_mask(tree, 0.4)  # of all 27 the ten largest: all of b, then the first of a
    assert [int(leaf.sum()) for leaf in jax.tree.leaves(mask)] == [5, 5, 0]
    assert bool(jnp.ravel(mask["a"])[:5].all())
    counts = {name: int(leaf.sum()) for name, leaf in smallest_masks(tree, 0.3).items()}
    assert counts == {"a": 6, "b": 2, "c": 0}


@pytest.mark.parametrize("inner", [optax.adamw(0.1, weight_decay=0.5), optax.sgd(0.1, 0.9)])
def test_what_is_masked_stays_to_the_bit(inner):
    params = {"w": jnp.array([-0.0, 1.5, -2.0])}
    optimizer = scaled(inner)
    state = optimizer.init(params)._replace(factors={"w": jnp.array([0.0, 0.0, 1.0])})
    moved = params
    for _ in range(3):
        moved, state, _ = apply_update(optimizer, moved, state, {"w": jnp.ones(3)})
    np.testing.assert_array_equal(np.signbit(moved["w"]), [True, False, True])
    np.testing.assert_array_equal(moved["w"][:2], params["w"][:2])
    assert moved["w"][2] != -2


def test_soft_threshold():
    tree = {"w": jnp.array([-2.0, -0.3, 0.0, 0.2, 1.0])}
    np.testing.assert_allclose(soft_threshold(tree, 0.3)["w"], [-1.7, 0, 0, 0, 0.7], rtol=1e-6)


def convolved(x, kernel, layout):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", layout, "NHWC")
    )


def all_convolutional(variables, x):
    """A head that is a convolution, with a mean over positions behind it."""
    p = variables["params"]
    h = jax.nn.relu(convolved(x, p["k"], "OIHW"))
    return (convolved(h, p["h"], "OIHW") + p["b"][None, None, None]).mean((1, 2))


def log_probabilities(variables, x):
    return jax.nn.log_softmax(toy.mlp().apply(variables, x))


def gated(variables, x):
    """Logits that no linear unit makes."""
    p, x = variables["params"], x.reshape(len(x), -1)
    return (x @ p["k"]) * jax.nn.sigmoid(x @ p["h"])


def normal(*shape):
    return jax.random.normal(KEY, shape)


def test_an_extra_class_reads_what_the_head_reads():
    x = normal(3, *toy.SHAPE)
    variables = toy.trained().variables
    row = draw_row(toy.mlp().apply, variables, x, KEY)
    own = features(toy.mlp().apply)(variables, x) @ row["weights"]
    plain = expanded_logits(toy.mlp().apply, variables, row, x)
    np.testing.assert_allclose(plain[:, -1], own, atol=1e-5)
    np.testing.assert_array_equal(plain[:, :-1], toy.mlp().apply(variables, x))
    # log-probabilities and the class are those logits, up to a shift of each example
    shifted = expanded_logits(log_probabilities, variables, row, x)
    np.testing.assert_allclose(jax.nn.softmax(shifted), jax.nn.softmax(plain), atol=1e-5)

    params = {"k": normal(6, 1, 3, 3), "h": normal(4, 6, 1, 1), "b": jnp.zeros(4)}
    row = draw_row(all_convolutional, {"params": params}, x, KEY)
    assert row["weights"].shape == (6, 1, 1)
    own = convolved(
        jax.nn.relu(convolved(x, params["k"], "OIHW")), row["weights"][None], "OIHW"
    ).mean((1, 2, 3))
    found = expanded_logits(all_convolutional, {"params": params}, row, x)
    np.testing.assert_allclose(found[:, -1], own, atol=1e-5)


def test_an_extra_class_reads_the_logits_where_there_is_no_head():
    x = normal(3, *toy.SHAPE)
    variables = {"params": {"k": normal(36, 4), "h": normal(36, 4)}}
    assert find_head(gated, variables, x) is None
    row = draw_row(gated, variables, x, KEY)
    found = expanded_logits(gated, variables, row, x)
    np.testing.assert_allclose(found[:, -1], gated(variables, x) @ row["weights"], atol=1e-5)


def normalised(variables, x, stats):
    """A layer, its scale by running means, and a head."""
    p = {name: leaf * 1.0 for name, leaf in variables["params"].items()}  # all read at the start
    h = jnp.tanh((x @ p["v"] - stats["first"][None]) * p["scale"][None])
    return (h @ p["u"] - stats["second"][None]) @ p["w"]


def batch_normalised():
    def train(variables, x, key):
        del key
        p, stats = variables["params"], variables["stats"]
        moved = {"first": stats["first"] + 1, "second": stats["second"] + 1}
        assert p.keys() == {"u", "v", "w", "scale"}
        return normalised(variables, x, stats), {**variables, "stats": moved}

    def init(key):
        params = {"v": normal(5, 4), "scale": jnp.ones(4), "u": normal(4, 4), "w": normal(4, 3)}
        return {"params": params, "stats": {"first": jnp.zeros(4), "second": jnp.zeros(4)}}

    apply = lambda variables, x: normalised(variables, x, variables["stats"])  # noqa: E731
    return Model(init, apply, train)


LATE = {1: {"params/w"}, 2: {"params/u", "params/w", "stats/second"}}


@pytest.mark.parametrize("layers", [1, 2])
def test_layers_before_the_last_keep_their_statistics(layers):
    model = batch_normalised()
    variables, x = model.init(KEY), normal(4, 5)
    mask = named_leaves(last_layers(model.apply, variables, x, layers))
    assert {path for path, late in mask.items() if late} == LATE[layers]

    _, sets = small(model.apply, None, x)
    method = ju.cf_k(model, layers=layers, optimizer=optax.adamw(0.1, weight_decay=0.5))
    state = method.init(variables, sets, KEY)
    batches = Batches(retain=in_order(sets.retain, jnp.int32(0), 4))
    state, _ = method.step(state, batches, KEY, jnp.int32(0))
    given, made = named_leaves(variables), named_leaves(state.variables)
    assert {path for path in given if (given[path] != made[path]).any()} == LATE[layers]


def test_only_square_kernels_are_turned_over():
    def apply(variables, x):
        p = variables["params"]
        h = convolved(convolved(x, p["wide"], "HWIO"), p["square"], "OIHW")
        return convolved(h, p["point"], "HWIO").mean((1, 2))

    params = {"wide": normal(1, 3, 1, 2), "square": normal(2, 2, 3, 3), "point": normal(1, 1, 2, 4)}
    made = swap_axes(apply, {"params": params}, normal(2, *toy.SHAPE))["params"]
    np.testing.assert_array_equal(made["square"], params["square"].transpose(0, 1, 3, 2))
    for name in ("wide", "point"):
        np.testing.assert_array_equal(made[name], params[name])

    without = {"params": {**params, "square": normal(2, 2, 1, 1)}}
    with pytest.raises(ConfigError, match="square convolution kernels larger than 1x1"):
        swap_axes(apply, without, normal(2, *toy.SHAPE))


def test_a_run_tells_the_proximal_step_the_rate_of_the_optimizer(monkeypatch):
    told = []

    @functools.wraps(l1_sparse)
    def watched(model, **options):
        told.append(options)
        return l1_sparse(model, **options)

    row = METHODS["l1_sparse"]._replace(target=watched)
    monkeypatch.setitem(METHODS._rows, "l1_sparse", row)
    config = Config(train=TrainConfig(learning_rate=0.03))
    problem = Problem(config, kind_of(toy.mlp()), toy.mlp(), toy.sets(), 130, (), False, {})
    for options in ({}, {"learning_rate": 0.2}, {"optimizer": "sgd"}):
        build_method("l1_sparse", options, problem)
    assert [one.get("learning_rate") for one in told] == [None, 0.2, 0.03]
    assert ["optimizer" in one for one in told] == [False, True, True]
    assert {one["steps"] for one in told} == {2}
