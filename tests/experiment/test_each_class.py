"""A run over each class by itself: one original, and one program for the models of all."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxunlearn import checkpoint
from jaxunlearn.cli import main
from jaxunlearn.config.overrides import load_config
from jaxunlearn.experiment import run as run_config
from jaxunlearn.experiment import stages, trial
from jaxunlearn.experiment.plan import make_plan, trials
from jaxunlearn.methods import METHODS, register_method
from jaxunlearn.metrics import measure
from jaxunlearn.metrics.classification import ClassifierEvidence
from jaxunlearn.report import load, save_png
from tests.runs import hurry

SMALL = [
    "train.epochs=6", "train.learning_rate=5e-3", "model.options.features=(24,16)", "retrained=1",
    "methods=neuron_path,random_label", "methods.neuron_path.per_sample=6",
    "methods.neuron_path.neurons=6", "methods.random_label.steps=40",
]  # fmt: skip
EACH = [*SMALL, "request.each=true", "request.classes=3,1"]
STAGES = ["retrained/0", "unlearned/neuron_path", "unlearned/random_label"]
JUDGED = ("forget", "retain", "test_forget", "test_retain")


def run(folder, *words):
    return main(["run", *words, "--runs", str(folder)])


def accuracies(evidence, original, retrained, *, names):
    """In place of all measures: what a report on classes needs at the least."""
    own = [name for name in names if name in [f"accuracy_{part}" for part in JUDGED]]
    return measure(evidence, original, retrained, names=own)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Models are made and kept as ever; judged by accuracies, timed once, not cold, not drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "measure", accuracies)
        hurry(patch)
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory, quick):
    """A finished run over two classes that tests only read."""
    folder = tmp_path_factory.mktemp("each")
    assert run(folder, *EACH) == 0
    return folder


@pytest.fixture
def without(swept, tmp_path):
    """A copy of the finished run without the models of ``random_label``."""
    folder = tmp_path / "runs"
    shutil.copytree(swept, folder)
    for label in (1, 3):
        shutil.rmtree(folder / "digits" / f"class_{label}" / "unlearned" / "random_label")
    return folder


def records(home):
    """When each model was made, by its record; an erasure record is of a whole table."""
    found = [p for p in home.rglob("record.json") if "erasure" not in p.parts]
    return {p: p.stat().st_mtime_ns for p in found}


def judged(home):
    """Values of the models in a folder, by stage."""
    found = json.loads((home / "judgement.json").read_text())
    return {name: entry["values"] for name, entry in found.items()}


def variables(home, *names):
    return checkpoint.load(home.joinpath(*names))[0]


def alike(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


class TestRun:
    def test_the_folder_holds_one_original_and_a_folder_for_each_class(self, swept):
        home = swept / "digits"
        folders = {p.parent.relative_to(home).as_posix() for p in records(home)}
        assert folders == {"original"} | {f"class_{k}/{name}" for k in (1, 3) for name in STAGES}
        assert not list(home.rglob("*.unfinished"))
        assert json.loads((home / "config.json").read_text())["request"]["classes"] == [3, 1]
        sets = np.load(home / "sets.npz")
        for label in (1, 3):
            train = np.concatenate([sets[f"class_{label}/{name}"] for name in ("forget", "retain")])
            assert sorted(train) == list(range(997))

    def test_the_original_is_trained_for_all_and_judged_for_each(self, swept):
        home = swept / "digits"
        record = checkpoint.read_record(home / "original")
        assert "request" not in record["inputs"]
        assert not (home / "judgement.json").exists()
        rows = {row["name"]: row for row in load(home)["rows"]}
        for place, label in enumerate((1, 3)):
            one = home / f"class_{label}"
            assert not (one / "original").exists(), "the model lies in one place"
            own = checkpoint.read_record(one / "unlearned" / "random_label")
            assert own["request"] == f"forget class {label}"
            assert own["inputs"] == record["inputs"] | {
                "request": own["inputs"]["request"],
                "own": own["inputs"]["own"],
            }
            value = judged(one)["original"]["accuracy_forget"]
            assert value > 0.5
            assert rows["accuracy_forget"]["each"]["original"][place] == value
            assert rows["seconds"]["each"]["original"][place] == record["costs"]["seconds"]

    def test_a_class_alone_gives_the_same(self, swept, tmp_path):
        """The keys are those of a run of that class by itself, so are the models."""
        alone = [*SMALL, "request.classes=3", "methods.random_label.steps=40"]
        assert run(tmp_path, *alone) == 0
        home, single = swept / "digits" / "class_3", tmp_path / "digits"
        for name in STAGES:
            alike(variables(home, name), variables(single, name))
            one, other = (judged(p)[name] for p in (home, single))
            for part in JUDGED:
                assert one[f"accuracy_{part}"] == other[f"accuracy_{part}"]
        assert judged(home)["original"] == judged(single)["original"]
        alike(variables(swept / "digits", "original"), variables(single, "original"))
        name = "unlearned/neuron_path"
        one, other = (checkpoint.read_record(p / name)["inputs"] for p in (home, single))
        assert one == other

    def test_sets_padded_for_one_program_are_judged_as_they_are(self, swept):
        """Every measure, on the sets of a class among others and on its own."""
        plan = make_plan(load_config(None, EACH), swept)
        among = trials(plan)[1]
        alone = make_plan(load_config(None, SMALL), swept)
        assert among.requests == alone.requests
        assert among.sets.retain.indices.shape != alone.sets.retain.indices.shape
        model = checkpoint.load(swept / "digits" / "original")[0]
        one, other = (
            measure(ClassifierEvidence(among.model, model, sets, among.key)).values
            for sets in (among.sets, alone.sets)
        )
        assert one.keys() == other.keys() >= {"linear_probe", "loss_attack", "judged_unseen"}
        for name in one:
            assert one[name] == pytest.approx(other[name], abs=1e-4), name

    def test_the_report_is_on_all_and_on_each(self, swept, tmp_path, capsys):
        home = swept / "digits"
        report = load(home)
        save_png(report, tmp_path / "drawn.png")
        assert report["title"] == "digits: forget each class by itself, 2 classes"
        assert report["trials"]["numbers"] == [1, 3]
        rows = {row["name"]: row for row in report["rows"]}
        for name in ("accuracy_forget", "accuracy_test_forget", "accuracy_retain"):
            row = rows[name]
            for model in report["columns"]:
                assert row["values"][model] == pytest.approx(np.mean(row["each"][model]))
            assert set(row["intervals"]) == set(report["columns"])
            assert row["floor"] is None, "one retrained model of each class"
        assert (
            rows["accuracy_retain"]["each"]["original"][0]
            != (rows["accuracy_retain"]["each"]["original"][1])
        )
        lines = [json.loads(x) for x in (home / "metrics.jsonl").read_text().splitlines()]
        assert [x["class"] for x in lines] == [1] * 4 + [3] * 4
        assert main(["show", str(home)]) == 0
        shown = capsys.readouterr().out
        for part in ("2 classes", "paired by class", "Class by class", "divided by their number"):
            assert part in shown.replace("\n", " "), part
        assert "| 1 | accuracy, forget (train) |" in (home / "report.md").read_text()

    def test_time_is_a_share_and_set_against_the_one_retrained_alone(self, swept):
        home = swept / "digits"
        alone = checkpoint.read_record(home / "class_1" / "retrained" / "0")
        assert alone["sharing"] == 1
        rows = {row["name"]: row for row in load(home)["rows"]}
        assert rows["seconds"]["each"]["retrained"] == [alone["costs"]["seconds"]] * 2
        for label in (1, 3):
            own = checkpoint.read_record(home / f"class_{label}" / "unlearned" / "random_label")
            assert own["sharing"] == 2
            assert len(own["history"]["loss"]) == 40
        seconds = [rows["seconds"]["values"][name] for name in ("retrained", "random_label")]
        assert rows["speedup"]["values"]["random_label"] == pytest.approx(seconds[0] / seconds[1])


class TestAgain:
    def test_a_second_run_makes_nothing(self, swept, capsys):
        before, report = records(swept), load(swept / "digits")
        assert run(swept, *EACH) == 0
        out = capsys.readouterr().out
        assert out.count("there already") == 7
        assert "class_3/retrained/0" in out
        assert records(swept) == before
        assert load(swept / "digits") == report

    def test_what_is_missing_and_one_more_class(self, swept, tmp_path):
        shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
        home = tmp_path / "digits"
        shutil.rmtree(home / "class_3" / "unlearned" / "random_label")
        before = records(home)
        assert run(tmp_path, *EACH, "request.classes=1,3,5") == 0
        after = records(home)
        made = {path.parent.relative_to(home).as_posix() for path in after.keys() - before.keys()}
        assert made == {f"class_5/{name}" for name in STAGES} | {"class_3/unlearned/random_label"}
        assert all(after[path] == when for path, when in before.items())
        name = "class_3/unlearned/random_label"
        alike(variables(home, name), variables(swept / "digits", name))
        assert checkpoint.read_record(home / name)["sharing"] == 2, "with class 5"
        report = load(home)
        assert report["trials"]["numbers"] == [1, 3, 5]
        alone = checkpoint.read_record(home / "class_1/retrained/0")["costs"]["seconds"]
        rows = {row["name"]: row for row in report["rows"]}
        assert rows["seconds"]["each"]["retrained"] == [alone] * 3

    def test_other_settings_are_refused(self, swept, capsys):
        before = records(swept)
        assert run(swept, *EACH, "methods.random_label.steps=41") == 1
        message = capsys.readouterr().err
        assert "class_1/unlearned/random_label: was made with other settings" in message
        assert run(swept, *EACH, "train.epochs=5") == 1
        assert "digits/original: was made with other settings" in capsys.readouterr().err
        assert run(swept, *SMALL) == 1, "a single run in the folder of many"
        assert records(swept) == before

    def test_a_killed_program_for_all_goes_on_where_it_was(self, swept, without, monkeypatch):
        monkeypatch.setattr(stages, "SAVE_EVERY", 0.0)
        told = []

        def kill(name, progress):
            if progress is not None and progress.state is not None:
                told.append((name, progress.step))
                if len(told) == 2:
                    raise KeyboardInterrupt

        config = load_config(None, EACH)
        with pytest.raises(KeyboardInterrupt):
            run_config(config, without, listener=kill)
        assert told == [("unlearned/random_label", 32), ("unlearned/random_label", 40)]
        assert (without / "digits" / "unlearned_random_label.unfinished").is_dir()
        run_config(config, without, listener=kill)
        assert told[2:] == [("unlearned/random_label", 40)], "the first 32 were not done again"
        assert not list(without.rglob("*.unfinished"))
        for label in (1, 3):
            name = f"digits/class_{label}/unlearned/random_label"
            alike(variables(without, name), variables(swept, name))


FRAGILE = '''
import jax
import jax.numpy as jnp
from jaxunlearn.core.types import Info, Needs, Unlearner

def fragile(model):
    """Fails where class 3 is to be forgotten."""
    def step(state, batches, key, count):
        state = jax.tree.map(lambda leaf: leaf * 1.00001, state)
        return state, Info({"loss": jnp.float32(0)}, jnp.all(batches.forget.y != 3))
    return Unlearner(lambda v, sets, key: v, step, lambda state: state, Needs(forget=True))
'''


def test_a_method_that_fails_for_one_class_is_shown_failing_there(without, tmp_path, monkeypatch):
    (tmp_path / "breaking.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(METHODS, "_rows", dict(METHODS._rows))
    register_method("fragile", "breaking:fragile", summary="fails for class 3")
    words = ["methods=fragile,neuron_path", "methods.fragile.steps=2"]
    assert run(without, *EACH, *words) == 1
    report = load(without / "digits")
    (note,) = (note for note in report["notes"] if "failed" in note)
    assert note.startswith("class 3: fragile failed: unlearned/fragile: step 0")
    row = next(row for row in report["rows"] if row["name"] == "accuracy_forget")
    assert row["each"]["fragile"] == [row["each"]["original"][0], None]
    assert None not in row["each"]["neuron_path"]


def test_a_sharded_run_makes_them_one_by_one(without, swept):
    assert run(without, *EACH, "mesh=data", "methods=random_label") == 0
    name = "digits/class_3/unlearned/random_label"
    assert checkpoint.read_record(without / name)["sharing"] == 1
    alike(variables(without, name), variables(swept, name))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["request.share=0.1"], "request.each: expected classes or nothing beside it, got"),
        (["request.indices=3,4"], "got indices=(3, 4), share=0.0"),
        (["request.classes=7"], "expected two classes or more, got [7]; request.classes= takes"),
        (["request.classes=3,12"], "request.classes: expected numbers from 0 to 9, got [12]"),
        (["request.classes=3,3"], "request.classes: expected each number once, got [3, 3]"),
        (["seeds=2"], "seeds: expected 1 beside request.each, got 2"),
        (["data.unseen=4", "request.classes="], "expected unseen examples of every class"),
        (["at_a_time=0"], "at_a_time: expected at least 1, got 0"),
        (["methods.neuron_path.neurons=99"], "methods.neuron_path: "),
    ],
)
def test_contradictions_cost_no_work(tmp_path, capsys, words, message):
    assert run(tmp_path, *EACH, *words) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
