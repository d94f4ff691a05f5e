"""Pictures of generators: pixels and lines are where the numbers put them."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.pictures import generated, style
from tests.pictures.reading import DPI, Recorder, codes, extent, near, pixels, random

MODELS = ("original", "unlearned", "retrained")
SIDE = generated._SIDE
CELL = SIDE + 2 * generated._MARGIN


def colours(values):
    """What -1 to 1 is drawn as."""
    return np.broadcast_to(np.rint(127.5 * (values + 1)), (*values.shape[:-1], 3))


def corner(part, canvas):
    """Row and column of an image in a picture of codes; it is there once, pixel by pixel."""
    part, (high, wide) = codes(part), part.shape[:2]
    # where its first and its last pixel are, few places are left to compare
    first, last = canvas[: 1 - high or None, : 1 - wide or None], canvas[high - 1 :, wide - 1 :]
    rows, columns = np.nonzero((first == part[0, 0]) & (last == part[-1, -1]))
    places = [
        (int(row), int(column))
        for row, column in zip(rows, columns, strict=True)
        if (canvas[row : row + high, column : column + wide] == part).all()
    ]
    assert len(places) == 1
    return places[0]


def enlarged(values, factor):
    return colours(values).repeat(factor, 0).repeat(factor, 1)


@pytest.mark.parametrize(("count", "columns", "channels"), [(7, 3, 1), (5, 16, 3), (1, 1, 1)])
def test_every_image_is_drawn_whole_and_at_the_place_of_its_latent(
    tmp_path, count, columns, channels
):
    images = {name: random(count, 4, 6, channels, seed=i) for i, name in enumerate(MODELS)}
    generated.save_samples(tmp_path / "s.png", images, columns=columns, title="Same latents")
    shown, factor = codes(pixels(tmp_path / "s.png")), SIDE // 6
    across = min(columns, count)
    starts = []
    for made in images.values():
        places = np.array([corner(enlarged(image, factor), shown) for image in made])
        rows, right = np.divmod(np.arange(count), across)
        step = np.array([4 * factor, 6 * factor]) + 2 * generated._MARGIN
        np.testing.assert_array_equal(places - places[0], np.stack([rows, right], 1) * step)
        starts.append(places[0])
    lefts, tops = np.array(starts)[:, 1], np.array(starts)[:, 0]
    assert set(lefts) == {round(DPI * style.PAD)}
    assert np.ptp(np.diff(tops)) <= 1
    # below all rows of a block is room for the name of the next
    assert np.diff(tops).min() >= -(-count // across) * step[0] + DPI * generated._HEAD


def test_large_images_keep_their_pixels(tmp_path):
    image = random(1, 150, 170, 3)
    generated.save_samples(tmp_path / "s.png", {"original": image})
    corner(colours(image[0]), codes(pixels(tmp_path / "s.png")))


def test_values_are_clipped_to_the_range_of_all_models(tmp_path):
    images = np.array([-9.0, 0, 5, 10, 99])[:, None, None, None] * np.ones((1, 2, 2, 1))
    given = {"original": jnp.asarray(images, jnp.bfloat16), "other": images * 0 + 5}
    generated.save_samples(tmp_path / "s.png", given, low=0, high=10)
    shown = pixels(tmp_path / "s.png")
    left, top = (round(DPI * inches) for inches in (style.PAD, generated._TOP + generated._HEAD))
    found = [shown[top + SIDE // 2, left + i * CELL + SIDE // 2, 0] for i in range(5)]
    assert found == [0, 0, 128, 255, 255]
    below = top + SIDE + round(DPI * (generated._HEAD + generated._APART)) + SIDE // 2
    assert {shown[below, left + i * CELL + SIDE // 2, 0] for i in range(5)} == {128}


def test_marked_images_are_framed_and_counted(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    images = {"$a$": np.ones((5, 8, 8, 1)), "b": -np.ones((5, 8, 8, 1)), "c": np.ones((5, 8, 8, 1))}
    which = {"$a$": [False, True, False, False, True], "b": np.zeros(5, bool)}
    generated.save_samples(tmp_path / "s.png", images, marks=which, columns=3)
    written = ["$a$", "forgotten class: 2 of 5", "b", "forgotten class: 0 of 5", "c"]
    assert recorder.words == written
    shown = pixels(tmp_path / "s.png")
    left = round(DPI * style.PAD)
    top = round(DPI * (generated._TOP + generated._HEAD + generated._ABOUT))
    frames = near(shown, style.FRAME, 0)
    frames[: top - generated._MARGIN] = False  # the one beside the words
    frames[top + 2 * CELL - generated._MARGIN :] = False
    expected = np.zeros_like(frames)
    for row, column in ((0, 1), (1, 1)):
        upper, start = top + row * CELL, left + column * CELL
        outer, inner = generated._MARGIN - 1, 1
        expected[upper - outer : upper + SIDE + outer, start - outer : start + SIDE + outer] = True
        expected[upper - inner : upper + SIDE + inner, start - inner : start + SIDE + inner] = False
        assert (shown[upper : upper + SIDE, start : start + SIDE] == 255).all()
    np.testing.assert_array_equal(frames, expected)
    # below, only beside the words of the second model
    rest = near(shown[top + 2 * CELL :], style.FRAME, 6)
    assert rest.any()
    assert extent(rest)[2] < style.PAD + 0.2
    assert extent(rest)[3] - extent(rest)[1] < 0.15


def test_many_models_and_long_names_fit(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    images = {f"model {i} " + "with a long name " * 4: random(3, 2, 2, 1) for i in range(9)}
    generated.save_samples(tmp_path / "s.png", images, title="x" * 60)
    assert all(len(words) <= 64 for words in recorder.words)
    shown = pixels(tmp_path / "s.png")
    border = round(DPI * 0.04)
    for edge in (shown[:border], shown[-border:], shown[:, :border], shown[:, -border:]):
        assert (edge == 255).all()


def test_mistakes_in_samples_are_named(tmp_path):
    file, x = tmp_path / "s.png", np.zeros((3, 4, 4, 1))

    def draw(other=x, **options):
        generated.save_samples(file, {"original": x, "new": other}, **options)

    with pytest.raises(ValueError, match="images: expected at least one model, got none"):
        generated.save_samples(file, {})
    with pytest.raises(ValueError, match=r"images\['a'\]: expected \[n, H, W, 1 or 3\], none of t"):
        generated.save_samples(file, {"a": x[0]})
    with pytest.raises(ValueError, match=r"1 or 3\], none of them 0, got \[3, 4, 4, 2\]"):
        generated.save_samples(file, {"a": np.zeros((3, 4, 4, 2))})
    with pytest.raises(ValueError, match=r"1 or 3\], none of them 0, got \[0, 4, 4, 1\]"):
        generated.save_samples(file, {"a": x[:0]})
    with pytest.raises(ValueError, match=r"images\['new'\]: expected shape \[3, 4, 4, 1\], as all"):
        draw(x[:2])
    with pytest.raises(ValueError, match=r"images\['new'\]: expected finite numbers, got 48 NaN"):
        draw(x * np.nan)
    with pytest.raises(ValueError, match="marks: expected some of original, new, got 'old'"):
        draw(marks={"old": np.ones(3, bool)})
    with pytest.raises(
        ValueError, match=r"marks\['new'\]: expected shape \[3\], as images, got \["
    ):
        draw(marks={"new": np.ones(4, bool)})
    with pytest.raises(ValueError, match=r"marks\['new'\]: expected booleans, got int"):
        draw(marks={"new": np.ones(3, int)})
    with pytest.raises(ValueError, match="columns: expected a positive number, got 0"):
        draw(columns=0)
    for low, high in ((1, 1), (np.nan, 1), (0, np.inf)):
        with pytest.raises(ValueError, match="low, high: expected finite numbers, low < high"):
            draw(low=low, high=high)
    assert not file.exists()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_a_strip_is_a_row_of_its_model_in_the_block_of_its_pair(tmp_path, channels, with_lengths):
    given = {name: random(2, 5, 4, 4, channels, seed=i) for i, name in enumerate(MODELS)}
    lengths = {name: random(2, 4) + 1 for name in MODELS} if with_lengths else None
    generated.save_strips(tmp_path / "s.png", given, lengths=lengths, title="Strips")
    shown, factor = codes(pixels(tmp_path / "s.png")), SIDE // 4
    places = np.array(
        [
            [[corner(enlarged(image, factor), shown) for image in strip] for strip in made]
            for made in given.values()
        ]
    )  # fmt: skip, [model, pair, step, 2]
    assert (np.diff(places[..., 1], axis=2) == CELL).all()
    assert (np.diff(places[..., 0], axis=2) == 0).all()
    assert np.ptp(places[:, :, 0, 1]) == 0
    assert (np.abs(np.diff(places[:, :, 0, 0], axis=0) - CELL) <= 1).all()
    step = places[0, 1, 0, 0] - places[0, 0, 0, 0]
    assert step == pytest.approx(3 * CELL - 2 * generated._MARGIN + DPI * generated._GAP, abs=1)


def chart_of(shown, pairs, models, steps, name_length, pair):
    """The box of a chart, in dots: left, top, right, bottom."""
    block = max(models * CELL - 2 * generated._MARGIN, DPI * generated._LOWEST)
    left = style.PAD + 0.1 + generated._LETTER * name_length
    left = DPI * (left + generated._AXIS) + steps * CELL - 2 * generated._MARGIN
    below = (generated._FOOT + 0.15) * DPI + (pairs - 1 - pair) * (block + DPI * generated._GAP)
    bottom = shown.shape[0] - below
    return left, bottom - block, left + DPI * generated._CHART, bottom


def test_lines_are_as_high_as_the_lengths_and_all_charts_have_one_scale(tmp_path):
    given = {"a": random(2, 4, 4, 4, 1), "b": random(2, 4, 4, 4, 1)}
    lengths = {"b": jnp.asarray([[1.0, 1, 1], [4, 4, 4]]), "a": np.array([[3.0] * 3, [2] * 3])}
    generated.save_strips(tmp_path / "s.png", given, lengths=lengths)
    shown = pixels(tmp_path / "s.png")
    for pair, heights in ((0, (3, 1)), (1, (2, 4))):
        left, top, right, bottom = chart_of(shown, 2, 2, 4, 1, pair)
        inside = shown[round(top) - 3 : round(bottom) + 3, round(left) - 3 : round(right) + 3]
        for number, height in enumerate(heights):
            # the n-th model has the n-th colour, in whatever order the lengths are
            line = near(inside, style.line_of(number)["color"], 25)
            rows, columns = np.nonzero(line)
            expected = 3 + (bottom - top) * (1 - height / (1.05 * 4))
            assert rows.mean() == pytest.approx(expected, abs=2)
            assert np.ptp(columns) == pytest.approx((right - left) * 2 / 3, abs=8)


@pytest.mark.usefixtures("coarse")
def test_mean_and_largest_are_of_all_strips(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    given = {"$a$": random(2, 3, 4, 4, 1), "b": random(2, 3, 4, 4, 1)}
    generated.save_strips(tmp_path / "s.png", given, lengths={"$a$": [[1.0, 2], [3, 10]]})
    assert "a step: mean 4, largest 10" in recorder.words
    assert recorder.words.count("$a$") == 3  # two rows and the legend
    assert recorder.words.count("b") == 2
    recorder.words.clear()
    generated.save_strips(tmp_path / "s.png", given, title="T")
    assert sorted(recorder.words) == ["$a$", "$a$", "T", "b", "b"]


@pytest.mark.parametrize("value", [0.0, 1e-6, 3e7])
def test_a_single_step_and_lengths_of_any_unit(tmp_path, value):
    given = {"m" * 30: random(1, 2, 5, 3, 1)}
    generated.save_strips(tmp_path / "s.png", given, lengths={"m" * 30: [[value]]})
    shown = pixels(tmp_path / "s.png")
    left, top, *_ = chart_of(shown, 1, 0, 0, generated._LETTERS, 0)
    left += 2 * (3 * (SIDE // 5) + 2 * generated._MARGIN)  # wider than they are: 3 of 5 pixels
    point = near(shown[round(top) - 6 :, round(left) :], style.line_of(0)["color"], 25)
    assert point.any()
    border = round(DPI * 0.04)
    for edge in (shown[:border], shown[-border:], shown[:, :border], shown[:, -border:]):
        assert (edge == 255).all()


def test_lines_differ_in_colour_or_dashes():
    lines = [str(style.line_of(i)) for i in range(28)]
    assert len(set(lines)) == 28
    assert len({str(style.line_of(i)["linestyle"]) for i in range(4)}) == 4
    assert len({style.line_of(i)["color"] for i in range(7)}) == 7


def test_mistakes_in_strips_are_named(tmp_path):
    file, x = tmp_path / "s.png", np.zeros((2, 3, 4, 4, 1))

    def draw(other=x, **options):
        generated.save_strips(file, {"original": x, "new": other}, **options)

    with pytest.raises(ValueError, match="strips: expected at least one model, got none"):
        generated.save_strips(file, {})
    with pytest.raises(ValueError, match=r"strips\['a'\]: expected \[r, t, H, W, 1 or 3\], none"):
        generated.save_strips(file, {"a": x[0]})
    with pytest.raises(
        ValueError, match="strips: expected at least 2 images between latents, got 1"
    ):
        generated.save_strips(file, {"a": x[:, :1]})
    with pytest.raises(
        ValueError, match=r"strips\['new'\]: expected shape \[2, 3, 4, 4, 1\], as a"
    ):
        draw(x[:, :2])
    with pytest.raises(ValueError, match=r"strips\['new'\]: expected finite numbers, got 96 NaN"):
        draw(x + np.inf)
    with pytest.raises(ValueError, match="lengths: expected some of original, new, got 'old'"):
        draw(lengths={"old": np.ones((2, 2))})
    with pytest.raises(
        ValueError, match=r"lengths\['new'\]: expected shape \[2, 2\], as strips, g"
    ):
        draw(lengths={"new": np.ones((2, 3))})
    with pytest.raises(
        ValueError, match=r"lengths\['new'\]: expected lengths of 0 or more, got -1"
    ):
        draw(lengths={"new": -np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"lengths\['new'\]: expected finite numbers, got 4 NaN"):
        draw(lengths={"new": np.full((2, 2), np.nan)})
    with pytest.raises(ValueError, match="low, high: expected finite numbers, low < high, got 2"):
        draw(low=2)
    assert not file.exists()
