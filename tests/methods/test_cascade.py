"""Cascaded unlearning: what it finds out, what its steps do, what it refuses."""

from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.core.errors import RequestError
from jaxunlearn.engine.driver import visible_sets
from jaxunlearn.engine.loop import Job, advance, init
from jaxunlearn.engine.stop import within
from jaxunlearn.gan import Guide, look
from jaxunlearn.methods.cascade.memory import SUBSTITUTES, Search, remember
from jaxunlearn.methods.cascade.steps import FAKE_LABELS, HOLDOUT_LABELS, arrange
from tests import toy

SMALL = {"pool": 256, "latents": 16, "references": 64, "inversion_steps": 30, "steps": 4}
WHOLE = {"steps": 60, "optimizer": optax.adam(2e-3, b1=0.5), "r1": 0.5}
"""Of the method without other options, so that one program does all that can be seen of it."""
CHUNK = 3
"""Steps done by one program: of the same length in all tests, so that they share programs."""


@cache
def sets_of(request="class"):
    if request == "items":
        return toy.sets(ju.data.forget_indices(range(8)), gan=True)
    return toy.sets(gan=True)


def search(**options):
    """As :func:`method` searches; the finding of equal options is one program."""
    names = {name: value for name, value in SMALL.items() if name in Search._fields}
    given = {
        "request": "class", "substitute": "other_class_nn", "form": "image", "psi": -0.5,
        "space": "z", "few": None,
    }  # fmt: skip
    return Search(**{**given, **names, **options})


def find(guide=None, key=0, **options):
    wanted = search(**options)
    preparation = remember(toy.gan(), guide or toy.guide(), wanted)
    original = toy.trained_gan().variables
    return preparation.run(original, sets_of(wanted.request), jax.random.key(key))


@cache
def memory(**options):
    return find(**options)


def make(code):
    gan, generator = toy.gan(), toy.trained_gan().variables["ema"]
    return gan.synthesize(generator, code)


def label_of(images):
    guide = toy.guide()
    return np.asarray(look(guide.model.apply, guide.variables, images)[1]).argmax(axis=1)


def read(part):
    x = (np.asarray(part.examples.x, np.float32) - 127.5) / 127.5
    chosen = np.asarray(part.indices)[: int(part.size)]
    return x[chosen], np.asarray(part.examples.y)[chosen]


def distance_to_retained(target):
    target, (x, _) = np.asarray(target), read(sets_of().retain)
    apart = np.abs(target[:, None] - x[None]).reshape(len(target), len(x), -1)
    return apart.max(axis=2).min(axis=1).max()


class TestLatents:
    def test_of_a_class_are_those_whose_images_show_it(self):
        found = memory()
        assert 0 < int(found.size) <= 16
        assert set(label_of(make(found.code[: int(found.size)]))) == {1}

    def test_of_items_give_their_images_back(self):
        found = memory(request="items")
        assert int(found.size) == 8
        x, _ = read(sets_of("items").forget)
        error = np.mean((np.asarray(make(found.code[:8])) - x) ** 2, axis=(1, 2, 3))
        np.testing.assert_allclose(found.error[:8], error, rtol=1e-3)
        random = np.mean((np.asarray(make(jnp.zeros((1, 4)))) - x) ** 2, axis=(1, 2, 3))
        assert (error < random).mean() > 0.8

    def test_a_class_that_is_never_drawn_is_an_error(self):
        # everything is class 0 to this one
        blind = toy.guide()._replace(variables=jax.tree.map(jnp.zeros_like, toy.guide().variables))
        with pytest.raises(RequestError, match=r"classes that the generator draws, got \[1\]"):
            find(guide=blind)

    def test_a_class_that_is_hardly_drawn_is_told(self):
        with pytest.warns(UserWarning, match="hardly draws"):
            find(pool=16, key=1)


class TestSubstitutes:
    def test_average_is_the_mean_of_retained_images(self):
        target = np.asarray(memory(substitute="average").target)
        assert np.ptp(target, axis=0).max() == 0
        x, _ = read(sets_of().retain)
        np.testing.assert_allclose(target[0], x.mean(axis=0), atol=0.25)  # of 64 of them

    @pytest.mark.parametrize("name", ["other_class_nn", "random_retain"])
    def test_nearest_and_random_images_are_retained_ones(self, name):
        assert distance_to_retained(memory(substitute=name).target) < 1e-6

    @pytest.mark.parametrize(("name", "same"), [("same_class_nn", True), ("other_class_nn", False)])
    def test_of_items_have_the_label_that_was_asked_for(self, name, same):
        found = memory(request="items", substitute=name)
        x, y = read(sets_of("items").retain)
        _, own = read(sets_of("items").forget)
        for target, label in zip(np.asarray(found.target)[:8], own, strict=True):
            place = np.abs(x - target[None]).reshape(len(x), -1).max(axis=1).argmin()
            assert (y[place] == label) == same

    def test_latent_form_is_an_image_of_another_class(self):
        found = memory(form="latent")
        assert 1 not in label_of(found.target)

    def test_truncation_is_the_image_of_the_shrunk_latent(self):
        found = memory(substitute="truncation", psi=0.5)
        np.testing.assert_allclose(found.target, make(0.5 * found.code), atol=1e-5)

    def test_projection_lies_on_the_generator(self):
        """An encoder of its own images gives, of retained ones, nearly the latent back."""
        found = memory(substitute="projection")
        assert np.isfinite(np.asarray(found.target)).all()
        assert np.abs(np.asarray(found.target)).max() <= 1
        assert np.asarray(found.target).std(axis=0).max() > 0

    @pytest.mark.parametrize("name", SUBSTITUTES)
    def test_every_one_makes_a_finite_step(self, name):
        request = "items" if name == "same_class_nn" else "class"
        if name in ("none", "same_class_nn"):
            assert finite(run(request=request, substitute=name).history)
            return
        # a step reads what was found, not how: one program
        found = memory(substitute=name, psi=0.5 if name == "truncation" else -0.5)
        job, key, none = Job(method(), 16), jax.random.key(2), np.int32(0)
        sets = visible_sets(job.unlearner.needs, sets_of())
        state = init(toy.trained_gan().variables, sets, key, found, job=job)
        _, info = advance(state, sets, key, none, np.int32(CHUNK), job=job, length=CHUNK)
        assert finite(info.metrics)


def finite(history):
    return all(np.isfinite(value).all() for value in history.values())


@cache
def method(**options):
    return ju.cascade(toy.gan(), guide=toy.guide(), **{**SMALL, **(options or WHOLE)})


def unlearn(unlearner, steps=CHUNK, request="class", **options):
    original, key = toy.trained_gan().variables, jax.random.key(2)
    return ju.unlearn(
        unlearner, original, sets_of(request), key, steps=steps, batch_size=16, chunk=CHUNK,
        **options,
    )  # fmt: skip


@cache
def run(done=CHUNK, **options):
    return unlearn(method(**options), done, options.get("request", "class"))


class TestSteps:
    @pytest.mark.parametrize("label", FAKE_LABELS)
    def test_every_label_makes_a_finite_step(self, label):
        # the default in a cascade with the generator, the others without: smaller programs
        out = run() if label == "zero" else run(mode="discriminator_only", label=label)
        assert finite(out.history)
        assert (out.history["loss_unlearn_discriminator"] != 0).all()
        assert ("score_gap" in out.history) == (label in HOLDOUT_LABELS)

    def test_it_forgets_the_class(self):
        """Within 60 steps the share falls to a quarter, and the others are still drawn."""
        out = run(63)
        share = out.history["forget_share"][:60]
        z = jax.random.normal(jax.random.key(3), (512, 4))
        before = np.mean(label_of(make(z)) == 1)
        assert before > 0.1
        assert share[-8:].mean() < 0.25 * before
        labels = label_of(toy.gan().synthesize(out.variables["ema"], z))
        assert set(labels) >= {0, 2, 3}

    def test_the_other_network_stays_as_it_is(self):
        original = toy.trained_gan().variables
        made = run(5, mode="generator_only", anneal=False).variables
        jax.tree.map(
            np.testing.assert_array_equal, made["discriminator"], original["discriminator"]
        )
        made = run(mode="discriminator_only", label="soft").variables
        for kept in ("generator", "ema"):
            jax.tree.map(np.testing.assert_array_equal, made[kept], original[kept])

    @pytest.mark.parametrize("ratio", [(1, 2), (2, 1)])
    def test_unlearning_comes_first_and_learning_then(self, ratio):
        out = run(4, mode="unlearn_then_learn", ratio=ratio)
        first, then = out.history["loss_unlearn_discriminator"], out.history["loss_discriminator"]
        assert (first[:2] != 0).all()
        assert (first[2:] == 0).all()
        assert (then[:2] == 0).all()
        assert (then[2:] != 0).all()

    def test_the_strength_falls_to_nothing(self):
        loss = run(63).history["loss_unlearn_generator"]
        assert (loss[:60] > 0).all()
        assert (loss[60:] == 0).all()
        steady = run(5, mode="generator_only", anneal=False)
        assert steady.history["loss_unlearn_generator"][4] > 0

    def test_few_images_are_all_that_learning_sees(self):
        """With a single retained image, the discriminator learns nothing of the others."""
        only = {"mode": "discriminator_only", "label": "soft"}
        few = run(few=1, **only).variables
        assert differs(few, run(**only).variables)
        again = unlearn(method(few=1, **only)).variables
        jax.tree.map(np.testing.assert_array_equal, few, again)

    def test_a_ratio_that_does_not_divide_the_batch_is_an_error(self):
        with pytest.raises(ValueError, match="ratio: expected parts that divide the batch of 16"):
            run(ratio=(1, 3))

    def test_a_ratio_divides_the_batches(self):
        made = [run(4, mode="unlearn_then_learn", ratio=ratio) for ratio in ((2, 1), (1, 2))]
        for out in made:
            assert np.isfinite(out.history["loss_unlearn_generator"]).all()
        assert differs(made[0].variables, made[1].variables)

    @pytest.mark.parametrize(
        ("mode", "ratio", "done", "order"),
        [
            ("cascade", (1, 1), 3, 12),
            ("cascade", (2, 1), 0, 121),
            ("cascade", (1, 3), 0, 1222),
            ("unlearn_then_learn", (3, 2), 1, 111),
            ("unlearn_then_learn", (3, 2), 2, 22),
        ],
    )
    def test_updates_take_turns(self, mode, ratio, done, order):
        """Players that are a number, to which an update of either kind adds a digit."""

        def turn(kind, players):
            return players * 10 + kind, {}, jnp.asarray(True)

        unlearning, learning = ([partial(turn, kind)] * ratio[kind - 1] for kind in (1, 2))
        settings = SimpleNamespace(mode=mode, steps=4)
        made = arrange(settings, jnp.int32(done), unlearning, learning)(jnp.int32(0))
        assert made[0] == order

    def test_it_stops_when_enough_is_forgotten(self):
        assert unlearn(method(), 9, stop=within(forget_share=1.0)).steps == 3
        assert unlearn(method(), 9, stop=within(forget_share=-1.0)).steps == 9
        with pytest.raises(ValueError, match=r"stop: expected metrics among .*, got \['share'\]"):
            unlearn(method(), 9, stop=within(share=1.0))


def differs(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any((np.asarray(x) != np.asarray(y)).any() for x, y in pairs)


BAD = [
    ({"request": "klass"}, "request: expected one of"),
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
    ({"steps": 0}, "steps: expected a positive number"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[next(iter(o)) for o, _ in BAD])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ju.cascade(toy.gan(), guide=toy.guide(), **options)


def test_a_guide_of_other_images_is_an_error():
    other = ju.models.build("mlp", (5, 5, 1), 4)
    wrong = Guide(other, jax.eval_shape(other.init, jax.random.key(0)))
    with pytest.raises(ValueError, match="guide: expected"):
        ju.cascade(toy.gan(), guide=wrong)


def test_items_taken_for_a_class_are_an_error():
    with pytest.raises(RequestError, match="request: expected 'items' where images of classes"):
        unlearn(method(), request="items")


def test_more_items_than_latents_are_an_error():
    with pytest.raises(RequestError, match="latents: expected at least the 8 items"):
        run(request="items", latents=4)


def test_few_images_that_are_not_there_are_told():
    with pytest.warns(UserWarning, match="few: expected at most the 130 retained images"):
        found = find(few=500)
    assert found.few.x.shape == (500, *toy.SHAPE)


def test_an_item_outside_the_training_set_is_an_error():
    with pytest.raises(RequestError, match=r"expected numbers from 0 to 179, got \[180\]"):
        toy.sets(ju.data.forget_indices([180]), gan=True)
