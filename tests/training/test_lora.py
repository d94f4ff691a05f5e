"""Low-rank adapters against the formula, and in methods of any kind."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.core.types import Batches
from jaxunlearn.engine.sharding import make_sharding, spec_of
from jaxunlearn.methods.retrain import learn_retained
from jaxunlearn.training.descent import descent, original_of, trained
from jaxunlearn.training.lora import Adapters, Lora, make_lora
from tests import toy

EVERY = (r"fc\d+/kernel",)


def params_of(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    return {
        "fc1": {"kernel": draw(5, 7), "bias": draw(7)},
        "conv": {"kernel": draw(3, 3, 2, 4)},
        "fc2": {"kernel": draw(7, 3)},
    }


def grown(lora, params):
    """Adapters whose second factor has left zero."""
    start = lora.start(params, jax.random.key(1))
    return start._replace(b=jax.tree.map(lambda leaf: leaf + 0.3, start.b))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_at_the_start_the_network_is_the_same_bit_for_bit(dtype):
    params, lora = params_of(dtype), make_lora(2, 3.0, EVERY)
    merged = lora.merge(params, lora.start(params, jax.random.key(0)))
    for path, leaf in named_leaves(params).items():
        assert named_leaves(merged)[path].dtype == dtype
        np.testing.assert_array_equal(named_leaves(merged)[path], leaf)


def test_merged_kernels_by_numpy():
    params, lora = params_of(), make_lora(2, 3.0, (r"fc1/kernel",))
    adapters = grown(lora, params)
    merged = lora.merge(params, adapters)
    a, b = (np.asarray(tree["fc1"]["kernel"], np.float64) for tree in adapters)
    assert a.shape == (5, 2)
    assert b.shape == (2, 7)
    wanted = np.asarray(params["fc1"]["kernel"]) + 3 / 2 * a @ b
    np.testing.assert_allclose(merged["fc1"]["kernel"], wanted, rtol=1e-5)
    assert merged["fc2"] is not None
    np.testing.assert_array_equal(merged["fc2"]["kernel"], params["fc2"]["kernel"])
    assert len(jax.tree.leaves(adapters)) == 2


def test_adapters_keep_wide_numbers_beside_narrow_kernels():
    params, lora = params_of(jnp.bfloat16), make_lora(2, 3.0, EVERY)
    assert {leaf.dtype for leaf in jax.tree.leaves(lora.start(params, jax.random.key(0)))} == {
        jnp.dtype("float32")
    }


def test_kernels_draw_numbers_of_their_own():
    params = {"fc1": {"kernel": jnp.ones((400, 9))}, "fc2": {"kernel": jnp.ones((400, 9))}}
    a = make_lora(4, None, EVERY).start(params, jax.random.key(0)).a
    assert np.std(a["fc1"]["kernel"]) == pytest.approx(400**-0.5, rel=0.1)
    assert abs(np.corrcoef(np.ravel(a["fc1"]["kernel"]), np.ravel(a["fc2"]["kernel"]))[0, 1]) < 0.1


def quadratic(variables, batches, context):
    del batches, context
    leaves = jax.tree.leaves(trained(variables))
    return sum(jnp.sum(jnp.square(leaf - 1)) for leaf in leaves) / 2, (variables, {})


def one_step(method, state):
    return method.step(state, Batches(), jax.random.key(0), jnp.int32(0))[0]


def test_of_full_rank_and_an_identity_it_is_a_step_of_full_training():
    """``B`` then moves as the kernel would: ``dB = -eta A'G`` with ``A`` the identity."""
    params = {"fc1": {"kernel": params_of()["fc1"]["kernel"][:4, :4]}}
    method = descent(quadratic, optax.sgd(0.1), ju.Needs(), lora=Lora(4, 4.0, EVERY))
    state = method.init(params, ju.Sets(), jax.random.key(0))
    state = state._replace(adapters=Adapters({"fc1": {"kernel": jnp.eye(4)}}, state.adapters.b))
    full = descent(quadratic, optax.sgd(0.1), ju.Needs())
    wanted = full.result(one_step(full, full.init(params, ju.Sets(), jax.random.key(0))))
    made = method.result(one_step(method, state))
    np.testing.assert_allclose(made["fc1"]["kernel"], wanted["fc1"]["kernel"], rtol=1e-6)


def test_a_step_by_hand_under_momentum_and_decay():
    params, lora = {"params": params_of(), "statistics": jnp.ones(3)}, make_lora(2, 5.0, EVERY)
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.01, momentum=0.9))
    method = descent(quadratic, optimizer, ju.Needs(original=True), lora=lora)
    state = method.init(params, ju.Sets(), jax.random.key(0))
    state = state._replace(adapters=grown(lora, params["params"]))
    assert not jax.tree.leaves(trained(state.original)), "no second copy"
    np.testing.assert_array_equal(
        original_of(state)["params"]["fc1"]["kernel"], params["params"]["fc1"]["kernel"]
    )
    assert len(jax.tree.leaves(state.opt_state)) == 4, "a momentum for each factor"
    moved = one_step(method, state)
    for name in ("fc1", "fc2"):
        a, b = (np.asarray(tree[name]["kernel"], np.float64) for tree in state.adapters)
        slope = np.asarray(params["params"][name]["kernel"]) + 2.5 * a @ b - 1
        wanted = a - 0.01 * (2.5 * slope @ b.T + 0.1 * a), b - 0.01 * (2.5 * a.T @ slope + 0.1 * b)
        for got, want in zip(moved.adapters, wanted, strict=True):
            np.testing.assert_allclose(got[name]["kernel"], want, rtol=1e-5, atol=1e-6)
    result = method.result(moved)
    for path in ("params/conv/kernel", "params/fc1/bias", "statistics"):
        np.testing.assert_array_equal(named_leaves(result)[path], named_leaves(params)[path])
    assert jax.tree.structure(result) == jax.tree.structure(params)


def test_a_mask_holds_adapters_back_bit_for_bit():
    lora = make_lora(2, 5.0, EVERY)
    masked = ju.training.only(optax.adamw(0.1, weight_decay=0.5), ju.training.matching("fc2/"))
    method = descent(quadratic, masked, ju.Needs(), lora=lora)
    state = method.init(params_of(), ju.Sets(), jax.random.key(0))
    moved = one_step(method, one_step(method, state))
    for before, after in zip(state.adapters, moved.adapters, strict=True):
        np.testing.assert_array_equal(before["fc1"]["kernel"], after["fc1"]["kernel"])
        assert (before["fc2"]["kernel"] != after["fc2"]["kernel"]).any()


def test_any_gradient_method_trains_adapters():
    """A classifier by way of the runner; nothing else of it moves."""
    method = descent(
        learn_retained(toy.mlp()), optax.adam(1e-2), ju.Needs(retain=True), lora=Lora(2, 4.0, EVERY)
    )
    before = toy.trained().variables
    made = ju.unlearn(method, before, toy.sets(), jax.random.key(2), steps=3, batch_size=16)
    for path, leaf in named_leaves(made.variables).items():
        same = np.array_equal(leaf, named_leaves(before)[path])
        assert same == (path not in ("params/fc1/kernel", "params/fc2/kernel")), path


def test_rules_for_kernels_hold_for_their_factors():
    state = Lora(2, 4.0, EVERY).start(params_of(), jax.random.key(0))
    sharding = make_sharding("data=2,model=4", ((r"fc2/kernel$", ("model", None)),))
    paths = named_leaves({"adapters": state})
    spec = spec_of("adapters/a/fc2/kernel", (8, 2), sharding)
    assert "adapters/a/fc2/kernel" in paths
    assert spec[0] == "model"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "lora: expected a positive number, got 0"),
        ((2.5,), "lora: expected a positive number, got 2.5"),
        ((2, -1.0), "lora_alpha: expected a number of 0 or more"),
        ((2, None, ()), "lora_on: expected"),
        ((2, None, ("(",)), "lora_on: expected regular expressions"),
    ],
)
def test_wrong_adapters(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make_lora(*arguments)


@pytest.mark.parametrize("pattern", ["nothing", "conv/kernel", "bias"])
def test_a_pattern_that_finds_no_matrix(pattern):
    with pytest.raises(ConfigError, match=r"lora_on: expected patterns found in some of \['fc1"):
        make_lora(2, None, (pattern,)).start(params_of(), jax.random.key(0))
