"""The most exposed images: which, in which order, and what is written."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from jaxunlearn.pictures import exposed, style
from tests.pictures.reading import Recorder, at, greys, pixels


def test_the_order_is_that_of_exposure():
    values = np.array([0.3, 0.9, 0.5, 0.9, 0.1])
    first, last = exposed.exposure_order(values, most=2, least=2)
    assert first.tolist() == [1, 3], "ties in their order"
    assert last.tolist() == [0, 4]
    first, last = exposed.exposure_order(values, largest=False, most=4, least=3)
    assert first.tolist() == [4, 0, 2, 1]
    assert last.tolist() == [3], "none twice"
    assert exposed.exposure_order(values, least=0)[1].size == 0


def test_images_are_where_their_values_put_them(tmp_path):
    images = greys(4)
    given = {"a": [0.1, 0.4, 0.3, 0.2], "b": [0.9, 0.1, 0.2, 0.3]}
    exposed.save_exposed(tmp_path / "e.png", images, given, most=2, least=1)
    shown, wide = pixels(tmp_path / "e.png"), exposed._CELL + exposed._NEAR
    for row, order in enumerate(([1, 2, 0], [0, 3, 1])):
        top = 0.1 + row * (exposed._HEAD + exposed._ABOVE + exposed._CELL)
        top += exposed._HEAD + exposed._ABOVE + exposed._CELL / 2
        for place, example in enumerate(order):
            left = style.PAD + place * wide + exposed._CELL / 2 + (place == 2) * exposed._GAP
            wanted = np.rint(255 * images[example, 0, 0])
            np.testing.assert_allclose(at(shown, left, top), wanted, atol=1)


def test_what_is_written_about_exposed_images(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    exposed.save_exposed(
        tmp_path / "e.png", greys(3), {"$m$": [0.25, 0.5, 0.75]}, labels=[0, 1, 1], least=0,
        class_names=["cat", "dog"], words="U-LiRA",
    )  # fmt: skip
    assert {"$m$", "cat", "dog", "0.25", "0.75", "left: most exposed, by U-LiRA"} <= {
        *recorder.words
    }
    text = exposed.exposed_text({"m": np.array([0.25, 0.5])}, ["cat", "dog"], "U-LiRA")
    assert text.splitlines()[2] == "| m | 1 | dog | 0.500 |"


MISTAKES = {
    "no models": ({}, {}, "values: expected at least one model, got none"),
    "another number": ({"a": [1.0]}, {}, r"values\['a'\]: expected shape \[3\], as images"),
    "not finite": ({"a": [1.0, np.nan, 0]}, {}, r"values\['a'\]: expected finite numbers, got 1"),
    "none asked for": ({"a": [1.0, 2, 3]}, {"most": 0}, "most: expected a positive number, got 0"),
    "labels": ({"a": [1.0, 2, 3]}, {"labels": [0, 1]}, r"labels: expected shape \[3\], as images"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_exposed_images_are_named(tmp_path, name):
    values, options, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        exposed.save_exposed(tmp_path / "e.png", greys(3), values, **options)
    assert not (tmp_path / "e.png").exists()


def test_what_a_page_shows_of_exposed_examples():
    values = {"m": np.array([0.1, 0.9, 0.9, 0.2]), "wrecked": np.array([0.1, np.nan, 0, 0])}
    images = np.linspace(0, 1, 4 * 6 * 100 * 3).reshape(4, 6, 100, 3)

    def show(place):
        return {"name": f"class {place}", "image": exposed.to_thumbnail(images[place])}

    made = exposed.describe_exposed(values, np.arange(7, 11), "words", show)
    assert set(made["models"]) == {"m"}
    assert [one["place"] for one in made["models"]["m"]["first"]] == [1, 2, 3, 0]
    assert made["models"]["m"]["median"] == 0.55
    assert made["examples"]["2"]["position"] == 9
    kind, _, content = made["examples"]["2"]["image"].partition(",")
    assert kind == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert max(image.size) == 64, "small"
    small = exposed.describe_exposed(values, np.arange(7, 11), "words", show, largest=False)
    assert [one["place"] for one in small["models"]["m"]["first"]] == [0, 3, 1, 2]
