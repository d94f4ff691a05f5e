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


def test_random_label_refuses_a_negative_weight():
    with pytest.raises(ValueError, match="forget_weight: expected a number >= 0, got -1"):
        ju.random_label(toy.mlp(), forget_weight=-1)
