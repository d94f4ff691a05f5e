import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.data.examples import as_examples
from jaxunlearn.data.sets import subset
from jaxunlearn.engine.driver import Outcome, member_of
from jaxunlearn.engine.predict import predict
from jaxunlearn.metrics import METRICS, measure
from jaxunlearn.metrics.attacks import fit_judge, loss_attack
from jaxunlearn.metrics.classification import ClassifierEvidence
from jaxunlearn.metrics.relearning import linear_probe, relearn_curve, relearn_steps
from jaxunlearn.metrics.table import make_report
from tests import toy

KEY = jax.random.key(0)


def linear(variables, x):
    return x @ variables["w"]


class TestPredict:
    x = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
    w = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    y = np.arange(11) % 4

    @pytest.mark.parametrize("batch_size", [1, 4, 11, 100])
    def test_logits_labels_losses_and_accuracy(self, batch_size):
        chosen = [7, 2, 9, 4, 10]
        part = subset(as_examples(self.x, self.y), chosen, capacity=8)
        found = predict(linear, {"w": jnp.asarray(self.w)}, part, batch_size)
        logits = self.x[chosen] @ self.w
        np.testing.assert_allclose(found.logits, logits, atol=1e-6)
        np.testing.assert_array_equal(found.labels, self.y[chosen])
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        wanted = -np.log(p[np.arange(5), self.y[chosen]])
        np.testing.assert_allclose(found.losses, wanted, rtol=1e-5)
        assert found.accuracy == np.mean(logits.argmax(axis=1) == self.y[chosen])

    def test_large_logits_do_not_overflow(self):
        part = subset(as_examples(np.ones((1, 1)), [1]), [0])
        found = predict(linear, {"w": jnp.array([[1e4, 0.0]])}, part)
        assert found.losses[0] == pytest.approx(1e4)


class TestLossAttack:
    rng = np.random.default_rng(0)

    def test_alike_losses_tell_nothing(self):
        scores = [loss_attack(*self.rng.exponential(size=(2, 400)), seed=s) for s in range(5)]
        assert np.mean(scores) == pytest.approx(0.5, abs=0.03)

    def test_separate_losses_tell_all(self):
        members, others = self.rng.uniform(0, 1, 300), self.rng.uniform(2, 3, 100)
        assert loss_attack(members, others) == 1
        assert loss_attack(others, members) == 1, "either direction gives it away"

    def test_half_overlap_has_the_known_accuracy(self):
        """U(0, 2) against U(1, 3): the best threshold on [1, 2] is right in 3 of 4 cases."""
        score = loss_attack(self.rng.uniform(0, 2, 4000), self.rng.uniform(1, 3, 4000))
        assert score == pytest.approx(0.75, abs=0.02)

    def test_too_few(self):
        with pytest.raises(ValueError, match="at least 4 examples a side, got 3"):
            loss_attack(np.ones(3), np.ones(10))


class TestJudge:
    """Softmax vectors over three classes; the forgotten one is the first."""

    rng = np.random.default_rng(0)

    def vectors(self, low, high, count):
        first = self.rng.uniform(low, high, count)
        return np.stack([first, 0.6 * (1 - first), 0.4 * (1 - first)], axis=1)

    def test_sure_answers_are_seen_and_unsure_ones_unseen(self):
        judge = fit_judge(self.vectors(0.9, 1.0, 300), self.vectors(0.4, 0.7, 300))
        assert judge(self.vectors(0.9, 1.0, 50)) == 0
        assert judge(self.vectors(0.0, 0.3, 50)) == 1, "beyond what it was fitted on"
        mixed = np.concatenate([self.vectors(0.95, 1.0, 30), self.vectors(0.1, 0.5, 10)])
        assert judge(mixed) == 0.25

    def test_many_members_do_not_make_everything_a_member(self):
        """U(.5, 1) against U(.3, .8): balanced, the border is where both are as frequent."""
        judge = fit_judge(self.vectors(0.5, 1.0, 3000), self.vectors(0.3, 0.8, 200))
        assert judge(self.vectors(0.3, 0.45, 50)) == 1
        assert judge(self.vectors(0.85, 1.0, 50)) == 0

    def test_it_is_the_same_each_time(self):
        members, others = self.vectors(0.5, 1, 40), self.vectors(0.4, 1, 30)
        asked = self.vectors(0, 1, 200)
        assert fit_judge(members, others)(asked) == fit_judge(members, others)(asked)

    def test_too_few(self):
        with pytest.raises(ValueError, match="at least 4 examples a side, got 3"):
            fit_judge(np.ones((3, 2)), np.ones((9, 2)))


class TestResidue:
    def test_a_probe_finds_what_the_head_no_longer_says(self):
        """Class 1 is erased from the head alone; its features are as they were."""
        given, sets = toy.trained().variables["params"], toy.sets()
        silent = given["head"]["bias"].at[1].set(-1e3)
        edited = {"params": {**given, "head": {**given["head"], "bias": silent}}}
        assert predict(toy.mlp().apply, edited, sets.test_forget).accuracy == 0
        features = ju.attribution.features(toy.mlp().apply)
        train = (sets.forget, sets.retain)
        assert linear_probe(features, edited, train, sets.test_forget) > 0.95

    def test_a_probe_on_nothing_finds_nothing(self):
        sets = toy.sets()

        def constant(variables, x):
            return jnp.ones((len(x), 3))

        score = linear_probe(constant, {}, (sets.forget, sets.retain), sets.test_forget)
        assert score in (0.0, 1.0), "one answer for all"
        assert score == 0, "class 1 is not the largest"

    @pytest.mark.parametrize(
        ("curve", "target", "steps"),
        [([0.9, 1], 0.9, 0), ([0, 0.4, 0.2, 0.6], 0.4, 1), ([0, 0.1, 0.2], 0.3, 3)],
    )
    def test_steps_until_it_is_known_again(self, curve, target, steps):
        assert relearn_steps(np.array(curve), target) == steps

    def test_what_diverged_was_not_relearned(self):
        assert relearn_steps(np.array([0.1, np.nan, np.nan]), 0.5) == 3

    def test_relearning_climbs_from_what_is_left(self):
        given, sets = toy.trained().variables, toy.sets()
        method = ju.random_label(toy.mlp())
        forgot = ju.unlearn(method, given, sets, KEY, steps=100, batch_size=32).variables

        def curve(variables, learning_rate, steps=100):
            options = {"learning_rate": learning_rate, "steps": steps, "batch_size": 50}
            return relearn_curve(toy.mlp(), variables, sets.forget, KEY, **options)

        whole = curve(forgot, 0.02)
        assert whole.shape == (100,)
        # a batch of all 50: the accuracy before any step is that of the model itself
        assert whole[0] == predict(toy.mlp().apply, forgot, sets.forget).accuracy
        assert whole[0] < 0.2 < 0.9 < whole[-1]
        assert curve(forgot, 0.1).mean() > whole.mean(), "faster at a higher rate"
        assert curve(given, 0.02).mean() > 0.95, "never forgotten"
        np.testing.assert_array_equal(curve(forgot, 0.02, steps=7), whole[:7])

    def test_a_network_that_cannot_be_trained_leaves_nan(self):
        given = toy.trained().variables
        huge = jax.tree.map(lambda leaf: leaf * 1e20, given)
        curve = relearn_curve(toy.mlp(), huge, toy.sets().forget, KEY, steps=3)
        assert curve.shape == (3,)
        assert np.isnan(curve).all()


ORIGINAL = {"accuracy_forget": 1.0, "accuracy_retain": 0.9, "loss_attack": 0.6}
GOOD = {"accuracy_forget": 0.1, "accuracy_retain": 0.9, "seconds": 2.0, "speedup": 5.0}
BAD = {"accuracy_forget": 0.5, "accuracy_retain": float("nan"), "seconds": 1.0, "speedup": 9.0}
RETRAINED = (
    {"accuracy_forget": 0.0, "seconds": 10.0},
    {"accuracy_forget": 0.1, "seconds": 3.0},
    {"accuracy_forget": 0.5, "seconds": 3.0},
)


class TestReport:
    def rows(self):
        models = {"original": ORIGINAL, "good": GOOD, "bad": BAD}
        report = make_report("t", models, RETRAINED)
        assert report["columns"] == ["original", "good", "bad", "retrained"]
        return {row["name"]: row for row in report["rows"]}

    def test_mean_spread_and_floor_of_the_retrained_models(self):
        row = self.rows()["accuracy_forget"]
        assert row["values"]["retrained"] == pytest.approx(0.2)
        assert row["spread"] == pytest.approx(np.std([0, 0.1, 0.5], ddof=1))
        assert row["floor"] == pytest.approx((0.1 + 0.5 + 0.4) / 3)

    def test_a_cost_is_that_of_the_retrained_model_trained_alone(self):
        row = self.rows()["seconds"]
        assert row["values"]["retrained"] == 10
        assert row["spread"] is row["floor"] is None

    def test_the_best_is_closest_to_the_ideal(self):
        rows = self.rows()
        assert rows["accuracy_forget"]["best"] == ["good", "bad"], "alike within the floor"
        assert rows["accuracy_retain"]["best"] == [], "no retrained model told what is ideal"
        assert rows["seconds"]["best"] == rows["speedup"]["best"] == ["bad"]

    def test_one_retrained_model_has_no_floor(self):
        report = make_report("t", {"original": ORIGINAL}, RETRAINED[:1])
        row = report["rows"][0]
        assert row["spread"] is row["floor"] is None


def test_evaluate_sets_all_models_side_by_side():
    sets = toy.sets()
    config = ju.TrainConfig(epochs=15, batch_size=32, learning_rate=5e-3)
    # an original whose forget examples the machine can tell from unseen ones; not every one's
    everything, key = ju.whole(sets.forget.examples), jax.random.key(3)
    original = ju.train(toy.mlp(), everything, key, config=config).variables
    edited = ju.unlearn(toy.method("neuron_path"), original, sets, KEY).variables
    config = ju.TrainConfig(epochs=4, batch_size=32, learning_rate=5e-3)
    keys = jax.random.split(KEY, 2)
    retrained = ju.train_many(toy.mlp(), sets.retain, keys, config=config).variables
    models = {"original": original, "edited": edited}
    report = ju.evaluate(toy.mlp(), models, retrained, sets)
    rows = {row["name"]: row["values"] for row in report["rows"]}
    assert rows["accuracy_forget"]["original"] > 0.9
    assert rows["accuracy_forget"]["retrained"] == 0
    assert set(rows) <= set(METRICS)
    for name in ("linear_probe", "judged_unseen", "relearning"):
        assert set(rows[name]) == {"original", "edited", "retrained"}, name
    assert rows["judged_unseen"]["original"] < 0.7 < rows["judged_unseen"]["retrained"]
    (curve,) = report["curves"]
    assert set(curve["values"]) == {"original", "edited", "retrained"}
    for name, course in curve["values"].items():
        assert np.mean(course) == pytest.approx(rows["relearning"][name], abs=1e-4)
    ju.print_report(report)


def test_without_retrained_models_there_is_nothing_to_compare_with():
    models = {"original": toy.trained(), "again": toy.trained()}
    rows = {r["name"]: r for r in ju.evaluate(toy.mlp(), models, [], toy.sets())["rows"]}
    assert set(rows["seconds"]["values"]) == {"original", "again"}
    assert "speedup" not in rows
    assert rows["accuracy_forget"]["best"] == []


def test_evaluate_wants_the_original():
    with pytest.raises(ValueError, match=r"expected an entry 'original', got \['mine'\]"):
        ju.evaluate(toy.mlp(), {"mine": {}}, [], toy.sets())


def evidence(sets, variables=None):
    given = toy.trained().variables if variables is None else variables
    return ClassifierEvidence(toy.mlp(), given, sets, KEY)


def test_items_are_compared_with_the_test_set():
    values = measure(evidence(toy.sets(ju.data.forget_random(0.2)))).values
    assert 0.2 < values["loss_attack"] < 0.8
    assert 0 <= values["judged_unseen"] <= 1
    assert "accuracy_test_forget" not in values
    assert "linear_probe" not in values


def test_the_original_is_its_own_reference():
    sets = toy.sets()
    reference = evidence(sets)
    alone = measure(evidence(sets)).values
    assert alone == measure(evidence(sets), reference).values
    assert reference.predictions["forget"].accuracy == alone["accuracy_forget"]
    assert alone["attack_gap"] == abs(0.5 - alone["loss_attack"])


def test_one_of_many_has_what_was_its_own_and_a_share_of_the_time():
    many = Outcome(
        {"w": np.array([[1.0], [2.0]])}, {"loss": np.array([[3.0, 4.0]])}, 1, 8, 10.0, 6.0, 100,
        {"donor": np.array([5, 6])},
    )  # fmt: skip
    one = member_of(many, 1)
    found = (one.variables["w"], one.history["loss"], one.prepared["donor"])
    assert [np.asarray(value).tolist() for value in found] == [[2.0], [4.0], 6]
    assert (one.steps, one.examples, one.seconds, one.compile_seconds) == (1, 8, 5.0, 3.0)
    assert one.memory == 100, "of the program"


class TestMemory:
    def needed(self, examples):
        """Of fine-tuning on the same ten out of so many examples."""
        rng = np.random.default_rng(0)
        x = rng.integers(0, 255, (examples, *toy.SHAPE)).astype(np.uint8)
        sets = ju.Sets(retain=subset(as_examples(x, np.arange(examples) % 4), range(10)))
        given = toy.trained().variables
        return ju.unlearn(toy.method("finetune"), given, sets, KEY, steps=2, batch_size=8).memory

    def test_it_counts_the_data(self):
        """1,000 more images: a byte a pixel, four a label."""
        assert self.needed(1100) - self.needed(100) == 1000 * (6 * 6 + 4)

    def test_it_counts_what_a_step_holds(self):
        """Parameters and momentum, given up for their successors; gradients and the batch."""
        parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(toy.trained().variables))
        rest = self.needed(100) - 100 * (6 * 6 + 4)
        assert 3 * parameters < rest < 5 * parameters
