"""Gradient ascent, fine-tuning, wrong labels, training from scratch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju
from jaxunlearn.core.types import Sets
from tests import toy

RATE = 0.1
STEPS = 3


def regression():
    """A softmax regression, its start, and four examples of three classes in one batch."""
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(5, 3)), rng.normal(size=(4, 5))
    y = np.array([0, 1, 2, 1], np.int32)
    model = ju.functionalize(lambda v, x: x @ v["params"]["w"], sample_input=jnp.zeros((1, 5)))
    return model, {"params": {"w": jnp.asarray(w)}}, x, y


def quadratics():
    """Problem Q: of one number the losses (theta - 2)^2 / 2 to forget and (theta + 1)^2 / 2 to
    retain, from .5; what is first in the inputs tells the minimum."""
    model = ju.functionalize(lambda v, x: x * v["params"]["theta"])

    def losses(variables, batch):
        return (variables["params"]["theta"] - batch.x[:, 0]) ** 2 / 2

    y = np.zeros(2, np.int32)
    sets = Sets(
        forget=toy.exact_subset(np.array([[2.0, 0.0], [2.0, 1.0]]), y),
        retain=toy.exact_subset(np.array([[-1.0, 0.0], [-1.0, 1.0]]), y),
    )
    return model, {"params": {"theta": jnp.array(0.5)}}, losses, sets


def slope(w, x, y):
    """The gradient of the mean cross-entropy, by hand."""
    z = x @ w
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return x.T @ p / len(y)


def walked(method, sets, steps=STEPS, **options):
    """The kernel after some steps on whole batches."""
    _, variables, x, _ = regression()
    made = ju.unlearn(
        method, variables, sets, jax.random.key(0), steps=steps, batch_size=len(x), **options
    )
    return np.asarray(made.variables["params"]["w"])


def _by_hand(sign, steps=STEPS):
    _, variables, x, y = regression()
    w = np.array(variables["params"]["w"])
    for _ in range(steps):
        w = w - sign * RATE * slope(w, x, y)
    return w


def gradient_ascent():
    model, _, x, y = regression()
    own = walked(
        ju.gradient_ascent(model, optimizer=optax.sgd(RATE)), Sets(forget=toy.exact_subset(x, y))
    )
    model, variables, losses, sets = quadratics()
    method = ju.gradient_ascent(model, optimizer=optax.sgd(RATE), losses=losses)
    made = ju.unlearn(method, variables, sets, jax.random.key(0), steps=10, batch_size=2)
    return [
        ("three steps uphill", own, _by_hand(-1), 1e-12),
        ("ten steps up a parabola", made.variables["params"]["theta"], 2 - 1.5 * 1.1**10, 1e-12),
    ]


def finetune():
    model, _, x, y = regression()
    own = walked(ju.finetune(model, optimizer=optax.sgd(RATE)), Sets(retain=toy.exact_subset(x, y)))
    return [("three steps downhill", own, _by_hand(1), 1e-12)]


def retrain():
    model, variables, x, y = regression()
    model = model._replace(init=lambda key: variables)
    own = walked(ju.retrain(model, optimizer=optax.sgd(RATE)), Sets(retain=toy.exact_subset(x, y)))
    return [("three steps from where it is drawn", own, _by_hand(1), 1e-12)]


def random_label():
    """Of two classes there is one wrong label: the step is that of the labels turned round."""
    model, variables, x, _ = regression()
    y = np.array([0, 1, 0, 1], np.int32)
    sets = Sets(forget=toy.exact_subset(x, y), retain=toy.exact_subset(-x, y))
    own = walked(ju.random_label(model, optimizer=optax.sgd(RATE)), sets, steps=1)
    w = np.array(variables["params"]["w"])
    hand = w - RATE * (slope(w, -x, y) + slope(w, x, 1 - y))
    return [("one step with the only other label", own, hand, 1e-12)]


CHECKS = {
    "gradient_ascent": gradient_ascent,
    "finetune": finetune,
    "retrain": retrain,
    "random_label": random_label,
}
