import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxunlearn as ju
from jaxunlearn.config import TrainConfig
from jaxunlearn.core.errors import DivergenceError
from jaxunlearn.core.types import Info, Needs, Sets, Unlearner
from jaxunlearn.engine.driver import CHUNK, Resume
from jaxunlearn.engine.loop import has_weight_gradient_convolution, unchanged
from tests import toy

KEY = jax.random.key(0)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def counter(needs=None):
    """Counts steps and examples; the labels it sees are summed."""

    def init(variables, sets, key):
        return {"w": variables["w"], "steps": jnp.int32(0), "seen": jnp.float32(0)}

    def step(state, batches, key, count):
        batch = next(b for b in batches if b is not None)
        seen = state["seen"] + jnp.sum(batch.weight)
        info = Info({"seen": seen, "labels": jnp.sum(batch.y)}, jnp.isfinite(seen))
        return {**state, "steps": state["steps"] + 1, "seen": seen}, info

    def result(state):
        return {"w": state["w"] + state["steps"].astype(jnp.float32)}

    return Unlearner(init, step, result, needs or Needs(retain=True))


VARIABLES = {"w": jnp.zeros(3)}


@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_chunks_change_nothing(chunk):
    out = ju.unlearn(counter(), VARIABLES, toy.sets(), KEY, steps=7, chunk=chunk, batch_size=5)
    assert float(out.variables["w"][0]) == 7
    np.testing.assert_array_equal(out.history["seen"], np.arange(1, 8) * 5)
    assert (out.steps, out.examples) == (7, 35)


def test_training_does_not_depend_on_chunks():
    outs = [
        ju.unlearn(toy.method("finetune"), toy.trained().variables, toy.sets(), KEY,
                   steps=6, chunk=chunk, batch_size=8)
        for chunk in (1, 4)
    ]  # fmt: skip
    for a, b in zip(*(jax.tree.leaves(o.variables) for o in outs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_stop_rule_is_read_between_chunks():
    out = ju.unlearn(
        counter(), VARIABLES, toy.sets(), KEY, steps=50, chunk=5, batch_size=1,
        stop=lambda latest: latest["seen"].max() >= 12,
    )  # fmt: skip
    assert out.steps == 15


def test_a_single_pass_counts_its_own_steps():
    method = counter(Needs(retain=True, once=True))
    out = ju.unlearn(method, VARIABLES, toy.sets(), KEY, batch_size=32)
    retained = int(toy.sets().retain.size)
    assert out.steps == -(-retained // 32)
    assert out.history["seen"][-1] == retained == out.examples


def test_few_samples_make_a_small_batch():
    method = counter(Needs(retain=True, once=True, samples=10))
    out = ju.unlearn(method, VARIABLES, toy.sets(), KEY, batch_size=128)
    assert (out.steps, out.examples, out.history["seen"][-1]) == (1, 10, 10)


def test_steps_must_suit_the_method():
    with pytest.raises(ValueError, match="steps: expected None"):
        ju.unlearn(counter(Needs(retain=True, once=True)), VARIABLES, toy.sets(), KEY, steps=3)
    with pytest.raises(ValueError, match="steps: expected a positive number"):
        ju.unlearn(counter(), VARIABLES, toy.sets(), KEY)
    with pytest.raises(ValueError, match="batch_size: expected a positive number, got 0"):
        ju.unlearn(counter(), VARIABLES, toy.sets(), KEY, steps=1, batch_size=0)


def test_labels_are_not_passed_where_none_are_needed():
    def init(variables, sets, key):
        largest = jnp.max(sets.retain.examples.y).astype(jnp.float32)
        return {**counter().init(variables, sets, key), "seen": largest}

    method = counter(Needs(retain=True, labels=False))._replace(init=init)
    out = ju.unlearn(method, VARIABLES, toy.sets(), KEY, steps=2, batch_size=4)
    np.testing.assert_array_equal(out.history["labels"], [-4, -4])
    np.testing.assert_array_equal(out.history["seen"], [-1 + 4, -1 + 8])


def test_a_killed_run_continues_to_the_same_bits():
    """The state after 8 of 20 steps, saved and brought back."""
    kept = {}
    arguments = (toy.method("retrain"), None, toy.sets(), KEY)
    options = {"steps": 20, "chunk": 4, "batch_size": 8}

    def keep(progress):
        if progress.step == 8:
            copy = jax.tree.map(jnp.copy, progress.state)
            kept["at"] = Resume(copy, progress.step, 5.0, dict(progress.history))

    whole = ju.unlearn(*arguments, **options, on_chunk=keep)
    rest = ju.unlearn(*arguments, **options, resume=lambda fresh: kept["at"])
    same(whole.variables, rest.variables)
    np.testing.assert_array_equal(whole.history["loss"], rest.history["loss"])
    assert rest.seconds >= 5, "time spent before the kill counts"


def test_divergence_names_the_step():
    method = ju.finetune(toy.mlp(), optimizer=optax.sgd(1e20))
    with pytest.raises(DivergenceError, match=r"step \d+: expected a finite loss .* learning rate"):
        ju.unlearn(method, toy.trained().variables, toy.sets(), KEY, steps=20, batch_size=8)


def test_time_to_compile_is_apart():
    method = ju.finetune(toy.mlp())
    arguments = (method, toy.trained().variables, toy.sets(), KEY)
    first, again = (ju.unlearn(*arguments, steps=3, batch_size=11) for _ in range(2))
    assert first.compile_seconds > 10 * again.compile_seconds
    assert first.seconds < first.compile_seconds


def test_what_callbacks_do_is_no_run_time():
    out = ju.unlearn(
        toy.method("finetune"), toy.trained().variables, toy.sets(), KEY, steps=2, chunk=1,
        on_chunk=lambda progress: time.sleep(0.5), resume=lambda fresh: time.sleep(0.5),
    )  # fmt: skip
    assert out.seconds < 1 < 3 * 0.5, "three times half a second were slept"


def plain_convolution(variables, x):
    z = lax.conv_general_dilated(
        x, variables["params"]["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(z).mean((1, 2)) @ variables["params"]["head"]


PLAIN = {"params": {"k": jnp.ones((3, 3, 1, 2)) * 0.1, "head": jnp.ones((2, 4)) * 0.1}}


def test_a_users_plain_convolution_is_not_looped_over_on_cpu():
    """XLA's weight gradient in a compiled loop is ruinous there; the chunk length shows it."""
    chunks = []
    method = ju.finetune(plain_convolution)
    out = ju.unlearn(
        method, PLAIN, toy.sets(), KEY, steps=3, batch_size=4,
        on_chunk=lambda progress: chunks.append(progress.step),
    )  # fmt: skip
    assert chunks == [1, 2, 3]
    keys = jax.random.split(KEY, 2)
    many = ju.unlearn_many(method, PLAIN, toy.sets(), keys, steps=3, batch_size=4)
    assert many.variables["params"]["k"].shape == (2, 3, 3, 1, 2)
    one = ju.unlearn(method, PLAIN, toy.sets(), keys[1], steps=3, batch_size=4)
    same(jax.tree.map(lambda leaf: leaf[1], many.variables), one.variables)
    assert out.steps == 3


def test_no_chunk_length_defeats_that():
    chunks = []
    ju.unlearn(
        ju.finetune(plain_convolution), PLAIN, toy.sets(), KEY, steps=2, batch_size=4, chunk=8,
        on_chunk=lambda progress: chunks.append(progress.step),
    )  # fmt: skip
    assert chunks == [1, 2]


def test_built_in_convolutions_are_looped_over():
    chunks = []
    model = ju.models.build("cnn", toy.SHAPE, 4, {"channels": (2, 2), "features": 4})
    part = toy.sets().retain
    config = TrainConfig(epochs=0.2, batch_size=8)
    ju.train(model, part, KEY, config=config, on_chunk=lambda p: chunks.append(p.step))
    assert chunks == [3]
    assert CHUNK > 3


def test_only_weight_gradients_count():
    x, k = jnp.ones((2, 5, 5, 1)), jnp.ones((3, 3, 1, 2))

    def loss(k, x):
        z = lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return z.sum()

    assert has_weight_gradient_convolution(jax.make_jaxpr(jax.jit(jax.grad(loss)))(k, x))
    assert not has_weight_gradient_convolution(jax.make_jaxpr(jax.grad(loss, argnums=1))(k, x))
    assert not has_weight_gradient_convolution(jax.make_jaxpr(loss)(k, x))


def test_stacked_variables_have_an_original_each():
    twice = jax.tree.map(lambda a: jnp.stack([a, a * 0.5]), toy.trained().variables)
    keys = jax.random.split(KEY, 2)
    method = toy.method("neuron_path")
    many = ju.unlearn_many(method, twice, toy.sets(), keys, stacked_variables=True)
    half = jax.tree.map(lambda a: a[1], twice)
    one = ju.unlearn(method, half, toy.sets(), keys[1])
    for a, b in zip(jax.tree.leaves(many.variables), jax.tree.leaves(one.variables), strict=True):
        np.testing.assert_allclose(a[1], b, atol=1e-6)


def test_retrained_models_train_in_one_program():
    config = TrainConfig(epochs=2, batch_size=16, learning_rate=3e-3)
    part, keys = toy.sets().retain, jax.random.split(jax.random.key(4), 3)
    many = ju.train_many(toy.mlp(), part, keys, config=config)
    assert many.history["loss"].shape == (many.steps, 3)
    one = ju.train(toy.mlp(), part, keys[2], config=config)
    for a, b in zip(jax.tree.leaves(many.variables), jax.tree.leaves(one.variables), strict=True):
        np.testing.assert_allclose(a[2], b, atol=1e-5)


def test_members_may_go_a_few_at_a_time():
    keys = jax.random.split(KEY, 3)
    options = {"steps": 2, "batch_size": 8, "vectorise": True}
    arguments = (toy.method("finetune"), toy.trained().variables, toy.sets(), keys)
    few, all_ = (ju.unlearn_many(*arguments, **options, at_a_time=n) for n in (2, None))
    for a, b in zip(jax.tree.leaves(few.variables), jax.tree.leaves(all_.variables), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_leading_axes_must_agree():
    stacked = ju.data.stack_sets([toy.sets(ju.forget_class(c)) for c in range(3)])
    mixed = stacked._replace(forget=toy.sets().forget)
    keys = jax.random.split(KEY, 2)
    many = lambda **changes: ju.unlearn_many(  # noqa: E731
        **{"unlearner": counter(), "variables": VARIABLES, "sets": stacked, "keys": keys,
           "steps": 1, **changes}
    )  # fmt: skip
    with pytest.raises(ValueError, match="sets: expected all stacked for 2 members"):
        many()
    with pytest.raises(ValueError, match="sets: expected all stacked for 3 members"):
        many(sets=mixed, keys=jax.random.split(KEY, 3))
    with pytest.raises(ValueError, match="keys: expected one key a member"):
        many(keys=KEY)
    with pytest.raises(ValueError, match="variables: expected a leading axis of 2 members"):
        many(sets=toy.sets(), stacked_variables=True)
    with pytest.raises(ValueError, match="use unlearn_many"):
        ju.unlearn(counter(), VARIABLES, stacked, KEY, steps=1)


def test_an_empty_set_is_refused():
    empty = toy.sets().retain._replace(size=jnp.int32(0))
    with pytest.raises(ValueError, match="needs retain examples, got none"):
        ju.unlearn(counter(), VARIABLES, Sets(retain=empty), KEY, steps=1)


def test_methods_share_the_program_that_compares_models():
    def run(rate):
        method = counter()._replace(result=lambda state: {"w": state["w"] + rate})
        ju.unlearn(method, {"w": jnp.zeros(3)}, toy.sets(), KEY, steps=1, batch_size=16)

    run(1.0)
    before = unchanged._cache_size()
    run(2.0)
    assert unchanged._cache_size() == before
