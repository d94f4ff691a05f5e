"""Training on answers: from scratch, from given variables, going on, and along the way back."""

from collections.abc import Callable

import jax
import optax

from jaxunlearn.core import errors
from jaxunlearn.core.types import (
    Batches,
    Key,
    LanguageModel,
    Needs,
    Preparation,
    Sets,
    Unlearner,
    Variables,
)
from jaxunlearn.jaxprs.program import wide
from jaxunlearn.language.likelihood import mean_nll
from jaxunlearn.methods.language.terms import Tuning, descend, tuning, whole_texts
from jaxunlearn.training.descent import (
    Context,
    DescentState,
    LossAndMore,
    Objective,
    descent,
    original_of,
)
from jaxunlearn.training.lora import QUERY_VALUE


def learn_answers(model: LanguageModel, part: str = "retain") -> Objective:
    """Returns the objective ``-mean log p(x_t | x_<t)`` over answer tokens, in training mode.

    Args:
      part: the set whose batches it reads.
    """

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        batch = getattr(batches, part)
        logits, moved = model.apply_train(variables, whole_texts(batch.x), context.key)
        return mean_nll(logits, batch.x, batch.weight), (moved, {})

    return objective


def lm_retrain(
    model: LanguageModel,
    *,
    optimizer: optax.GradientTransformation,
    start: Callable[[], Variables] | None = None,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Forgets exactly: a model trained on the answers of the retain set alone.

    ``theta = argmin -mean_r log p(answer | question)``, from freshly drawn parameters, or from a
    pretrained model that never saw what is to be forgotten. The given variables are not used.
    With ``Sets(retain=sets.train)`` this is ordinary training.

    Args:
      model: see :class:`~jaxunlearn.core.types.LanguageModel`.
      optimizer: any optax transformation.
      start: returns the variables to start from, called once before the compiled part, so that
        pretrained weights are no constants of a program.
      lora: rank of low-rank adapters that are trained instead of all parameters and merged in
        the end; with a ``start`` alone.
      lora_alpha: of them, ``2 lora`` by default.
      lora_on: regular expressions on the paths of the kernels that have one.

    Raises:
      ValueError: adapters without a start, of whose random kernels they would keep most.
      TypeError: ``start`` is no function.
    """
    own = tuning(model, optimizer, lora, lora_alpha, lora_on)
    if start is None:
        if lora is not None:
            raise ValueError(f"lora: expected none for a model trained from scratch, got {lora}")
        return descent(learn_answers(model), optimizer, Needs(retain=True), fresh=model)
    if not callable(start):
        raise TypeError(f"start: expected a function of nothing, got {type(start).__name__}")
    begin: Callable[[], Variables] = start

    def run(variables: Variables, sets: Sets, key: Key) -> Variables:
        del variables, sets, key
        return begin()

    def shapes(variables: Variables, sets: Sets) -> Variables:
        del variables, sets
        return jax.eval_shape(model.init, jax.random.key(0))

    method = descend(model, learn_answers(model), own, Needs(retain=True))

    def init(variables: Variables, sets: Sets, key: Key, prepared: Variables) -> DescentState:
        del variables
        return method.init(prepared, sets, key)

    return method._replace(init=init, prepare=Preparation(run, shapes), model=None)


def lm_finetune(
    model: LanguageModel,
    *,
    optimizer: optax.GradientTransformation | None = None,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Descends the loss of retained answers: hopes that what is not repeated is forgotten.

    Args:
      model, lora, lora_alpha, lora_on: as for :func:`lm_retrain`.
      optimizer: default AdamW with rate 1e-5 and decay .01.
    """
    own = tuning(model, optimizer, lora, lora_alpha, lora_on)
    return descend(model, learn_answers(model), own, Needs(retain=True))


def task_vector(
    model: LanguageModel,
    *,
    optimizer: optax.GradientTransformation | None = None,
    amount: float = 1.0,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_on: tuple[str, ...] = QUERY_VALUE,
) -> Unlearner:
    """Learns what is to be forgotten once more, and goes the same way in the other direction.

    ``theta = theta_o - a (theta_ft - theta_o)``, where ``theta_ft`` descends from the original
    ``theta_o`` along ``-mean_f log p``. Reads no retained text. Diagnostics are those of
    learning: the loss falls.

    Source: Ilharco et al., arXiv 2212.04089.

    Args:
      model, lora, lora_alpha, lora_on: as for :func:`lm_retrain`; adapters alone are negated
        where there are some.
      optimizer: default AdamW with rate 1e-5 and decay .01.
      amount: ``a``, not negative.
    """
    errors.expect_at_least(0, amount=amount)
    own: Tuning = tuning(model, optimizer, lora, lora_alpha, lora_on)
    needs = Needs(forget=True, original=True)
    method = descend(model, learn_answers(model, "forget"), own, needs)

    def backwards(before: jax.Array, after: jax.Array) -> jax.Array:
        old, new = (leaf.astype(wide(before.dtype)) for leaf in (before, after))
        return (old - amount * (new - old)).astype(before.dtype)

    def result(state: DescentState) -> Variables:
        return jax.tree.map(backwards, original_of(state), method.result(state))

    return method._replace(result=result)
