"""What every method for language models must obey: the table of all methods, in fewer programs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.core.types import Batches, Sets
from jaxunlearn.engine.sharding import make_sharding, place
from tests import toy

VARIANTS = {
    **{name: (name, {}) for name in toy.LANGUAGE_METHODS},
    "grad_diff, kl, adapters": ("grad_diff", {"retain": "kl", "lora": 8}),
}
SHARDED = ("grad_diff, kl, adapters", "idk_dpo", "rmu")
# those that compute something before the first step, or after the last; the others are one frame
MAPPED = (
    "lm_retrain", "grad_diff, kl, adapters", "npo", "alt_po", "idk_dpo", "concept_words", "rmu",
    "task_vector",
)  # fmt: skip


def make(name):
    row, options = VARIANTS[name]
    return toy.LANGUAGE_METHODS[row](
        toy.language_model(), optimizer=optax.sgd(0.1, momentum=0.9), **options
    )


def original():
    return toy.language_model().init(jax.random.key(0))


def run(method, variables, sets, seed=3, **options):
    return ju.unlearn(
        method, variables, sets, jax.random.key(seed), steps=3, batch_size=8, **options
    )


def close(a, b, tolerance=1e-5):
    chex.assert_trees_all_close(jax.device_get(a), jax.device_get(b), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_it_obeys(name):
    method, shown = make(name), []
    chex.clear_trace_counter()

    def init(variables, sets, *more):
        shown.append({field for field in Sets._fields if getattr(sets, field) is not None})
        return method.init(variables, sets, *more)

    def step(state, batches, key, count):
        shown.append({f for f in Batches._fields if getattr(batches, f) is not None})
        return method.step(state, batches, key, count)

    watched = method._replace(
        init=chex.assert_max_traces(init, n=1),
        step=chex.assert_max_traces(step, n=2),
        result=chex.assert_max_traces(method.result, n=1),
    )
    variables, sets = original(), toy.text_sets()
    before = jax.device_get(variables)

    # the original is untouched, and the result has its form and memory of its own
    out = run(watched, variables, sets)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(variables), before)
    given, made = (jax.tree.map(lambda a: (a.shape, a.dtype), t) for t in (before, out.variables))
    assert given == made
    assert not {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(variables)} & {
        leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(out.variables)
    }

    # another model, another key: the same programs; the same key: the same numbers
    run(watched, jax.tree.map(lambda leaf: 0.9 * leaf, variables), sets, seed=9)
    declared = {field for field in Batches._fields if getattr(method.needs, field)}
    bare = Sets(**{field: getattr(sets, field) for field in declared})
    close(run(watched, variables, bare).variables, out.variables, tolerance=0)

    # it sees what it declares, and no more
    assert shown
    assert all(seen == declared for seen in shown)

    if name not in MAPPED:
        return
    keys = jnp.stack([jax.random.key(8), jax.random.key(3)])
    many = ju.unlearn_many(method, variables, sets, keys, steps=3, batch_size=8, vectorise=True)
    close(jax.tree.map(lambda leaf: leaf[1], many.variables), out.variables)


@pytest.mark.parametrize("name", SHARDED)
def test_eight_devices_equal_one(name):
    method, sharding = make(name), make_sharding("fsdp")
    many = run(method, original(), toy.text_sets(), sharding=sharding)
    close(many.variables, run(method, original(), toy.text_sets()).variables)
    kernel = many.variables["params"]["blocks_0"]["mlp"]["down"]["kernel"]
    assert not kernel.sharding.is_fully_replicated


def test_classes_of_different_sizes_in_one_program():
    """References of examples that are padding are never looked up."""
    method, requests = make("npo"), [toy.text_sets(ju.forget_class(label)) for label in (0, 3)]
    keys = jax.random.split(jax.random.key(6), 2)
    many = ju.unlearn_many(
        method, original(), ju.data.stack_sets(requests), keys, steps=3, batch_size=8
    )
    alone = ju.unlearn(method, original(), requests[0], keys[0], steps=3, batch_size=8)
    close(jax.tree.map(lambda leaf: leaf[0], many.variables), alone.variables)


def test_a_start_on_the_mesh_stays_divided():
    """A pretrained model that lies in slices is not gathered on its way in."""
    sharding = make_sharding("fsdp")
    start = place(original(), sharding)
    method = ju.lm_retrain(toy.language_model(), optimizer=optax.sgd(0.1), start=lambda: start)
    made = run(method, None, toy.text_sets(), sharding=sharding)
    found = made.prepared["params"]["blocks_0"]["mlp"]["down"]["kernel"].sharding
    assert not found.is_fully_replicated
    alone = run(method, None, toy.text_sets())
    close(made.variables, alone.variables)
    like = method.prepare.shapes(None, toy.text_sets())
    assert jax.tree.map(jnp.shape, like) == jax.tree.map(jnp.shape, start)
