"""Which networks ``neuron_path`` suits: edits and layers on five small ones.

    python benchmarks/path_networks.py                        # digits, each class in turn
    python benchmarks/path_networks.py --networks vit mixer --seeds 3
    python benchmarks/path_networks.py --json

Each network is trained on the scanned digits. Then each class is forgotten by itself, from
unseen images, and accuracies on held-out images are averaged over the classes (and
seeds): of the class and of the others. ``resnet8`` and ``mlp`` are the built-in ones, ``vit`` a
vision transformer (patches of 2, a layer norm and a mean over tokens before the head),
``mixer`` the same with mixing of tokens in place of attention, ``allconv`` a stack of
convolutions whose head is a 1x1 convolution before the mean over positions.
"""

import argparse
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from peers.report import about, tell

import jaxunlearn as ju
from jaxunlearn.core.trees import member
from jaxunlearn.core.types import Model, Sets, Variables
from jaxunlearn.engine.predict import predict

CLASSES, SHAPE = 10, (8, 8, 1)


class Mixing(nn.Module):
    """Dense layers over the tokens, the same for every feature."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.gelu(nn.Dense(self.hidden)(x.swapaxes(1, 2)))
        return nn.Dense(x.shape[1])(y).swapaxes(1, 2)


class Tokens(nn.Module):
    """Patches, blocks that add to a stream, a layer norm, the mean over tokens, a head."""

    attention: bool
    width: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (2, 2), strides=(2, 2), name="patch")(x)
        x = x.reshape(len(x), -1, self.width)
        if self.attention:
            place = self.param("place", nn.initializers.normal(0.02), (1, *x.shape[1:]))
            x = x + place
        for number in range(self.depth):
            y = nn.LayerNorm(name=f"norm{number}")(x)
            if self.attention:
                x = x + nn.MultiHeadDotProductAttention(4, name=f"attention{number}")(y, y)
            else:
                x = x + Mixing(self.width, name=f"mixing{number}")(y)
            y = nn.LayerNorm(name=f"norm{number}b")(x)
            y = nn.gelu(nn.Dense(2 * self.width, name=f"up{number}")(y))
            x = x + nn.Dense(self.width, name=f"down{number}")(y)
        x = nn.LayerNorm(name="norm")(x)
        return nn.Dense(CLASSES, name="head")(x.mean(axis=1))


class AllConv(nn.Module):
    """Convolutions alone; the last has one channel for each class."""

    width: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for number in range(self.depth):
            x = nn.Conv(self.width, (3, 3), strides=1 + number % 2, name=f"conv{number}")(x)
            x = nn.relu(x)
        x = nn.relu(nn.Conv(2 * self.width, (1, 1), name="mix")(x))
        return nn.Conv(CLASSES, (1, 1), name="head")(x).mean(axis=(1, 2))


NETWORKS = ("mlp", "resnet8", "allconv", "vit", "mixer")


def network(name: str, width: int, depth: int) -> Model:
    if name == "mlp":
        return ju.models.build("mlp", SHAPE, CLASSES, {"features": (4 * width, 2 * width)})
    if name == "resnet8":
        return ju.models.build("resnet8", SHAPE, CLASSES, {"width": width // 2})
    like = jnp.zeros((1, *SHAPE), jnp.float32)
    module = AllConv(width, depth) if name == "allconv" else Tokens(name == "vit", width, depth)
    return ju.functionalize(module, like)


CHOICES: dict[str, dict[str, Any]] = {
    "outgoing weights, a tenth": {"share": 0.1, "weights": ("outgoing",)},
    "outgoing weights, half": {"share": 0.5, "weights": ("outgoing",)},
    "class's weights, a tenth": {"share": 0.1, "weights": ("class",)},
    "class's weights, half": {"share": 0.5, "weights": ("class",)},
    "all layers, a tenth": {"share": 0.1, "layers": "all"},
    "all layers, calibrated": {"share": 0.5, "layers": "all", "calibrate": True, "guard": True},
    "patch embedding alone, a tenth": {"share": 0.1, "layers": ("patch",)},
    "resampled, 500/768": {"share": 500 / 768, "edit": "resample"},
    "defaults": {},
    "defaults, all layers": {"layers": "all"},
}
"""Ranked by mean relevance, but for the two of the defaults."""


def datasets(labels: list[int]) -> Sets:
    """Returns the sets of each class, stacked; half of the test images are the unseen ones."""
    data = ju.data.load_dataset(ju.data.DataConfig(name="digits"))
    half = len(data.test_x) // 2
    x, test_x = (jnp.asarray(part, jnp.float32) / 255 for part in (data.train_x, data.test_x))
    y, test_y = jnp.asarray(data.train_y), jnp.asarray(data.test_y)
    unseen, test = (test_x[:half], test_y[:half]), (test_x[half:], test_y[half:])
    return ju.data.stack_sets(
        [ju.make_sets(x, y, ju.forget_class(k), unseen=unseen, test=test) for k in labels]
    )


def accuracies(model: Model, variables: Variables, sets: Sets, count: int) -> dict[str, float]:
    """Means over the classes; each has its own model, if there are several."""
    found: dict[str, list[float]] = {"class": [], "others": []}
    for number in range(count):
        one = ju.data.sets.request(sets, number)
        own = member(variables, number)
        for name, part in (("class", one.test_forget), ("others", one.test_retain)):
            found[name].append(predict(model.apply, own, part).accuracy)
    return {name: float(np.mean(values)) for name, values in found.items()}


def measure(name: str, options: argparse.Namespace, sets: Sets) -> list[dict[str, Any]]:
    """Returns one row for each choice; those that a network refuses are left out."""
    model = network(name, options.width, options.depth)
    config = ju.TrainConfig(epochs=options.epochs, learning_rate=2e-3, batch_size=64)
    labels, keys = options.labels, [jax.random.key(seed) for seed in range(options.seeds)]
    everything = ju.data.sets.request(sets, 0).train
    originals = [ju.train(model, everything, key, config=config).variables for key in keys]
    copies = [jax.tree.map(lambda leaf: jnp.stack([leaf] * len(labels)), o) for o in originals]
    rows = [
        {"choice": "original", **mean([accuracies(model, o, sets, len(labels)) for o in copies])}
    ]
    for choice, given in CHOICES.items():
        found = []
        score = "votes" if choice.startswith("defaults") else "relevance"
        method = ju.neuron_path(model, score=score, **given)
        try:
            for original, key in zip(originals, keys, strict=True):
                own = jax.random.split(key, len(labels))
                made = ju.unlearn_many(method, original, sets, own)
                found.append(accuracies(model, made.variables, sets, len(labels)))
        except ValueError:  # as a network without a patch embedding, or one too narrow
            continue
        rows.append({"choice": choice, **mean(found)})
    return [{"network": name, **row} for row in rows]


def mean(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=40)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--labels", type=int, nargs="+", default=list(range(CLASSES)))
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    for choice in set(CHOICES) - set(options.choices):
        del CHOICES[choice]
    warnings.simplefilter("ignore")  # a target that is not reached shows in the table
    start, sets = time.perf_counter(), datasets(options.labels)
    rows = [row for name in options.networks for row in measure(name, options, sets)]
    seconds = round(time.perf_counter() - start, 1)
    told = about(options=options, without=("choices",), dtype="float32", seconds=seconds)
    if tell(told, options.json, rows=rows):
        show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'network':10}{'choice':34}{'class':>8}{'others':>8}")
    for row in rows:
        print(f"{row['network']:10}{row['choice']:34}{row['class']:8.3f}{row['others']:8.3f}")


if __name__ == "__main__":
    main()
