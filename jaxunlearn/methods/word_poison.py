"""Class unlearning of texts by concept words and data poisoning (paper 2).

The counterpart of ``concept_poison`` for networks of tokens: concepts are words, and what is
pasted from a text of the donor are its words. The fine-tuning is the same.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.concepts import choose_donor
from jaxunlearn.concepts.words import WordConcepts, check_tokens, infer_words, word_shapes
from jaxunlearn.core.errors import expect_counts, expect_one_of
from jaxunlearn.core.trees import in_chunks
from jaxunlearn.core.types import (
    Apply,
    Inputs,
    Key,
    Model,
    Preparation,
    Sets,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.data.examples import fetch, inputs_like
from jaxunlearn.methods.concept_poison.poison import LABELS, lenders, poison_labels
from jaxunlearn.methods.concept_poison.tuning import Source, Tuning, tune_on_poison
from jaxunlearn.methods.shares import CHUNK, donor_positions, occurring
from jaxunlearn.models import functionalize

PLACES = ("concepts", "random", "all", "none")
"""Words that are replaced."""


class PoisonedTexts(NamedTuple):
    """Poisoned texts.

    Attributes:
      x: ``{"tokens": int32 [C, T], "mask": bool [C, T]}``, or what was made of them.
      y: ``int32 [C]``, their new labels.
      replaced: ``bool [C, T]``, which words are the donor's.
      donors: ``int32 [C]``, slots of the donor texts in the retain set.
    """

    x: Inputs
    y: jax.Array
    replaced: jax.Array
    donors: jax.Array


def word_poison(
    model: Model | Apply,
    *,
    place: str = "concepts",
    label: str = "targeted",
    words: int = 5,
    concepts: int = 64,
    examples: int = 1000,
    nodes: int = 16,
    embedding: str = "embedding",
    data: float = 1.0,
    train: str | tuple[str, ...] = "head",
    statistics: str = "frozen",
    forget_weight: float | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Unlearner:
    """Finds the concept words of a class, poisons its texts through them and fine-tunes.

    1. *Concepts*: words that speak for each class, by integrated gradients of its logit at the
       embeddings (:func:`jaxunlearn.concepts.infer_words`).
    2. *Donor*: of the class's five strongest words the first that is the strongest of another
       class names the donor; else it is the class that its texts are most taken for
       (:func:`word_donors`).
    3. *Poison*: each forget text gets a random text of the donor. Its words of the largest values
       in its class are replaced, the strongest by the strongest, by those of the donor's text of
       the largest values in the donor's class.
    4. *Fine-tuning* on ``l(B_r, y) + w l(B_p, y')``: retained texts with their labels, poisoned
       copies with those of ``label``.

    Args:
      model: see :func:`jaxunlearn.functionalize`; of ``{"tokens": int [B, T], "mask": bool
        [B, T]}``.
      place: ``"concepts"`` as described; ``"random"``: words drawn at random, of both texts;
        ``"all"``: the donor's whole text; ``"none"``.
      label: ``"targeted"``: the donor class; ``"random"``: uniform over all that occur, the
        forgotten one among them; ``"keep"``.
      words: of a text that are replaced, at most.
      concepts: how many words count as concepts, of all classes together.
      examples, nodes, embedding: see :func:`jaxunlearn.concepts.infer_words`.
      data, train, statistics, forget_weight, optimizer: see :func:`jaxunlearn.concept_poison`.

    Returns:
      A method of as many steps as one asks for; it needs ``forget`` and ``retain``. Its
      preparation is a :class:`~jaxunlearn.concepts.WordConcepts`, in ``outcome.prepared``.

    Raises:
      ValueError: an argument out of range. From the run, before any step: inputs that are no
        tokens with a mask, embeddings without the name, no retained class.

    Source: arXiv 2405.15662, carried over from images and answers to classes of texts.
    """
    expect_one_of(PLACES, place=place)
    expect_one_of(LABELS, label=label)
    expect_counts(words=words, concepts=concepts, examples=examples, nodes=nodes)
    tuning = Tuning(data, train, statistics, forget_weight, optimizer)
    tuning.check()
    model = functionalize(model)
    uses_concepts = place != "none" or label == "targeted"

    def prepare(variables: Variables, sets: Sets, key: Key) -> WordConcepts | None:
        forget, retain = _both(sets)
        if not uses_concepts:
            return None
        found = infer_words(
            model, variables, (forget, retain), key,
            concepts=concepts, examples=examples, nodes=nodes, embedding=embedding,
        )  # fmt: skip
        forgotten = jnp.unique(forget.examples.y[forget.indices])
        if bool(jnp.any(word_donors(found, retain)[forgotten] < 0)):
            raise ValueError("sets: expected retained texts of another class to lend, got none")
        return found

    def shapes(variables: Variables, sets: Sets) -> WordConcepts | None:
        x = inputs_like(_both(sets)[0])
        found = word_shapes(model.apply, variables, x, concepts)
        return found if uses_concepts else None

    def poison(source: Source) -> tuple[Inputs, jax.Array]:
        made = poison_texts(
            place, label, words, *_both(source.sets), source.prepared, source.key,
            num_classes=_num_classes(model.apply, source), slots=source.slots, made=source.made,
        )  # fmt: skip
        return made.x, made.y

    return tune_on_poison(model, poison, Preparation(prepare, shapes), tuning, "word_poison")


def word_donors(concepts: WordConcepts, retain: Subset, top: int = 5) -> jax.Array:
    """Chooses the donor of each class among those that the retain set has texts of.

    Of the ``top`` words of a class the first that is the strongest word of another names the
    donor (:func:`jaxunlearn.concepts.choose_donor`); where none is, the donor is the class that
    its texts are most taken for.

    Returns:
      ``int32 [K]``; -1 where no other class has texts.
    """
    values, num_classes = concepts.values, len(concepts.values)
    allowed = lenders(retain, num_classes) & ~jnp.eye(num_classes, dtype=bool)
    useful, weights = concepts.tokens > 0, jnp.zeros_like(values)
    sharing = choose_donor(values, weights, useful, allowed, top).label
    confused = jnp.where(allowed, concepts.confusion, -1)
    other = jnp.where(jnp.any(allowed, axis=1), jnp.argmax(confused, axis=1), -1)
    return jnp.where(sharing >= 0, sharing, other).astype(jnp.int32)


def poison_texts(
    place: str,
    label: str,
    words: int,
    forget: Subset,
    retain: Subset,
    concepts: WordConcepts | None,
    key: Key,
    *,
    num_classes: int,
    slots: jax.Array,
    made: Any = lambda x: x,
    first: int | None = None,
) -> PoisonedTexts:
    """Makes copies of forget texts with words of donor texts, and with other labels.

    A text that has none of its class's words, or whose donor has none, stays as it is; a donor
    with fewer words than are replaced lends them again.

    Args:
      place, label, words: see :func:`word_poison`.
      concepts: ``None`` for copies without other words whose label is not the donor's.
      num_classes: ``K``.
      slots: ``int32 [C]``, which of the forget set, places in its order.
      made: what is kept of poisoned texts, ``[c, ...] -> [c, ...]``.
      first: only so many of the texts are made, the same as if all were.
    """
    check_tokens(inputs_like(forget))
    positions = forget.indices[slots]
    labels = forget.examples.y[positions]
    lend_key, own_key, other_key, label_key = jax.random.split(key, 4)
    wanted, donors = labels, jnp.zeros_like(labels)
    if concepts is not None:
        wanted = word_donors(concepts, retain)[labels]
        own = retain.examples.y[retain.indices]
        donors = jnp.maximum(donor_positions(own, retain.size, wanted, lend_key), 0)

    def strength(x: Any, classes: jax.Array, key: Key, rows: jax.Array) -> jax.Array:
        """Returns how early each word is taken, ``[c, T]``; 0: never."""
        if place == "random":
            keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
            shape = x["tokens"].shape[1:]
            found = jax.vmap(lambda k: jax.random.uniform(k, shape, minval=0.5))(keys)
        else:
            assert concepts is not None
            at = jnp.searchsorted(concepts.tokens, x["tokens"])
            at = jnp.minimum(at, len(concepts.tokens) - 1)
            known = concepts.tokens[at] == x["tokens"]
            values = jnp.take_along_axis(concepts.values[classes], at, axis=1)
            found = jnp.where(known, values, 0)
        return jnp.where(x["mask"], found, 0)

    def one(rows: jax.Array) -> tuple[Inputs, jax.Array]:
        x = fetch(forget.examples, positions[rows])
        if place == "none":
            return made(x), jnp.zeros_like(x["mask"])
        lent = fetch(retain.examples, retain.indices[donors[rows]])
        if place == "all":
            return made(lent), lent["mask"]
        ours = strength(x, labels[rows], own_key, rows)
        theirs = strength(lent, wanted[rows], other_key, rows)
        tokens, replaced = exchange(x["tokens"], ours, lent["tokens"], theirs, words)
        return made({**x, "tokens": tokens}), replaced

    count = len(slots) if first is None else first
    x, replaced = in_chunks(one, count, CHUNK)
    occurs = occurring([forget, retain], num_classes)
    y = poison_labels(label, labels, wanted, num_classes, label_key, occurs)
    return PoisonedTexts(x, y, replaced, donors)


def exchange(
    tokens: jax.Array, ours: jax.Array, lent: jax.Array, theirs: jax.Array, words: int
) -> tuple[jax.Array, jax.Array]:
    """Replaces the strongest words of texts by the strongest of others.

    Args:
      tokens, lent: ``int32 [B, T]``, the texts and those that lend.
      ours, theirs: ``float [B, T]``, strengths; a word of 0 is neither replaced nor lent. Of equal
        ones the first.
      words: how many are replaced, at most.

    Returns:
      ``int32 [B, T]``, and ``bool [B, T]``, which words are others.
    """
    own, at = jax.lax.top_k(ours, min(words, ours.shape[1]))
    other, taken = jax.lax.top_k(theirs, min(words, theirs.shape[1]))
    count = jnp.sum(other > 0, axis=1, dtype=jnp.int32)[:, None]
    rank = jnp.arange(own.shape[1], dtype=jnp.int32)[None] % jnp.maximum(count, 1)
    source = jnp.take_along_axis(taken, rank, axis=1)
    goes = (own > 0) & (count > 0)
    row = jnp.arange(len(tokens), dtype=jnp.int32)[:, None]
    # places of no strength are written to no column
    column = jnp.where(goes, at, tokens.shape[1])
    given = jnp.take_along_axis(lent, source, axis=1)
    replaced = jnp.zeros(tokens.shape, bool).at[row, column].set(True, mode="drop")
    return tokens.at[row, column].set(given, mode="drop"), replaced


def _both(sets: Sets) -> tuple[Subset, Subset]:
    assert sets.forget is not None
    assert sets.retain is not None
    return sets.forget, sets.retain


def _num_classes(apply: Apply, source: Source) -> int:
    x = inputs_like(_both(source.sets)[0])
    return int(jax.eval_shape(apply, source.variables, x).shape[-1])
