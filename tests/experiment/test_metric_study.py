"""Metrics judged by two pools of small models."""

import json

import numpy as np
import pytest

from jaxunlearn.config import Config, Request, TrainConfig
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.statistics import estimate
from jaxunlearn.experiment import metric_study
from jaxunlearn.experiment.metric_study import judge_metrics

CONFIG = Config(name="judged", train=TrainConfig(epochs=4), methods={"finetune": {"steps": 5}})


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    told = []
    first = judge_metrics(
        CONFIG, runs, pool=4, originals=2, seeds=2,
        listener=lambda name, progress: told.append((name, progress is None)),
    )  # fmt: skip
    return runs, first, told


def test_what_tells_the_pools_apart(judged):
    _, report, _ = judged
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["accuracy_forget"]["faithfulness"] == 1
    assert rows["accuracy_forget"]["larger"] == "trained"
    assert rows["accuracy_forget"]["trained"] > 0.8 > 0.1 > rows["accuracy_forget"]["retrained"]
    assert rows["depth"]["faithfulness"] == 1
    assert rows["depth"]["larger"] == "retrained"
    assert len(rows) > 40
    told = [row["faithfulness"] for row in report["rows"]]
    assert told == sorted(told, reverse=True)
    for row in report["rows"]:
        assert 0.5 <= row["faithfulness"] <= 1
        for name in ("relearning", "rounding", "robustness"):
            assert row[name] is None or 0 <= row[name] <= 1
        assert row["variance"] is None or sum(row["variance"]) == pytest.approx(1)
        assert set(row["nested"]) <= {"finetune"}


def test_the_pools_are_kept_and_found_again(judged):
    runs, report, told = judged
    made = {name for name, there in told if not there}
    assert made == {"pools/trained", "pools/retrained", "pools/finetune"}
    folder = runs / "judged"
    assert json.loads((folder / "metrics.json").read_text())["rows"] == report["rows"]
    assert (folder / "metrics.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "metrics.md").read_text()
    assert all(row["metric"] in text for row in report["rows"])
    plan = metric_study.make_plan(CONFIG, runs)
    again = []
    study = metric_study._Study(plan, 4, 2, 2, False, lambda n, p: again.append((n, p is None)))
    assert again == [("pools/trained", True), ("pools/retrained", True)]
    assert study._measure(study.original)["accuracy_forget"] > 0.8


def test_means_have_the_intervals_that_originals_allow(judged):
    runs, report, _ = judged
    plan = metric_study.make_plan(CONFIG, runs)
    study = metric_study._Study(plan, 4, 2, 2, False, lambda *_: None)
    study.names = ["accuracy_test_retain"]
    stacked = study._unlearned("finetune")
    values = [study._measure(study._evidence(stacked, n))["accuracy_test_retain"] for n in range(4)]
    by_original = [np.mean(values[:2]), np.mean(values[2:])]  # two seeds of unlearning each
    (row,) = (row for row in report["rows"] if row["name"] == "accuracy_test_retain")
    found, wanted = row["nested"]["finetune"], estimate(by_original)
    assert found["mean"] == pytest.approx(wanted.mean)
    assert found["interval"] == pytest.approx(wanted.interval, abs=1e-9)
    line = f"| {row['metric']} | {found['mean']:.3f} ±{found['interval']:.3f} |"
    assert line in (runs / "judged" / "metrics.md").read_text()


def test_likeness_by_hand():
    assert metric_study._alike(0.0, 0.0) == 1
    assert metric_study._alike(1.0, 3.0) == 0.5
    assert metric_study._alike(-1.0, 1.0) == 0
    found = metric_study._relearning({"a": 0.2, "b": 1.0}, {"a": 0.5, "b": 1.0}, {"a": 0.1})
    assert found == {"a": pytest.approx(0.5)}


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (CONFIG, {"pool": 3}, "pool, originals, seeds: expected a pool of 4 or more"),
        (CONFIG, {"originals": 1}, "pool, originals, seeds: expected .* from 2 originals"),
        (Config(request=Request(each=True)), {}, "config: expected one request and one seed"),
        (Config(seeds=2), {}, "config: expected one request and one seed"),
    ],
)
def test_what_is_no_study(tmp_path, config, options, message):
    with pytest.raises(ConfigError, match=message):
        judge_metrics(config, tmp_path, **options)
    assert not list(tmp_path.iterdir())
