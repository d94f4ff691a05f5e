"""Methods that a run is told, or finds by itself; data that it loads once."""

import dataclasses
import json
import zlib

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import checkpoint
from jaxunlearn import report as files
from jaxunlearn.cli import main
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.errors import CheckpointError, ConfigError
from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.engine import Chain
from jaxunlearn.experiment import plan as planning
from jaxunlearn.experiment import trial
from jaxunlearn.experiment.plan import make_plan
from jaxunlearn.metrics import measure
from tests.runs import hurry

SMALL = [
    "train.epochs=3", "train.learning_rate=5e-3", "model.options.features=(24,16)", "retrained=1",
]  # fmt: skip
ITEMS = [*SMALL, "request.classes=", "request.share=0.05"]
EDIT = {"method": "neuron_path", "per_sample": 6, "neurons": 6}
REPAIRED = {"chain": (EDIT, {"method": "finetune", "steps": 5})}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Models are made and judged as ever, but timed once, not cold, and not drawn."""
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        yield


def config(methods, *words):
    return dataclasses.replace(load_config(None, [*SMALL, *words]), methods=methods)


def variables(home, name):
    return checkpoint.load(home / name)[0]


def alike(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)


@pytest.fixture(scope="module")
def items(tmp_path_factory, quick):
    """A run on items that was told no methods."""
    folder = tmp_path_factory.mktemp("items")
    assert main(["run", *ITEMS, "--runs", str(folder)]) == 0
    return folder / "digits"


class TestDefaults:
    def test_those_that_suit_are_run(self, items):
        report = files.load(items)
        wanted = ["finetune", "gradient_ascent", "random_label"]
        assert report["columns"] == ["original", *wanted, "retrained"]
        assert sorted(path.name for path in (items / "unlearned").iterdir()) == wanted
        steps = {row["name"]: row["values"] for row in report["rows"]}["steps"]
        assert [steps[name] for name in wanted] == [100, 30, 50], "with options for the digits"
        assert json.loads((items / "config.json").read_text())["methods"] == {}

    def test_the_report_says_which_were_left_out_and_why(self, items, capsys):
        left_out = ["neuron_path", "path_head_only", "concept_poison"]
        sentences = [
            f"{name} left out: it forgets classes, and the request is for items"
            for name in left_out
        ]
        notes = files.load(items)["notes"]
        assert [note for note in notes if "left out" in note] == sentences
        assert main(["show", str(items)]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert all(sentence in shown for sentence in sentences)
        assert f"- {sentences[0]}" in (items / "report.md").read_text()

    def test_of_a_class_all_are_run(self, tmp_path):
        plan = make_plan(load_config(None, []), tmp_path)
        assert list(plan.methods) == list(ju.config.DEFAULT_METHODS)
        assert plan.left_out == ()

    def test_one_that_is_asked_for_must_suit(self, tmp_path, capsys):
        for name, why in (
            ("concept_poison", "it forgets classes, and the request is for items"),
            ("path_head_only", "got neuron_path: it forgets classes"),
        ):
            assert main(["run", *ITEMS, f"methods={name}", "--runs", str(tmp_path)]) == 1
            message = capsys.readouterr().err
            assert message.startswith(f"error: methods.{name}: expected a method that suits")
            assert why in message
            assert message.count("\n") == 1, "one line"
        assert not list(tmp_path.iterdir())

    @pytest.fixture
    def own_data(self, tmp_path):
        """Vectors of three classes, and a run on them that is told no methods."""
        rng = np.random.default_rng(0)
        y = np.repeat(np.arange(3), 20).astype(np.int32)
        x = (rng.normal(size=(60, 5)) + 2 * np.eye(3, 5)[y]).astype(np.float32)
        np.savez(tmp_path / "own.npz", train_x=x, train_y=y, test_x=x, test_y=y)
        return [*SMALL, f"data.name={tmp_path / 'own.npz'}", "data.unseen=9", "request.classes=1"]

    def test_on_other_data_they_are_the_methods_of_the_kind(self, own_data, tmp_path):
        plan = make_plan(load_config(None, own_data), tmp_path)
        ours = {"finetune", "gradient_ascent", "random_label", "neuron_path"}
        assert set(plan.methods) >= ours - {"neuron_path"}
        assert "retrain" not in plan.methods
        assert set(plan.methods) <= {*ours, "concept_poison"}
        told = " ".join(plan.left_out)
        for name in {*ours, "concept_poison"} - set(plan.methods):
            assert f"{name} left out: " in told

    def test_one_that_refuses_the_data_is_left_out_too(self, own_data, tmp_path, capsys):
        """Nothing is unseen: the path of the class cannot be found."""
        words = [*own_data, "data.unseen=0"]
        plan = make_plan(load_config(None, words), tmp_path)
        (why,) = (note for note in plan.left_out if note.startswith("neuron_path"))
        assert "needs unseen examples, got none" in why
        assert not why.startswith("neuron_path left out: methods.")
        assert main(["run", *words, "methods=neuron_path", "--runs", str(tmp_path)]) == 1
        assert "needs unseen examples, got none" in capsys.readouterr().err

    def test_none_that_suits_is_an_error_with_all_reasons(self, tmp_path, monkeypatch):
        only_paths = {"neuron_path": {}, "concept_poison": {}}
        monkeypatch.setattr("jaxunlearn.kinds.classifier.DEFAULT_METHODS", only_paths)
        with pytest.raises(ConfigError, match="methods: expected one that suits, got none: ") as e:
            make_plan(load_config(None, ITEMS), tmp_path)
        assert str(e.value).count("left out: it forgets classes") == 2


@pytest.fixture(scope="module")
def parts(tmp_path_factory, quick):
    """A run with a chain, and methods that train parts of the network: folder, plan, report."""
    folder = tmp_path_factory.mktemp("parts")
    asked = config({
        "repaired": REPAIRED,
        "head": {"method": "finetune", "steps": 4, "only": "^head/"},
        "biases": {
            "method": "random_label", "steps": 4, "only": ("fc1/bias", "fc2/bias"),
            "optimizer": "adamw", "weight_decay": 0.1,
        },
    })  # fmt: skip
    report = ju.run(asked, folder)
    return folder / "digits", make_plan(asked, folder), report


class TestParts:
    def test_a_chain_is_run_and_judged_as_one_method(self, parts):
        home, plan, report = parts
        assert report["columns"] == ["original", "repaired", "head", "biases", "retrained"]
        record = checkpoint.read_record(home / "unlearned/repaired")
        assert {name.partition("/")[0] for name in record["history"]} == {"0", "1"}
        assert len(record["history"]["1/loss"]) == 5
        assert record["inputs"]["own"]["chain"][1] == {"method": "finetune", "steps": 5}
        rows = {row["name"]: row for row in report["rows"]}
        assert rows["steps"]["values"]["repaired"] == record["costs"]["steps"] > 5
        assert "failed" not in rows["accuracy_forget"]
        # the same by hand
        links = plan.methods["repaired"][0]
        assert isinstance(links, Chain)
        given = jax.tree.map(jax.numpy.asarray, variables(home, "original"))
        key = derive(plan.key, Purpose.METHOD, zlib.crc32(b"repaired"))
        edited = ju.unlearn(links.links[0][0], given, plan.sets, derive(key, Purpose.LINK, 0))
        both = ju.unlearn(
            links.links[1][0], edited.variables, plan.sets, derive(key, Purpose.LINK, 1),
            **links.links[1][1],
        )  # fmt: skip
        found = variables(home, "unlearned/repaired")
        alike(both.variables, found)
        with pytest.raises(AssertionError):
            alike(edited.variables, found)

    @pytest.mark.parametrize(
        ("label", "trained"),
        [("head", {"head/kernel", "head/bias"}), ("biases", {"fc1/bias", "fc2/bias"})],
    )
    def test_only_a_part_is_trained_and_the_rest_is_bit_equal(self, parts, label, trained):
        home, _, _ = parts
        before = variables(home, "original")["params"]
        after = variables(home, f"unlearned/{label}")["params"]
        changed = {
            f"{layer}/{name}"
            for layer in before
            for name in before[layer]
            if before[layer][name].tobytes() != after[layer][name].tobytes()
        }
        assert changed == trained

    def test_a_second_run_finds_them(self, parts):
        home, plan, report = parts
        told = []
        again = ju.run(plan.config, home.parent, listener=lambda *call: told.append(call))
        assert [progress for _, progress in told] == [None] * 5
        assert again == report

    def test_other_links_are_another_method(self, parts):
        home, plan, _ = parts
        longer = {"chain": (EDIT, {"method": "finetune", "steps": 6})}
        asked = dataclasses.replace(plan.config, methods={"repaired": longer})
        with pytest.raises(CheckpointError, match=r"repaired: .*other settings.*chain"):
            ju.run(asked, home.parent)

    def test_a_chain_can_be_typed(self, tmp_path):
        text = "({'method': 'neuron_path', 'per_sample': 6, 'neurons': 6}, {'method': 'finetune'})"
        words = [*SMALL, "methods=repaired", f"methods.repaired.chain={text}"]
        plan = make_plan(load_config(None, words), tmp_path)
        assert len(plan.methods["repaired"][0].links) == 2


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            {"x": {"chain": ()}},
            "methods.x.chain: expected options with a method for each link, got",
        ),
        ({"x": {"chain": ({"steps": 3},)}}, "expected options with a method for each link"),
        ({"x": {"chain": 3}}, "expected options with a method for each link, got 3"),
        (
            {"x": {**REPAIRED, "steps": 3}},
            r"methods.x: expected nothing beside chain, got \['steps",
        ),
        ({"x": {"chain": ({"method": "magic"},)}}, r"methods\.x\.chain: expected one of .*'magic'"),
        ({"x": {"chain": ({"method": "cascade"},)}}, "for the model mlp, got 'cascade'"),
        (
            {"x": {"chain": ({"method": "finetune", "rate": 1},)}},
            r"methods\.x\.chain: expected options among .* got \['rate'\]",
        ),
        ({"finetune": {"only": "nothing"}}, "methods.finetune: only: expected patterns found in"),
        ({"finetune": {"only": "("}}, "methods.finetune: only: expected regular expressions"),
        ({"neuron_path": {"only": "head"}}, "expected options among"),
    ],
)
def test_mistakes_in_parts_cost_no_work(tmp_path, methods, message):
    with pytest.raises(ConfigError, match=message):
        ju.run(config(methods), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["seeds=2"], ["request.each=true", "request.classes=3,1"]])
def test_data_are_loaded_once_for_all(tmp_path, monkeypatch, words):
    loaded, load = [], planning.load_dataset

    def counted(given):
        loaded.append(given)
        return load(given)

    monkeypatch.setattr(planning, "load_dataset", counted)
    own = {"names": ["accuracy_forget"]}
    monkeypatch.setattr(trial, "measure", lambda *given, names: measure(*given, **own))
    asked = config({"finetune": {"steps": 2}}, "train.epochs=1", *words)
    report = ju.run(asked, tmp_path)
    assert len(report["trials"]["numbers"]) == 2
    assert len(loaded) == 1
