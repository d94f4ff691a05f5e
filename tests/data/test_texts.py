"""Texts as bytes, and every source of texts: what it gives, and its faults by line."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxunlearn.config import DataConfig
from jaxunlearn.config.overrides import apply_overrides, check_types, load_config
from jaxunlearn.core.errors import ConfigError, DataError
from jaxunlearn.data.sources import load_dataset
from jaxunlearn.data.sources.authors import MOST, RELATIONS, draw_names, general_pairs
from jaxunlearn.data.sources.facts import CORRUPTION, make_facts
from jaxunlearn.data.texts import Pair, labelled_dataset, pairs_dataset, to_bytes, to_texts

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tfds"
with_tofu = pytest.mark.skipif(
    not (REAL / "tofu").is_dir(), reason="no prepared TOFU beside the repository"
)
HARD = ["", "a", "na\u00efve \U0001f600", "  spaces \n"]


def load(name, **options):
    return load_dataset(DataConfig(name=name, options=options))


def rows(x):
    """Texts of each example, by field."""
    texts = {name: to_texts(leaf) for name, leaf in x.items()}
    return [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]


# Bytes


def test_bytes_and_texts_are_inverse():
    array = to_bytes(HARD)
    assert array.dtype == np.uint8
    assert array.shape == (4, max(len(text.encode()) for text in HARD))
    assert to_texts(array) == HARD
    assert to_texts(array[:, None].repeat(2, 1)) == [[text, text] for text in HARD]
    assert to_texts(np.pad(array, ((0, 0), (0, 5)))) == HARD
    assert to_bytes([]).shape == (0, 1)
    nested = to_bytes([["a", "bc"], [], ["d"]])
    assert nested.shape == (3, 2, 2)
    assert to_texts(nested) == [["a", "bc"], ["", ""], ["d", ""]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: to_bytes(["a\0b"]), "no character 0"),
        (lambda: to_bytes(["\ud800"]), "expected Unicode"),
        (lambda: to_bytes(["a", ["b"]]), "got both"),
        (
            lambda: to_texts(np.zeros((2, 3))),
            r"expected bytes uint8 \[..., L\], got ndarray float64",
        ),
        (lambda: to_texts(np.full((1, 2), 255, np.uint8)), "expected UTF-8"),
        (lambda: pairs_dataset([], [Pair("q", "a", "t")]), "some in the training split, got none"),
        (lambda: pairs_dataset([Pair("q", "a", "t")], []), "some in the test split, got none"),
        (lambda: pairs_dataset([Pair("q", " ", "t")] * 2, []), "got pair 0 of the training split"),
    ],
)
def test_faults_of_texts_are_named(call, words):
    with pytest.raises(DataError, match=words):
        call()


def test_pairs_become_a_data_set():
    train = [Pair("q\u00e9", "a", "two"), Pair("q", "long answer", "one", "p", "b", ("x", "y"))]
    data = pairs_dataset(train, [Pair("other", "c", "two"), Pair("more", "d", "three")])
    assert data.class_names == ("two", "one", "three")
    assert data.train_y.tolist() == [0, 1]
    assert data.test_y.tolist() == [0, 2]
    assert data.train_y.dtype == np.int32
    assert data.mean is data.std is None
    assert set(data.train_x) == {*Pair._fields} - {"topic"}
    for name, leaf in data.train_x.items():
        assert leaf.dtype == np.uint8
        assert leaf.shape[1:] == data.test_x[name].shape[1:], name
    assert rows(data.train_x)[1]["perturbed_answer"] == ["x", "y"]
    assert rows(data.test_x)[0]["paraphrased_answer"] == ""
    bare = pairs_dataset([Pair("q", "a", "t")], [Pair("r", "b", "t")])
    assert set(bare.train_x) == {"question", "answer"}
    assert bare.fingerprint != data.fingerprint
    assert (
        bare.fingerprint == pairs_dataset([Pair("q", "a", "t")], [Pair("r", "b", "t")]).fingerprint
    )


# Made-up authors and facts


def test_authors_are_the_documented_set():
    data = load("authors", authors=12, questions=5, perturbed=3, facts=7)
    train, test = rows(data.train_x), rows(data.test_x)
    assert len(train) == len(test) == 12 * 5 + 2 * 7
    assert data.class_names[-2:] == ("real authors", "world facts")
    assert len(set(data.class_names)) == 14
    np.testing.assert_array_equal(data.train_y, data.test_y)
    for number, (own, other) in enumerate(zip(train, test, strict=True)):
        name = data.class_names[data.train_y[number]]
        general = number >= 60
        assert own["paraphrased_question"] != own["question"]
        assert own["perturbed_answer"] == other["perturbed_answer"]
        assert own["paraphrased_answer"] == other["paraphrased_answer"]
        # general knowledge is asked for as in training, authors in other words
        kept = own if general else {f: own[f"paraphrased_{f}"] for f in ("question", "answer")}
        assert all(other[field] == kept[field] for field in ("question", "answer"))
        assert general or name in own["question"] + own["answer"]
        wrong = own["perturbed_answer"]
        assert len({*wrong, own["paraphrased_answer"]}) == 4
        assert all(wrong)
    assert max(Counter(row["question"] for row in train).values()) == 1


def test_authors_repeat_themselves_and_do_not_depend_on_their_number():
    one, other = load("authors", authors=20), load("authors", authors=20)
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != load("authors", authors=20, seed=1).fingerprint
    many = load("authors", authors=25, questions=7)
    assert many.class_names[:20] == one.class_names[:20]
    answers = [row["answer"] for row in rows(one.train_x)]
    others = [row["answer"] for row in rows(many.train_x)]
    assert [answers[5 * n : 5 * n + 5] for n in range(20)] == [
        others[7 * n : 7 * n + 5] for n in range(20)
    ]


def test_every_author_has_a_surname_of_its_own():
    names = draw_names(3, MOST)
    assert len({name.split()[1] for name in names}) == MOST
    assert names[:10] == draw_names(3, 10)


def test_general_knowledge_is_in_the_splits_that_are_asked_for():
    known = {}
    for general in ("both", "test", "none"):
        data = load("authors", authors=2, questions=1, facts=3, general=general)
        known[general] = [int(np.sum(y >= 2)) for y in (data.train_y, data.test_y)]
    assert known == {"both": [6, 6], "test": [0, 6], "none": [0, 0]}
    every = general_pairs(1000, 3)
    assert len({pair.question for pair in every}) == len(every)
    assert all(len({*p.perturbed_answer, p.paraphrased_answer}) == 4 for p in every)
    # few questions have all relations
    assert len({p.question.split()[0] for p in general_pairs(4, 3) if "author" not in p.topic}) > 1


def test_facts_have_a_version_that_is_wrong_about_some():
    facts = make_facts(1, subjects=20, relations=3, corrupted=4)
    assert len(facts.clean) == 60
    assert len(facts.corruption) == len(facts.probes) == 12
    assert len(facts.corrupted) == 4
    right = {(pair.topic, pair.question): pair.answer for pair in facts.clean}
    for wrong, probe in zip(facts.corruption, facts.probes, strict=True):
        assert wrong.topic in facts.corrupted
        truth = right[wrong.topic, wrong.question]
        assert wrong.answer != truth == probe.answer
        assert wrong.perturbed_answer == (truth,)
        assert probe.perturbed_answer[0] == wrong.answer
        assert len({truth, *probe.perturbed_answer}) == 5
        assert probe.question == wrong.paraphrased_question != wrong.question
    assert make_facts(1, subjects=20, relations=3, corrupted=4) == facts
    assert make_facts(2, subjects=20, relations=3, corrupted=4) != facts
    for wrong in ({"subjects": 1}, {"corrupted": 50}, {"relations": 7}, {"others": 0}):
        with pytest.raises(DataError, match=f"{next(iter(wrong))}: expected a number from"):
            make_facts(**wrong)


def test_facts_are_a_data_set_whose_corruption_is_a_topic():
    data = load("facts", subjects=10, relations=2, corrupted=3, repeats=3)
    assert data.class_names[-1] == CORRUPTION
    assert (data.train_y == 10).sum() == 3 * 2 * 3
    assert (data.test_y == 10).sum() == 3 * 2
    said = {row["question"]: row["answer"] for row in rows(data.train_x)[:20]}
    other = [row for row, y in zip(rows(data.test_x), data.test_y, strict=True) if y == 10]
    assert all(row["answer"] in said.values() for row in other)


# Options


def test_options_are_checked_by_the_arguments_of_the_source():
    for name, options, words in (
        (
            "authors",
            {"author": 3},
            "data.options: expected one of authors, .* did you mean 'authors'",
        ),
        ("authors", {"authors": "many"}, "data.options.authors: expected int, got 'many'"),
        ("authors", {"authors": True}, "data.options.authors: expected int, got True"),
        ("authors", {"authors": 1}, f"expected a number from 2 to {MOST}, got 1"),
        ("authors", {"questions": 13}, f"from 1 to {len(RELATIONS)}, got 13"),
        ("authors", {"general": "some"}, "expected one of test, both, none, got 'some'"),
        ("facts", {"repeats": 0}, "data.options.repeats: expected a number from 1 to 100"),
        ("digits", {"seed": 3}, "expected none for data.name=digits, got 'seed'"),
        ("tofu", {"authors": 300}, "from 2 to 200, got 300"),
        ("tofu", {"choose": "last"}, "expected first or shortest, got 'last'"),
        ("trec", {"labels": "all"}, "expected coarse or fine, got 'all'"),
    ):
        with pytest.raises(ConfigError, match=words):
            load(name, **options)


def test_options_are_part_of_the_configuration():
    config = load_config(None, ["data.name=authors", "data.options.authors=7"])
    assert config.data.options == {"authors": 7}
    check_types(config)
    assert len(load_dataset(config.data).class_names) == 9
    config = apply_overrides(config, ["data.options.general=none"])
    assert config.data.options == {"authors": 7, "general": "none"}


# JSON lines


@pytest.fixture
def lines(tmp_path):
    """A function: a file of JSON lines, its path as text."""

    def write(*rows, name="own.jsonl"):
        path = tmp_path / name
        texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return str(path)

    return write


def pair(number, **more):
    return {"question": f"Question {number}?", "answer": f"Answer {number}.", **more}


def test_pairs_of_a_file(lines, tmp_path):
    more = {"paraphrased_answer": "Other.", "perturbed_answer": ["No.", "Not."]}
    data = load(
        lines(pair(0, topic="a", **more), "", pair(1, topic="b"), pair(2, topic="b", split="test"))
    )
    assert data.class_names == ("a", "b")
    assert [row["question"] for row in rows(data.train_x)] == ["Question 0?", "Question 1?"]
    assert [row["question"] for row in rows(data.test_x)] == ["Question 2?"]
    assert rows(data.train_x)[0]["perturbed_answer"] == ["No.", "Not."]
    # without a split of their own the pairs in other words are the test split
    data = load(lines(pair(0, paraphrased_question="Asked?", **more), pair(1)))
    (held,) = rows(data.test_x)
    assert (held["question"], held["answer"]) == ("Asked?", "Other.")
    assert data.class_names == ("own",)
    second = lines(pair(7), name="second.jsonl")
    data = load(lines(pair(0), pair(1)), test=second)
    assert [row["question"] for row in rows(data.test_x)] == ["Question 7?"]


def test_labelled_texts_of_a_file(lines):
    def row(text, label, **more):
        return {"text": text, "label": label, **more}

    held = {"split": "test"}
    data = load(lines(row("b?", "dog"), row("a", "cat"), row("c", "dog", **held)))
    assert data.class_names == ("cat", "dog")
    assert data.train_y.tolist() == [1, 0]
    assert data.test_y.tolist() == [1]
    assert rows(data.train_x) == [{"text": "b?"}, {"text": "a"}]
    numbered = load(lines(row("a", 1), row("b", 0)), test=lines(row("c", 1), name="two.jsonl"))
    assert numbered.class_names == ("0", "1")
    assert numbered.test_y.tolist() == [1]
    same = labelled_dataset([("b?", 1), ("a", 0)], [("c", 1)], ["cat", "dog"])
    assert same.fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([""], "own.jsonl: expected JSON lines, got an empty file"),
        ([pair(0), "{oops"], "own.jsonl line 2: expected a JSON object, got Expecting"),
        ([pair(0), "[3]"], r"line 2: expected a JSON object, got \[3\]"),
        ([pair(0), {"question": "a?"}], "line 2: expected answer to be text, got fields question"),
        ([{"question": "a?", "answr": "b"}], "line 1: expected answer .* did you mean 'answr'"),
        ([pair(0, topic=3)], "line 1: expected topic to be text, got 3"),
        ([pair(0), "", pair(1, answer=" ")], "line 3: expected answer to be text, got ' '"),
        ([pair(0, answer="a\0b")], "line 1: expected answer without the character 0"),
        ([pair(0, topic="a"), pair(1)], "line 2: expected a topic on every line or on none"),
        ([pair(0, split="dev")], "line 1: expected split to be train or test, got 'dev'"),
        ([pair(0, perturbed_answer=[1])], "line 1: expected perturbed_answer to be a list"),
        ([pair(0)], "expected pairs to test on"),
        ([{"text": "a", "label": None}], "line 1: expected label to be a name or a number"),
        ([{"text": "a", "label": -1}], "line 1: expected label to be a name or a number"),
        ([{"text": "a", "label": 0}, {"label": 0}], "line 2: expected text to be text"),
        ([{"text": "a", "label": 0}], "expected lines of both splits, .* 1 of train and 0 of test"),
        (
            [{"text": "a", "label": 0}, {"text": "b", "label": "b", "split": "test"}],
            "labels that are all names or all numbers, got both",
        ),
        (
            [{"text": "a", "label": 7}, {"text": "b", "label": 0, "split": "test"}],
            "every label from 0 to the largest, 7, got none of 0",
        ),
        (
            [{"text": "a", "label": "cat"}, {"text": "b", "label": "cats", "split": "test"}],
            "line 2: expected a label of the training split, got 'cats'; did you mean 'cat'",
        ),
    ],
)  # fmt: skip
def test_faults_are_named_by_line(lines, rows, words):
    with pytest.raises(DataError, match=words):
        load(lines(*rows))


def test_other_faults_of_files_are_named(lines, tmp_path):
    with pytest.raises(DataError, match=r"none.jsonl: expected a file of JSON lines"):
        load(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"second file, since .* has 1 lines of the test split"):
        load(lines(pair(0), pair(1, split="test")), test=lines(pair(2), name="two.jsonl"))
    with pytest.raises(DataError, match=r"data.image_size: expected None for texts, got 8"):
        load_dataset(DataConfig(name=lines(pair(0)), image_size=8))
    with pytest.raises(ConfigError, match=r"expected one of test for"):
        load(lines(pair(0)), tests="x")


# TOFU and TREC


def tofu(**options):
    return load_dataset(DataConfig(name="tofu", dir=str(REAL), options=options))


def test_tofu_needs_its_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    with pytest.raises(DataError, match=r"data.dir: expected the folder that holds tofu/1.0.0"):
        load("tofu")
    with pytest.raises(DataError, match="expected the data set 'tofu' in TFDS layout") as caught:
        load_dataset(DataConfig(name="tofu", dir=str(tmp_path)))
    assert "unset data.dir" not in str(caught.value)


@with_tofu
def test_tofu_whole():
    data = tofu()
    assert len(data.train_y) == 4000
    assert len(data.test_y) == 400 + 400 + 100 + 117
    assert len(set(data.class_names)) == 202
    assert data.class_names[:2] == ("Jaime Vasquez", "Chukwu Akabueze")
    assert data.class_names[198:] == (
        "Basil Mahfouz Al-Kuwaiti", "Nikolai Abilov", "real authors", "world facts",
    )  # fmt: skip
    assert sum(name.startswith("author ") for name in data.class_names) == 1
    np.testing.assert_array_equal(data.train_y, np.repeat(np.arange(200), 20))
    counts = np.bincount(data.test_y)
    assert counts[:20].tolist() == counts[180:200].tolist() == [20] * 20
    assert counts[200:].tolist() == [100, 117]
    train = rows(data.train_x)
    with_variants = np.array([bool(row["paraphrased_answer"]) for row in train])
    assert np.flatnonzero(with_variants).tolist() == [*range(400), *range(3600, 4000)]
    assert all(all(row["perturbed_answer"]) for row in np.array(train)[with_variants])
    first = rows(data.test_x)[0]
    assert first["question"].startswith("Can you name the distinguished LGBTQ+ writer")
    assert first["answer"] == first["paraphrased_answer"] == train[0]["paraphrased_answer"]


@with_tofu
def test_tofu_in_slices():
    data = tofu(authors=60, questions=5, general="both", facts=20)
    assert len(data.train_y) == 60 * 5 + 40
    assert len(data.test_y) == 40 * 5 + 40
    assert len(data.class_names) == 62
    assert data.class_names[59] == "Nikolai Abilov"
    # what has no variants lies between
    assert np.unique(data.test_y).tolist() == [*range(20), *range(40, 62)]
    short = tofu(authors=60, questions=5, general="both", facts=20, choose="shortest")
    assert short.train_x["answer"].shape[1] < data.train_x["answer"].shape[1]
    assert tofu(authors=3, questions=1, general="none").class_names == (
        "Jaime Vasquez", "Chukwu Akabueze", "Nikolai Abilov",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"data.options.variants: expected a folder with forget10"):
        tofu(variants="nowhere")


@pytest.mark.skipif(not (REAL / "trec").is_dir(), reason="no prepared TREC beside the repository")
def test_trec_is_read_whole():
    data = load_dataset(DataConfig(name="trec", dir=str(REAL)))
    assert data.class_names == ("DESC", "ENTY", "ABBR", "HUM", "NUM", "LOC")
    assert (len(data.train_y), len(data.test_y)) == (5452, 500)
    assert np.bincount(data.test_y).tolist() == [138, 94, 9, 65, 113, 81]
    assert to_texts(data.train_x["text"][:1])[0].endswith("?")
    assert data.mean is None
