"""Methods with data or training of their own: noise, distillation, condensation, shards."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.config import TrainConfig
from jaxunlearn.core.errors import ConfigError, DataError, RequestError
from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.engine.predict import predict
from jaxunlearn.methods.condense import condensed_images, divide, parts_of
from jaxunlearn.methods.gkt import attention, draw_generator, generate
from jaxunlearn.methods.language.eul import fuse, input_grams
from jaxunlearn.methods.sisa import places_of, sharded
from jaxunlearn.metrics.answers import recovery
from tests import toy


def accuracies(variables, sets, apply=None):
    """Of what is to be forgotten and of what is retained."""
    apply = toy.mlp().apply if apply is None else apply
    parts = (sets.forget, sets.retain)
    return tuple(float(predict(apply, variables, part).accuracy) for part in parts)


def unlearned(method, sets=None, variables=None, key=0, **options):
    sets = toy.sets() if sets is None else sets
    variables = toy.trained().variables if variables is None else variables
    return ju.unlearn(method, variables, sets, jax.random.key(key), batch_size=32, **options)


class TestUnsir:
    def test_noise_in_its_place_takes_the_class_and_the_repair_the_harm(self):
        method = ju.unsir(toy.mlp(), share=1.0, steps=40)
        out = unlearned(method, steps=40)
        forget, retain = accuracies(out.variables, toy.sets())
        assert forget < 0.1
        assert retain > 0.9
        assert list(out.history["impairs"]) == [1] * 24 + [0] * 16

    def test_noise_is_of_every_class_without_retained_examples(self):
        sets = toy.sets(ju.data.forget_classes((0, 2)))
        method = ju.unsir(toy.mlp(), noises=6, noise_steps=2)
        found = method.prepare.run(toy.trained().variables, sets, jax.random.key(0))
        state = method.init(toy.trained().variables, sets, jax.random.key(0), found)
        assert found.tolist() == [True, False, True, False]
        assert state.prepared.labels.tolist() == [0, 2] * 3

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"noises": 0}, "noises: expected a positive number"),
            ({"noise_share": 0}, "noise_share: expected a share"),
            ({"impair": 1.5}, "impair: expected a share"),
            ({"norm_weight": -1}, "norm_weight: expected a number of 0 or more"),
        ],
    )
    def test_arguments_out_of_range_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            ju.unsir(toy.mlp(), **options)

    def test_what_it_cannot_forget_is_refused(self):
        items = toy.sets(ju.data.forget_indices(range(5)))
        with pytest.raises(RequestError, match="unsir forgets classes"):
            unlearned(ju.unsir(toy.mlp()), items, steps=2)
        with pytest.raises(ValueError, match="outputs of the network without retained examples"):
            unlearned(ju.unsir(toy.mlp()), ju.Sets(retain=items.retain), steps=2)
        with pytest.raises(ValueError, match="sets: expected inputs of floats"):
            unlearned(
                ju.unsir(toy.text_classifier()), toy.question_sets(),
                toy.trained_on_questions().variables, steps=2,
            )  # fmt: skip


class TestGkt:
    def test_what_it_forgot_leaks_back(self):
        digits = ju.data.load_dataset(ju.data.DataConfig(name="digits"))
        unseen = digits.test_x[:200], digits.test_y[:200]
        sets = ju.make_sets(
            digits.train_x, digits.train_y, ju.forget_class(3), unseen=unseen,
            mean=digits.mean, std=digits.std,
        )  # fmt: skip
        model = ju.models.build("mlp", (8, 8, 1), 10, {"features": (256,)})
        config = TrainConfig(epochs=10, batch_size=32, learning_rate=5e-3)
        original = ju.train(model, sets.train, jax.random.key(7), config=config).variables
        method = ju.gkt(model, latent=16, width=16, attention_weight=1000.0)
        out = ju.unlearn(method, original, sets, jax.random.key(0), steps=1400, batch_size=64)
        told = out.history["accuracy_unseen"]
        assert told[330:600].mean() < 0.05
        assert told[-100:].mean() > 0.1
        assert accuracies(out.variables, sets, model.apply)[1] > 0.9
        assert (out.history["generates"] == (np.arange(1400) % 11 == 0)).all()

    @pytest.mark.parametrize("shape", [(3, 10, 9), (7, 6, 1), (4, 3)])
    def test_generated_inputs_have_the_shape_of_the_network_s(self, shape):
        z = jax.random.normal(jax.random.key(1), (6, 4))
        made = generate(draw_generator(jax.random.key(0), shape, 4, 8), z, shape)
        assert made.shape == (6, *shape)
        assert float(jnp.std(made)) == pytest.approx(1, abs=0.1)

    def test_nothing_is_learned_where_nothing_passes_and_the_generator_is_drawn_anew(self):
        method = ju.gkt(toy.mlp(), student_steps=1, limit=1e-30, latent=4, width=8)
        out = unlearned(method, steps=3)
        assert not out.history["passed"].any()
        fresh = toy.mlp().init(jax.random.split(derive(jax.random.key(0), Purpose.INIT), 3)[0])
        chex.assert_trees_all_close(out.variables, fresh, atol=1e-6)

    def test_inputs_that_cannot_be_generated_are_refused(self):
        model, given = toy.text_classifier(), toy.trained_on_questions().variables
        with pytest.raises(DataError, match="expected inputs that are one array"):
            unlearned(ju.gkt(model), toy.question_sets(), given, steps=2)
        with pytest.raises(ValueError, match="limit: expected a share"):
            ju.gkt(model, limit=0)

    def test_attention_is_the_same_whatever_the_layout(self):
        kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
        x = jax.random.normal(jax.random.key(1), (2, 6, 5, 2))

        def convolved(order, moved):
            def apply(variables, x):
                made = jax.lax.conv_general_dilated(
                    x, variables, (1, 1), "SAME", dimension_numbers=(order, "HWIO", order)
                )
                return made.mean((1, 2) if order == "NHWC" else (2, 3))

            return attention(apply, kernel, moved)[0]

        last, first = convolved("NHWC", x), convolved("NCHW", jnp.moveaxis(x, -1, 1))
        assert last.shape == (2, 30)
        np.testing.assert_allclose(last, first, atol=1e-6)


class TestCondense:
    def test_a_class_stays_and_retraining_would_forget_it(self):
        method = ju.condense(toy.mlp(), steps=60, rounds=6, opening=2)
        forget, retain = accuracies(unlearned(method, steps=60).variables, toy.sets())
        assert forget > 0.3
        assert retain > 0.9

    def test_buckets_are_of_one_class_and_of_the_size_that_is_asked_for(self):
        rng = np.random.default_rng(0)
        labels = np.repeat([0, 3], [7, 12])
        places, classes = divide(rng.normal(size=(19, 2)), labels, 4, 0)
        assert classes.tolist() == [0, 0, 3, 3, 3]
        assert (classes[places] == labels).all()
        assert set(places) == set(range(5))

    def test_weights_bring_features_nearer_to_their_mean(self):
        rng = np.random.default_rng(0)
        x, w = jnp.asarray(rng.normal(size=(12, 4))), jnp.asarray(rng.normal(size=(4, 6)))
        x, w = x.astype(jnp.float32), w.astype(jnp.float32)
        places = jnp.asarray([0] * 5 + [1] * 5 + [2, -1])

        def features(x):
            return jnp.tanh(x @ w)

        def far(steps):
            made = condensed_images(features, x, places, 4, steps=steps, rate=0.01)
            np.testing.assert_array_equal(made[2], x[10])
            assert not made[3].any()
            wanted = jnp.stack([features(x[:5]).mean(0), features(x[5:10]).mean(0)])
            return jnp.sum(jnp.square(features(made[:2]) - wanted), axis=1)

        assert (far(60) < 0.5 * far(0)).all()

    @pytest.mark.parametrize(
        ("widths", "found"),
        [
            ((), ([1], [1], [1])),
            ((5,), ([1, 0], [1, 1], [0, 1])),
            ((5, 5, 5, 5, 5), ([1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1])),
        ],
    )
    def test_parts_are_thirds(self, widths, found):
        model = ju.models.build("mlp", (4,), 3, {"features": widths})
        variables = jax.eval_shape(model.init, jax.random.key(0))
        names = [f"fc{n}" for n in range(1, len(widths) + 1)] + ["head"]
        for mask, wanted in zip(
            parts_of(model.apply, variables, jnp.zeros((2, 4))), found, strict=True
        ):
            for name, trains in zip(names, wanted, strict=True):
                assert set(jax.tree.leaves(mask["params"][name])) == {bool(trains)}

    def test_arguments_and_inputs_that_do_not_suit_are_named(self):
        with pytest.raises(ValueError, match="bucket_size: expected a positive number"):
            ju.condense(toy.mlp(), bucket_size=0)
        model, given = toy.text_classifier(), toy.trained_on_questions().variables
        with pytest.raises(DataError, match="expected inputs that are one array"):
            unlearned(ju.condense(model), toy.question_sets(), given, steps=2)


class TestSisa:
    def test_one_example_retrains_one_network_and_the_ensemble_knows_the_rest(self):
        options = {"optimizer": optax.adam(5e-3), "shards": 3, "slices": 2, "steps": 60}
        method, model = ju.sisa(toy.mlp(), **options), sharded(toy.mlp(), 3, 2)
        sets = toy.sets(ju.data.forget_indices([17]))
        whole = ju.Sets(retain=sets.train)
        original = ju.unlearn(method, None, whole, jax.random.key(0), steps=60, batch_size=32)
        assert accuracies(original.variables, sets, model.apply)[1] > 0.9
        out = unlearned(method, sets, original.variables, steps=60)
        shard, part, _ = places_of(sets.forget, 3, 2)
        begun = int(part[0]) * 30
        np.testing.assert_allclose(out.history["retrained"], (np.arange(60) >= begun) / 3)
        for number in range(3):
            ours, theirs = (
                jax.tree.map(lambda leaf, n=number: np.asarray(leaf[n]), one["params"])
                for one in (out.variables, original.variables)
            )
            same = all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, theirs)))
            assert same == (number != int(shard[0]))

    def test_networks_decide_by_mean_or_majority(self):
        def apply(variables, x):
            return x @ variables["params"]["w"]

        def init(key):
            return {"params": {"w": jax.random.normal(key, (2, 2))}}

        weights = jnp.asarray([[4.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        variables = {"params": {"w": weights[:, None] * jnp.ones((1, 2, 1))}}
        for vote, winner in (("mean", 0), ("majority", 1)):
            model = sharded(ju.functionalize(apply, init=init), 3, vote=vote)
            logits = model.apply(variables, jnp.asarray([[0.5, 0.5]]))
            assert int(jnp.argmax(logits)) == winner
            np.testing.assert_allclose(jnp.sum(jnp.exp(logits)), 1, atol=1e-5)

    def test_what_an_example_holds_tells_its_shard_wherever_it_lies(self):
        sets = toy.sets()
        everything = places_of(sets.train, 4, 3)
        for part in (sets.forget, sets.retain):
            own = places_of(part, 4, 3)
            for found, whole in zip(own, everything, strict=True):
                np.testing.assert_array_equal(found, whole[part.indices])
        padded = sets.forget._replace(size=jnp.int32(2))
        assert (places_of(padded, 4, 3)[0][2:] == 4).all()
        counts = np.bincount(everything[0], minlength=4)
        assert counts.min() > 20

    def test_variables_of_another_network_are_refused(self):
        method = ju.sisa(toy.mlp(), optimizer=optax.sgd(0.1))
        with pytest.raises(ConfigError, match="expected those of an ensemble"):
            unlearned(method, steps=2)
        with pytest.raises(ValueError, match="vote: expected one of"):
            sharded(toy.mlp(), 2, vote="loudest")


def test_requests_of_a_classifier_are_fused_and_meet_what_each_asked():
    """Two heads made for two requests whose features are orthogonal: both are met at once."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    inputs = [rng.normal(size=(5, 3)) @ basis[rows] for rows in (slice(3), slice(3, 6))]

    def apply(variables, x):
        params = variables["params"]
        return x @ params["head"]["kernel"] + params["head"]["bias"][None]

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    bias, model = draw(3), ju.functionalize(apply)
    heads = [{"params": {"head": {"kernel": draw(6, 3), "bias": bias}}} for _ in range(3)]
    grams = [input_grams(model, heads[0], jnp.asarray(x, jnp.float32)) for x in inputs]
    np.testing.assert_allclose(
        grams[0]["params/head/kernel"], inputs[0].T @ inputs[0], rtol=1e-4, atol=1e-5
    )
    fused = fuse(heads[0], heads[1:], grams)
    for x, one in zip(inputs, heads[1:], strict=True):
        x = jnp.asarray(x, jnp.float32)
        np.testing.assert_allclose(apply(fused, x), apply(one, x), atol=1e-3)


def test_recovery_of_a_classifier_tells_restoring_from_forgetting():
    """Facts are keys of their own; of a third of them a network was taught false ones alone."""
    facts, objects = 60, 6
    rng = np.random.default_rng(0)
    true, wrong = rng.integers(0, objects, facts).astype(np.int32), np.arange(facts) < facts // 3
    false = ((true + 1) % objects).astype(np.int32)
    model = ju.models.build("mlp", (facts,), objects, {"features": ()})
    learn = ju.retrain(model, optimizer=optax.adam(0.1))
    climb = ju.gradient_ascent(model, optimizer=optax.adam(0.1))

    def run(method, variables, seed, *, steps=100, **labels):
        parts = {
            name: ju.whole(ju.data.as_examples(np.eye(facts, dtype=np.float32)[rows], y[rows]))
            for name, (rows, y) in labels.items()
        }
        key = jax.random.key(seed)
        return ju.unlearn(
            method, variables, ju.Sets(**parts), key, steps=steps, batch_size=20
        ).variables

    def asked(variables):
        """Logits of the facts that were corrupted, the true answer first."""
        logits = np.asarray(model.apply(variables, jnp.eye(facts)))[wrong]
        order = (true[wrong][:, None] + np.arange(objects)) % objects
        return np.take_along_axis(logits, order, axis=1)

    clean = run(learn, None, 0, retain=(slice(None), true))
    corrupted = run(learn, None, 0, retain=(slice(None), np.where(wrong, false, true)))
    retrained = run(learn, None, 1, retain=(slice(None), true))
    climbed = run(climb, corrupted, 0, forget=(wrong, false))
    for one in (retrained, climbed):  # both forgot
        assert (asked(one).argmax(1) != 1).all()
    assert recovery(asked(clean), asked(corrupted), asked(retrained)) == 1
    assert recovery(asked(clean), asked(corrupted), asked(climbed)) < 0.5
