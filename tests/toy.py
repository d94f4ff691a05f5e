"""Small problems that every method must cope with."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from jaxunlearn.config import TrainConfig

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


def sets(request=None):
    """The sets of a request on :func:`blobs`."""
    train, unseen, test = blobs()
    request = ju.forget_class(1) if request is None else request
    return ju.make_sets(*train, request, unseen=unseen, test=test, num_classes=NUM_CLASSES)


@functools.cache
def mlp():
    return ju.build("mlp", SHAPE, NUM_CLASSES, {"features": (24, 16)})


@functools.cache
def trained():
    """An MLP that knows all four kinds."""
    config = TrainConfig(epochs=15, batch_size=32, learning_rate=5e-3)
    return ju.train(mlp(), ju.whole(sets().forget.examples), jax.random.key(7), config=config)


METHODS = {
    "retrain": (lambda m: ju.retrain(m, optimizer=optax.adam(3e-3)), {"steps": 6}),
    "finetune": (lambda m: ju.finetune(m), {"steps": 6}),
    "gradient_ascent": (lambda m: ju.gradient_ascent(m), {"steps": 6}),
    "random_label": (lambda m: ju.random_label(m), {"steps": 6}),
    "concept_poison": (lambda m: ju.concept_poison(m, bank=ATTRIBUTES, data=0.5), {"steps": 6}),
    "neuron_path": (lambda m: ju.neuron_path(m, per_sample=5, neurons=4, samples=8), {}),
}
"""Every registered method with arguments that suit a toy; ``test_contract`` checks the names."""


@functools.cache
def method(name):
    return METHODS[name][0](mlp())
