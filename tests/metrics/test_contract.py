"""Contract of all metrics: each runs, is left out where a set is missing, and fails alone."""

import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxunlearn as ju
from jaxunlearn import report as files
from jaxunlearn.config import GanConfig
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.metrics import METRICS, measure
from jaxunlearn.metrics.classification import ClassifierEvidence
from jaxunlearn.metrics.generation import Extent, GanEvidence
from jaxunlearn.metrics.language_evidence import LanguageEvidence
from jaxunlearn.metrics.registry import SCOPES, applying, check_asked, measure_ensemble
from jaxunlearn.report.text import FAILED
from tests import toy
from tests.language import small_authors

EVIDENCE = {"classifier": ClassifierEvidence, "gan": GanEvidence, "language": LanguageEvidence}
EXTENT = {"samples": 200, "inverted": 4, "inversion_steps": 3, "downstream_steps": 5}
JUDGED = [name for name, row in METRICS.items() if row.function is not None]
KEY = jax.random.key(5)


def retrained_of(kind):
    keys = jax.random.split(KEY, 2)
    if kind == "language":
        return [small_authors.trained(seed, retrained=True) for seed in (1, 2)]
    if kind == "gan":
        runs = {"steps": 4, "batch_size": 32}
        sets = toy.sets(gan=True)
        return [
            ju.unlearn(toy.method("gan_retrain"), None, sets, key, **runs).variables for key in keys
        ]
    config = ju.TrainConfig(epochs=4, batch_size=32, learning_rate=5e-3)
    return [ju.train(toy.mlp(), toy.sets().retain, key, config=config).variables for key in keys]


def original_of(kind):
    if kind == "language":
        return small_authors.trained()
    return (toy.trained_gan() if kind == "gan" else toy.trained()).variables


def model_of(kind):
    return {"gan": toy.gan, "language": small_authors.decoder}.get(kind, toy.mlp)()


def sets_of(kind):
    return small_authors.sets() if kind == "language" else toy.sets(gan=kind == "gan")


def observe(kind, variables, sets=None):
    sets = sets_of(kind) if sets is None else sets
    if kind == "language":
        return LanguageEvidence(model_of(kind), variables, sets, KEY, **small_authors.helpers())
    if kind == "gan":
        return GanEvidence(toy.gan(), variables, sets, KEY, toy.guide(), Extent(**EXTENT))
    return ClassifierEvidence(toy.mlp(), variables, sets, KEY)


@pytest.fixture(scope="module")
def seen():
    """Evidence of the original and two retrained models, of each kind."""
    return {
        kind: [observe(kind, one) for one in (original_of(kind), *retrained_of(kind))]
        for kind in EVIDENCE
    }


@pytest.mark.parametrize("name", JUDGED)
def test_each_metric_is_measured_on_its_kind(name, seen):
    row = METRICS[name]
    kinds = [kind for kind, own in EVIDENCE.items() if set(row.needs) <= own.provides]
    assert len(kinds) == (3 if set(row.needs) <= {"weights"} else 1), "of one kind, or of any"
    assert row.label
    assert row.format == "d" or format(0.5, row.format)
    for kind in kinds:
        original, *retrained = seen[kind]
        if row.scope == "ensemble":
            many = [retrained[n % 2] for n in range(8)]  # two models, and both sides the same
            values, failed, each = measure_ensemble(many, many, ("all",))[:3]
            nothing = {"small": 0, "0.5": 0.5, "large": 1}[row.ideal]
            assert values[name] == pytest.approx(nothing, abs=1e-5)
            assert not failed
            assert (name in each) == row.each
            continue
        for evidence in (original, retrained[0]):
            found = measure(evidence, original, retrained, names=[name])
            assert not found.failed
            assert set(found.values) == {name}
            value = found.values[name]
            assert all(map(math.isfinite, value if row.along else [value]))
            assert json.loads(json.dumps(value)) == value, "as plain as JSON"
            if row.each:
                forget = int(evidence.sets.forget.size)
                assert found.each[name].shape == (forget,)
                assert found.each[name].mean() == value


def test_metrics_of_a_model_alone_need_no_other(seen):
    """Those beside the retrained models are left out without them."""
    for kind, (original, *retrained) in seen.items():
        alone = measure(original).values
        beside = measure(original, original, retrained).values
        scopes = {METRICS[name].scope for name in beside.keys() - alone.keys()}
        assert scopes == ({"retrained", "both"} if kind == "language" else {"retrained"}), kind
        assert {name: beside[name] for name in alone} == alone
        assert set(applying(original, SCOPES)) >= set(beside)


def test_extra_metrics_are_measured_where_they_are_asked_for(seen):
    original, *retrained = seen["classifier"]
    usual = measure(original, original, retrained).values
    assert not [name for name in usual if METRICS[name].extra]
    one = measure(original, original, retrained, asked=("depth",)).values
    assert set(one) == {*usual, "depth"}
    assert set(applying(original, asked=("all",))) >= {"depth", "auc_loss", *usual}
    with pytest.raises(ConfigError, match=r"metrics: expected .* got 'depht'; did you mean"):
        check_asked(("depht",))
    with pytest.raises(TypeError, match="metrics: expected names of metrics, got 'depth'"):
        check_asked("depth")


def test_the_original_and_the_retrained_model_are_the_ends(seen):
    original, *retrained = seen["classifier"]
    names = ["depth", "progress_forget", "completeness", "weight_distance", "activation_distance"]
    start = measure(original, original, retrained, names=names).values
    end = measure(retrained[0], original, retrained, names=names).values
    assert start["depth"] == pytest.approx(0, abs=1e-6)
    assert start["progress_forget"] == 0
    assert end["depth"] > 0.5
    assert end["progress_forget"] > 0.3
    assert end["completeness"] > 0.8 > 0.2 > start["completeness"]
    assert end["activation_distance"] < start["activation_distance"]


LEFT_OUT = {
    "classifier": {
        "test_forget": {"accuracy_test_forget", "linear_probe"},
        "test_retain": {"accuracy_test_retain"},
        "test": {
            "accuracy_test_forget", "accuracy_test_retain", "accuracy_test", "linear_probe",
            "loss_attack", "attack_gap", "judged_unseen",
        },
        "unseen": set(),
    },
    "gan": {
        "test_forget": {"discriminator_probe"},
        "test_retain": {"downstream"},
        "test": {
            "inversion_unseen", "membership_auc", "membership_gap", "discriminator_probe",
            "downstream",
        },
        "unseen": set(),
    },
    "language": {
        "test_forget": {"appearance_paraphrased"},
        "test_retain": {"probability_test_retain", "utility"},
        "test": {
            "appearance_paraphrased", "probability_test_retain", "utility", "attack_loss",
            "attack_zlib", "attack_min_k", "attack_min_k_plus", "attack_reference", "privacy_leak",
        },
        "unseen": set(),
    },
}  # fmt: skip


@pytest.mark.parametrize("without", ["test_forget", "test_retain", "test", "unseen"])
@pytest.mark.parametrize("kind", list(EVIDENCE))
def test_a_missing_set_leaves_its_rows_out(kind, without, seen):
    gone = {"test": ["test_forget", "test_retain"], "unseen": ["unseen", "holdout"]}
    original, *retrained = seen[kind]
    sets = original.sets._replace(**dict.fromkeys(gone.get(without, [without])))
    # what is slow, and reads training examples alone, is told apart by the others
    slow = {"relearned_share", "path_length", "largest_step", "relearn_curve", "relearn_steps"}
    asked = [
        name
        for name in applying(original, ("model", "original", "retrained"))
        if name not in slow or without == "test"
    ]
    others = [observe(kind, one.variables, sets) for one in (original, *retrained)]
    found = measure(others[0], others[0], others[1:], names=asked)
    assert not found.failed
    assert set(asked) - set(found.values) == LEFT_OUT[kind][without]


def filled(variables, value):
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), variables)


@pytest.fixture(scope="module")
def reports():
    """Reports on sound models alone, and beside wrecked ones, of each kind."""
    made = {}
    for kind in EVIDENCE:
        original = original_of(kind)
        more = {}
        if kind == "gan":
            more = {"judge": toy.guide(), "settings": GanConfig(**EXTENT)}
        sound = {"original": original, "sound": jax.tree.map(lambda leaf: leaf * 0.9, original)}
        wrecked = {
            "nan": filled(original, np.nan),
            "inf": filled(original, np.inf),
            "flat": filled(original, 0),
        }
        if kind == "language":
            more = small_authors.helpers()
        model, arguments = model_of(kind), (retrained_of(kind), sets_of(kind), KEY)
        made[kind] = [
            ju.evaluate(model, models, *arguments, **more) for models in (sound, sound | wrecked)
        ]
    return made


@pytest.mark.parametrize("kind", list(EVIDENCE))
class TestWrecked:
    def test_it_fails_in_its_own_cells(self, reports, kind):
        alone, beside = ({r["name"]: r for r in one["rows"]} for one in reports[kind])
        assert list(alone) == list(beside)
        assert not any("failed" in row for row in alone.values()), "the sound ones are sound"
        for name, row in beside.items():
            sound = {k: row["values"][k] for k in ("original", "sound", "retrained")}
            assert sound == alone[name]["values"], name
            assert row["floor"] == alone[name]["floor"]
            # a network that says the same of everything has predictions all the same
            assert set(row["failed"]) >= {"nan", "inf"}, name
            assert not {"nan", "inf"} & set(row["values"]), name
            assert all(row["failed"].values())
            assert not {"nan", "inf"} & set(row["best"])
        assert reports[kind][1]["columns"][-1] == "retrained"
        if kind == "classifier":
            assert not any("flat" in row["failed"] for row in beside.values())

    def test_terminal_markdown_and_json_show_it(self, reports, kind, tmp_path, monkeypatch):
        alone, beside = reports[kind]
        if kind != "classifier":  # one picture of a table is enough
            monkeypatch.setattr(files, "save_png", lambda made, path: None)
        report = beside | {"examples": beside["examples"]}
        files.save(report, tmp_path)
        lines = (tmp_path / "report.md").read_text().splitlines()
        head = next(line for line in lines if line.startswith("| metric"))
        columns = [word.strip() for word in head.split("|")[1:-1]]
        cells = {c[0]: dict(zip(columns, c, strict=True)) for c in map(split, lines) if len(c) > 3}
        buffer = io.StringIO()
        ju.print_report(report, Console(file=buffer, width=250))
        shown = buffer.getvalue()
        for row in report["rows"]:
            own = cells[row["metric"]]
            for column in report["columns"]:
                assert (own[column] == FAILED) == (column in row["failed"]), row["metric"]
            (line,) = [text for text in shown.splitlines() if text.startswith(row["metric"] + " ")]
            assert line.count(FAILED) == len(row["failed"])

        def refuse(word):
            raise AssertionError(word)

        text = (tmp_path / "report.json").read_text()
        assert json.loads(text, parse_constant=refuse)["columns"] == beside["columns"]
        if kind == "classifier":
            assert (tmp_path / "report.png").stat().st_size > 1000
            with np.load(tmp_path / "examples.npz") as examples:
                names = ["original", "sound", "flat", "retrained/0", "retrained/1"]
                assert set(examples.files) == {f"{name}/js_to_retrained" for name in names}
        # why, in words, once for each model and reason
        reasons = [line for line in shown.splitlines() if line.startswith(f"{FAILED}: nan")]
        assert reasons
        assert len(set(reasons)) == len(reasons)
        assert files.to_markdown(alone).count(FAILED) == 0


def split(line):
    """Cells of a line of a Markdown table, without marks."""
    return [cell.strip().strip("*") for cell in line.split("|")[1:-1]]


def test_a_model_of_another_form_is_an_error_that_says_so():
    original = toy.trained().variables
    for wrong in ({}, {"params": {}}, {"params": {**original["params"], "head": {}}}):
        with pytest.raises(ConfigError, match=r"models\.x: expected params/"):
            ju.evaluate(toy.mlp(), {"original": original, "x": wrong}, [], toy.sets())
