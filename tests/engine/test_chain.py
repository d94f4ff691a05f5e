"""Methods one after the other, masks for any of them, and stop rules that combine."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn import checkpoint
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.core.types import Batch, Batches, Info, Needs, Unlearner
from jaxunlearn.engine import chain, stop
from jaxunlearn.engine.driver import Resume
from jaxunlearn.engine.sharding import make_sharding
from jaxunlearn.training.optimizers import matching, only
from tests import toy

KEY = jax.random.key(2)


def links():
    return toy.method("neuron_path"), toy.method("finetune")


def test_a_chain_is_its_links_in_turn():
    """Edit, then repair: each link alone, with the key of its place, gives the same."""
    edit, repair = links()
    given, sets = toy.trained().variables, toy.sets()
    out = ju.unlearn(chain(edit, repair), given, sets, KEY, steps=6, batch_size=16)
    first = ju.unlearn(edit, given, sets, derive(KEY, Purpose.LINK, 0), batch_size=16)
    second = ju.unlearn(
        repair, first.variables, sets, derive(KEY, Purpose.LINK, 1), steps=6, batch_size=16
    )
    jax.tree.map(np.testing.assert_array_equal, out.variables, second.variables)
    assert out.steps == first.steps + 6
    assert out.examples == first.examples + second.examples
    assert {"0/neurons", "1/loss"} <= set(out.history)
    assert len(out.history["1/loss"]) == 6


def test_each_link_sees_only_what_it_declares():
    """The edit is zero-shot, though the repair reads training images."""
    seen = []

    def watch(method):
        def init(variables, sets, key):
            seen.append({n for n in sets._fields if getattr(sets, n) is not None})
            return method.init(variables, sets, key)

        return method._replace(init=init)

    edit, repair = map(watch, links())
    ju.unlearn(chain(edit, (repair, {"steps": 2, "batch_size": 8})), toy.trained().variables,
               toy.sets(), KEY)  # fmt: skip
    assert seen[0] == {"unseen"}
    assert seen[-1] == {"retain"}


def test_a_chain_for_many_seeds_equals_the_loop():
    method = chain(toy.method("finetune"), toy.method("gradient_ascent"))
    keys = jax.random.split(KEY, 2)
    given, sets = toy.trained().variables, toy.sets()
    many = ju.unlearn_many(method, given, sets, keys, steps=3, batch_size=16).variables
    for number, key in enumerate(keys):
        one = ju.unlearn(method, given, sets, key, steps=3, batch_size=16).variables
        jax.tree.map(
            lambda a, b, n=number: np.testing.assert_allclose(a[n], b, atol=1e-5), many, one
        )


def going_on(path, progress):
    """Reads a state as a run of its own would."""

    def resume(fresh):
        state = checkpoint.load(path, fresh)[0]
        return Resume(state, progress.step, progress.seconds, progress.history)

    return resume


@pytest.mark.parametrize("kind", ["edited", "stopped", "meshed", "streamed"])
def test_a_chain_goes_on_within_the_link_that_was_under_way(tmp_path, kind):
    """Bit-equal from each chunk; finished links are not run again."""
    begun, told = [], []

    def watched(method):
        def init(variables, sets, key):
            jax.debug.callback(lambda: begun.append(method.name))
            return method.init(variables, sets, key)

        return method._replace(init=init)

    edit, repair = map(watched, links())
    other, stopped = watched(toy.method("random_label")), watched(counting())
    whole = {
        "edited": chain(edit, (repair, {"steps": 3})),
        "stopped": chain(
            (stopped, {"steps": 9, "stop": stop.reached(count=2.0)}), (repair, {"steps": 2})
        ),
        "streamed": chain((repair, {"steps": 2}), (other, {"steps": 1})),
        "meshed": chain((repair, {"steps": 2}), (other, {"steps": 2})),
    }[kind]
    sets = toy.sets()
    if kind == "streamed":
        images = np.random.default_rng(0).integers(0, 256, (96, *toy.SHAPE), np.uint8)
        sets = ju.make_sets(ju.data.stream(images), np.arange(96) % 4, ju.forget_class(2))
    run = partial(
        ju.unlearn, whole, toy.trained().variables, sets, KEY, batch_size=16, chunk=1,
        sharding=make_sharding("fsdp") if kind == "meshed" else None,
    )  # fmt: skip

    def keep(progress):
        if progress.step < progress.steps:  # else nothing of it is kept
            checkpoint.save(tmp_path / str(progress.step), progress.state, {})
            told.append(progress._replace(state=None))

    out = run(on_chunk=keep)
    assert len(told) > 1
    for progress in told:
        begun.clear()
        again = run(resume=going_on(tmp_path / str(progress.step), progress))
        jax.effects_barrier()
        jax.tree.map(np.testing.assert_array_equal, again.variables, out.variables)
        jax.tree.map(np.testing.assert_array_equal, again.history, out.history)
        assert (again.steps, again.examples) == (out.steps, out.examples)
        finished = any(name.startswith("1/") for name in progress.history)
        assert len(begun) == (1 if finished else 2), begun


def test_wrong_links():
    with pytest.raises(TypeError, match="links: expected at least one method, got none"):
        chain()
    with pytest.raises(TypeError, match=r"links\[1\]: expected Unlearner, got str"):
        chain(toy.method("finetune"), ("finetune", {}))
    with pytest.raises(TypeError, match=r"links\[0\]: expected steps, .* got \['rate'\]"):
        chain((toy.method("finetune"), {"rate": 3}))


@pytest.mark.parametrize("name", ["finetune", "gradient_ascent", "random_label"])
def test_a_mask_keeps_what_is_not_trained(name):
    """Bit-equal, under weight decay too, and without state in the optimizer."""
    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-2))
    masked = only(decayed, matching("^head"))
    method = getattr(ju, name)(toy.mlp(), optimizer=masked)
    given = toy.trained().variables["params"]
    out = ju.unlearn(method, {"params": given}, toy.sets(), KEY, steps=3, batch_size=16)
    made = out.variables["params"]
    for layer in ("fc1", "fc2"):
        jax.tree.map(np.testing.assert_array_equal, made[layer], given[layer])
    assert (np.asarray(made["head"]["kernel"]) != np.asarray(given["head"]["kernel"])).any()
    kept = jax.tree.leaves(masked.init(given))
    assert not any(leaf.shape == given["fc1"]["kernel"].shape for leaf in kept)


def test_what_is_masked_costs_no_gradient():
    """The compiled step of a masked head holds fewer operations than the whole network's."""

    def flops(optimizer):
        method = ju.finetune(toy.mlp(), optimizer=optimizer)
        state = method.init(toy.trained().variables, ju.Sets(), KEY)
        x, y = jnp.ones((8, *toy.SHAPE)), jnp.zeros(8, jnp.int32)
        batch = Batch(x, y, jnp.ones(8), jnp.arange(8, dtype=jnp.int32))
        lowered = jax.jit(method.step).lower(state, Batches(retain=batch), KEY, jnp.int32(0))
        return lowered.compile().cost_analysis()["flops"]

    assert flops(only(optax.sgd(0.1), matching("head"))) < 0.7 * flops(optax.sgd(0.1))


def test_a_mask_that_matches_nothing_is_told():
    method = ju.finetune(toy.mlp(), optimizer=only(optax.sgd(0.1), matching("nowhere")))
    with pytest.raises(ConfigError, match=r"found in some of \['fc1/bias', .* got \['nowhere'\]"):
        ju.unlearn(method, toy.trained().variables, toy.sets(), KEY, steps=1)
    with pytest.raises(ConfigError, match="only: expected regular expressions"):
        matching("(")


def raised(state):
    """A model that differs from the one given: what changes nothing is refused."""
    return jax.tree.map(lambda leaf: leaf + 1, state)


def counting():
    """Reports its count and falls in loss, so that rules can be checked by hand."""

    def step(state, batches, key, count):
        count = count.astype(jnp.float32)
        return state, Info({"count": count, "loss": 10.0 - count}, jnp.bool_(True))

    return Unlearner(lambda v, sets, key: v, step, raised, Needs(retain=True))


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        (stop.within(loss=6.0), 5),
        (stop.reached(count=3.0), 4),
        (stop.any_of(stop.within(loss=6.0), stop.reached(count=7.0)), 5),
        (stop.all_of(stop.within(loss=6.0), stop.reached(count=7.0)), 8),
        (stop.within(loss=6.0, count=1.0), 12),
    ],
)
def test_rules_stop_after_the_chunk_that_fulfils_them(rule, steps):
    out = ju.unlearn(
        counting(), toy.trained().variables, toy.sets(), KEY, steps=12, chunk=1, stop=rule
    )
    assert out.steps == steps
    np.testing.assert_array_equal(out.history["count"], np.arange(steps))


def test_all_rules_are_asked_so_that_a_misspelt_metric_is_found():
    rule = stop.any_of(stop.reached(count=0.0), stop.within(los=1.0))
    with pytest.raises(ValueError, match=r"among \['count', 'loss'\], got \['los'\]"):
        ju.unlearn(counting(), toy.trained().variables, toy.sets(), KEY, steps=2, stop=rule)


def test_the_key_of_a_step_follows_from_the_run_and_the_count():
    """Resumed at any step a method draws what it would have drawn; no two steps draw alike."""

    def step(state, batches, key, count):
        return state, Info({"drawn": jax.random.uniform(key)}, jnp.bool_(1))

    method = Unlearner(lambda v, sets, key: v, step, raised, Needs(retain=True))
    given, sets = {"w": jnp.zeros(3)}, toy.sets()
    whole = ju.unlearn(method, given, sets, KEY, steps=6, chunk=2).history["drawn"]
    assert len(set(whole.tolist())) == 6
    wanted = [jax.random.uniform(derive(KEY, Purpose.STEPS, n)) for n in range(6)]
    np.testing.assert_allclose(whole, wanted, rtol=1e-6)
