"""The documentation as a site: built strictly, read without a network."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import jaxunlearn as ju
from jaxunlearn.methods import METHODS

ROOT = Path(__file__).parent.parent
NEEDED = ("mkdocs", "material", "mkdocstrings", "jupytext")

if missing := [name for name in NEEDED if find_spec(name) is None]:
    pytest.skip(
        f"{missing[0]} is not here: pip install 'jaxunlearn[docs]'", allow_module_level=True
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "XLA_FLAGS": ""}
    # every warning ends a strict build: a link to nowhere, a page in no list, a name without docs
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


def test_nothing_is_fetched(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)", text)
        loaded += re.findall(r"<link\b[^>]*rel=\"(?:stylesheet|icon|preload)\"[^>]*>", text)
        assert loaded
        assert not [one for one in loaded if re.search(r"(https?:)?//", one)], page
        assert "fonts.googleapis" not in text


def test_public_names_have_pages(site):
    index = (site / "api/index.html").read_text()
    for name in ju.__all__:
        assert (f">ju.{name}<" if name in ju._ROOMS else f"<code>{name}</code>") in index, name
    for name, row in METHODS.items():
        if row.kind == "classifier":
            page = (site / f"api/{row.target.partition(':')[0]}.html").read_text()
            assert f'id="{row.target.replace(":", ".")}"' in page, name


def test_roles_and_links_of_the_repository_are_led(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert not re.search(r":(func|class|data|mod|meth|attr):", text), page
        assert not re.search(r"href=\"[^\"]*\.(py|md|toml)\"", text), page


def test_examples_are_pages(site):
    page = (site / "examples/nnx_module.html").read_text()
    assert "An NNX module that you trained comes in as it is" in page
    assert "# %%" not in page


def test_examples_are_notebooks_with_the_code_of_the_scripts(site):
    scripts = {path.stem: path.read_text() for path in (ROOT / "examples").glob("*.py")}
    assert {path.stem for path in (site / "examples").glob("*.ipynb")} == set(scripts)
    for name, script in scripts.items():
        book = json.loads((site / f"examples/{name}.ipynb").read_text())
        assert book["nbformat"] == 4
        code = ["".join(one["source"]) for one in book["cells"] if one["cell_type"] == "code"]
        # the docstring of the script is the title, a cell of text
        title, *body = ast.parse(script).body
        first = title.value.value.partition("\n")[0]
        assert "".join(book["cells"][0]["source"]) == f"# {first}"
        assert ast.dump(ast.parse("\n\n".join(code))) == ast.dump(ast.Module(body, []))
        page = (site / f"examples/{name}.html").read_text()
        assert f'href="{name}.ipynb"' in page
        assert (site / f"examples/{name}.py.txt").read_text() == script


def test_names_that_are_told_together_have_types(site):
    page = (site / "api/jaxunlearn.language.locators.html").read_text()
    page = page.replace("\N{NO-BREAK SPACE}", " ")
    told = {
        "model, variables": "LanguageModel, Variables",  # attributes
        "baseline, nodes": "str | int, int",  # arguments
    }
    for names, types in told.items():
        found = re.search(rf"<code>{names}</code></b>\s*\(<code>(.*?)</code>\)", page, re.S)
        assert re.sub(r"<[^>]*>|[()]", "", found[1]) == types
