"""Many models in one program: kept as one stacked tree, killed, and gone on with."""

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.data.sets import random_subsets, request
from jaxunlearn.engine.driver import Resume
from tests import toy

MEMBERS = 3
CONFIG = ju.TrainConfig(epochs=25, batch_size=32, learning_rate=5e-3)
KEYS = jax.random.split(jax.random.key(3), MEMBERS)


class Killed(Exception):
    """Stands for the end of a process."""


def halves():
    return random_subsets(toy.sets().train, MEMBERS)


def test_an_ensemble_that_was_killed_goes_on_from_its_checkpoint(tmp_path):
    whole = ju.train_many(toy.mlp(), halves(), KEYS, config=CONFIG)
    place = tmp_path / "members.unfinished"

    def keep(progress):
        record = {
            "step": progress.step,
            "seconds": progress.seconds,
            "history": {name: values.tolist() for name, values in progress.history.items()},
        }
        ju.checkpoint.save(place, progress.state, record, overwrite=True)
        if progress.step == 32:
            raise Killed

    def find(fresh):
        state, record = ju.checkpoint.load(place, fresh)
        history = {n: np.asarray(v, np.float32) for n, v in record["history"].items()}
        return Resume(state, record["step"], record["seconds"], history)

    with pytest.raises(Killed):
        ju.train_many(toy.mlp(), halves(), KEYS, config=CONFIG, on_chunk=keep)
    steps = []
    again = ju.train_many(
        toy.mlp(), halves(), KEYS, config=CONFIG, resume=find,
        on_chunk=lambda progress: steps.append(progress.step),
    )  # fmt: skip
    assert again.steps == whole.steps > 32
    assert steps[0] > 32, "what was done is not done again"
    for own, other in zip(
        jax.tree.leaves(again.variables), jax.tree.leaves(whole.variables), strict=True
    ):
        assert own.shape[0] == MEMBERS
        assert np.array_equal(own, other), "bit for bit"
    np.testing.assert_array_equal(again.history["loss"], whole.history["loss"])
    ju.checkpoint.save(tmp_path / "members", again.variables, {"members": MEMBERS})
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), whole.variables)
    stacked, record = ju.checkpoint.load(tmp_path / "members", like)
    assert record["members"] == MEMBERS
    for number in range(MEMBERS):
        own = request(ju.Sets(retain=halves()), number).retain
        alone = ju.train(toy.mlp(), own, KEYS[number], config=CONFIG).variables
        for one, other in zip(jax.tree.leaves(stacked), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(one[number], other, rtol=1e-4, atol=1e-5)
