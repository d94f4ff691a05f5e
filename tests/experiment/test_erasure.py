"""Erasure records: sealed, verified, and what a purge leaves."""

import hashlib
import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxunlearn as ju
from jaxunlearn import checkpoint
from jaxunlearn.cli import main
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.errors import CheckpointError, UserError
from jaxunlearn.core.files import hold, sha256
from jaxunlearn.core.seals import digest_of, read_sealed, seal_of, write_sealed
from jaxunlearn.data.dataset import write_entry
from jaxunlearn.experiment import erasure, holdings, verification
from jaxunlearn.experiment import purge as purging
from jaxunlearn.experiment.erasure import contents_digest, positions_digest, rows_of, weights_digest
from jaxunlearn.experiment.folder import LOCK
from jaxunlearn.experiment.purge import list_purge, purge
from jaxunlearn.experiment.verification import compare_places, read_config, verify_run
from jaxunlearn.metrics.table import Judged, Place, summarise
from jaxunlearn.report import html_run
from jaxunlearn.report.erasure_page import ALIKE, FINDINGS, PLAIN, TRACE
from jaxunlearn.report.html_bench import settings_apart
from tests.runs import hurry

GIVEN = (5, 77, 300, 301, 302)
WORDS = [
    "train.epochs=2", "train.learning_rate=5e-3", "model.options.features=(8,)", "retrained=2",
    "methods=finetune", "methods.finetune.steps=2", "request.classes=",
    f"request.indices={GIVEN}", "record.id=TICKET-17", "attacks=rounding_4",
]  # fmt: skip
DIGITS = ju.data.load_dataset(ju.data.DataConfig(name="digits"))


@pytest.mark.parametrize("tree", [False, True])
def test_streamed_contents_are_hashed_in_blocks(monkeypatch, tree):
    rows = np.arange(30, 90)[::-1]
    x, y = np.random.default_rng(0).normal(size=(90, 5)).astype(np.float32), np.arange(90) % 7
    records = [{"a": one, "b": one[:2].astype(np.uint8)} if tree else one for one in x]
    whole = {"a": x, "b": x[:, :2].astype(np.uint8)} if tree else x
    monkeypatch.setattr(erasure, "_BLOCK", 200)
    asked, stream = [], ju.data.stream(records)
    read = type(stream).read
    monkeypatch.setattr(type(stream), "read", lambda x, r: (asked.append(len(r)), read(x, r))[1])
    data = DIGITS._replace
    made = contents_digest(data(train_x=stream, train_y=y), rows)
    assert made == contents_digest(data(train_x=whole, train_y=y), rows)
    assert max(asked) <= 10


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch, pictures=True)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, quick):
    """One run whose pictures are drawn, and a picture of a forgotten image among them."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["run", *WORDS, "name=one", "--runs", str(folder)]) == 0
    return folder / "one"


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path / "runs" / "one")
    return tmp_path / "runs" / "one"


def record_of(folder):
    return json.loads((folder / "erasure/finetune/record.json").read_text())


def rewrite(file, change):
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class TestRecord:
    def test_it_says_what_was_asked_and_made(self, made):
        record = record_of(made)
        asked = record["request"]
        assert asked["id"] == "TICKET-17"
        assert (asked["kind"], asked["size"], asked["of"]) == ("indices", 5, 997)
        assert asked["named"]["indices"] == sorted(GIVEN)
        assert record["configuration"]["request"]["indices"] == []
        assert record["models"]["before"]["weights_sha256"] == weights_digest(made / "original")
        after = weights_digest(made / "unlearned/finetune")
        assert record["models"]["after"] == {"place": "unlearned/finetune", "weights_sha256": after}
        assert record["retraining"]["number"] == 2
        assert record["retraining"]["examples"] == 992
        assert record["versions"] == checkpoint.versions()
        report = ju.report.load(made)
        rows = {row["name"]: row for row in report["rows"]}
        for row in record["table"]:
            values = rows[row["name"]]["values"]
            assert row["unlearned"] == values.get("finetune")
            assert row["retrained"] == values.get("retrained")
            assert row["floor"] == rows[row["name"]]["floor"]
        assert record["attacks"]["rounding_4"]["table"]

    def test_fingerprints_can_be_computed_by_anybody(self, made):
        asked, rows = record_of(made)["request"], np.array(sorted(GIVEN))
        assert asked["indices_sha256"] == hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
        digest = hashlib.sha256()
        for name, array in (("x", DIGITS.train_x[rows]), ("y", DIGITS.train_y[rows])):
            digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
            digest.update(array.tobytes())
        assert asked["contents_sha256"] == digest.hexdigest()

    def test_the_program_of_the_manual_computes_them(self, capsys):
        manual = Path(__file__).parents[2] / "docs/erasure.md"
        (program,) = re.findall(r"```python\n(.*?)```", manual.read_text(), re.S)
        exec(program, {})
        told = re.findall(r"# ([0-9a-f]{12})\.\.\.", program)
        assert [line[:12] for line in capsys.readouterr().out.split()] == told
        rows = np.flatnonzero(DIGITS.train_y == 3)
        made = positions_digest(rows), contents_digest(DIGITS, rows)
        assert told == [digest[:12] for digest in made]

    def test_the_page_says_it_in_plain_words(self, made):
        page = (made / "erasure/finetune/record.md").read_text()
        assert page.startswith("# Erasure record: TICKET-17\n")
        for row in record_of(made)["table"]:
            if row["name"] in PLAIN:
                assert all(text in page for text in PLAIN[row["name"]])
        for jargon in ("logit", "AUC", "MIA", "softmax", "kernel", " JS"):
            assert jargon not in page
        # as numbers of their own: digests and times may hold these digits
        numbers = set(re.findall(r"(?<![\w.])\d+(?!\w|\.\d)", page))
        assert not {"301", "302"} <= numbers, "positions are not on the page"
        assert "## Limits" in page
        assert any(finding in page for finding in FINDINGS.values())

    def test_another_run_of_the_same_keeps_it(self, copy):
        before = contents(copy / "erasure")
        assert main(["run", *WORDS, "name=one", "--runs", str(copy.parent)]) == 0
        assert contents(copy / "erasure") == before

    def test_positions_may_be_left_out(self, copy):
        words = [*WORDS, "name=one", "record.indices=false", "--runs", str(copy.parent)]
        assert main(["run", *words]) == 0
        assert record_of(copy)["request"]["named"] == {"indices": None, "words": None}
        assert "the forgotten examples are those of the records" in verify_run(copy).told


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"words": ("Basil",)}, "forget 3 texts in which certain words stand"),
        ({"pairs": "sent/basil.jsonl"}, "forget 3 texts that a file lists"),
        ({"classes": ("Basil",)}, "forget a class given by name"),
        ({"classes": (1, "Basil")}, "forget 2 classes given by name"),
        ({"classes": (17,)}, "forget class 17"),
        ({"indices": (1, 2, 3)}, "forget 3 given examples"),
    ],
)
def test_no_name_stands_in_the_text_of_a_record(asked, wanted):
    assert erasure.neutral(ju.config.Request(**asked), 3) == wanted


@pytest.mark.parametrize("asked", [{"words": ("Basil",)}, {"pairs": "sent/Basil.jsonl"}])
def test_titles_name_what_is_forgotten_only_where_records_do(asked):
    def title(listed: bool) -> str:
        record = ju.config.RecordConfig(indices=listed)
        request = ju.config.Request(**asked, indices=(4, 7))
        return erasure.describe_for_titles(ju.config.Config(request=request, record=record))

    assert "Basil" in title(True)
    assert "Basil" not in title(False)
    assert "forget 2 texts" in title(False)


@pytest.mark.parametrize("listed", [True, False])
def test_the_page_shows_no_positions_among_its_settings(tmp_path, listed):
    asked = {"indices": [5, 31301], "words": ["Basil"], "pairs": "sent/Basil.jsonl"}
    found = {"request": asked, "record": {"indices": listed}, "seed": 3}
    (tmp_path / "config.json").write_text(json.dumps(found))
    (part,) = html_run._configuration(tmp_path)
    told = dict(part.content)
    assert "31301" not in str(told)
    assert ("Basil" in str(told)) == listed
    assert told["request.indices"].startswith("2 values, " if listed else "left out")
    other = {"request": {"indices": [5, 31302]}}
    assert "request.indices" in settings_apart(found, other)
    assert "request.indices" not in settings_apart(found, {"request": {"indices": [5, 31301]}})


@pytest.mark.long  # a run of its own
def test_a_class_asked_for_by_name_is_told_by_its_number(tmp_path, monkeypatch):
    names = np.array([f"Basil Mahfouz {one}" for one in "ABCDEFGHIJ"])
    arrays = {key: getattr(DIGITS, key)[:300] for key in ("train_x", "train_y", "test_x", "test_y")}
    np.savez(tmp_path / "some.npz", **arrays, class_names=names)
    monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
    words = [
        f"data.name={tmp_path / 'some.npz'}", "data.unseen=0", "request.classes=Basil Mahfouz D",
        "record.indices=false", "train.epochs=1", "model.options.features=(8,)", "retrained=1",
        "methods=finetune", "methods.finetune.steps=1", "name=one",
    ]  # fmt: skip
    assert main(["run", *words, "--runs", str(tmp_path / "runs")]) == 0
    home = tmp_path / "runs/one"
    assert "forget class 3" in (home / "erasure/finetune/record.md").read_text()
    holding = [p.relative_to(home).as_posix() for p in home.rglob("*")
               if p.is_file() and b"Basil" in p.read_bytes()]  # fmt: skip
    assert not [name for name in holding if not name.startswith(("pictures/", "report.html"))]
    purge(home)
    assert not [p for p in home.rglob("*") if p.is_file() and b"Basil" in p.read_bytes()]


class TestFindings:
    """What a difference means, by tables that can be done by hand."""

    @pytest.mark.parametrize(
        ("unlearned", "retrained", "wanted"),
        [
            (0.1, (0.0, 0.2), ALIKE), (0.29, (0.0, 0.2), ALIKE), (0.9, (0.1, 0.11), TRACE),
            (0.0, (0.5, 0.51), "beyond"), (0.35, (0.0, 0.2), "unclear"), (0.5, (0.5,), "unknown"),
        ],
    )  # fmt: skip
    def test_one_model(self, unlearned, retrained, wanted):
        name = "accuracy_forget"
        values = Judged(
            {"original": {name: 1.0}, "a": {name: unlearned}}, [{name: v} for v in retrained]
        )
        (row,) = rows_of(values, "a", None)
        assert row["finding"] == wanted
        assert row["retrained"] == pytest.approx(np.mean(retrained))

    @pytest.mark.parametrize(
        ("unlearned", "wanted"), [((0.5, 0.6, 0.55), TRACE), ((-0.1, 0.1, 0.05), ALIKE)]
    )
    def test_several_seeds(self, unlearned, wanted):
        name = "accuracy_forget"
        seeds = [
            Judged({"original": {name: 1.0}, "a": {name: value}}, [{name: 0.0}])
            for value in unlearned
        ]
        report = summarise("", seeds, trials=[Place("seed", number) for number in range(3)])
        (row,) = rows_of(seeds[1], "a", report)
        assert row["finding"] == wanted
        assert row["unlearned"] == unlearned[1]
        assert row["over"]["number"] == 3
        assert row["over"]["unlearned"] == pytest.approx(np.mean(unlearned))


class TestVerify:
    def test_a_sound_run(self, made, capsys):
        found = verify_run(made)
        assert found.wrong == []
        assert "the forgotten examples are those of the records" in found.told
        assert main(["verify", str(made)]) == 0
        assert record_of(made)["seal"] in capsys.readouterr().out

    def test_metrics_are_measured_again(self, copy, capsys):
        assert main(["verify", str(copy), "--metrics"]) == 0
        assert "numbers were measured again as recorded" in capsys.readouterr().out

        # somebody betters a number and seals everything anew
        def better(record):
            row = next(r for r in record["table"] if r["name"] == "accuracy_retain")
            row["unlearned"] += 0.01

        file = copy / "erasure/finetune/record.json"
        rewrite(file, better)
        seal = write_sealed(file, json.loads(file.read_text()))
        rewrite(copy / "report.json", lambda r: r["records"].update({"erasure/finetune": seal}))
        assert verify_run(copy).wrong == []
        assert main(["verify", str(copy), "--metrics"]) == 1
        out = capsys.readouterr().out
        assert "accuracy_retain, unlearned: " in out
        assert out.count("recorded, ") == 1

    @pytest.mark.parametrize(
        ("what", "message"),
        [
            ("record", "was altered: its contents do not agree with its seal"),
            ("resealed", "not the record that report.json names"),
            ("page", "was altered: it is not the page of its record"),
            ("indices", "request.named.indices was altered"),
            ("table", "not the table that finetune's record was made of"),
            ("attack", "not the table that finetune's record was made of"),
            ("model", "not the model that the record"),
            ("original", "not the model that the record"),
            ("gone", "expected a sealed record, got nothing there"),
            ("damaged", "expected a sealed record"),
        ],
    )
    def test_what_was_tampered_with_is_found(self, copy, what, message):
        file = copy / "erasure/finetune/record.json"

        def alter(found):
            found["request"]["size"] = 4

        if what in ("record", "resealed"):
            rewrite(file, alter)
        if what == "resealed":
            write_sealed(file, json.loads(file.read_text()))
        if what == "page":
            page = copy / "erasure/finetune/record.md"
            page.write_text(page.read_text().replace("5 training", "6 training"))
        if what == "indices":
            rewrite(file, lambda r: r["request"]["named"].update(indices=[1, 2, 3, 4, 5]))
        if what in ("table", "attack"):
            place = copy / "attacks/rounding_4" if what == "attack" else copy
            rewrite(place / "report.json", lambda r: r["rows"][0]["values"].update(finetune=0.123))
        if what in ("model", "original"):
            place = copy / ("unlearned/finetune" if what == "model" else "original")
            tree, record = checkpoint.load(place)
            tree["params"]["head"]["bias"] += 1
            checkpoint.save(place, tree, record, overwrite=True)
        if what == "gone":
            file.unlink()
        if what == "damaged":
            file.write_text("[[[")
        found = verify_run(copy).wrong
        assert any(message in line for line in found)
        assert all("\n" not in line for line in found)
        with pytest.raises(CheckpointError, match="expected a run that verifies"):
            purge(copy)
        assert (copy / "sets.npz").exists()

    @pytest.mark.parametrize(
        ("what", "message"),
        [
            ("models", "models: expected the models that it was made of"),
            ("one model", "a model that report.json does not name"),
            ("judged", "models: expected unlearned/finetune, which has a record, got none"),
            ("before", "models: expected original, which the record"),
            ("elsewhere", "models: expected places of the run's models, got ../one/original"),
            ("record", "erasure/finetune: a record that report.json does not name"),
            ("page", "erasure/finetune: a record that report.json does not name"),
            ("both", "expected a record of this unlearned model, got none"),
            ("extra", "unlearned/extra: a model that report.json does not name"),
            ("retrained", "retrained/7: a model that report.json does not name"),
            ("left", "erasure/old: a record of a model that report.json does not name"),
            ("attack", "not the model judged in attacks/rounding_4/report.json"),
        ],
    )
    def test_what_one_has_and_the_other_lacks_is_told(self, copy, what, message, capsys):
        def alter(report):
            models, records = report["models"], report.get("records")
            if what == "models":
                del report["models"]
            elif what in ("one model", "judged", "before"):
                places = {"one model": "retrained/1", "judged": "unlearned/finetune"}
                del models[places.get(what, "original")]
            elif what == "elsewhere":
                models["../one/original"] = models["original"]
            elif what in ("record", "page", "both"):
                records.clear()
            elif what == "attack":
                models.update(dict.fromkeys(models, "0" * 64))

        place = copy / "attacks/rounding_4" if what == "attack" else copy
        rewrite(place / "report.json", alter)
        if what == "page":
            (copy / "erasure/finetune/record.json").unlink()
        if what == "both":
            shutil.rmtree(copy / "erasure")
        new = {"extra": "unlearned/extra", "retrained": "retrained/7"}.get(what)
        if new:
            shutil.copytree(copy / "unlearned/finetune", copy / new)
        if what == "left":
            shutil.copytree(copy / "erasure/finetune", copy / "erasure/old")
        found = verify_run(copy)
        assert any(message in line for line in found.wrong), found.wrong
        assert main(["verify", str(copy), "--metrics"]) == 1
        out = capsys.readouterr().out
        assert message in out
        assert "not measured again" in out
        if new or what == "left":  # what an earlier run left is for a purge to remove
            wanted = new or "erasure/old/record.json"
            assert wanted in [one.path for one in list_purge(copy).removed]
        elif what != "one model":
            with pytest.raises(CheckpointError, match=r"expected a run (that verifies|with)"):
                purge(copy)
        assert (copy / "retrained/1").exists()

    @pytest.mark.parametrize("lost", ["", "rounding_4"])
    def test_numbers_that_nothing_measures_are_told(self, copy, monkeypatch, lost):
        known = record_of(copy)
        tables = {"": known["table"], "rounding_4": known["attacks"]["rounding_4"]["table"]}
        again = [("erasure/finetune", name, rows) for name, rows in tables.items() if name != lost]
        monkeypatch.setattr(verification, "_rows_again", lambda config, folder: again)
        (line,) = verify_run(copy, metrics=True).wrong
        after = f" after {lost}" if lost else ""
        assert line.endswith(f"finetune: the numbers{after} could not be measured again")

    @pytest.mark.parametrize(("kind", "other"), [("turn", "turn"), ("seed", "turn")])
    def test_trials_that_the_models_do_not_have_are_told(self, tmp_path, kind, other):
        models = {f"{kind}_{number}/unlearned/a": "" for number in range(2)}
        report = {"models": models, "trials": {"kind": kind, "numbers": [0, 1]}}
        assert compare_places(tmp_path, report, None) == ([], [])
        report["trials"] = {"kind": other, "numbers": [0, 1, 2]}
        (line,) = compare_places(tmp_path, report, None)[0]
        assert f"expected {kind}_0, {kind}_1, as its models say, got {other}_0, " in line

    def test_data_that_changed_are_told(self, copy, monkeypatch):
        config = json.loads((copy / "config.json").read_text())
        config["data"]["image_size"] = 6
        (copy / "config.json").write_text(json.dumps(config))
        found = verify_run(copy)
        assert found.wrong == []
        assert any("the data set is another by now" in line for line in found.told)
        (copy / "config.json").unlink()
        assert any("the data are not there" in line for line in verify_run(copy).told)

    def test_a_configuration_comes_back_as_it_was(self, made):
        assert read_config(made).request.indices == GIVEN
        assert read_config(made) == load_config(None, [*WORDS, "name=one"])


def images_of(rows):
    """The forgotten images, as bytes that may stand in a file."""
    for row in rows:
        image = DIGITS.train_x[row]
        for kind in (np.uint8, np.int32, np.float32, np.float64):
            yield image.astype(kind).tobytes()
            yield (image.astype(kind) / 255).astype(kind).tobytes()


def shows(file, rows):
    """Tells whether a file holds one of the images: raw, packed, or as pixels of a picture."""
    raw = file.read_bytes()
    parts = [raw]
    if file.suffix == ".png":
        parts = [np.asarray(Image.open(io.BytesIO(raw)).convert("L")).tobytes()]
        pixels = np.asarray(Image.open(io.BytesIO(raw)).convert("L"))
        for row in rows:
            image = DIGITS.train_x[row, :, :, 0]
            windows = np.lib.stride_tricks.sliding_window_view(pixels, image.shape)
            if (windows == image).all((2, 3)).any():
                return True
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            parts = [archive.read(name) for name in archive.namelist()]
    blank = [image for image in images_of(rows) if any(image)]
    return any(image in part for part in parts for image in blank)


class TestPurge:
    def plant(self, home):
        """Puts what runs leave on other occasions beside what this one left."""
        image = DIGITS.train_x[GIVEN[0], :, :, 0]
        (home / "pictures/finetune").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(home / "pictures/finetune/heatmaps.png")
        np.savez(home / "examples.npz", **{"original/js": DIGITS.train_x[list(GIVEN)]})
        state = {"x": DIGITS.train_x[list(GIVEN)].astype(np.float32), "mu": np.ones(3)}
        checkpoint.save(home / "unlearned/ga.unfinished", state, {"inputs": {}, "step": 3})
        checkpoint.save(home / "pools/trained", {"w": np.ones(2)}, {"stage": "pools/trained"})
        checkpoint.save(home / "unlearned/old", {"w": np.ones(2)}, {"stage": "unlearned/old"})
        shutil.copytree(home / "original", home / ".original.tmp")

    @pytest.fixture
    def purged(self, copy, monkeypatch, tmp_path):
        monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
        write_entry(tmp_path / "cache" / "digits-1", DIGITS)
        other = DIGITS._replace(fingerprint="another")
        write_entry(tmp_path / "cache" / "digits-2", other)
        self.plant(copy)
        for name in ("notes.txt", "mine/sets.npz", "mine/config.json", "pictures/photo.png"):
            (copy / name).parent.mkdir(exist_ok=True)
            (copy / name).write_text("mine")
        checkpoint.save(copy / "mine/model", {"w": np.ones(1)}, {"stage": "original"})
        outside = tmp_path / "outside"
        outside.mkdir()
        Image.fromarray(DIGITS.train_x[GIVEN[1], :, :, 0]).save(outside / "heatmaps.png")
        (copy / "pictures/linked").symlink_to(outside)
        assert any(shows(p, GIVEN) for p in copy.rglob("*") if p.is_file())
        assert "forgotten example" in (copy / "report.html").read_text()
        listed = list_purge(copy)
        before = contents(copy)
        done = purge(copy)
        assert done == listed
        return copy, before, done

    def test_nothing_that_is_left_shows_a_forgotten_image(self, purged, tmp_path):
        home, before, done = purged
        mine = [home / name for name in ("notes.txt", "mine/sets.npz", "mine/config.json",
                                         "pictures/photo.png")]  # fmt: skip
        assert all(path.read_text() == "mine" for path in mine)
        checkpoint.verify(home / "mine/model")
        left = [p for p in home.rglob("*") if p.is_file() and p not in mine]
        assert not any(shows(p, GIVEN) for p in left)
        for name in ("original", "sets.npz", "examples.npz", "pictures/finetune", "pools",
                     "pictures/exposed.json",
                     "unlearned/ga.unfinished", "unlearned/old", ".original.tmp"):  # fmt: skip
            assert not (home / name).exists(), name
        assert not (tmp_path / "cache/digits-1").exists()
        assert (tmp_path / "cache/digits-2").exists(), "of other data"
        assert (tmp_path / "outside/heatmaps.png").exists(), "links are not followed"
        # everything that went is listed, and everything that could not
        paths = [one.path for one in done.removed]
        gone = [p.as_posix() for p in before if not (home / p).exists()]
        assert gone
        assert all(any(name == p or name.startswith(f"{p}/") for p in paths) for name in gone)
        assert any(line.startswith("pictures/linked, a link") for line in done.beyond)
        # the page is made anew, without pictures and positions
        made = (home / "report.html").read_text()
        assert "<img" not in made
        assert "Most exposed" not in made
        assert "Erasure record" in made
        for path in (*mine, home / "mine/model"):
            assert any(line.startswith(f"{path.relative_to(home)}: ") for line in done.beyond)
        page = (home / "erasure/purge.md").read_text()
        assert all(f"`{path}`" in page for path in paths)
        assert all(line in page for line in done.beyond)

    def test_no_position_is_listed_any_more(self, purged):
        home, _, _ = purged
        for file in home.rglob("*.json"):
            if not {"variables", "mine"} & set(file.parts):
                assert not {301, 302} & set(_numbers(json.loads(file.read_text()))), file

    def test_the_rest_still_verifies(self, purged, capsys):
        home, before, _ = purged
        assert main(["verify", str(home)]) == 0
        out = capsys.readouterr().out
        assert "4 of 4 models are as they were written" in out, "one is of the user's"
        assert "purged on " in out
        assert "original" in out
        seal = json.loads(before[next(p for p in before if p.name == "record.json"
                                      and "erasure" in p.parts)])["seal"]  # fmt: skip
        assert record_of(home)["seal"] == seal, "sealed as before"
        assert main(["show", str(home)]) == 0
        out = capsys.readouterr().out
        assert "purged on " in out
        assert "other models" not in out
        assert main(["verify", str(home), "--metrics"]) == 1
        assert "which was purged on" in capsys.readouterr().err

    def test_a_run_is_refused_and_makes_nothing_again(self, purged, capsys):
        home, _, _ = purged
        before = contents(home)
        for more in ([], ["--force"]):
            assert main(["run", *WORDS, "name=one", "--runs", str(home.parent), *more]) == 1
            message = capsys.readouterr().err
            assert "was purged on" in message
            assert message.count("\n") == 1
        assert contents(home) == before

    def test_a_second_purge_removes_what_came_back(self, purged, made, capsys):
        home, _, _ = purged
        shutil.copytree(made / "original", home / "original")
        assert main(["verify", str(home)]) == 1
        assert "original: was purged, and is there again" in capsys.readouterr().out
        assert main(["purge", str(home)]) == 0
        assert not (home / "original").exists()
        assert verify_run(home).wrong == []
        out = capsys.readouterr().out
        assert [line for line in out.splitlines() if line.startswith("removed ")] == [
            "removed original: the model before, trained on all examples"
        ]
        assert "gone since an earlier purge: " in out
        assert main(["purge", str(home), "--dry-run"]) == 0
        assert "would remove" not in capsys.readouterr().out
        assert "sets.npz" in (home / "erasure/purge.md").read_text()

    def test_a_second_purge_of_what_was_tampered_with_is_refused(self, purged):
        home, _, _ = purged
        for file, alter in (
            ("report.json", lambda found: found.pop("models")),
            ("report.json", lambda found: found["models"].pop("retrained/0")),
            ("report.json", lambda found: found.pop("records")),
            ("erasure/purge.json", lambda found: found["removed"].pop()),
            ("erasure/purge.json", lambda found: found.pop("removed")),
        ):
            text = (home / file).read_text()
            rewrite(home / file, alter)
            before = contents(home)
            with pytest.raises(CheckpointError, match=r"expected|damaged|altered"):
                purge(home)
            assert contents(home) == before
            (home / file).write_text(text)

    def test_what_a_purge_removed_is_sealed(self, purged):
        home, _, _ = purged
        rewrite(home / "erasure/purge.json", lambda found: found["removed"].pop())
        assert any("purge.json: was altered" in line for line in verify_run(home).wrong)


def _numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int):
        yield value


class TestBesidePurge:
    """What of the same data lies outside the run's folder."""

    CONFIG = ju.config.Config(data=ju.data.DataConfig(name="mnist"))

    def plant(self, runs):
        record = {"inputs": {"fingerprint": "same"}}
        for place in ("a/seed_0/original", "a/seed_1/original", "b/unlearned/x@class", "c/pools/x",
                      "d/deep/original", "e/original", "me/original"):  # fmt: skip
            (runs / place).mkdir(parents=True)
            (runs / place / "manifest.json").write_text("{}")
            (runs / place / "record.json").write_text(json.dumps(record))
        (runs / "e/original/record.json").write_text('{"inputs": {"fingerprint": "other"}}')
        told = {"a": "report.json", "b": "bench.json", "c": "metrics.json"}
        for name, file in told.items():
            (runs / name / file).write_text("{}")
        for name, config in (("f", {"data": {"name": "mnist", "dir": None}}),
                             ("g", {"base": {"data": {"name": "mnist", "dir": None}}}),
                             ("h", {"data": {"name": "kmnist", "dir": None}}),
                             ("exported", {"model_type": "llama"})):  # fmt: skip
            (runs / name).mkdir()
            (runs / name / "config.json").write_text(json.dumps(config))
        (runs / "g/bench.json").write_text("{}")
        (runs / "night.log").write_text("")

    def test_each_is_told_once(self, tmp_path):
        self.plant(tmp_path)
        assert list(holdings._beside(tmp_path / "me", self.CONFIG, "same")) == [
            "another run of the same data: a",
            "another bench of the same data: b",
            "another study of metrics of the same data: c",
            "another run of the same data: d/deep",
            "another run of the data set mnist: f",
            "another bench of the data set mnist: g",
            "what no run made, beside this one: exported, night.log",
        ]

    def test_pages_of_comparisons_go(self, tmp_path):
        for name in ("me", "me_too", "other"):
            (tmp_path / name).mkdir()
        titles = {
            "me_other": "me and other", "other_me": "other and me", "a_b": "a and b",
            "me_too_other": "me_too and other", "other_too_me": "other and too_me",
        }  # fmt: skip
        for name, title in titles.items():
            (tmp_path / f"compare_{name}.html").write_text(f"<title>{title} · jaxunlearn</title>")
        (tmp_path / "compare_me_x.html").write_text("mine")
        found = [page.name for page in holdings._comparisons(tmp_path / "me")]
        assert found == ["compare_me_other.html", "compare_other_me.html"]
        (told,) = holdings._beside(tmp_path / "me_too", None, "")
        assert "compare_me_x.html" in told
        assert "compare_me_too_other.html" not in told

    def test_one_that_was_written_goes(self, copy, capsys):
        shutil.copytree(copy, copy.parent / "two")
        rewrite(copy.parent / "two/config.json", lambda c: c["request"].update(indices=[5, 31301]))
        assert main(["compare", "one", "two", "--runs", str(copy.parent)]) == 0
        page = copy.parent.resolve() / "compare_one_two.html"
        assert page.exists()
        done = purge(copy)
        assert str(page) in [one.path for one in done.removed]
        assert not page.exists()
        assert "another run of the same data: two" in done.beyond
        assert verify_run(copy).wrong == []

    @pytest.mark.parametrize("copies", ["decoded", "labels"])
    def test_copies_read_otherwise_are_found(self, tmp_path, monkeypatch, copies):
        monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
        folder = str((tmp_path / "sets/mnist/3.0.1").resolve())
        ending = "-labels" if copies == "labels" else ""
        for name, source, print_of in (
            ("mnist-1", {"name": "mnist", "folder": folder}, "another size"),
            ("mnist-2", {"name": "mnist", "folder": "/elsewhere/mnist/3.0.1"}, "x"),
            ("mnist-3", {"name": "mnist:3.0.0", "folder": folder}, "x"),
            ("mnist-4", {}, "of an earlier version"),
            ("renamed-5", {}, "same"),
            ("kmnist-6", {"name": "kmnist", "folder": folder}, "x"),
            ("mnist_corrupted-7", {}, "x"),
        ):
            meta = {"fingerprint": print_of} | ({"source": source} if source else {})
            (tmp_path / "cache" / f"{name}{ending}").mkdir(parents=True)
            (tmp_path / "cache" / f"{name}{ending}" / "meta.json").write_text(json.dumps(meta))
        found = holdings._cache_entries(self.CONFIG, "same")
        names = [[path.name.removesuffix("-labels") for path in paths] for paths in found]
        assert names == [["mnist-1", "renamed-5"], ["mnist-2", "mnist-3", "mnist-4"]]


class TestBeforePurge:
    def test_a_dry_run_changes_nothing(self, copy, capsys):
        before = contents(copy)
        assert main(["purge", "one", "--runs", str(copy.parent), "--dry-run"]) == 0
        out = capsys.readouterr().out
        for name in ("original", "sets.npz", "examples.npz"):
            assert f"would remove {name}: " in out
        assert "cannot reach backups" in out
        assert contents(copy) == before

    @pytest.mark.parametrize("step", range(6))
    def test_a_killed_one_goes_on(self, copy, step, monkeypatch, capsys):
        """Ended before its first, ..., last write or removal."""
        calls = []

        def count(function):
            def counted(*arguments):
                calls.append(function)
                if len(calls) == 1 + 2 * step:
                    raise KeyboardInterrupt
                return function(*arguments)

            return counted

        with monkeypatch.context() as patch:
            for name in ("_remove", "_replace", "write_text"):
                patch.setattr(purging, name, count(getattr(purging, name)))
            patch.setattr(checkpoint, "amend", count(checkpoint.amend))
            with pytest.raises(KeyboardInterrupt):
                purge(copy)
        assert main(["verify", str(copy)]) == 1
        assert "a purge was begun and not finished" in capsys.readouterr().out
        assert main(["run", *WORDS, "name=one", "--runs", str(copy.parent)]) == 1
        assert "was purged on" in capsys.readouterr().err
        purge(copy)
        assert verify_run(copy).wrong == []
        assert not (copy / "original").exists()
        assert list(read_config(copy).request.indices) == []
        assert {"original", "sets.npz"} <= {
            one["path"] for one in read_sealed(copy / "erasure/purge.json")["removed"]
        }

    def test_a_record_half_changed_is_finished(self, copy):
        place = copy / "retrained/0"

        def change(record):
            return {**record, "request": "none"}

        text = json.dumps(change(checkpoint.read_record(place)), indent=2, sort_keys=True) + "\n"
        (place / "record.json").write_text(text)  # and no manifest
        checkpoint.amend(place, change)
        checkpoint.verify(place)
        (place / "record.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"record\.json is damaged"):
            checkpoint.amend(place, change)

    def test_it_is_refused_while_somebody_works_there(self, copy, capsys):
        before = contents(copy)
        with hold(copy / LOCK, "other"):
            assert main(["purge", str(copy)]) == 1
            assert "in use by process" in capsys.readouterr().err
        assert contents(copy) == before

    def test_what_is_no_finished_run_is_refused(self, copy, tmp_path, capsys):
        assert main(["purge", str(tmp_path / "none")]) == 1
        assert "expected a folder with a report.json" in capsys.readouterr().err
        rewrite(copy / "report.json", lambda found: found.pop("records"))
        with pytest.raises(CheckpointError, match="with erasure records, got none"):
            list_purge(copy)
        assert any("no erasure records" in line for line in verify_run(copy).told)
        several = {"kind": "class", "numbers": [1, 2], "names": ["", ""]}
        rewrite(copy / "report.json", lambda found: found.update(trials=several, rows=[]))
        with pytest.raises(CheckpointError, match="forgets each class by itself"):
            purge(copy)
        (copy / "erasure/purge.json").write_text("{}")
        with pytest.raises(UserError, match=r"purge\.json: is damaged"):
            purge(copy)

    def test_an_unlearned_model_stays_with_what_its_record_found(self, copy, capsys):
        assert main(["purge", str(copy), "--dry-run"]) == 0
        found = [one for one in record_of(copy)["findings"] if one["group"] != "utility"]
        traces = sum(one["finding"] == TRACE for one in found)
        wanted = f"keeps unlearned/finetune: {traces} of {len(found)} tests may have found a trace"
        assert wanted in capsys.readouterr().out

    def test_a_linked_original_is_left_and_told(self, copy, tmp_path):
        (copy / "original").rename(tmp_path / "disk")
        (copy / "original").symlink_to(tmp_path / "disk")
        done = purge(copy)
        assert (tmp_path / "disk/manifest.json").exists()
        assert any(line.startswith("original, a link") for line in done.beyond)
        assert "original" not in [one.path for one in done.removed]


def test_requests_in_turn_keep_the_last_models_alone(tmp_path):
    words = [
        "train.epochs=1", "model.options.features=(8,)", "retrained=1", "methods=finetune",
        "methods.finetune.steps=1", "request.classes=3,5", "request.in_turn=true", "name=turns",
        "data.unseen=0",
    ]  # fmt: skip
    assert main(["run", *words, "--runs", str(tmp_path)]) == 0
    home = tmp_path / "turns"
    record = read_sealed(home / "turn_1/erasure/finetune/record.json")
    assert record["models"]["before"]["place"] == "turn_0/unlearned/finetune"
    assert verify_run(home).wrong == []
    purge(home)
    assert not (home / "turn_0/unlearned").exists() or not any(
        (home / "turn_0/unlearned").iterdir()
    )
    assert (home / "turn_1/unlearned/finetune").exists()
    assert verify_run(home).wrong == []


def test_seals(tmp_path):
    record = {"a": 1.5, "request": {"named": [1], "n": float("nan")}}
    seal = write_sealed(tmp_path / "r.json", record)
    assert read_sealed(tmp_path / "r.json")["seal"] == seal == seal_of(record)
    assert seal == seal_of({**record, "request": {"named": None, "n": None}})
    assert seal != seal_of({**record, "a": 2})
    assert digest_of({"b": [1], "a": None}) == digest_of({"a": float("inf"), "b": (1,)})
    assert len(sha256(tmp_path / "r.json")) == 64
