"""Reports: every number is shown, in every form."""

import copy
import io
import json
import math
import re

import matplotlib.figure
import numpy as np
import pytest
from rich.console import Console

from jaxunlearn import report
from jaxunlearn.core.errors import UserError
from jaxunlearn.report import picture

METHODS = ["neuron_path", "gradient_ascent", "scrub", "selective_dampening", "tuning", "labels"]


def _row(metric, group, spec, original, unlearned, retrained, **rest):
    return {"metric": metric, "group": group, "format": spec, "ideal": "as retrained"} | {
        "values": {
            "original": original,
            **dict(zip(METHODS, unlearned, strict=True)),
            "retrained": retrained,
        },
        "spread": None,
        "floor": None,
        "best": [],
        **rest,
    }


def _report(methods=6):
    rows = [
        _row(
            "test accuracy, forgotten [3]",
            "forgetting",
            ".3f",
            0.978,
            [0.251, 0.052, 0.173, 0.364, 0.415, 0.126],
            0.013,
            spread=0.004,
            floor=0.003,
            best=["gradient_ascent"],
        ),
        _row(
            "membership attack, AUC",
            "privacy",
            ".3f",
            0.782,
            [0.511, 0.522, 0.533, 0.544, 0.555, math.nan],
            0.507,
            ideal="0.5",
            spread=0.012,
            best=["neuron_path"],
        ),
        _row("time", "cost", "s", None, [1.24, 0.0351, 130.0, 2e-4, 9000.0, 0.5], 12.3, spread=0.4),
        _row("speed-up", "cost", "x", None, [9.92, 350.4, 0.095, 61500.0, 0.5, 24.6], 1.0),
        _row("examples seen", "cost", "d", None, [1, 22, 333, 4444, 55555, 666666], 7777777),
    ]
    kept = ["original", *METHODS[:methods], "retrained"]
    for row in rows:
        row["values"] = {name: row["values"][name] for name in kept}
        row["best"] = [name for name in row["best"] if name in kept]
    return {
        "title": "digits: forget class 3",
        "columns": kept,
        "rows": rows,
        "notes": ["400 unseen images."],
        "environment": {"jax": "0.10.2", "devices": 1},
    }


# What the rows above must read as.
ACCURACIES = [0.978, 0.251, 0.052, 0.173, 0.364, 0.415, 0.126]
ATTACKS = [0.782, 0.511, 0.522, 0.533, 0.544, 0.555]
TIMES = ["1.2 s", "35 ms", "2.2 min", "200 µs", "2.5 h", "500 ms"]
RATIOS = ["9.9x", "350x", "0.095x", "61,500x", "0.5x", "25x", "1.0x"]
COUNTS = ["1", "22", "333", "4,444", "55,555", "666,666", "7,777,777"]
CELLS = [*map(str, ACCURACIES + ATTACKS), "nan", *TIMES, *RATIOS, *COUNTS, "0.003"]
SPREADS = ["0.013 ±.004", "0.507 ±.012", "12 ±.4 s"]


def _print(made, width, **options):
    file = io.StringIO()
    report.print_report(made, Console(file=file, width=width, **options))
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_shows_everything_whole_at_any_width(width):
    text = _print(_report(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for cell in [*CELLS, *SPREADS]:
        assert f" {cell}" in text, cell
    for part in ("digits: forget class 3", "400 unseen images.", "jax 0.10.2", "ideal", "floor"):
        assert part in text
    words = text.replace("\n", " ").split()
    for name in METHODS:
        assert all(part in words for part in name.replace("_", "_ ").split()) or name in words
    for row in _report()["rows"]:
        assert set(row["metric"].split()) <= set(words)


def test_a_wide_console_takes_one_table_and_a_narrow_one_a_table_a_group():
    assert sum(line.startswith("metric") for line in _print(_report(), 200).splitlines()) == 1
    lines = _print(_report(), 80).splitlines()
    groups = [line for line in lines if line in ("forgetting", "privacy", "cost")]
    assert groups == ["forgetting", "privacy", "cost"]
    for name in ["original", *METHODS, "retrained", "floor", "ideal"]:
        assert sum(line.startswith(f"{name} ") for line in lines) == len(groups), name
    # a group that is wider than the console takes several tables
    narrow = _print(_report(), 44).splitlines()
    assert max(map(len, narrow)) <= 44
    assert sum(line.startswith("retrained ") for line in narrow) > len(groups)


@pytest.mark.parametrize("methods", [0, 1])
def test_few_models_take_one_table_of_80_columns(methods):
    text = _print(_report(methods), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert sum(line.startswith("metric") for line in text.splitlines()) == 1


def test_the_best_is_marked_with_and_without_colour():
    plain = _print(_report(), 200)
    assert "0.052*" in plain
    assert "0.511*" in plain
    assert plain.count("*") == 3  # and the legend's
    coloured = _print(_report(), 200, color_system="standard", force_terminal=True)
    assert re.search(r"\x1b\[1;32m *0\.052\*", coloured)


def test_what_is_missing_is_a_dash():
    made = _report(1)
    made["rows"] = [
        {"metric": "m", "format": ".2f", "values": {"neuron_path": 0.25, "retrained": None}}
    ]
    del made["notes"], made["environment"]
    made["columns"].remove("original")
    line = next(line for line in _print(made, 80).splitlines() if line.startswith("m "))
    assert line.split() == ["m", "0.25", "-", "-", "-"]
    assert "| m | 0.25 | - | - | - |" in report.to_markdown(made)


def test_markdown_shows_everything():
    made = _report()
    made["rows"][0]["metric"] = "a|b"
    made["columns"][1] = "[path]"
    assert "[path]" in _print(made, 200)
    made["columns"][1] = METHODS[0]
    text = report.to_markdown(made)
    for cell in [*CELLS, *SPREADS]:
        assert f"| {cell} |" in text or f"| **{cell}** |" in text, cell
    assert "| **0.052** |" in text
    assert "a\\|b" in text
    table = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + 3 + 5  # head, groups, rows
    assert "400 unseen images." in text
    assert "jax 0.10.2" in text


def _no_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_saved_and_loaded(tmp_path):
    made, folder = _report(), tmp_path / "deeper" / "run"
    made["curves"] = [{"label": "c", "along": "steps", "values": {"original": [0.5, math.inf]}}]
    before = copy.deepcopy(made)
    examples = {"js/neuron_path": np.arange(3, dtype=np.float32), "name": np.array(["a", "b"])}
    report.save(made, folder, examples)
    assert json.dumps(made) == json.dumps(before), "the caller's report is left alone"
    assert (folder / "report.md").read_text(encoding="utf-8") == report.to_markdown(made)
    drawn = (folder / "report.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) > 20_000
    # valid JSON: what is no number is null, all else is as it was
    json.loads((folder / "report.json").read_text(), parse_constant=_no_constant)
    before["rows"][1]["values"]["labels"] = None
    before["curves"][0]["values"]["original"][1] = None
    assert report.load(folder) == before
    with np.load(folder / "examples.npz") as found:
        assert set(found) == set(examples)
        for name, values in examples.items():
            np.testing.assert_array_equal(found[name], values, strict=True)
    files = ["examples.npz", "report.json", "report.md", "report.png"]
    assert sorted(file.name for file in folder.iterdir()) == files, "nothing half-written is left"


def test_a_picture_that_cannot_be_drawn_costs_only_itself(tmp_path, monkeypatch):
    (tmp_path / "report.png").write_text("of an earlier report")

    def draw(figure, *args, **options):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", draw)
    with pytest.warns(UserWarning, match=r"report\.png could not be drawn: RuntimeError: no fonts"):
        report.save(_report(0), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.json", "report.md"]
    assert report.load(tmp_path)["title"] == _report()["title"]


def test_the_picture_of_an_equal_report_is_left_as_it_is(tmp_path, monkeypatch):
    drawn = []

    def draw(made, path):
        drawn.append(made["title"])
        path.write_text("a picture")

    monkeypatch.setattr(report, "save_png", draw)
    for title in ("one", "one", "two", "two"):
        report.save({**_report(1), "title": title}, tmp_path)
    assert drawn == ["one", "two"]
    (tmp_path / "report.png").unlink()
    report.save({**_report(1), "title": "two"}, tmp_path)
    assert drawn == ["one", "two", "two"]


def test_what_cannot_be_saved_leaves_the_former_report(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "save_png", lambda made, path: None)
    report.save(_report(1), tmp_path, {"a": np.ones(2)})
    former = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        report.save({**_report(2), "environment": {"device": object()}}, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == former
    with pytest.raises(
        ValueError, match=r"examples\.npz: b: expected an array of numbers, got obj"
    ):
        report.save(_report(1), tmp_path, {"b": np.array([None])})
    assert (tmp_path / "examples.npz").read_bytes() == former["examples.npz"]
    report.save(_report(1), tmp_path)
    assert (tmp_path / "examples.npz").read_bytes() == former["examples.npz"]


# ---------------------------------------------------------------- cells that failed


def _failed():
    """A wrecked model, and a metric that failed for another one."""
    made = _report(3)
    wrecked, alone = "scrub", "neuron_path"
    for row in made["rows"]:
        row["failed"] = {wrecked: "predictions are NaN,\nall 400"}
        row["values"][wrecked] = math.nan
        row["best"] = [name for name in row["best"] if name != wrecked]
    made["rows"][1]["failed"][alone] = "the attack had one class [of two] to tell"
    made["rows"][1]["values"][alone] = None
    made["rows"][1]["best"] = []
    curve = {"label": "accuracy in relearning", "along": "steps", "spread": None}
    curve["values"] = {"original": [1.0, 1.0], "scrub": [None, math.nan], "retrained": [0, 0.5]}
    empty = {"label": "another", "along": "steps", "values": {}}
    return made | {"curves": [curve, empty]}


REASONS = [
    "failed: scrub (every metric): predictions are NaN, all 400",
    "failed: neuron_path (membership attack, AUC): the attack had one class [of two] to tell",
]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_failed_cell_leaves_the_rest_of_the_table_intact(width):
    made, whole = _failed(), _report(3)
    text = _print(made, width)
    assert max(map(len, text.splitlines())) <= width
    for reason in REASONS:
        assert reason in " ".join(text.split())
    cells = re.split(r" {2,}|\n", text)
    assert cells.count("failed") == len(made["rows"]) + 1
    assert "nan" not in text.split()
    lost = {"scrub"}
    for number, row in enumerate(whole["rows"]):
        for column in set(row["values"]) - lost - ({"neuron_path"} if number == 1 else set()):
            shown = report.text.cell(row, column)
            assert f" {shown}" in text, (row["metric"], column)


def test_a_failed_cell_in_markdown():
    made = _failed()
    text = report.to_markdown(made)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "| membership attack, AUC | 0.782 | failed | 0.522 | failed | 0.507 ±.012 |" in text
    assert "| **0.052** | failed | 0.013 ±.004 | 0.003 |" in text
    for reason in REASONS:
        assert f"\n\n{reason}.\n" in text
    # a difference that there is not is told apart from one that failed
    seeds = _seeds()
    seeds["rows"][0]["failed"] = {"failed": "diverged"}
    marked = report.to_markdown(seeds)
    assert "| accuracy, forgotten | +0.970 ±.030 | **-0.051 ±.122** | failed |" in marked
    assert "failed: failed (accuracy, forgotten): diverged." in marked


def test_a_failed_cell_in_the_picture_is_empty(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(picture, "_INCH", 40)
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda f, *a, **o: figures.append(f))
    report.save(_failed(), tmp_path)
    axes = [ax for ax in figures[0].axes if ax.collections or ax.texts]
    panels = [ax for ax in axes if len(ax.texts) == 5]
    assert len(panels) == 5
    for number, panel in enumerate(panels):
        row = _failed()["rows"][number]
        words = [text.get_text() for text in panel.texts]
        failed = [name in row["failed"] for name in _failed()["columns"]]
        assert [word == "failed" for word in words] == failed
        marks = [part.get_offsets()[0][1] for part in panel.collections]
        there = [row["values"][c] is not None for c in _failed()["columns"]]
        expected = [p for p, (lost, is_there) in enumerate(zip(failed, there, strict=True))
                    if is_there and not lost]  # fmt: skip
        assert marks == expected


@pytest.mark.parametrize("methods", [0, 1])
def test_pictures_of_few_models_and_odd_values(tmp_path, monkeypatch, methods):
    monkeypatch.setattr(picture, "_INCH", 60)
    made = _report(methods)
    made["title"] = "100 $ of $x"
    made["rows"][0]["values"] = dict.fromkeys(made["columns"], 0.0)
    made["rows"][1]["values"] = {}
    made["rows"][2]["values"]["retrained"] = 0.0
    report.save_png(made, tmp_path / "a.png")
    made["rows"] = []
    report.save_png(made, tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > (tmp_path / "b.png").stat().st_size > 1000


def _seeds():
    """Two models over three seeds, with a paper's numbers and a curve."""
    row = {
        "name": "accuracy_forget",
        "metric": "accuracy, forgotten",
        "group": "forgetting",
        "format": ".3f",
        "ideal": "as retrained",
        "values": {"original": 0.981, "path": 0.262, "failed": None, "retrained": 0.011},
        "intervals": {"original": 0.013, "path": 0.107, "retrained": 0.024},
        "differences": {
            "original": {"mean": 0.97, "interval": 0.03},
            "path": {"mean": -0.051, "interval": 0.122},
        },
        "spread": 0.005,
        "floor": 0.007,
        "best": ["path"],
    }
    steps = {"metric": "steps", "group": "cost", "format": "d", "ideal": "small"}
    steps |= {"values": {"path": 36.0}, "intervals": {"path": 0.0}}
    memory = {"metric": "memory", "group": "cost", "format": "B", "ideal": "small"}
    memory |= {"values": {"path": 4.2e7, "retrained": 3.1e9}, "intervals": {}}
    published = {
        "source": "a paper, another machine",
        "columns": [
            {"name": "accuracy_forget", "label": "At", "format": ".3f"},
            {"name": "seconds", "label": "time", "format": "s"},
        ],
        "rows": [
            {
                "model": "path",
                "values": {"accuracy_forget": 0.262, "seconds": 0.015},
                "intervals": {"accuracy_forget": 0.107, "seconds": 0.002},
                "published": {"accuracy_forget": 0.016, "seconds": 0.9},
            },
            {
                "model": "noise",
                "values": {},
                "intervals": {},
                "published": {"accuracy_forget": 0.793},
            },
        ],
    }
    curve = {"label": "accuracy in relearning", "along": "steps", "spread": [0.1, 0.2, 0.1]}
    curve["values"] = {"original": [1.0, 1.0, 1.0], "retrained": [0.0, 0.5, math.nan]}
    return {
        "title": "three",
        "columns": ["original", "path", "failed", "retrained"],
        "rows": [row, steps, memory],
        "curves": [curve],
        "trials": {"kind": "seed", "numbers": [4, 5, 6], "names": ["", "", ""]},
        "published": published,
    }


def test_seeds_show_intervals_and_differences():
    text = _print(_seeds(), 100)
    line = next(line for line in text.splitlines() if line.startswith("accuracy, forgotten"))
    assert line.split()[2:] == ["0.981", "±.013", "0.262", "±.107*", "-", "0.011", "±.024", "0.007",
                                "as", "retrained"]  # fmt: skip
    assert "95 % confidence interval of the mean over 3 seeds" in text
    assert next(x for x in text.splitlines() if x.startswith("steps")).split()[2] == "36"
    for part in (" 42 MB", " 3.1 GB", "+0.970 ±.030 ", "-0.051 ±.122*"):
        assert part in text, part
    marked = report.to_markdown(_seeds())
    assert "| accuracy, forgotten | +0.970 ±.030 | **-0.051 ±.122** | - |" in marked
    assert "over 3 seeds" in marked


@pytest.mark.parametrize("width", [60, 100])
def test_classes_are_told_one_by_one(width):
    made = _seeds()
    made["trials"] = {"kind": "class", "numbers": [4, 5, 12], "names": ["", "", "cat"]}
    each = {"original": [0.91, 0.92, 0.93], "path": [0.21, None, 0.23], "retrained": [0, 0.1, 0]}
    made["rows"][0]["each"] = each
    text = _print(made, width)
    assert max(map(len, text.splitlines())) <= width
    assert "paired by class" in text
    assert "over 3 classes" in text.replace("\n", " ")
    cells = [line.split() for line in text[text.index("Class by class") :].splitlines()]
    found = [line[4:] for line in cells if line[:2] == ["12", "cat"]]
    assert found == [["0.930", "0.230", "-", "0.000"]] if width == 100 else len(found) > 1
    assert {cell for line in found for cell in line} == {"0.930", "0.230", "-", "0.000"}
    marked = report.to_markdown(made)
    assert "### Class by class" in marked
    assert "| 5 | accuracy, forgotten | 0.920 | - | - | 0.100 |" in marked
    assert "| 12 cat | accuracy, forgotten | 0.930 | 0.230 | - | 0.000 |" in marked
    made["rows"][0]["failed"] = {"path": "diverged in one class"}
    marked = report.to_markdown(made)
    assert "| 5 | accuracy, forgotten | 0.920 | failed | - | 0.100 |" in marked
    assert "| 12 cat | accuracy, forgotten | 0.930 | 0.230 | - | 0.000 |" in marked
    assert "Class by class" not in _print(_seeds(), width)


@pytest.mark.parametrize("width", [60, 100])
def test_published_numbers_stand_below_ours(width):
    text = _print(_seeds(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "a paper, another machine" in text.replace("\n", " ")
    lines = [line.split() for line in text.splitlines()]
    place = lines.index(["path", "0.262", "±.107", "15", "±2.0", "ms"])
    assert lines[place + 1] == ["published", "0.016", "900", "ms"]
    assert lines[place + 2] == ["noise,", "published", "0.793", "-"]
    assert "At: accuracy, forget (train)" in text
    assert "Fs:" not in text, "not given, not explained"
    marked = report.to_markdown(_seeds())
    assert "| path | 0.262 ±.107 | 15 ±2.0 ms |\n| *published* | 0.016 | 900 ms |" in marked


def test_the_picture_has_room_for_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(picture, "_INCH", 60)
    made = _seeds()
    report.save_png(made, tmp_path / "with.png")
    assert (tmp_path / "with.png").stat().st_size > 10_000
    made["curves"] = []
    report.save_png(made, tmp_path / "without.png")
    assert (tmp_path / "with.png").stat().st_size > (tmp_path / "without.png").stat().st_size


@pytest.mark.parametrize(
    ("panels", "place"), [(4, (1, 0)), (5, (1, 1)), (6, (1, 2)), (7, (2, 0)), (8, (2, 0))]
)
def test_a_curve_takes_what_is_left_of_a_line_or_its_own(panels, place):
    assert picture._places_of_curves(1, panels, 4, -(-panels // 4)) == [place]


def test_no_report_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"expected a report, got .*report\.json"):
        report.load(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(UserError, match="expected a report"):
        report.load(tmp_path)


@pytest.mark.parametrize("bars", [False, True])
def test_the_legend_says_what_bars_of_one_seed_are(bars):
    row = {"name": "x", "values": {}} | ({"over_examples": {"original": 0.1}} if bars else {})
    assert ("over examples" in picture._legend({"rows": [row]})) == bars


@pytest.mark.parametrize("change", ["title", "notes"])
def test_another_process_leaves_the_files_of_the_first(tmp_path, monkeypatch, change):
    report.save(_report(1), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(report.files, "is_writer", lambda: False)
    report.save({**_report(1), change: "of process 1" if change == "title" else ["2 s"]}, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "report.png" in before
