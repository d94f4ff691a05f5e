"""Every benchmark script runs at its smallest size and prints its table or JSON."""

import contextlib
import json
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxunlearn.config import DataConfig
from jaxunlearn.data.sources import load_dataset

FOLDER = Path(__file__).parent.parent / "benchmarks"
SMALL = {
    "accelerator.py": ["--small", "--only", "language"],
    "communication.py": [
        "--networks", "decoder", "--meshes", "fsdp", "--width", "16", "--batch", "8",
    ],
    "concept_words.py": [
        "--authors", "4", "--tokens", "400", "--width", "16", "--depth", "1", "--steps", "2",
        "--answers", "3", "--most", "1", "--nodes", "2",
    ],
    "conv_gradient.py": ["--small", "--batch", "2", "--steps", "1", "--repeats", "1"],
    "ensembles.py": [
        "--only", "mlp", "--members", "2", "--epochs", "1", "--examples", "30", "--rounds", "1",
    ],
    "fuzz.py": ["--cases", "5"],
    "gan_equal_quality.py": [
        "digits_gan_class", "train.epochs=2", "retrained=1", "gan.samples=100", "gan.inverted=0",
        "gan.downstream_steps=0", "methods=cascade", "methods.cascade.steps=2",
        "gan.classifier_train.epochs=1", "--repeats", "1",
    ],
    "gan_throughput.py": [
        "--size", "8", "--width", "4", "--latent", "4", "--batch", "4", "--steps", "2",
        "--rounds", "1",
    ],
    "integrated_gradients.py": [
        "--networks", "mlp", "--batches", "2", "--rounds", "1", "--steps", "3", "--chunks", "1",
        "--threads", "0",
    ],
    "many_models.py": ["--members", "2", "--steps", "2", "--batch", "8", "--repeats", "1"],
    "memory_estimates.py": [
        "--width", "16", "--hidden", "16", "--heads", "2", "--vocabulary", "32", "--length", "8",
        "--batch", "2", "--depths", "1", "--training", "lora",
    ],
    "methods_beside_torch.py": [
        "--methods", "finetune", "--stages", "1", "--width", "4", "--batch", "2", "--steps", "1",
        "--rounds", "1",
    ],
    "path_networks.py": [
        "--networks", "vit", "--width", "8", "--depth", "1", "--epochs", "1", "--labels", "3",
        "--choices", "defaults",
    ],
    "planted_paths.py": [
        "--features", "12", "8", "--seeds", "2", "--epochs", "1", "--steps", "2",
        "--rules", "epsilon",
    ],
    "relevance.py": [
        "--stages", "1", "1", "--width", "4", "--batches", "2", "--rounds", "1", "--threads", "0",
    ],
    "resnet_step.py": [
        "--stages", "1", "1", "--width", "4", "--batch", "2", "--steps", "1", "--rounds", "1",
    ],
    "restored_weights.py": [
        "--features", "12", "8", "--neurons", "2", "--neighbours", "3", "--seeds", "2",
        "--epochs", "1", "--edits", "zero",
    ],
    "restor.py": [
        "--subjects", "6", "--relations", "2", "--objects", "6", "--options", "3",
        "--corrupted", "2", "--width", "16", "--depth", "1", "--steps", "100", "--taught", "60",
        "--unlearning", "2", "--rate", "0.01", "--seeds", "1", "--methods", "npo",
    ],
    "streaming.py": [
        "--examples", "1000", "--resident", "16", "--size", "16", "--width", "8", "--batch", "4",
        "--steps", "3", "--rounds", "1",
    ],
    "saves.py": ["--megabytes", "1", "--rounds", "1", "--steps", "64", "--width", "16"],
    "soak.py": ["--kills", "0", "--saves", "1", "--pairs", "0"],
    "third_party.py": ["--packages", "flax", "--only", "SimpleCell", "LayerNorm"],
}  # fmt: skip


def test_every_script_is_here():
    assert {path.name for path in FOLDER.glob("*.py")} == set(SMALL)


LONG = ("gan_equal_quality.py",)
# they start processes, end their own or choose its cores
APART = ("soak.py", "streaming.py", "saves.py", "gan_throughput.py")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in SMALL]
)
def test_it_runs(name, tmp_path, monkeypatch, capsys):
    script, words = str(FOLDER / name), [*SMALL[name], "--json"]
    if name in APART:
        command = [sys.executable, script, *words]
        out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert out.returncode == 0, out.stderr
        found = json.loads(out.stdout)
    else:  # an import of jax takes longer than most of them
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", [script, *words])
        monkeypatch.setattr("sys.path", [str(FOLDER), *sys.path])
        with (
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            warnings.catch_warnings(action="default"),
            contextlib.suppress(SystemExit),
        ):
            runpy.run_path(script, run_name="__main__")
        for module, there in list(sys.modules.items()):  # what scripts share, named like others
            if (getattr(there, "__file__", None) or "").startswith(str(FOLDER)):
                del sys.modules[module]
        found = json.loads(capsys.readouterr().out)
    assert found["about"]["jax"]
    assert found.get("rows") or found.get("ways")


@pytest.mark.long
def test_methods_do_the_steps_of_torchunlearn(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("torchunlearn")
    words = ["--stages", "1", "1", "--width", "4", "--batch", "4", "--steps", "2", "--rounds", "1"]
    command = [sys.executable, str(FOLDER / "methods_beside_torch.py"), *words, "--json"]
    out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    rows = json.loads(out.stdout)["rows"]
    assert len(rows) == 7
    for row in rows:
        assert row["parity"] < 1e-5
        assert min(row["fit_ratio"], row["step_ratio"]) > 0


@pytest.mark.long
def test_one_accelerator_is_asked_all_from_an_npz(tmp_path):
    data = load_dataset(DataConfig(name="digits"))
    names = ("train_x", "train_y", "test_x", "test_y")
    np.savez(tmp_path / "images.npz", **{name: getattr(data, name) for name in names})
    words = [sys.executable, str(FOLDER / "accelerator.py"), "images.npz", "--small", "--json"]
    out = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout)
    assert not found["skipped"]
    assert not [row["trace"] for row in found["rows"] if row["case"] == "failed"]
    asked = {row["question"] for row in found["rows"]}
    assert {"step", "unlearning", "cascade", "ensembles", "language"} < asked
    assert found == json.loads((tmp_path / "accelerator.json").read_text())
    assert (tmp_path / "accelerator.md").read_text().count("\n| ") == 2 + len(found["rows"])
