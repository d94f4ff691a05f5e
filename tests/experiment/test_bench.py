"""A bench of few methods on small networks; what its report says, by hand."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import checkpoint
from jaxunlearn.cli import main
from jaxunlearn.config import BenchConfig, Config, ModelConfig, Request, SubClass, TrainConfig
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.engine.loop import advance
from jaxunlearn.experiment import bench, bench_report, bench_tuning
from jaxunlearn.experiment.bench import run_bench
from jaxunlearn.experiment.bench_report import Measured, make_bench_report, ranks
from jaxunlearn.methods import METHODS, Method
from jaxunlearn.pictures.bench import front, save_bench
from tests.runs import hurry


def towards(model, *, place=0.5):
    """Adds noise to the head, the less the nearer ``place`` comes to .3."""

    def change(variables, sets, key):
        del sets, key
        head = variables["params"]["head"]
        noise = jax.random.normal(jax.random.key(0), head["kernel"].shape)
        moved = {**head, "kernel": head["kernel"] + 5 * jnp.abs(place - 0.3) * noise}
        return {**variables, "params": {**variables["params"], "head": moved}}

    return ju.core.types.Unlearner(
        change, None, lambda state: state, ju.core.types.Needs(forget=True, once=True), model=model
    )


def by_kind(model, *, request, place=0.5):
    """Reads other sets for classes than for items."""
    other = {"class": "unseen", "items": "holdout"}[request]
    needs = ju.core.types.Needs(forget=True, once=True, **{other: True})
    return towards(model, place=place)._replace(needs=needs)


def wrecked(model):
    """Leaves nothing that is finite."""
    method = towards(model)
    return method._replace(result=lambda state: jax.tree.map(lambda leaf: leaf * jnp.nan, state))


def raising(model):
    """Fails when it is run, not when it is built."""

    def run(variables, sets, key):
        raise RuntimeError("no such luck")

    like = ju.core.types.Preparation(run, lambda v, s: jax.ShapeDtypeStruct((), jnp.float32))
    method = towards(model)
    return method._replace(init=lambda v, s, k, prepared: method.init(v, s, k), prepare=like)


OWN = {
    "towards": Method(towards, "moves", tune={"place": (0.0, 1.0)}),
    "by_kind": Method(by_kind, "moves, by kind", takes=("request",)),
    "wrecked": Method(wrecked, "wrecks"),
    "raising": Method(raising, "raises"),
}
CONFIG = BenchConfig(
    base=Config(
        name="bench",
        seeds=2,
        retrained=2,
        model=ModelConfig(options={"features": (16,)}),
        train=TrainConfig(epochs=5, learning_rate=2e-2),
        methods={"finetune": {}, "neuron_path": {"per_sample": 4, "neurons": 4, "samples": 8}}
        | {name: {} for name in OWN},
    ),
    requests={
        "class": Request(classes=(3,)),
        "random": Request(share=0.1),
        "each": Request(each=True, classes=(1, 2)),
        "subclass": SubClass(label=4, clusters=3),
        "in turn": Request(classes=(3, 5), in_turn=True),
    },
    every=False,
    draws=5,
)


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        patch.setattr(bench, "REPEATS", 1)
        rows = dict(METHODS._rows)
        for name, row in OWN.items():
            METHODS.register(name, row)
        yield patch
        METHODS._rows.clear()
        METHODS._rows.update(rows)


@pytest.fixture(scope="module")
def made(patch, tmp_path_factory):
    runs, calls = tmp_path_factory.mktemp("runs"), []
    many = bench.unlearn_many

    def counted(method, variables, sets, keys, **options):
        calls.append(len(keys))
        return many(method, variables, sets, keys, **options)

    programs = advance._cache_size()
    patch.setattr(bench, "unlearn_many", counted)
    report = run_bench(CONFIG, runs)
    patch.setattr(bench, "unlearn_many", many)
    return runs, report, calls, advance._cache_size() - programs


def table(report, name):
    return next(one for one in report["requests"] if one["name"] == name)


def row(report, name, label):
    return next((one for one in table(report, name)["rows"] if one["label"] == label), None)


class TestBench:
    def test_each_method_is_one_program(self, made):
        _, _, calls, programs = made
        # seeds by cases: 5 single ones, of which 3 by class, and 2 in turn
        originals, retrained, *rest = calls
        assert (originals, retrained) == (2, 2 * 7 * 2)
        # of ``by_kind`` there are two methods, one for classes and one for items
        assert rest == [10, 2, 2, 6, 2, 2, 10, 2, 2, 6, 4, 2, 2, 10, 2, 2, 10, 2]
        # steps of originals, retrained models, finetune and neuron_path, and of these in turn
        assert programs == 2 + 2 * 2

    def test_what_is_found(self, made):
        _, report, _, _ = made
        assert [one["name"] for one in report["requests"]] == list(CONFIG.requests)
        own = table(report, "class")
        assert own["about"] == "forget class 3"
        assert table(report, "in turn")["about"] == "forget class 3, then forget class 5"
        assert own["floor"]["mean"] >= 0
        original, tuned = row(report, "class", "original"), row(report, "class", "finetune")
        assert original["values"]["accuracy_forget"]["mean"] > 0.8
        assert original["gap"]["mean"] > 0.2 > own["floor"]["mean"]
        assert own["retrained"]["values"]["accuracy_forget"]["mean"] == 0
        assert tuned["gap"]["mean"] < original["gap"]["mean"]
        assert tuned["steps"] == 7
        assert tuned["speedup"] == pytest.approx(
            own["retrained"]["seconds"]["mean"] / tuned["seconds"]["mean"]
        )
        assert tuned["excess"]["mean"] == pytest.approx(tuned["gap"]["mean"] - own["floor"]["mean"])
        assert "js_to_retrained" in own["columns"]

    def test_what_fails_is_shown_and_ends_nothing(self, made):
        _, report, _, _ = made
        failed = row(report, "class", "raising")["failed"]
        assert failed == "RuntimeError: no such luck"
        assert report["failures"] == [
            f"raising failed on class, random, each, subclass, in turn: {failed}"
        ]
        assert "of 2 of 2 seeds a model is not finite" in row(report, "class", "wrecked")["failed"]
        assert report["overall"][-1]["rank"] is None
        assert "rank" in row(report, "class", "towards")

    def test_what_does_not_suit_is_left_out(self, made):
        _, report, _, _ = made
        assert row(report, "random", "neuron_path") is None
        assert row(report, "in turn", "neuron_path")["gap"]
        assert any(
            note.startswith("neuron_path left out of random, subclass: it forgets classes")
            for note in report["notes"]
        )

    def test_it_is_kept_and_found_again(self, made, patch):
        runs, report, _, _ = made
        home = runs / "bench"
        assert json.loads((home / "bench.json").read_text()) == report
        assert (home / "bench.png").read_bytes().startswith(b"\x89PNG")
        assert "| 1 | " in (home / "bench.md").read_text()
        before = {path: path.stat().st_mtime_ns for path in home.glob("*/*/manifest.json")}
        # one method is lost, as if the bench had been killed before it
        checkpoint.remove(home / "unlearned" / "finetune")
        (home / "measured" / "finetune.json").unlink()
        told = []
        again = run_bench(CONFIG, runs, listener=lambda n, p: told.append((n, p is None)))
        assert {name for name, there in told if not there} == {"unlearned/finetune"}
        assert again["requests"][0]["floor"] == report["requests"][0]["floor"]
        values = (row(one, "class", "finetune")["values"] for one in (again, report))
        assert next(values) == next(values)
        after = {path: path.stat().st_mtime_ns for path in before if "finetune" not in str(path)}
        assert all(before[path] == when for path, when in after.items())

    def test_models_equal_those_of_a_run(self, made):
        """An original and a method's model are those of ``jaxunlearn run`` with this seed."""
        runs, _, _, _ = made
        config = dataclasses.replace(CONFIG.base, name="single", seed=1, seeds=1, retrained=1)
        one = {"finetune": {"steps": 7}}
        config = dataclasses.replace(config, methods=one, request=Request(classes=(3,)))
        ju.experiment.run(config, runs)
        many = bench.Bench(CONFIG, runs, False, lambda n, p: None)
        like = jax.tree.map(lambda leaf: leaf[1], many.originals)
        for name, whole in (
            ("original", like),
            (
                "unlearned/finetune",
                jax.tree.map(lambda leaf: leaf[1], many.unlearned("finetune")[0]),
            ),
        ):
            alone, _ = checkpoint.load(runs / "single" / name, like)
            for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(whole), strict=True):
                np.testing.assert_allclose(a, b, atol=2e-3)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"requests": {}}, "requests: expected one or several, got none"),
            (
                {"base": dataclasses.replace(CONFIG.base, methods={"scrubb": {}})},
                "methods: expected one of .*, got 'scrubb'; did you mean 'scrub'",
            ),
            ({"share": 0.0}, "share: expected a positive number, got 0"),
            ({"requests": {"a": SubClass(label=3, clusters=500)}}, "requests: expected 500"),
        ],
    )
    def test_what_is_no_bench(self, tmp_path, change, message):
        with pytest.raises(ConfigError, match=message):
            run_bench(dataclasses.replace(CONFIG, **change), tmp_path)


class TestReport:
    def test_ranks_with_ties(self):
        assert ranks({"a": 0.02, "b": 0.03, "c": 0.06}, 0.02) == {"a": 1, "b": 1, "c": 3}
        # ties reach no further than the floor from the first of a rank
        assert ranks({"a": 0.0, "b": 0.5, "c": 1.0}, 0.75) == {"a": 1, "b": 1, "c": 3}
        assert ranks({"b": 0.25, "a": 0.25}, 0.0) == {"a": 1, "b": 1}
        assert ranks({}, 1.0) == {}

    def test_values_by_hand(self):
        def values(a, b):
            return {"accuracy_forget": a, "accuracy_retain": b}

        measured = Measured(
            title="t", cases=[("one", "forget a", None, "class")], seeds=[0, 1],
            gap=("accuracy_forget", "accuracy_retain"), metrics=["accuracy_forget"],
            values={
                "original": {0: [values(1.0, 1.0), values(1.0, 1.0)]},
                "good": {0: [values(0.2, 1.0), values(0.1, 0.9)]},
                "bad": {0: [values(0.6, 0.9), values(0.8, 0.9)]},
                "near": {0: [values(0.1, 0.9), values(0.3, 1.0)]},
                "lost": {0: [values(0.6, 0.9), {}]},
                "raised": {},
                "elsewhere": {},
            },
            retrained={0: [[values(0.0, 1.0), values(0.2, 0.9)], [values(0.0, 1.0)] * 2]},
            failed={"raised": {"one": "why"}}, left_out=["elsewhere left out of one: no"],
            costs={
                "retrained": {"together": {"seconds": [2.0], "members": 4}},
                "good": {"class": {"seconds": [0.2, 0.3]}, "items": {"seconds": [9.0]}},
            },
            environment={},
        )  # fmt: skip
        report = make_bench_report(measured)
        # two retrained models of the first seed differ by .2 and .1, those of the second not
        assert table(report, "one")["floor"]["mean"] == pytest.approx(0.075)
        good = row(report, "one", "good")
        gaps = [(0.2 / 2 + (0.0 + 0.1) / 2) / 2, 0.1]
        assert good["gap"]["mean"] == pytest.approx(np.mean(gaps))
        student = 12.7062 / 2**0.5  # the quantile of one degree of freedom
        assert good["gap"]["interval"] == pytest.approx(student * np.std(gaps, ddof=1), 1e-4)
        over = [gaps[0] - 0.15, gaps[1]]
        assert good["excess"]["mean"] == pytest.approx(np.mean(over))
        assert good["excess"]["interval"] == pytest.approx(student * np.std(over, ddof=1), 1e-4)
        assert good["seconds"]["mean"] == 0.25
        assert good["speedup"] == 8
        assert {one["label"]: one.get("rank") for one in table(report, "one")["rows"]} == {
            "original": None, "good": 1, "near": 1, "bad": 3, "lost": None, "raised": None,
        }  # fmt: skip
        assert "1 of 2 seeds" in row(report, "one", "lost")["failed"]
        assert [one["label"] for one in report["overall"]] == [
            "good", "near", "bad", "lost", "raised"
        ]  # fmt: skip
        narrow = list(bench_report.to_tables(report, 60))
        heads = [[column.header for column in one.columns] for one in narrow]
        assert len(heads) > 3
        assert all(own[:2] == ["mean rank", "method"] for own in heads[:1])
        assert all(own[:2] == ["rank", "method"] for own in heads[1:])
        told = [head for own in heads[1:] for head in own[2:]]
        assert told[:3] == ["gap", "over", "forget"]
        assert told[-1] == "compile"
        text = bench_report.to_markdown(report)
        assert "| 1 | good | 0.100 ±.000 |" not in text  # an interval that is none is not shown so
        assert "| raised | failed |" in text

    def test_the_front(self):
        points = {"a": (1.0, 0.5), "b": (2.0, 0.6), "c": (3.0, 0.1), "d": (3.0, 0.2)}
        assert front(points) == ["a", "c"]

    def test_pictures_say_what_is_missing(self, tmp_path):
        with pytest.raises(ValueError, match="requests: expected one or several, got none"):
            save_bench(tmp_path / "a.png", [])
        with pytest.raises(ValueError, match=r"requests\[0\]: expected an entry 'floor', got none"):
            save_bench(tmp_path / "a.png", [{"name": "one"}])


class TestTuning:
    def test_it_finds_the_planted_value(self, made, patch):
        runs, _, _, _ = made
        base = dataclasses.replace(
            CONFIG.base, methods={"towards": {}, "wrecked": {}, "finetune": {}, "raising": {}}
        )
        config = dataclasses.replace(CONFIG, base=base)
        file = runs / "mine.json"
        found = bench_tuning.tune_bench(config, runs, presets=file, command="as told")
        assert json.loads(file.read_text()) == found
        drawn = bench_tuning.draw_settings({"place": (0.0, 1.0)}, 5, 1000)["place"]
        best = float(drawn[np.argmin(np.abs(drawn - 0.3))])
        own = found["methods"]["towards"]
        # of a class, noise may forget as well
        assert own["options"]["items"] == {"place": best}
        assert set(own["options"]) == set(own["score"]) == {"class", "items"}
        assert own["tried"] == {"place": [0.0, 1.0]}
        assert found["methods"]["finetune"]["options"]["class"]["steps"] == 7
        assert (
            found["methods"]["finetune"]["score"]["class"]
            < (found["methods"]["finetune"]["original"]["class"])
        )
        assert (found["seed"], found["draws"], found["command"]) == (1000, 5, "as told")
        # what has nothing to tune is not there
        assert set(found["methods"]) == {"towards", "finetune"}
        # what is there already is not tuned again
        told = []
        bench_tuning.tune_bench(
            config, runs, presets=file, listener=lambda n, p: told.append((n, p is None))
        )
        assert ("tuning/finetune", True) in told
        assert all(there for _, there in told)

    def test_the_bench_reads_it(self, made):
        runs, _, _, _ = made
        file = runs / "own.json"
        numbers = {"class": {"learning_rate": 0.5, "steps": 3}, "items": {"learning_rate": 0.25}}
        file.write_text(json.dumps({"methods": {"finetune": {"options": numbers}}}))
        config = dataclasses.replace(CONFIG, preset=str(file))
        own = bench.Bench(config, runs, False, lambda n, p: None)
        swept, runner, options = own._built("finetune", [0, 1])
        assert swept.options["learning_rate"].tolist() == [0.5, 0.25, 0.5, 0.25]
        assert runner["steps"] == 3
        assert options["tuned"] == numbers

    def test_a_run_reads_it(self, tmp_path):
        file = tmp_path / "own.json"
        numbers = {"class": {"learning_rate": 0.5, "steps": 3}}
        file.write_text(json.dumps({"methods": {"finetune": {"options": numbers}}}))
        words = ["methods=finetune", f"methods.finetune.preset={file}", "methods.finetune.steps=4"]
        config = ju.config.overrides.load_config(None, words)
        plan = ju.experiment.plan.make_plan(config, tmp_path)
        assert plan.options["finetune"] == {"learning_rate": 0.5, "steps": 4}
        assert plan.methods["finetune"][1]["steps"] == 4
        config = dataclasses.replace(config, request=Request(share=0.1))
        with pytest.raises(ConfigError, match=r"finetune.preset: expected one with finetune for"):
            ju.experiment.plan.make_plan(config, tmp_path)

    def test_draws_lie_one_in_each_part(self):
        found = bench_tuning.draw_settings({"rate": (1e-4, 1.0), "share": (-1.0, 1.0)}, 4, 0)
        assert sorted(np.floor(np.log10(found["rate"])).tolist()) == [-4, -3, -2, -1]
        assert sorted(np.floor(2 * found["share"]).tolist()) == [-2, -1, 0, 1]
        assert bench_tuning.choose([math.nan, 0.2, 0.1, math.inf]) == 2
        assert bench_tuning.choose([math.nan]) is None

    def test_the_tuning_seed_is_not_reported(self, tmp_path):
        config = dataclasses.replace(CONFIG, tuning_seed=1)
        with pytest.raises(ConfigError, match="tuning_seed: expected one that is not reported"):
            bench_tuning.tune_bench(config, tmp_path)


def test_on_the_command_line(patch, tmp_path, capsys):
    words = [
        "bench", "bench_digits", "requests=class", "methods=finetune", "seeds=1", "metrics=",
        "train.epochs=2", "draws=2", "--runs", str(tmp_path),
    ]  # fmt: skip
    assert main([*words, "--tune"]) == 0
    assert "presets.json" in capsys.readouterr().out
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "class: forget class 3" in told
    assert "saved in" in told
    tuned = json.loads((tmp_path / "bench_digits" / "presets.json").read_text())["methods"]
    stage = checkpoint.read_record(tmp_path / "bench_digits" / "unlearned" / "finetune")
    assert stage["inputs"]["own"]["tuned"] == tuned["finetune"]["options"]
    assert main(["bench", "--runs", str(tmp_path)]) == 1
    assert "expected one configuration" in capsys.readouterr().err
    assert main([*words, "--presets", "a.json"]) == 1
    assert "--presets: expected beside --tune" in capsys.readouterr().err
