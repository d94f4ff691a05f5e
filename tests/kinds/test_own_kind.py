"""Another kind of models takes one file: a line that tells a digit's number from its pixels."""

import json

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import config as sections
from jaxunlearn.cli import main
from jaxunlearn.data.sets import forgets_class
from jaxunlearn.experiment import trial
from jaxunlearn.kinds import KINDS, kind_of
from jaxunlearn.methods import METHODS
from jaxunlearn.metrics import METRICS
from jaxunlearn.models import NETWORKS
from jaxunlearn.report import load
from tests.runs import hurry

FILE = '''
"""Numbers of digits, by a linear regression."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxunlearn as ju
from jaxunlearn.engine.predict import predict
from jaxunlearn.kinds import Kind, register_kind
from jaxunlearn.metrics import Evidence, Metric, register_metric
from jaxunlearn.models import NETWORKS, Network
from jaxunlearn.training import descent
from jaxunlearn.training.optimizers import make_optimizer


class Line(NamedTuple):
    init: Any
    apply: Any


@functools.lru_cache
def line(shape, num_classes):
    size = int(np.prod(shape))

    def apply(variables, x):
        return x.reshape(len(x), size) @ variables["slope"] + variables["offset"]

    return Line(lambda key: {"slope": jnp.zeros((size, 1)), "offset": jnp.zeros(())}, apply)


def fit(model, *, optimizer=None, ridge: float = 0.0):
    def objective(variables, batches, context):
        error = model.apply(variables, batches.retain.x)[:, 0] - batches.retain.y
        square = jnp.mean(error**2)
        return square + ridge * jnp.sum(variables["slope"] ** 2), (variables, {"square": square})

    return descent(objective, optimizer, ju.Needs(retain=True))


@dataclasses.dataclass(frozen=True)
class NumberConfig:
    ridge: float = 0.0


class NumberEvidence(Evidence):
    provides = Evidence.provides | {"errors"}

    @functools.cached_property
    def errors(self):
        found = {name: self.part(name) for name in ("forget", "retain")}
        found = {k: predict(self.model.apply, self.variables, p) for k, p in found.items()}
        return {name: one.logits[:, 0] - one.labels for name, one in found.items()}


class Numbers(Kind):
    name = "number"
    summary = "one number for each example"
    section = NumberConfig
    evidence = NumberEvidence
    trains_methods = True

    def owns(self, model):
        return isinstance(model, Line)

    def read(self, data, settings=None):
        assert isinstance(data.train_x, np.ndarray), "before it is put on the device"
        assert settings is None or isinstance(settings, NumberConfig)
        numbers = {k: getattr(data, k).astype(np.float32) for k in ("train_y", "test_y")}
        return data._replace(labels="any", facts={"scale": 16}, **numbers)

    def build(self, config, x, data, settings=None):
        return NETWORKS[config.name].target(tuple(x.shape[1:]), len(data.class_names))

    def observe(self, model, variables, sets, key, *, settings=None, scale=16):
        assert scale == 16, "a fact of the data"
        return super().observe(model, variables, sets, key, settings=settings)

    def recipe(self, model, train, examples, settings=None):
        steps = max(1, round(train.epochs * examples / train.batch_size))
        return _fit(model, train, steps, settings or NumberConfig()), steps


@functools.lru_cache
def _fit(model, train, steps, settings):
    blank = fit(model, optimizer=make_optimizer(train, steps), ridge=settings.ridge)
    fresh = lambda variables, sets, key: blank.init(model.init(key), sets, key)
    return blank._replace(init=fresh)


def square(evidence):
    return np.mean(evidence.errors["forget"] ** 2)  # float32, as arrays of networks are


def distance(evidence, original):
    return np.abs(evidence.errors["retain"] - original.errors["retain"])


register_kind(Numbers())
NETWORKS.register("line", Network(line, "a straight line", kind="number"))
ju.register_method("refit", fit, summary="go on with what is retained", kind="number")
register_metric(
    "square", Metric("square error, forget", "forgetting", "as retrained", ".2f", square,
                     ("errors",)),
)
register_metric(
    "distance", Metric("distance to the original", "utility", "as retrained", ".3f", distance,
                       ("errors",), "original", each=True),
)


def get_config():
    return ju.Config(
        name="numbers",
        model=ju.config.ModelConfig(name="line"),
        train=ju.TrainConfig(epochs=10, learning_rate=0.1),
        kinds={"number": NumberConfig(ridge=1e-4)},
        request=ju.config.Request(share=0.1),
        methods={"refit": {"steps": 20}},
        retrained=2,
    )
'''


@pytest.fixture(scope="module", autouse=True)
def forgetful():
    """Takes back what the file registers."""
    with pytest.MonkeyPatch.context() as patch:
        for registry in (KINDS, METHODS, METRICS, NETWORKS):
            patch.setattr(registry, "_rows", dict(registry._rows))
        patch.setattr(sections, "SECTIONS", dict(sections.SECTIONS))
        patch.setattr("jaxunlearn.config.overrides.SECTIONS", sections.SECTIONS)
        hurry(patch, report=True, pictures=True)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run on the file, as a user types it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "numbers.py").write_text(FILE)
    words = ["run", str(folder / "numbers.py"), "number.ridge=1e-3"]
    words += ["--runs", str(folder)]
    assert main(words) == 0
    return folder / "numbers", words


def test_a_run_goes_from_one_file_to_its_report(made, capsys):
    home, _ = made
    report = load(home)
    assert report["columns"] == ["original", "refit", "retrained"]
    rows = {row["name"]: row for row in report["rows"]}
    judged = {name for name, row in rows.items() if row["group"] != "cost"}
    assert judged == {"square", "distance", "exact_zeros"}, "no metric of other kinds"
    for name in judged | {"seconds", "steps"}:
        assert set(rows[name]["values"]) == set(report["columns"]), name
    assert 0 < rows["square"]["values"]["original"] < 8.3, "better than the mean number"
    assert rows["distance"]["values"]["original"] == 0 < rows["distance"]["values"]["refit"]
    assert rows["square"]["floor"] is not None
    text = (home / "report.md").read_text()
    assert "| square error, forget |" in text
    assert (home / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((home / "config.json").read_text())["kinds"] == {"number": {"ridge": 1e-3}}
    with np.load(home / "examples.npz") as examples:
        names = ["original", "unlearned/refit", "retrained/0", "retrained/1"]
        assert set(examples.files) == {f"{name}/distance" for name in names}
        assert examples["retrained/1/distance"].shape == (997 - 100,)
    assert main(["show", str(home)]) == 0
    assert "square error" in capsys.readouterr().out


def test_a_second_run_finds_everything_there(made, capsys, monkeypatch):
    home, words = made
    monkeypatch.setattr(trial, "measure", None)  # nor is anything measured
    before = load(home)
    assert main(words) == 0
    assert capsys.readouterr().out.count("there already") == 4
    assert load(home) == before


def test_the_section_is_checked_and_decides(made, tmp_path, capsys):
    _, words = made
    for change, message in (
        ("number.rigde=1", "did you mean 'ridge'"),
        ("number.ridge=much", "number.ridge: expected float, got 'much'"),
        ("methods.refit.rigde=1", "did you mean 'ridge'"),
        ("methods=finetune", "expected one of ['refit'] for the model line, got 'finetune'"),
        ("request.classes=3", "exactly one of classes, indices, share, words"),
    ):
        assert main([*words[:2], change, "--runs", str(tmp_path)]) == 1
        assert message in capsys.readouterr().err
    assert main([*words, "number.ridge=1e-2"]) == 1
    assert "number.ridge: 0.001 there, 0.01 asked" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_training_and_judgement_in_one_call_know_it_too(made):
    """No run: the same kind through ``train`` and ``evaluate``."""
    model = NETWORKS["line"].target((8, 8, 1), 10)
    assert kind_of(model).name == "number"
    assert kind_of(ju.models.build("mlp", (8, 8, 1), 10)).name == "classifier"
    data = kind_of(model).read(ju.data.load_dataset(ju.data.DataConfig()))
    sets = ju.make_sets(
        data.train_x, data.train_y, ju.config.Request(share=0.1), labels="any", mean=0, std=16
    )
    config = ju.TrainConfig(epochs=10, learning_rate=0.1)
    key = jax.random.key(0)
    everything = ju.data.whole(sets.forget.examples)
    original = ju.train(model, everything, key, config=config)
    keys = jax.random.split(key, 2)
    retrained = ju.train_many(model, sets.retain, keys, config=config)
    report = ju.evaluate(model, {"original": original}, retrained, sets)
    rows = {row["name"]: row["values"] for row in report["rows"]}
    assert set(rows) >= {"square", "distance", "seconds"}
    assert not any(name.startswith("accuracy") for name in rows)
    with pytest.raises(TypeError, match=r"settings: expected .*NumberConfig"):
        ju.train(model, everything, key, config=config, settings=3)
    assert original.history["square"][-1] < original.history["square"][0] / 2
    shown = kind_of(model).section(ridge=10.0)
    flat = ju.train(model, everything, key, config=config, settings=shown)
    slopes = [np.abs(one.variables["slope"]).max() for one in (original, flat)]
    assert slopes[1] < slopes[0] / 2


def test_numbers_are_no_classes():
    """Each example has a number of its own, so that those forgotten share none with the rest."""
    x, y = np.ones((20, 3), np.float32), 10 * np.arange(20, dtype=np.float32)
    sets = ju.make_sets(x, y, ju.config.Request(share=0.2), labels="any")
    assert not forgets_class(sets)
    classes = ju.make_sets(x, np.arange(20) % 4, ju.config.Request(classes=(1,)))
    assert forgets_class(classes)
