"""Concepts of the classes of a network, from labelled examples, in one call."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxunlearn.attribution import features
from jaxunlearn.concepts.attributes import TABLES, attribute_sets, having, load_table
from jaxunlearn.concepts.bank import Bank, evenly, load_bank
from jaxunlearn.concepts.bottleneck import Bottleneck, fit_and_score
from jaxunlearn.concepts.cavs import fit_bank
from jaxunlearn.concepts.patches import patch_bank, patch_names
from jaxunlearn.core.errors import DataError, brief, did_you_mean
from jaxunlearn.core.trees import to_device
from jaxunlearn.core.types import Apply, Examples, Key, Model, Sets, Subset, Variables
from jaxunlearn.data.examples import fetch, unchanged
from jaxunlearn.data.sets import num_examples, whole
from jaxunlearn.engine.predict import predict
from jaxunlearn.models import functionalize


class Concepts(NamedTuple):
    """The concepts that the classes of a network are made of; shapes do not depend on values.

    Attributes:
      bank: the concept vectors.
      bottleneck: the classifier that reads them.
      values: ``float32 [K, m]``, see :class:`~jaxunlearn.concepts.Scores`.
      gap: ``float32 [K]``, the completeness gap of ``values``.
    """

    bank: Bank
    bottleneck: Bottleneck
    values: jax.Array
    gap: jax.Array


@functools.lru_cache(maxsize=32)
def feature_fn(apply: Apply) -> Apply:
    """Returns ``jaxunlearn.attribution.features(apply)``, the same function at every call.

    Programs are kept by function: so a second call compiles nothing.
    """
    return features(apply)


def infer_concepts(
    model: Model | Apply,
    variables: Variables,
    parts: Subset | Sequence[Subset],
    key: Key,
    *,
    bank: str = "patches",
    concepts: int = 16,
    examples: int = 3000,
    class_names: Sequence[str] | None = None,
    hybrid: bool = True,
    baseline: str = "mean",
    batch_size: int = 256,
    warn: bool = True,
) -> Concepts:
    """Draws examples, makes a bank, fits the bottleneck and scores the concepts.

    Runs on the host and compiles its own programs: it cannot be jitted itself.

    Args:
      model: see :func:`jaxunlearn.functionalize`; its head reads features ``[B, n]``.
      variables: of the network; not changed.
      parts: labelled examples, as ``(sets.forget, sets.retain)``; at most ``examples`` of
        them are drawn, as many of each class as there are.
      key: fixes all draws.
      bank: ``"patches"`` (:func:`~jaxunlearn.concepts.patch_bank`); a data set with a
        table of attributes (``"cifar10"``, ``"fashion_mnist"``, ``"mnist"``,
        ``"digits"``), or the path of a ``.toml`` with one
        (:func:`~jaxunlearn.concepts.attribute_sets`,
        :func:`~jaxunlearn.concepts.fit_bank`); or the path of an ``.npz`` with vectors
        (:func:`~jaxunlearn.concepts.load_bank`).
      concepts: ``m``, for ``"patches"``.
      examples: see ``parts``.
      class_names: of the labels, where a table has its classes in another order.
      hybrid: see :func:`~jaxunlearn.concepts.fit_bottleneck`.
      baseline: see :func:`~jaxunlearn.concepts.concept_scores`.
      batch_size: examples, or patches, taken together.
      warn: whether attributes that are not useful are named in a ``UserWarning``.

    Raises:
      TypeError: ``parts`` are not subsets.
      ValueError: what :func:`concept_shapes` raises, no examples, or what the functions
        named above raise.

    Source: arXiv 2405.15662 (inference of concepts).
    """
    if examples < 1:
        raise ValueError(f"examples: expected at least 1, got {examples!r}")
    apply = functionalize(model).apply
    own = np.asarray(_five_seeds(key)).tolist()
    drawn = draw_examples(parts, examples, own[0])
    shapes = concept_shapes(
        apply, variables, drawn.x, bank=bank, concepts=concepts, class_names=class_names
    )
    size = shapes.bank.vectors.shape[1]
    y = np.asarray(drawn.y)
    read = feature_fn(apply)
    e = predict(read, variables, whole(drawn), min(batch_size, len(y))).logits
    if bank == "patches":
        found, _ = patch_bank(
            read, variables, drawn.x, concepts=concepts, seed=own[1], batch_size=batch_size,
            labels=y,
        )  # fmt: skip
    elif bank.endswith(".npz"):
        found = load_bank(bank, size)
    else:
        sets = attribute_sets(load_table(bank), e, y, class_names, seed=own[2])
        found = fit_bank(sets, seed=own[3], warn=warn)
    num_classes = len(shapes.gap)
    bottleneck, scores = fit_and_score(
        found, e, y, num_classes, hybrid=hybrid, baseline=baseline, seed=own[4]
    )
    return Concepts(found, bottleneck, scores.values, scores.gap)


def concept_shapes(
    apply: Apply,
    variables: Variables,
    x: Any,
    num_classes: int | None = None,
    *,
    bank: str = "patches",
    concepts: int = 16,
    class_names: Sequence[str] | None = None,
) -> Concepts:
    """Returns shapes and dtypes of the result of :func:`infer_concepts`, without computing.

    Args:
      apply, bank, concepts, class_names: see :func:`infer_concepts`.
      variables: arrays, or their shapes and dtypes.
      x: inputs of the network with the leading axis ``B``, or their shapes and dtypes
        (:func:`jaxunlearn.data.examples.inputs_like`).
      num_classes: ``K``, if it is known; checked against the network's.

    Raises:
      ValueError: an unknown bank; a file that is missing, malformed or of another ``n``;
        a table of another number of classes than the network, or without some of
        ``class_names``; a head that does not read ``[B, n]``
        or a network of another ``K``; for patches, examples that are not images, or a
        number of concepts that the features do not allow.
    """
    check_bank(bank)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x)
    logits = jax.eval_shape(apply, variables, one)
    read = jax.eval_shape(feature_fn(apply), variables, one)
    if read.ndim != 2:
        raise ValueError(f"apply: expected a head that reads [B, n], got {list(read.shape)}")
    classes, size = logits.shape[-1], read.shape[1]
    if num_classes is not None and num_classes != classes:
        raise ValueError(f"num_classes: expected {classes}, as of the network, got {num_classes}")
    shape = x.shape if isinstance(x, jax.Array | jax.ShapeDtypeStruct) else ()
    names = _names(bank, concepts, size, classes, class_names, shape)

    def floats(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    m = len(names)
    mask: Any = jax.ShapeDtypeStruct((m,), jnp.bool_)
    return Concepts(
        Bank(names, floats(m, size), floats(m), mask, floats(m), floats(m)),
        Bottleneck(floats(classes, m), floats(classes), floats(classes, size), floats(classes)),
        values=floats(classes, m),
        gap=floats(classes),
    )


def check_bank(bank: str) -> None:
    """Raises :class:`DataError` for what is neither a known bank nor a path to one."""
    known = ["patches", *TABLES]
    named = isinstance(bank, str)
    if not named or (bank not in known and not bank.endswith((".toml", ".npz"))):
        raise DataError(
            f"bank: expected one of {', '.join(known)}, or a path ending in .toml or .npz; "
            f"got {brief(bank)}{did_you_mean(bank, known) if named else ''}"
        )


def _names(
    bank: str,
    concepts: int,
    size: int,
    classes: int,
    class_names: Sequence[str] | None,
    shape: Sequence[int],
) -> tuple[str, ...]:
    """Returns the names of the bank's concepts, if it suits the network."""
    if bank.endswith(".npz"):
        return load_bank(bank, size).names
    if bank != "patches":
        table = load_table(bank)
        if class_names is None and len(table.classes) != classes:
            raise DataError(
                f"bank {bank}: expected a table of {classes} classes, as many as the network "
                f"has, got {len(table.classes)}; class_names says which of them the labels are"
            )
        having(table, class_names)
        return table.names
    if len(shape) != 4:
        raise ValueError(
            "bank: expected images [N, H, W, C] for patches, got examples "
            f"{list(shape[1:]) or 'of several arrays'}; "
            "a table of attributes or vectors of one's own suit any network"
        )
    if not 2 <= concepts <= size:
        raise ValueError(
            f"concepts: expected from 2 to {size}, the features that the head reads, "
            f"got {concepts!r}"
        )
    return patch_names(concepts)


def _subsets(parts: Subset | Sequence[Subset]) -> Sequence[Subset]:
    found: Sequence[Subset] = (parts,) if isinstance(parts, Subset) else parts
    # sets hold images that judge a model, too: which of them are meant must be said
    if isinstance(found, Sets) or not all(isinstance(part, Subset) for part in found):
        raise TypeError(
            "parts: expected subsets such as (sets.forget, sets.retain), "
            f"got {type(parts).__name__}"
        )
    return found


@jax.jit
def _five_seeds(key: Key) -> jax.Array:
    return jax.random.bits(key, (5,), jnp.uint32)


@jax.jit
def _join(sources: Sequence[Examples], places: Sequence[jax.Array]) -> Any:
    """Fetches examples from several sources, one behind the other."""
    found = [fetch(source, at) for source, at in zip(sources, places, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)


def draw_examples(parts: Subset | Sequence[Subset], count: int, seed: int) -> Examples:
    """Draws some of the examples of subsets, as the network gets them, evenly over the classes.

    Raises:
      TypeError: ``parts`` are not subsets.
      ValueError: no examples.
    """
    kept = [part for part in _subsets(parts) if num_examples(part)]
    if not kept:
        raise ValueError("parts: expected labelled examples, got none")
    places = [np.asarray(part.indices)[: num_examples(part)] for part in kept]
    y = np.concatenate(
        [np.asarray(part.examples.y)[at] for part, at in zip(kept, places, strict=True)]
    )
    chosen = np.zeros(len(y), bool)
    chosen[evenly(y, count, np.random.default_rng(seed))] = True
    ends = np.cumsum([len(at) for at in places])[:-1]
    taken = [at[take] for at, take in zip(places, np.split(chosen, ends), strict=True)]
    joined = _join([part.examples for part in kept], taken)
    return Examples(joined, to_device(y[chosen], np.int32), Partial(unchanged))
