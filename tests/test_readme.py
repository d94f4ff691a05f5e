"""What the README says is what happens."""

import re
from pathlib import Path

import jaxunlearn
from jaxunlearn.methods import METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_code_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.S))
    scope = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert {path.name for path in tmp_path.iterdir()} == {"path.png", "heatmaps.png"}
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
    table = README.split("| method | reads |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == set(METHODS)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
