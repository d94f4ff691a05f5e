"""A Haiku network with state"""

# %%
import haiku as hk
import jax
import numpy as np
from sklearn.datasets import load_digits

import jaxunlearn as ju

x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype(np.float32), y.astype(np.int32)
test = (x[1200:], y[1200:])
sets = ju.make_sets(x[:1200], y[:1200], ju.forget_class(3), test=test)


def network(x, is_training):
    x = jax.nn.relu(hk.Linear(64)(x))
    return hk.Linear(10)(hk.BatchNorm(True, True, 0.9)(x, is_training))


# %% [markdown]
# The pair that Haiku transforms a network into draws fresh variables and applies them: it can
# be trained here too. Of a network trained elsewhere `ju.variables_of((params, state))` are
# the variables, and `ju.into` gives the pair back.

# %%
pair = hk.transform_with_state(network)
model = ju.functionalize(pair, sample_input=x[:1])
original = ju.train(model, sets.train, jax.random.key(0), config=ju.TrainConfig(epochs=20))
method = ju.random_label(model)
forgot = ju.unlearn(method, original.variables, sets, jax.random.key(1), steps=60)
params, state = ju.into(pair.init(jax.random.key(0), x[:1], True), forgot.variables)

# %%
logits, _ = pair.apply(params, state, None, test[0], False)
right = np.asarray(logits.argmax(axis=1) == test[1])
threes, others = right[test[1] == 3].mean(), right[test[1] != 3].mean()
print(f"accuracy on threes {threes:.2f}, on the others {others:.2f}")
