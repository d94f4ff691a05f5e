"""Decoders: causality, padding, cache, positions, number types, and what a shape refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.core.errors import ConfigError, DataError
from jaxunlearn.core.registry import load
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.language.decoder import Rope, build_decoder, gpt2, llama, qwen2
from jaxunlearn.models import NETWORKS

SIZES = {"depth": 2, "width": 24, "heads": 4, "context": 16}
MODELS = {"gpt2": gpt2((), 31, **SIZES), "qwen2": qwen2((), 31, kv_heads=2, **SIZES)}


def drawn(model):
    """Weights with biases and norms that are not those of a fresh network."""
    variables = model.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(variables)
    rng = np.random.default_rng(0)
    return structure.unflatten(
        [3 * leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    )


@pytest.fixture(scope="module", params=MODELS)
def decoder(request):
    model = MODELS[request.param]
    return model, drawn(model), jax.jit(model.apply)


def texts(mask=None, seed=0):
    tokens = np.random.default_rng(seed).integers(0, 31, (2, 10))
    mask = np.ones((2, 10), bool) if mask is None else mask
    return {"tokens": jnp.asarray(tokens, jnp.int32), "mask": jnp.asarray(mask)}


def test_logits_read_no_token_behind_them(decoder):
    _, variables, apply = decoder
    x = texts()
    other = {**x, "tokens": x["tokens"].at[:, 6:].set(3)}
    one, two = apply(variables, x), apply(variables, other)
    np.testing.assert_allclose(one[:, :6], two[:, :6], atol=1e-5)
    assert np.abs(one[:, 6:] - two[:, 6:]).max() > 0.05
    assert one.dtype == jnp.float32


@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_padding_on_any_side_changes_nothing(decoder, side):
    _, variables, apply = decoder
    x = texts()
    alone = apply(variables, {name: leaf[:, :6] for name, leaf in x.items()})
    where = {"left": range(4, 10), "right": range(6), "middle": (0, 1, 4, 5, 8, 9)}[side]
    where = np.asarray(where)
    mask = np.zeros((2, 10), bool)
    mask[:, where] = True
    tokens = jnp.full((2, 10), 30, jnp.int32).at[:, where].set(x["tokens"][:, :6])
    padded = apply(variables, {"tokens": tokens, "mask": jnp.asarray(mask)})
    np.testing.assert_allclose(padded[:, where], alone, atol=1e-5)
    assert np.isfinite(padded).all()


def test_a_cache_gives_the_logits_of_the_whole_text(decoder):
    model, variables, apply = decoder
    mask = np.ones((2, 10), bool)
    mask[1, :3] = False
    x = texts(mask)
    extend, cache, found = jax.jit(model.extend), model.empty_cache(2, 12), []
    for first, last in ((0, 5), (5, 6), (6, 7), (7, 10)):
        part = {name: leaf[:, first:last] for name, leaf in x.items()}
        logits, cache = extend(variables, cache, part)
        found.append(logits)
    wanted = apply(variables, x)
    np.testing.assert_allclose(
        np.concatenate(found, 1)[np.asarray(x["mask"])], wanted[np.asarray(x["mask"])], atol=1e-5
    )
    assert int(cache["length"]) == 10


def test_states_and_embeddings_are_those_of_apply(decoder):
    model, variables, apply = decoder
    x = texts()
    embeddings = model.embed(variables, x["tokens"])
    wanted = apply(variables, x)
    again = jax.jit(model.apply_embedded)(variables, embeddings, x["mask"])
    np.testing.assert_allclose(again, wanted, atol=1e-6)
    states = jax.jit(model.states)(variables, x)
    assert states.shape == (3, 2, 10, 24)
    if model.shape.rope is not None:  # else positions are added
        np.testing.assert_array_equal(states[0], embeddings)
    logits, same = jax.jit(model.apply_train)(variables, x, jax.random.key(1))
    np.testing.assert_allclose(logits, wanted, atol=1e-6)
    assert named_leaves(same).keys() == named_leaves(variables).keys()


def test_remat_and_number_types_keep_the_function(decoder):
    model, variables, apply = decoder
    x = texts()

    def slope(model):
        return jax.jit(jax.grad(lambda v: jnp.sum(jnp.sin(model.apply(v, x)))))(variables)

    again = build_decoder(model.shape, remat=True)
    for one, two in zip(*map(jax.tree.leaves, (slope(model), slope(again))), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-3, rtol=1e-3)
    half = build_decoder(model.shape, dtype=jnp.bfloat16)
    logits, wanted = jax.jit(half.apply)(variables, x), apply(variables, x)
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - wanted).mean() < 0.02 * np.abs(wanted).max()
    assert half.empty_cache(1, 2)["blocks"][0][0].dtype == jnp.bfloat16


def test_shared_keys_are_keys_repeated():
    shared = llama((), 31, kv_heads=2, **SIZES)
    whole = llama((), 31, **SIZES)
    variables = drawn(shared)

    def repeated(path, leaf):
        name = jax.tree_util.keystr(path)
        if "key" not in name and "value" not in name:
            return leaf
        return jnp.repeat(leaf.reshape(24, 2, 6), 2, axis=1).reshape(24, 24)

    copied = jax.tree_util.tree_map_with_path(repeated, variables)
    x = texts()
    np.testing.assert_allclose(
        jax.jit(shared.apply)(variables, x), jax.jit(whole.apply)(copied, x), atol=1e-5
    )


def test_equal_shapes_give_one_object_and_other_ones_another():
    model = MODELS["qwen2"]
    same = dataclasses.replace(model.shape)
    assert build_decoder(same) is model
    assert build_decoder(same, dtype=jnp.float32, remat=False) is model
    assert build_decoder(same, remat=True) is not model
    assert hash(model) == hash(build_decoder(same))


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen2"])
def test_weights_are_drawn_as_the_layout_says(name):
    row = NETWORKS[name]
    assert row.kind == "language"
    model = load(row.target)((), 64, width=32)
    found = named_leaves(jax.jit(model.init)(jax.random.key(3))["params"])
    again = named_leaves(jax.jit(model.init)(jax.random.key(3))["params"])
    layout = model.shape.layout()
    assert {path: leaf.shape for path, leaf in found.items()} == {
        path: sizes for path, (sizes, _) in layout.items()
    }
    deviations = {"normal": 0.02, "residual": 0.01, "ones": 0, "zeros": 0}  # two blocks
    for path, (_, begin) in layout.items():
        assert found[path].dtype == jnp.float32
        np.testing.assert_array_equal(found[path], again[path])
        np.testing.assert_allclose(np.std(found[path]), deviations[begin], rtol=0.15, err_msg=path)
        assert abs(float(np.mean(found[path])) - (begin == "ones")) < 0.005
    one, two = (found[f"blocks_{number}/attention/query/kernel"] for number in (0, 1))
    assert np.abs(one - two).max() > 0.01


def test_frequencies_of_llama3_by_hand():
    rope = Rope(10000.0, "llama3", factor=8.0, low=1.0, high=4.0, original=32)
    found = rope.frequencies(8)
    plain = 10000.0 ** (-np.arange(4) / 4)  # 1, .1, .01, .001
    # turns within 32 tokens: 5.1 (above 4: as it is), .51, .05, .005 (below 1: divided by 8)
    np.testing.assert_allclose(found, [plain[0], *(plain[1:] / 8)], rtol=1e-6)
    middle = Rope(10000.0, "llama3", factor=8.0, low=0.25, high=1.0, original=32).frequencies(8)
    share = (32 * plain[1] / (2 * np.pi) - 0.25) / 0.75
    np.testing.assert_allclose(middle[1], plain[1] * (share + (1 - share) / 8), rtol=1e-5)
    np.testing.assert_allclose(Rope(100.0, "linear", 4.0).frequencies(4), [0.25, 0.025], rtol=1e-6)


def test_what_is_no_token_or_no_text_is_seen():
    model = MODELS["qwen2"]
    variables, x = drawn(model), texts()
    beyond = {**x, "tokens": x["tokens"].at[0, 4].set(31)}
    logits = jax.jit(model.apply)(variables, beyond)
    assert np.isnan(logits[0, 4:]).all()
    assert np.isfinite(logits[1]).all()
    long = {"tokens": jnp.zeros((1, 17), jnp.int32), "mask": jnp.ones((1, 17), bool)}
    with pytest.raises(ConfigError, match=r"x: expected texts of at most 16 tokens.*got 17"):
        model.apply(variables, long)
    with pytest.raises(DataError, match=r"x: expected tokens and mask \[B, T\]"):
        model.apply(variables, {"tokens": x["tokens"], "mask": x["mask"][:, :4]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "heads: expected a divisor of the width 24, got 5"),
        ({"kv_heads": 3}, "kv_heads: expected a divisor of 4, got 3"),
        ({"depth": 0}, "depth: expected a positive integer, got 0"),
        ({"width": 24.0}, "width: expected a positive integer, got 24.0"),
        ({"head_dim": 5}, "head_dim: expected an even number, got 5"),
        ({"hidden": True}, "hidden: expected a positive integer, got True"),
        ({"theta": 0}, "theta: expected a positive number, got 0"),
        ({"dtype": "int8"}, "dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        ({"dtype": "float"}, "dtype: expected one of float32"),
    ],
)
def test_a_shape_that_is_none_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        llama((), 31, **{**SIZES, **options})


def test_a_shape_is_checked_whole():
    shape = MODELS["qwen2"].shape
    for change, message in (
        ({"architecture": "mamba"}, "architecture: expected one of gpt2, llama"),
        ({"activation": "tanh"}, "activation: expected one of silu"),
        ({"rope": None}, "rope: expected none for gpt2 alone"),
        ({"rope": Rope(kind="yarn")}, "rope.kind: expected one of default, linear, llama3"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(shape, **change)
    with pytest.raises(ConfigError, match="shape: expected a DecoderShape, got str"):
        build_decoder("llama")
