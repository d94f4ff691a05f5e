"""Pages for people: whole, safe, legible, and nothing loaded from elsewhere."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxunlearn.pictures.scores import describe_scores
from jaxunlearn.report import html, html_bench, html_charts
from jaxunlearn.report.html_run import flatten, make_run_page
from jaxunlearn.report.summary import best_sentence, is_as_retrained
from tests.report.test_report import _failed, _report, _seeds

WORDS = {
    "accuracy_forget": html.Words("accuracy", "as retrained", ".3f", "Share of `x`.", "Small.")
}
PICTURES = {"path": "neurons that carry a class", "confusions": "confusion matrices"}


class Parsed(HTMLParser):
    """Elements of a page, and that each is closed where it has to be."""

    EMPTY = frozenset(
        {"meta", "link", "br", "wbr", "img", "input", "path", "circle", "polygon", "rect"}
    )

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open[-1] in ("li", "p", "dt", "dd") and self.open[-1] != tag:
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def named(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def page_of(report, folder):
    return html.to_html(make_run_page(report, folder, WORDS, PICTURES))


def named_report(methods=6):
    """The report of the other tests with the names that metrics have."""
    made = _report(methods)
    for row, name in zip(made["rows"], ["accuracy_forget", "auc", "seconds", "speedup", "examples"],
                         strict=True):  # fmt: skip
        row["name"] = name
    made["curves"] = [{"label": "depth", "along": "layers", "spread": [0.1, 0.2],
                       "values": {"original": [0.1, None], "retrained": [0.2, 0.4]}}]  # fmt: skip
    return made


REPORTS = [named_report(6), named_report(0), _failed(), _seeds()]


@pytest.mark.parametrize("report", REPORTS, ids=["usual", "no method", "failed", "seeds"])
def test_a_page_is_whole_and_loads_nothing(report, folder):
    text = page_of(report, folder)
    made = Parsed(text)
    for _, attributes in made.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            if (place := attributes.get(name)) is not None:
                assert place.startswith(("data:", "#")), place
    styles = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in styles
    assert "@import" not in styles
    assert not re.search(r"https?:|fetch\(|XMLHttpRequest|import\(", text)
    # every picture has words that stand for it
    for one in made.named("img"):
        assert len(one["alt"]) > 10
        assert int(one["width"]) * int(one["height"]) > 0
    for one in made.named("svg"):
        assert one.get("aria-hidden") == "true" or len(one["aria-label"]) > 10
    assert len(text) < 3_000_000
    # every place that is pointed to is there, once
    places = [attributes["id"] for _, attributes in made.elements if "id" in attributes]
    assert len(places) == len(set(places))
    for one in made.named("a", "button"):
        assert one.get("href", f"#{one.get('popovertarget')}")[1:] in places


def test_every_number_stands_in_the_table(folder):
    shown = " ".join(" ".join(Parsed(page_of(named_report(), folder)).words).split())
    for cell in ["0.978", "0.052", "1.2 s", "61,500x", "7,777,777", "0.013 ±.004", "floor 0.003"]:
        assert cell in shown, cell
    for part in (
        "Distribution of the loss",
        "Who is taken for whom?",
        "50 values",
        "Share of",
        "Most exposed examples",
    ):
        assert part in shown, part
    # drawn from their numbers, so that the picture is left out
    assert "neurons that carry a class" in shown
    assert "confusion matrices" not in shown


def exposed_content(**example):
    """What pictures/exposed.json holds of one example under one model."""
    shown = {"position": 4711, "name": "<owl>", **example}
    first = [{"place": 2, "value": 0.75, "marked": [[" Ada", 0.6], [" wrote", 0.0], ["<b>", 0.12]]}]
    return {"words": "accuracy of U-LiRA", "examples": {"2": shown},
            "models": {"scrub": {"median": 0.5, "first": first}}}  # fmt: skip


@pytest.mark.parametrize("kind", ["image", "text"])
def test_exposed_examples_are_shown_where_they_lie(folder, kind):
    example = {"image": "data:image/png;base64,AAAA"} if kind == "image" else {"text": "Who wrote?"}
    name = "exposed" if kind == "image" else "exposed_answers"
    (folder / f"pictures/{name}.json").write_text(json.dumps(exposed_content(**example)))
    text = page_of(named_report(), folder)
    made = Parsed(text)
    shown = " ".join(" ".join(made.words).split())
    assert "<owl> · no. 4711" in shown
    assert "median 0.500" in shown
    if kind == "image":
        image = next(one for one in made.named("img") if one["src"] == example["image"])
        assert image["alt"] == "forgotten example 4711, of <owl>"
    else:
        # words stand apart, or join those before them, as in the text
        assert "Who wrote? Ada wrote&lt;b&gt;" in re.sub(r"<[^>]*>", "", text)
        assert [one["class"] for one in made.named("mark")] == ["m3", "m1"]


def test_a_record_without_positions_has_a_page_without_them(folder):
    content = exposed_content(image="data:image/png;base64,AAAA")
    (folder / "pictures/exposed.json").write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps({"record": {"indices": False}}))
    text = page_of(named_report(), folder)
    assert "4711" not in text
    assert "base64,AAAA" not in text
    assert "Positions in the forget set, below them" in text


def test_texts_of_others_are_shown_and_never_obeyed(folder):
    report = named_report()
    evil = "<script>alert(1)</script>"
    report["title"] = f"run: forget {evil}"
    report["rows"][0]["metric"] = report["notes"][0] = evil
    report["columns"][1] = evil
    for row in report["rows"]:
        row["values"][evil] = 0.5
    report["curves"][0]["values"][evil] = [0.5, 0.5]
    text = page_of(report, folder)
    assert evil not in text
    assert text.count("<script>") == 1
    assert "<dog>" not in text


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", "{"), ("pictures/losses.json", "[]"), ("pictures/losses.json", '{"words": 1}'),
     ("pictures/confusions.json", '{"models": {"a": 3}, "names": [], "forgotten": []}'),
     ("pictures/exposed.json", '{"models": {"a": {}}, "words": 1, "examples": []}'),
     ("pictures/neuron_path/path.png", "no picture"), ("examples.npz", "no archive")],
)  # fmt: skip
def test_what_cannot_be_read_is_left_out(folder, name, content):
    (folder / name).write_text(content)
    Parsed(page_of(named_report(), folder))


def test_what_a_link_points_to_is_no_picture_of_the_run(folder, tmp_path):
    (folder / "pictures/linked").symlink_to(folder / "pictures/neuron_path")
    (folder / "pictures/path.png").symlink_to(folder / "pictures/neuron_path/path.png")
    made = Parsed(page_of(named_report(), folder))
    assert len(made.named("img")) == 1
    shutil.move(folder / "pictures", tmp_path / "elsewhere")
    (folder / "pictures").symlink_to(tmp_path / "elsewhere")
    assert not Parsed(page_of(named_report(), folder)).named("img")


def luminance(colour):
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(first, second):
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_what_wcag_asks(folder):
    """4.5 for every text on every ground that it stands on, 3 for what is drawn."""
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    styles = page_of(named_report(), folder)
    for name, colours in html.THEMES.items():
        assert all(f"--{use}:{colour};" in styles for use, colour in colours.items()), name
        for text in ("ink", "muted", "accent", "good", "bad"):
            for ground in ("paper", "sheet"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (name, text, ground)
        assert contrast(colours["muted"], colours["band"]) >= 4.5
        assert contrast(colours["over"], colours["hit"]) >= 4.5
        assert contrast(colours["over"], colours["miss"]) >= 4.5
        for series in [f"c{n}" for n in range(html_charts.COLOURS)]:
            for ground in ("paper", "band"):
                assert contrast(colours[series], colours[ground]) >= 3, (name, series, ground)


def test_large_pictures_are_made_smaller_until_they_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "MOST_BYTES", 60_000)
    files = []
    for n in range(3):
        file = tmp_path / f"{n}.png"
        Image.effect_noise((900, 600 + n), 90).save(file)
        files.append((file, f"title {n}", "what it shows"))
    files.append((files[0][0], "again", "the same"))
    found = html.embed_pictures([*files, (tmp_path / "none.png", "none", "none")])
    assert [one.title for one in found] == ["title 0; again", "title 1", "title 2"]
    assert sum(len(one.source) for one in found) <= 80_000
    assert all(one.width < 900 for one in found)


def test_the_curve_of_an_attack():
    scores = {"m": {"f": np.array([1.0, 2.0, 2.0, 3.0]), "o": np.array([2.0, 2.0, 0.0])}}
    found = describe_scores(scores, "logit", "f", "o")
    assert found["roc"]["m"]["auc"] == pytest.approx(2 / 3, abs=1e-4)  # by hand, ties half
    assert describe_scores(scores, "loss", "f", "o", small=True)["roc"]["m"][
        "auc"
    ] == pytest.approx(1 / 3, abs=1e-4)
    assert sum(found["models"]["m"]["f"]) == 4
    assert describe_scores({"m": {"f": np.array([np.nan])}}, "loss", "f", "o") == {}


def test_settings_by_dotted_names():
    found = dict(flatten({"a": {"b": [1, 2], "c": None, "d": []}, "e": [0] * 20}))
    assert found == {"a.b": "1, 2", "e": "20 values"}


# ---------------------------------------------------------------- what was best, in one sentence


def judged(path, labels, **more):
    """Two methods on one metric of forgetting, with use, time and a probe."""

    def row(name, spec, values, ideal="as retrained", group="forgetting", floor=0.01):
        columns = ["original", "path", "labels", "retrained"]
        return {"name": name, "metric": name, "format": spec, "ideal": ideal, "group": group,
                "floor": floor, "values": dict(zip(columns, values, strict=True))}  # fmt: skip

    rows = [
        row("accuracy_forget", ".3f", [0.99, path, labels, 0.0]),
        row("accuracy_test_retain", ".3f", [0.969, 0.950, 0.90, 0.965], group="utility"),
        row("linear_probe", ".3f", more.get("probe", [0.99, 0.98, 0.98, 0.98]), group="truth"),
        row("seconds", "s", [1.0, 0.1, 0.5, 2.0], "small", "cost", None),
        row("speedup", "x", [None, 45.2, 4.0, None], "large", "cost", None),
    ]
    columns = ["original", "path", "labels", "retrained"]
    return {"title": "digits: forget class 3", "columns": columns, "rows": rows}


def test_the_best_method_is_told_with_what_it_costs_and_what_is_left():
    assert best_sentence(judged(0.0, 0.3)) == (
        "path forgot class 3 as retrained models did (accuracy 0.000), keeps 0.950 of 0.969 "
        "elsewhere, 45x faster than retraining; a linear probe still finds it inside, but in "
        "retrained models too (0.980, retrained 0.980)"
    )
    left = best_sentence(judged(0.0, 0.3, probe=[0.99, 0.95, 0.98, 0.60]))
    assert left.endswith("; a linear probe still finds it inside (0.950, retrained 0.600)")


def test_less_than_the_floor_allows_is_not_forgotten():
    text = best_sentence(judged(0.02, 0.3))
    assert text.startswith("no method forgot class 3 as retrained models did: path comes nearest "
                           "(accuracy 0.020, retrained 0.000)")  # fmt: skip
    alone = judged(0.0, 0.3)
    for row in alone["rows"]:
        row["floor"] = None
    assert "with one, nothing says how near is near" in best_sentence(alone)
    assert best_sentence(_report()) != ""
    assert best_sentence({"title": "t", "columns": ["original"], "rows": []}) == ""


def test_a_wide_interval_proves_nothing():
    row = judged(0.5, 0.005)["rows"][0]
    row["differences"] = {
        "path": {"mean": 0.5, "interval": 1.2}, "labels": {"mean": 0.005, "interval": 0.06}
    }  # fmt: skip
    row["floor"] = 0.0
    assert is_as_retrained(row, "path") is False
    assert is_as_retrained(row, "labels") is True


# ---------------------------------------------------------------- benches, studies, comparisons


def _estimate(mean):
    return {"mean": mean, "interval": 0.01}


BENCH = {
    "title": "digits: methods beside retrained models",
    "requests": [{
        "name": "class", "about": "forget class 3", "floor": _estimate(0.02),
        "columns": ["accuracy_forget"],
        "rows": [
            {"label": "original", "gap": _estimate(0.4), "values": {}},
            {"label": "scrub", "rank": 1, "gap": _estimate(0.01), "excess": _estimate(-0.01),
             "values": {"accuracy_forget": _estimate(0.25)}, "seconds": _estimate(0.5),
             "speedup": 4.0, "compile_seconds": 2.0},
            {"label": "broken", "failed": "it <diverged>"},
        ],
        "retrained": {"values": {"accuracy_forget": _estimate(0.0)}, "seconds": _estimate(2.0)},
    }],
    "overall": [
        {"label": "scrub", "rank": 1.0, "gaps": {"class": _estimate(0.01)}, "failed": [],
         "speedup": 4.0},
        {"label": "broken", "rank": None, "gaps": {}, "failed": ["class"], "speedup": None},
    ],
    "seeds": [0, 1, 2], "failures": [], "notes": ["a note"], "environment": {"jax": "1"},
}  # fmt: skip


def test_the_page_of_a_bench():
    made = html_bench.make_bench_page(BENCH, WORDS, {"seed": 0})
    assert made.lead == (
        "scrub came nearest to retrained models on class (mean rank 1.0), within the floor, 4.0x "
        "faster than retraining"
    )
    text = html.to_html(made)
    shown = " ".join(" ".join(Parsed(text).words).split())
    for part in ("0.010 ±.010", "0.250 ±.010", "failed", "floor", "500 ±10 ms", "a note"):
        assert part in shown, part
    assert "<diverged>" not in text
    tied = json.loads(json.dumps(BENCH))
    tied["overall"][1] |= {"rank": 1.0, "failed": []}
    assert html_bench.best_of_bench(tied).startswith("scrub and broken share the best mean rank")


def test_the_page_of_a_study():
    row = {"name": "accuracy_forget", "metric": "accuracy", "group": "forgetting", "trained": 0.9,
           "retrained": 0.0, "faithfulness": 1.0, "larger": "trained", "relearning": 0.5,
           "rounding": None, "robustness": 0.7, "variance": [0.5, 0.3, 0.2]}  # fmt: skip
    rows = [row, row | {"name": "b", "faithfulness": 0.5, "robustness": 0.0, "variance": None}]
    report = {"title": "study: metrics judged", "rows": rows, "notes": [], "environment": {}}
    made = html_bench.make_study_page(report, WORDS, {})
    assert "1 of 2 metrics hardly tell them apart" in made.lead
    Parsed(html.to_html(made))


def test_the_page_of_two_runs():
    sides = [judged(0.0, 0.3), judged(0.25, 0.3)]
    for side, name in zip(sides, ("one", "two"), strict=True):
        side["title"] = f"{name}: forget class 3"
    configurations = ({"seed": 0, "a": {"b": 1}}, {"seed": 0, "a": {"b": 2}, "c": [1]})
    pairs = html_bench.settings_apart(*configurations)
    assert pairs == {"a.b": ("1", "2"), "c": ("-", "1")}
    made = html_bench.make_comparison(
        ("one", sides[0], configurations[0]), ("two", sides[1], configurations[1]), WORDS
    )
    shown = "".join(Parsed(html.to_html(made)).words)
    for part in ("+0.250", "a.b", "one:", "two:"):
        assert part in shown, part


def test_templates_are_in_the_package():
    home = Path(html.__file__).parent / "templates"
    names = {file.name for file in home.iterdir()}
    assert names == {"page.html.j2", "parts.html.j2", "page.css", "page.js"}
