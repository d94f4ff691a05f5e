"""Tokenizers: read from the files of a checkpoint, or trained; and question-answer pairs in tokens.

``tokenizer.json`` is read with ``tokenizers``, ``tokenizer.model`` with ``sentencepiece``. Both
come with ``pip install 'jaxunlearn[lm]'`` and are imported only here, when they are needed.
"""

import functools
import importlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.core.errors import DataError, brief, did_you_mean, sentence
from jaxunlearn.core.files import write_bytes, write_text
from jaxunlearn.data.texts import to_texts

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
"""Special tokens of :func:`train_tokenizer`, with the numbers 0, 1, 2."""
_SPECIAL = ("bos_token", "eos_token", "pad_token")
# of tokenizers whose files do not name the end, those of the families that are read
_ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<eos>")
_SPACE = "\u2581"


class Tokenizer:
    """Texts to tokens and back; :func:`load_tokenizer` and :func:`train_tokenizer` make one.

    Attributes:
      size: ``V``, one more than the largest number of a token.
      bos: number of the token before every text, ``None`` where texts begin without.
      eos: number of the token that ends an answer.
      pad: number that fills rows; that of ``eos`` where there is none of its own.
      specials: numbers of all tokens that stand for no text.
    """

    def __init__(self, core: "_Core", settings: Mapping[str, Any], where: str) -> None:
        self._core, self._settings, self._where = core, dict(settings), where
        self.size = 1 + max(core.vocabulary.values())
        named = {key: self._number(key) for key in _SPECIAL}
        eos = named["eos_token"]
        if eos is None:
            eos = next((core.vocabulary[end] for end in _ENDS if end in core.vocabulary), None)
        if eos is None:
            raise DataError(
                f"{where}: expected a token that ends a text, eos_token in tokenizer_config.json, "
                "got none"
            )
        begins = settings.get("add_bos_token", core.adds_bos(named["bos_token"]))
        self.eos: int = eos
        self.bos: int | None = named["bos_token"] if begins else None
        self.pad: int = eos if named["pad_token"] is None else named["pad_token"]
        self.specials = core.specials | {n for n in named.values() if n is not None} | {eos}

    def _number(self, key: str) -> int | None:
        text = _content(self._settings.get(key))
        if text is None:
            return None
        if text not in self._core.vocabulary:
            raise DataError(
                f"{self._where}: expected {key} {brief(text)} in the vocabulary, found it not "
                f"among {len(self._core.vocabulary)} tokens"
            )
        return self._core.vocabulary[text]

    def number(self, token: str) -> int:
        """Returns the number of a token, special ones included.

        Raises:
          DataError: the vocabulary has no such token.
        """
        if token not in self._core.vocabulary:
            raise DataError(
                f"{self._where}: expected a vocabulary with {brief(token)}, got one without"
            )
        return self._core.vocabulary[token]

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, without begin and end.

        Special tokens that stand in the text, ``"<|eot_id|>"``, become one token each where the
        tokenizer is a ``tokenizer.json``.
        """
        return self._core.encode(text)

    def encode_after(self, text: str) -> list[int]:
        """Returns the tokens of a text that stands behind another.

        Tokenizers that put a space before every text do so instead of the one that ``text``
        begins with.
        """
        prefixed = self._puts_space and text.startswith(" ")
        return self._core.encode(text[1:] if prefixed else text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of tokens; special ones stand for no text.

        Raises:
          DataError: a number that is no token.
        """
        kept = [one for one in self._checked(ids) if one not in self.specials]
        return self._core.decode(kept)

    def token_bytes(self, ids: Sequence[int] | np.ndarray) -> list[bytes]:
        """Returns the UTF-8 bytes that each token stands for; of special ones none.

        A token may hold a part of a character alone.
        """
        table = self._bytes
        return [table.get(one, b"") for one in self._checked(ids)]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files of the tokenizer as a checkpoint of Hugging Face has them.

        ``tokenizer.json`` or ``tokenizer.model`` is the one that was read, byte for byte;
        ``tokenizer_config.json`` and ``special_tokens_map.json`` say what the special tokens are.
        """
        folder = Path(folder)
        write_bytes(folder / self._core.file, self._core.content)
        write_text(folder / "tokenizer_config.json", _json(self._settings))
        named = {key: _content(self._settings.get(key)) for key in _SPECIAL}
        named = {key: text for key, text in named.items() if text is not None}
        write_text(folder / "special_tokens_map.json", _json(named))
        if self._core.added:
            write_text(folder / "added_tokens.json", _json(self._core.added))

    @functools.cached_property
    def _bytes(self) -> dict[int, bytes]:
        return {
            number: self._core.to_bytes(text)
            for text, number in self._core.vocabulary.items()
            if number not in self.specials
        }

    @functools.cached_property
    def _puts_space(self) -> bool:
        return b"".join(self.token_bytes(self._core.encode("a"))).startswith(b" ")

    def _checked(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        found = [int(one) for one in np.asarray(ids).reshape(-1)]
        for one in found:
            if not 0 <= one < self.size:
                raise DataError(f"ids: expected tokens from 0 to {self.size - 1}, got {one}")
        return found


# What differs between the two kinds of files


class _Core:
    """File of a vocabulary, and what reads it."""

    file: str
    content: bytes
    vocabulary: Mapping[str, int]
    specials: frozenset[int]
    added: Mapping[str, int] = {}

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: list[int]) -> str:
        raise NotImplementedError

    def to_bytes(self, token: str) -> bytes:
        raise NotImplementedError

    def adds_bos(self, bos: int | None) -> bool:
        raise NotImplementedError


class _Json(_Core):
    file = "tokenizer.json"

    def __init__(self, content: bytes, where: str) -> None:
        library = _library("tokenizers", where)
        try:
            self._inner = library.Tokenizer.from_str(content.decode("utf-8"))
            told = json.loads(content)
        # the library raises bare Exceptions
        except Exception as error:
            raise DataError(
                f"{where}: expected a tokenizer.json, got another file: {sentence(error)}"
            ) from error
        self.content = content
        self._inner.no_padding()
        self._inner.no_truncation()
        self.vocabulary = self._inner.get_vocab(with_added_tokens=True)
        added = self._inner.get_added_tokens_decoder()
        self.specials = frozenset(number for number, one in added.items() if one.special)
        self._added = {one.content for one in added.values()}
        kinds = set(_types(told.get("decoder")))
        self._by_byte = "ByteLevel" in kinds
        if not self._by_byte and not kinds & {"Metaspace", "Replace"}:
            raise DataError(
                f"{where}: expected a tokenizer by bytes (ByteLevel) or with marked spaces "
                f"(Metaspace), got the decoder {', '.join(sorted(kinds)) or 'none'}"
            )

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._inner.decode(ids, skip_special_tokens=False))

    def to_bytes(self, token: str) -> bytes:
        if token in self._added:
            return token.encode("utf-8")
        return _from_alphabet(token) if self._by_byte else _from_pieces(token)

    def adds_bos(self, bos: int | None) -> bool:
        first = self._inner.encode("a").ids[:1]
        return bos is not None and first == [bos]


class _Pieces(_Core):
    file = "tokenizer.model"

    def __init__(self, content: bytes, added: Mapping[str, int], where: str) -> None:
        library = _library("sentencepiece", where)
        try:
            self._inner = library.SentencePieceProcessor(model_proto=content)
        except Exception as error:
            raise DataError(
                f"{where}: expected a tokenizer.model of sentencepiece, got another file: "
                f"{sentence(error)}"
            ) from error
        self.content, self.added = content, added
        self._own = self._inner.get_piece_size()
        own = {self._inner.id_to_piece(number): number for number in range(self._own)}
        self.vocabulary = {**own, **added}
        special = [n for n in range(self._own) if self._inner.is_control(n)]
        special += [n for n in range(self._own) if self._inner.is_unknown(n)]
        self.specials = frozenset([*special, *added.values()])

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text))

    def decode(self, ids: list[int]) -> str:
        return str(self._inner.decode([one for one in ids if one < self._own]))

    def to_bytes(self, token: str) -> bytes:
        return _from_pieces(token)

    def adds_bos(self, bos: int | None) -> bool:
        return bos is not None


def _library(name: str, where: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(
            f"{where}: reading it needs {name}: run pip install 'jaxunlearn[lm]'"
        ) from None


def _types(decoder: Any) -> Iterator[str]:
    """Yields the types of a decoder and of those that it is a sequence of."""
    if isinstance(decoder, Mapping):
        yield str(decoder.get("type"))
        for inner in decoder.get("decoders", []):
            yield from _types(inner)


@functools.cache
def _alphabet() -> dict[str, int]:
    """Returns the printable character of each byte, as tokenizers by bytes write them.

    Bytes that are printable in Latin-1 are themselves, the other 68 follow from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}


def _from_alphabet(token: str) -> bytes:
    table = _alphabet()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode("utf-8")


def _from_pieces(token: str) -> bytes:
    if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token):
        return bytes([int(match[1], 16)])
    return token.replace(_SPACE, " ").encode("utf-8")


def _json(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, indent=2, sort_keys=True)


def _content(token: Any) -> str | None:
    """Returns the text of a special token, which files give bare or with its properties."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None


# Making them


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Reads a tokenizer from the files of a checkpoint.

    Args:
      path: a folder with ``tokenizer.json`` or ``tokenizer.model``, or one of these files (or
        another ``.json`` or ``.model``). ``tokenizer_config.json``, ``special_tokens_map.json`` and
        ``added_tokens.json`` beside it tell the special tokens.

    Raises:
      DataError: none there, another kind of file or of tokenizer, no token that ends a text, or a
        package is missing, which the message names.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        there = [path / name for name in (_Json.file, _Pieces.file) if (path / name).is_file()]
        if not there:
            listed = ", ".join(sorted(one.name for one in path.iterdir())[:20]) or "nothing"
            raise DataError(f"{path}: expected tokenizer.json or tokenizer.model, found {listed}")
        path = there[0]
    if path.suffix not in (".json", ".model") or not path.is_file():
        raise DataError(
            "tokenizer: expected a folder with tokenizer.json or tokenizer.model, or such a file, "
            f"got {brief(str(path))}"
        )
    content, folder = path.read_bytes(), path.parent
    settings = {
        **_read_settings(folder / "special_tokens_map.json"),
        **{
            k: v
            for k, v in _read_settings(folder / "tokenizer_config.json").items()
            if v is not None
        },
    }
    if path.suffix == ".json":
        return Tokenizer(_Json(content, str(path)), settings, str(path))
    added: dict[str, int] = dict(_read_settings(folder / "added_tokens.json"))
    for number, one in settings.get("added_tokens_decoder", {}).items():
        added.setdefault(str(_content(one)), int(number))
    core = _Pieces(content, added, str(path))
    named = {"bos_token": core._inner.bos_id(), "eos_token": core._inner.eos_id()}
    own = {key: core._inner.id_to_piece(n) for key, n in named.items() if n >= 0}
    return Tokenizer(core, {**own, **settings}, str(path))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON, got {sentence(error)}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected an object, got a {type(found).__name__}")
    return found


def train_tokenizer(texts: Sequence[str], size: int) -> Tokenizer:
    """Trains byte-pair encoding on bytes: every text can be encoded, and decoded unchanged.

    The same texts give the same tokenizer. Its special tokens are ``PAD``, ``BOS`` and ``EOS``.

    Args:
      size: ``V``, tokens at most, of which 259 are the bytes and the special ones; fewer where
        the texts have no more pairs that are met twice.

    Raises:
      DataError: no texts, fewer than 259 tokens, or the package is missing.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 259:
        raise DataError(f"size: expected at least 259 tokens, 256 bytes and 3 others, got {size!r}")
    if isinstance(texts, str) or not any(texts):
        raise DataError(f"texts: expected a sequence of texts to train on, got {brief(texts)}")
    library = _library("tokenizers", "train_tokenizer")
    inner = library.Tokenizer(library.models.BPE())
    inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, special_tokens=[PAD, BOS, EOS], show_progress=False,
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    inner.train_from_iterator(texts, trainer)
    # as those who read the files elsewhere put the begin before every text
    inner.post_processor = library.processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, inner.token_to_id(BOS))]
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
    }
    content = inner.to_str(pretty=True).encode("utf-8")
    return Tokenizer(_Json(content, "train_tokenizer"), settings, "train_tokenizer")


def check_fits(tokenizer: Tokenizer, vocab: int) -> None:
    """Raises a :class:`DataError` unless a model of ``vocab`` tokens knows all of the tokenizer's.

    More is no fault: checkpoints fill their embedding up to a round number.
    """
    if tokenizer.size > vocab:
        raise DataError(
            f"tokenizer: expected at most {vocab} tokens, the vocabulary of the model, "
            f"got {tokenizer.size}"
        )


# Words of tokens

# runs with single hyphens, apostrophes and points inside; a possessive 's stands by itself, so
# that a name is one word with and without it
_WORD = r"\w+(?:(?!['\u2019]s\b)[-'\u2019.]\w+)*|['\u2019]s\b|[^\w\s]+"


def offsets_of(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> tuple[str, np.ndarray]:
    """Returns the text of tokens, and where in it each token stands.

    Returns:
      The text, and ``int [T, 2]``, first character and the one behind the last of each token;
      those that share a character all have it, special tokens have none. Bytes that are no part
      of a character are characters of their own, lone surrogates.
    """
    parts = tokenizer.token_bytes(ids)
    text = b"".join(parts).decode("utf-8", "surrogateescape")
    widths = [len(character.encode("utf-8", "surrogateescape")) for character in text]
    # the character of each byte, and the one behind the last
    characters = np.append(np.repeat(np.arange(len(text)), widths), len(text))
    ends = np.cumsum([len(part) for part in parts], dtype=int)
    starts = np.append(0, ends)[:-1]
    last = np.where(ends > starts, characters[np.maximum(ends - 1, 0)] + 1, characters[starts])
    return text, np.stack([characters[starts], last], axis=1).reshape(-1, 2)


def words_of(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> list[tuple[str, list[int]]]:
    """Merges sub-words to words.

    Words are runs of letters and digits, with single hyphens, apostrophes and points inside; the
    ``'s`` behind a name, and what else is no space, such as ``"?"``, are words too. A token
    belongs to the word that its first character other than a space is of; special tokens and
    spaces belong to none.

    Args:
      ids: ``T`` tokens.

    Returns:
      Each word in order, with the places of its tokens, from 0 to ``T - 1``. A word within a
      token that began with an earlier one has no places of its own.
    """
    text, spans = offsets_of(tokenizer, ids)
    found = [(match.start(), match.end(), match[0]) for match in re.finditer(_WORD, text)]
    places: list[list[int]] = [[] for _ in found]
    starts = np.array([start for start, _, _ in found], int)
    for place, (start, end) in enumerate(spans):
        first = next((at for at in range(start, end) if not text[at].isspace()), None)
        if first is not None:
            places[int(np.searchsorted(starts, first, side="right")) - 1].append(place)
    return [(word, own) for (_, _, word), own in zip(found, places, strict=True)]


# Questions and answers


class Template(NamedTuple):
    """Form of a prompt with its answer.

    Attributes:
      text: with ``{question}`` and, at its end, ``{answer}``.
      end: the token behind the answer; ``""``: the tokenizer's end.
    """

    text: str
    end: str = ""


_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
TEMPLATES: dict[str, Template] = {
    "plain": Template("Question: {question}\nAnswer: {answer}"),
    "llama2": Template("[INST] {question} [/INST] {answer}"),
    "llama3": Template(
        f"{_HEADER.format('user')}{{question}}<|eot_id|>{_HEADER.format('assistant')}{{answer}}",
        "<|eot_id|>",
    ),
    "mistral": Template("[INST] {question} [/INST] {answer}"),
    "qwen": Template(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{question}"
        "<|im_end|>\n<|im_start|>assistant\n{answer}",
        "<|im_end|>",
    ),
    "vicuna": Template("USER: {question} ASSISTANT: {answer}"),
}
"""Templates by name; the chat templates are those of the models without a system's message,
but for ``qwen``, which always has one. The token before every text is the tokenizer's."""


def find_template(template: str | Template) -> Template:
    """Returns a template by its name, or one of one's own.

    Args:
      template: a name of :data:`TEMPLATES`, or a text with ``{question}`` and, at its end,
        ``{answer}``; where that is left out, the answer stands there behind a space.

    Raises:
      DataError: neither of them.
    """
    if isinstance(template, str):
        if template in TEMPLATES:
            return TEMPLATES[template]
        template = Template(template)
    text = template.text
    if "{answer}" not in text:
        text += "{answer}" if text[-1:].isspace() else " {answer}"
    before = text.removesuffix("{answer}")
    if before.count("{question}") != 1 or "{answer}" in before:
        raise DataError(
            f"template: expected one of {', '.join(TEMPLATES)}, or a text with {{question}} and, "
            f"at its end, {{answer}}, got {brief(template.text)}"
            f"{did_you_mean(template.text, TEMPLATES)}"
        )
    return template._replace(text=text)


def stop_token(tokenizer: Tokenizer, template: str | Template = "plain") -> int:
    """Returns the token that ends an answer in a template.

    Raises:
      DataError: the tokenizer does not have it.
    """
    end = find_template(template).end
    return tokenizer.number(end) if end else tokenizer.eos


def encode_prompts(
    tokenizer: Tokenizer, questions: Sequence[str], template: str | Template = "plain"
) -> list[list[int]]:
    """Returns the tokens of prompts, each one that of :func:`encode_pairs` before the answer.

    Raises:
      DataError: an unknown template, or one whose special tokens the tokenizer does not have.
    """
    prompt, _ = _parts(tokenizer, template)
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    # not format, which would read braces in a question
    return [begin + tokenizer.encode(prompt.replace("{question}", one)) for one in questions]


def encode_pairs(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    answers: Sequence[Any],
    template: str | Template = "plain",
    length: int | None = None,
) -> dict[str, np.ndarray]:
    """Encodes questions with their answers, right-padded.

    Prompt and answer are encoded apart, so that the tokens of a prompt are those that generation
    starts with; a space between them goes with the answer.

    Args:
      questions: ``N`` texts.
      answers: ``N`` texts, or ``N`` lists of texts, ``P`` at most; an empty text is no answer.
      template: see :func:`find_template`.
      length: ``T``; default: that of the longest pair.

    Returns:
      ``"tokens"`` ``int32 [N, T]`` or ``[N, P, T]``; ``"mask"`` bool, true where a token is real;
      ``"answer"`` bool, true on the answer and the token that ends it, but never at the first
      place. Where there is no answer the prompt stands alone, and ``"answer"`` is false.

    Raises:
      DataError: a pair longer than ``length``, or see :func:`encode_prompts`.
    """
    if len(questions) != len(answers):
        raise DataError(f"answers: expected {len(questions)}, one a question, got {len(answers)}")
    nested = any(not isinstance(one, str) for one in answers)
    width = max([1, *map(len, answers)]) if nested else 1
    lists = [[*one, *[""] * (width - len(one))] if nested else [one] for one in answers]
    _, gap = _parts(tokenizer, template)
    end, rows = stop_token(tokenizer, template), []
    prompts = encode_prompts(tokenizer, questions, template)
    for prompt, own in zip(prompts, lists, strict=True):
        for answer in own:
            behind = [*tokenizer.encode_after(gap + answer), end] if answer else []
            rows.append((prompt, behind))
    lengths = [len(prompt) + len(behind) for prompt, behind in rows]
    longest = max([1, *lengths])
    if length is not None and longest > length:
        at = int(np.argmax(lengths))
        over = sum(one > length for one in lengths)
        raise DataError(
            f"pairs: expected at most {length} tokens, the context, got {longest} in pair "
            f"{at // width}, {brief(questions[at // width])} ({over} such texts)"
        )
    shape = (len(rows), longest if length is None else length)
    tokens = np.full(shape, tokenizer.pad, np.int32)
    mask, answer_mask = np.zeros(shape, bool), np.zeros(shape, bool)
    for row, (prompt, behind) in enumerate(rows):
        tokens[row, : lengths[row]] = [*prompt, *behind]
        mask[row, : lengths[row]] = True
        answer_mask[row, max(len(prompt), 1) : lengths[row]] = True
    found = {"tokens": tokens, "mask": mask, "answer": answer_mask}
    if nested:
        return {name: one.reshape(-1, width, shape[1]) for name, one in found.items()}
    return found


_ANSWERS = {"": "answer", "paraphrase": "paraphrased_answer", "perturbed": "perturbed_answer"}


def encode_examples(
    tokenizer: Tokenizer,
    splits: Sequence[Mapping[str, np.ndarray]],
    template: str | Template = "plain",
    length: int | None = None,
) -> list[dict[str, Any]]:
    """Encodes the texts of data sets, with their variants, at one length for all.

    Args:
      splits: of each split the ``x`` of :func:`jaxunlearn.data.texts.pairs_dataset`.
      template, length: see :func:`encode_pairs`.

    Returns:
      Of each split ``"tokens"``, ``"mask"``, ``"answer"`` ``[N, T]``, and ``"variants"``: the same
      of ``"paraphrase"``, ``[N, T]``, and of ``"perturbed"``, ``[N, P, T]``, where the texts have
      them. All stand behind the question itself, as TOFU judges them; ``"answer"`` is false
      throughout where an example has no such answer.

    Raises:
      DataError: see :func:`encode_pairs`.
    """
    found: list[dict[str, Any]] = []
    for x in splits:
        texts = {name: to_texts(leaf) for name, leaf in x.items()}
        found.append(
            {
                name: encode_pairs(tokenizer, texts["question"], texts[field], template, length)
                for name, field in _ANSWERS.items()
                if field in texts
            }
        )
    widest = max(one["tokens"].shape[-1] for parts in found for one in parts.values())
    padded = [
        {key: _widened(one, widest, tokenizer.pad) for key, one in parts.items()} for parts in found
    ]
    return [{**parts.pop(""), "variants": parts} for parts in padded]


def _widened(texts: Mapping[str, np.ndarray], length: int, pad: int) -> dict[str, np.ndarray]:
    """Fills rows up to ``length``."""
    return {
        name: np.pad(
            one,
            [(0, 0)] * (one.ndim - 1) + [(0, length - one.shape[-1])],
            constant_values=pad if name == "tokens" else False,
        )
        for name, one in texts.items()
    }


def _parts(tokenizer: Tokenizer, template: str | Template) -> tuple[str, str]:
    """Returns a prompt with ``{question}`` in it, and the space between prompt and answer."""
    whole = find_template(template)
    for special in re.findall(r"<\|[^|<>]+\|>", whole.text):
        tokenizer.number(special)
    before = whole.text.removesuffix("{answer}")
    prompt = before.rstrip(" ")
    return prompt, before[len(prompt) :]
