"""A run on language models, from the configuration to the report, and what a user may get wrong."""

import dataclasses
import html
import json
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import checkpoint
from jaxunlearn.cli import main
from jaxunlearn.config import Config, DataConfig, LanguageConfig, ModelConfig, Request, TrainConfig
from jaxunlearn.core.errors import UserError
from jaxunlearn.core.types import Sets
from jaxunlearn.experiment import stages
from jaxunlearn.experiment.plan import make_plan
from jaxunlearn.kinds import View, kind_of, language_pictures
from jaxunlearn.language.huggingface import load_pretrained
from jaxunlearn.language.tokenizer import load_tokenizer
from tests.runs import hurry

SMALL = LanguageConfig(
    vocabulary=400, generated=4, answer_length=6, relearning_steps=2, relearning_examples=2
)
CONFIG = Config(
    name="tiny",
    data=DataConfig(
        name="authors", unseen=0,
        options={"authors": 6, "questions": 3, "facts": 2, "perturbed": 2},
    ),
    model=ModelConfig(
        name="llama", options={"depth": 1, "width": 16, "heads": 2, "context": 128}
    ),
    train=TrainConfig(epochs=12, batch_size=4, learning_rate=5e-3),
    kinds={"language": SMALL},
    request=Request(classes=(0,)),
    methods={
        "npo": {"steps": 3, "learning_rate": 1e-3},
        "concept_words": {"steps": 3, "learning_rate": 1e-3, "nodes": 2},
    },
    retrained=2,
)  # fmt: skip


def changed(**changes):
    own = {k: v for k, v in changes.items() if k in {f.name for f in dataclasses.fields(Config)}}
    language = {k: v for k, v in changes.items() if k not in own}
    kinds = {"language": dataclasses.replace(SMALL, **language)}
    return dataclasses.replace(CONFIG, kinds=kinds, **own)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Models are made, judged and drawn as ever, but timed once, not cold."""
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch, pictures=True)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return runs, ju.run(CONFIG, runs)


@pytest.fixture(scope="module")
def exported(made):
    """The original of the run, written by the command line."""
    runs, _ = made
    assert main(["export", "tiny/original", str(runs / "hf"), "--runs", str(runs)]) == 0
    return runs / "hf"


def test_the_table_holds_the_metrics_of_language_models(made):
    runs, report = made
    rows = {row["name"]: row["values"] for row in report["rows"]}
    assert set(rows) >= {
        "probability_forget", "rouge_forget", "forget_quality", "utility", "appearance_forget",
        "extraction_strength", "depth_of_answers", "probability_4_bits", "speedup",
    }  # fmt: skip
    assert "accuracy_forget" not in rows
    for name in ("probability_forget", "utility"):
        assert set(rows[name]) == {"original", "npo", "concept_words", "retrained"}
    assert rows["probability_forget"]["original"] > rows["probability_forget"]["retrained"]
    assert not report.get("failures")
    assert any(note.startswith("tokenizer: trained on all training") for note in report["notes"])
    assert {path.name for path in (runs / "tiny/pictures/concept_words").iterdir()} >= {"words.png"}
    shown = json.loads((runs / "tiny/pictures/exposed_answers.json").read_text())
    assert set(shown["models"]) == {"original", "npo", "concept_words"}
    likeliest = shown["models"]["original"]["first"][0]
    own = np.load(runs / "tiny/examples.npz")["original/probability_forget"]
    assert likeliest["value"] == pytest.approx(own.max(), abs=1e-5)
    question = shown["examples"][str(likeliest["place"])]["text"]
    assert question.startswith("Question: ")
    assert any(score > 0 for _, score in likeliest["marked"]), "likelier than in a retrained model"
    page = (runs / "tiny/report.html").read_text()
    assert question in html.unescape(page)
    assert not (runs / "tiny/pictures/answer_losses.json").exists(), "three answers tell nothing"
    kept = load_tokenizer(runs / "tiny/language")
    assert kept.size == 400
    assert main(["verify", "tiny", "--runs", str(runs)]) == 0


def test_losses_of_answers_and_the_attack_on_them(tmp_path):
    """By hand: one forgotten answer of two lies among those that were never seen."""

    class Seen(NamedTuple):
        sound: bool
        held_out: str = "test_retain"

        def is_sound(self):
            return self.sound

        def losses(self, name):
            return np.array({"forget": [0.5, 2.0, np.nan], "test_retain": [1.0, 3.0]}[name])

    sets = Sets()
    view = View("title", None, {"original": 0, "wrecked": 0}, sets, [], {},
                lambda name: Seen(name == "original"))  # fmt: skip
    language_pictures.draw_losses(tmp_path / "answer_losses.png", view, "")
    found = json.loads((tmp_path / "answer_losses.json").read_text())
    assert {name: curve["auc"] for name, curve in found["roc"].items()} == {"original": 0.75}
    assert {name: sum(own) for name, own in found["models"]["original"].items()} == {
        "forget (trained on)": 2, "test (never seen)": 2,
    }  # fmt: skip


def test_words_are_purged_with_the_original(made, tmp_path, capsys):
    """Words that name what was to be forgotten stand in titles, settings and records."""
    name = ju.data.load_dataset(CONFIG.data).class_names[1].split()[-1]
    config = changed(name="words", request=Request(words=(name,)), methods={"npo": {"steps": 1}},
                     retrained=1)  # fmt: skip
    ju.run(config, tmp_path)
    home = tmp_path / "words"
    told = [p for p in home.rglob("*") if p.is_file() and name in p.read_text(errors="replace")]
    assert {"record.json", "config.json", "report.json"} <= {path.name for path in told}
    assert name not in (home / "erasure/npo/record.md").read_text()
    assert main(["verify", str(home)]) == 0
    assert main(["purge", str(home)]) == 0
    told = [p for p in home.rglob("*") if p.is_file() and name in p.read_text(errors="replace")]
    assert {path.parent.name for path in told} <= {"language"}, "in the tokenizer at most"
    assert "cannot reach words of the training texts in the tokenizer" in capsys.readouterr().out
    assert not (home / "report.png").exists()
    assert main(["verify", str(home)]) == 0
    assert ju.report.load(home)["title"].endswith("texts in which certain words stand")


def test_a_killed_run_goes_on_where_it_was(made, tmp_path, monkeypatch):
    runs, report = made
    monkeypatch.setattr(stages, "SAVE_EVERY", 0.0)
    seen = []

    def kill(name, progress):
        seen.append((name, progress.step if progress else None))
        if name == "original" and progress.step >= 32 and len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ju.run(CONFIG, tmp_path, listener=kill)
    assert (tmp_path / "tiny/original.unfinished").exists()
    again = ju.run(CONFIG, tmp_path, listener=kill)
    assert seen[2][1] > 32, "not from the beginning"
    for name in ("original", "unlearned/npo", "retrained/1"):
        first, second = (checkpoint.load(place / "tiny" / name)[0] for place in (runs, tmp_path))
        jax.tree.map(np.testing.assert_array_equal, first, second)
    values = [
        {row["name"]: row["values"] for row in one["rows"] if row["group"] != "cost"}
        for one in (report, again)
    ]
    assert values[0] == values[1]


def test_a_model_goes_out_and_comes_back_as_it_is(made, exported):
    runs, _ = made
    there = checkpoint.load(runs / "tiny/original")[0]
    model, variables = load_pretrained(exported)
    jax.tree.map(np.testing.assert_array_equal, dict(there), dict(variables))
    assert model.shape.vocabulary == 400
    told = json.loads((exported / "config.json").read_text())
    assert (told["bos_token_id"], told["eos_token_id"]) == (1, 2)
    assert load_tokenizer(exported).size == 400
    words = ["export", "tiny/unlearned/npo", str(exported), "--runs", str(runs)]
    before = (exported / "model.safetensors").read_bytes()
    assert main(words) == 1, "never over another"
    assert (exported / "model.safetensors").read_bytes() == before
    assert main(["export", "tiny", str(runs / "new"), "--runs", str(runs)]) == 1
    assert main(["export", "tiny/none", str(runs / "new"), "--runs", str(runs)]) == 1
    assert not (runs / "new").exists()


def test_a_given_original_is_taken_as_it_is_and_a_base_started_from(exported, tmp_path):
    config = changed(
        name="given", base=str(exported), original=str(exported), model=ModelConfig(name="llama"),
        train=dataclasses.replace(CONFIG.train, epochs=1, learning_rate=1e-4), retrained=1,
        methods={"npo": CONFIG.methods["npo"]},
    )  # fmt: skip
    report = ju.run(config, tmp_path)
    taken = load_pretrained(exported)[1]
    own = checkpoint.load(tmp_path / "given/original")[0]
    jax.tree.map(np.testing.assert_array_equal, dict(taken), dict(own))
    rows = {row["name"]: row["values"] for row in report["rows"]}
    assert "seconds" not in rows or "original" not in rows["seconds"], "nobody saw it trained"
    retrained = checkpoint.load(tmp_path / "given/retrained/0")[0]
    pairs = zip(*map(jax.tree.leaves, (own, retrained)), strict=True)
    assert 0 < max(np.abs(a - b).max() for a, b in pairs) < 1e-2, "a few small steps from the base"
    assert not any("tokenizer: trained" in note for note in report["notes"])
    folder = tmp_path / "again"
    assert main(["export", str(tmp_path / "given/retrained/0"), str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {path.name for path in exported.iterdir()}


def test_words_and_pairs_of_texts_in_a_run(tmp_path):
    name = make_plan(CONFIG, tmp_path).class_names[0]
    asked = make_plan(changed(request=Request(words=(name,))), tmp_path)
    assert list(np.asarray(asked.sets.forget.indices)) == [0, 1, 2]
    assert asked.config.request.words == (name,)
    assert asked.identity["request"] == {
        "classes": (), "indices": (0, 1, 2), "share": 0.0, "seed": 0
    }  # fmt: skip
    # all of an author is gone: so are the paraphrases in the test split
    assert int(asked.sets.test_forget.size) == 3


def test_methods_of_a_run_that_was_told_none():
    kind = kind_of(ju.models.build_language("llama", 400, CONFIG.model.options))
    found = kind.default_methods(changed(methods={}))
    assert {"npo", "concept_words", "rmu", "eul", "lm_finetune"} <= set(found)
    assert "lm_retrain" not in found
    assert found["npo"]["learning_rate"] == CONFIG.train.learning_rate / 3
    assert found["lm_gradient_ascent"]["steps"] < found["npo"]["steps"]
    assert kind.default_methods(changed(base="there"))["npo"] == {}


def test_training_and_judgement_in_one_call_know_it_too(tmp_path):
    data = ju.data.load_dataset(CONFIG.data)
    model = ju.models.build_language("llama", 400, CONFIG.model.options)
    read = kind_of(model).read(data, SMALL)
    sets = ju.make_sets(
        read.train_x, read.train_y, ju.forget_class(0), test=(read.test_x, read.test_y),
        class_names=read.class_names,
    )  # fmt: skip
    original = ju.train(model, sets.train, jax.random.key(0), config=CONFIG.train)
    assert original.history["loss"][-1] < original.history["loss"][0]
    gold = ju.train(model, sets.retain, jax.random.key(1), config=CONFIG.train)
    report = ju.evaluate(
        model, {"original": original}, [gold], sets, settings=SMALL, topics=read.class_names,
        tokenizer=read.facts["tokenizer"],
    )  # fmt: skip
    rows = {row["name"]: row["values"] for row in report["rows"]}
    assert {"probability_forget", "rouge_forget", "utility"} <= set(rows)
    short = ju.models.build_language("llama", 400, {**CONFIG.model.options, "context": 20})
    with pytest.raises(UserError, match=r"part: expected texts of at most 20 tokens"):
        ju.train(short, sets.train, jax.random.key(0), config=CONFIG.train)
    few = ju.models.build_language("llama", 300, CONFIG.model.options)
    with pytest.raises(UserError, match=r"part: expected tokens below 300"):
        ju.train(few, sets.train, jax.random.key(0), config=CONFIG.train)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig(name="llama", options={"context": 20})},
         r"model.options.context: expected at least \d+ tokens, those of the longest prompt"),
        ({"length": 12}, r"expected at most 12 tokens, the context, got \d+ in pair"),
        ({"request": Request(classes=("world facts",)),
          "data": DataConfig(name="authors", unseen=0, options={"authors": 6, "general": "test"})},
         r"names none of the \d+ examples"),
        ({"request": Request(words=("Zoroaster",))}, "none of which stands in any of the"),
        ({"request": Request(classes=("Zoe",))}, "request.classes: expected numbers or class"),
        ({"data": DataConfig(name="digits")}, "data.name: expected questions and answers"),
        ({"template": "Q: {questio}"}, "template: expected one of plain"),
        ({"tokenizer": "nowhere"}, "tokenizer: expected a folder with tokenizer.json"),
        ({"base": "nowhere"}, "language.base: expected a folder with a checkpoint, got 'nowhere'"),
        ({"original": "nowhere"}, "language.original: expected a folder with a checkpoint"),
        ({"lora": 4}, "language.lora: expected None without language.base"),
        ({"weights": "int8"}, "language.weights: expected one of float32, bfloat16"),
        ({"vocabulary": 3}, "language.vocabulary: expected at least 260"),
        ({"methods": {"finetune": {}}}, "expected one of .*npo.* for the model llama"),
        ({"methods": {"npo": {"bet": 1}}}, "did you mean 'beta'"),
        ({"train": TrainConfig(augment="crop_flip")}, "augment"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_any_training(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        make_plan(changed(**changes), tmp_path)


def test_checkpoints_that_do_not_fit(exported, tmp_path, monkeypatch):
    def told(**changes):
        with pytest.raises(UserError) as error:
            make_plan(changed(model=ModelConfig(name="llama"), **changes), tmp_path)
        return str(error.value)

    asked = ModelConfig(name="gpt2")
    with pytest.raises(UserError, match=r"model.name: expected llama, as .* is, got 'gpt2'"):
        make_plan(changed(base=str(exported), model=asked), tmp_path)
    asked = ModelConfig(name="llama", options={"depth": 1})
    with pytest.raises(UserError, match=r"model.options: expected some of context, dtype, remat"):
        make_plan(changed(base=str(exported), model=asked), tmp_path)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((exported / name).read_bytes())
    assert "language.tokenizer: expected a path where the checkpoint" in told(base=str(bare))
    small = tmp_path / "small"
    small.mkdir()
    config = json.loads((exported / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    found = told(original=str(small), tokenizer=str(exported))
    assert "tokenizer: expected at most 300 tokens, the vocabulary of the model, got 400" in found
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"needs tokenizers: run pip install 'jaxunlearn\[lm\]'"):
        make_plan(CONFIG, tmp_path)
