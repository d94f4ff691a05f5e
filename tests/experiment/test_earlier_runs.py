"""Runs made by 0.1: refused by name, never overwritten unasked; still read and shown."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxunlearn import __version__, checkpoint
from jaxunlearn.cli import main
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.errors import CheckpointError
from jaxunlearn.experiment.plan import make_plan, stages_of
from jaxunlearn.experiment.stages import check_stage

# a run's original and its report, as jaxunlearn 0.1.0 wrote them
MADE = Path(__file__).parent / "made_by_0_1.zip"
WORDS = [
    "train.epochs=2", "model.options.features=(4,)", "retrained=1",
    "methods=neuron_path,finetune", "methods.finetune.steps=2",
    "methods.neuron_path.per_sample=3", "methods.neuron_path.neurons=2",
]  # fmt: skip


@pytest.fixture
def home(tmp_path):
    with zipfile.ZipFile(MADE) as archive:
        archive.extractall(tmp_path / "digits")
    return tmp_path / "digits"


def test_a_run_of_another_version_is_refused_and_left_as_it_is(home, capsys):
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert main(["run", *WORDS, "--runs", str(home.parent)]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {home / 'original'}: was made with jaxunlearn 0.1.0, ")
    assert f"whose numbers this version, {__version__}, does not repeat" in message
    assert "name=" in message
    assert "--force" in message
    assert message.count("\n") == 1
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_the_version_comes_first_whatever_else_differs(home):
    stage = stages_of(make_plan(load_config(None, WORDS), home.parent))["original"]
    own = checkpoint.read_record(stage.path)["inputs"]
    other = stage._replace(inputs={**own, "jaxunlearn": __version__, "a": 1, "b": 2, "c": 3})
    with pytest.raises(CheckpointError, match=r"was made with jaxunlearn 0\.1\.0"):
        check_stage(other, force=False)
    with pytest.raises(CheckpointError, match=r"was made with other settings \(a: None there, 1"):
        check_stage(other._replace(inputs={**own, "a": 1}), force=False)
    assert check_stage(other._replace(inputs=own), force=False)
    assert not check_stage(stage, force=True), "to be made again"


def test_its_checkpoints_are_read(home):
    variables, record = checkpoint.load(home / "original")
    assert variables["params"]["fc1"]["kernel"].shape == (64, 4)
    assert all(np.isfinite(leaf).all() for leaf in variables["params"]["head"].values())
    assert record["versions"]["jaxunlearn"] == "0.1.0"
    assert 0 <= record["metrics"]["accuracy_forget"] <= 1
    again, _ = checkpoint.load(home / "original", variables)
    np.testing.assert_array_equal(
        again["params"]["fc1"]["bias"], variables["params"]["fc1"]["bias"]
    )


def test_its_report_is_shown(home, capsys):
    assert main(["show", str(home)]) == 0
    shown = capsys.readouterr().out
    report = json.loads((home / "report.json").read_text())
    for row in report["rows"]:
        first = row["metric"].split()[0]
        assert first in shown
    for word in ("finetune", "linear probe", "jaxunlearn 0.1.0", "forget class 3", "floor"):
        assert word in " ".join(shown.split())
    assert main(["list", "--runs", str(home.parent)]) == 0
    assert "finished runs:\n  digits" in capsys.readouterr().out
