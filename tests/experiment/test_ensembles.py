"""Runs of several seeds: attacks on each example, of all seeds' models together."""

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import experiment
from jaxunlearn import report as files
from jaxunlearn.config.overrides import load_config
from jaxunlearn.core.errors import DivergenceError
from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.experiment import album, ensembles, run
from jaxunlearn.experiment.plan import groups, make_plan
from jaxunlearn.kinds import KINDS
from jaxunlearn.metrics import METRICS, exposure, robustness
from jaxunlearn.metrics.classification import ClassifierEvidence
from tests.runs import hurry

WORDS = [
    "name=run", "request.classes=1", "data.unseen=12", "model.options.features=(6,)",
    "train.epochs=4", "train.batch_size=16", "retrained=2", "seeds=3", "methods=finetune",
    "methods.finetune.steps=2", "metrics=all",
]  # fmt: skip
TOGETHER = (
    "lira", "lira_95", "epsilon", "efficacy_vulnerable", "forgetting_quality", "klom_test"
)  # fmt: skip
QUICK = ("accuracy_forget", "js_to_retrained", "js_of_means", *TOGETHER)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        patch.setattr(METRICS, "_rows", {name: METRICS[name] for name in QUICK})
        yield


def config_of(folder, *words):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.normal(100, 30, (3, 4, 4, 1))[y] + rng.normal(0, 60, (60, 4, 4, 1))
    x = x.clip(0, 255).astype(np.uint8)
    np.savez(folder / "own.npz", train_x=x, train_y=y, test_x=x[::-1], test_y=y[::-1])
    return load_config(None, [f"data.name={folder / 'own.npz'}", *WORDS, *words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("ensembles")
    run(config_of(made), made)
    return made


def margins(folder, stage, part, attack=""):
    """``phi [3, M]`` of the models of all seeds, read, attacked and observed anew."""
    plan, found = make_plan(config_of(folder), folder), []
    like = jax.eval_shape(plan.model.init, jax.random.key(0))
    for group in groups(plan):
        variables = ju.checkpoint.load(group.folder / stage, like)[0]
        sets = group.retraining if stage.startswith("retrained") else group.sets
        key = derive(group.key, Purpose.JUDGEMENT)
        one = ClassifierEvidence(plan.model, variables, sets, key)
        if attack:
            changed = robustness.after(one, robustness.ATTACKS[attack])
            one = ClassifierEvidence(plan.model, changed, sets, key)
        found.append(one.margins[part])
    return np.stack(found)


def rows(folder, name="run"):
    table = files.load(folder / name)
    return {row["name"]: row for row in table["rows"]}


def test_all_seeds_are_judged_together_as_by_hand(folder):
    found, examples = rows(folder), np.load(folder / "run" / "examples.npz")
    for column, stage in (("original", "original"), ("finetune", "unlearned/finetune")):
        sides = [margins(folder, one, "forget") for one in (stage, "retrained/0")]
        each = exposure.unlearning_lira(*sides)
        np.testing.assert_allclose(examples[f"{stage}/lira"], each, atol=1e-6)
        assert found["lira"]["values"][column] == pytest.approx(each.mean(), abs=1e-6)
        assert found["lira_95"]["values"][column] == pytest.approx(np.percentile(each, 95))
        sides = [margins(folder, one, "test_retain") for one in (stage, "retrained/0")]
        each = exposure.margin_divergence(*sides)
        np.testing.assert_allclose(examples[f"{stage}/klom_test"], each, atol=1e-6)
        assert found["klom_test"]["values"][column] == pytest.approx(each.mean(), abs=1e-6)
    for name in ("lira", "klom_test", "forgetting_quality"):
        assert set(found[name]["values"]) == {"original", "finetune"}
        assert "each" not in found[name], "one value of all seeds"
    assert "efficacy_vulnerable" not in found, "six models of each side"
    assert "js_of_means" not in found
    assert len(found["accuracy_forget"]["each"]["finetune"]) == 3
    assert "seed_1/unlearned/finetune/js_to_retrained" in examples


def test_nothing_is_measured_twice_and_lost_examples_are_found_again(folder, monkeypatch):
    before, examples = rows(folder), dict(np.load(folder / "run" / "examples.npz"))
    real, asked = ensembles.measure_ensemble, []

    def measure(*sides):
        asked.append(len(sides[0]))
        return real(*sides)

    monkeypatch.setattr(ensembles, "measure_ensemble", measure)
    run(config_of(folder), folder)
    assert not asked
    (folder / "run" / "examples.npz").unlink()
    run(config_of(folder), folder)
    assert asked == [3, 3]
    assert rows(folder) == before
    for name, values in np.load(folder / "run" / "examples.npz").items():
        np.testing.assert_allclose(values, examples[name], err_msg=name)


@pytest.mark.parametrize("words", [["seeds=2"], ["metrics="], ["metrics=js_to_retrained"]])
def test_they_are_left_out_of_fewer_seeds_and_where_none_is_asked_for(folder, words):
    plan = make_plan(config_of(folder, *words), folder)
    assert not ensembles.asks_for_ensembles(plan)
    assert ensembles.asks_for_ensembles(make_plan(config_of(folder, "metrics=lira"), folder))


def test_the_most_exposed_images_are_drawn_and_told_in_words(folder, monkeypatch):
    monkeypatch.setattr(experiment, "draw_album", album.draw_album)
    home = folder / "run" / "seed_0" / "pictures"
    run(config_of(folder), folder)
    assert (home / "exposed.png").stat().st_size > 5000
    lines = (home / "exposed.md").read_text().splitlines()
    assert METRICS["lira"].label in lines[0]
    lira = np.load(folder / "run" / "examples.npz")["unlearned/finetune/lira"]
    first = next(line for line in lines if line.startswith("| finetune"))
    assert f"| {lira.argmax()} |" in first
    assert f"{lira.max():.3f}" in first
    drawn = (home / "exposed.png").stat().st_mtime_ns
    run(config_of(folder), folder)
    assert (home / "exposed.png").stat().st_mtime_ns == drawn
    run(config_of(folder, "metrics=klom_test"), folder)
    assert (home / "exposed.png").stat().st_mtime_ns == drawn, "nothing of each forget example"


ATTACKS = ("rounding_3", "relearning_few")


@pytest.fixture(scope="module")
def attacked(folder):
    return run(config_of(folder, f"attacks={','.join(ATTACKS)}"), folder)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacked_models_of_all_seeds_are_judged_together_as_by_hand(attack, folder, attacked):
    home = f"run/attacks/{attack}"
    found, examples = rows(folder, home), np.load(folder / home / "examples.npz")
    for column, stage in (("original", "original"), ("finetune", "unlearned/finetune")):
        sides = [margins(folder, one, "forget", attack) for one in (stage, "retrained/0")]
        each = exposure.unlearning_lira(*sides)
        np.testing.assert_allclose(examples[f"{stage}/lira"], each, atol=1e-6)
        assert found["lira"]["values"][column] == pytest.approx(each.mean(), abs=1e-6)
        losses = np.minimum(exposure.privacy_loss(*sides), np.log(3))
        assert found["epsilon"]["values"][column] == pytest.approx(losses.mean(), abs=1e-6)
    usual = {row["name"]: row for row in attacked["rows"]}
    assert usual["klom_test"]["values"] != found["klom_test"]["values"]
    assert usual["lira"]["values"] == rows(folder)["lira"]["values"]


def test_attacked_models_are_not_attacked_twice(folder, attacked, monkeypatch):
    def attack(*_):
        raise AssertionError("attacked again")

    monkeypatch.setattr(experiment.trial, "after", attack)
    for path in (folder / "run/attacks").iterdir():
        before = rows(folder, f"run/attacks/{path.name}")
        run(config_of(folder, f"attacks={path.name}"), folder)
        assert rows(folder, f"run/attacks/{path.name}") == before


def test_a_model_that_cannot_be_attacked_is_left_out_of_its_ensemble_alone(folder, monkeypatch):
    apply, count = robustness.ATTACKS["rounding_3"].apply, []

    def fragile(*given):
        count.append(1)
        if len(count) == 4:  # after the original and two retrained models of the first seed
            raise DivergenceError("the loss is nan")
        return apply(*given)

    kind = KINDS["classifier"].kind
    monkeypatch.setattr(kind, "attacks", {"fragile": robustness.Attack("fragile", fragile)})
    table = run(config_of(folder, "attacks=fragile"), folder)
    assert {"original", "finetune"} == set(rows(folder)["lira"]["values"])
    found = rows(folder, "run/attacks/fragile")
    assert set(found["lira"]["values"]) == {"original"}, "two of finetune are no ensemble"
    assert len(found["accuracy_forget"]["each"]["finetune"]) == 3
    assert not any(note.startswith("no table") for note in table["notes"])


def test_a_wrecked_model_costs_the_cells_of_its_ensemble_and_no_others(folder):
    plan = make_plan(config_of(folder), folder)
    variables = plan.model.init(jax.random.key(0))
    wrecked = jax.tree.map(lambda leaf: leaf * np.nan, variables)
    sound, broken = (
        ClassifierEvidence(plan.model, one, plan.sets, plan.key).kept()
        for one in (variables, wrecked)
    )
    found = ensembles.measure_ensemble([sound, broken, sound], [sound] * 3, ["all"])
    assert set(found.failed) == {"lira", "lira_95", "epsilon", "forgetting_quality", "klom_test"}
