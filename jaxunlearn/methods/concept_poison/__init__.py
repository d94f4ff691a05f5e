"""Class unlearning by concept inference and data poisoning (paper 2).

Chang, Zhu, Xu, Liu, Zhou, "Class machine unlearning for complex data via concepts
inference and data poisoning", arXiv 2405.15662.

The steps of the method, each in a place of its own: the concepts that make a class
(``jaxunlearn.concepts``), poisoned copies of the images to be forgotten (``poison``), and
fine-tuning with them (``tuning``).
"""

import warnings
from typing import Any

import jax
import numpy as np
import optax

from jaxunlearn import concepts as _concepts
from jaxunlearn.concepts import Concepts
from jaxunlearn.core import errors
from jaxunlearn.core.types import Apply, Inputs, Key, Model, Preparation, Sets, Unlearner, Variables
from jaxunlearn.data.examples import array_shape, inputs_like
from jaxunlearn.data.sets import labels_of
from jaxunlearn.jaxprs.cuts import cut_at_features
from jaxunlearn.methods.concept_poison import poison
from jaxunlearn.methods.concept_poison.tuning import Source, Tuning, tune_on_poison
from jaxunlearn.models import functionalize


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
    tuning = Tuning(data, train, statistics, forget_weight, optimizer)
    tuning.check()
    errors.expect_counts(concepts=concepts)
    if not errors.is_count(patches) or (patches > 1 and place != "top"):
        raise ValueError(
            f"patches: expected 1, or more with place 'top', got {errors.brief(patches)}"
        )
    poison.patch_pixels(patch, (1, 1))  # refuses a share out of range before any work
    _concepts.check_bank(bank)
    errors.expect_counts(examples=examples)
    if inferred is not None:
        errors.expect("inferred", inferred, Concepts, "; infer_concepts makes them")
    if class_names is not None:
        errors.expect_texts(class_names=class_names)
    if concepts < 2:
        raise ValueError(f"concepts: expected at least 2, got {concepts}")
    model = functionalize(model)
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
        donor = poison.donors_of(found, labels_of(sets.retain))
        _concepts.check_donor(
            donor, found.bank.names, np.array(labels_of(sets.forget)), class_names
        )
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

    def copies(source: Source) -> tuple[Inputs, jax.Array]:
        forget, retain = source.sets.forget, source.sets.retain
        assert forget is not None
        assert retain is not None
        found = poison.poison_images(
            model.apply, recipe(source.sets), source.variables, forget, retain, source.prepared,
            source.key, slots=source.slots, made=source.made,
        )  # fmt: skip
        return found.x, found.y

    return tune_on_poison(model, copies, Preparation(prepare, shapes), tuning, "concept_poison")


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
