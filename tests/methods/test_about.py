"""The list of methods in the manual, and what the command line says of each."""

from pathlib import Path

import pytest

from jaxunlearn.cli import main
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.methods import METHODS, TRAITS, about

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_page_holds_the_methods_as_they_are():
    page = PAGE.read_text(encoding="utf-8")
    assert about.with_table(page) == page, (
        "run `python -m jaxunlearn.methods.about docs/methods.md`"
    )
    assert page.count("](../jaxunlearn/methods/") == sum(
        row.kind == "classifier" for row in METHODS.values()
    )


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="page: expected"):
        about.with_table("text")


@pytest.mark.parametrize("name", METHODS)
def test_every_docstring_says_what_it_does_and_from_where(name):
    row, text = METHODS[name], about.explain_method(name)
    assert text.startswith(f"{name}: {row.summary}")
    assert set(row.traits) <= set(TRAITS)
    # a verb in the third person
    first = text.splitlines()[1].split()[0]
    assert first.endswith(("s", "s,")), first


def test_the_command_explains_methods_and_metrics(capsys):
    assert main(["explain", "gradient_ascent"]) == 0
    told = capsys.readouterr().out
    assert "theta + eta grad l(B_f)" in told
    assert "forgets  class, items" in told
    assert main(["explain", "ZRF"]) == 0
    with pytest.raises(ConfigError, match="methods"):
        about.explain_method("gradient_descent")
    capsys.readouterr()
    assert main(["explain", "gradient_descent"]) != 0
    assert "did you mean 'gradient_ascent'" in capsys.readouterr().err
    assert main(["explain", "SalUn"]) == 0
    assert capsys.readouterr().out.startswith("salun: ")
