"""SmoothGrad of any attribution; baselines drawn from examples."""

import re

import chex
import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxunlearn.attribution import baselines, integrated_gradients, lrp, quadrature, smoothgrad
from jaxunlearn.attribution.lrp import rules
from jaxunlearn.attribution.smoothgrad import _noisy

V = {"w": nets.draw(0, 6, 8) / 2, "head": nets.draw(1, 8, 3)}
X, KEY = nets.draw(2, 8, 6), jax.random.key(3)
RULE = quadrature.midpoint(3)


def fn(v, x):
    return jax.nn.relu(x @ v["w"]) @ v["head"]


def gradient(v, x, y):
    return jax.grad(lambda x: jnp.sum(fn(v, x)[:, y]))(x)


ATTRIBUTIONS = {
    "gradient": gradient,
    "lrp": lrp(fn, rules.epsilon(0.1)),
    "integrated gradients": integrated_gradients(fn, RULE),
}


def by_hand(attribute, n, *args):
    found = [attribute(V, _noisy(key, X, 0.2), *args) for key in jax.random.split(KEY, n)]
    return jax.tree.map(lambda *parts: sum(parts) / n, *found)


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_it_is_the_mean_over_noisy_inputs(name):
    attribute = ATTRIBUTIONS[name]
    args = (1,) if name != "lrp" else ()
    smoothed = jax.jit(smoothgrad(attribute, 3, scale=0.2), static_argnums=2)
    found = smoothed(V, X, *args, key=KEY)
    chex.assert_trees_all_close(found, by_hand(attribute, 3, *args), atol=1e-5)
    chex.assert_trees_all_equal(smoothed(V, X, *args, key=KEY), found)
    other = smoothed(V, X, *args, key=jax.random.key(4))
    assert not np.allclose(jax.tree.leaves(other)[0], jax.tree.leaves(found)[0])
    assert smoothed._cache_size() == 1


def test_noise_is_a_share_of_the_range_of_each_example_and_array():
    x = {"image": jnp.stack([jnp.linspace(0, 1, 5000), jnp.linspace(-5, 5, 5000)])}
    x |= {"age": jnp.zeros((2, 1)), "kind": jnp.arange(2)}
    noisy = jax.jit(lambda key: _noisy(key, x, 0.1))(KEY)
    spread = np.std(noisy["image"] - x["image"], axis=1)
    np.testing.assert_allclose(spread, [0.1, 1.0], rtol=0.05)
    chex.assert_trees_all_equal(noisy | {"image": 0}, x | {"image": 0})


def test_integers_of_a_result_stay_integers_and_halves_halves():
    def both(v, x):
        return {"largest": jnp.argmax(fn(v, x), 1), "half": x.astype(jnp.bfloat16)}

    found = smoothgrad(both, 4)(V, X, key=KEY)
    assert found["largest"].dtype == jnp.int32
    assert found["half"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(found["half"]), X, atol=2.0)


def test_sharded_over_examples_without_communication():
    smoothed = jax.jit(smoothgrad(integrated_gradients(fn, RULE), 3))
    expected = smoothed(V, X, 1, key=KEY)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, same = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    args = jax.device_put(V, same), jax.device_put(X, rows), 1
    program = smoothed.lower(*args, key=KEY).compile().as_text()
    assert not re.findall(r"all-reduce|all-gather|all-to-all|collective-permute", program)
    found = smoothed(*args, key=KEY)
    assert found.attribution.sharding.is_equivalent_to(rows, 2)
    chex.assert_trees_all_close(found, expected, atol=1e-5)
    specs = {"mesh": mesh, "in_specs": (P(), P("data"), P()), "out_specs": P("data")}
    mapped = jax.jit(
        jax.shard_map(lambda v, x, k: smoothgrad(gradient, 2)(v, x, 1, key=k), **specs)
    )
    assert mapped(V, X, KEY).shape == X.shape


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="smoothgrad: expected n of at least 1, got 0"):
        smoothgrad(gradient, 0)
    with pytest.raises(ValueError, match="smoothgrad: expected a positive scale, got -1"):
        smoothgrad(gradient, scale=-1)
    with pytest.raises(TypeError, match="x: expected floats to add noise to, got integers"):
        smoothgrad(gradient)(V, jnp.zeros((2, 6), jnp.int32), 1, key=KEY)


# --- baselines drawn from examples


def test_sampled_baselines_are_rows_of_the_examples():
    examples = nets.draw(5, 10, 6)
    drawn = baselines.sampled(KEY, examples, 200)
    found = jax.jit(lambda b, x: b(x))(drawn, X)
    assert found.shape == (200, 8, 6)
    which = jnp.argmin(jnp.sum(jnp.abs(found[..., None, :] - examples[None, None]), -1), -1)
    np.testing.assert_array_equal(examples[which], found)
    assert np.bincount(np.ravel(which), minlength=10).min() > 100
    # the same key draws the same rows, of every leaf
    both = baselines.resolve_all(
        {"a": drawn, "b": baselines.sampled(KEY, 2 * examples, 200)}, {"a": X, "b": X}
    )
    np.testing.assert_array_equal(2 * both[0], both[1])
    for wrong in (0, 2.0):
        with pytest.raises(ValueError, match="sampled: expected n of at least 1, got"):
            baselines.sampled(KEY, examples, wrong)
    with pytest.raises(ValueError, match=r"sampled: expected examples \[N, ...\], got shape \(0,"):
        baselines.sampled(KEY, examples[:0])


def test_expected_gradients_approach_those_of_all_examples():
    examples = nets.draw(5, 10, 6)
    attribute = jax.jit(integrated_gradients(fn, quadrature.automatic(4)))
    exact = attribute(V, X, 1, baselines.several(examples))
    errors = []
    for n in (4, 400):
        r = attribute(V, X, 1, baselines.sampled(KEY, examples, n))
        errors.append(float(jnp.mean(jnp.abs(r.attribution - exact.attribution))))
    assert errors[1] <= 0.3 * errors[0]
    np.testing.assert_allclose(r.baseline_score, exact.baseline_score, atol=0.3)
