"""Metrics of classifiers against closed forms, on predictions made by hand."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.engine.predict import Predictions
from jaxunlearn.metrics.classification import (
    ClassifierEvidence,
    attack_gap,
    correct,
    correct_in_test,
    exact_zeros,
    js_of_means,
    js_to_retrained,
    judged_unseen,
    loss_attack,
    relearn_steps,
)
from jaxunlearn.metrics.registry import METRICS, Missing, measure
from tests import toy


def logits_of(probabilities):
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(np.asarray(probabilities, np.float64)), -1e4)


class Predicting(SimpleNamespace):
    """What is known of a model: its predictions alone."""

    is_sound = ClassifierEvidence.is_sound


def model(probabilities, labels=None):
    """Evidence of a model that says this of the forget examples."""
    labels = np.zeros(len(probabilities), int) if labels is None else np.asarray(labels)
    return Predicting(predictions={"forget": Predictions(logits_of(probabilities), labels)})


LEFT, RIGHT, EVEN = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]
# KL((1/2, 1/2) || (3/4, 1/4)) / 2 + KL((1, 0) || (3/4, 1/4)) / 2
HALFWAY = (math.log(2 / 3) / 2 + math.log(2) / 2) / 2 + math.log(4 / 3) / 2


class TestDivergence:
    @pytest.mark.parametrize(
        ("own", "other", "wanted"),
        [
            (LEFT, LEFT, 0),
            (EVEN, EVEN, 0),
            ([0.2, 0.8], [0.2, 0.8], 0),
            (LEFT, RIGHT, math.log(2)),
            (EVEN, LEFT, HALFWAY),
            (LEFT, EVEN, HALFWAY),
        ],
    )
    def test_of_each_example(self, own, other, wanted):
        found = js_to_retrained(model([own, LEFT]), [model([other, LEFT])])
        np.testing.assert_allclose(found, [wanted, 0], atol=1e-12)

    def test_it_is_the_mean_over_the_retrained_models(self):
        found = js_to_retrained(model([LEFT]), [model([LEFT]), model([RIGHT]), model([EVEN])])
        np.testing.assert_allclose(found, [(math.log(2) + HALFWAY) / 3])

    def test_a_retrained_model_is_compared_with_the_others(self):
        one, other = model([LEFT]), model([RIGHT])
        np.testing.assert_allclose(js_to_retrained(one, [one, other]), [math.log(2)])
        with pytest.raises(Missing):
            js_to_retrained(one, [one])

    def test_three_classes_that_share_one(self):
        """m = (1/4, 1/2, 1/4): half of the mass is where the other's is."""
        found = js_to_retrained(model([[0.5, 0.5, 0]]), [model([[0, 0.5, 0.5]])])
        np.testing.assert_allclose(found, [math.log(2) / 2])

    def test_of_means_members_may_differ_as_the_retrained_do(self):
        members, retrained = [model([LEFT]), model([RIGHT])], [model([RIGHT]), model([LEFT])]
        assert js_of_means(members, retrained) == 0
        assert np.mean([js_to_retrained(one, retrained) for one in members]) > 0.3
        far = [model([LEFT]), model([LEFT])]
        assert js_of_means(far, [model([RIGHT])] * 2) == pytest.approx(math.log(2))
        assert js_of_means(far, retrained) == pytest.approx(HALFWAY)
        for few in ((members[:1], retrained), (members, retrained[:1])):
            with pytest.raises(Missing):
                js_of_means(*few)


def named(**parts):
    """Evidence with predictions of a class for each example, and their labels, by set."""
    found = {
        name: Predictions(np.eye(3)[list(classes)], np.asarray(labels))
        for name, (classes, labels) in parts.items()
    }
    size = {name: SimpleNamespace(size=np.asarray(len(p.labels))) for name, p in found.items()}
    missing = dict.fromkeys(("forget", "retain", "test_forget", "test_retain"))
    sets = SimpleNamespace(**{**missing, **size})
    return SimpleNamespace(predictions=found, sets=sets)


def test_accuracies_are_shares_of_examples():
    evidence = named(
        forget=([0, 1, 2, 2], [0, 1, 2, 0]),
        retain=([1, 1, 1], [2, 0, 2]),
        test_forget=([0, 0, 0, 1], [0, 0, 0, 0]),
        test_retain=([2, 1], [2, 2]),
    )
    parts = ("forget", "retain", "test_forget", "test_retain")
    assert [correct(evidence, part).mean() for part in parts] == [0.75, 0, 0.75, 0.5]
    # over examples, not over sets
    assert correct_in_test(evidence).mean() == pytest.approx(4 / 6)
    assert correct_in_test(named(test_retain=([2, 1], [2, 2]))).mean() == 0.5
    with pytest.raises(Missing):
        correct_in_test(named(forget=([0], [0])))


def test_rows_read_the_sets_that_they_name():
    evidence = named(
        forget=([0] * 4, [0, 1, 1, 1]),
        retain=([0] * 4, [0, 0, 1, 1]),
        test_forget=([0] * 4, [0, 0, 0, 1]),
        test_retain=([0] * 4, [0, 0, 0, 0]),
    )
    wanted = {"forget": 0.25, "retain": 0.5, "test_forget": 0.75, "test_retain": 1}
    names = [f"accuracy_{part}" for part in wanted]
    assert measure(evidence, names=names).values == dict(zip(names, wanted.values(), strict=True))
    assert METRICS["accuracy_test_retain"].label == "accuracy, retain (test)"


class TestAttack:
    def evidence(self, sets):
        return ClassifierEvidence(toy.mlp(), toy.trained().variables, sets, None)

    def test_too_few_examples_leave_the_attacks_out(self):
        sets = toy.sets()
        few = sets._replace(test_forget=sets.test_forget._replace(size=np.int32(3)))
        own = self.evidence(few)
        for metric in (loss_attack, attack_gap):
            with pytest.raises(Missing):
                metric(own)
        with pytest.raises(Missing):
            judged_unseen(own, own)

    def test_its_gap_is_the_distance_from_one_half(self):
        for score in (0.3, 0.5, 0.9):
            evidence = SimpleNamespace(attack=score)
            assert loss_attack(evidence) == score
            assert attack_gap(evidence) == pytest.approx(abs(0.5 - score))


def test_relearning_is_counted_up_to_the_original():
    """95 % of the original's accuracy of one half."""
    original = named(forget=([0, 1], [0, 0]))
    own = SimpleNamespace(relearning=np.array([0.1, 0.4, 0.475, 0.9]))
    assert relearn_steps(own, original) == 2
    with pytest.raises(ValueError, match="cannot be trained again"):
        relearn_steps(SimpleNamespace(relearning=np.full(4, np.nan)), original)


class TestExactZeros:
    """An original of eight numbers, one of them 0, one an integer that counts steps."""

    original = SimpleNamespace(
        weights={
            "params": {"kernel": np.arange(1.0, 7).reshape(2, 3), "bias": np.array([0.0, 3])},
            "count": np.array(0),
        }
    )

    def of(self, kernel=None, bias=None, count=0, dtype=np.float32):
        params = self.original.weights["params"]
        kernel = params["kernel"] if kernel is None else kernel
        bias = params["bias"] if bias is None else bias
        params = {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.asarray(bias, dtype)}
        return SimpleNamespace(weights={"params": params, "count": np.array(count)})

    @pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
    @pytest.mark.parametrize(
        ("changed", "wanted"),
        [
            ({}, 0),  # its own zero was there before
            ({"count": 5}, 0),
            ({"bias": [2, 3]}, 0),
            ({"kernel": [[0, 2, 3], [0, 5, 6]]}, 2 / 8),  # a neuron's incoming weights
            ({"kernel": [[1, 2, 3], [-0.0, 5, 1e-30]]}, 1 / 8),
            ({"kernel": np.zeros((2, 3)), "bias": [0, 0]}, 7 / 8),
        ],
    )
    def test_those_of_the_original_do_not_count(self, changed, wanted, dtype):
        assert exact_zeros(self.of(**changed, dtype=dtype), self.original) == wanted

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_wrecked_model_has_no_share(self, value):
        with pytest.raises(ValueError, match="expected finite numbers"):
            exact_zeros(self.of(bias=[value, 0]), self.original)

    def test_models_of_another_form_are_not_compared(self):
        with pytest.raises(Missing):
            exact_zeros(self.of(kernel=np.ones((3, 2))), self.original)
        with pytest.raises(Missing):
            exact_zeros(SimpleNamespace(weights={"count": np.array(0)}), self.original)

    def test_it_tells_an_edit_from_a_training(self):
        sets, original = toy.sets(), toy.trained().variables
        edited, tuned = (
            ju.unlearn(toy.method(name), original, sets, jax.random.key(1), **more).variables
            for name, more in (("neuron_path", {}), ("finetune", {"steps": 3}))
        )
        seen = [ClassifierEvidence(toy.mlp(), one, sets, None) for one in (original, edited, tuned)]
        before, zeroed, trained = (measure(one, seen[0], names=["exact_zeros"]) for one in seen)
        assert before.values == trained.values == {"exact_zeros": 0}
        assert zeroed.values["exact_zeros"] > 0.01
        row = METRICS["exact_zeros"]
        assert (row.group, row.ideal) == ("truth", "as retrained"), "beside relearning"
