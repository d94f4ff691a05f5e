"""Concept poisoning: its effect on a network, the copies by hand, the arguments it refuses."""

import functools
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxunlearn as ju
from jaxunlearn.concepts import Bottleneck, Concepts, make_bank
from jaxunlearn.config import TrainConfig
from jaxunlearn.core.trees import named_leaves
from jaxunlearn.core.types import Needs, Sets
from jaxunlearn.data.batches import draw
from jaxunlearn.engine.driver import COMPILING
from jaxunlearn.engine.predict import predict
from jaxunlearn.methods import concept_poison
from jaxunlearn.methods.concept_poison import poison
from jaxunlearn.methods.concept_poison.poison import Recipe, donors_of, poison_images
from jaxunlearn.methods.shares import keep, redraw
from jaxunlearn.training import apply_update, matching, only, part_mask
from tests import toy

KEY = jax.random.key(0)
SGD = optax.sgd(0.05, momentum=0.9)


@functools.cache
def run(name="mlp", steps=10, seed=0, inferred=True, **options):
    """The original, the outcome, and what the fine-tuning was done on.

    Runs with the same options share their programs; the concepts are those of one run.
    """
    variables, kept = original(name), []
    method = made(name, inferred, **options)
    out = ju.unlearn(
        method, variables, toy.sets(), jax.random.key(seed), steps=steps, batch_size=32,
        on_chunk=lambda progress: kept.append(jax.tree.map(jnp.copy, progress.state.prepared)),
    )  # fmt: skip
    return variables, out, kept[-1]


def tuned(name="mlp", **options):
    """The same on whole images with the donor's label: the fine-tuning, without patches."""
    return run(name, place="none", **options)


@functools.cache
def made(name, inferred, **options):
    known = {"inferred": run(name, inferred=False)[1].prepared} if inferred else {}
    return ju.concept_poison(network(name), bank=toy.ATTRIBUTES, optimizer=SGD, **known, **options)


@functools.cache
def network(name):
    if name == "mlp":
        return toy.mlp()
    return resnet(1)


def resnet(*stages):
    return ju.models.build("resnet8", toy.SHAPE, toy.NUM_CLASSES, {"width": 4, "stages": stages})


@functools.cache
def original(name):
    if name == "mlp":
        return toy.trained().variables
    config = TrainConfig(epochs=6, batch_size=32, learning_rate=1e-2)
    everything = ju.whole(toy.sets().forget.examples)
    return ju.train(network(name), everything, KEY, config=config).variables


def accuracy(variables, part):
    return predict(toy.mlp().apply, variables, part).accuracy


def changed(before, after):
    """Key paths of the leaves that differ in any bit."""
    before, after = named_leaves(before), named_leaves(after)
    return {
        path
        for path in before
        if np.asarray(before[path]).tobytes() != np.asarray(after[path]).tobytes()
    }


# ---- what it does to a network


# by the second key the class itself is not the commonest of the random labels: it would be kept
@pytest.mark.parametrize(("label", "seed"), [("targeted", 0), ("random", 4)])
def test_a_class_is_forgotten_and_the_others_are_not(label, seed):
    before, out, _ = run(steps=80, seed=seed, inferred=False, label=label)
    sets = toy.sets()
    assert accuracy(before, sets.test_forget) == 1
    limit = 0.0 if label == "targeted" else 0.6  # random labels are right one time in four
    assert accuracy(out.variables, sets.forget) <= limit
    assert accuracy(out.variables, sets.test_forget) <= limit
    assert accuracy(out.variables, sets.test_retain) > 0.95


def test_targeted_images_are_given_to_the_donor():
    sets, out = toy.sets(), run(steps=80, inferred=False, label="targeted")[1]
    donor = int(donors_of(out.prepared, sets.retain).label[1])
    assert donor not in (1, -1)
    found = predict(toy.mlp().apply, out.variables, sets.test_forget)
    assert (found.logits.argmax(axis=1) == donor).mean() > 0.9


def test_kept_labels_without_a_patch_keep_the_class():
    out = run(steps=80, place="none", label="keep")[1]
    assert out.prepared is None, "no concept is needed"
    assert accuracy(out.variables, toy.sets().test_forget) == 1


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("head", {"params/head/kernel", "params/head/bias"}),
        ("last_block", {"params/fc2/kernel", "params/fc2/bias",
                        "params/head/kernel", "params/head/bias"}),
        ("all", {f"params/{layer}/{leaf}" for layer in ("fc1", "fc2", "head")
                 for leaf in ("kernel", "bias")}),
        (("fc1/kernel",), {"params/fc1/kernel"}),
    ],
)  # fmt: skip
def test_only_the_chosen_part_is_trained(train, expected):
    before, out, _ = run() if train == "head" else tuned(train=train)
    assert changed(before, out.variables) == expected


def test_a_block_is_all_under_one_name():
    model = resnet(1, 1)
    variables = jax.eval_shape(model.init, KEY)
    mask = part_mask("last_block", model.apply, variables, jnp.ones((1, *toy.SHAPE)))
    for name, part in mask.items():
        trained = name in ("stage2_block1", "head")
        assert all(leaf == trained for leaf in jax.tree.leaves(part)), name
    assert {"stage2_block1", "head"} < set(mask)


def test_what_is_not_trained_stays_to_the_bit():
    """A negative zero, too, with an optimizer that moves everything else."""
    params = {"a": jnp.array([-0.0, 0.0, 1e-40]), "b": jnp.zeros(2)}
    optimizer = only(optax.adamw(0.1), {"a": False, "b": True})
    gradient = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def update(params):
        return apply_update(optimizer, params, optimizer.init(params), gradient)[0]

    assert changed(params, update(params)) == {"b"}


def test_variables_without_collections_have_parts_too():
    variables = {"a": {"w": jnp.ones((4, 3))}, "b": {"w": jnp.ones((3, 2))}}

    def apply(v, x):
        return jax.nn.relu(x.reshape(len(x), -1) @ v["a"]["w"]) @ v["b"]["w"]

    def mask(part):
        return part_mask(part, apply, variables, jnp.ones((1, 2, 2, 1)))

    assert mask("head") == {"a": {"w": False}, "b": {"w": True}}
    assert mask("last_block") == {"a": {"w": True}, "b": {"w": True}}
    with pytest.raises(ValueError, match="train: expected a part with parameters"):
        mask(("nothing",))


def test_a_mask_of_the_users_own_is_kept():
    mine = only(optax.adam(0.01), matching("kernel"))
    method = ju.concept_poison(
        toy.mlp(), inferred=run(inferred=False)[1].prepared, place="none", optimizer=mine
    )
    before = toy.trained().variables
    out = ju.unlearn(method, before, toy.sets(), KEY, steps=2, batch_size=32)
    assert changed(before, out.variables) == {"params/head/kernel"}


@pytest.mark.parametrize("train", ["head", "all"])
def test_batch_statistics_rest_or_move(train):
    part = {} if train == "head" else {"train": train}
    before, frozen, _ = tuned("resnet", **part)
    moved = changed(before, frozen.variables)
    assert not any(path.startswith("batch_stats") for path in moved)
    before, moving, _ = tuned("resnet", statistics="moving", **part)
    moved = changed(before, moving.variables)
    assert any(path.startswith("batch_stats") for path in moved)
    params = {path for path in moved if path.startswith("params")}
    assert (params == {"params/head/kernel", "params/head/bias"}) == (train == "head")


@pytest.mark.parametrize("name", ["mlp", "resnet"])
@pytest.mark.parametrize("data", [1.0, 0.5])
def test_steps_on_features_equal_steps_on_images(name, data):
    """``head`` runs on features that are computed once, the same leaves by pattern do not."""
    share, fit = {} if data == 1 else {"data": data}, run if name == "mlp" else tuned
    _, quick, _ = fit(name, **share)
    _, slow, _ = fit(name, train=("head/",), **share)
    chex.assert_trees_all_close(quick.variables, slow.variables, atol=1e-5, rtol=0)


def test_concepts_inferred_before_serve_as_those_inferred_in_the_run():
    chex.assert_trees_all_equal(run()[1].variables, run(inferred=False)[1].variables)


def test_any_share_is_drawn_evenly():
    part = ju.data.subset(toy.sets().forget.examples, np.arange(10))
    kept = keep(part, jnp.arange(7, dtype=jnp.int32), jnp.int32(7), order=KEY)
    batch = draw(part, KEY, jnp.int32(0), 5, Needs())
    slots = jax.jit(jax.vmap(lambda step: redraw(kept, batch, step).slot))(jnp.arange(7))
    np.testing.assert_array_equal(np.bincount(slots.ravel(), minlength=7), 5)


def test_images_are_kept_as_they_are_stored():
    kept = run(train=("head/",), data=0.5)[2]
    assert kept.retain.part.examples.x.dtype == jnp.uint8


def test_half_of_the_data_is_half_of_every_class():
    kept = run(data=0.5)[2]
    assert int(kept.forget.part.size) == 25
    retain = kept.retain.part
    labels = np.asarray(retain.examples.y)[: int(retain.size)]
    np.testing.assert_array_equal(np.bincount(labels, minlength=4), [15, 0, 20, 30])


def test_a_preparation_counts_as_time_but_for_its_compilation():
    method, told = made("mlp", True), []

    def sleeping(variables, sets, key):
        time.sleep(1)
        jax.monitoring.record_event_duration_secs(COMPILING[-1], told[-1])
        return method.prepare.run(variables, sets, key)

    other = method._replace(prepare=method.prepare._replace(run=sleeping))

    def took(compiling):
        told.append(compiling)
        sets, variables = toy.sets(), toy.trained().variables
        return ju.unlearn(other, variables, sets, KEY, steps=1, batch_size=32).seconds

    took(0.0)
    seconds = {compiling: min(took(compiling) for _ in range(2)) for compiling in (0.0, 1.0)}
    assert seconds[0.0] >= 1
    assert seconds[1.0] < seconds[0.0] - 0.5


# ---- the poisoned copies, by hand


CHANNELS = 3


def pooled(variables, x):
    """The features are the mean of each channel: concepts are colours."""
    return jnp.mean(x, axis=(1, 2)) @ variables["head"]


def colours():
    """Class 0 has concepts red and green, class 1 green, class 2 blue."""
    bank = make_bank(("red", "green", "blue"), np.eye(CHANNELS))
    weights = jnp.eye(CHANNELS)
    zeros = jnp.zeros((CHANNELS, CHANNELS))
    bottleneck = Bottleneck(weights, jnp.zeros(CHANNELS), zeros, jnp.zeros(CHANNELS))
    values = jnp.array([[3.0, 2.0, 0.0], [0.0, 4.0, 1.0], [0.0, 0.0, 5.0]])
    return Concepts(bank, bottleneck, values, jnp.zeros(CHANNELS))


def pictures():
    """8x8 images of 0.1 with one bright cell, at a place of its own, in the class's colour."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 6).astype(np.int32)
    x = np.full((18, 8, 8, 3), 0.1, np.float32)
    spots = rng.integers(1, 7, (18, 2))
    for image, label, (row, column) in zip(x, y, spots, strict=True):
        image[row, column, label] = 1
    return x, y, spots


def requested(request):
    x, y, _ = pictures()
    return ju.make_sets(x, y, request, num_classes=3)


def copies(place, label="targeted", patch=3, patches=1):
    """The images of class 0, where their spots are, and what becomes of them."""
    sets, (x, y, spots) = requested(ju.forget_class(0)), pictures()
    make = functools.partial(poison_images, pooled, Recipe(place, label, patch, patches))
    variables, slots = {"head": jnp.eye(CHANNELS)}, jnp.arange(6, dtype=jnp.int32)
    made = jax.jit(make)(variables, sets.forget, sets.retain, colours(), KEY, slots=slots)
    return x[y == 0], spots[y == 0], made, sets


def test_the_donor_shares_a_concept():
    donor = donors_of(colours(), requested(ju.forget_class(0)).retain)
    assert donor.label[0] == 1
    assert colours().bank.names[int(donor.concept[0])] == "red"
    assert colours().bank.names[int(donor.donor_concept[0])] == "green"


def test_a_class_without_retained_examples_is_no_donor():
    donor = donors_of(colours(), requested(ju.data.forget_classes([0, 1])).retain)
    assert donor.label[0] in (-1, 2)


def test_localized_pastes_the_donors_peak_on_the_targets():
    x, spots, made, sets = copies("localized")
    lent = np.asarray(sets.retain.examples.x)[np.asarray(sets.retain.indices)[made.donors]]
    labels = np.asarray(sets.retain.examples.y)[np.asarray(sets.retain.indices)[made.donors]]
    assert (labels == 1).all()
    np.testing.assert_array_equal(made.y, 1)
    for number in range(6):
        row, column = np.clip(spots[number] - 1, 0, 5)
        np.testing.assert_array_equal(made.corners[number, 0], [row, column])
        rows, columns = slice(row, row + 3), slice(column, column + 3)
        pasted = np.asarray(made.x[number])
        # the class's red spot is covered, the donor's green one is in the middle of the patch
        assert pasted[..., 0].max() < 0.5
        assert pasted[rows, columns, 1].max() == 1
        outside = np.ones((8, 8), bool)
        outside[rows, columns] = False
        np.testing.assert_array_equal(pasted[outside], x[number][outside])
        peak = np.unravel_index(lent[number][..., 1].argmax(), (8, 8))
        corner = np.clip(np.array(peak) - 1, 0, 5)
        patch = lent[number][corner[0] : corner[0] + 3, corner[1] : corner[1] + 3]
        np.testing.assert_array_equal(pasted[rows, columns], patch)


def test_grad_cam_finds_the_class():
    _, spots, made, _ = copies("gradcam")
    np.testing.assert_array_equal(made.corners[:, 0], np.clip(spots - 1, 0, 5))


def test_the_other_places():
    x, _, made, _ = copies("center")
    assert (np.asarray(made.corners) == 2).all()
    np.testing.assert_array_equal(np.asarray(made.x)[:, 0], x[:, 0])
    x, _, made, _ = copies("none", "keep")
    np.testing.assert_array_equal(made.x, x)
    np.testing.assert_array_equal(made.y, 0)
    x, _, made, sets = copies("full")
    positions = np.asarray(sets.retain.indices)[made.donors]
    np.testing.assert_array_equal(made.x, np.asarray(sets.retain.examples.x)[positions])
    x, _, made, _ = copies("top", patches=2)
    assert made.corners.shape == (6, 2, 2)
    apart = np.abs(np.diff(np.asarray(made.corners), axis=1)).max(axis=-1)
    assert (apart >= 3).all(), "patches do not lie on each other"
    _, _, first, _ = copies("random")
    assert len(np.unique(np.asarray(first.corners)[:, 0], axis=0)) > 1


def test_chunks_do_not_matter(monkeypatch):
    whole = copies("localized")[2]
    monkeypatch.setattr(poison, "CHUNK", 4)
    chex.assert_trees_all_close(copies("localized")[2], whole, atol=1e-6)


# ---- the names that a run passes unasked


@pytest.mark.parametrize(
    ("bank", "names", "read_by"),
    [
        ("patches", ("a", "b", "c", "d"), None),
        ("digits", tuple("0123"), tuple("0123")),
        ("digits", ("zero", "one"), ("zero", "one")),  # refused later: the table is ours
        (toy.ATTRIBUTES, None, None),
        (toy.ATTRIBUTES, ("three", "two", "one", "zero"), ("three", "two", "one", "zero")),
        (toy.ATTRIBUTES, ("0", "1", "2", "3"), None),  # other words: in the order of the labels
    ],
)
def test_a_table_of_ones_own_may_call_the_classes_otherwise(bank, names, read_by):
    assert concept_poison._names_of(bank, names) == read_by


def test_a_misspelt_class_is_told():
    told = "class_names: expected some of zero, one, two, three, got tow as well"
    with pytest.warns(UserWarning, match=told):
        ju.concept_poison(
            toy.mlp(), bank=toy.ATTRIBUTES, class_names=("zero", "one", "tow", "three")
        )


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"place": "left"}, "place: expected one of .'localized', 'center', 'random', 'full'"),
        ({"label": "wrong"}, "label: expected one of .'targeted', 'random', 'keep'., got 'wrong'"),
        ({"statistics": "still"}, "statistics: expected one of .'frozen', 'moving'., got 'still'"),
        ({"train": "tail"}, "train: expected one of .'head', 'last_block', 'all'. or a tuple of"),
        ({"train": ("(",)}, "train: expected regular expressions, got '.'"),
        ({"patches": 0}, "patches: expected 1, or more with place 'top', got 0"),
        ({"patches": 3}, "patches: expected 1, or more with place 'top', got 3"),
        ({"data": 0.0}, "data: expected a share above 0, at most 1, got 0.0"),
        ({"examples": 0}, "examples: expected a positive number, got 0"),
        ({"concepts": 1}, "concepts: expected at least 2, got 1"),
        ({"bank": "cifar"}, "bank: expected one of patches"),
        ({"patch": 1.5}, "patch: expected a share of the image's side .* at most 1, got 1.5"),
        ({"forget_weight": -1.0}, "forget_weight: expected a number of 0 or more, got -1.0"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ju.concept_poison(toy.mlp(), **options)


def test_a_class_without_a_donor_is_named():
    mute = colours()._replace(values=jnp.array([[3.0, 0, 0], [0, 0, 0], [0, 0, 0]]))
    mute = mute._replace(bottleneck=mute.bottleneck._replace(weights=-jnp.eye(3)))
    x, y, _ = pictures()
    sets = ju.make_sets(x, y, ju.forget_class(0), num_classes=3)
    method = ju.concept_poison(pooled, inferred=mute)
    told = "expected a donor for class 0, got none: no class .* on its concept 'red'"
    with pytest.raises(ValueError, match=told):
        ju.unlearn(method, {"head": jnp.eye(3)}, sets, KEY, steps=1)


def test_concepts_of_another_network_are_refused():
    method = ju.concept_poison(toy.mlp(), inferred=colours())
    with pytest.raises(ValueError, match="inferred: expected concepts of 4 classes and 16 feat"):
        ju.unlearn(method, toy.trained().variables, toy.sets(), KEY, steps=1)


def test_vectors_cannot_be_poisoned():
    x, y = jnp.ones((8, 5)), jnp.arange(8) % 2
    sets = ju.make_sets(x, y, ju.forget_class(0))
    method = ju.concept_poison(lambda v, x: x @ v, bank=toy.ATTRIBUTES)
    with pytest.raises(ValueError, match=r"expected images \[H, W, C\] to poison, got \[5\]"):
        method.prepare.shapes(jnp.ones((5, 2)), Sets(forget=sets.forget, retain=sets.retain))
    with pytest.raises(ValueError, match=r"expected images \[H, W, C\] to poison, got \[5\]"):
        ju.unlearn(method, jnp.ones((5, 2)), sets, KEY, steps=1)
