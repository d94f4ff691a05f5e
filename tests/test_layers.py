"""A reader follows data, parameters and request in one direction: the folders are layers."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxunlearn"
# each module imports only from layers before its own, or from its own folder
LAYERS = [
    ["core"],
    ["config", "jaxprs", "checkpoint"],
    ["data", "attribution", "models"],
    ["training", "engine", "pictures", "report"],
    ["concepts", "gan", "language"],
    ["methods"],
    ["metrics"],
    ["kinds"],
    ["experiment"],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def layer(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The parts of this library that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "jaxunlearn":
            names = [f"jaxunlearn.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            names = [node.module or ""]
        else:
            continue
        for name in names:
            if name.startswith("jaxunlearn.") and not name.endswith("__version__"):
                yield name.split(".")[1]


def test_every_file_has_a_layer():
    assert {layer(path) for path in FILES} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = layer(path)
    for other in imported(path):
        assert other == own or RANK[other] < RANK[own], f"{own} imports {other}"


def test_flax_is_known_to_the_models_alone():
    for path in FILES:
        if layer(path) != "models":
            assert "flax" not in {
                (node.module or "").split(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ImportFrom)
            }, path
