"""Small problems that every method must cope with."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

import jaxunlearn as ju
from jaxunlearn.config import TrainConfig
from jaxunlearn.core.types import Examples, Subset
from jaxunlearn.gan import Guide
from jaxunlearn.models import build_gan

NUM_CLASSES = 4
SHAPE = (6, 6, 1)
ATTRIBUTES = str(Path(__file__).parent / "toy_attributes.toml")


@functools.cache
def blobs():
    """Four kinds of noisy images; classes of different sizes; uint8."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(40, 215, (NUM_CLASSES, *SHAPE))

    def split(counts):
        y = np.repeat(np.arange(NUM_CLASSES), counts)
        y = rng.permutation(y).astype(np.int32)
        x = centres[y] + rng.normal(0, 30, (len(y), *SHAPE))
        return jnp.asarray(np.clip(x, 0, 255).astype(np.uint8)), jnp.asarray(y)

    return split((30, 50, 40, 60)), split((12, 9, 10, 11)), split((15, 15, 15, 15))


def sets(request=None, gan=False):
    """The sets of a request on :func:`blobs`; for GANs normalised to lie between -1 and 1."""
    train, unseen, test = blobs()
    request = ju.forget_class(1) if request is None else request
    middle = {"mean": 127.5, "std": 127.5} if gan else {}
    return ju.make_sets(
        *train, request, unseen=unseen, test=test, num_classes=NUM_CLASSES, **middle
    )


def exact_subset(x, y, size=None):
    """A set whose inputs and labels go to the network as they are, in double precision too."""
    examples = Examples(jnp.asarray(x), jnp.asarray(y), Partial(_as_it_is))
    places = jnp.arange(len(y), dtype=jnp.int32)
    return Subset(examples, places, jnp.int32(len(y) if size is None else size))


def _as_it_is(x):
    return x


@functools.cache
def mlp():
    return ju.models.build("mlp", SHAPE, NUM_CLASSES, {"features": (24, 16)})


@functools.cache
def trained():
    """An MLP that knows all four kinds."""
    config = TrainConfig(epochs=15, batch_size=32, learning_rate=5e-3)
    return ju.train(mlp(), ju.whole(sets().forget.examples), jax.random.key(7), config=config)


@functools.cache
def cnn():
    """A small network with spatial kernels."""
    small = {"channels": (4, 8), "features": 8}
    return ju.models.build("cnn", SHAPE, NUM_CLASSES, small)


@functools.cache
def trained_cnn():
    """A network of images that knows all four kinds."""
    config = TrainConfig(epochs=15, batch_size=32, learning_rate=5e-3)
    return ju.train(cnn(), ju.whole(sets().forget.examples), jax.random.key(7), config=config)


@functools.cache
def gan(name="mlp_gan", **options):
    return build_gan(name, SHAPE, NUM_CLASSES, options or {"latent": 4, "features": (16,)})


@functools.cache
def trained_gan():
    """A GAN that draws all four kinds."""
    method = ju.gan_retrain(gan(), optimizer=optax.adam(2e-3, b1=0.5), r1=0.5, ema=0.95)
    everything = ju.Sets(retain=ju.whole(sets(gan=True).forget.examples))
    return ju.unlearn(method, None, everything, jax.random.key(4), steps=400, batch_size=32)


@functools.cache
def guide():
    """A classifier of what :func:`trained_gan` draws."""
    config = TrainConfig(epochs=15, batch_size=32, learning_rate=5e-3)
    everything = ju.whole(sets(gan=True).forget.examples)
    model = ju.models.build("mlp", SHAPE, NUM_CLASSES, {"features": (16,)})
    return Guide(model, ju.train(model, everything, jax.random.key(8), config=config).variables)


WORDS, TEXT, WIDTH, BLOCKS = 12, 8, 8, 2


def _word_init(key):
    draw = iter(jax.random.split(key, 16))

    def kernel(rows, columns):
        return {"kernel": jax.random.normal(next(draw), (rows, columns)) * rows**-0.5}

    def block():
        return {
            "attention": {"query": kernel(WIDTH, WIDTH), "value": kernel(WIDTH, WIDTH)},
            "mlp": {"down": kernel(WIDTH, WIDTH)},
        }

    params = {f"blocks_{n}": block() for n in range(BLOCKS)}
    params |= {"embedding": kernel(WORDS, WIDTH), "head": kernel(WIDTH, WORDS)}
    return {"params": params}


def _word_states(variables, hidden, mask):
    """Reads what stood before by its mean, in the place of attention."""
    params, states = variables["params"], [hidden]
    mask = mask[..., None].astype(hidden.dtype)
    for n in range(BLOCKS):
        own = params[f"blocks_{n}"]
        count = jnp.maximum(jnp.cumsum(mask, axis=1), 1)
        before = jnp.cumsum(hidden * mask, axis=1) / count
        gate = jax.nn.sigmoid(hidden @ own["attention"]["query"]["kernel"])
        hidden = hidden + gate * (before @ own["attention"]["value"]["kernel"])
        hidden = hidden + jnp.tanh(hidden) @ own["mlp"]["down"]["kernel"]
        states.append(hidden)
    return jnp.stack(states)


def _word_embed(variables, tokens):
    return variables["params"]["embedding"]["kernel"][tokens]


def _word_logits(variables, hidden, mask):
    return _word_states(variables, hidden, mask)[-1] @ variables["params"]["head"]["kernel"]


def _word_apply(variables, x):
    return _word_logits(variables, _word_embed(variables, x["tokens"]), x["mask"])


@functools.cache
def language_model():
    """A causal network of words that compiles at once, with the paths of a decoder."""
    return ju.core.types.LanguageModel(
        init=_word_init,
        apply=_word_apply,
        apply_train=lambda variables, x, key: (_word_apply(variables, x), variables),
        embed=_word_embed,
        apply_embedded=_word_logits,
        states=lambda variables, x: _word_states(
            variables, _word_embed(variables, x["tokens"]), x["mask"]
        ),
        empty_cache=lambda batch, length: None,
        extend=lambda variables, cache, x: (None, None),
        shape=(WORDS, TEXT, WIDTH, BLOCKS),
    )


class Numbers:
    """A tokenizer of texts that are numbers, and of any others by their letters."""

    pad, eos, specials = 0, 1, frozenset({0, 1})

    def encode_after(self, text):
        return [2 + ord(letter) % (WORDS - 2) for letter in text.strip()[:2]]

    encode = encode_after

    def decode(self, ids):
        return " ".join(str(one) for one in ids if one not in self.specials)

    def token_bytes(self, ids):
        return [b"" if one in self.specials else f" {one}".encode() for one in ids]


@functools.cache
def texts():
    """Questions of two to three words, padded answers of one to four, on four topics."""
    rng = np.random.default_rng(1)
    y = np.repeat(np.arange(NUM_CLASSES), (6, 10, 8, 12)).astype(np.int32)
    y = rng.permutation(y)

    def answered(begin, length):
        place = np.arange(TEXT)
        tokens = rng.integers(2, WORDS, (*begin.shape, TEXT)).astype(np.int32)
        tokens[..., 0] = 2 + y.reshape(-1, *[1] * (begin.ndim - 1)) * 2
        mask = place < (begin + length)[..., None]
        answer = mask & (place >= begin[..., None])
        return {"tokens": np.where(mask, tokens, 0), "mask": mask, "answer": answer}

    begin = rng.integers(2, 4, len(y))
    several = np.broadcast_to(begin[:, None], (len(y), 2))
    variants = {
        "paraphrase": answered(begin, rng.integers(1, 5, len(y))),
        "perturbed": answered(several, rng.integers(1, 5, several.shape)),
    }
    x = {**answered(begin, rng.integers(1, 5, len(y))), "variants": variants}
    return jax.tree.map(jnp.asarray, (x, y))


def text_sets(request=None):
    x, y = texts()
    request = ju.forget_class(1) if request is None else request
    return ju.make_sets(x, y, request, unseen=(x, y), test=(x, y), num_classes=NUM_CLASSES)


VOCABULARY = 40


@functools.cache
def questions():
    """Three splits of labelled texts of three to eight words, two of which tell the class."""
    rng = np.random.default_rng(2)

    def split(counts):
        y = rng.permutation(np.repeat(np.arange(NUM_CLASSES), counts)).astype(np.int32)
        tokens = rng.integers(20, VOCABULARY, (len(y), TEXT))
        tokens[:, :2] = 1 + 4 * y[:, None] + rng.integers(0, 4, (len(y), 2))
        mask = np.arange(TEXT) < rng.integers(3, TEXT + 1, len(y))[:, None]
        tokens = np.where(mask, tokens, 0).astype(np.int32)
        return {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}, jnp.asarray(y)

    return split((30, 50, 40, 60)), split((12, 9, 10, 11)), split((15, 15, 15, 15))


def question_sets(request=None):
    train, unseen, test = questions()
    request = ju.forget_class(1) if request is None else request
    return ju.make_sets(*train, request, unseen=unseen, test=test, num_classes=NUM_CLASSES)


@functools.cache
def text_classifier(name="text_bag", **options):
    like = ju.data.inputs_like(question_sets().forget, 2)
    small = {"vocabulary": VOCABULARY, "width": 8, "features": (16,), **options}
    return ju.models.build(name, like, NUM_CLASSES, small)


@functools.cache
def trained_on_questions(name="text_bag", **options):
    """A classifier of texts that knows all four kinds."""
    config = TrainConfig(epochs=15, batch_size=32, learning_rate=2e-2)
    everything = ju.whole(question_sets().forget.examples)
    return ju.train(text_classifier(name, **options), everything, jax.random.key(7), config=config)


def _cascade(**options):
    small = {"pool": 256, "latents": 16, "references": 32, "inversion_steps": 5, "steps": 4}
    return lambda m: ju.cascade(m, guide=guide(), r1=0.1, r1_every=2, **{**small, **options})


METHODS = {
    "retrain": (lambda m: ju.retrain(m, optimizer=optax.adam(3e-3)), {"steps": 6}),
    "finetune": (lambda m: ju.finetune(m), {"steps": 6}),
    "gradient_ascent": (lambda m: ju.gradient_ascent(m), {"steps": 6}),
    "random_label": (lambda m: ju.random_label(m), {"steps": 6}),
    "bad_teacher": (lambda m: ju.bad_teacher(m), {"steps": 6}),
    "scrub": (lambda m: ju.scrub(m, rewind=True, steps=6), {"steps": 6}),
    "duck": (lambda m: ju.duck(m), {"steps": 6}),
    "pbu": (lambda m: ju.pbu(m), {"steps": 6}),
    "neggrad_plus": (lambda m: ju.neggrad_plus(m), {"steps": 6}),
    "salun": (lambda m: ju.salun(m), {"steps": 6}),
    "l1_sparse": (lambda m: ju.l1_sparse(m, steps=6), {"steps": 6}),
    "boundary_shrink": (lambda m: ju.boundary_shrink(m), {"steps": 6}),
    "boundary_expand": (lambda m: ju.boundary_expand(m), {"steps": 6}),
    "cf_k": (lambda m: ju.cf_k(m, layers=2), {"steps": 6}),
    "eu_k": (lambda m: ju.eu_k(m, layers=2), {"steps": 6}),
    "msg": (lambda m: ju.msg(m), {"steps": 6}),
    "ct": (lambda m: ju.ct(m), {"steps": 3}),
    "unsir": (
        lambda m: ju.unsir(m, optimizer=optax.adam(1e-3), noises=32, noise_steps=8, steps=6),
        {"steps": 6},
    ),
    "dlfd": (lambda m: ju.dlfd(m, noise_steps=3, steps=6), {"steps": 6}),
    "just_in_time": (lambda m: ju.just_in_time(m, noises=4), {}),
    "attack_loss": (lambda m: ju.attack_loss(m), {"steps": 6}),
    "gkt": (lambda m: ju.gkt(m, student_steps=2, latent=4, width=8), {"steps": 6}),
    "condense": (
        lambda m: ju.condense(
            m, optimizer=optax.sgd(0.01), condense_steps=3, rounds=2, opening=1, steps=6
        ),
        {"steps": 6},
    ),
    "sisa": (
        lambda m: ju.sisa(m, optimizer=optax.adam(3e-3), shards=2, slices=2, steps=6),
        {"steps": 6},
    ),
    "ssd": (lambda m: ju.ssd(m), {}),
    "loss_free_ssd": (lambda m: ju.loss_free_ssd(m), {}),
    "fisher": (lambda m: ju.fisher(m), {}),
    "ntk": (lambda m: ju.ntk(m, samples=8), {}),
    "influence": (lambda m: ju.influence(m, damping=0.1, iterations=4), {}),
    "first_order": (lambda m: ju.first_order(m), {}),
    "second_order": (lambda m: ju.second_order(m, damping=0.1, iterations=4), {}),
    "datamodel": (lambda m: ju.datamodel(m), {"steps": 6}),
    "concept_poison": (lambda m: ju.concept_poison(m, bank=ATTRIBUTES, data=0.5), {"steps": 6}),
    "neuron_path": (lambda m: ju.neuron_path(m, per_sample=5, neurons=4, samples=8), {}),
    "word_poison": (lambda m: ju.word_poison(m, data=0.5, nodes=4), {"steps": 6}),
}
"""Every registered method with arguments that suit a toy; ``test_contract`` checks the names."""

GAN_METHODS = {
    "cascade": (_cascade(), {"steps": 4}),
    "cascade, unlearn_then_learn": (_cascade(mode="unlearn_then_learn"), {"steps": 4}),
    "cascade, learn_only": (_cascade(mode="learn_only"), {"steps": 4}),
    "cascade, generator_only": (_cascade(mode="generator_only"), {"steps": 4}),
    "cascade, discriminator_only": (
        _cascade(mode="discriminator_only", label="holdout_quantile"),
        {"steps": 4},
    ),
    "gan_retrain": (
        lambda m: ju.gan_retrain(m, optimizer=optax.adam(1e-3), r1=0.1, r1_every=2),
        {"steps": 4},
    ),
    "gan_finetune": (lambda m: ju.gan_finetune(m), {"steps": 4}),
    "discriminator_ascent": (lambda m: ju.discriminator_ascent(m), {"steps": 4}),
    "adapt_unlearn": (
        lambda m: ju.adapt_unlearn(m, guide=guide(), pool=256, adapt_steps=3, adapt_batch=16),
        {"steps": 4},
    ),
}
"""The same for GANs; behind a comma a variant."""

LANGUAGE_METHODS = {
    "lm_retrain": lambda m, **o: ju.lm_retrain(m, **{"optimizer": optax.adam(1e-2), **o}),
    "lm_finetune": ju.lm_finetune,
    "lm_gradient_ascent": ju.lm_gradient_ascent,
    "grad_diff": ju.grad_diff,
    "npo": ju.npo,
    "simnpo": ju.simnpo,
    "wga": ju.wga,
    "sat_imp": ju.sat_imp,
    "undial": ju.undial,
    "ce_u": ju.ce_u,
    "task_vector": ju.task_vector,
    "dpo": ju.dpo,
    "alt_po": ju.alt_po,
    "idk_dpo": lambda m, **o: ju.idk_dpo(m, tokenizer=Numbers(), **o),
    "concept_words": lambda m, **o: ju.concept_words(
        m, tokenizer=Numbers(), locator="frequency", **o
    ),
    "rmu": ju.rmu,
    "eul": ju.eul,
}
"""The same for language models, without arguments; ``test_language_contract`` runs them."""

ROWS = METHODS | GAN_METHODS


ON_TEXTS = ("word_poison",)
"""Methods for networks of tokens alone."""

ON_IMAGES = ("ct",)
"""Methods for networks with spatial kernels alone."""


@functools.cache
def method(name):
    network = text_classifier() if name in ON_TEXTS else cnn() if name in ON_IMAGES else mlp()
    return ROWS[name][0](gan() if name in GAN_METHODS else network)


@functools.cache
def trained_in_shards():
    """The ensemble that SISA starts from, made by itself."""
    everything = ju.Sets(retain=ju.whole(sets().forget.examples))
    return ju.unlearn(method("sisa"), None, everything, jax.random.key(7), steps=6, batch_size=16)


def original(name):
    """The variables that a method starts from."""
    if name == "sisa":
        return trained_in_shards().variables
    if name in ON_TEXTS:
        return trained_on_questions().variables
    if name in ON_IMAGES:
        return trained_cnn().variables
    return (trained_gan() if name in GAN_METHODS else trained()).variables


ON_ITEMS = ("attack_loss",)
"""Methods that forget no whole class: of one half of its examples are to be forgotten."""


def sets_of(name, request=None):
    if name in ON_ITEMS:
        label = 1 if request is None else request.classes[0]
        places = np.flatnonzero(np.asarray(blobs()[0][1]) == label)
        request = ju.data.forget_indices(places[: len(places) // 2])
    if name in ON_TEXTS:
        return question_sets(request)
    return sets(request, gan=name in GAN_METHODS)


ON_EVERY_MESH = ("finetune", "random_label", "neuron_path", "scrub")
"""Methods that are tried on each mesh; others on one, in turn."""


def mesh_of(name):
    """The mesh that a method is tried on: of GANs fsdp, of others one that divides both."""
    return "fsdp" if name in GAN_METHODS else "data=2,model=4"


def kernel_of(name, variables):
    """A kernel that eight devices can divide."""
    if name in GAN_METHODS:
        return variables["generator"]["params"]["synthesis"]["fc1"]["kernel"]
    return variables["params"]["fc1"]["kernel"]
