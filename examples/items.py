"""Some items, not a class: images that were labelled wrongly"""

# %% [markdown]
# Twenty training images turn out to have wrong labels, which the model knows by heart, and are
# withdrawn. The first row of the table is the one to read: accuracy with the *wrong* labels.
# The attack on the loss finds these images in every model, in retrained ones most of all: their
# losses are large. Of withdrawn items with right labels it is the row to read.

# %%
import jax
import numpy as np

import jaxunlearn as ju

data = ju.data.load_dataset(ju.data.DataConfig(name="digits"))
rng = np.random.default_rng(0)
withdrawn = rng.choice(len(data.train_x), 20, replace=False)
y = data.train_y.copy()
y[withdrawn] = (y[withdrawn] + 1) % 10
holdout = (data.test_x[:400], data.test_y[:400])
test = (data.test_x[400:], data.test_y[400:])
request = ju.data.forget_indices(withdrawn)
sets = ju.make_sets(data.train_x, y, request, unseen=holdout, test=test)

# %%
model = ju.models.build("mlp", (8, 8, 1), num_classes=10)
config = ju.TrainConfig(epochs=60, learning_rate=3e-3)
original = ju.train(model, sets.train, jax.random.key(0), config=config)
forgot = ju.unlearn(ju.finetune(model), original.variables, sets, jax.random.key(1), steps=150)
keys = jax.random.split(jax.random.key(2), 2)
retrained = ju.train_many(model, sets.retain, keys, config=config)
report = ju.evaluate(model, {"original": original, "unlearned": forgot}, retrained, sets)
ju.print_report(report)
