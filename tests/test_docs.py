"""What the manuals say is what happens: the code of each is one program."""

import re
from pathlib import Path

import pytest

from jaxunlearn.data.sources import SOURCES
from jaxunlearn.methods import METHODS
from jaxunlearn.metrics.registry import METRICS
from jaxunlearn.models import NETWORKS
from jaxunlearn.pictures import PICTURES

DOCS = Path(__file__).parent.parent / "docs"
REGISTRIES = (METHODS, METRICS, NETWORKS, PICTURES, SOURCES)


def code_of(page):
    return "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S))


@pytest.fixture
def forgetful(monkeypatch):
    """Takes back what a page registers."""
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_rows", dict(registry._rows))


def test_extending(forgetful, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(compile(code_of("extending.md"), "extending.md", "exec"), scope)
    rows = {row["name"]: row for row in scope["report"]["rows"]}
    assert {"original", "scrub", "retrained"} <= set(rows["entropy_forget"]["values"])
    assert rows["accuracy_forget"]["values"]["retrained"] == 0
    assert (tmp_path / "runs/mine/pictures/norms.png").stat().st_size > 1000


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.rglob("*.md")))
def test_links_lead_somewhere(page):
    path = next(DOCS.rglob(page))
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
