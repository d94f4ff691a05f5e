"""A Linen network with an orbax checkpoint of its own"""

# %% [markdown]
# A Flax Linen network that somebody trained and saved with Orbax. jaxunlearn reads
# what `restore` returns, and what it gives back is saved in the same way.

# %%
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import linen
from sklearn.datasets import load_digits

import jaxunlearn as ju


class Net(linen.Module):
    @linen.compact
    def __call__(self, x, is_training=False):
        x = linen.relu(linen.Dense(64)(x.reshape(len(x), -1)))
        x = linen.BatchNorm(use_running_average=not is_training)(x)
        return linen.Dense(10)(x)


x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype(np.float32), y.astype(np.int32)
net = Net()

# %% [markdown]
# Your own training, which knows nothing of jaxunlearn, and your own checkpoint.


# %%
@jax.jit
def update(held, momentum, x, y):
    def loss(params):
        both = {"params": params, "batch_stats": held["batch_stats"]}
        logits, moved = net.apply(both, x, is_training=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), moved

    gradient, moved = jax.grad(loss, has_aux=True)(held["params"])
    change, momentum = adam.update(gradient, momentum)
    return {"params": optax.apply_updates(held["params"], change), **moved}, momentum


adam = optax.adam(3e-3)
held = net.init(jax.random.key(0), x[:1])
momentum = adam.init(held["params"])
for step in range(300):
    places = np.random.default_rng(step).integers(0, 1200, 128)
    held, momentum = update(held, momentum, x[places], y[places])
folder = Path("my_checkpoint").absolute()
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, held)

# %% [markdown]
# The checkpoint is read as ever; the class 3 is forgotten; the result is saved beside it.

# %%
with ocp.StandardCheckpointer() as checkpointer:
    held = checkpointer.restore(folder)
model = ju.functionalize(net, sample_input=x[:1])
test = (x[1200:], y[1200:])
sets = ju.make_sets(x[:1200], y[:1200], ju.forget_class(3), test=test)
forgot = ju.unlearn(ju.scrub(model), held, sets, jax.random.key(1), steps=60)
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder.with_name("my_checkpoint_without_3"), forgot.variables)

# %%
named = {}
for name, variables in (("before", held), ("after", forgot.variables)):
    right = model.apply(variables, test[0]).argmax(axis=1) == test[1]
    named[name] = float(right[test[1] == 3].mean()), float(right[test[1] != 3].mean())
    print(f"{name}: accuracy on threes {named[name][0]:.2f}, on the others {named[name][1]:.2f}")
