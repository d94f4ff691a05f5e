import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxunlearn.core.types import Needs, Sets
from jaxunlearn.data.batches import draw, draw_batches, in_order, shuffled
from jaxunlearn.data.examples import as_examples, fetch
from jaxunlearn.data.sets import subset

MANY, ONCE = Needs(retain=True), Needs(retain=True, once=True)
LARGEST = 60_000
# one program for all sizes, and for all steps of a kind: compiling is what takes time here
shuffle, draw_once = jax.jit(shuffled), jax.jit(draw, static_argnames=("batch_size", "needs"))


def order(size, epoch=0, key=0):
    seed = np.asarray(jax.random.bits(jax.random.key(key), (2,), jnp.uint32))
    places = np.arange(LARGEST, dtype=np.int32) % size
    epochs = np.full(LARGEST, epoch, np.int32)
    return np.asarray(shuffle(seed, epochs, places, np.int32(size)))[:size]


@pytest.fixture
def part():
    x = np.arange(40, dtype=np.uint8).reshape(20, 2)
    return subset(as_examples(x, np.arange(20), 0.0, 1.0), [3, 5, 8, 13, 19], capacity=9)


def drawn(part, needs, batch_size, steps, key=0):
    batches = [
        draw_once(part, jax.random.key(key), jnp.int32(s), batch_size=batch_size, needs=needs)
        for s in range(steps)
    ]
    return [
        np.concatenate([np.asarray(getattr(b, f)) for b in batches]) for f in ("y", "weight", "x")
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000, LARGEST])
def test_an_epoch_is_a_permutation(size):
    np.testing.assert_array_equal(np.sort(order(size)), np.arange(size))


def test_epochs_and_keys_have_orders_of_their_own():
    first = order(1000)
    for other in (order(1000, epoch=1), order(1000, key=1)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.12


def test_all_permutations_of_four_are_equally_likely():
    epochs = 24_000
    seed = jax.random.bits(jax.random.key(0), (2,), jnp.uint32)
    epoch = np.repeat(np.arange(epochs, dtype=np.int32), 4)
    place = np.tile(np.arange(4, dtype=np.int32), epochs)
    found = np.asarray(shuffle(seed, epoch, place, np.int32(4))).reshape(epochs, 4)
    codes, counts = np.unique(found @ np.array([64, 16, 4, 1]), return_counts=True)
    assert len(codes) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_two_epochs_bring_every_example_twice_without_a_gap(part):
    y, weight, _ = drawn(part, MANY, batch_size=4, steps=5)
    assert weight.min() == 1
    for epoch in range(4):
        assert sorted(y[epoch * 5 : epoch * 5 + 5]) == [3, 5, 8, 13, 19]


def test_a_single_pass_pads_with_weight_zero(part):
    y, weight, _ = drawn(part, ONCE, batch_size=4, steps=3)
    assert weight.sum() == 5
    assert sorted(y[weight == 1]) == [3, 5, 8, 13, 19]


def test_a_single_pass_stops_at_samples(part):
    y, weight, _ = drawn(part, ONCE._replace(samples=3), batch_size=4, steps=2)
    assert weight.sum() == 3
    assert len(set(y[weight == 1])) == 3


def test_an_empty_subset_has_no_weight(part):
    _, weight, _ = drawn(part._replace(size=jnp.int32(0)), MANY, batch_size=4, steps=1)
    assert weight.sum() == 0


def test_labels_are_hidden_from_a_method_that_does_not_need_them(part):
    y, *_ = drawn(part, MANY._replace(labels=False), batch_size=4, steps=1)
    assert set(y) == {-1}


def test_images_go_with_their_labels_and_are_normalised():
    x = np.random.default_rng(0).integers(0, 256, (6, 2, 2, 3), np.uint8)
    examples = as_examples(x, np.arange(6), mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    batch = draw(subset(examples, [4, 2]), jax.random.key(0), jnp.int32(0), 2, MANY)
    wanted = (x[np.asarray(batch.y)] - np.array([1, 2, 3])) / np.array([4, 5, 6])
    np.testing.assert_allclose(batch.x, wanted, rtol=1e-6)
    np.testing.assert_allclose(fetch(examples, jnp.array([0]))[0], (x[0] - [1, 2, 3]) / [4, 5, 6])


def test_in_order_covers_the_subset_once(part):
    batches = [in_order(part, jnp.int32(step), 2) for step in range(3)]
    y = np.concatenate([b.y for b in batches])
    weight = np.concatenate([b.weight for b in batches])
    assert list(y[weight == 1]) == [3, 5, 8, 13, 19]


def test_sets_have_independent_orders(part):
    whole = subset(part.examples, np.arange(20))
    sets = Sets(forget=whole, retain=whole)
    batches = draw_batches(sets, jax.random.key(0), jnp.int32(0), 20, MANY)
    assert batches.unseen is None
    assert (np.asarray(batches.forget.y) != np.asarray(batches.retain.y)).any()
