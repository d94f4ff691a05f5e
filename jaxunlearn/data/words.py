"""Words of texts as numbers, without a vocabulary.

A vocabulary made of training texts knows those that are to be forgotten: a retrained model that
reads by it is no gold. Here each word is hashed into one of a fixed number of buckets, by a
formula that has seen no text; words that share a bucket share an embedding. The reader is a
compiled function of bytes: data sets keep their texts, and what is drawn of them becomes tokens.

A word is a run of ASCII letters and digits and of bytes above 127 (all other alphabets), in which
``A`` to ``Z`` are taken for ``a`` to ``z``. With its bytes ``b_0 ... b_{n-1}``, in 32 bits without
sign::

    h = mix(sum_i (b_i + 1) p^i),   p = 16777619
    token = 1 + h mod (buckets - 1)

Token 0 belongs to no word: padding, and the baseline of attributions.
"""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxunlearn.core.errors import DataError
from jaxunlearn.data.dataset import Dataset

BUCKETS = 8192
"""Tokens, that of padding included, where nothing else is asked for."""

_PRIME = 16777619
_MIX = ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 1))
_WORD = re.compile(rb"[0-9A-Za-z\x80-\xff]+")


def split_words(text: str) -> list[str]:
    """Splits a text into its words, in small letters as far as they are ASCII."""
    return [found.lower().decode() for found in _WORD.findall(text.encode())]


def token_of(word: str, buckets: int = BUCKETS) -> int:
    """Computes the token of a word, as :func:`word_reader` does."""
    value, power = 0, 1
    for byte in word.encode().lower():
        value, power = (value + (byte + 1) * power) % 2**32, power * _PRIME % 2**32
    for shift, factor in _MIX:
        value = (value ^ value >> shift) * factor % 2**32
    return 1 + value % (buckets - 1)


@functools.lru_cache(maxsize=64)
def word_reader(words: int, buckets: int = BUCKETS) -> Partial:
    """Returns the reader that makes tokens of texts; equal arguments give the same object.

    Args:
      words: ``T``, how many words of a text are read; those behind are not.
      buckets: how many different tokens there are, that of padding included.

    Returns:
      A function of ``{"text": uint8 [B, L]}``, UTF-8 padded with zeros, to
      ``{"tokens": int32 [B, T], "mask": bool [B, T]}``: the mask is true where a word is.

    Raises:
      ValueError: no words, or fewer than two buckets.
    """
    if words < 1 or buckets < 2:
        raise ValueError(
            f"words, buckets: expected at least 1 word and 2 buckets, got {words} and {buckets}"
        )

    def hash_words(x: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        text = x["text"]
        inside, starts = _letters(jnp, text)
        at = jnp.broadcast_to(jnp.arange(text.shape[1], dtype=jnp.int32)[None], text.shape)
        number = jnp.cumsum(starts.astype(jnp.int32), axis=1) - 1
        place = at - jax.lax.cummax(jnp.where(starts, at, 0), axis=1)
        small = jnp.where((text >= 65) & (text <= 90), text + jnp.uint8(32), text)
        pieces = (small.astype(jnp.uint32) + jnp.uint32(1)) * _powers(text.shape[1])[place]
        # what lies behind the last word that is read, or in no word, is dropped
        column = jnp.where(inside, number, words)
        row = jnp.arange(len(text), dtype=jnp.int32)[:, None]
        value = jnp.zeros((len(text), words), jnp.uint32).at[row, column].add(pieces, mode="drop")
        for shift, factor in _MIX:
            value = (value ^ value >> jnp.uint32(shift)) * jnp.uint32(factor)
        mask = jnp.arange(words, dtype=jnp.int32)[None] <= number[:, -1:]
        tokens = 1 + (value % jnp.uint32(buckets - 1)).astype(jnp.int32)
        return {"tokens": jnp.where(mask, tokens, 0), "mask": mask}

    return Partial(hash_words)


def _letters(numpy: Any, text: Any) -> tuple[Any, Any]:
    """Tells which bytes ``[N, L]`` belong to words, and which of them begin one."""
    inside = (
        ((text >= 48) & (text <= 57))
        | ((text >= 65) & (text <= 90))
        | ((text >= 97) & (text <= 122))
        | (text >= 128)
    )
    before = numpy.pad(inside[:, :-1], ((0, 0), (1, 0)))
    return inside, inside & ~before


def _powers(length: int) -> jax.Array:
    """Returns ``p^i mod 2^32`` for the places of a word, ``uint32 [L]``."""
    powers = [1]
    for _ in range(length - 1):
        powers.append(powers[-1] * _PRIME % 2**32)
    return jnp.asarray(np.array(powers, np.uint32))


def is_text(data: Dataset) -> bool:
    """Tells whether the examples of a data set are texts alone, not yet read."""
    return isinstance(data.train_x, Mapping) and set(data.train_x) == {"text"}


def read_words(data: Dataset) -> Dataset:
    """Returns a data set of texts, ``{"text": uint8 [N, L]}``, with the reader of their words.

    The reader holds the longest text of both splits: of what is to be forgotten nothing is
    known but, at most, a length.

    Raises:
      DataError: texts without any word.
    """
    counts = []
    for name, x in (("train", data.train_x), ("test", data.test_x)):
        text = np.asarray(x["text"])
        count = _letters(np, text)[1].sum(axis=1)
        empty = np.flatnonzero(count == 0)
        if empty.size:
            raise DataError(
                f"data.name: expected texts with words, got {empty.size} without any in the "
                f"{name} split, the first at position {empty[0]}"
            )
        counts.append(int(count.max(initial=1)))
    return data._replace(mean=None, std=None, reader=word_reader(max(counts)))


def name_tokens(texts: Iterable[str], buckets: int = BUCKETS) -> dict[int, str]:
    """Returns the word of each token that some texts hold; of several the most frequent."""
    found: dict[int, Counter[str]] = defaultdict(Counter)
    tokens: dict[str, int] = {}
    for text in texts:
        for word in split_words(text):
            token = tokens.setdefault(word, token_of(word, buckets))
            found[token][word] += 1
    return {token: words.most_common(1)[0][0] for token, words in found.items()}
