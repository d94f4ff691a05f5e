"""Class unlearning by concept inference and data poisoning (paper 2).

Chang, Zhu, Xu, Liu, Zhou, "Class machine unlearning for complex data via concepts
inference and data poisoning", arXiv 2405.15662.

The steps of the method, each in a place of its own: which concepts make a class
(``jaxunlearn.concepts``), poisoned copies of the images to be forgotten
(``poison_copies``, on the arrays of ``poison``), and fine-tuning with them, here, of a part
of the network (``trained_part``).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.attribution.cut import cut_at_features
from jaxunlearn.concepts import Concepts, check_donor, concept_shapes, infer_concepts
from jaxunlearn.data.sampling import fetch
from jaxunlearn.members import in_chunks
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import (
    DescentState,
    LossAndMore,
    accuracy,
    cross_entropy,
    descent,
)
from jaxunlearn.types import (
    Apply,
    Batch,
    Batches,
    Info,
    Key,
    Model,
    Needs,
    Preparation,
    Sets,
    Subset,
    Unlearner,
    Variables,
)
from jaxunlearn.unlearners import poison as _poison
from jaxunlearn.unlearners.poison_copies import (
    CHUNK,
    Recipe,
    donors_of,
    poisoned_copies,
    uses_concepts,
)
from jaxunlearn.unlearners.trained_part import check_part, paths_of

__all__ = ["STATISTICS", "Kept", "PoisonState", "concept_poison"]

STATISTICS = ("frozen", "moving")
NEEDS = Needs(forget=True, retain=True)


class Kept(NamedTuple):
    """Examples that are trained on.

    Attributes:
      x: ``[M, ...]``, images or the features of images.
      y: ``int32 [M]``.
      size: ``int32 []``, how many there are; the others repeat them.
    """

    x: jax.Array
    y: jax.Array
    size: jax.Array


@jax.tree_util.register_static
class Shape(tuple):
    """The shape of an image, as a part of a state that is no array."""


class PoisonState(NamedTuple):
    """The fine-tuning so far, and what it is done on.

    Attributes:
      fit: variables, optimizer, key.
      retain: ``None``: batches as they are drawn.
      forget: the poisoned copies.
      weight: ``float32 []``, of their loss.
      shape: static.
    """

    fit: DescentState
    retain: Kept | None
    forget: Kept
    weight: jax.Array
    shape: Shape


def concept_poison(
    model: Model | Apply,
    *,
    bank: str = "patches",
    concepts: int = 16,
    examples: int = 3000,
    inferred: Concepts | None = None,
    place: str = "localized",
    label: str = "targeted",
    patch: float | None = None,
    patches: int = 1,
    data: float = 1.0,
    train: str | tuple[str, ...] = "head",
    statistics: str = "frozen",
    forget_weight: float | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Unlearner:
    """Finds the concepts of a class, poisons its images through them and fine-tunes.

    1. *Concepts*: a bank of vectors in the space of the features ``e`` that the head reads,
       a post-hoc bottleneck on the margins ``m = (C e + b) / |C|``, and integrated
       gradients of the class's logit with respect to these
       (:func:`jaxunlearn.concepts.infer_concepts`).
    2. *Donor*: of the concepts that score highest in the class the first that is the top
       concept of another class names the donor (:func:`jaxunlearn.concepts.choose_donor`).
    3. *Poison*: each forget image gets a patch of a random donor image, taken where the
       shared concept peaks, pasted where the class's own top concept peaks.
    4. *Fine-tuning* on ``l(B_r, y) + w l(B_p, y')``: retained images with their labels,
       poisoned copies with those of ``label``.

    The defaults are the published form (full data, head alone). The authors note that a
    targeted flip of labels forgets without any patch; so it does here.

    With ``train="head"`` and frozen statistics the features are computed once, and steps
    run on these alone.

    Args:
      model: see :func:`jaxunlearn.functionalize`; images ``[B, H, W, C]``.
      bank: ``"patches"`` (concepts learned by factorising the features of image
        patches; needs features >= 0); the name of a table of attributes
        (``"cifar10"``, ``"fashion_mnist"``, ``"mnist"``); or a path to a table
        (``.toml``) or to vectors (``.npz``).
      concepts: how many, for ``"patches"``.
      examples: at most so many images are looked at to infer concepts.
      inferred: concepts that were inferred before, in place of the three above.
      place: ``"localized"`` as described; ``"center"`` or ``"random"`` place; ``"full"``:
        the whole image is replaced; ``"none"``; ``"gradcam"``: the peak of Grad-CAM of
        the class; ``"top"``: at the ``patches`` best places.
      label: ``"targeted"``: the donor class; ``"random"``: uniform over all classes;
        ``"keep"``.
      patch: side of a patch as a share of the shorter side of the image; default
        64 / 224, as published.
      patches: how many, for ``"top"``.
      data: share of each class, forgotten ones too, that is used: 1 or, in the paper's
        half, .5; drawn at random.
      train: ``"head"``; ``"last_block"``, the head and the block before it; ``"all"``; or
        regular expressions, each found in the path of some parameter.
      statistics: batch statistics ``"frozen"`` (the network in inference mode) or
        ``"moving"`` (in training mode).
      forget_weight: ``w``, not negative. Default: the number of poisoned examples over
        that of retained ones, as if both were drawn from one pool, which is the published
        form; batches hold as many of either, so that the few are seen often.
      optimizer: default SGD with momentum .9 and rate .001, as published.

    Returns:
      A method of as many steps as one asks for; it needs ``forget`` and ``retain``. Its
      preparation is a :class:`~jaxunlearn.concepts.Concepts`, found in
      ``outcome.prepared``.

    Raises:
      ValueError: an argument out of range. From the run, before any step: images of
        another rank, features that the bank cannot have, a class without a donor.

    Source: arXiv 2405.15662; ``data`` as a share, ``last_block`` and patterns are ours.
    """
    _check_words(place, label, statistics)
    check_part(train)
    _check_numbers(patches, place, data, forget_weight, patch)
    model = functionalize(model)
    optimizer = optimizer or optax.sgd(1e-3, momentum=0.9)
    cached = train == "head" and statistics == "frozen"
    cut = cut_at_features(model.apply)
    known: dict[str, Any] = {"bank": bank, "concepts": concepts, "examples": examples}

    def recipe(shape: tuple[int, ...]) -> Recipe:
        return Recipe(place, label, _poison.patch_pixels(patch, shape), patches)

    def prepare(variables: Variables, sets: Sets, key: Key) -> Concepts | None:
        assert sets.forget is not None
        assert sets.retain is not None
        if not uses_concepts(recipe(sets.forget.examples.x.shape[1:])):
            return None
        found = inferred
        if found is None:
            parts = (sets.forget, sets.retain)
            found = infer_concepts(model.apply, variables, parts, key, **known)
        forgotten = sets.forget.examples.y[sets.forget.indices]
        check_donor(donors_of(found, sets.retain), found.bank.names, jnp.unique(forgotten))
        return found

    def shapes(variables: Variables, sets: Sets) -> Any:
        assert sets.forget is not None
        shape = sets.forget.examples.x.shape[1:]
        if len(shape) != 3:
            raise ValueError(f"sets: expected images [H, W, C] to poison, got {list(shape)}")
        if not uses_concepts(recipe(shape)):
            return None
        if inferred is not None:
            return jax.eval_shape(lambda: inferred)
        x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        return concept_shapes(model.apply, variables, x, bank=bank, concepts=concepts)

    def classes_of(variables: Variables, shape: tuple[int, ...]) -> int:
        x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        classes: int = jax.eval_shape(model.apply, variables, x).shape[-1]
        return classes

    def fit(shape: Shape, weight: jax.Array) -> Unlearner:
        def objective(variables: Variables, batches: Batches, key: Key) -> LossAndMore:
            forget, retain = batches.forget, batches.retain
            assert forget is not None
            assert retain is not None
            both, moved = jnp.concatenate([forget.x, retain.x]), variables
            if cached:
                logits = cut.lower(variables, both, shape)
            elif statistics == "frozen":
                logits = model.apply(variables, both)
            else:
                logits, moved = model.apply_train(variables, both, key)
            z_forget, z_retain = jnp.split(logits, [len(forget.y)])
            loss = cross_entropy(z_retain, retain.y, retain.weight)
            loss += weight * cross_entropy(z_forget, forget.y, forget.weight)
            metrics = {
                "accuracy": accuracy(z_retain, retain),
                "accuracy_poisoned": accuracy(z_forget, forget),
            }
            return loss, (moved, metrics)

        def only(variables: Variables) -> frozenset[str]:
            return paths_of(train, model.apply, variables, shape)

        return descent(objective, optimizer, NEEDS, only=only)

    def init(variables: Variables, sets: Sets, key: Key, found: Concepts | None) -> PoisonState:
        assert sets.forget is not None
        assert sets.retain is not None
        own, poison_key, *share_keys = jax.random.split(key, 4)
        shape = Shape(sets.forget.examples.x.shape[1:])
        num_classes = classes_of(variables, shape)

        def kept(x: jax.Array) -> jax.Array:
            return cut.upper(variables, x) if cached else x

        slots, size = _share(sets.forget, data, share_keys[0], num_classes)
        copies = poisoned_copies(
            model.apply, recipe(shape), variables, sets.forget, sets.retain, slots, found,
            poison_key, num_classes, kept,
        )  # fmt: skip
        retain, retained = None, sets.retain.size
        if cached or data < 1:
            retain = _kept(sets.retain, data, share_keys[1], num_classes, kept)
            retained = retain.size
        weight = size.astype(jnp.float32) / jnp.maximum(retained, 1).astype(jnp.float32)
        if forget_weight is not None:
            weight = jnp.asarray(forget_weight, jnp.float32)
        start = fit(shape, weight).init(variables, Sets(), own)
        return PoisonState(start, retain, Kept(copies.x, copies.y, size), weight, shape)

    def step(state: PoisonState, batches: Batches) -> tuple[PoisonState, Info]:
        shown = Batches(
            forget=_look_up(state.forget, batches.forget),
            retain=_look_up(state.retain, batches.retain),
        )
        inner, info = fit(state.shape, state.weight).step(state.fit, shown)
        return state._replace(fit=inner), info

    def result(state: PoisonState) -> Variables:
        return fit(state.shape, state.weight).result(state.fit)

    return Unlearner(init, step, result, NEEDS, Preparation(prepare, shapes))


def _check_words(place: str, label: str, statistics: str) -> None:
    choices = {"place": _poison.PLACES, "label": _poison.LABELS, "statistics": STATISTICS}
    given = {"place": place, "label": label, "statistics": statistics}
    for name, value in given.items():
        if value not in choices[name]:
            raise ValueError(f"{name}: expected one of {', '.join(choices[name])}, got {value!r}")


def _check_numbers(
    patches: int, place: str, data: float, forget_weight: float | None, patch: float | None
) -> None:
    if patches < 1 or (patches > 1 and place != "top"):
        raise ValueError(f"patches: expected 1, or more with place 'top', got {patches}")
    if not 0 < data <= 1:
        raise ValueError(f"data: expected a share above 0, at most 1, got {data}")
    if forget_weight is not None and not 0 <= forget_weight < math.inf:
        raise ValueError(f"forget_weight: expected a number >= 0, got {forget_weight}")
    if patch is not None and not 0 < patch <= 1:
        raise ValueError(
            f"patch: expected a share of the image's side, at most 1 (a larger patch does not "
            f"fit), got {patch}"
        )


def _share(part: Subset, share: float, key: Key, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Slots of a random share of each class, padded, and how many they are."""
    if share == 1:  # in order: what is kept of an example lies where the example does
        return jnp.arange(len(part.indices), dtype=jnp.int32), part.size
    labels = part.examples.y[part.indices]
    capacity = _poison.capacity_of(len(labels), share, num_classes)
    return _poison.keep_share(labels, part.size, share, key, capacity, num_classes)


def _kept(part: Subset, share: float, key: Key, num_classes: int, made: Any) -> Kept:
    """A share of a subset as it is trained on."""
    slots, size = _share(part, share, key, num_classes)
    positions = part.indices[slots]
    x = in_chunks(lambda rows: made(fetch(part.examples, positions[rows])), len(slots), CHUNK)
    return Kept(x, part.examples.y[positions], size)


def _look_up(kept: Kept | None, batch: Batch | None) -> Batch | None:
    """What is kept in the place of drawn examples; each comes equally often."""
    if kept is None or batch is None:
        return batch
    slots = batch.slot % jnp.maximum(kept.size, 1)
    return batch._replace(x=kept.x[slots], y=kept.y[slots], slot=slots)
