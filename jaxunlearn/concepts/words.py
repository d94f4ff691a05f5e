"""Concept words: the tokens that the classes of a network of texts are made of.

``K`` classes, ``m`` concept words, ``T`` tokens of a text.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution import layer_integrated_gradients, starts
from jaxunlearn.attribution.ig.quadrature import gauss_legendre
from jaxunlearn.concepts.infer import draw_examples
from jaxunlearn.core.trees import in_chunks, named_leaves
from jaxunlearn.core.types import Apply, Key, Model, Subset, Variables
from jaxunlearn.models import functionalize

_CHUNK = 64


class WordConcepts(NamedTuple):
    """Concept words of the classes of a network; shapes do not depend on values.

    Attributes:
      tokens: ``int32 [m]``, rising; 0, which is no word, where there are fewer.
      values: ``float32 [K, m]``, the mean over a class's texts of the word's share in what
        speaks for the class.
      confusion: ``float32 [K, K]``, the mean softmax of each class over the texts of a class.
      gap: ``float32 [K]``, the mean completeness gap of a class's texts, relative to the change
        of the logit that was attributed.
    """

    tokens: jax.Array
    values: jax.Array
    confusion: jax.Array
    gap: jax.Array

    def of_class(self, label: int) -> list[tuple[int, float]]:
        """Returns the tokens of one class with their values, the strongest first."""
        tokens, values = np.asarray(self.tokens), np.asarray(self.values)[label]
        order = np.argsort(-values, kind="stable")
        return [(int(tokens[n]), float(values[n])) for n in order if values[n] > 0]


def infer_words(
    model: Model | Apply,
    variables: Variables,
    parts: Subset | Sequence[Subset],
    key: Key,
    *,
    concepts: int = 64,
    examples: int = 1000,
    nodes: int = 16,
    embedding: str = "embedding",
) -> WordConcepts:
    """Finds the words that speak for each class, by integrated gradients at the embeddings.

    A token's score is that of its embedding, summed over width: with the class's logit ``F``, the
    embeddings ``e`` and those of padding ``e'`` (token 0)::

        s_t = (e_t - e'_t) . integral over a in [0, 1] of dF/de_t (e' + a (e - e'))

    Negative scores count as 0; those of a text are divided by their sum, so that texts count
    alike, and the means over the texts of each class are taken. Kept are the ``m`` tokens of
    the largest mean in any class. Runs on the host.

    Args:
      model: see :func:`jaxunlearn.functionalize`; of ``{"tokens": int [B, T], "mask": bool
        [B, T]}``, whose embeddings bear a name (``checkpoint_name``).
      variables: of the network; not changed.
      parts: labelled texts, as ``(sets.forget, sets.retain)``.
      key: of the texts that are drawn.
      concepts: ``m``.
      examples: at most so many texts are looked at, as many of each class as there are.
      nodes: of the quadrature of Gauss-Legendre.
      embedding: the name.

    Raises:
      ValueError: inputs of another form, no value of that name, no examples.

    Source: arXiv 2405.15662, whose language part takes answers in place of classes.
    """
    apply = functionalize(model).apply
    drawn = draw_examples(parts, examples, int(jax.random.bits(key, (), jnp.uint32)))
    classes = _num_classes(apply, variables, drawn.x)
    scores, softmax, gap, change = (
        np.asarray(found)
        for found in _attribute(apply, embedding, nodes)(variables, drawn.x, drawn.y)
    )
    tokens, y = np.asarray(drawn.x["tokens"]), np.asarray(drawn.y)
    scores = np.where(np.asarray(drawn.x["mask"]), np.maximum(scores, 0), 0)
    shares = scores / np.maximum(scores.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    totals = np.zeros((classes, int(tokens.max()) + 1), np.float32)
    np.add.at(totals, (np.repeat(y, tokens.shape[1]), tokens.ravel()), shares.ravel())
    counts = np.maximum(np.bincount(y, minlength=classes), 1).astype(np.float32)
    totals /= counts[:, None]
    totals[:, 0] = 0
    strongest = np.argsort(-totals.max(axis=0), kind="stable")[:concepts]
    kept = np.zeros(concepts, np.int32)
    kept[: len(strongest)] = np.where(totals[:, strongest].max(axis=0) > 0, strongest, 0)
    kept.sort()
    relative = np.abs(gap) / np.maximum(np.abs(change), np.finfo(np.float32).tiny)
    own = np.eye(classes, dtype=np.float32)[y].T / counts[:, None]
    found = (totals[:, kept], own @ softmax, own @ relative.astype(np.float32))
    return WordConcepts(jnp.asarray(kept), *map(jnp.asarray, found))


def word_shapes(apply: Apply, variables: Variables, x: Any, concepts: int) -> WordConcepts:
    """Returns shapes and dtypes of the result of :func:`infer_words`, without computing.

    Args:
      apply, concepts: as there.
      variables: arrays, or their shapes and dtypes.
      x: inputs with the leading axis ``B``, or their shapes and dtypes.

    Raises:
      ValueError: inputs that are no tokens with a mask.
    """
    classes = _num_classes(apply, variables, x)
    floats: Any = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    tokens: Any = jax.ShapeDtypeStruct((concepts,), jnp.int32)
    of_classes = floats((classes, concepts)), floats((classes, classes)), floats((classes,))
    return WordConcepts(tokens, *of_classes)


def check_tokens(x: Any) -> None:
    """Raises ``ValueError`` unless inputs are ``{"tokens": int [B, T], "mask": bool [B, T]}``."""
    named = isinstance(x, Mapping) and {"tokens", "mask"} <= set(x)
    if not named or x["tokens"].ndim != 2 or x["mask"].shape != x["tokens"].shape:
        shapes = {name: list(leaf.shape[1:]) for name, leaf in named_leaves(x).items()}
        got = shapes[""] if set(shapes) == {""} else shapes
        raise ValueError(f"sets: expected texts as tokens and mask [T] to find words in, got {got}")


def _num_classes(apply: Apply, variables: Variables, x: Any) -> int:
    check_tokens(x)
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x)
    return int(jax.eval_shape(apply, variables, one).shape[-1])


@functools.lru_cache(maxsize=32)
def _attribute(apply: Apply, embedding: str, nodes: int) -> Callable[..., Any]:
    """Returns the compiled function of texts to scores ``[N, T]``, softmax, gaps and changes.

    The same at every call, so that a second one compiles nothing.
    """
    attribute = layer_integrated_gradients(apply, embedding, gauss_legendre(nodes))

    def run(variables: Variables, x: Any, y: jax.Array) -> Any:
        def some(places: jax.Array) -> Any:
            own = jax.tree.map(lambda leaf: leaf[places], x)
            pads = dict.fromkeys(own) | {"tokens": jnp.zeros_like(own["tokens"])}
            found = attribute(variables, own, starts.label(y[places]), pads)
            change = found.score - found.baseline_score
            softmax = jax.nn.softmax(apply(variables, own))
            return jnp.sum(found.attribution, axis=-1), softmax, found.gap, change

        return in_chunks(some, len(y), _CHUNK)

    return jax.jit(run)
