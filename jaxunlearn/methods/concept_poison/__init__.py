"""Class unlearning by concept inference and data poisoning (paper 2).

Chang, Zhu, Xu, Liu, Zhou, "Class machine unlearning for complex data via concepts
inference and data poisoning", arXiv 2405.15662.

The steps of the method, each in a place of its own: the concepts that make a class
(``jaxunlearn.concepts``), poisoned copies of the images to be forgotten (``poison``), and
fine-tuning with them, here.
"""

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import concepts as _concepts
from jaxunlearn.concepts import Concepts
from jaxunlearn.core import errors
from jaxunlearn.core.types import (
    Apply,
    Batches,
    Info,
    Key,
    Model,
    Needs,
    Preparation,
    Sets,
    Unlearner,
    Variables,
)
from jaxunlearn.data.examples import array_shape, inputs_like
from jaxunlearn.jaxprs.structure import cut_at_features
from jaxunlearn.methods.concept_poison import poison
from jaxunlearn.methods.shares import Kept, as_subset, keep, redraw, share_of
from jaxunlearn.models import functionalize
from jaxunlearn.training.descent import (
    Context,
    DescentState,
    LossAndMore,
    accuracy,
    cross_entropy,
    descent,
)
from jaxunlearn.training.optimizers import PARTS, only, part_mask

STATISTICS = ("frozen", "moving")

NEEDS = Needs(forget=True, retain=True)


class Keys(NamedTuple):
    """Keys of the parts of the method."""

    poison: Key
    order: Key
    forget: Key
    retain: Key


def keys_of(key: Key) -> Keys:
    """Divides the key that the runner gives to ``init``."""
    return Keys(*jax.random.split(key, 4))


class Material(NamedTuple):
    """Examples that the network is fine-tuned on.

    Attributes:
      forget: the poisoned copies.
      retain: ``None``: batches as they are drawn.
      weight: ``float32 []``, of the loss of the copies.
    """

    forget: Kept
    retain: Kept | None
    weight: jax.Array


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
        classes in another order, or more of them. The command line passes those of the
        data; a table of one's own that has none of these names is in the order of the labels.
      inferred: concepts that were inferred before, in place of the four above.
      place: ``"localized"`` as described; ``"center"`` or ``"random"`` place; ``"full"``:
        the whole image is replaced; ``"none"``; ``"gradcam"``: the peak of Grad-CAM of
        the class; ``"top"``: at the ``patches`` best places.
      label: ``"targeted"``: the donor class; ``"random"``: uniform over all that occur, the
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
    errors.expect_one_of(poison.PLACES, place=place)
    errors.expect_one_of(poison.LABELS, label=label)
    errors.expect_one_of(STATISTICS, statistics=statistics)
    errors.expect_patterns(PARTS, train=train)
    if patches < 1 or (patches > 1 and place != "top"):
        raise ValueError(f"patches: expected 1, or more with place 'top', got {patches}")
    errors.expect_shares(data=data)
    poison.patch_pixels(patch, (1, 1))  # refuses a share out of range before any work
    if forget_weight is not None and not 0 <= forget_weight < math.inf:
        raise ValueError(f"forget_weight: expected a number of 0 or more, got {forget_weight}")
    _concepts.check_bank(bank)
    errors.expect_counts(examples=examples)
    if concepts < 2:
        raise ValueError(f"concepts: expected at least 2, got {concepts}")
    model = functionalize(model)
    optimizer = optimizer or optax.sgd(1e-3, momentum=0.9)
    cached = train == "head" and statistics == "frozen"
    cut = cut_at_features(model.apply)
    uses_concepts = place != "none" or label == "targeted"
    known: dict[str, Any] = {"bank": bank, "concepts": concepts}
    if uses_concepts and inferred is None:
        known["class_names"] = _names_of(bank, class_names)

    def recipe(sets: Sets) -> poison.Recipe:
        assert sets.forget is not None
        return poison.Recipe(
            place, label, poison.patch_pixels(patch, array_shape(sets.forget)), patches
        )

    def prepare(variables: Variables, sets: Sets, key: Key) -> Concepts | None:
        assert sets.forget is not None
        assert sets.retain is not None
        if not uses_concepts:
            return None
        found = inferred
        if found is None:
            parts = (sets.forget, sets.retain)
            found = _concepts.infer_concepts(
                model, variables, parts, key, examples=examples, **known
            )
        forgotten = jnp.unique(sets.forget.examples.y[sets.forget.indices])
        donor = poison.donors_of(found, sets.retain)
        _concepts.check_donor(donor, found.bank.names, forgotten, class_names)
        return found

    def shapes(variables: Variables, sets: Sets) -> Any:
        assert sets.forget is not None
        x = inputs_like(sets.forget)
        if len(shape := array_shape(sets.forget)) != 3:
            raise ValueError(f"sets: expected images [H, W, C] to poison, got {list(shape)}")
        if not uses_concepts:
            return None
        if inferred is None:
            return _concepts.concept_shapes(model.apply, variables, x, **known)
        classes = jax.eval_shape(model.apply, variables, x).shape[-1]
        _expect_form(inferred, classes, jax.eval_shape(cut.upper, variables, x).shape[-1])
        return jax.eval_shape(lambda: inferred)

    def objective(variables: Variables, batches: Batches, context: Context) -> LossAndMore:
        assert batches.forget is not None
        material: Material = context.prepared
        forget = redraw(material.forget, batches.forget, context.step)
        retain = redraw(material.retain, batches.retain, context.step)
        assert forget is not None
        assert retain is not None
        both, moved = jnp.concatenate([forget.x, retain.x]), variables
        if cached:
            logits = cut.lower(variables, both, batches.forget.x.shape[1:])
        elif statistics == "frozen":
            logits = model.apply(variables, both)
        else:
            logits, moved = model.apply_train(variables, both, context.key)
        z_forget, z_retain = jnp.split(logits, [len(forget.y)])
        loss = cross_entropy(z_retain, retain.y, retain.weight)
        loss += material.weight * cross_entropy(z_forget, forget.y, forget.weight)
        metrics = {
            "accuracy": accuracy(z_retain, retain),
            "accuracy_poisoned": accuracy(z_forget, forget),
        }
        return loss, (moved, metrics)

    def tuning(variables: Variables, x: Any) -> Unlearner:
        """Returns the fine-tuning of the part of a network that takes ``x``."""
        trained = part_mask(train, model.apply, variables, x)
        return descent(objective, only(optimizer, trained), NEEDS)

    def init(variables: Variables, sets: Sets, key: Key, found: Concepts | None) -> DescentState:
        assert sets.forget is not None
        assert sets.retain is not None
        keys, x = keys_of(key), inputs_like(sets.forget)
        num_classes = jax.eval_shape(model.apply, variables, x).shape[-1]
        orders = jax.random.split(keys.order) if data < 1 else (None, None)

        def features(x: jax.Array) -> jax.Array:
            return cut.upper(variables, x)

        slots, size = share_of(sets.forget, data, keys.forget, num_classes)
        copies = poison.poison_images(
            model.apply, recipe(sets), variables, sets.forget, sets.retain, found, keys.poison,
            slots=slots, made=features if cached else lambda x: x,
        )  # fmt: skip
        forget = Kept(as_subset(copies.x, copies.y, size), orders[0])
        retain, retained = None, sets.retain.size
        if cached or data < 1:
            slots, retained = share_of(sets.retain, data, keys.retain, num_classes)
            made = features if cached else None
            retain = keep(sets.retain, slots, retained, made=made, order=orders[1])
        weight = size.astype(jnp.float32) / jnp.maximum(retained, 1).astype(jnp.float32)
        if forget_weight is not None:
            weight = jnp.asarray(forget_weight, jnp.float32)
        material = Material(forget, retain, weight)
        return tuning(variables, x).init(variables, Sets(), key)._replace(prepared=material)

    def step(
        state: DescentState, batches: Batches, key: Key, count: jax.Array
    ) -> tuple[DescentState, Info]:
        assert batches.forget is not None
        return tuning(state.variables, batches.forget.x).step(state, batches, key, count)

    def result(state: DescentState) -> Variables:
        return state.variables

    return Unlearner(
        init, step, result, NEEDS, Preparation(prepare, shapes), model=model, forgets=("class",),
        name="concept_poison",
    )  # fmt: skip


def _names_of(bank: str, class_names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Returns the class names by which a bank's table is read; ``None``: in the order of labels.

    A run passes its class names unasked, and a table of one's own may call the classes by other
    names: it then lies in the order of the labels, as its documentation says.
    """
    if class_names is None or bank == "patches" or bank.endswith(".npz"):
        return None
    classes = _concepts.load_table(bank).classes
    unknown = set(class_names) - set(classes)
    if bank in _concepts.TABLES or not unknown:
        return class_names
    if unknown != set(class_names):
        warnings.warn(
            f"class_names: expected some of {', '.join(classes)}, got {', '.join(sorted(unknown))} "
            f"as well; {bank} is read in the order of the labels",
            stacklevel=3,
        )
    return None


def _expect_form(inferred: Concepts, classes: int, features: int) -> None:
    """Raises ``ValueError`` for concepts that were inferred from another network."""
    got = (inferred.values.shape[0], inferred.bank.vectors.shape[1])
    if got != (classes, features):
        raise ValueError(
            f"inferred: expected concepts of {classes} classes and {features} features, "
            f"got {got[0]} and {got[1]}"
        )
