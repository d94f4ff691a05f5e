"""Classifiers of texts: masks, conservation of relevance, completeness, what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.models.text import EMBEDDING
from tests import toy

BOTH = ("text_transformer", "text_bag")


@functools.cache
def network(name):
    model = ju.models.build(name, like(), toy.NUM_CLASSES, options(name))
    # kernels of embeddings as large as others: words matter without training
    variables = jax.tree.map(lambda leaf: leaf, model.init(jax.random.key(0)))
    variables["params"]["embed"]["embedding"] *= 20
    return model, variables


def options(name):
    more = {"blocks": 1, "heads": 2} if name == "text_transformer" else {}
    return {"vocabulary": toy.VOCABULARY, "width": 8, "features": (16,), **more}


def like():
    return ju.data.inputs_like(toy.question_sets().forget, 2)


def some(count=3):
    return jax.tree.map(lambda leaf: leaf[:count], toy.questions()[0][0])


@pytest.mark.parametrize("name", BOTH)
def test_what_the_mask_hides_is_not_read(name):
    model, variables = network(name)
    x = some()
    other = {**x, "tokens": jnp.where(x["mask"], x["tokens"], 7)}
    shorter = jax.tree.map(lambda leaf: leaf[:, :7], x)
    short = {**x, "mask": x["mask"].at[:, 7].set(False)}
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    close(model.apply(variables, other), model.apply(variables, x))
    close(model.apply(variables, shorter), model.apply(variables, short))


@pytest.mark.parametrize("name", BOTH)
def test_order_matters_to_the_transformer_alone(name):
    model, variables = network(name)
    x = some()
    turned = {**x, "tokens": x["tokens"].at[:, :2].set(x["tokens"][:, 1::-1])}
    same = np.allclose(model.apply(variables, turned), model.apply(variables, x), atol=1e-6)
    assert same == (name == "text_bag")


@pytest.mark.parametrize("name", BOTH)
def test_a_text_without_words_has_finite_logits(name):
    model, variables = network(name)
    x = {**some(), "mask": jnp.zeros_like(some()["mask"])}
    assert np.isfinite(model.apply(variables, x)).all()


@pytest.mark.parametrize("name", BOTH)
def test_relevance_is_conserved_from_the_logit_to_the_words(name):
    model, variables = network(name)
    x = some()
    found = jax.jit(ju.lrp(model.apply))(variables, x, start=ju.starts.argmax())
    np.testing.assert_allclose(found.gap, 0, atol=1e-5)
    assert found.input["tokens"].shape == x["tokens"].shape
    assert found.named[EMBEDDING].shape == (3, toy.TEXT, 8)
    hidden = np.where(x["mask"], 0, found.input["tokens"])
    np.testing.assert_allclose(hidden, 0, atol=1e-6)
    assert np.abs(found.input["tokens"]).max() > 1e-3
    kernels = {path for path in named_leaves(variables) if path.endswith("kernel")}
    assert set(found.neurons) == kernels, "each linear layer is scored"


@pytest.mark.parametrize("name", BOTH)
def test_integrated_gradients_are_complete_at_the_embeddings(name):
    model, variables = network(name)
    x = some()
    attribute = ju.attribution.layer_integrated_gradients(
        model.apply, EMBEDDING, ju.attribution.quadrature.midpoint(200)
    )
    pads = {"tokens": jnp.zeros_like(x["tokens"]), "mask": None}
    found = jax.jit(attribute)(variables, x, ju.starts.label(0), pads)
    change = np.abs(found.score - found.baseline_score)
    assert (np.abs(found.gap) <= 1e-2 * np.maximum(change, 0.1)).all()
    hidden = np.where(x["mask"][..., None], 0, found.attribution)
    np.testing.assert_allclose(hidden, 0, atol=1e-6)


def test_longer_texts_than_it_was_built_for_are_refused():
    model, variables = network("text_transformer")
    long = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf], axis=1), some())
    with pytest.raises(ConfigError, match=r"at most 8 tokens.* got 16"):
        model.apply(variables, long)


def test_unknown_tokens_are_told_by_what_is_not_finite():
    model, variables = network("text_bag")
    x = {**some(), "tokens": some()["tokens"].at[0, 0].set(toy.VOCABULARY)}
    assert np.isnan(model.apply(variables, x)[0]).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"vocabulary": 0}, "vocabulary: expected a positive integer, got 0"),
        ({"width": 6, "heads": 4}, "heads: expected a divisor of the width 6, got 4"),
        ({"blocks": -1}, "blocks: expected an integer of 0 or more, got -1"),
        ({"features": (4, 0)}, "features: expected widths"),
        ({"dropout": 1.0}, "dropout: expected a share"),
    ],
)
def test_sizes_out_of_range_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        ju.models.build("text_transformer", like(), 4, wrong).init(jax.random.key(0))


@pytest.mark.parametrize(
    "inputs",
    [
        (8, 8, 1),
        {"question": jax.ShapeDtypeStruct((2, 5), jnp.uint8)},
        {
            "tokens": jax.ShapeDtypeStruct((2, 5), jnp.float32),
            "mask": jax.ShapeDtypeStruct((2, 5), bool),
        },
        {
            "tokens": jax.ShapeDtypeStruct((2, 5), jnp.int32),
            "mask": jax.ShapeDtypeStruct((2, 4), bool),
        },
    ],
)
def test_other_inputs_are_refused(inputs):
    with pytest.raises(ConfigError, match=r"expected (tokens and mask|integer tokens)"):
        ju.models.build("text_transformer", inputs, 4).init(jax.random.key(0))
