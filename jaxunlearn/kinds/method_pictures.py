"""The pictures of a method: what it found in a network, and what it changed."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.attribution import lrp
from jaxunlearn.attribution import starts as seeds
from jaxunlearn.attribution.lrp import rules
from jaxunlearn.attribution.maps import concept_maps
from jaxunlearn.concepts import (
    Concepts,
    bottleneck_accuracy,
    concept_scores,
    feature_fn,
    fit_bottleneck,
    typical_patches,
)
from jaxunlearn.core.types import Examples, Key, Model, Sets, Subset, Variables
from jaxunlearn.data.batches import fetch
from jaxunlearn.data.sets import labels_of, num_examples, whole
from jaxunlearn.engine.loop import own_key
from jaxunlearn.engine.predict import predict
from jaxunlearn.methods import method_options
from jaxunlearn.methods.concept_poison import keys_of
from jaxunlearn.methods.concept_poison.copies import Recipe, directions, donors_of, poisoned_copies
from jaxunlearn.methods.concept_poison.poison import patch_pixels
from jaxunlearn.methods.shares import share_of
from jaxunlearn.pictures import (
    save_concepts,
    save_heatmaps,
    save_maps,
    save_patches,
    save_path,
    save_poison,
)

IMAGES = 6
"""Rows of a picture of images."""

EXAMPLES = 600
"""Images that a mean is taken over."""

CONCEPTS = 4
"""Concepts whose maps are drawn."""


class Subject(NamedTuple):
    """What a method was run on, and what came of it.

    Attributes:
      name: of the method, as in ``METHODS``.
      options: its keyword arguments, where they are not the defaults.
      sets: of one request.
      key: that the method was run with.
      prepared: what it found before it was run, if it prepares anything.
      class_names: of the labels.
    """

    name: str
    options: Mapping[str, Any]
    model: Model
    original: Variables
    unlearned: Variables
    sets: Sets
    key: Key
    prepared: Any
    class_names: Sequence[str]


def draw_method(folder: Path, subject: Subject) -> None:
    """The pictures of a method, if it has any, as PNG."""
    if subject.name in PAGES:
        PAGES[subject.name](folder, subject)


def _path_pages(folder: Path, subject: Subject) -> None:
    """Heat maps of unseen images, and the path that was edited."""
    part = subject.sets.unseen
    assert part is not None
    shown = _first(part, 36)
    if shown.x.ndim != 4 or shown.x.shape[-1] not in (1, 3):
        return
    names = [subject.class_names[label] for label in np.asarray(shown.y[:IMAGES])]
    relevance = jax.jit(lrp(subject.model.apply, rules.epsilon_plus()))
    found = relevance(subject.original, shown.x[:IMAGES], seed=seeds.label(shown.y[:IMAGES]))
    title = "original: relevance of the class"
    save_heatmaps(folder / "heatmaps.png", shown.x[:IMAGES], found, names=names, title=title)
    save_path(
        folder / "path.png", subject.model, subject.original, subject.unlearned, shown.x, shown.y
    )


def _concept_pages(folder: Path, subject: Subject) -> None:
    """The class's concepts before and after, what they look like, where they are, the poison."""
    forget, retain = subject.sets.forget, subject.sets.retain
    assert forget is not None
    assert retain is not None
    concepts: Concepts | None = subject.prepared
    if concepts is not None:
        _write_quality(folder, subject, concepts, forget, retain)
        _draw_scores(folder, subject, concepts, forget)
        _draw_patches(folder, subject, concepts, forget)
        _draw_maps(folder, subject, concepts, forget)
    _draw_poison(folder, subject, concepts, forget, retain)


def _write_quality(
    folder: Path, subject: Subject, concepts: Concepts, forget: Subset, retain: Subset
) -> None:
    """``concepts.json``: how good the concepts and the bottleneck are, and the donors."""
    bank, donor = concepts.bank, donors_of(concepts, retain)
    part = whole(_spread(forget.examples))
    features = predict(feature_fn(subject.model.apply), subject.original, part).logits
    seen = predict(subject.model.apply, subject.original, part)
    shares = bottleneck_accuracy(bank, concepts.bottleneck, features, seen.labels)
    text = {
        "accuracy": {"network": seen.accuracy, **shares},
        "completeness_gap": float(jnp.max(concepts.gap)),
        "concepts": {
            name: {
                "useful": bool(bank.useful[n]),
                "balanced_accuracy": _number(bank.accuracy[n]),
                "p_value": _number(bank.p_value[n]),
            }
            for n, name in enumerate(bank.names)
        },
        "classes": {
            subject.class_names[k]: {
                "scores": {
                    name: _number(concepts.values[k, n]) for n, name in enumerate(bank.names)
                },
                "donor": _named(subject.class_names, donor.label[k]),
                "target_concept": _named(bank.names, donor.concept[k]),
                "donor_concept": _named(bank.names, donor.donor_concept[k]),
            }
            for k in labels_of(forget)
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "concepts.json").write_text(json.dumps(text, indent=2) + "\n")


def _number(value: jax.Array) -> float | None:
    """A number that JSON has; NaN, where nothing was fitted, is none."""
    return None if jnp.isnan(value) else round(float(value), 6)


def _named(names: Sequence[str], place: jax.Array) -> str | None:
    return None if place < 0 else names[int(place)]


def _draw_scores(folder: Path, subject: Subject, concepts: Concepts, forget: Subset) -> None:
    """What a class is made of before, by which its donor was chosen, and in the answers after."""
    donor = donors_of(concepts, subject.sets.retain)  # type: ignore[arg-type]
    drawn = _spread(forget.examples)
    after = _answers(subject.model, subject.unlearned, concepts, drawn)
    names = concepts.bank.names
    for label in labels_of(forget)[:IMAGES]:
        chosen = {}
        if donor.label[label] >= 0:
            chosen[names[int(donor.donor_concept[label])]] = "donor"
        if donor.concept[label] >= 0:
            target = names[int(donor.concept[label])]
            chosen[target] = "target and donor" if target in chosen else "target"
        name, giver = subject.class_names[label], int(donor.label[label])
        title = f"concepts of {name}, after: in the network's answers"
        title += f", donor {subject.class_names[giver]}" if giver >= 0 else ""
        path = folder / (f"concepts_{label}.png" if len(labels_of(forget)) > 1 else "concepts.png")
        before = concepts.values[label]
        save_concepts(path, names, before, after[label], chosen=chosen, title=title)


def _answers(
    model: Model, variables: Variables, concepts: Concepts, examples: Examples
) -> np.ndarray:
    """``[K, m]``: what the concepts add to the logits of a bottleneck.

    It is fitted to the network's own answers: what is never answered has no concepts.
    """
    part = whole(examples)
    features = predict(feature_fn(model.apply), variables, part).logits
    answers = predict(model.apply, variables, part).logits.argmax(axis=1)
    num_classes = len(concepts.gap)
    bottleneck = fit_bottleneck(concepts.bank, features, answers, num_classes, hybrid=False)
    scores = concept_scores(
        concepts.bank, bottleneck, jnp.asarray(features), part.examples.y, num_classes
    )
    return np.asarray(scores.values)


def _draw_patches(folder: Path, subject: Subject, concepts: Concepts, forget: Subset) -> None:
    drawn = _spread(forget.examples)
    read, part = feature_fn(subject.model.apply), whole(drawn)
    images = np.asarray(fetch(drawn, part.indices))
    shown = typical_patches(
        concepts.bank, read, subject.original, images, typical=IMAGES, labels=np.asarray(drawn.y)
    )
    kept = _strongest(concepts, labels_of(forget), 8)
    save_patches(
        folder / "patches.png", images, [concepts.bank.names[c] for c in kept],
        shown.image[kept], shown.corner[kept], shown.size, strength=shown.strength[kept],
        title="typical patches of the strongest concepts",
    )  # fmt: skip


def _draw_maps(folder: Path, subject: Subject, concepts: Concepts, forget: Subset) -> None:
    shown, kept = _first(forget, IMAGES), _strongest(concepts, labels_of(forget), CONCEPTS)
    show = jax.jit(concept_maps(subject.model.apply))
    # of length 1, as in the method: the maps of a row have one scale
    units, every = directions(concepts), jnp.ones((len(shown.x), 1))
    maps = [show(subject.original, shown.x, every * units[c][None]) for c in kept]
    names = [concepts.bank.names[c] for c in kept]
    title = "original: where the concepts are"
    save_maps(folder / "maps.png", shown.x, jnp.stack(maps, axis=1), names, title=title)


def _draw_poison(
    folder: Path, subject: Subject, concepts: Concepts | None, forget: Subset, retain: Subset
) -> None:
    defaults = {name: one.default for name, one in method_options("concept_poison").items()}
    options = {**defaults, **subject.options}
    pixels = patch_pixels(options["patch"], forget.examples.x.shape[1:])
    recipe = Recipe(options["place"], options["label"], pixels, options["patches"])
    keys, num_classes = keys_of(own_key(subject.key)), len(subject.class_names)
    slots, size = share_of(forget, options["data"], keys.forget, num_classes)
    count = min(IMAGES, int(size))
    made = poisoned_copies(
        subject.model.apply, recipe, subject.original, forget, retain, slots, concepts,
        keys.poison, num_classes, first=count,
    )  # fmt: skip
    positions = forget.indices[slots[:count]]
    lent = None
    if concepts is not None:
        lent = fetch(retain.examples, retain.indices[made.donors[:count]])
    framed = made.corners if recipe.place not in ("full", "none") else None
    save_poison(
        folder / "poison.png", fetch(forget.examples, positions), made.x, framed, recipe.patch,
        forget.examples.y[positions], made.y[:count], lent, class_names=subject.class_names,
    )  # fmt: skip


def _first(part: Subset, count: int) -> Examples:
    """The first examples of a subset, normalised."""
    at = part.indices[: min(count, num_examples(part))]
    return Examples(fetch(part.examples, at), part.examples.y[at], jnp.zeros(()), jnp.ones(()))


def _spread(examples: Examples) -> Examples:
    """Every so many-th of the examples, at most :data:`EXAMPLES`, as they are."""
    step = -(-len(examples.y) // EXAMPLES)
    return examples._replace(x=examples.x[::step], y=examples.y[::step])


def _strongest(concepts: Concepts, labels: Sequence[int], count: int) -> list[int]:
    """The concepts that score highest in some classes, the first first."""
    best = np.asarray(concepts.values)[list(labels)].max(axis=0)
    best = np.where(np.asarray(concepts.bank.useful), best, -np.inf)
    order = np.argsort(-best, kind="stable")[:count]
    return [int(c) for c in order if np.isfinite(best[c])]


PAGES: Mapping[str, Callable[[Path, Subject], None]] = {
    "concept_poison": _concept_pages,
    "neuron_path": _path_pages,
}
"""Methods that have pictures of their own."""
