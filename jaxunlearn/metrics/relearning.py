"""What an accuracy of zero can hide: is the knowledge still in the network?"""

import contextlib
import functools
from collections.abc import Sequence

import numpy as np
import optax

from jaxunlearn.core.errors import DivergenceError
from jaxunlearn.core.host import on_one_thread
from jaxunlearn.core.trees import to_device
from jaxunlearn.core.types import (
    Apply,
    Batches,
    Key,
    Model,
    Needs,
    Sets,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.data.sets import num_examples
from jaxunlearn.engine import unlearn
from jaxunlearn.engine.driver import Progress
from jaxunlearn.engine.predict import predict
from jaxunlearn.training.descent import Context, LossAndMore, accuracy, cross_entropy, descent

RELEARN_STEPS = 100
"""Steps of relearning that are looked at."""


def linear_probe(
    features: Apply,
    variables: Variables,
    train: tuple[Subset, Subset],
    test: Subset,
    *,
    others: Subset | None = None,
    examples: int = 2000,
    seed: int = 0,
) -> float:
    """Computes the accuracy on forgotten examples of a logistic regression on frozen features.

    Of features that tell nothing, those of a destroyed network, the regression names the most
    frequent class: that is right for all of ``test`` where this class was forgotten. With
    ``others`` the accuracy is balanced, ``(s + r) / 2``: ``s`` the share of ``test`` named
    correctly, ``r`` the share of ``others`` not given a label of ``test``; .5 is chance.

    Args:
      features: ``variables, x -> [B, n]``, the inputs of the last layer.
      train: the forget and the retain set; the probe is fitted on ``examples`` of
        both together, each set's share kept.
      test: test examples of the kind to be forgotten.
      others: examples of what is retained.

    Returns:
      The share of ``test`` that the probe names correctly, or the balanced accuracy; ideal: as
      retrained.

    Raises:
      ValueError: features that are not finite.
    """

    def read(part: Subset) -> tuple[np.ndarray, np.ndarray]:
        found = predict(features, variables, part)
        return found.logits, found.labels

    seen = [read(part) for part in in_proportion(train, examples, seed)]
    beside = None if others is None else read(some(others, examples, seed))[0]
    return probe(seen, read(test), beside)


@on_one_thread
def probe(
    train: Sequence[tuple[np.ndarray, np.ndarray]],
    test: tuple[np.ndarray, np.ndarray],
    others: np.ndarray | None = None,
) -> float:
    """Computes the accuracy of a logistic regression on features; see :func:`linear_probe`.

    Args:
      train: features ``[n, f]`` and labels ``[n]``, of several sets.
      test: those asked for.
      others: features of examples of what is retained; with them the accuracy is balanced.

    Raises:
      ValueError: features that are not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = (np.concatenate(column) for column in zip(*train, strict=True))
    if not np.isfinite(x).all():
        raise ValueError("expected finite features, got NaN or infinity")
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
    right = float(np.mean(fitted.predict(test[0]) == test[1]))
    if others is None:
        return right
    wrong = np.isin(fitted.predict(others), np.unique(test[1]))
    return (right + 1 - float(np.mean(wrong))) / 2


def in_proportion(parts: Sequence[Subset], examples: int, seed: int = 0) -> list[Subset]:
    """Draws so many examples of several sets together, each set's share kept."""
    sizes = np.array([num_examples(part) for part in parts])
    quotas = np.maximum(np.round(sizes * min(1, examples / sizes.sum())), 1).astype(int)
    return [some(part, quota, seed) for part, quota in zip(parts, quotas, strict=True)]


def some(part: Subset, count: int, seed: int = 0) -> Subset:
    """Draws so many examples of a set, all of a smaller one."""
    size = num_examples(part)
    places = np.random.default_rng(seed).permutation(size)[:count]
    return part._replace(
        indices=to_device(np.asarray(part.indices)[places]), size=to_device(len(places), np.int32)
    )


def relearn_curve(
    model: Model,
    variables: Variables,
    forget: Subset,
    key: Key,
    *,
    learning_rate: float = 1e-3,
    batch_size: int = 128,
    steps: int = RELEARN_STEPS,
) -> np.ndarray:
    """Records the accuracy on the forget set in the course of being trained on it again.

    Plain SGD on ``l(B_f)``, the network in inference mode; the accuracy is that of the
    batch before its own step. Models compared under one key see the same batches.

    Returns:
      ``float64 [steps]``, place ``k``: after ``k`` steps. NaN from where the training
      diverged. Ideal: as retrained.
    """
    curve = np.full(steps, np.nan)

    def keep(progress: Progress) -> None:
        curve[: progress.step] = progress.history["accuracy"]

    # a network that cannot be trained again is a finding, not the end of the report
    with contextlib.suppress(DivergenceError):
        unlearn(
            trainer(model.apply, "sgd", learning_rate),
            variables,
            Sets(forget=forget),
            key,
            steps=steps,
            batch_size=batch_size,
            on_chunk=keep,
        )
    return curve


def relearn_steps(curve: np.ndarray, target: float) -> int:
    """Steps of relearning until the forget set is known again.

    Args:
      curve: of :func:`relearn_curve`.
      target: accuracy to be reached; commonly .95 of the original's on the forget set.

    Returns:
      The number of steps after which a batch first reached ``target``; the length of the
      curve if none did. 0: it was never forgotten. Ideal: as retrained.
    """
    reached = np.flatnonzero(curve >= target)
    return int(reached[0]) if len(reached) else len(curve)


@functools.lru_cache(maxsize=16)
def trainer(apply: Apply, optimizer: str, learning_rate: float) -> Unlearner:
    """Returns plain training on the forget set, ``"sgd"`` or ``"adam"``, in inference mode.

    One object for one network and rate, so that all models of a table share one program.
    """

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        del context
        batch = batches.forget
        assert batch is not None
        logits = apply(variables, batch.x)
        metrics = {"accuracy": accuracy(logits, batch)}
        return cross_entropy(logits, batch.y, batch.weight), (variables, metrics)

    made = {"sgd": optax.sgd, "adam": optax.adam}[optimizer](learning_rate)
    return descent(objective, made, Needs(forget=True))
