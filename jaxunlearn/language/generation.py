"""Texts that a decoder writes behind prompts: greedy, with a temperature, or from a nucleus.

Source of the nucleus: Holtzman et al. 2020 (arXiv 1904.09751).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.core.errors import (
    ConfigError,
    DataError,
    expect,
    expect_at_least,
    expect_counts,
    expect_shares,
)
from jaxunlearn.core.types import Inputs, Key, LanguageModel, Variables
from jaxunlearn.language.pairs import Template, decode_answers, encode_pairs, stop_token
from jaxunlearn.language.tokenizer import Tokenizer, check_fits


def generate(
    model: LanguageModel,
    variables: Variables,
    x: Inputs,
    key: Key,
    *,
    most: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_token: int | None = None,
) -> jax.Array:
    """Writes tokens behind prompts, all rows at once, in one compiled program.

    A token is drawn from ``softmax(logits / temperature)``, of which the most probable tokens
    that hold ``top_p`` together are kept. The program ends when every row has; a second call
    with equal shapes, whatever temperature and nucleus above their limits, compiles nothing.

    Args:
      x: ``{"tokens": int [B, T], "mask": bool [B, T]}``, prompts padded on any side.
      key: for drawing; not read where the temperature is 0.
      most: tokens to be written.
      temperature: 0 for the most probable token.
      top_p: share of the probability that the tokens drawn from hold; 1 for all tokens.
      stop_token: ends a row; ``None``: none does.

    Returns:
      Tokens ``int32 [B, most]``; behind a row's end, and at it, ``stop_token``.

    Raises:
      ConfigError: a prompt that is, with what is to be written, longer than the context.
      DataError: something else than tokens with their mask, a prompt without tokens.
      ValueError: numbers out of range.
    """
    expect("model", model, LanguageModel, "; ju.language.build_decoder makes one")
    expect_counts(most=most)
    expect_at_least(0, temperature=temperature)
    expect_shares(top_p=top_p)
    if stop_token is not None and not 0 <= stop_token < model.shape.vocabulary:
        raise ValueError(
            f"stop_token: expected a token below {model.shape.vocabulary}, got {stop_token}"
        )
    _expect_prompts(x)
    mask = x["mask"]
    _expect_room(mask, most, model.shape.context)
    return _written(
        model,
        variables,
        {"tokens": x["tokens"], "mask": mask},
        key,
        jnp.float32(temperature),
        jnp.float32(top_p),
        jnp.int32(0 if stop_token is None else stop_token),
        most=int(most),
        draws=temperature > 0,
        nucleus=temperature > 0 and top_p < 1,
        stops=stop_token is not None,
    )


def write_answers(
    model: LanguageModel,
    variables: Variables,
    tokenizer: Tokenizer,
    questions: Sequence[str],
    key: Key | None = None,
    *,
    most: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    template: str | Template = "plain",
) -> list[str]:
    """Returns the answers that a model writes to questions, all at once; see :func:`generate`.

    Args:
      tokenizer: of the model.
      questions: ``N`` texts.
      key: for drawing; ``None`` where the temperature is 0.
      template: of a prompt, a name in :data:`~jaxunlearn.language.pairs.TEMPLATES` or a text with
        ``{question}``.

    Raises:
      ConfigError, ValueError: see :func:`generate`.
      DataError: no questions, an unknown template, a tokenizer of more tokens than the model has.
    """
    if isinstance(questions, str) or not len(questions):
        told = "none" if not questions else "a single text"
        raise DataError(f"questions: expected a list of texts, got {told}")
    if key is None and temperature > 0:
        raise ValueError("key: expected a key to draw tokens by, got None")
    expect("model", model, LanguageModel, "; ju.language.build_decoder makes one")
    check_fits(tokenizer, model.shape.vocabulary)
    stop = stop_token(tokenizer, template)
    asked = encode_pairs(tokenizer, questions, [""] * len(questions), template)
    written = generate(
        model, variables, asked, jax.random.key(0) if key is None else key, most=most,
        temperature=temperature, top_p=top_p, stop_token=stop,
    )  # fmt: skip
    return [text.strip() for text in decode_answers(tokenizer, np.asarray(written), stop)]


def _expect_prompts(x: Any) -> None:
    if not isinstance(x, Mapping) or not {"tokens", "mask"} <= set(x):
        raise DataError(
            "x: expected tokens and mask, as ju.language.encode_pairs gives them, got "
            f"{sorted(x) if isinstance(x, Mapping) else type(x).__name__}; "
            "ju.language.write_answers takes questions"
        )


def _expect_room(mask: Any, most: int, context: int) -> None:
    if isinstance(mask, jax.core.Tracer):
        longest = mask.shape[1]
    else:
        lengths = np.sum(np.asarray(mask), axis=1)
        if not np.all(lengths > 0):
            raise DataError(
                f"x: expected prompts of one token or more, got none in row {np.argmin(lengths)}"
            )
        longest = int(np.max(lengths, initial=0))
    if longest + most > context:
        raise ConfigError(
            f"x: expected a prompt and {most} tokens behind it within the model's context of "
            f"{context}, got a prompt of {longest} tokens"
        )


@functools.partial(jax.jit, static_argnames=("model", "most", "draws", "nucleus", "stops"))
def _written(
    model: LanguageModel,
    variables: Variables,
    x: Inputs,
    key: Key,
    temperature: jax.Array,
    top_p: jax.Array,
    stop_token: jax.Array,
    *,
    most: int,
    draws: bool,
    nucleus: bool,
    stops: bool,
) -> jax.Array:
    # prompts end in one column, so that what is written begins in one
    order = jnp.argsort(x["mask"], axis=1, stable=True)
    tokens = jnp.take_along_axis(x["tokens"], order, axis=1).astype(jnp.int32)
    mask = jnp.take_along_axis(x["mask"], order, axis=1).astype(bool)
    batch, length = tokens.shape
    cache = model.empty_cache(batch, length - 1 + most)
    if length > 1:  # logits of this part are not computed, as nobody reads them
        _, cache = model.extend(variables, cache, {"tokens": tokens[:, :-1], "mask": mask[:, :-1]})

    def pick(logits: jax.Array, step: jax.Array) -> jax.Array:
        if not draws:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits, own = logits / temperature, jax.random.fold_in(key, step)
        if not nucleus:
            return jax.random.categorical(own, logits).astype(jnp.int32)
        falling, places = jax.lax.top_k(logits, logits.shape[-1])
        shares = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        kept = jnp.where(before < top_p, falling, -jnp.inf)
        chosen = jax.random.categorical(own, kept)
        return jnp.take_along_axis(places, chosen[:, None], axis=1)[:, 0].astype(jnp.int32)

    def goes_on(state: Any) -> jax.Array:
        step, ended = state[0], state[-1]
        return (step < most) & ~jnp.all(ended)

    def write(state: Any) -> Any:
        step, cache, last, seen, written, ended = state
        logits, cache = model.extend(variables, cache, {"tokens": last, "mask": seen})
        chosen = pick(logits[:, 0], step)
        if stops:
            chosen = jnp.where(ended, stop_token, chosen)
            ended = ended | (chosen == stop_token)
        written = jax.lax.dynamic_update_slice(
            written, chosen[:, None], (jnp.zeros_like(step), step)
        )
        return step + 1, cache, chosen[:, None], jnp.ones_like(seen), written, ended

    state = (
        jnp.zeros((), jnp.int32),
        cache,
        tokens[:, -1:],
        mask[:, -1:],
        jnp.full((batch, most), stop_token, jnp.int32),
        jnp.zeros(batch, bool),
    )
    written: jax.Array = jax.lax.while_loop(goes_on, write, state)[4]
    return written
