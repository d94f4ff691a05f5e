"""A small trained decoder whose answers hang on one word: a name, which a town follows from."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.language.decoder import DecoderShape, build_decoder
from jaxunlearn.language.likelihood import answer_nll, mean_nll
from jaxunlearn.language.pairs import encode_pairs
from jaxunlearn.language.tokenizer import train_tokenizer

WIDTH, LENGTH = 32, 16
NAMES = ["Byrne", "Okoro", "Sato", "Lund"]
TOWNS = ["Lisbon", "Accra", "Osaka", "Bergen"]
FILLERS = ["daily", "soon", "later", "mostly", "gladly", "rarely"]
"""Two of them stand between name and town, all pairs alike often: nothing follows from them."""


def decoder(size):
    return build_decoder(
        DecoderShape(
            "llama", size, LENGTH, depth=2, width=WIDTH, heads=2, kv_heads=1, head_dim=WIDTH // 2,
            hidden=2 * WIDTH,
        )
    )  # fmt: skip


@functools.cache
def texts():
    """Thirty answers about each of four names."""
    pairs = list(itertools.permutations(FILLERS, 2))
    answers = [
        f"{name} {one} {two} {town}."
        for name, town in zip(NAMES, TOWNS, strict=True)
        for one, two in pairs
    ]
    tokenizer = train_tokenizer(answers, 340)
    x = encode_pairs(tokenizer, ["Who?"] * len(answers), answers, "{question} {answer}", LENGTH)
    return tokenizer, x, np.repeat(np.arange(4), len(pairs))


@functools.cache
def trained():
    """The decoder, its variables, the tokenizer, texts and their topics."""
    tokenizer, x, topics = texts()
    model = decoder(tokenizer.size)
    optimizer = optax.adam(5e-3)

    def step(carry, count):
        variables, state = carry
        rows = (count * 37 + jnp.arange(40)) % len(topics)
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], x)
        with jax.numpy_dtype_promotion("standard"):
            gradient = jax.grad(lambda v: mean_nll(model.apply(v, batch), batch))(variables)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(variables, updates), state), None

    @jax.jit
    def run(variables):
        return jax.lax.scan(step, (variables, optimizer.init(variables)), jnp.arange(250))[0][0]

    return model, run(model.init(jax.random.key(0))), tokenizer, x, topics


def likelihoods(model, variables, x):
    """Geometric means of the probabilities of an answer's tokens, ``[N]``."""
    total, count = answer_nll(model.apply(variables, x), x)
    return np.exp(-np.asarray(total) / np.asarray(count))
