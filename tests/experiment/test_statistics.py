"""What retrained models are normalised by: they know nothing of what is to be forgotten."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import checkpoint
from jaxunlearn.config import DataConfig
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.errors import CheckpointError
from jaxunlearn.data.dataset import make_dataset
from jaxunlearn.data.sets import normalise_by_retained, request
from jaxunlearn.experiment import plan as plans
from jaxunlearn.experiment import trial
from jaxunlearn.experiment.plan import make_plan
from jaxunlearn.kinds.gan import GAN
from jaxunlearn.metrics.registry import Measured
from jaxunlearn.report import load
from tests import toy
from tests.runs import hurry

WORDS = [
    "data.unseen=12", "model.options.features=(6,)", "train.epochs=2", "train.batch_size=16",
    "retrained=2", "methods=finetune", "methods.finetune.steps=2",
]  # fmt: skip
REQUESTS = {
    "class": ["request.classes=1"],
    "items": ["request.classes=", "request.indices=1,4,7,10,13"],
    "each": ["request.each=true", "request.classes=1,0"],
    "in turn": ["request.in_turn=true", "request.classes=1,2"],
}
X = {
    "images": np.random.default_rng(0).normal(100, 30, (60, 4, 4, 2)).clip(0, 255),
    "vectors": np.random.default_rng(1).normal(5, 2, (60, 6)),
}
Y = np.arange(60) % 3


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        # the models themselves are looked at, not what metrics say of them
        patch.setattr(trial, "measure", lambda *_, **__: Measured({}, {}, {}, {}))
        yield


def plan_of(folder, x, words):
    """A plan whose training split is ``x``; the test split is always the same."""
    test = X["images" if x.ndim == 4 else "vectors"].astype(x.dtype)
    folder.mkdir(exist_ok=True)
    np.savez(folder / "own.npz", train_x=x, train_y=Y, test_x=test, test_y=Y)
    return load_config(None, [f"data.name={folder / 'own.npz'}", "name=run", *WORDS, *words])


def weights(folder, stage):
    return jax.tree.leaves(checkpoint.load(folder / "run" / stage)[0])


# where each retrained model lies, and the classes that it must not know
PLACES = {
    "class": {"retrained/0": [1], "retrained/1": [1]},
    "items": {"retrained/0": None, "retrained/1": None},
    "each": {"class_1/retrained/0": [1], "class_1/retrained/1": [1]},
    "in turn": {"turn_0/retrained/0": [1], "turn_1/retrained/1": [1]},
}
CASES = [
    ("class", "images", np.uint8),
    ("items", "vectors", np.float32),
    ("each", "images", np.float32),
    ("in turn", "images", np.uint8),
]


@pytest.mark.parametrize(("asked", "kind", "dtype"), CASES)
def test_retrained_models_do_not_depend_on_what_is_forgotten(tmp_path, asked, kind, dtype):
    """By value: other images in the place of the forgotten ones, the same retrained models."""
    x = X[kind].astype(dtype)
    other = x.copy()
    gone = np.array([1, 4, 7, 10, 13]) if asked == "items" else Y == 1
    other[gone] = 0 if dtype == np.uint8 else -1000
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder, images in zip(folders, (x, other), strict=True):
        ju.run(plan_of(folder, images, REQUESTS[asked]), folder)
    for stage in PLACES[asked]:
        for one, two in zip(*(weights(folder, stage) for folder in folders), strict=True):
            np.testing.assert_array_equal(one, two, err_msg=stage)
    originals = zip(*(weights(folder, "original") for folder in folders), strict=True)
    assert any(not np.array_equal(a, b) for a, b in originals), "those do depend on them"
    if asked == "class":
        notes = load(folders[0] / "run")["notes"]
        assert any("of retrained models by those of what they retain" in note for note in notes)
        record = checkpoint.read_record(folders[0] / "run" / "retrained/0")
        assert record["inputs"]["own"]["statistics"] == "retained", "recorded, and resumed by"


def test_a_model_made_with_other_statistics_is_not_taken_for_one(tmp_path, monkeypatch):
    config = plan_of(tmp_path, X["vectors"].astype(np.float32), REQUESTS["class"])
    with monkeypatch.context() as patch:
        patch.setattr(plans, "normalise_by_retained", lambda sets: sets)
        ju.run(config, tmp_path)
    with pytest.raises(CheckpointError, match=r"own\.statistics: None there, 'retained' asked"):
        ju.run(config, tmp_path)


def reader_of(sets):
    return [np.asarray(sets.retain.examples.reader.keywords[name]) for name in ("mean", "std")]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("kind", list(X))
def test_statistics_are_those_of_what_is_retained(kind, dtype):
    x = X[kind].astype(dtype)
    kept = x[Y != 1].astype(np.float64)
    axes = tuple(range(x.ndim - 1))
    wanted = kept.mean(axes), kept.std(axes)
    whole = {"mean": x.mean(axes, np.float64), "std": x.std(axes, np.float64)}
    sets = ju.make_sets(x, Y, ju.forget_class(1), test=(x, Y), **whole)
    own = normalise_by_retained(sets)
    for found, value in zip(reader_of(own), wanted, strict=True):
        np.testing.assert_allclose(found.ravel(), value, rtol=1e-6)
    assert own.forget.examples.x is sets.forget.examples.x, "no copy"
    for name, before, after in zip(sets._fields, sets, own, strict=True):
        assert (before is None) == (after is None)
        if after is not None:
            assert after.examples.reader.keywords == own.retain.examples.reader.keywords, name
    x = jnp.asarray(x)
    many = [ju.make_sets(x, Y, ju.forget_class(label), **whole) for label in range(3)]
    stacked = normalise_by_retained(ju.data.stack_sets(many))
    assert stacked.forget.size.shape == (3,)
    for label, one in enumerate(many):
        for found, value in zip(
            reader_of(request(stacked, label)), reader_of(normalise_by_retained(one)), strict=True
        ):
            np.testing.assert_array_equal(found, value)


def test_sets_with_statistics_of_their_own_run_in_one_program():
    x = jnp.asarray(X["images"].astype(np.uint8))
    many = [
        normalise_by_retained(ju.make_sets(x, Y, ju.forget_class(k), mean=0, std=255))
        for k in range(3)
    ]
    model = ju.models.build("mlp", x.shape[1:], 3, {"features": (6,)})
    variables, keys = model.init(jax.random.key(0)), jax.random.split(jax.random.key(1), 3)
    options = {"steps": 3, "batch_size": 8}
    for vectorise in (True, False):
        together = ju.unlearn_many(
            ju.finetune(model), variables, ju.data.stack_sets(many), keys, vectorise=vectorise,
            **options,
        )  # fmt: skip
        for number, (sets, key) in enumerate(zip(many, keys, strict=True)):
            alone = ju.unlearn(ju.finetune(model), variables, sets, key, **options)
            for one, all_ in zip(
                jax.tree.leaves(alone.variables), jax.tree.leaves(together.variables), strict=True
            ):
                np.testing.assert_allclose(all_[number], one, rtol=1e-4, atol=1e-6)
    own = [
        ju.make_sets(x, Y, ju.forget_class(k), reader=lambda x, k=k: x.astype(jnp.float32) + k)
        for k in range(2)
    ]
    with pytest.raises(ValueError, match="expected forget to have one reader in all requests"):
        ju.data.stack_sets(own)


def test_what_has_no_statistics_is_left_as_it_is(tmp_path):
    sets = ju.make_sets({"a": np.ones((4, 2))}, [0, 1, 0, 1], ju.forget_class(0))
    assert normalise_by_retained(sets) is sets
    words = ["model.name=mlp_gan", "request.classes=1", "methods=gan_finetune", "train.epochs=1"]
    plan = make_plan(load_config(None, words), tmp_path)
    assert plan.retraining is plan.judged, "images of GANs lie between constants"


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [(0.1, 0.8, (0, 1)), (-0.5, 0.9, (-1, 1)), (3, 200, (0, 255)), (-7, 300, (-7, 300))],
)
def test_images_of_gans_lie_between_constants(low, high, ends):
    """Which follow from the test images alone."""
    test = np.linspace(low, high, 48, dtype=np.float32).reshape(3, 4, 4, 1)
    for train in (test, 5 * test - 100):
        arrays = {"train_x": train, "train_y": Y[:3], "test_x": test, "test_y": Y[:3]}
        read = GAN.read(make_dataset(arrays, ["a", "b", "c"]))
        found = (np.float32(ends) - read.mean.ravel()) / read.std.ravel()
        np.testing.assert_allclose(found, [-1, 1], rtol=1e-5)


def test_the_embedded_data_are_normalised_as_before():
    data = ju.data.load_dataset(DataConfig())
    np.testing.assert_allclose(data.mean, data.train_x.mean(), rtol=1e-6)
    assert toy.sets().retain.examples.reader.keywords["std"].shape == (1, 1, 1)
