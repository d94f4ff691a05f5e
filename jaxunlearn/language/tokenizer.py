"""Tokenizers: read from the files of a checkpoint, or trained; and the words of tokens.

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
from typing import Any

import numpy as np

from jaxunlearn.core.errors import DataError, brief, sentence
from jaxunlearn.core.files import write_bytes, write_text

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
