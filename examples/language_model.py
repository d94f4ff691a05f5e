"""A language model that forgets an author"""

# %% [markdown]
# A small Llama learns questions on made-up authors by heart; one of them is forgotten by
# negative preference optimisation. With a checkpoint of your own:
# `model, variables = ju.language.load_pretrained(DIR)`, and `ju.language.load_tokenizer(DIR)`.

# %%
import jax
import optax

import jaxunlearn as ju
from jaxunlearn.kinds import kind_of

options = {"authors": 6, "facts": 2}
data = ju.data.load_dataset(ju.data.DataConfig(name="authors", options=options))
size = {"depth": 1, "width": 32, "heads": 2, "context": 192}
settings = ju.config.LanguageConfig(vocabulary=300)
model = ju.models.build_language("llama", settings.vocabulary, size)
texts = kind_of(model).read(data, settings)  # tokens; the tokenizer is trained on the texts
author = texts.class_names[0]
sets = ju.make_sets(
    texts.train_x, texts.train_y, ju.forget_class(author), class_names=texts.class_names
)

# %%
config = ju.TrainConfig(epochs=60, batch_size=8, learning_rate=1e-2)
original = ju.train(model, sets.train, jax.random.key(0), config=config)
method = ju.npo(model, optimizer=optax.adam(2e-3))
forgot = ju.unlearn(method, original.variables, sets, jax.random.key(1), steps=30, batch_size=8)

# %% [markdown]
# The probability of an answer, `exp(-nll / n)`, of the author's and of the others'.

# %%
probabilities = {}
for name, outcome in (("original", original), ("unlearned", forgot)):
    for which, part in (("forget", sets.forget), ("retain", sets.retain)):
        x = jax.tree.map(lambda leaf, part=part: leaf[part.indices[: part.size]], part.examples.x)
        nll, count = ju.language.answer_nll(model.apply(outcome.variables, x), x)
        probabilities[name, which] = float(jax.numpy.exp(-nll / count).mean())
print(probabilities)
