"""Pictures of concepts: marks and colours are where the numbers put them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from jaxunlearn.core.errors import UserError
from jaxunlearn.pictures import concepts, confusions, poison, style
from jaxunlearn.pictures import concepts as maps
from jaxunlearn.pictures import concepts as patches
from jaxunlearn.pictures import style as marks
from jaxunlearn.pictures.style import overlay

DPI = 160


def pixels(file):
    picture = Image.open(file)
    picture.verify()  # the whole file
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def at(picture, left, top):
    """The colour at a place in inches."""
    return picture[round(DPI * top), round(DPI * left)]


def near(picture, colour, within=6):
    """``bool [H, W]``: which pixels have a colour."""
    return (np.abs(picture - 255 * np.array(to_rgb(colour))) <= within).all(-1)


def extent(mask):
    """Left, top, right, bottom of what is set, in inches."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / DPI


def greys(count, size=8):
    """Images of one grey each, none of them like another."""
    return np.broadcast_to(
        np.linspace(0.1, 0.9, count)[:, None, None, None], (count, size, size, 3)
    ).copy()


# ---------------------------------------------------------------- scores


def bars(tmp_path, before, after, **options):
    names = [f"c{i}" for i in range(len(before))]
    concepts.save_concepts(tmp_path / "bars.png", names, before, after, **options)
    return pixels(tmp_path / "bars.png")


def test_concepts_by_falling_score_and_all_that_are_chosen():
    before = np.array([1.0, 3.0, 2.0, 3.0])
    assert concepts.order_of("abcd", before, {}).tolist() == [1, 3, 2, 0]
    many = np.arange(30.0)
    names = [f"c{i}" for i in range(30)]
    assert concepts.order_of(names, many, {}).tolist() == list(range(29, 13, -1))
    order = concepts.order_of(names, many, {"c0": "donor", "c20": "target"})
    assert order.tolist() == [*range(29, 13, -1), 0]


def test_a_bar_is_as_long_as_its_score(tmp_path):
    shown = bars(tmp_path, [1.0, 4.0], [0.5, -2.0], chosen={"c0": "target", "c1": "donor"})
    # the names have these colours too: only what lies in the chart
    inside = shown[:, round(DPI * (shown.shape[1] / DPI - concepts._PAD - concepts._CHART)) :]
    target, donor = (extent(near(inside, c)) for c in (marks.TARGET, marks.DONOR))
    width = concepts._CHART / (6 + 2 * 0.12 * 6)  # inches for a score of 1
    assert target[2] - target[0] == pytest.approx(0.5 * width, abs=0.02)
    assert donor[2] - donor[0] == pytest.approx(2 * width, abs=0.02)
    assert donor[2] == pytest.approx(target[0], abs=0.02)  # one below, one above zero
    assert donor[3] < target[1]  # the larger score before is above
    pale = extent(near(inside, 1 - 0.4 * (1 - np.array(to_rgb(marks.DONOR)))))
    assert pale[2] - pale[0] == pytest.approx(4 * width, abs=0.02)
    assert pale[3] <= donor[1] + 0.01


def test_unchosen_concepts_have_no_colour(tmp_path):
    shown = bars(tmp_path, np.linspace(-1, 1, 20), jnp.zeros(20, jnp.bfloat16))
    assert np.ptp(shown, axis=-1).max() == 0
    rows = 16 * concepts._ROW + concepts._TOP + concepts._FOOT
    assert shown.shape[0] == pytest.approx(DPI * rows, abs=1)
    assert bars(tmp_path, [0.0], [0.0], title="x" * 80).shape[1] >= DPI * 8


def test_mistakes_in_concepts_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"after: expected shape \[2\], as names, got \[3\]"):
        bars(tmp_path, [1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="before: expected finite numbers, got 1 NaN"):
        bars(tmp_path, [1.0, np.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="chosen: expected some of c0, got 'fur'"):
        bars(tmp_path, [1.0], [1.0], chosen={"fur": "target"})
    with pytest.raises(ValueError, match="names: expected at least one concept, got none"):
        bars(tmp_path, [], [])
    assert not (tmp_path / "bars.png").exists()


# ---------------------------------------------------------------- patches


def test_a_patch_is_enlarged_and_framed_in_its_image(tmp_path):
    images = greys(3)
    images[2, 4:6, 1:3] = [1.0, 0.0, 0.0]
    file = tmp_path / "deeper" / "patches.png"
    which, corner = np.array([[2, 0], [1, 1]]), np.array([[[4, 1], [0, 0]], [[6, 6], [3, 3]]])
    patches.save_patches(file, images, ["a", "b"], which, corner, 2, strength=np.ones((2, 2)))
    shown = pixels(file)
    left, top = patches._PAD + patches._LETTER + 0.1, patches._PAD
    red = extent(near(shown[:, : round(DPI * (left + patches._PATCH + 0.03))], "red"))
    np.testing.assert_allclose(
        red, [left, top, left + patches._PATCH, top + patches._PATCH], atol=0.03
    )
    # the frame in the thumbnail: rows 4 to 6, columns 1 to 3 of 8
    start, pixel = left + patches._PATCH + patches._NEAR, patches._THUMB / 8
    part = shown[: round(DPI * (top + patches._ROW)), : round(DPI * (start + patches._THUMB))]
    frame = extent(near(part, marks.FRAME, 60))
    expected = [start + pixel, top + 4 * pixel, start + 3 * pixel, top + 6 * pixel]
    np.testing.assert_allclose(frame, expected, atol=0.03)
    # every patch is from its own image
    step = patches._PATCH + patches._NEAR + patches._THUMB + patches._APART
    for row, column in ((0, 1), (1, 0), (1, 1)):
        found = at(shown, left + column * step + 0.3, top + row * patches._ROW + 0.3)
        np.testing.assert_allclose(found, 255 * images[which[row, column], 0, 0], atol=1)


def test_only_the_images_that_are_shown_are_read(tmp_path):
    images = greys(3)
    images[1] = np.nan
    zeros = np.zeros((1, 1), int)
    patches.save_patches(tmp_path / "p.png", images, ["a"], zeros, np.zeros((1, 1, 2), int), 8)
    assert pixels(tmp_path / "p.png").size


def test_mistakes_in_patches_are_named(tmp_path):
    file = tmp_path / "patches.png"

    def draw(image=((0, 1),), corner=(((0, 0), (1, 1)),), size=2, names=("a",), **options):
        patches.save_patches(
            file, greys(3), names, np.array(image), np.array(corner), size, **options
        )

    with pytest.raises(ValueError, match=r"image: expected shape \[2, t\], as names, got \[1, 2\]"):
        draw(names=("a", "b"))
    with pytest.raises(ValueError, match="image: expected 0 to 2, got 0 to 3"):
        draw(image=((0, 3),))
    with pytest.raises(ValueError, match="image: expected integers, got float64"):
        draw(image=((0.0, 1.0),))
    with pytest.raises(ValueError, match=r"image: expected at least one patch, got \[1, 0\]"):
        draw(image=np.zeros((1, 0), int))
    with pytest.raises(ValueError, match=r"corner: expected shape \[1, 2, 2\], as image, got"):
        draw(corner=((0, 0),))
    with pytest.raises(ValueError, match=r"corner: expected rows .* at most \[6, 6\], got \[7, 1"):
        draw(corner=(((0, 0), (7, 1)),))
    with pytest.raises(ValueError, match="corner: expected 0 or more, got -1 to 1"):
        draw(corner=(((0, -1), (1, 1)),))
    with pytest.raises(ValueError, match="size: expected 1 to 8 pixels, got 9"):
        draw(size=9)
    with pytest.raises(ValueError, match="strength: expected finite numbers, got 1 NaN"):
        draw(strength=np.array([[1, np.inf]]))
    with pytest.raises(ValueError, match=r"images: expected \[N, H, W, C\], got \(8, 8\)"):
        patches.save_patches(file, np.zeros((8, 8)), ["a"], [[0]], [[[0, 0]]], 2)
    assert not file.exists()


# ---------------------------------------------------------------- maps


def test_maps_are_enlarged_as_images_are():
    values = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    found = maps.enlarged(np.asarray(values, np.float64), (16, 15))
    expected = jax.image.resize(values, (2, 3, 16, 15), "bilinear")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(maps.enlarged(np.ones((1, 1)), (3, 2)), np.ones((3, 2)))
    np.testing.assert_array_equal(maps.enlarged(np.eye(3), (3, 3)), np.eye(3))


def test_the_maps_of_a_row_have_one_scale(tmp_path):
    values = np.stack([np.full((2, 2), v) for v in (1.0, -0.5, 0.0, 8.0, 0.0, -8.0)])
    images = greys(2)
    maps.save_maps(tmp_path / "maps.png", images, values.reshape(2, 3, 2, 2), list("abc"))
    shown, side = pixels(tmp_path / "maps.png"), maps._CELL + maps._NEAR
    assert shown.shape[1] == round(DPI * (2 * maps._PAD + 4 * side - maps._NEAR))
    for row, (scale, heats) in enumerate(((1.0, (1, -0.5, 0)), (8.0, (8, 0, -8)))):
        top = maps._TOP + maps._ABOVE + row * (maps._CELL + maps._ABOVE) + maps._CELL / 2
        grey = images[row, :1, :1]
        found = [at(shown, maps._PAD + k * side + maps._CELL / 2, top) for k in range(4)]
        np.testing.assert_allclose(found[0], 255 * grey[0, 0], atol=1)
        for colour, heat in zip(found[1:], heats, strict=True):
            expected = 255 * overlay(grey, np.array([[float(heat)]]), scale)[0, 0]
            np.testing.assert_allclose(colour, expected, atol=1.5)


def test_mistakes_in_maps_are_named(tmp_path):
    file = tmp_path / "maps.png"
    with pytest.raises(ValueError, match=r"maps: expected shape \[2, 3, h, w\], as images and nam"):
        maps.save_maps(file, greys(2), np.ones((2, 2, 4, 4)), list("abc"))
    with pytest.raises(ValueError, match="maps: expected finite numbers, got 16 NaN"):
        maps.save_maps(file, greys(1), np.full((1, 1, 4, 4), np.nan), ["a"])
    with pytest.raises(ValueError, match=r"maps: expected at least one cell, got \[1, 1, 0, 4\]"):
        maps.save_maps(file, greys(1), np.ones((1, 1, 0, 4)), ["a"])
    with pytest.raises(ValueError, match=r"images: expected \[B, H, W\]"):
        maps.save_maps(file, np.ones((8, 8)), np.ones((1, 1, 4, 4)), ["a"])
    assert not file.exists()


# ---------------------------------------------------------------- poison


def test_the_patch_is_framed_in_the_poisoned_image_alone(tmp_path):
    images, donors = greys(2, 10), greys(2, 10)[::-1]
    poisoned, corners = images.copy(), np.array([[[0, 0]], [[6, 2]]])
    poisoned[0, :4, :4], poisoned[1, 6:, 2:6] = donors[0, 0, 0], donors[1, 0, 0]
    poison.save_poison(
        tmp_path / "poison.png", images, poisoned, corners, 4, [3, 3], [1, 3], donors,
        class_names=["a", "b", "c", "$d"], title="Poison",
    )  # fmt: skip
    shown, pixel = pixels(tmp_path / "poison.png"), poison._CELL / 10
    top = poison._TOP + poison._TITLE + poison._ABOVE
    left = poison._PAD + 2 * (poison._CELL + poison._NEAR)
    framed = near(shown, marks.FRAME, 25)
    assert not framed[:, : round(DPI * (left - 0.05))].any()
    for number, (row, column) in enumerate(corners[:, 0]):
        upper = top + number * (poison._CELL + poison._ABOVE)
        part = np.zeros_like(framed)
        rows = slice(round(DPI * (upper - 0.05)), round(DPI * (upper + poison._CELL + 0.05)))
        part[rows] = framed[rows]
        start = np.array([left + column * pixel, upper + row * pixel])
        np.testing.assert_allclose(extent(part), [*start, *(start + 4 * pixel)], atol=0.03)
        inside, outside = start + 2 * pixel, start + np.array([5, -2 if row else 5]) * pixel
        np.testing.assert_allclose(at(shown, *inside), 255 * donors[number, 0, 0], atol=1)
        np.testing.assert_allclose(at(shown, *outside), 255 * images[number, 0, 0], atol=1)
    # a label that changed has the donor's colour, one that was kept has not
    first = slice(round(DPI * (top - 0.25)), round(DPI * (top - 0.03)))
    second = slice(*(round(DPI * (top + poison._CELL + away)) for away in (0.05, 0.27)))
    assert near(shown[first], marks.TARGET).any()
    assert near(shown[first], marks.DONOR).any()
    assert near(shown[second], marks.TARGET).any()
    assert not near(shown[second], marks.DONOR).any()


@pytest.mark.parametrize("batch", [1, 5, 13])
def test_without_donors_and_frames(tmp_path, batch):
    images = jnp.asarray(greys(batch), jnp.bfloat16)
    labels = jnp.zeros(batch, jnp.int32)
    file = tmp_path / "poison.png"
    for _ in range(2):  # an existing file is replaced
        poison.save_poison(file, images, images, None, 4, labels, labels, None)
    shown = pixels(file)
    assert not near(shown, marks.FRAME, 25).any()
    across = {1: 1, 5: 2, 13: 3}[batch]
    group = 2 * poison._CELL + poison._NEAR
    wide = 2 * poison._PAD + across * (group + poison._APART) - poison._APART
    assert shown.shape[1] == pytest.approx(DPI * wide, abs=1)


def test_all_images_of_a_poisoning_are_on_one_scale(tmp_path):
    """Normalised floats are stretched: to the range of all of them, not to that of each."""
    images = np.full((1, 4, 4, 1), -1.0)
    file = tmp_path / "poison.png"
    poison.save_poison(file, images, images + 2, None, 1, [0], [0], images + 4)
    shown, step = pixels(file), poison._CELL + poison._NEAR
    top = poison._TOP + poison._ABOVE + poison._CELL / 2
    found = [at(shown, poison._PAD + k * step + poison._CELL / 2, top)[0] for k in range(3)]
    assert found == pytest.approx([0, 255, 127.5], abs=1)


def test_mistakes_in_poison_are_named(tmp_path):
    file, x = tmp_path / "poison.png", greys(2)

    def draw(poisoned=x, corners=None, patch=2, labels=(0, 1), donors=None, **options):
        poison.save_poison(file, x, poisoned, corners, patch, labels, [1, 1], donors, **options)

    with pytest.raises(ValueError, match=r"poisoned: expected shape \[2, 8, 8, 3\], as images, go"):
        draw(poisoned=x[:1])
    with pytest.raises(ValueError, match=r"donors: expected shape \[2, 8, 8, 3\], as images, got"):
        draw(donors=x[..., :1])
    with pytest.raises(ValueError, match=r"corners: expected shape \[2, c, 2\], as images, got"):
        draw(corners=np.zeros((2, 2), int))
    with pytest.raises(ValueError, match=r"corners: expected rows and columns of at most \[6, 6\]"):
        draw(corners=np.full((2, 1, 2), 7))
    with pytest.raises(ValueError, match="patch: expected 1 to 8 pixels, got 9"):
        draw(corners=np.zeros((2, 1, 2), int), patch=9)
    with pytest.raises(ValueError, match=r"labels: expected shape \[2\], as images, got \[1\]"):
        draw(labels=[0])
    with pytest.raises(ValueError, match="poison_labels: expected 0 to 0, got 1 to 1"):
        draw(labels=[0, 0], class_names=["a"])
    with pytest.raises(ValueError, match="images: expected finite numbers"):
        draw(poisoned=x * np.nan)
    assert not file.exists()
    (tmp_path / "taken").write_text("")
    file = tmp_path / "taken" / "poison.png"
    with pytest.raises(UserError, match="path: expected a file that can be written"):
        draw()


# ---------------------------------------------------------------- confusions


def matrix_places(count, names):
    """Left and top of the first matrix, and the side of a cell, in inches."""
    side = count * confusions._CELL
    margin = 0.3 + confusions._LETTER * max(map(len, names))
    return confusions._PAD + margin, 0.1 + confusions._HEAD, max(side, confusions._LEAST) / count


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
    second += left - confusions._PAD
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
def test_many_classes_and_many_models(tmp_path, count):
    file = tmp_path / "confusions.png"
    models = {f"model {i}": np.eye(count) for i in range(5)}
    confusions.save_confusions(file, models, forgotten=[count - 1], title="Many")
    shown = pixels(file)
    assert shown.shape[1] <= DPI * confusions._WIDE + DPI
    assert near(shown, style.diverging()(1.0)[:3]).sum() > 1000


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
