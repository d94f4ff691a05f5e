"""From a network to its concepts, end to end, on the embedded digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.concepts import (
    bottleneck_accuracy,
    check_donor,
    choose_donor,
    concept_shapes,
    feature_fn,
    infer_concepts,
)
from jaxunlearn.config import DataConfig, TrainConfig
from jaxunlearn.core.errors import DataError
from jaxunlearn.data.examples import fetch, inputs_like
from tests import toy

KEY = jax.random.key(0)
SHAPE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)


@functools.cache
def digits():
    """A network that knows the digits, and its sets."""
    data = ju.data.load_dataset(DataConfig())
    sets = ju.make_sets(
        data.train_x, data.train_y, ju.forget_class(3),
        test=(data.test_x, data.test_y), mean=data.mean, std=data.std,
    )  # fmt: skip
    model = ju.models.build("mlp", (8, 8, 1), 10, {"features": (96, 64)})
    config = TrainConfig(epochs=8, batch_size=32, learning_rate=3e-3)
    out = ju.train(model, ju.whole(sets.forget.examples), jax.random.key(0), config=config)
    return model.apply, out.variables, sets


def same_form(found, shapes):
    assert jax.tree.structure(found) == jax.tree.structure(shapes)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(shapes), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize(("bank", "least"), [("patches", 0.5), ("digits", 0.9)])
def test_from_network_to_donors(bank, least):
    apply, variables, sets = digits()
    parts = [sets.forget, sets.retain]
    found = infer_concepts(apply, variables, parts, KEY, bank=bank, warn=False)
    same_form(found, concept_shapes(apply, variables, SHAPE, 10, bank=bank))
    assert np.isfinite(found.values).all()
    assert float(found.gap.max()) < 1e-3
    assert found.bank.useful.sum() >= 3
    test = sets.test_retain.examples
    e = feature_fn(apply)(variables, fetch(test, jnp.arange(len(test.y))))
    shares = bottleneck_accuracy(found.bank, found.bottleneck, e, test.y)
    assert shares["concepts"] > least
    assert shares["hybrid"] > 0.85
    donor = choose_donor(
        found.values, found.bottleneck.weights, found.bank.useful, jnp.ones((10, 10), bool)
    )
    if bank == "digits":
        check_donor(donor, found.bank.names)


def test_the_same_key_gives_the_same_concepts():
    apply, variables, sets = digits()

    def run(seed):
        key = jax.random.key(seed)
        return infer_concepts(apply, variables, [sets.retain], key, concepts=8, examples=300)

    one, two, other = run(0), run(0), run(1)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert (np.asarray(one.values) != np.asarray(other.values)).any()


def test_no_example_beyond_the_parts_is_looked_at():
    apply, variables, sets = digits()
    poisoned = sets.retain.examples.x.at[sets.forget.indices].set(255)
    changed = sets.retain._replace(examples=sets.retain.examples._replace(x=poisoned))
    one, two = (
        infer_concepts(apply, variables, [part], KEY, concepts=8, examples=300)
        for part in (sets.retain, changed)
    )
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert not np.asarray(one.values[3]).any()
    assert one.bottleneck.bias[3] == -1000


def test_a_convolutional_network_and_a_bank_of_ones_own(tmp_path):
    model = ju.models.build("cnn", toy.SHAPE, toy.NUM_CLASSES, {"channels": (2, 4), "features": 16})
    variables, part = model.init(KEY), toy.sets().retain
    path = str(tmp_path / "own.npz")
    np.savez(path, vectors=np.eye(16)[:3], names=np.array(["a", "b", "c"]))
    found = infer_concepts(model.apply, variables, [part], KEY, bank=path, hybrid=False)
    same_form(found, concept_shapes(model.apply, variables, inputs_like(part), bank=path))
    assert found.bank.names == ("a", "b", "c")
    assert not np.asarray(found.bottleneck.residual_weights).any()


def test_what_can_be_told_without_computing(tmp_path):
    model = toy.mlp()
    variables = jax.eval_shape(model.init, KEY)
    x = jax.ShapeDtypeStruct((1, *toy.SHAPE), jnp.float32)

    def shapes(x=x, apply=model.apply, num_classes=None, **options):
        return concept_shapes(apply, variables, x, num_classes, **options)

    assert shapes().values.shape == (4, 16)
    with pytest.raises(DataError, match=r"bank: expected one of patches, cifar10, .*'patches'"):
        shapes(bank="patch")
    with pytest.raises(ValueError, match=r"concepts: expected from 2 to 16, .* got 20"):
        shapes(concepts=20)
    with pytest.raises(ValueError, match="num_classes: expected 4, as of the network, got 5"):
        shapes(num_classes=5)
    with pytest.raises(DataError, match=r"nothing"):
        shapes(bank=str(tmp_path / "none.npz"))
    np.savez(tmp_path / "b.npz", vectors=np.eye(3), names=np.array(["a", "b", "c"]))
    with pytest.raises(DataError, match=r"\[m, 16\]"):
        shapes(bank=str(tmp_path / "b.npz"))
    (tmp_path / "t.toml").write_text(
        'classes = ["a", "b"]\n[attributes.x]\nmeaning = "X."\nclasses = ["a"]'
    )
    with pytest.raises(DataError, match=r"a table of 4 classes, .* got 2"):
        shapes(bank=str(tmp_path / "t.toml"))


def test_networks_that_have_no_such_features():
    kernel = {"w": jnp.ones((1, 1, 2, 3))}

    def pooled_logits(variables, x):
        spec = ("NHWC", "HWIO", "NHWC")
        maps = jax.lax.conv_general_dilated(
            x, variables["w"], (1, 1), "SAME", dimension_numbers=spec
        )
        return jnp.mean(maps, axis=(1, 2))

    with pytest.raises(ValueError, match=r"a head that reads \[B, n\], got \[1, 5, 5, 2\]"):
        concept_shapes(pooled_logits, kernel, jnp.ones((1, 5, 5, 2)))
    dense = {"a": jnp.ones((5, 4)), "b": jnp.ones((4, 3))}

    def vectors(variables, x):
        return jax.nn.relu(x @ variables["a"]) @ variables["b"]

    with pytest.raises(ValueError, match=r"bank: expected images .* got examples \[5\]"):
        concept_shapes(vectors, dense, jnp.ones((1, 5)))


def test_nothing_to_look_at():
    apply, variables, sets = digits()
    with pytest.raises(ValueError, match="parts: expected labelled examples, got none"):
        infer_concepts(apply, variables, [], KEY)
    empty = sets.retain._replace(size=jnp.zeros((), jnp.int32))
    with pytest.raises(ValueError, match="parts: expected labelled examples, got none"):
        infer_concepts(apply, variables, [empty], KEY)
    with pytest.raises(ValueError, match="examples: expected at least 1, got 0"):
        infer_concepts(apply, variables, [sets.retain], KEY, examples=0)
