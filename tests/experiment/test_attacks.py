"""Runs whose models are attacked and judged again: all alike, nothing twice, failures alone."""

import json

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import report as files
from jaxunlearn.config import Config
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.errors import ConfigError, DivergenceError
from jaxunlearn.experiment import run, trial
from jaxunlearn.experiment.plan import make_plan
from jaxunlearn.kinds import KINDS
from jaxunlearn.metrics import METRICS, measure, robustness
from jaxunlearn.metrics.classification import ClassifierEvidence
from tests import toy
from tests.runs import hurry

WORDS = [
    "name=run", "data.unseen=12", "request.classes=1", "model.options.features=(6,)",
    "train.epochs=4", "train.batch_size=16", "retrained=2", "methods=finetune,random_label",
    "methods.finetune.steps=2", "methods.random_label.steps=2",
]  # fmt: skip
ATTACKS = ("rounding_3", "relearning_few")
QUICK = ("accuracy_forget", "accuracy_retain", "js_to_retrained", "seconds", "speedup")


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        patch.setattr(METRICS, "_rows", {name: METRICS[name] for name in QUICK})
        yield


def config_of(folder, *words):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.normal(100, 30, (3, 4, 4, 1))[y] + rng.normal(0, 20, (60, 4, 4, 1))
    x = x.clip(0, 255).astype(np.uint8)
    np.savez(folder / "own.npz", train_x=x, train_y=y, test_x=x[::-1], test_y=y[::-1])
    return load_config(None, [f"data.name={folder / 'own.npz'}", *WORDS, *words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("attacks")
    run(config_of(made, f"attacks={','.join(ATTACKS)}"), made)
    return made


def rows(folder, attack=""):
    table = files.load(folder / "run" / (f"attacks/{attack}" if attack else ""))
    return {row["name"]: row for row in table["rows"]}, table


def test_every_model_is_attacked_and_judged_as_by_hand(folder):
    config = config_of(folder)
    plan = make_plan(config, folder)
    like = jax.eval_shape(plan.model.init, jax.random.key(0))
    evidence = {}
    for name in ("original", "unlearned/finetune", "retrained/0", "retrained/1"):
        variables = ju.checkpoint.load(folder / "run" / name, like)[0]
        sets = plan.retraining if name.startswith("retrained") else plan.sets
        key = trial.derive(plan.key, trial.Purpose.JUDGEMENT)
        evidence[name] = ClassifierEvidence(plan.model, variables, sets, key)
    for attack in ATTACKS:
        found, _ = rows(folder, attack)
        changed = {
            name: ClassifierEvidence(
                one.model, robustness.after(one, robustness.ATTACKS[attack]), one.sets, one.key
            )
            for name, one in evidence.items()
        }
        retrained = [changed["retrained/0"], changed["retrained/1"]]
        for column in ("original", "finetune"):
            own = changed["unlearned/finetune" if column == "finetune" else column]
            values = measure(own, changed["original"], retrained, names=QUICK[:3]).values
            for name, value in values.items():
                assert found[name]["values"][column] == pytest.approx(value, abs=1e-6), name
        assert set(found) == set(QUICK[:3]), "what the making took is no matter of an attack"


def test_each_attack_has_a_report_of_its_own_and_the_run_says_where(folder):
    usual, table = rows(folder)
    assert {"seconds", "speedup"} <= set(usual)
    halves = usual["accuracy_forget"]["over_examples"]
    assert set(halves) == {"original", "finetune", "random_label"}
    assert all(0 <= half < 0.3 for half in halves.values())
    (line,) = (note for note in table["notes"] if "after attacks" in note)
    for attack in ATTACKS:
        home = folder / "run" / "attacks" / attack
        assert f"attacks/{attack}" in line
        there = {path.name for path in home.iterdir()}
        assert there == {"report.json", "report.md", "examples.npz", "judgement.json"}
        _, after = rows(folder, attack)
        assert robustness.ATTACKS[attack].label in after["title"]
        assert any(note.startswith("all models alike") for note in after["notes"])
        assert not files.other_models(after, home), "it names the models that it was made of"
        assert "unlearned/finetune/js_to_retrained" in np.load(home / "examples.npz")


def test_nothing_is_attacked_twice(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(trial, "after", lambda *_: asked.append(1))
    before = rows(folder, "rounding_3")[1]
    run(config_of(folder, f"attacks={','.join(ATTACKS)}"), folder)
    assert not asked
    assert rows(folder, "rounding_3")[1] == before


def test_of_several_seeds_every_trial_is_attacked(folder):
    run(config_of(folder, "name=seeds", "seeds=2", "attacks=rounding_3"), folder)
    table = files.load(folder / "seeds" / "attacks" / "rounding_3")
    (row,) = (row for row in table["rows"] if row["name"] == "accuracy_retain")
    assert all(len(values) == 2 for values in row["each"].values())
    assert (folder / "seeds/seed_1/attacks/rounding_3/judgement.json").exists()
    assert not files.other_models(table, folder / "seeds/attacks/rounding_3")


def test_a_model_that_cannot_be_attacked_costs_its_own_column(folder, monkeypatch):
    apply, count = robustness.ATTACKS["pruning_30"].apply, []

    def fragile(model, variables, sets, key):
        count.append(1)
        if len(count) == len(broken):
            raise DivergenceError("the loss is nan")
        return apply(model, variables, sets, key)

    kind = KINDS["classifier"].kind
    attacks = {name: robustness.Attack("fragile", fragile) for name in ("fragile", "more_fragile")}
    monkeypatch.setattr(kind, "attacks", attacks)
    broken = [None] * 4  # the original and the retrained models come first
    table = run(config_of(folder, "attacks=fragile"), folder)
    found, after = rows(folder, "fragile")
    assert "finetune" not in found["accuracy_retain"]["values"]
    assert {"original", "random_label", "retrained"} <= set(found["accuracy_retain"]["values"])
    assert "finetune failed: unlearned/finetune, fragile: the loss is nan" in after["notes"]
    assert not table.get("failures"), "of the run itself"
    count.clear()
    broken = [None] * 2  # a retrained one: nothing can be compared
    table = run(config_of(folder, "attacks=more_fragile"), folder)
    assert any("no table after more_fragile: retrained/0, mo" in note for note in table["notes"])
    assert not (folder / "run/attacks/more_fragile/report.json").exists()


MISTAKES = {
    "another name": (["attacks=rounding_5"], "one of .*, got 'rounding_5'; did you mean 'rounding"),
    "a near name": (["attacks=rounding_4,relearn_few"], "'relearn_few'; .* 'relearning_few'"),
    "of a gan": (["model.name=mlp_gan", "attacks=rounding_4"], "none on a gan, got 'rounding_4'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_name_is_told_before_any_work(name, folder):
    words, message = MISTAKES[name]
    with pytest.raises(ConfigError, match=f"attacks: expected .*{message}"):
        run(config_of(folder, "name=wrong", *words), folder)
    assert not (folder / "wrong" / "original").exists()


def test_one_call_judges_after_an_attack():
    original, sets = toy.trained(), toy.sets()
    retrained = ju.train_many(
        toy.mlp(), sets.retain, jax.random.split(jax.random.key(1), 2),
        config=ju.TrainConfig(epochs=4, batch_size=32, learning_rate=5e-3),
    )  # fmt: skip
    models = {"original": original, "same": original}
    found = ju.evaluate(toy.mlp(), models, retrained, sets, attack="rounding_3")
    assert "rounding to 3 bits" in found["title"]
    values = {row["name"]: row["values"] for row in found["rows"]}
    rounded = robustness.round_weights(original.variables, 3)
    own = ClassifierEvidence(toy.mlp(), rounded, sets, jax.random.key(0))
    assert values["accuracy_forget"]["same"] == measure(own).values["accuracy_forget"]
    assert "seconds" not in values
    with pytest.raises(ConfigError, match=r"attack: expected one of .* did you mean 'rounding_3'"):
        ju.evaluate(toy.mlp(), models, retrained, sets, attack="roundin_3")
    with pytest.raises(TypeError, match="attack: expected str, got tuple"):
        ju.evaluate(toy.mlp(), models, retrained, sets, attack=("rounding_3",))


def test_the_embedded_experiment_has_none():
    assert Config().attacks == ()
    assert json.loads(json.dumps(Config(attacks=ATTACKS).attacks)) == [*ATTACKS]
