"""Two baselines for GANs: climbing the discriminator's loss; adapting, then moving away."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.core.errors import DivergenceError, RequestError
from jaxunlearn.core.types import Needs, Sets
from jaxunlearn.engine.driver import prepare, visible_sets
from jaxunlearn.engine.loop import Job, init
from jaxunlearn.gan import Guide, images_of
from jaxunlearn.methods.adapt_unlearn import (
    REPULSIONS,
    adapt_unlearn,
    draw_negatives,
    draw_positives,
)
from jaxunlearn.methods.discriminator_ascent import discriminator_ascent
from jaxunlearn.models import build_gan
from tests import toy
from tests.toy import gan, guide

KEY = jax.random.key(1)
CLASS = 1
POOL = 128
BATCH = 50
"""All images of the class; one size for all runs, so that they share programs."""


@functools.cache
def sets():
    return toy.sets(ju.forget_class(CLASS), gan=True)


def original():
    return toy.trained_gan().variables


def partial_guide(sees):
    """A guide that says the class always, or never."""
    params = guide().variables["params"]
    bias = params["head"]["bias"].at[CLASS].set(1e4 if sees else -1e4)
    head = {**params["head"], "bias": bias}
    return guide()._replace(variables={"params": {**params, "head": head}})


@functools.cache
def adapting(**options):
    small = {"adapt_steps": 3, "adapt_batch": 16, "pool": POOL, "optimizer": optax.sgd(0.05)}
    return adapt_unlearn(gan(), **{"guide": guide(), **small, **options})


@functools.cache
def forgetting():
    return adapt_unlearn(
        gan(), guide=guide(), adapt_steps=300, adapt_batch=16, optimizer=optax.adam(1e-3, b1=0.5),
        pool=1024, r1=0.1, r1_every=2,
    )  # fmt: skip


@functools.cache
def ascending():
    return discriminator_ascent(gan(), optimizer=optax.sgd(0.03), ema=0.25)


METHODS = {"ascent": ascending, "adapt": adapting}


def run(method, variables=None, key=KEY, data=None, **options):
    return ju.unlearn(
        method, original() if variables is None else variables, data or sets(), key,
        **{"steps": 4, "batch_size": BATCH, **options},
    )  # fmt: skip


def begin(method, prepared, variables=None):
    """The state before the first step of :func:`run`, by the same program."""
    job = Job(method, batch_size=BATCH)
    shown = visible_sets(method.needs, sets())
    return init(original() if variables is None else variables, shown, KEY, prepared, job=job)


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def share(variables, label=CLASS):
    """How often the guide sees the class."""
    z = jax.random.normal(jax.random.key(11), (2000, gan().latent))
    seen = guide().model.apply(guide().variables, gan().synthesize(variables["ema"], z))
    return float(np.mean(np.argmax(np.asarray(seen), axis=1) == label))


@pytest.mark.parametrize("name", METHODS)
class TestBoth:
    def test_forget_images_alone_are_read(self, name):
        method = METHODS[name]()
        assert method.needs == Needs(forget=True)
        bare = run(method, data=Sets(forget=sets().forget)).variables
        np.testing.assert_array_equal(flat(bare), flat(run(method).variables))

    def test_the_original_is_untouched_and_numbers_come_again(self, name):
        given = jax.tree.map(jnp.copy, original())
        first, second = (run(METHODS[name](), given) for _ in range(2))
        np.testing.assert_array_equal(flat(given), flat(original()))
        np.testing.assert_array_equal(flat(first.variables), flat(second.variables))
        for part in given:
            assert (flat(first.variables[part]) != flat(given[part])).any(), part
        assert all(np.isfinite(values).all() for values in first.history.values())

    def test_members_equal_the_loop(self, name):
        keys = jax.random.split(KEY, 2)
        many = ju.unlearn_many(METHODS[name](), original(), sets(), keys, steps=4, batch_size=BATCH)
        for number, key in enumerate(keys):
            alone = run(METHODS[name](), key=key).variables
            own = jax.tree.map(lambda leaf, n=number: leaf[n], many.variables)
            np.testing.assert_allclose(flat(own), flat(alone), atol=1e-5)


class TestAscent:
    def test_forget_images_fall_from_grace(self):
        before = jax.nn.sigmoid(gan().discriminate(original()["discriminator"], images(), labels()))
        out = run(ascending(), steps=60)
        after = jax.nn.sigmoid(
            gan().discriminate(out.variables["discriminator"], images(), labels())
        )
        assert float(jnp.mean(after)) < float(jnp.mean(before)) - 0.2
        score = out.history["score_forget"]
        assert score[-1] < score[0] - 0.2
        assert out.history["loss_discriminator"][-1] > out.history["loss_discriminator"][0] + 0.5

    def test_a_step_goes_up_the_gradient(self):
        rate, given = 0.03, original()
        assert len(labels()) == BATCH
        out = run(ascending(), steps=1)

        def loss(params):
            logits = gan().discriminate({"params": params}, images(), labels())
            return -jnp.mean(jnp.log(1 / (1 + jnp.exp(-logits))))

        params = given["discriminator"]["params"]
        value, gradient = jax.value_and_grad(loss)(params)
        wanted = flat(params) + rate * flat(gradient)
        made = out.variables
        np.testing.assert_allclose(flat(made["discriminator"]), wanted, atol=1e-6)
        np.testing.assert_allclose(out.history["loss_discriminator"][0], value, atol=1e-5)
        followed = 0.25 * flat(given["ema"]) + 0.75 * flat(made["generator"])
        np.testing.assert_allclose(flat(made["ema"]), followed, atol=1e-6)

    def test_statistics_of_the_discriminator_rest(self):
        dcgan = build_gan("dcgan", (16, 16, 1), 0, {"latent": 4, "width": 4, "norm": "both"})
        given = jax.jit(dcgan.init)(KEY)
        x = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 1)).astype(np.uint8)
        data = ju.make_sets(x, np.arange(12, dtype=np.int32) % 2, ju.forget_class(0))
        made = run(discriminator_ascent(dcgan), given, data=data, steps=1, batch_size=4).variables
        rest = {name: tree for name, tree in given["discriminator"].items() if name != "params"}
        assert rest
        for name, tree in rest.items():
            np.testing.assert_array_equal(flat(made["discriminator"][name]), flat(tree))
        assert (flat(made["generator"]["batch_stats"])
                != flat(given["generator"]["batch_stats"])).any()  # fmt: skip

    @pytest.mark.parametrize("ema", [-0.1, 1.0])
    def test_the_average_has_limits(self, ema):
        with pytest.raises(ValueError, match="ema: expected a number from 0 to below 1"):
            discriminator_ascent(gan(), ema=ema)

    def test_a_classifier_is_refused(self):
        with pytest.raises(TypeError, match="gan: expected Gan, got Model"):
            discriminator_ascent(guide().model)


def images():
    part = sets().forget
    return (part.examples.x[part.indices].astype(jnp.float32) - 127.5) / 127.5


def labels():
    part = sets().forget
    return part.examples.y[part.indices]


class TestAdapt:
    @pytest.mark.parametrize("name", REPULSIONS)
    def test_the_repulsion_has_its_closed_gradient(self, name):
        """Runs with and without it differ by that in one step of plain descent."""
        rate, gamma, alpha = 0.05, 0.7, 0.4
        method = adapting(repulsion=name, gamma=gamma, alpha=alpha)
        out = run(method, steps=1)
        calm = run(adapting(gamma=0.0, alpha=alpha), steps=1)
        adapted = flat(begin(method, out.prepared).prepared.theta)
        offset = flat(original()["generator"]["params"]) - adapted
        square = float(np.sum(offset.astype(np.float64) ** 2))
        value, slope = {
            "el2": (np.exp(-alpha * square), -2 * alpha * np.exp(-alpha * square)),
            "il2": (1 / (alpha * square), -2 / (alpha * square**2)),
            "nl2": (-alpha * square, -2 * alpha),
        }[name]
        moved = flat(out.variables["generator"]) - flat(calm.variables["generator"])
        wanted = -rate * gamma * slope * offset
        np.testing.assert_allclose(moved, wanted, rtol=1e-3, atol=1e-6 * np.max(np.abs(wanted) + 1))
        np.testing.assert_allclose(out.history["apart"][0], square, rtol=1e-4)
        np.testing.assert_allclose(out.history["repulsion"][0], gamma * value, rtol=1e-4)
        np.testing.assert_array_equal(
            flat(out.variables["discriminator"]), flat(calm.variables["discriminator"])
        )

    def test_by_default_the_distance_at_the_start_is_the_unit(self):
        out = run(adapting(), steps=1)
        np.testing.assert_allclose(out.history["repulsion"][0], 0.1 * np.exp(-1), rtol=1e-4)

    def test_the_copy_learns_the_class_and_the_original_begins_as_it_was(self):
        method = forgetting()
        state = begin(method, prepare(method, original(), sets(), KEY))
        for part in ("generator", "discriminator"):
            np.testing.assert_array_equal(
                flat(getattr(state.players, part)), flat(original()[part])
            )
        copy = {"ema": {"params": state.prepared.theta}}
        assert share(copy) > share(original()) + 0.2
        assert share(original()) > 0.2

    def test_it_forgets(self):
        out = run(forgetting(), steps=300)
        assert share(out.variables) < share(original()) / 3
        assert out.history["apart"][-1] > out.history["apart"][0]

    def test_samples_are_sorted_by_the_guide(self):
        drawn = adapting().prepare.run(original(), sets(), KEY)
        seen = np.argmax(np.asarray(guide().model.apply(guide().variables, drawn.x)), axis=1)
        assert 0 < int(drawn.size) == int(np.sum(seen == CLASS)) < POOL
        order = np.asarray(drawn.order)
        assert sorted(order.tolist()) == list(range(POOL))
        assert (seen[order[: int(drawn.size)]] == CLASS).all()
        bad, good = draw_negatives(drawn, 300, KEY), draw_positives(drawn, 300, KEY, POOL)
        assert (seen[bad.slot] == CLASS).all()
        assert (seen[good.slot] != CLASS).all()
        np.testing.assert_array_equal(good.x, drawn.x[good.slot])
        # all of them are drawn, none beyond the limit
        assert len(set(bad.slot.tolist())) > 0.9 * int(drawn.size)
        few = draw_positives(drawn, 300, KEY, 5)
        assert set(few.slot.tolist()) == set(order[int(drawn.size) :][:5].tolist())

    def test_samples_are_the_originals(self):
        method = adapting()
        drawn = method.prepare.run(original(), sets(), KEY)
        assert float(jnp.max(jnp.abs(drawn.x))) <= 1
        z = jax.random.normal(jax.random.split(KEY)[0], (POOL, gan().latent))
        np.testing.assert_allclose(drawn.x, images_of(gan(), original()["ema"], z), atol=1e-6)
        told = method.prepare.shapes(original(), sets())
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), drawn) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), told
        )

    @pytest.mark.parametrize(
        ("sees", "words"),
        [
            (False, "classes that the generator draws, got [1], which the guide sees in none"),
            (True, "classes that leave others for the generator to draw, got [1], which the "
                   "guide sees in all"),
        ],
    )  # fmt: skip
    def test_a_class_never_or_always_drawn_is_named(self, sees, words):
        with pytest.raises(RequestError, match=re.escape(words)):
            run(adapt_unlearn(gan(), guide=partial_guide(sees), adapt_steps=1, pool=POOL))

    def test_trouble_in_the_first_stage_is_told(self):
        method, given = adapting(), original()
        broken = jax.tree.map(lambda leaf: leaf * 1e30, given["discriminator"])
        given = {**given, "discriminator": broken}
        with pytest.raises(DivergenceError, match="step 0: expected a finite loss"):
            run(method, given)
        prepared = prepare(method, given, sets(), KEY)
        assert not begin(method, prepared, given).prepared.finite
        assert begin(method, prepared).prepared.finite

    @pytest.mark.parametrize(
        ("option", "value", "words"),
        [
            ("adapt_steps", 0, "adapt_steps: expected a positive number, got 0"),
            ("adapt_batch", 1.5, "adapt_batch: expected a positive number, got 1.5"),
            ("positives", 0, "positives: expected a positive number, got 0"),
            ("pool", -1, "pool: expected a positive number, got -1"),
            ("r1_every", 0, "r1_every: expected a positive number, got 0"),
            ("repulsion", "l2", "repulsion: expected one of ('el2', 'il2', 'nl2'), got 'l2'"),
            ("gamma", -1.0, "gamma: expected a number of 0 or more, got -1.0"),
            ("r1", float("nan"), "r1: expected a number of 0 or more, got nan"),
            ("alpha", 0.0, "alpha: expected a number above 0 or None, got 0.0"),
            ("ema", 1.0, "ema: expected a number from 0 to below 1, got 1.0"),
            ("guide", None, "guide: expected a Guide, got NoneType"),
        ],
    )
    def test_options_out_of_range_are_named(self, option, value, words):
        with pytest.raises(ValueError, match=re.escape(words)):
            adapt_unlearn(gan(), **{"guide": guide(), option: value})

    def test_a_classifier_is_refused(self):
        with pytest.raises(TypeError, match="gan: expected Gan, got Model"):
            adapt_unlearn(guide().model, guide=guide())

    def test_a_conditional_generator_is_asked_for_all_labels(self):
        conditional = build_gan(
            "stylegan2", (8, 8, 1), 3,
            {"latent": 4, "style": 6, "layers": 1, "width": 4, "group": 2, "conditional": True},
        )  # fmt: skip
        model = ju.models.build("mlp", (8, 8, 1), 3, {"features": (8,)})
        own = Guide(model, jax.jit(model.init)(KEY))
        given = jax.jit(conditional.init)(jax.random.key(2))
        seen = a_class_of_some(conditional, given, own)
        x = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 1)).astype(np.uint8)
        data = ju.make_sets(x, np.arange(12, dtype=np.int32) % 3, ju.forget_class(seen))
        method = adapt_unlearn(conditional, guide=own, adapt_steps=1, pool=64)
        drawn = prepare(method, given, data, KEY)
        assert set(np.asarray(drawn.y).tolist()) == {0, 1, 2}
        batch = draw_negatives(drawn, 32, KEY)
        assert batch.x.shape == (32, 8, 8, 1)


def a_class_of_some(network, variables, own):
    """A class that an untrained guide sees in some images of an untrained generator."""

    @jax.jit
    def count():
        z, y = jax.random.normal(KEY, (64, network.latent)), jnp.arange(64, dtype=jnp.int32) % 3
        x = network.synthesize(variables["ema"], network.style(variables["ema"], z, y))
        seen = jnp.argmax(own.model.apply(own.variables, x), axis=1)
        return jnp.bincount(seen, length=3)

    counts = np.asarray(count())
    return int(np.argmax(np.where(counts < 60, counts, -1)))
