"""What models may be given as, wrecked ones beside sound ones, and rows that would mislead."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import report as files
from jaxunlearn.core.errors import ConfigError
from jaxunlearn.core.statistics import bootstrap
from jaxunlearn.metrics import METRICS, Metric, Missing, measure, register_metric
from jaxunlearn.metrics.classification import ClassifierEvidence
from jaxunlearn.metrics.relearning import linear_probe
from jaxunlearn.metrics.table import Judged, summarise
from tests import toy

KEY = jax.random.key(0)
QUICK = ("accuracy_forget", "accuracy_retain", "js_to_retrained", "linear_probe")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A handful of metrics: the others take the same ways."""
    monkeypatch.setattr(METRICS, "_rows", {name: METRICS[name] for name in QUICK})


@functools.cache
def retrained(count):
    config = ju.TrainConfig(epochs=2, batch_size=32, learning_rate=5e-3)
    return ju.train_many(toy.mlp(), toy.sets().retain, jax.random.split(KEY, count), config=config)


def one():
    return jax.tree.map(lambda leaf: leaf[0], retrained(2).variables)


def filled(value):
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), one())


def evaluated(models, references):
    report = ju.evaluate(toy.mlp(), models, references, toy.sets())
    return report, {row["name"]: row for row in report["rows"]}


SINGLE = {
    "variables": one,
    "arrays of NumPy": lambda: jax.tree.map(np.asarray, one()),
    "list": lambda: [one()],
    "tuple": lambda: (one(),),
    "stacked": lambda: jax.tree.map(lambda leaf: leaf[None], one()),
    "iterator": lambda: iter([one()]),
    "list of a stack": lambda: [jax.tree.map(lambda leaf: leaf[None], one())],
}


@pytest.mark.parametrize("name", SINGLE)
def test_one_retrained_model_is_one(name):
    report, rows = evaluated({"original": toy.trained()}, SINGLE[name]())
    told = [key for key in report["examples"] if key.startswith("retrained/")]
    assert told == [], "no other to compare it with"
    assert rows["accuracy_retain"]["floor"] is None
    expected = measure(evidence(one()), names=["accuracy_retain"]).values["accuracy_retain"]
    assert rows["accuracy_retain"]["values"]["retrained"] == expected


def test_an_outcome_of_one_and_lists_of_outcomes():
    for given, count in ((retrained(1), 1), ([retrained(1)], 1), ([retrained(2), one()], 3)):
        _, rows = evaluated({"original": toy.trained(), "x": toy.trained()}, given)
        assert (rows["accuracy_retain"]["floor"] is None) == (count == 1)


MISTAKES = {
    "a list of models": (lambda: ([toy.trained()], []), TypeError, "models by name, .* got list"),
    "a model": (lambda: (toy.trained(), []), TypeError, "models by name, .* got Outcome"),
    "no original": (lambda: ({"x": one()}, []), ValueError, r"'original', got \['x'\]"),
    "a number": (lambda: ({"original": one(), 3: one()}, []), ValueError, "names .* got 3"),
    "taken": (lambda: ({"original": one(), "retrained": one()}, []), ValueError, "other than retr"),
    "an empty list": (lambda: ({"original": one(), "x": []}, []), ValueError, "x: .*got none"),
    "none": (lambda: ({"original": one()}, None), TypeError, "retrained: .* got None"),
    "another form": (lambda: ({"original": one()}, {"w": one()}), ConfigError, "retrained: e"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_short_line(name):
    make, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message) as found:
        evaluated(*make())
    assert len(str(found.value)) < 300


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_a_wrecked_retrained_model_fails_alone(value, place):
    sound = [jax.tree.map(lambda leaf, n=n: leaf[n], retrained(2).variables) for n in range(2)]
    models = {"original": toy.trained(), "x": jax.tree.map(lambda leaf: leaf * 0.9, one())}
    _, alone = evaluated(models, sound)
    mixed = list(sound)
    mixed.insert(place, filled(value))
    report, beside = evaluated(models, mixed)
    for name, row in alone.items():
        assert beside[name]["values"] == row["values"], name
        assert beside[name].get("failed") == row.get("failed"), name
    (note,) = (note for note in report["notes"] if note.startswith(f"retrained/{place} failed in"))
    assert "whose means are of the others" in note
    _, lone = evaluated(models, [filled(value)])
    for name in ("accuracy_retain", "linear_probe"):
        assert set(lone[name]["failed"]) == {"retrained"}
        assert set(lone[name]["values"]) == {"original", "x"}


def evidence(variables, sets=None):
    return ClassifierEvidence(toy.mlp(), variables, sets or toy.sets(), KEY)


@pytest.mark.parametrize("frequent", [False, True])
def test_a_destroyed_network_is_at_chance(frequent):
    """Also where the forgotten class is the most frequent one, whose name is then always said."""
    sets = toy.sets(ju.forget_class(3 if frequent else 0))
    found = {
        name: measure(evidence(variables, sets), names=["linear_probe"]).values["linear_probe"]
        for name, variables in (("sound", toy.trained().variables), ("zero", filled(0)))
    }
    assert found["zero"] == 0.5
    assert found["sound"] > 0.9
    features = ju.attribution.features(toy.mlp().apply)
    parts = (sets.forget, sets.retain)
    plain = linear_probe(features, filled(0), parts, sets.test_forget)
    assert plain == frequent, "what the balance is for"
    assert "chance 0.5" in METRICS["linear_probe"].label


def test_a_class_that_was_never_known_has_no_relearning_rows(monkeypatch):
    monkeypatch.undo()
    sets, names = toy.sets(), ["relearn_steps", "relearning", "relearn_curve"]
    never = evidence(one())  # retrained without the class
    assert measure(evidence(toy.trained().variables), never, names=names).values == {}
    everything = jax.tree.map(lambda leaf: leaf * 0, one())
    always = {"params": {**everything["params"]}}
    bias = always["params"]["head"]["bias"]
    always["params"]["head"] = {**always["params"]["head"], "bias": bias.at[1].set(1.0)}
    assert measure(evidence(one()), evidence(always), names=names).values == {}, "names all so"
    known = evidence(toy.trained().variables, sets)
    assert set(measure(evidence(one()), known, names=names).values) == set(names)
    with pytest.raises(Missing):
        METRICS["relearning"].function(known, never)


WRONG = {
    "scope": ({"scope": "modle"}, "scope: expected one of"),
    "ideal": ({"ideal": "smal"}, "ideal: expected one of"),
    "group": ({"group": "privcy"}, "group: expected another .* did you mean 'privacy'"),
    "capital group": ({"group": "Utility"}, "did you mean 'utility'"),
    "needs": ({"needs": ("prediction",)}, "needs: expected what some .* mean .*'predictions'"),
    "needs as text": ({"needs": "weights"}, "needs: expected a tuple of names, got 'weights'"),
    "format": ({"format": ".3q"}, "format: expected 's', 'B', 'x', 'd' or a format"),
    "function": ({"function": 3}, "function: expected a function, got 3"),
    "label": ({"label": None}, "label: expected str, got NoneType"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_misspelt_in_a_metric_is_told(name):
    changes, message = WRONG[name]
    row = Metric("mine", "own", "small", ".2f", lambda evidence: 1.0, ("weights",))
    for register in (register_metric, METRICS.register):
        with pytest.raises((ValueError, TypeError), match=message):
            register("mine", row._replace(**changes))
    register_metric("mine", row)


def test_an_unknown_name_says_which_there_are():
    for name, near in (("linear_prob", "linear_probe"), ("accuracy_forgt", "accuracy_forget")):
        with pytest.raises(KeyError, match=f"expected one of .*; did you mean '{near}'"):
            METRICS[name]
    assert METRICS.get("linear_prob") is None
    assert [] not in METRICS
    with pytest.raises(ConfigError, match="metrics: expected one of"):
        METRICS.find(["linear_probe"])


@pytest.mark.parametrize("wrong", [{"a": 1}, [1], None, "report", {"title": "x", "rows": []}])
def test_what_is_no_report_is_told(wrong, tmp_path):
    for call in (
        ju.print_report, files.to_markdown, files.to_table,
        lambda given: files.save(given, tmp_path),
        lambda given: files.save_png(given, tmp_path / "a.png"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="report: expected one with title, columns, rows"):
            call(wrong)
    assert not list(tmp_path.iterdir())


def test_swapped_arguments_of_pictures_are_told(tmp_path):
    report = summarise("t", [Judged({"original": {"accuracy_forget": 1.0}}, [])])
    with pytest.raises(TypeError, match="folder: expected a path, got a report"):
        files.save(report, report)
    model, variables = toy.mlp(), toy.trained().variables
    for swapped in ((model, tmp_path / "a.png"), (variables, tmp_path / "a.png")):
        with pytest.raises(
            TypeError, match=r"path: expected the path of a PNG, .* save_path\(path"
        ):
            ju.pictures.save_path(*swapped, variables, variables, jnp.ones((1, *toy.SHAPE)), 0)
    with pytest.raises(TypeError, match=r"path: expected the path .* save_heatmaps\(path, "):
        ju.pictures.save_heatmaps(jnp.ones((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1)), tmp_path / "b")


def test_one_model_has_intervals_over_examples():
    sets, models = toy.sets(), {"original": toy.trained(), "x": one()}
    report = ju.evaluate(toy.mlp(), models, retrained(2), sets)
    rows = {row["name"]: row for row in report["rows"]}
    assert set(rows["accuracy_retain"]["over_examples"]) == {"original", "x"}
    assert "over_examples" not in rows["linear_probe"], "no mean over examples"
    array = report["examples"]["x/js_to_retrained"]
    low, high = bootstrap(array, draws=1000)
    assert rows["js_to_retrained"]["over_examples"]["x"] == pytest.approx((high - low) / 2)
    assert np.std(array) / np.sqrt(len(array)) * 1.96 == pytest.approx((high - low) / 2, rel=0.15)
    # of a share of right answers as of a binomial distribution
    share, count = rows["accuracy_retain"]["values"]["x"], int(sets.retain.size)
    wanted = 1.96 * np.sqrt(share * (1 - share) / count)
    assert rows["accuracy_retain"]["over_examples"]["x"] == pytest.approx(wanted, rel=0.2, abs=5e-3)
    (note,) = (note for note in report["notes"] if "over examples" in note)
    assert "js_to_retrained" in note
    assert "accuracy_forget" in note
    several = ju.evaluate(toy.mlp(), {**models, "x": [one(), one()]}, retrained(2), sets)
    rows = {row["name"]: row for row in several["rows"]}
    assert set(rows["accuracy_retain"]["over_examples"]) == {"original"}, "of a single model"
    assert files.to_markdown(report)
