"""Class unlearning by concept inference and data poisoning (paper 2).

Chang, Zhu, Xu, Liu, Zhou, "Class machine unlearning for complex data via concepts
inference and data poisoning", arXiv 2405.15662.

The steps of the method, each in a place of its own: which concepts make a class
(``jaxunlearn.concepts``), poisoned copies of the images to be forgotten
(``poison_copies``, on the arrays of ``poison``), and fine-tuning with them, here, of a part
of the network (``trained_part``).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn.concepts import Concepts, check_donor, concept_shapes, infer_concepts
from jaxunlearn.core.types import (
    Apply,
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
from jaxunlearn.data.batches import array_shape
from jaxunlearn.jaxprs.structure import cut_at_features
from jaxunlearn.methods.concept_poison import arguments as check
from jaxunlearn.methods.concept_poison.arguments import check_part, paths_of
from jaxunlearn.methods.concept_poison.copies import (
    CHUNK,
    Recipe,
    donors_of,
    poisoned_copies,
    uses_concepts,
)
from jaxunlearn.methods.concept_poison.poison import patch_pixels
from jaxunlearn.methods.shares import as_subset, keep, look_up, share_of
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import DescentState, LossAndMore, accuracy, cross_entropy, descent

__all__ = ["PoisonState", "concept_poison", "keys_of"]

NEEDS = Needs(forget=True, retain=True)


@jax.tree_util.register_static
class Shape(tuple):
    """The shape of an image, as a part of a state that is no array."""


class Keys(NamedTuple):
    """What the key of a run is divided into."""

    fit: Key
    poison: Key
    order: Key
    forget: Key
    retain: Key


def keys_of(key: Key) -> Keys:
    """The keys of the parts of the method."""
    return Keys(*jax.random.split(key, 5))


class PoisonState(NamedTuple):
    """The fine-tuning so far, and what it is done on.

    Attributes:
      fit: variables, optimizer, key.
      retain: ``None``: batches as they are drawn.
      forget: the poisoned copies.
      weight: ``float32 []``, of their loss.
      order: in which what is kept is drawn.
      turn: ``int32 []``, steps so far.
      shape: static.
    """

    fit: DescentState
    retain: Subset | None
    forget: Subset
    weight: jax.Array
    order: Key
    turn: jax.Array
    shape: Shape


def concept_poison(
    model: Model | Apply,
    *,
    bank: str = "patches",
    concepts: int = 16,
    examples: int = 3000,
    class_names: tuple[str, ...] | None = None,
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
        (``"cifar10"``, ``"fashion_mnist"``, ``"mnist"``, ``"digits"``); or a path to a table
        (``.toml``) or to vectors (``.npz``).
      concepts: how many, for ``"patches"``.
      examples: at most so many images are looked at to infer concepts.
      class_names: of the labels, for a table of attributes; needed where the table has its
        classes in another order, or more of them. The command line knows them.
      inferred: concepts that were inferred before, in place of the four above.
      place: ``"localized"`` as described; ``"center"`` or ``"random"`` place; ``"full"``:
        the whole image is replaced; ``"none"``; ``"gradcam"``: the peak of Grad-CAM of
        the class; ``"top"``: at the ``patches`` best places.
      label: ``"targeted"``: the donor class; ``"random"``: uniform over all classes, the
        forgotten one among them, as published; ``"keep"``.
      patch: side of a patch as a share of the shorter side of the image; default
        64 / 224, as published.
      patches: how many, for ``"top"``.
      data: share of each class, forgotten ones too, that is used: 1 or, in the paper's
        half, .5; drawn at random.
      train: ``"head"``; ``"last_block"``, the head and the block before it; ``"all"``; or
        regular expressions, each found in the path of some parameter.
      statistics: batch statistics ``"frozen"`` (the network in inference mode) or
        ``"moving"`` (in training mode; every batch is half poison, whatever ``w`` is, and so
        are the statistics).
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
    check.words(place, label, statistics)
    check_part(train)
    check.numbers(patches, place, data, forget_weight, patch)
    check.inference(bank, concepts, examples)
    model = functionalize(model)
    optimizer = optimizer or optax.sgd(1e-3, momentum=0.9)
    cached = train == "head" and statistics == "frozen"
    cut = cut_at_features(model.apply)
    known: dict[str, Any] = {"bank": bank, "concepts": concepts, "class_names": class_names}

    def recipe(shape: tuple[int, ...]) -> Recipe:
        return Recipe(place, label, patch_pixels(patch, shape), patches)

    def prepare(variables: Variables, sets: Sets, key: Key) -> Concepts | None:
        assert sets.forget is not None
        assert sets.retain is not None
        if not uses_concepts(recipe(array_shape(sets.forget))):
            return None
        found = inferred
        if found is None:
            parts = (sets.forget, sets.retain)
            found = infer_concepts(model, variables, parts, key, examples=examples, **known)
        forgotten = sets.forget.examples.y[sets.forget.indices]
        donor = donors_of(found, sets.retain)
        check_donor(donor, found.bank.names, jnp.unique(forgotten), class_names)
        return found

    def shapes(variables: Variables, sets: Sets) -> Any:
        assert sets.forget is not None
        shape = array_shape(sets.forget)
        if len(shape) != 3:
            raise ValueError(f"sets: expected images [H, W, C] to poison, got {list(shape)}")
        if not uses_concepts(recipe(shape)):
            return None
        x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        if inferred is not None:
            features = jax.eval_shape(cut.upper, variables, x).shape[-1]
            check.fitting(inferred, classes_of(variables, shape), features)
            return jax.eval_shape(lambda: inferred)
        return concept_shapes(model.apply, variables, x, **known)

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
        keys = keys_of(key)
        shape = Shape(array_shape(sets.forget))
        num_classes = classes_of(variables, shape)

        def features(x: jax.Array) -> jax.Array:
            return cut.upper(variables, x)

        slots, size = share_of(sets.forget, data, keys.forget, num_classes)
        copies = poisoned_copies(
            model.apply, recipe(shape), variables, sets.forget, sets.retain, slots, found,
            keys.poison, num_classes, features if cached else lambda x: x,
        )  # fmt: skip
        retain, retained = None, sets.retain.size
        if cached or data < 1:
            chosen = share_of(sets.retain, data, keys.retain, num_classes)
            retain = keep(sets.retain, *chosen, features if cached else None, CHUNK)
            retained = retain.size
        weight = size.astype(jnp.float32) / jnp.maximum(retained, 1).astype(jnp.float32)
        if forget_weight is not None:
            weight = jnp.asarray(forget_weight, jnp.float32)
        start = fit(shape, weight).init(variables, Sets(), keys.fit)
        forget, turn = as_subset(copies.x, copies.y, size), jnp.zeros((), jnp.int32)
        return PoisonState(start, retain, forget, weight, keys.order, turn, shape)

    def step(state: PoisonState, batches: Batches) -> tuple[PoisonState, Info]:
        orders = jax.random.split(state.order)
        parts = (state.forget, batches.forget), (state.retain, batches.retain)
        shown = Batches(*(
            look_up(kept, batch, data == 1, order, state.turn)
            for (kept, batch), order in zip(parts, orders, strict=True)
        ))  # fmt: skip
        inner, info = fit(state.shape, state.weight).step(state.fit, shown)
        return state._replace(fit=inner, turn=state.turn + 1), info

    def result(state: PoisonState) -> Variables:
        return fit(state.shape, state.weight).result(state.fit)

    return Unlearner(init, step, result, NEEDS, Preparation(prepare, shapes))
