"""Texts of metrics: each has one, nothing is left over, and the manual's page holds them."""

import functools
import re
from pathlib import Path

import pytest

from jaxunlearn.cli import main
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.metrics import METRICS, Metric, about, register_metric

PAGE = Path(__file__).parent.parent.parent / "docs" / "metrics.md"


def is_ours(row):
    function = row.function
    while isinstance(function, functools.partial):
        function = function.func
    return function is None or function.__module__.startswith("jaxunlearn.")


def test_each_metric_has_a_text_and_each_text_a_metric():
    told = [name for text in about.texts() for name in text.metrics]
    assert len(told) == len(set(told))
    assert set(told) == {name for name, row in METRICS.items() if is_ours(row)}


@pytest.mark.parametrize("text", about.texts(), ids=lambda text: text.metrics[0])
def test_a_text_is_whole(text):
    assert text.kind in about.KINDS
    for part in about.PARTS:
        words = getattr(text, part)
        assert len(words) > 4, part
        assert words.endswith(".") or part == "example", part
        assert words.count("`") % 2 == 0, part
        assert words == " ".join(words.split()), part
    assert re.search(r"\d", text.example), "a worked value is a number"
    groups = {METRICS[name].group for name in text.metrics}
    assert len(groups) == 1 or text.title or len(text.metrics) == 2, "a family of one group"
    assert len({METRICS[name].extra for name in text.metrics}) == 1


def test_which_way_is_better_is_that_of_the_row():
    begin = {"as retrained": "As retrained", "small": "Small", "large": "Large", "0.5": ".5"}
    for text in about.texts():
        for name in text.metrics:
            wanted = begin[METRICS[name].ideal]
            assert wanted.lower() in text.better.lower(), name


def test_the_page_of_the_manual_holds_the_texts():
    page = PAGE.read_text()
    assert about.with_paragraphs(page) == page, (
        "run `python -m jaxunlearn.metrics.about docs/metrics.md`"
    )
    assert "## Metrics judged" in page
    own = about.paragraphs().split("\n\n")
    assert len([one for one in own if one.startswith("**")]) == len(about.texts())
    for line in about.paragraphs().split("\n"):
        # none is taken for an item of a list, a quotation or a rule
        assert not re.match(r"([-+*>]|\d+[.)])( |$)|[=-]+$", line), line
        assert len(line) <= 160, line
    with pytest.raises(ValueError, match="page: expected"):
        about.with_paragraphs("# A page without marks\n")


def test_what_is_printed(capsys):
    assert main(["explain", "tpr_1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tpr_1: forget images found at 1 % false alarms\n")
    for part in ("group", *about.PARTS, "shown"):
        assert re.search(rf"^  {part} +\S", printed, re.M), part
    assert "jaxunlearn run metrics=tpr_1`" in printed
    # as papers call it, in any case; two kinds of models may share that
    assert main(["explain", "uds"]) == 0
    assert re.findall(r"^(\w+): ", capsys.readouterr().out, re.M) == ["depth", "depth_of_answers"]
    assert main(["explain", "--all"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in METRICS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["klom_forgt"], "did you mean 'klom_forget'"),
        (["KLOMM"], "did you mean 'KLoM'"),
        (["loss_atack"], "did you mean 'loss_attack'"),
        ([""], "got ''"),
        ([], "expected the name of a metric or --all"),
        (["lira", "--all"], "expected the name of a metric or --all"),
    ],
)
def test_what_is_not_understood(words, message, capsys):
    assert main(["explain", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_metric_of_another_package_is_explained_by_its_docstring(monkeypatch):
    monkeypatch.setattr(METRICS, "_rows", dict(METRICS._rows))

    def sharpness(evidence, power):
        """Computes how sharp it is.

        In units of nothing.
        """

    own = functools.partial(sharpness, power=2)
    register_metric("sharpness", Metric("sharpness", "form", "small", ".3f", own, ("weights",)))
    printed = about.explain("sharpness")
    assert "means     Computes how sharp it is. In units of nothing." in printed
    assert "better    small" in printed
    assert printed in about.explain_all()
    bare = Metric("bare", "form", "small", ".3f", lambda evidence: 0.0)
    register_metric("bare", bare)
    assert "no text" in about.explain("bare")
    with pytest.raises(ConfigError, match="did you mean 'sharpness'"):
        about.explain("sharpnes")
