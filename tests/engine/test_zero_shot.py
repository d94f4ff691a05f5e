"""A method that declares no training data cannot reach them: by value, at every door."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.types import Info, Needs, Preparation, Unlearner
from jaxunlearn.engine.driver import prepare
from jaxunlearn.experiment import trial
from jaxunlearn.experiment.plan import make_plan
from jaxunlearn.methods import METHODS, Method
from jaxunlearn.metrics.registry import Measured
from tests.runs import hurry

KEY = jax.random.key(0)
TRAIN, UNSEEN, TEST = 200, 50, 90
COUNTS = {"train": 120, "test": 40}


def split(value, count):
    return np.full((count, 3, 3, 1), value, np.uint8), np.arange(count) % 4


@functools.cache
def arrays():
    """The shared arrays of all requests."""
    whole = split(TRAIN, COUNTS["train"]), split(UNSEEN, 20), split(TEST, 20)
    return jax.tree.map(jnp.asarray, whole)


def sets_of(label):
    train, unseen, test = arrays()
    return ju.make_sets(*train, ju.forget_class(label), unseen=unseen, test=test, mean=0, std=1)


class Spy:
    """A method that notes the shapes and values of all that it is shown."""

    def __init__(self):
        self.shapes, self.values = [], []

    def note(self, door, *given):
        for leaf in jax.tree.leaves(given):
            self.shapes.append((door, tuple(leaf.shape)))
            if isinstance(leaf, jax.ShapeDtypeStruct):
                continue
            assert door != "shapes", "no values"
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                continue
            jax.debug.callback(lambda value: self.values.append((door, np.asarray(value))), leaf)

    def __call__(self, model, *, strength: float = 1.0):
        def like(variables, sets):
            self.note("shapes", sets)
            return jax.ShapeDtypeStruct((), jnp.float32)

        def run(variables, sets, key):
            self.note("run", sets)
            return jnp.float32(0)

        def init(variables, sets, key, prepared):
            self.note("init", sets)
            return variables

        def step(state, batches, key, count):
            self.note("step", batches)
            moved = jax.tree.map(lambda leaf: leaf + 1, state)
            return moved, Info({"loss": jnp.float32(0)}, jnp.asarray(True))

        needs = Needs(unseen=True)
        return Unlearner(init, step, lambda state: state, needs, Preparation(run, like))

    def check(self, doors=("shapes", "run", "init", "step")):
        jax.effects_barrier()
        assert {door for door, _ in self.shapes} == set(doors)
        assert {door for door, _ in self.values} == set(doors) - {"shapes"}
        for door, value in self.values:
            assert TRAIN not in value, door
            assert TEST not in value, door
        for door, shape in self.shapes:
            assert COUNTS["train"] not in shape, (door, shape)
            assert COUNTS["test"] not in shape, (door, shape)


def variables():
    return {"w": jnp.ones((9, 4))}


def runs(spy):
    """Every door of Python."""
    method, sets = spy(None), sets_of(1)
    keys, options = jax.random.split(KEY, 2), {"steps": 2, "batch_size": 4}
    stacked = ju.data.stack_sets([sets_of(1), sets_of(2)])
    return {
        "unlearn": lambda: ju.unlearn(method, variables(), sets, KEY, **options),
        "sharded": lambda: ju.unlearn(
            method, variables(), sets, KEY, sharding=ju.make_sharding("data"), steps=1, batch_size=8
        ),
        "chain": lambda: ju.unlearn(ju.chain(method, method), variables(), sets, KEY, **options),
        "many seeds": lambda: ju.unlearn_many(method, variables(), sets, keys, **options),
        "at once": lambda: ju.unlearn_many(
            method, variables(), stacked, keys, vectorise=True, **options
        ),
        "one by one": lambda: ju.unlearn_many(
            method, variables(), stacked, keys, vectorise=False, **options
        ),
    }


DOORS = ["unlearn", "sharded", "chain", "many seeds", "at once", "one by one"]


@pytest.mark.parametrize("door", DOORS)
def test_no_door_shows_training_data(door):
    spy = Spy()
    runs(spy)[door]()
    spy.check()


def test_a_preparation_alone_sees_no_training_data():
    spy = Spy()
    prepare(spy(None), variables(), sets_of(1), KEY)
    spy.check(["run"])


@pytest.fixture
def known(monkeypatch):
    """A method of another package, known to runs."""
    spy = Spy()
    monkeypatch.setattr(METHODS, "_rows", dict(METHODS._rows))
    METHODS.register("spy", Method(spy, "notes what it sees"))
    return spy


def words(folder, *more):
    arrays = {}
    for name, value in (("train", TRAIN), ("test", UNSEEN)):
        x, arrays[f"{name}_y"] = split(value, COUNTS[name])
        x[0, 0] = value + 1  # constant images have no deviation
        arrays[f"{name}_x"] = x
    np.savez(folder / "own.npz", **arrays)
    return [
        f"data.name={folder / 'own.npz'}", "data.unseen=16", "model.options.features=(4,)",
        "train.epochs=1", "retrained=1", "methods=spy", "methods.spy.steps=1", *more,
    ]  # fmt: skip


def test_a_plan_shows_no_training_data(known, tmp_path):
    """It traces what a method makes of the data, before anything is trained."""
    make_plan(load_config(None, words(tmp_path, "request.classes=1")), tmp_path)
    assert {door for door, _ in known.shapes} == {"shapes", "init"}
    assert all(COUNTS["train"] not in shape for _, shape in known.shapes)
    assert not known.values


@pytest.mark.parametrize(
    "asked", [["request.classes=1"], ["request.classes=0,1", "request.each=true"]]
)
def test_a_run_shows_no_training_data(known, tmp_path, asked, monkeypatch):
    hurry(monkeypatch)
    monkeypatch.setattr(trial, "measure", lambda *_, **__: Measured({}, {}, {}, {}))
    ju.run(load_config(None, words(tmp_path, *asked)), tmp_path)
    jax.effects_barrier()
    assert {door for door, _ in known.values} == {"run", "init", "step"}
    for door, value in known.values:
        if value.ndim > 1 and value.dtype == np.uint8:
            assert value.max() <= UNSEEN + 1, door
    assert all(COUNTS["train"] not in shape for _, shape in known.shapes)
