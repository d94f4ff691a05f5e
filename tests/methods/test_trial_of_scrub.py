"""SCRUB written down as a trial: a method with a teacher is one function, without a state.

Kurmanji et al., "Towards unbounded machine unlearning", NeurIPS 2023 (arXiv 2302.09880):
steps that raise the divergence from the teacher on forget batches take turns with steps that
lower it on retain batches, where the labels are learned too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from jaxunlearn.core.types import Needs
from jaxunlearn.engine.predict import predict
from jaxunlearn.training.descent import cross_entropy, descent
from tests import toy


def scrub(model, *, optimizer, alpha=1.0):
    def objective(variables, batches, context):
        def apart(batch):
            teacher = jax.nn.log_softmax(model.apply(context.original, batch.x))
            student = jax.nn.log_softmax(model.apply(variables, batch.x))
            each = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=1)
            return jnp.sum(each * batch.weight) / jnp.sum(batch.weight)

        forget, retain = apart(batches.forget), apart(batches.retain)
        logits = model.apply(variables, batches.retain.x)
        learn = alpha * retain + cross_entropy(logits, batches.retain.y, batches.retain.weight)
        loss = jnp.where(context.step % 2 == 0, -forget, learn)
        return loss, (variables, {"apart_forget": forget, "apart_retain": retain})

    return descent(objective, optimizer, Needs(forget=True, retain=True, original=True))


def test_it_forgets_and_its_teacher_is_the_original_in_every_step():
    method = scrub(toy.mlp(), optimizer=optax.adam(2e-3))
    given, sets = toy.trained().variables, toy.sets()
    out = ju.unlearn(method, given, sets, jax.random.key(1), steps=60, batch_size=32)
    forget, retain = (
        predict(toy.mlp().apply, out.variables, part).accuracy
        for part in (sets.forget, sets.retain)
    )
    assert forget < 0.3
    assert retain > 0.9
    # the student starts as its teacher, and the teacher never moves with it
    assert out.history["apart_forget"][0] < 1e-6
    assert out.history["apart_forget"][-1] > 1


def test_mapped_over_seeds_it_equals_the_loop():
    method = scrub(toy.mlp(), optimizer=optax.adam(2e-3))
    keys, given = jax.random.split(jax.random.key(3), 2), toy.trained().variables
    many = ju.unlearn_many(method, given, toy.sets(), keys, steps=5, batch_size=16).variables
    for number, key in enumerate(keys):
        one = ju.unlearn(method, given, toy.sets(), key, steps=5, batch_size=16).variables
        jax.tree.map(
            lambda a, b, n=number: np.testing.assert_allclose(a[n], b, atol=1e-5), many, one
        )
