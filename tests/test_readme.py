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
    assert len([line for line in code.split("\n") if line.strip() and line[0] != "#"]) <= 20
    shown, print_report = [], jaxunlearn.print_report
    show = lambda report: (shown.append(report), print_report(report))  # noqa: E731
    monkeypatch.setattr(jaxunlearn, "print_report", show, raising=False)
    exec(compile(code, "README.md", "exec"), {})
    assert not list(tmp_path.iterdir())
    assert "retrained" in capsys.readouterr().out
    values = {row["name"]: row["values"] for row in shown[0]["rows"]}
    assert "speedup" in values
    assert values["accuracy_forget"]["original"] > 0.9
    assert values["accuracy_forget"]["unlearned"] < 0.2


def test_it_is_short():
    assert len(README.split("\n")) <= 140
    assert not re.search(r"^[A-Z]+$", README, re.M), "a placeholder"
    assert README.count("\n| accuracy on the class") == 1, "the table of results"


def test_every_method_is_listed_and_leads_to_its_file():
    page = (ROOT / "docs" / "language_methods.md").read_text()
    table = page.split("| method | reads")[1].split("\n\n")[0]
    language = re.findall(r"^\| `(\w+)` \|", table, re.M)
    table = README.split("## Methods")[1].split("\n## ")[0]
    others = dict(re.findall(r"\[`(\w+)`\]\((jaxunlearn/methods/[\w/]+)\.py\)", table))
    assert sorted([*language, *others]) == sorted(METHODS)
    for name, place in others.items():
        module = METHODS[name].target.partition(":")[0].replace(".", "/")
        assert place.removesuffix("/__init__") == module


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
