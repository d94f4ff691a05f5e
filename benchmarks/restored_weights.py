"""Can weights that ``neuron_path`` set to zero be restored without an image of the class?

    python benchmarks/restored_weights.py            # digits, an MLP, 5 seeds
    python benchmarks/restored_weights.py --json

An MLP learns all classes; ``neuron_path`` then edits the incoming weights of the neurons S of
the last hidden layer and their weights to the class's logit, or the latter alone (*class*). An
attacker has the edited model and the retained training images. Exact zeros tell where it
was edited (``located``: share of S). There he solves least squares; x are the layer's
inputs on the retained images, which no edit touched, a its activations, w_n and b_n weights and
bias of neuron n, u_n its weights to the other logits, h_n that to the class's. Of equal
solutions the shortest is taken.

* ``bias``, no least squares, nor S: the bias of the class's logit is raised until 1 % of the
  retained images are taken for the class. What this brings back the edit had hidden, not taken.
* ``zero sum``, without an image: ``h_n = -sum(u_n)``, as gradients of the cross-entropy sum to zero
  over classes; w stays as it is.
* ``neighbours``: ``u_n ~ sum_m beta_m u_m`` over the intact neurons m whose u is closest in angle
  (``--neighbours`` of them); then ``h_n = sum_m beta_m h_m``, and w_n fits
  ``x w_n + b_n ~ sum_m beta_m a_m``.
* ``logits``: those of the original on the retained images were kept. What neurons outside
  of S do not explain of them is ``sum_n a_n u_n``: the shortest a that fits is the target of
  ``x w_n + b_n``; then h fits what is left of the class's logit.
* ``activations``: the original's activations of the layer were kept, too: ``x w_n + b_n``
  fits them where they are positive; h as before.

An edit that resamples leaves no zeros: there S is told to the attacker, so that the rows say what
hiding it is worth to somebody who knows it all the same. ``auc``: odds that the class's margin
over the other logits is larger for an image of the class than for another. ``error``: distance
of the restored w from the original's, over that of the edited. ``retrained``: networks that
never saw the class; what is restored there was never known.
"""

import argparse
import itertools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from peers.report import about, tell
from planted_paths import digits, everything
from threadpoolctl import threadpool_limits

import jaxunlearn as ju
from jaxunlearn.core.keys import Purpose, derive
from jaxunlearn.core.trees import member
from jaxunlearn.core.types import Key, Model, Sets, Variables
from jaxunlearn.data.examples import array_shape
from jaxunlearn.data.sets import labels_of
from jaxunlearn.methods.neuron_path.weights import EDITS
from jaxunlearn.metrics.classification import ClassifierEvidence, exact_zeros

MISTAKES = 0.01
"""Share of the retained images that a raised bias may give to the class."""

Arrays = dict[str, np.ndarray]


def last_layer(variables: Variables, images: np.ndarray) -> Arrays:
    """Returns the last hidden layer and the head in float64, and the layer's inputs on images."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    x = images.reshape(len(images), -1)
    *before, last = sorted((name for name in params if name != "head"), key=lambda n: int(n[2:]))
    for name in before:
        x = np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
    found = {"x": x, "w": params[last]["kernel"], "b": params[last]["bias"]}
    found |= {"head": params["head"]["kernel"], "head_b": params["head"]["bias"]}
    return found | {"a": activations(found)}


def activations(layer: Arrays) -> np.ndarray:
    return np.maximum(layer["x"] @ layer["w"] + layer["b"], 0)


def with_last_layer(variables: Variables, layer: Arrays) -> Variables:
    """Returns the same network with these weights of the last hidden layer and the head."""
    params = dict(variables["params"])
    last = max((name for name in params if name != "head"), key=lambda name: int(name[2:]))
    params[last] = {**params[last], "kernel": jnp.asarray(layer["w"], jnp.float32)}
    head = {"kernel": layer["head"], "bias": layer["head_b"]}
    params["head"] = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), head)
    return {**variables, "params": params}


def solve(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the shortest least-squares solution; what float32 rounding made counts as zero."""
    return np.linalg.lstsq(matrix, target, rcond=1e-5)[0]


class Attack(NamedTuple):
    """What an attacker knows.

    Attributes:
      edited: the last hidden layer and the head as they are.
      original: the same before the edit, of which activations and logits alone are read.
      neurons: S, ``int [n]``.
      incoming: whether their incoming weights were edited.
      label: of the class.
      neighbours: how many are used.
    """

    edited: Arrays
    original: Arrays
    neurons: np.ndarray
    incoming: bool
    label: int
    neighbours: int

    def others(self, matrix: np.ndarray) -> np.ndarray:
        """Returns all columns but the class's."""
        return np.delete(matrix, self.label, axis=1)

    def rest(self) -> np.ndarray:
        """Returns the original's logits less what neurons outside of S make of them, ``[N, K]``."""
        own, before = self.edited, self.original
        logits = before["a"] @ before["head"] + before["head_b"]
        intact = np.delete(np.arange(len(own["head"])), self.neurons)
        return logits - own["head_b"] - own["a"][:, intact] @ own["head"][intact]

    def restored(self, w: np.ndarray | None = None, h: np.ndarray | None = None) -> Arrays:
        """Returns the layer with incoming weights of S, where edited, and those to the class.

        Without ``h`` the weights to the class are fitted to the original's logits.
        """
        found = {**self.edited, "w": self.edited["w"].copy(), "head": self.edited["head"].copy()}
        if self.incoming and w is not None:
            found["w"][:, self.neurons] = w
        if h is None:
            h = solve(activations(found)[:, self.neurons], self.rest()[:, self.label])
        found["head"][self.neurons, self.label] = h
        return found


def zero_sum(known: Attack) -> Arrays:
    u = known.others(known.edited["head"])
    return known.restored(h=-u[known.neurons].sum(axis=1))


def bias_alone(known: Attack) -> Arrays:
    own = known.edited
    logits = own["a"] @ own["head"] + own["head_b"]
    raised = own["head_b"].copy()
    raised[known.label] -= np.quantile(margins(logits, known.label), 1 - MISTAKES)
    return {**own, "head_b": raised}


def by_neighbours(known: Attack) -> Arrays:
    own, u = known.edited, known.others(known.edited["head"])
    unit = u / np.maximum(np.linalg.norm(u, axis=1, keepdims=True), 1e-12)
    intact = np.delete(np.arange(len(u)), known.neurons)
    targets, h = [], []
    for n in known.neurons:
        near = intact[np.argsort(-(unit[intact] @ unit[n]))[: known.neighbours or None]]
        beta = solve(u[near].T, u[n])
        targets.append(own["a"][:, near] @ beta - own["b"][n])
        h.append(beta @ own["head"][near, known.label])
    return known.restored(solve(own["x"], np.stack(targets, axis=1)), np.array(h))


def by_logits(known: Attack) -> Arrays:
    own, n = known.edited, known.neurons
    target = solve(known.others(own["head"])[n].T, known.others(known.rest()).T).T
    return known.restored(solve(own["x"], target - own["b"][n]))


def by_activations(known: Attack) -> Arrays:
    own, seen, columns = known.edited, known.original["a"], []
    for n in known.neurons:
        fires = seen[:, n] > 0
        columns.append(solve(own["x"][fires], seen[fires, n] - own["b"][n]))
    return known.restored(np.stack(columns, axis=1))


WAYS = {
    "bias": bias_alone,
    "zero sum": zero_sum,
    "neighbours": by_neighbours,
    "logits": by_logits,
    "activations": by_activations,
}
EDITED = {"incoming and class": None, "class": ("class",)}


def measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns one row for each model and way to restore it, means over the seeds."""
    sets, num_classes = digits(options.label)
    shape = array_shape(sets.train)
    model = ju.models.build("mlp", shape, num_classes, {"features": options.features})
    seeds = jnp.stack([jax.random.key(seed) for seed in range(options.seeds)])
    images = np.asarray(everything(sets.retain), np.float64)

    def keys(*numbers: int) -> Key:
        return jax.vmap(lambda key: derive(key, *numbers))(seeds)

    config = ju.TrainConfig(epochs=options.epochs, batch_size=64)
    original = ju.train_many(model, sets.train, keys(Purpose.ORIGINAL), config=config).variables
    fresh = keys(Purpose.RETRAINED, 0)
    retrained = ju.train_many(model, sets.retain, fresh, config=config).variables

    def attacks(variables: Variables, incoming: bool) -> list[Attack]:
        found = []
        for seed in range(options.seeds):
            own, before = (last_layer(member(v, seed), images) for v in (variables, original))
            neurons = np.flatnonzero((own["head"] != before["head"])[:, options.label])
            given = (own, before, neurons, incoming, options.label, options.neighbours)
            found.append(Attack(*given))
        return found

    def row(variables: Variables, known: list[Attack], way: str, **base: Any) -> dict[str, Any]:
        layers = [WAYS[way](one) for one in known] if way else [one.edited for one in known]
        models = [with_last_layer(member(variables, n), one) for n, one in enumerate(layers)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
        found = {**base, "restored": way, **judge(model, sets, stacked, original)}
        if any((one["w"] != own.edited["w"]).any() for one, own in zip(layers, known, strict=True)):
            found["error"] = error(layers, known)
        return found

    rows = []
    for name, own in (("original", original), ("retrained", retrained)):
        known = attacks(own, incoming=False)
        rows += [row(own, known, way, model=name, weights="") for way in ("", "bias")]
    for edit, (name, weights) in itertools.product(options.edits, EDITED.items()):
        method = ju.neuron_path(
            model, per_sample=options.neurons, neurons=options.neurons, edit=edit, weights=weights
        )
        edited = ju.unlearn_many(
            method, original, sets, keys(Purpose.METHOD), stacked_variables=True
        ).variables
        known = attacks(edited, incoming=weights is None)
        # S by what the edited model shows alone
        share = np.mean([(one.edited["head"][one.neurons, one.label] == 0).mean() for one in known])
        base = {"model": edit, "weights": name, "located": float(share)}
        rows += [row(edited, known, way, **base) for way in ("", *WAYS)]
    return rows


def error(layers: list[Arrays], attacks: list[Attack]) -> float:
    """Computes the mean distance of restored incoming weights to the original's, by the edited."""
    return float(np.mean([
        np.linalg.norm(one["w"] - known.original["w"])
        / np.linalg.norm(known.edited["w"] - known.original["w"])
        for one, known in zip(layers, attacks, strict=True)
    ]))  # fmt: skip


def judge(model: Model, sets: Sets, variables: Variables, original: Variables) -> dict[str, float]:
    """Accuracies and ranks on test images, and the share of exact zeros; means over seeds."""
    (label,) = labels_of(sets.forget)
    found: dict[str, list[float]] = {"class": [], "others": [], "auc": [], "zeros": []}
    count = len(jax.tree.leaves(variables)[0])
    for seed in range(count):
        one, before = (
            ClassifierEvidence(model, member(tree, seed), sets, jax.random.key(0))
            for tree in (variables, original)
        )
        own, others = (one.predictions[name] for name in ("test_forget", "test_retain"))
        found["class"].append(own.accuracy)
        found["others"].append(others.accuracy)
        found["auc"].append(area(margins(own.logits, label), margins(others.logits, label)))
        found["zeros"].append(exact_zeros(one, before))
    deviation = float(np.std(found["class"], ddof=1)) if count > 1 else 0.0
    return {name: float(np.mean(values)) for name, values in found.items()} | {
        "deviation": deviation
    }


def margins(logits: np.ndarray, label: int) -> np.ndarray:
    return logits[:, label] - np.delete(logits, label, axis=1).max(axis=1)


def area(own: np.ndarray, others: np.ndarray) -> float:
    """Odds that the margin of an image of the class is the larger one."""
    higher, equal = own[:, None] > others, own[:, None] == others
    return float(np.mean(higher + equal / 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=int, nargs="+", default=[256, 128])
    parser.add_argument("--label", type=int, default=3, help="the class that is forgotten (3)")
    edits = [name for name in ("zero", "resample") if name in EDITS]
    parser.add_argument("--edits", nargs="+", choices=edits, default=edits)
    parser.add_argument("--neurons", type=int, default=20, help="that are edited (20)")
    parser.add_argument("--neighbours", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=40)
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    start = time.perf_counter()
    with threadpool_limits(1):  # small systems: threads would wait for each other
        rows = measure_all(options)
    seconds = round(time.perf_counter() - start, 1)
    told = about(options=options, dtype="float32, solved in float64", seconds=seconds)
    if not tell(told, options.json, rows=rows):
        return
    heads = f"{'zeros':>9}{'located':>9}{'class':>14}{'others':>8}{'auc':>7}{'error':>7}"
    print(f"{'model':10}{'of':20}{'restored by':16}{heads}")
    for row in rows:
        print(
            f"{row['model']:10}{row['weights']:20}{row['restored']:16}{row['zeros']:9.4f}"
            + (f"{row['located']:9.2f}" if "located" in row else " " * 9)
            + f"{row['class']:8.3f} ±{row['deviation']:.2f}{row['others']:8.3f}{row['auc']:7.3f}"
            + (f"{row['error']:7.2f}" if "error" in row else "")
        )


if __name__ == "__main__":
    main()
