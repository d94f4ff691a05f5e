"""Confusion matrices: colours are where the numbers put them."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from jaxunlearn.pictures import confusions, style
from tests.pictures.reading import DPI, at, near, pixels


def matrix_places(count, names):
    """Left and top of the first matrix, and the side of a cell, in inches."""
    side = count * confusions._CELL
    margin = 0.3 + confusions._LETTER * max(map(len, names))
    return style.PAD + margin, 0.1 + confusions._HEAD, max(side, confusions._LEAST) / count


def test_rows_are_shares_and_cells_have_their_colours(tmp_path):
    counts = np.array([[8, 2, 0, 0], [0, 0, 5, 15], [0, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(
        confusions.shares(counts),
        [[0.8, 0.2, 0, 0], [0, 0, 0.25, 0.75], [0, 0, 0, 0], [0, 0, 0, 1]],
    )
    file, names = tmp_path / "confusions.png", ["bird", "$at", "dog", "elk"]
    models = {"original": counts, "unlearned": jnp.eye(4)}
    confusions.save_confusions(file, models, class_names=names, forgotten=[1])
    shown = pixels(file)
    left, top, cell = matrix_places(4, names)
    colours = style.diverging()
    second = left + max(4 * confusions._CELL, confusions._LEAST) + confusions._GAP
    second += left - style.PAD
    for start, shares in ((left, confusions.shares(counts)), (second, np.eye(4))):
        for (row, column), share in np.ndenumerate(shares):
            # near a corner, where no number is
            found = at(shown, start + (column + 0.2) * cell, top + (row + 0.2) * cell)
            expected = 255 * np.array(colours(0.5 + share / 2)[:3])
            if not shares[row].any():
                expected = 255 * np.array(to_rgb(confusions._NOTHING))
            np.testing.assert_allclose(found, expected, atol=2.5)


def test_the_row_of_a_forgotten_class_is_framed(tmp_path):
    file, names = tmp_path / "confusions.png", list("0123")
    dark = []
    for forgotten in ((), np.array([2])):
        confusions.save_confusions(file, {"original": np.eye(4) + 1}, forgotten=forgotten)
        dark.append(near(pixels(file), style.INK, 40))
    left, top, cell = matrix_places(4, names)
    lines = [slice(round(DPI * (top + k * cell)) - 4, round(DPI * (top + k * cell)) + 4)
             for k in range(5)]  # fmt: skip
    inside = slice(round(DPI * left), round(DPI * (left + 4 * cell)))
    without, framed = ([m[line, inside].any(0).mean() for line in lines] for m in dark)
    assert max(without) < 0.2
    assert [share > 0.95 for share in framed] == [False, False, True, True, False]


def test_what_is_written_above_and_beside_a_matrix():
    matrix = confusions.shares(np.array([[9.0, 1, 0], [5, 5, 0], [0, 0, 0]]))
    assert confusions._about(matrix, []) == "accuracy: mean 70.0%"
    assert confusions._about(matrix, [1]) == "accuracy: retained 90.0%, forgotten 50.0%"
    assert confusions._about(matrix, [2]) == "accuracy: retained 70.0%"
    assert confusions._about(matrix * 0, []) == ""
    assert confusions._named(12, [3]) == list(range(12))
    assert confusions._named(100, [11, 55]) == [0, 11, 20, 30, 40, 50, 55, 60, 70, 80, 90]


@pytest.mark.parametrize("count", [1, 13, 40])
def test_many_classes_and_many_models(tmp_path, coarse, count):
    file = tmp_path / "confusions.png"
    models = {f"model {i}": np.eye(count) for i in range(5)}
    confusions.save_confusions(file, models, forgotten=[count - 1], title="Many")
    shown = pixels(file)
    assert shown.shape[1] <= coarse * confusions._WIDE + coarse
    assert near(shown, style.diverging()(1.0)[:3]).sum() > 1000 * (coarse / DPI) ** 2


def test_mistakes_in_confusions_are_named(tmp_path):
    file = tmp_path / "confusions.png"

    def draw(matrix, **options):
        confusions.save_confusions(file, {"original": np.eye(3), "new": matrix}, **options)

    with pytest.raises(ValueError, match=r"matrices\['new'\]: expected shape \[3, 3\], as all of"):
        draw(np.eye(4))
    with pytest.raises(
        ValueError, match=r"matrices\['new'\]: expected counts of 0 or more, got -1"
    ):
        draw(-np.eye(3))
    with pytest.raises(ValueError, match=r"matrices\['new'\]: expected finite numbers, got 9 NaN"):
        draw(np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="class_names: expected 3, as matrices, got 2"):
        draw(np.eye(3), class_names=["a", "b"])
    with pytest.raises(ValueError, match="forgotten: expected classes of 0 to 2, got 3"):
        draw(np.eye(3), forgotten=[3])
    with pytest.raises(ValueError, match="matrices: expected at least one, got none"):
        confusions.save_confusions(file, {})
    assert not file.exists()
