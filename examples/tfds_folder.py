"""A data set of your own in a TFDS folder"""

# %% [markdown]
# `my_sets/shapes/1.0.0` is a folder that TFDS prepared, with
# `file_format="array_record"`, which is read without TensorFlow. A run on it:
#
#     jaxunlearn run data.dir=my_sets data.name=shapes data.unseen=0 request.classes=square \
#         methods=finetune

# %%
import jax

import jaxunlearn as ju

config = ju.data.DataConfig(name="shapes", dir="my_sets")
data = ju.data.load_dataset(config)
print(data.train_x.shape, data.class_names)

# %% [markdown]
# Pixels are bytes; the default reader divides them by 255. A class goes by its name.

# %%
sets = ju.make_sets(
    data.train_x, data.train_y, ju.forget_class(data.class_names[1]),
    test=(data.test_x, data.test_y), class_names=data.class_names,
)  # fmt: skip
model = ju.models.build("mlp", data.train_x.shape[1:], num_classes=len(data.class_names))
original = ju.train(model, sets.train, jax.random.key(0), config=ju.TrainConfig(epochs=5))
forgot = ju.unlearn(ju.finetune(model), original.variables, sets, jax.random.key(1), steps=20)
