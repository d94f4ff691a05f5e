"""Requests one after another: each is met by the model that has met those before it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import checkpoint
from jaxunlearn.cli import main
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.core.types import Info, Needs, Unlearner
from jaxunlearn.data.sets import num_examples, subset
from jaxunlearn.engine.predict import predict
from jaxunlearn.experiment import run as run_config
from jaxunlearn.experiment import stages
from jaxunlearn.experiment.plan import make_plan, trials
from jaxunlearn.methods import METHODS, register_method
from tests.runs import hurry

SMALL = [
    "train.epochs=3", "train.learning_rate=5e-3", "model.options.features=(16,)", "retrained=1",
    "methods=grow,finetune", "methods.finetune.steps=3", "methods.grow.steps=1",
]  # fmt: skip
TURNS = [*SMALL, "request.in_turn=true", "request.classes=3,1"]
STAGES = ["retrained/0", "unlearned/grow", "unlearned/finetune"]


def grow(model):
    """Adds 1 to all parameters, and tells which labels it was shown."""

    def step(state, batches, key, count):
        del key, count
        shown = {
            f"{name} {label}": jnp.sum((batch.y == label).astype(jnp.float32) * batch.weight)
            for name, batch in (("forget", batches.forget), ("retain", batches.retain))
            for label in (1, 3)
        }
        state = jax.tree.map(lambda leaf: leaf + 1, state)
        return state, Info(shown, jnp.bool_(True))

    needs = Needs(forget=True, retain=True)
    return Unlearner(lambda v, sets, key: v, step, lambda state: state, needs)


def fragile(model):
    """Fails where class 3 is to be forgotten."""

    def step(state, batches, key, count):
        del key, count
        state = jax.tree.map(lambda leaf: leaf + 1, state)
        return state, Info({"loss": jnp.float32(0)}, jnp.all(batches.forget.y != 3))

    return Unlearner(lambda v, sets, key: v, step, lambda state: state, Needs(forget=True))


def run(folder, *words, config=TURNS, **options):
    return run_config(load_config(None, [*config, *words]), folder, **options)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Models are made and judged as ever, but timed once, not cold, and not drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METHODS, "_rows", dict(METHODS._rows))
        register_method("grow", grow)
        register_method("fragile", fragile)
        hurry(patch)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick):
    """A finished run that tests only read, and its report."""
    folder = tmp_path_factory.mktemp("turns")
    return folder, run(folder)


@pytest.fixture(scope="module")
def plans(finished):
    """The plan of each turn."""
    return trials(make_plan(load_config(None, TURNS), finished[0]))


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    return tmp_path / "digits"


def variables(home, name):
    return checkpoint.load(home / name)[0]


def records(home):
    """When each model was made, by the place of its record."""
    found = [p for p in home.rglob("record.json") if "erasure" not in p.parts]
    return {p.relative_to(home): p.stat().st_mtime_ns for p in found}


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def labels(home, turn, part):
    data = ju.data.load_dataset(ju.data.DataConfig())
    y = data.train_y if part in ("forget", "retain") else data.test_y
    with np.load(home / f"turn_{turn}" / "sets.npz") as sets:
        return set(y[sets[part]].tolist())


class TestModels:
    def test_one_original_and_a_folder_for_each_turn(self, finished):
        home = finished[0] / "digits"
        found = {str(path.parent) for path in records(home)}
        assert found == {"original"} | {f"turn_{n}/{name}" for n in (0, 1) for name in STAGES}
        config = json.loads((home / "config.json").read_text())["request"]
        assert config["classes"] == [3, 1]
        assert config["in_turn"] is True

    def test_a_method_starts_from_its_own_model_of_the_turn_before(self, finished):
        home = finished[0] / "digits"
        original = variables(home, "original")
        for turn in (0, 1):
            made = variables(home, f"turn_{turn}/unlearned/grow")
            for _ in range(turn + 1):
                made = jax.tree.map(lambda leaf: leaf - 1, made)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), made, original)

    def test_each_method_from_its_own_and_not_from_anothers(self, finished, plans):
        home = finished[0] / "digits"
        before = variables(home, "turn_0/unlearned/finetune")
        record = checkpoint.read_record(home / "turn_1/unlearned/finetune")
        method, options = plans[1].methods["finetune"]
        before, original = (jax.tree.map(jnp.asarray, one) for one in (
            before, variables(home, "original")))  # fmt: skip
        first = [
            ju.unlearn(method, start, plans[1].sets, jax.random.key(0), **options).history["loss"]
            for start in (before, original)
        ]
        assert record["history"]["loss"] != pytest.approx(first[1].tolist(), rel=1e-3)
        task_key = derive(plans[1].key, Purpose.METHOD, _crc("finetune"), Purpose.TURN, 1)
        made = ju.unlearn(method, before, plans[1].sets, task_key, **options)
        assert record["history"]["loss"] == pytest.approx(made.history["loss"].tolist(), rel=1e-5)

    def test_what_was_forgotten_before_is_neither_forgotten_again_nor_retained(self, finished):
        home = finished[0] / "digits"
        rest = set(range(10))
        assert [labels(home, turn, "forget") for turn in (0, 1)] == [{3}, {1}]
        assert [labels(home, turn, "unseen") for turn in (0, 1)] == [{3}, {1}]
        for part in ("retain", "holdout"):
            assert [labels(home, n, part) for n in (0, 1)] == [rest - {3}, rest - {1, 3}], part
        shown = checkpoint.read_record(home / "turn_1/unlearned/grow")["history"]
        assert {k: v[0] for k, v in shown.items()} == {
            "forget 1": 128, "forget 3": 0, "retain 1": 0, "retain 3": 0,
        }  # fmt: skip

    def test_retrained_models_saw_none_of_the_classes_so_far(self, finished, plans):
        home, plan = finished[0] / "digits", plans[1]
        data = ju.data.load_dataset(ju.data.DataConfig())
        own = np.flatnonzero(~np.isin(data.train_y, [3, 1]))
        key = derive(plan.key, Purpose.RETRAINED, 0, Purpose.TURN, 1)
        part = subset(plan.retraining.forget.examples, own)
        made = ju.train(plan.model, part, key, config=plan.config.train)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            made.variables, variables(home, "turn_1/retrained/0"),
        )  # fmt: skip
        assert made.steps == checkpoint.read_record(home / "turn_1/retrained/0")["costs"]["steps"]

    def test_the_first_turn_is_a_request_for_that_class_alone(self, finished, tmp_path):
        run(tmp_path, "request.classes=3", config=SMALL)
        home, alone = finished[0] / "digits" / "turn_0", tmp_path / "digits"
        for name in STAGES:
            equal(variables(home, name), variables(alone, name))
        one, other = (json.loads((p / "judgement.json").read_text()) for p in (home, alone))
        for name in ["original", *STAGES]:
            assert one[name]["values"] == other[name]["values"]


def _crc(name):
    import zlib

    return zlib.crc32(name.encode())


class TestReport:
    def test_it_is_on_each_turn(self, finished, capsys):
        folder, report = finished
        assert report["title"] == "digits: forget in turn classes 3, 1, 2 turns"
        assert report["trials"]["kind"] == "turn"
        assert report["trials"]["numbers"] == [0, 1]
        assert report["columns"] == ["original", "grow", "finetune", "retrained"]
        assert any("each method starts from its own model" in note for note in report["notes"])
        lines = [
            json.loads(line) for line in (folder / "digits/metrics.jsonl").read_text().splitlines()
        ]
        assert [line["turn"] for line in lines] == [0] * 4 + [1] * 4
        assert main(["show", str(folder / "digits")]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "2 turns" in shown
        assert "paired by turn" in shown
        assert "of the mean over 2 turns" in (folder / "digits/report.md").read_text()

    def test_models_are_judged_on_all_classes_so_far(self, finished, plans):
        folder, report = finished
        rows = {row["name"]: row for row in report["rows"]}
        original = jax.tree.map(jnp.asarray, variables(folder / "digits", "original"))
        retrained = variables(folder / "digits", "turn_1/retrained/0")
        examples = plans[0].sets.forget.examples
        y = np.asarray(examples.y)
        for turn, classes in ((0, [3]), (1, [3, 1])):
            for name, own in (("forget", True), ("retain", False)):
                part = subset(examples, np.flatnonzero(np.isin(y, classes) == own))
                wanted = predict(plans[0].model.apply, original, part).accuracy
                row = rows[f"accuracy_{name}"]
                assert row["each"]["original"][turn] == pytest.approx(wanted), (turn, name)
            assert num_examples(plans[turn].judged.forget) == np.isin(y, classes).sum()
        both = subset(examples, np.flatnonzero(np.isin(y, [3, 1])))
        assert predict(plans[0].model.apply, retrained, both).accuracy == 0
        assert rows["accuracy_forget"]["each"]["retrained"] == [0, 0]
        # one retrained model of each turn: they differ by their request, not by chance
        assert rows["accuracy_retain"]["floor"] is None

    def test_time_is_that_of_the_turn(self, finished):
        folder, report = finished
        rows = {row["name"]: row for row in report["rows"]}
        homes = [folder / "digits" / f"turn_{turn}" for turn in (0, 1)]
        for label, stage in (("retrained", "retrained/0"), ("grow", "unlearned/grow")):
            costs = [checkpoint.read_record(home / stage)["costs"] for home in homes]
            for name in ("seconds", "steps"):
                assert rows[name]["each"][label] == [one[name] for one in costs]
        ratios = [
            a / b
            for a, b in zip(
                *(rows["seconds"]["each"][k] for k in ("retrained", "grow")), strict=True
            )
        ]
        assert rows["speedup"]["each"]["grow"] == pytest.approx(ratios)


class TestAgain:
    def test_a_second_run_finds_everything_there(self, copied, finished):
        before, told = records(copied), []
        again = run(copied.parent, listener=lambda *call: told.append(call))
        assert len(told) == 7
        assert all(progress is None for _, progress in told)
        assert ("turn_1/unlearned/grow", None) in told
        assert again == finished[1]
        assert records(copied) == before

    def test_another_class_is_one_more_turn(self, copied):
        before = records(copied)
        report = run(copied.parent, "request.classes=3,1,5")
        made = {str(path.parent) for path in records(copied).keys() - before.keys()}
        assert made == {f"turn_2/{name}" for name in STAGES}
        assert report["trials"]["numbers"] == [0, 1, 2]
        assert labels(copied, 2, "retain") == set(range(10)) - {1, 3, 5}

    def test_another_order_is_another_run(self, copied, capsys):
        words = [*TURNS, "request.classes=1,3", "--runs", str(copied.parent)]
        before = records(copied)
        assert main(["run", *words]) == 1
        message = capsys.readouterr().err
        assert "turn_0/" in message
        assert "request.classes: [3] there, [1] asked" in message
        assert records(copied) == before

    def test_a_killed_run_goes_on_where_it_was(self, copied, finished, monkeypatch):
        """Killed in the second turn: neither the first nor what was there is made again."""
        monkeypatch.setattr(stages, "SAVE_EVERY", 0.0)
        words, name = ["methods.finetune.chunk=1"], "turn_1/unlearned/finetune"
        for turn in (0, 1):  # how many steps are compiled at a time is an input of a model
            shutil.rmtree(copied / f"turn_{turn}" / "unlearned" / "finetune")
        told = []

        def tell(stage, progress):
            if progress is not None and progress.state is not None:
                told.append((stage, progress.step))

        def kill(stage, progress):
            tell(stage, progress)
            if told[-1:] == [(name, 2)]:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(copied.parent, *words, listener=kill)
        assert [step for stage, step in told if stage.startswith("turn_0")] == [1, 2, 3]
        assert (copied / f"{name}.unfinished").is_dir()
        told.clear()
        run(copied.parent, *words, listener=tell)
        assert told == [(name, 2), (name, 3)], "its first step was saved"
        assert not list(copied.rglob("*.unfinished"))
        for stage in STAGES:
            one, other = (
                variables(home, f"turn_1/{stage}") for home in (copied, finished[0] / "digits")
            )
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)


def test_a_method_that_fails_in_one_turn_fails_in_those_after(copied):
    report = run(copied.parent, "methods=fragile,grow", "methods.fragile.steps=1")
    notes = [note for note in report["notes"] if "failed" in note]
    assert notes[0].startswith("turn 0: fragile failed: unlearned/fragile: step 0")
    assert notes[1].startswith("turn 1: fragile failed: the request before it failed: ")
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["accuracy_forget"]["failed"] == {"fragile": "the method failed"}
    assert None not in rows["accuracy_forget"]["each"]["grow"]
    assert None not in rows["accuracy_forget"]["each"]["retrained"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["request.each=true"], "request.in_turn: expected one of each and in_turn, got both"),
        (["request.classes="], "request.in_turn: expected two classes or more, got []"),
        (["request.classes=3"], "expected two classes or more, got [3]"),
        (["request.classes=3,12"], "request.classes: expected numbers from 0 to 9, got [12]"),
        (["request.share=0.1"], "request.in_turn: expected classes or nothing beside it, got"),
        (["request.classes=3,1,3"], "request.classes: expected each number once, got"),
        (["seeds=2"], "seeds: expected 1 beside request.in_turn, got 2"),
        (["request.classes=0,1,2,3,4,5,6,7,8,9"], "nothing would be retained"),
    ],
)
def test_contradictions_cost_no_work(tmp_path, capsys, words, message):
    assert main(["run", *TURNS, *words, "--runs", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
