"""Scores of a discriminator: lines are where the numbers put them."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.pictures import scores, style
from tests.pictures.reading import DPI, Recorder, near, pixels, random


def test_bins_reach_over_all_sets_and_leave_single_scores_out():
    few = [np.array([-3.0, 5]), np.array([0.0, 1, 2])]
    edges = scores.bins_of(few)
    assert (edges[0], edges[-1], len(edges)) == (-3, 5, 11)
    many = np.append(np.linspace(0, 1, 999), 1e6)
    edges = scores.bins_of([many, np.linspace(-1, 0, 1000)])
    assert edges[-1] <= 1
    assert edges[0] == pytest.approx(-0.995, abs=2e-3)
    assert len(edges) == 41
    edges = scores.bins_of([np.full(3, -200.0)])
    assert edges[0] < -200 < edges[-1]


def test_densities_are_shares_by_width():
    edges = np.array([0.0, 1, 3])
    found = scores.densities(np.array([0.5, 2, 2, 9]), edges)
    np.testing.assert_allclose(found, [0.25, 0.25])
    values = np.random.default_rng(0).normal(size=150)
    edges = scores.bins_of([values])
    assert (scores.densities(values, edges) * np.diff(edges)).sum() == pytest.approx(1)


def panel(number, noted=False, titled=False):
    """The box of a panel, in dots: left, top, right, bottom."""
    head = scores._HEAD + (scores._ABOUT if noted else 0)
    top = scores._TOP + (style.TITLE if titled else 0) + scores._LEGEND
    top += number * (head + scores._HIGH + scores._GAP) + head
    left = style.PAD + scores._AXIS
    return DPI * np.array([left, top, left + scores._CHART, top + scores._HIGH])


def test_all_panels_have_the_same_axes(tmp_path):
    """One of ten bins has all scores under the original, and half of them under the other."""
    given = {
        "original": {"forget": np.full(4, 9.5), "hold-out": [0.0, 5, 5, 10]},
        "$new$": {"hold-out": jnp.array([0.0, 5, 5, 10]), "forget": np.array([9.5, 9.5, 2.5, 2.5])},
    }
    scores.save_scores(
        tmp_path / "s.png", given, notes={"$new$": "AUC 0.5"}, title="T", words="$w$"
    )
    shown, tallest = pixels(tmp_path / "s.png"), 1.05
    for number, bins in enumerate(({9: 1.0}, {9: 0.5, 2: 0.5})):
        left, top, right, bottom = panel(number, True, True)
        inside = shown[round(top) - 3 : round(bottom) + 3, round(left) - 3 : round(right) + 3]
        line = near(inside, style.line_of(0)["color"], 25)
        for place in range(10):
            middle = 3 + round((right - left) * (place + 0.35) / 10)
            rows = np.flatnonzero(line[: round(bottom - top), middle])
            if place not in bins:
                assert not rows.size
            else:
                expected = 3 + (bottom - top) * (1 - bins[place] / tallest)
                assert rows.mean() == pytest.approx(expected, abs=2)


@pytest.mark.usefixtures("coarse")
def test_what_is_written_about_scores(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    given = {
        "original": {"forget": random(150), "retain": random(8)},
        "other": {"forget": random(150), "retain": random(9)},
    }
    scores.save_scores(tmp_path / "s.png", given, notes={"other": "AUC $0.5$"}, words="logit")
    for words in ("forget, n = 150", "retain", "AUC $0.5$", "logit", "original", "other"):
        assert words in recorder.words
    assert not any("not shown" in words for words in recorder.words)
    recorder.words.clear()
    scores.save_scores(tmp_path / "s.png", {"m": {"a": np.append(np.linspace(0, 1, 999), 1e6)}})
    lost = [words for words in recorder.words if "not shown" in words]
    assert len(lost) == 1
    assert "of 1000 scores" in lost[0]
    assert "discriminator's logit" in recorder.words


@pytest.mark.usefixtures("coarse")
def test_many_sets_take_several_lines_of_the_legend(tmp_path):
    given = {"m": {f"set number {i}": random(20, seed=i) for i in range(9)}}
    scores.save_scores(tmp_path / "s.png", given)
    lines = scores._lines([f"set number {i}, n = 20" for i in range(9)])
    assert len(lines) > 1
    assert [number for line in lines for number, _ in line] == list(range(9))
    for line in lines:
        starts = [start for _, start in line]
        assert starts[0] == 0
        assert min(np.diff(starts), default=9) > scores._KEY + 1
        assert starts[-1] < scores._CHART
    assert len(scores._lines(["forget, n = 900", "hold-out, n = 900", "retain, n = 9000"])) == 1


def test_mistakes_in_scores_are_named(tmp_path):
    file, x = tmp_path / "s.png", np.zeros(3)

    def draw(other, **options):
        scores.save_scores(file, {"original": {"forget": x, "retain": x}, "new": other}, **options)

    good = {"forget": x, "retain": x}
    with pytest.raises(ValueError, match="scores: expected at least one model, got none"):
        scores.save_scores(file, {})
    with pytest.raises(ValueError, match=r"scores\['a'\]: expected at least one set, got none"):
        scores.save_scores(file, {"a": {}})
    with pytest.raises(
        ValueError, match=r"scores\['new'\]: expected the sets forget, retain, got f"
    ):
        draw({"forget": x})
    with pytest.raises(
        ValueError, match=r"scores\['new'\]\['retain'\]: expected shape \[n\], as a"
    ):
        draw({"forget": x, "retain": x[None]})
    with pytest.raises(ValueError, match=r"\['retain'\]: expected at least one score, got none"):
        draw({"forget": x, "retain": x[:0]})
    with pytest.raises(ValueError, match=r"\['new'\]\['forget'\]: expected finite numbers, got 3"):
        draw({"forget": x * np.nan, "retain": x})
    with pytest.raises(ValueError, match="notes: expected some of original, new, got 'old'"):
        draw(good, notes={"old": "AUC"})
    assert not file.exists()
    draw(good)
    assert pixels(file).size
