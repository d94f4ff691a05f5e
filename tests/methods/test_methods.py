"""What each method does that the others do not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.data.sets import num_examples
from jaxunlearn.engine.predict import predict
from jaxunlearn.methods.random_label import wrong_labels
from jaxunlearn.training.descent import cross_entropy
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
    optimizer = optax.sgd(1e-9)  # small steps: an original given back bit by bit is an error
    given = toy.trained().variables
    tuned = ju.unlearn(ju.finetune(toy.mlp(), optimizer=optimizer), given, toy.sets(), KEY, steps=2)
    fresh = ju.unlearn(ju.retrain(toy.mlp(), optimizer=optimizer), given, toy.sets(), KEY, steps=2)
    np.testing.assert_allclose(tuned.variables["params"]["fc1"]["kernel"],
                               given["params"]["fc1"]["kernel"], atol=1e-6)  # fmt: skip
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

    gradient = jax.jit(jax.grad(loss))(given["params"])
    wanted = jax.tree.map(lambda p, g: p + rate * g, given["params"], gradient)
    for a, b in zip(jax.tree.leaves(out.variables), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_wrong_labels_are_wrong_and_uniform():
    labels = jnp.tile(jnp.arange(5, dtype=jnp.int32), 4000)
    wrong = np.asarray(wrong_labels(labels, jnp.ones(5, bool), KEY))
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
    model = ju.models.build("resnet8", toy.SHAPE, 4, {"width": 4, "stages": (1,)})
    given = jax.jit(model.init)(KEY)
    tuned = ju.unlearn(ju.finetune(model), given, toy.sets(), KEY, steps=1, batch_size=8).variables
    risen = ju.unlearn(ju.gradient_ascent(model), given, toy.sets(), KEY, steps=1, batch_size=8)
    mean = lambda v: np.asarray(v["batch_stats"]["bn1"]["mean"])  # noqa: E731
    assert (mean(tuned) != mean(given)).any()
    np.testing.assert_array_equal(mean(risen.variables), mean(given))


def test_random_label_refuses_a_negative_weight():
    with pytest.raises(ValueError, match="forget_weight: expected a number of 0 or more, got -1"):
        ju.random_label(toy.mlp(), forget_weight=-1)
