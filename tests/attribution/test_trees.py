"""Inputs that are pytrees: several arrays of one leading axis, some of them integers."""

import chex
import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxunlearn.attribution import (
    concept_maps,
    conductance,
    features,
    grad_cam,
    integrated_gradients,
    layer_integrated_gradients,
    lrp,
    starts,
    structure,
)
from jaxunlearn.attribution.ig import baselines, quadrature
from jaxunlearn.attribution.lrp import rules

RULE = quadrature.gauss_legendre(4)
EPSILON = rules.epsilon(0.1)
START = starts.label(1, times_logit=True)


V = {"w": nets.draw(0, 7, 6) / 2, "b": nets.draw(1, 6), "head": nets.draw(2, 6, 3)}
A, B, MASK = nets.draw(3, 4, 5), nets.draw(4, 4, 2), jnp.array([1, 0, 1, 1])


def joined(v, x):
    """``x [B, 7]``."""
    return jax.nn.gelu(x @ v["w"] + v["b"][None]) @ v["head"]


def of_dict(v, x):
    return joined(v, jnp.concatenate([x["a"], x["b"]], axis=1))


def masked(v, x):
    """A mask of examples that is multiplied by, which must not count as a gate."""
    x, mask = x
    h = checkpoint_name(jax.nn.gelu(x @ v["w"] + v["b"][None]), "h")
    return (h * mask.astype(h.dtype)[:, None]) @ v["head"]


X = {"a": A, "b": B}
WHOLE = jnp.concatenate([A, B], axis=1)


def closed(v, x):
    return masked(v, (x, jnp.repeat(MASK, len(x) // len(MASK))))


def test_relevance_of_a_dict_is_that_of_its_parts():
    r = jax.jit(lrp(of_dict, EPSILON))(V, X, START)
    expected = jax.jit(lrp(joined, EPSILON))(V, WHOLE, START)
    chex.assert_trees_all_equal_structs(r.input, X)
    np.testing.assert_allclose(r.input["a"], expected.input[:, :5], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(r.input["b"], expected.input[:, 5:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(r.total, expected.total, atol=1e-5)
    absorbed = sum(entry.total for entry in r.ledger.values())
    np.testing.assert_allclose(absorbed, r.total, atol=1e-5)
    assert structure(of_dict, V, X) == structure(joined, V, WHOLE)
    np.testing.assert_allclose(features(of_dict)(V, X), features(joined)(V, WHOLE), atol=1e-6)


def test_integers_beside_floats_are_constants_and_have_no_relevance():
    r = jax.jit(lrp(masked, EPSILON))(V, (WHOLE, MASK), START)
    expected = jax.jit(lrp(closed, EPSILON))(V, WHOLE, START)
    assert r.input[1] is None
    chex.assert_trees_all_close(r._replace(input=r.input[0]), expected, atol=1e-6)
    assert "mul" not in r.ledger
    by_example = jax.vmap(
        lambda x, mask: lrp(masked, EPSILON)(V, (x[None], mask[None]), START).input[0][0]
    )
    np.testing.assert_allclose(by_example(WHOLE, MASK), r.input[0], atol=1e-5)


TABLE = {"table": nets.draw(5, 7, 5), "place": nets.draw(6, 4, 5), "head": nets.draw(7, 5, 3)}
TOKENS = jnp.array([[1, 2, 6, 0], [3, 5, 0, 0]])
SHOWN = jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]])


def language(v, x):
    """Tokens with places counted along their mask, and an average over what is not masked."""
    place = jnp.maximum(jnp.cumsum(x["mask"], axis=1) - 1, 0)
    h = checkpoint_name(v["table"][x["tokens"]] + v["place"][place], "h")
    weight = x["mask"].astype(h.dtype)
    pooled = jnp.sum(jnp.tanh(h) * weight[..., None], axis=1)
    return (pooled / jnp.sum(weight, axis=1, keepdims=True)) @ v["head"]


def test_relevance_of_tokens_with_a_mask_goes_to_the_tokens():
    x = {"tokens": TOKENS, "mask": SHOWN}
    r = jax.jit(lrp(language, EPSILON))(TABLE, x, START)
    assert r.input["mask"] is None
    assert r.input["tokens"].shape == TOKENS.shape
    expected = lrp(lambda v, tokens: language(v, {"tokens": tokens, "mask": SHOWN}), EPSILON)
    chex.assert_trees_all_close(r.input["tokens"], expected(TABLE, TOKENS, START).input, atol=1e-6)
    np.testing.assert_array_equal(r.input["tokens"][SHOWN == 0], 0)
    assert np.all(r.input["tokens"][SHOWN == 1] != 0)
    # the same with a mask of bools, which is never followed
    as_bool = lrp(language, EPSILON)(TABLE, x | {"mask": SHOWN == 1}, START)
    chex.assert_trees_all_close(as_bool.input, r.input, atol=1e-6)


def test_integers_that_nothing_is_read_at_are_followed_where_there_is_nothing_else():
    images = {"x": jnp.arange(14, dtype=jnp.uint8).reshape(2, 7)}
    r = lrp(lambda v, x: joined(v, x["x"].astype(jnp.float32) / 7), EPSILON)(V, images)
    one = lrp(lambda v, x: joined(v, x.astype(jnp.float32) / 7), EPSILON)(V, images["x"])
    np.testing.assert_array_equal(r.input["x"], one.input)
    with pytest.raises(TypeError, match="x: expected a leaf of floats or integers, got"):
        lrp(lambda v, x: joined(v, x[0].astype(jnp.float32)))(V, (WHOLE > 0, MASK > 0))


@pytest.mark.parametrize("complete", [False, True])
def test_integrated_gradients_of_a_dict_are_those_of_its_parts(complete):
    attribute = jax.jit(integrated_gradients(of_dict, RULE, chunk=3, complete=complete))
    of_whole = jax.jit(integrated_gradients(joined, RULE, chunk=3, complete=complete))
    baseline = {"a": jnp.ones(5), "b": 0.5}
    r = attribute(V, X, 1, baseline)
    expected = of_whole(V, WHOLE, 1, jnp.concatenate([jnp.ones(5), jnp.full(2, 0.5)]))
    parts = {"a": expected.attribution[:, :5], "b": expected.attribution[:, 5:]}
    chex.assert_trees_all_close(r, expected._replace(attribution=parts), atol=1e-5)
    # one baseline for all leaves, and several of them
    both = [attribute(V, X, 1, {"a": b, "b": b}) for b in (0.0, 1.0)]
    several = attribute(V, X, 1, jax.tree.map(lambda v: jnp.stack([0 * v, 0 * v + 1]), X))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *(one.attribution for one in both))
    chex.assert_trees_all_close(several.attribution, mean, atol=1e-5)
    chex.assert_trees_all_equal(attribute(V, X, 1, 1.0), both[1])


def test_noise_is_drawn_for_each_leaf():
    x = {"a": A, "b": 2 * A}
    drawn = baselines.resolve_all(baselines.noise(jax.random.key(0), 3), x)
    assert [leaf.shape for leaf in drawn] == [(3, *A.shape)] * 2
    assert not np.allclose(drawn[0], drawn[1])


@pytest.mark.parametrize("chunk", [1, 3])
def test_integers_stay_and_have_no_attribution(chunk):
    x = (WHOLE, MASK)
    for transform in (
        lambda fn: integrated_gradients(fn, RULE, chunk=chunk),
        lambda fn: conductance(fn, "h", RULE, chunk=chunk),
        lambda fn: layer_integrated_gradients(fn, "h", RULE, chunk=chunk),
    ):
        r = jax.jit(transform(masked))(V, x, 1)
        expected = jax.jit(transform(closed))(V, WHOLE, 1)
        if isinstance(r.attribution, tuple):
            assert r.attribution[1] is None
            r = r._replace(attribution=r.attribution[0])
        chex.assert_trees_all_close(r, expected, atol=1e-6)


def test_tokens_go_to_pads_while_their_mask_stays():
    x = {"tokens": TOKENS, "mask": SHOWN}
    attribute = layer_integrated_gradients(language, "h", RULE, chunk=3)
    r = jax.jit(attribute)(TABLE, x, 1, {"tokens": 0, "mask": None})
    ends = [language(TABLE, x | {"tokens": tokens})[:, 1] for tokens in (TOKENS, 0 * TOKENS)]
    np.testing.assert_allclose(r.score, ends[0], atol=1e-5)
    np.testing.assert_allclose(r.attribution.sum((1, 2)), ends[0] - ends[1], atol=1e-3)
    with pytest.raises(ValueError, match="baseline: expected a pytree like x, with None for what"):
        attribute(TABLE, x, 1)


def pictured(v, x):
    """Metadata joins behind the average over positions."""
    h = jnp.mean(jax.nn.relu(x["image"]), axis=(1, 2))
    return jnp.concatenate([h, x["age"], v["kind"][x["kind"]]], axis=1) @ v["head"]


def test_maps_of_an_image_with_metadata():
    v = {"kind": nets.draw(0, 3, 2), "head": nets.draw(1, 6, 5)}
    x = {
        "image": nets.draw(2, 4, 6, 5, 3),
        "age": nets.draw(3, 4, 1),
        "kind": jnp.array([0, 2, 1, 1]),
    }
    weights = jax.nn.one_hot(jnp.array([0, 4, 2, 2]), 5)
    alpha = (weights @ v["head"][:3].T) / 30
    expected = jnp.maximum(jnp.sum(jax.nn.relu(x["image"]) * alpha[:, None, None], -1), 0)
    np.testing.assert_allclose(jax.jit(grad_cam(pictured))(v, x, weights), expected, atol=1e-6)
    direction = nets.draw(4, 4, 6)
    by_hand = jnp.sum(jax.nn.relu(x["image"]) * direction[:, None, None, :3], -1) / 30
    found = jax.jit(concept_maps(pictured))(v, x, direction)
    np.testing.assert_allclose(found, by_hand, atol=1e-6)
    # a label that a row is looked up at has relevance, beside floats too
    like = jax.eval_shape(lrp(pictured, EPSILON), v, x).input
    assert {key: leaf.shape for key, leaf in like.items()} == {k: x[k].shape for k in x}


def test_malformed_inputs_are_named():
    attribute = integrated_gradients(masked)
    for transform in (lrp(of_dict), integrated_gradients(of_dict)):
        with pytest.raises(ValueError, match="x: expected arrays with one leading axis of exa"):
            transform(V, {"a": A, "b": B[:3]})
        with pytest.raises(TypeError, match=r"x: expected an array or a pytree of arrays, got"):
            transform(V, {})
    with pytest.raises(TypeError, match="baseline: expected None for a leaf of int32, which stays"):
        attribute(V, (WHOLE, MASK), 1, (0.0, 0))
    with pytest.raises(ValueError, match="baseline: expected one or a pytree like x"):
        attribute(V, (WHOLE, MASK), 1, {"x": 0.0})
    with pytest.raises(ValueError, match="baseline: expected as many for each leaf, got"):
        integrated_gradients(of_dict)(V, X, 1, {"a": jnp.stack([A, A]), "b": jnp.stack([B, B, B])})
    with pytest.raises(ValueError, match="baseline: expected one for some leaf of x, got None"):
        attribute(V, (WHOLE, MASK), 1, (None, None))
