"""Cascaded unlearning: what it finds out, what its steps do, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.core.errors import RequestError
from jaxunlearn.gan import SUBSTITUTES, look
from jaxunlearn.methods.cascade.memory import Finding, find_memory
from jaxunlearn.methods.cascade.steps import FAKE_LABELS
from tests import toy

SMALL = {"pool": 256, "latents": 16, "references": 64, "inversion_steps": 30, "horizon": 4}


def finding(kind="class", how="other_class_nn", form="image", psi=0.5, space="z"):
    return Finding(kind, how, form, psi, space, 256, 16, 64, 30)


def memory(sets=None, **options):
    sets = toy.sets(gan=True) if sets is None else sets
    generator = toy.trained_gan().variables["ema"]
    key = jax.random.key(0)
    return find_memory(toy.gan(), toy.guide(), finding(**options), generator, sets, key)


def items():
    return toy.sets(ju.forget_indices(range(8)), gan=True)


def make(code):
    gan, generator = toy.gan(), toy.trained_gan().variables["ema"]
    return gan.synthesize(generator, code)


def label_of(images):
    guide = toy.guide()
    return np.asarray(look(guide.model.apply, guide.variables, images)[1]).argmax(axis=1)


def retained(sets=None):
    part = (toy.sets(gan=True) if sets is None else sets).retain
    x = (np.asarray(part.examples.x, np.float32) - 127.5) / 127.5
    chosen = np.asarray(part.indices)[: int(part.size)]
    return x[chosen], np.asarray(part.examples.y)[chosen]


class TestLatents:
    def test_of_a_class_are_those_whose_images_show_it(self):
        found = memory()
        assert 0 < int(found.size) <= 16
        assert set(label_of(make(found.code[: int(found.size)]))) == {1}

    def test_of_items_give_their_images_back(self):
        sets = items()
        found = memory(sets, kind="items")
        assert int(found.size) == 8
        x = (np.asarray(sets.forget.examples.x, np.float32) - 127.5) / 127.5
        x = x[np.asarray(sets.forget.indices)[:8]]
        error = np.mean((np.asarray(make(found.code[:8])) - x) ** 2, axis=(1, 2, 3))
        np.testing.assert_allclose(found.error[:8], error, rtol=1e-3)
        random = np.mean((np.asarray(make(jnp.zeros((1, 6)))) - x) ** 2, axis=(1, 2, 3))
        assert (error < random).mean() > 0.8

    def test_a_class_that_is_never_drawn_is_an_error(self):
        blind = ju.Guide(
            toy.mlp(), jax.tree.map(jnp.zeros_like, toy.guide().variables)
        )  # which calls everything class 0
        generator = toy.trained_gan().variables["ema"]
        with pytest.raises(RequestError, match=r"classes that the generator draws, got \[1\]"):
            find_memory(
                toy.gan(), blind, finding(), generator, toy.sets(gan=True), jax.random.key(0)
            )

    def test_a_class_that_is_hardly_drawn_is_told(self):
        few = finding()._replace(pool=16)
        generator = toy.trained_gan().variables["ema"]
        with pytest.warns(UserWarning, match="hardly draws"):
            find_memory(
                toy.gan(), toy.guide(), few, generator, toy.sets(gan=True), jax.random.key(1)
            )


class TestSubstitutes:
    def test_average_is_the_mean_of_retained_images(self):
        target = np.asarray(memory(how="average").target)
        assert np.ptp(target, axis=0).max() == 0
        x, _ = retained()
        np.testing.assert_allclose(target[0], x.mean(axis=0), atol=0.25)  # of 64 of them

    def test_nearest_images_are_retained_ones(self):
        target = np.asarray(memory(how="other_class_nn").target)
        x, _ = retained()
        apart = np.abs(target[:, None] - x[None]).reshape(len(target), len(x), -1).max(axis=2)
        assert apart.min(axis=1).max() < 1e-6

    @pytest.mark.parametrize(("how", "same"), [("same_class_nn", True), ("other_class_nn", False)])
    def test_of_items_have_the_label_that_was_asked_for(self, how, same):
        sets = items()
        found = memory(sets, kind="items", how=how)
        x, y = retained(sets)
        own = np.asarray(sets.forget.examples.y)[np.asarray(sets.forget.indices)[:8]]
        for target, label in zip(np.asarray(found.target)[:8], own, strict=True):
            place = np.abs(x - target[None]).reshape(len(x), -1).max(axis=1).argmin()
            assert (y[place] == label) == same

    def test_latent_form_is_an_image_of_another_class(self):
        found = memory(form="latent")
        assert 1 not in label_of(found.target)

    def test_truncation_is_the_image_of_the_shrunk_latent(self):
        found = memory(how="truncation", psi=0.5)
        np.testing.assert_allclose(found.target, make(0.5 * found.code), atol=1e-5)

    def test_projection_lies_on_the_generator(self):
        """An encoder of its own images gives, of retained ones, nearly the latent back."""
        found = memory(how="projection")
        assert np.isfinite(np.asarray(found.target)).all()
        assert np.abs(np.asarray(found.target)).max() <= 1
        assert np.asarray(found.target).std(axis=0).max() > 0

    def test_random_is_retained(self):
        target = np.asarray(memory(how="random_retain").target)
        x, _ = retained()
        apart = np.abs(target[:, None] - x[None]).reshape(len(target), len(x), -1).max(axis=2)
        assert apart.min(axis=1).max() < 1e-6

    @pytest.mark.parametrize("how", SUBSTITUTES)
    def test_every_one_makes_a_finite_step(self, how):
        kind = "items" if how == "same_class_nn" else "class"
        sets = items() if kind == "items" else toy.sets(gan=True)
        out = run(sets, kind=kind, substitute=how)
        assert all(np.isfinite(value).all() for value in out.history.values())


def run(sets=None, steps=3, **options):
    method = ju.cascade(toy.gan(), guide=toy.guide(), **{**SMALL, **options})
    sets = toy.sets(gan=True) if sets is None else sets
    original = toy.trained_gan().variables
    return ju.unlearn(method, original, sets, jax.random.key(2), steps=steps, batch_size=16)


class TestSteps:
    @pytest.mark.parametrize("label", FAKE_LABELS)
    def test_every_label_makes_a_finite_step(self, label):
        out = run(label=label)
        assert all(np.isfinite(value).all() for value in out.history.values())
        assert ("score_gap" in out.history) == label.startswith("holdout")

    def test_it_forgets_the_class(self):
        """Within 60 steps the share falls to a quarter, and the others are still drawn."""
        out = run(steps=60, horizon=60, optimizer=optax.adam(2e-3, b1=0.5), r1=0.5)
        share = out.history["forget_share"]
        before = np.mean(label_of(make(jax.random.normal(jax.random.key(3), (512, 6)))) == 1)
        assert before > 0.1
        assert share[-8:].mean() < 0.25 * before
        z = jax.random.normal(jax.random.key(3), (512, 6))
        labels = label_of(toy.gan().synthesize(out.variables["ema"], z))
        assert set(labels) >= {0, 2, 3}

    def test_the_other_network_stays_as_it_is(self):
        original = toy.trained_gan().variables
        for mode, kept in (
            ("generator_only", "discriminator"),
            ("discriminator_only", "generator"),
        ):
            made = run(mode=mode).variables
            jax.tree.map(np.testing.assert_array_equal, made[kept], original[kept])
        jax.tree.map(np.testing.assert_array_equal, made["ema"], original["ema"])

    @pytest.mark.parametrize("ratio", [(1, 1), (1, 2), (2, 1)])
    def test_unlearning_comes_first_and_learning_then(self, ratio):
        out = run(mode="unlearn_then_learn", steps=4, ratio=ratio)
        first, then = out.history["loss_unlearn_discriminator"], out.history["loss_discriminator"]
        assert (first[:2] != 0).all()
        assert (first[2:] == 0).all()
        assert (then[:2] == 0).all()
        assert (then[2:] != 0).all()

    def test_the_strength_falls_to_nothing(self):
        out = run(steps=5, horizon=4)
        assert (out.history["loss_unlearn_generator"][:4] > 0).all()
        assert out.history["loss_unlearn_generator"][4] == 0
        assert run(steps=5, horizon=4, anneal=False).history["loss_unlearn_generator"][4] > 0

    def test_few_images_are_all_that_learning_sees(self):
        """With a single retained image, the discriminator learns nothing of the others."""
        few = run(few=1, steps=2).variables
        assert differs(few, run(steps=2).variables)
        one, other = run(few=1, steps=2).variables, few
        jax.tree.map(np.testing.assert_array_equal, one, other)

    def test_a_ratio_that_does_not_divide_the_batch_is_an_error(self):
        with pytest.raises(ValueError, match="ratio: expected parts that divide the batch of 16"):
            run(ratio=(1, 3))

    def test_a_ratio_divides_the_batches(self):
        out = run(ratio=(2, 1))
        assert np.isfinite(out.history["loss_unlearn_generator"]).all()
        assert differs(out.variables, run(ratio=(1, 2)).variables)

    def test_it_stops_when_enough_is_forgotten(self):
        method = ju.cascade(toy.gan(), guide=toy.guide(), **SMALL)
        options = {"steps": 9, "batch_size": 16, "chunk": 3}
        original, sets, key = toy.trained_gan().variables, toy.sets(gan=True), jax.random.key(2)
        early = ju.unlearn(method, original, sets, key, stop=ju.within(forget_share=1.0), **options)
        assert early.steps == 3
        late = ju.unlearn(method, original, sets, key, stop=ju.within(forget_share=-1.0), **options)
        assert late.steps == 9
        with pytest.raises(ValueError, match=r"stop: expected metrics among .*, got \['share'\]"):
            ju.unlearn(method, original, sets, key, stop=ju.within(share=1.0), **options)


def differs(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any((np.asarray(x) != np.asarray(y)).any() for x, y in pairs)


BAD = [
    ({"kind": "klass"}, "kind: expected one of"),
    ({"mode": "x"}, "mode: expected one of"),
    ({"substitute": "nearest"}, "substitute: expected one of"),
    ({"label": "one"}, "label: expected one of"),
    ({"space": "w"}, "space: expected 'z' for a generator without a mapping network"),
    ({"substitute": "same_class_nn"}, "substitute: expected another than 'same_class_nn'"),
    ({"ratio": (0, 1)}, "ratio: expected two positive numbers"),
    ({"few": 0}, "few: expected a positive number or None"),
    ({"latents": 99, "pool": 8}, "latents: expected at most pool = 8, got 99"),
    ({"strength": -1.0}, "strength: expected a number of 0 or more"),
    ({"soft": 2.0}, "soft: expected a number from 0 to 1"),
    ({"horizon": 0}, "horizon: expected a positive number"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[next(iter(o)) for o, _ in BAD])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ju.cascade(toy.gan(), guide=toy.guide(), **options)


def test_a_guide_of_other_images_is_an_error():
    other = ju.build("mlp", (5, 5, 1), 4)
    wrong = ju.Guide(other, jax.eval_shape(other.init, jax.random.key(0)))
    with pytest.raises(ValueError, match="guide: expected"):
        ju.cascade(toy.gan(), guide=wrong)


def test_items_taken_for_a_class_are_an_error():
    with pytest.raises(RequestError, match="kind: expected 'items' for a request that retains"):
        run(items(), kind="class")


def test_more_items_than_latents_are_an_error():
    with pytest.raises(RequestError, match="latents: expected at least the 8 items"):
        run(items(), kind="items", latents=4)


def test_few_images_that_are_not_there_are_told():
    with pytest.warns(UserWarning, match="few: expected at most the 130 retained images"):
        run(few=500, steps=1)


def test_an_item_outside_the_training_set_is_an_error():
    with pytest.raises(RequestError, match=r"expected numbers from 0 to 179, got \[180\]"):
        toy.sets(ju.forget_indices([180]), gan=True)
