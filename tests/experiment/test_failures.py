"""A method that raises fails in its own column; the run ends with the report of all others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import report as files
from jaxunlearn.cli import main
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.errors import ConfigError, RequestError
from jaxunlearn.core.types import Info, Needs, Preparation, Unlearner
from jaxunlearn.experiment import trial
from jaxunlearn.experiment.plan import make_plan
from jaxunlearn.methods import METHODS, Method
from jaxunlearn.metrics.registry import Measured
from jaxunlearn.metrics.table import speedups
from tests import toy
from tests.runs import hurry

KEY = jax.random.key(0)


def grow(state, batches, key, count):
    moved = jax.tree.map(lambda leaf: leaf * 1.001, state)
    return moved, Info({"loss": jnp.float32(0)}, jnp.asarray(True))


def raising(error, where):
    """A factory of a method that raises in its step when it is traced, or when it prepares."""

    def make(model):
        def step(state, batches, key, count):
            if where == "step":
                raise error
            return grow(state, batches, key, count)

        def prepare(variables, sets, key):
            if where == "prepare":
                raise error
            return jnp.float32(0)

        def init(variables, sets, key, prepared):
            return variables

        found = Preparation(prepare, lambda *_: jax.ShapeDtypeStruct((), jnp.float32))
        return Unlearner(init, step, lambda state: state, Needs(forget=True), found)

    return make


ERRORS = {
    "no_donor": (RequestError("no donor for class 1"), "prepare", "no donor for class 1"),
    "bug": (KeyError("fc9"), "step", "KeyError: 'fc9'"),
    "memory": (RuntimeError("RESOURCE_EXHAUSTED:\nout of memory"), "prepare", "RuntimeError: RES"),
    "wide": (TypeError("x" * 9000), "step", "TypeError: xxx"),
}


@pytest.fixture
def known(monkeypatch):
    hurry(monkeypatch)
    monkeypatch.setattr(trial, "measure", lambda *_, **__: Measured({}, {}, {}, {}))
    monkeypatch.setattr(METHODS, "_rows", dict(METHODS._rows))
    for name, (error, where, _) in ERRORS.items():
        METHODS.register(name, Method(raising(error, where), "raises"))


def words(folder, *more, methods=None):
    rng, y = np.random.default_rng(0), np.arange(60) % 3
    x = rng.normal(size=(60, 4)).astype(np.float32)
    np.savez(folder / "own.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    options = methods or [f"methods.{name}.steps=1" for name in [*ERRORS, "finetune"]]
    return [
        f"data.name={folder / 'own.npz'}", "name=run", "data.unseen=9", "train.epochs=1",
        "model.options.features=(4,)", "retrained=1", *options, *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "asked", [["request.classes=1"], ["request.each=true", "request.classes=0,1"]]
)
def test_a_method_that_raises_fails_alone(known, tmp_path, asked, capsys):
    arguments = words(tmp_path, *asked)  # options of a method add it, in this order
    assert main(["run", *arguments, "--runs", str(tmp_path)]) == 1
    shown = capsys.readouterr().err.splitlines()
    report = files.load(tmp_path / "run")
    assert report["columns"] == ["original", *ERRORS, "finetune", "retrained"]
    assert not [line for line in shown if "Traceback" in line]
    for name, (_, _, reason) in ERRORS.items():
        lines = [line for line in shown if line.startswith("error: ") and f"{name} failed" in line]
        assert len(lines) == (2 if "request.each=true" in asked else 1)
        assert all(reason in line for line in lines), lines
        assert max(map(len, lines)) < 600
        assert any(f"{name} failed" in note and reason in note for note in report["notes"])
    for row in report["rows"]:
        assert set(row["failed"]) == set(ERRORS), row["metric"]
        assert {"finetune", "retrained"} & set(row["values"]), row["metric"]


def test_the_same_run_again_tries_again_and_ends_well(known, tmp_path, capsys):
    options = ["methods=bug,finetune", "methods.bug.steps=1", "methods.finetune.steps=1"]
    arguments = [*words(tmp_path, "request.classes=1", methods=options)]
    assert main(["run", *arguments, "--runs", str(tmp_path)]) == 1
    METHODS.register("bug", Method(raising(None, ""), "works"), overwrite=True)
    assert main(["run", *arguments, "--runs", str(tmp_path)]) == 0
    assert "failures" not in files.load(tmp_path / "run")


def test_a_method_of_a_single_pass_has_its_time(known, tmp_path):
    options = ["methods=ssd", "methods.ssd.threshold=.5"]
    arguments = words(tmp_path, "request.classes=1", methods=options)
    assert main(["run", *arguments, "--runs", str(tmp_path)]) == 0
    rows = {row["name"]: row["values"] for row in files.load(tmp_path / "run")["rows"]}
    assert rows["steps"]["ssd"] == 0
    assert rows["seconds"]["ssd"] > 0 < rows["speedup"]["ssd"]


def test_a_model_without_costs_has_no_speedup():
    assert speedups({"seconds": 1.0, "compile_seconds": 1.0}, {}) == {}


def test_a_file_that_cannot_be_written_is_no_fault_of_the_method(known, tmp_path):
    full = OSError(28, "No space left on device", "somewhere")
    METHODS.register("bug", Method(raising(full, "prepare"), "raises"), overwrite=True)
    options = ["methods=bug,finetune", "methods.bug.steps=1", "methods.finetune.steps=1"]
    config = load_config(None, words(tmp_path, "request.classes=1", methods=options))
    with pytest.raises(OSError, match="No space left"):
        ju.run(config, tmp_path)


class TestUnsuited:
    """A method for classes, and a request for items."""

    @pytest.mark.parametrize("name", ["neuron_path", "concept_poison"])
    def test_in_python(self, name):
        sets = toy.sets(ju.data.forget_random(0.2))
        with pytest.raises(RequestError, match=f"{name} forgets classes, got a request for items"):
            ju.unlearn(toy.method(name), toy.trained().variables, sets, KEY, **toy.ROWS[name][1])

    @pytest.mark.parametrize("name", ["neuron_path", "concept_poison"])
    def test_in_a_run(self, tmp_path, name):
        asked = ["request.classes=", "request.share=0.1", f"methods={name}"]
        with pytest.raises(ConfigError, match=rf"methods\.{name}: .* it forgets classes"):
            make_plan(load_config(None, asked), tmp_path)

    def test_defaults_are_those_that_suit(self, tmp_path):
        plan = make_plan(load_config(None, ["request.classes=", "request.share=0.1"]), tmp_path)
        assert list(plan.methods) == ["finetune", "gradient_ascent", "random_label"]
        assert any("neuron_path left out: it forgets classes" in note for note in plan.left_out)

    def test_rows_and_methods_agree(self):
        for name in toy.METHODS:
            assert toy.method(name).forgets == METHODS[name].forgets
