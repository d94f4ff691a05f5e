"""Members that differ in numbers, and members divided over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.config import TrainConfig
from jaxunlearn.core.types import Preparation
from jaxunlearn.engine import loop
from jaxunlearn.engine.communication import read_collectives
from tests import meshes, toy

KEY = jax.random.key(0)
RATES = np.array([1e-3, 1e-2, 3e-2, 0.0], np.float32)
OPTIONS = {"steps": 3, "batch_size": 16}


def at_rate(rate):
    return ju.finetune(toy.mlp(), optimizer=optax.sgd(rate, momentum=0.9))


def same(many, singles, **near):
    for number, one in enumerate(singles):
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[number], b, **near)


@pytest.mark.parametrize("vectorise", [False, True])
def test_every_member_equals_its_own_run(vectorise):
    given, keys = toy.trained().variables, jax.random.split(KEY, 3)
    rates = ju.sweep(at_rate, rate=RATES[:3])
    many = ju.unlearn_many(rates, given, toy.sets(), keys, vectorise=vectorise, **OPTIONS)
    alone = [
        ju.unlearn(at_rate(float(rate)), given, toy.sets(), key, **OPTIONS).variables
        for rate, key in zip(RATES, keys, strict=False)
    ]
    same(many.variables, alone, atol=1e-6)


def test_other_numbers_run_the_same_program():
    given, keys = toy.trained().variables, jax.random.split(KEY, 2)
    rates = ju.sweep(at_rate, rate=RATES[:2])
    first = ju.unlearn_many(rates, given, toy.sets(), keys, **OPTIONS)
    before = loop.advance._cache_size()
    other = rates._replace(options={"rate": jnp.asarray(RATES[1:3])})
    second = ju.unlearn_many(other, given, toy.sets(), keys, **OPTIONS)
    assert loop.advance._cache_size() == before
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), first.variables, second.variables)
    assert all(jax.tree.leaves(changed))


def test_checked_numbers_can_be_swept():
    given, keys = toy.trained().variables, jax.random.split(KEY, 2)
    make = lambda weight: ju.random_label(toy.mlp(), forget_weight=weight)  # noqa: E731
    many = ju.unlearn_many(ju.sweep(make, weight=[0.5, 2.0]), given, toy.sets(), keys, **OPTIONS)
    alone = [
        ju.unlearn(make(weight), given, toy.sets(), key, **OPTIONS).variables
        for weight, key in zip((0.5, 2.0), keys, strict=True)
    ]
    same(many.variables, alone, atol=1e-6)
    with pytest.raises(ValueError, match="forget_weight: expected a number of 0 or more, got -1"):
        ju.sweep(make, weight=[-1, 2])


def test_members_with_a_model_of_their_own():
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * 0.5]), toy.trained().variables)
    keys = jax.random.split(KEY, 2)
    rates = ju.sweep(at_rate, rate=RATES[:2])
    many = ju.unlearn_many(rates, twice, toy.sets(), keys, stacked_variables=True, **OPTIONS)
    alone = [
        ju.unlearn(
            at_rate(float(RATES[n])), jax.tree.map(lambda a, n=n: a[n], twice), toy.sets(), keys[n],
            **OPTIONS,
        ).variables
        for n in range(2)
    ]  # fmt: skip
    same(many.variables, alone, atol=1e-6)


def test_a_method_that_prepares_something():
    keys = jax.random.split(KEY, 2)
    given = toy.trained().variables

    def counted(scale):
        method = ju.finetune(toy.mlp(), optimizer=optax.sgd(0.01))
        run = lambda variables, sets, key: jax.random.normal(key, ())  # noqa: E731
        shapes = lambda variables, sets: jax.ShapeDtypeStruct((), jnp.float32)  # noqa: E731

        def init(variables, sets, key, prepared):
            moved = jax.tree.map(lambda leaf: leaf + scale * prepared, variables)
            return method.init(moved, sets, key)

        return method._replace(init=init, prepare=Preparation(run, shapes))

    many = ju.unlearn_many(ju.sweep(counted, scale=[0.1, 0.2]), given, toy.sets(), keys, **OPTIONS)
    alone = [
        ju.unlearn(counted(scale), given, toy.sets(), key, **OPTIONS).variables
        for scale, key in zip((0.1, 0.2), keys, strict=True)
    ]
    same(many.variables, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ju.sweep(at_rate), "options: expected as many numbers"),
        (lambda: ju.sweep(at_rate, rate=0.1), "options: expected as many numbers"),
        (lambda: ju.sweep(at_rate, rate=[[0.1]]), "options: expected as many numbers"),
        (
            lambda: ju.unlearn_many(
                ju.sweep(at_rate, rate=[0.1, 0.2]), toy.trained().variables, toy.sets(),
                jax.random.split(KEY, 3), **OPTIONS,
            ),
            "unlearner: expected numbers of 3 members, got {'rate': 2}",
        ),
        (
            lambda: ju.unlearn_many(
                ju.sweep(lambda size: at_rate(0.1 if size > 2 else 0.2), size=[1, 3]),
                toy.trained().variables, toy.sets(), jax.random.split(KEY, 2), **OPTIONS,
            ),
            "make: expected a method that can be made of JAX scalars",
        ),
        (
            lambda: ju.train_many(
                toy.mlp(), toy.sets().retain, jax.random.split(KEY, 3),
                sharding=ju.make_sharding("data"),
            ),
            "sharding: expected one axis of devices that divide the 3 members",
        ),
    ],
)  # fmt: skip
def test_what_is_no_sweep(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        wrong()


def test_members_are_divided_over_devices(monkeypatch):
    config = TrainConfig(epochs=1, batch_size=16)
    keys, part = jax.random.split(KEY, 16), toy.sets().retain
    sharding, programs = ju.make_sharding("data"), meshes.watch(monkeypatch)
    many = ju.train_many(toy.mlp(), part, keys, config=config, sharding=sharding)
    for program in programs:
        assert not read_collectives(program.as_text()), "members have nothing to tell each other"
    whole = ju.train_many(toy.mlp(), part, keys, config=config)
    for a, b in zip(jax.tree.leaves(many.variables), jax.tree.leaves(whole.variables), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert {shard.data.shape[0] for shard in a.addressable_shards} == {2}
        assert len(a.sharding.device_set) == 8


def test_each_model_has_a_random_half():
    examples = toy.sets().train
    halves = ju.data.random_subsets(examples, 6, share=0.5, seed=3)
    assert halves.indices.shape == (6, len(examples.examples.y) // 2)
    assert halves.size.tolist() == [len(examples.examples.y) // 2] * 6
    chosen = [set(row) for row in np.asarray(halves.indices).tolist()]
    assert all(len(one) == halves.indices.shape[1] for one in chosen)
    assert len({frozenset(one) for one in chosen}) == 6
    again = ju.data.random_subsets(examples, 6, share=0.5, seed=3)
    assert np.array_equal(again.indices, halves.indices)
    config = TrainConfig(epochs=1, batch_size=16)
    keys = jax.random.split(KEY, 6)
    many = ju.train_many(toy.mlp(), halves, keys, config=config)
    alone = halves._replace(indices=halves.indices[4], size=halves.size[4])
    one = ju.train(toy.mlp(), alone, keys[4], config=config)
    same(jax.tree.map(lambda leaf: leaf[4:], many.variables), [one.variables], atol=1e-5)
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match="share: expected a number above 0, below 1"):
            ju.data.random_subsets(examples, 2, share=wrong)
