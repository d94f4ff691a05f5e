"""Several seeds and a paper beside them, by hand."""

import numpy as np
import pytest

from jaxunlearn.core.statistics import estimate, floor, paired, spread
from jaxunlearn.metrics.table import Judged, Place, compare, make_report, summarise

T4, T1 = 2.7764, 12.7062  # Student's t, .975, 4 and 1 degrees of freedom, from a printed table


class TestEstimate:
    def test_mean_and_interval_of_five(self):
        found = estimate([1, 2, 3, 4, 5])
        assert found.mean == 3
        assert found.interval == pytest.approx(T4 * np.sqrt(2.5) / np.sqrt(5), rel=1e-4)

    def test_one_value_has_no_interval(self):
        assert estimate([0.7]) == (0.7, None)

    def test_equal_values_have_none_made_of_rounding(self):
        assert estimate([0.1] * 10).interval == 0

    def test_it_holds_the_truth_in_19_of_20_cases(self):
        rng = np.random.default_rng(0)
        found = [estimate(rng.normal(2, 3, size=3)) for _ in range(4000)]
        share = np.mean([abs(one.mean - 2) <= one.interval for one in found])
        assert share == pytest.approx(0.95, abs=0.01)

    def test_pairs_take_out_what_a_seed_shares(self):
        own, retrained = [0.1, 0.5, 0.9], [0.0, 0.4, 0.8]
        found = paired(own, retrained)
        assert found.mean == pytest.approx(0.1)
        assert found.interval == pytest.approx(0, abs=1e-9)
        assert paired([0.1, None, 0.9], [0.0, 0.4, None]) == (pytest.approx(0.1), None)
        assert paired([None], [0.5]) is None

    def test_floor_and_spread(self):
        assert floor([[0, 0.1, 0.5]]) == pytest.approx((0.1 + 0.5 + 0.4) / 3)
        assert spread([[1, 3]]) == pytest.approx(np.sqrt(2))
        assert floor([[1]]) is spread([[1], []]) is floor([]) is spread([]) is None

    def test_floor_and_spread_within_groups(self):
        groups = [[0, 0.2], [5, 5.1, 5.4], [7]]
        assert floor(groups) == pytest.approx((0.2 + 0.1 + 0.3 + 0.4) / 4)
        squares = 2 * 0.1**2 + sum((x - 15.5 / 3) ** 2 for x in (5, 5.1, 5.4))
        assert spread(groups) == pytest.approx(np.sqrt(squares / 3))


def values(accuracy, seconds, curve):
    return {"accuracy_forget": accuracy, "seconds": seconds, "relearn_curve": curve}


FIRST = Judged(
    {"original": values(1.0, 9.0, [1, 1]), "path": values(0.2, 1.0, [0, 0.5])},
    [values(0.0, 8.0, [0.0, 0.4])],
)
SECOND = Judged(
    {"original": values(0.8, 7.0, [1, 1]), "path": values(0.4, 3.0, [0.2, 0.7])},
    [values(0.1, 6.0, [0.2, 0.6])],
)
SEEDS = [Place("seed", 0), Place("seed", 1)]
CLASSES = [Place("class", 1, "1"), Place("class", 3, "cat")]
FAILED = Judged({"original": FIRST.models["original"], "path": {}}, FIRST.retrained)


class TestSeeds:
    def rows(self, judged):
        made = summarise("t", judged, trials=SEEDS)
        assert made["columns"] == ["original", "path", "retrained"]
        return {row["name"]: row for row in made["rows"]}

    def test_values_are_means_with_intervals(self):
        row = self.rows([FIRST, SECOND])["accuracy_forget"]
        assert row["values"] == pytest.approx({"original": 0.9, "path": 0.3, "retrained": 0.05})
        assert row["each"]["path"] == [0.2, 0.4]
        # of two values: half their distance, times t
        assert row["intervals"]["path"] == pytest.approx(T1 * 0.1, rel=1e-4)
        assert row["intervals"]["retrained"] == pytest.approx(T1 * 0.05, rel=1e-4)

    def test_one_retrained_model_a_seed_gives_a_floor_across_seeds(self):
        row = self.rows([FIRST, SECOND])["accuracy_forget"]
        assert row["floor"] == pytest.approx(0.1)
        assert row["spread"] == pytest.approx(0.1 / np.sqrt(2))

    def test_all_retrained_models_of_all_seeds_are_compared(self):
        more = FIRST._replace(retrained=[*FIRST.retrained, values(0.3, 2.0, [0, 0])])
        row = self.rows([more, SECOND])["accuracy_forget"]
        assert row["floor"] == pytest.approx((0.3 + 0.1 + 0.2) / 3)
        assert row["each"]["retrained"] == pytest.approx([0.15, 0.1])

    @pytest.mark.parametrize("name", ["js_to_retrained", "ret_fid", "forget_quality"])
    def test_two_models_are_as_far_from_each_other_either_way(self, name):
        from jaxunlearn.metrics.registry import METRICS

        assert METRICS[name].scope == "retrained"

        def judged(*theirs):
            return Judged({"original": {name: 0.9}}, [{name: one} for one in theirs])

        (row,) = summarise("t", [judged(0.2, 0.2)])["rows"]
        assert row["floor"] is row["spread"] is None, "one distance says nothing of chance"
        assert row["values"]["retrained"] == pytest.approx(0.2)
        (row,) = summarise("t", [judged(0.2, 0.3, 0.4)])["rows"]
        assert row["floor"] == pytest.approx((0.1 + 0.2 + 0.1) / 3)
        row = self.rows([judged(0.2, 0.2)._replace(models={"original": {name: 0.9}, "path": {}}),
                         judged(0.4, 0.6)])[name]  # fmt: skip
        assert row["floor"] == pytest.approx(0.3)

    def test_differences_are_paired(self):
        row = self.rows([FIRST, SECOND])["accuracy_forget"]
        assert set(row["differences"]) == {"original", "path"}
        assert row["differences"]["path"]["mean"] == pytest.approx((0.2 + 0.3) / 2)
        assert row["differences"]["path"]["interval"] == pytest.approx(T1 * 0.05, rel=1e-4)

    def test_a_cost_has_an_interval_and_no_floor_nor_difference(self):
        row = self.rows([FIRST, SECOND])["seconds"]
        assert row["values"] == {"original": 8, "path": 2, "retrained": 7}
        assert row["intervals"]["path"] == pytest.approx(T1, rel=1e-4)
        assert row["floor"] is row["spread"] is None
        assert "differences" not in row

    def test_a_method_that_failed_once_is_the_mean_of_the_rest(self):
        row = self.rows([FAILED, SECOND])["accuracy_forget"]
        assert row["values"]["path"] == 0.4
        assert row["each"]["path"] == [None, 0.4]
        assert row["intervals"]["path"] is None

    def test_curves_are_means_and_the_retrained_ones_have_a_band(self):
        (curve,) = summarise("t", [FIRST, SECOND], trials=SEEDS)["curves"]
        assert curve["values"]["path"] == pytest.approx([0.1, 0.6])
        assert curve["values"]["retrained"] == pytest.approx([0.1, 0.5])
        assert curve["spread"] == pytest.approx([0.2 / np.sqrt(2)] * 2)

    def test_classes_differ_by_their_request_and_not_by_chance(self):
        """Noise is what retrained models of the same class differ by."""
        one = FIRST._replace(retrained=[values(0.0, 8, [0, 0.4]), values(0.2, 1, [0, 0.2])])
        other = SECOND._replace(retrained=[values(0.7, 2, [1, 1]), values(0.8, 2, [1, 0.8])])
        made = summarise("t", [one, other], trials=CLASSES)
        row = next(row for row in made["rows"] if row["name"] == "accuracy_forget")
        assert row["floor"] == pytest.approx((0.2 + 0.1) / 2)
        assert row["spread"] == pytest.approx(np.sqrt((0.02 + 0.005) / 2))
        assert row["each"]["retrained"] == pytest.approx([0.1, 0.75])
        assert made["curves"][0]["spread"] == pytest.approx([0, np.sqrt(0.02)])
        assert made["trials"] == {"kind": "class", "numbers": [1, 3], "names": ["", "cat"]}
        alone = summarise("t", [FIRST, SECOND], trials=CLASSES)
        row = next(row for row in alone["rows"] if row["name"] == "accuracy_forget")
        assert row["floor"] is row["spread"] is None, "one of each class tells no noise"

    def test_costs_are_those_of_the_one_trained_alone(self):
        both = [one._replace(alone=FIRST.retrained[0]) for one in (FIRST, SECOND)]
        row = next(
            r for r in summarise("t", both, trials=CLASSES)["rows"] if r["name"] == "seconds"
        )
        assert row["each"]["retrained"] == [8, 8]
        assert row["intervals"]["retrained"] == 0

    def test_a_single_seed_is_told_as_it_is(self):
        made = make_report("t", FIRST.models, FIRST.retrained)
        for row in made["rows"]:
            assert not {"each", "intervals", "differences"} & set(row)
        assert "trials" not in made
        assert "published" not in made


class TestPublished:
    given = {  # noqa: RUF012
        "path": {"accuracy_forget": 0.016, "attack_gap": 0.026, "seconds": 0.9},
        "retrained": {"accuracy_forget": 0.0},
        "noise": {"accuracy_forget": 0.793},
    }

    def judged(self, *attacks):
        def attacked(score, **more):
            return {"loss_attack": score, "attack_gap": abs(0.5 - score), **more}

        return [
            Judged(
                {"original": {}, "path": attacked(attack, accuracy_forget=0.2)},
                [attacked(0.4, seconds=5.0), attacked(0.6, seconds=1.0)],
            )
            for attack in attacks
        ]

    def test_ours_and_theirs_in_pairs(self):
        made = compare(self.judged(0.48), self.given, "a paper")
        assert made["source"] == "a paper"
        assert [one["label"] for one in made["columns"]] == ["At", "Fs", "time", "memory"]
        path, retrained, noise = made["rows"]
        assert path["values"] == pytest.approx({"accuracy_forget": 0.2, "attack_gap": 0.02})
        assert path["published"] == self.given["path"]
        assert retrained["values"]["seconds"] == 5, "that of the retrained model trained alone"
        assert noise["values"] == {}, "not run, shown all the same"
        assert noise["published"] == {"accuracy_forget": 0.793}

    def test_the_distance_is_taken_before_the_mean(self):
        path, retrained, _ = compare(self.judged(0.45, 0.55), self.given, "")["rows"]
        assert path["values"]["attack_gap"] == pytest.approx(0.05)
        assert path["intervals"]["attack_gap"] == pytest.approx(0, abs=1e-9)
        assert retrained["values"]["attack_gap"] == pytest.approx(0.1)

    def test_nothing_published_is_nothing_shown(self):
        assert compare(self.judged(0.5), {}, "") == {}
