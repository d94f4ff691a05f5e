"""What pictures share: colours, scales, and images of every kind."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.pictures import style
from tests.pictures.reading import at, extent, near, pixels


def test_zero_is_white_and_the_signs_have_their_colours():
    colours = style.diverging()
    assert colours(0.5) == (1, 1, 1, 1)
    assert colours((0.0 - -3) / 6) == (1, 1, 1, 1)
    red, _, blue, _ = colours(1.0)
    assert red > 2 * blue
    red, _, blue, _ = colours(0.0)
    assert blue > 2 * red


def test_the_scale_is_the_quantile_and_never_zero():
    values = np.arange(-1000.0, 1001.0)
    assert style.scale_of(values) == pytest.approx(np.quantile(np.abs(values), 0.995))
    single = np.zeros(1000)
    single[7] = -2.0
    assert style.scale_of(single) == 2.0
    assert style.scale_of(np.zeros(4)) == 1.0


def test_an_overlay_shows_the_image_where_nothing_is_relevant():
    picture = np.full((1, 3, 3), 0.5)
    mixed = style.overlay(picture, np.array([[0.0, 2.0, -9.0]]), scale=2.0)
    assert np.ptp(mixed[0, 0]) == 0
    colours = style.diverging()
    np.testing.assert_allclose(mixed[0, 1], colours(1.0)[:3])
    np.testing.assert_allclose(mixed[0, 2], colours(0.0)[:3])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 51, 255], np.uint8), [0, 0.2, 1]),
        (np.array([0, 0.2, 0.5], np.float32), [0, 0.2, 0.5]),
        (np.array([-1, 0, 3], np.float32), [0, 0.25, 1]),
        (jnp.array([-1, 0, 3], jnp.bfloat16), [0, 0.25, 1]),
        (np.array([7, 7, 7], np.float32), [0, 0, 0]),
    ],
)
def test_images_of_every_kind_become_colours(values, expected):
    shown = style.to_rgb(values.reshape(1, 1, 3))
    assert shown.shape == (1, 1, 3, 3)
    np.testing.assert_allclose(shown[0, 0], np.repeat(np.array(expected)[:, None], 3, 1), rtol=1e-6)


def test_what_is_no_image_is_named():
    with pytest.raises(ValueError, match=r"images: expected \[B, H, W\].* got \(2, 4, 4, 2\)"):
        style.to_rgb(np.zeros((2, 4, 4, 2)))
    with pytest.raises(ValueError, match="images: expected finite numbers, got 2 NaN"):
        style.to_rgb(np.array([[[np.nan, 0, np.inf]]]))


def test_an_image_is_drawn_in_the_middle_of_its_square_and_framed_where_its_pixels_are(tmp_path):
    picture = np.broadcast_to(np.linspace(0.2, 0.9, 8).reshape(2, 4, 1), (2, 4, 3))
    with style.page(tmp_path / "p.png", 2.0, 2.0, None) as page:
        fields = page.image(0.5, 0.5, 1.0, picture)
        page.frame(fields, np.array([[1, 2]]), 1)
    assert fields == (0.5, 0.75, 0.25)
    shown = pixels(tmp_path / "p.png")
    for (row, column), value in np.ndenumerate(picture[..., 0]):
        found = at(shown, 0.5 + (column + 0.5) / 4, 0.75 + (row + 0.5) / 4)
        np.testing.assert_allclose(found, 255 * value, atol=1)
    expected = [1.0, 1.0, 1.25, 1.25]
    np.testing.assert_allclose(extent(near(shown, style.FRAME, 60)), expected, atol=0.03)
    assert (at(shown, 1.0, 0.7) == 255).all(), "white above and below"
