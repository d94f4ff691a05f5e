"""A Flax NNX module"""

# %% [markdown]
# An NNX module that you trained comes in as it is, and goes home as a module.

# %%
import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import jaxunlearn as ju

x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype(np.float32), y.astype(np.int32)
test = (x[1200:], y[1200:])


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


@nnx.jit
def update(module, optimizer, x, y):
    def loss(module):
        return optax.softmax_cross_entropy_with_integer_labels(module(x), y).mean()

    optimizer.update(module, nnx.grad(loss)(module))


module = Net(nnx.Rngs(0))
optimizer = nnx.Optimizer(module, optax.adam(3e-3), wrt=nnx.Param)
for step in range(300):
    places = np.random.default_rng(step).integers(0, 1200, 128)
    update(module, optimizer, x[places], y[places])

# %% [markdown]
# `functionalize(Net)`, the class, can draw fresh modules as well, so that models can be
# retrained without the class, to compare with.

# %%
model = ju.functionalize(Net)
sets = ju.make_sets(x[:1200], y[:1200], ju.forget_class(3), test=test)
original = ju.variables_of(module)
forgot = ju.unlearn(ju.random_label(model), original, sets, jax.random.key(1), steps=60)
keys = jax.random.split(jax.random.key(2), 2)
retrained = ju.train_many(model, sets.retain, keys, config=ju.TrainConfig(epochs=30))
models = {"original": original, "unlearned": forgot}
report = ju.evaluate(model, models, retrained, sets)
ju.print_report(report)
module = ju.into(module, forgot.variables)
