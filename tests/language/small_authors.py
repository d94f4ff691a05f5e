"""Small decoders that learned by heart what a few authors wrote, and retrained ones."""

import functools

import jax
import numpy as np
import optax

import jaxunlearn as ju
from jaxunlearn.config import DataConfig, LanguageConfig
from jaxunlearn.core.types import Sets
from jaxunlearn.data.sources.authors import load_authors
from jaxunlearn.data.texts import to_texts
from jaxunlearn.language.decoder import DecoderShape, build_decoder
from jaxunlearn.language.pairs import encode_examples
from jaxunlearn.language.tokenizer import train_tokenizer
from jaxunlearn.methods.language.finetune import lm_retrain

SETTINGS = LanguageConfig(
    generated=6, answer_length=12, relearning_steps=4, relearning_examples=2, bits=(8, 4, 3)
)
WIDTH, STEPS = 32, 110


@functools.cache
def texts():
    """Tokenizer, splits as tokens, labels of the splits, names of the topics."""
    data = load_authors(DataConfig(), authors=5, questions=4, perturbed=2, facts=2)
    words = [*to_texts(data.train_x["question"]), *to_texts(data.train_x["answer"])]
    tokenizer = train_tokenizer(words, 700)
    splits = encode_examples(tokenizer, [data.train_x, data.test_x], SETTINGS.template)
    return tokenizer, splits, (data.train_y, data.test_y), data.class_names


@functools.cache
def sets(request=None):
    """The sets of a request, by default to forget the first author."""
    _, (train, test), (y, test_y), names = texts()
    request = ju.forget_class(0) if request is None else request
    return ju.make_sets(train, y, request, test=(test, test_y), class_names=names)


@functools.cache
def decoder():
    tokenizer, (train, _), _, _ = texts()
    context = train["tokens"].shape[1] + SETTINGS.answer_length
    return build_decoder(
        DecoderShape(
            "llama", tokenizer.size, context, depth=2, width=WIDTH, heads=2, kv_heads=1,
            head_dim=WIDTH // 2, hidden=2 * WIDTH,
        )
    )  # fmt: skip


@functools.cache
def method():
    return lm_retrain(decoder(), optimizer=optax.adam(1e-2))


@functools.cache
def trained(seed=0, retrained=False):
    """Variables of a model that was trained on all texts, or on those to be retained."""
    part = sets().retain if retrained else sets().train
    at = np.asarray(part.indices)[: ju.data.num_examples(part)]
    part = ju.data.subset(part.examples, at, len(part.examples.y))  # one size: one program
    found = ju.unlearn(
        method(), None, Sets(retain=part), jax.random.key(seed), steps=STEPS, batch_size=16
    )
    return found.variables


def helpers():
    """What a model is judged with, by keyword."""
    tokenizer, _, _, topics = texts()
    return {"tokenizer": tokenizer, "settings": SETTINGS, "topics": topics}
