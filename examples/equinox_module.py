"""An Equinox module"""

# %%
import equinox as eqx
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxunlearn as ju

x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype(np.float32), y.astype(np.int32)
test = (x[1200:], y[1200:])
sets = ju.make_sets(x[:1200], y[:1200], ju.forget_class(3), test=test)

# %% [markdown]
# A module of one example, trained by Equinox's own means.


# %%
@eqx.filter_jit
def update(module, momentum, x, y):
    def loss(module):
        logits = jax.vmap(module)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    change, momentum = adam.update(eqx.filter_grad(loss)(module), momentum)
    return eqx.apply_updates(module, change), momentum


adam = optax.adam(3e-3)
module = eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0))
momentum = adam.init(eqx.filter(module, eqx.is_array))
for step in range(300):
    places = np.random.default_rng(step).integers(0, 1200, 128)
    module, momentum = update(module, momentum, x[places], y[places])

# %% [markdown]
# Neuronal paths read unseen images of the class alone, no training image.

# %%
model = ju.functionalize(module)
unseen = (x[1200:1500], y[1200:1500])
sets = ju.make_sets(x[:1200], y[:1200], ju.forget_class(3), unseen=unseen)
method = ju.neuron_path(model, per_sample=10, neurons=8)
forgot = ju.unlearn(method, ju.variables_of(module), sets, jax.random.key(1))
module = ju.into(module, forgot.variables)

# %%
right = np.asarray(jax.vmap(module)(x[1500:]).argmax(axis=1) == y[1500:])
threes, others = right[y[1500:] == 3].mean(), right[y[1500:] != 3].mean()
print(f"accuracy on threes {threes:.2f}, on the others {others:.2f}")
