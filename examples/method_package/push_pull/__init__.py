"""A method of one's own in a package"""

# %% [markdown]
# `pip install examples/method_package`, and `jaxunlearn run methods=push_pull` and
# `jaxunlearn bench` know it; `jaxunlearn list methods` shows it. The entry point in
# `pyproject.toml` names `ROW`.

# %%
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxunlearn as ju


def push_pull(model: Any, *, optimizer: Any = None, alpha: float = 1.0) -> ju.Unlearner:
    """Moves away from the original on forget batches and towards it on retained ones, in turn.

    Args:
      model: the network.
      optimizer: an optax transformation.
      alpha: weight of the divergence from the original on retained examples.
    """
    model = ju.functionalize(model)

    def objective(variables, batches, context):
        def apart(batch):  # KL(teacher || student); the teacher is the original
            teacher = jax.nn.log_softmax(model.apply(context.original, batch.x))
            student = jax.nn.log_softmax(model.apply(variables, batch.x))
            return jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=1))

        batch = batches.retain
        logits = model.apply(variables, batch.x)
        learn = ju.training.cross_entropy(logits, batch.y, batch.weight) + alpha * apart(batch)
        loss = jnp.where(context.step % 2 == 0, -apart(batches.forget), learn)
        return loss, (variables, {"accuracy": ju.training.accuracy(logits, batch)})

    needs = ju.Needs(forget=True, retain=True, original=True)
    return ju.training.descent(objective, optimizer or optax.adam(1e-3), needs)


ROW = ju.methods.Method("push_pull:push_pull", "away from a teacher, and back")
