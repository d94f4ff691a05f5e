"""Tokenizers of every kind of file, words of tokens, and pairs as arrays."""

import io
import json
import re
import sys

import numpy as np
import pytest

from jaxunlearn.core.errors import DataError
from jaxunlearn.data.texts import Pair, pairs_dataset
from jaxunlearn.language.pairs import (
    TEMPLATES,
    Template,
    encode_examples,
    encode_pairs,
    encode_prompts,
    find_template,
    stop_token,
)
from jaxunlearn.language.tokenizer import (
    BOS,
    EOS,
    PAD,
    check_fits,
    load_tokenizer,
    offsets_of,
    train_tokenizer,
    words_of,
)

TEXTS = [
    "Jaime Vasquez was born in Santiago, and wrote of crime.",
    "Hsiao Yun-Hwa wrote The Silent River, Jaime Vasquez's best-loved book.",
    "Who wrote it? The author was born in Santiago.",
] * 4
HARD = "Hsiao Yun-Hwa\u2019s na\u00efve caf\u00e9 \U0001f600?  ok\n\ttwo"
MARK = "\u2581"


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(TEXTS, 320)


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A tokenizer.json as of Llama 2: spaces are marked, unknown characters are bytes."""
    library = pytest.importorskip("tokenizers")
    model = library.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    inner = library.Tokenizer(model)
    steps = library.normalizers
    inner.normalizer = steps.Sequence([steps.Prepend(MARK), steps.Replace(" ", MARK)])
    steps = library.decoders
    inner.decoder = steps.Sequence(
        [steps.Replace(MARK, " "), steps.ByteFallback(), steps.Fuse(), steps.Strip(" ", 1, 0)]
    )
    special = ["<unk>", BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = library.trainers.BpeTrainer(vocab_size=400, special_tokens=special[:3])
    inner.train_from_iterator(
        [word for text in TEXTS for word in re.findall(r"\w+", text)], trainer
    )
    told = json.loads(inner.to_str())
    for token in special[3:]:
        told["model"]["vocab"].setdefault(token, len(told["model"]["vocab"]))
    folder = tmp_path_factory.mktemp("marked")
    (folder / "tokenizer.json").write_text(json.dumps(told))
    config = {"bos_token": {"content": BOS}, "eos_token": EOS, "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A tokenizer.model of sentencepiece."""
    library = pytest.importorskip("sentencepiece")
    content = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=content, vocab_size=330, model_type="bpe",
        byte_fallback=True, minloglevel=2, hard_vocab_limit=False,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "tokenizer.model").write_bytes(content.getvalue())
    return load_tokenizer(folder)


@pytest.fixture(params=["trained", "marked", "pieces"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


# Texts and tokens


def test_special_tokens_are_told_by_the_files(trained, marked, pieces):
    assert (trained.pad, trained.bos, trained.eos) == (0, 1, 2)
    assert (marked.pad, marked.bos, marked.eos) == (2, 1, 2)
    assert (pieces.pad, pieces.bos, pieces.eos) == (2, 1, 2)
    assert trained.number(EOS) == 2


def test_decoding_undoes_encoding(tokenizer):
    for text in [*TEXTS[:3], "a", "x = {y: 3}"]:
        ids = tokenizer.encode(text)
        assert all(0 <= one < tokenizer.size for one in ids)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([tokenizer.eos, *ids, tokenizer.eos]) == text
        assert b"".join(tokenizer.token_bytes(ids)).decode().strip() == text


def test_bytes_lose_nothing_of_any_text(trained):
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(1, 0xD800, 12))) for _ in range(100)]
    for text in [HARD, "", " ", *texts]:
        assert trained.decode(trained.encode(text)) == text
        assert b"".join(trained.token_bytes(trained.encode(text))) == text.encode()


def test_training_repeats_itself(trained):
    again = train_tokenizer(TEXTS, 320)
    assert again.encode(HARD) == trained.encode(HARD)
    assert again._core.content == trained._core.content
    assert len(trained.encode("Jaime Vasquez")) < len("Jaime Vasquez")
    assert train_tokenizer(["ab"], 259).size == 259


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "out")
    again = load_tokenizer(tmp_path / "out")
    assert again.encode(HARD) == tokenizer.encode(HARD)
    for name in ("size", "bos", "eos", "pad", "specials"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    again.save(tmp_path / "twice")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes(), path.name
    (file,) = [
        p for p in (tmp_path / "out").iterdir() if p.name in ("tokenizer.json", "tokenizer.model")
    ]
    # the file alone tells the tokens as well
    assert load_tokenizer(file).encode(HARD) == tokenizer.encode(HARD)


def test_a_trained_tokenizer_begins_texts_elsewhere_too(trained, tmp_path):
    library = pytest.importorskip("tokenizers")
    trained.save(tmp_path)
    theirs = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode("Who?").ids == [trained.bos, *trained.encode("Who?")]


# Faults


def test_tokens_added_to_pieces_are_kept(pieces, tmp_path):
    pieces.save(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": pieces.size}))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<pad>"}))
    filled = load_tokenizer(tmp_path)
    assert filled.pad == pieces.size == filled.size - 1
    filled.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").pad == filled.pad
    assert filled.decode([*filled.encode("Jaime"), filled.pad]) == "Jaime"


def test_faults_of_files_are_named(tmp_path, trained):
    def fails(path, *words):
        with pytest.raises(DataError) as caught:
            load_tokenizer(path)
        for word in words:
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)

    fails(tmp_path / "none", "expected a folder with tokenizer.json or tokenizer.model", "none")
    fails(tmp_path, "expected tokenizer.json or tokenizer.model, found nothing")
    (tmp_path / "tokenizer.json").write_text("{")
    fails(tmp_path, "expected a tokenizer.json, got another file")
    trained.save(tmp_path)
    told = json.loads((tmp_path / "tokenizer.json").read_text())
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": "<end>"}))
    fails(tmp_path, "expected eos_token '<end>' in the vocabulary")
    config.write_text("[1]")
    fails(tmp_path, "expected an object, got a list")
    config.unlink()
    (tmp_path / "special_tokens_map.json").unlink()
    assert load_tokenizer(tmp_path).eos == 2
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({**told, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}})
    )
    fails(tmp_path, "expected a tokenizer by bytes", "WordPiece")
    (tmp_path / "other.model").write_bytes(b"no model")
    fails(tmp_path / "other.model", "expected a tokenizer.model of sentencepiece")


@pytest.mark.parametrize("name", ["tokenizers", "sentencepiece"])
def test_a_missing_package_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    file = "tokenizer.json" if name == "tokenizers" else "tokenizer.model"
    (tmp_path / file).write_text("{}")
    with pytest.raises(DataError, match=rf"needs {name}: run pip install 'jaxunlearn\[lm\]'$"):
        load_tokenizer(tmp_path)


def test_faults_of_training_are_named(trained):
    for arguments, words in (
        ((TEXTS, 100), "size: expected at least 259 tokens, .* got 100"),
        (([], 300), "texts: expected a sequence of texts"),
        (("text", 300), "texts: expected a sequence of texts"),
    ):
        with pytest.raises(DataError, match=words):
            train_tokenizer(*arguments)
    check_fits(trained, trained.size)
    with pytest.raises(DataError, match="expected at most 100 tokens, the vocabulary of the model"):
        check_fits(trained, 100)
    with pytest.raises(DataError, match=f"expected tokens from 0 to {trained.size - 1}"):
        trained.decode([trained.size])


# Words


def test_words_are_those_of_the_text(tokenizer):
    text = "Yun-Hwa Vasquez's best-loved book, na\u00efve?"
    ids = [tokenizer.eos, *tokenizer.encode(text), tokenizer.eos, tokenizer.pad]
    words = words_of(tokenizer, ids)
    assert [word for word, _ in words] == [
        "Yun-Hwa", "Vasquez", "'s", "best-loved", "book", ",", "na\u00efve", "?",
    ]  # fmt: skip
    parts = tokenizer.token_bytes(ids)
    for word, places in words:
        assert b"".join(parts[place] for place in places).decode().strip() == word
    places = [place for _, own in words for place in own]
    assert places == sorted(set(places))
    assert all(parts[n].strip() == b"" for n in range(len(ids)) if n not in places)


def test_a_token_of_two_words_is_the_first_ones(trained):
    class TwoWords:
        def token_bytes(self, ids):
            return [b"New York", b"ers", b" sing"]

    assert words_of(TwoWords(), [0, 1, 2]) == [("New", [0]), ("Yorkers", [1]), ("sing", [2])]


def test_offsets_say_where_tokens_stand(trained):
    ids = [trained.bos, *trained.encode(HARD)]
    text, spans = offsets_of(trained, ids)
    assert text == HARD
    assert spans[0, 0] == spans[0, 1] == 0
    parts = trained.token_bytes(ids)
    for (start, end), part in zip(spans, parts, strict=True):
        assert part in HARD[start:end].encode()
    assert offsets_of(trained, [])[1].shape == (0, 2)
    # a part of a character alone
    split = trained.encode("\u00ef")[:1]
    assert len(offsets_of(trained, split)[0]) == 1


# Pairs


QUESTIONS, ANSWERS = ["Who wrote it?", "Where?"], ["Jaime Vasquez.", "In {Santiago}, of course."]


def test_pairs_are_prompts_with_answers_behind(tokenizer):
    x = encode_pairs(tokenizer, QUESTIONS, ANSWERS)
    assert {name: leaf.dtype for name, leaf in x.items()} == {
        "tokens": np.int32, "mask": bool, "answer": bool,
    }  # fmt: skip
    prompts = encode_prompts(tokenizer, QUESTIONS)
    for tokens, mask, answer, prompt, said in zip(*x.values(), prompts, ANSWERS, strict=True):
        size = mask.sum()
        assert mask[:size].all()
        assert (tokens[size:] == tokenizer.pad).all()
        assert tokens[: len(prompt)].tolist() == prompt
        assert tokens[0] == tokenizer.bos
        assert np.flatnonzero(answer).tolist() == list(range(len(prompt), size))
        assert tokens[size - 1] == tokenizer.eos
        assert tokenizer.decode(tokens[answer]).strip() == said
    assert tokenizer.decode(x["tokens"][0]) == "Question: Who wrote it?\nAnswer: Jaime Vasquez."
    assert not x["answer"][:, 0].any()


def test_lists_of_answers_and_answers_that_are_not_there(trained):
    nested = [["Jaime.", "Vasquez of Santiago."], []]
    x = encode_pairs(trained, QUESTIONS, nested, length=80)
    assert x["tokens"].shape == x["mask"].shape == x["answer"].shape == (2, 2, 80)
    assert x["answer"].any(axis=-1).tolist() == [[True, True], [False, False]]
    alone = encode_pairs(trained, QUESTIONS[:1], ["Vasquez of Santiago."], length=80)
    for name, leaf in alone.items():
        np.testing.assert_array_equal(x[name][0, 1], leaf[0])
    # the prompt is there all the same: no row is empty
    assert trained.decode(x["tokens"][1, 0]) == "Question: Where?\nAnswer:"
    assert x["mask"].any(axis=-1).all()
    bare = encode_pairs(trained, ["", "a"], ["", ""], Template("{question}{answer}"))
    assert not bare["answer"].any()


def test_a_pair_longer_than_the_context_is_refused(trained):
    longest = encode_pairs(trained, QUESTIONS, ANSWERS)["tokens"].shape[1]
    encode_pairs(trained, QUESTIONS, ANSWERS, length=longest)
    with pytest.raises(
        DataError, match=rf"at most {longest - 1} tokens, .* got {longest} in pair 1"
    ):
        encode_pairs(trained, QUESTIONS, ANSWERS, length=longest - 1)
    with pytest.raises(DataError, match="in pair 1, 'Where"):
        encode_pairs(trained, QUESTIONS, [["a"], ["b", ANSWERS[1] * 9]], length=60)
    with pytest.raises(DataError, match="answers: expected 2"):
        encode_pairs(trained, QUESTIONS, ["one"])


def test_templates(trained, tmp_path):
    assert find_template("plain").text == "Question: {question}\nAnswer: {answer}"
    assert find_template("Q: {question} A:").text == "Q: {question} A: {answer}"
    for wrong in ("llama", "{answer}{question}", "{question}{answer}{answer}"):
        with pytest.raises(DataError, match="template: expected one of plain, llama2"):
            find_template(wrong)
    with pytest.raises(DataError, match=r"did you mean 'llama[23]'"):
        find_template("llama")
    for name in ("llama3", "qwen"):
        with pytest.raises(DataError, match=r"expected a vocabulary with '<\|"):
            encode_pairs(trained, QUESTIONS, ANSWERS, name)
    # the same, with the chat's own tokens
    library = pytest.importorskip("tokenizers")
    inner = library.Tokenizer.from_str(trained._core.content.decode())
    names = ["start_header_id", "end_header_id", "eot_id", "im_start", "im_end"]
    inner.add_special_tokens([f"<|{name}|>" for name in names])
    (tmp_path / "tokenizer.json").write_text(inner.to_str())
    chat = load_tokenizer(tmp_path)
    for name in TEMPLATES:
        x = encode_pairs(chat, QUESTIONS, ANSWERS, name)
        end = stop_token(chat, name)
        assert end == chat.number(TEMPLATES[name].end or EOS)
        for tokens, mask, answer, said in zip(*x.values(), ANSWERS, strict=True):
            assert tokens[mask][-1] == end
            assert chat.decode(tokens[answer]).strip() == said
    text = chat.decode(encode_pairs(chat, QUESTIONS, ANSWERS, "llama3")["tokens"][0])
    assert text == "user\n\nWho wrote it?assistant\n\nJaime Vasquez."


def test_examples_have_variants_of_one_length(trained):
    train = [
        Pair("Who?", "Jaime.", "a", "Which one?", "It is Jaime.", ("It is Xin.", "It is Ana.")),
        Pair("Where?", "In Santiago.", "b"),
    ]
    data = pairs_dataset(train, [Pair("Which one of all?", "It is Jaime Vasquez.", "a")])
    one, other = encode_examples(trained, [data.train_x, data.test_x])
    assert set(one) == set(other) == {"tokens", "mask", "answer", "variants"}
    assert set(one["variants"]) == {"paraphrase", "perturbed"}
    length = one["tokens"].shape[1]
    assert one["variants"]["perturbed"]["tokens"].shape == (2, 2, length)
    assert other["variants"]["perturbed"]["answer"].shape == (1, 2, length)
    assert other["tokens"].shape == (1, length)
    assert one["variants"]["paraphrase"]["answer"].any(axis=1).tolist() == [True, False]
    own = one["variants"]["perturbed"]
    assert trained.decode(own["tokens"][0, 1]) == "Question: Who?\nAnswer: It is Ana."
    assert trained.decode(own["tokens"][0, 1][own["answer"][0, 1]]) == " It is Ana."
    assert (own["tokens"][..., -1] == trained.pad).any()
    assert PAD not in trained.decode(own["tokens"][0, 0])
