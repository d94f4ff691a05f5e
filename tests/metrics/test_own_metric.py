"""A metric is one function and one row; a run judges anew by what is new or has changed."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from matplotlib.image import imread

import jaxunlearn as ju
from jaxunlearn import checkpoint
from jaxunlearn import report as files
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.experiment import trial
from jaxunlearn.metrics import METRICS, Metric, Missing, measure, register_metric, registry
from jaxunlearn.metrics.classification import ClassifierEvidence
from jaxunlearn.metrics.generation import GanEvidence
from jaxunlearn.report import load
from tests import toy
from tests.runs import hurry

WORDS = [
    "train.epochs=3", "train.learning_rate=5e-3", "model.options.features=(16,)", "retrained=2",
    "methods=finetune", "methods.finetune.steps=3",
]  # fmt: skip
MODELS = ["original", "retrained/0", "retrained/1", "unlearned/finetune"]


def run(folder, *words):
    return ju.run(load_config(None, [*WORDS, *words]), folder)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Models are made as ever, but timed once and not cold."""
    with pytest.MonkeyPatch.context() as patch:
        draw = files.save_png
        hurry(patch)
        yield draw


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick):
    """A finished run that tests only read."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder)
    return folder


@pytest.fixture
def home(finished, tmp_path, monkeypatch):
    """A copy of it, to be judged again; metrics of a test are gone after it."""
    monkeypatch.setattr(METRICS, "_rows", dict(METRICS._rows))
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "digits"


@pytest.fixture
def measured(monkeypatch):
    """Lists what is measured, model by model."""
    calls = []

    def spy(evidence, original, retrained, *, names):
        calls.append(list(names))
        return measure(evidence, original, retrained, names=names)

    monkeypatch.setattr(trial, "measure", spy)
    return calls


def size(evidence):
    """The largest parameter."""
    return max(np.abs(leaf).max() for leaf in jax.tree.leaves(evidence.weights))


def size_of_all(evidence):
    """Another function under the same name."""
    return np.mean([np.abs(leaf).mean() for leaf in jax.tree.leaves(evidence.weights)])


def sure(evidence):
    """How sure it is, example by example."""
    return evidence.predictions["forget"].softmax.max(axis=1)


def weight(function=size, **changes):
    row = Metric("largest weight", "size", "small", ".2f", function, ("weights",))
    return row._replace(**changes)


SURE = Metric("certainty, forget", "privacy", "as retrained", ".3f", sure, ("predictions",),
              each=True)  # fmt: skip


def judged(home):
    return json.loads((home / "judgement.json").read_text())


def rows_of(report):
    return {row["name"]: row for row in report["rows"]}


class TestRun:
    def test_the_table_the_files_and_the_picture_have_a_new_row(
        self, home, measured, monkeypatch, quick
    ):
        monkeypatch.setattr(files, "save_png", quick)
        models = [p for p in home.rglob("record.json") if "erasure" not in p.parts]
        before = {p: p.read_bytes() for p in models}
        old = judged(home)
        quick(load(home), home / "before.png")
        told = []
        register_metric("size", weight())
        config = load_config(None, WORDS)
        report = ju.run(config, home.parent, listener=lambda *call: told.append(call))
        assert measured == [["size"]] * 4, "on every model, and nothing else"
        made = [progress for _, progress in told if progress is None or progress.state is not None]
        assert made == [None] * 4, "nothing is made again"
        assert {p: p.read_bytes() for p in models} == before
        row = rows_of(report)["size"]
        assert set(row["values"]) == {"original", "finetune", "retrained"}
        original = checkpoint.load(home / "original")[0]
        wanted = max(np.abs(leaf).max() for leaf in jax.tree.leaves(original))
        assert row["values"]["original"] == pytest.approx(float(wanted))
        assert rows_of(load(home))["size"] == row
        assert "| largest weight |" in (home / "report.md").read_text()
        drawn = [imread(home / name) for name in ("before.png", "report.png")]
        assert drawn[0].shape != drawn[1].shape or (drawn[0] != drawn[1]).any(axis=2).mean() > 0.01
        lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
        assert all(line["size"] > 0 for line in lines)
        groups = [one["group"] for one in report["rows"]]
        assert groups.index("size") < groups.index("cost"), "a new group is before the costs"
        # what was known is as it was
        new = judged(home)
        for name in MODELS:
            assert new[name]["values"].pop("size") > 0
            new[name]["versions"].pop("size")
        assert new == old

    def test_unchanged_it_is_measured_once(self, home, measured):
        register_metric("size", weight())
        first = run(home.parent)
        measured.clear()
        monkey = judged(home)
        assert run(home.parent)["rows"] == first["rows"]
        assert measured == []
        assert judged(home) == monkey

    @pytest.mark.parametrize(
        "changed",
        [weight(version=2), weight(size_of_all), weight(lambda evidence: 3.0), weight(len)],
        ids=["version", "function", "lambda", "builtin"],
    )
    def test_changed_it_is_measured_anew_and_nothing_else(self, home, measured, changed):
        register_metric("size", weight())
        run(home.parent)
        measured.clear()
        METRICS.register("size", changed, overwrite=True)
        run(home.parent)
        assert measured == [["size"]] * 4

    def test_a_name_a_unit_or_an_ideal_is_not_measured(self, home, measured):
        """Only what decides the value counts."""
        register_metric("size", weight())
        run(home.parent)
        measured.clear()
        METRICS.register("size", weight(label="widest", format="d", ideal="large"), overwrite=True)
        assert rows_of(run(home.parent))["size"]["metric"] == "widest"
        assert measured == []

    def test_taken_away_it_is_gone(self, home, measured):
        before = load(home)
        register_metric("size", weight())
        register_metric("sure", SURE)
        run(home.parent)
        del METRICS._rows["size"], METRICS._rows["sure"]
        measured.clear()
        assert run(home.parent)["rows"] == before["rows"]
        assert measured == []
        with np.load(home / "examples.npz") as examples:
            assert not any(name.endswith("/sure") for name in examples.files)

    def test_one_that_failed_is_tried_again(self, home, measured, monkeypatch):
        """What it calls may have been mended: nothing of its own source tells."""
        trouble = ["no such file"]

        def fragile(evidence):
            if trouble:
                raise OSError(trouble[0])
            return 1.0

        register_metric("fragile", weight(fragile))
        row = rows_of(run(home.parent))["fragile"]
        assert row["values"] == {}
        assert set(row["failed"].values()) == {"OSError: no such file"}
        assert "OSError: no such file" in (home / "report.md").read_text()
        lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
        assert all("fragile" not in line or line["fragile"] is None for line in lines)
        trouble.clear()
        measured.clear()
        row = rows_of(run(home.parent))["fragile"]
        assert set(row["values"].values()) == {1.0}
        assert "failed" not in row
        assert measured == [["fragile"]] * 4

    def test_more_retrained_models_are_another_comparison(self, home, measured):
        """Metrics beside the retrained models are measured anew, those of a model alone not."""
        before = judged(home)["original"]["values"]
        run(home.parent, "retrained=3")
        judging = [names for names in measured if names != ["js_to_retrained"]]
        assert len(measured) == 5
        assert len(judging) == 1, "the new one is judged by all"
        assert set(judging[0]) > {"js_to_retrained", "accuracy_forget", "relearning"}
        after = judged(home)["original"]["values"]
        assert after["js_to_retrained"] != before["js_to_retrained"]
        assert after["accuracy_forget"] == before["accuracy_forget"]
        measured.clear()
        run(home.parent, "retrained=2")
        assert measured == [["js_to_retrained"]] * 4
        assert judged(home)["original"]["values"] == before

    def test_a_retrained_model_that_was_made_again_is_another_one(self, home, measured):
        """Its own judgement is lost, and those of the others beside it are not to be trusted."""
        path = home / "retrained/1"
        variables, record = checkpoint.load(path)
        moved = jax.tree.map(lambda leaf: leaf * np.float32(0.5), variables)
        checkpoint.save(path, moved, record, overwrite=True)
        before = judged(home)
        run(home.parent)
        counts = sorted(map(len, measured))
        assert counts[:3] == [1, 1, 1]
        assert counts[3] > 10
        after = judged(home)
        for name in MODELS:
            key = "js_to_retrained"
            assert after[name]["values"][key] != before[name]["values"][key]

    def test_an_original_that_was_made_again_is_another_one(self, home, measured):
        path = home / "original"
        checkpoint.save(path, *checkpoint.load(path), overwrite=True)
        run(home.parent)
        beside = {name for name, row in METRICS.items() if row.scope == "original"}
        own = [set(names) for names in measured]
        assert sorted(map(len, own))[-1] > 10, "itself by all"
        assert sum(names <= beside for names in own) == 3


class TestExamples:
    def arrays(self, home):
        with np.load(home / "examples.npz") as examples:
            return {name: examples[name] for name in examples.files}

    def test_values_of_each_example_lie_beside_the_report(self, home, measured):
        with np.load(home / "sets.npz") as sets:
            forget = len(sets["forget"])
        register_metric("sure", SURE)
        report = run(home.parent)
        found = self.arrays(home)
        assert set(found) == {f"{m}/{x}" for m in MODELS for x in ("sure", "js_to_retrained")}
        assert {array.shape for array in found.values()} == {(forget,)}
        values = rows_of(report)["sure"]["values"]
        for label, stage in (("original", "original"), ("finetune", "unlearned/finetune")):
            assert values[label] == found[f"{stage}/sure"].mean()
        each = [found[f"retrained/{n}/sure"].mean() for n in (0, 1)]
        assert values["retrained"] == pytest.approx(np.mean(each))
        measured.clear()
        run(home.parent)
        assert measured == []
        again = self.arrays(home)
        assert set(again) == set(found)
        for name, array in found.items():
            np.testing.assert_array_equal(again[name], array)

    @pytest.mark.parametrize("how", ["gone", "damaged", "of another run"])
    def test_lost_ones_are_measured_again(self, home, measured, how):
        before, path = self.arrays(home), home / "examples.npz"
        if how == "gone":
            path.unlink()
        elif how == "damaged":
            path.write_bytes(path.read_bytes()[:100])
        else:
            np.savez(path, **{name: array + 0.5 for name, array in before.items()})
        run(home.parent)
        assert measured == [["js_to_retrained"]] * 4
        for name, array in self.arrays(home).items():
            np.testing.assert_array_equal(array, before[name])

    def test_those_of_seeds_lie_apart(self, tmp_path, measured):
        run(tmp_path, "seeds=2", "retrained=1", "name=two")
        # one retrained model of a seed has none to be compared with
        models = ["original", "unlearned/finetune"]
        wanted = {f"seed_{n}/{m}/js_to_retrained" for n in (0, 1) for m in models}
        found = self.arrays(tmp_path / "two")
        assert set(found) == wanted
        assert not (tmp_path / "two" / "seed_0" / "examples.npz").exists()
        measured.clear()
        run(tmp_path, "seeds=2", "retrained=1", "name=two")
        assert measured == []
        assert set(self.arrays(tmp_path / "two")) == wanted


class TestJudgementFile:
    @pytest.mark.parametrize("text", ["[]", "{", '{"original": {"model": 3}}'])
    def test_a_damaged_one_is_measured_again(self, home, measured, text):
        before, report = judged(home), load(home)
        (home / "judgement.json").write_text(text)
        run(home.parent)
        assert len(measured) == 4
        assert judged(home) == before
        assert load(home) == report

    def test_gaps_of_a_curve_are_json_and_come_back(self, home, measured):
        def course(evidence):
            return np.array([0.5, np.nan, np.inf], np.float32)

        register_metric("course", weight(course, along="steps"))
        run(home.parent)

        def refuse(word):
            raise AssertionError(word)

        text = (home / "judgement.json").read_text()
        own = json.loads(text, parse_constant=refuse)["original"]["values"]["course"]
        assert own == [0.5, None, None]
        measured.clear()
        report = run(home.parent)
        assert measured == []
        curves = {curve["name"]: curve["values"] for curve in report["curves"]}
        assert curves["course"]["original"][0] == 0.5
        assert np.isnan(curves["course"]["original"][1:]).all()


@pytest.fixture(scope="module")
def made():
    """Two unlearned models that differ by chance, and two retrained ones."""
    keys, sets = jax.random.split(jax.random.key(3), 2), toy.sets()
    steps = {"steps": 6, "batch_size": 32}
    given = toy.trained().variables
    unlearned = [ju.unlearn(toy.method("finetune"), given, sets, key, **steps) for key in keys]
    config = ju.TrainConfig(epochs=4, batch_size=32, learning_rate=5e-3)
    return unlearned, ju.train_many(toy.mlp(), sets.retain, keys, config=config)


@pytest.fixture
def models(made, monkeypatch):
    slow = ("linear_probe", "loss_attack", "attack_gap", "judged_unseen")
    rows = {name: row for name, row in METRICS._rows.items() if name not in slow}
    monkeypatch.setattr(METRICS, "_rows", rows)
    return made


def evaluate(models, retrained):
    given = {"original": toy.trained(), **models}
    report = ju.evaluate(toy.mlp(), given, retrained, toy.sets())
    return rows_of(report), report


def spread(members, retrained):
    """How far the members' sizes lie apart."""
    return abs(size(members[0]) - size(members[-1]))


class TestEvaluate:
    def test_a_new_metric_is_a_row(self, models):
        register_metric("size", weight())
        register_metric("sure", SURE)
        unlearned, retrained = models
        rows, report = evaluate({"mine": unlearned[0]}, retrained)
        wanted = max(np.abs(leaf).max() for leaf in jax.tree.leaves(unlearned[0].variables))
        assert rows["size"]["values"]["mine"] == pytest.approx(float(wanted))
        own = report["examples"]["mine/sure"]
        assert own.shape == (50,)
        assert rows["sure"]["values"]["mine"] == own.mean()
        assert rows["sure"]["floor"] is not None

    def test_several_members_are_one_column_of_means(self, models):
        register_metric(
            "spread", weight(spread, scope="ensemble", needs=("weights",), ideal="small")
        )
        unlearned, retrained = models
        singles = {"one": unlearned[0], "two": unlearned[1]}
        apart, _ = evaluate(singles, retrained)
        rows, report = evaluate({"both": unlearned, **singles}, retrained)
        assert report["columns"] == ["original", "both", "one", "two", "retrained"]
        ensemble = {"js_of_means", "spread"}
        for name, row in rows.items():
            if name in ensemble:
                continue
            if name not in ("seconds", "compile_seconds", "speedup", "speedup_with_compile"):
                one, two = (apart[name]["values"][label] for label in singles)
                assert row["values"]["both"] == pytest.approx((one + two) / 2), name
        assert rows["seconds"]["values"]["both"] == pytest.approx(
            np.mean([one.seconds for one in unlearned])
        )
        assert set(rows["js_of_means"]["values"]) == {"both"}, "others have but one member"
        means = report["examples"]["both/js_to_retrained"]
        each = [report["examples"][f"{label}/js_to_retrained"] for label in singles]
        np.testing.assert_allclose(means, np.mean(each, axis=0))
        assert 0 <= rows["js_of_means"]["values"]["both"] <= means.mean()
        assert rows["spread"]["values"]["both"] > 0
        assert rows["spread"]["values"]["one"] == 0
        assert "js_of_means" not in apart
        course = {curve["name"]: curve["values"] for curve in report["curves"]}["relearn_curve"]
        np.testing.assert_allclose(
            course["both"], np.mean([course["one"], course["two"]], axis=0), atol=1e-9
        )

    def test_a_wrecked_member_fails_its_column(self, models):
        unlearned, retrained = models
        broken = unlearned[1]._replace(
            variables=jax.tree.map(lambda leaf: leaf * np.nan, unlearned[1].variables)
        )
        rows, _ = evaluate({"both": [unlearned[0], broken], "one": unlearned[0]}, retrained)
        for name in ("accuracy_forget", "js_to_retrained", "js_of_means"):
            assert "both" in rows[name]["failed"], name
            assert "both" not in rows[name]["values"]
        assert rows["accuracy_forget"]["values"]["one"] >= 0

    def test_an_original_of_several_members_counts_as_its_first(self, models):
        _, retrained = models
        report = ju.evaluate(
            toy.mlp(), {"original": [toy.trained(), toy.trained()]}, retrained, toy.sets()
        )
        single, _ = evaluate({}, retrained)
        own = rows_of(report)
        for name in ("relearn_steps", "accuracy_forget"):
            assert own[name]["values"] == single[name]["values"]


class TestValue:
    @pytest.fixture
    def evidence(self, monkeypatch):
        monkeypatch.setattr(METRICS, "_rows", dict(METRICS._rows))
        return ClassifierEvidence(toy.mlp(), toy.trained().variables, toy.sets(), jax.random.key(0))

    @pytest.mark.parametrize(
        ("returns", "reason"),
        [
            (np.nan, "not finite (nan)"),
            (-np.inf, "not finite (-inf)"),
            (np.ones(3), "TypeError: "),
            ("much", "ValueError: could not convert"),
            (None, "TypeError: "),
        ],
    )
    def test_what_is_no_number_has_failed(self, evidence, returns, reason):
        def odd(*evidence):
            return returns

        register_metric("odd", weight(odd))
        register_metric("odd_ensemble", weight(odd, scope="ensemble"))
        found = measure(evidence, names=["odd", "accuracy_forget"])
        values, failed = registry.measure_ensemble([evidence], [evidence])[:2]
        for own, why in (
            (found.values["odd"], found.failed["odd"]),
            (values["odd_ensemble"], failed["odd_ensemble"]),
        ):
            assert np.isnan(own)
            assert why.startswith(reason)
        assert list(found.failed) == ["odd"]
        assert np.isfinite(found.values["accuracy_forget"])

    @pytest.mark.parametrize("value", [np.float32(2.5), jax.numpy.float32(2.5), 2.5, np.array(2.5)])
    def test_numbers_of_any_kind_are_numbers(self, evidence, value):
        register_metric("odd", weight(lambda evidence: value))
        found = measure(evidence, names=["odd"]).values["odd"]
        assert type(found) is float
        assert found == 2.5

    def test_missing_leaves_the_row_out(self, evidence):
        def absent(*evidence):
            raise Missing("such examples")

        register_metric("absent", weight(absent))
        register_metric("absent_ensemble", weight(absent, scope="ensemble"))
        found = measure(evidence, names=["absent"])
        assert not found.values
        assert not found.failed
        assert "absent_ensemble" not in registry.measure_ensemble([evidence], [evidence]).values


class TestRow:
    @pytest.fixture(autouse=True)
    def own(self, monkeypatch):
        monkeypatch.setattr(METRICS, "_rows", dict(METRICS._rows))

    def test_what_is_wrong_is_told_at_once(self):
        for row, message in (
            (weight(scope="world"), "scope: expected one of .*ensemble.*, got 'world'"),
            (weight(ideal="huge"), "ideal: expected one of .*as retrained.*, got 'huge'"),
        ):
            with pytest.raises(ValueError, match=message):
                register_metric("size", row)
        assert "size" not in METRICS
        with pytest.raises(ConfigError, match="not yet taken, got 'accuracy_forget'"):
            register_metric("accuracy_forget", weight())
        with pytest.raises(TypeError, match=r"metrics\.size: expected Metric, got function"):
            register_metric("size", size)

    def test_needs_decide_for_which_models_it_is(self):
        register_metric("size", weight())
        register_metric("sure", SURE)
        kinds = (ClassifierEvidence, GanEvidence)
        assert ["size" in registry.applying(kind) for kind in kinds] == [True, True]
        assert ["sure" in registry.applying(kind) for kind in kinds] == [True, False]


class TestVersion:
    """What is noticed of a function, and what is not."""

    def of(self, function, **changes):
        METRICS.register("size", weight(function, **changes), overwrite=True)
        return registry.versions_of(["size"])["size"]

    @pytest.fixture(autouse=True)
    def own(self, monkeypatch):
        monkeypatch.setattr(METRICS, "_rows", dict(METRICS._rows))

    def typed(self, text):
        """A function without a file, as one typed at a prompt."""
        scope = {}
        exec(text, scope)
        return scope["f"]

    def test_the_source_counts(self):
        assert self.of(size) == self.of(size) != self.of(size_of_all)
        assert self.of(size, version=2) != self.of(size)

    def test_what_is_bound_counts(self):
        halves = [self.of(partial(sure, which=n)) for n in (1, 2, 1)]
        assert halves[0] == halves[2] != halves[1]

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("def f(e): return 1.5", "def f(e): return 2.5"),
            ("def f(e): return e.weights", "def f(e): return e.logits"),
            ("def f(e): return [x + 1 for x in e]", "def f(e): return [x + 2 for x in e]"),
            ("f = lambda e: e + 1", "f = lambda e: e - 1"),
        ],
    )
    def test_at_a_prompt_instructions_names_and_constants_count(self, one, other):
        assert self.of(self.typed(one)) == self.of(self.typed(one))
        assert self.of(self.typed(one)) != self.of(self.typed(other))

    def test_an_object_that_can_be_called_is_the_same_in_each_process(self):
        """Its text would name its place in memory."""

        class Counter:
            def __call__(self, evidence):
                return 1.0

        assert self.of(Counter()) == self.of(Counter())

    def test_compiled_functions_are_those_that_they_wrap(self):
        assert self.of(jax.jit(size)) == self.of(size)

    def test_other_models_are_another_comparison(self):
        METRICS.register("size", weight(scope="retrained"), overwrite=True)
        one = registry.versions_of(["size"], "a" * 64, ["b" * 64])
        assert one == registry.versions_of(["size"], "c" * 64, ["b" * 64])
        assert one != registry.versions_of(["size"], "a" * 64, ["b" * 64, "d" * 64])
        METRICS.register("size", weight(scope="original"), overwrite=True)
        one = registry.versions_of(["size"], "a" * 64, ["b" * 64])
        assert one != registry.versions_of(["size"], "c" * 64, ["b" * 64])
