"""The folder of a run: one process at a time, mended after kills, known by its models."""

import itertools
import json
import resource
import shutil
import threading

import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import checkpoint, experiment
from jaxunlearn.cli import main
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.errors import CheckpointError, ConfigError
from jaxunlearn.core.files import hold
from jaxunlearn.engine.driver import Progress
from jaxunlearn.experiment import album, folder, stages
from jaxunlearn.experiment.folder import LOCK, drop_unfinished, hold_run, mend_run
from jaxunlearn.experiment.stages import Keeper, Stage, check_stage, finish_stage, state_of
from tests.runs import hurry

WORDS = [
    "train.epochs=2", "train.learning_rate=5e-3", "model.options.features=(8,)", "retrained=1",
    "methods=finetune", "methods.finetune.steps=2",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        yield


def run(folder, *words):
    return main(["run", *WORDS, *words, "--runs", str(folder)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick):
    folder = tmp_path_factory.mktemp("runs")
    assert run(folder) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "digits"


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestHeld:
    def test_another_process_is_told_in_one_line(self, copy, capsys):
        before = content(copy)
        with hold(copy / LOCK, "other"):
            assert run(copy.parent) == 1
        message = capsys.readouterr().err
        assert message.startswith(f"error: {copy}: in use by process ")
        assert " on " in message
        assert " since " in message
        assert message.count("\n") == 1
        assert content(copy) == before
        with hold(copy / LOCK, "other"), pytest.raises(CheckpointError, match="in use by process"):
            ju.run(load_config(None, WORDS), copy.parent)

    def test_what_a_killed_process_left_is_taken_over(self, copy):
        (copy / LOCK).write_text('{"host": "h", "pid": 1, "start": "once"}')
        assert run(copy.parent) == 0
        assert not (copy / LOCK).exists()

    @pytest.mark.parametrize("there", [False, True])
    def test_of_two_that_checked_the_first_to_finish_counts(self, tmp_path, there):
        stage = Stage(tmp_path / "original", {"seed": 1})
        if there:
            finish_stage(stage._replace(inputs={"seed": 0}), {"w": jnp.zeros(1)}, {"by": "none"})
        assert not check_stage(stage, force=True)
        before = state_of(stage)
        finish_stage(stage, {"w": jnp.ones(1)}, {"by": "one"}, replaces=before)
        with pytest.raises(CheckpointError, match="made by another process meanwhile"):
            finish_stage(stage, {"w": jnp.ones(2)}, {"by": "two"}, replaces=before)
        assert checkpoint.load(stage.path)[1]["by"] == "one"
        with pytest.raises(CheckpointError, match="left as it is"):
            finish_stage(stage, {"w": jnp.ones(2)}, {"by": "three"})
        assert checkpoint.load(stage.path)[1]["by"] == "one"


class TestLeftovers:
    def test_they_are_removed_at_the_next_start_and_nothing_else(self, copy):
        original, keeper = copy / "original", Keeper(Stage(copy / "unlearned" / "other", {}))
        tree = {"features": jnp.ones(3)}
        checkpoint.save(keeper.path, tree, {"inputs": {}, "step": 3})
        shutil.copytree(keeper.path, copy / "retrained_others.unfinished")
        shutil.copytree(keeper.path, copy / "gone.unfinished")
        shutil.copytree(original, copy / "retrained" / ".0.tmp")
        (copy / "retrained" / ".0.tmp" / ".writing").touch()
        (copy / ".original.old").mkdir()
        (copy / ".original.old" / "record.json").touch()
        (copy / ".report.json.123.tmp").touch()
        ours = [
            keeper.path, copy / "gone.unfinished", copy / "retrained" / ".0.tmp",
            copy / ".original.old", copy / ".report.json.123.tmp",
        ]  # fmt: skip
        mine = [copy / name for name in (
            ".thesis.json.1.tmp", ".notes.tmp/a", ".notes.old/a", "mine.unfinished/a", "mine/b",
        )]  # fmt: skip
        for path in mine:
            path.parent.mkdir(exist_ok=True)
            path.write_text("precious")
        checkpoint.save(copy / "model.unfinished", tree, {"mine": True})
        mine.append(copy / "model.unfinished" / "record.json")
        assert run(copy.parent) == 0
        assert [path for path in ours if path.exists()] == []
        assert [path for path in mine if not path.exists()] == []

    def test_a_model_that_was_moved_aside_comes_back(self, copy):
        (copy / "original" / ".writing").touch()
        (copy / "original").rename(copy / ".original.old")
        mend_run(copy)
        checkpoint.verify(copy / "original")
        assert not (copy / ".original.old").exists()

    def test_one_begun_with_other_settings_is_named(self, tmp_path):
        for seed, wanted in ((1, None), (0, 3)):
            keeper = Keeper(Stage(tmp_path / "original", {"seed": 0}))
            state, record = {"w": jnp.ones(2)}, {"step": 3, "seconds": 1.0, "history": {}}
            checkpoint.save(keeper.path, state, {"inputs": {"seed": 0}, **record}, overwrite=True)
            keeper.inputs = {"seed": seed}
            if wanted is None:
                with pytest.warns(
                    UserWarning, match=r"begun with other settings \(seed: 0 there, 1"
                ):
                    assert keeper.find(state) is None
            else:
                assert keeper.find(state).step == wanted

    def test_the_pace_of_saves(self, tmp_path, monkeypatch):
        """The first after two seconds; then as seldom as their cost asks for, 5 % of the time."""
        now, cost, saved = [100.0], [0.1], []

        class Fake:
            seconds = 0.4

            def __init__(self, path, state, record, **_):
                saved.append(record["step"])
                now[0] += cost[0]

            done, result = (lambda self: len(saved) != 2 or now[0] > 150), lambda self: None

        monkeypatch.setattr(stages.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(checkpoint, "save_async", Fake)
        keeper, asked = Keeper(Stage(tmp_path / "original", {})), []
        for step in range(1, 400):
            now[0] += 1
            begin, before = now[0], len(saved)
            keeper.keep(Progress({}, step, 1000, 1.0, {}))
            cost[0] = 4.6 if len(saved) == 3 else cost[0]
            asked += [begin] * (len(saved) - before)
        assert asked[0] == 102
        # half a second is 5 % of ten: thirty seconds pass, as it is usual
        assert 30 <= asked[1] - asked[0] <= 32
        # that one was under way for longer
        assert asked[2] > 150
        # five seconds are 5 % of a hundred
        assert {round(b - a) for a, b in itertools.pairwise(asked[3:])} <= {105, 106}

    def test_a_save_that_failed_ends_the_run(self, tmp_path, monkeypatch):
        monkeypatch.setattr(stages, "SAVE_EVERY", 0.0)
        keeper = Keeper(Stage(tmp_path / "original", {}))
        progress = Progress({"w": jnp.ones(2)}, 1, 10, 1.0, {})

        def full(*_):
            raise OSError("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "_write_manifest", full)
            keeper.keep(progress)
            checkpoint.wait(tmp_path)
        with pytest.raises(CheckpointError, match="no space left"):
            keeper.keep(progress)

    def test_a_folder_is_held_until_saves_have_ended(self, tmp_path, monkeypatch):
        opened, write = threading.Event(), checkpoint._write_manifest
        monkeypatch.setattr(checkpoint, "_write_manifest", lambda p: opened.wait(60) and write(p))
        with hold_run(tmp_path):
            checkpoint.save_async(tmp_path / "original.unfinished", {}, {"step": 1})
            threading.Timer(0.05, opened.set).start()
        assert checkpoint.read_record(tmp_path / "original.unfinished") == {"step": 1}

    @pytest.mark.parametrize(
        "lock", [None, "", "[]", '{"host": "a"}', '{"host": "a", "nonce": "2"}']
    )
    def test_several_processes_have_one_folder(self, lock, tmp_path, monkeypatch):
        monkeypatch.setattr(folder, "several", lambda: True)
        monkeypatch.setattr(folder, "SHARED_WITHIN", 0.2)
        if lock is not None:
            (tmp_path / LOCK).write_text(lock)
        with pytest.raises(
            ConfigError, match="runs: expected the folder of process 0 on a file sy"
        ):
            folder._check_same(tmp_path, "1", str(tmp_path))
        with pytest.raises(ConfigError, match=r"runs: expected the folder of process 0, /a, got /"):
            folder._check_same(tmp_path, "1", "/a")
        monkeypatch.setattr(folder, "SHARED_WITHIN", 30)
        with hold(tmp_path / "other.lock", tmp_path, nonce="1"):
            late = shutil.copy, tmp_path / "other.lock", tmp_path / LOCK  # seen a little later
            threading.Timer(0.05, late[0], late[1:]).start()
            folder._check_same(tmp_path, "1", str(tmp_path))

    def test_what_is_gone_on_with_is_kept(self, tmp_path):
        kept = tmp_path / "original.unfinished"
        checkpoint.save(kept, {"w": jnp.ones(1)}, {"inputs": {}, "step": 1})
        drop_unfinished(tmp_path, {kept})
        assert kept.exists()
        (tmp_path / "link.unfinished").symlink_to(kept)
        drop_unfinished(tmp_path, {kept})
        assert (tmp_path / "link.unfinished").is_symlink()
        drop_unfinished(tmp_path, ())
        assert not kept.exists()


class TestKnownModels:
    def test_a_report_says_which_models_it_is_of(self, finished):
        home = finished / "digits"
        report = json.loads((home / "report.json").read_text())
        stages = ("original", "unlearned/finetune", "retrained/0")
        assert report["models"] == {name: checkpoint.digest(home / name) for name in stages}
        lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
        assert {line["digest"] for line in lines} == set(report["models"].values())

    def test_another_model_is_noticed(self, copy, capsys):
        assert main(["verify", str(copy)]) == 0
        assert "3 of 3 models are as they were written" in capsys.readouterr().out
        tree, record = checkpoint.load(copy / "original")
        checkpoint.save(copy / "original", tree, record | {"seed": 9}, overwrite=True)
        assert main(["show", str(copy)]) == 0
        assert "other models by now than those judged here: original" in capsys.readouterr().out
        assert main(["verify", str(copy)]) == 1
        out = capsys.readouterr().out
        assert "original: not the model judged in report.json" in out
        (copy / "retrained" / "0" / "leaves.json").write_text("[]")
        assert main(["verify", str(copy)]) == 1
        assert "leaves.json is damaged" in capsys.readouterr().out
        shutil.rmtree(copy / "unlearned")
        assert main(["show", "digits", "--runs", str(copy.parent)]) == 0
        assert "original, unlearned/finetune; run it again" in capsys.readouterr().out

    @pytest.mark.parametrize("lost", ["manifest.json", "record.json"])
    def test_a_missing_file_is_no_dead_end(self, copy, lost, capsys):
        before = content(copy / "retrained")
        (copy / "original" / lost).unlink()
        assert run(copy.parent) == 1
        assert lost in capsys.readouterr().err
        assert run(copy.parent, "--force") == 0
        checkpoint.verify(copy / "original")
        assert content(copy / "retrained") == before


class TestFailing:
    def test_the_last_finished_state_stays(self, copy, monkeypatch):
        before = content(copy)
        words = ["train.epochs=3", "--force"]
        monkeypatch.setattr(experiment, "_make", lambda *_: 1 / 0)
        assert run(copy.parent, *words) == 1
        assert content(copy) == before

    def test_a_first_run_says_what_it_was_to_be(self, tmp_path, monkeypatch):
        monkeypatch.setattr(experiment, "_make", lambda *_: 1 / 0)
        assert run(tmp_path) == 1
        assert json.loads((tmp_path / "digits/config.json").read_text())["train"]["epochs"] == 2

    @pytest.mark.parametrize("most", [100, 3000])
    def test_a_full_disk_is_one_line(self, tmp_path, most, capsys, caplog):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            status = run(tmp_path)
            with pytest.raises(CheckpointError, match=r"write checkpoint .*File too large"):
                checkpoint.save(
                    tmp_path / "c", {"w": np.random.default_rng(0).normal(size=9999)}, {}
                )
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert status == 1
        assert not caplog.records
        message = capsys.readouterr().err
        assert message.count("\n") == 1, "no traceback of a library"
        assert "File too large: '" in message
        assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]

    @pytest.mark.parametrize("kind", ["folder", "link", "loop"])
    def test_links_and_folders_in_the_way(self, copy, kind, tmp_path_factory, capsys):
        """A linked model is used where it lies; a folder of the user's is never replaced."""
        place, away = copy / "original", tmp_path_factory.mktemp("disk") / "original"
        place.rename(away)
        if kind == "folder":
            place.mkdir()
            (place / "thesis.txt").touch()
        elif kind == "link":
            place.symlink_to(away)
        else:
            place.symlink_to(place)
        assert run(copy.parent) == (0 if kind == "link" else 1)
        assert place.is_symlink() == (kind != "folder")
        if kind != "link":
            message = capsys.readouterr().err
            assert "original" in message
            assert message.count("\n") == 1


class TestLabels:
    @pytest.mark.parametrize(
        "label", [".a", ".a.tmp", ".a.old", "a.unfinished", "a\x1b[2J", "a\n", "x" * 201, "", "a/b"]
    )
    def test_names_of_our_own_are_refused_before_any_work(self, tmp_path, label):
        config = load_config(None, WORDS)
        methods = {"a": {"method": "finetune"}, label: {"method": "finetune"}}
        with pytest.raises(ConfigError, match="methods: expected labels fit for a folder") as error:
            ju.run(config.__class__(**{**vars(config), "methods": methods}), tmp_path)
        assert "\n" not in str(error.value)
        assert "\x1b" not in str(error.value)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["a [1]*?", "größer 日本"])
    def test_any_other_name_will_do(self, tmp_path, name, capsys):
        folder = tmp_path / name
        words = [f"name={name}", "methods=", f"methods={name}", f"methods.{name}.method=finetune"]
        words = [word for word in words if word != "methods="]
        assert run(folder, *words, f"methods.{name}.steps=2") == 0
        assert run(folder, *words, f"methods.{name}.steps=2") == 0
        assert "there already" in capsys.readouterr().out
        checkpoint.verify(folder / name / "unlearned" / name)
        assert main(["verify", name, "--runs", str(folder)]) == 0


def test_pictures_are_drawn_again_where_they_are_damaged_or_of_other_models(copy, monkeypatch):
    drawn = []

    def draw(path, view, label):
        drawn.append(path.name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\x89PNG\r\n\x1a\n IEND\xaeB`\x82")

    row = album.PICTURES["confusions"]._replace(draw=draw)
    monkeypatch.setattr(album, "PICTURES", {"confusions": row})
    monkeypatch.setattr(experiment, "draw_album", album.draw_album)
    picture = copy / "pictures" / "confusions.png"
    for change, wanted in (
        (lambda: None, 1),
        (lambda: None, 0),
        (lambda: picture.write_bytes(picture.read_bytes()[:-3]), 1),
        (lambda: picture.unlink(), 1),
        (lambda: picture.write_bytes(b""), 1),
        (lambda: (copy / "drawn.json").write_text('{"confusions": "others"}'), 1),
        (lambda: (copy / "drawn.json").write_text("[[["), 0),
    ):
        drawn.clear()
        change()
        assert run(copy.parent) == 0
        assert len(drawn) == wanted
