"""Training, unlearning and predicting with streamed sets: the same as with resident ones."""

import contextlib
import json
import threading
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.config import TrainConfig
from jaxunlearn.core.errors import DataError, RequestError
from jaxunlearn.core.types import Info, Needs, Preparation, Sets, Unlearner
from jaxunlearn.data import streams
from jaxunlearn.data.batches import drawn_slots
from jaxunlearn.data.sets import alone
from jaxunlearn.data.streams import Stream
from jaxunlearn.engine.driver import Resume
from jaxunlearn.engine.feed import rows_of_steps
from jaxunlearn.engine.loop import advance, init
from jaxunlearn.engine.predict import predict
from jaxunlearn.engine.sharding import make_sharding
from jaxunlearn.methods.shares import sample_of
from jaxunlearn.training.curvature import mean_over
from tests import toy
from tests.data import stream_sources as sources
from tests.data.stream_sources import Records, X, Y
from tests.engine.test_processes import begin, close, free_port, read_all
from tests.methods import test_language_contract as language

KEY = jax.random.key(0)
NOT_STREAMED = ("scrub", "sisa")
"""Methods that keep a set, scrub in order to rewind."""
TRAIN = TrainConfig(epochs=2, batch_size=16)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def made(x, request=None):
    unseen, test = toy.blobs()[1:]
    return ju.make_sets(x, Y, request or ju.forget_class(1), unseen=unseen, test=test)


@pytest.fixture(scope="module")
def resident():
    return made(X)


@pytest.fixture(scope="module")
def streamed():
    return made(ju.data.stream(Records()))


@pytest.fixture(scope="module")
def original(resident):
    return ju.train(toy.mlp(), resident.train, KEY, config=TRAIN).variables


def recorder(needs):
    """Keeps what it is shown: every batch of a run, whole."""

    def init(variables, sets, key):
        return {"w": variables["w"] + 1}

    def step(state, batches, key, count):
        shown = {
            f"{name}/{field}": value
            for name, batch in batches._asdict().items() if batch is not None
            for field, value in batch._asdict().items()
        }  # fmt: skip
        return state, Info(shown, np.True_)

    return Unlearner(init, step, lambda state: state, needs)


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize(
    "needs",
    [Needs(forget=True, retain=True), Needs(retain=True, unseen=True, labels=False),
     Needs(forget=True, once=True), Needs(forget=True, once=True, samples=20)],
    ids=["two sets", "no labels", "one pass", "some samples"],
)  # fmt: skip
def test_batches_are_equal_bit_for_bit(resident, streamed, needs, chunk):
    steps = None if needs.once else 9  # over the end of an epoch of the forget set
    outs = [
        ju.unlearn(recorder(needs), {"w": np.zeros(2, np.float32)}, sets, KEY, steps=steps,
                   batch_size=8, chunk=chunk)
        for sets in (resident, streamed)
    ]  # fmt: skip
    assert outs[0].history.keys() == outs[1].history.keys()
    same(outs[0].history, outs[1].history)


def test_training_is_equal_and_compiles_once(streamed, original):
    out = ju.train(toy.mlp(), streamed.train, KEY, config=TRAIN)
    same(out.variables, original)
    programs = advance._cache_size(), drawn_slots._cache_size()
    same(ju.train(toy.mlp(), streamed.train, KEY, config=TRAIN).variables, original)
    other = made(ju.data.stream(sources.Together()))  # of the same form
    same(ju.train(toy.mlp(), other.train, KEY, config=TRAIN).variables, original)
    assert (advance._cache_size(), drawn_slots._cache_size()) == programs


@pytest.mark.parametrize("name", ["finetune", "gradient_ascent", "random_label", "neuron_path"])
def test_methods_that_read_batches_are_equal(resident, streamed, original, name):
    method = toy.method(name)
    steps = None if method.needs.once else 5
    outs = [
        ju.unlearn(method, original, sets, KEY, steps=steps, batch_size=16, chunk=1)
        for sets in (resident, streamed)
    ]
    same(outs[0].variables, outs[1].variables)


def reader(per_batch):
    """A method without steps, whose programs read its sets before the first."""

    def init(variables, sets, key):
        def total(batch):
            return batch.weight @ batch.x.reshape(len(batch.y), -1)

        some = sample_of(sets.retain, 5, key)
        x = ju.data.fetch(some.examples, some.indices)
        return {**variables, "mean": mean_over(total, sets.forget, per_batch), "some": x}

    needs = Needs(forget=True, retain=True, once=True)
    return Unlearner(init, None, lambda state: state, needs)


def test_methods_read_streams_before_the_first_step(resident, streamed, original):
    method = reader(16)
    read = [ju.unlearn(method, original, sets, KEY).variables for sets in (resident, streamed)]
    same(*read)
    programs = init._cache_size()
    source = Records()
    other = made(ju.data.stream(source, name="photos"))  # of the same form
    same(ju.unlearn(method, original, other, KEY).variables, read[0])
    source.at, source.act = np.flatnonzero(Y == 1)[40], sources.undecodable
    with pytest.raises(DataError, match=f"^photos: .* at position {source.at}, got ValueError: no"):
        ju.unlearn(method, original, other, KEY)
    assert init._cache_size() == programs
    late = jax.jit(lambda part: ju.data.fetch(part.examples, part.indices))
    with pytest.raises(Exception, match=r"sets\.forget: .* to be read before the first step"):
        jax.block_until_ready(late(alone(streamed).forget))


def test_preparations_read_streams(resident, streamed, original):
    def run(variables, sets, key):
        assert isinstance(sets.forget.examples.x, Stream)
        logits = predict(toy.mlp().apply, variables, sets.forget, 20).logits
        return {"logits": logits, "x": ju.data.fetch(sets.forget.examples, np.arange(7))}

    prepare = Preparation(run, lambda variables, sets: None)
    method = Unlearner(
        lambda variables, sets, key, prepared: {**variables, **prepared}, None, lambda state: state,
        Needs(forget=True, once=True), prepare=prepare,
    )  # fmt: skip
    found = ju.unlearn(method, original, streamed, KEY).variables
    own = resident.forget.indices
    np.testing.assert_allclose(found["x"], X[own[:7]] / 255, atol=1e-6)
    wanted = predict(toy.mlp().apply, original, resident.forget).logits
    np.testing.assert_allclose(found["logits"], wanted, atol=1e-6)


def test_a_method_that_reads_much_at_once_says_so(streamed, original, monkeypatch):
    monkeypatch.setattr(streams, "AT_ONCE", 36 * 49)
    with pytest.raises(DataError, match=r"sets\.forget: expected resident.*got a streamed set"):
        ju.unlearn(reader(50), original, streamed, KEY)
    small = streamed._replace(forget=ju.data.resident(streamed.forget))
    out = ju.unlearn(reader(50), original, small, KEY)
    assert out.variables["some"].shape == (5, 6, 6, 1)


def streamed_alike(resident):
    """The same sets, of which no record lies in memory for JAX."""
    opened = {}

    def one(part):
        x, y = jax.tree.map(np.asarray, part.examples[:2])
        if id(part.examples.y) not in opened:
            rows = [(jax.tree.map(lambda leaf, n=n: leaf[n], x), 0) for n in range(len(y))]
            opened[id(part.examples.y)] = ju.data.stream(rows)
        return part._replace(examples=part.examples._replace(x=opened[id(part.examples.y)]))

    return Sets(*(part and one(part) for part in resident))


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in toy.ROWS if name not in NOT_STREAMED])
def test_every_method_that_takes_streamed_sets_makes_the_same(name):
    resident = toy.sets_of(name)
    outs = [
        ju.unlearn(toy.method(name), toy.original(name), sets, KEY, batch_size=16, chunk=1,
                   **toy.ROWS[name][1]).variables
        for sets in (resident, streamed_alike(resident))
    ]  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *outs)


@pytest.mark.long
@pytest.mark.parametrize("name", toy.LANGUAGE_METHODS)
def test_every_method_for_language_models_makes_the_same(name):
    resident, method = toy.text_sets(), language.make(name)
    outs = [
        language.run(method, language.original(), sets, chunk=1).variables
        for sets in (resident, streamed_alike(resident))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *outs)


@pytest.mark.long
@pytest.mark.parametrize("name", NOT_STREAMED)
def test_methods_that_keep_a_set_say_so(name):
    with pytest.raises(DataError, match=r"sets.(forget|retain): expected resident examples"):
        ju.unlearn(
            toy.method(name), toy.original(name), streamed_alike(toy.sets_of(name)), KEY,
            batch_size=16, **toy.ROWS[name][1],
        )  # fmt: skip


def test_a_killed_run_continues_at_its_step(streamed, original):
    method, kept = toy.method("finetune"), []

    def keep(progress):
        kept.append((jax.device_get(progress.state), progress.step))

    whole = ju.unlearn(method, original, streamed, KEY, steps=6, batch_size=8, on_chunk=keep)
    state, step = kept[2]
    rest = ju.unlearn(
        method, original, streamed, KEY, steps=6, batch_size=8,
        resume=lambda fresh: Resume(jax.device_put(state), step, 0.0, {}),
    )  # fmt: skip
    same(rest.variables, whole.variables)


def test_many_models_and_many_requests(resident, streamed):
    keys = jax.random.split(KEY, 2)
    many = [
        ju.train_many(toy.mlp(), sets.retain, keys, config=TRAIN).variables
        for sets in (resident, streamed)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *many)
    x = ju.data.stream(Records())
    stacked = ju.data.stack_sets([made(x, ju.forget_class(label)) for label in (1, 2)])
    alone = made(x, ju.forget_class(2))
    both = ju.train_many(toy.mlp(), stacked.retain, keys, config=TRAIN)
    one = ju.train(toy.mlp(), alone.retain, keys[1], config=TRAIN)
    assert both.variables["params"].keys() == one.variables["params"].keys()
    with pytest.raises(ValueError, match="to share one device array"):
        ju.data.stack_sets([made(ju.data.stream(Records())), made(ju.data.stream(Records()))])


def test_many_models_go_on_in_the_middle_of_one(streamed, original):
    method, keys, kept = toy.method("finetune"), jax.random.split(KEY, 3), []

    def keep(progress):
        kept.append(jax.device_get(progress))

    many = partial(ju.unlearn_many, method, original, streamed, keys, steps=4, batch_size=8)
    whole = many(on_chunk=keep)
    assert [(one.step, one.steps) for one in kept] == [(n + 1, 12) for n in range(12)]
    for at in (1, 4, 6, 11):  # within the first, at its end, within the second, at the very end
        told, (state, step, _, seconds, history) = [], kept[at - 1]
        found = Resume(state, step, seconds, history)

        def resume(fresh, found=found):
            assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, found.state)
            return found._replace(state=jax.device_put(found.state))

        rest = many(on_chunk=lambda one, told=told: told.append(one.step), resume=resume)
        assert told == [*range(at + 1, 13)]
        same((rest.variables, rest.history), (whole.variables, whole.history))
    with pytest.raises(ValueError, match="sharding: expected None for many models of streamed"):
        many(sharding=make_sharding("data=3", devices=jax.devices()[:3]))


def test_requests_of_different_sizes_take_as_many_steps_as_they_need():
    x = ju.data.stream(Records())
    stacked = ju.data.stack_sets([made(x, ju.forget_class(label)) for label in (1, 2)])
    method = recorder(Needs(forget=True, once=True))
    keys = jax.random.split(KEY, 2)
    out = ju.unlearn_many(method, {"w": np.zeros(2, np.float32)}, stacked, keys, batch_size=8)
    assert out.history["forget/weight"].sum(axis=(0, 2)).tolist() == [50, 40]


def test_predictions_are_equal_and_so_is_judgement(resident, streamed, original):
    for name in ("forget", "retain"):
        own, other = (
            predict(toy.mlp().apply, original, getattr(sets, name), batch_size=32)
            for sets in (streamed, resident)
        )
        np.testing.assert_array_equal(own.labels, other.labels)
        np.testing.assert_allclose(own.logits, other.logits, atol=1e-6)
    told = [
        {row["name"]: row["values"]["original"] for row in report["rows"]}
        for report in (ju.evaluate(toy.mlp(), {"original": original}, [], sets)
                       for sets in (resident, streamed))
    ]  # fmt: skip
    assert told[0].keys() == told[1].keys()
    for name, value in told[0].items():
        assert told[1][name] == pytest.approx(value, abs=1e-4), name


@pytest.mark.parametrize("batch_size", [16, 15])
def test_on_a_mesh_batches_are_divided(resident, streamed, original, batch_size):
    sharding = make_sharding("data=2", devices=jax.devices()[:2])
    method = toy.method("finetune")
    told = r"batches of 15 do not divide over 2 devices: each computes all"
    with pytest.warns(UserWarning, match=told) if batch_size == 15 else contextlib.nullcontext():
        outs = [
            ju.unlearn(method, original, sets, KEY, steps=3, batch_size=batch_size, chunk=1,
                       sharding=sharding)
            for sets in (resident, streamed)
        ]  # fmt: skip
    same(outs[0].variables, outs[1].variables)


def in_processes(count, *given):
    port, script = free_port(), Path(__file__).with_name("streamed_processes.py")
    return read_all(begin([(script, count, n, port, *given) for n in range(count)], count=count))


@pytest.mark.long
def test_two_processes_read_half_each_and_find_what_one_does():
    ended = [*in_processes(1, 0, 180), *in_processes(2, 0, 180), *in_processes(2, 1, 180)]
    found = [json.loads(out.partition("FOUND")[2]) for out, _ in ended]
    for other in found[1:]:
        close(other, found[0])


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_that_is_too_short_ends_both_processes(workers):
    ended = in_processes(2, workers, 150)
    assert all(time.time() - float(out.partition("BEGUN")[2]) < 60 for out, _ in ended)
    for _, said in ended:
        assert "photos: expected as many records as its length says, 180, got none at" in said
    assert "error: process" in ended[0][1] + ended[1][1]


@pytest.mark.parametrize("number", [0, 5, 100])
def test_a_bad_record_ends_the_run_and_leaves_no_thread(original, number):
    source, at = Records(), np.flatnonzero(Y != 1)[number]
    sets = made(ju.data.stream(source))
    source.at, source.act = at, sources.undecodable  # after its form was looked at
    with pytest.raises(DataError, match=f"position {at}, got ValueError: no image"):
        ju.unlearn(toy.method("finetune"), original, sets, KEY, steps=40, batch_size=16)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stream")]


def test_an_empty_set_is_told_as_before(streamed, original):
    alone = Sets(retain=streamed.retain)
    with pytest.raises(RequestError, match="needs forget examples, got none"):
        ju.unlearn(toy.method("gradient_ascent"), original, alone, KEY, steps=1)


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_keys_that_differ_between_devices_are_refused(kind, monkeypatch):
    x = ju.data.stream(Records())
    sets, key = ju.make_sets(x, Y, ju.forget_class(1)), jax.random.key(0, impl=kind)
    how = {"starts": [0], "batch_size": 2, "length": 1}
    assert [*rows_of_steps(sets, key, **how)], "on one platform any key serves"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match=f"key: expected one of threefry2x32.*got one of {kind}"):
        rows_of_steps(sets, key, **how)
    assert [*rows_of_steps(sets, jax.random.key(0), **how)]
