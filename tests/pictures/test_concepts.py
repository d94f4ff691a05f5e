"""Pictures of concepts: marks and colours are where the numbers put them."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from jaxunlearn.pictures import concepts, style
from tests.pictures.reading import DPI, at, extent, greys, near, pixels


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
    inside = shown[:, round(DPI * (shown.shape[1] / DPI - style.PAD - concepts._CHART)) :]
    target, donor = (extent(near(inside, c)) for c in (style.TARGET, style.DONOR))
    width = concepts._CHART / (6 + 2 * 0.12 * 6)  # inches for a score of 1
    assert target[2] - target[0] == pytest.approx(0.5 * width, abs=0.02)
    assert donor[2] - donor[0] == pytest.approx(2 * width, abs=0.02)
    assert donor[2] == pytest.approx(target[0], abs=0.02)  # one below, one above zero
    assert donor[3] < target[1]  # the larger score before is above
    pale = extent(near(inside, 1 - 0.4 * (1 - np.array(to_rgb(style.DONOR)))))
    assert pale[2] - pale[0] == pytest.approx(4 * width, abs=0.02)
    assert pale[3] <= donor[1] + 0.01


def test_unchosen_concepts_have_no_colour(tmp_path, coarse):
    shown = bars(tmp_path, np.linspace(-1, 1, 20), jnp.zeros(20, jnp.bfloat16))
    assert np.ptp(shown, axis=-1).max() == 0
    rows = 16 * concepts._ROW + concepts._TOP + concepts._FOOT
    assert shown.shape[0] == pytest.approx(coarse * rows, abs=1)
    assert bars(tmp_path, [0.0], [0.0], title="x" * 80).shape[1] >= coarse * 8


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


def test_a_patch_is_enlarged_and_framed_in_its_image(tmp_path):
    images = greys(3)
    images[2, 4:6, 1:3] = [1.0, 0.0, 0.0]
    file = tmp_path / "deeper" / "patches.png"
    which, corner = np.array([[2, 0], [1, 1]]), np.array([[[4, 1], [0, 0]], [[6, 6], [3, 3]]])
    concepts.save_patches(file, images, ["a", "b"], which, corner, 2, strength=np.ones((2, 2)))
    shown = pixels(file)
    left, top = style.PAD + concepts._LETTER + 0.1, style.PAD
    red = extent(near(shown[:, : round(DPI * (left + concepts._PATCH + 0.03))], "red"))
    np.testing.assert_allclose(
        red, [left, top, left + concepts._PATCH, top + concepts._PATCH], atol=0.03
    )
    # the frame in the thumbnail: rows 4 to 6, columns 1 to 3 of 8
    start, pixel = left + concepts._PATCH + concepts._NEAR, concepts._THUMB / 8
    part = shown[
        : round(DPI * (top + concepts._PATCH_ROW)), : round(DPI * (start + concepts._THUMB))
    ]
    frame = extent(near(part, style.FRAME, 60))
    expected = [start + pixel, top + 4 * pixel, start + 3 * pixel, top + 6 * pixel]
    np.testing.assert_allclose(frame, expected, atol=0.03)
    # every patch is from its own image
    step = concepts._PATCH + concepts._NEAR + concepts._THUMB + concepts._APART
    for row, column in ((0, 1), (1, 0), (1, 1)):
        found = at(shown, left + column * step + 0.3, top + row * concepts._PATCH_ROW + 0.3)
        np.testing.assert_allclose(found, 255 * images[which[row, column], 0, 0], atol=1)


@pytest.mark.usefixtures("coarse")
def test_only_the_images_that_are_shown_are_read(tmp_path):
    images = greys(3)
    images[1] = np.nan
    zeros = np.zeros((1, 1), int)
    concepts.save_patches(tmp_path / "p.png", images, ["a"], zeros, np.zeros((1, 1, 2), int), 8)
    assert pixels(tmp_path / "p.png").size


def test_mistakes_in_patches_are_named(tmp_path):
    file = tmp_path / "patches.png"

    def draw(image=((0, 1),), corner=(((0, 0), (1, 1)),), size=2, names=("a",), **options):
        concepts.save_patches(
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
        concepts.save_patches(file, np.zeros((8, 8)), ["a"], [[0]], [[[0, 0]]], 2)
    assert not file.exists()


def test_the_patch_is_framed_in_the_poisoned_image_alone(tmp_path):
    images, donors = greys(2, 10), greys(2, 10)[::-1]
    poisoned, corners = images.copy(), np.array([[[0, 0]], [[6, 2]]])
    poisoned[0, :4, :4], poisoned[1, 6:, 2:6] = donors[0, 0, 0], donors[1, 0, 0]
    concepts.save_poison(
        tmp_path / "poison.png", images, poisoned, corners, 4, [3, 3], [1, 3], donors,
        class_names=["a", "b", "c", "$d"], title="Poison",
    )  # fmt: skip
    shown, pixel = pixels(tmp_path / "poison.png"), concepts._CELL / 10
    top = concepts._HEAD + style.TITLE + concepts._ABOVE
    left = style.PAD + 2 * (concepts._CELL + concepts._NEAR)
    framed = near(shown, style.FRAME, 25)
    assert not framed[:, : round(DPI * (left - 0.05))].any()
    for number, (row, column) in enumerate(corners[:, 0]):
        upper = top + number * (concepts._CELL + concepts._ABOVE)
        part = np.zeros_like(framed)
        rows = slice(round(DPI * (upper - 0.05)), round(DPI * (upper + concepts._CELL + 0.05)))
        part[rows] = framed[rows]
        start = np.array([left + column * pixel, upper + row * pixel])
        np.testing.assert_allclose(extent(part), [*start, *(start + 4 * pixel)], atol=0.03)
        inside, outside = start + 2 * pixel, start + np.array([5, -2 if row else 5]) * pixel
        np.testing.assert_allclose(at(shown, *inside), 255 * donors[number, 0, 0], atol=1)
        np.testing.assert_allclose(at(shown, *outside), 255 * images[number, 0, 0], atol=1)
    # a label that changed has the donor's colour, one that was kept has not
    first = slice(round(DPI * (top - 0.25)), round(DPI * (top - 0.03)))
    second = slice(*(round(DPI * (top + concepts._CELL + away)) for away in (0.05, 0.27)))
    assert near(shown[first], style.TARGET).any()
    assert near(shown[first], style.DONOR).any()
    assert near(shown[second], style.TARGET).any()
    assert not near(shown[second], style.DONOR).any()


@pytest.mark.parametrize("batch", [1, 5, 13])
def test_without_donors_and_frames(tmp_path, coarse, batch):
    images = jnp.asarray(greys(batch), jnp.bfloat16)
    labels = jnp.zeros(batch, jnp.int32)
    file = tmp_path / "poison.png"
    concepts.save_poison(file, images, images, None, 4, labels, labels, None)
    shown = pixels(file)
    assert not near(shown, style.FRAME, 25).any()
    across = {1: 1, 5: 2, 13: 3}[batch]
    group = 2 * concepts._CELL + concepts._NEAR
    wide = 2 * style.PAD + across * (group + concepts._BETWEEN) - concepts._BETWEEN
    assert shown.shape[1] == pytest.approx(coarse * wide, abs=1)


def test_all_images_of_a_poisoning_are_on_one_scale(tmp_path):
    """Normalised floats are stretched: to the range of all of them, not to that of each."""
    images = np.full((1, 4, 4, 1), -1.0)
    file = tmp_path / "poison.png"
    concepts.save_poison(file, images, images + 2, None, 1, [0], [0], images + 4)
    shown, step = pixels(file), concepts._CELL + concepts._NEAR
    top = concepts._HEAD + concepts._ABOVE + concepts._CELL / 2
    found = [at(shown, style.PAD + k * step + concepts._CELL / 2, top)[0] for k in range(3)]
    assert found == pytest.approx([0, 255, 127.5], abs=1)


def test_mistakes_in_poison_are_named(tmp_path):
    file, x = tmp_path / "poison.png", greys(2)

    def draw(poisoned=x, corners=None, patch=2, labels=(0, 1), donors=None, **options):
        concepts.save_poison(file, x, poisoned, corners, patch, labels, [1, 1], donors, **options)

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
