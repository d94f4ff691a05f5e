"""What the doctor finds where all is well, and where something is broken."""

import importlib.metadata

import pytest

from jaxunlearn.cli import doctor, main


@pytest.fixture
def examined(tmp_path, monkeypatch, capsys):
    """Runs the doctor in an empty folder; returns its status, its lines and its error."""
    monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    monkeypatch.chdir(tmp_path)

    def run(*words):
        status = main(["doctor", *words])
        shown = capsys.readouterr()
        return status, shown.out.splitlines(), shown.err

    return run


def test_all_is_well(examined, tmp_path):
    for name, file in (("a", "report.json"), ("b", "sets.npz")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}")
        (tmp_path / "runs" / name / file).write_text("{}")
    status, lines, error = examined()
    assert status == 0
    assert not error
    found = "\n".join(lines)
    for word in (
        f"jax {importlib.metadata.version('jax')}", "digits: 997 + 800", "finished: a; begun: b",
        "cpu 0", "cores", "TFDS downloads",
    ):  # fmt: skip
        assert word in found
    assert {line.split()[0] for line in lines} <= {"ok", "note"}


def test_packages_that_do_not_fit(examined, monkeypatch):
    version = importlib.metadata.version
    other = {"jax": "0.9.3", "orbax-checkpoint": "0.13.0"}
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: other.get(name) or version(name)
    )
    status, lines, error = examined()
    assert status == 1
    assert error.count("\n") == 1
    assert error.startswith("error: packages: jax: expected >=0.10, got 0.9.3 (and 1 more)")
    assert any("orbax-checkpoint: expected <0.13,>=0.12.8, got 0.13.0" in line for line in lines)


def test_a_package_that_cannot_be_imported(examined, monkeypatch):
    monkeypatch.setattr(doctor, "_IMPORTED", ("jax", "no_such_package"))
    status, _, error = examined()
    assert status == 1
    assert error.startswith("error: packages: no_such_package cannot be imported: ModuleNotFound")


def test_a_device_that_counts_wrong(examined, monkeypatch):
    monkeypatch.setattr("jax.jit", lambda function: lambda x: 2 * function(x))
    status, _, error = examined()
    assert status == 1
    assert "devices: cpu 0: cpu: expected a @ a.T" in error


def test_no_device_at_all(examined, monkeypatch):
    def none():
        raise RuntimeError("Unable to initialize\nbackend 'cuda'")

    monkeypatch.setattr("jax.local_devices", none)
    status, _, error = examined()
    assert status == 1
    assert error == "error: devices: RuntimeError: Unable to initialize backend 'cuda'\n"


def test_data_that_were_named(examined, tmp_path):
    status, _, error = examined("--data-dir", str(tmp_path / "nowhere"))
    assert status == 1
    assert "data: no folder" in error
    half = tmp_path / "sets" / "mnist" / "3.0.1"
    half.mkdir(parents=True)
    assert examined()[0] == 0, "of folders that nobody named the doctor speaks, no more"
    status, _, error = examined("--data-dir", str(tmp_path / "sets"))
    assert status == 1
    assert "dataset_info.json" in error


def test_a_row_of_another_package(examined, monkeypatch):
    entry_points = importlib.metadata.entry_points
    point = importlib.metadata.EntryPoint("theirs", "no_such:ROW", "jaxunlearn.methods")

    def with_theirs(*, group):
        return importlib.metadata.EntryPoints(
            [*entry_points(group=group), *([point] if group == point.group else [])]
        )

    monkeypatch.setattr(importlib.metadata, "entry_points", with_theirs)
    monkeypatch.setattr("jaxunlearn.methods.METHODS._points", None)
    status, _, error = examined()
    monkeypatch.undo()
    assert status == 1
    assert "error: rows: methods.theirs: expected no_such:ROW" in error


@pytest.mark.parametrize(
    ("version", "bounds", "within"),
    [
        ("0.10", ">=0.10", True), ("0.9.99", ">=0.10", False), ("0.12.8", ">=0.12.8,<0.13", True),
        ("0.13", ">=0.12.8,<0.13", False), ("1.0rc1", ">=1", True), ("2", "!=2.0", False),
        ("3", "", True), ("1.2", "<=1.2,>1.1", True), ("1.2.post1", "==1.2", True),
    ],
)  # fmt: skip
def test_versions_within_bounds(version, bounds, within):
    assert doctor._within(version, bounds) == within
