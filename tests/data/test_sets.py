import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import jaxunlearn as ju
from jaxunlearn.core.errors import ConfigError, DataError, RequestError
from jaxunlearn.core.types import Needs
from jaxunlearn.data.batches import draw
from jaxunlearn.data.examples import array_shape, as_examples, fetch, inputs_like, normalise
from jaxunlearn.data.sets import alone, num_examples, stratified_mask, subset, whole
from jaxunlearn.engine.predict import predict
from tests import toy


def members(part):
    return set(np.asarray(part.indices)[: int(part.size)].tolist())


def test_the_parts_are_disjoint_and_complete():
    (_, y), (_, y_unseen), (_, y_test) = toy.blobs()
    sets = toy.sets(ju.forget_class(1))
    assert members(sets.forget) == set(np.flatnonzero(np.asarray(y) == 1))
    assert members(sets.retain) == set(np.flatnonzero(np.asarray(y) != 1))
    assert members(sets.unseen) == set(np.flatnonzero(np.asarray(y_unseen) == 1))
    assert members(sets.test_retain) == set(np.flatnonzero(np.asarray(y_test) != 1))
    assert sets.forget.examples.x is sets.retain.examples.x
    assert sets.forget.examples.x.dtype == jnp.uint8


def test_a_request_for_items_has_no_unseen_kind():
    sets = toy.sets(ju.data.forget_indices([0, 1, 2]))
    assert sets.unseen is None
    assert sets.test_forget is None
    assert num_examples(sets.holdout) == len(toy.blobs()[1][1])


def test_stacked_requests_share_their_arrays():
    requests = [toy.sets(ju.forget_class(label)) for label in range(4)]
    stacked = ju.data.stack_sets(requests)
    assert stacked.forget.examples.x is requests[0].forget.examples.x
    assert stacked.forget.indices.shape == (4, 60)
    assert list(stacked.forget.size) == [30, 50, 40, 60]
    for number, one in enumerate(requests):
        own = np.asarray(stacked.forget.indices[number])
        assert set(own[: int(stacked.forget.size[number])]) == members(one.forget)
        assert set(own) == members(one.forget), "padding repeats valid positions"


def test_sets_on_different_arrays_cannot_be_stacked():
    train = [(np.zeros((4, 2), np.uint8), np.array([0, 1, 0, 1])) for _ in range(2)]
    sets = [ju.make_sets(*arrays, ju.forget_class(0)) for arrays in train]
    with pytest.raises(ValueError, match="expected forget to share one device array"):
        ju.data.stack_sets(sets)


def test_requests_of_different_kinds_cannot_be_stacked():
    with pytest.raises(ValueError, match="expected unseen in all or in none"):
        ju.data.stack_sets([toy.sets(), toy.sets(ju.data.forget_indices([0]))])


def test_normalisation_defaults():
    every = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    found = fetch(as_examples(every, [0, 1]), jnp.arange(2))
    np.testing.assert_allclose(found, every / 255, rtol=2e-7)
    floats = as_examples(np.full((2, 3), 0.1), [0, 1])
    assert floats.x.dtype == jnp.float32
    np.testing.assert_array_equal(fetch(floats, jnp.arange(2)), np.full((2, 3), np.float32(0.1)))
    given = as_examples(every, [0, 1], mean=100, std=50)
    np.testing.assert_allclose(fetch(given, jnp.arange(2)), (every - 100.0) / 50, rtol=2e-7)
    # one of them alone: the other is what it is by default
    centred = fetch(as_examples(every, [0, 1], mean=255.0), jnp.arange(2))
    np.testing.assert_allclose(centred, (every - 255.0) / 255, rtol=2e-7)
    both = fetch(as_examples(every, [0, 1], mean=0, std=255), jnp.arange(2))
    np.testing.assert_array_equal(found, both)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), np.zeros(3), r"expected integer labels \[N\], got float64"),
        (np.zeros((3, 2)), np.zeros(4, int), "expected 4 examples for 4 labels"),
        (np.zeros(3), np.zeros(3, int), r"got an array \[3\]"),
        (np.zeros((3, 2)), np.zeros((3, 1), int), "expected integer labels"),
    ],
)
def test_wrong_arrays_are_named(x, y, message):
    with pytest.raises(DataError, match=message):
        as_examples(x, y, name="mine")


IMAGES = np.zeros((3, 4, 5, 2), np.uint8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0}, "std: expected positive numbers, got 0 in 1 of 1 places"),
        ({"std": [1.0, 0.0]}, "std: expected positive numbers, got 0 in 1 of 2"),
        ({"mean": 0, "std": [-1.0, -2.0]}, "std: expected positive numbers, got -1 in 2 of 2"),
        ({"std": 1e-50}, "std: expected positive numbers"),
        ({"std": np.inf}, "std: expected positive numbers, got inf"),
        ({"mean": [np.nan, 1]}, "mean: expected finite numbers, got nan"),
        ({"mean": "grey"}, "mean: expected numbers, got 'grey'"),
        ({"mean": np.zeros(4)}, r"mean: expected a shape that fits one example, .* got \[4\]"),
        ({"std": np.ones((3, 4, 5, 2))}, r"std: .* \[4, 5, 2\], got \[3, 4, 5, 2\]"),
        ({"mean": np.zeros((7, 1, 1, 2))}, r"mean: .* got \[7, 1, 1, 2\]"),
    ],
)
def test_wrong_statistics_are_named(options, message):
    with pytest.raises(DataError, match=message):
        ju.make_sets(IMAGES, [0, 1, 1], ju.forget_class(0), **options)


def test_a_statistic_leaves_the_shape_of_an_example():
    narrow = IMAGES[:, :1, :1]
    for name in ("mean", "std"):
        with pytest.raises(DataError, match=rf"{name}: expected a shape .*, \[1, 1, 2\], got"):
            as_examples(narrow, [0, 1, 1], **{name: np.ones((4, 5, 2))})
        assert array_shape(as_examples(IMAGES, [0, 1, 1], **{name: np.ones((4, 1, 2))})) == (
            4,
            5,
            2,
        )
    with pytest.raises(DataError, match=r"mean: expected a shape .* \[6\], got \[3, 6\]"):
        as_examples(np.ones((3, 6)), [0, 1, 1], mean=np.ones((3, 6)))


WIDE = {
    "list": [0, 1, 2**31],
    "negative": [0, 1, -(2**31) - 1],
    "beyond 64 bits": [0, 1, 2**70],
    "uint32": np.array([0, 1, 2**32 - 1], np.uint32),
    "uint64": np.array([0, 1, 2**64 - 1], np.uint64),
    "jax": jnp.array([0, 1, 2**32 - 1], jnp.uint32),
}


@pytest.mark.parametrize("labels", ["class", "any"])
@pytest.mark.parametrize("name", WIDE)
def test_labels_beyond_32_bits_are_refused(name, labels):
    with pytest.raises(DataError, match=r"expected (integers|integer labels|labels|numbers)"):
        as_examples(np.zeros((3, 2)), WIDE[name], labels=labels)


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.uint64, jnp.uint32])
def test_labels_of_32_bits_are_kept(dtype):
    found = as_examples(np.zeros((3, 2)), np.array([0, 1, 2**31 - 1]).astype(dtype))
    np.testing.assert_array_equal(found.y, [0, 1, 2**31 - 1])


def test_labels_must_be_of_the_classes():
    x = np.zeros((3, 2), np.uint8)
    with pytest.raises(DataError, match="x, y: expected labels from 0 to 1, got -1 to 1"):
        ju.make_sets(x, np.array([-1, 0, 1]), ju.forget_class(0))
    with pytest.raises(DataError, match="test: expected labels from 0 to 1, got 2 to 2"):
        ju.make_sets(x, np.array([1, 0, 1]), ju.forget_class(0), test=(x, np.array([2, 2, 2])))


def test_wide_integers_are_narrowed():
    assert as_examples(np.zeros((2, 3), np.int64), [0, 1]).x.dtype == jnp.int32


def test_a_capacity_must_hold_the_indices():
    with pytest.raises(ValueError, match="at least 3, got 2"):
        subset(whole(as_examples(np.zeros((4, 2)), np.zeros(4, int))).examples, [0, 1, 2], 2)


def test_unseen_images_are_taken_from_each_class_by_its_share():
    labels = np.repeat(np.arange(3), (40, 20, 60))
    mask = stratified_mask(np.random.default_rng(0).permutation(labels), 30, seed=1)
    assert mask.sum() == 30
    shuffled = np.random.default_rng(0).permutation(labels)
    counts = np.bincount(shuffled[mask])
    np.testing.assert_allclose(counts, [10, 5, 15], atol=1)
    assert not stratified_mask(labels, 0, seed=0).any()


def test_unseen_must_leave_test_images():
    with pytest.raises(DataError, match="fewer than the 10 test images, got 10"):
        stratified_mask(np.zeros(10, int), 10, seed=0)


# Inputs that are trees, readers, and labels that are no classes

KEY = jax.random.key(0)


def sentences(count=40, seed=0):
    """Tokens, even ones in one class and odd ones in the other, with a mask."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    tokens = 2 * rng.integers(0, 4, (count, 5)) + y[:, None]
    mask = np.arange(5) < rng.integers(1, 6, (count, 1))
    return {"tokens": tokens, "mask": mask}, y


def sentence_net():
    """A bag of the words that the mask lets through."""

    def init(key):
        table, head = jax.random.split(key)
        return {"table": jax.random.normal(table, (8, 6)), "head": jax.random.normal(head, (6, 2))}

    def apply(variables, x):
        weight = x["mask"].astype(jnp.float32)
        bag = jnp.sum(variables["table"][x["tokens"]] * weight[..., None], axis=1)
        return bag @ variables["head"]

    return ju.functionalize(apply, init=init)


def test_a_tree_keeps_its_dtypes_and_goes_with_its_labels():
    x, y = sentences()
    sets = ju.make_sets(x, y, ju.forget_class(1), unseen=sentences(10, 1), test=sentences(10, 2))
    like = inputs_like(sets.forget, 3)
    assert (like["tokens"].shape, like["tokens"].dtype) == ((3, 5), jnp.int32)
    assert (like["mask"].shape, like["mask"].dtype) == ((3, 5), jnp.bool_)
    batch = draw(sets.forget, KEY, jnp.int32(0), 8, Needs())
    assert batch.x["tokens"].dtype == jnp.int32
    positions = np.asarray(sets.forget.indices)[batch.slot]
    np.testing.assert_array_equal(batch.x["tokens"], x["tokens"][positions])
    np.testing.assert_array_equal(batch.x["mask"], x["mask"][positions])
    np.testing.assert_array_equal(batch.y, np.ones(8))
    own = alone(ju.Sets(forget=sets.forget)).forget
    np.testing.assert_array_equal(own.examples.x["mask"], x["mask"][y == 1])
    assert num_examples(sets.test_forget) + num_examples(sets.test_retain) == 10


def test_a_tree_is_unlearned_and_predicted():
    model, (x, y) = sentence_net(), sentences()
    sets = ju.make_sets(x, y, ju.forget_class(1))
    config = ju.TrainConfig(epochs=20, batch_size=20, learning_rate=0.05)
    original = ju.train(model, whole(sets.forget.examples), KEY, config=config).variables
    found = predict(model.apply, original, whole(sets.forget.examples), 16)
    expected = model.apply(original, jax.tree.map(jnp.asarray, x))
    np.testing.assert_allclose(found.logits, expected, rtol=1e-5, atol=1e-5)
    assert found.accuracy > 0.9
    for make in (ju.finetune, ju.random_label):
        method = make(model, optimizer=optax.sgd(0.1))
        done = ju.unlearn(method, original, sets, KEY, steps=5, batch_size=8)
        assert np.isfinite(done.history["loss"]).all()
        assert predict(model.apply, done.variables, sets.retain).accuracy == 1


def test_trees_are_stacked_without_copies():
    x, y = sentences()
    x = jax.tree.map(jnp.asarray, x)
    many = [ju.make_sets(x, y, ju.forget_class(label), num_classes=2) for label in range(2)]
    stacked = ju.data.stack_sets(many)
    assert stacked.forget.examples.x["tokens"] is x["tokens"]
    with pytest.raises(ValueError, match="expected forget to share one device array"):
        ju.data.stack_sets([many[0], ju.make_sets(sentences()[0], y, ju.forget_class(1))])
    method = ju.finetune(sentence_net())
    done = ju.unlearn_many(
        method, sentence_net().init(KEY), stacked, jax.random.split(KEY), steps=2, batch_size=8
    )
    assert done.history["loss"].shape == (2, 2)


def brighter(x, by):
    return x["image"].astype(jnp.float32) / 255 + by


def test_a_reader_of_ones_own():
    x = {"image": np.full((4, 2, 2, 1), 51, np.uint8), "camera": np.arange(4)}
    reader = Partial(brighter, by=jnp.float32(1))
    sets = ju.make_sets(x, np.arange(4) % 2, ju.forget_class(0), reader=reader)
    assert array_shape(sets.forget) == (2, 2, 1)
    batch = draw(sets.retain, KEY, jnp.int32(0), 3, Needs())
    np.testing.assert_allclose(batch.x, np.full((3, 2, 2, 1), 1.2), rtol=1e-6)
    # a function alone serves, too
    plain = as_examples(x, [0, 1, 0, 1], reader=lambda x: x["camera"][:, None])
    np.testing.assert_array_equal(fetch(plain, jnp.array([2, 1])), [[2], [1]])


def test_sets_of_one_capacity_and_reader_share_a_program():
    x, y = sentences()
    images = np.zeros((40, 3), np.uint8)
    drawn = jax.jit(draw, static_argnames=("batch_size", "needs"))
    statistics = [{"mean": jnp.full(3, mean), "std": jnp.ones(3)} for mean in (1.0, 2.0)]
    for inputs, options in (
        (x, [{}, {}]),
        (images, statistics),
        (images, [{"reader": Partial(normalise, **one)} for one in statistics]),
    ):
        drawn.clear_cache()
        for chosen, more in zip((range(8), range(3, 7)), options, strict=True):
            part = subset(as_examples(inputs, y, **more), chosen, capacity=8)
            drawn(part, KEY, jnp.int32(0), batch_size=4, needs=Needs())
        assert drawn._cache_size() == 1


@pytest.mark.parametrize("y", [np.arange(36).reshape(12, 3), np.linspace(0, 1, 12)])
def test_labels_that_are_no_classes(y):
    x = {"tokens": np.arange(24).reshape(12, 2)}
    sets = ju.make_sets(
        x, y, ju.data.forget_indices(np.arange(12) < 5), labels="any", test=(x, y), unseen=(x, y)
    )
    assert members(sets.forget) == set(range(5))
    assert (sets.unseen, sets.test_forget) == (None, None)
    assert num_examples(sets.holdout) == 12
    batch = draw(sets.retain, KEY, jnp.int32(0), 4, Needs())
    positions = np.asarray(sets.retain.indices)[batch.slot]
    np.testing.assert_array_equal(batch.y, y[positions].astype(batch.y.dtype))
    hidden = draw(sets.retain, KEY, jnp.int32(0), 4, Needs(labels=False))
    np.testing.assert_array_equal(hidden.y, -np.ones_like(batch.y))
    assert num_examples(ju.make_sets(x, y, ju.data.forget_random(0.25), labels="any").forget) == 3
    with pytest.raises(RequestError, match=r"request\.classes: expected labels that are classes"):
        ju.make_sets(x, y, ju.forget_class(1), labels="any")


TOKENS, MASK, TWO = np.zeros((3, 2), int), np.ones((3, 2), bool), np.zeros(3, int)


@pytest.mark.parametrize(
    ("x", "options", "kind", "message"),
    [
        ({}, {}, DataError, "expected inputs, got a tree without arrays"),
        ({"a": TOKENS, "b": MASK[:2]}, {}, DataError, r"got an array \[2, 2\] at b"),
        ({"a": TOKENS, "b": np.float32(1)}, {}, DataError, r"got an array \[\] at b"),
        ({"a": np.array(["x"] * 3)}, {}, DataError, "mine: expected numbers, got an array of <U1"),
        ({"a": TOKENS + 2**40}, {}, DataError, "expected integers of 32 bits, got 1099511627776"),
        ({"a": TOKENS, "b": MASK}, {"mean": 1}, DataError, "one array to normalise by mean"),
        (TOKENS, {"std": 1, "reader": abs}, ValueError, "either a reader or mean and std"),
        (TOKENS, {"labels": "classes"}, ValueError, "labels: expected one of"),
        (TOKENS, {"reader": jnp.sum}, DataError, "reader: expected inputs with the leading axis"),
    ],
)  # fmt: skip
def test_wrong_trees_are_named(x, options, kind, message):
    with pytest.raises(kind, match=message):
        as_examples(x, TWO, name="mine", **options)


def test_what_needs_one_array_says_so():
    x, y = sentences()
    sets = ju.make_sets(x, y, ju.forget_class(1))
    with pytest.raises(DataError, match="expected inputs that are one array, got mask, tokens"):
        array_shape(sets.forget)
    with pytest.raises(ConfigError, match="expected a network for inputs of shape"):
        ju.train(
            ju.functionalize(lambda v, x: x["words"], init=sentence_net().init),
            whole(sets.forget.examples),
            KEY,
        )
    with pytest.raises(DataError, match=r"unseen: expected examples mask .* as in training"):
        ju.make_sets(x, y, ju.forget_class(1), unseen=({"tokens": x["tokens"]}, y))
