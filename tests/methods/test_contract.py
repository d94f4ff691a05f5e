"""What every registered method must obey: one table, no exceptions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import jaxunlearn as ju
from jaxunlearn.core.errors import RequestError
from jaxunlearn.core.types import Batches, Sets
from jaxunlearn.engine import loop
from jaxunlearn.engine.sharding import constrain, make_sharding
from jaxunlearn.methods import METHODS as REGISTRY
from tests import meshes, toy

NAMES = sorted(toy.ROWS)
CLASSES = (0, 1, 3)


def run(name, variables=None, sets=None, key=None, method=None, **options):
    variables = toy.original(name) if variables is None else variables
    return ju.unlearn(
        method or toy.method(name),
        variables,
        toy.sets_of(name) if sets is None else sets,
        jax.random.key(3) if key is None else key,
        batch_size=16,
        **{**toy.ROWS[name][1], **options},
    )


def close(a, b, tolerance=1e-5):
    if tolerance and "generator" in a:
        # Adam makes a step of what rounding leaves of a vanishing gradient
        tolerance = 5e-4
    chex.assert_trees_all_close(jax.device_get(a), jax.device_get(b), atol=tolerance, rtol=0)


def differs(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any((np.asarray(x) != np.asarray(y)).any() for x, y in pairs)


def test_the_table_holds_every_registered_method():
    names = {name.partition(",")[0] for name in NAMES}
    assert names | set(toy.LANGUAGE_METHODS) == set(REGISTRY)


# all of a method before the next: its programs are in memory
@pytest.mark.parametrize("name", NAMES, scope="class")
class TestEveryMethod:
    def test_the_original_is_untouched(self, name):
        variables = jax.tree.map(jnp.copy, toy.original(name))
        before = jax.device_get(variables)
        out = run(name, variables)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(variables), before)
        assert differs(out.variables, before), "nothing was changed"
        given = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(variables)}
        made = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(out.variables)}
        assert not given & made

    def test_the_result_has_the_form_of_the_original(self, name):
        given, made = toy.original(name), run(name).variables
        assert jax.tree.structure(given) == jax.tree.structure(made)
        given, made = (jax.tree.map(lambda a: (a.shape, a.dtype), t) for t in (given, made))
        assert given == made

    def test_same_key_same_numbers(self, name):
        close(run(name).variables, run(name).variables, tolerance=0)

    @pytest.mark.parametrize("vectorise", [False, True])
    def test_classes_mapped_equal_the_loop(self, name, vectorise):
        """One program for classes of 30, 50 and 60 examples; mapped in both ways."""
        if vectorise and "," in name:
            pytest.skip("a variant: that its method vectorises is tested with the method")
        requests = [toy.sets_of(name, ju.forget_class(label)) for label in CLASSES]
        keys = jax.random.split(jax.random.key(6), len(CLASSES))
        many = ju.unlearn_many(
            toy.method(name), toy.original(name), ju.data.stack_sets(requests), keys,
            batch_size=16, vectorise=vectorise, **toy.ROWS[name][1],
        )  # fmt: skip
        for number, (one, key) in enumerate(zip(requests, keys, strict=True)):
            alone = run(name, sets=one, key=key).variables
            close(jax.tree.map(lambda leaf, n=number: leaf[n], many.variables), alone)

    def test_it_sees_only_what_it_declares_and_is_traced_once(self, name):
        """Another model, request and key: the same programs."""
        method, shown = toy.method(name), []
        chex.clear_trace_counter()

        def init(variables, sets, *more):
            shown.append({field for field in Sets._fields if getattr(sets, field) is not None})
            return method.init(variables, sets, *more)

        def prepare(variables, sets, key):
            shown.append({field for field in Sets._fields if getattr(sets, field) is not None})
            return method.prepare.run(variables, sets, key)

        def step(state, batches, key, count):
            shown.append({f for f in Batches._fields if getattr(batches, f) is not None})
            return method.step(state, batches, key, count)

        watched = method._replace(
            init=chex.assert_max_traces(init, n=1),
            step=method.step and chex.assert_max_traces(step, n=1),
            result=chex.assert_max_traces(method.result, n=1),
        )
        if method.prepare is not None:
            watched = watched._replace(prepare=method.prepare._replace(run=prepare))
        everything = run(name, method=watched).variables
        other = jax.tree.map(
            lambda leaf: leaf * 0.9 if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf,
            toy.original(name),
        )
        run(name, other, toy.sets_of(name, ju.forget_class(1)), jax.random.key(9), method=watched)
        declared = {field for field in Batches._fields if getattr(method.needs, field)}
        assert shown
        assert all(seen == declared for seen in shown)
        bare = Sets(**{field: getattr(toy.sets_of(name), field) for field in declared})
        close(run(name, sets=bare).variables, everything, tolerance=0)

    def test_init_and_preparation_see_no_example_of_other_sets(self, name):
        """The shared arrays hold the other classes, too: their rows are not passed on."""
        method, seen = toy.method(name), []

        def note(sets):
            for field in Batches._fields:
                part = getattr(sets, field)
                if part is not None:
                    jax.debug.callback(lambda y, f=field: seen.append((f, set(y.tolist()))),
                                       part.examples.y)  # fmt: skip

        def init(variables, sets, *more):
            note(sets)
            return method.init(variables, sets, *more)

        def prepare(variables, sets, key):
            note(sets)
            return method.prepare.run(variables, sets, key)

        # labels tell here whose examples were shown, also where the method reads none
        watched = method._replace(init=init, needs=method.needs._replace(labels=True))
        if method.prepare is not None:
            watched = watched._replace(prepare=method.prepare._replace(run=prepare))
        run(name, method=watched)
        jax.effects_barrier()
        assert seen
        for field, labels in seen:
            if field in ("forget", "unseen"):
                assert labels == {1}
            elif name not in toy.ON_ITEMS:  # who retains others of the class
                assert 1 not in labels

    def test_a_missing_set_is_named(self, name):
        first = next(f for f in Batches._fields if getattr(toy.method(name).needs, f))
        with pytest.raises(RequestError, match=f"needs {first} examples, got none"):
            run(name, sets=toy.sets_of(name)._replace(**{first: None}))

    @pytest.mark.parametrize("mesh", ["data", "fsdp", "data=2,model=4"])
    def test_eight_devices_equal_one(self, name, mesh, monkeypatch):
        if mesh != toy.mesh_of(name) and name not in toy.ON_EVERY_MESH:
            pytest.skip("on one mesh: eight devices take long to compile for")
        sharding = make_sharding(mesh)
        assert sharding.mesh.size == 8
        programs = meshes.watch(monkeypatch)
        many = run(name, sharding=sharding).variables
        for program in meshes.steps_among(programs):
            meshes.expect_steps_in_place(program, sharding)
            # players, students and shards are read several times, as others move in between
            reads = 3 if name in (*toy.GAN_METHODS, "gkt", "sisa") else 1
            meshes.expect_needed_gathers(program, sharding, 16, reads)
        close(many, run(name).variables)
        meshes.expect_in_place(many, sharding)
        if name in toy.ON_EVERY_MESH:
            counts = [fn._cache_size() for fn in (loop.init, loop.advance, loop.result)]
            run(name, sharding=sharding, key=jax.random.key(8))
            assert counts == [fn._cache_size() for fn in (loop.init, loop.advance, loop.result)]
        if mesh != "data":
            assert not toy.kernel_of(name, many).sharding.is_fully_replicated


# classes that are mapped, above, have keys that are mapped, too, and are tried with every method
SEEDS = ("cascade", "concept_poison", "finetune", "gkt", "neuron_path", "scrub")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name not in SEEDS)) for name in NAMES]
)
def test_seeds_mapped_equal_the_loop(name):
    """Variables and sets that all members share; one method of each sort, of all with -m long."""
    keys = jax.random.split(jax.random.key(5), 3)
    many = ju.unlearn_many(
        toy.method(name), toy.original(name), toy.sets_of(name), keys,
        batch_size=16, **toy.ROWS[name][1],
    )  # fmt: skip
    for number, key in enumerate(keys):
        one = run(name, key=key).variables
        close(jax.tree.map(lambda leaf, n=number: leaf[n], many.variables), one)


def test_constrain_leaves_keys_alone():
    sharding = make_sharding("fsdp")
    tree = {"key": jax.random.key(0), "w": jnp.ones((4, 8))}
    out = jax.jit(lambda t: constrain(t, sharding))(tree)
    assert out["w"].sharding.spec == PartitionSpec(None, "data")
