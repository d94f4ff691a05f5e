"""What each method does that the others do not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.data.sets import num_examples
from jaxunlearn.metrics.predict import predict
from jaxunlearn.training.descent import cross_entropy
from jaxunlearn.unlearners.random_label import wrong_labels
from tests import toy

KEY = jax.random.key(1)


def accuracies(variables, sets=None):
    sets = sets or toy.sets()
    return [
        predict(toy.mlp().apply, variables, part).accuracy for part in (sets.forget, sets.retain)
    ]


def test_the_original_knows_everything():
    assert min(accuracies(toy.trained().variables)) > 0.95


def test_retrained_models_never_saw_the_class():
    method = ju.retrain(toy.mlp(), optimizer=optax.adam(5e-3))
    out = ju.unlearn(method, None, toy.sets(), KEY, steps=60, batch_size=32)
    forget, retain = accuracies(out.variables)
    assert forget == 0
    assert retain > 0.95


def test_finetune_and_retrain_differ_in_where_they_start():
    optimizer = optax.sgd(0.0)
    given = toy.trained().variables
    tuned = ju.unlearn(ju.finetune(toy.mlp(), optimizer=optimizer), given, toy.sets(), KEY, steps=2)
    fresh = ju.unlearn(ju.retrain(toy.mlp(), optimizer=optimizer), given, toy.sets(), KEY, steps=2)
    np.testing.assert_array_equal(tuned.variables["params"]["fc1"]["kernel"],
                                  given["params"]["fc1"]["kernel"])  # fmt: skip
    assert (fresh.variables["params"]["fc1"]["kernel"] != given["params"]["fc1"]["kernel"]).any()


def test_gradient_ascent_is_one_step_up_the_mean_loss():
    rate, sets, given = 0.01, toy.sets(), toy.trained().variables
    size = num_examples(sets.forget)
    method = ju.gradient_ascent(toy.mlp(), optimizer=optax.sgd(rate))
    out = ju.unlearn(method, given, sets, KEY, steps=1, batch_size=size)

    x = (sets.forget.examples.x[sets.forget.indices] / 255).astype(jnp.float32)
    y = sets.forget.examples.y[sets.forget.indices]

    def loss(params):
        return cross_entropy(toy.mlp().apply({"params": params}, x), y, jnp.ones(size))

    gradient = jax.grad(loss)(given["params"])
    wanted = jax.tree.map(lambda p, g: p + rate * g, given["params"], gradient)
    for a, b in zip(jax.tree.leaves(out.variables), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_wrong_labels_are_wrong_and_uniform():
    labels = jnp.tile(jnp.arange(5, dtype=jnp.int32), 4000)
    wrong = np.asarray(wrong_labels(labels, 5, KEY))
    assert (wrong != np.asarray(labels)).all()
    counts = np.bincount((wrong - np.asarray(labels)) % 5, minlength=5)
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:] / len(labels), 0.25, atol=0.02)


def test_random_label_forgets_and_retains():
    out = ju.unlearn(
        ju.random_label(toy.mlp(), optimizer=optax.adam(3e-3)), toy.trained().variables, toy.sets(),
        KEY, steps=60, batch_size=32,
    )  # fmt: skip
    forget, retain = accuracies(out.variables)
    assert forget < 0.2
    assert retain > 0.9


def test_batch_statistics_move_in_training_and_rest_in_gradient_ascent():
    model = ju.build("resnet8", toy.SHAPE, 4, {"width": 4, "stages": (1,)})
    given = model.init(KEY)
    tuned = ju.unlearn(ju.finetune(model), given, toy.sets(), KEY, steps=1, batch_size=8).variables
    risen = ju.unlearn(ju.gradient_ascent(model), given, toy.sets(), KEY, steps=1, batch_size=8)
    mean = lambda v: np.asarray(v["batch_stats"]["bn1"]["mean"])  # noqa: E731
    assert (mean(tuned) != mean(given)).any()
    np.testing.assert_array_equal(mean(risen.variables), mean(given))


# ---- neuron_path: a network small enough to do by hand


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


def hand_run(**options):
    method = ju.neuron_path(by_hand, **{"per_sample": 2, "neurons": 2, "samples": 2, **options})
    return ju.unlearn(method, HAND, hand_sets(), KEY).variables["params"]


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
    key = jax.random.key(0)
    wide = {"params": {"w1": jnp.ones((3, 4000)), "head": jnp.ones((4000, 2))}}
    apply = lambda v, x: jax.nn.relu(x @ v["params"]["w1"]) @ v["params"]["head"]  # noqa: E731
    x, y = np.ones((4, 3), np.float32), np.array([0, 0, 1, 1])
    sets = ju.make_sets(x, y, ju.forget_class(0), unseen=(x, y))
    for edit, spread in (("gaussian", 2.0), ("laplace", 2.0 * 2**0.5)):
        method = ju.neuron_path(
            apply, per_sample=4000, neurons=4000, weights=("outgoing",), edit=edit, scale=2.0
        )
        changed = ju.unlearn(method, wide, sets, key).variables["params"]["head"] - 1
        np.testing.assert_allclose(np.std(changed), spread, rtol=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neurons": 0}, "neurons: expected a positive number, got 0"),
        ({"edit": "burn"}, "edit: expected one of"),
        ({"seed": "loss"}, "seed: expected 'argmax' or 'label'"),
        ({"epsilon": -1.0}, "epsilon: expected a number >= 0"),
        ({"weights": ("all",)}, "weights: expected some of"),
        ({"scale": -1}, "scale: expected a positive number, got -1"),
        ({"scale": 0.0}, "scale: expected a positive number, got 0.0"),
        ({"neurons": 5}, "expected at most the 4 inputs of params/out/w, got 5"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        hand_run(**options)


def test_a_residual_network_has_no_single_producer():
    model = ju.build("resnet8", toy.SHAPE, 4, {"width": 4})
    variables = model.init(KEY)
    options = {"per_sample": 2, "neurons": 3, "samples": 8}
    with pytest.raises(ValueError, match="not the units of one layer"):
        ju.unlearn(
            ju.neuron_path(model, weights=("incoming",), **options), variables, toy.sets(), KEY
        )
    edited = ju.unlearn(ju.neuron_path(model, **options), variables, toy.sets(), KEY).variables
    head = np.asarray(edited["params"]["head"]["kernel"])
    assert (head == 0).all(axis=1).sum() == 3, "as published: all outgoing weights of S"


# ---- neuron_path: however the kernels are stored


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


def edited(apply, variables, x, **options):
    y = np.array([1, 1, 1, 1, 2, 2, 0, 0])
    sets = ju.make_sets(np.asarray(x), y, ju.forget_class(1), unseen=(np.asarray(x), y))
    options = {"per_sample": 2, "neurons": 2, "samples": 4} | options
    return ju.unlearn(ju.neuron_path(apply, **options), variables, sets, KEY).variables


@pytest.mark.parametrize("weights", [None, ("incoming",), ("outgoing",), ("class",)])
@pytest.mark.parametrize("case", STORED)
def test_the_same_weights_are_edited_however_they_are_stored(case, weights):
    apply, shapes, examples, order = STORED[case]
    variables, x = {name: drawn(*shape) for name, shape in shapes.items()}, drawn(*examples)
    stored = {"fc": variables["fc"].transpose(order), "head": variables["head"].T}
    plain = edited(apply, variables, x, weights=weights)
    torch = edited(torch_net, stored, x, weights=weights)
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


def test_random_label_refuses_a_negative_weight():
    with pytest.raises(ValueError, match="forget_weight: expected a number >= 0, got -1"):
        ju.random_label(toy.mlp(), forget_weight=-1)
