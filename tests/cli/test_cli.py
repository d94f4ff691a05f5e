"""The command line as a user types it; runs are small, everything in them is real."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import checkpoint
from jaxunlearn.cli import main
from jaxunlearn.cli.progress import Bars
from jaxunlearn.experiment import trial
from jaxunlearn.experiment.plan import make_plan
from jaxunlearn.methods import METHODS, register_method
from jaxunlearn.report import load
from tests.runs import hurry

SMALL = [
    "train.epochs=6", "train.learning_rate=5e-3", "model.options.features=(24,16)", "retrained=2",
    "methods=neuron_path,finetune",
    "methods.neuron_path.per_sample=6", "methods.neuron_path.neurons=6", "methods.finetune.steps=5",
]  # fmt: skip


def run(folder, *words):
    return main(["run", *SMALL, *words, "--runs", str(folder)])


COLD = trial._cold_compilation


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """Hurries runs of single tests; that of ``finished`` is a user's, whole."""
    hurry(monkeypatch)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """One finished run, and the files that it wrote, by name."""
    folder = tmp_path_factory.mktemp("runs")
    assert run(folder) == 0
    return folder, {p.name: p.read_bytes() for p in (folder / "digits").iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def finished(first_run):
    """One finished run that tests only read."""
    return first_run[0]


def judged(home):
    """What is known of every model, by stage."""
    return json.loads((home / "judgement.json").read_text())


def error(capsys):
    found = capsys.readouterr().err
    assert found.startswith("error: ")
    assert "Traceback" not in found
    return found


class TestRun:
    def test_the_folder_holds_it_all(self, finished):
        home = finished / "digits"
        wanted = [
            "config.json",
            "sets.npz",
            "judgement.json",
            "metrics.jsonl",
            "examples.npz",
            "report.json",
            "report.md",
            "report.png",
        ]
        wanted += [
            "original",
            "unlearned/neuron_path",
            "unlearned/finetune",
            "retrained/0",
            "retrained/1",
        ]
        wanted += [
            "pictures/confusions.png",
            "pictures/neuron_path/path.png",
            "pictures/neuron_path/heatmaps.png",
        ]
        assert all((home / name).exists() for name in wanted)
        assert not list(home.rglob("*.unfinished"))
        assert json.loads((home / "config.json").read_text())["train"]["epochs"] == 6

    def test_every_checkpoint_says_where_it_comes_from(self, finished):
        for name in ("original", "unlearned/finetune", "retrained/1"):
            record = checkpoint.read_record(finished / "digits" / name)
            assert record["config"]["request"]["classes"] == [3]
            assert record["request"] == "forget class 3"
            assert record["seed"] == 0
            assert record["versions"]["jax"] == jax.__version__
            assert record["costs"]["seconds"] > 0
            assert len(record["history"]["loss"]) == record["costs"]["steps"]
            # what it is worth lies beside it: a new metric changes no checkpoint
            assert "metrics" not in record
            assert 0 <= judged(finished / "digits")[name]["values"]["accuracy_forget"] <= 1

    def test_the_report_judges_every_model(self, finished):
        report = json.loads((finished / "digits" / "report.json").read_text())
        assert report["columns"] == ["original", "neuron_path", "finetune", "retrained"]
        rows = {row["name"]: row for row in report["rows"]}
        assert rows["accuracy_forget"]["values"]["original"] > 0.5
        assert rows["accuracy_forget"]["values"]["retrained"] == 0
        assert rows["accuracy_retain"]["floor"] is not None
        assert set(rows["speedup"]["values"]) == {"neuron_path", "finetune"}
        shown = "linear_probe relearn_steps relearning loss_attack judged_unseen seconds memory"
        for name in shown.split():
            assert set(rows[name]["values"]) >= {"original", "neuron_path", "retrained"}, name
        (curve,) = report["curves"]
        assert {name: len(values) for name, values in curve["values"].items()} == dict.fromkeys(
            report["columns"], 100
        )
        assert report["environment"]["jax"] == jax.__version__
        assert (finished / "digits" / "report.png").read_bytes()[:4] == b"\x89PNG"

    def test_a_loaded_model_gives_bit_equal_outputs(self, finished):
        """The same training in this process against the checkpoint on disk."""
        from jaxunlearn.config.overrides import load_config

        config = load_config(None, SMALL)
        plan = make_plan(config, finished)
        loaded, _ = checkpoint.load(finished / "digits" / "retrained" / "0")
        base = jax.random.fold_in(jax.random.key(0), 1)
        fresh = ju.train(
            plan.model, plan.retraining.retain, jax.random.fold_in(base, 0), config=config.train
        ).variables
        x = np.asarray(plan.sets.test_retain.examples.x[:50], np.float32) / 255
        outputs = [np.asarray(jax.jit(plan.model.apply)(v, x)) for v in (loaded, fresh)]
        np.testing.assert_array_equal(*outputs)

    def test_the_sets_are_saved_and_disjoint(self, finished):
        sets = np.load(finished / "digits" / "sets.npz")
        train = np.concatenate([sets["forget"], sets["retain"]])
        assert sorted(train) == list(range(997))
        for kind in ("unseen", "holdout", "test_forget", "test_retain"):
            assert len(sets[kind])
        parts = [sets[k] for k in ("unseen", "holdout", "test_forget", "test_retain")]
        assert sorted(np.concatenate(parts)) == list(range(800)), "positions in the official split"
        labels = ju.data.load_dataset(ju.config.DataConfig()).test_y
        assert set(labels[sets["unseen"]]) == set(labels[sets["test_forget"]]) == {3}
        assert 3 not in labels[np.concatenate([sets["holdout"], sets["test_retain"]])]


class TestAgain:
    def test_a_second_run_reuses_every_stage(self, finished, capsys):
        before = {p: p.stat().st_mtime_ns for p in finished.rglob("record.json")}
        report = load(finished / "digits")
        assert run(finished) == 0
        assert capsys.readouterr().out.count("there already") == 5
        assert {p: p.stat().st_mtime_ns for p in finished.rglob("record.json")} == before
        assert load(finished / "digits") == report

    def test_a_second_run_writes_the_same_to_the_letter(self, first_run):
        """So that nothing is drawn again, nor the page made again."""
        folder, written = first_run
        assert run(folder) == 0
        after = {name: (folder / "digits" / name).read_bytes() for name in written}
        assert {"report.json", "report.png", "report.html", "metrics.jsonl"} <= set(after)
        assert [name for name in after if after[name] != written[name]] == []

    def test_a_model_judged_by_an_older_version_is_judged_again(self, finished, tmp_path, capsys):
        """Its training is not repeated, and its costs are as they were."""
        shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
        home, name = tmp_path / "digits", "retrained/0"
        before, entries = load(home), judged(home)
        record = (home / name / "record.json").read_bytes()
        for metric in ("relearning", "relearn_curve", "judged_unseen"):
            del entries[name]["values"][metric]
        del entries[name]["versions"]
        # of another version every metric is, and of a model that nobody knows
        entries["original"]["versions"] = dict.fromkeys(entries["original"]["versions"], "0-old")
        del entries["unlearned/finetune"]
        (home / "judgement.json").write_text(json.dumps(entries))
        capsys.readouterr()
        assert run(tmp_path) == 0
        assert capsys.readouterr().out.count("there already") == 5
        assert load(home) == before
        assert "relearning" in judged(home)[name]["values"]
        assert (home / name / "record.json").read_bytes() == record

    def test_other_settings_are_refused_and_named(self, finished, capsys):
        before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
        assert run(finished, "train.epochs=4") == 1
        message = error(capsys)
        assert "train.epochs: 6.0 there, 4.0 asked" in message
        assert "name=" in message
        assert "--force" in message
        assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before

    def test_show_and_list(self, finished, capsys):
        assert main(["show", "digits", "--runs", str(finished)]) == 0
        assert main(["show", str(finished / "digits")]) == 0
        assert capsys.readouterr().out.count("linear probe, forget") == 2
        assert main(["list", "--runs", str(finished)]) == 0
        shown = capsys.readouterr().out
        for word in (
            "neuron_path",
            "mnist_neuron_path",
            "resnet18",
            "digits",
            "fsdp",
            "finished runs",
        ):
            assert word in shown
        assert main(["show", "nothing", "--runs", str(finished)]) == 1
        assert "one of ['digits']" in error(capsys)

    def test_pages_for_a_browser(self, finished, capsys, monkeypatch):
        opened = []
        monkeypatch.setattr("webbrowser.open", lambda place: opened.append(place) or True)
        page = finished / "digits" / "report.html"
        made = page.read_text()
        for part in ("Can one tell what was trained on?", "Who is taken for whom?", "popover id=",
                     "Erasure record", "neuron_path: relevance of pixels"):  # fmt: skip
            assert part in made, part
        assert main(["report", "digits", "--open", "--runs", str(finished)]) == 0
        assert capsys.readouterr().out.split() == [str(page)]
        assert page.read_text() == made
        assert opened == [page.resolve().as_uri()]
        assert main(["compare", "digits", str(finished / "digits"), "--runs", str(finished)]) == 0
        both = finished / "compare_digits_digits.html"
        assert capsys.readouterr().out.split() == [str(both)]
        assert "Settings that differ" in both.read_text()
        both.unlink()
        assert main(["report", "nothing", "--runs", str(finished)]) == 1
        assert "one of ['digits']" in error(capsys)


SEEDS = [
    "retrained=1", "methods=neuron_path", "seed=3", "seeds=2", "published.source=a paper",
    "published.values.neuron_path={'accuracy_forget': .016, 'attack_gap': .02}",
]  # fmt: skip


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A finished run of two seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        assert run(folder, *SEEDS) == 0
    return folder / "digits"


class TestSeeds:
    def test_each_seed_is_a_run_of_its_own(self, many, tmp_path):
        """What a run with that seed alone makes lies in its folder."""
        assert {p.name for p in many.iterdir() if p.is_dir()} == {"seed_3", "seed_4"}
        alone = ("retrained=1", "methods=neuron_path", "seed=4", "name=alone")
        assert run(tmp_path, *alone) == 0
        for name in ("original", "retrained/0", "unlearned/neuron_path"):
            (one, first), (other, second) = (
                checkpoint.load(home / name) for home in (many / "seed_4", tmp_path / "alone")
            )
            jax.tree.map(np.testing.assert_array_equal, one, other)
            assert first["inputs"] == second["inputs"]
            assert first["seed"] == 4

    def test_the_report_is_on_all_of_them(self, many, capsys):
        report = load(many)
        assert report["trials"]["numbers"] == [3, 4]
        rows = {row["name"]: row for row in report["rows"]}
        row = rows["accuracy_test_retain"]
        assert row["each"]["original"][0] != row["each"]["original"][1]
        assert row["values"]["original"] == pytest.approx(np.mean(row["each"]["original"]))
        assert set(row["intervals"]) == {"original", "neuron_path", "retrained"}
        assert row["floor"] is not None, "one retrained model a seed"
        lines = [json.loads(x) for x in (many / "metrics.jsonl").read_text().splitlines()]
        assert [(x["seed"], x["model"]) for x in lines] == [
            (seed, name) for seed in (3, 4) for name in ("original", "neuron_path", "retrained/0")
        ]
        assert main(["show", str(many)]) == 0
        shown = capsys.readouterr().out
        for part in ("2 seeds", "paired by seed", "published numbers (a paper)", "0.016"):
            assert part in shown, part

    def test_again_and_more(self, many, capsys):
        folder = many.parent
        assert run(folder, *SEEDS, "seeds=3") == 0
        out = capsys.readouterr().out
        assert out.count("there already") == 6
        assert "seed_5/original" in out
        assert load(many)["trials"]["numbers"] == [3, 4, 5]

    def test_other_settings_of_any_seed_are_refused_before_work(self, tmp_path, capsys):
        other = ("seeds=1", "seed=1", "name=seed_1", "retrained=1", "train.epochs=1")
        assert run(tmp_path / "digits", *other, "methods=neuron_path") == 0
        assert run(tmp_path, "seeds=2", "retrained=1", "methods=neuron_path") == 1
        assert "seed_1/original: was made with other settings" in error(capsys)
        assert not (tmp_path / "digits" / "seed_0").exists()


class TestDamage:
    @pytest.fixture
    def damaged(self, finished, tmp_path):
        folder = tmp_path / "runs"
        shutil.copytree(finished, folder)
        file = max((folder / "digits" / "original" / "variables").rglob("*"),
                   key=lambda p: p.stat().st_size if p.is_file() else 0)  # fmt: skip
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        return folder, file

    def test_a_flipped_bit_is_an_error_and_force_makes_it_anew(self, damaged, capsys):
        folder, file = damaged
        capsys.readouterr()
        assert run(folder) == 1
        message = error(capsys)
        assert file.name in message
        assert "--force makes this model again" in message
        assert run(folder, "--force") == 0
        out = capsys.readouterr().out
        assert out.count("there already") == 4, "only the damaged stage was made again"

    def test_force_replaces_what_was_made_with_other_settings(self, damaged, capsys):
        folder, _ = damaged
        assert run(folder, "train.epochs=2", "--force") == 0
        record = checkpoint.read_record(folder / "digits" / "original")
        assert record["config"]["train"]["epochs"] == 2


def test_a_users_folder_in_the_way_is_found_at_once(tmp_path, capsys):
    mine = tmp_path / "digits" / "unlearned" / "finetune"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("precious")
    assert run(tmp_path, "--force") == 1
    assert "left as it is" in error(capsys)
    assert not (tmp_path / "digits" / "original").exists(), "before any training"
    assert (mine / "thesis.txt").read_text() == "precious"


def test_words_may_follow_options(tmp_path, capsys):
    words = ["run", "--runs", str(tmp_path), "nothing", "--force", "seed=1"]
    assert main(words) == 1
    assert "got 'nothing'" in error(capsys)
    with pytest.raises(SystemExit):
        main([*words, "--forse"])


def test_variants_of_a_method_see_the_same_samples(tmp_path):
    options = ("method=neuron_path", "per_sample=6", "neurons=6", "samples=15")
    twin = [f"methods.{label}.{option}" for label in ("a", "b") for option in options]
    assert run(tmp_path, "methods=a,b", *twin, "retrained=1") == 0
    home = tmp_path / "digits" / "unlearned"
    one, other = (checkpoint.load(home / label)[0] for label in ("a", "b"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_what_is_timed_is_compiled_and_not_found():
    hits = []

    def listen(event, **details):
        if event.endswith("/cache_hits"):
            hits.append(event)

    def compile_again():
        before = len(hits)
        jax.jit(lambda x: x * 3.21).lower(np.float32(1)).compile()
        return len(hits) > before

    jax.monitoring.register_event_listener(listen)
    compile_again()
    assert compile_again(), "the cache works"
    with COLD():
        assert not compile_again()
    assert compile_again()


def test_a_killed_run_continues(tmp_path):
    """kill -9 in the middle of training; the second run picks up the saved state."""
    words = ["train.epochs=200", "retrained=1", "methods=finetune"]
    code = (
        "import sys, jaxunlearn.experiment.stages as stages\n"
        "stages.SAVE_EVERY, stages.SHARE = 0.1, 1.0\n"
        "from jaxunlearn.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "run", *SMALL, *words, "--runs", str(tmp_path)]
    # a killed process may leave half a compiled program for others to read: it leaves none
    own = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "3600"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=own)
    saved = tmp_path / "digits" / "original.unfinished" / "record.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        # well into the training, so that the rest is less than the whole
        try:
            if json.loads(saved.read_text())["step"] > 100:
                break
        except (OSError, json.JSONDecodeError):
            pass
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "digits" / "original").exists()
    step = json.loads(saved.read_text())["step"]
    assert run(tmp_path, *words) == 0
    record = checkpoint.read_record(tmp_path / "digits" / "original")
    assert 100 < step < record["costs"]["steps"] == len(record["history"]["loss"])
    assert not saved.exists()
    whole = tmp_path / "whole"
    assert run(whole, *words) == 0
    one, _ = checkpoint.load(tmp_path / "digits" / "original")
    other, _ = checkpoint.load(whole / "digits" / "original")
    jax.tree.map(np.testing.assert_array_equal, one, other)


DUMMY = '''
"""Shrinks all parameters: the whole file that a new method takes."""
import jax
import jax.numpy as jnp
from jaxunlearn.core.types import Info, Needs, Unlearner

def shrink(model, *, factor=0.5):
    def step(state, batches, key, count):
        state = jax.tree.map(lambda leaf: leaf * factor, state)
        return state, Info({"weight": jnp.sum(batches.forget.weight)}, jnp.bool_(True))
    return Unlearner(lambda v, sets, key: v, step, lambda state: state, Needs(forget=True))
'''


def test_a_new_method_takes_one_file_and_one_row(tmp_path, monkeypatch, capsys):
    (tmp_path / "shrinking.py").write_text(DUMMY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(METHODS, "_rows", dict(METHODS._rows))
    register_method("shrink", "shrinking:shrink", summary="halves every weight")
    words = ["methods=shrink", "methods.shrink.factor=0.25", "methods.shrink.steps=2"]
    assert run(tmp_path / "runs", *words) == 0
    assert "shrink" in capsys.readouterr().out
    home = tmp_path / "runs" / "digits"
    made, record = checkpoint.load(home / "unlearned" / "shrink")
    original, _ = checkpoint.load(home / "original")
    np.testing.assert_allclose(
        made["params"]["fc1"]["kernel"], original["params"]["fc1"]["kernel"] / 16, rtol=1e-6
    )
    assert record["history"]["weight"] == [128.0, 128.0]
    assert main(["list"]) == 0
    assert "halves every weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.epoch=3"], "did you mean 'epochs'"),
        (["oracles=3"], "it is now 'retrained'"),
        (["nothing.py"], "config: expected a file or one of"),
        (["request.classes=12"], "request.classes: expected numbers from 0 to 9, got [12]"),
        (["request.classes="], "exactly one of classes, indices, share, words"),
        (["request.classes=0,1,2,3,4,5,6,7,8,9"], "nothing would be retained"),
        (["data.name=mnits"], "'mnist'"),
        (["data.name=mnist", "data.dir=/nowhere"], "/nowhere"),
        (["data.unseen=5000"], "fewer than the 800 test images, got 5000"),
        (["model.name=vgg"], "got 'vgg'"),
        (["model.options.depth=3"], "got 'depth'"),
        (["methods=magic"], "methods: expected one of"),
        (["methods.finetune.rate=3"], "got ['rate']"),
        (["methods.finetune.steps=0"], "methods.finetune.steps: expected a positive number, got 0"),
        (["methods.neuron_path.steps=3"], "expected none for a single pass, got 3"),
        (["methods.neuron_path.neurons=99"], "at most the 16 inputs of params/head/kernel"),
        (["methods.neuron_path.neurons=many"], "neuron_path.neurons: expected int"),
        (["request.classes=", "request.share=0.1"], "methods.neuron_path: expected a method that "
         "suits the request, got neuron_path: it forgets classes, and the request is for items"),
        (["data.unseen=0"], "needs unseen examples, got none"),
        (["data.seed=-1"], "data.seed: expected a number >= 0, got -1"),
        (["sharding_rules=5"], "sharding_rules: expected tuple"),
        (["methods.finetune=5"], "methods.finetune: expected options, such as methods.finetune."),
        (["methods.finetune.stop={'bogus': 1}"], "finetune: stop: expected metrics among ['accu"),
        (["methods.finetune.stop=[1]"], "methods.finetune.stop: expected Mapping[str, float], got"),
        (["model.name=bogus"], "model.name: expected one of mlp, cnn"),
        (["request.share=0.1"], "share=0.1; request.classes= clears the classes"),
        (["seed=4294967295", "seeds=2"], "seeds: expected seeds below 4,294,967,296, got seed 429"),
        (["model.options.features=(2000000000,2000000000)"], "model.options: expected parameters"),
        (["methods=a.unfinished"], "without a dot before them or .unfinished behind"),
        (["name=\x1b[31mred"], "name: expected the name of one folder, got '\\x1b[31mred'"),
        (["methods.finetune.learning_rate=abc"], "learning_rate: expected float, got 'abc'"),
        (["name=.."], "name: expected the name of one folder, got '..'"),
        (["methods.original.method=finetune"], "other than original and retrained"),
        (["retrained=0"], "retrained: expected at least 1"),
        (["seeds=0"], "seeds: expected at least 1, got 0"),
        (["seeds=2.5"], "seeds: expected int, got '2.5'"),
        (["published.values.path={'At': 1}"], "metrics among accuracy_forget, accuracy_test"),
        (["published.values.path=3"], "published.values: expected Mapping"),
        (["mesh=ring"], "mesh: expected one of single, data, fsdp"),
        (["name=a/b"], "name: expected the name of one folder, got 'a/b'"),
        (["train.optimizer=lion"], "train.optimizer: expected one of"),
        (["train.epochs=0"], "train.epochs: expected a positive number, got 0"),
        (["train.epochs=1e400"], "train.epochs: expected a positive number, got inf"),
        (["methods="], "methods: expected at least one, got none"),
        (["methods.finetune.batch_size=0"], "finetune.batch_size: expected a positive number"),
        (["methods.neuron_path.epsilon=abc"], "neuron_path.epsilon: expected float, got 'abc'"),
        (["methods.neuron_path.samples=True"], "neuron_path.samples: expected int, got True"),
        (["model.options.features=64"], "expected widths such as (64, 32) as features, got 64"),
    ],
)  # fmt: skip
def test_mistakes_cost_no_work(tmp_path, capsys, words, message):
    assert run(tmp_path, *words) == 1
    assert message in error(capsys)
    assert not list(tmp_path.rglob("*.npz")), "nothing was written"


def test_a_folder_that_cannot_be_written_and_a_broken_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file") == 1
    assert "file" in error(capsys)
    (tmp_path / "broken.py").write_text("def get_config(:")
    assert main(["run", str(tmp_path / "broken.py")]) == 1
    assert "broken.py:1: SyntaxError" in error(capsys)
    (tmp_path / "report.json").write_text("[]")
    assert main(["show", str(tmp_path)]) == 1
    assert "expected a report with title, columns and rows" in error(capsys)


def test_the_traceback_is_shown_when_asked(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def get_config():\n    return Config(epochs=3)\n")
    words = ["run", str(tmp_path / "mine.py"), "--runs", str(tmp_path)]
    assert main(words) == 1
    assert error(capsys).count("\n") == 1
    assert main([*words, "--debug"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.splitlines()[-1].startswith(f"error: {tmp_path / 'mine.py'}:2: NameError")


def test_what_nobody_foresaw_is_one_line_too(tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED:\n\x1b[2Jno memory")

    monkeypatch.setattr("jaxunlearn.experiment.run", broken)
    assert run(tmp_path) == 1
    message = error(capsys)
    assert message.count("\n") == 1
    assert "RuntimeError: RESOURCE_EXHAUSTED: \\x1b[2Jno memory (--debug shows where)" in message


def test_version_and_sections_of_the_list(capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"jaxunlearn {ju.__version__}\n"
    for section, word, other in (
        ("metrics", "accuracy_forget", "neuron_path"), ("models", "resnet18", "accuracy_forget"),
        ("runs", "finished runs:", "resnet18"),
    ):  # fmt: skip
        assert main(["list", section, "--runs", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        assert word in shown
        assert other not in shown
    assert main(["list", "metric", "--runs", str(tmp_path)]) == 1
    assert "expected one of configurations, methods" in error(capsys)


def test_texts_of_files_are_shown_and_not_obeyed(finished, tmp_path, capsys):
    shutil.copytree(finished / "digits", tmp_path / "a\x1b[31m")
    file = tmp_path / "a\x1b[31m" / "report.json"
    made = json.loads(file.read_text())
    made["title"] += "\x1b]0;owned\x07"
    made["notes"].append("see\x9b2J")
    made["rows"][0]["metric"] = "\x1b[1A\u202eaccuracy"
    file.write_text(json.dumps(made))
    for words in (
        ["show", str(file.parent)], ["list", "runs", "--runs", str(tmp_path)],
        ["verify", str(file.parent)], ["show", "\x1b[31m", "--runs", str(tmp_path)],
    ):  # fmt: skip
        main(words)
        shown = "".join(capsys.readouterr())
        assert not set(shown) & set("\x1b\x07\x9b\u202e")
    assert "\x1b" not in ju.report.to_markdown(made)


@pytest.mark.parametrize(("times", "grace"), [(1, 0.1), (2, 60)])
def test_ctrl_c_ends_a_run_that_swallows_it(times, grace):
    code = (
        "import os, signal, sys, time, types\n"
        "from jaxunlearn.cli import interrupts\n"
        "interrupts.GRACE, times = float(sys.argv[1]), int(sys.argv[2])\n"
        "wish = types.SimpleNamespace(asked=False, looked=0, saving=False)\n"
        "with interrupts.ended_by_interrupts(['run', 'name=my run'], wish):\n"
        "    while True:\n"
        "        try:\n"
        "            for _ in range(times):\n"
        "                times -= 1\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "            time.sleep(60)\n"
        "        except KeyboardInterrupt:\n"
        "            pass\n"
    )
    command = [sys.executable, "-c", code, str(grace), str(times)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert out.returncode == 130
    assert out.stderr == "interrupted; to go on: jaxunlearn run 'name=my run'\n"


@pytest.mark.parametrize("chunk", [1, 3])
def test_ctrl_c_saves_what_is_being_trained(tmp_path, capsys, monkeypatch, chunk):
    """In the first chunk there is nothing yet that could be saved."""
    words = ["train.epochs=40", "retrained=1", "methods=finetune"]
    told, show = [], Bars.__call__

    def press(self, name, step):
        show(self, name, step)
        if step is not None and step.step:
            told.append(name)
            if len(told) == chunk:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Bars, "__call__", press)
    monkeypatch.setattr("os._exit", sys.exit)
    with pytest.raises(SystemExit) as end:
        run(tmp_path, *words)
    assert end.value.code == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"--runs {tmp_path}")
    kept = tmp_path / "digits" / "original.unfinished" / "record.json"
    assert kept.exists() == (chunk == 3)
    if chunk == 3:
        step = json.loads(kept.read_text())["step"]
        assert last.startswith(f"interrupted; original is saved at step {step} of 312; to go on: ")
        assert run(tmp_path, *words) == 0
        assert told.count("original") == 10, "ten chunks, none twice"


def test_a_diverging_training_names_stage_and_step(tmp_path, capsys):
    assert run(tmp_path, "train.optimizer=sgd", "train.learning_rate=1e25") == 1
    assert "original: step" in error(capsys)
    assert not (tmp_path / "digits" / "original").exists()


def test_a_diverging_method_is_shown_failing(tmp_path, capsys):
    assert (
        run(tmp_path, "methods.finetune.learning_rate=1e25", "methods.finetune.optimizer=sgd") == 1
    )
    assert "error: finetune failed: unlearned/finetune: step" in capsys.readouterr().err
    report = json.loads((tmp_path / "digits" / "report.json").read_text())
    assert any("finetune failed: unlearned/finetune: step" in n for n in report["notes"])
    rows = {row["name"]: row for row in report["rows"]}
    assert "finetune" not in rows["accuracy_forget"]["values"]
    assert "neuron_path" in rows["accuracy_forget"]["values"]
    assert rows["accuracy_forget"]["failed"] == {"finetune": "the method failed"}


def test_items_and_random_shares_run_too(tmp_path):
    words = ["methods=random_label", "methods.random_label.steps=3", "request.classes="]
    assert run(tmp_path, *words, "request.share=0.05") == 0
    report = json.loads((tmp_path / "digits" / "report.json").read_text())
    names = {row["name"] for row in report["rows"]}
    assert "loss_attack" in names
    assert "accuracy_test_forget" not in names


@pytest.mark.filterwarnings("ignore:batch_size. batches of 36")  # all unseen examples
@pytest.mark.parametrize(
    "words",
    [["mesh=data"], ["mesh=data=2,model=4", "sharding_rules=(('fc1/kernel',('model',)),)"]],
    ids=["data", "rules"],
)
def test_a_sharded_run_tells_the_same(tmp_path, finished, words):
    assert run(tmp_path, *words) == 0
    values = []
    for folder in (finished, tmp_path):
        report = json.loads((folder / "digits" / "report.json").read_text())
        rows = {row["name"]: row["values"] for row in report["rows"]}
        values.append([rows[n] for n in ("accuracy_forget", "accuracy_test_retain")])
    for one, many in zip(*values, strict=True):
        assert one == pytest.approx(many, abs=0.02)
