"""Pictures of generators: pixels and lines are where the numbers put them."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from jaxunlearn.core.errors import UserError
from jaxunlearn.pictures import samples, scores, strips
from jaxunlearn.pictures import style as marks
from jaxunlearn.pictures.samples import save_samples
from jaxunlearn.pictures.scores import save_scores
from jaxunlearn.pictures.strips import save_strips

DPI = 160
MODELS = ("original", "unlearned", "retrained")
SIDE = samples._SIDE
CELL = SIDE + 2 * samples._MARGIN


def pixels(file):
    picture = Image.open(file)
    picture.verify()  # the whole file
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def near(picture, colour, within=6):
    """``bool [H, W]``: which pixels have a colour."""
    return (np.abs(picture - 255 * np.array(to_rgb(colour))) <= within).all(-1)


def extent(mask):
    """Left, top, right, bottom of what is set, in inches."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / DPI


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def colours(values):
    """What -1 to 1 is drawn as."""
    return np.broadcast_to(np.rint(127.5 * (values + 1)), (*values.shape[:-1], 3))


def corner(part, canvas):
    """Row and column of an image in a picture; it is there once, pixel by pixel."""
    high, wide = part.shape[:2]
    # where its first and its last pixel are, few places are left to compare
    first, last = canvas[: 1 - high or None, : 1 - wide or None], canvas[high - 1 :, wide - 1 :]
    rows, columns = np.nonzero(((first == part[0, 0]) & (last == part[-1, -1])).all(2))
    places = [
        (int(row), int(column))
        for row, column in zip(rows, columns, strict=True)
        if (canvas[row : row + high, column : column + wide] == part).all()
    ]
    assert len(places) == 1
    return places[0]


def enlarged(values, factor):
    return colours(values).repeat(factor, 0).repeat(factor, 1)


class Recorder:
    """Keeps what is written on pages."""

    def __init__(self, monkeypatch):
        self.words, write = [], samples.Page.text

        def text(page, left, top, words, **style):
            self.words.append(words)
            write(page, left, top, words, **style)

        monkeypatch.setattr(samples.Page, "text", text)


# ---------------------------------------------------------------- samples


@pytest.mark.parametrize(("count", "columns", "channels"), [(7, 3, 1), (5, 16, 3), (1, 1, 1)])
def test_every_image_is_drawn_whole_and_at_the_place_of_its_latent(
    tmp_path, count, columns, channels
):
    images = {name: random(count, 4, 6, channels, seed=i) for i, name in enumerate(MODELS)}
    save_samples(tmp_path / "s.png", images, columns=columns, title="Same latents")
    shown, factor = pixels(tmp_path / "s.png"), SIDE // 6
    across = min(columns, count)
    starts = []
    for made in images.values():
        places = np.array([corner(enlarged(image, factor), shown) for image in made])
        rows, right = np.divmod(np.arange(count), across)
        step = np.array([4 * factor, 6 * factor]) + 2 * samples._MARGIN
        np.testing.assert_array_equal(places - places[0], np.stack([rows, right], 1) * step)
        starts.append(places[0])
    lefts, tops = np.array(starts)[:, 1], np.array(starts)[:, 0]
    assert set(lefts) == {round(DPI * samples._PAD)}
    assert np.ptp(np.diff(tops)) <= 1
    # below all rows of a block is room for the name of the next
    assert np.diff(tops).min() >= -(-count // across) * step[0] + DPI * samples._HEAD


def test_large_images_keep_their_pixels(tmp_path):
    image = random(1, 150, 170, 3)
    save_samples(tmp_path / "s.png", {"original": image})
    corner(colours(image[0]), pixels(tmp_path / "s.png"))


def test_values_are_clipped_to_the_range_of_all_models(tmp_path):
    images = np.array([-9.0, 0, 5, 10, 99])[:, None, None, None] * np.ones((1, 2, 2, 1))
    given = {"original": jnp.asarray(images, jnp.bfloat16), "other": images * 0 + 5}
    save_samples(tmp_path / "s.png", given, low=0, high=10)
    shown = pixels(tmp_path / "s.png")
    left, top = (round(DPI * inches) for inches in (samples._PAD, samples._TOP + samples._HEAD))
    found = [shown[top + SIDE // 2, left + i * CELL + SIDE // 2, 0] for i in range(5)]
    assert found == [0, 0, 128, 255, 255]
    below = top + SIDE + round(DPI * (samples._HEAD + samples._APART)) + SIDE // 2
    assert {shown[below, left + i * CELL + SIDE // 2, 0] for i in range(5)} == {128}


def test_marked_images_are_framed_and_counted(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    images = {"$a$": np.ones((5, 8, 8, 1)), "b": -np.ones((5, 8, 8, 1)), "c": np.ones((5, 8, 8, 1))}
    which = {"$a$": [False, True, False, False, True], "b": np.zeros(5, bool)}
    save_samples(tmp_path / "s.png", images, marks=which, columns=3)
    written = ["$a$", "forgotten class: 2 of 5", "b", "forgotten class: 0 of 5", "c"]
    assert recorder.words == written
    shown = pixels(tmp_path / "s.png")
    left = round(DPI * samples._PAD)
    top = round(DPI * (samples._TOP + samples._HEAD + samples._ABOUT))
    frames = near(shown, marks.FRAME, 0)
    frames[: top - samples._MARGIN] = False  # the one beside the words
    frames[top + 2 * CELL - samples._MARGIN :] = False
    expected = np.zeros_like(frames)
    for row, column in ((0, 1), (1, 1)):
        upper, start = top + row * CELL, left + column * CELL
        outer, inner = samples._MARGIN - 1, 1
        expected[upper - outer : upper + SIDE + outer, start - outer : start + SIDE + outer] = True
        expected[upper - inner : upper + SIDE + inner, start - inner : start + SIDE + inner] = False
        assert (shown[upper : upper + SIDE, start : start + SIDE] == 255).all()
    np.testing.assert_array_equal(frames, expected)
    # below, only beside the words of the second model
    rest = near(shown[top + 2 * CELL :], marks.FRAME, 6)
    assert rest.any()
    assert extent(rest)[2] < samples._PAD + 0.2
    assert extent(rest)[3] - extent(rest)[1] < 0.15


def test_many_models_and_long_names_fit(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    images = {f"model {i} " + "with a long name " * 4: random(3, 2, 2, 1) for i in range(9)}
    save_samples(tmp_path / "s.png", images, title="x" * 60)
    assert all(len(words) <= 64 for words in recorder.words)
    shown = pixels(tmp_path / "s.png")
    border = round(DPI * 0.04)
    for edge in (shown[:border], shown[-border:], shown[:, :border], shown[:, -border:]):
        assert (edge == 255).all()


def test_mistakes_in_samples_are_named(tmp_path):
    file, x = tmp_path / "s.png", np.zeros((3, 4, 4, 1))

    def draw(other=x, **options):
        save_samples(file, {"original": x, "new": other}, **options)

    with pytest.raises(ValueError, match="images: expected at least one model, got none"):
        save_samples(file, {})
    with pytest.raises(ValueError, match=r"images\['a'\]: expected \[n, H, W, 1 or 3\], none of t"):
        save_samples(file, {"a": x[0]})
    with pytest.raises(ValueError, match=r"1 or 3\], none of them 0, got \[3, 4, 4, 2\]"):
        save_samples(file, {"a": np.zeros((3, 4, 4, 2))})
    with pytest.raises(ValueError, match=r"1 or 3\], none of them 0, got \[0, 4, 4, 1\]"):
        save_samples(file, {"a": x[:0]})
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


# ---------------------------------------------------------------- strips


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_a_strip_is_a_row_of_its_model_in_the_block_of_its_pair(tmp_path, channels, with_lengths):
    given = {name: random(2, 5, 4, 4, channels, seed=i) for i, name in enumerate(MODELS)}
    lengths = {name: random(2, 4) + 1 for name in MODELS} if with_lengths else None
    save_strips(tmp_path / "s.png", given, lengths=lengths, title="Strips")
    shown, factor = pixels(tmp_path / "s.png"), SIDE // 4
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
    assert step == pytest.approx(3 * CELL - 2 * samples._MARGIN + DPI * strips._GAP, abs=1)


def chart_of(shown, pairs, models, steps, name_length, pair):
    """The box of a chart, in dots: left, top, right, bottom."""
    block = max(models * CELL - 2 * samples._MARGIN, DPI * strips._LEAST)
    left = strips._PAD + 0.1 + strips._LETTER * name_length
    left = DPI * (left + strips._AXIS) + steps * CELL - 2 * samples._MARGIN
    below = (strips._FOOT + 0.15) * DPI + (pairs - 1 - pair) * (block + DPI * strips._GAP)
    bottom = shown.shape[0] - below
    return left, bottom - block, left + DPI * strips._CHART, bottom


def test_lines_are_as_high_as_the_lengths_and_all_charts_have_one_scale(tmp_path):
    given = {"a": random(2, 4, 4, 4, 1), "b": random(2, 4, 4, 4, 1)}
    lengths = {"b": jnp.asarray([[1.0, 1, 1], [4, 4, 4]]), "a": np.array([[3.0] * 3, [2] * 3])}
    save_strips(tmp_path / "s.png", given, lengths=lengths)
    shown = pixels(tmp_path / "s.png")
    for pair, heights in ((0, (3, 1)), (1, (2, 4))):
        left, top, right, bottom = chart_of(shown, 2, 2, 4, 1, pair)
        inside = shown[round(top) - 3 : round(bottom) + 3, round(left) - 3 : round(right) + 3]
        for number, height in enumerate(heights):
            # the n-th model has the n-th colour, in whatever order the lengths are
            line = near(inside, strips.line_of(number)["color"], 25)
            rows, columns = np.nonzero(line)
            expected = 3 + (bottom - top) * (1 - height / (1.05 * 4))
            assert rows.mean() == pytest.approx(expected, abs=2)
            assert np.ptp(columns) == pytest.approx((right - left) * 2 / 3, abs=8)


def test_mean_and_largest_are_of_all_strips(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    given = {"$a$": random(2, 3, 4, 4, 1), "b": random(2, 3, 4, 4, 1)}
    save_strips(tmp_path / "s.png", given, lengths={"$a$": [[1.0, 2], [3, 10]]})
    assert "a step: mean 4, largest 10" in recorder.words
    assert recorder.words.count("$a$") == 3  # two rows and the legend
    assert recorder.words.count("b") == 2
    recorder.words.clear()
    save_strips(tmp_path / "s.png", given, title="T")
    assert sorted(recorder.words) == ["$a$", "$a$", "T", "b", "b"]


@pytest.mark.parametrize("value", [0.0, 1e-6, 3e7])
def test_a_single_step_and_lengths_of_any_unit(tmp_path, value):
    given = {"m" * 30: random(1, 2, 5, 3, 1)}
    save_strips(tmp_path / "s.png", given, lengths={"m" * 30: [[value]]})
    shown = pixels(tmp_path / "s.png")
    left, top, *_ = chart_of(shown, 1, 0, 0, strips._LETTERS, 0)
    left += 2 * (3 * (SIDE // 5) + 2 * samples._MARGIN)  # wider than they are: 3 of 5 pixels
    point = near(shown[round(top) - 6 :, round(left) :], strips.line_of(0)["color"], 25)
    assert point.any()
    border = round(DPI * 0.04)
    for edge in (shown[:border], shown[-border:], shown[:, :border], shown[:, -border:]):
        assert (edge == 255).all()


def test_lines_differ_in_colour_or_dashes():
    lines = [str(strips.line_of(i)) for i in range(28)]
    assert len(set(lines)) == 28
    assert len({str(strips.line_of(i)["linestyle"]) for i in range(4)}) == 4
    assert len({strips.line_of(i)["color"] for i in range(7)}) == 7


def test_mistakes_in_strips_are_named(tmp_path):
    file, x = tmp_path / "s.png", np.zeros((2, 3, 4, 4, 1))

    def draw(other=x, **options):
        save_strips(file, {"original": x, "new": other}, **options)

    with pytest.raises(ValueError, match="strips: expected at least one model, got none"):
        save_strips(file, {})
    with pytest.raises(ValueError, match=r"strips\['a'\]: expected \[r, t, H, W, 1 or 3\], none"):
        save_strips(file, {"a": x[0]})
    with pytest.raises(
        ValueError, match="strips: expected at least 2 images between latents, got 1"
    ):
        save_strips(file, {"a": x[:, :1]})
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


# ---------------------------------------------------------------- scores


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
    top = scores._TOP + (scores._TITLE if titled else 0) + scores._LEGEND
    top += number * (head + scores._HIGH + scores._GAP) + head
    left = scores._PAD + scores._AXIS
    return DPI * np.array([left, top, left + scores._CHART, top + scores._HIGH])


def test_all_panels_have_the_same_axes(tmp_path):
    """One of ten bins has all scores under the original, and half of them under the other."""
    given = {
        "original": {"forget": np.full(4, 9.5), "hold-out": [0.0, 5, 5, 10]},
        "$new$": {"hold-out": jnp.array([0.0, 5, 5, 10]), "forget": np.array([9.5, 9.5, 2.5, 2.5])},
    }
    save_scores(tmp_path / "s.png", given, notes={"$new$": "AUC 0.5"}, title="T", words="$w$")
    shown, tallest = pixels(tmp_path / "s.png"), 1.05
    for number, bins in enumerate(({9: 1.0}, {9: 0.5, 2: 0.5})):
        left, top, right, bottom = panel(number, True, True)
        inside = shown[round(top) - 3 : round(bottom) + 3, round(left) - 3 : round(right) + 3]
        line = near(inside, strips.line_of(0)["color"], 25)
        for place in range(10):
            middle = 3 + round((right - left) * (place + 0.35) / 10)
            rows = np.flatnonzero(line[: round(bottom - top), middle])
            if place not in bins:
                assert not rows.size
            else:
                expected = 3 + (bottom - top) * (1 - bins[place] / tallest)
                assert rows.mean() == pytest.approx(expected, abs=2)


def test_what_is_written_about_scores(tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    given = {
        "original": {"forget": random(150), "retain": random(8)},
        "other": {"forget": random(150), "retain": random(9)},
    }
    save_scores(tmp_path / "s.png", given, notes={"other": "AUC $0.5$"}, words="logit")
    for words in ("forget, n = 150", "retain", "AUC $0.5$", "logit", "original", "other"):
        assert words in recorder.words
    assert not any("not shown" in words for words in recorder.words)
    recorder.words.clear()
    save_scores(tmp_path / "s.png", {"m": {"a": np.append(np.linspace(0, 1, 999), 1e6)}})
    lost = [words for words in recorder.words if "not shown" in words]
    assert len(lost) == 1
    assert "of 1000 scores" in lost[0]
    assert "discriminator's logit" in recorder.words


def test_many_sets_take_several_lines_of_the_legend(tmp_path):
    given = {"m": {f"set number {i}": random(20, seed=i) for i in range(9)}}
    save_scores(tmp_path / "s.png", given)
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
        save_scores(file, {"original": {"forget": x, "retain": x}, "new": other}, **options)

    good = {"forget": x, "retain": x}
    with pytest.raises(ValueError, match="scores: expected at least one model, got none"):
        save_scores(file, {})
    with pytest.raises(ValueError, match=r"scores\['a'\]: expected at least one set, got none"):
        save_scores(file, {"a": {}})
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


# ---------------------------------------------------------------- all of them


def test_a_file_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "taken").write_text("")
    file = tmp_path / "taken" / "s.png"
    for draw, given in (
        (save_samples, {"m": random(1, 2, 2, 1)}),
        (save_strips, {"m": random(1, 2, 2, 2, 1)}),
        (save_scores, {"m": {"a": random(3)}}),
    ):
        with pytest.raises(UserError, match="path: expected a file that can be written"):
            draw(file, given)
        for _ in range(2):  # folders are made, an existing file is replaced
            draw(tmp_path / "new" / "folder" / "s.png", given)
        assert pixels(tmp_path / "new" / "folder" / "s.png").size
