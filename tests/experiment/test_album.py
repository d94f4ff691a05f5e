"""The pictures of a run."""

import json

import pytest

from jaxunlearn.cli import main
from tests.runs import counted_programs, hurry

WORDS = [
    "run",
    "train.epochs=4",
    "retrained=1",
    "methods=concept_poison,finetune",
    "methods.finetune.steps=3",
    "methods.concept_poison.steps=30",
]
MOST_PROGRAMS = 45
"""Of training, two methods, judging and pictures; each number of the host that is put on the device
by an operation of its own, and each operation between programs, would be one more."""
PICTURES = {
    "confusions.png",
    "losses.png",
    "concept_poison/concepts.png",
    "concept_poison/maps.png",
    "concept_poison/patches.png",
    "concept_poison/poison.png",
}


def run(folder, *words):
    return main([*WORDS, *words, "--runs", str(folder)])


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Models are made, judged and drawn as ever, but timed once, not cold."""
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch, pictures=True)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns the folder of a run, and how many programs it took."""
    folder = tmp_path_factory.mktemp("runs")
    with counted_programs() as programs:
        assert run(folder) == 0
    return folder, len(programs)


@pytest.fixture(scope="module")
def folder(made):
    return made[0]


def pictures(folder):
    home = folder / "digits" / "pictures"
    return {str(path.relative_to(home)): path for path in home.rglob("*.png")}


def test_a_run_takes_one_program_a_purpose(made):
    assert made[1] <= MOST_PROGRAMS


def test_what_a_method_found_is_drawn(folder):
    found = pictures(folder)
    assert set(found) == PICTURES, "and nothing of a method that has no pictures"
    assert all(path.stat().st_size > 5000 for path in found.values())


def test_what_was_found_is_told_in_numbers(folder):
    found = json.loads((folder / "digits/pictures/concept_poison/concepts.json").read_text())
    assert set(found["accuracy"]) == {"network", "concepts", "hybrid"}
    assert all(0.5 < value <= 1 for value in found["accuracy"].values())
    assert found["completeness_gap"] < 1e-3
    assert found["concepts"]["closed_loop"]["p_value"] < 0.05
    (three,) = found["classes"].values()
    assert three["donor"] in set("012456789")
    assert three["target_concept"] == max(three["scores"], key=three["scores"].get)


def test_nothing_is_drawn_again_for_a_run_that_is_there(folder):
    before = {name: path.stat().st_mtime_ns for name, path in pictures(folder).items()}
    with counted_programs() as programs:
        assert run(folder) == 0
    assert not programs
    assert {name: path.stat().st_mtime_ns for name, path in pictures(folder).items()} == before
    pictures(folder)["confusions.png"].unlink()
    assert run(folder) == 0
    assert set(pictures(folder)) == PICTURES


def test_a_picture_that_cannot_be_drawn_costs_the_run_nothing(folder, monkeypatch, capsys):
    def broken(path, view, label):
        raise ValueError("no ink")

    monkeypatch.setattr("jaxunlearn.kinds.classifier_pictures.draw_concepts", broken)
    pictures(folder)["confusions.png"].unlink()
    pictures(folder)["concept_poison/concepts.png"].unlink()
    assert run(folder) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "no picture concept_poison/concepts: no ink" in shown
    assert set(pictures(folder)) == PICTURES - {"concept_poison/concepts.png"}
