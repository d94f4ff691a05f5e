"""What an empty share can hide, and what generated images are good for."""

import functools

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.attribution import features
from jaxunlearn.core.types import Apply, Gan, Key, Model, Sets, Subset, Unlearner, Variables
from jaxunlearn.data.sets import num_examples
from jaxunlearn.engine import unlearn
from jaxunlearn.engine.predict import predict
from jaxunlearn.gan import Guide
from jaxunlearn.methods.gan_retrain import gan_finetune
from jaxunlearn.methods.retrain import retrain
from jaxunlearn.methods.shares import as_subset
from jaxunlearn.metrics.relearning import linear_probe
from jaxunlearn.metrics.samples import Extent, Samples, samples_of, shows_forgotten

RELEARNED = 50
"""Steps of relearning."""


def truth(
    gan: Gan, variables: Variables, sets: Sets, key: Key, judge: Guide, extent: Extent
) -> dict[str, float]:
    """What an empty share can hide: the class in the discriminator's features, and its return."""
    forget, retain = sets.forget, sets.retain
    assert forget is not None
    assert retain is not None
    found = {}
    learning, drawing = jax.random.split(key)
    if num_examples(sets.test_forget):
        assert sets.test_forget is not None
        found["discriminator_probe"] = linear_probe(
            _features(gan), variables["discriminator"], (forget, retain), sets.test_forget,
            examples=1000,
        )  # fmt: skip
    whole = forget._replace(
        indices=jnp.concatenate([_own(forget), _own(retain)]),
        size=jnp.asarray(num_examples(forget) + num_examples(retain), jnp.int32),
    )
    returned = unlearn(
        _relearner(gan), variables, Sets(retain=whole), learning, steps=RELEARNED, batch_size=64
    )
    samples = samples_of(gan, returned.variables, sets, drawing, judge, extent)
    return {**found, "relearned_share": float(shows_forgotten(samples, sets).mean())}


def _own(part: Subset) -> jax.Array:
    return part.indices[: num_examples(part)]


@functools.lru_cache(maxsize=16)
def _features(gan: Gan) -> Apply:
    """What the discriminator's last layer reads; labels play no part in it."""

    def score(variables: Variables, x: jax.Array) -> jax.Array:
        return gan.discriminate(variables, x, jnp.zeros(len(x), jnp.int32))[:, None]

    return features(score)


@functools.lru_cache(maxsize=16)
def _relearner(gan: Gan) -> Unlearner:
    # one object for one network, so that all models of a table share one program
    return gan_finetune(gan, ema=0.9)


def downstream(model: Model, samples: Samples, sets: Sets, key: Key, extent: Extent) -> float:
    """Accuracy on retained test images of a classifier trained on generated ones.

    Its labels are the judge's.
    """
    assert sets.test_retain is not None
    part = as_subset(
        samples.images, jnp.asarray(samples.label, jnp.int32),
        jnp.asarray(len(samples.label), jnp.int32),
    )  # fmt: skip
    trained = unlearn(
        _trainer(model), None, Sets(retain=part), key, steps=extent.downstream_steps, batch_size=128
    )
    return predict(model.apply, trained.variables, sets.test_retain).accuracy


@functools.lru_cache(maxsize=16)
def _trainer(model: Model) -> Unlearner:
    return retrain(model, optimizer=optax.adam(1e-3))
