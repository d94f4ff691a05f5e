"""What the manuals say is what happens: the code of each is one program."""

import inspect
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxunlearn.cli import _parser, main
from jaxunlearn.config.overrides import load_bench, load_config
from jaxunlearn.data.sources import SOURCES
from jaxunlearn.engine.predict import predict
from jaxunlearn.kinds.evaluate import evaluate
from jaxunlearn.language import answer_nll, save_pretrained, write_answers
from jaxunlearn.methods import METHODS
from jaxunlearn.metrics.registry import METRICS
from jaxunlearn.models import NETWORKS
from jaxunlearn.pictures import PICTURES

DOCS = Path(__file__).parent.parent / "docs"
REGISTRIES = (METHODS, METRICS, NETWORKS, PICTURES, SOURCES)


def code_of(page):
    """The code of a page, without blocks that need a package which is not here."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)
    needed = {block: re.findall(r"^import (haiku|equinox)\b", block, re.M) for block in blocks}
    return "\n".join(block for block in blocks if all(map(find_spec, needed[block])))


def test_glue_of_a_framework_is_short():
    section = (DOCS / "own_model.md").read_text().split("## Flax, Haiku, Equinox")[1]
    for block in re.findall(r"```python\n(.*?)```", section.split("## Many")[0], re.S):
        assert len(block.split("\n\n\n")[-1].strip().split("\n")) <= 5


def test_a_configuration_of_ones_own_network(forgetful, tmp_path, monkeypatch):
    from jaxunlearn.config.overrides import load_config
    from jaxunlearn.models import build

    monkeypatch.setattr("sys.path", list(sys.path))
    text = (DOCS / "own_model.md").read_text()
    (tmp_path / "mine.py").write_text(re.findall(r"```text\n(# mine.py.*?)```", text, re.S)[0])
    (tmp_path / "my_networks.py").write_text(
        "from flax import linen\n\n\nclass CNN(linen.Module):\n    classes: int\n\n"
        "    @linen.compact\n    def __call__(self, x, is_training: bool = False):\n"
        "        x = linen.Dropout(0.1, deterministic=not is_training)(x.reshape(len(x), -1))\n"
        "        return linen.Dense(self.classes)(x)\n"
    )
    config = load_config(str(tmp_path / "mine.py"), ["request.classes=owl"])
    assert config.model.name == "my_cnn"
    model = build("my_cnn", (3, 8, 8), 5)
    variables = model.init(jax.random.key(0))
    assert model.apply(variables, np.zeros((2, 3, 8, 8), np.float32)).shape == (2, 5)


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
    assert {"original", "push_pull", "retrained"} <= set(rows["entropy_forget"]["values"])
    assert rows["accuracy_forget"]["values"]["retrained"] == 0
    assert (tmp_path / "runs/mine/pictures/norms.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "page",
    ["tutorial", "own_model", "data", "attribution", "concepts", "ensembles", "gan",
     "language_concepts"],
)  # fmt: skip
def test_a_manual_is_one_program(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    # as a user has it
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code_of(f"{page}.md"), f"{page}.md", "exec"), scope)
        CHECKS[page](scope, tmp_path)


@pytest.mark.long
def test_manuals_of_language_models(tmp_path, monkeypatch):
    """The pages of language models go on from the first; in fewer steps than there."""
    judged = []

    # which takes most of the time, and is what tests/language does: its arguments are checked
    def judge(*models, **rest):
        judged.append(inspect.signature(evaluate).bind(*models, **rest).arguments)

    monkeypatch.setattr("jaxunlearn.kinds.evaluate.evaluate", judge)
    monkeypatch.setattr("jaxunlearn.report.print_report", lambda report: None)
    monkeypatch.chdir(tmp_path)
    scope = {"DIR": tmp_path / "theirs", "DIR2": tmp_path / "ours"}
    first, said, files = re.findall(
        r"```python\n(.*?)```", (DOCS / "language.md").read_text(), re.S
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(first + said, "language.md", "exec"), scope)
        assert set(judged[0]["models"]) == {"original", "unlearned"}
        scope |= {"variables": scope["original"].variables, "key": jax.random.key(0)}
        code = code_of("language_methods.md").replace("steps=100", "steps=2")
        exec(compile(code, "language_methods.md", "exec"), scope)
        assert scope["out"].steps == 2
        save_pretrained(scope["DIR"], scope["model"], scope["variables"])
        scope["tokenizer"].save(scope["DIR"])
        exec(compile(files, "language.md", "exec"), scope)
        assert (scope["DIR2"] / "tokenizer.json").exists()
        exec(compile(code_of("language_scaling.md"), "language_scaling.md", "exec"), scope)
        assert scope["config"].sharding_rules


ELSEWHERE = {
    "extending.md": "above",
    "language.md": "above",
    "language_methods.md": "above",
    "language_scaling.md": "above",
    "erasure.md": "tests/experiment/test_erasure.py",
    "text_classes.md": "not run: reads TREC, which is no part of the repository",
}
"""Pages with code that the table of manuals does not run, and what does."""


def test_all_code_of_all_pages_is_run():
    pages = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md") if "```py" in p.read_text()}
    assert pages == {*ELSEWHERE, *(f"{page}.md" for page in CHECKS)}


def check_tutorial(scope, folder):
    rows = scope["rows"]
    assert rows["accuracy_test_forget"]["original"] > 0.9
    for name in ("neuron_path", "scrub"):
        assert rows["accuracy_test_forget"][name] < 0.2
        assert rows["accuracy_test_retain"][name] > 0.9
    assert rows["linear_probe"]["neuron_path"] > 0.9, "hidden, not gone"


def check_own_model(scope, folder):
    rows = {row["name"]: row["values"] for row in scope["report"]["rows"]}
    assert rows["accuracy_forget"]["original"] > 0.95
    assert rows["accuracy_forget"]["unlearned"] < 0.2
    assert {"speedup", "linear_probe", "js_to_retrained"} <= set(rows)
    assert {path.name for path in folder.iterdir()} == {"path.png", "report"}
    assert scope["many"].variables["params"]["head"]["bias"].shape == (3, 1, 10)


def check_data(scope, folder):
    predicted = scope["model"].apply(scope["forgot"].variables, scope["texts"]).argmax(axis=1)
    assert predicted.shape == (200,)


def check_attribution(scope, folder):
    assert scope["r"].neurons["params/fc1/kernel"].shape[0] == 8
    assert scope["out"].attribution.shape == scope["x"].shape
    assert (folder / "heatmaps.png").exists()


def check_concepts(scope, folder):
    model, sets = scope["model"], scope["sets"]
    assert predict(model.apply, scope["poisoned"].variables, sets.test_forget).accuracy < 0.2
    assert predict(model.apply, scope["poisoned"].variables, sets.test_retain).accuracy > 0.85


def check_ensembles(scope, folder):
    rows = {row["name"]: row["values"] for row in scope["report"]["rows"]}
    assert set(rows["lira"]) == {"originals", "finetune"}
    assert "4 bits" in scope["rounded"]["title"]
    count = int(scope["sets"].forget.size)
    assert scope["norms"].shape == scope["lira"]["finetune"].shape == (count,)
    assert (folder / "exposed.png").exists()
    assert all(float(leaf.min()) >= 0 for leaf in jax.tree.leaves(scope["fisher"]))


def check_gan(scope, folder):
    assert scope["forgot"].history["forget_share"][-1] < 0.1
    assert scope["images"].shape == (64, 8, 8, 1)


def check_language_concepts(scope, folder):
    assert {word for word, _ in scope["ranked"][0][:2]} <= {"ada", "byrne", "lisbon"}
    model, x = scope["model"], scope["x"]
    for name, least, most in (("variables", 0.9, 1), ("forgot", 0, 0.5)):
        variables = getattr(scope[name], "variables", scope[name])
        nll, count = answer_nll(model.apply(variables, x), x)
        assert least < float(np.exp(-nll / count)[:2].mean()) < most
        assert float(np.exp(-nll / count)[2:].min()) > 0.9
    tokenizer, questions = scope["tokenizer"], scope["questions"]
    said = write_answers(model, scope["forgot"].variables, tokenizer, questions, most=20)
    assert "***" in said[0]
    assert not {"Ada", "Byrne", "Lisbon"} & set(re.findall(r"\w+", " ".join(said[:2])))
    assert said[2:] == scope["answers"][2:]
    areas = {row["locator"]: row["area"] for row in scope["table"]}
    assert areas["ig"] < areas["random"]


CHECKS = {
    "tutorial": check_tutorial,
    "language_concepts": check_language_concepts,
    "own_model": check_own_model,
    "data": check_data,
    "attribution": check_attribution,
    "concepts": check_concepts,
    "ensembles": check_ensembles,
    "gan": check_gan,
}


def commands_of(text):
    """Yields the words of each command line of a page, and the output below it."""
    text = re.sub(r" *\\\n {4,}", " ", text)
    for block in re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.M):
        parts = re.split(r"^ {4}(?:\$ )?(?:\S*/)?jaxunlearn (.*)\n", block, flags=re.M)
        for line, output in zip(parts[1::2], parts[2::2], strict=True):
            line = re.split(r" &&? ?|; ", line)[0]
            yield shlex.split(line, comments=True), [one[4:] for one in output.splitlines()]


PAGES = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_of_all_pages_are_understood(page):
    """Commands and options exist, and every ``key=value`` is one of the configuration."""
    parser = _parser()
    for words, _ in commands_of(page.read_text()):
        words = words[: words.index(">")] if ">" in words else words
        options, rest = parser.parse_known_args(words)
        assert not [word for word in rest if word.startswith("-")], words
        given = [*getattr(options, "words", []), *rest]
        names = [word for word in given if "=" not in word]
        if "words" not in options or any(re.search(r"\.py$|^[A-Z]+$", name) for name in names):
            continue
        assert len(names) <= 1, words
        keys = [word for word in given if "=" in word and not re.search(r"=@|=FOLDER|=FILE", word)]
        keys = [key for key in keys if not key.startswith("language.base=")]
        load = load_bench if words[0] == "bench" else load_config
        load(*(names or [None]), keys)


@pytest.mark.long
def test_the_page_of_commands_is_what_they_print(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def plain(text):  # numbers are of a machine, and so is where lines break
        return " ".join(re.sub(r"[\d.]+", "#", text).split())

    found = list(commands_of((DOCS / "commands.md").read_text()))
    assert {words[0] for words, _ in found} == set(parser_commands())
    for words, output in found:
        words = words[: words.index(">")] if ">" in words else words
        assert main(words) == 0, words
        printed = plain(capsys.readouterr().out)
        for part in "\n".join(output).split("..."):
            if words[0] != "doctor":
                assert plain(part) in printed, (words, part)


def test_every_command_has_its_place_on_the_page_of_commands():
    shown = {words[0] for words, _ in commands_of((DOCS / "commands.md").read_text())}
    assert shown == set(parser_commands())


def parser_commands():
    return next(one.choices for one in _parser()._actions if isinstance(one.choices, dict))


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.rglob("*.md")))
def test_links_lead_somewhere(page):
    path = next(DOCS.rglob(page))
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
