"""Pictures that a run on classifiers draws: predictions, and what each method found and changed.

Each is a function of the file to write, the run and, of a method's picture, its label.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxunlearn import concepts as concept_room
from jaxunlearn import pictures
from jaxunlearn.attribution import lrp, starts
from jaxunlearn.attribution.lrp import rules
from jaxunlearn.attribution.maps import concept_maps
from jaxunlearn.concepts import Concepts
from jaxunlearn.core.files import write_text
from jaxunlearn.core.trees import to_device
from jaxunlearn.core.types import Apply, Examples, Key, Sets, Subset, Variables
from jaxunlearn.data.batches import streamed
from jaxunlearn.data.examples import array_shape, fetch, take, unchanged
from jaxunlearn.data.sets import alone, labels_of, num_examples, whole
from jaxunlearn.engine.feed import readable_sets
from jaxunlearn.engine.loop import init_key
from jaxunlearn.engine.predict import predict
from jaxunlearn.kinds import View
from jaxunlearn.methods import method_options
from jaxunlearn.methods.concept_poison.poison import (
    Recipe,
    directions,
    donors_of,
    patch_pixels,
    poison_images,
)
from jaxunlearn.methods.concept_poison.tuning import keys_of
from jaxunlearn.methods.shares import share_of
from jaxunlearn.metrics.registry import METRICS
from jaxunlearn.pictures.exposed import describe_exposed, exposed_text, to_thumbnail
from jaxunlearn.pictures.scores import describe_scores
from jaxunlearn.pictures.style import to_rgb

MODELS = 9
"""Confusion matrices side by side, at most."""

IMAGES = 6
"""Rows of a picture of images."""

EXAMPLES = 600
"""Images that a mean is taken over."""

EXPOSURES = {
    "lira": True, "klom_forget": True, "completeness": False, "activation_distance": True,
    "same_class_forget": False, "zero_retrain_forgetting": False, "js_to_retrained": True,
}  # fmt: skip
"""Values of each example that say how exposed it is, the best first; whether large is exposed."""

CONCEPTS = 4
"""Concepts whose maps are drawn."""


def draw_exposed(path: Path, view: View, label: str) -> None:
    """Writes which forgotten images are most exposed; draws them, where values were asked for."""
    name = next((n for n in EXPOSURES if any(n in own for own in view.examples.values())), "")
    forget, _ = _both(view)
    shape: tuple[int, ...] = getattr(forget.examples.x, "shape", ())
    images = len(shape) == 3 or (len(shape) == 4 and shape[-1] in (1, 3))
    if not name or not images:
        return
    values = {
        one: own[name] for one, own in view.examples.items()
        if name in own and one != "retrained" and np.isfinite(own[name]).all()
    }  # fmt: skip
    at = np.asarray(forget.indices)[: num_examples(forget)]
    labels, words = np.asarray(forget.examples.y)[at], METRICS[name].label
    names, largest = [view.class_names[k] for k in labels], EXPOSURES[name]
    write_exposed(path, forget, values, names, words, largest=largest)
    if not METRICS[name].extra:
        return
    pictures.save_exposed(
        path, take(forget.examples.x, at), values, largest=largest, labels=labels,
        class_names=view.class_names, words=words, title=f"forget images: {words}",
    )  # fmt: skip
    write_text(path.with_suffix(".md"), exposed_text(values, names, words, largest))


def write_exposed(
    path: Path, forget: Subset, values: Mapping[str, np.ndarray], names: Sequence[str], words: str,
    *, largest: bool = True,
) -> None:  # fmt: skip
    """Writes which forgotten images are most exposed, and how they look, for the page of a run.

    Args:
      path: of the picture, beside which it is written.
      values: name of a model -> a value of each image.
      names: of the images' classes.
      words: what the values are.
    """
    at = np.asarray(forget.indices)[: num_examples(forget)]

    def show(place: int) -> dict[str, Any]:
        image = to_rgb(take(forget.examples.x, at[place : place + 1]))[0]
        return {"name": names[place], "image": to_thumbnail(image)}

    text = describe_exposed(values, at, words, show, largest=largest)
    if text["models"]:
        write_text(path.with_suffix(".json"), json.dumps(text) + "\n")


def draw_confusions(path: Path, view: View, label: str) -> None:
    """Draws confusion matrices of the models on the test images, side by side."""
    names = list(view.variables)
    shown = [*names[: MODELS - 1], names[-1]] if len(names) > MODELS else names
    matrices = {}
    for name in shown:
        matrix = np.zeros((len(view.class_names), len(view.class_names)))
        seen = view.observe(name)  # each model by its own normalisation
        for part in ("test_forget", "test_retain"):
            if num_examples(getattr(seen.sets, part)):
                found = seen.predictions[part]
                np.add.at(matrix, (found.labels, found.classes), 1)
        matrices[name] = matrix
    if not any(matrix.any() for matrix in matrices.values()):
        return
    test = view.sets.test_forget
    forgotten = () if test is None else tuple(labels_of(test))
    pictures.save_confusions(path, matrices, class_names=view.class_names, forgotten=forgotten)
    text = {
        "names": list(view.class_names), "forgotten": list(forgotten),
        "models": {name: matrix.astype(int).tolist() for name, matrix in matrices.items()},
    }  # fmt: skip
    write_text(path.with_suffix(".json"), json.dumps(text) + "\n")


def draw_losses(path: Path, view: View, label: str) -> None:
    """Draws the losses of forget images and of test images that attacks set beside them."""
    # of a class beside test images of it, as the attacks do
    other = "test_forget" if num_examples(view.sets.test_forget) else "test_retain"
    names = {"forget": "forget (trained on)", other: "test (never seen)"}
    losses = {}
    for name in view.variables:
        seen = view.observe(name)
        if not all(num_examples(getattr(seen.sets, part)) for part in names):
            return
        found = {words: seen.predictions[part].losses for part, words in names.items()}
        if all(np.isfinite(values).all() for values in found.values()):
            losses[name] = found
    if not losses:
        return
    members, others = names.values()
    about = "a small loss is taken for a sign of training; 0.5 is a coin toss"
    text = describe_scores(losses, "loss", members, others, small=True, about=about)
    notes = {name: f"AUC of the attack {one['auc']:.3f}" for name, one in text["roc"].items()}
    title = f"losses: {view.title}"
    pictures.save_losses(path, losses, title=title, notes=notes, words="loss")
    write_text(path.with_suffix(".json"), json.dumps(text) + "\n")


def draw_heatmaps(path: Path, view: View, label: str) -> None:
    """Draws the relevance of unseen images for their class, in the original."""
    shown = _unseen(view)
    if shown is None:
        return
    names = [view.class_names[k] for k in np.asarray(shown.y[:IMAGES])]
    original, x = view.variables["original"], shown.x[:IMAGES]
    start = starts.label(to_device(shown.y[:IMAGES]))
    found = jax.device_get(_relevance(view.model.apply)(original, x, start=start))
    title = "original: relevance of the class"
    pictures.save_heatmaps(path, x, found, names=names, title=title)


@functools.lru_cache(maxsize=8)
def _relevance(apply: Apply) -> Callable[..., Any]:
    # of one network, whichever method's picture it is for, one program
    return jax.jit(lrp(apply, rules.epsilon_plus()))


def draw_path(path: Path, view: View, label: str) -> None:
    """Draws the neuronal path of the class before and after it was edited."""
    shown = _unseen(view)
    if shown is not None:
        pair = view.variables["original"], view.variables[label]
        pictures.save_path(path, view.model, *pair, shown.x, shown.y)


def _unseen(view: View) -> Examples | None:
    """Returns unseen images that can be drawn, or ``None``."""
    part = view.sets.unseen
    if part is None:
        return None
    shown = _first(part, 36)
    drawable = not isinstance(shown.x, dict | tuple | list) and shown.x.ndim == 4
    return shown if drawable and shown.x.shape[-1] in (1, 3) else None


def draw_concepts(path: Path, view: View, label: str) -> None:
    """Draws a class's concepts before and after, and writes how good they are beside it."""
    concepts: Concepts | None = view.methods[label].prepared()
    if concepts is None:
        return
    forget, retain = _both(view)
    _write_quality(path.parent, view, concepts, forget, retain)
    donor = jax.device_get(donors_of(concepts, labels_of(retain)))
    drawn = _spread(forget.examples)
    after = _predicted_concepts(view, label, concepts, drawn)
    concepts = jax.device_get(concepts)
    names = concepts.bank.names
    for k in labels_of(forget)[:IMAGES]:
        chosen = {}
        if donor.label[k] >= 0:
            chosen[names[int(donor.donor_concept[k])]] = "donor"
        if donor.concept[k] >= 0:
            target = names[int(donor.concept[k])]
            chosen[target] = "target and donor" if target in chosen else "target"
        name, giver = view.class_names[k], int(donor.label[k])
        title = f"concepts of {name}, after: in the network's predictions"
        title += f", donor {view.class_names[giver]}" if giver >= 0 else ""
        several = len(labels_of(forget)) > 1
        file = path.with_name(f"{path.stem}_{k}.png") if several else path
        pictures.save_concepts(
            file, names, concepts.values[k], after[k], chosen=chosen, title=title
        )


def _write_quality(
    folder: Path, view: View, concepts: Concepts, forget: Subset, retain: Subset
) -> None:
    """Writes ``concepts.json``: how good the concepts and the bottleneck are, and the donors."""
    donor = jax.device_get(donors_of(concepts, labels_of(retain)))
    part = whole(_spread(forget.examples))
    original = view.variables["original"]
    features = predict(concept_room.feature_fn(view.model.apply), original, part).logits
    seen = predict(view.model.apply, original, part)
    shares = concept_room.bottleneck_accuracy(
        concepts.bank, concepts.bottleneck, features, seen.labels
    )
    concepts = jax.device_get(concepts)
    bank = concepts.bank
    text = {
        "accuracy": {"network": seen.accuracy, **shares},
        "completeness_gap": float(np.max(concepts.gap)),
        "concepts": {
            name: {
                "useful": bool(bank.useful[n]),
                "balanced_accuracy": _number(bank.accuracy[n]),
                "p_value": _number(bank.p_value[n]),
            }
            for n, name in enumerate(bank.names)
        },
        "classes": {
            view.class_names[k]: {
                "scores": {n: _number(concepts.values[k, c]) for c, n in enumerate(bank.names)},
                "donor": _named(view.class_names, donor.label[k]),
                "target_concept": _named(bank.names, donor.concept[k]),
                "donor_concept": _named(bank.names, donor.donor_concept[k]),
            }
            for k in labels_of(forget)
        },
    }
    write_text(folder / "concepts.json", json.dumps(text, indent=2) + "\n")


def _number(value: Any) -> float | None:
    """Returns a number that JSON has; NaN, where nothing was fitted, is none."""
    return None if np.isnan(value) else round(float(value), 6)


def _named(names: Sequence[str], place: int) -> str | None:
    return None if place < 0 else names[int(place)]


def _predicted_concepts(
    view: View, label: str, concepts: Concepts, examples: Examples
) -> np.ndarray:
    """Returns ``[K, m]``, what the concepts add to the logits of a bottleneck.

    It is fitted to the network's own predictions: what is never predicted has no concepts.
    """
    part, variables = whole(examples), view.variables[label]
    features = predict(concept_room.feature_fn(view.model.apply), variables, part).logits
    predicted = predict(view.model.apply, variables, part).classes
    num_classes = len(concepts.gap)
    _, scores = concept_room.fit_and_score(
        concepts.bank, features, predicted, num_classes, labels=part.examples.y, hybrid=False
    )
    return np.asarray(scores.values)


def draw_patches(path: Path, view: View, label: str) -> None:
    """Draws the patches of images that show the strongest concepts most."""
    concepts: Concepts | None = view.methods[label].prepared()
    if concepts is None:
        return
    forget, _ = _both(view)
    drawn = _spread(forget.examples)
    read = concept_room.feature_fn(view.model.apply)
    images = np.asarray(drawn.x)
    shown = concept_room.typical_patches(
        concepts.bank, read, view.variables["original"], images, typical=IMAGES,
        labels=np.asarray(drawn.y),
    )  # fmt: skip
    kept = _strongest(concepts, labels_of(forget), 8)
    pictures.save_patches(
        path, images, [concepts.bank.names[c] for c in kept],
        shown.image[kept], shown.corner[kept], shown.size, strength=shown.strength[kept],
        title="typical patches of the strongest concepts",
    )  # fmt: skip


def draw_maps(path: Path, view: View, label: str) -> None:
    """Draws where in images of the class the strongest concepts are."""
    concepts: Concepts | None = view.methods[label].prepared()
    if concepts is None:
        return
    forget, _ = _both(view)
    shown, kept = _first(forget, IMAGES), _strongest(concepts, labels_of(forget), CONCEPTS)
    given = view.variables["original"], shown.x, concepts
    maps = [_maps(view.model.apply)(*given, np.int32(c)) for c in kept]
    names = [concepts.bank.names[c] for c in kept]
    title = "original: where the concepts are"
    pictures.save_maps(path, shown.x, np.stack(maps, axis=1), names, title=title)


@functools.lru_cache(maxsize=8)
def _maps(apply: Apply) -> Callable[..., jax.Array]:
    show = concept_maps(apply)

    @jax.jit
    def maps(variables: Variables, x: jax.Array, concepts: Concepts, c: jax.Array) -> jax.Array:
        # of length 1, as in the method: the maps of a row have one scale
        every = jnp.ones((len(x), 1), jnp.float32)
        return show(variables, x, every * directions(concepts)[c][None])

    return maps


def draw_poison(path: Path, view: View, label: str) -> None:
    """Draws poisoned images beside what they were made of."""
    drawing, (forget, retain) = view.methods[label], _both(view)
    concepts: Concepts | None = drawing.prepared()
    defaults = {name: one.default for name, one in method_options("concept_poison").items()}
    options: dict[str, Any] = {**defaults, **drawing.options}
    pixels = patch_pixels(options["patch"], array_shape(forget))
    recipe = Recipe(options["place"], options["label"], pixels, options["patches"])
    num_classes, most = len(view.class_names), min(IMAGES, num_examples(forget))

    @jax.jit
    def poisoned(
        original: Variables, forget: Subset, retain: Subset, concepts: Concepts | None, key: Key
    ) -> Any:
        keys = keys_of(init_key(key))
        slots, size = share_of(forget, options["data"], keys.forget, num_classes)
        made = poison_images(
            view.model.apply, recipe, original, forget, retain, concepts, keys.poison,
            slots=slots, first=most,
        )  # fmt: skip
        at = forget.indices[slots[:most]]
        lent = None
        if concepts is not None:
            lent = fetch(retain.examples, retain.indices[made.donors[:most]])
        return size, made, fetch(forget.examples, at), forget.examples.y[at], lent

    sets = Sets(forget=forget, retain=retain)
    with readable_sets(sets):
        shown = _both_of(alone(sets) if streamed(sets) else sets)
        given = view.variables["original"], *shown, concepts, drawing.key
        size, made, x, y, lent = jax.device_get(poisoned(*given))
    count = min(most, int(size))
    framed = made.corners[:count] if recipe.place not in ("full", "none") else None
    pictures.save_poison(
        path, x[:count], made.x[:count], framed, recipe.patch, y[:count], made.y[:count],
        lent if lent is None else lent[:count], class_names=view.class_names,
    )  # fmt: skip


def _both(view: View) -> tuple[Subset, Subset]:
    return _both_of(view.sets)


def _both_of(sets: Sets) -> tuple[Subset, Subset]:
    forget, retain = sets.forget, sets.retain
    assert forget is not None
    assert retain is not None
    return forget, retain


def _first(part: Subset, count: int) -> Examples:
    """Returns the first examples of a subset as the network gets them."""
    return _read(part.examples, np.asarray(part.indices)[: min(count, num_examples(part))])


def _spread(examples: Examples) -> Examples:
    """Returns every so many-th of the examples, at most :data:`EXAMPLES`, likewise."""
    step = -(-len(examples.y) // EXAMPLES)
    return _read(examples, np.arange(0, len(examples.y), step))


def _read(examples: Examples, at: np.ndarray) -> Examples:
    """Returns examples in some places as the network gets them, on the host."""
    x = jax.tree.map(np.asarray, fetch(examples, at))
    return Examples(x, np.asarray(examples.y)[at], Partial(unchanged))  # type: ignore[arg-type]


def _strongest(concepts: Concepts, labels: Sequence[int], count: int) -> list[int]:
    """Returns the concepts that score highest in some classes, the first first."""
    best = np.asarray(concepts.values)[list(labels)].max(axis=0)
    best = np.where(np.asarray(concepts.bank.useful), best, -np.inf)
    order = np.argsort(-best, kind="stable")[:count]
    return [int(c) for c in order if np.isfinite(best[c])]
