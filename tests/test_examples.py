"""Examples run as they are, each in an empty folder; what a machine lacks is named and skipped."""

import ast
import tomllib
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

import jaxunlearn as ju
from tests.cli.test_plugins import install, installed
from tests.data.test_sources import write_tfds

EXAMPLES = Path(__file__).parent.parent / "examples"
PACKAGE = EXAMPLES / "method_package"


def run(name):
    """Runs a script as a user's Python does; returns its names."""
    path = EXAMPLES / name
    tree = ast.parse(path.read_text())
    imported = [one.names[0].name for one in ast.walk(tree) if isinstance(one, ast.Import)]
    if missing := [one for one in imported if find_spec(one.partition(".")[0]) is None]:
        pytest.skip(f"{', '.join(missing)} is not installed")
    scope = {"__name__": path.stem}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(tree, str(path), "exec"), scope)
    return scope


def rows(scope):
    return {row["name"]: row["values"] for row in scope["report"]["rows"]}


def check_linen(scope, folder):
    assert scope["named"]["before"][0] > 0.6
    assert scope["named"]["after"][0] < 0.3
    assert scope["named"]["after"][1] > 0.85
    assert (folder / "my_checkpoint_without_3").is_dir()


def check_nnx(scope, folder):
    assert rows(scope)["accuracy_forget"]["original"] > 0.9
    assert rows(scope)["accuracy_forget"]["unlearned"] < 0.1
    assert rows(scope)["accuracy_test_retain"]["unlearned"] > 0.85


def check_threes(scope, folder):
    assert scope["threes"] < 0.2
    assert scope["others"] > 0.7


def check_shapes(scope, folder):
    assert scope["sets"].forget.size == 8
    assert scope["data"].class_names[1] == "square"


def check_items(scope, folder):
    assert rows(scope)["accuracy_forget"]["original"] > rows(scope)["accuracy_forget"]["unlearned"]
    assert rows(scope)["accuracy_forget"]["retrained"] < 0.2


def check_language(scope, folder):
    found = scope["probabilities"]
    assert found["original", "forget"] > 0.9
    assert found["unlearned", "forget"] < 0.3
    assert found["unlearned", "retain"] > 0.5


CHECKS = {
    "linen_checkpoint.py": check_linen,
    "nnx_module.py": check_nnx,
    "haiku_network.py": check_threes,
    "equinox_module.py": check_threes,
    "tfds_folder.py": check_shapes,
    "items.py": check_items,
    "language_model.py": check_language,
}


@pytest.mark.parametrize("name", CHECKS)
def test_an_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXUNLEARN_CACHE", str(tmp_path / "cache"))
    if name == "tfds_folder.py":
        write_tfds(tmp_path / "my_sets")
    CHECKS[name](run(name), tmp_path)


def test_a_package_brings_its_method(tmp_path):
    about = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    points = about["entry-points"]["jaxunlearn.methods"]
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    code = (PACKAGE / "push_pull" / "__init__.py").read_text()
    install(tmp_path, f"[jaxunlearn.methods]\n{lines}")
    (tmp_path / "push_pull.py").write_text(code)
    with installed(tmp_path):
        assert ju.methods.METHODS["push_pull"].summary == "away from a teacher, and back"
        model = ju.models.build("mlp", (8, 8, 1), num_classes=10)
        assert ju.push_pull(model, alpha=2.0).needs.original


def test_every_example_is_run_and_listed():
    page = (EXAMPLES / "README.md").read_text()
    scripts = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    assert scripts == {*CHECKS, "method_package/push_pull/__init__.py"}
    assert all(f"({name})" in page for name in scripts)
