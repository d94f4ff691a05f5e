"""What the README says is what happens."""

import re
from pathlib import Path

import pytest

import jaxunlearn
from jaxunlearn.unlearners import METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_the_code_runs(code, capsys):
    scope = {}
    exec(compile(code, "README.md", "exec"), scope)
    shown = capsys.readouterr().out
    assert "retrained" in shown
    assert "'params/fc/kernel': (8, 128)" in shown
    rows = jaxunlearn.evaluate(scope["model"], scope["models"], scope["oracles"], scope["sets"])[
        "rows"
    ]
    assert "speedup" in {row["name"] for row in rows}
    forget = {row["name"]: row["values"] for row in rows}["accuracy_forget"]
    assert forget["original"] > 0.95
    assert forget["unlearned"] < 0.2


def test_every_method_is_listed():
    assert set(re.findall(r"^\| `(\w+)` \|", README, re.M)) == set(METHODS)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
